"""Whole-head label maps: placed where the template's structures lie, mirrored half of the time, and nothing else accepted."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from numpy.random import default_rng
from scipy.spatial.transform import Rotation

from foundation.cohort.anatomy import Subject, build_anatomy
from foundation.cohort.label_maps import LANDMARKS, LabelMaps, label_map_template
from foundation.cohort.materials import INDEX, NUM_HEALTHY, STRUCTURES
from foundation.cohort.templates import Template, bundled_template
from foundation.errors import InputError

SPACING_MM = 4.0
REAL = Path(os.environ.get("LARMOR_REAL_DATA", Path(__file__).parents[4] / "shared" / "data")) / "synthseg_label_maps"

# An egg of a head, FreeSurfer's values: (left value, right value, centre on the right, radii) in mm of its own frame.
# The small ones come last; a thing off the midline is there twice.
PARTS = (
    (511, 511, (0, -16, 10), (82, 98, 90)),  # fat under the skin
    (515, 515, (0, -16, 10), (76, 92, 84)),
    (24, 24, (0, -16, 10), (70, 86, 78)),
    (3, 42, (33, -16, 12), (32, 80, 66)),
    (2, 41, (32, -16, 12), (26, 70, 56)),
    (8, 47, (24, -62, -38), (22, 22, 16)),
    (16, 16, (0, -28, -30), (10, 10, 24)),
    (4, 43, (9, -4, 20), (5, 24, 7)),
    (10, 49, (11, -18, 8), (9, 13, 8)),
    (11, 50, (14, 10, 10), (5, 12, 9)),
    (12, 51, (26, 3, 2), (6, 15, 9)),
    (13, 52, (19, -4, 0), (4, 6, 5)),
    (17, 53, (27, -23, -14), (5, 15, 5)),
)
TURN = Rotation.from_euler("xyz", (8.0, -5.0, 6.0), degrees=True).as_matrix()
SCALE, SHIFT_MM = 0.93, np.array([4.0, -22.0, 31.0])  # patient mm = SCALE * TURN @ frame mm + SHIFT_MM


def head_of_eggs() -> tuple[np.ndarray, np.ndarray]:
    """Values `(184, 210, 220)` and the affine of a 1 mm grid stored as LIA, as FreeSurfer does; the right eye is at 508."""
    shape = (184, 210, 220)
    linear = np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    affine = from_matvec(linear, SHIFT_MM + np.array([0, -15, 9]) - linear @ ((np.array(shape) - 1) / 2))
    patient = apply_affine(affine, np.moveaxis(np.indices(shape, dtype=np.float32), 0, -1)).astype(np.float32)
    x, y, z = np.moveaxis(((patient - SHIFT_MM) @ TURN / SCALE).astype(np.float32), -1, 0)
    values = np.zeros(shape, np.int32)
    for left, right, (side, front, top), (rx, ry, rz) in PARTS:
        inside = ((abs(x) - side) / rx) ** 2 + ((y - front) / ry) ** 2 + ((z - top) / rz) ** 2 < 1
        values[inside] = np.where(x < 0, left, right)[inside]
    values[(x - 32) ** 2 + (y - 72) ** 2 + (z + 30) ** 2 < 12**2] = 508
    return values, affine


def save(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    image = nib.Nifti1Image(values.astype(np.int16), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("label_maps")
    save(found / "eggs.nii.gz", *head_of_eggs())
    return found


@lru_cache(maxsize=4)
def template_of(folder: Path, mirrored: bool) -> Template:
    for seed in range(20):
        found = LabelMaps(folder).template(SPACING_MM, default_rng(seed))
        if found.name.endswith(" mirrored") == mirrored:
            return found
    raise AssertionError("twenty heads on one side")


def middle_mm(template: Template, material: str, side: int) -> np.ndarray:
    """Of what lies on the right (1) or left (-1) of MNI space, weighted by how much of each voxel it fills."""
    filled = template.fraction(INDEX[material]).numpy()
    mm = apply_affine(template.affine, np.argwhere(filled > 0))
    weights = filled[filled > 0] * (np.sign(mm[:, 0]) == side)
    return weights @ mm / weights.sum()


def test_structures_land_on_the_templates_whatever_the_head_was_turned_scaled_and_stored_as(folder):
    found, aim = template_of(folder, False), bundled_template(2.0)
    for name in (*LANDMARKS, "pallidum"):
        for side in (-1, 1):
            np.testing.assert_allclose(middle_mm(found, name, side), middle_mm(aim, name, side), atol=5, err_msg=name)
    # The map's frame is MNI's by construction, so that the fit undoes turn, scale and shift.
    assert abs(np.linalg.det(found.affine[:3, :3])) == pytest.approx((SPACING_MM / SCALE) ** 3, rel=0.08)
    assert middle_mm(found, "vitreous", 1)[0] == pytest.approx(32, abs=4)


def test_a_template_is_whole(folder):
    found = template_of(folder, False)
    filled = found.fractions.int().sum(dim=0)
    assert found.fractions.shape[0] == NUM_HEALTHY - 1 and filled.max() <= 255
    for left, _, (side, front, top), _ in PARTS[4:]:
        name = next(name for name, codes in CODES.items() if left in codes)
        voxel = np.rint(apply_affine(np.linalg.inv(found.affine), (side, front, top))).astype(int)
        if name not in ("cortex", "white matter", "brainstem"):  # whose middles hold other structures
            assert found.fraction(INDEX[name])[tuple(voxel)] > 0.3, name


CODES = {
    "white matter": (2,),
    "cerebellar cortex": (8,),
    "brainstem": (16,),
    "ventricular fluid": (4,),
    "thalamus": (10,),
    "caudate": (11,),
    "putamen": (12,),
    "pallidum": (13,),
    "hippocampus": (17,),
}


def test_a_mirrored_head_has_its_sides_exchanged(folder):
    plain, mirrored = template_of(folder, False), template_of(folder, True)
    assert mirrored.name == f"{plain.name} mirrored" == "eggs mirrored"
    one, other = middle_mm(plain, "vitreous", 1), middle_mm(mirrored, "vitreous", -1)
    np.testing.assert_allclose(other, one * (-1, 1, 1), atol=1e-6)  # the one eye
    for name in LANDMARKS:
        np.testing.assert_allclose(middle_mm(mirrored, name, -1), middle_mm(plain, name, 1) * (-1, 1, 1), atol=1e-6)


def test_about_half_of_all_heads_are_mirrored_and_every_file_is_used(folder):
    source = LabelMaps(folder)
    names = [source.template(SPACING_MM, default_rng(seed)).name for seed in range(60)]
    assert 15 < sum(name.endswith("mirrored") for name in names) < 45 and len(set(names)) == 2


@pytest.mark.parametrize("mirrored", [False, True])
def test_atrophy_on_the_left_is_on_the_left_of_either(folder, mirrored):
    """The patient's left, not the file's."""

    class Fixed:
        def template(self, spacing_mm, rng) -> Template:
            return template_of(folder, mirrored)

        def describe(self) -> str:
            return "one head"

    subject = replace(Subject.draw(0, 1), rotation_deg=(0.0,) * 3, shift_mm=(0.0,) * 3)
    sides = []
    for lost in ((0.0, 0.0), (0.6, 0.0)):
        anatomy = build_anatomy(replace(subject, hippocampal_atrophy=lost), Fixed(), SPACING_MM)
        is_right = anatomy.head_mm()[..., 0] > 0
        filled = anatomy.fraction([INDEX["hippocampus"]])
        sides.append((float(filled[~is_right].sum()), float(filled[is_right].sum())))
    assert sides[1][0] < 0.85 * sides[0][0] and sides[1][1] == pytest.approx(sides[0][1], rel=0.02)
    assert anatomy.source.startswith("eggs") and (anatomy.labels == STRUCTURES["thalamus"]).any()


# -------------------------------------------------------------------------------- What is not accepted


def test_a_folder_without_maps_is_an_input_error(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="holds label maps"):
            LabelMaps(folder).describe()


@pytest.fixture(scope="module")
def eggs() -> tuple[np.ndarray, np.ndarray]:
    return head_of_eggs()


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ("spacing", "voxels of 1 mm"),
        ("no hippocampus", "no hippocampus"),
        ("no ventricle", "no ventricular fluid"),
        ("intensities", "holds known values"),
        ("tiny", "size of a head"),
    ],
)
def test_a_wrong_map_is_an_input_error_that_names_it(tmp_path, eggs, wrong, rule):
    values, affine = eggs
    values = values[::2, ::2, ::2]  # for speed; said to be 1 mm, it is half a head, which only "tiny" may notice
    if wrong == "spacing":
        affine = affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    elif wrong == "no hippocampus":
        values = np.where(np.isin(values, (17, 53)), 2, values)
    elif wrong == "no ventricle":
        values = np.where(np.isin(values, (4, 43)), 2, values)
    elif wrong == "intensities":
        values = values * 5
    path = save(tmp_path / "wrong.nii.gz", values, affine)
    with pytest.raises(InputError, match=f"wrong.nii.gz.*{re.escape(rule)}"):
        label_map_template(path, SPACING_MM)


def test_the_description_follows_the_files_contents(folder, tmp_path):
    values, affine = np.zeros((4, 4, 4)), np.eye(4)
    save(tmp_path / "a.nii.gz", values, affine)
    first = LabelMaps(tmp_path).describe()
    assert first == LabelMaps(tmp_path).describe() != LabelMaps(folder).describe()
    save(tmp_path / "a.nii.gz", values + 1, affine)
    assert LabelMaps(tmp_path).describe() != first


def test_a_real_map_is_a_head_in_mni_space():
    paths = sorted(REAL.glob("*.nii.gz"))
    if not paths:
        pytest.skip("no real label maps beside the repository; set LARMOR_REAL_DATA to their folder's")
    found, aim = label_map_template(paths[0], SPACING_MM), bundled_template(2.0)
    for name in LANDMARKS:
        for side in (-1, 1):
            np.testing.assert_allclose(middle_mm(found, name, side), middle_mm(aim, name, side), atol=8, err_msg=name)
    ml = abs(np.linalg.det(found.affine[:3, :3])) / 1000
    assert 400 < float(found.fraction(INDEX["cortex"]).sum()) * ml < 900
    assert found.fractions.int().sum(dim=0).max() <= 255
