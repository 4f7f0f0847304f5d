"""From the studies of a collection to masked batches: a random box of each study, at a spacing drawn anew each time."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from nibabel.affines import apply_affine
from torch import Tensor
from torch.utils.data import get_worker_info

from foundation.cohort.stream import StreamConfig, shared_stream
from foundation.errors import InputError
from foundation.preprocess import Box, Grid, Intensity, find_body, resample, to_closest_ras
from foundation.reading.collection import Collection, Row, read_removed, read_study
from foundation.store.reader import Store
from foundation.study import Acquisition, Contrast, Series
from foundation.tokens import PATCH, PATCH_VOXELS, Tokens, patches_of, tokenise
from foundation.training import fold
from pretrain.config import CropConfig

ENOUGH_TOKENS = 32
TRIES = 4
FEWEST_TOKENS = 4  # with fewer there is nothing to hide
CACHE_BYTES = 4 * 2**30  # prepared series kept in the memory of one machine

Removed = Bool[Tensor, "tokens voxels"]


class Sample(NamedTuple):
    """A study's box as tokens, the seed that its masking is drawn from, and which of its voxels went with the face, if any."""

    bag: Tokens
    seed: int
    removed: Removed | None = None


# ------------------------------------------------------------------------------------------------ where series come from


@runtime_checkable
class Ready(Protocol):
    """A series that boxes can be read from, wherever it is kept: on closest-to-RAS axes, its body found, intensities set."""

    @property
    def grid(self) -> Grid: ...
    @property
    def contrast(self) -> Contrast: ...
    @property
    def acquisition(self) -> Acquisition: ...
    def draw_voxel(self, rng: np.random.Generator) -> np.ndarray:
        """The index of a voxel of the body, each as likely as another."""
        ...

    def read_box(self, first: Sequence[int], last: Sequence[int]) -> Box:
        """What there is from voxel `first` up to, without, `last`."""
        ...


@dataclass(frozen=True)
class SeriesInMemory:
    """A series that is held whole, because it comes from a file that cannot be read in part, or was just made."""

    series: Series
    body: np.ndarray
    intensity: Intensity
    removed: np.ndarray | None = None

    @classmethod
    def of(cls, series: Series, removed: np.ndarray | None = None) -> SeriesInMemory:
        """`removed` lies on the grid of `series`."""
        if removed is not None:
            removed = to_closest_ras(series.with_voxels(removed.astype(np.float32))).voxels > 0
        series = to_closest_ras(series)
        body = find_body(series)
        return cls(series, body, Intensity.of(series.voxels, body), removed)

    @property
    def grid(self) -> Grid:
        return Grid.of(self.series)

    @property
    def contrast(self) -> Contrast:
        return self.series.contrast

    @property
    def acquisition(self) -> Acquisition:
        return self.series.acquisition

    @property
    def num_bytes(self) -> int:
        return self.series.voxels.nbytes + self.body.nbytes + (0 if self.removed is None else self.removed.nbytes)

    def draw_voxel(self, rng: np.random.Generator) -> np.ndarray:
        inside = np.flatnonzero(self.body)
        return np.asarray(np.unravel_index(inside[rng.integers(len(inside))], self.body.shape))

    def read_box(self, first: Sequence[int], last: Sequence[int]) -> Box:
        box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        removed = None if self.removed is None else self.removed[box]
        return Box(self.intensity.apply(self.series.voxels[box]), self.body[box], removed)


@runtime_checkable
class Studies(Protocol):
    """Where studies come from. `seed` matters only to a source that shows a study differently each time."""

    def __len__(self) -> int: ...
    def ready(self, index: int, seed: int) -> Sequence[Ready]: ...
    def name(self, index: int) -> str: ...
    def fingerprint(self) -> str: ...


