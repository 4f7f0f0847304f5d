"""One synthetic head: a subject's latent record, and the anatomy that follows from it.

    subject = Subject.draw(seed=0, index=7)
    anatomy = build_anatomy(subject, BundledTemplate(), spacing_mm=2.0)

Three frames, all RAS+ millimetres: "MNI" is the template's, "head" the subject's own, lying straight, and "patient" the
scanner's. With v a smooth velocity field, S a diagonal size and (R, t) the pose, a patient point p shows the template at

    phi(S^-1 push(R^-1 (p - t))),     phi = exp(v),

where `push` is the mass effect of a tumour. So deformation, size, pose and the grid of the images are one resampling.

An anatomy holds two materials per voxel, how much the first fills, and a texture: four bytes. A new acquisition of it is two
lookups and a weighted sum. Signals are mixed that way, never relaxation times: a mixed T1 is the T1 of nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int8, UInt8
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from numpy.random import Generator, default_rng
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

from foundation.cohort.grids import grid_mm, sample, smooth_noise
from foundation.cohort.materials import INDEX, LABEL_OF, MATERIALS, NUM_HEALTHY
from foundation.cohort.templates import HEAD_MM, AnatomySource, Template

ORIENTATIONS = ("RAS", "LAS", "PSR")
VENDORS = ("Siemens", "GE", "Philips")
DISEASES = ("glioma", "multiple_sclerosis", "white_matter_disease", "infarct", "haemorrhage", "atrophy")
# How often each occurs in a cohort; the rest are normal. Not how often in people: every task needs cases.
PREVALENCE = {
    "glioma": 0.18,
    "multiple_sclerosis": 0.14,
    "white_matter_disease": 0.20,
    "infarct": 0.12,
    "haemorrhage": 0.10,
    "atrophy": 0.14,
}

WARP_SPACING_MM = 4.0  # grid of velocities and displacements, whatever the spacing of the images
WARP_NOISE_MM = ((36.0, 2.2), (14.0, 0.8))  # (distance of control points, standard deviation of the velocity)
SQUARINGS = 6
WARP_SHAPE = tuple(int((last - first) / WARP_SPACING_MM) for first, last in HEAD_MM)
WARP_AFFINE = from_matvec(
    WARP_SPACING_MM * np.eye(3), np.array([first for first, _ in HEAD_MM]) + WARP_SPACING_MM / 2 - 0.5
)

Family = Literal["usual", "shifted"]
Sex = Literal["female", "male"]


# What is drawn for what: each purpose has a generator of its own, so that no draw disturbs another.
RECORD, SHAPE, TEMPLATE, TEXTURE, DISEASE, PROTOCOL, IMAGE, OUTCOME = range(1, 9)


def subject_name(index: int) -> str:
    """What a subject and its folder are called."""
    return f"sub-{index:05d}"


@dataclass(frozen=True)
class Push:
    """Mass effect: tissue around `centre_mm` (head mm) moves outwards, by at most `shift_mm` at `reach_mm` from it.

    The displacement is shift (r / reach) exp((1 - (r / reach)^2) / 2). Looking points up against it stays one to one as
    long as shift < reach / sqrt(e).
    """

    centre_mm: tuple[float, float, float]
    shift_mm: float
    reach_mm: float

    def __post_init__(self) -> None:
        assert 0 <= self.shift_mm < self.reach_mm / np.sqrt(np.e), (self.shift_mm, self.reach_mm)

    def back(self, points_mm: Float[Tensor, "*points 3"]) -> Float[Tensor, "*points 3"]:
        """Where what is now at these head points was before."""
        from_centre = points_mm - torch.tensor(self.centre_mm, dtype=points_mm.dtype)
        ratio = from_centre.norm(dim=-1, keepdim=True) / self.reach_mm
        return points_mm - from_centre * (self.shift_mm / self.reach_mm) * torch.exp((1 - ratio**2) / 2)


@dataclass(frozen=True)
class Subject:
    """All that makes one head: a pure function of (seed, index), whatever else is drawn.

    `ventricle_growth_mm` is about how far the walls of the lateral ventricles move outwards; `asymmetry` adds that share of it
    on the right and takes it from the left. `cortical_atrophy` is the share of the cortex next to fluid that is lost,
    `hippocampal_atrophy` the share of each hippocampus (left, right). `is_oblique` says that slices follow the head's tilt.
    """

    seed: int
    index: int
    family: Family
    age_years: float
    sex: Sex
    diagnoses: tuple[str, ...]
    field_t: float
    vendor: str
    size: tuple[float, float, float]  # relative to the template along MNI x, y, z
    rotation_deg: tuple[float, float, float]
    shift_mm: tuple[float, float, float]
    ventricle_growth_mm: float
    asymmetry: float
    cortical_atrophy: float
    hippocampal_atrophy: tuple[float, float]
    is_oblique: bool
    orientation: str

    @classmethod
    def draw(cls, seed: int, index: int, family: Family = "usual") -> Subject:
        """The record first, then the shape that goes with it: ventricles and sulci widen with age and with atrophy."""
        rng = default_rng([seed, index, RECORD])
        sex: Sex = "female" if rng.random() < 0.5 else "male"
        chance = rng.random(len(DISEASES))
        diagnoses = [name for name, drawn in zip(DISEASES, chance, strict=True) if drawn < PREVALENCE[name]]
        age = float(rng.uniform(20, 88))
        if "multiple_sclerosis" in diagnoses:
            age = 20 + (age - 20) * 0.55
        if {"atrophy", "white_matter_disease", "infarct", "haemorrhage"} & set(diagnoses):
            age = 50 + (age - 20) * 38 / 68
        usual_fields, odd_fields = (1.5, 3.0, 3.0), (0.55, 7.0)
        field_t = float(rng.choice(usual_fields if family == "usual" else odd_fields))
        vendor = str(rng.choice(VENDORS))

        rng = default_rng([seed, index, SHAPE])
        # The template is larger than most heads. Bounded, or now and then an adult would have a child's head.
        overall = (0.935 if sex == "male" else 0.895) + 0.022 * float(np.clip(rng.standard_normal(), -2.5, 2.5))
        ageing = max(0.0, age - 40) / 48
        disease = float(rng.uniform(0.5, 1.0)) if "atrophy" in diagnoses else 0.0
        lost = np.clip(0.05 * ageing + disease * rng.uniform(0.2, 0.45) + rng.normal(0, 0.04, 2), 0, 0.6)
        return cls(
            seed=seed,
            index=index,
            family=family,
            age_years=round(age, 1),
            sex=sex,
            diagnoses=tuple(diagnoses),
            field_t=field_t,
            vendor=vendor,
            size=_triple(overall * rng.normal(1, 0.02, 3).clip(0.95, 1.05)),
            rotation_deg=_triple(rng.normal(0, 5, 3).clip(-12, 12)),
            shift_mm=_triple(rng.normal(0, 4, 3).clip(-8, 8)),
            ventricle_growth_mm=float(np.clip(rng.normal(-0.5, 1.2) + 3.0 * ageing + 3.0 * disease, -2.5, 6.5)),
            asymmetry=float(np.clip(rng.normal(0, 0.15), -0.4, 0.4)),
            cortical_atrophy=float(np.clip(0.3 * ageing + 0.4 * disease + rng.normal(0, 0.05), 0, 0.9)),
            hippocampal_atrophy=(float(lost[0]), float(lost[1])),
            is_oblique=bool(rng.random() < 0.3),
            orientation=str(rng.choice(ORIENTATIONS)),
        )

    @property
    def name(self) -> str:
        return subject_name(self.index)

    @property
    def pose(self) -> np.ndarray:
        """`(4, 4)`: head mm to patient mm."""
        rotation = Rotation.from_euler("xyz", self.rotation_deg, degrees=True).as_matrix()
        return from_matvec(rotation, self.shift_mm)

    def generator(self, *purpose: int) -> Generator:
        """Draws for one purpose that no other purpose can disturb."""
        return default_rng([self.seed, self.index, *purpose])


# -------------------------------------------------------------------------------- Where a point of the patient came from


@dataclass(frozen=True)
class Mapping:
    """From the patient back to the template: pose, mass effect, size, deformation."""

    subject: Subject
    displacement: Float[Tensor, "3 wx wy wz"]
    push: Push | None = None

    def to_head(self, patient_mm: np.ndarray) -> np.ndarray:
        return apply_affine(np.linalg.inv(self.subject.pose), patient_mm)

    def to_mni(self, head_mm: Float[Tensor, "px py pz 3"]) -> Float[Tensor, "px py pz 3"]:
        if self.push is not None:
            head_mm = self.push.back(head_mm)
        points = head_mm / torch.tensor(self.subject.size)
        return points + sample(self.displacement, WARP_AFFINE, points, padding="border").movedim(0, -1)

    def mni_of(self, patient_mm: Sequence[float] | np.ndarray) -> np.ndarray:
        """MNI mm of one patient point, `(3,)`."""
        head = torch.from_numpy(self.to_head(np.asarray(patient_mm, float))).float()
        return self.to_mni(head[None, None, None])[0, 0, 0].numpy()


def deformation(subject: Subject, template: Template) -> Float[Tensor, "3 wx wy wz"]:
    """phi - identity in mm, on the warp grid: the subject's velocity field exponentiated, so one to one."""
    pull = _ventricle_pull(template)
    rng = subject.generator(SHAPE, 1)
    x = torch.from_numpy(WARP_AFFINE[0, 3] + WARP_SPACING_MM * np.arange(WARP_SHAPE[0])).float()[:, None, None]
    velocity = template.ageing * subject.ventricle_growth_mm * (1 + subject.asymmetry * torch.tanh(x / 10)) * pull
    for scale, deviation in WARP_NOISE_MM:
        noise = torch.stack([smooth_noise(rng, WARP_SHAPE, WARP_SPACING_MM, scale) for _ in range(3)])
        velocity = velocity + deviation * noise

    # Scaling and squaring: exp(v) = exp(v / 2^n) composed with itself, n times over.
    grid = grid_mm(WARP_SHAPE, WARP_AFFINE)
    displacement = velocity / 2**SQUARINGS
    for _ in range(SQUARINGS):
        there = grid + displacement.movedim(0, -1)
        displacement = displacement + sample(displacement, WARP_AFFINE, there, padding="border")
    lowest = float(jacobian_determinant(displacement).min())
    assert lowest > 0, f"subject {subject.index} of seed {subject.seed} folds: lowest Jacobian determinant {lowest:.3f}"
    return displacement


