"""From a series in a file to a record of a store: verified, turned to closest RAS, body found, cropped, quantised, compressed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from foundation.errors import InputError
from foundation.preprocess import Intensity, find_body, to_closest_ras
from foundation.quarantine import BadFile
from foundation.reading.nifti import read_labels, read_nifti, read_scaling
from foundation.store.chunks import BODY, REMOVED, encode, quantise
from foundation.store.index import SeriesRow, StoreConfig
from foundation.study import Series


@dataclass(frozen=True)
class Source:
    """One series of a collection before anything of it was read. `name` is what messages and the index call it.

    The volume is in `file`, or in `content` where a data set carries it inside, or at an address that fsspec opens.
    """

    subject: str
    session: str
    number: int
    name: str
    file: Path | None = None
    content: bytes | None = None
    address: str | None = None
    contrast: str = "unknown"
    removed: Path | None = None
    split: str | None = None


class Prepared(NamedTuple):
    """A record and its row, which does not yet say where the record lies."""

    row: SeriesRow
    record: bytes


class PrepareSeries:
    """A function of a source that travels to worker processes; a bad file is a result, not an exception."""

    def __init__(self, config: StoreConfig):
        self.config = config

    def __call__(self, source: Source) -> Prepared | BadFile:
        try:
            return prepare_series(source, self.config)
        except InputError as error:
            return BadFile.of(source.name, error)
        except Exception as error:  # a mistake of ours: it ends the run, and says at which file
            error.add_note(f"while preparing {source.name}")
            raise


def prepare_series(source: Source, config: StoreConfig) -> Prepared:
    with _local_file(source) as file:
        series = read_nifti(file, source.contrast)
        removed = None if source.removed is None else read_labels(source.removed, series) != 0
        scaling = read_scaling(file)
    ras = to_closest_ras(series)
    body = find_body(ras)
    flags = np.where(body, np.uint8(BODY), np.uint8(0))
    if removed is not None:
        flags |= np.where(_turned(removed, series), np.uint8(REMOVED), np.uint8(0))
    intensity = Intensity.of(ras.voxels, body)
    body_first, body_last = _box_of(body)
    margin = np.ceil(config.margin_mm / ras.spacing_mm).astype(int)
    first, last = np.maximum(body_first - margin, 0), np.minimum(body_last + margin, ras.shape)
    box = tuple(slice(a, b) for a, b in zip(first, last))
    quantised = quantise(ras.voxels[box], intensity, scaling)
    flags = np.ascontiguousarray(flags[box])
    affine = ras.affine.copy()
    affine[:3, 3] = ras.to_patient_mm(first)
    record = encode(quantised.stored, flags, config.compression)
    row = SeriesRow(
        subject=source.subject,
        session=source.session,
        number=source.number,
        name=series.name,
        split=source.split,
        contrast=series.contrast,
        **asdict(series.acquisition),
        source=source.name,
        source_shape=list(series.shape),
        source_orientation=series.orientation,
        side_is_known=series.side_is_known,
        spacing_mm=ras.spacing_mm.tolist(),
        affine=affine.ravel().tolist(),
        shape=(last - first).tolist(),
        crop_first=first.tolist(),
        body_first=(body_first - first).tolist(),
        body_last=(body_last - first).tolist(),
        body_voxels=int(body.sum()),
        scale=quantised.scale,
        offset=quantised.offset,
        max_error=quantised.max_error,
        num_clipped=quantised.num_clipped,
        **asdict(intensity),
        has_removed=bool((flags & REMOVED).any()),
        shard="",
        position=0,
        num_bytes=len(record),
        sha256=content_hash(quantised.stored, flags),
    )
    return Prepared(row, record)


def content_hash(stored: np.ndarray, flags: np.ndarray) -> str:
    """Of what a series holds and not of how it is compressed: two stores of the same volume agree in it."""
    digest = hashlib.sha256(stored.astype("<i2", copy=False).tobytes())
    digest.update(flags.tobytes())
    return digest.hexdigest()


def _turned(mask: np.ndarray, series: Series) -> np.ndarray:
    """A mask on the series' grid, on the axes of `to_closest_ras(series)`."""
    return to_closest_ras(series.with_voxels(mask.astype(np.float32))).voxels > 0


def _box_of(body: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest box that holds the body: its first voxel, and the one after its last."""
    first, last = [], []
    for axis in range(3):
        found = np.flatnonzero(body.any(axis=tuple(other for other in range(3) if other != axis)))
        first.append(found[0])
        last.append(found[-1] + 1)
    return np.asarray(first), np.asarray(last)


@contextmanager
def _local_file(source: Source) -> Iterator[Path]:
    """The volume as a file on this machine, for as long as it is read. The reader verifies files, from byte 0 to the end."""
    if source.file is not None:
        yield source.file
        return
    content = source.content
    if content is None:
        content = _fetch(source)
    with TemporaryDirectory() as folder:
        name = re.sub(r"[^\w.-]", "_", Path(source.name).name) or "volume.nii"
        file = Path(folder) / name
        file.write_bytes(content)
        yield file


def _fetch(source: Source) -> bytes:
    import fsspec

    if source.address is None:
        raise InputError("a row holds a volume", got="none", remedy="Leave the row out.")
    try:
        with fsspec.open(source.address, "rb") as file:
            return file.read()  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # whatever the network, the hub or a file system of fsspec's calls it
        got = f"{type(error).__name__}: {error}"
        raise InputError("a file can be fetched", got=got, remedy="Check the network and the address.") from error
