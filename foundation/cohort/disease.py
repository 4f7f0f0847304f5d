"""Disease drawn into a head: lesions with masks, and what can be measured of them.

    anatomy = anatomy_with_disease(subject, source, 2.0)
    lesions = measure_lesions(anatomy.labels, anatomy.affine, anatomy.mapping)

Shapes follow how the diseases spread, as far as a radiologist would look for it: oedema marches through white matter only,
plaques stand on the ventricles, hyperintensities cap them, an infarct takes cortex and white matter of one territory.
Nothing here is fitted to patients.

All lengths are millimetres in the head's own frame. A plan is a pure function of the subject, so that the same lesions appear
at every spacing; only their edges are as sharp as the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from nibabel.affines import apply_affine
from numpy.random import Generator, default_rng
from scipy import ndimage
from torch import Tensor

from foundation.cohort.anatomy import (
    DISEASE,
    WARP_AFFINE,
    WARP_SHAPE,
    WARP_SPACING_MM,
    Anatomy,
    Push,
    Subject,
    build_anatomy,
)
from foundation.cohort.grids import sample, smooth_noise
from foundation.cohort.materials import INDEX, LESIONS, STRUCTURES, indices
from foundation.cohort.templates import AnatomySource
from foundation.lesions import pieces_of

COARSE_MM = 4.0
BRAIN_TISSUE = indices(
    "cerebral cortex", "cerebral white matter", "thalamus", "caudate", "putamen", "pallidum", "hippocampus"
)
WHITE = indices("cerebral white matter")
VENTRICLE = indices("lateral ventricle")
SMALLEST_ML = {"white matter hyperintensity": 0.02, "plaque": 0.02}  # below it, a piece is no lesion of its own


@dataclass(frozen=True)
class Blob:
    """Where a lesion is and how large: a centre in head mm, its mean radius, and the seed of its shape."""

    centre_mm: tuple[float, float, float]
    radius_mm: float
    seed: int


@dataclass(frozen=True)
class Plan:
    """What will be drawn; `push` is the mass effect that the anatomy is built with."""

    blobs: dict[str, tuple[Blob, ...]]
    numbers: dict[str, float]
    push: Push | None = None


@dataclass(frozen=True)
class Lesion:
    """One connected piece of one structure, as counted in a mask."""

    structure: str
    volume_ml: float
    centroid_mm: tuple[float, float, float]  # patient
    side: str
    lobe: str


def anatomy_with_disease(
    subject: Subject, source: AnatomySource, spacing_mm: float, *, offset_voxels: float = 0.0
) -> Anatomy:
    """The subject's head: planned first, because mass effect is part of how it is built, then drawn."""
    plan = plan_disease(subject, source)
    anatomy = build_anatomy(subject, source, spacing_mm, push=plan.push, offset_voxels=offset_voxels)
    draw_disease(anatomy, plan)
    anatomy.facts.update(plan.numbers)
    return anatomy


# -------------------------------------------------------------------------------- Planning


def plan_disease(subject: Subject, source: AnatomySource) -> Plan:
    """Choose places in the subject's own healthy head, at 4 mm, where the place matters only to a voxel."""
    wanted = [name for name in subject.diagnoses if name in _PLANNERS]
    if not wanted:
        return Plan({}, {})
    coarse = build_anatomy(subject, source, COARSE_MM)
    head_mm = coarse.head_mm().numpy()
    mni_mm = coarse.mapping.to_mni(torch.from_numpy(head_mm)).numpy()
    places = _Places(coarse, head_mm, mni_mm)
    blobs: dict[str, tuple[Blob, ...]] = {}
    numbers: dict[str, float] = {}
    push = None
    for name in wanted:
        rng = subject.generator(DISEASE, list(_PLANNERS).index(name))
        found, facts = _PLANNERS[name](places, rng)
        blobs[name] = found
        shift_mm, reach_mm = facts.pop("push_mm", 0.0), facts.pop("reach_mm", 0.0)
        if found and shift_mm > 0 and push is None:
            # Two mass effects at once would no longer be one to one without a check; the first disease has it.
            push = Push(found[0].centre_mm, shift_mm, reach_mm)
            facts |= {"push_mm": shift_mm, "reach_mm": reach_mm}
        numbers |= {f"{name} {key}": value for key, value in facts.items()}
    return Plan(blobs, numbers, push)


