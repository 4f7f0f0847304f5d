"""The field of magnetised tissue against the sphere's closed form, and what a susceptibility-weighted image shows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from foundation.physics.susceptibility import (
    GYROMAGNETIC_MHZ_PER_T,
    field_shift_ppm,
    phase_rad,
    susceptibility_weighted,
)

SHAPE, SPACING_MM, RADIUS_MM = (64, 60, 56), (1.0, 1.1, 1.2), 9.0


def places() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, y, z in mm from the middle voxel."""
    axes = [(torch.arange(n) - n // 2) * step for n, step in zip(SHAPE, SPACING_MM)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return x, y, z


@pytest.mark.parametrize("direction", [(0, 0, 1), (1, 0, 0), (0, math.sin(0.4), math.cos(0.4))])
def test_a_sphere_has_a_dipoles_field_outside_and_none_within(direction):
    """chi / 3 (a / r)^3 (3 cos^2 - 1) outside, 0 inside, the Lorentz sphere taken out (Haacke, Brown et al., chapter 25)."""
    x, y, z = places()
    r = (x**2 + y**2 + z**2).sqrt()
    shift = field_shift_ppm((r < RADIUS_MM).float(), SPACING_MM, np.array(direction))
    cosine = (x * direction[0] + y * direction[1] + z * direction[2]) / r.clamp(min=1e-6)
    expected = (RADIUS_MM / r.clamp(min=1)) ** 3 * (3 * cosine**2 - 1) / 3
    outside = (r > RADIUS_MM + 3) & (r < 22)
    # Of 1 ppm; the expected field reaches 0.28. A sphere of voxels has an uneven edge, hence two bounds.
    assert (shift - expected)[outside].abs().mean() < 0.003 and (shift - expected)[outside].abs().max() < 0.04
    assert shift[r < RADIUS_MM - 3].abs().mean() < 0.01


def test_uniform_tissue_shifts_nothing():
    assert field_shift_ppm(torch.full(SHAPE, -9.0), SPACING_MM, np.array([0, 0, 1.0])).abs().max() < 1e-5


def test_phase_is_the_turns_that_the_larmor_frequency_makes_until_the_echo():
    hertz = GYROMAGNETIC_MHZ_PER_T * 3.0 * 0.1  # 0.1 ppm of 127.7 MHz
    assert phase_rad(torch.tensor([0.1]), 3.0, 20.0).item() == pytest.approx(2 * math.pi * hertz * 0.020)


def test_smooth_phase_leaves_the_image_as_it_is_and_paramagnetic_detail_darkens_it():
    x, y, z = places()
    smooth = 0.05 * x + 0.002 * y * z
    detail = torch.zeros(SHAPE)
    detail[31:33, 30:32, :] = 1.0
    image = torch.polar(torch.ones(SHAPE), smooth + detail)
    shown = susceptibility_weighted(image, SPACING_MM)[8:-8, 8:-8, 8:-8]
    is_detail = detail[8:-8, 8:-8, 8:-8] > 0
    assert shown[is_detail].mean() < 0.5
    assert shown[~is_detail].mean() > 0.9
    # Diamagnetic detail, calcium for one, is not darkened.
    opposite = susceptibility_weighted(torch.polar(torch.ones(SHAPE), smooth - detail), SPACING_MM)[8:-8, 8:-8, 8:-8]
    assert opposite[is_detail].mean() > 0.9