class FiledStudies:
    """The studies of a manifest, read and prepared once and kept while memory for them lasts."""

    def __init__(self, collection: Collection, rows: Sequence[Row]):
        self.collection, self.rows = collection, list(rows)
        self._cache: OrderedDict[int, tuple[SeriesInMemory, ...]] = OrderedDict()
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self.rows)

    def ready(self, index: int, seed: int) -> tuple[SeriesInMemory, ...]:
        if index not in self._cache:
            row, root = self.rows[index], self.collection.root
            ready = tuple(
                SeriesInMemory.of(series, read_removed(entry, series, root))
                for entry, series in zip(row.series, read_study(row, root).series, strict=True)
            )
            self._kept_bytes += sum(one.num_bytes for one in ready)
            self._cache[index] = ready
            while self._kept_bytes > CACHE_BYTES / _num_readers() and len(self._cache) > 1:
                _, oldest = self._cache.popitem(last=False)
                self._kept_bytes -= sum(one.num_bytes for one in oldest)
        return self._cache[index]

    def name(self, index: int) -> str:
        row = self.rows[index]
        return f"{row.subject}{'/' if row.session else ''}{row.session}"

    def fingerprint(self) -> str:
        return self.collection.fingerprint()


def _num_readers() -> int:
    """How many processes of this machine read for this run: each would keep a cache of its own."""
    worker = get_worker_info()
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * (worker.num_workers if worker else 1)


class StoredStudies:
    """The studies of a store, in the order of their names; a box costs the chunks that it touches, so nothing is kept."""

    def __init__(self, store: Store, splits: Sequence[str] | None = None):
        """`splits` names those that are used; None takes every study."""
        self.store = store
        names = store.table["split"].to_pylist()
        self.studies = [study for study in store.studies if splits is None or names[study[0]] in splits]

    def __len__(self) -> int:
        return len(self.studies)

    def ready(self, index: int, seed: int) -> tuple[Ready, ...]:
        return tuple(self.store.series(number) for number in self.studies[index])

    def name(self, index: int) -> str:
        subject, session, _ = self.store.row(self.studies[index][0]).key
        return f"{subject}{'/' if session else ''}{session}"

    def fingerprint(self) -> str:
        """Over what every used series holds, by name: the same for the same voxels, wherever and however they are stored."""
        digest = hashlib.sha256()
        columns = [self.store.table[name].to_pylist() for name in ("subject", "session", "number", "sha256")]
        for study in self.studies:
            for number in study:
                digest.update(repr([column[number] for column in columns]).encode())
        return digest.hexdigest()


class DrawnStudies:
    """Synthetic patients that are made as they are needed; no scan is seen twice."""

    def __init__(self, config: StreamConfig):
        self.stream = shared_stream(config)

    def __len__(self) -> int:
        return len(self.stream)

    def ready(self, index: int, seed: int) -> tuple[SeriesInMemory, ...]:
        return tuple(SeriesInMemory.of(series) for series in self.stream.study(index, fold(seed, 23) % 2**31).series)

    def name(self, index: int) -> str:
        return f"synthetic patient {index}"

    def fingerprint(self) -> str:
        settings = f"{self.stream.config.model_dump_json()} {self.stream.config.source().describe()}"
        return hashlib.sha256(settings.encode()).hexdigest()


# ------------------------------------------------------------------------------------------------ samples


def box_with_body(study: Sequence[Ready], seed: int, crop: CropConfig) -> Sample:
    """A random box of a study as tokens; a few are tried where one shows little more than air or the edge."""
    best: Sample | None = None
    for attempt in range(TRIES):
        bag, removed = box_tokens(study, np.random.default_rng(fold(seed, attempt)), crop)
        if best is None or len(bag) > len(best.bag):
            best = Sample(bag, seed, removed)
        if len(best.bag) >= ENOUGH_TOKENS:
            break
    assert best is not None
    if len(best.bag) < FEWEST_TOKENS:
        raise InputError(
            f"a box of a study shows at least {FEWEST_TOKENS} patches of its body",
            got=f"{len(best.bag)} in the best of {TRIES} boxes",
            remedy="Leave the study out, or make crop.spacing_mm finer.",
        )
    return best


