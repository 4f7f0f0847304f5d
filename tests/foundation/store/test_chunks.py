"""Numbers and bytes of one volume: nothing lost that need not be, a box equal to a piece of the whole, few chunks touched."""

from __future__ import annotations

import numpy as np
import pytest

from foundation.errors import InputError
from foundation.preprocess import Intensity
from foundation.store import chunks
from foundation.store.chunks import BODY, Compression, Record, dequantise, encode, quantise

SHAPE = (70, 45, 33)
INTENSITY = Intensity(0.0, 100.0, 50.0, 20.0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def recorded(shape: tuple[int, int, int] = SHAPE, edge: int = 16) -> tuple[np.ndarray, np.ndarray, Record]:
    rng = np.random.default_rng(1)
    voxels = rng.integers(-(2**15), 2**15, shape, dtype=np.int16)
    flags = rng.integers(0, 4, shape, dtype=np.uint8)
    return voxels, flags, Record(memoryview(encode(voxels, flags, Compression(edge, 1))), shape, edge)


# -------------------------------------------------------------------------------- Numbers


@pytest.mark.parametrize(
    ("low", "high"), [(0, 255), (-1024, 3071), (-(2**15), 2**15), (0, 2**16), (10**7, 10**7 + 60_000)]
)
def test_integers_keep_every_value(low: int, high: int, rng) -> None:
    voxels = rng.integers(low, high, SHAPE).astype(np.float32)
    kept = quantise(voxels, INTENSITY)
    assert np.array_equal(dequantise(kept.stored, kept.scale, kept.offset), voxels)
    assert (kept.scale, kept.max_error, kept.num_clipped) == (1.0, 0.0, 0)


@pytest.mark.parametrize("slope", [0.25, 1 / 3, 2.442, 1e-6])
def test_scaled_integers_keep_the_steps_of_the_file(slope: float, rng) -> None:
    slope = float(np.float32(slope))
    stored = rng.integers(-2000, 30_000, SHAPE)
    voxels = (stored * slope).astype(np.float32)
    kept = quantise(voxels, INTENSITY, (slope, 0.0))
    assert np.array_equal(kept.stored, stored)
    assert np.array_equal(dequantise(kept.stored, kept.scale, kept.offset), voxels) and kept.max_error == 0.0


def test_an_intercept_costs_no_more_than_rounding(rng) -> None:
    stored = rng.integers(0, 4096, SHAPE)
    voxels = (stored * 0.37 + 11.3).astype(np.float32)
    kept = quantise(voxels, INTENSITY, (0.37, 11.3))
    assert np.array_equal(kept.stored, stored)
    assert kept.max_error <= np.spacing(np.float32(voxels.max()))


@pytest.mark.parametrize("voxels_of", [lambda rng: rng.random(SHAPE), lambda rng: 1e9 * rng.standard_normal(SHAPE)])
def test_floats_are_half_a_step_away_at_most(voxels_of, rng) -> None:
    voxels = voxels_of(rng).astype(np.float32)
    kept = quantise(voxels, Intensity.of(voxels, np.ones(SHAPE, bool)))
    error = np.abs(dequantise(kept.stored, kept.scale, kept.offset) - voxels).max()
    assert error == kept.max_error <= 0.501 * kept.scale + np.spacing(np.float32(np.abs(voxels).max()))
    assert kept.scale <= 1.001 * np.ptp(voxels) / 65535
    assert kept.num_clipped == 0


def test_integers_of_too_wide_a_range_are_rounded(rng) -> None:
    voxels = rng.integers(0, 10**6, SHAPE).astype(np.float32)
    kept = quantise(voxels, Intensity.of(voxels, np.ones(SHAPE, bool)))
    assert 0 < kept.max_error < 8


def test_a_spike_does_not_take_the_steps_of_all_others(rng) -> None:
    voxels = rng.random(SHAPE).astype(np.float32)
    intensity = Intensity.of(voxels, np.ones(SHAPE, bool))
    voxels[3, 3, 3] = 1e9
    kept = quantise(voxels, intensity)
    assert kept.num_clipped == 1 and kept.max_error < intensity.std / 500


def test_a_constant_is_a_constant() -> None:
    voxels = np.full(SHAPE, 0.1, np.float32)
    kept = quantise(voxels, INTENSITY)
    assert np.allclose(dequantise(kept.stored, kept.scale, kept.offset), 0.1)


# -------------------------------------------------------------------------------- Bytes


@pytest.mark.parametrize("edge", [8, 16, 64])
def test_a_box_is_a_piece_of_the_whole(edge: int, rng) -> None:
    voxels, flags, record = recorded(edge=edge)
    assert np.array_equal(record.voxels((0, 0, 0), SHAPE), voxels)
    assert np.array_equal(record.flags((0, 0, 0), SHAPE), flags)
    for _ in range(30):
        first = rng.integers(0, SHAPE)
        last = rng.integers(first + 1, np.asarray(SHAPE) + 1)
        box = tuple(slice(a, b) for a, b in zip(first, last))
        corners = tuple(map(int, first)), tuple(map(int, last))
        assert np.array_equal(record.voxels(*corners), voxels[box])
        assert np.array_equal(record.flags(*corners), flags[box])


def test_a_box_decompresses_the_chunks_it_touches_and_no_other(monkeypatch) -> None:
    _, _, record = recorded()
    seen: list[int] = []
    decompress = chunks.decompress
    monkeypatch.setattr(chunks, "decompress", lambda part: seen.append(len(part)) or decompress(part))
    record.voxels((0, 0, 0), SHAPE)
    everything = len(seen)
    assert everything == 5 * 3 * 3
    seen.clear()
    record.voxels((17, 1, 2), (32, 16, 16))  # inside one chunk
    assert len(seen) == 1
    seen.clear()
    record.voxels((15, 15, 15), (17, 17, 17))  # a corner where eight meet
    assert len(seen) == 8 and sum(seen) < len(record.content) / 3
    seen.clear()
    record.flags((40, 20, 20), (41, 21, 21))
    assert len(seen) == 1, "asking for one voxel's flags reads one chunk of flags and no voxels"


def test_flags_of_a_body_cost_next_to_nothing() -> None:
    index = np.indices((64, 64, 64)) - 31.5
    flags = np.where(np.linalg.norm(index, axis=0) < 25, np.uint8(BODY), np.uint8(0))
    voxels = np.random.default_rng(0).integers(0, 500, flags.shape, dtype=np.int16)
    with_body = len(encode(voxels, flags, Compression(32, 5)))
    assert with_body - len(encode(voxels, np.zeros_like(flags), Compression(32, 5))) < 0.02 * with_body


def test_a_chunk_of_one_flag_is_no_more_than_its_place_in_the_table(monkeypatch) -> None:
    flags = np.zeros((48, 32, 32), np.uint8)
    flags[16:] = BODY
    flags[40:, 3] = BODY | chunks.REMOVED
    voxels = np.zeros(flags.shape, np.int16)
    record = Record(memoryview(encode(voxels, flags, Compression(16, 5))), (48, 32, 32), 16)
    seen: list[int] = []
    decompress = chunks.decompress
    monkeypatch.setattr(chunks, "decompress", lambda part: seen.append(len(part)) or decompress(part))
    assert np.array_equal(record.flags((0, 0, 0), (48, 32, 32)), flags)
    assert len(seen) == 2, "only the chunks that hold two kinds"


def test_every_damaged_byte_is_noticed(rng) -> None:
    voxels, flags, _ = recorded((20, 20, 20))
    content = encode(voxels, flags, Compression(16, 1))
    for place in [*range(0, 4 + 8 * 4 * 4, 3), *rng.integers(0, len(content), 100)]:
        broken = bytearray(content)
        broken[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(InputError, match="those that were written"):
            _read_all(broken)
    for length in (0, 10, len(content) - 1):
        with pytest.raises(InputError, match="those that were written"):
            _read_all(content[:length])


def _read_all(content: bytes | bytearray) -> None:
    record = Record(memoryview(bytes(content)), (20, 20, 20), 16)
    record.voxels((0, 0, 0), (20, 20, 20))
    record.flags((0, 0, 0), (20, 20, 20))
