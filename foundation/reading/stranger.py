"""Studies that strangers sent: the same answers as `study_from_path`, and every byte is parsed in a child process with limits.

    study = study_from_stranger(Path("/private/upload"))

DICOM and zips are always read that way. Of NIfTI files the child hands over what is left after all checks, as bare numbers. What a
parser does wrong then ends a child, and costs its user one study.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from foundation.errors import InputError
from foundation.reading.archive import is_zip
from foundation.reading.collection import study_from_path
from foundation.reading.dicom.study import is_dicom, study_from_dicom
from foundation.reading.nifti import MAX_VOXELS
from foundation.reading.sandbox import Limits, run_limited
from foundation.study import Acquisition, Series, Study

HERE = "foundation.reading.stranger"


def study_from_stranger(
    path: Path, choose: Sequence[str] = (), visit: int | None = None, limits: Limits | None = None
) -> Study:
    """The study in a file, a zip or a folder; `choose` and `visit` are of DICOM, as in `study_from_path`.

    A manifest is no study of a stranger's: it could name any file of this machine.
    """
    if is_zip(path) or _is_dicom_only(path):
        return study_from_dicom(path, choose, visit, limits=limits)
    if choose or visit is not None:
        raise InputError("series and visits are chosen of DICOM", got="no DICOM", remedy="Leave the choice out.")
    if path.suffix == ".jsonl" or "#" in path.name:
        raise InputError("a study is images", got="a manifest", remedy="Send its NIfTI files or a zip of DICOM.")
    with TemporaryDirectory(prefix="larmor-") as private:
        answer = run_limited(f"{HERE}:hand_over", {"source": str(path.resolve())}, folder=Path(private), limits=limits)
        series = tuple(_series(one, Path(private) / f"{number}.f32") for number, one in enumerate(answer["series"]))
    return Study(answer["subject"], series, answer["session"])


def hand_over(source: str) -> dict[str, Any]:
    """What the child does: read the study, and leave its voxels in the working folder."""
    study = study_from_path(source)
    found = []
    for number, one in enumerate(study.series):
        one.voxels.tofile(f"{number}.f32")
        facts = {"shape": list(one.shape), "affine": one.affine.tolist(), "contrast": one.contrast, "name": one.name,
                 "acquisition": asdict(one.acquisition), "side_is_known": one.side_is_known,
                 "predicted": one.predicted, "contrast_from": one.contrast_from}  # fmt: skip
        found.append(facts)
    return {"subject": study.subject, "session": study.session, "series": found}


def _series(one: dict[str, Any], file: Path) -> Series:
    """Whatever a child that was taken over may say, what it hands over is numbers, as many as it says."""
    shape = tuple(int(n) for n in one.pop("shape"))
    affine, acquisition = np.array(one.pop("affine"), dtype=float), Acquisition(**one.pop("acquisition"))
    voxels = np.fromfile(file, np.float32)
    if len(shape) != 3 or math.prod(shape) != voxels.size or voxels.size > MAX_VOXELS or not np.isfinite(voxels).all():
        raise InputError("the input can be parsed within limits", got="no volume", remedy="Export it again.")
    return Series(voxels.reshape(shape), affine, acquisition=acquisition, **one)


def _is_dicom_only(path: Path) -> bool:
    has_nifti = path.is_dir() and any(file.name.endswith((".nii", ".nii.gz")) for file in path.iterdir())
    return not has_nifti and not path.name.endswith((".nii", ".nii.gz")) and is_dicom(path)
