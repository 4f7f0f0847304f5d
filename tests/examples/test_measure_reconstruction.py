"""What counts as an invented lesion: what looks like one where the truth has none, and no edge that moved a little."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from examples.measure_reconstruction import CONTRAST, invented, standing_out

SPACING_MM = 2.5
SHAPE = (60, 60)


def disc(row: int, column: int, diameter_mm: float) -> np.ndarray:
    rows, columns = np.indices(SHAPE)
    distance_mm = SPACING_MM * np.hypot(rows - row, columns - column)
    return np.clip((diameter_mm / 2 - distance_mm) / SPACING_MM + 0.5, 0, 1)


@pytest.mark.parametrize("diameter_mm", [8.0, 12.0])
def test_a_disc_stands_out_by_its_contrast(diameter_mm: float) -> None:
    found = standing_out(1 + CONTRAST * disc(30, 30, diameter_mm), SPACING_MM)
    assert found[30, 30] == pytest.approx(CONTRAST, rel=0.1)
    assert np.abs(found[:10]).max() < 1e-6


@pytest.mark.parametrize("sign", [1, -1])
def test_a_lesion_that_is_not_there_is_one_and_one_that_is_there_none(sign: int) -> None:
    inside, plain = np.ones(SHAPE, bool), np.ones(SHAPE)
    with_it = plain + sign * CONTRAST * disc(30, 20, 7.0)
    assert invented(with_it, plain, inside, SPACING_MM) == 1
    assert invented(with_it, with_it, inside, SPACING_MM) == 0
    assert invented(with_it, plain, np.indices(SHAPE)[1] > 30, SPACING_MM) == 0  # elsewhere is not looked at
    assert invented(plain + (with_it - plain) / 4, plain, inside, SPACING_MM) == 0


def test_a_blurred_or_displaced_edge_is_none() -> None:
    inside, edge = np.ones(SHAPE, bool), np.where(np.indices(SHAPE)[1] > 30, 1.0, 0.5)
    for image in (ndimage.gaussian_filter(edge, 1.0), np.roll(edge, 1, axis=1)):
        image[:, :5] = 0.5
        assert invented(image, edge, inside, SPACING_MM) == 0