def jacobian_determinant(displacement: Float[Tensor, "3 x y z"]) -> Float[Tensor, "x y z"]:
    """Local change of volume under x -> x + displacement, by central differences; above 0 nothing folds."""
    gradient = torch.stack(torch.gradient(displacement, spacing=WARP_SPACING_MM, dim=(1, 2, 3)), dim=1)
    return torch.linalg.det(gradient.movedim((0, 1), (-2, -1)) + torch.eye(3))


_pulls: dict[tuple[str, tuple[int, ...], bytes], Tensor] = {}


def _ventricle_pull(template: Template) -> Float[Tensor, "3 wx wy wz"]:
    """A field on the warp grid that points into the lateral ventricles, at most 1 long.

    Looking the template up along it widens the ventricles: the gradient of their blurred shape, so smooth and local.
    """
    key = (template.name, tuple(template.fractions.shape), template.affine.tobytes())  # two files may share a name
    if key not in _pulls:
        # Smoothed before it is read at 4 mm, or thin parts would fall between the points.
        step = round(WARP_SPACING_MM / float(voxel_sizes(template.affine).mean()))
        fluid = _box_mean(template.fraction(INDEX["ventricular fluid"]), 2 * step + 1)
        coarse = sample(fluid[None], template.affine, grid_mm(WARP_SHAPE, WARP_AFFINE), padding="zeros")
        blurred = torch.from_numpy(ndimage.gaussian_filter(coarse[0].numpy(), 8.0 / WARP_SPACING_MM))
        pull = torch.stack(torch.gradient(blurred))
        _pulls[key] = pull / pull.norm(dim=0).max()
    return _pulls[key]


