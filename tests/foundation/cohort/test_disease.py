"""Lesions: where a radiologist would look for them, the same at every spacing, and counted as anyone would count them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from nibabel.affines import apply_affine
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from foundation.cohort.anatomy import Anatomy, Mapping, Subject, build_anatomy
from foundation.cohort.disease import (
    SMALLEST_ML,
    Blob,
    Plan,
    draw_disease,
    lobe_of,
    measure_lesions,
    plan_disease,
    side_of,
)
from foundation.cohort.materials import LESIONS, STRUCTURES
from foundation.cohort.templates import BundledTemplate
from foundation.reading.nifti import write_labels
from foundation.study import Series

SPACING_MM = 4.0
SOURCE = BundledTemplate()
SHOWS = {
    "glioma": {"enhancing tumour", "non-enhancing tumour", "necrosis", "oedema"},
    "multiple_sclerosis": {"plaque"},
    "white_matter_disease": {"white matter hyperintensity"},
    "infarct": {"acute infarct"},
    "haemorrhage": {"haemorrhage", "oedema"},
}


def patient(index: int, *diagnoses: str, seed: int = 5) -> Subject:
    return replace(Subject.draw(seed, index), diagnoses=diagnoses)


@lru_cache(maxsize=64)
def plan_of(subject: Subject) -> Plan:
    return plan_disease(subject, SOURCE)


def painted(subject: Subject, plan: Plan, spacing_mm: float = SPACING_MM) -> tuple[Anatomy, np.ndarray]:
    """The head with its disease, and its labels before that was painted."""
    anatomy = build_anatomy(subject, SOURCE, spacing_mm, push=plan.push)
    before = anatomy.labels.copy()
    draw_disease(anatomy, plan)
    return anatomy, before


@lru_cache(maxsize=64)
def drawn(subject: Subject, spacing_mm: float = SPACING_MM) -> tuple[Anatomy, np.ndarray]:
    """As the subject's own plan has it."""
    return painted(subject, plan_of(subject), spacing_mm)


def present(labels: np.ndarray) -> set[str]:
    return {name for name in LESIONS if (labels == STRUCTURES[name]).any()}


def glioma_at(centre_mm: tuple[float, float, float], radius_mm: float, **facts: float) -> Plan:
    numbers = {"high_grade": 1.0, "necrosis": 0.5, "oedema_mm": 12.0} | facts
    return Plan({"glioma": (Blob(centre_mm, radius_mm, 3),)}, {f"glioma {name}": one for name, one in numbers.items()})


# -------------------------------------------------------------------------------- What each disease draws


@pytest.mark.parametrize("disease", SHOWS)
def test_every_planned_disease_shows_its_structures_and_no_others(disease):
    for index in (3, 4):
        found = present(drawn(patient(index, disease))[0].labels)
        assert found and found <= SHOWS[disease], (index, found)


def test_atrophy_and_health_draw_nothing():
    for diagnoses in ((), ("atrophy",)):
        assert plan_of(patient(0, *diagnoses)) == Plan({}, {})
        assert present(drawn(patient(0, *diagnoses))[0].labels) == set()


def test_one_head_can_have_several_diseases():
    subject = patient(4, "glioma", "multiple_sclerosis", "white_matter_disease", "infarct", "haemorrhage")
    plan = plan_of(subject)
    assert set(plan.blobs) == set(subject.diagnoses)
    assert plan.push is not None and plan.push.centre_mm == plan.blobs["glioma"][0].centre_mm
    found = present(drawn(subject)[0].labels)
    assert {"plaque", "white matter hyperintensity", "acute infarct", "haemorrhage"} <= found
    assert found & {"enhancing tumour", "non-enhancing tumour"}


def test_a_plan_is_a_pure_function_of_the_subject():
    subject = patient(3, "infarct", "multiple_sclerosis")
    assert plan_disease(subject, SOURCE) == plan_of(subject) != plan_of(patient(4, "infarct", "multiple_sclerosis"))
    # Another disease beside it changes nothing about where the first one lies.
    assert plan_of(patient(3, "infarct")).blobs["infarct"] == plan_of(subject).blobs["infarct"]


def test_lesions_replace_brain_and_nothing_else():
    for disease in SHOWS:
        anatomy, before = drawn(patient(3, disease))
        of_lesion = np.isin(anatomy.labels, [STRUCTURES[name] for name in LESIONS])
        assert (before[~of_lesion] == anatomy.labels[~of_lesion]).mean() > 0.999
        was = before[of_lesion]
        assert not np.isin(was, [STRUCTURES[name] for name in ("skull", "soft tissue", "lateral ventricle")]).any()
        # A voxel with some brain in it may have been fluid before; that is the edge of a lesion, not its body.
        assert (was == STRUCTURES["other csf"]).mean() < 0.1 and (was == 0).sum() == 0