@dataclass(frozen=True)
class _Places:
    anatomy: Anatomy
    head_mm: np.ndarray
    mni_mm: np.ndarray

    def choose(self, rng: Generator, where: Bool[np.ndarray, "x y z"]) -> tuple[float, float, float] | None:
        """A random voxel's place among those allowed, in head mm."""
        index = np.flatnonzero(where)
        if not len(index):
            return None
        x, y, z = self.head_mm.reshape(-1, 3)[index[rng.integers(len(index))]].tolist()
        return (x, y, z)

    def filled(self, materials: Sequence[int], least: float = 0.6) -> Bool[np.ndarray, "x y z"]:
        return (self.anatomy.fraction(materials) > least).numpy()

    def from_ventricle_mm(self) -> Float[np.ndarray, "x y z"]:
        return _distance_mm(~self.filled(VENTRICLE, 0.5), self.anatomy.spacing_mm)


def _distance_mm(outside: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """How far each voxel that is `outside` lies from those that are not."""
    if outside.all():
        return np.full(outside.shape, 1e3, np.float32)
    return np.asarray(ndimage.distance_transform_edt(outside, sampling=spacing_mm), np.float32)


def _blob(rng: Generator, centre: tuple[float, float, float] | None, radius_mm: float) -> tuple[Blob, ...]:
    seed = int(rng.integers(2**31))
    return () if centre is None else (Blob(centre, float(radius_mm), seed),)


def _plan_glioma(places: _Places, rng: Generator) -> tuple[tuple[Blob, ...], dict[str, float]]:
    """Deep in the white matter of one hemisphere; two in three enhance around a dead core."""
    x, z = places.mni_mm[..., 0], places.mni_mm[..., 2]
    where = places.filled(WHITE) & (abs(x) > 16) & (z > -18) & (places.from_ventricle_mm() > 6)
    radius = float(rng.uniform(9, 20))
    high_grade = rng.random() < 0.66
    facts = {
        "high_grade": float(high_grade),
        "necrosis": float(rng.uniform(0.3, 0.68)) if high_grade else 0.0,
        "oedema_mm": float(rng.uniform(5, 20)) if high_grade else float(rng.uniform(0, 5)),
        "push_mm": float(rng.uniform(0.15, 0.42) * radius),
        "reach_mm": float(1.25 * radius + 6),
    }
    return _blob(rng, places.choose(rng, where), radius), facts


def _plan_plaques(places: _Places, rng: Generator) -> tuple[tuple[Blob, ...], dict[str, float]]:
    """Most stand on the lateral ventricles, some lie under the cortex and in the hindbrain's white matter."""
    near = places.from_ventricle_mm()
    white = places.filled(WHITE, 0.55)
    cortex = _distance_mm(~places.filled(indices("cerebral cortex"), 0.6), places.anatomy.spacing_mm)
    hindbrain = places.filled([INDEX["cerebellar white matter"], INDEX["brainstem"]])
    found: list[Blob] = []
    for _ in range(int(rng.integers(5, 28))):
        kind = rng.random()
        where = white & (near < 9) if kind < 0.65 else white & (cortex < 7) if kind < 0.9 else hindbrain
        found += _blob(rng, places.choose(rng, where), rng.uniform(2.0, 5.5))
    return tuple(found), {}


def _plan_hyperintensities(places: _Places, rng: Generator) -> tuple[tuple[Blob, ...], dict[str, float]]:
    """Bands around the ventricles, as deep as the disease is severe, and spots in the deep white matter."""
    severity = float(rng.uniform(0.15, 1.0))
    where = places.filled(WHITE, 0.7) & (places.from_ventricle_mm() > 8)
    found: list[Blob] = []
    for _ in range(int(rng.integers(2, 4 + round(16 * severity)))):
        found += _blob(rng, places.choose(rng, where), rng.uniform(1.8, 2.5 + 3 * severity))
    return tuple(found), {"severity": severity, "band_seed": float(rng.integers(2**31))}


def _plan_infarct(places: _Places, rng: Generator) -> tuple[tuple[Blob, ...], dict[str, float]]:
    """A wedge of one hemisphere's side, mostly in the territory of the middle cerebral artery, or a small deep one."""
    x, y, z = np.moveaxis(places.mni_mm, -1, 0)
    if rng.random() < 0.3:
        deep = indices("thalamus", "putamen", "caudate", "cerebral white matter")
        where = places.filled(deep) & (abs(x) < 32) & (abs(x) > 8) & (abs(y) < 25) & (z > -5) & (z < 28)
        return _blob(rng, places.choose(rng, where), rng.uniform(4, 8)), {}
    lateral = places.filled(BRAIN_TISSUE, 0.5) & (abs(x) > 34) & (y > -60) & (y < 35) & (z > -12) & (z < 50)
    return _blob(rng, places.choose(rng, lateral), rng.uniform(12, 28)), {}


def _plan_haemorrhage(places: _Places, rng: Generator) -> tuple[tuple[Blob, ...], dict[str, float]]:
    """In the basal ganglia where pressure bursts small vessels, or in a lobe."""
    deep = rng.random() < 0.65
    where = places.filled(indices("putamen", "thalamus", "pallidum"), 0.5)
    if not deep:
        where = places.filled(WHITE) & (abs(places.mni_mm[..., 0]) > 20) & (places.mni_mm[..., 2] > -10)
    radius = float(rng.uniform(6, 15))
    facts = {"oedema_mm": float(rng.uniform(2, 6)), "push_mm": 0.3 * radius, "reach_mm": 1.25 * radius + 5}
    return _blob(rng, places.choose(rng, where), radius), facts


_PLANNERS = {
    "glioma": _plan_glioma,
    "multiple_sclerosis": _plan_plaques,
    "white_matter_disease": _plan_hyperintensities,
    "infarct": _plan_infarct,
    "haemorrhage": _plan_haemorrhage,
}


# -------------------------------------------------------------------------------- Shapes


def _lobulated(points_mm: np.ndarray, blob: Blob) -> Float[np.ndarray, "x y z"]:
    """Several ellipsoids that overlap, roughened: distance from the middle in radii, so the lesion is where it is below 1."""
    rng = default_rng(blob.seed)
    nearest = np.full(points_mm.shape[:3], np.inf, np.float32)
    for number in range(int(rng.integers(3, 6))):
        # The first lobe holds the centre; the others overlap it, so that the whole is one piece.
        off = rng.normal(0, 0.34, 3) * blob.radius_mm * (number > 0)
        turned, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        radii = blob.radius_mm * rng.uniform(0.6, 1.0, 3)
        local = (points_mm - np.asarray(blob.centre_mm) - off) @ turned / radii
        nearest = np.minimum(nearest, np.linalg.norm(local, axis=-1))
    return nearest


def _star_shaped(points_mm: np.ndarray, blob: Blob) -> Float[np.ndarray, "x y z"]:
    """The shapes of the family held apart: a radius that varies with direction, low spherical frequencies, spiky."""
    rng = default_rng(blob.seed)
    local = (points_mm - np.asarray(blob.centre_mm)) / blob.radius_mm
    distance = np.linalg.norm(local, axis=-1)
    direction = local / np.maximum(distance, 1e-6)[..., None]
    radius = np.full(distance.shape, 0.85)
    for _ in range(7):
        axis = rng.normal(size=3)
        radius += 0.16 * np.cos(
            rng.integers(2, 6) * np.arccos(np.clip(direction @ (axis / np.linalg.norm(axis)), -1, 1))
        )
    return (distance / np.maximum(radius, 0.35)).astype(np.float32)


@dataclass(frozen=True)
class _Site:
    """A box of the anatomy around a blob, and how far out each voxel is: below 1 inside."""

    box: tuple[slice, slice, slice]
    depth: Float[np.ndarray, "x y z"]
    noise: Float[np.ndarray, "x y z"]
    edge: float  # of the depth over one voxel

    def inside(self, limit: float = 1.0, roughness: float = 0.12) -> Float[np.ndarray, "x y z"]:
        """How much of each voxel lies below the limit: a ramp about one voxel wide, on a rough surface."""
        return np.clip((limit - self.depth - roughness * self.noise * limit) / self.edge + 0.5, 0, 1)


def _site(anatomy: Anatomy, blob: Blob, margin_mm: float) -> _Site:
    to_head = np.linalg.inv(anatomy.subject.pose) @ anatomy.affine
    centre = apply_affine(np.linalg.inv(to_head), blob.centre_mm)
    reach = (1.5 * blob.radius_mm + margin_mm) / anatomy.spacing_mm
    low = np.maximum(np.floor(centre - reach), 0).astype(int)
    high = np.minimum(np.ceil(centre + reach) + 1, anatomy.shape).astype(int)
    x, y, z = (slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    index = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), -1)
    points = apply_affine(to_head, index).astype(np.float32)
    shape = _star_shaped if anatomy.subject.family == "shifted" else _lobulated
    depth = shape(points, blob)
    # Drawn on a grid of its own and read at the points, so that every spacing sees the same roughness.
    scale = max(2.0, 0.35 * blob.radius_mm)
    size = int(np.ceil(2 * (1.6 * blob.radius_mm + margin_mm))) + 2
    rough = smooth_noise(default_rng(blob.seed + 1), (size,) * 3, 1.0, scale).numpy()
    local = np.moveaxis(points - np.asarray(blob.centre_mm, np.float32) + size / 2, -1, 0)
    noise = ndimage.map_coordinates(rough, local, order=1, mode="nearest")
    return _Site((x, y, z), depth, noise, float(anatomy.spacing_mm.mean()) / blob.radius_mm)


