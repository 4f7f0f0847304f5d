"""From a series as it was acquired to a series a network can read: oriented, on a chosen spacing, body found, intensities set.

Resampling keeps the series' own axes and the centre of its field of view. It is separable, so it is three small matrix
products, and its way back is the same function with the two grids exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Bool, Float
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage
from torch import Tensor

from foundation.errors import InputError
from foundation.study import Acquisition, Contrast, Series, Study

COARSE_MM = 4.0  # the body is found on a grid this coarse: it is large, and noise averages out


@dataclass(frozen=True)
class Grid:
    """A lattice in the patient: `shape` voxels, `affine` from voxel index to RAS+ mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @classmethod
    def of(cls, series: Series) -> Grid:
        return cls(series.shape, series.affine)

    @property
    def spacing_mm(self) -> np.ndarray:
        return voxel_sizes(self.affine)

    @property
    def extent_mm(self) -> np.ndarray:
        """Edge lengths of the field of view along the axes, `(3,)`."""
        return self.spacing_mm * np.asarray(self.shape)

    def with_spacing(self, spacing_mm: Sequence[float] | np.ndarray) -> Grid:
        """The grid of the same axes, centre and (to within one voxel) extent whose voxels are `spacing_mm` apart."""
        old, new = self.spacing_mm, np.asarray(spacing_mm, dtype=float)
        shape = np.maximum(1, np.round(np.asarray(self.shape) * old / new)).astype(int)
        affine = np.eye(4)
        affine[:3, :3] = self.affine[:3, :3] * (new / old)
        centre_mm = apply_affine(self.affine, (np.asarray(self.shape) - 1) / 2)
        affine[:3, 3] = centre_mm - affine[:3, :3] @ ((shape - 1) / 2)
        x, y, z = (int(n) for n in shape)
        return Grid((x, y, z), affine)

    def snapped(self) -> Grid:
        """The grid with its centre moved onto the nearest 1/64 mm.

        A file that is written with its axes in another order has an origin of its own, rounded to float32: a few millionths of a
        millimetre, enough to change a network's output in its last digits. Snapped, the same head is the same input.
        """
        middle = (np.asarray(self.shape) - 1) / 2
        affine = self.affine.copy()
        affine[:3, 3] = np.round(apply_affine(self.affine, middle) * 64) / 64 - affine[:3, :3] @ middle
        return Grid(self.shape, affine)

    def points_mm(self) -> np.ndarray:
        """Patient millimetres of every voxel centre, `(x, y, z, 3)`."""
        index = np.stack(np.meshgrid(*(np.arange(n) for n in self.shape), indexing="ij"), axis=-1)
        return apply_affine(self.affine, index)


def to_closest_ras(series: Series) -> Series:
    """Flip and swap axes so that they run closest to right, anterior, superior. Exact: no voxel changes its value or place."""
    to_ras = nib.orientations.io_orientation(series.affine)
    voxels = nib.orientations.apply_orientation(series.voxels, to_ras)
    affine = series.affine @ nib.orientations.inv_ornt_aff(to_ras, series.shape)
    return series.with_voxels(np.ascontiguousarray(voxels), affine)


def from_closest_ras(array: np.ndarray, series: Series) -> np.ndarray:
    """Bring an array on the grid of `to_closest_ras(series)` back to the axes of `series` itself."""
    to_ras = nib.orientations.io_orientation(series.affine)
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), to_ras)
    return nib.orientations.apply_orientation(array, back)


def resample(volume: Float[Tensor, "*channels x y z"], old: Grid, new: Grid) -> Float[Tensor, "*channels x2 y2 z2"]:
    """Linear interpolation between two grids that share axes and centre, averaging over the new voxel when it is larger.

    The averaging (a triangle filter as wide as the new voxel) is what keeps a 1 mm volume from aliasing when it is read
    at 3 mm. Beyond the old field of view the edge value continues.
    """
    for axis in range(3):
        if old.shape[axis] == new.shape[axis] and np.isclose(old.spacing_mm[axis], new.spacing_mm[axis]):
            continue
        ratio = float(round(new.spacing_mm[axis] / old.spacing_mm[axis], 9))
        weights = _interpolation_matrix(old.shape[axis], new.shape[axis], ratio).to(volume)
        volume = (volume.movedim(axis - 3, -1) @ weights.T).movedim(-1, axis - 3)
    return volume