def box_tokens(study: Sequence[Ready], rng: np.random.Generator, crop: CropConfig) -> tuple[Tokens, Removed | None]:
    """Tokens of one box in the patient, from every series that reaches into it, each on its own axes; and their removed voxels."""
    spacing = draw_spacing(rng, crop)
    anchor = study[int(rng.integers(len(study)))]
    centre_mm = apply_affine(anchor.grid.affine, anchor.draw_voxel(rng))
    pieces = [
        _series_tokens(ready, centre_mm, spacing, crop.voxels, number)
        for number, ready in enumerate(study)
        if ready is anchor or _reaches(ready.grid, centre_mm, spacing, crop.voxels)
    ]
    bag = Tokens.join([tokens for tokens, _ in pieces])
    if all(removed is None for _, removed in pieces):
        return bag, None
    return bag, torch.cat(
        [
            torch.zeros(len(tokens), PATCH_VOXELS, dtype=torch.bool) if removed is None else removed
            for tokens, removed in pieces
        ]
    )


def _box(grid: Grid, centre_mm: np.ndarray, spacing: np.ndarray, voxels: int) -> tuple[np.ndarray, np.ndarray]:
    """Middle and half edges, in the series' own voxels, of a box of `voxels` `spacing` apart around a place in the patient."""
    return apply_affine(np.linalg.inv(grid.affine), centre_mm), voxels * spacing / grid.spacing_mm / 2


def _reaches(grid: Grid, centre_mm: np.ndarray, spacing: np.ndarray, voxels: int) -> bool:
    """Whether the box overlaps the series' field of view."""
    centre, reach = _box(grid, centre_mm, spacing, voxels)
    return bool((centre + reach >= 0).all() and (centre - reach <= np.asarray(grid.shape) - 1).all())


def draw_spacing(rng: np.random.Generator, crop: CropConfig) -> np.ndarray:
    """Millimetres per voxel along the three axes."""
    low, high = crop.spacing_mm
    spacing = np.full(3, np.exp(rng.uniform(np.log(low), np.log(high))))
    if rng.random() < crop.anisotropic:
        spacing[rng.integers(3)] *= rng.uniform(1, 3)
    return spacing


def _series_tokens(
    ready: Ready, centre_mm: np.ndarray, spacing: np.ndarray, voxels: int, number: int
) -> tuple[Tokens, Removed | None]:
    """The box's tokens from one series; none where the box holds nothing of its body."""
    whole = ready.grid
    centre, reach = _box(whole, centre_mm, spacing, voxels)
    shape = np.asarray(whole.shape)
    # Near the edge the box is pushed back inside, so that it is as large as the series allows.
    first = np.clip(np.round(centre - reach), 0, np.maximum(shape - np.ceil(2 * reach), 0)).astype(int)
    last = np.minimum(first + np.ceil(2 * reach), shape).astype(int)
    box = ready.read_box(first.tolist(), last.tolist())
    affine = whole.affine.copy()
    affine[:3, 3] = apply_affine(whole.affine, first)
    x, y, z = (int(n) for n in last - first)
    grid = Grid((x, y, z), affine)
    volumes = [box.values, box.body.astype(np.float32)]
    if box.removed is not None:
        volumes.append(box.removed.astype(np.float32))
    new = grid.with_spacing(spacing)
    (values, body, *removed), new = whole_patches(resample(torch.from_numpy(np.stack(volumes)), grid, new), new)
    tokens = tokenise(values, body > 0.5, new, ready.contrast, ready.acquisition, number)
    # A voxel is left out as soon as anything removed was averaged into it.
    return tokens, patches_of(removed[0] > 0, tokens) if removed else None


def whole_patches(volumes: Float[Tensor, "n x y z"], grid: Grid) -> tuple[Float[Tensor, "n x2 y2 z2"], Grid]:
    """Leave out the last voxels that would make a patch only part measured: there is nothing to predict in padding."""
    x, y, z = (n if n < PATCH else n - n % PATCH for n in grid.shape)
    return volumes[:, :x, :y, :z], Grid((x, y, z), grid.affine)
