"""Synthetic heads, the embedded default: the MNI152 anatomy that ships inside nilearn, deformed for each subject.

    manifest = write_cohort("cohort", num_subjects=24, seed=0)

The templates (Fonov 2009, 2011) are read from the installed nilearn at run time and never shipped again. What they do
not hold is derived here from probabilities, intensity, boxes and ellipsoids in MNI space and from distances. So labels
are exact for the synthetic head, but approximate anatomy: drawn by nobody, not an atlas, no evidence about patients.
Every subject shares the gyri of one symmetric template. Intensities are levels relative to white matter, not physics.

"MNI mm" is the template's frame, "patient mm" the scanner's; both RAS+. With v a smooth velocity field, S a diagonal
size and (R, t) the pose of the head, a patient point p shows the template at

    phi(S^-1 R^-1 (p - t)),     phi = exp(v),

so deformation, size, pose and the grid of the images are one resampling of the template's tissue fractions.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Float, UInt8
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.random import Generator, default_rng
from rich.progress import track
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

from foundation.errors import InputError, did_you_mean
from foundation.reading.collection import SPLITS, Row, SeriesEntry, Split, write_manifest
from foundation.reading.nifti import write_labels, write_volume
from foundation.study import Series, checked_contrast

# The values of label maps; 0 is air. The first six lie inside the skull and make up the intracranial volume.
LABELS = {
    "cortex": 1,  # cerebral grey matter, with the hippocampus and amygdala
    "white_matter": 2,
    "ventricle": 3,  # lateral only, without temporal horns
    "deep_grey": 4,  # thalamus, caudate, putamen, pallidum
    "hindbrain": 5,  # cerebellum and brainstem
    "other_csf": 6,
    "skull": 7,
    "soft_tissue": 8,
}
INTRACRANIAL = tuple(LABELS)[:6]

# What a voxel can be filled with, and the label that each tissue counts towards. Air is what the fractions leave over.
TISSUES = {
    "grey": "cortex",
    "white": "white_matter",
    "ventricle": "ventricle",
    "deep grey": "deep_grey",
    "hindbrain grey": "hindbrain",
    "hindbrain white": "hindbrain",
    "csf": "other_csf",
    "skull": "skull",
    "muscle": "soft_tissue",
    "fat": "soft_tissue",
}
VENTRICLE, CSF = (list(TISSUES).index(tissue) for tissue in ("ventricle", "csf"))

# Mean level per tissue, in the order of TISSUES, white matter 1. Grey and CSF: the ratios that the usual sequences give
# at 3 T (T1w 0.68 and 0.23, T2w 1.54 and 3.5, FLAIR 1.14 and 0.10); the other tissues are set by eye.
LEVELS = {
    "T1w": (0.68, 1.0, 0.23, 0.82, 0.70, 0.95, 0.23, 0.10, 0.50, 1.20),
    "T2w": (1.54, 1.0, 3.50, 1.15, 1.50, 1.08, 3.50, 0.15, 0.60, 1.60),
    "FLAIR": (1.14, 1.0, 0.10, 1.05, 1.12, 1.02, 0.12, 0.10, 0.60, 1.00),
}
RANDOM = "random"  # no sequence at all: every tissue's mean and spread drawn freely, as in SynthSeg
THICK_SLICES = {"T1w": 1, "T2w": 2, "FLAIR": 2, RANDOM: 1}  # axial slice thickness over the in-plane spacing
ORIENTATIONS = ("RAS", "LAS", "PSR")

# Lateral ventricles over intracranial volume above which they count as enlarged. Not a clinical threshold: it lies near
# the median over subjects, so that both classes are about equally frequent.
ENLARGED_RATIO = 0.0165

WARP_SPACING_MM = 4.0  # grid of velocities and displacements, whatever the spacing of the images
WARP_NOISE_MM = ((36.0, 2.2), (14.0, 0.8))  # (distance of control points, standard deviation of the velocity)
SQUARINGS = 6


# -------------------------------------------------------------------------------- The template: one head in MNI space

# The first voxel centre and the first beyond, along MNI x, y, z. The brain's box holds all that the sources hold; the
# head's adds room for scalp, face and neck. Differences are multiples of 4, so that blocks of either fall together.
BRAIN_MM = ((-76, 76), (-112, 80), (-72, 88))
HEAD_MM = ((-108, 108), (-136, 112), (-112, 112))

# Levels of the T1 average between which a voxel is a linear mixture, 1 being its brightest voxel.
T1_CSF, T1_GREY, T1_DEEP_GREY, T1_WHITE = 0.33, 0.60, 0.76, 0.88

# Ellipsoids, mirrored in x, around the nuclei: (centre, radii) in MNI mm.
DEEP_NUCLEI_MM = {
    "thalamus": ((11, -18, 8), (12, 15, 10)),
    "caudate head": ((13, 13, 8), (8, 12, 14)),
    "caudate body": ((16, -4, 19), (5, 14, 7)),
    "putamen": ((26, 3, 2), (9, 19, 13)),
    "pallidum": ((19, -4, 0), (7, 9, 7)),
}
VENTRICLE_SEEDS_MM = ((12, -5, 23), (-12, -5, 23))

# Height z of the tentorium by y (rows) and |x| (columns), read off the template by eye; the cerebellum lies below.
TENTORIUM_Y_MM = (-110, -90, -75, -60, -45, -35)
TENTORIUM_X_MM = (0, 20, 40, 60)
TENTORIUM_Z_MM = (
    (-26, -24, -24, -26),
    (-17, -20, -24, -26),
    (-8, -16, -22, -25),
    (0, -10, -21, -26),
    (2, -12, -24, -34),
    (0, -16, -32, -40),
)


@dataclass(frozen=True)
class Template:
    """How much of each voxel each of `TISSUES` fills, the label that fills most of it, and the affine to MNI mm."""

    fractions: Float[Tensor, "tissue x y z"]
    labels: UInt8[np.ndarray, "x y z"]
    affine: np.ndarray


@lru_cache(maxsize=2)
def template(spacing_mm: float = 2.0) -> Template:
    """The template head, averaged in blocks from 1 mm to 1, 2 or 4 mm."""
    if spacing_mm not in (1, 2, 4):
        raise InputError("the cohort's spacing is 1, 2 or 4 mm", got=spacing_mm, remedy="Use 2.")
    brain, affine = _in_head_box(*block_mean(*_brain(), int(spacing_mm)))
    fractions = _with_shell(brain, affine)
    return Template(fractions, label_map(fractions), affine)


@lru_cache(maxsize=1)
def _ventricle_pull() -> tuple[Float[Tensor, "3 wx wy wz"], np.ndarray]:
    """A field on the warp grid that points into the lateral ventricles, at most 1 long; the grid's affine to MNI mm.

    Looking the template up along it widens the ventricles: the gradient of their blurred shape, so smooth and local.
    """
    brain, affine = _in_head_box(*block_mean(*_brain(), int(WARP_SPACING_MM)))
    blurred = ndimage.gaussian_filter(brain[VENTRICLE].numpy(), 8.0 / WARP_SPACING_MM)
    pull = torch.stack(torch.gradient(torch.from_numpy(blurred)))
    return pull / pull.norm(dim=0).max(), affine


@lru_cache(maxsize=1)
def _brain() -> tuple[Float[Tensor, "tissue x y z"], np.ndarray]:
    """The first seven tissues at 1 mm in `BRAIN_MM`, and the affine to MNI mm.

    - CSF: from the T1 average, sharpened because averaging 152 brains blurred the sulci away. Grey and white share the
      rest by the probability maps, except in the hindbrain: there the maps call most white matter grey, and T1 decides.
    - Lateral ventricles: around the component of CSF probability (1 - grey - white) above 0.5 that holds the seeds; at
      lower levels it joins all other CSF. Third ventricle and temporal horns are averaged away in the maps; the fourth
      ventricle counts as other CSF.
    - Deep grey: inside `DEEP_NUCLEI_MM`, what is darker than white matter.
    - Cerebellum and brainstem: below `TENTORIUM_Z_MM`, and a column in front of it.
    """
    from nilearn import datasets  # seconds to import, and nothing else here needs it

    image = datasets.load_mni152_template(resolution=1)
    sources = (image, datasets.load_mni152_gm_template(resolution=1), datasets.load_mni152_wm_template(resolution=1))
    first, last = (_voxel(image.affine, corner) for corner in zip(*BRAIN_MM))
    box = tuple(slice(start, stop) for start, stop in zip(first, last))
    t1, grey_map, white_map = (np.asarray(source.dataobj[box], dtype=np.float32) for source in sources)
    affine = image.affine @ from_matvec(np.eye(3), first)
    x, y, z = _mm_axes(t1.shape, affine)

    brain = t1 > 0
    weight = ndimage.gaussian_filter(brain.astype(np.float32), 2.5)
    sharp = t1 + 1.7 * (t1 - ndimage.gaussian_filter(t1, 2.5) / np.maximum(weight, 1e-3))
    csf = brain * np.clip((T1_GREY - sharp) / (T1_GREY - T1_CSF), 0, 1)
    solid = brain - csf

    column = (abs(x) < 15 + np.clip((-18 - z) / 2, 0, 9)) & (z < -6) & (y > -46) & (y < -8 - np.clip(z + 20, 0, 12))
    hindbrain = column | (y < -32) & (z < _tentorium_z_mm(x, y)) | (z < -48) & (y < -25)
    by_map = white_map / np.maximum(grey_map + white_map, 1e-3)
    by_t1 = np.clip((sharp - T1_GREY) / (T1_WHITE - T1_GREY), 0, 1)
    white = solid * np.where(hindbrain, by_t1, by_map)

    nuclei = np.zeros(t1.shape, bool)
    for (side, front, top), (rx, ry, rz) in DEEP_NUCLEI_MM.values():
        nuclei |= ((abs(x) - side) / rx) ** 2 + ((y - front) / ry) ** 2 + ((z - top) / rz) ** 2 < 1
    deep = solid * nuclei * np.clip((T1_WHITE - t1) / (T1_WHITE - T1_DEEP_GREY), 0, 1)
    white = np.where(nuclei, solid - deep, white)
    grey = solid - white - deep

    components = np.zeros(t1.shape, np.int32)
    ndimage.label(brain & (1 - grey_map - white_map > 0.5), output=components)
    found = {int(components[_voxel(affine, seed)]) for seed in VENTRICLE_SEEDS_MM}
    assert len(found) == 1 and found != {0}, f"both lateral ventricles are one component, got {found}"
    near_ventricle = ndimage.binary_dilation(components == found.pop(), iterations=2)
    # A mixture of CSF and white matter passes through the level of grey matter without any grey: give each one half.
    rim = np.where(near_ventricle, grey, 0)
    ventricle = np.where(near_ventricle, csf, 0) + rim / 2
    grey, white, csf = grey - rim, white + rim / 2, np.where(near_ventricle, 0, csf)

    tissues = (grey * ~hindbrain, white * ~hindbrain, ventricle, deep, grey * hindbrain, white * hindbrain, csf)
    return torch.from_numpy(np.stack(tissues)), affine


def _in_head_box(
    volume: Float[Tensor, "channel x y z"], affine: np.ndarray
) -> tuple[Float[Tensor, "channel hx hy hz"], np.ndarray]:
    """Blocks of `BRAIN_MM` with zeros around, up to `HEAD_MM`."""
    step = int(affine[0, 0])
    around = [(abs(head[end] - brain[end]) // step) for head, brain in zip(HEAD_MM, BRAIN_MM) for end in (0, 1)]
    pairs = [around[2 * axis + end] for axis in (2, 1, 0) for end in (0, 1)]  # the last axis first
    return F.pad(volume, pairs), affine @ from_matvec(np.eye(3), [-before for before in around[::2]])


def _tentorium_z_mm(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    row = np.interp(y, TENTORIUM_Y_MM, range(len(TENTORIUM_Y_MM)))
    column = np.interp(abs(x), TENTORIUM_X_MM, range(len(TENTORIUM_X_MM)))
    return ndimage.map_coordinates(np.asarray(TENTORIUM_Z_MM, np.float32), np.broadcast_arrays(row, column), order=1)


def _with_shell(brain: Float[Tensor, "7 x y z"], affine: np.ndarray) -> Float[Tensor, "tissue x y z"]:
    """All ten tissues: the stripped brain in CSF, an uneven skull, muscle and fat, a face and a neck of ellipsoids.

    None of it is measured: there are no eyes, air spaces or vessels, and the skull has no openings.
    """
    (spacing, _, _), shape = voxel_sizes(affine), tuple(brain.shape[1:])
    x, y, z = _mm_axes(shape, affine)
    rng = default_rng(152)

    def below(distance_mm: np.ndarray, limit_mm: np.ndarray | float) -> np.ndarray:
        """How much of a voxel lies below the limit: a ramp one voxel wide."""
        return np.clip((limit_mm - distance_mm) / spacing + 0.5, 0, 1)

    inside = brain.sum(0).numpy()
    cranium = np.maximum(inside, np.clip(ndimage.gaussian_filter(inside, 5.0 / spacing) * 4 - 1.2, 0, 1))
    outwards_mm = np.asarray(ndimage.distance_transform_edt(cranium < 0.5, sampling=spacing))
    skull_mm = 6 + 1.2 * smooth_noise(rng, shape, spacing, 25.0).numpy()
    scalp_mm = 7 + 1.5 * smooth_noise(rng, shape, spacing, 40.0).numpy()
    face = 1 - np.sqrt((x / 62) ** 2 + ((y - 38) / 58) ** 2 + ((z + 48) / 64) ** 2)
    neck = 1 - np.sqrt((x / 56) ** 2 + ((y + 28) / 62) ** 2 + 0 * z)
    bulk = (face > 0) | (neck > 0) & (z < -45) | (outwards_mm < 12)
    bulk = ndimage.gaussian_filter(bulk.astype(np.float32), 7.0 / spacing)  # rounds off where the pieces meet
    solid = np.maximum(below(outwards_mm, skull_mm + scalp_mm), np.clip((bulk - 0.5) * 6 + 0.5, 0, 1))
    depth_mm = np.asarray(ndimage.distance_transform_edt(solid > 0.5, sampling=spacing))
    is_fat = below(depth_mm, 4 + smooth_noise(rng, shape, spacing, 20.0).numpy())
    # Below the skull base fat lies between the muscles too.
    is_fat = np.maximum(is_fat, np.clip(0.4 * smooth_noise(rng, shape, spacing, 9.0).numpy(), 0, 0.6) * (z < 0))

    skull = below(outwards_mm, skull_mm) * (1 - cranium)
    soft = np.clip(solid - skull - cranium, 0, 1)
    shell = torch.from_numpy(np.stack([skull, soft * (1 - is_fat), soft * is_fat]).astype(np.float32))
    return torch.cat([brain[:-1], brain[-1:] + torch.from_numpy((cranium - inside).astype(np.float32)), shell])


# -------------------------------------------------------------------------------- One subject


@dataclass(frozen=True)
class Subject:
    """All that makes one head: a pure function of (seed, index), whatever else is drawn.

    `ventricle_growth_mm` is about how far the walls of the lateral ventricles move outwards; `asymmetry` adds that
    share of it on the right and takes it from the left. `is_oblique` says that the slices follow the tilt of the head.
    """

    seed: int
    index: int
    size: tuple[float, float, float]  # relative to the template along MNI x, y, z
    rotation_deg: tuple[float, float, float]
    shift_mm: tuple[float, float, float]
    ventricle_growth_mm: float
    asymmetry: float
    is_oblique: bool
    orientation: str

    @classmethod
    def draw(cls, seed: int, index: int) -> Subject:
        rng = default_rng([seed, index])
        overall = rng.normal(0.92, 0.025)  # the template is larger than most heads
        return cls(
            seed=seed,
            index=index,
            size=_triple(overall * rng.normal(1, 0.02, 3).clip(0.95, 1.05)),
            rotation_deg=_triple(rng.normal(0, 5, 3).clip(-12, 12)),
            shift_mm=_triple(rng.normal(0, 4, 3).clip(-8, 8)),
            ventricle_growth_mm=float(rng.uniform(-2.5, 6.5)),
            asymmetry=float(np.clip(rng.normal(0, 0.15), -0.4, 0.4)),
            is_oblique=bool(rng.random() < 0.3),
            orientation=str(rng.choice(ORIENTATIONS)),
        )

    @property
    def name(self) -> str:
        return f"sub-{self.index:05d}"

    @property
    def pose(self) -> np.ndarray:
        """`(4, 4)`: millimetres along the axes of the head to patient mm."""
        rotation = Rotation.from_euler("xyz", self.rotation_deg, degrees=True).as_matrix()
        return from_matvec(rotation, self.shift_mm)

    def generator(self, *purpose: int) -> Generator:
        """Draws for one purpose that no other purpose can disturb."""
        return default_rng([self.seed, self.index, *purpose])


def deformation(subject: Subject) -> Float[Tensor, "3 wx wy wz"]:
    """phi - identity in mm, on the warp grid: the subject's velocity field exponentiated, so one to one."""
    pull, affine = _ventricle_pull()
    rng, shape = subject.generator(0), tuple(pull.shape[1:])
    x, _, _ = _mm_axes(shape, affine)
    velocity = torch.from_numpy(subject.ventricle_growth_mm * (1 + subject.asymmetry * np.tanh(x / 10))) * pull
    for scale, deviation in WARP_NOISE_MM:
        noise = torch.stack([smooth_noise(rng, shape, WARP_SPACING_MM, scale) for _ in range(3)])
        velocity = velocity + deviation * noise

    # Scaling and squaring: exp(v) = exp(v / 2^n) composed with itself, n times over.
    grid = _grid_mm(shape, affine)
    displacement = velocity / 2**SQUARINGS
    for _ in range(SQUARINGS):
        there = grid + displacement.movedim(0, -1)
        displacement = displacement + sample(displacement, affine, there, padding="border")
    lowest = float(jacobian_determinant(displacement).min())
    assert lowest > 0, f"subject {subject.index} of seed {subject.seed} folds: lowest Jacobian determinant {lowest:.3f}"
    return displacement


