"""One volume as bytes: int16 voxels in small compressed chunks, each with a checksum, so that a box reads little.

    record = table, then chunk by chunk (C order) the compressed voxels and the compressed flags
    table  = four little-endian uint32 per chunk: size and CRC-32 of its voxels, size and CRC-32 of its flags

Flags say of every voxel whether it is body, and whether it was removed with the face. They compress to almost nothing, and
because they have chunks of their own, asking whether a voxel is body decompresses no voxels.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import blosc2
import numpy as np
from jaxtyping import Int16, UInt8

from foundation.errors import InputError
from foundation.preprocess import Intensity

BODY, REMOVED = 1, 2  # bits of a voxel's flags
LOWEST, HIGHEST = -(2**15), 2**15 - 1
SPIKE_STD = 64.0
TABLE_TYPE = np.dtype("<u4")
Index = tuple[int, int, int]

# One thread: blosc2's own pool does not survive a fork, and the cores have volumes of their own to work on. Of real heads, zstd
# after shuffled bits kept 0.52 bytes a voxel, after shuffled bytes 0.72; chunks of 48 or 64 voxels were no smaller.
ONE_THREAD: dict[str, Any] = {"nthreads": 1}
CODEC: dict[str, Any] = {
    "codec": blosc2.Codec.ZSTD,
    "filters": [blosc2.Filter.BITSHUFFLE],
    "filters_meta": [0],
    **ONE_THREAD,
}


def damaged(got: object) -> InputError:
    """Bytes of a store are not those that were written."""
    remedy = "Copy that file again; 'larmor prepare --verify STORE' finds all that is damaged and has it left out."
    return InputError("a store's bytes are those that were written", got=got, remedy=remedy)


# ------------------------------------------------------------------------------------------------ numbers


@dataclass(frozen=True)
class Quantised:
    """Voxels as int16: the value is `stored * scale + offset`. `max_error` was measured, over all that was not clipped."""

    stored: Int16[np.ndarray, "x y z"]
    scale: float
    offset: float
    max_error: float
    num_clipped: int


def quantise(voxels: np.ndarray, intensity: Intensity, scaling: tuple[float, float] = (1.0, 0.0)) -> Quantised:
    """Whole multiples of the file's own step where they are few enough for int16, otherwise 65,536 even steps.

    `scaling` is slope and intercept of the source file. Scanners store integers, so nearly every volume keeps each of its
    values, to the last bit where the slope is 1. The even steps span the values, but no more than `SPIKE_STD` standard
    deviations to either side of the mean: a single voxel of 1e9 must not leave one step to all the others.
    """
    exact = _on_steps(voxels, *scaling)
    if exact is not None:
        return exact
    reach = SPIKE_STD * intensity.std
    low = max(float(voxels.min()), intensity.mean - reach)
    high = min(float(voxels.max()), intensity.mean + reach)
    scale = max((high - low) / (HIGHEST - LOWEST), float(np.finfo(np.float32).tiny))
    offset = low - LOWEST * scale
    stored = np.clip(np.rint((voxels - offset) / scale), LOWEST, HIGHEST).astype(np.int16)
    is_kept = (voxels >= low) & (voxels <= high)
    error = np.abs(dequantise(stored, scale, offset) - voxels)
    return Quantised(stored, scale, offset, float(error[is_kept].max(initial=0.0)), int((~is_kept).sum()))


def _on_steps(voxels: np.ndarray, slope: float, intercept: float) -> Quantised | None:
    """The integers that the file held, moved into int16's range if they fit; None if they do not, or are none."""
    steps = voxels if (slope, intercept) == (1.0, 0.0) else (voxels.astype(np.float64) - intercept) / slope
    whole = np.rint(steps)
    low, high = float(whole.min()), float(whole.max())
    if high - low > HIGHEST - LOWEST or max(abs(low), abs(high)) > 2**24:  # float32 counts no further
        return None
    if not np.array_equal((whole.astype(np.float64) * slope + intercept).astype(np.float32), voxels):
        return None
    shift = 0.0 if low >= LOWEST and high <= HIGHEST else low - LOWEST
    stored = (whole - shift).astype(np.int16)
    offset = intercept + shift * slope
    error = float(np.abs(dequantise(stored, slope, offset) - voxels).max())
    return Quantised(stored, slope, offset, error, 0)


def dequantise(stored: np.ndarray, scale: float, offset: float) -> np.ndarray:
    """float32, rounded as float32: the one way stored numbers become intensities, so that errors are measured with it."""
    values = stored.astype(np.float32)
    if scale != 1.0:
        values *= np.float32(scale)
    if offset != 0.0:
        values += np.float32(offset)
    return values


