"""Rows for the Ljubljana data of multiple sclerosis (Lesjak et al. 2018, CC BY): whoever's images lie in `cross_sectional_MNI`.

Skull-stripped heads in MNI space, three raters' consensus. Only what a folder holds is taken, so that a copy of one patient gives
one row: enough to try a model on, and nothing to fit one on.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from foundation.cohort.materials import STRUCTURES
from foundation.errors import InputError
from foundation.reading.collection import Row, SeriesEntry
from foundation.reading.nifti import read_labels, read_nifti, write_labels
from foundation.study import Contrast

SERIES: dict[str, Contrast] = {"T1": "T1w", "FLAIR": "FLAIR", "T2": "T2w", "T1POST": "T1w-contrast"}
IMAGES = "cross_sectional_MNI"


def plaque_rows(source: Path, folder: Path, *, family: str) -> list[Row]:
    """All for testing, plaques with the cohort's value, `family` as a target; masks are written into the manifest's FOLDER."""
    patients = sorted(one for one in (source / IMAGES).glob("patient*") if one.is_dir())
    if not patients:
        raise InputError(
            f"a folder of patients lies in {IMAGES}", got="none", remedy="Name the set's own folder.", file=source
        )
    rows = []
    for patient in patients:
        (marked,) = patient.glob("GOLD_STANDARD*.nii.gz")
        images = {name: next(patient.glob(f"{name}_*.nii.gz"), None) for name in SERIES}
        there: dict[Contrast, Path] = {SERIES[name]: path for name, path in images.items() if path is not None}
        reference = read_nifti(next(iter(there.values())))
        mask = folder / "labels" / f"{patient.name}.nii.gz"
        if not mask.is_file():  # written anew it would be other data, and everything measured on it be measured again
            plaques = np.where(read_labels(marked, reference) > 0, STRUCTURES["plaque"], 0).astype(np.int16)
            write_labels(mask, plaques, reference)
        rows.append(
            Row(
                subject=f"ljubljana-{patient.name}",
                series=tuple(
                    SeriesEntry(path=os.path.relpath(path.resolve(), folder.resolve()), contrast=contrast)
                    for contrast, path in there.items()
                ),
                mask=f"labels/{mask.name}",
                targets={"family": family},
                split="test",
            )
        )
    return rows
