"""Images of an anatomy: which sequence, on which grid, with which noise and artefacts.

    tissues = sample_tissues(subject.field_t, generator)
    protocol = draw_protocol("FLAIR", subject, spacing_mm=2.0, rng=generator)
    scan = acquire(anatomy, protocol, tissues, generator)

Two appearances. "Physics": each tissue's signal from the sequence's equation and the subject's own relaxation times, so
that numbers mean something. "Random": every material's mean and spread drawn freely, as in SynthSeg (Billot et al. 2023),
so that a network cannot rely on any contrast. Either way a voxel's signal is the sum of its materials' signed signals; the
magnitude comes last, of signal and complex noise together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Complex, Float, Shaped, UInt8
from nibabel.affines import from_matvec, voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.random import Generator
from scipy.spatial.transform import Rotation
from torch import Tensor

from foundation.cohort.anatomy import Anatomy, Subject
from foundation.cohort.grids import block_mean, grid_mm, largest_share, sample, smooth_noise
from foundation.cohort.materials import INDEX, LABEL_OF, MATERIALS
from foundation.physics.artefacts import ARTEFACTS, SEVERITIES, Artefact, draw_artefact
from foundation.physics.kspace import smooth_phase
from foundation.physics.relaxometry import TYPICAL_UPTAKE_MMOL_L, TissueTable
from foundation.physics.signal import (
    DiffusionEpi,
    Flair,
    Mprage,
    PulseSequence,
    SpoiledGradientEcho,
    TurboSpinEcho,
    adc_from_dwi,
    tissue_signals,
)
from foundation.physics.susceptibility import (
    AIR_PPM,
    SUSCEPTIBILITY_PPM,
    field_shift_ppm,
    phase_rad,
    susceptibility_weighted,
)
from foundation.study import Series, checked_contrast

Plane = Literal["axial", "coronal", "sagittal"]
SLICE_AXIS: dict[str, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
RANDOM = "random"  # no sequence at all
# A contrast's place is part of its seed: new ones go to the end.
CONTRASTS = ("T1w", "T1w-contrast", "T2w", "FLAIR", "PD", "DWI", "ADC", "T2star", RANDOM, "SWI")
# What they are measured as, where that goes by another name or by none.
MEASURED_AS = {RANDOM: "unknown", "SWI": "T2star"}
TIMES_OF = {"T1w-contrast": "T1w", "ADC": "DWI", "SWI": "T2star"}
TWO_DIMENSIONAL = ("T2w", "FLAIR", "PD", "DWI", "ADC")  # in slices, which may be thick; the others have even voxels
TEXTURE = 0.03  # of the signal, per standard deviation of the anatomy's texture
LIKELY_ARTEFACT = 0.2  # how often a scan has one

# The box that a protocol is drawn from, and another one for the family held apart.
_TIMES: dict[str, dict[str, tuple[float, float, float, float]]] = {
    # contrast: name: (usual low, usual high, shifted low, shifted high)
    "T1w": {"tr_ms": (1900, 2500, 2800, 3200), "ti_ms": (850, 1000, 1050, 1200), "te_ms": (2.2, 3.8, 4.2, 5.5)},
    "T2w": {"tr_ms": (3500, 6000, 2400, 3000), "te_ms": (85, 110, 120, 150)},
    "PD": {"tr_ms": (2500, 3500, 4500, 5500), "te_ms": (10, 20, 28, 38)},
    "FLAIR": {"tr_ms": (8000, 10000, 5500, 6500), "te_ms": (95, 125, 135, 160)},
    "T2star": {"tr_ms": (26, 60, 500, 800), "te_ms": (15, 25, 8, 12), "flip_deg": (12, 20, 25, 35)},
    "DWI": {"tr_ms": (4000, 7000, 8000, 10000), "te_ms": (65, 90, 95, 110)},
}


@dataclass(frozen=True)
class Protocol:
    """How one series is acquired. `sequence` is None for random contrast.

    `voxel_mm` runs along the grid's right, front and top; `tilt_deg` turns the grid about the same axes. `noise` is the
    standard deviation of each of the two channels over the typical signal of the head; `bias` that of the logarithm of the receive
    field, `centre` how much brighter (logarithm) the middle of the head is.
    """

    contrast: str
    sequence: PulseSequence | None
    voxel_mm: tuple[float, float, float]
    tilt_deg: tuple[float, float, float]
    noise: float
    bias: float
    centre: float
    artefact: Artefact | None

    def facts(self) -> dict[str, Any]:
        """Everything that made the image, for the truth beside it."""
        sequence = None
        if self.sequence is not None:
            sequence = {"kind": type(self.sequence).__name__, **asdict(self.sequence)}  # pyright: ignore[reportArgumentType]
        artefact = None
        if self.artefact is not None:
            artefact = {"kind": self.artefact.kind, "severity": self.artefact.severity, **self.artefact.parameters}
        return {
            "contrast": self.contrast,
            "sequence": sequence,
            "voxel_mm": self.voxel_mm,
            "tilt_deg": self.tilt_deg,
            "noise": self.noise,
            "bias": self.bias,
            "centre": self.centre,
            "artefact": artefact,
        }


@dataclass(frozen=True)
class Scan:
    """One series with what made it, and the structures on its grid."""

    series: Series
    protocol: Protocol
    labels: UInt8[np.ndarray, "i j k"]


def draw_protocol(contrast: str, subject: Subject, spacing_mm: float, rng: Generator) -> Protocol:
    """As clinics differ: times within a box, thick slices of two-dimensional scans along a plane, now and then a flaw."""
    shifted = subject.family == "shifted"
    box = _TIMES.get(TIMES_OF.get(contrast, contrast), {})
    drawn = {}
    for name, (low, high, odd_low, odd_high) in box.items():
        drawn[name] = float(rng.uniform(odd_low, odd_high) if shifted else rng.uniform(low, high))
    plane: Plane = rng.choice(["axial", "axial", "axial", "coronal", "sagittal"])
    thick = 1
    if contrast in TWO_DIMENSIONAL or (shifted and contrast in ("T1w", "T1w-contrast")):
        thick = int(rng.choice((3, 4) if shifted else (1, 2, 2, 3) if spacing_mm < 4 else (1, 2)))
    voxel = [spacing_mm] * 3
    voxel[SLICE_AXIS[plane]] *= thick
    is_flat = thick == 1 or rng.random() < 0.4
    tilt = np.zeros(3) if is_flat else rng.normal(0, 5, 3).clip(-12, 12)
    artefact = None
    if rng.random() < LIKELY_ARTEFACT and contrast != "ADC":
        artefact = draw_artefact(str(rng.choice(list(ARTEFACTS))), int(rng.choice(SEVERITIES)), rng)
    stronger = math.sqrt(3.0 / subject.field_t)  # noise falls with field
    return Protocol(
        contrast=contrast,
        sequence=_sequence(contrast, drawn),
        voxel_mm=(float(voxel[0]), float(voxel[1]), float(voxel[2])),
        tilt_deg=(float(tilt[0]), float(tilt[1]), float(tilt[2])),
        noise=float(rng.uniform(0.01, 0.045) * stronger),
        bias=float(rng.uniform(0.05, 0.22)),
        centre=float(rng.uniform(0.0, 0.12) * subject.field_t),
        artefact=artefact,
    )


def _sequence(contrast: str, times: dict[str, float]) -> PulseSequence | None:
    make: dict[str, Callable[..., PulseSequence]] = {
        "T1w": Mprage,
        "T1w-contrast": Mprage,
        "T2w": TurboSpinEcho,
        "PD": TurboSpinEcho,
        "FLAIR": Flair,
        "T2star": SpoiledGradientEcho,
        "SWI": SpoiledGradientEcho,
        "DWI": DiffusionEpi,
        "ADC": DiffusionEpi,
    }
    return make[contrast](**times) if contrast in make else None


# -------------------------------------------------------------------------------- Signals


def material_signals(
    protocol: Protocol, tissues: TissueTable, rng: Generator
) -> tuple[Float[Tensor, "materials"], Float[Tensor, "materials"]]:
    """Signed mean of each material, and how strongly its texture shows; air is 0. A FLAIR comes `nulled`."""
    if protocol.sequence is None:
        mean, spread = rng.uniform(0.05, 1.0, len(MATERIALS)), rng.uniform(0.01, 0.12, len(MATERIALS))
        mean[INDEX["air"]], spread[INDEX["air"]] = 0.0 if rng.random() < 0.8 else rng.uniform(0, 0.5), 0.0
        return torch.from_numpy(mean).float(), torch.from_numpy(spread).float()
    if protocol.contrast == "T1w-contrast":
        tissues = tissues.with_gadolinium(TYPICAL_UPTAKE_MMOL_L)
    mean = on_materials(tissue_signals(protocol.sequence, tissues).float(), tissues)
    is_fluid = torch.tensor([one.tissue == "csf" for one in MATERIALS.values()])
    return mean, torch.where(is_fluid, 0.3, 1.0) * TEXTURE * mean.abs()


def nulled(protocol: Protocol, tissues: TissueTable) -> Protocol:
    """A FLAIR with the TI that nulls this patient's fluid; any other protocol as it is."""
    if not isinstance(protocol.sequence, Flair):
        return protocol
    # The technician nulls fluid by what the scanner's maker took its T1 to be, which is nearly this patient's.
    t1_csf_ms = float(tissues.t1[tissues.index("csf")]) * 1.01
    return replace(protocol, sequence=protocol.sequence.nulling(t1_csf_ms))


