"""The Dice between grids: what it bounds, and that it falls with the size of a structure and of the voxels."""

from __future__ import annotations

import numpy as np
import pytest

from foundation.cohort.anatomy import Subject
from foundation.cohort.disease import anatomy_with_disease
from foundation.cohort.materials import STRUCTURES
from foundation.cohort.oracle import oracle_dice
from foundation.cohort.patient import CohortConfig
from foundation.cohort.templates import BundledTemplate

CONFIG = CohortConfig(spacing_mm=4.0)


@pytest.fixture(scope="module")
def dice() -> dict[str, float]:
    return oracle_dice(CONFIG, range(2))


def test_large_structures_agree_and_small_ones_less(dice):
    assert dice["cerebellum"] > 0.9
    assert 0.3 < dice["pallidum"] < dice["cerebellum"] < 1
    assert set(dice) <= set(STRUCTURES)


def test_the_head_stays_where_it_is_when_its_grid_moves():
    subject = Subject.draw(0, 3)
    one, other = (anatomy_with_disease(subject, BundledTemplate(), 4.0, offset_voxels=o) for o in (0.0, 0.5))
    assert np.allclose(other.affine[:3, 3] - one.affine[:3, 3], one.affine[:3, :3] @ [0.5, 0.5, 0.5])

    def centroid_mm(anatomy, name):
        place = np.argwhere(anatomy.labels == STRUCTURES[name]).mean(axis=0)
        return anatomy.affine[:3, :3] @ place + anatomy.affine[:3, 3]

    for name in ("cerebellum", "thalamus", "cerebral white matter"):
        assert np.linalg.norm(centroid_mm(one, name) - centroid_mm(other, name)) < 1.2, name  # the grid moved 3.5 mm
