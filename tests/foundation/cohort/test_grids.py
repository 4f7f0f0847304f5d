"""Volumes that know where they are: read at points, averaged in blocks, and random fields that do not know their grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine, from_matvec
from numpy.random import default_rng

from foundation.cohort.grids import block_mean, grid_mm, mm_axes, nearest_voxel, sample, smooth_noise

# Axes permuted, one reversed, three spacings.
AFFINE = from_matvec(np.array([[0.0, 0.0, -2.0], [1.5, 0.0, 0.0], [0.0, 3.0, 0.0]]), [10.0, -20.0, 5.0])


def test_grid_mm_is_the_affine_of_every_index():
    shape = (4, 3, 2)
    want = apply_affine(AFFINE, np.moveaxis(np.indices(shape), 0, -1))
    np.testing.assert_allclose(grid_mm(shape, AFFINE).numpy(), want, atol=1e-5)


def test_mm_axes_are_grid_mm_taken_apart():
    affine = from_matvec(np.diag([2.0, 3.0, 4.0]), [-7.0, 1.0, 2.0])
    together = np.stack(np.broadcast_arrays(*mm_axes((4, 3, 2), affine)), axis=-1)
    np.testing.assert_allclose(together, grid_mm((4, 3, 2), affine).numpy(), atol=1e-5)


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_sample_reads_a_linear_function_exactly_wherever_it_is_asked(padding):
    shape = (5, 6, 7)
    mm = grid_mm(shape, AFFINE)
    volume = torch.stack([mm @ torch.tensor([1.0, 2.0, -3.0]) + 4, mm[..., 0]])
    inside = torch.from_numpy(apply_affine(AFFINE, default_rng(0).uniform(0, 1, (3, 4, 5, 3)) * (4, 5, 6))).float()
    read = sample(volume, AFFINE, inside, padding=padding)
    torch.testing.assert_close(read[0], inside @ torch.tensor([1.0, 2.0, -3.0]) + 4, atol=1e-3, rtol=0)
    torch.testing.assert_close(read[1], inside[..., 0], atol=1e-3, rtol=0)


def test_beyond_a_volume_there_is_nothing_or_its_border():
    volume = torch.full((1, 3, 3, 3), 2.0)
    far = torch.full((1, 1, 1, 3), 1e3)
    assert sample(volume, AFFINE, far, padding="zeros").item() == 0
    assert sample(volume, AFFINE, far, padding="border").item() == 2


@pytest.mark.parametrize("block", [(2, 2, 2), (1, 3, 2), (4, 1, 1)])
def test_block_means_are_the_means_of_the_blocks_and_lie_at_their_middles(block):
    shape = (8, 6, 4)
    volume = torch.from_numpy(default_rng(0).random((2, *shape), dtype=np.float32))
    means, affine = block_mean(volume, AFFINE, *block)
    i, j, k = block
    for x, y, z in np.ndindex(8 // i, 6 // j, 4 // k):
        part = volume[:, x * i : (x + 1) * i, y * j : (y + 1) * j, z * k : (z + 1) * k]
        torch.testing.assert_close(means[:, x, y, z], part.mean(dim=(1, 2, 3)))
        middle = np.multiply((x, y, z), block) + (np.array(block) - 1) / 2
        np.testing.assert_allclose(apply_affine(affine, (x, y, z)), apply_affine(AFFINE, middle))


def test_smooth_noise_has_mean_0_and_deviation_1_and_is_as_smooth_as_its_scale():
    fine, coarse = (smooth_noise(default_rng(0), (80, 80, 80), 2.0, scale) for scale in (6.0, 24.0))
    assert fine.std() == pytest.approx(1, abs=0.05) and fine.mean() == pytest.approx(0, abs=0.1)
    # The slope of a field of deviation 1 goes with one over its scale.
    assert float(fine.diff(dim=1).std() / coarse.diff(dim=1).std()) == pytest.approx(4, rel=0.3)


def test_smooth_noise_is_the_same_field_on_a_grid_twice_as_fine():
    coarse = smooth_noise(default_rng(3), (11, 9, 7), 4.0, 12.0)
    fine = smooth_noise(default_rng(3), (21, 17, 13), np.array([2.0, 2.0, 2.0]), 12.0)
    torch.testing.assert_close(fine[::2, ::2, ::2], coarse)


def test_nearest_voxel_undoes_the_affine():
    point = tuple(int(value) for value in apply_affine(AFFINE, (2, 1, 3)))
    assert nearest_voxel(AFFINE, (point[0], point[1], point[2])) == (2, 1, 3)
