"""What goes wrong in an examination, at five severities each: drawn first, applied after, kept as truth.

    artefact = draw_artefact("motion", severity=3, generator=rng)
    spoilt = artefact.apply(volume, spacing_mm)
    truth = {"kind": artefact.kind, "severity": artefact.severity, **artefact.parameters}

Artefacts act on a complex volume, before noise is added and the magnitude is taken, and keep its grid; they return a new
tensor. `draw` knows nothing of the volume and `apply` draws nothing that is not fixed by the parameters, so that a volume
can be spoilt again from its truth. A strength is relative to the volume's own signal where that is the natural unit.
A severity is our scale, not a standard's: 1 is hardly visible, 3 disturbs, 5 makes the image useless.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Complex, Float
from numpy.random import Generator, default_rng
from torch import Tensor

from foundation.errors import InputError, did_you_mean
from foundation.physics.kspace import add_noise, smooth_field, to_image, to_kspace

SEVERITIES = (1, 2, 3, 4, 5)
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Artefact(ABC):
    """One artefact with everything that was drawn for it. The fields of a subclass are its physical parameters."""

    severity: int

    kind: ClassVar[str]
    LEVELS: ClassVar[tuple[Any, ...]]  # the physical strength at each severity

    @classmethod
    @abstractmethod
    def draw(cls, severity: int, generator: Generator, axis: int | None = None) -> Artefact:
        """One artefact of this kind; along the phase-encoding `axis` where it has one, any of the three if None."""

    @abstractmethod
    def apply(
        self, volume: Complex[Tensor, "x y z"], spacing_mm: Sequence[float] | np.ndarray
    ) -> Complex[Tensor, "x y z"]:
        """The volume as it comes out with the artefact."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The drawn values by name, for truth files: numbers and tuples of numbers."""
        values = asdict(self)
        del values["severity"]
        return values

    @classmethod
    def level(cls, severity: int) -> Any:
        """The physical strength of a severity."""
        if severity not in SEVERITIES:
            raise InputError("a severity is a whole number from 1 to 5", got=severity, remedy="3 is the middle.")
        return cls.LEVELS[severity - 1]


def draw_artefact(kind: str, severity: int, generator: Generator, axis: int | None = None) -> Artefact:
    """An artefact of one of the `ARTEFACTS`."""
    if kind not in ARTEFACTS:
        raise InputError("an artefact is one of the known kinds", got=repr(kind), remedy=did_you_mean(kind, ARTEFACTS))
    return ARTEFACTS[kind].draw(severity, generator, axis)


def signal_level(volume: Complex[Tensor, "x y z"]) -> float:
    """What counts as the volume's signal: the mean magnitude of the voxels above the mean, which leaves air out."""
    magnitude = volume.abs()
    return float(magnitude[magnitude >= magnitude.mean()].mean())


def _axis(axis: int | None, generator: Generator) -> int:
    """The phase-encoding axis. It is drawn in any case, so that fixing it changes nothing else of the draw."""
    drawn = int(generator.integers(3))
    if axis not in (None, 0, 1, 2):
        raise InputError("a phase-encoding axis is 0, 1 or 2", got=axis, remedy="None draws one.")
    return drawn if axis is None else axis


def _direction(generator: Generator) -> np.ndarray:
    vector = generator.standard_normal(3)
    return vector / np.linalg.norm(vector)


def _vector(values: np.ndarray) -> Vector:
    x, y, z = (float(value) for value in values)
    return (x, y, z)


# -------------------------------------------------------------------------------------------------------------- Motion

