"""From the studies of a collection to masked batches: a random box of each study, at a spacing drawn anew each time."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from nibabel.affines import apply_affine
from torch import Tensor

from foundation.cohort.stream import CohortStream, StreamConfig
from foundation.preprocess import Grid, Intensity, find_body, resample, to_closest_ras
from foundation.reading.collection import Collection, Row, read_study
from foundation.study import Series
from foundation.tokens import PATCH, Tokens, tokenise
from foundation.training import Draw, fold, seeded
from pretrain.config import CropConfig
from pretrain.masking import MaskedBatch, mask_bags

ENOUGH_TOKENS = 32  # a box with fewer shows little more than air or the edge; a few others are tried
TRIES = 4
CACHE_BYTES = 4 * 2**30  # prepared series kept in memory


class Sample(NamedTuple):
    """A study's box as tokens, and the seed that its masking is drawn from."""

    bag: Tokens
    seed: int


@dataclass(frozen=True)
class Ready:
    """What is computed once per series: closest-to-RAS voxels, where the body is, how intensities are set."""

    series: Series
    body: np.ndarray
    intensity: Intensity

    @classmethod
    def of(cls, series: Series) -> Ready:
        series = to_closest_ras(series)
        body = find_body(series)
        return cls(series, body, Intensity.of(series.voxels, body))


@runtime_checkable
class Studies(Protocol):
    """Where studies come from. `seed` matters only to a source that shows a study differently each time."""

    def __len__(self) -> int: ...
    def ready(self, index: int, seed: int) -> tuple[Ready, ...]: ...
    def fingerprint(self) -> str: ...


class FiledStudies:
    """The studies of a manifest, read and prepared once and kept while memory for them lasts."""

    def __init__(self, collection: Collection, rows: Sequence[Row]):
        self.collection, self.rows = collection, list(rows)
        self._cache: OrderedDict[int, tuple[Ready, ...]] = OrderedDict()
        self._cache_left = CACHE_BYTES

    def __len__(self) -> int:
        return len(self.rows)

    def ready(self, index: int, seed: int) -> tuple[Ready, ...]:
        if index not in self._cache:
            ready = tuple(Ready.of(series) for series in read_study(self.rows[index], self.collection.root).series)
            self._cache_left -= sum(one.series.voxels.nbytes + one.body.nbytes for one in ready)
            self._cache[index] = ready
            while self._cache_left < 0 and len(self._cache) > 1:
                _, oldest = self._cache.popitem(last=False)
                self._cache_left += sum(one.series.voxels.nbytes + one.body.nbytes for one in oldest)
        return self._cache[index]

    def fingerprint(self) -> str:
        return self.collection.fingerprint()


class DrawnStudies:
    """Synthetic patients that are made as they are needed; no scan is seen twice."""

    def __init__(self, config: StreamConfig):
        self.stream = CohortStream(config)

    def __len__(self) -> int:
        return len(self.stream)

    def ready(self, index: int, seed: int) -> tuple[Ready, ...]:
        return tuple(Ready.of(series) for series in self.stream.study(index, fold(seed, 23) % 2**31).series)

    def fingerprint(self) -> str:
        settings = f"{self.stream.config.model_dump_json()} {self.stream.config.source().describe()}"
        return hashlib.sha256(settings.encode()).hexdigest()


class MaskedStudies:
    """The dataset of `foundation.training`: samples are boxes as tokens, batches are visible and target tokens."""

    def __init__(self, studies: Studies, crop: CropConfig):
        self.studies, self.crop = studies, crop

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, draw: Draw) -> Sample:
        study = self.studies.ready(draw.index, draw.seed)
        best: Tokens | None = None
        for attempt in range(TRIES):
            bag = box_tokens(study, np.random.default_rng(fold(draw.seed, attempt)), self.crop)
            if best is None or len(bag) > len(best):
                best = bag
            if len(best) >= ENOUGH_TOKENS:
                break
        assert best is not None
        return Sample(best, draw.seed)

    def collate(self, samples: list[Sample]) -> MaskedBatch:
        crop = self.crop
        return mask_bags(
            [sample.bag for sample in samples],
            [seeded(sample.seed) for sample in samples],
            max_tokens=crop.max_tokens,
            visible_fraction=crop.visible_fraction,
            max_targets=crop.max_targets,
            hide_series=crop.hide_series,
        )


