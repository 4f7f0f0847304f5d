"""Sensitivities against the true ones, against sigpy's, and their projection against windows projected one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from torch import Tensor

from foundation.errors import InputError
from foundation.physics import sensitivities
from foundation.physics.kspace import (
    add_noise,
    coil_maps,
    draw_mask,
    expand_mask,
    root_sum_of_squares,
    smooth_phase,
    to_image,
    to_kspace,
)
from foundation.physics.sensitivities import calibration_box, espirit_maps

SHAPE = (72, 64)


def head(num_coils: int, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, where the head is, and its complete noisy k-space; `sigma` is over a mean signal of about one."""
    rng = default_rng(0)
    maps = coil_maps((*SHAPE, 1), (3.0, 3.0, 3.0), num_coils, rng)[..., 0]
    row, column = np.meshgrid(*(np.arange(n) - n // 2 for n in SHAPE), indexing="ij")
    inside = torch.from_numpy((row / 28) ** 2 + (column / 24) ** 2 < 1)
    texture = 1 + 0.3 * torch.from_numpy(rng.random(SHAPE)).float()
    image = inside * texture * smooth_phase(SHAPE, 0.6, rng)
    return maps, inside, add_noise(to_kspace(maps * image), sigma, rng)


@pytest.mark.parametrize(
    ("num_coils", "lines", "least"), [(4, 24, 0.999), (8, 24, 0.999), (16, 16, 0.998), (8, 7, 0.99)]
)
def test_true_sensitivities_are_found(num_coils: int, lines: int, least: float) -> None:
    maps, inside, kspace = head(num_coils, 0.02)
    mask = draw_mask("equispaced", SHAPE[1:], 2, lines, default_rng(0)).expand(SHAPE)
    found = espirit_maps(kspace * mask, calibration_box(mask))
    torch.testing.assert_close(root_sum_of_squares(found), torch.ones(SHAPE))
    alike = (found.conj() * maps).sum(0).abs()[inside]  # up to a phase, which nobody can know
    assert float(alike.min()) > least


def test_they_agree_with_sigpys() -> None:
    app = pytest.importorskip("sigpy.mri.app")
    _, inside, kspace = head(6, 0.02)
    box = (slice(24, 48), slice(20, 44))
    ours = espirit_maps(kspace, box)
    theirs = torch.from_numpy(app.EspiritCalib(kspace.numpy(), calib_width=24, crop=0, show_pbar=False).run())
    alike = (ours.conj() * theirs).sum(0).abs()[inside]
    assert float(alike.min()) > 0.999


def test_images_combined_with_them_have_a_smooth_phase_and_all_of_the_signal() -> None:
    _, inside, kspace = head(8, 0.005)
    images = to_image(kspace)
    combined = (espirit_maps(kspace, (slice(24, 48), slice(20, 44))).conj() * images).sum(0)
    everything = root_sum_of_squares(images)
    assert float((combined.abs() / everything)[inside].min()) > 0.99
    inner = inside[1:] & inside[:-1]
    turn = (combined[1:] * combined[:-1].conj()).angle()[inner].abs()
    assert float(turn.max()) < 0.5


def test_air_is_cut_away_and_the_head_is_not() -> None:
    _, inside, kspace = head(8, 0.005)
    kept = espirit_maps(kspace, (slice(24, 48), slice(20, 44)), crop=0.9).abs().sum(0) > 0
    assert bool(kept[inside].all())
    assert float(kept.float().mean()) < 0.9


def test_the_filter_between_coils_is_what_projecting_every_window_gives() -> None:
    """The mean, over the windows a sample is in, of that window projected; k-space taken as periodic."""
    rng = default_rng(0)
    coils, rows, columns, (p, q) = 3, 9, 8, (3, 2)
    # A calibration area of few windows, so that they do not span everything.
    calibration = torch.from_numpy(rng.standard_normal((coils, 5, 4)) + 1j * rng.standard_normal((coils, 5, 4)))
    windows = [calibration[:, i : i + p, j : j + q].reshape(-1) for i in range(3) for j in range(3)]
    left, values, _ = torch.linalg.svd(torch.stack(windows, 1), full_matrices=False)
    kept = left[:, values > sensitivities.NULL_SPACE * values[0]]
    assert 0 < kept.shape[1] < coils * p * q

    y = torch.from_numpy(rng.standard_normal((coils, rows, columns)) + 1j * rng.standard_normal((coils, rows, columns)))
    expected = torch.zeros_like(y)
    for row in range(rows):
        for column in range(columns):
            at = torch.meshgrid((torch.arange(p) + row) % rows, (torch.arange(q) + column) % columns, indexing="ij")
            window = y[:, at[0], at[1]]
            expected[:, at[0], at[1]] += (kept @ (kept.mH @ window.reshape(-1))).reshape(window.shape) / (p * q)

    lags = sensitivities._projection(calibration, (p, q))
    waves = [sensitivities._waves(n, size, y) for n, size in ((rows, p), (columns, q))]
    matrices = torch.einsum("rd,abde,ce->abrc", waves[0], lags, waves[1])
    found = to_kspace(torch.einsum("abrc,brc->arc", matrices, to_image(y)))
    torch.testing.assert_close(found, expected)


def test_the_leading_eigenvector_is_the_decompositions() -> None:
    rng = default_rng(0)
    parts = torch.from_numpy(rng.standard_normal((20, 5, 5)) + 1j * rng.standard_normal((20, 5, 5)))
    matrices = parts @ parts.mH / 10
    towards = torch.ones(5, dtype=torch.complex128)
    vectors, values = sensitivities._leading(matrices, towards)
    expected_values, expected = torch.linalg.eigh(matrices)
    clear = expected_values[:, -2] < 0.8 * expected_values[:, -1]
    assert int(clear.sum()) > 10
    torch.testing.assert_close(values[clear], expected_values[clear, -1])
    alike = (vectors.conj() * expected[..., -1]).sum(-1).abs()
    torch.testing.assert_close(alike[clear], torch.ones_like(alike[clear]))
    product = (vectors.conj() * towards).sum(-1)
    torch.testing.assert_close(product.real, product.abs().to(product.real))


@pytest.mark.parametrize(("lines", "n"), [(24, 64), (7, 64), (8, 63), (5, 63), (64, 64)])
def test_calibration_lines_are_all_found(lines: int, n: int) -> None:
    mask = torch.zeros(n, dtype=torch.bool)
    start = (n - lines + 1) // 2
    mask[start : start + lines] = True
    row, column = calibration_box(mask.expand(20, n))
    assert (row.start, row.stop) == (0, 20)
    assert start <= column.start and column.stop <= start + lines
    assert column.stop - column.start >= lines - 1  # one may be left over at an end
    assert column.start <= n // 2 < column.stop


def test_a_box_in_two_axes_and_none_at_all() -> None:
    mask = draw_mask("poisson", (40, 48), 4, 12, default_rng(0))
    row, column = calibration_box(mask)
    assert bool(mask[row, column].all()) and min(row.stop - row.start, column.stop - column.start) >= 11
    nothing = expand_mask(torch.arange(32) % 4 == 0, (1,), 2).expand(32, 32)
    kspace = torch.ones(4, 32, 32, dtype=torch.complex64)
    with pytest.raises(InputError, match="calibration lines"):
        espirit_maps(kspace, calibration_box(nothing))


def test_one_coil_sees_everything() -> None:
    assert bool((espirit_maps(torch.ones(1, 8, 8, dtype=torch.complex64), (slice(0, 1), slice(0, 1))) == 1).all())
