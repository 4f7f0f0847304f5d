"""The Dice that no segmentation of the cohort can be expected to beat: a head against itself on another grid.

The same head is made on two grids, half a voxel apart. Neither is truer; so what they disagree on is in the voxels, not in the
head. The other grid's structures are put back as a network's output is: trilinearly, the largest share wins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from foundation.cohort.anatomy import Anatomy, Subject
from foundation.cohort.disease import anatomy_with_disease
from foundation.cohort.grids import grid_mm, largest_share, sample
from foundation.cohort.materials import STRUCTURES
from foundation.cohort.patient import CohortConfig


def oracle_dice(config: CohortConfig, indices: Sequence[int]) -> dict[str, float]:
    """Mean Dice of each structure over the subjects that have it, a few seconds a subject at 2 mm."""
    found: dict[str, list[float]] = {}
    for index in indices:
        labels, again, _ = seen_twice(config, index)
        for name, value in STRUCTURES.items():
            sizes = (labels == value).sum() + (again == value).sum()
            if (labels == value).any():
                found.setdefault(name, []).append(float(2 * ((labels == value) & (again == value)).sum() / sizes))
    return {name: round(float(np.mean(found[name])), 4) for name in STRUCTURES if name in found}


def seen_twice(
    config: CohortConfig, index: int
) -> tuple[UInt8[np.ndarray, "x y z"], UInt8[np.ndarray, "x y z"], np.ndarray]:
    """A subject's label map, the other grid's on the same voxels, and their affine."""
    subject, source = Subject.draw(config.seed, index, config.family), config.source()
    one, other = (anatomy_with_disease(subject, source, config.spacing_mm, offset_voxels=o) for o in (0.0, 0.5))
    return one.labels, _put_on(other, one), one.affine


def _put_on(other: Anatomy, one: Anatomy) -> UInt8[np.ndarray, "x y z"]:
    """The structures of one grid's head at the voxels of the other."""
    points = grid_mm(one.shape, one.affine)
    stored = torch.from_numpy(other.labels)
    return largest_share(
        one.shape,
        stored.unique().tolist(),
        lambda value: sample((stored == value).float()[None], other.affine, points, padding="border")[0],
    )