def box_tokens(study: Sequence[Ready], rng: np.random.Generator, crop: CropConfig) -> Tokens:
    """Tokens of one box in the patient, from every series that reaches into it, each on its own axes."""
    spacing = draw_spacing(rng, crop)
    anchor = study[int(rng.integers(len(study)))]
    inside = np.flatnonzero(anchor.body)
    voxel = np.unravel_index(inside[rng.integers(len(inside))], anchor.body.shape)
    centre_mm = anchor.series.to_patient_mm(np.asarray(voxel))
    return Tokens.join(
        [
            _series_tokens(ready, centre_mm, spacing, crop.voxels, number)
            for number, ready in enumerate(study)
            if ready is anchor or _reaches(ready.series, centre_mm, spacing, crop.voxels)
        ]
    )


def _box(series: Series, centre_mm: np.ndarray, spacing: np.ndarray, voxels: int) -> tuple[np.ndarray, np.ndarray]:
    """Middle and half edges, in the series' own voxels, of a box of `voxels` `spacing` apart around a place in the patient."""
    return apply_affine(np.linalg.inv(series.affine), centre_mm), voxels * spacing / series.spacing_mm / 2


def _reaches(series: Series, centre_mm: np.ndarray, spacing: np.ndarray, voxels: int) -> bool:
    """Whether the box overlaps the series' field of view."""
    centre, reach = _box(series, centre_mm, spacing, voxels)
    return bool((centre + reach >= 0).all() and (centre - reach <= np.asarray(series.shape) - 1).all())


def draw_spacing(rng: np.random.Generator, crop: CropConfig) -> np.ndarray:
    """Millimetres per voxel along the three axes."""
    low, high = crop.spacing_mm
    spacing = np.full(3, np.exp(rng.uniform(np.log(low), np.log(high))))
    if rng.random() < crop.anisotropic:
        spacing[rng.integers(3)] *= rng.uniform(1, 3)
    return spacing


def _series_tokens(ready: Ready, centre_mm: np.ndarray, spacing: np.ndarray, voxels: int, number: int) -> Tokens:
    """The box's tokens from one series; none where the box holds nothing of its body."""
    series = ready.series
    centre, reach = _box(series, centre_mm, spacing, voxels)
    shape = np.asarray(series.shape)
    # Near the edge the box is pushed back inside, so that it is as large as the series allows.
    first = np.clip(np.round(centre - reach), 0, np.maximum(shape - np.ceil(2 * reach), 0)).astype(int)
    last = np.minimum(first + np.ceil(2 * reach), shape).astype(int)
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    x, y, z = (int(n) for n in last - first)
    affine = series.affine.copy()
    affine[:3, 3] = apply_affine(series.affine, first)
    grid = Grid((x, y, z), affine)
    new = grid.with_spacing(spacing)
    stacked = torch.from_numpy(
        np.stack([ready.intensity.apply(series.voxels[box]), ready.body[box].astype(np.float32)])
    )
    (values, body), new = whole_patches(resample(stacked, grid, new), new)
    return tokenise(values, body > 0.5, new, series.contrast, series.acquisition, number)


def whole_patches(volumes: Float[Tensor, "n x y z"], grid: Grid) -> tuple[Float[Tensor, "n x2 y2 z2"], Grid]:
    """Leave out the last voxels that would make a patch only part measured: there is nothing to predict in padding."""
    x, y, z = (n if n < PATCH else n - n % PATCH for n in grid.shape)
    return volumes[:, :x, :y, :z], Grid((x, y, z), grid.affine)