STILL = 0.04  # the lines closer to the centre than this fraction of all come from one position
ZERO: Vector = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Motion(Artefact):
    """The head moves between segments of k-space, which are lines in order along `axis`.

    Position i holds from the fraction `starts[i - 1]` of the lines to `starts[i]`. The position during which the centre
    is acquired is zero: an image lies where its centre of k-space was taken, and so masks drawn before remain true.
    """

    axis: int
    starts: tuple[float, ...]
    rotations_deg: tuple[Vector, ...]
    shifts_mm: tuple[Vector, ...]

    kind = "motion"
    LEVELS = ((0.7, 0.5, 2), (1.5, 1.0, 2), (3.0, 2.0, 3), (5.0, 4.0, 4), (8.0, 8.0, 5))  # degrees, mm, movements

    @classmethod
    def draw(cls, severity: int, generator: Generator, axis: int | None = None) -> Motion:
        """Rotations and shifts in any direction, each of half to the whole of the severity's angle and distance."""
        angle_deg, distance_mm, num = cls.level(severity)
        axis = _axis(axis, generator)
        starts = generator.uniform(0.05, 0.95 - 2 * STILL, num)
        starts = np.sort(np.where(starts > 0.5 - STILL, starts + 2 * STILL, starts))
        still = int(np.searchsorted(starts, 0.5))
        rotations, shifts = (
            [_vector(_direction(generator) * size * generator.uniform(0.5, 1)) for _ in range(num + 1)]
            for size in (angle_deg, distance_mm)
        )
        rotations[still] = shifts[still] = ZERO
        return cls(severity, axis, tuple(starts.tolist()), tuple(rotations), tuple(shifts))

    def apply(
        self, volume: Complex[Tensor, "x y z"], spacing_mm: Sequence[float] | np.ndarray
    ) -> Complex[Tensor, "x y z"]:
        # Lines along one axis are chosen, so only that axis has to be transformed.
        kspace = to_kspace(volume, (self.axis,))
        num = volume.shape[self.axis]
        edges = [0, *(round(start * num) for start in self.starts), num]
        for (first, last), rotation_deg, shift_mm in zip(pairwise(edges), self.rotations_deg, self.shifts_mm):
            if first == last or (rotation_deg == ZERO and shift_mm == ZERO):
                continue
            moved = to_kspace(move(volume, rotation_deg, shift_mm, spacing_mm), (self.axis,))
            kspace.narrow(self.axis, first, last - first).copy_(moved.narrow(self.axis, first, last - first))
        return to_image(kspace, (self.axis,))


def move(
    volume: Complex[Tensor, "x y z"],
    rotation_deg: Vector,
    shift_mm: Vector,
    spacing_mm: Sequence[float] | np.ndarray,
) -> Complex[Tensor, "x y z"]:
    """Turn the content about array axis 0, then 1, then 2, each right-handed, through the centre voxels; then shift it.

    A rotation is three shears (Unser 1995) and a shear is a phase ramp along one axis: x' = x - tan(t/2) y, y' = y + sin(t)
    x', x'' = x' - tan(t/2) y'. That is sinc interpolation and unitary, where linear interpolation would blur the moved
    segments and so betray them. What leaves the field of view comes in on its other side; angles are those of a head.
    """
    for axis, angle_deg in enumerate(rotation_deg):
        if angle_deg == 0:
            continue
        a, b = (axis + 1) % 3, (axis + 2) % 3  # turning about z takes x towards y
        angle = math.radians(angle_deg)
        for along, across, shear in (
            (a, b, -math.tan(angle / 2)),
            (b, a, math.sin(angle)),
            (a, b, -math.tan(angle / 2)),
        ):
            num = volume.shape[across]
            position_mm = (torch.arange(num, dtype=torch.float64) - (num - 1) / 2) * float(spacing_mm[across])
            shift = shear * position_mm / float(spacing_mm[along])
            volume = _translate(volume, along, shift.reshape([num if i == across else 1 for i in range(3)]))
    for axis, distance_mm in enumerate(shift_mm):
        if distance_mm != 0:
            volume = _translate(volume, axis, torch.full((1, 1, 1), distance_mm / float(spacing_mm[axis])))
    return volume


def _translate(
    volume: Complex[Tensor, "x y z"], axis: int, shift_voxels: Float[Tensor, "#x #y #z"]
) -> Complex[Tensor, "x y z"]:
    """Shift along `axis` by a distance that varies over the other axes."""
    num = volume.shape[axis]
    frequency = torch.fft.fftfreq(num, dtype=torch.float64).reshape([num if i == axis else 1 for i in range(3)])
    ramp = -2 * math.pi * (frequency * shift_voxels.double()).to(volume.real)
    return torch.fft.ifft(torch.fft.fft(volume, dim=axis) * torch.polar(torch.ones_like(ramp), ramp), dim=axis)


# ------------------------------------------------------------------------------------------- Ghosts, wrap-around, spikes