# -------------------------------------------------------------------------------- Drawing


def draw_disease(anatomy: Anatomy, plan: Plan) -> None:
    """Paint every planned lesion into the anatomy, in place; a later disease covers an earlier one."""
    for name in ("white_matter_disease", "multiple_sclerosis", "infarct", "haemorrhage", "glioma"):
        if name not in plan.blobs:
            continue
        facts = {key.split(" ")[1]: value for key, value in plan.numbers.items() if key.startswith(f"{name} ")}
        if name == "white_matter_disease":
            _draw_band(anatomy, facts["severity"], int(facts["band_seed"]))
        for blob in plan.blobs[name]:
            _DRAWERS[name](anatomy, blob, facts)


def _amount(site: _Site, anatomy: Anatomy, materials: Sequence[int]) -> Float[Tensor, "x y z"]:
    """How much of each voxel the shape takes of these materials."""
    return torch.from_numpy(site.inside()).float() * (anatomy.fraction(materials, site.box) > 0.3)


def _draw_spot(material: str, materials: Sequence[int]):
    def draw(anatomy: Anatomy, blob: Blob, facts: dict[str, float]) -> None:
        site = _site(anatomy, blob, margin_mm=1.0)
        anatomy.paint(site.box, INDEX[material], _amount(site, anatomy, materials))

    return draw


