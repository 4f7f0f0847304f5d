"""What an oracle says of a synthetic patient follows from the truth, and from what was acquired."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from numpy.random import default_rng

from foundation.cohort.claims import claims_of_truth, doubt, imagine_truth, with_prior
from foundation.cohort.patient import CohortConfig, make_patient
from foundation.findings import Finding, Reading
from foundation.terms import TERMS


def truth_with(*lesions: tuple[str, float, str, str], **changes: Any) -> dict[str, Any]:
    return {
        "subject": {"diagnoses": [], "cortical_atrophy": 0.0},
        "lesions": [dict(zip(("structure", "volume_ml", "side", "lobe"), one, strict=True)) for one in lesions],
        "midline_shift_mm": 0.0,
        "volumes_ml": {"lateral ventricle": 10.0, "intracranial": 1400.0, "brain": 1100.0, "hippocampus": 5.0, "thalamus": 9.0},
        "series": [{"contrast": one, "voxel_mm": (1.0, 1.0, 1.0), "artefact": None} for one in ("T1w", "T2w", "FLAIR", "DWI")],
        "history": ["hypertension"],
    } | changes  # fmt: skip


def found(reading: Reading, name: str) -> list[Finding]:
    return [one for one in reading.findings if one.name == name]


def test_pieces_of_one_side_are_one_finding_and_the_midline_goes_away_from_the_mass():
    truth = truth_with(
        ("enhancing tumour", 12.0, "right", "frontal"), ("necrosis", 4.0, "right", "parietal"),
        ("enhancing tumour", 1.0, "right", "temporal"), midline_shift_mm=6.0,
    )  # fmt: skip
    reading = claims_of_truth(truth, subject="x")
    [tumour] = found(reading, "tumour")
    assert (tumour.side, tumour.anatomy, tumour.measured("volume")) == ("right", "frontal lobe", 17.0)
    diameter = tumour.measured("diameter")
    assert diameter is not None and 4 / 3 * 3.14159265 * (diameter / 2) ** 3 == pytest.approx(17_000, rel=1e-6)
    [shift] = found(reading, "midline shift")
    assert (shift.side, shift.severity, shift.measured("shift")) == ("left", "moderate", 6.0)
    # Without contrast medium nobody can tell what enhances.
    assert [one.presence for one in found(reading, "enhancing tumour")] == ["not_assessed"]
    assert {one.contrast: one.signal for one in tumour.signals}["FLAIR"] == "hyperintense"


def test_plaques_are_counted_together():
    truth = truth_with(*(("plaque", 0.2, side, "frontal") for side in ("right", "left", "left")))
    [plaque] = found(claims_of_truth(truth, subject="x"), "plaque")
    assert (plaque.side, plaque.measured("number")) == ("bilateral", 3.0)
    assert plaque.measured("volume") == pytest.approx(0.6)


def test_leaving_out_a_series_only_turns_what_it_showed_into_not_assessed():
    truth = truth_with(("acute infarct", 3.0, "left", "parietal"))
    whole = claims_of_truth(truth, subject="x")
    fewer = copy.deepcopy(truth)
    fewer["series"] = [one for one in fewer["series"] if one["contrast"] != "DWI"]
    less = claims_of_truth(fewer, subject="x")
    assert [one.presence for one in found(whole, "acute infarct")] == ["present"]
    assert [one.presence for one in found(less, "acute infarct")] == ["not_assessed"]
    for name in TERMS.keys() - {"acute infarct"}:
        assert [one.presence for one in found(whole, name)] == [one.presence for one in found(less, name)], name


def test_a_made_patient_and_an_imagined_one_are_read_alike():
    patient = make_patient(CohortConfig(spacing_mm=4.0), 3)
    truth = json.loads(json.dumps(patient.truth))
    reading = claims_of_truth(truth, subject="x")
    assert {one.name for one in reading.findings if one.origin == "image"} >= TERMS.keys() - {"image artefact"}
    assert [one.name for one in reading.findings if one.origin == "record"] == [
        name.replace("_", " ") for name in truth["history"]
    ]
    assert not [
        one for one in claims_of_truth(truth, subject="x", with_record=False).findings if one.origin == "record"
    ]
    imagined = claims_of_truth(imagine_truth(default_rng(0)), subject="x")
    assert {one.name for one in imagined.findings} & TERMS.keys() == TERMS.keys()


def test_doubt_and_a_prior_are_added_and_invent_nothing():
    reading = claims_of_truth(imagine_truth(default_rng(5)), subject="x")
    unsure = doubt(reading, default_rng(0))
    assert [one.id for one in unsure.findings] == [one.id for one in reading.findings]
    assert any(one.probability is not None for one in unsure.findings)
    later = with_prior(reading, default_rng(0))
    assert later.prior is not None and Reading.model_validate_json(later.model_dump_json()) == later
    with pytest.raises(ValueError, match="prior"):
        Reading.model_validate(later.model_dump() | {"prior": None}) if any(
            f.change for f in later.findings
        ) else Reading(subject="", series=(), findings=(later.findings[0].model_copy(update={"change": "new"}),))
