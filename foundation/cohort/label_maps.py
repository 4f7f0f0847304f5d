"""Heads to start from: a folder of whole-head label maps, as SynthSeg was trained on (Billot et al. 2023).

    source = LabelMaps(Path("training_label_maps"))

Values follow FreeSurfer, and 500 to 530 for what lies outside the brain. Such maps bring real skulls, scalps and other
people's gyri. They are placed into MNI millimetres by the middles of their deep structures, so that everything else here
(disease, lobes, the widening of ventricles) works as on the bundled template. Nothing of a map is shipped.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from nibabel.affines import apply_affine, from_matvec
from numpy.random import Generator
from scipy import ndimage
from scipy.spatial.transform import Rotation

from foundation.cohort.grids import block_mean
from foundation.cohort.materials import INDEX, NUM_HEALTHY
from foundation.cohort.templates import Template, bundled_template, check_spacing
from foundation.errors import InputError
from foundation.files import sha256
from foundation.preprocess import to_closest_ras
from foundation.reading.nifti import is_nifti_name, nifti_stem, read_nifti

# Value of a map: our material. Left and right are told by place; what is not named is muscle, the commonest outside.
VALUES: dict[str, tuple[int, ...]] = {
    "air": (0,),
    "cortex": (3, 42, 18, 54, 26, 58),
    "white matter": (2, 41, 25, 57, 28, 60, 85),
    "ventricular fluid": (4, 43, 5, 44, 136, 137, 163, 164),
    "thalamus": (10, 49),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "hippocampus": (17, 53),
    "cerebellar cortex": (8, 47),
    "cerebellar white matter": (7, 46),
    "brainstem": (16,),
    "fluid": (14, 15, 24, 72),
    "sinus": (30, 62, 502, 506),
    "bone": (512, 514, 515),
    "marrow": (516,),
    "fat": (511, 509),
    "vitreous": (508,),
}
REST = "muscle"
OWN_AGEING = 0.3  # of a subject's atrophy that is added to what the person of the map has already
# Whose middles place a head in MNI space; the bundled template's own are the aim.
LANDMARKS = ("thalamus", "caudate", "putamen", "hippocampus")


@dataclass(frozen=True)
class LabelMaps:
    """Every subject starts from one of the folder's maps, chosen by its own generator, mirrored half of the time."""

    folder: Path

    def paths(self) -> list[Path]:
        found = sorted(path for path in self.folder.glob("*") if is_nifti_name(path)) if self.folder.is_dir() else []
        if not found:
            raise InputError(
                "an anatomy folder holds label maps",
                got="none",
                remedy="Name a folder of .nii.gz files.",
                file=self.folder,
            )
        return found

    def template(self, spacing_mm: float, rng: Generator) -> Template:
        paths = self.paths()
        found = label_map_template(paths[int(rng.integers(len(paths)))], spacing_mm)
        if rng.random() < 0.5:
            return found
        mirror = from_matvec(np.diag([-1.0, 1.0, 1.0]))
        return replace(found, affine=mirror @ found.affine, name=f"{found.name} mirrored")

    def describe(self) -> str:
        digest = hashlib.sha256("".join(sha256(path) for path in self.paths()).encode()).hexdigest()
        return f"{len(self.paths())} label maps, sha256 {digest[:16]}"