def jacobian_determinant(displacement: Float[Tensor, "3 x y z"]) -> Float[Tensor, "x y z"]:
    """Local change of volume under x -> x + displacement, by central differences; above 0 nothing folds."""
    gradient = torch.stack(torch.gradient(displacement, spacing=WARP_SPACING_MM, dim=(1, 2, 3)), dim=1)
    return torch.linalg.det(gradient.movedim((0, 1), (-2, -1)) + torch.eye(3))


# Edges of the field of view around the head, along its x, y, z; 8 mm divides it, so that thick slices fit at 4 mm too.
FIELD_OF_VIEW_MM = ((-92, 92), (-126, 106), (-92, 100))


def head(subject: Subject, spacing_mm: float = 2.0) -> tuple[Float[Tensor, "tissue x y z"], np.ndarray]:
    """The subject's tissue fractions on an RAS grid of `spacing_mm`, and its affine to patient mm."""
    mni = template(spacing_mm)
    first, last = np.asarray(FIELD_OF_VIEW_MM, float).T
    shape = tuple(int(extent) for extent in (last - first) / spacing_mm)
    pose = subject.pose if subject.is_oblique else from_matvec(np.eye(3), subject.shift_mm)
    affine = pose @ from_matvec(spacing_mm * np.eye(3), first + spacing_mm / 2)
    to_mni = np.linalg.inv(subject.pose @ from_matvec(np.diag(subject.size)))
    points = _grid_mm(shape, to_mni @ affine)
    points = points + sample(deformation(subject), _ventricle_pull()[1], points, padding="border").movedim(0, -1)
    return sample(mni.fractions, mni.affine, points, padding="zeros"), affine


