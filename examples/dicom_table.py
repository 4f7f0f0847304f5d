"""Read every DICOM series below a folder and compare it with its reference NIfTI, where there is one; print the table.

    python -m examples.dicom_table ../shared/data

A reference is a NIfTI file in a folder `Ref` of the same data set; which of them is whose is told by the voxels (correlation above
0.9999), so that a wrong place cannot hide behind a wrong pairing. The corner error is that of the eight corner voxels in mm. Of
many time points the first and the last are read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from foundation.errors import InputError
from foundation.reading.dicom.convert import corner_error_mm
from foundation.reading.dicom.study import is_dicom, list_dicom, study_from_dicom, without_middle
from foundation.study import Series

SAME = 0.9999


@dataclass(frozen=True)
class Line:
    """What became of one volume. `corner_mm` is None where there is no reference."""

    folder: str
    label: str
    outcome: str
    contrast: str = ""
    orientation: str = ""
    shape: tuple[int, ...] = ()
    corner_mm: float | None = None

    def cells(self) -> tuple[str, ...]:
        corner = "" if self.corner_mm is None else f"{self.corner_mm:.5f}"
        shape = " × ".join(map(str, self.shape))
        return self.folder, self.label, self.contrast, shape, self.orientation, corner, self.outcome


def lines_of(root: Path) -> Iterator[Line]:
    """Every volume of every study below a folder of data sets."""
    for data in sorted(path for path in root.iterdir() if path.is_dir() and path.name.startswith("dicom_")):
        references = references_of(data)
        for folder in _study_folders(data):
            yield from _of_study(folder, str(folder.relative_to(root)), references)


def _study_folders(data: Path) -> list[Path]:
    """The folders that hold one study each: the data set's `In` or itself, and its parts where it holds several studies."""
    folder = data / "In" if (data / "In").is_dir() else data
    parts = [one for one in sorted(folder.iterdir()) if one.is_dir() and is_dicom(one)]
    try:
        series = {one.label.partition(".")[0] for one in list_dicom(folder)}
    except InputError:  # several studies
        return parts
    return (
        parts if any(label[-1].isalpha() and len(label) > 1 for label in series) else [folder]
    )  # or one, stored twice


def _of_study(folder: Path, name: str, references: Sequence[nib.Nifti1Image]) -> Iterator[Line]:
    for one in without_middle(list_dicom(folder)):
        if one.shape is None:
            yield Line(name, one.label, f"refused: {one.aside}")
            continue
        try:
            series = study_from_dicom(folder, [one.label]).reference
        except InputError as error:
            yield Line(name, one.label, f"refused: {error.got}", one.contrast)
            continue
        outcome = f"read when chosen ({one.aside})" if one.aside else "read"
        error = corner_mm(series, references)
        yield Line(name, one.label, outcome, series.contrast, series.orientation, series.shape, error)


def corner_mm(series: Series, references: Sequence[nib.Nifti1Image]) -> float | None:
    """How far the farthest corner of a series is from that of its reference; None if none has its voxels."""
    errors = [
        corner_error_mm(series.affine, series.shape, image.affine, image.shape)
        for image in references
        if image.affine is not None and _is_of(series, image)
    ]
    return min(errors) if errors else None


def _is_of(series: Series, image: nib.Nifti1Image) -> bool:
    """Whether a reference, or one of its time points, has this series' voxels in this order."""
    if image.shape[:3] != series.shape or np.dtype(image.get_data_dtype()).names:
        return False
    data = np.asarray(image.dataobj, np.float64).reshape(*series.shape, -1)
    return any(_correlation(series.voxels, data[..., t]) > SAME for t in range(data.shape[3]))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(float(np.sqrt((a * a).sum() * (b * b).sum())), 1e-12))


def references_of(data: Path) -> list[nib.Nifti1Image]:
    return [nib.Nifti1Image.from_filename(path) for path in sorted((data / "Ref").glob("*.nii*"))]


def main(root: Path) -> None:
    print("| folder | series | contrast | voxels | axes | farthest corner from its reference (mm) | outcome |")
    print("|---|---|---|---|---|---|---|")
    for line in lines_of(root):
        print(f"| {' | '.join(line.cells())} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
