"""Changes of an examination that a model should not mind.

A *lossless* change writes the same head as another file: other order of axes, other format, other type of number. A *benign* one
is what happens between two visits: the head lies a little otherwise, is a little brighter, noisier or coarser.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from nibabel.affines import from_matvec
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.random import Generator
from scipy.spatial.transform import Rotation

from finetune.samples import LabelledStudy
from foundation.physics.artefacts import signal_level
from foundation.physics.kspace import add_noise
from foundation.preprocess import (
    Grid,
    PreparedStudy,
    from_closest_ras,
    prepare_study,
    resample_series,
    sample_at,
    to_closest_ras,
)
from foundation.reading.nifti import read_nifti, read_scaling
from foundation.study import Series, Study
from foundation.training import fold

Spacing = tuple[float, float, float]

# ------------------------------------------------------------------------------------------------ lossless


@dataclass(frozen=True)
class Resaved:
    """How a series is written again. `order` is nibabel's: for each axis where it goes and whether it is flipped."""

    family: str
    suffix: str = ".nii"
    dtype: str = "float32"
    version: int = 1
    sform: bool = True
    qform: bool = True
    order: tuple[tuple[int, int], ...] = ((0, 1), (1, 1), (2, 1))


def lossless_changes() -> list[Resaved]:
    """The same file in all 48 orders of its axes, in the formats, and in the types of number that hold it exactly."""
    orders = [
        Resaved("48 axis orders", order=tuple(zip(axes, flips, strict=True)))
        for axes in itertools.permutations(range(3))
        for flips in itertools.product((1, -1), repeat=3)
    ]
    formats = [
        Resaved("file formats"),
        Resaved("file formats", suffix=".nii.gz"),
        Resaved("file formats", version=2),
        Resaved("file formats", sform=False),
        Resaved("file formats", qform=False),
    ]
    return [*orders, *formats, *(Resaved("number types", dtype=name) for name in ("int16", "float32", "float64"))]


def resave(study: Study, how: Resaved, folder: Path) -> Study | None:
    """The study written into `folder` and read again; None where its numbers do not fit the type exactly."""
    series = []
    for number, one in enumerate(study.series):
        path = folder / f"{number}{how.suffix}"
        content = _nifti(one, how)
        if content is None:
            return None
        path.write_bytes(gzip.compress(content, compresslevel=1) if how.suffix.endswith(".gz") else content)
        series.append(replace(read_nifti(path, one.contrast, one.acquisition), name=one.name))
    return replace(study, series=tuple(series))


def _nifti(series: Series, how: Resaved) -> bytes | None:
    order = np.asarray(how.order, dtype=float)
    voxels = apply_orientation(series.voxels, order)
    affine = series.affine @ inv_ornt_aff(order, series.shape)
    slope, intercept = 1.0, 0.0
    if how.dtype == "int16":
        scaled = _as_int16(series, voxels)
        if scaled is None:
            return None
        voxels, slope, intercept = scaled
    header = (Nifti1Header if how.version == 1 else Nifti2Header)()
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(how.dtype)
    header.set_qform(affine, int(how.qform))
    header.set_sform(affine, int(how.sform))
    header.set_xyzt_units("mm")
    header.set_slope_inter(slope, intercept)
    header.set_data_offset(header.single_vox_offset)
    return header.binaryblock + bytes(4) + voxels.astype(how.dtype).tobytes(order="F")


def _as_int16(series: Series, voxels: np.ndarray) -> tuple[np.ndarray, float, float] | None:
    """Whole numbers with the scaling of the series' own file, or with none."""
    scalings = [(1.0, 0.0)] if series.path is None else [read_scaling(series.path), (1.0, 0.0)]
    for slope, intercept in scalings:
        stored = np.rint((voxels.astype(np.float64) - intercept) / slope)
        fits = np.abs(stored).max() < 2**15
        if fits and np.array_equal((stored * slope + intercept).astype(np.float32), voxels):
            return stored.astype(np.int16), slope, intercept
    return None


def same_input(one: PreparedStudy, other: PreparedStudy) -> bool:
    """Whether a model is given exactly the same numbers, so that its output cannot differ."""
    return (
        np.array_equal(one.voxels, other.voxels)
        and np.array_equal(one.body, other.body)
        and one.grid.shape == other.grid.shape
        and np.array_equal(one.grid.affine, other.grid.affine)
        and (one.contrasts, one.acquisitions) == (other.contrasts, other.acquisitions)
    )