# -------------------------------------------------------------------------------- Two materials per voxel

Box = tuple[slice, slice, slice]
EVERYWHERE: Box = (slice(None), slice(None), slice(None))


@dataclass
class Anatomy:
    """A head on an RAS grid: `share` of each voxel is `first`, the rest `second`; `texture` is a smooth field in 64ths.

    `affine` takes voxels to patient mm. Disease is painted in; nothing else changes an anatomy after it was built.
    """

    mapping: Mapping
    affine: np.ndarray
    first: UInt8[Tensor, "x y z"]
    second: UInt8[Tensor, "x y z"]
    share: Float[Tensor, "x y z"]
    texture: Int8[Tensor, "x y z"]
    source: str
    facts: dict[str, float | int | str] = field(default_factory=dict)

    @property
    def subject(self) -> Subject:
        return self.mapping.subject

    @property
    def shape(self) -> tuple[int, int, int]:
        x, y, z = self.first.shape
        return (x, y, z)

    @property
    def spacing_mm(self) -> np.ndarray:
        return voxel_sizes(self.affine)

    @property
    def labels(self) -> UInt8[np.ndarray, "x y z"]:
        """The structure that fills most of each voxel, as `STRUCTURES` numbers them; 0 is air."""
        return LABEL_OF[self.first.numpy()]

    def fraction(self, materials: Sequence[int], box: Box = EVERYWHERE) -> Float[Tensor, "bx by bz"]:
        """How much of each voxel of a box these materials fill."""
        is_wanted = torch.zeros(len(MATERIALS))
        is_wanted[list(materials)] = 1
        first, second, share = self.first[box], self.second[box], self.share[box]
        return is_wanted[first.int()] * share + is_wanted[second.int()] * (1 - share)

    def mix(self, values: Float[Tensor, "materials"]) -> Float[Tensor, "x y z"]:
        """Each voxel's mean of a number that every material has."""
        table = values.float()
        return torch.lerp(table[self.second.int()], table[self.first.int()], self.share)

    def crop(self, box: Box) -> Anatomy:
        """The part of the head in a box of voxels, where it was in the patient; it shares memory with the whole."""
        first = [axis.start or 0 for axis in box]
        affine = self.affine.copy()
        affine[:3, 3] = apply_affine(self.affine, first)
        parts = {name: getattr(self, name)[box] for name in ("first", "second", "share", "texture")}
        return replace(self, affine=affine, **parts)

    def head_mm(self) -> Float[Tensor, "x y z 3"]:
        return grid_mm(self.shape, np.linalg.inv(self.subject.pose) @ self.affine)

    def paint(self, box: Box, material: int, amount: Float[Tensor, "bx by bz"]) -> None:
        """Put `amount` of each voxel's content, from 0 to 1, in the place of what is there."""
        first, second, share = (array[box].clone() for array in (self.first, self.second, self.share))
        # What is of this material already stays so, or a lesion's edge would thin out another one that it overlaps.
        filled = torch.where(first == material, share, 0) + torch.where(second == material, 1 - share, 0)
        amount = torch.where(amount > 0.05, amount + (1 - amount) * filled, 0)
        is_most = amount >= 0.5
        is_some = (amount > 0.05) & ~is_most & (first != material)
        # What was first stays as the rest, unless it is the same material already.
        second = torch.where(is_most & (first != material), first, second)
        second = torch.where(is_some, torch.full_like(second, material), second)
        share = torch.where(is_most, amount, torch.where(is_some, 1 - amount, share))
        first = torch.where(is_most, torch.full_like(first, material), first)
        self.first[box], self.second[box], self.share[box] = first, second, share


