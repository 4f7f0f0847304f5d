"""Reading a store: the index in memory, shards memory-mapped, a box of a series without the rest of it.

store = Store.open(Path("store"))
series = store.series(store.studies[0][0])
box = series.read_box((10, 20, 30), (106, 116, 126))   # normalised intensities, body, removed
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from foundation.errors import InputError
from foundation.parallel import in_order
from foundation.preprocess import Box, Grid
from foundation.progress import progress
from foundation.quarantine import BadFile, read_bad_files, write_bad_files
from foundation.store.chunks import BODY, REMOVED, Index, Record, damaged, rescale
from foundation.store.index import (
    SCHEMA,
    SeriesRow,
    Share,
    StoreSettings,
    parts_of,
    read_part,
    read_rows,
    read_settings,
)
from foundation.store.prepare import content_hash
from foundation.study import Acquisition, Contrast

DAMAGED = "damaged.jsonl"
MOST_MAPPED = 256  # shards at a time; each holds a file handle, of which a process has about a thousand
TRIES = 64  # a body fills about half of its box: so many misses in a row mean a rare shape
TOGETHER = 16  # series that a process verifies before it reports


@dataclass(frozen=True)
class Store:
    """A store whose every share is there. `table` has the series that are not known to be damaged, by subject, session, number."""

    folder: Path
    settings: StoreSettings
    table: pa.Table
    damaged: tuple[BadFile, ...]

    @classmethod
    def open(cls, folder: Path, *, with_damaged: bool = False) -> Store:
        settings = read_settings(folder)
        table = _read_index(folder, settings)
        bad = read_bad_files(folder / DAMAGED)
        if bad and not with_damaged:
            names = {one.file for one in bad}
            table = table.filter(pa.array([place_of(*key) not in names for key in _keys(table)]))
        return cls(folder, settings, table, tuple(bad))

    def __len__(self) -> int:
        return len(self.table)

    def row(self, number: int) -> SeriesRow:
        return SeriesRow(*(column[number].as_py() for column in self._columns))

    @cached_property
    def _columns(self) -> list[pa.Array]:
        """In the order of a row's fields, each in one piece: a row is then found six times faster than through the table."""
        return [self.table[name].combine_chunks() for name in SCHEMA.names]

    def series(self, number: int) -> StoredSeries:
        return StoredSeries(self.row(number), self.shards)

    @cached_property
    def shards(self) -> Shards:
        return Shards(self.folder, self.settings.chunk_voxels)

    @cached_property
    def studies(self) -> list[range]:
        """The numbers of the series of each study; a store keeps them together."""
        keys = [key[:2] for key in _keys(self.table)]
        starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
        return [range(start, end) for start, end in zip(starts, [*starts[1:], len(keys)])]


def place_of(subject: str, session: str, number: int) -> str:
    """How a stored series is called in messages and lists."""
    return f"{subject}{'/' if session else ''}{session}#{number}"


def _keys(table: pa.Table) -> Iterator[tuple[str, str, int]]:
    return zip(*(table[name].to_pylist() for name in ("subject", "session", "number")))  # pyright: ignore[reportReturnType]


def unfinished_shares(folder: Path) -> list[str]:
    """The shares of a store that no machine has finished, as `--shard` names them."""
    shares = _shares(read_settings(folder))
    parts = {share: parts_of(folder, share) for share in shares}
    return [f"{one.index}/{one.of}" for one in shares if not parts[one] or not read_part(parts[one][-1]).is_last]


def _shares(settings: StoreSettings) -> list[Share]:
    return [Share(index, settings.machines) for index in range(settings.machines)]


def _read_index(folder: Path, settings: StoreSettings) -> pa.Table:
    if missing := unfinished_shares(folder):
        raise InputError(
            "every share of a store is written before it is read",
            got=f"{len(missing)} of {settings.machines} unfinished: {', '.join(missing[:20])}",
            remedy="Run the same 'larmor prepare' again, with --shard where there are several; it continues.",
            file=folder,
        )
    tables = [read_rows(path) for share in _shares(settings) for path in parts_of(folder, share)]
    # The order of the collection must not depend on which machine prepared what, nor on what was left out.
    table = pa.concat_tables(tables).sort_by([(name, "ascending") for name in ("subject", "session", "number")])
    keys = list(_keys(table))
    twice = [key for key, following in pairwise(keys) if key == following]
    if twice:
        remedy = "Remove the store and prepare the collection again."
        raise InputError("a series is in a store once", got=place_of(*twice[0]), remedy=remedy, file=folder)
    if not keys:
        remedy = "See its quarantine.jsonl for what was wrong with the files."
        raise InputError("a store holds at least one series", got="none", remedy=remedy, file=folder)
    return table


# ------------------------------------------------------------------------------------------------ series


