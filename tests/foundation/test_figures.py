"""Pictures are checked where they can mislead: which side is where, and how long a millimetre is."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from foundation.cohort.materials import STRUCTURES
from foundation.errors import InputError
from foundation.figures import (
    COLOURS,
    PANEL_PIXELS,
    ScoreRow,
    colour_of,
    plot_curves,
    plot_dice_table,
    plot_errors,
    plot_reconstruction,
    png_bytes,
    save_png,
    three_planes,
)
from foundation.findings import Structure
from foundation.study import Series

SHAPE = (40, 60, 30)  # of 4 x 3 x 6 mm: 160 x 180 x 180 mm
WIDTHS = (320, 320, 360)  # of the three panels, in pixels of 0.5 mm


def phantom(side_is_known: bool = True) -> tuple[Series, np.ndarray]:
    """A grey block, and a label that lies right, in front and up."""
    voxels = np.zeros(SHAPE, dtype=np.float32)
    voxels[4:36, 6:54, 3:27] = 100.0
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[28:33, 42:48, 20:24] = 3
    affine = np.diag([4.0, 3.0, 6.0, 1.0])
    affine[:3, 3] = (-78.0, -88.5, -87.0)
    return Series(voxels, affine, side_is_known=side_is_known), labels


def coloured(picture: np.ndarray, value: int) -> list[tuple[float, float]]:
    """For each panel the mean (row, column) of the pixels tinted with a label's colour, as fractions of the panel."""
    tint = np.array(to_rgb(colour_of(value)))
    colour = (picture - picture.min(axis=-1, keepdims=True)) / 255  # what is not grey
    strength = colour.max(axis=-1, keepdims=True)
    expected = (tint - tint.min()) / np.ptp(tint)
    is_tinted = (strength[..., 0] > 0.1) & (np.abs(colour / (strength + 1e-9) - expected).max(axis=-1) < 0.1)
    places, left = [], 0
    for width in WIDTHS:
        rows, columns = np.nonzero(is_tinted[:PANEL_PIXELS, left : left + width])
        places.append((float(rows.mean()) / PANEL_PIXELS, float(columns.mean()) / width))
        left += width + 6
    return places


def test_the_patients_right_is_on_the_viewers_left_and_up_is_up():
    series, labels = phantom()
    axial, coronal, sagittal = coloured(three_planes(series, labels), 3)
    assert axial == pytest.approx((0.25, 0.24), abs=0.02)  # in front is the top, right is the left
    assert coronal == pytest.approx((0.27, 0.24), abs=0.02)
    assert sagittal == pytest.approx((0.27, 0.25), abs=0.02)  # the face looks to the left


def test_the_picture_is_the_same_however_the_array_lies():
    series, labels = phantom()
    at_mm = series.to_patient_mm(np.array([30, 45, 22]))
    expected = three_planes(series, labels, at_mm)
    assert expected.shape == (PANEL_PIXELS + 24, sum(WIDTHS) + 12, 3)
    for axes, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        orientation = np.column_stack([axes, flips])
        turned = Series(
            np.ascontiguousarray(nib.orientations.apply_orientation(series.voxels, orientation)),
            series.affine @ nib.orientations.inv_ornt_aff(orientation, series.shape),
        )
        picture = three_planes(turned, nib.orientations.apply_orientation(labels, orientation), at_mm)
        assert np.abs(picture.astype(int) - expected).max() <= 1


