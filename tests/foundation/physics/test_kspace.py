"""The transform against a matrix, every linear operator against its adjoint, masks counted, noise and coils measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from torch import Tensor

from foundation.errors import InputError
from foundation.physics.kspace import (
    MASKS,
    SenseOperator,
    add_noise,
    coil_maps,
    combine,
    crop,
    crop_field_of_view,
    draw_mask,
    expand_mask,
    loop_field,
    partial_fourier,
    poisson_disc,
    poisson_radius,
    root_sum_of_squares,
    smooth_field,
    smooth_phase,
    to_image,
    to_kspace,
    tukey,
    zero_pad,
)


def random_complex(*shape: int, seed: int = 0) -> Tensor:
    """Double precision, so that an identity holds to rounding."""
    return torch.view_as_complex(torch.from_numpy(default_rng(seed).standard_normal((*shape, 2))))


def inner(a: Tensor, b: Tensor) -> complex:
    return complex(torch.vdot(a.reshape(-1), b.reshape(-1)))


def dft_matrix(n: int) -> Tensor:
    """The definition: one row per frequency, one column per place, both counted from n // 2."""
    index = torch.arange(n, dtype=torch.float64) - n // 2
    return torch.exp(-2j * math.pi * torch.outer(index, index) / n) / math.sqrt(n)


# ------------------------------------------------------------------------------------------------------- The transform


@pytest.mark.parametrize("shape", [(8, 6), (7, 5), (4, 9)])
def test_transform_is_the_dft_matrix(shape: tuple[int, int]) -> None:
    image = random_complex(3, *shape)
    expected = dft_matrix(shape[0]) @ image @ dft_matrix(shape[1]).T
    torch.testing.assert_close(to_kspace(image), expected)
    volume = random_complex(*shape, 6)
    expected = torch.einsum("ax,by,cz,xyz->abc", *(dft_matrix(n) for n in volume.shape), volume)
    torch.testing.assert_close(to_kspace(volume, (0, 1, 2)), expected)
    torch.testing.assert_close(to_kspace(volume, (1,)), torch.einsum("by,xyz->xbz", dft_matrix(shape[1]), volume))


@pytest.mark.parametrize("axes", [(-2, -1), (0, 1, 2), (1,)])
def test_transform_keeps_energy_and_comes_back(axes: tuple[int, ...]) -> None:
    image = random_complex(5, 6, 7)
    kspace = to_kspace(image, axes)
    assert float(kspace.norm()) == pytest.approx(float(image.norm()))
    torch.testing.assert_close(to_image(kspace, axes), image)
    assert inner(kspace, random_complex(5, 6, 7, seed=1)) == pytest.approx(
        inner(image, to_image(random_complex(5, 6, 7, seed=1), axes))
    )


# --------------------------------------------------------------------------------------------------------------- Coils


@pytest.mark.parametrize("num_coils", [4, 8, 13, 16])
def test_coil_maps_are_smooth_complex_and_of_unit_sum(num_coils: int) -> None:
    shape, spacing_mm = (24, 28, 24), 8.0
    maps = coil_maps(shape, (spacing_mm,) * 3, num_coils, default_rng(0))
    assert maps.shape == (num_coils, *shape) and maps.dtype == torch.complex64
    torch.testing.assert_close(root_sum_of_squares(maps), torch.ones(shape))
    position = [(np.arange(n) - (n - 1) / 2) * spacing_mm for n in shape]
    radii_mm = np.array([75, 95, 85])
    in_head = sum((p / r) ** 2 for p, r in zip(np.meshgrid(*position, indexing="ij"), radii_mm)) < 1
    in_head = torch.from_numpy(in_head)
    assert maps.abs()[:, in_head].amax(dim=1).min() > 0.5  # every coil sees something of its own
    assert maps.angle()[:, in_head].std() > 0.5
    steps = torch.stack([root_sum_of_squares(maps.roll(-1, axis) - maps) for axis in (1, 2, 3)])
    assert steps[:, in_head].max() < 0.05 * spacing_mm  # of a vector of length one, per mm
    correlation = torch.corrcoef(maps[:, in_head]).abs()
    assert (correlation - torch.eye(num_coils)).max() < 0.97  # no coil twice


