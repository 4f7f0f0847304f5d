"""Sources to records: who is who, what is set aside, and that the strict way takes what the fast way takes of valid FHIR."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ehr.record import Records, read_records
from ehr.times import span_of
from ehr.validation import Validator
from foundation.errors import InputError

OBSERVATION = {
    "resourceType": "Observation", "status": "final", "effectiveDateTime": "2020-01-01T10:00:00Z",
    "code": {"coding": [{"system": "http://loinc.org", "code": "2345-7"}]},
}  # fmt: skip


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def entry(resource: dict[str, Any], url: str | None = None) -> dict[str, Any]:
    return {"resource": resource} | ({"fullUrl": url} if url else {})


def sizes(records: Records) -> dict[str, int]:
    return {subject: len(record.events) for subject, record in records.items()}


@pytest.mark.parametrize(
    "reference",
    [
        "Patient/1",
        "urn:uuid:ABC",
        "https://server.example/fhir/Patient/1",
        "Patient/1/_history/2",
        "Patient?identifier=https://hospital.example|17",
    ],
)
def test_a_patient_is_one_by_whichever_name(reference: str, tmp_path: Path):
    patient = {
        "resourceType": "Patient",
        "id": "1",
        "identifier": [{"system": "https://hospital.example", "value": "17"}],
    }
    first = {"resourceType": "Bundle", "entry": [entry(OBSERVATION | {"subject": {"reference": reference}})]}
    second = {"resourceType": "Bundle", "entry": [entry(patient, "urn:uuid:abc")]}
    records = read_records(write(tmp_path, a=first, b=second))
    assert sizes(records) == {"Patient/1": 1}
    assert records.only().person is not None


def test_patients_who_share_a_number_stay_apart(tmp_path: Path):
    def patient(name: str) -> dict[str, Any]:
        return {"resourceType": "Patient", "id": name, "identifier": [{"system": "x", "value": "17"}, {"value": "1"}]}

    loose = OBSERVATION | {"subject": {"identifier": {"system": "x", "value": "17"}}}
    records = read_records(write(tmp_path, a=patient("1"), b=patient("2"), c=loose))
    assert len(records) == 3
    with pytest.raises(InputError, match="3 patients"):
        records.only()


def test_one_id_with_two_birth_dates_is_nobody(tmp_path: Path):
    def patient(birth: str) -> dict[str, Any]:
        return {"resourceType": "Patient", "id": "1", "birthDate": birth}

    mine = OBSERVATION | {"subject": {"reference": "Patient/1"}}
    records = read_records(write(tmp_path, a=patient("1950-01-01"), b=patient("1961-01-01"), c=mine))
    assert len(records) == 0
    assert [one.reason for one in records.summary.quarantined] == [
        "one id, several birth dates: the record is left out"
    ]


def test_a_birth_date_may_be_told_twice_if_both_can_be_true(tmp_path: Path):
    patient = {"resourceType": "Patient", "id": "1", "birthDate": "1950"}
    records = read_records(write(tmp_path, a=patient, b=patient | {"birthDate": "1950-06-01"}))
    assert records.only().birth == span_of("1950-06-01")


def test_a_death_in_any_version_of_a_patient_counts(tmp_path: Path):
    alive = {"resourceType": "Patient", "id": "1", "birthDate": "1950-01-01"}
    records = read_records(write(tmp_path, a=alive, b=alive | {"deceasedDateTime": "2020-01-01"}))
    person = records.only().person
    assert person is not None and person.is_dead and person.death is not None


def test_what_has_no_patient_is_set_aside(tmp_path: Path):
    records = read_records(
        write(
            tmp_path,
            a=OBSERVATION,
            b=OBSERVATION | {"subject": {"reference": "Device/1"}},
            c=OBSERVATION | {"subject": 3},
        )
    )
    assert len(records) == 0
    assert Counter(one.reason for one in records.summary.quarantined) == {
        "no subject": 2,
        "the subject is no patient": 1,
    }


def test_a_drug_in_a_resource_of_its_own_is_found_wherever_it_lies(tmp_path: Path):
    order = {
        "resourceType": "MedicationRequest", "id": "o", "status": "active", "subject": {"reference": "Patient/1"},
        "medicationReference": {"reference": "Medication/m"},
    }  # fmt: skip
    drug = {"resourceType": "Medication", "id": "m", "code": {"coding": [{"system": "x.example", "code": "7"}]}}
    records = read_records(write(tmp_path, a=order, b=drug))
    assert [event.codes for event in records.only().events] == [("x.example|7",)]


# ------------------------------------------------------------------------------------------------ strict


@pytest.mark.parametrize(
    ("fields", "repairs"),
    [
        ({}, ()),
        ({"effectiveDateTime": "2020-01-01T10:00:00"}, ("a time without a zone",)),
        ({"effectiveDateTime": "2020-01-01T10:00"}, ("a time without a zone",)),
        ({"localField": {"deep": 1}}, ("an unknown field",)),
        ({"valueString": "", "note": [{"text": "x", "y": 1}]}, ("an empty text", "an unknown field")),
    ],
)
def test_known_habits_are_mended_and_the_rest_is_refused(fields: dict[str, Any], repairs: tuple[str, ...]):
    resource = OBSERVATION | fields
    before = json.dumps(resource)
    verdict = Validator().check(resource)
    assert (verdict.version, sorted(verdict.repairs)) == ("R4B", sorted(repairs))
    assert json.dumps(resource) == before


@pytest.mark.parametrize(
    ("resource", "reason"),
    [
        (OBSERVATION | {"status": None}, "invalid"),
        (OBSERVATION | {"valueString": "x", "valueInteger": 7}, "invalid"),
        (OBSERVATION | {"effectiveDateTime": "Grimhilde Musterfrau"}, "invalid effectiveDateTime"),
        (OBSERVATION | {"code": ["Grimhilde Musterfrau"]}, "invalid code"),
        ({"resourceType": "Grimhilde Musterfrau"}, "no FHIR resource type"),
        ({"resourceType": "FHIRAbstractModel"}, "no FHIR resource type"),
    ],
)
def test_a_refusal_says_where_and_quotes_nothing(resource: dict[str, Any], reason: str):
    verdict = Validator().check(resource)
    assert verdict.version is None
    assert verdict.reason is not None and verdict.reason.startswith(reason)
    assert "Grimhilde" not in verdict.reason


def test_a_version_is_seen_from_the_shapes_and_not_mended_away():
    validator = Validator()
    r5 = {
        "resourceType": "MedicationRequest", "status": "active", "intent": "order", "subject": {"reference": "Patient/1"},
        "medication": {"concept": {"text": "x"}},
    }  # fmt: skip
    assert validator.check(r5) == type(validator.check(r5))("R5")
    assert validator.check(r5 | {"unknown": 1}).version == "R5"
    assert validator.check(OBSERVATION).version == "R5"  # both fit: the one that was right last
    r4 = r5 | {"medicationCodeableConcept": r5["medication"]["concept"]}
    del r4["medication"]
    assert validator.check(r4).version == "R4B"


@pytest.mark.parametrize("name", ["fhir_synthea_r4/bundles", "fhir_hl7_r4_examples", "fhir_validator_cases"])
def test_real_sources_are_read_to_the_end(name: str, shared_data: Path, tmp_path: Path):
    """No exception, and no resource lost without a reason; of Synthea's 56 bundles the two smallest (`larmor record` reads all)."""
    source = shared_data / name
    if not source.is_dir():
        pytest.skip(f"{name} is not among the real data")
    if "synthea" in name:
        for path in sorted(source.iterdir(), key=lambda path: path.stat().st_size)[:2]:
            (tmp_path / path.name).symlink_to(path)
        source = tmp_path
    fast, strict = read_records(source), read_records(source, strict=True)
    for records in (fast, strict):
        summary = records.summary
        lost = Counter(one.kind for one in summary.quarantined if one.kind)
        assert len(records) > 1 and summary.kinds.total() > 50
        assert all(one.reason and one.file and one.place for one in summary.quarantined)
        assert summary.kinds + lost == fast.summary.kinds + Counter(
            one.kind for one in fast.summary.quarantined if one.kind
        )
    assert set(strict) <= set(fast)
    if "synthea" in name:  # all of it is valid
        assert strict.summary.quarantined == []
        assert [one.events for one in fast.values()] == [one.events for one in strict.values()]
