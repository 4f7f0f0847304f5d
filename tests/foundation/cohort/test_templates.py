"""The bundled head: whole, symmetric where it must be, every structure where an atlas would have it and as large."""

from __future__ import annotations

import numpy as np
import pytest

from foundation.cohort.grids import mm_axes, nearest_voxel
from foundation.cohort.materials import INDEX, LABEL_OF, MATERIALS, NUM_HEALTHY, STRUCTURES, indices
from foundation.cohort.templates import BundledTemplate, Template, bundled_template
from foundation.errors import InputError
from foundation.physics.relaxometry import TISSUES

SPACING_MM = 4.0
# Points on the right in MNI mm and what an atlas has there; all but the midline's are looked up on the left as well.
POINTS_MM = {
    (11, -18, 8): "thalamus",
    (27, 3, 2): "putamen",
    (13, 13, 8): "caudate",
    (19, -4, 0): "pallidum",
    (27, -22, -14): "hippocampus",
    (10, -5, 23): "ventricular fluid",
    (26, -20, 30): "white matter",
    (0, -28, -32): "brainstem",
    (30, -65, -40): "cerebellar cortex",
    (0, -14, 1): "fluid",
    (32, 57, -36): "vitreous",
}


@pytest.fixture(scope="module")
def template() -> Template:
    return bundled_template(SPACING_MM)


def ml(template: Template, *structures: str) -> float:
    fractions = [template.fraction(index).sum() for index in indices(*structures)]
    return float(sum(fractions)) * abs(float(np.linalg.det(template.affine[:3, :3]))) / 1000


def test_every_material_has_a_tissue_a_structure_and_a_label():
    assert len(MATERIALS) == len(LABEL_OF) and LABEL_OF[0] == 0
    for name, material in list(MATERIALS.items())[1:]:
        assert material.tissue in TISSUES and LABEL_OF[INDEX[name]] == STRUCTURES[material.structure or ""] > 0
    assert {material.structure for material in MATERIALS.values()} == {None, *STRUCTURES}
    assert len(set(STRUCTURES.values())) == len(STRUCTURES)


def test_the_materials_of_a_voxel_never_add_up_to_more_than_all_of_it(template):
    filled = template.fractions.int().sum(dim=0)
    assert template.fractions.shape[0] == NUM_HEALTHY - 1 and filled.max() <= 255
    inside = nearest_voxel(template.affine, (20, -20, 30))
    assert filled[inside] >= 250  # nor to less, inside a head


@pytest.mark.parametrize("point_mm", POINTS_MM, ids=str)
def test_structures_are_where_they_belong_on_both_sides(template, point_mm):
    x, y, z = point_mm
    for side in (x, -x):
        filled = template.fractions[:, *nearest_voxel(template.affine, (side, y, z))]
        assert list(MATERIALS)[1 + int(filled.argmax())] == POINTS_MM[point_mm]


def test_the_air_around_a_head_is_air_and_its_skin_is_outside(template):
    assert not template.fractions[:, 0].any() and not template.fractions[:, :, :, -1].any()
    skin = template.fraction(INDEX["skin"]).numpy()
    x, _, _ = mm_axes(skin.shape, template.affine)
    brain = template.fraction(INDEX["cortex"]).numpy()
    assert abs(x * (skin > 0.3)).max() > abs(x * (brain > 0.3)).max() + 8


def test_the_brain_is_exactly_symmetric(template):
    """Blocks of 4 mm are not mirror images of each other, but the middle of each material lies where it did at 1 mm."""
    names = [name for name in MATERIALS if name not in ("fluid", "sinus")][1 : INDEX["brainstem"] + 1]
    assert names[0] == "cortex" and names[-1] == "brainstem"
    for name in names:
        filled = template.fraction(INDEX[name]).numpy().astype(float)
        x, _, _ = mm_axes(filled.shape, template.affine)
        assert abs((filled * x).sum() / filled.sum()) < 0.05, name


def test_volumes_are_those_of_a_large_adult_brain(template):
    """ICBM152 is larger than a mean brain. Both sides, ml; the bounds are an atlas's mean, generously widened."""
    bounds = {
        "cerebral white matter": (400, 680),
        "cerebral cortex": (450, 780),
        "cerebellum": (110, 180),
        "brainstem": (22, 48),
        "lateral ventricle": (15, 30),
        "thalamus": (11, 20),
        "caudate": (6, 12),
        "putamen": (8, 14),
        "pallidum": (2, 5),
        "hippocampus": (5, 9),
    }
    found = {name: ml(template, name) for name in bounds}
    assert {name: round(found[name], 1) for name, (low, high) in bounds.items() if not low < found[name] < high} == {}
    whole = ml(template, *bounds, "other csf")
    assert 1700 < whole < 2100
    # Integrated over the maps themselves: grey 1008, white 670, CSF 220 ml, all before sulci were sharpened out.
    assert 0.10 < ml(template, "lateral ventricle", "other csf") / whole < 0.25


def test_the_same_head_at_2_mm_has_the_same_volumes(template):
    fine = bundled_template(2.0)
    for name in ("cerebral cortex", "cerebral white matter", "lateral ventricle", "hippocampus", "brainstem"):
        assert ml(fine, name) == pytest.approx(ml(template, name), rel=0.02), name


def test_a_spacing_that_blocks_cannot_have_is_an_input_error():
    with pytest.raises(InputError, match="1, 2 or 4 mm"):
        BundledTemplate().template(3.0, np.random.default_rng(0))
