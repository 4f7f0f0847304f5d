"""Heads to start from: the MNI152 averages that ship inside nilearn, with everything they lack drawn around them.

    source = BundledTemplate()
    template = source.template(2.0, np.random.default_rng(0))

The averages (Fonov 2009, 2011) are read from the installed nilearn at run time and never shipped again. They hold a brain
without its head, and the averaging took what varies: sulci are sharpened back out of the T1 average; deep nuclei and
hippocampi are cut out by ellipsoids and tubes; third ventricle, temporal horns, skull, scalp, eyes and air spaces are drawn.
So structures are exact truth for the synthetic head, but approximate anatomy: nobody drew them, they are no atlas.

Another source is `foundation/cohort/label_maps.py`. All give materials in MNI millimetres (RAS+), so that disease, lobes and
deformations need to know one frame only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from nibabel.affines import from_matvec, voxel_sizes
from numpy.random import Generator, default_rng
from scipy import ndimage
from torch import Tensor

from foundation.cohort.grids import block_mean, mm_axes, nearest_voxel, smooth_noise
from foundation.cohort.materials import INDEX, NUM_HEALTHY
from foundation.errors import InputError

SPACINGS_MM = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Template:
    """How much of each voxel each material fills, in 255ths; material i + 1 at `fractions[i]`, air is what is left over.

    `affine` takes voxels to MNI mm. `name` says whose head it is, for the truth that is written. `ageing` is how much of a
    subject's atrophy is still to be applied: all of it to an average of young adults, less to a person who has aged already.
    """

    fractions: UInt8[Tensor, "material x y z"]
    affine: np.ndarray
    name: str
    ageing: float = 1.0

    def fraction(self, material: int) -> Float[Tensor, "x y z"]:
        return self.fractions[material - 1].float() / 255


@runtime_checkable
class AnatomySource(Protocol):
    """Where heads come from. `describe` is all that identifies it: subjects of equal descriptions and seeds are equal."""

    def template(self, spacing_mm: float, rng: Generator) -> Template: ...
    def describe(self) -> str: ...


@dataclass(frozen=True)
class BundledTemplate:
    """The one head inside nilearn, symmetric; the default."""

    def template(self, spacing_mm: float, rng: Generator) -> Template:
        return bundled_template(spacing_mm)

    def describe(self) -> str:
        return "MNI152 templates of nilearn"


def check_spacing(spacing_mm: float) -> None:
    if spacing_mm not in SPACINGS_MM:
        raise InputError("the cohort's spacing is 1, 2 or 4 mm", got=spacing_mm, remedy="Use 2.")


# The first voxel centre and the first beyond, along MNI x, y, z. The brain's box holds all that the sources hold; the
# head's adds room for scalp, face and neck. Differences are multiples of 4, so that blocks of either fall together.
BRAIN_MM = ((-76, 76), (-112, 80), (-72, 88))
HEAD_MM = ((-108, 108), (-136, 112), (-112, 112))

# Levels of the T1 average between which a voxel is a linear mixture, 1 being its brightest voxel.
T1_CSF, T1_GREY, T1_DEEP_GREY, T1_WHITE = 0.33, 0.60, 0.76, 0.88

Point = tuple[float, float, float]

# Ellipsoids around the nuclei on the right, mirrored to the left: (centre, radii) in MNI mm.
NUCLEI_MM: dict[str, tuple[tuple[Point, Point], ...]] = {
    "thalamus": (((11.0, -18.0, 8.0), (12.0, 15.0, 10.0)),),
    "caudate": (((13.0, 13.0, 8.0), (8.0, 12.0, 14.0)), ((16.0, -4.0, 19.0), (5.0, 14.0, 7.0))),
    "putamen": (((26.0, 3.0, 2.0), (9.0, 19.0, 13.0)),),
    "pallidum": (((19.0, -4.0, 0.0), (7.0, 9.0, 7.0)),),
}
# The right hippocampus from its head to its tail: (point on its axis, radius) in MNI mm.
HIPPOCAMPUS_MM = (
    ((24.0, -10.0, -20.0), 6.0),
    ((27.0, -17.0, -18.0), 6.0),
    ((29.0, -25.0, -13.0), 5.0),
    ((27.0, -33.0, -6.0), 4.5),
    ((23.0, -38.0, -1.0), 3.5),
)
TEMPORAL_HORN_MM = ((34.0, -22.0, -12.0), (2.2, 16.0, 4.0))
THIRD_VENTRICLE_MM = ((0.0, -14.0, 1.0), (1.8, 13.0, 10.0))
VENTRICLE_SEEDS_MM = ((12, -5, 23), (-12, -5, 23))
EYE_MM, EYE_RADIUS_MM = (32.0, 57.0, -36.0), 12.0
AIR_SPACES_MM = (
    ((0.0, 62.0, -62.0), (13.0, 26.0, 18.0)),  # nose
    ((28.0, 44.0, -66.0), (11.0, 14.0, 13.0)),  # maxillary sinus
    ((0.0, 8.0, -62.0), (11.0, 9.0, 24.0)),  # pharynx
    ((0.0, 70.0, -14.0), (14.0, 4.0, 9.0)),  # frontal sinus
    ((62.0, -22.0, -36.0), (14.0, 3.0, 3.0)),  # ear canal
)

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


@lru_cache(maxsize=2)
def bundled_template(spacing_mm: float = 2.0) -> Template:
    """The template head, averaged in blocks from 1 mm to 1, 2 or 4 mm."""
    check_spacing(spacing_mm)
    brain, affine = _brain()
    step = int(spacing_mm)
    fluid, head_affine = _in_head_box(*block_mean(torch.from_numpy(brain.pop("fluid"))[None], affine, step))
    inside = fluid.clone()
    fractions = torch.zeros((NUM_HEALTHY - 1, *fluid.shape[1:]), dtype=torch.uint8)
    while brain:  # each is let go once it is packed: at 1 mm memory is what limits
        name, fraction = brain.popitem()
        boxed, _ = _in_head_box(*block_mean(torch.from_numpy(fraction)[None], affine, step))
        inside += boxed
        fractions[INDEX[name] - 1] = _in_255ths(boxed[0].numpy())
    for name, fraction in _shell(inside[0].numpy(), fluid[0].numpy(), head_affine):
        fractions[INDEX[name] - 1] = _in_255ths(fraction)
    return Template(fractions, head_affine, "MNI152")


def _in_255ths(fraction: np.ndarray) -> UInt8[Tensor, "x y z"]:
    """Rounded mostly down, so that a voxel's parts never add up to more than all of it."""
    return torch.from_numpy(np.floor(fraction * 255 + 0.25).astype(np.uint8))