@lru_cache(maxsize=256)
def _interpolation_matrix(num_old: int, num_new: int, ratio: float) -> Float[Tensor, "new old"]:
    """Row i holds the weights of the old voxels in new voxel i; `ratio` is new spacing over old."""
    position = (torch.arange(num_new, dtype=torch.float64) - (num_new - 1) / 2) * ratio + (num_old - 1) / 2
    position = position.clamp(0, num_old - 1)
    distance = (torch.arange(num_old, dtype=torch.float64)[None] - position[:, None]).abs()
    weights = (1 - distance / max(1.0, ratio)).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def resample_series(series: Series, spacing_mm: Sequence[float] | np.ndarray) -> Series:
    """The series on its own axes at another spacing."""
    new = Grid.of(series).with_spacing(spacing_mm)
    voxels = resample(torch.from_numpy(series.voxels), Grid.of(series), new)
    return series.with_voxels(voxels.numpy(), new.affine)


def sample_at(
    volume: np.ndarray, affine: np.ndarray, grid: Grid, *, nearest: bool = False, outside: float = 0.0
) -> np.ndarray:
    """Values of a volume at the voxels of any grid in the same patient, axes and all; `outside` beyond its field of view."""
    matrix = np.linalg.inv(affine) @ grid.affine
    return ndimage.affine_transform(
        volume,
        matrix[:3, :3],
        offset=matrix[:3, 3],  # pyright: ignore[reportArgumentType]
        output_shape=grid.shape,
        order=0 if nearest else 1,
        mode="constant",
        cval=outside,
    )


def find_body(series: Series) -> Bool[np.ndarray, "x y z"]:
    """Where the patient is: everything inside the outer surface, air excluded, dark bone and fluid included.

    Otsu's threshold on a coarse grid, lowered because bone and fluid are darker than the average tissue, then closing, the
    largest connected piece, and filled holes. A crop inside the head, where there is no air, is body almost everywhere.
    """
    grid = Grid.of(series)
    coarse_grid = grid.with_spacing(np.maximum(grid.spacing_mm, COARSE_MM))
    coarse = resample(torch.from_numpy(series.voxels), grid, coarse_grid).numpy()
    low, high = np.percentile(coarse, [0.5, 99.5])
    if not high > low:
        raise InputError(
            "a series shows something", got=f"the constant {low:g}", remedy="Leave this series out.", file=series.path
        )
    bright = np.clip((coarse - low) / (high - low), 0, 1)
    body = bright > 0.4 * _otsu_threshold(bright)
    body = ndimage.binary_closing(np.pad(body, 3, mode="edge"), iterations=2)[3:-3, 3:-3, 3:-3]
    pieces = np.asarray(ndimage.label(body)[0])  # pyright: ignore[reportIndexIssue]
    body = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    body = _filled(body)
    for axis in range(3):  # the cut through the neck opens holes downwards: fill them slice by slice too
        body = np.stack([_filled(body.take(i, axis)) for i in range(body.shape[axis])], axis=axis)
    body = ndimage.binary_dilation(body)
    fine = resample(torch.from_numpy(body.astype(np.float32)), coarse_grid, grid)
    return (fine >= 0.5).numpy()


def _filled(mask: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.binary_fill_holes(mask))


