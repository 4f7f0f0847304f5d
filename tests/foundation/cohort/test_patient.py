"""One patient: a pure function of config and index, whose targets and truth say what its own images and labels show."""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np
import pytest

from foundation.cohort.anatomy import DISEASES, Subject
from foundation.cohort.materials import BRAIN, INTRACRANIAL, LESIONS, STRUCTURES
from foundation.cohort.patient import ENLARGED_RATIO, CohortConfig, Patient, make_anatomy, make_patient, scan_again
from foundation.config import parse_config
from foundation.errors import InputError

FAST = {"spacing_mm": 4.0, "missing_series": 0.0, "contrasts": ("T1w", "T2w")}


def config_of(**changed) -> CohortConfig:
    return parse_config(CohortConfig, FAST | changed)


@lru_cache(maxsize=16)
def patient(index: int, seed: int = 0) -> Patient:
    return make_patient(config_of(seed=seed), index)


@lru_cache(maxsize=1)
def sick() -> Patient:
    """The first with three diagnoses, two of which leave lesions."""
    drawn = (Subject.draw(0, index) for index in range(300))
    return patient(next(one.index for one in drawn if len(one.diagnoses) >= 3 and "glioma" in one.diagnoses))


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"contrasts": ("T1",)}, "T1w"),
        ({"contrasts": ()}, "each named once"),
        ({"contrasts": ("T1w", "T1w")}, "each named once"),
        ({"spacing_mm": 3.0}, "1, 2 or 4 mm"),
        ({"splits": {"train": 0.5}}, "add up to 1"),
        ({"splits": {"trian": 1.0}}, "train"),
        ({"splits": {"train": 2.0, "test": -1.0}}, "greater than or equal to 0"),
        ({"missing_series": 1.0}, "less than 1"),
        ({"appearance": "pretty"}, "random"),
        ({"family": "odd"}, "shifted"),
        ({"sead": 1}, "seed"),
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_an_input_error_that_says_what_would(wrong, rule):
    with pytest.raises(InputError, match=rule):
        config_of(**wrong)


def test_a_patient_is_a_pure_function_of_config_and_index():
    one, again, other = patient(1), make_patient(config_of(), 1), patient(2)
    for first, second in zip(one.study.series, again.study.series, strict=True):
        np.testing.assert_array_equal(first.voxels, second.voxels)
        np.testing.assert_array_equal(first.affine, second.affine)
    np.testing.assert_array_equal(one.labels, again.labels)
    assert one.truth == again.truth and one.targets == again.targets
    assert one.truth["subject"] != other.truth["subject"] and one.targets != other.targets


def test_a_contrast_looks_the_same_whichever_others_are_acquired():
    alone = make_patient(config_of(contrasts=("T2w",)), 1)
    np.testing.assert_array_equal(alone.study.series[0].voxels, patient(1).study.series[1].voxels)


def test_labels_lie_on_the_first_series():
    one = patient(1)
    assert one.labels.shape == one.study.reference.shape
    brain = np.isin(one.labels, [STRUCTURES[name] for name in BRAIN])
    assert one.study.reference.voxels[brain].mean() > 3 * one.study.reference.voxels[one.labels == 0].mean()


@pytest.mark.parametrize("which", ["healthy", "sick"])
def test_targets_count_the_labels_and_name_the_diagnoses(which):
    one = sick() if which == "sick" else patient(1)
    ml = {
        name: np.count_nonzero(one.labels == value) * float(np.prod(one.study.reference.spacing_mm)) / 1000
        for name, value in STRUCTURES.items()
    }
    for name, volume in ml.items():
        assert one.targets[f"{name.replace(' ', '_')}_ml"] == pytest.approx(volume, abs=2e-3), name
    whole = sum(ml[name] for name in INTRACRANIAL)
    assert one.targets["intracranial_ml"] == pytest.approx(whole, abs=0.01)
    assert one.targets["brain_ml"] == pytest.approx(sum(ml[name] for name in BRAIN), abs=0.01)
    subject = one.anatomy.subject
    spoilt = one.truth["series"][0]["artefact"] or {"kind": "none", "severity": 0}
    assert (one.targets["artefact"], one.targets["artefact_severity"]) == (spoilt["kind"], spoilt["severity"])
    assert {name for name in DISEASES if one.targets[name]} == set(subject.diagnoses)
    assert one.targets["any_lesion"] == any(ml[name] > 0 for name in LESIONS) == (which == "sick")
    assert one.targets["enlarged_ventricles"] == (ml["lateral ventricle"] > ENLARGED_RATIO * whole)
    assert one.targets["num_plaques"] == sum(lesion.structure == "plaque" for lesion in one.lesions)
    assert (one.targets["midline_shift_mm"] > 0) == (one.anatomy.mapping.push is not None) == (which == "sick")
    assert one.targets["age_years"] == subject.age_years and one.targets["sex"] == subject.sex