# Edges of the field of view around the head, along its x, y, z; 8 mm divides it, so that thick slices fit at 4 mm too.
FIELD_OF_VIEW_MM = ((-92, 92), (-126, 106), (-92, 100))


def build_anatomy(
    subject: Subject,
    source: AnatomySource,
    spacing_mm: float = 2.0,
    *,
    push: Push | None = None,
    offset_voxels: float = 0.0,
) -> Anatomy:
    """The healthy head of a subject, or what a tumour pushed aside in it; disease is drawn in afterwards.

    `offset_voxels` moves the grid along its axes, not the head.
    """
    template = source.template(spacing_mm, subject.generator(TEMPLATE))
    mapping = Mapping(subject, deformation(subject, template), push)
    first, last = np.asarray(FIELD_OF_VIEW_MM, float).T
    x, y, z = (int(extent) for extent in (last - first) / spacing_mm)
    # Slices lie along the scanner's axes, or along the head's when the technician tilted them with it.
    pose = subject.pose if subject.is_oblique else from_matvec(np.eye(3), subject.shift_mm)
    affine = pose @ from_matvec(spacing_mm * np.eye(3), first + spacing_mm * (0.5 + offset_voxels))
    head_mm = grid_mm((x, y, z), np.linalg.inv(subject.pose) @ affine)
    points = mapping.to_mni(head_mm)
    is_right = points[..., 0] >= 0
    points = _normal(points, template)
    first, second, share = _pack(subject, template, points, is_right, spacing_mm)
    rng = subject.generator(TEXTURE)
    texture = 0.7 * smooth_noise(rng, (x, y, z), spacing_mm, 6.0) + 0.7 * smooth_noise(rng, (x, y, z), spacing_mm, 2.5)
    return Anatomy(mapping, affine, first, second, share, (32 * texture).clamp(-127, 127).to(torch.int8), template.name)


