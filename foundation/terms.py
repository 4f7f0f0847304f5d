"""What is known of a finding by its name alone: codes, how urgent it is, and which contrasts must have been acquired to see it.

    term_of("acute infarct").codes    (Code(system="SNOMED", code="55641003", display="Infarct"),)

SNOMED CT codes are morphologies (what it is) and body structures (where), RadLex codes are signals; both are there only where a
published value set has them, and a test computes SNOMED's check digits. A name that is not listed has no code, and nothing is
assumed of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from foundation.config import Config
from foundation.study import Contrast

Urgency = Literal["urgent", "actionable", "minor", "none"]
Signal = Literal["hyperintense", "isointense", "hypointense", "enhancing"]

# How much an error counts, after CRIMSON (arXiv 2603.06183).
WEIGHTS: dict[Urgency, float] = {"urgent": 1.0, "actionable": 0.5, "minor": 0.25, "none": 0.0}


class Code(Config):
    """One code of a published system; `system` is spelt as `ehr/codes.py` does."""

    system: Literal["SNOMED", "RADLEX", "LOINC"]
    code: str
    display: str


@dataclass(frozen=True)
class Term:
    """`needs` are contrasts of which one must have been acquired; none means that any will do."""

    urgency: Urgency
    codes: tuple[Code, ...] = ()
    needs: tuple[Contrast, ...] = ()


def _snomed(code: str, display: str) -> tuple[Code, ...]:
    return (Code(system="SNOMED", code=code, display=display),)


_WATER: tuple[Contrast, ...] = ("FLAIR", "T2w")
_ANATOMY: tuple[Contrast, ...] = ("T1w", "T1w-contrast", "T2w", "FLAIR")

TERMS: dict[str, Term] = {
    "tumour": Term("urgent", _snomed("108369006", "Neoplasm"), _ANATOMY),
    "enhancing tumour": Term("actionable", _snomed("108369006", "Neoplasm"), ("T1w-contrast",)),
    "necrosis": Term("actionable", _snomed("6574001", "Necrosis"), ("T1w-contrast",)),
    "oedema": Term("actionable", _snomed("79654002", "Edema"), _WATER),
    "plaque": Term("actionable", _snomed("32693004", "Demyelination"), _WATER),
    "white matter hyperintensity": Term("minor", (), _WATER),
    "acute infarct": Term("urgent", _snomed("55641003", "Infarct"), ("DWI", "ADC")),
    "haemorrhage": Term("urgent", _snomed("50960005", "Hemorrhage"), ("T2star", "T1w", "T2w")),
    "midline shift": Term("urgent", (), _ANATOMY),
    "ventricular enlargement": Term("minor", (), _ANATOMY),
    "brain atrophy": Term("minor", _snomed("13331008", "Atrophy"), _ANATOMY),
    "image artefact": Term("minor"),
}

PLACES: dict[str, tuple[Code, ...]] = {
    "brain": _snomed("12738006", "Brain structure"),
    "frontal lobe": _snomed("83251001", "Frontal lobe structure"),
    "parietal lobe": _snomed("16630005", "Parietal lobe structure"),
    "temporal lobe": _snomed("78277001", "Temporal lobe structure"),
    "occipital lobe": _snomed("31065004", "Occipital lobe structure"),
    "cerebellum": _snomed("113305005", "Cerebellar structure"),
    "brainstem": _snomed("119238007", "Brain Stem"),
    "amygdala": _snomed("4958002", "Amygdala"),
    "caudate": _snomed("11000004", "Caudate Nucleus"),
    "cerebral cortex": _snomed("40146001", "Cerebral cortex"),
    "pallidum": _snomed("14738005", "Globus Pallidus"),
    "putamen": _snomed("89278009", "Putamen"),
    "third ventricle": _snomed("49841001", "Third ventricle"),
    "lateral ventricle": _snomed("66720007", "Lateral ventricle structure"),
    "cerebral white matter": _snomed("68523003", "Cerebral white matter structure"),
    "hippocampus": _snomed("5366008", "Hippocampal structure"),
    "thalamus": _snomed("42695009", "Thalamic structure"),
}

SIGNALS: dict[Signal, tuple[Code, ...]] = {
    "hyperintense": (Code(system="RADLEX", code="RID35805", display="hyperintense"),),
    "isointense": (Code(system="RADLEX", code="RID6053", display="isointense"),),
    "hypointense": (Code(system="RADLEX", code="RID35804", display="hypointense"),),
    "enhancing": (),
}


SIDES: dict[str, Code] = {
    "right": Code(system="SNOMED", code="24028007", display="Right"),
    "left": Code(system="SNOMED", code="7771000", display="Left"),
    "bilateral": Code(system="SNOMED", code="51440002", display="Right and left"),
}
PRESENCE: dict[str, Code] = {
    "present": Code(system="SNOMED", code="52101004", display="Present"),
    "absent": Code(system="SNOMED", code="272519000", display="Absent"),
}
_UCUM = {"ml": "mL", "1": "1"}  # of our units, those that UCUM spells otherwise


def term_of(name: str) -> Term | None:
    """The term of that name, None where nothing is known of it."""
    return TERMS.get(name.lower())


def place_codes(anatomy: str) -> tuple[Code, ...]:
    return PLACES.get(anatomy.lower(), ())


def snomed_of(name: str) -> Code | None:
    """SNOMED CT's code for a finding or a place of exactly this name: one that means something close is worse than none."""
    term = term_of(name)
    known = (*(term.codes if term else ()), *place_codes(name))
    return next((code for code in known if code.system == "SNOMED"), None)


def ucum(unit: str) -> str:
    """One of our units as UCUM writes it."""
    return _UCUM.get(unit, unit)