def on_materials(values: Float[Tensor, "tissues"], tissues: TissueTable) -> Float[Tensor, "materials"]:
    """A number of every tissue as a number of every material; 0 for air."""
    rows = [None if one.tissue is None else tissues.index(one.tissue) for one in MATERIALS.values()]
    return torch.stack([values.new_zeros(()) if row is None else values[row] for row in rows])


def head_image(anatomy: Anatomy, protocol: Protocol, tissues: TissueTable, rng: Generator) -> Float[Tensor, "x y z"]:
    """Signed signals on the anatomy's grid, mixed by how much each material fills, with texture; before any coil."""
    mean, spread = material_signals(protocol, tissues, rng)
    return anatomy.mix(mean) + anatomy.mix(spread) * (anatomy.texture.float() / 32)


def typical_signal(signal: Shaped[Tensor, "x y z"]) -> float:
    """What noise is measured by: the mean magnitude of everything but air."""
    magnitude = signal.abs()
    return float(magnitude[magnitude > 0.05 * magnitude.max()].mean())


# -------------------------------------------------------------------------------- Grids


def series_grid(anatomy: Anatomy, protocol: Protocol) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of the series before its array axes are turned: over the anatomy's field of view, tilted about it."""
    extent = np.asarray(anatomy.shape) * anatomy.spacing_mm
    voxel = np.asarray(protocol.voxel_mm)
    x, y, z = (int(n) for n in np.maximum(1, np.round(extent / voxel)))
    directions = anatomy.affine[:3, :3] / anatomy.spacing_mm
    turned = directions @ Rotation.from_euler("xyz", protocol.tilt_deg, degrees=True).as_matrix() * voxel
    middle = anatomy.affine[:3, :3] @ ((np.asarray(anatomy.shape) - 1) / 2) + anatomy.affine[:3, 3]
    return (x, y, z), from_matvec(turned, middle - turned @ ((np.array([x, y, z]) - 1) / 2))


