"""What a scan may lack, drawn from a complete one: the tasks that one network learns.

    spoilt = draw_task(raw, "ghost", rng)       spoilt.raw to reconstruct, spoilt.whole to compare with

Where samples are missing (acceleration, partial Fourier, a small matrix, noise) the samples that are there are true, and the
mask tells the network which. Thick slices, ghosts and motion spoil all samples of an image that somebody has already made:
one coil, a magnitude; the fault has a name, which the network is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from numpy.random import Generator
from torch import Tensor

from foundation.physics.artefacts import ZERO, Ghost, Motion
from foundation.physics.kspace import (
    add_noise,
    expand_mask,
    root_sum_of_squares,
    smooth_phase,
    to_image,
    to_kspace,
)
from foundation.raw import RawData
from foundation.reconstruction.command import Undersampling

LINES = ("equispaced", "equispaced", "random", "magic", "poisson")
CALIBRATED = (0.32, 0.64)  # of what is kept: as fastMRI, and twice that
LEAST_CALIBRATION = 5
ONE_COIL = 0.1  # how often an accelerated scan has but one
ALSO_PARTIAL = 0.15
DENOISING = (0.02, 0.12)  # noise of each part over the mean signal
SMALLER = (0.45, 0.9)
THICKER = (1.5, 4.0)
LEAST_SHOWN = 0.6  # of a frequency: what averaging left less of is not made larger, for it is noise


@dataclass(frozen=True)
class Spoilt:
    """A scan as it might come, and the complete one that it comes from, on the same grid."""

    raw: RawData
    whole: RawData
    fault: str | None = None


def draw_task(raw: RawData, task: str, rng: Generator, *, acceleration: tuple[float, float] = (2.0, 8.0)) -> Spoilt:
    """`raw` is complete, with its target."""
    if task == "acceleration":
        return _accelerated(raw, rng, acceleration)
    return TASKS[task](raw, rng)


def _accelerated(raw: RawData, rng: Generator, between: tuple[float, float]) -> Spoilt:
    if rng.random() < ONE_COIL:
        raw = one_coil(raw, rng)
    acceleration = float(np.exp(rng.uniform(*np.log(between))))
    kind = str(rng.choice(LINES))
    share = rng.uniform(*CALIBRATED) / acceleration
    lines = share * raw.shape[1] if kind != "poisson" else np.sqrt(share * min(raw.shape) ** 2)
    calibration = max(LEAST_CALIBRATION, round(lines))
    fraction = float(rng.uniform(0.65, 0.9)) if rng.random() < ALSO_PARTIAL and kind != "poisson" else None
    chosen = Undersampling(acceleration, kind, calibration, fraction, int(rng.integers(2**31)))
    return Spoilt(raw.keep(chosen.draw(raw)), raw)


def _partial(raw: RawData, rng: Generator) -> Spoilt:
    return Spoilt(raw.keep(Undersampling(partial_fourier=float(rng.uniform(0.625, 0.9))).draw(raw)), raw)


def _noisy(raw: RawData, rng: Generator) -> Spoilt:
    """More noise than the complete scan had; which is then what it had."""
    if rng.random() < 0.5:
        raw = one_coil(raw, rng)
    assert raw.target is not None and raw.sigma is not None
    bright = raw.target[raw.target > 0.05 * raw.target.max()].mean()
    sigma = float(bright) * rng.uniform(*DENOISING)
    kspace = add_noise(raw.kspace, sigma, rng)
    noise = 2 * (sigma**2 + raw.sigma**2) * torch.eye(raw.kspace.shape[1], dtype=torch.complex64)
    noisy = replace(raw, kspace=kspace, noise=noise)
    return Spoilt(noisy, noisy)


def _small(raw: RawData, rng: Generator) -> Spoilt:
    """A smaller matrix: an image that is blurred and rings, along one axis or both."""
    if rng.random() < 0.5:
        raw = one_coil(raw, rng)
    axes = rng.choice(3)
    mask = torch.ones(1, 1, dtype=torch.bool)
    for axis in (0, 1):
        if axes in (axis, 2):
            mask = mask & expand_mask(middle(raw.shape[axis], rng.uniform(*SMALLER)), (axis,), 2)
    return Spoilt(raw.keep(mask[None, None]), raw)


def middle(num: int, share: float) -> Bool[Tensor, "lines"]:
    """The middle `share` of `num` lines."""
    reach = max(2, round(share * num / 2))
    return (torch.arange(num) - num // 2).abs() < reach


def _thick(raw: RawData, rng: Generator) -> Spoilt:
    """Slices that are thicker along the columns than the pixels: for one axis of a volume, as seen in the other planes."""
    whole = as_magnitude(raw, rng)
    num = round(whole.shape[1] / rng.uniform(*THICKER))
    kspace, mask = thick_slices(whole.kspace, num)
    return Spoilt(replace(whole, kspace=kspace, mask=mask), whole, "thick slices")


def thick_slices(
    kspace: Complex[Tensor, "slices 1 rows columns"], num: int
) -> tuple[Complex[Tensor, "slices 1 rows columns"], Bool[Tensor, "1 1 1 columns"]]:
    """What is left when columns are averaged over n / `num` of them and shown once for each such box; and its mask.

    Averaging multiplies K[k] with sinc(k / num) (n / num columns wide, n columns in all), and taking one value of each box
    adds all frequencies that are `num` apart. The attenuation is then taken back, and what was added stays.
    """
    n = kspace.shape[-1]
    frequency = torch.arange(n) - n // 2
    averaged = kspace * torch.sinc(frequency / num)
    folded = torch.zeros_like(kspace[..., :num])
    folded.index_add_(-1, (frequency + num // 2) % num, averaged)
    return of_thick_slices(folded, n)


def of_thick_slices(
    kspace: Complex[Tensor, "slices 1 rows thick"], num: int
) -> tuple[Complex[Tensor, "slices 1 rows columns"], Bool[Tensor, "1 1 1 columns"]]:
    """The middle of `num` columns of k-space, what averaging over the thickness took from it taken back; and the mask."""
    thick = kspace.shape[-1]
    frequency = torch.arange(num) - num // 2
    inside = (frequency >= -(thick // 2)) & (frequency < thick - thick // 2)
    wide = kspace.new_zeros((*kspace.shape[:-1], num))
    wide[..., inside] = kspace / torch.sinc(frequency[inside] / thick).clamp(min=LEAST_SHOWN)
    return wide, inside.reshape(1, 1, 1, num)


def _ghost(raw: RawData, rng: Generator) -> Spoilt:
    ghost = Ghost.draw(int(rng.integers(1, 5)), rng, axis=1)
    return _artefact(raw, rng, ghost, "ghost")


def _motion(raw: RawData, rng: Generator) -> Spoilt:
    """In the plane alone: what comes in from other planes is not in the slice."""
    motion = Motion.draw(int(rng.integers(1, 5)), rng, axis=1)
    flat = replace(
        motion,
        rotations_deg=tuple((0.0, 0.0, turn[2]) for turn in motion.rotations_deg),
        shifts_mm=tuple((shift[0], shift[1], 0.0) for shift in motion.shifts_mm),
    )
    assert ZERO in flat.rotations_deg
    return _artefact(raw, rng, flat, "motion")


def _artefact(raw: RawData, rng: Generator, artefact: Ghost | Motion, name: str) -> Spoilt:
    """The artefact happens to the complex image, and noise comes after; then the magnitude is taken."""
    assert raw.target is not None and raw.sigma is not None and raw.affine is not None
    phase = smooth_phase(raw.shape, 0.6, rng)
    spacing_mm = np.linalg.norm(raw.affine[:3, :3], axis=0)
    volume = (raw.target * phase).permute(1, 2, 0)
    spoilt = artefact.apply(volume, spacing_mm).permute(2, 0, 1)
    return Spoilt(_of_magnitude(raw, spoilt, rng), as_magnitude(raw, rng), name)


def one_coil(raw: RawData, rng: Generator) -> RawData:
    """The same head as one coil would see it that sees evenly: the target with a phase, and noise."""
    assert raw.target is not None and raw.sigma is not None
    phase = torch.stack([smooth_phase(raw.shape, 0.6, rng) for _ in raw.target])
    kspace = add_noise(to_kspace(raw.target * phase)[:, None], raw.sigma, rng)
    return replace(raw, kspace=kspace, noise=2 * raw.sigma**2 * torch.eye(1, dtype=torch.complex64))


def as_magnitude(raw: RawData, rng: Generator) -> RawData:
    """A complete scan as what is left of it in most archives: a magnitude image, and its transform."""
    assert raw.target is not None
    return _of_magnitude(raw, raw.target.to(torch.complex64), rng)


def _of_magnitude(raw: RawData, images: Complex[Tensor, "slices rows columns"], rng: Generator) -> RawData:
    assert raw.sigma is not None
    noisy = to_image(add_noise(to_kspace(images)[:, None], raw.sigma, rng))
    shown: Float[Tensor, "slices rows columns"] = root_sum_of_squares(noisy, axis=1)
    return replace(raw, kspace=to_kspace(shown.to(torch.complex64))[:, None], noise=None)


TASKS: dict[str, Callable[[RawData, Generator], Spoilt]] = {
    "partial Fourier": _partial,
    "noise": _noisy,
    "small matrix": _small,
    "thick slices": _thick,
    "ghost": _ghost,
    "motion": _motion,
}