def _draw_glioma(anatomy: Anatomy, blob: Blob, facts: dict[str, float]) -> None:
    """From outside in: oedema, then the solid part, then the dead core of what enhances."""
    site = _site(anatomy, blob, margin_mm=facts["oedema_mm"] + 3)
    tissue = [*BRAIN_TISSUE, *indices(*LESIONS)]
    solid = _amount(site, anatomy, tissue)
    _draw_oedema(anatomy, site, solid.numpy() > 0.5, facts["oedema_mm"])
    if not facts["high_grade"]:
        anatomy.paint(site.box, INDEX["non-enhancing tumour"], solid)
        return
    anatomy.paint(site.box, INDEX["enhancing tumour"], solid)
    core = torch.from_numpy(site.inside(limit=facts["necrosis"], roughness=0.3)).float() * (solid > 0.9)
    anatomy.paint(site.box, INDEX["necrosis"], core)


def _draw_haemorrhage(anatomy: Anatomy, blob: Blob, facts: dict[str, float]) -> None:
    site = _site(anatomy, blob, margin_mm=facts["oedema_mm"] + 3)
    clot = _amount(site, anatomy, [*BRAIN_TISSUE, *indices(*LESIONS)])
    _draw_oedema(anatomy, site, clot.numpy() > 0.5, facts["oedema_mm"])
    anatomy.paint(site.box, INDEX["haemorrhage"], clot)


def _draw_oedema(anatomy: Anatomy, site: _Site, core: np.ndarray, reach_mm: float) -> None:
    """Water marches through white matter, faster here than there, and stops at cortex: hence the fingers."""
    white = (anatomy.fraction(WHITE, site.box) > 0.6).numpy()
    if reach_mm <= 0 or not core.any():
        return
    step_mm = float(anatomy.spacing_mm.min())
    reached = core.copy()
    limit_mm = reach_mm * np.clip(1 + 0.45 * site.noise, 0.25, 1.8)
    structure = ndimage.generate_binary_structure(3, 1)
    for number in range(1, int(np.ceil(1.8 * reach_mm / step_mm)) + 1):
        grown = ndimage.binary_dilation(reached, structure) & white & (number * step_mm <= limit_mm)
        if not (grown & ~reached).any():
            break
        reached |= grown
    # Opening takes single voxels away that no one would call oedema.
    soft = ndimage.gaussian_filter((reached & white).astype(np.float32), 0.6)
    anatomy.paint(site.box, INDEX["oedema"], torch.from_numpy(np.where((soft > 0.45) & white, soft.clip(0.55, 1), 0)))