def test_a_millimetre_is_as_long_in_every_direction():
    """The block is 128 x 144 x 144 mm, so 256 x 288 x 288 pixels, whatever its voxels."""
    series, _ = phantom()
    picture = three_planes(series, at_mm=(0.0, 0.0, 0.0))
    bright = picture[:, : WIDTHS[0]].mean(-1) > 128
    assert bright[PANEL_PIXELS // 2].sum() == pytest.approx(256, abs=8)
    assert bright[:, WIDTHS[0] // 3].sum() == pytest.approx(288, abs=8)


def test_an_unknown_side_has_no_letters():
    known, unknown = (three_planes(phantom(side)[0], at_mm=(0.0, 0.0, 0.0)).astype(int) for side in (True, False))
    different = np.nonzero((known != unknown).any(-1).any(0))[0]
    assert different.size
    sagittal_starts = WIDTHS[0] + WIDTHS[1] + 12
    assert different.max() < sagittal_starts  # A, P, S, I stay
    axial = different[different < WIDTHS[0]]
    assert (axial < 24).any() and (axial > WIDTHS[0] - 24).any()


@pytest.mark.parametrize("at_mm", [(500.0, 0.0, 0.0), (-500.0, 900.0, -900.0)])
def test_a_point_outside_shows_the_nearest_planes(at_mm):
    assert three_planes(phantom()[0], at_mm=at_mm).shape[2] == 3


def test_an_empty_series_is_still_a_picture_and_a_dollar_is_a_dollar():
    empty = Series(np.zeros((8, 9, 10), np.float32), np.eye(4))
    assert three_planes(empty).max() > 0  # the letters
    series, labels = phantom()
    assert three_planes(series, labels, structures=[Structure(value=3, name="$x$ <b> _y", paired=False)]).max() > 0


def test_many_labels_make_a_short_legend():
    series, labels = phantom()
    labels[5:35, 10:50, 15] = np.arange(1, 31)[:, None]
    assert (
        three_planes(series, labels, at_mm=series.to_patient_mm(np.array([20, 30, 15]))).shape[0] == PANEL_PIXELS + 48
    )


def test_a_saved_picture_comes_back(tmp_path: Path):
    picture = three_planes(*phantom())
    save_png(tmp_path / "new" / "planes.png", picture)
    back = matplotlib.image.imread(tmp_path / "new" / "planes.png")[..., :3]
    assert np.array_equal(np.rint(back * 255).astype(np.uint8), picture)
    assert (tmp_path / "new" / "planes.png").read_bytes() == png_bytes(picture)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["planes.png"]


def test_the_charts_are_written(tmp_path: Path):
    records = [{"step": step, "loss": 1 / (step + 1)} for step in range(50)] + [{"step": 50, "validation": 0.5}]
    plot_curves(tmp_path / "curves.png", records, ["loss", "validation"])
    plane = np.arange(12.0).reshape(3, 4)
    masked = np.where(plane > 5, np.nan, plane)
    plot_reconstruction(tmp_path / "strip.png", [("original", plane), ("visible", masked), ("reconstructed", plane)])
    rows = [ScoreRow("scratch", 0.6, 0.5, 0.7, (0.4, 0.8)), ScoreRow("pretrained", 0.8, 0.75, 0.85)]
    plot_dice_table(tmp_path / "dice.png", rows)
    for name in ("curves.png", "strip.png", "dice.png"):
        assert np.ptp(matplotlib.image.imread(tmp_path / name)) > 0.5


def test_error_maps_have_a_row_only_where_there_is_a_reference(tmp_path: Path):
    plane = np.arange(48.0).reshape(6, 8)
    images = {"exact": plane, "wrong": plane + 40.0}
    plot_errors(tmp_path / "errors.png", plane, images)
    plot_errors(tmp_path / "bare.png", None, images)
    errors, bare = (matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("errors", "bare"))
    assert errors.shape[0] > 1.5 * bare.shape[0] and errors.shape[1] > bare.shape[1]
    below = errors[errors.shape[0] // 2 :, :, :3]
    middle, right = below.shape[1] // 2, below.shape[1] * 5 // 6
    height = below.shape[0] * 2 // 3
    assert below[height, middle].sum() < 0.2 and below[height, right].sum() > 2  # no error is black, a large one bright


def test_a_misspelt_curve_is_an_input_error(tmp_path: Path):
    with pytest.raises(InputError, match="Did you mean 'loss'"):
        plot_curves(tmp_path / "curves.png", [{"step": 0, "loss": 1.0}], ["los"])
    assert not list(tmp_path.iterdir())


def test_every_structure_of_the_cohort_has_a_colour_of_its_own():
    colours = {name: np.asarray(to_rgb(colour_of(value))) for name, value in STRUCTURES.items()}
    for name, colour in colours.items():
        nearest = min(np.abs(colour - other).max() for rival, other in colours.items() if rival != name)
        assert nearest > 0.08, name
    assert colour_of(1).lower() == COLOURS[0].lower()