class Shards:
    """The shard files of a store, memory-mapped when they are first read. Travels to other processes unmapped."""

    def __init__(self, folder: Path, chunk_voxels: int):
        self.folder, self.chunk_voxels = folder, chunk_voxels
        self._mapped: OrderedDict[str, mmap.mmap] = OrderedDict()

    def record(self, row: SeriesRow) -> Record:
        content, end = self._content(row.shard), row.position + row.num_bytes
        if end > len(content):
            raise damaged(f"{len(content)} bytes where this series would end at {end}")
        return Record(memoryview(content)[row.position : end], row.extent, self.chunk_voxels)

    def _content(self, shard: str) -> mmap.mmap:
        if shard not in self._mapped:
            try:
                with (self.folder / shard).open("rb") as file:
                    self._mapped[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
                raise damaged(error) from error
            if len(self._mapped) > MOST_MAPPED:
                self._mapped.popitem(last=False)  # unmapped once nobody looks into it any more
        self._mapped.move_to_end(shard)
        return self._mapped[shard]

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_mapped": OrderedDict()}


@dataclass(frozen=True)
class StoredSeries:
    """One series of a store, read box by box."""

    row: SeriesRow
    shards: Shards

    @property
    def grid(self) -> Grid:
        return self.row.grid

    @property
    def contrast(self) -> Contrast:
        return self.row.contrast

    @property
    def acquisition(self) -> Acquisition:
        return self.row.acquisition

    def draw_voxel(self, rng: np.random.Generator) -> np.ndarray:
        """A voxel of the body, each as likely as another: drawn from the body's box until one is body, a chunk of flags a try."""
        with self._record() as record:
            for _ in range(TRIES):
                voxel = rng.integers(self.row.body_first, self.row.body_last)
                x, y, z = (int(n) for n in voxel)
                if record.flags((x, y, z), (x + 1, y + 1, z + 1))[0, 0, 0] & BODY:
                    return voxel
            inside = np.flatnonzero(record.flags((0, 0, 0), self.row.extent) & BODY)
        return np.asarray(np.unravel_index(inside[rng.integers(len(inside))], self.row.extent))

    def read_box(self, first: Sequence[int], last: Sequence[int]) -> Box:
        """Normalised intensities, body and removed voxels from `first` up to, without, `last`."""
        start, end = _corners(first, last)
        with self._record() as record:
            values, flags = record.voxels(start, end, np.float32), record.flags(start, end)
        rescale(values, self.row.scale, self.row.offset)
        self.row.intensity.apply(values, in_place=True)
        removed = (flags & REMOVED) > 0 if self.row.has_removed else None
        flags &= BODY
        return Box(values, flags.view(bool), removed)

    def read_stored(self, first: Sequence[int], last: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The int16 voxels and the flags of a box, as they were written."""
        start, end = _corners(first, last)
        with self._record() as record:
            return record.voxels(start, end), record.flags(start, end)

    @contextmanager
    def _record(self) -> Iterator[Record]:
        """What is damaged is named by the shard that must be copied again, and by the series."""
        try:
            yield self.shards.record(self.row)
        except InputError as error:
            where = f"{error.got}, in {place_of(*self.row.key)} ({self.row.source})"
            raise InputError(
                error.rule, got=where, remedy=error.remedy, file=self.shards.folder / self.row.shard
            ) from error


def _corners(first: Sequence[int], last: Sequence[int]) -> tuple[Index, Index]:
    (a, b, c), (d, e, f) = first, last
    return (int(a), int(b), int(c)), (int(d), int(e), int(f))


# ------------------------------------------------------------------------------------------------ verification


def verify(folder: Path, processes: int) -> tuple[int, list[BadFile]]:
    """Read every series to its last byte and compare it with the hash it was written with.

    Returns how many there are, and those that differ; STORE/damaged.jsonl names them from then on, and a store is opened
    without what it names. Copied again, they are found whole by the next verification.
    """
    store = Store.open(folder, with_damaged=True)
    batches = (
        [store.series(n) for n in range(first, min(first + TOGETHER, len(store)))]
        for first in range(0, len(store), TOGETHER)
    )
    bad: list[BadFile] = []
    with progress(total=len(store), label="verify", unit="series") as bar:
        for number, found in in_order(_verify_batch, batches, processes):
            bad += found
            bar.update(number)
            bar.set_postfix(damaged=len(bad), refresh=False)
    write_bad_files(folder / DAMAGED, bad)
    return len(store), bad


def _verify_batch(batch: list[StoredSeries]) -> tuple[int, list[BadFile]]:
    bad = []
    for series in batch:
        name = place_of(*series.row.key)
        try:
            stored, flags = series.read_stored((0, 0, 0), series.row.extent)
        except InputError as error:
            bad.append(BadFile.of(name, error))
            continue
        if content_hash(stored, flags) != series.row.sha256:
            bad.append(BadFile(name, "another sha256 than it was written with"))
    return len(batch), bad