@pytest.mark.parametrize(("index", "disease"), [(3, "glioma"), (4, "glioma"), (5, "glioma"), (3, "haemorrhage")])
def test_oedema_lies_only_where_white_matter_was(index, disease):
    anatomy, before = drawn(patient(index, disease))
    oedema = anatomy.labels == STRUCTURES["oedema"]
    assert oedema.any() and (before[oedema] == STRUCTURES["cerebral white matter"]).all()


def test_oedema_reaches_farther_where_more_is_planned():
    subject, places = patient(3, "glioma"), (-32.0, -20.0, 32.0)
    ml = [
        (painted(subject, glioma_at(places, 15.0, oedema_mm=reach))[0].labels == STRUCTURES["oedema"]).sum()
        for reach in (0.0, 8.0, 20.0)
    ]
    assert ml[0] == 0 < 2 * ml[1] < ml[2]


def test_dead_tumour_is_enclosed_by_living_tumour():
    anatomy, _ = painted(patient(3, "glioma"), glioma_at((-32.0, -20.0, 32.0), 18.0))
    necrosis = anatomy.labels == STRUCTURES["necrosis"]
    around = ndimage.binary_dilation(necrosis, np.ones((3, 3, 3))) & ~necrosis
    assert necrosis.sum() > 20
    assert (anatomy.labels[around] == STRUCTURES["enhancing tumour"]).mean() > 0.85


def test_a_low_grade_glioma_neither_enhances_nor_dies():
    anatomy, _ = painted(patient(3, "glioma"), glioma_at((-32.0, -20.0, 32.0), 15.0, high_grade=0.0))
    assert present(anatomy.labels) == {"non-enhancing tumour", "oedema"}


def from_ventricle_mm(labels: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.distance_transform_edt(labels != STRUCTURES["lateral ventricle"], sampling=SPACING_MM))


def test_most_plaques_stand_on_the_ventricles():
    near, by_chance = [], []
    for index in (2, 3, 7, 9):
        anatomy, before = drawn(patient(index, "multiple_sclerosis"))
        distance = from_ventricle_mm(before)
        to_voxel = np.linalg.inv(anatomy.affine) @ anatomy.subject.pose
        for blob in plan_of(anatomy.subject).blobs["multiple_sclerosis"]:
            near.append(distance[tuple(np.rint(apply_affine(to_voxel, blob.centre_mm)).astype(int))] < 12)
        by_chance.append((distance[before == STRUCTURES["cerebral white matter"]] < 12).mean())
    assert len(near) > 30 and np.mean(near) > 0.55 and np.mean(near) > 2 * np.mean(by_chance)


def test_severe_hyperintensities_cap_the_ventricles():
    for index in (2, 10):
        anatomy, before = drawn(patient(index, "white_matter_disease"))
        distance, lesion = from_ventricle_mm(before), anatomy.labels == STRUCTURES["white matter hyperintensity"]
        assert (distance[lesion] < 12).mean() > 0.6
        beside = (before == STRUCTURES["cerebral white matter"]) & (distance <= SPACING_MM)
        assert lesion[beside].mean() > 0.3


def test_an_infarct_takes_cortex_and_white_matter_of_one_side():
    anatomy, before = drawn(patient(1, "infarct"))
    infarct = anatomy.labels == STRUCTURES["acute infarct"]
    assert {STRUCTURES["cerebral cortex"], STRUCTURES["cerebral white matter"]} <= set(before[infarct].tolist())
    (x,) = np.unique(np.sign(anatomy.mapping.to_mni(anatomy.head_mm())[..., 0].numpy()[infarct]))
    (lesion,) = (one for one in measure_lesions(anatomy.labels, anatomy.affine, anatomy.mapping) if one.volume_ml > 5)
    assert lesion.side == ("right" if x > 0 else "left")


# -------------------------------------------------------------------------------- The same lesion on other grids


def counted_ml(subject: Subject, spacing_mm: float) -> dict[str, float]:
    labels = drawn(subject, spacing_mm=spacing_mm)[0].labels
    return {name: float((labels == STRUCTURES[name]).sum()) * spacing_mm**3 / 1000 for name in LESIONS}


@pytest.mark.parametrize(
    ("index", "disease"), [(4, "glioma"), (2, "white_matter_disease"), (4, "infarct"), (3, "haemorrhage")]
)
def test_the_same_plan_has_the_same_volumes_at_every_spacing(index, disease):
    coarse, fine = (counted_ml(patient(index, disease), spacing_mm) for spacing_mm in (4.0, 2.0))
    large = [name for name in LESIONS if fine[name] > 3]  # smaller ones are few voxels of 4 mm
    assert large
    for name in large:
        assert coarse[name] == pytest.approx(fine[name], rel=0.25), name


@pytest.mark.parametrize("disease", ["glioma", "infarct"])
def test_the_family_held_apart_has_other_shapes_in_the_same_places(disease):
    usual = patient(4, disease)
    shifted = replace(usual, family="shifted")
    assert plan_of(shifted) == plan_of(usual)
    one, two = (
        np.isin(drawn(subject)[0].labels, [STRUCTURES[n] for n in SHOWS[disease]]) for subject in (usual, shifted)
    )
    overlap = 2 * (one & two).sum() / (one.sum() + two.sum())
    assert 0.3 < overlap < 0.93