@dataclass(frozen=True)
class Ghost(Artefact):
    """Every other line comes with a gain and a phase, as echoes of opposite readout do in echo-planar imaging.

    With w = gain exp(i phase) on the odd lines the image is (1 + w)/2 of itself plus (1 - w)/2 of itself shifted by half
    the field of view; `ghost_over_signal` is |1 - w|/2.
    """

    axis: int
    ghost_over_signal: float
    gain: float
    phase_deg: float

    kind = "ghost"
    LEVELS = (0.03, 0.07, 0.14, 0.24, 0.38)  # ghost over signal

    @classmethod
    def draw(cls, severity: int, generator: Generator, axis: int | None = None) -> Ghost:
        """The severity sets the ghost's brightness; how much of it is gain and how much phase is drawn."""
        level = cls.level(severity)
        axis = _axis(axis, generator)
        mixture = generator.uniform(-0.45, 0.45) * math.pi
        w = 1 - 2 * level * complex(math.cos(mixture), math.sin(mixture))
        return cls(severity, axis, level, abs(w), math.degrees(math.atan2(w.imag, w.real)))

    def apply(
        self, volume: Complex[Tensor, "x y z"], spacing_mm: Sequence[float] | np.ndarray
    ) -> Complex[Tensor, "x y z"]:
        num = volume.shape[self.axis]
        odd = (torch.arange(num) - num // 2) % 2
        phase = math.radians(self.phase_deg) * odd
        weight = torch.polar(1 + (self.gain - 1) * odd, phase).to(volume)
        weight = weight.reshape([num if i == self.axis else 1 for i in range(3)])
        return to_image(to_kspace(volume, (self.axis,)) * weight, (self.axis,))


@dataclass(frozen=True)
class Wrap(Artefact):
    """The field of view along `axis` is smaller than the object, and what lies outside appears inside.

    Lines spaced 1/FOV apart know r only modulo the FOV, so the transform of such lines is the volume folded onto it. The
    grid is kept: beyond the reduced field of view there is zero, and the sum of all voxels stays what it was.
    """

    axis: int
    fov_over_object: float
    side: float  # what is cut off: 0 all at the far end of the axis, 1 all at its beginning

    kind = "wrap"
    LEVELS = (0.95, 0.9, 0.82, 0.72, 0.6)  # field of view over the object's extent

    @classmethod
    def draw(cls, severity: int, generator: Generator, axis: int | None = None) -> Wrap:
        """Relative to the object, since air around the head is not missed when it is cut."""
        return cls(severity, _axis(axis, generator), cls.level(severity), generator.uniform(0, 1))

    def apply(
        self, volume: Complex[Tensor, "x y z"], spacing_mm: Sequence[float] | np.ndarray
    ) -> Complex[Tensor, "x y z"]:
        others = tuple(i for i in range(3) if i != self.axis)
        occupied = (volume.abs().amax(others) > 0.25 * signal_level(volume)).nonzero()
        if not len(occupied):
            return volume.clone()
        first, extent = int(occupied[0]), int(occupied[-1] - occupied[0]) + 1
        fov = max(1, round(self.fov_over_object * extent))
        start = first + round(self.side * (extent - fov))
        index = start + (torch.arange(volume.shape[self.axis], device=volume.device) - start) % fov
        return torch.zeros_like(volume).index_add(self.axis, index, volume)


@dataclass(frozen=True)
class Spike(Artefact):
    """Single samples are far too large, from a discharge: each lays stripes over the whole volume.

    A sample of size A at frequency f adds A exp(2 pi i f r) / sqrt(N) to the image of N voxels.
    """

    frequencies: tuple[Vector, ...]  # cycles per voxel along each axis, -0.5 to 0.5
    phases_deg: tuple[float, ...]
    ripple_over_signal: float  # each one's amplitude in the image, over the signal

    kind = "spike"
    LEVELS = (0.04, 0.08, 0.15, 0.3, 0.6)  # root sum of squares of the ripples, over the signal

    @classmethod
    def draw(cls, severity: int, generator: Generator, axis: int | None = None) -> Spike:
        """One to three samples away from the centre of k-space; the severity sets what they amount to together."""
        level = cls.level(severity)
        num = int(generator.integers(1, 4))
        frequencies = tuple(_vector(_direction(generator) * generator.uniform(0.1, 0.45)) for _ in range(num))
        phases = tuple(generator.uniform(-180, 180, num).tolist())
        return cls(severity, frequencies, phases, level / math.sqrt(num))

    def apply(
        self, volume: Complex[Tensor, "x y z"], spacing_mm: Sequence[float] | np.ndarray
    ) -> Complex[Tensor, "x y z"]:
        axes = (0, 1, 2)
        kspace = to_kspace(volume, axes)
        size = self.ripple_over_signal * signal_level(volume) * math.sqrt(volume.numel())
        for frequency, phase_deg in zip(self.frequencies, self.phases_deg):
            x, y, z = ((round(f * n) + n // 2) % n for f, n in zip(frequency, volume.shape))
            phase = math.radians(phase_deg)
            kspace[x, y, z] += size * complex(math.cos(phase), math.sin(phase))
        return to_image(kspace, axes)


# ------------------------------------------------------------------------------------- Bias field, Gibbs ringing, noise


@dataclass(frozen=True)
class BiasField(Artefact):
    """A smooth receive field multiplies the image: exp(log_std g), g a smooth field of zero mean and unit deviation."""

    log_std: float
    seed: int

    kind = "bias_field"
    LEVELS = (0.1, 0.2, 0.3, 0.45, 0.65)  # standard deviation of the field's logarithm

    @classmethod
    def draw(cls, severity: int, generator: Generator, axis: int | None = None) -> BiasField:
        return cls(severity, cls.level(severity), int(generator.integers(2**32)))

    def field(self, shape: Sequence[int]) -> Float[Tensor, "x y z"]:
        """The factor of each voxel, its geometric mean 1: the truth for a correction. The same on any grid."""
        return torch.exp(self.log_std * smooth_field(shape, default_rng(self.seed)))

    def apply(
        self, volume: Complex[Tensor, "x y z"], spacing_mm: Sequence[float] | np.ndarray
    ) -> Complex[Tensor, "x y z"]:
        return volume * self.field(volume.shape).to(volume.real)


@dataclass(frozen=True)
class Gibbs(Artefact):
    """Only the middle `kept` of the lines along `axis` is acquired, the rest is zero: edges overshoot by 9 % and ring."""

    axis: int
    kept: float

    kind = "gibbs"
    LEVELS = (0.75, 0.6, 0.45, 0.32, 0.2)  # of the lines

    @classmethod
    def draw(cls, severity: int, generator: Generator, axis: int | None = None) -> Gibbs:
        return cls(severity, _axis(axis, generator), cls.level(severity))

    def apply(
        self, volume: Complex[Tensor, "x y z"], spacing_mm: Sequence[float] | np.ndarray
    ) -> Complex[Tensor, "x y z"]:
        num = volume.shape[self.axis]
        # As many lines on either side of the centre: one more on one side would give an image of no phase a phase.
        inside = (torch.arange(num, device=volume.device) - num // 2).abs() <= self.kept * num / 2
        inside = inside.reshape([num if i == self.axis else 1 for i in range(3)])
        return to_image(to_kspace(volume, (self.axis,)) * inside, (self.axis,))


@dataclass(frozen=True)
class Noise(Artefact):
    """Thermal noise, complex and white, of `sigma_over_signal` times the signal in each of its two parts."""

    sigma_over_signal: float
    seed: int

    kind = "noise"
    LEVELS = (0.03, 0.06, 0.1, 0.16, 0.25)  # sigma over signal

    @classmethod
    def draw(cls, severity: int, generator: Generator, axis: int | None = None) -> Noise:
        return cls(severity, cls.level(severity), int(generator.integers(2**32)))

    def apply(
        self, volume: Complex[Tensor, "x y z"], spacing_mm: Sequence[float] | np.ndarray
    ) -> Complex[Tensor, "x y z"]:
        # White noise is white on both sides of an orthonormal transform, so there is no need to go to k-space for it.
        return add_noise(volume, self.sigma_over_signal * signal_level(volume), default_rng(self.seed))


ARTEFACTS: dict[str, type[Artefact]] = {cls.kind: cls for cls in (Motion, Ghost, Wrap, Spike, BiasField, Gibbs, Noise)}