def _on_grid(
    volume: Float[Tensor, "channel x y z"], anatomy: Anatomy, shape: tuple[int, int, int], affine: np.ndarray
) -> Float[Tensor, "channel i j k"]:
    """Averages over the series' voxels: the volume is read about once per voxel of its own, then block means are taken."""
    if shape == anatomy.shape and np.allclose(affine, anatomy.affine):
        return volume
    num, fine_shape, fine = _finer(anatomy, shape, affine)
    return block_mean(sample(volume, anatomy.affine, grid_mm(fine_shape, fine), padding="zeros"), fine, *num)[0]


def _finer(
    anatomy: Anatomy, shape: tuple[int, int, int], affine: np.ndarray
) -> tuple[list[int], tuple[int, ...], np.ndarray]:
    """How many voxels of the anatomy's size a voxel of the grid holds along each axis, and the grid of those."""
    num = [max(1, round(ratio)) for ratio in voxel_sizes(affine) / anatomy.spacing_mm]
    fine = affine @ from_matvec(np.diag([1 / n for n in num]), [(1 / n - 1) / 2 for n in num])
    return num, tuple(n * size for n, size in zip(num, shape, strict=True)), fine


def labels_on(anatomy: Anatomy, shape: tuple[int, int, int], affine: np.ndarray) -> UInt8[np.ndarray, "i j k"]:
    """The structure that fills most of each voxel of a grid; 0 is air, and what lies beyond the anatomy."""
    if shape == anatomy.shape and np.allclose(affine, anatomy.affine):
        return anatomy.labels
    # Not the structure at the voxel's middle: that of two slices in one lies between them, and would be either's.
    num, fine_shape, fine = _finer(anatomy, shape, affine)
    index = grid_mm(fine_shape, np.linalg.inv(anatomy.affine) @ fine).round().long()
    inside = ((index >= 0) & (index < torch.tensor(anatomy.shape))).all(dim=-1)
    x, y, z = index.clamp(min=0).minimum(torch.tensor(anatomy.shape) - 1).unbind(-1)
    of = torch.from_numpy(LABEL_OF)
    first, second = (inside * of[one[x, y, z].int()] for one in (anatomy.first, anatomy.second))
    share = anatomy.share[x, y, z]

    def fills(value: int) -> Tensor:
        share_of_fine = torch.where(first == value, share, 0) + torch.where(second == value, 1 - share, 0)
        return block_mean(share_of_fine[None], fine, *num)[0][0]

    return largest_share(shape, first.unique().tolist(), fills)