def test_coils_come_from_the_seed_and_turn_with_the_bore() -> None:
    first, same, other = (coil_maps((6, 8, 10), (20.0,) * 3, 8, default_rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, same) and not torch.equal(first, other)
    turned = coil_maps((10, 6, 8), (20.0,) * 3, 8, default_rng(3), bore_axis=0)
    torch.testing.assert_close(turned.movedim(1, 3), first)
    one_slice = coil_maps((6, 8, 1), (20.0,) * 3, 8, default_rng(3), centre_mm=(0.0, 0.0, 50.0))
    torch.testing.assert_close(one_slice[..., 0], first[..., 7])


def test_loop_field_is_biot_and_savart_summed() -> None:
    """B = 1/(4 pi) sum dl x r / |r|^3 over short straight pieces of the wire."""
    radius_mm, rng = 50.0, default_rng(0)
    normal = np.array([1.0, 2.0, -2.0]) / 3
    u = np.cross(normal, [0.0, 0.0, 1.0]) / np.linalg.norm(np.cross(normal, [0.0, 0.0, 1.0]))
    v = np.cross(normal, u)
    angle = np.linspace(0, 2 * math.pi, 4000, endpoint=False)[:, None]
    wire = radius_mm * (np.cos(angle) * u + np.sin(angle) * v)
    pieces = radius_mm * (-np.sin(angle) * u + np.cos(angle) * v) * (2 * math.pi / len(angle))
    points = np.concatenate([rng.uniform(-150, 150, (20, 3)), [0 * normal, 40 * normal, -90 * normal]])
    away = points[:, None] - wire
    distance = np.linalg.norm(away, axis=-1, keepdims=True)
    assert distance.min() > 6
    summed = (np.cross(pieces, away) / distance**3).sum(1) / (4 * math.pi)
    np.testing.assert_allclose(loop_field(points, normal, radius_mm), summed, rtol=1e-4, atol=1e-9)


def test_combining_coils_gives_the_image_back() -> None:
    image = random_complex(6, 8, 10).to(torch.complex64)
    maps = coil_maps(image.shape, (20.0,) * 3, 5, default_rng(0))
    torch.testing.assert_close(combine(maps * image, maps), image)
    torch.testing.assert_close(combine(maps * image, 0.5 * maps), 2 * image)
    torch.testing.assert_close(root_sum_of_squares(maps * image), image.abs())
    batch = (maps * image).transpose(0, 1)
    torch.testing.assert_close(combine(batch, maps.transpose(0, 1), axis=1), image)


# ----------------------------------------------------------------------------------------------------------- Operators


def any_mask(kind: str) -> Tensor:
    """Each kind of mask, made ready for 3-D k-space of shape (10, 12, 14)."""
    if kind == "partial":
        return expand_mask(partial_fourier(12, 5 / 8), (1,), 3)
    num_axes = MASKS[kind][1]
    mask = draw_mask(kind, (12, 14)[:num_axes], 2.5, 3, default_rng(0))
    return expand_mask(mask, (1, 2)[:num_axes], 3)


@pytest.mark.parametrize("kind", [*MASKS, "partial"])
def test_sense_operator_against_its_adjoint(kind: str) -> None:
    shape = (10, 12, 14)
    maps = coil_maps(shape, (15.0,) * 3, 4, default_rng(0)).to(torch.complex128)
    operator = SenseOperator(maps, any_mask(kind), num_axes=3)
    assert 0 < operator.mask.double().mean() < 1
    x, y = random_complex(*shape), random_complex(4, *shape, seed=1)
    assert inner(operator.forward(x), y) == pytest.approx(inner(x, operator.adjoint(y)), rel=1e-10)
    torch.testing.assert_close(operator.normal(x), operator.adjoint(operator.forward(x)))
    assert inner(x, operator.normal(x)).real > 0
    torch.testing.assert_close(
        SenseOperator(maps, torch.ones(1, 1, 1, dtype=torch.bool), 3).normal(x), x, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("shape", [(7, 9), (8, 9), (6, 10)])
@pytest.mark.parametrize("sampled", ["nothing left out", "rows", "columns", "points"])
def test_the_fast_normal_operator_is_adjoint_after_forward(shape: tuple[int, int], sampled: str) -> None:
    """Even and odd axes, and every choice of axes that the mask depends on."""
    size = {"nothing left out": (1, 1), "rows": (shape[0], 1), "columns": (1, shape[1]), "points": shape}[sampled]
    mask = torch.ones(size, dtype=torch.bool)
    mask.flatten()[1::3] = False
    maps = random_complex(4, *shape, seed=2)
    x = random_complex(3, *shape)
    for operator in (SenseOperator(maps, mask), SenseOperator(maps, mask[None])):
        torch.testing.assert_close(operator.normal(x), operator.adjoint(operator.forward(x)), rtol=1e-11, atol=1e-12)


def test_the_fast_normal_operator_passes_gradients_on() -> None:
    operator = SenseOperator(random_complex(4, 6, 5), torch.arange(5) % 2 == 0)
    x = random_complex(6, 5).requires_grad_()
    weight = random_complex(6, 5, seed=3)
    (grad,) = torch.autograd.grad((operator.normal(x) * weight.conj()).real.sum(), x)
    torch.testing.assert_close(grad, operator.normal(weight))  # it is its own adjoint


def test_slices_are_a_batch_of_two_dimensional_acquisitions() -> None:
    maps = coil_maps((8, 10, 3), (20.0,) * 3, 4, default_rng(0)).to(torch.complex128).permute(3, 0, 1, 2)
    mask = expand_mask(draw_mask("equispaced", (10,), 2, 2, default_rng(0)), (1,), 2)
    x, y = random_complex(3, 8, 10), random_complex(3, 4, 8, 10, seed=1)
    together = SenseOperator(maps, mask)
    assert inner(together.forward(x), y) == pytest.approx(inner(x, together.adjoint(y)), rel=1e-10)
    for i in range(3):
        alone = SenseOperator(maps[i], mask)
        torch.testing.assert_close(together.forward(x)[i], alone.forward(x[i]))
        torch.testing.assert_close(together.adjoint(y)[i], alone.adjoint(y[i]))


def test_forward_is_what_its_parts_say() -> None:
    maps = coil_maps((8, 6, 1), (20.0,) * 3, 4, default_rng(0))[..., 0]
    mask = draw_mask("random", (6,), 2, 1, default_rng(0))
    image = random_complex(8, 6).to(torch.complex64)
    kspace = SenseOperator(maps, expand_mask(mask, (1,), 2)).forward(image)
    for coil in range(4):
        expected = (dft_matrix(8) @ (maps[coil] * image).to(torch.complex128) @ dft_matrix(6).T) * mask
        torch.testing.assert_close(kspace[coil].to(torch.complex128), expected, atol=1e-5, rtol=0)


def test_gradient_passes_through_the_operator() -> None:
    maps = coil_maps((8, 6, 1), (20.0,) * 3, 4, default_rng(0))[..., 0]
    operator = SenseOperator(maps, torch.tensor([True, False] * 3))
    image = random_complex(8, 6).to(torch.complex64).requires_grad_()
    operator.forward(image).abs().square().sum().backward()
    torch.testing.assert_close(image.grad, 2 * operator.normal(image).detach())


# --------------------------------------------------------------------------------------------------------------- Masks

LINES = [(n, acceleration, c) for n in (96, 127, 218, 320) for acceleration in (2, 4.5, 8) for c in (0, 0.04, 0.08)]


@pytest.mark.parametrize("kind", ["random", "equispaced", "magic"])
def test_line_masks_sample_as_much_as_asked(kind: str) -> None:
    for seed, (num, acceleration, calibration) in enumerate(LINES):
        mask = draw_mask(kind, (num,), acceleration, calibration, default_rng(seed))
        assert mask.shape == (num,) and mask.dtype == torch.bool
        assert abs(int(mask.sum()) - round(num / acceleration)) <= (2 if kind == "magic" else 0)
        lines = round(calibration * num)
        start = (num - lines + 1) // 2
        assert mask[start : start + lines].all()
        assert torch.equal(mask, draw_mask(kind, (num,), acceleration, calibration, default_rng(seed)))


@pytest.mark.parametrize("kind", MASKS)
def test_no_acceleration_samples_everything(kind: str) -> None:
    shape = (12, 15)[: MASKS[kind][1]]
    for calibration in (0, 3, 1.0):
        assert draw_mask(kind, shape, 1, calibration, default_rng(0)).all()


def test_equispaced_without_calibration_takes_every_rth_line() -> None:
    seen = set()
    for seed in range(20):
        taken = draw_mask("equispaced", (96,), 4, 0, default_rng(seed)).nonzero()[:, 0]
        assert (taken.diff() == 4).all()
        seen.add(int(taken[0]))
    assert seen == {0, 1, 2, 3}
    gaps = draw_mask("equispaced", (320,), 4, 0.08, default_rng(0))[:147].nonzero()[:, 0].diff()
    assert set(gaps.tolist()) <= {5, 6}  # (320 - 26) / (80 - 26) = 5.4


@pytest.mark.parametrize("acceleration", [4, 8])
def test_magic_mask_is_fastmris(acceleration: int) -> None:
    """In residues: with the positive lines at a modulo R, the negative lie at |k| = a + 2 or a - 2 modulo R."""
    lags = set()
    for seed in range(12):
        k = draw_mask("magic", (96,), acceleration, 0, default_rng(seed)).nonzero()[:, 0] - 48
        (positive,), (negative,) = (set((side.abs() % acceleration).tolist()) for side in (k[k >= 0], k[k < 0]))
        lags.add((negative - positive) % acceleration)
    assert lags == {2, acceleration - 2}


def test_magic_sides_interleave_where_an_equispaced_mask_may_coincide() -> None:
    for seed in range(10):
        k = draw_mask("magic", (96,), 4, 0, default_rng(seed)).nonzero()[:, 0] - 48
        assert not set(k[k > 0].tolist()) & set((-k[k < 0]).tolist())


@pytest.mark.parametrize(
    ("shape", "acceleration", "calibration"), [((48, 56), 4, 8), ((61, 40), 8, 0.15), ((40, 40), 2, 0)]
)
def test_poisson_mask_is_exact_and_dense_in_the_middle(
    shape: tuple[int, int], acceleration: int, calibration: float
) -> None:
    mask = draw_mask("poisson", shape, acceleration, calibration, default_rng(0))
    assert int(mask.sum()) == round(math.prod(shape) / acceleration)
    assert torch.equal(mask, draw_mask("poisson", shape, acceleration, calibration, default_rng(0)))
    assert not torch.equal(mask, draw_mask("poisson", shape, acceleration, calibration, default_rng(1)))
    counts = [calibration if isinstance(calibration, int) else round(calibration * n) for n in shape]
    middle = tuple(slice((n - c + 1) // 2, (n - c + 1) // 2 + c) for n, c in zip(shape, counts))
    assert mask[middle].all()
    mask[middle] = False
    radius = poisson_radius(shape)
    near, far = torch.from_numpy(radius < 2), torch.from_numpy(radius > 2.6)
    share = [mask[where].double().mean() for where in (near, far)]
    assert share[0] > 1.2 * share[1] > 0


def test_poisson_samples_keep_their_distance_and_leave_no_room() -> None:
    shape, centre = (36, 44), (slice(14, 22), slice(18, 26))
    radius = 1.7 * poisson_radius(shape)
    order = default_rng(0).permutation(math.prod(shape))
    mask = poisson_disc(radius, order, centre)
    assert mask[centre].all()
    in_centre = np.zeros(shape, dtype=bool)
    in_centre[centre] = True
    samples, empty = np.argwhere(mask & ~in_centre), np.argwhere(~mask)
    own = radius[tuple(samples.T)]
    between = np.linalg.norm(samples[:, None] - samples[None], axis=-1) + 1e6 * np.eye(len(samples))
    assert len(samples) > 50
    assert (between >= np.minimum(own[:, None], own[None])).all()
    to_sample = np.linalg.norm(empty[:, None] - samples[None], axis=-1)
    assert (to_sample < own[None]).any(1).all()


@pytest.mark.parametrize("fraction", [5 / 8, 6 / 8, 7 / 8, 1.0])
@pytest.mark.parametrize("num", [96, 101])
def test_partial_fourier_leaves_out_one_end(num: int, fraction: float) -> None:
    high, low = (partial_fourier(num, fraction, drop=end) for end in ("high", "low"))
    kept = round(fraction * num)
    assert high[:kept].all() and not high[kept:].any()
    assert torch.equal(low, high.flip(0))
    assert high[num // 2] and low[num // 2]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda rng: draw_mask("equispacd", (96,), 4, 8, rng), "Did you mean 'equispaced'"),
        (lambda rng: draw_mask("random", (96,), 0.5, 8, rng), "at least 1"),
        (lambda rng: draw_mask("random", (96,), math.nan, 8, rng), "at least 1"),
        (lambda rng: draw_mask("random", (96,), 4, 30, rng), "24 samples"),
        (lambda rng: draw_mask("random", (96,), 4, 1.5, rng), "fraction of them"),
        (lambda rng: draw_mask("random", (96,), 4, -1, rng), "whole number of lines"),
        (lambda rng: draw_mask("random", (96,), 1000, 0, rng), "at least one sample"),
        (lambda rng: draw_mask("poisson", (96,), 4, 8, rng), "2 phase-encoding axes"),
        (lambda rng: draw_mask("magic", (96, 96), 4, 8, rng), "1 phase-encoding axis"),
        (lambda rng: partial_fourier(96, 0.5), "between 0.625 and 1"),
        (lambda rng: coil_maps((4, 4, 4), (20.0,) * 3, 3, rng), "4 to 16 coils"),
        (lambda rng: add_noise(random_complex(4, 4), -1.0, rng), "not negative"),
        (lambda rng: crop(random_complex(4, 4), (5, 4)), "zero_pad"),
        (lambda rng: crop(random_complex(4, 4), (3, 3), taper=2.0), "between 0 and 1"),
    ],
)
def test_bad_input_says_what_to_do(call, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call(default_rng(0))


# ---------------------------------------------------------------------------------------- Noise, resolution, phase


def test_noise_in_air_is_rayleigh_and_in_tissue_rician() -> None:
    sigma, n = 3.0, 256
    noise = to_image(add_noise(torch.zeros(n, n, dtype=torch.complex64), sigma, default_rng(0)))
    samples, air = n * n, noise.abs()
    mean, std = sigma * math.sqrt(math.pi / 2), sigma * math.sqrt(2 - math.pi / 2)
    assert float(air.mean()) == pytest.approx(mean, abs=4 * std / math.sqrt(samples))
    assert float(air.std()) == pytest.approx(std, rel=4 / math.sqrt(samples))
    for part in (noise.real, noise.imag):
        assert float(part.std()) == pytest.approx(sigma, rel=4 / math.sqrt(2 * samples))
    signal = 4 * sigma
    tissue = (signal + noise).abs().double()
    assert float(tissue.square().mean()) == pytest.approx(signal**2 + 2 * sigma**2, rel=0.01)


def test_noise_of_many_coils_is_independent_and_of_the_same_sigma() -> None:
    sigma, num_coils = 2.0, 8
    maps = coil_maps((64, 64, 1), (3.0, 3.0, 3.0), num_coils, default_rng(0))[..., 0]
    operator = SenseOperator(maps, torch.ones(64, 64, dtype=torch.bool))
    kspace = operator.acquire(torch.zeros(64, 64, dtype=torch.complex64), sigma, default_rng(1))
    coil_images = to_image(kspace)
    tolerance = 4 / math.sqrt(2 * 64 * 64)
    for coil in coil_images:
        assert float(coil.real.std()) == pytest.approx(sigma, rel=tolerance)
    correlation = torch.corrcoef(coil_images.reshape(num_coils, -1)).abs() - torch.eye(num_coils)
    assert correlation.max() < 5 / 64
    # Unit maps leave sigma as it is; the root sum of squares is a chi distribution with two degrees for each coil.
    assert float(operator.adjoint(kspace).real.std()) == pytest.approx(sigma, rel=tolerance)
    chi_mean = sigma * math.sqrt(2) * math.exp(math.lgamma(num_coils + 0.5) - math.lgamma(num_coils))
    assert float(root_sum_of_squares(coil_images).mean()) == pytest.approx(chi_mean, rel=0.01)


def test_noise_is_drawn_before_the_mask() -> None:
    maps = coil_maps((8, 12, 1), (20.0,) * 3, 4, default_rng(0))[..., 0]
    image = random_complex(8, 12).to(torch.complex64)
    masks = [expand_mask(draw_mask("random", (12,), 2, 2, default_rng(seed)), (1,), 2) for seed in (0, 1)]
    first, second = (SenseOperator(maps, mask).acquire(image, 1.0, default_rng(5)) for mask in masks)
    assert not torch.equal(*masks)
    assert torch.equal(first * masks[1], second * masks[0])
    assert not (first * ~masks[0]).any()
    quiet = SenseOperator(maps, masks[0])
    torch.testing.assert_close(quiet.acquire(image, 0.0, default_rng(5)), quiet.forward(image))


@pytest.mark.parametrize(("old", "new"), [((8, 9), (4, 5)), ((9, 8), (4, 5)), ((7, 6), (7, 3))])
def test_crop_against_its_adjoint_and_padding(old: tuple[int, int], new: tuple[int, int]) -> None:
    x, y = random_complex(2, *old), random_complex(2, *new, seed=1)
    ratio = math.prod(new) / math.prod(old)
    assert inner(crop(x, new), y) == pytest.approx(inner(x, ratio * zero_pad(y, old)), rel=1e-10)
    torch.testing.assert_close(crop(zero_pad(y, old), new), y)
    torch.testing.assert_close(crop(x, old, taper=0.5), x)


@pytest.mark.parametrize(("old", "new"), [(8, 4), (9, 4), (8, 5), (7, 7)])
def test_cropping_the_field_of_view_cuts_the_image(old: int, new: int) -> None:
    image = random_complex(2, old, 6)
    cut = to_image(crop_field_of_view(to_kspace(image), new, -2))
    torch.testing.assert_close(cut, image[:, old // 2 - new // 2 :][:, :new])
    y = random_complex(2, new, 6, seed=1)
    padded = torch.zeros_like(image)
    padded[:, old // 2 - new // 2 :][:, :new] = to_image(y)
    assert inner(crop_field_of_view(image, new, -2), y) == pytest.approx(inner(image, to_kspace(padded)), rel=1e-10)


def test_crop_keeps_brightness_place_and_lowers_noise() -> None:
    constant = torch.full((32, 30), 5.0, dtype=torch.complex64)
    torch.testing.assert_close(to_image(crop(to_kspace(constant), (17, 16), taper=0.3)), constant[:17, :16])
    torch.testing.assert_close(to_image(zero_pad(to_kspace(constant), (40, 41))), constant[:1, :1].expand(40, 41))
    x = torch.arange(64.0) - 32
    bump = torch.exp(-((x - 8) ** 2) / 40)[None].to(torch.complex64)  # 8 voxels right of the middle
    small = to_image(crop(to_kspace(bump, (-1,)), (32,)), (-1,)).real
    torch.testing.assert_close(small, bump.real[:, ::2], atol=1e-4, rtol=0)
    noise = add_noise(torch.zeros(128, 128, dtype=torch.complex64), 1.0, default_rng(0))
    assert float(to_image(crop(noise, (64, 64))).real.std()) == pytest.approx(0.5, rel=0.05)


def test_taper_takes_the_ringing_away() -> None:
    edge = torch.zeros(1, 256, dtype=torch.complex64)
    edge[:, 64:192] = 1
    sharp, soft = (to_image(crop(to_kspace(edge, (-1,)), (64,), taper), (-1,)).abs() for taper in (0.0, 0.8))
    ripple = [float((image[0, 28:36] - 1).abs().max()) for image in (sharp, soft)]
    assert ripple[1] < 0.3 * ripple[0]
    torch.testing.assert_close(tukey(8, 1.0), torch.from_numpy(np.hanning(9)[:8]).float())
    assert (tukey(9, 0.0) == 1).all()


def test_smooth_field_is_smooth_standard_and_the_same_on_any_grid() -> None:
    field = smooth_field((24, 28, 20), default_rng(0))
    assert field.shape == (24, 28, 20) and field.dtype == torch.float32
    assert abs(float(field.mean())) < 1e-4 and float(field.std(correction=0)) == pytest.approx(1, abs=1e-4)
    for axis, n in enumerate(field.shape):  # Bernstein: a sum of cosines up to this order cannot be steeper
        assert field.diff(dim=axis).abs().max() < 3 * math.pi / n * 1.1 * field.abs().max()
    fine = smooth_field((72, 84, 60), default_rng(0))[1::3, 1::3, 1::3]  # every third centre coincides
    torch.testing.assert_close(fine, field, atol=0.02, rtol=0)
    flat = smooth_field((6, 8, 1), default_rng(0))
    assert torch.isfinite(flat).all() and flat.std() > 0.5


def test_smooth_phase_has_unit_magnitude() -> None:
    phase = smooth_phase((20, 24), 0.4, default_rng(0))
    torch.testing.assert_close(phase.abs(), torch.ones(20, 24))
    around_mean = (phase / phase.mean()).angle()
    assert float(around_mean.std()) == pytest.approx(0.4, rel=0.1)
    assert torch.equal(phase, smooth_phase((20, 24), 0.4, default_rng(0)))