def _normal(points_mm: Float[Tensor, "x y z 3"], template: Template) -> Float[Tensor, "x y z 3"]:
    """Template points as `grid_sample` wants them, once for all materials: -1 to 1, last array axis first."""
    to_voxel = torch.from_numpy(np.linalg.inv(template.affine)).float()
    size = torch.tensor(template.fractions.shape[1:])
    return ((points_mm @ to_voxel[:3, :3].T + to_voxel[:3, 3]) * (2 / (size - 1)) - 1).flip(-1)


def _pack(
    subject: Subject, template: Template, points: Tensor, is_right: Tensor, spacing_mm: float
) -> tuple[UInt8[Tensor, "x y z"], UInt8[Tensor, "x y z"], Float[Tensor, "x y z"]]:
    """The two materials that fill most of each voxel; one material in memory at a time, as 1 mm is many voxels."""

    def look(name: str) -> Tensor:
        channel = template.fraction(INDEX[name])[None, None]
        return torch.nn.functional.grid_sample(channel, points[None], align_corners=True)[0, 0]

    changed = {name: look(name) for name in ("cortex", "fluid", "hippocampus", "ventricular fluid")}
    _atrophy(subject, template.ageing, changed, is_right, spacing_mm)
    shape = points.shape[:3]
    most, less, total = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)
    first, second = torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape, dtype=torch.uint8)

    def enter(index: int, fraction: Tensor) -> None:
        """Let one material take the first or the second place where it fills more than what holds it."""
        nonlocal most, less, first, second
        leads, follows = fraction > most, fraction > less
        less = torch.where(leads, most, torch.where(follows, fraction, less))
        second = torch.where(leads, first, torch.where(follows, torch.full_like(first, index), second))
        most = torch.where(leads, fraction, most)
        first = torch.where(leads, torch.full_like(first, index), first)

    for name, index in list(INDEX.items())[1:NUM_HEALTHY]:
        fraction = changed.pop(name) if name in changed else look(name)
        total += fraction
        enter(index, fraction)
    # Air is what is left, but a template's rounding must not leave air inside a head.
    enter(INDEX["air"], torch.where(total > 0.97, 0, 1 - total).clamp(min=0))
    return first, second, torch.where(most + less > 0, most / (most + less).clamp(min=1e-6), 1.0)


def _atrophy(subject: Subject, ageing: float, changed: dict[str, Tensor], is_right: Tensor, spacing_mm: float) -> None:
    """Turn cortex next to fluid into fluid, and the outside of each hippocampus into the horn beside it."""
    fluid = changed["fluid"]
    size = 2 * max(1, round(2.0 / spacing_mm)) + 1
    near = _box_mean(fluid, size)
    lost = changed["cortex"] * (ageing * subject.cortical_atrophy * 1.6 * near).clamp(0, 0.8)
    changed["cortex"] = changed["cortex"] - lost
    changed["fluid"] = fluid + lost
    hippocampus = changed["hippocampus"]
    size = 2 * max(1, round(3.0 / spacing_mm)) + 1
    depth = _box_mean(hippocampus, size)
    for side, share in zip((~is_right, is_right), subject.hippocampal_atrophy, strict=True):
        inside = (hippocampus > 0) & side
        if share > 0 and inside.any():
            outermost, order = depth[inside].sort(stable=True)
            filled = hippocampus[inside][order].cumsum(0)
            edge = outermost[torch.searchsorted(filled, ageing * share * filled[-1])]
            gone = hippocampus * ((edge - depth) * 8 + 0.5).clamp(0, 1) * side
            changed["hippocampus"] = changed["hippocampus"] - gone
            changed["ventricular fluid"] = changed["ventricular fluid"] + gone


def _box_mean(image: Float[Tensor, "x y z"], size: int) -> Float[Tensor, "x y z"]:
    """Means over cubes, with nothing outside of the image. Axis by axis: torch's own pooling took a third of a head's time."""
    return torch.from_numpy(ndimage.uniform_filter(image.numpy(), size, mode="constant"))


def simulate_midline_shift_mm(anatomy: Anatomy) -> float:
    """How far the tumour moved the middle of the brain sideways, in mm: the largest over the septum's height."""
    push = anatomy.mapping.push
    if push is None:
        return 0.0
    head = anatomy.head_mm()
    mni = anatomy.mapping.to_mni(head)
    is_middle = (mni[..., 0].abs() < 1.5) & (mni[..., 1].abs() < 35) & (mni[..., 2] > 0) & (mni[..., 2] < 25)
    if not is_middle.any():
        return 0.0
    moved = (head - push.back(head))[..., 0][is_middle]
    return float(moved.abs().max())


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
