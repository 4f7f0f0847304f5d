"""Cartesian multi-coil k-space: what coils see, which samples are taken, noise, resolution, and the way back.

    operator = SenseOperator(coil_maps(shape, spacing_mm, 8, rng)[..., z], expand_mask(mask, axes=(1,), num_axes=2))
    kspace = operator.acquire(image, sigma, rng)
    zero_filled = operator.adjoint(kspace)

Conventions. The transform is centred and orthonormal: index n // 2 of an axis is the origin of space and of frequency, and
white noise of standard deviation sigma has the same sigma on both sides. The coil axis lies directly before the axes that
are transformed, and these are the last ones, so `(slices, coils, rows, columns)` as fastMRI stores it is a batch of 2-D
acquisitions and `(coils, x, y, z)` one 3-D acquisition. A mask is True where a sample is taken.

Images are complex, as a scanner's are before the magnitude is taken: training on the Fourier transform of a magnitude
image flatters a reconstruction (Shimron et al., arXiv 2109.08237). Every draw takes a numpy generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from numpy.random import Generator
from scipy.special import ellipe, ellipk
from torch import Tensor

from foundation.errors import InputError, did_you_mean

# ------------------------------------------------------------------------------------------------------- The transform


def to_kspace(image: Complex[Tensor, "*shape"], axes: Sequence[int] = (-2, -1)) -> Complex[Tensor, "*shape"]:
    """K[k] = 1/sqrt(N) sum_r x[r] exp(-2 pi i k r / N) along each of `axes`, k and r counted from index N // 2."""
    axes = tuple(axes)
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(image, axes), dim=axes, norm="ortho"), axes)


def to_image(kspace: Complex[Tensor, "*shape"], axes: Sequence[int] = (-2, -1)) -> Complex[Tensor, "*shape"]:
    """The inverse of `to_kspace`, and its adjoint, since the transform is unitary."""
    axes = tuple(axes)
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(kspace, axes), dim=axes, norm="ortho"), axes)


# --------------------------------------------------------------------------------------------------------------- Coils

MIN_COILS, MAX_COILS = 4, 16
ONE_RING = 8  # up to so many coils stand in one ring around the head, more in two
RING_SEPARATION_MM = 90.0  # between two rings, along the bore
MAX_LOOP_RADIUS_MM = 70.0
WIRE_RADIUS_MM = 5.0  # closer than this to the wire its field no longer grows


def coil_maps(
    shape: Sequence[int],
    spacing_mm: Sequence[float] | np.ndarray,
    num_coils: int,
    generator: Generator,
    *,
    bore_axis: int = 2,
    radii_mm: tuple[float, float] = (120.0, 145.0),
    centre_mm: Sequence[float] = (0.0, 0.0, 0.0),
) -> Complex[Tensor, "coils x y z"]:
    """Receive sensitivities of circular loops that stand around the head and face it.

    By reciprocity a coil receives with Bx - i By of the field that a unit current in it would make, z being the bore. The
    maps are divided by their root sum of squares, which is therefore 1 at every voxel: coils differ in where they see and
    in phase, and the receive field common to all of them is left to `artefacts.BiasField`. `radii_mm` are the half
    axes of the ellipse of coils, for the two axes other than `bore_axis` in their order; `centre_mm` is where the middle
    of the field of view lies from the middle of the coils, for one slice of a head.
    """
    if not MIN_COILS <= num_coils <= MAX_COILS:
        raise InputError(
            f"a head has {MIN_COILS} to {MAX_COILS} coils around it", got=num_coils, remedy="Change num_coils."
        )
    across, down = (axis for axis in range(3) if axis != bore_axis)
    points_mm = np.stack(
        np.meshgrid(
            *((np.arange(n) - (n - 1) / 2) * step + at for n, step, at in zip(shape, spacing_mm, centre_mm)),
            indexing="ij",
        ),
        axis=-1,
    )[..., (across, down, bore_axis)]
    rings = np.array_split(np.arange(num_coils), 1 if num_coils <= ONE_RING else 2)
    start = generator.uniform(0, 2 * math.pi)
    maps = []
    for ring, coils in enumerate(rings):
        step = 2 * math.pi / len(coils)
        loop_radius_mm = min(MAX_LOOP_RADIUS_MM, 0.6 * step * float(np.mean(radii_mm)))  # neighbours overlap a little
        height_mm = (ring - (len(rings) - 1) / 2) * RING_SEPARATION_MM
        for i in range(len(coils)):
            angle = start + step * (i + ring / 2 + generator.uniform(-0.1, 0.1))  # the second ring covers the gaps
            direction = np.array([math.cos(angle), math.sin(angle), 0.0])
            at_mm = direction * (*radii_mm, 0.0) * generator.uniform(0.95, 1.05) + (0.0, 0.0, height_mm)
            facing = -direction + generator.normal(0, 0.1, 3)
            field = loop_field(points_mm - at_mm, facing / np.linalg.norm(facing), loop_radius_mm)
            phase = np.exp(1j * generator.uniform(0, 2 * math.pi))  # cables and preamplifiers
            maps.append((field[..., 0] - 1j * field[..., 1]) * phase)
    stacked = torch.from_numpy(np.stack(maps))
    return (stacked / root_sum_of_squares(stacked).clamp(min=1e-30)).to(torch.complex64)


