"""What our findings are called in SNOMED CT, for the standards that archives and hospital systems read.

Only terms that DICOM's own context groups list (pydicom.sr.codedict), under exactly our names. Everything else goes out as text: a
code that means something close is worse than none.
"""

from __future__ import annotations

SNOMED = "http://snomed.info/sct"

# By a finding's name: code and SNOMED CT's words.
TERMS: dict[str, tuple[str, str]] = {
    "amygdala": ("4958002", "Amygdala"),
    "brain": ("12738006", "Brain"),
    "brainstem": ("119238007", "Brain Stem"),
    "caudate": ("11000004", "Caudate Nucleus"),
    "cerebellum": ("113305005", "Cerebellum"),
    "cerebral cortex": ("40146001", "Cerebral cortex"),
    "cerebral white matter": ("68523003", "Cerebral White Matter"),
    "haemorrhage": ("50960005", "Hemorrhage"),
    "hippocampus": ("5366008", "Hippocampus"),
    "lateral ventricle": ("66720007", "Lateral Ventricle"),
    "lesion": ("52988006", "Lesion"),
    "necrosis": ("6574001", "Necrosis"),
    "oedema": ("79654002", "Edema"),
    "pallidum": ("14738005", "Globus Pallidus"),
    "putamen": ("89278009", "Putamen"),
    "thalamus": ("42695009", "Thalamus"),
    "third ventricle": ("49841001", "Third ventricle"),
    "tumour": ("108369006", "Tumor"),
}
SIDES: dict[str, tuple[str, str]] = {
    "right": ("24028007", "Right"),
    "left": ("7771000", "Left"),
    "bilateral": ("51440002", "Right and left"),
}
PRESENCE: dict[str, tuple[str, str]] = {
    "present": ("52101004", "Present"),
    "absent": ("272519000", "Absent"),
}
UCUM = {"ml": "mL", "1": "1"}  # of our units, those that UCUM spells otherwise


def ucum(unit: str) -> str:
    return UCUM.get(unit, unit)