def _otsu_threshold(values: np.ndarray) -> float:
    """The threshold in 0..1 that separates two classes with the least variance within them (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=128, range=(0, 1))
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sum_below = np.cumsum(counts * middles)
    mean_below = sum_below / np.maximum(below, 1)
    mean_above = (sum_below[-1] - sum_below) / np.maximum(above, 1)
    return float(middles[np.argmax(below * above * (mean_below - mean_above) ** 2)])


@dataclass(frozen=True)
class Intensity:
    """How a series' intensities become numbers of order one: clip to `(low, high)`, subtract `mean`, divide by `std`."""

    low: float
    high: float
    mean: float
    std: float

    @classmethod
    def of(cls, voxels: np.ndarray, body: np.ndarray) -> Intensity:
        """Measured inside the body; the clip at percentiles keeps one bright vessel from setting the scale."""
        inside = voxels[body]
        inside = inside[:: max(1, inside.size // 200_000)]
        low, high = (float(value) for value in np.percentile(inside, [0.5, 99.5]))
        clipped = np.clip(inside, low, high)
        return cls(low, high, float(clipped.mean()), max(float(clipped.std()), 1e-6 * max(abs(high), 1e-30)))

    def apply(self, voxels: np.ndarray, *, in_place: bool = False) -> np.ndarray:
        """float32. New memory for every step took longer than the arithmetic; `in_place` takes none at all."""
        values = np.clip(voxels, self.low, self.high, out=voxels if in_place else None)
        values -= self.mean
        values /= self.std
        return values.astype(np.float32, copy=False)


class Box(NamedTuple):
    """A piece of a series as a network reads it, `(x, y, z)` each; `removed` is None where no face mask was given."""

    values: np.ndarray
    body: np.ndarray
    removed: np.ndarray | None


@dataclass(frozen=True)
class PreparedStudy:
    """A study on one grid for a task: the reference series' axes at the task's spacing, `voxels` `(series, x, y, z)`.

    Intensities are normalised per series. `body` is False in air and beyond a series' field of view; `voxels` is 0 beyond it.
    """

    study: Study
    grid: Grid
    voxels: np.ndarray
    body: np.ndarray

    @property
    def contrasts(self) -> tuple[Contrast, ...]:
        return tuple(series.contrast for series in self.study.series)

    @property
    def acquisitions(self) -> tuple[Acquisition, ...]:
        return tuple(series.acquisition for series in self.study.series)

    def labels_to_grid(self, labels: np.ndarray) -> np.ndarray:
        """A label map on the reference series' own voxels, brought to the grid: each voxel takes the label it holds most of."""
        ras = to_closest_ras(self.study.reference.with_voxels(labels.astype(np.float32)))
        values = np.unique(labels)
        best, share = np.zeros(self.grid.shape, dtype=np.int16), np.zeros(self.grid.shape, dtype=np.float32)
        for value in values:
            held = resample(torch.from_numpy((ras.voxels == value).astype(np.float32)), Grid.of(ras), self.grid).numpy()
            best[held > share], share = value, np.maximum(held, share)
        return best

    def labels_from_grid(self, scores: Float[Tensor, "classes x y z"]) -> np.ndarray:
        """The class of highest score at each voxel of the reference series as it was given; one class in memory at a time."""
        reference = self.study.reference
        ras = Grid.of(to_closest_ras(reference))
        best = resample(scores[0], self.grid, ras)
        labels = torch.zeros(ras.shape, dtype=torch.int16)
        for value in range(1, len(scores)):
            score = resample(scores[value], self.grid, ras)
            labels[score > best] = value
            best = torch.maximum(best, score)
        return np.ascontiguousarray(from_closest_ras(labels.numpy(), reference))

    def values_from_grid(self, values: Float[Tensor, "x y z"]) -> Float[np.ndarray, "i j k"]:
        """A map on the grid, at the voxels of the reference series as it was given."""
        reference = self.study.reference
        on_ras = resample(values, self.grid, Grid.of(to_closest_ras(reference)))
        return np.ascontiguousarray(from_closest_ras(on_ras.numpy(), reference))


def prepare_study(study: Study, spacing_mm: Sequence[float]) -> PreparedStudy:
    """Bring every series of a study to the reference's axes at `spacing_mm`; the patient's own coordinates align them.

    No model reads what a model predicted.
    """
    if any(series.predicted for series in study.series):
        names = ", ".join(series.name for series in study.series if series.predicted)
        raise InputError("what is read was measured", got=f"predicted: {names}", remedy="Leave them out of the study.")
    grid, voxels, bodies = None, [], []
    for series in study.series:
        ras = to_closest_ras(series)
        body = find_body(ras)
        intensity = Intensity.of(ras.voxels, body)
        own = Grid.of(ras).snapped()
        # The reference goes to its final grid. Others are first averaged down to the task's spacing, then sampled there.
        target = own.with_spacing(spacing_mm if grid is None else np.maximum(own.spacing_mm, spacing_mm))
        pair = torch.from_numpy(np.stack([intensity.apply(ras.voxels), body.astype(np.float32)]))
        values, inside = resample(pair, own, target).numpy()
        if grid is None:
            grid = target
        else:
            values, inside = (sample_at(volume, target.affine, grid) for volume in (values, inside))
        voxels.append(values)
        bodies.append(inside >= 0.5)
    assert grid is not None
    return PreparedStudy(study, grid, np.stack(voxels), np.stack(bodies))
