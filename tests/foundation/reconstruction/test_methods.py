"""Methods: exact where they must be, equal to a dense solution and to sigpy's, and better than nothing where they can be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from torch import Tensor

from foundation.errors import InputError
from foundation.physics.kspace import (
    SenseOperator,
    add_noise,
    coil_maps,
    draw_mask,
    expand_mask,
    partial_fourier,
    root_sum_of_squares,
    smooth_phase,
    to_image,
    to_kspace,
)
from foundation.raw import RawData, measured
from foundation.reconstruction.methods import METHODS, Slice, reconstruct, solve_normal, solve_sense
from foundation.reconstruction.metrics import nmse

SHAPE = (64, 60)
EVERYTHING = torch.ones(1, 1, 1, dtype=torch.bool)


def head(sigma: float = 0.0, num_coils: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """A complex image with edges, coils' maps, and noisy k-space."""
    rng = default_rng(0)
    row, column = np.meshgrid(*(np.arange(n) - n // 2 for n in SHAPE), indexing="ij")
    brain = ((row / 26) ** 2 + (column / 22) ** 2 < 1) + 0.5 * ((row - 6) ** 2 + column**2 < 60)
    image = torch.from_numpy(brain.astype(np.float32)) * smooth_phase(SHAPE, 0.5, rng)
    maps = coil_maps((*SHAPE, 1), (3.5, 3.5, 3.5), num_coils, rng)[..., 0]
    return image, maps, add_noise(to_kspace(maps * image), sigma, rng)


def lines(kind: str, acceleration: int, calibration: int) -> Tensor:
    return expand_mask(draw_mask(kind, SHAPE[1:], acceleration, calibration, default_rng(1)), (1,), 2)[None]


def error(found: Tensor, image: Tensor) -> float:
    return nmse(image.abs()[None].numpy(), found[None].numpy())


# ------------------------------------------------------------------------------------------------ complete data


def test_complete_data_give_the_image_back() -> None:
    image, maps, kspace = head()
    operator = SenseOperator(maps, EVERYTHING)
    found = solve_sense(operator, kspace, 3)
    assert float((found - image).norm() / image.norm()) < 1e-4
    assert float((operator.adjoint(kspace) - image).norm() / image.norm()) < 1e-4
    zero_filled = METHODS["zero-filled"](Slice(kspace, EVERYTHING))
    assert float((zero_filled - image.abs()).norm() / image.norm()) < 1e-4


@pytest.mark.parametrize("method", ["zero-filled-sense", "cg-sense"])
def test_estimated_sensitivities_cost_little(method: str) -> None:
    image, _, kspace = head(0.002)
    assert error(METHODS[method](Slice(kspace, EVERYTHING)), image) < 2e-4


# ------------------------------------------------------------------------------------------------ SENSE


def test_conjugate_gradients_find_the_dense_solution() -> None:
    rng, shape = default_rng(0), (6, 8)

    def numbers(*size: int) -> Tensor:
        return torch.view_as_complex(torch.from_numpy(rng.standard_normal((*size, 2))))

    operator = SenseOperator(numbers(4, *shape), expand_mask(torch.arange(8) % 2 == 0, (1,), 2))
    columns = [operator.forward(one.reshape(shape)).flatten() for one in torch.eye(48, dtype=torch.complex128)]
    dense, kspace = torch.stack(columns, 1), operator.mask * numbers(4, *shape)
    wanted = torch.linalg.solve(dense.mH @ dense + 0.1 * torch.eye(48), dense.mH @ kspace.flatten())
    torch.testing.assert_close(solve_sense(operator, kspace, 48, 0.1).flatten(), wanted, rtol=1e-8, atol=1e-8)
    near = numbers(*shape)  # |A x - y|^2 + 0.1 |x - near|^2
    wanted = torch.linalg.solve(
        dense.mH @ dense + 0.1 * torch.eye(48), dense.mH @ kspace.flatten() + 0.1 * near.flatten()
    )
    found = near + solve_normal(operator, operator.adjoint(kspace - operator.forward(near)), 48, 0.1)
    torch.testing.assert_close(found.flatten(), wanted, rtol=1e-8, atol=1e-8)


def test_a_batch_is_solved_image_by_image() -> None:
    _, maps, kspace = head(0.01)
    batch = torch.stack([kspace, 30 * kspace.flip(-1), torch.zeros_like(kspace)])
    mask = lines("equispaced", 3, 8)
    operator = SenseOperator(maps, mask)
    together = solve_sense(operator, batch * mask, 8, 1e-3)
    for i in range(3):
        alone = solve_sense(operator, batch[i] * mask, 8, 1e-3)
        torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-5)


def test_cg_sense_is_sigpys() -> None:
    app = pytest.importorskip("sigpy.mri.app")
    _, maps, kspace = head(0.01)
    mask = lines("equispaced", 3, 8)
    kspace = kspace * mask
    ours = solve_sense(SenseOperator(maps, mask), kspace, 10, 1e-2)
    weights = mask[0].expand(SHAPE).to(torch.complex64).numpy()
    solver = app.SenseRecon(kspace.numpy(), maps.numpy(), 1e-2, weights=weights, max_iter=10, show_pbar=False)
    assert float((ours - torch.from_numpy(solver.run())).norm() / ours.norm()) < 1e-4


@pytest.mark.parametrize("method", ["cg-sense", "l1-wavelet"])
def test_accelerated_scans_are_better_than_zero_filled(method: str) -> None:
    if method == "l1-wavelet":
        pytest.importorskip("sigpy")
    image, _, kspace = head(0.005)
    mask = lines("random", 3, 12)
    one = Slice(kspace * mask, mask)
    plain = min(error(METHODS[name](one), image) for name in ("zero-filled", "zero-filled-sense"))
    assert error(METHODS[method](one), image) < 0.3 * plain


def test_a_poisson_disc_too() -> None:
    image, _, kspace = head(0.005)
    mask = draw_mask("poisson", SHAPE, 4, 14, default_rng(1))[None]
    one = Slice(kspace * mask, mask)
    assert error(METHODS["cg-sense"](one), image) < 0.3 * error(METHODS["zero-filled"](one), image)


# ------------------------------------------------------------------------------------------------ partial Fourier


@pytest.mark.parametrize("n", [60, 61])
@pytest.mark.parametrize("drop", ["high", "low"])
@pytest.mark.parametrize("axis", [-2, -1])
def test_homodyne_is_exact_where_the_phase_is_constant(n: int, drop: str, axis: int) -> None:
    rng = default_rng(0)
    image = torch.from_numpy(rng.random((n, n)) + 1.0).float()
    kspace = to_kspace(image * torch.exp(torch.tensor(0.7j)))[None]
    mask = expand_mask(partial_fourier(n, 5 / 8, drop), (2 + axis,), 2)[None]  # pyright: ignore[reportArgumentType]
    one = Slice(kspace * mask, mask)
    # On an even axis the lowest frequency, its own opposite, is lost with the low end; so is one part in n of the noise.
    lost = n % 2 == 0 and drop == "low"
    assert error(METHODS["homodyne"](one), image) < (2e-3 if lost else 1e-9)
    assert error(METHODS["zero-filled"](one), image) > 4e-3


@pytest.mark.parametrize("method", ["homodyne", "pocs"])
def test_partial_fourier_with_a_smooth_phase(method: str) -> None:
    image, _, kspace = head(0.0)
    mask = expand_mask(partial_fourier(60, 0.7), (1,), 2)[None]
    one = Slice(kspace * mask, mask)
    assert error(METHODS[method](one), image) < 0.5 * error(METHODS["zero-filled"](one), image)


def test_pocs_keeps_the_samples_and_a_consistent_image() -> None:
    """An image whose phase is that of its middle, and whose samples are all there, is a fixed point."""
    rng = default_rng(0)
    image = torch.from_numpy(rng.random((30, 30)) + 1.0).float()
    mask = expand_mask(partial_fourier(30, 6 / 8), (1,), 2)[None]
    one = Slice(to_kspace(image + 0j)[None] * mask, mask)
    assert error(METHODS["pocs"](one), image) < 0.2 * error(METHODS["zero-filled"](one), image)


@pytest.mark.parametrize("method", ["homodyne", "pocs"])
@pytest.mark.parametrize(
    "mask", [EVERYTHING, lines("equispaced", 3, 8), expand_mask(torch.arange(60) < 33, (1,), 2)[None]]
)
def test_other_scans_are_refused(method: str, mask: Tensor) -> None:
    _, _, kspace = head()
    with pytest.raises(InputError, match="partial-fourier"):
        METHODS[method](Slice(kspace * mask, mask))


# ------------------------------------------------------------------------------------------------ all of them


@pytest.mark.parametrize("method", METHODS)
def test_every_method_scales_and_takes_slices_one_by_one(method: str) -> None:
    if method == "l1-wavelet":
        pytest.importorskip("sigpy")
    _, _, kspace = head(0.01, num_coils=4)
    mask = expand_mask(partial_fourier(60, 6 / 8), (1,), 2)
    taken = torch.stack([kspace, 0.3 * kspace.flip(-2)]) * mask
    raw = RawData(taken, measured(taken))
    images = reconstruct(raw, method)
    assert images.shape == (2, *SHAPE) and bool(torch.isfinite(images).all()) and float(images.min()) >= 0
    small = reconstruct(RawData(1e-12 * taken, raw.mask), method)
    torch.testing.assert_close(1e12 * small, images, rtol=2e-2, atol=2e-3 * float(images.max()))
    alone = reconstruct(RawData(taken[1:], raw.mask), method)
    torch.testing.assert_close(alone[0], images[1], rtol=2e-2, atol=2e-3 * float(images.max()))


def test_noise_that_coils_share_is_made_independent() -> None:
    """One coil ten times as noisy as the others ruins a reconstruction that does not know it."""
    image, maps, kspace = head()
    noise = add_noise(torch.zeros_like(kspace), 0.004, default_rng(2))
    loud = torch.ones(8)
    loud[2] = 25
    mask = lines("equispaced", 2, 16)[None]
    taken = (kspace + noise * loud[:, None, None])[None] * mask
    covariance = torch.diag(2 * (0.004 * loud) ** 2).to(torch.complex64)
    blind = reconstruct(RawData(taken, mask), "cg-sense")[0]
    told = reconstruct(RawData(taken, mask, noise=covariance), "cg-sense")[0]
    scale = root_sum_of_squares(maps * loud.reciprocal()[:, None, None]) * float((loud**2).mean().sqrt())
    assert error(told / scale, image) < 0.5 * error(blind, image)


def test_an_unknown_method_says_which_it_might_have_been() -> None:
    _, _, kspace = head(num_coils=4)
    with pytest.raises(InputError, match="Did you mean 'cg-sense'"):
        reconstruct(RawData(kspace[None], EVERYTHING[None]), "cgsense")


def test_zero_filled_is_the_plain_transform() -> None:
    _, _, kspace = head(0.1)
    found = reconstruct(RawData(kspace[None], EVERYTHING[None]), "zero-filled")
    torch.testing.assert_close(found[0], root_sum_of_squares(to_image(kspace)), rtol=1e-4, atol=1e-5)
