"""The index of a store: one Parquet row per series, in parts that are published together with the shard they describe.

    STORE/store.json                       what it was made from and how; a store made otherwise is refused
    STORE/shard-0-of-1-00000.bin           records of many volumes, one after the other (chunks.py)
    STORE/index-0-of-1-00000.parquet       their rows; its metadata says which part of the collection is done, what was bad

A part is written after its shard, and both aside and renamed. So a part on disk means a whole shard; a shard without a part is
the rest of a run that was killed, and is written again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from foundation.config import Config, check_continues, parse_config
from foundation.errors import InputError
from foundation.files import write_aside
from foundation.preprocess import Grid, Intensity
from foundation.quarantine import BadFile
from foundation.store.chunks import Compression, Index
from foundation.study import Acquisition, Contrast

FORMAT = 1
SETTINGS = "store.json"
DONE = b"larmor"  # key of a part's metadata


class StoreConfig(Config):
    """How volumes are stored. `margin_mm` of air stays around the body; a shard is closed when it has reached its size."""

    chunk_voxels: Annotated[int, Field(ge=8, le=256)] = 32
    level: Annotated[int, Field(ge=1, le=9)] = 5
    margin_mm: Annotated[float, Field(ge=0, le=1000)] = 4.0
    shard_bytes: Annotated[int, Field(ge=1)] = 2**30

    @property
    def compression(self) -> Compression:
        return Compression(self.chunk_voxels, self.level)


class StoreSettings(StoreConfig):
    """What a store may not differ in: its format, the collection it holds, over how many machines the work is divided."""

    format: int = FORMAT
    collection: str
    machines: Annotated[int, Field(ge=1)] = 1


@dataclass(frozen=True)
class SeriesRow:
    """One stored series, on closest-to-RAS axes and cropped: `crop_first` is the corner voxel in the source, turned likewise.

    `number` is the place of the series in its study. The body lies in the stored voxels from `body_first` up to, without,
    `body_last`. `sha256` is of the stored int16 voxels and then of the flags, in C order.
    """

    subject: str
    session: str
    number: int
    name: str
    split: str | None
    contrast: Contrast
    echo_time_ms: float | None
    repetition_time_ms: float | None
    inversion_time_ms: float | None
    flip_angle_deg: float | None
    field_strength_t: float | None
    vendor: str | None
    source: str
    source_shape: list[int]
    source_orientation: str
    side_is_known: bool
    spacing_mm: list[float]
    affine: list[float]
    shape: list[int]
    crop_first: list[int]
    body_first: list[int]
    body_last: list[int]
    body_voxels: int
    scale: float
    offset: float
    max_error: float
    num_clipped: int
    low: float
    high: float
    mean: float
    std: float
    has_removed: bool
    shard: str
    position: int
    num_bytes: int
    sha256: str

    @property
    def key(self) -> tuple[str, str, int]:
        return self.subject, self.session, self.number

    @property
    def extent(self) -> Index:
        x, y, z = self.shape
        return (x, y, z)

    @property
    def grid(self) -> Grid:
        return Grid(self.extent, np.asarray(self.affine).reshape(4, 4))

    @property
    def acquisition(self) -> Acquisition:
        return Acquisition(**{entry.name: getattr(self, entry.name) for entry in fields(Acquisition)})

    @property
    def intensity(self) -> Intensity:
        return Intensity(self.low, self.high, self.mean, self.std)


_ARROW = {
    "str": pa.string(),
    "str | None": pa.string(),
    "Contrast": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "float | None": pa.float64(),
    "bool": pa.bool_(),
    "list[int]": pa.list_(pa.int32()),
    "list[float]": pa.list_(pa.float64()),
}
SCHEMA = pa.schema([pa.field(entry.name, _ARROW[str(entry.type)]) for entry in fields(SeriesRow)])


@dataclass(frozen=True)
class Share:
    """The part of a collection that one machine prepares: every subject whose name hashes to `index` among `of`."""

    index: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Share:
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or not int(match[1]) < int(match[2]):
            remedy = "Write 0/4, 1/4, 2/4 and 3/4 for four machines."
            raise InputError("a share is written i/n, counted from 0", got=repr(text), remedy=remedy)
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}-of-{self.of}"

    def shard(self, number: int) -> str:
        return f"shard-{self}-{number:05d}.bin"

    def part(self, number: int) -> str:
        return f"index-{self}-{number:05d}.parquet"


EVERYTHING = Share()


@dataclass(frozen=True)
class Part:
    """What a part says of the work, beside its rows: how many series of the share are behind it, and which of them were bad."""

    num_done: int
    is_last: bool
    bad: tuple[BadFile, ...]


def write_part(path: Path, rows: Sequence[SeriesRow], part: Part) -> None:
    done = {"num_done": part.num_done, "is_last": part.is_last, "bad": [asdict(one) for one in part.bad]}
    schema = SCHEMA.with_metadata({DONE: json.dumps(done).encode()})
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema)
    with write_aside(path) as aside:
        pq.write_table(table, aside, compression="zstd", write_page_checksum=True)


def read_part(path: Path) -> Part:
    """The metadata alone: the rows are not read."""
    try:
        done = json.loads(pq.read_schema(path).metadata[DONE])
        return Part(done["num_done"], done["is_last"], tuple(BadFile(**one) for one in done["bad"]))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise _bad_part(path, error) from error


def read_rows(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise _bad_part(path, error) from error
    if table.schema.names != SCHEMA.names:
        raise _bad_part(path, f"the columns {', '.join(table.schema.names)}")
    return table


def parts_of(folder: Path, share: Share) -> list[Path]:
    """The parts of a share that are there, without a gap, from the first."""
    found = []
    while (path := folder / share.part(len(found))).is_file():
        found.append(path)
    return found


def read_settings(folder: Path) -> StoreSettings:
    path = folder / SETTINGS
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        remedy = "Name a folder that 'larmor prepare' wrote."
        raise InputError(f"a store is a folder with {SETTINGS}", got=error, remedy=remedy, file=folder) from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        got = f"format {values.get('format')}" if isinstance(values, dict) else type(values).__name__
        remedy = "Prepare the collection again, with this version."
        raise InputError(f"a store has format {FORMAT}", got=got, remedy=remedy, file=path)
    return parse_config(StoreSettings, values, source=path)


def claim_folder(folder: Path, settings: StoreSettings) -> None:
    """A store continues with the settings it began with, or begins in a new folder."""
    if (folder / SETTINGS).is_file():
        check_continues("store", dict(read_settings(folder)), dict(settings), folder)
        return
    if folder.exists() and not (folder.is_dir() and all(_may_be_ours(path) for path in folder.iterdir())):
        remedy = "Name another folder."
        raise InputError("a store is written into a new folder", got="one with other files", remedy=remedy, file=folder)
    folder.mkdir(parents=True, exist_ok=True)
    with write_aside(folder / SETTINGS) as aside:
        aside.write_text(settings.model_dump_json(indent=1) + "\n")


def _may_be_ours(path: Path) -> bool:
    """Another machine may be beginning the same store at this moment."""
    return path.name.startswith(".aside-") or path.name == SETTINGS


def _bad_part(path: Path, got: object) -> InputError:
    remedy = "Copy that file again, or remove it and its shard and run the same 'larmor prepare' once more."
    return InputError("an index part is a whole Parquet file of this format", got=got, remedy=remedy, file=path)