def test_targets_hold_the_outcome_but_not_the_hazard_behind_it():
    for index in (1, 2, 3):
        one = patient(index)
        assert one.targets["time_days"] == pytest.approx(min(one.outcome.event_days, one.outcome.censor_days), abs=0.1)
        assert one.targets["is_observed"] == (one.outcome.event_days <= one.outcome.censor_days)
        assert not any("hazard" in name for name in one.targets)
        assert one.truth["outcome"]["log_hazard"] == pytest.approx(
            sum(one.truth["outcome"]["log_hazard_parts"].values())
        )


def test_truth_is_json_and_says_what_made_each_part():
    one = sick()

    def never(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    truth = json.loads(json.dumps(one.truth), parse_constant=never)
    assert "no evidence about people" in truth["note"]
    assert truth["subject"]["diagnoses"] == list(one.anatomy.subject.diagnoses)
    assert [entry["contrast"] for entry in truth["series"]] == ["T1w", "T2w"]
    assert truth["series"][1]["sequence"]["te_ms"] == one.study.series[1].acquisition.echo_time_ms
    assert truth["tissues"]["csf"]["t1_ms"] == float(one.tissues.t1[one.tissues.index("csf")])
    assert truth["lesions"] and set(truth["lesions"][0]) == {"structure", "volume_ml", "centroid_mm", "side", "lobe"}
    assert truth["anatomy"] == "MNI152" and truth["disease"]["glioma push_mm"] > 0
    assert truth["midline_shift_mm"] == one.targets["midline_shift_mm"]


@pytest.mark.parametrize("appearance", ["physics", "random", "mixed"])
def test_scanning_again_shows_the_same_head_otherwise(appearance):
    config = config_of(appearance=appearance)
    anatomy, tissues = make_anatomy(config, 1)
    studies = [scan_again(anatomy, tissues, config, repeat) for repeat in range(6)]
    names = {tuple(scan.series.name for scan in study) for study in studies}
    physics, random = {("T1w", "T2w")}, {("random", "random")}
    assert names == {"physics": physics, "random": random, "mixed": physics | random}[appearance]
    assert not np.array_equal(studies[0][0].series.voxels, studies[1][0].series.voxels)
    again = scan_again(anatomy, tissues, config, 1)
    np.testing.assert_array_equal(again[1].series.voxels, studies[1][1].series.voxels)
    if appearance == "physics":
        for here, there in zip(patient(1).study.series, studies[0], strict=True):
            np.testing.assert_array_equal(here.voxels, there.series.voxels)


def test_series_can_be_missing_but_never_all_of_them():
    """0.99 leaves none of three by chance in 97 of 100 studies."""
    config = config_of(missing_series=0.99, contrasts=("T1w", "T2w", "FLAIR"))
    kept = []
    for index in range(4):
        subject_anatomy, tissues = make_anatomy(config, index)
        kept.append([scan.series.name for scan in scan_again(subject_anatomy, tissues, config, 0)])
    assert [len(one) for one in kept] == [1] * 4 and len({one[0] for one in kept}) > 1


def test_the_family_held_apart_is_the_same_people_on_other_scanners():
    usual, shifted = patient(1), make_patient(config_of(family="shifted"), 1)
    assert usual.anatomy.subject.age_years == shifted.anatomy.subject.age_years
    one, other = (p.study.series[1].acquisition for p in (usual, shifted))
    assert one.field_strength_t in (1.5, 3.0) and other.field_strength_t in (0.55, 7.0)
    assert (other.repetition_time_ms or 0) < 3000 < 3500 <= (one.repetition_time_ms or 0)
    assert max(shifted.study.series[1].spacing_mm) >= 3 * 4.0