@lru_cache(maxsize=6)
def label_map_template(path: Path, spacing_mm: float) -> Template:
    """One map as fractions of materials: blocks of its voxels are averaged, so edges are as soft as the spacing is coarse."""
    check_spacing(spacing_mm)
    series = to_closest_ras(read_nifti(path))
    if not np.allclose(series.spacing_mm, 1.0, atol=0.1):
        remedy = "Resample it, nearest neighbour."
        raise InputError("a label map has voxels of 1 mm", got=series.spacing_mm.tolist(), remedy=remedy, file=path)
    values = np.rint(series.voxels).astype(np.int32)
    materials = _materials_of(values, path)
    affine = _placed_in_mni(materials, series.affine, path)
    step = int(spacing_mm)
    where = ndimage.find_objects((materials > 0).astype(np.uint8))[0]
    first = [max(0, one.start - 8) for one in where]
    last = [min(n, one.stop + 8) for one, n in zip(where, materials.shape, strict=True)]
    last = [a + (b - a) // step * step for a, b in zip(first, last, strict=True)]
    materials = materials[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
    affine = affine @ from_matvec(np.eye(3), first)
    shape = tuple(n // step for n in materials.shape)
    fractions = torch.zeros((NUM_HEALTHY - 1, *shape), dtype=torch.uint8)
    coarse = affine
    for index in range(1, NUM_HEALTHY):
        mask = torch.from_numpy((materials == index).astype(np.float32))
        if step == 1:
            # Voxels of the map are one structure each; without this an edge at 1 mm would be a staircase.
            mask = torch.from_numpy(ndimage.gaussian_filter(mask.numpy(), 0.5))
        mean, coarse = block_mean(mask[None], affine, step)
        fractions[index - 1] = (mean[0] * 255 + 0.25).floor().to(torch.uint8)
    return Template(fractions, coarse, nifti_stem(path), OWN_AGEING)


def _materials_of(values: Int[np.ndarray, "x y z"], path: Path) -> Int[np.ndarray, "x y z"]:
    """Values as materials. A head that no bone surrounds, or without a ventricle, is no whole-head label map."""
    if values.min() < 0 or values.max() > 1000:
        remedy = "Use FreeSurfer's values, and 500 to 530 outside the brain."
        raise InputError(
            "a label map holds known values", got=f"{values.min()} to {values.max()}", remedy=remedy, file=path
        )
    table = np.full(1001, INDEX[REST], dtype=np.int32)
    for name, codes in VALUES.items():
        table[list(codes)] = INDEX[name]
    materials = table[values]
    missing = [name for name in (*LANDMARKS, "ventricular fluid") if not (materials == INDEX[name]).any()]
    if missing:
        remedy = "Use whole-head maps with FreeSurfer's values."
        raise InputError(
            "a label map shows the deep structures", got=f"no {', '.join(missing)}", remedy=remedy, file=path
        )
    return materials


def _middles(materials: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """`(landmarks x sides, 3)` mm; the sides are told by the landmark's own middle along the first patient axis."""
    found = []
    for name in LANDMARKS:
        points = apply_affine(affine, np.argwhere(materials == INDEX[name]))
        middle = np.median(points[:, 0])
        found += [points[points[:, 0] < middle].mean(axis=0), points[points[:, 0] >= middle].mean(axis=0)]
    return np.asarray(found)


def _placed_in_mni(materials: np.ndarray, affine: np.ndarray, path: Path) -> np.ndarray:
    """The affine to MNI mm: rotation, one scale and shift that bring the landmarks onto the template's (Umeyama 1991)."""
    aim, own = _template_middles(), _middles(materials, affine)
    aim_mean, own_mean = aim.mean(axis=0), own.mean(axis=0)
    rotation = Rotation.align_vectors(aim - aim_mean, own - own_mean)[0]
    turned = rotation.apply(own - own_mean)
    scale = float((turned * (aim - aim_mean)).sum() / (turned**2).sum())
    if not 0.7 < scale < 1.4:
        remedy = "Check its spacing."
        raise InputError("a label map has the size of a head", got=f"{1 / scale:.2f} of it", remedy=remedy, file=path)
    matrix = scale * rotation.as_matrix()
    return from_matvec(matrix, aim_mean - matrix @ own_mean) @ affine


@lru_cache(maxsize=1)
def _template_middles() -> np.ndarray:
    template = bundled_template(2.0)
    most = np.zeros(tuple(template.fractions.shape[1:]), np.int32)
    for name in LANDMARKS:
        most[template.fraction(INDEX[name]).numpy() > 0.5] = INDEX[name]
    return _middles(most, template.affine)