# -------------------------------------------------------------------------------- Acquisition


def acquire(anatomy: Anatomy, protocol: Protocol, tissues: TissueTable, rng: Generator) -> Scan:
    """One series of an anatomy, magnitudes as whole numbers, its array stored along the subject's `orientation`."""
    protocol = nulled(protocol, tissues)
    shape, affine = series_grid(anatomy, protocol)
    if protocol.contrast == "ADC":
        voxels = _adc_map(anatomy, protocol, tissues, shape, affine, rng)
    else:
        image = head_image(anatomy, protocol, tissues, rng)
        if protocol.contrast == "SWI":
            turned = torch.polar(image, _gradient_echo_phase(anatomy, protocol, tissues))
            signal = torch.complex(*_on_grid(torch.stack([turned.real, turned.imag]), anatomy, shape, affine))
            magnitude = susceptibility_weighted(_receive(signal, protocol, rng), protocol.voxel_mm)
        else:
            magnitude = _receive(_on_grid(image[None], anatomy, shape, affine)[0], protocol, rng).abs()
        voxels = (magnitude * (rng.uniform(300, 1200) / float(torch.quantile(magnitude.flatten()[::37], 0.99)))).round()
    labels = labels_on(anatomy, shape, affine)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(anatomy.subject.orientation))
    affine = affine @ inv_ornt_aff(turn, shape)
    stored, labels = (np.ascontiguousarray(apply_orientation(array, turn)) for array in (voxels.numpy(), labels))
    contrast = checked_contrast(MEASURED_AS.get(protocol.contrast, protocol.contrast))
    series = Series(stored.astype(np.float32), affine, contrast, name=protocol.contrast)
    if protocol.sequence is not None:
        series = replace(
            series, acquisition=protocol.sequence.acquisition(anatomy.subject.field_t, anatomy.subject.vendor)
        )
    return Scan(series, protocol, labels)