def _ellipsoid(x: np.ndarray, y: np.ndarray, z: np.ndarray, centre: Point, radii: Point) -> np.ndarray:
    """Below 1 inside; mirrored in x where the centre is off the midline."""
    (side, front, top), (rx, ry, rz) = centre, radii
    across = abs(x) - side if side else x
    return np.sqrt((across / rx) ** 2 + ((y - front) / ry) ** 2 + ((z - top) / rz) ** 2)


def _tube(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Distance to the axis of the nearer hippocampus over its radius there; below 1 inside."""
    nearest = np.full(np.broadcast_shapes(x.shape, y.shape, z.shape), np.inf, np.float32)
    for (start, first), (end, last) in pairwise(HIPPOCAMPUS_MM):
        along = [b - a for a, b in zip(start, end, strict=True)]  # plain numbers, or all becomes float64
        offset = (abs(x) - start[0], y - start[1], z - start[2])
        share = np.clip(sum(o * a for o, a in zip(offset, along, strict=True)) / sum(a * a for a in along), 0, 1)
        distance = np.sqrt(sum((o - share * a) ** 2 for o, a in zip(offset, along, strict=True)))
        nearest = np.minimum(nearest, distance / (first + share * (last - first)))
    return nearest


def _brain() -> tuple[dict[str, Float[np.ndarray, "x y z"]], np.ndarray]:
    """The brain's materials at 1 mm in `BRAIN_MM`, and the affine to MNI mm.

    - CSF: from the T1 average, sharpened because averaging 152 brains blurred the sulci away. Grey and white share the
      rest by the probability maps, except in the hindbrain: there the maps call most white matter grey, and T1 decides.
    - Lateral ventricles: around the component of CSF probability (1 - grey - white) above 0.5 that holds the seeds; at
      lower levels it joins all other CSF. Third ventricle and temporal horns are averaged away in the maps and drawn.
    - Deep grey: inside `NUCLEI_MM`, what is darker than white matter; the pallidum, which is not darker, by its ellipsoid.
    - Hippocampus: what is not fluid in the tube of `HIPPOCAMPUS_MM`.
    - Cerebellum and brainstem: below `TENTORIUM_Z_MM`, and a column in front of it.
    """
    from nilearn import datasets  # seconds to import, and nothing else here needs it

    image = datasets.load_mni152_template(resolution=1)
    sources = (image, datasets.load_mni152_gm_template(resolution=1), datasets.load_mni152_wm_template(resolution=1))
    first, last = (nearest_voxel(image.affine, corner) for corner in zip(*BRAIN_MM, strict=True))
    box = tuple(slice(start, stop) for start, stop in zip(first, last, strict=True))
    t1, grey_map, white_map = (np.asarray(source.dataobj[box], dtype=np.float32) for source in sources)
    affine = image.affine @ from_matvec(np.eye(3), first)
    x, y, z = mm_axes(t1.shape, affine)

    brain = t1 > 0
    weight = ndimage.gaussian_filter(brain.astype(np.float32), 2.5)
    sharp = t1 + 1.7 * (t1 - ndimage.gaussian_filter(t1, 2.5) / np.maximum(weight, 1e-3))
    csf = brain * np.clip((T1_GREY - sharp) / (T1_GREY - T1_CSF), 0, 1)
    # Drawn with an edge one voxel wide, in radii.
    horn = np.clip((1 - _ellipsoid(x, y, z, *TEMPORAL_HORN_MM)) * 2.5 + 0.5, 0, 1) * brain
    third = np.clip((1 - _ellipsoid(x, y, z, *THIRD_VENTRICLE_MM)) * 2.0 + 0.5, 0, 1) * brain
    csf = np.maximum(csf, np.maximum(horn, third))
    solid = brain - csf

    column = (abs(x) < 15 + np.clip((-18 - z) / 2, 0, 9)) & (z < -6) & (y > -46) & (y < -8 - np.clip(z + 20, 0, 12))
    hindbrain = column | (y < -32) & (z < _tentorium_z_mm(x, y)) | (z < -48) & (y < -25)
    by_map = white_map / np.maximum(grey_map + white_map, 1e-3)
    by_t1 = np.clip((sharp - T1_GREY) / (T1_WHITE - T1_GREY), 0, 1)
    white = solid * np.where(hindbrain, by_t1, by_map)
    grey = solid - white

    found: dict[str, np.ndarray] = {}
    darker = np.clip((T1_WHITE - t1) / (T1_WHITE - T1_DEEP_GREY), 0, 1)
    for name in ("pallidum", "thalamus", "caudate", "putamen"):  # what two ellipsoids share is the first one's
        depth = np.min([_ellipsoid(x, y, z, *one) for one in NUCLEI_MM[name]], axis=0)
        inside = np.clip((1 - depth) * 6 + 0.5, 0, 1) * ~hindbrain
        rest = (solid - sum(found.values())) * inside
        found[name] = rest * (1 if name == "pallidum" else darker)
        white = white * (1 - inside) + rest - found[name]
    inside = np.clip((1 - _tube(x, y, z)) * 5 + 0.5, 0, 1) * ~column
    found["hippocampus"] = (solid - sum(found.values())) * inside
    white = white * (1 - inside)
    grey = solid - white - sum(found.values())

    components = np.zeros(t1.shape, np.int32)
    ndimage.label(brain & (1 - grey_map - white_map > 0.5), output=components)
    seeds = {int(components[nearest_voxel(affine, seed)]) for seed in VENTRICLE_SEEDS_MM}
    assert len(seeds) == 1 and seeds != {0}, f"both lateral ventricles are one component, got {seeds}"
    near_ventricle = ndimage.binary_dilation(components == seeds.pop(), iterations=2)
    # A mixture of CSF and white matter passes through the level of grey matter without any grey: give each one half.
    rim = np.where(near_ventricle, grey, 0)
    ventricle = np.where(near_ventricle, csf, 0) + rim / 2
    grey, white, csf = grey - rim, white + rim / 2, np.where(near_ventricle, 0, csf)
    ventricle, csf = ventricle + np.minimum(horn, csf), csf - np.minimum(horn, csf)

    found |= {
        "cortex": grey * ~hindbrain,
        "white matter": white * ~hindbrain,
        "ventricular fluid": ventricle,
        "cerebellar cortex": grey * (hindbrain & ~column),
        "cerebellar white matter": white * (hindbrain & ~column),
        "brainstem": (grey + white) * column,
        "fluid": csf,
    }
    return {name: one.astype(np.float32) for name, one in found.items()}, affine


def _in_head_box(
    volume: Float[Tensor, "channel x y z"], affine: np.ndarray
) -> tuple[Float[Tensor, "channel hx hy hz"], np.ndarray]:
    """Blocks of `BRAIN_MM` with zeros around, up to `HEAD_MM`."""
    step = int(affine[0, 0])
    pairs = zip(HEAD_MM, BRAIN_MM, strict=True)
    around = [(abs(head[end] - brain[end]) // step) for head, brain in pairs for end in (0, 1)]
    padding = [around[2 * axis + end] for axis in (2, 1, 0) for end in (0, 1)]  # the last axis first
    return F.pad(volume, padding), affine @ from_matvec(np.eye(3), [-before for before in around[::2]])


def _tentorium_z_mm(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    row = np.interp(y, TENTORIUM_Y_MM, range(len(TENTORIUM_Y_MM)))
    column = np.interp(abs(x), TENTORIUM_X_MM, range(len(TENTORIUM_X_MM)))
    return ndimage.map_coordinates(np.asarray(TENTORIUM_Z_MM, np.float32), np.broadcast_arrays(row, column), order=1)


def _shell(inside: np.ndarray, fluid: np.ndarray, affine: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What surrounds a stripped brain that fills `inside`: CSF, skull in two tables, muscle, fat, skin, a face and a neck.

    None of it is measured: ellipsoids, and layers whose thickness varies smoothly. The skull has no openings but the nose.
    """
    (spacing, _, _), shape = voxel_sizes(affine).tolist(), inside.shape
    x, y, z = mm_axes(shape, affine)
    rng = default_rng(152)

    def below(distance_mm: np.ndarray, limit_mm: np.ndarray | float) -> np.ndarray:
        """How much of a voxel lies below the limit: a ramp one voxel wide."""
        return np.clip((limit_mm - distance_mm) / spacing + 0.5, 0, 1).astype(np.float32)

    def noise(scale_mm: float) -> np.ndarray:
        return smooth_noise(rng, shape, spacing, scale_mm).numpy()

    cranium = np.maximum(inside, np.clip(ndimage.gaussian_filter(inside, 5.0 / spacing) * 4 - 1.2, 0, 1))
    outwards_mm = np.asarray(ndimage.distance_transform_edt(cranium < 0.5, sampling=spacing), np.float32)
    inwards_mm = np.asarray(ndimage.distance_transform_edt(cranium >= 0.5, sampling=spacing), np.float32)
    # The sagittal sinus: a cord under the inner table along the midline, from the front over the top to the back.
    fluid = fluid + cranium - inside
    sinus = fluid * (abs(x) < 4) * (inwards_mm < 6) * ((z > 30) | (y < -70) & (z > -10))
    yield "fluid", fluid - sinus
    yield "sinus", sinus
    del inwards_mm, fluid, sinus, inside
    skull_mm = 6 + 1.2 * noise(25.0)
    scalp_mm = 7 + 1.5 * noise(40.0)
    face = 1 - np.sqrt((x / 60) ** 2 + ((y - 36) / 54) ** 2 + ((z + 52) / 58) ** 2)
    nose = 1 - np.sqrt((x / 15) ** 2 + ((y - 86) / 16) ** 2 + ((z + 58) / 20) ** 2)
    neck = 1 - np.sqrt((x / 56) ** 2 + ((y + 28) / 62) ** 2 + 0 * z)
    bulk = (face > 0) | (nose > 0) | (neck > 0) & (z < -45) | (outwards_mm < 12)
    bulk = ndimage.gaussian_filter(bulk.astype(np.float32), 5.0 / spacing)  # rounds off where the pieces meet
    solid = np.maximum(below(outwards_mm, skull_mm + scalp_mm), np.clip((bulk - 0.5) * 6 + 0.5, 0, 1))
    del scalp_mm, face, nose, neck, bulk  # at 1 mm every volume is 48 MB, and memory is what limits
    depth_mm = np.asarray(ndimage.distance_transform_edt(solid > 0.5, sampling=spacing), np.float32)

    skull = below(outwards_mm, skull_mm) * (1 - cranium)
    soft = np.clip(solid - skull - cranium, 0, 1)
    del solid
    # Between the tables of the skull lies marrow, thin where the skull is and absent low on the sides.
    place = outwards_mm / np.maximum(skull_mm, 1)
    diploe = np.clip(1.6 - abs(place - 0.5) * 5 + 0.5 * noise(12.0), 0, 1) * np.clip((z + 40) / 20, 0, 1)
    del place, skull_mm
    air = np.zeros(shape, np.float32)
    for centre, radii in AIR_SPACES_MM:
        air = np.maximum(air, np.clip((1 - _ellipsoid(x, y, z, centre, radii)) * 4 + 0.3 * noise(8.0) + 0.3, 0, 1))
    air *= 1 - cranium
    eye_mm = _ellipsoid(x, y, z, EYE_MM, (1.0, 1.0, 1.0))
    eye, orbit = below(eye_mm, EYE_RADIUS_MM) * (outwards_mm > 3), below(eye_mm, EYE_RADIUS_MM + 5) * (outwards_mm > 3)
    del eye_mm, outwards_mm, cranium

    skin = below(depth_mm, 2.0)
    fat = np.maximum(below(depth_mm, 6 + 2 * noise(20.0)) - skin, 0)
    # Below the skull base fat lies between the muscles too.
    fat = np.maximum(fat, np.clip(0.4 * noise(9.0), 0, 0.6) * (z < 0) * (1 - skin))
    fat = np.where(orbit > 0, np.maximum(fat, orbit * (1 - skin)), fat)
    air = 1 - air
    yield "bone", skull * (1 - diploe) * air
    yield "marrow", skull * diploe * air
    yield "vitreous", soft * eye
    soft = soft * (1 - eye) * air
    yield "skin", soft * skin
    yield "fat", soft * fat
    yield "muscle", soft * (1 - skin - fat).clip(0, 1)