def label_map(fractions: Float[Tensor, "tissue x y z"]) -> UInt8[np.ndarray, "x y z"]:
    """The label that fills most of each voxel, 0 where that is air."""
    filled = torch.zeros(len(LABELS) + 1, *fractions.shape[1:])
    filled.index_add_(0, torch.tensor([LABELS[label] for label in TISSUES.values()]), fractions)
    filled[0] = 1 - fractions.sum(0)
    return filled.numpy().argmax(0).astype(np.uint8)  # four times as fast as torch's


def targets(labels: UInt8[np.ndarray, "x y z"], voxel_volume_ml: float) -> dict[str, float | int]:
    """What a head can be asked for, by counting voxels: ml per intracranial structure, enlarged ventricles."""
    counts = np.bincount(labels.ravel(), minlength=len(LABELS) + 1)
    ml = {f"{name}_ml": round(float(counts[LABELS[name]] * voxel_volume_ml), 3) for name in INTRACRANIAL}
    intracranial_ml = round(sum(ml.values()), 3)
    ratio = ml["ventricle_ml"] / intracranial_ml
    return {"enlarged_ventricles": int(ratio > ENLARGED_RATIO), **ml, "intracranial_ml": intracranial_ml}


# -------------------------------------------------------------------------------- Images


def render(
    fractions: Float[Tensor, "tissue x y z"], spacing_mm: np.ndarray, contrast: str, rng: Generator
) -> Float[np.ndarray, "x y z"]:
    """One image: levels mixed by tissue fraction, texture, a smooth receive field, Rician noise.

    `RANDOM` instead of a contrast draws each tissue's mean and spread anew. Whole numbers, as scanners store them.
    """
    shape = tuple(fractions.shape[1:])
    if contrast == RANDOM:
        mean, spread = rng.uniform(0.1, 1.5, len(TISSUES)), rng.uniform(0.02, 0.1, len(TISSUES))
    else:
        variation = rng.normal(1, 0.05, len(TISSUES))
        variation[CSF] = variation[VENTRICLE]  # one fluid
        mean = np.asarray(LEVELS[contrast]) * variation
        spread = 0.03 * mean
    mixed = torch.einsum("rt,txyz->rxyz", torch.from_numpy(np.stack([mean, spread])).float(), fractions)
    signal = mixed[0] + mixed[1] * smooth_noise(rng, shape, spacing_mm, 5.0)
    receive = torch.exp(0.15 * smooth_noise(rng, shape, spacing_mm, 90.0))
    sigma = rng.uniform(0.01, 0.05) * float(np.median(mean))
    noise = sigma * torch.from_numpy(rng.standard_normal((2, *shape), dtype=np.float32))
    magnitude = torch.hypot(signal.clamp(min=0) * receive + noise[0], noise[1])
    return (magnitude * rng.uniform(200, 800)).round().numpy()