# -------------------------------------------------------------------------------- Counting


def recount(path) -> list[tuple[str, float, np.ndarray]]:
    """Structure, volume and centroid of every piece in a label file, with nothing of ours but the numbers' names."""
    image = Nifti1Image.from_filename(path)
    labels, found = np.asarray(image.dataobj), []
    ml = np.prod(image.header.get_zooms()) / 1000
    for name in LESIONS:
        pieces = np.zeros(labels.shape, np.int32)
        num = int(ndimage.label(labels == STRUCTURES[name], structure=np.ones((3, 3, 3)), output=pieces))  # pyright: ignore
        for piece in range(1, num + 1):
            voxels = np.array(list(zip(*np.nonzero(pieces == piece), strict=True)))
            if len(voxels) * ml >= SMALLEST_ML.get(name, 0):
                found.append((name, len(voxels) * ml, apply_affine(image.affine, voxels).mean(axis=0)))
    return found


@pytest.mark.parametrize("disease", ["multiple_sclerosis", "glioma"])
def test_lesion_records_are_what_anyone_counts_in_the_written_mask(tmp_path, disease):
    subject = replace(patient(3, disease), is_oblique=True)
    anatomy, _ = drawn(subject)
    write_labels(tmp_path / "labels.nii.gz", anatomy.labels, Series(anatomy.share.numpy(), anatomy.affine))
    lesions = measure_lesions(anatomy.labels, anatomy.affine, anatomy.mapping)
    lesions = sorted(lesions, key=lambda lesion: (lesion.structure, lesion.centroid_mm[0]))
    counted = sorted(recount(tmp_path / "labels.nii.gz"), key=lambda piece: (piece[0], piece[2][0]))
    assert len(lesions) == len(counted) > 2
    for lesion, (name, volume, centre) in zip(lesions, counted, strict=True):
        assert lesion.structure == name and lesion.volume_ml == pytest.approx(volume, rel=1e-3)
        np.testing.assert_allclose(lesion.centroid_mm, centre, atol=0.01)
        mni = anatomy.mapping.mni_of(centre)
        assert lesion.side == ("midline" if abs(mni[0]) < 3 else "left" if mni[0] < 0 else "right")


def test_pieces_that_touch_at_a_corner_are_one_and_specks_are_none():
    anatomy, _ = drawn(patient(0, "atrophy"))
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[1, 1, 1] = labels[2, 2, 2] = labels[6, 6, 6] = STRUCTURES["plaque"]
    fine, coarse = np.diag([2.0, 2.0, 2.0, 1.0]), np.diag([3.0, 3.0, 3.0, 1.0])
    assert [round(one.volume_ml, 3) for one in measure_lesions(labels, coarse, anatomy.mapping)] == [0.054, 0.027]
    assert measure_lesions(labels, fine, anatomy.mapping) == []  # 0.016 and 0.008 ml


# -------------------------------------------------------------------------------- Where

KNOWN_MM = {
    (10, -98, 0): "occipital",  # pole
    (18, -85, -8): "occipital",
    (15, 66, 0): "frontal",  # pole
    (40, -5, 52): "frontal",  # precentral gyrus
    (45, 25, 15): "frontal",  # inferior frontal gyrus
    (40, -32, 56): "parietal",  # postcentral gyrus
    (45, -60, 45): "parietal",  # angular gyrus
    (8, -60, 45): "parietal",  # precuneus
    (38, 14, -32): "temporal",  # pole
    (60, -20, 0): "temporal",
    (28, -20, -16): "temporal",  # hippocampus
    (45, -45, -18): "temporal",  # fusiform gyrus
    (30, -65, -42): "cerebellum",
    (12, -60, -25): "cerebellum",
    (0, -26, -30): "brainstem",
    (12, -18, 8): "deep grey matter and its surroundings",
    (26, 4, 2): "deep grey matter and its surroundings",
}


@pytest.mark.parametrize("point_mm", KNOWN_MM, ids=str)
def test_lobes_of_well_known_points(point_mm):
    x, y, z = point_mm
    for side in (x, -x):
        assert lobe_of(np.array([side, y, z], np.float32)) == KNOWN_MM[point_mm]


def test_sides_are_the_patients():
    assert [side_of(np.array([x, 0.0, 0.0])) for x in (-40.0, -2.0, 2.0, 40.0)] == [
        "left",
        "midline",
        "midline",
        "right",
    ]
    # Through a mapping too: a lesion on the patient's left stays there however the head is turned.
    subject = replace(patient(0), rotation_deg=(5.0, -5.0, 12.0), shift_mm=(6.0, 0.0, 0.0))
    mapping: Mapping = build_anatomy(subject, SOURCE, SPACING_MM).mapping
    left = apply_affine(subject.pose, np.array([-30.0, -20.0, 20.0]))
    assert side_of(mapping.mni_of(left)) == "left"