# ------------------------------------------------------------------------------------------------ benign


Change = Callable[[LabelledStudy, Spacing, Generator], LabelledStudy]


def benign_changes() -> dict[str, Change]:
    turns = {f"turned 5 degrees about {axis}": _moved({axis: 5.0}) for axis in "xyz"}
    return {
        **turns,
        "moved by 5 mm along x, y and z": _moved({}, shift_mm=5.0),
        "gamma 0.8": _gamma(0.8),
        "gamma 1.25": _gamma(1.25),
        "noise, signal over sigma 30": _noise(30.0),
        "voxels 1.3 times as large": _coarser((1.3, 1.3, 1.3)),
        "voxels twice as long along the third axis": _coarser((1.0, 1.0, 2.0)),
    }


def seed_of(labelled: LabelledStudy, *numbers: int) -> int:
    """Of the study's name, so that a draw does not depend on which other cases were chosen."""
    digest = hashlib.sha256(labelled.row.name.encode()).digest()
    return fold(int.from_bytes(digest[:8], "big"), *numbers)


def with_series(
    labelled: LabelledStudy, series: Iterable[Series], spacing_mm: Spacing, labels: np.ndarray | None = None
) -> LabelledStudy:
    """The study with other series in place of its own, prepared again. `labels` are given where the reference's content moved."""
    study = replace(labelled.prepared.study, series=tuple(series))
    return replace(
        labelled,
        prepared=prepare_study(study, spacing_mm),
        labels=labelled.labels if labels is None else labels,
    )


def _moved(turn_deg: dict[str, float], shift_mm: float = 0.0) -> Change:
    """The head lies otherwise in the scanner, about the middle of the reference; labels move with it."""

    def change(labelled: LabelledStudy, spacing_mm: Spacing, rng: Generator) -> LabelledStudy:
        reference = labelled.prepared.study.reference
        middle_mm = reference.to_patient_mm((np.asarray(reference.shape) - 1) / 2)
        rotation = Rotation.from_euler("xyz", [turn_deg.get(axis, 0.0) for axis in "xyz"], degrees=True).as_matrix()
        moved = from_matvec(rotation, middle_mm - rotation @ middle_mm + shift_mm)
        back = np.linalg.inv(moved)

        def sampled(volume: np.ndarray, one: Series, *, nearest: bool = False) -> np.ndarray:
            air = 0.0 if nearest else float(volume.min())
            return sample_at(volume, one.affine, Grid(one.shape, back @ one.affine), nearest=nearest, outside=air)

        series = (one.with_voxels(sampled(one.voxels, one)) for one in labelled.prepared.study.series)
        labels = None if labelled.labels is None else sampled(labelled.labels, reference, nearest=True)
        return with_series(labelled, series, spacing_mm, labels)

    return change


def _gamma(gamma: float) -> Change:
    def change(labelled: LabelledStudy, spacing_mm: Spacing, rng: Generator) -> LabelledStudy:
        def bent(one: Series) -> Series:
            low, high = float(one.voxels.min()), float(one.voxels.max())
            return one.with_voxels(
                (low + (high - low) * ((one.voxels - low) / (high - low)) ** gamma).astype(np.float32)
            )

        return with_series(labelled, map(bent, labelled.prepared.study.series), spacing_mm)

    return change


def _noise(signal_over_sigma: float) -> Change:
    """Complex noise, then the magnitude, as a scanner adds it."""

    def change(labelled: LabelledStudy, spacing_mm: Spacing, rng: Generator) -> LabelledStudy:
        def noisy(one: Series) -> Series:
            volume = torch.from_numpy(one.voxels).to(torch.complex64)
            return one.with_voxels(add_noise(volume, signal_level(volume) / signal_over_sigma, rng).abs().numpy())

        return with_series(labelled, map(noisy, labelled.prepared.study.series), spacing_mm)

    return change


def _coarser(factor: Spacing) -> Change:
    """Voxels larger by a factor along the series' own axes; the truth of each is what it holds most of."""

    def change(labelled: LabelledStudy, spacing_mm: Spacing, rng: Generator) -> LabelledStudy:
        series = [resample_series(one, one.spacing_mm * factor) for one in labelled.prepared.study.series]
        labels = labelled.labels
        if labels is not None:
            there = replace(labelled.prepared, grid=Grid.of(to_closest_ras(series[0])))
            labels = np.ascontiguousarray(from_closest_ras(there.labels_to_grid(labels), series[0]))
        return with_series(labelled, series, spacing_mm, labels)

    return change
