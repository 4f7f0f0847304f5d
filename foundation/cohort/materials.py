"""What a synthetic head is made of: materials, the tissue that each is, and the structure that it counts towards.

A voxel of an anatomy holds two materials (`foundation/cohort/anatomy.py`). Through its tissue a material has a signal
(`foundation/physics`), through its structure a label.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8


@dataclass(frozen=True)
class Material:
    """`tissue` is a name of `foundation.physics.relaxometry.TISSUES`, None for air; `structure` one of `STRUCTURES`."""

    tissue: str | None
    structure: str | None


# The values of label maps; 0 is air. Anatomy first, then what disease puts in its place.
STRUCTURES = {
    "cerebral cortex": 1,  # with the amygdala
    "cerebral white matter": 2,
    "lateral ventricle": 3,
    "thalamus": 4,
    "caudate": 5,
    "putamen": 6,
    "pallidum": 7,
    "hippocampus": 8,
    "cerebellum": 9,
    "brainstem": 10,
    "other csf": 11,  # third and fourth ventricle too
    "skull": 12,
    "soft tissue": 13,
    "necrosis": 20,
    "enhancing tumour": 21,
    "non-enhancing tumour": 22,
    "oedema": 23,
    "plaque": 24,
    "white matter hyperintensity": 25,
    "acute infarct": 26,
    "haemorrhage": 27,
}
LESIONS = tuple(name for name, value in STRUCTURES.items() if value >= 20)
INTRACRANIAL = tuple(name for name in STRUCTURES if name not in ("skull", "soft tissue"))
BRAIN = tuple(name for name in INTRACRANIAL if name not in ("lateral ventricle", "other csf"))

# Air comes first, so that it is material 0 and label 0.
MATERIALS = {
    "air": Material(None, None),
    "cortex": Material("grey_matter", "cerebral cortex"),
    "white matter": Material("white_matter", "cerebral white matter"),
    "ventricular fluid": Material("csf", "lateral ventricle"),
    "thalamus": Material("thalamus", "thalamus"),
    "caudate": Material("striatum", "caudate"),
    "putamen": Material("striatum", "putamen"),
    "pallidum": Material("pallidum", "pallidum"),
    "hippocampus": Material("grey_matter", "hippocampus"),
    "cerebellar cortex": Material("hindbrain_grey", "cerebellum"),
    "cerebellar white matter": Material("hindbrain_white", "cerebellum"),
    "brainstem": Material("hindbrain_white", "brainstem"),
    "fluid": Material("csf", "other csf"),
    "sinus": Material("blood", "other csf"),
    "bone": Material("bone", "skull"),
    "marrow": Material("marrow", "skull"),
    "muscle": Material("muscle", "soft tissue"),
    "fat": Material("fat", "soft tissue"),
    "skin": Material("skin", "soft tissue"),
    "vitreous": Material("csf", "soft tissue"),
    "necrosis": Material("necrosis", "necrosis"),
    "enhancing tumour": Material("enhancing_tumour", "enhancing tumour"),
    "non-enhancing tumour": Material("non_enhancing_tumour", "non-enhancing tumour"),
    "oedema": Material("oedema", "oedema"),
    "plaque": Material("ms_plaque", "plaque"),
    "white matter hyperintensity": Material("wmh", "white matter hyperintensity"),
    "acute infarct": Material("acute_infarct", "acute infarct"),
    "haemorrhage": Material("haemorrhage", "haemorrhage"),
}
INDEX = {name: index for index, name in enumerate(MATERIALS)}
NUM_HEALTHY = INDEX["vitreous"] + 1  # what a template may hold

# The label of each material, `(materials,)`.
LABEL_OF = np.array([0 if one.structure is None else STRUCTURES[one.structure] for one in MATERIALS.values()], np.uint8)


def shows(labels: UInt8[np.ndarray, "x y z"], structures: Collection[str]) -> Bool[np.ndarray, "x y z"]:
    """Where a label map shows any of these structures."""
    return np.isin(labels, [STRUCTURES[name] for name in structures])


def indices(*structures: str) -> list[int]:
    """The materials that make up these structures."""
    return [INDEX[name] for name, material in MATERIALS.items() if material.structure in structures]
