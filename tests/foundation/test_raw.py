"""Raw data: what counts as complete, what is kept, noise made white, and where an image lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine
from numpy.random import default_rng

from foundation.errors import InputError
from foundation.physics.kspace import draw_mask, partial_fourier, to_image, to_kspace
from foundation.raw import RawData, from_volume, measured


def random_kspace(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.view_as_complex(torch.from_numpy(default_rng(seed).standard_normal((*shape, 2)).astype(np.float32)))


def of_mask(mask: torch.Tensor) -> RawData:
    """Two slices of 12 rows that were sampled so."""
    kspace = random_kspace(2, 3, 12, mask.shape[-1]) * mask
    return RawData(kspace, measured(kspace))


def test_the_mask_is_found_in_as_few_axes_as_it_needs() -> None:
    lines = torch.arange(16) % 3 == 0
    assert of_mask(lines).mask.shape == (1, 1, 1, 16) and torch.equal(of_mask(lines).mask.flatten(), lines)
    points = draw_mask("poisson", (12, 16), 2, 3, default_rng(0))
    assert torch.equal(of_mask(points).mask[0, 0], points)
    assert of_mask(torch.ones(16, dtype=torch.bool)).mask.shape == (1, 1, 1, 1)
    kspace = random_kspace(2, 3, 12, 16)
    kspace[0, ..., 3] = 0  # another mask for each slice
    assert measured(kspace).shape == (2, 1, 1, 16)


@pytest.mark.parametrize(
    ("lines", "complete"),
    [
        (torch.ones(16, dtype=torch.bool), True),
        ((torch.arange(16) >= 3) & (torch.arange(16) < 13), True),  # zero-filled to a larger matrix
        ((torch.arange(16) >= 3) & (torch.arange(16) < 15), True),
        (partial_fourier(16, 6 / 8), False),
        (torch.arange(16) % 2 == 0, False),
        (torch.arange(16) != 8, False),
    ],
)
def test_what_is_complete(lines: torch.Tensor, complete: bool) -> None:
    assert of_mask(lines).is_complete is complete


def test_a_disc_is_not_complete() -> None:
    row, column = torch.meshgrid(torch.arange(12) - 6, torch.arange(16) - 8, indexing="ij")
    assert not of_mask((row / 6) ** 2 + (column / 8) ** 2 < 1).is_complete


def test_keeping_never_adds_samples() -> None:
    raw = of_mask(torch.arange(16) % 2 == 0)
    kept = raw.keep((torch.arange(16) % 3 == 0)[None, None, None])
    assert torch.equal(kept.mask.flatten(), torch.arange(16) % 6 == 0)
    assert torch.equal(measured(kept.kspace), kept.mask)
    assert kept.acceleration == pytest.approx(16 / 3)


def test_whitened_noise_is_white_and_of_the_mean_size() -> None:
    rng, coils = default_rng(0), 4
    mixing = torch.from_numpy(rng.standard_normal((coils, coils)) + 1j * rng.standard_normal((coils, coils)))
    covariance = (mixing @ mixing.mH).to(torch.complex64)
    white = random_kspace(1, coils, 100, 100, seed=1) / 2**0.5
    noise = torch.einsum("ab,sbrc->sarc", mixing.to(torch.complex64), white)
    raw = RawData(noise, torch.ones(1, 1, 1, 1, dtype=torch.bool), noise=covariance)
    samples = raw.whitened().kspace[0].flatten(1)
    found = samples @ samples.mH / samples.shape[1]
    size = float(covariance.diagonal().real.mean())
    torch.testing.assert_close(found / size, torch.eye(coils, dtype=torch.complex64), atol=0.05, rtol=0)
    again = raw.whitened()
    assert again.sigma == pytest.approx(raw.sigma)
    torch.testing.assert_close(again.whitened().kspace, again.kspace)
    assert RawData(noise, raw.mask).whitened().kspace is noise


def test_a_broken_coils_noise_is_an_input_error() -> None:
    raw = RawData(random_kspace(1, 2, 8, 8), torch.ones(1, 1, 1, 1, dtype=torch.bool), noise=torch.ones(2, 2) + 0j)
    with pytest.raises(InputError, match="inverted"):
        raw.whitened()


def test_what_is_shown_keeps_its_place() -> None:
    affine = np.array([[0, 2.0, 0, -10], [-1.5, 0, 0, 20], [0, 0, 4.0, 5], [0, 0, 0, 1]])
    raw = RawData(
        random_kspace(3, 1, 12, 17), torch.ones(1, 1, 1, 1, dtype=torch.bool), image_shape=(8, 10), affine=affine,
        side_is_known=True,
    )  # fmt: skip
    images = torch.arange(3 * 12 * 17, dtype=torch.float32).reshape(3, 12, 17)
    series = raw.series(raw.shown(images), "one")
    assert series.shape == (8, 10, 3) and series.side_is_known
    index = np.array([2, 4, 1])
    value = series.voxels[tuple(index)]
    full = np.argwhere(images.permute(1, 2, 0).numpy() == value)[0]
    np.testing.assert_allclose(apply_affine(series.affine, index), apply_affine(affine, full))
    unknown = RawData(raw.kspace, raw.mask).series(images)
    assert not unknown.side_is_known and unknown.spacing_mm.tolist() == [1, 1, 1]


def test_a_volume_is_planes_along_its_readout() -> None:
    image = random_kspace(2, 6, 8, 10)
    planes = from_volume(to_kspace(image, (1, 2, 3)))
    assert planes.shape == (6, 2, 8, 10)
    torch.testing.assert_close(to_image(planes), image.movedim(1, 0), atol=1e-5, rtol=1e-5)
