"""One volume as bytes: int16 voxels in small compressed chunks, each with a checksum, so that a box reads little.

    record = CRC-32 of the table, the table, then chunk by chunk (C order) the compressed voxels and the compressed flags
    table  = four little-endian uint32 per chunk: size and CRC-32 of its voxels, size and CRC-32 of its flags

Flags say of every voxel whether it is body, and whether it was removed with the face. They have chunks of their own, so that asking
whether a voxel is body decompresses no voxels. Most chunks lie within the body or in the air: where all flags of a chunk are the
same, the size is 0 and the value stands in place of the CRC.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import blosc2
import numpy as np
from jaxtyping import Int16, Shaped, UInt8

from foundation.errors import InputError
from foundation.preprocess import Intensity

BODY, REMOVED = 1, 2  # bits of a voxel's flags
LOWEST, HIGHEST = -(2**15), 2**15 - 1
SPIKE_STD = 64.0
WORD = np.dtype("<u4")
Index = tuple[int, int, int]

# One thread: blosc2's own pool does not survive a fork, and the cores have volumes of their own to work on. Of real heads, zstd
# after shuffled bits kept 0.52 bytes a voxel, after shuffled bytes 0.72; chunks of 48 or 64 voxels were no smaller. Flags are
# smallest with shuffled bits too, but twice as fast without, and small either way.
ONE_THREAD: dict[str, Any] = {"nthreads": 1}
CODEC: dict[str, Any] = {"codec": blosc2.Codec.ZSTD, "filters_meta": [0], **ONE_THREAD}
FILTERS = {1: [blosc2.Filter.NOFILTER], 2: [blosc2.Filter.BITSHUFFLE]}  # by bytes per value


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
    return rescale(stored.astype(np.float32), scale, offset)


def rescale(values: np.ndarray, scale: float, offset: float) -> np.ndarray:
    """The same of stored numbers that are float32 already, in place."""
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
    axes = [_pieces(0, n, n, compression.chunk_voxels) for n in voxels.shape]
    for box in product(*([piece.into for piece in pieces] for pieces in axes)):
        compressed = _compress(np.ascontiguousarray(voxels[box]), compression.level)
        table += [len(compressed), zlib.crc32(compressed)]
        payload.append(compressed)
        first = flags[box][0, 0, 0]
        if (flags[box] == first).all():
            table += [0, int(first)]
        else:
            compressed = _compress(np.ascontiguousarray(flags[box]), compression.level)
            table += [len(compressed), zlib.crc32(compressed)]
            payload.append(compressed)
    head = np.asarray(table, WORD).tobytes()
    return b"".join([np.asarray(zlib.crc32(head), WORD).tobytes(), head, *payload])


class Record:
    """A volume in its compressed bytes; only the chunks that a box touches are looked at."""

    def __init__(self, content: memoryview, shape: Index, chunk_voxels: int):
        self.content, self.shape, self.edge = content, shape, chunk_voxels
        num_chunks = math.prod(-(-n // chunk_voxels) for n in shape)
        start, end = WORD.itemsize, WORD.itemsize * (1 + 4 * num_chunks)
        if len(content) < end or zlib.crc32(content[start:end]) != int.from_bytes(content[:start], "little"):
            raise damaged("another checksum of a table")
        table = np.frombuffer(content[start:end], WORD).reshape(num_chunks, 2, 2)
        sizes = table[..., 0].astype(np.int64)
        self._ends = end + np.cumsum(sizes.ravel()).reshape(sizes.shape)
        if self._ends[-1, -1] != len(content):
            raise damaged(f"{len(content)} bytes where its table promises {self._ends[-1, -1]}")
        self._sizes, self._marks = sizes, table[..., 1]

    def voxels(self, first: Index, last: Index, kind: type[np.generic] = np.int16) -> Shaped[np.ndarray, "x y z"]:
        """The stored numbers of the box from `first` up to, without, `last`; as another `kind` of number at no extra cost."""
        return self._read(0, np.dtype("<i2"), np.dtype(kind), first, last)

    def flags(self, first: Index, last: Index) -> UInt8[np.ndarray, "x y z"]:
        return self._read(1, np.dtype("u1"), np.dtype("u1"), first, last)

    def _read(self, part: int, dtype: np.dtype, kind: np.dtype, first: Index, last: Index) -> np.ndarray:
        assert all(0 <= a < b <= n for a, b, n in zip(first, last, self.shape)), (first, last, self.shape)
        _, num_y, num_z = (-(-n // self.edge) for n in self.shape)
        along_x, along_y, along_z = (_pieces(a, b, n, self.edge) for a, b, n in zip(first, last, self.shape))
        box = np.empty([b - a for a, b in zip(first, last)], kind)
        for x, y, z in product(along_x, along_y, along_z):
            number = (x.number * num_y + y.number) * num_z + z.number
            into = box[x.into, y.into, z.into]
            if part == 1 and self._sizes[number, part] == 0:
                into[...] = self._marks[number, part]
                continue
            chunk = np.frombuffer(self._chunk(number, part), dtype)
            if chunk.size != x.length * y.length * z.length:
                raise damaged(f"{chunk.size} values in chunk {number}, which has {x.length} x {y.length} x {z.length}")
            into[...] = chunk.reshape(x.length, y.length, z.length)[x.out_of, y.out_of, z.out_of]
        return box

    def _chunk(self, number: int, part: int) -> bytes:
        end = int(self._ends[number, part])
        compressed = self.content[end - int(self._sizes[number, part]) : end]
        if zlib.crc32(compressed) != self._marks[number, part]:
            raise damaged(f"another checksum of chunk {number}")
        return decompress(compressed)


class _Piece(NamedTuple):
    """What a box has of one chunk, along one axis: the chunk's place and length, and which of its voxels go where."""

    number: int
    length: int
    into: slice
    out_of: slice


def _pieces(first: int, last: int, num_voxels: int, edge: int) -> list[_Piece]:
    """The chunks that a range of voxels touches; the one at the far end is as short as what is left."""
    pieces = []
    for number in range(first // edge, -(-last // edge)):
        start, stop = number * edge, min((number + 1) * edge, num_voxels)
        low, high = max(start, first), min(stop, last)
        pieces.append(_Piece(number, stop - start, slice(low - first, high - first), slice(low - start, high - start)))
    return pieces


def _compress(array: np.ndarray, level: int) -> bytes:
    size = array.itemsize
    options = {"typesize": size, "clevel": level, "filters": FILTERS[size], **CODEC}
    return blosc2.compress2(array, **options)  # pyright: ignore[reportReturnType]


def decompress(compressed: memoryview) -> bytes:
    try:
        return blosc2.decompress2(compressed, **ONE_THREAD)  # pyright: ignore[reportReturnType]
    except (RuntimeError, ValueError) as error:
        raise damaged(f"a chunk that does not decompress: {error}") from error