def _gradient_echo_phase(anatomy: Anatomy, protocol: Protocol, tissues: TissueTable) -> Float[Tensor, "x y z"]:
    """Radians at the echo, on the anatomy's grid; the main field runs along the patient's z axis."""
    ppm = [AIR_PPM if one.tissue is None else SUSCEPTIBILITY_PPM.get(one.tissue, 0.0) for one in MATERIALS.values()]
    along_z = anatomy.affine[2, :3] / anatomy.spacing_mm
    shift = field_shift_ppm(anatomy.mix(torch.tensor(ppm)), anatomy.spacing_mm, along_z)
    return phase_rad(shift, anatomy.subject.field_t, cast(SpoiledGradientEcho, protocol.sequence).te_ms)


def _receive(signal: Shaped[Tensor, "i j k"], protocol: Protocol, rng: Generator) -> Complex[Tensor, "i j k"]:
    """Coil sensitivity, artefact, complex noise; the magnitude is then Rician (Gudbjartsson and Patz 1995)."""
    voxel = protocol.voxel_mm
    signal = signal * _receive_field(signal.shape, protocol, rng)
    level = typical_signal(signal)
    noise = protocol.noise * level * torch.from_numpy(rng.standard_normal((2, *signal.shape), dtype=np.float32))
    if protocol.artefact is None:
        return signal + torch.complex(noise[0], noise[1])
    spoilt = protocol.artefact.apply(signal * smooth_phase(signal.shape, 0.6, rng), voxel)
    return spoilt + torch.complex(noise[0], noise[1])


def _receive_field(shape: tuple[int, ...], protocol: Protocol, rng: Generator) -> Float[Tensor, "i j k"]:
    """Any smooth field, and the middle of the head brighter, the more so the higher the field (dielectric effect).

    Of 30 IXI heads at 1.5 and 3 T the thalamus was 1.17 times as bright as white matter, which it never is by its T1.
    """
    voxel = np.asarray(protocol.voxel_mm)
    axes = [((torch.arange(n) - (n - 1) / 2) * step) ** 2 for n, step in zip(shape, voxel.tolist(), strict=True)]
    square = axes[0][:, None, None] + axes[1][None, :, None] + axes[2][None, None, :]
    return torch.exp(
        protocol.bias * smooth_noise(rng, shape, voxel, 90.0) + protocol.centre * torch.exp(-square / 55**2)
    )


def _adc_map(
    anatomy: Anatomy,
    protocol: Protocol,
    tissues: TissueTable,
    shape: tuple[int, int, int],
    affine: np.ndarray,
    rng: Generator,
) -> Float[Tensor, "i j k"]:
    """In 1e-6 mm^2/s, from b = 0 and b = 1000 with the same coil, as scanners compute it; 0 where there is only noise."""
    sequence = cast(DiffusionEpi, protocol.sequence)
    plain = replace(protocol, sequence=replace(sequence, b_value=0.0), artefact=None)
    weighted = replace(protocol, artefact=None)
    bias_seed = int(rng.integers(2**31))
    images, level = [], 0.0
    for one in (plain, weighted):
        signal = _on_grid(head_image(anatomy, one, tissues, rng)[None], anatomy, shape, affine)[0]
        signal = signal * _receive_field(shape, protocol, np.random.default_rng(bias_seed))
        if not images:  # the same noise in both
            level = protocol.noise * typical_signal(signal)
        noise = level * torch.from_numpy(rng.standard_normal((2, *shape), dtype=np.float32))
        images.append(torch.hypot(signal + noise[0], noise[1]))
    adc = adc_from_dwi(images[0], images[1], sequence.b_value)
    return (1000 * torch.where(images[0] > 6 * level, adc, 0.0)).clamp(max=4000).round()


def quantitative_maps(anatomy: Anatomy, tissues: TissueTable) -> dict[str, Float[np.ndarray, "x y z"]]:
    """What the simulator put in, on the anatomy's grid: T1 and T2 in ms (of each voxel's main material), ADC in 1e-6 mm^2/s.

    Truth of the simulator only: published T1 of white matter alone differs by a factor of two (Asslander 2024).
    """
    columns = {"T1": tissues.t1, "T2": tissues.t2, "ADC": 1000 * tissues.adc}
    return {
        name: on_materials(column.float(), tissues)[anatomy.first.int()].numpy() for name, column in columns.items()
    }
