"""What a tissue's magnetism does to the phase of a gradient echo, and the susceptibility-weighted image made of it.

    field = field_shift_ppm(chi_ppm, spacing_mm, towards_field)
    signal = magnitude * torch.polar(torch.ones_like(field), phase_rad(field, field_t=3.0, te_ms=20.0))
    swi = susceptibility_weighted(signal, spacing_mm)

Susceptibilities are in ppm (SI, volume) relative to water; fields in tesla, times in ms. A stronger field gives a positive
phase here; vendors differ in that sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from foundation.physics.kspace import to_image, to_kspace, tukey

GYROMAGNETIC_MHZ_PER_T = 42.577

# Air and fat after Schenck 1996 (10.1118/1.597854: air 0.36, water -9.05, fat near -8.4); the rest are estimates of the
# sizes that susceptibility mapping reports. Tissues that are not named are like water.
SUSCEPTIBILITY_PPM = {
    "pallidum": 0.13,
    "striatum": 0.05,
    "grey_matter": 0.01,
    "white_matter": -0.03,
    "hindbrain_white": -0.02,
    "blood": 0.30,  # venous: deoxygenated haemoglobin
    "haemorrhage": 0.90,
    "ms_plaque": 0.02,
    "fat": 0.65,
    "marrow": 0.60,
    "bone": -2.0,
}
AIR_PPM = 9.41

LINES_PER_MM = 0.25  # of k-space, that count as slow: the usual 64 lines of a field of view of 256 mm


def field_shift_ppm(
    chi_ppm: Float[Tensor, "x y z"], spacing_mm: Sequence[float] | np.ndarray, towards_field: np.ndarray
) -> Float[Tensor, "x y z"]:
    """The change of the main field that magnetised tissue makes, in ppm of it: chi convolved with a dipole's field.

    In k-space a product with 1/3 - (k . b)^2 / k^2 (Salomir 2003, 10.1002/cmr.b.10083; Marques and Bowtell 2005,
    10.1002/cmr.b.20034), `towards_field` being the field's direction along the array's axes. What surrounds the volume is
    taken to be as its edge on average, and padding keeps its repetitions away.
    """
    direction = np.asarray(towards_field, float) / np.linalg.norm(towards_field)
    padded = [n + n // 2 for n in chi_ppm.shape]
    outside = float(torch.cat([chi_ppm.select(axis, end).flatten() for axis in range(3) for end in (0, -1)]).mean())
    spectrum = torch.fft.rfftn(chi_ppm - outside, s=padded)
    frequencies = [
        torch.fft.rfftfreq(n, step) if axis == 2 else torch.fft.fftfreq(n, step)
        for axis, (n, step) in enumerate(zip(padded, np.asarray(spacing_mm, float).tolist(), strict=True))
    ]
    kx, ky, kz = torch.meshgrid(*frequencies, indexing="ij")
    along = kx * direction[0] + ky * direction[1] + kz * direction[2]
    square = kx**2 + ky**2 + kz**2
    square[0, 0, 0] = 1.0  # the mean: no shift is defined for it
    kernel = 1 / 3 - along**2 / square
    kernel[0, 0, 0] = 0.0
    x, y, z = chi_ppm.shape
    return torch.fft.irfftn(spectrum * kernel, s=padded)[:x, :y, :z]


def phase_rad(shift_ppm: Float[Tensor, "*shape"], field_t: float, te_ms: float) -> Float[Tensor, "*shape"]:
    """What a field shift turns the signal by until the echo, not wrapped: 2 pi gamma B0 shift TE."""
    return 2 * math.pi * GYROMAGNETIC_MHZ_PER_T * field_t * (te_ms / 1000) * shift_ppm


def susceptibility_weighted(
    image: Complex[Tensor, "x y z"], spacing_mm: Sequence[float] | np.ndarray, *, power: int = 4
) -> Float[Tensor, "x y z"]:
    """The magnitude, darkened where the phase says paramagnetic (Haacke 2004, 10.1002/mrm.20198).

    The slowly varying phase of coils and air is the phase of the image from its central k-space (`LINES_PER_MM`, Hann
    window) and is taken out; the rest, from 0 to pi, becomes a mask from 1 to 0 that multiplies `power` times.
    """
    axes = (-3, -2, -1)
    kspace = to_kspace(image, axes)
    for axis, n, step in zip(axes, image.shape, np.asarray(spacing_mm, float).tolist(), strict=True):
        few = min(n, max(3, round(LINES_PER_MM * n * step)))
        window = torch.zeros(n)
        window[n // 2 - few // 2 : n // 2 - few // 2 + few] = tukey(few, 1.0)
        kspace = kspace * window.reshape(-1, *[1] * (-axis - 1))
    rest = (image * to_image(kspace, axes).conj()).angle()
    return image.abs() * (1 - rest.clamp(min=0) / math.pi) ** power
