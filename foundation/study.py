"""What an MRI examination is here: a study of several series, each a volume that knows where it lies in the patient.

Coordinates are the patient's RAS+ millimetres: x grows to the patient's right, y to the front (anterior), z to the head
(superior). Nothing is registered and nothing needs a common grid; a series that was not acquired is simply absent.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import aff2axcodes

from foundation.errors import InputError, did_you_mean

Contrast = Literal["T1w", "T1w-contrast", "T2w", "FLAIR", "PD", "DWI", "ADC", "T2star", "MRA", "unknown"]
CONTRASTS: tuple[str, ...] = get_args(Contrast)


def contrast_index(contrast: str) -> int:
    """The integer that stands for a contrast in tokens and weights."""
    return CONTRASTS.index(contrast)


def checked_contrast(contrast: str) -> Contrast:
    """The contrast itself if it is one of ours, otherwise an `InputError` that suggests the closest."""
    if contrast not in CONTRASTS:
        raise InputError(
            "a contrast is one of the known names", got=repr(contrast), remedy=did_you_mean(contrast, CONTRASTS)
        )
    return contrast  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Acquisition:
    """How a series was acquired; None where nobody told us."""

    echo_time_ms: float | None = None
    repetition_time_ms: float | None = None
    inversion_time_ms: float | None = None
    flip_angle_deg: float | None = None
    field_strength_t: float | None = None
    vendor: str | None = None

    # A typical value for each number, so that what the encoder sees is of order one.
    TYPICAL: ClassVar[dict[str, float]] = {
        "echo_time_ms": 50.0,
        "repetition_time_ms": 2000.0,
        "inversion_time_ms": 1000.0,
        "flip_angle_deg": 45.0,
        "field_strength_t": 2.0,
    }

    def as_vector(self) -> np.ndarray:
        """Each number as (log ratio to a typical value, 1), or (0, 0) when unknown: `(2 * numbers,)` float32."""
        pairs = []
        for name, typical in self.TYPICAL.items():
            value = getattr(self, name)
            pairs += [0.0, 0.0] if value is None or value <= 0 else [np.log(value / typical), 1.0]
        return np.asarray(pairs, dtype=np.float32)


ACQUISITION_SIZE = 2 * len(Acquisition.TYPICAL)


@dataclass(frozen=True)
class DicomSource:
    """The DICOM files that a volume was made of, for objects that refer to them: headers (pydicom's) without pixels, which name the
    patient, and for each plane in order along the stack the header and the frame in it."""

    headers: tuple[Any, ...]
    slices: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Series:
    """One volume. `voxels` is `(x, y, z)`; `affine` takes voxel indices to patient RAS+ millimetres.

    `side_is_known` is False when the file did not say how its axes lie in the patient: left and right are then a guess,
    and nothing downstream may name a side. `predicted` is True where a model made the series of others: nobody measured it, and
    nothing may be found in it. `contrast_from` says what the contrast was recognised by, in words.
    """

    voxels: np.ndarray
    affine: np.ndarray
    contrast: Contrast = "unknown"
    acquisition: Acquisition = field(default_factory=Acquisition)
    name: str = ""
    side_is_known: bool = True
    path: Path | None = None
    source: DicomSource | None = field(default=None, repr=False, compare=False)
    predicted: bool = False
    contrast_from: str = ""

    def __post_init__(self) -> None:
        assert self.voxels.ndim == 3 and self.voxels.dtype == np.float32, (self.voxels.shape, self.voxels.dtype)
        assert self.affine.shape == (4, 4), self.affine.shape
        checked_contrast(self.contrast)

    @property
    def shape(self) -> tuple[int, int, int]:
        x, y, z = self.voxels.shape
        return (x, y, z)

    @property
    def spacing_mm(self) -> np.ndarray:
        """Millimetres from one voxel to the next along each array axis, `(3,)`."""
        return voxel_sizes(self.affine)

    @property
    def orientation(self) -> str:
        """The patient direction that each array axis is closest to, for example 'RAS' or 'LIA'."""
        return "".join(aff2axcodes(self.affine))

    @property
    def voxel_volume_ml(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def to_patient_mm(self, voxel: np.ndarray) -> np.ndarray:
        """Patient millimetres of (fractional) voxel indices `(..., 3)`."""
        return apply_affine(self.affine, voxel)

    def with_voxels(self, voxels: np.ndarray, affine: np.ndarray | None = None) -> Series:
        """The same series with other voxels, and another affine if the grid changed."""
        return replace(self, voxels=voxels, affine=self.affine if affine is None else affine)

    def moved(self, by_mm: np.ndarray) -> Series:
        """The same series shifted in the patient by `(3,)` millimetres."""
        affine = self.affine.copy()
        affine[:3, 3] += by_mm
        return replace(self, affine=affine)


@dataclass(frozen=True)
class Study:
    """The series of one visit of one subject, in the order they were given; the first is the reference for masks.

    `notes` say what a reader of a report must know of how the study was read: what was set aside, what is in doubt.
    """

    subject: str
    series: tuple[Series, ...]
    session: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.series:
            raise InputError("a study has at least one series", got="none", remedy="Give at least one readable volume.")

    @property
    def reference(self) -> Series:
        return self.series[0]

    @property
    def measured(self) -> Study:
        """The study without series that a model predicted."""
        kept = tuple(series for series in self.series if not series.predicted)
        if not kept:
            remedy = "Give a series that a scanner measured."
            raise InputError("a study has a series that was measured", got="predicted ones only", remedy=remedy)
        return self if len(kept) == len(self.series) else replace(self, series=kept)

    def without(self, index: int) -> Study:
        """The study as if the series at `index` had not been acquired."""
        return replace(self, series=self.series[:index] + self.series[index + 1 :])

    def moved(self, by_mm: np.ndarray) -> Study:
        return replace(self, series=tuple(series.moved(by_mm) for series in self.series))


def known_numbers(acquisition: Acquisition) -> dict[str, float | str]:
    """What is known of an acquisition, for printing."""
    pairs = ((entry.name, getattr(acquisition, entry.name)) for entry in fields(acquisition))
    return {name: value for name, value in pairs if value is not None}