def loop_field(offset_mm: np.ndarray, normal: np.ndarray, radius_mm: float) -> np.ndarray:
    """The magnetic field `(..., 3)` of a circular loop at `offset_mm` from its centre, per mu0 I, in 1/mm.

    Biot and Savart's integral in closed form: with a the radius, z along the normal, rho from it, and complete elliptic
    integrals K and E of m = 1 - alpha^2 / beta^2, where alpha^2 and beta^2 = (a -+ rho)^2 + z^2,

        B_z   = [(a^2 - rho^2 - z^2) E + alpha^2 K] / (2 pi alpha^2 beta)
        B_rho = [(a^2 + rho^2 + z^2) E - alpha^2 K] z / (2 pi alpha^2 beta rho).
    """
    z = offset_mm @ normal
    radial = offset_mm - z[..., None] * normal
    # On the axis B_rho is 0 / 0, and its limit is zero: so close to it, the formula has come near enough to that.
    rho = np.maximum(np.linalg.norm(radial, axis=-1), 1e-4 * radius_mm)
    squared = rho**2 + z**2
    alpha2 = np.maximum((radius_mm - rho) ** 2 + z**2, WIRE_RADIUS_MM**2)
    beta2 = (radius_mm + rho) ** 2 + z**2
    m = np.maximum(1 - alpha2 / beta2, 0)
    k, e = ellipk(m), ellipe(m)
    scale = 1 / (2 * math.pi * alpha2 * np.sqrt(beta2))
    along = scale * ((radius_mm**2 - squared) * e + alpha2 * k)
    outward = scale * ((radius_mm**2 + squared) * e - alpha2 * k) * z / rho
    return along[..., None] * normal + (outward / rho)[..., None] * radial


def root_sum_of_squares(coil_images: Complex[Tensor, "..."], axis: int = 0) -> Float[Tensor, "..."]:
    """The magnitude image of all coils when nobody knows their maps; in air it is biased by the noise of every coil."""
    return torch.linalg.vector_norm(coil_images, dim=axis)


def combine(
    coil_images: Complex[Tensor, "*shape"], maps: Complex[Tensor, "*#shape"], axis: int = 0
) -> Complex[Tensor, "..."]:
    """The least-squares image of all coils, sum conj(S) x / sum |S|^2: phase kept, noise white and not biased."""
    return (maps.conj() * coil_images).sum(axis) / maps.abs().square().sum(axis).clamp(min=1e-12)