def _draw_band(anatomy: Anatomy, severity: float, seed: int) -> None:
    """Hyperintensity around the lateral ventricles: thickest at the horns, of uneven depth."""
    fluid = (anatomy.fraction(VENTRICLE) > 0.5).numpy()
    if not fluid.any():
        return
    where = ndimage.find_objects(fluid.astype(np.uint8))[0]
    margin = np.ceil(16 / anatomy.spacing_mm).astype(int)
    x, y, z = (
        slice(max(0, one.start - m), min(n, one.stop + m))
        for one, m, n in zip(where, margin.tolist(), anatomy.shape, strict=True)
    )
    box = (x, y, z)
    step_mm = float(anatomy.spacing_mm.mean())
    distance = _distance_mm(~fluid[box], anatomy.spacing_mm) - step_mm / 2  # from the wall, not from a voxel's middle
    # Drawn over the whole head, so that every spacing sees the same depths.
    rough = smooth_noise(default_rng(seed), WARP_SHAPE, WARP_SPACING_MM, 14.0)
    noise = sample(rough[None], WARP_AFFINE, anatomy.head_mm()[box], padding="border")[0].numpy()
    ends = np.abs(np.linspace(-1, 1, distance.shape[1]))[None, :, None]  # horns lie in front and behind
    depth_mm = severity * (3.0 + 5.0 * ends + 3.0 * noise) - 2.0
    white = (anatomy.fraction(WHITE, box) > 0.5).numpy()
    amount = np.clip((depth_mm - distance) / step_mm + 0.5, 0, 1) * white
    anatomy.paint(box, INDEX["white matter hyperintensity"], torch.from_numpy(amount.astype(np.float32)))


_DRAWERS = {
    "glioma": _draw_glioma,
    "multiple_sclerosis": _draw_spot(
        "plaque", [*WHITE, INDEX["cerebellar white matter"], INDEX["brainstem"], INDEX["white matter hyperintensity"]]
    ),
    "white_matter_disease": _draw_spot("white matter hyperintensity", WHITE),
    "infarct": _draw_spot("acute infarct", [*BRAIN_TISSUE, INDEX["white matter hyperintensity"], INDEX["plaque"]]),
    "haemorrhage": _draw_haemorrhage,
}


# -------------------------------------------------------------------------------- Measuring


def measure_lesions(labels: UInt8[np.ndarray, "x y z"], affine: np.ndarray, mapping) -> list[Lesion]:
    """Every connected piece (26 neighbours) of every lesion structure in a label map; `affine` takes voxels to patient mm.

    Pieces smaller than `SMALLEST_ML`, or than one voxel, are part of the mask but no lesion of their own.
    """
    lesions = []
    for structure in LESIONS:
        mask = labels == STRUCTURES[structure]
        pieces = pieces_of(mask, affine, least_ml=SMALLEST_ML.get(structure, 0.0))
        for volume, centre in zip(pieces.volumes_ml, pieces.centroids_mm, strict=True):
            mni = mapping.mni_of(np.array(centre))
            x, y, z = (round(value, 2) for value in centre)
            lesions.append(Lesion(structure, round(volume, 4), (x, y, z), side_of(mni), lobe_of(mni)))
    return lesions


def side_of(mni_mm: np.ndarray) -> str:
    return "midline" if abs(mni_mm[0]) < 3 else "right" if mni_mm[0] > 0 else "left"


def lobe_of(mni_mm: np.ndarray) -> str:
    """Roughly: planes in MNI space through the central and lateral sulcus, the parieto-occipital line, the tentorium."""
    x, y, z = abs(float(mni_mm[0])), float(mni_mm[1]), float(mni_mm[2])
    if (y < -32 and z < -18 - 0.1 * (y + 70)) or z < -45:
        return "cerebellum" if x > 8 or y < -48 else "brainstem"
    if x < 14 and -46 < y < -8 and z < -8:
        return "brainstem"
    if x < 32 and -28 < y < 22 and -6 < z < 20:
        return "deep grey matter and its surroundings"
    if x > 20 and z < 0.35 * (-y - 20) + 4 and y > -55 and z < 14 and y < 22:
        return "temporal"
    if y < -62 - 0.25 * z:
        return "occipital"
    if y < -14 - 0.3 * (z - 40):
        return "parietal"
    return "frontal"