def acquire(
    fractions: Float[Tensor, "tissue x y z"], affine: np.ndarray, contrast: str, orientation: str, rng: Generator
) -> tuple[Series, UInt8[np.ndarray, "i j k"]]:
    """One series of a head given on an RAS grid, and the labels on the same grid.

    Slices are as thick as the contrast's usually are and average what lies in them; the array is then stored along
    `orientation`. The affine follows both, so that every structure stays where it is in the patient.
    """
    fractions, affine = block_mean(fractions, affine, 1, 1, THICK_SLICES[contrast])
    voxels = render(fractions, voxel_sizes(affine), contrast, rng)
    labels = label_map(fractions)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation))
    affine = affine @ inv_ornt_aff(turn, voxels.shape)
    voxels, labels = (np.ascontiguousarray(apply_orientation(array, turn)) for array in (voxels, labels))
    named = "unknown" if contrast == RANDOM else checked_contrast(contrast)
    return Series(voxels, affine, named, name=contrast), labels


# -------------------------------------------------------------------------------- A cohort on disk


def write_cohort(
    folder: str | Path,
    num_subjects: int,
    seed: int,
    *,
    spacing_mm: float = 2.0,
    contrasts: Sequence[str] = ("T1w", "T2w"),
    splits: Mapping[str, float] = {"pretrain": 0.6, "train": 0.2, "test": 0.2},
    missing_series_probability: float = 0.15,
) -> Path:
    """Write images, label maps and `manifest.jsonl` into a new folder, which appears whole or not at all.

    `splits` are shares of the subjects. Each series is left out with `missing_series_probability`, though never all of
    a study. The mask is on the grid of the first series that is there, and the targets count its voxels. Returns the
    manifest's path.
    """
    folder = Path(folder)
    if folder.exists():
        remedy = "Remove it or choose another."
        raise InputError("a cohort is written into a new folder", got="one that exists", remedy=remedy, file=folder)
    for kind, names, known in (("contrast", contrasts, THICK_SLICES), ("split", splits, SPLITS)):
        for name in names:
            if name not in known:
                raise InputError(f"a cohort's {kind} is a known one", got=repr(name), remedy=did_you_mean(name, known))
    if num_subjects < 1 or not contrasts:
        got = (num_subjects, tuple(contrasts))
        raise InputError("a cohort has subjects and contrasts", got=got, remedy="Ask for one of each at least.")
    if not math.isclose(sum(splits.values()), 1) or min(splits.values()) < 0:
        raise InputError("the splits' shares add up to 1", got=dict(splits), remedy="Mend the shares.")

    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.aside")
    aside.mkdir(parents=True)
    try:
        subjects = [Subject.draw(seed, index) for index in range(num_subjects)]
        write = partial(_write_study, aside, spacing_mm, contrasts, missing_series_probability)
        rows = [write(subject, _split(subject.index, splits)) for subject in track(subjects, "Making subjects")]
        write_manifest(aside / "manifest.jsonl", rows)
        os.rename(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return folder / "manifest.jsonl"


def _write_study(
    folder: Path, spacing_mm: float, contrasts: Sequence[str], missing: float, subject: Subject, split: str
) -> Row:
    (folder / subject.name).mkdir()
    rng = subject.generator(1)
    kept = rng.random(len(contrasts)) >= missing
    kept[int(rng.integers(len(contrasts)))] |= not kept.any()
    fractions, affine = head(subject, spacing_mm)
    scans = {}
    for contrast in (contrast for contrast, is_kept in zip(contrasts, kept) if is_kept):
        # Each contrast has draws of its own, so that leaving one out changes no other.
        rng = subject.generator(2, list(THICK_SLICES).index(contrast))
        scans[f"{subject.name}/{contrast}.nii.gz"] = acquire(fractions, affine, contrast, subject.orientation, rng)
    for path, (series, _) in scans.items():
        write_volume(folder / path, series.voxels, series)
    reference, labels = next(iter(scans.values()))
    mask = f"{subject.name}/labels.nii.gz"
    write_labels(folder / mask, labels, reference)
    return Row(
        subject=subject.name,
        series=tuple(SeriesEntry(path=path, contrast=series.contrast) for path, (series, _) in scans.items()),
        mask=mask,
        targets=dict(targets(labels, reference.voxel_volume_ml)),
        split=cast(Split, split),
    )


def _split(index: int, splits: Mapping[str, float]) -> str:
    """By the index alone: multiples of the golden ratio, modulo 1, fill all shares evenly however many there are."""
    edges = np.cumsum(list(splits.values()))[:-1]
    return list(splits)[int(np.searchsorted(edges, index * (math.sqrt(5) - 1) / 2 % 1, side="right"))]


# -------------------------------------------------------------------------------- Grids


def sample(
    volume: Float[Tensor, "channel x y z"], affine: np.ndarray, points_mm: Float[Tensor, "px py pz 3"], *, padding: str
) -> Float[Tensor, "channel px py pz"]:
    """`volume`, whose voxels `affine` takes to mm, read trilinearly at points; `padding` is "zeros" or "border"."""
    to_voxel = torch.from_numpy(np.linalg.inv(affine)).float()
    size = torch.tensor(volume.shape[1:])
    normal = (points_mm @ to_voxel[:3, :3].T + to_voxel[:3, 3]) * (2 / (size - 1)) - 1
    # grid_sample names the last array axis first.
    return F.grid_sample(volume[None], normal.flip(-1)[None], padding_mode=padding, align_corners=True)[0]


def block_mean(
    volume: Float[Tensor, "channel x y z"], affine: np.ndarray, i: int, j: int | None = None, k: int | None = None
) -> tuple[Float[Tensor, "channel bx by bz"], np.ndarray]:
    """Means over blocks of `(i, j, k)` voxels, cubes if only `i` is given, and the affine of their centres."""
    j, k = j or i, k or i
    means = reduce(volume, "channel (x i) (y j) (z k) -> channel x y z", "mean", i=i, j=j, k=k)
    block = np.array([i, j, k], float)  # from_matvec takes over the type: integers would cut the half voxels off
    return means, affine @ from_matvec(np.diag(block), (block - 1) / 2)


def smooth_noise(
    rng: Generator, shape: tuple[int, ...], spacing_mm: float | np.ndarray, scale_mm: float
) -> Float[Tensor, "x y z"]:
    """A field of mean 0 and standard deviation about 1: cubic B-splines with normal coefficients every `scale_mm`."""
    bases = []
    for size, spacing in zip(shape, np.broadcast_to(spacing_mm, 3)):
        position = np.arange(size) * spacing / scale_mm
        t = abs(position[:, None] - np.arange(-1, math.ceil(position[-1]) + 2))
        basis = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6)
        bases.append(torch.from_numpy(basis / math.sqrt(151 / 315)).float())  # mean over t of the summed squares
    field = torch.from_numpy(rng.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32))
    for basis in bases:  # each turn replaces the first axis and puts it last
        field = torch.einsum("abc,xa->bcx", field, basis)
    return field


def _mm_axes(shape: tuple[int, ...], affine: np.ndarray) -> tuple[np.ndarray, ...]:
    """x, y, z in mm along the axes of an axis-aligned RAS grid, shaped to broadcast."""
    axes = np.ogrid[tuple(slice(size) for size in shape)]
    lines = zip(axes, np.diag(affine), affine[:3, 3])
    return tuple((step * axis + origin).astype(np.float32) for axis, step, origin in lines)


def _grid_mm(shape: tuple[int, ...], affine: np.ndarray) -> Float[Tensor, "x y z 3"]:
    """Where `affine` takes each voxel."""
    linear = torch.from_numpy(affine).float()
    x, y, z = (torch.arange(size).view(-1, *[1] * (2 - axis), 1) * linear[:3, axis] for axis, size in enumerate(shape))
    return x + y + z + linear[:3, 3]


def _voxel(affine: np.ndarray, point_mm: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(np.rint(apply_affine(np.linalg.inv(affine), point_mm)).astype(int).tolist())


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