# ------------------------------------------------------------------------------------------------ bytes


class Compression(NamedTuple):
    """How chunks are compressed. What reads them needs none of it but `chunk_voxels`."""

    chunk_voxels: int
    level: int


def encode(voxels: Int16[np.ndarray, "x y z"], flags: UInt8[np.ndarray, "x y z"], compression: Compression) -> bytes:
    """The record of one volume."""
    table, payload = [], []
    x, y, z = voxels.shape
    for _, box in _cells((0, 0, 0), (x, y, z), (x, y, z), compression.chunk_voxels):
        for array in (voxels, flags):
            compressed = _compress(np.ascontiguousarray(array[box]), compression.level)
            table += [len(compressed), zlib.crc32(compressed)]
            payload.append(compressed)
    return np.asarray(table, TABLE_TYPE).tobytes() + b"".join(payload)


class Record:
    """A volume in its compressed bytes; only the chunks that a box touches are looked at."""

    def __init__(self, content: memoryview, shape: Index, chunk_voxels: int):
        self.content, self.shape, self.edge = content, shape, chunk_voxels
        num_chunks = int(np.prod([-(-n // chunk_voxels) for n in shape]))
        head = num_chunks * 4 * TABLE_TYPE.itemsize
        if len(content) < head:
            raise damaged(f"{len(content)} bytes, less than the table of {num_chunks} chunks")
        table = np.frombuffer(content[:head], TABLE_TYPE).reshape(num_chunks, 2, 2)
        sizes = table[..., 0].astype(np.int64)
        if head + int(sizes.sum()) != len(content):
            raise damaged(f"{len(content)} bytes where its table promises {head + int(sizes.sum())}")
        ends = head + np.cumsum(sizes.ravel()).reshape(sizes.shape)
        self._starts, self._ends, self._crc = ends - sizes, ends, table[..., 1]

    def voxels(self, first: Index, last: Index) -> Int16[np.ndarray, "x y z"]:
        """The stored numbers of the box from `first` up to, without, `last`."""
        return self._read(0, np.dtype("<i2"), first, last)

    def flags(self, first: Index, last: Index) -> UInt8[np.ndarray, "x y z"]:
        return self._read(1, np.dtype("u1"), first, last)

    def _read(self, part: int, dtype: np.dtype, first: Index, last: Index) -> np.ndarray:
        box = np.empty([b - a for a, b in zip(first, last)], dtype)
        for number, cell in _cells(first, last, self.shape, self.edge):
            extent = [slot.stop - slot.start for slot in cell]
            chunk = np.frombuffer(self._chunk(number, part), dtype)
            if chunk.size != extent[0] * extent[1] * extent[2]:
                raise damaged(f"{chunk.size} values in chunk {number}, which has {extent}")
            into, out_of = [], []
            for slot, a, b in zip(cell, first, last):
                low, high = max(slot.start, a), min(slot.stop, b)
                into.append(slice(low - a, high - a))
                out_of.append(slice(low - slot.start, high - slot.start))
            box[tuple(into)] = chunk.reshape(extent)[tuple(out_of)]
        return box

    def _chunk(self, number: int, part: int) -> bytes:
        compressed = self.content[self._starts[number, part] : self._ends[number, part]]
        if zlib.crc32(compressed) != self._crc[number, part]:
            raise damaged(f"another checksum of chunk {number}")
        return decompress(compressed)


def _cells(first: Index, last: Index, shape: Index, edge: int) -> Iterator[tuple[int, tuple[slice, slice, slice]]]:
    """Number and place of the chunks that a box touches; those at the far end are as small as what is left."""
    assert all(0 <= a < b <= n for a, b, n in zip(first, last, shape)), (first, last, shape)
    num_y, num_z = -(-shape[1] // edge), -(-shape[2] // edge)
    for x, y, z in product(*(range(a // edge, -(-b // edge)) for a, b in zip(first, last))):
        starts = (x * edge, y * edge, z * edge)
        i, j, k = (slice(start, min(start + edge, n)) for start, n in zip(starts, shape))
        yield (x * num_y + y) * num_z + z, (i, j, k)


def _compress(array: np.ndarray, level: int) -> bytes:
    options = {"typesize": array.itemsize, "clevel": level, **CODEC}
    return blosc2.compress2(array, **options)  # pyright: ignore[reportReturnType]


def decompress(compressed: memoryview) -> bytes:
    try:
        return blosc2.decompress2(compressed, **ONE_THREAD)  # pyright: ignore[reportReturnType]
    except (RuntimeError, ValueError) as error:
        raise damaged(f"a chunk that does not decompress: {error}") from error
