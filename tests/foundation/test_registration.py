"""Rigid registration: a head that was turned is found back, and two that cannot be one head are refused."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from foundation.cohort.patient import CohortConfig, make_patient
from foundation.errors import InputError
from foundation.preprocess import Grid, sample_at
from foundation.registration import rigid
from foundation.study import Series


@pytest.fixture(scope="module")
def head() -> Series:
    return make_patient(CohortConfig(spacing_mm=4.0, contrasts=("T1w",)), 3).scans[0].series


@pytest.mark.parametrize(("degrees", "shift_mm"), [((0, 0, 0), (0, 0, 0)), ((6, -4, 9), (7.0, -5.0, 11.0))])
def test_a_turned_head_is_found_back(head: Series, degrees: tuple, shift_mm: tuple) -> None:
    """The same head in another position and on other voxels: each point is found to within half a voxel."""
    turn = np.eye(4)
    turn[:3, :3], turn[:3, 3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix(), shift_mm
    moved = sample_at(head.voxels, np.linalg.inv(turn) @ head.affine, Grid(head.shape, head.affine))
    found = rigid(head, head.with_voxels(moved.astype(np.float32)))
    corners = (
        head.affine[:3, :3] @ (np.array(head.shape)[:, None] * [[0.3, 0.7, 0.5], [0.5, 0.3, 0.7], [0.6, 0.5, 0.4]])
        + head.affine[:3, 3:]
    )
    wanted = np.linalg.inv(turn)[:3, :3] @ corners + np.linalg.inv(turn)[:3, 3:]
    assert np.abs(found[:3, :3] @ corners + found[:3, 3:] - wanted).max() < 2.0
    assert np.allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-6)


def test_what_cannot_be_one_head_is_refused(head: Series) -> None:
    noise = np.random.default_rng(0).random(head.shape).astype(np.float32)
    thin = Series(noise[:2, :2, :2].copy(), head.affine)
    with pytest.raises(InputError, match=r"registered|same head"):
        rigid(head, thin)
