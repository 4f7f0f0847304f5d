"""The connected pieces of a mask: how many lesions there are, how large each is and where, and which are the same in two masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from nibabel.affines import apply_affine
from scipy import ndimage

TOUCHING = np.ones((3, 3, 3))  # 26 neighbours: voxels that share a corner are one lesion


@dataclass(frozen=True)
class Pieces:
    """`numbers` is 0 outside and the piece's number, from 1 by falling volume, inside; patient mm and ml for each."""

    numbers: Int[np.ndarray, "x y z"]
    volumes_ml: tuple[float, ...]
    centroids_mm: tuple[tuple[float, float, float], ...]

    def __len__(self) -> int:
        return len(self.volumes_ml)


@dataclass(frozen=True)
class Matches:
    """`found[i]` says whether piece i of the truth is touched, `true[j]` whether piece j of what was said touches any."""

    found: Bool[np.ndarray, " truth"]
    true: Bool[np.ndarray, " said"]


def pieces_of(mask: Bool[np.ndarray, "x y z"], affine: np.ndarray, *, least_ml: float = 0.0) -> Pieces:
    """Pieces smaller than `least_ml` are left out; `affine` takes voxels to patient mm."""
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    numbers = np.zeros(mask.shape, dtype=np.int32)
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    if not boxes:
        return Pieces(numbers, (), ())
    box = boxes[0]  # a few lesions in a whole head: what lies around them is not looked at
    found = np.zeros(mask[box].shape, dtype=np.int32)
    number = int(ndimage.label(mask[box], TOUCHING, output=found))  # pyright: ignore[reportArgumentType]
    sizes = np.bincount(found.ravel(), minlength=number + 1)[1:] * voxel_ml
    kept = np.flatnonzero(sizes >= least_ml)
    kept = kept[np.argsort(-sizes[kept], kind="stable")]
    new = np.zeros(number + 1, dtype=np.int32)
    new[kept + 1] = np.arange(1, len(kept) + 1)
    inside = new[found]
    numbers[box] = inside
    corner = [one.start for one in box]
    centres = ndimage.center_of_mass(inside > 0, inside, range(1, len(kept) + 1)) if len(kept) else []
    places = [apply_affine(affine, np.add(centre, corner)) for centre in centres]
    return Pieces(
        numbers,
        tuple(float(size) for size in sizes[kept]),
        tuple((float(x), float(y), float(z)) for x, y, z in places),
    )


def match(said: Pieces, truth: Pieces) -> Matches:
    """A lesion is found when a voxel of it was said to be one, and one that was said is true when a voxel of it is.

    This is the rule of the lesion-wise scores of the MS segmentation challenges (Commowick et al. 2018, with any overlap).
    """
    both = (said.numbers > 0) & (truth.numbers > 0)
    found, true = np.zeros(len(truth), dtype=bool), np.zeros(len(said), dtype=bool)
    found[np.unique(truth.numbers[both]) - 1] = True
    true[np.unique(said.numbers[both]) - 1] = True
    return Matches(found, true)
