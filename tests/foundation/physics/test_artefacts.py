"""Each artefact against what its physics says in closed form, and all of them against the same contract."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from scipy.spatial.transform import Rotation
from torch import Tensor

from foundation.errors import InputError
from foundation.physics.artefacts import (
    ARTEFACTS,
    SEVERITIES,
    Artefact,
    BiasField,
    Ghost,
    Gibbs,
    Motion,
    Noise,
    Spike,
    Wrap,
    draw_artefact,
    move,
    signal_level,
)
from foundation.physics.kspace import smooth_phase, to_kspace

SPACING_MM = (4.0, 3.5, 5.0)
ZERO = (0.0, 0.0, 0.0)


def coordinates(shape: tuple[int, ...]) -> list[Tensor]:
    """Each axis from -1 to 1 over the field of view."""
    axes = [(torch.arange(n) - (n - 1) / 2) / (n / 2) for n in shape]
    return list(torch.meshgrid(*axes, indexing="ij"))


def phantom(shape: tuple[int, int, int] = (24, 28, 22)) -> Tensor:
    """A head-like ellipsoid with a bright rim, a dark and a bright piece inside, and a smooth phase."""
    x, y, z = coordinates(shape)
    radius = (x**2 / 0.7**2 + y**2 / 0.8**2 + z**2 / 0.75**2).sqrt()
    volume = torch.where(radius < 1, 1.4, 0.0)
    volume[radius < 0.85] = 0.8
    volume[(x - 0.2) ** 2 + y**2 + z**2 < 0.06] = 0.3
    volume[(x + 0.3) ** 2 + (y - 0.2) ** 2 + z**2 < 0.03] = 1.2
    return volume * smooth_phase(shape, 0.3, default_rng(0))


def damage(artefact: Artefact, volume: Tensor) -> float:
    """Root mean square change of the magnitude, over that of the magnitude."""
    before, after = volume.abs(), artefact.apply(volume, SPACING_MM).abs()
    return float((after - before).square().mean().sqrt() / before.square().mean().sqrt())


def along(axis: int, values: Tensor) -> Tensor:
    return values.reshape([-1 if i == axis else 1 for i in range(3)])


# -------------------------------------------------------------------------------------------------------- The contract


def test_registry_knows_every_kind_by_its_name() -> None:
    assert set(ARTEFACTS) == {"motion", "ghost", "wrap", "spike", "bias_field", "gibbs", "noise"}
    assert all(cls.kind == kind for kind, cls in ARTEFACTS.items())


@pytest.mark.parametrize("kind", ARTEFACTS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_every_artefact_keeps_the_contract(kind: str, severity: int) -> None:
    volume = phantom()
    before = volume.clone()
    artefact = draw_artefact(kind, severity, default_rng(7))
    spoilt = artefact.apply(volume, SPACING_MM)
    assert torch.equal(volume, before)  # the input is left alone
    assert spoilt.shape == volume.shape and spoilt.dtype == torch.complex64 and torch.isfinite(spoilt.abs()).all()
    assert artefact.kind == kind and artefact.severity == severity
    assert json.loads(json.dumps(artefact.parameters)) and "severity" not in artefact.parameters
    # The same from the seed, and from its own parameters; other from another seed or only by the severity.
    assert draw_artefact(kind, severity, default_rng(7)) == artefact
    assert torch.equal(ARTEFACTS[kind](severity, **artefact.parameters).apply(volume, SPACING_MM), spoilt)
    assert draw_artefact(kind, severity % 5 + 1, default_rng(7)).parameters != artefact.parameters
    if kind != "gibbs":  # of which only the axis is drawn
        assert draw_artefact(kind, severity, default_rng(8)) != artefact
    assert artefact.apply(torch.zeros_like(volume), SPACING_MM).abs().max() == 0
    scaled = artefact.apply(1000 * volume, SPACING_MM)
    torch.testing.assert_close(scaled, 1000 * spoilt, atol=0.05, rtol=1e-3)


@pytest.mark.parametrize("kind", ARTEFACTS)
def test_mean_damage_grows_with_severity(kind: str) -> None:
    volume = phantom()
    means = [np.mean([damage(draw_artefact(kind, s, default_rng(i)), volume) for i in range(6)]) for s in SEVERITIES]
    assert means[0] > 0.005 and means[-1] > 0.15
    assert all(worse > 1.15 * better for better, worse in pairwise(means)), means


@pytest.mark.parametrize("kind", ["motion", "ghost", "wrap", "gibbs"])
def test_phase_encoding_axis_can_be_chosen_and_changes_nothing_else(kind: str) -> None:
    drawn = [draw_artefact(kind, 3, default_rng(1), axis) for axis in (0, 1, 2)]
    assert [artefact.parameters["axis"] for artefact in drawn] == [0, 1, 2]
    rest = [{**artefact.parameters, "axis": None} for artefact in drawn]
    assert rest[0] == rest[1] == rest[2]
    assert {draw_artefact(kind, 3, default_rng(seed)).parameters["axis"] for seed in range(20)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ghots", 3), "Did you mean 'ghost'"),
        (("ghost", 0), "from 1 to 5"),
        (("noise", 6), "from 1 to 5"),
        (("wrap", 3, 3), "0, 1 or 2"),
    ],
)
def test_bad_input_says_what_to_do(arguments: tuple, says: str) -> None:
    kind, severity, *axis = arguments
    with pytest.raises(InputError, match=says):
        draw_artefact(kind, severity, default_rng(0), *axis)


# -------------------------------------------------------------------------------------------------------------- Motion


def test_motion_without_movement_is_the_identity() -> None:
    volume = phantom()
    still = Motion(1, 1, (0.3, 0.7), (ZERO,) * 3, (ZERO,) * 3)
    torch.testing.assert_close(still.apply(volume, SPACING_MM), volume, atol=1e-6, rtol=0)
    torch.testing.assert_close(move(volume, ZERO, ZERO, SPACING_MM), volume, atol=0, rtol=0)


def test_one_position_throughout_moves_the_volume() -> None:
    volume = phantom()
    turned, shifted = (2.0, -1.0, 3.0), (1.0, 2.0, -3.0)
    always = Motion(1, 2, (), (turned,), (shifted,))
    expected = move(volume, turned, shifted, SPACING_MM)
    torch.testing.assert_close(always.apply(volume, SPACING_MM), expected, atol=1e-5, rtol=0)


def blob(at_mm: np.ndarray, shape: tuple[int, int, int]) -> Tensor:
    """A Gaussian of 9 mm around a point, counted from the centre of the field of view."""
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, SPACING_MM)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return torch.from_numpy(np.exp(-((points - at_mm) ** 2).sum(-1) / (2 * 9.0**2))).to(torch.complex64)


def test_moving_is_a_right_handed_rotation_in_mm_then_a_shift() -> None:
    shape, at_mm, angles, shift = (32, 36, 28), np.array([20.0, -15.0, 10.0]), (8.0, -12.0, 10.0), (5.0, -3.0, 4.2)
    rotation = Rotation.from_euler("xyz", angles, degrees=True)  # about the fixed axes, x first
    expected = blob(rotation.apply(at_mm) + shift, shape)
    moved = move(blob(at_mm, shape), angles, shift, SPACING_MM)
    torch.testing.assert_close(moved, expected, atol=2e-3, rtol=0)
    assert float((moved - blob(at_mm, shape)).abs().max()) > 0.3


def test_moving_keeps_energy_and_whole_voxels_exactly() -> None:
    volume = phantom()
    moved = move(volume, (5.0, 3.0, -7.0), (2.0, 1.0, 3.0), SPACING_MM)
    assert float(moved.norm()) == pytest.approx(float(volume.norm()), rel=1e-4)
    whole = move(volume, ZERO, (8.0, 0.0, -5.0), SPACING_MM)
    torch.testing.assert_close(whole, volume.roll((2, -1), (0, 2)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_segment_of_kspace_comes_from_its_position(axis: int) -> None:
    volume = phantom()
    artefact = Motion.draw(4, default_rng(2), axis)
    kspace, num = to_kspace(artefact.apply(volume, SPACING_MM), (axis,)), volume.shape[axis]
    edges = [0, *(round(start * num) for start in artefact.starts), num]
    for i in range(len(edges) - 1):
        position = move(volume, artefact.rotations_deg[i], artefact.shifts_mm[i], SPACING_MM)
        lines = slice(edges[i], edges[i + 1])
        expected = to_kspace(position, (axis,)).movedim(axis, 0)[lines]
        torch.testing.assert_close(kspace.movedim(axis, 0)[lines], expected, atol=1e-5, rtol=0)


def test_centre_of_kspace_is_taken_at_rest_and_movements_are_as_large_as_said() -> None:
    for seed in range(50):
        for severity, (angle_deg, distance_mm, num) in zip(SEVERITIES, Motion.LEVELS):
            motion = Motion.draw(severity, default_rng(seed))
            assert len(motion.starts) == num and list(motion.starts) == sorted(motion.starts)
            still = [i for i, (r, s) in enumerate(zip(motion.rotations_deg, motion.shifts_mm)) if r == s == ZERO]
            edges = (0.0, *motion.starts, 1.0)
            assert len(still) == 1 and edges[still[0]] <= 0.46 and edges[still[0] + 1] >= 0.54
            for sizes, most in ((motion.rotations_deg, angle_deg), (motion.shifts_mm, distance_mm)):
                norms = np.delete(np.linalg.norm(sizes, axis=1), still)
                assert (norms >= most / 2).all() and (norms <= most).all()


# ------------------------------------------------------------------------------------------- Ghosts, wrap-around, spikes


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_ghost_lies_half_a_field_of_view_away(axis: int) -> None:
    volume = phantom()
    ghost = Ghost.draw(4, default_rng(3), axis)
    w = ghost.gain * np.exp(1j * math.radians(ghost.phase_deg))
    assert abs(1 - w) / 2 == pytest.approx(ghost.ghost_over_signal) == pytest.approx(Ghost.LEVELS[3])
    expected = (1 + w) / 2 * volume + (1 - w) / 2 * volume.roll(volume.shape[axis] // 2, axis)
    torch.testing.assert_close(ghost.apply(volume, SPACING_MM), expected.to(torch.complex64), atol=1e-5, rtol=0)


def test_ghost_of_gain_one_is_the_identity() -> None:
    volume = phantom()
    same = Ghost(1, 0, ghost_over_signal=0.0, gain=1.0, phase_deg=0.0).apply(volume, SPACING_MM)
    torch.testing.assert_close(same, volume, atol=1e-6, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_wrap_conserves_the_sum_and_folds_onto_the_field_of_view(axis: int, severity: int) -> None:
    volume = phantom()
    wrap = Wrap.draw(severity, default_rng(4), axis)
    folded = wrap.apply(volume, SPACING_MM)
    torch.testing.assert_close(folded.sum(), volume.sum(), atol=1e-2, rtol=1e-5)
    inside = folded.abs().sum([i for i in range(3) if i != axis]).nonzero()[:, 0]
    first, fov = int(inside[0]), len(inside)
    assert fov < volume.shape[axis] and int(inside[-1]) - first == fov - 1
    # What the wide line spacing of a small field of view measures: exp(-2 pi i m r / fov) for whole m, before and after.
    m, r = torch.arange(fov)[:, None], torch.arange(volume.shape[axis])
    wave = torch.exp(-2j * math.pi * m * r / fov).to(torch.complex64)
    before, after = (torch.einsum("mr,rab->mab", wave, v.movedim(axis, 0)) for v in (volume, folded))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)


def test_wrap_is_measured_on_the_object_not_on_the_air() -> None:
    volume = torch.zeros(60, 4, 4, dtype=torch.complex64)
    volume[20:40] = 1
    for side, expected in ((0.0, [2.0] * 8 + [1.0] * 4), (1.0, [1.0] * 4 + [2.0] * 8)):
        folded = Wrap(5, 0, fov_over_object=0.6, side=side).apply(volume, SPACING_MM)[:, 0, 0].real
        occupied = folded.nonzero()[:, 0]
        assert folded[occupied].tolist() == expected
        assert int(occupied[0]) == (20 if side == 0 else 28)


def test_spike_shows_at_its_frequency_and_nowhere_else() -> None:
    volume = phantom()
    spike = Spike(3, frequencies=((0.25, -0.1, 0.2),), phases_deg=(30.0,), ripple_over_signal=0.3)
    spoilt = spike.apply(volume, SPACING_MM)
    change = to_kspace(spoilt - volume, (0, 1, 2))
    index = tuple(round(f * n) + n // 2 for f, n in zip(spike.frequencies[0], volume.shape))
    assert int(change.abs().argmax()) == np.ravel_multi_index(index, volume.shape)
    assert float(change.abs().square().sum()) == pytest.approx(float(change[index].abs().square()), rel=1e-4)
    # In the image: a plane wave of that amplitude and phase.
    k, r = ([i - n // 2 for i, n in zip(index, volume.shape)], [torch.arange(n) - n // 2 for n in volume.shape])
    turns = sum(along(axis, k[axis] * r[axis] / n) for axis, n in enumerate(volume.shape))
    assert isinstance(turns, Tensor)
    wave = 0.3 * signal_level(volume) * torch.exp(1j * (2 * math.pi * turns + math.radians(30)))
    torch.testing.assert_close(spoilt - volume, wave.to(torch.complex64), atol=1e-4, rtol=0)


def test_spikes_together_have_the_strength_of_their_severity() -> None:
    numbers = set()
    for seed in range(20):
        spike = Spike.draw(4, default_rng(seed))
        numbers.add(len(spike.frequencies))
        assert spike.ripple_over_signal * math.sqrt(len(spike.frequencies)) == pytest.approx(Spike.LEVELS[3])
        assert all(0.1 <= np.linalg.norm(frequency) <= 0.45 for frequency in spike.frequencies)
    assert numbers == {1, 2, 3}


# ------------------------------------------------------------------------------------- Bias field, Gibbs ringing, noise


def test_bias_field_is_a_smooth_factor_and_the_same_on_any_grid() -> None:
    volume = phantom()
    bias = BiasField.draw(4, default_rng(5))
    field = bias.field(volume.shape)
    torch.testing.assert_close(bias.apply(volume, SPACING_MM), volume * field)
    assert float(field.log().std(correction=0)) == pytest.approx(BiasField.LEVELS[3], rel=1e-3)
    assert abs(float(field.log().mean())) < 1e-3
    assert max(float(field.log().diff(dim=axis).abs().max()) for axis in range(3)) < 0.3
    fine = bias.field([3 * n for n in volume.shape])[1::3, 1::3, 1::3]
    torch.testing.assert_close(fine, field, atol=0.03, rtol=0)


def test_gibbs_overshoots_by_nine_percent_of_the_edge() -> None:
    """Wilbraham and Gibbs: (1/pi) int_0^pi sin t / t dt - 1/2 = 0.0895 of the step, however many lines are kept."""
    volume = torch.zeros(4, 1024, 4, dtype=torch.complex64)
    volume[:, 256:768] = 1
    for kept in (0.1, 0.2, 0.3):
        ringing = Gibbs(3, 1, kept).apply(volume, SPACING_MM)[0, :, 0]
        assert float(ringing.real.max()) - 1 == pytest.approx(0.0895, abs=0.006)
        assert -float(ringing.real.min()) == pytest.approx(0.0895, abs=0.006)
        assert ringing.imag.abs().max() < 1e-5
        assert float(ringing.real.mean()) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gibbs_cuts_lines_and_leaves_the_others(axis: int) -> None:
    volume = phantom()
    gibbs = Gibbs.draw(3, default_rng(0), axis)
    before, after = (to_kspace(v, (axis,)).movedim(axis, 0) for v in (volume, gibbs.apply(volume, SPACING_MM)))
    kept = after.abs().amax((1, 2)) > 1e-4
    assert abs(int(kept.sum()) - gibbs.kept * len(kept)) <= 1
    torch.testing.assert_close(after[kept], before[kept], atol=1e-5, rtol=0)


def test_noise_has_the_sigma_of_its_severity() -> None:
    volume = phantom()
    noise = Noise.draw(3, default_rng(6))
    added = noise.apply(volume, SPACING_MM) - volume
    sigma = Noise.LEVELS[2] * signal_level(volume)
    for part in (added.real, added.imag):
        assert float(part.std()) == pytest.approx(sigma, rel=4 / math.sqrt(2 * volume.numel()))


def test_signal_level_is_that_of_tissue_not_of_air() -> None:
    volume = torch.zeros(10, 10, 10, dtype=torch.complex64)
    volume.imag[3:6] = 2.0
    assert signal_level(volume) == pytest.approx(2.0)
    assert signal_level(torch.ones_like(volume)) == pytest.approx(1.0)