@dataclass(frozen=True)
class SenseOperator:
    """A = mask . transform . maps, from an image to the samples that coils take of it (Pruessmann 1999).

    `num_axes` last axes are transformed, the axis before them is the coils', and any before that are a batch. `mask`
    broadcasts against k-space; `expand_mask` gives it that shape.
    """

    maps: Complex[Tensor, "..."]
    mask: Bool[Tensor, "..."]
    num_axes: Literal[2, 3] = 2

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(range(-self.num_axes, 0))

    def _coils(self, image: Complex[Tensor, "..."]) -> Complex[Tensor, "..."]:
        """Fully sampled k-space of every coil."""
        return to_kspace(self.maps * image.unsqueeze(-self.num_axes - 1), self.axes)

    def forward(self, image: Complex[Tensor, "..."]) -> Complex[Tensor, "..."]:
        """A x, zero where no sample is taken."""
        return self.mask * self._coils(image)

    def adjoint(self, kspace: Complex[Tensor, "..."]) -> Complex[Tensor, "..."]:
        """A^H y: the zero-filled image, since the maps' squares sum to one."""
        return (self.maps.conj() * to_image(self.mask * kspace, self.axes)).sum(-self.num_axes - 1)

    def normal(self, image: Complex[Tensor, "..."]) -> Complex[Tensor, "..."]:
        """A^H A x, what conjugate gradients need, three to four times as fast as `forward` and `adjoint` one after the other.

        Nothing is shifted: a centred transform is D F C with diagonal D and C of modulus one, D cancels against D^H around
        the mask, and C is multiplied into the maps once. Along an axis that the mask does not depend on the two transforms
        cancel as well. One coil at a time, so that what is worked on stays in the processor's cache.
        """
        maps, conjugates, axes = self._centred
        coil_axis = -self.num_axes - 1
        weight = self.mask.to(image.real)
        if weight.ndim > self.num_axes:
            weight = weight.squeeze(coil_axis)
        total = torch.zeros((), dtype=image.dtype, device=image.device)
        for one, conjugate in zip(maps.unbind(coil_axis), conjugates.unbind(coil_axis)):
            seen = one * image
            seen = torch.fft.ifftn(torch.fft.fftn(seen, dim=axes).mul_(weight), dim=axes) if axes else seen * weight
            total = torch.addcmul(total, seen, conjugate)
        return total

    @cached_property
    def _centred(self) -> tuple[Complex[Tensor, "..."], Complex[Tensor, "..."], tuple[int, ...]]:
        """The maps times C, their conjugates, and the axes along which the mask differs.

        With the origin of both sides at c = n // 2, exp(-2 pi i (k - c)(r - c) / n) is exp(2 pi i c r / n), which is C,
        times exp(-2 pi i k r / n) times what depends on k alone, which is D.
        """
        axes = tuple(axis for axis in self.axes if self.mask.ndim >= -axis and self.mask.shape[axis] > 1)
        maps = self.maps
        for axis in axes:
            n = maps.shape[axis]
            turn = 2 * math.pi * ((n // 2) * torch.arange(n, dtype=torch.float64, device=maps.device) % n) / n
            maps = maps * torch.polar(torch.ones_like(turn), turn).to(maps).reshape(-1, *[1] * (-axis - 1))
        return maps, maps.conj().resolve_conj(), axes

    def acquire(self, image: Complex[Tensor, "..."], sigma: float, generator: Generator) -> Complex[Tensor, "..."]:
        """A x with noise. It is drawn for all of k-space, then masked: two masks see the same noise where both sample."""
        return self.mask * add_noise(self._coils(image), sigma, generator)


# --------------------------------------------------------------------------------------------------------------- Masks

PARTIAL_FOURIER = (5 / 8, 1.0)  # below 5/8 too few lines lie around the centre to estimate the phase from
MAGIC_LAG = 2  # lines by which the two sides of a magic mask differ in |k|, as in fastMRI
DENSITY_SLOPE = (
    2.0  # a Poisson disc's radius is 1 + DENSITY_SLOPE times as large at the end of an axis as at the centre
)
BISECTIONS = 14


def draw_mask(
    kind: str, shape: Sequence[int], acceleration: int | float, calibration: int | float, generator: Generator
) -> Bool[Tensor, "..."]:
    """Which lines (`shape` has one phase-encoding axis) or points (Poisson disc, two) of k-space are sampled.

    `calibration` is the fully sampled centre along each axis: an int counts lines, a float is a fraction of them. All
    samples, calibration included, number round(N / acceleration) of N; a magic mask may miss that by two lines.

    random      the lines outside the calibration are any, all equally likely
    equispaced  they are equally spaced on each side of it; the spacing need not be whole and exceeds the acceleration, so
                that the total is right (fastMRI's `equispaced_fraction`)
    magic       equispaced in |k|, the negative side two lines off the positive: for an image of smooth phase, where
                K[-k] is about conj K[k], the two sides interleave (Defazio 2019; fastMRI's `magic_fraction`)
    poisson     random points that keep a distance from each other, which grows away from the centre
    """
    if kind not in MASKS:
        raise InputError("a mask is one of the known kinds", got=repr(kind), remedy=did_you_mean(kind, MASKS))
    draw, num_axes = MASKS[kind]
    shape = tuple(shape)
    if len(shape) != num_axes:
        raise InputError(
            f"a '{kind}' mask has {num_axes} phase-encoding {'axis' if num_axes == 1 else 'axes'}",
            got=f"shape {shape}",
            remedy="Give the number of lines along each of them.",
        )
    if not acceleration >= 1:
        raise InputError(
            "an acceleration is at least 1", got=acceleration, remedy="1 samples everything, 4 every fourth line."
        )
    counts = calibration_counts(shape, calibration)
    target = round(math.prod(shape) / acceleration)
    if math.prod(counts) > target:
        raise InputError(
            f"the calibration fits into the {target} samples that acceleration {acceleration:g} leaves of {shape}",
            got=f"{math.prod(counts)} calibration samples",
            remedy="Lower the calibration or the acceleration.",
        )
    if target == 0:
        raise InputError(
            "a mask takes at least one sample", got=f"acceleration {acceleration:g} of {shape}", remedy="Lower it."
        )
    centre = tuple(_centre(n, count) for n, count in zip(shape, counts))
    return torch.from_numpy(draw(shape, target, centre, generator))


def calibration_counts(shape: Sequence[int], calibration: int | float) -> tuple[int, ...]:
    """The number of calibration lines along each axis, at most all of them."""
    if calibration < 0 or (isinstance(calibration, float) and calibration > 1):
        raise InputError(
            "calibration is a whole number of lines, or a fraction of them between 0.0 and 1.0",
            got=calibration,
            remedy="Write 24 for lines; as a fraction fastMRI has 0.08 at acceleration 4 and 0.04 at 8.",
        )
    return tuple(min(n, calibration if isinstance(calibration, int) else round(calibration * n)) for n in shape)


def _centre(num: int, count: int) -> slice:
    """The `count` of `num` lines around the zero frequency, which is one of them if there are any; fastMRI's rounding."""
    start = (num - count + 1) // 2
    return slice(start, start + count)


def _calibrated(shape: tuple[int, ...], centre: tuple[slice, ...]) -> np.ndarray:
    chosen = np.zeros(shape, dtype=bool)
    chosen[centre] = True
    return chosen


def _random(shape: tuple[int, ...], target: int, centre: tuple[slice, ...], generator: Generator) -> np.ndarray:
    chosen = _calibrated(shape, centre)
    outside = np.flatnonzero(~chosen)
    chosen[generator.choice(outside, target - chosen.sum(), replace=False)] = True
    return chosen


def _equispaced(shape: tuple[int, ...], target: int, centre: tuple[slice, ...], generator: Generator) -> np.ndarray:
    chosen = _calibrated(shape, centre)
    outside = np.flatnonzero(~chosen)
    missing = target - int(chosen.sum())
    position = (np.arange(missing) + generator.random()) * (len(outside) / max(missing, 1))
    chosen[outside[np.minimum(position.astype(int), len(outside) - 1)]] = True
    return chosen


def _magic(shape: tuple[int, ...], target: int, centre: tuple[slice, ...], generator: Generator) -> np.ndarray:
    (num,), (lines,) = shape, centre
    chosen = _calibrated(shape, centre)
    missing = target - int(chosen.sum())
    if missing == 0:
        return chosen
    above, below = np.arange(lines.stop, num), np.arange(lines.start)[::-1]  # each from the centre outwards
    spacing = (len(above) + len(below)) / missing
    first_above, first_below = lines.stop - num // 2, num // 2 - lines.start + 1  # |k| where each side begins
    offset = generator.uniform(0, spacing)
    lag = MAGIC_LAG if generator.random() < 0.5 else -MAGIC_LAG
    for side, first in ((above, offset), (below, offset + lag + first_above - first_below)):
        position = np.arange(first % spacing, len(side), spacing)
        chosen[side[position[position < len(side)].astype(int)]] = True
    return chosen


def _poisson(shape: tuple[int, ...], target: int, centre: tuple[slice, ...], generator: Generator) -> np.ndarray:
    """Find the scale of the radii that gives enough samples but few too many, then leave some of those out again."""
    relative = poisson_radius(shape)
    order = generator.permutation(math.prod(shape))
    dense, sparse = 0.0, float(max(shape))  # scales that give too many and too few; the first takes everything
    best = np.ones(shape, dtype=bool)
    for _ in range(BISECTIONS):
        scale = (dense + sparse) / 2
        chosen = poisson_disc(scale * relative, order, centre)
        if chosen.sum() >= target:
            dense, best = scale, chosen
        else:
            sparse = scale
    removable = np.flatnonzero(best & ~_calibrated(shape, centre))
    best.flat[generator.choice(removable, int(best.sum()) - target, replace=False)] = False
    return best


def poisson_radius(shape: tuple[int, ...]) -> Float[np.ndarray, "rows columns"]:
    """How the distance between samples grows from 1 at the centre of k-space, before it is scaled to an acceleration."""
    row, column = ((np.arange(n) - n // 2) / (n / 2) for n in shape)
    return 1 + DENSITY_SLOPE * np.hypot(row[:, None], column[None])


def poisson_disc(
    radius: Float[np.ndarray, "rows columns"], order: np.ndarray, centre: tuple[slice, ...]
) -> Bool[np.ndarray, "rows columns"]:
    """Samples with nobody within the `radius` (in lines) around any of them, and the calibration area besides.

    Points are visited in `order` and taken unless they lie in the disc of one taken before. So two samples are at least
    the smaller of their radii apart, and no point is left that could be added. The calibration blocks nobody.
    """
    rows, columns = radius.shape
    reach = math.ceil(radius.max())
    squared = np.arange(-reach, reach + 1)[:, None] ** 2 + np.arange(-reach, reach + 1)[None] ** 2
    blocked = _calibrated((rows, columns), centre)
    chosen = blocked.copy()
    radii = radius.ravel().tolist()
    for point in order.tolist():
        row, column = divmod(point, columns)
        if blocked[row, column]:
            continue
        chosen[row, column] = True
        r = math.ceil(radii[point])
        top, bottom = max(row - r, 0), min(row + r + 1, rows)
        left, right = max(column - r, 0), min(column + r + 1, columns)
        distance = squared[top - row + reach : bottom - row + reach, left - column + reach : right - column + reach]
        blocked[top:bottom, left:right] |= distance < radii[point] ** 2
    return chosen


MaskDraw = Callable[[tuple[int, ...], int, tuple[slice, ...], Generator], np.ndarray]
MASKS: dict[str, tuple[MaskDraw, int]] = {  # how to draw each kind, and its number of phase-encoding axes
    "random": (_random, 1),
    "equispaced": (_equispaced, 1),
    "magic": (_magic, 1),
    "poisson": (_poisson, 2),
}


def partial_fourier(num: int, fraction: float, drop: Literal["low", "high"] = "high") -> Bool[Tensor, "lines"]:
    """A mask that leaves out one end of a phase-encoding axis; multiply it with any other mask of that axis.

    round(fraction * num) lines are kept. `drop` says whether the most negative or the most positive frequencies go.
    """
    least, most = PARTIAL_FOURIER
    if not least <= fraction <= most:
        raise InputError(
            f"a partial Fourier fraction lies between {least:g} and {most:g}",
            got=fraction,
            remedy="Scanners offer 5/8, 6/8 and 7/8.",
        )
    index, kept = torch.arange(num), round(fraction * num)
    return index < kept if drop == "high" else index >= num - kept


def expand_mask(mask: Bool[Tensor, "..."], axes: Sequence[int], num_axes: int) -> Bool[Tensor, "..."]:
    """A mask over the phase-encoding `axes` (ascending, from 0) as one that broadcasts over all `num_axes` axes."""
    assert list(axes) == sorted(axes) and len(axes) == mask.ndim, (axes, mask.shape)
    shape = [1] * num_axes
    for axis, n in zip(axes, mask.shape):
        shape[axis] = n
    return mask.reshape(shape)


# ------------------------------------------------------------------------------------------ Noise, resolution, phase


def add_noise(kspace: Complex[Tensor, "*shape"], sigma: float, generator: Generator) -> Complex[Tensor, "*shape"]:
    """Thermal noise: white, Gaussian, `sigma` in the real and as much in the imaginary part, independent between coils.

    An image then has Rician magnitude in tissue, and Rayleigh in air: mean sigma sqrt(pi / 2).
    """
    if not sigma >= 0:
        raise InputError("the noise's sigma is not negative", got=sigma, remedy="0 adds none.")
    noise = generator.standard_normal((*kspace.shape, 2), dtype=np.float32)
    return kspace + sigma * torch.view_as_complex(torch.from_numpy(noise)).to(kspace)


def crop(kspace: Complex[Tensor, "..."], shape: Sequence[int], taper: float = 0.0) -> Complex[Tensor, "..."]:
    """The centre of k-space along the last axes: the same field of view in fewer, larger voxels of the same brightness.

    Brightness is kept by the factor sqrt(new / old number of voxels), so the noise of a voxel falls by it, as it does for
    larger voxels. A sharp cut rings at edges; `taper` is the fraction of each half axis over which the samples that
    are kept fall to zero (`tukey`). An axis that is not cut is not tapered.
    """
    old = kspace.shape[kspace.ndim - len(shape) :]
    if any(new > was or new < 1 for new, was in zip(shape, old)):
        raise InputError(
            f"a crop of k-space has between 1 and {tuple(old)} samples along the axes",
            got=tuple(shape),
            remedy="Use zero_pad to interpolate.",
        )
    for axis, (new, was) in enumerate(zip(shape, old), start=-len(shape)):
        if new == was:
            continue
        kspace = kspace.narrow(axis, was // 2 - new // 2, new)
        window = tukey(new, taper).to(kspace.real).reshape(-1, *[1] * (-axis - 1))
        kspace = kspace * (window * math.sqrt(new / was))
    return kspace


def crop_field_of_view(kspace: Complex[Tensor, "..."], num: int, axis: int) -> Complex[Tensor, "..."]:
    """The middle `num` places of the image along one axis, as k-space: what removes the oversampling of a readout.

    Voxels stay as large and as bright, and noise keeps its sigma. Only for an axis of which every sample was taken.
    """
    places = to_image(kspace, (axis,))
    n = places.shape[axis]
    assert num <= n, (num, n)
    return to_kspace(places.narrow(axis, n // 2 - num // 2, num), (axis,))


def zero_pad(kspace: Complex[Tensor, "..."], shape: Sequence[int]) -> Complex[Tensor, "..."]:
    """Zeros around k-space along the last axes: the image interpolated to more voxels, brightness kept.

    Undoes no crop but comes closest: `crop(zero_pad(y))` is y, and the adjoint of an untapered crop is zero_pad times
    the ratio of new to old voxels, below 1.
    """
    old = kspace.shape[kspace.ndim - len(shape) :]
    assert all(new >= was for new, was in zip(shape, old)), (shape, old)
    padding = []
    for new, was in zip(reversed(shape), reversed(old)):  # torch counts padding from the last axis
        before = new // 2 - was // 2
        padding += [before, new - was - before]
    return torch.nn.functional.pad(kspace, padding) * math.sqrt(math.prod(shape) / math.prod(old))


def tukey(num: int, taper: float) -> Float[Tensor, "num"]:
    """1 in the middle, then half a cosine over the outer fraction `taper` of either side: 0 cuts, 1 is a Hann window."""
    if not 0 <= taper <= 1:
        raise InputError("a taper is a fraction between 0 and 1", got=taper, remedy="0 cuts sharply, 0.3 hardly rings.")
    distance = (torch.arange(num, dtype=torch.float64) - num // 2).abs() / (num / 2)
    into = ((distance - (1 - taper)) / max(taper, 1e-9)).clamp(0, 1)
    return (0.5 * (1 + torch.cos(math.pi * into))).float()


def smooth_field(shape: Sequence[int], generator: Generator, order: int = 3) -> Float[Tensor, "..."]:
    """A random smooth real field of zero mean and unit standard deviation over the field of view.

    A sum of products of cosines, cos(pi a (r + 1/2) / n) for a up to `order` along each axis, with normal coefficients
    over 1 + |a|^2. How many are drawn does not depend on `shape`: the same seed gives the same field on any grid.
    """
    coefficient = generator.standard_normal((order + 1,) * len(shape))
    coefficient /= 1 + np.square(np.indices(coefficient.shape)).sum(0)
    coefficient.flat[0] = 0
    field = torch.from_numpy(coefficient)
    for n in shape:  # contracts the first axis of what is left and appends the new one
        cosine = torch.cos(
            math.pi * torch.arange(order + 1)[:, None] * (torch.arange(n, dtype=torch.float64) + 0.5) / n
        )
        field = field.movedim(0, -1) @ cosine
    field = field - field.mean()
    return (field / field.std(correction=0).clamp(min=1e-12)).float()


def smooth_phase(shape: Sequence[int], std_rad: float, generator: Generator, order: int = 3) -> Complex[Tensor, "..."]:
    """exp(i phi), to multiply an image with: any constant phase, and a smooth one of `std_rad` from off-resonance."""
    phase = generator.uniform(0, 2 * math.pi) + std_rad * smooth_field(shape, generator, order)
    return torch.polar(torch.ones_like(phase), phase)
