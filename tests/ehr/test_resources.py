"""What is read of each resource: R4 and R5 say the same, misshapen fields say nothing, what comes last is not read."""

from __future__ import annotations

from typing import Any

import pytest

from ehr.resources import READERS, extract, key_of, references_in
from ehr.times import span_of
from ehr.units import State

WHO = {"reference": "Patient/a"}
SCT = "http://snomed.info/sct"


def concept(code: str, system: str = SCT, **more: Any) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}], **more}


def facts(resource: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (one.codes, one.broader, one.happened, one.known, one.is_valid, one.canonical, one.state)
        for one in extract(resource).events
    ]


PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Encounter": (
        {"status": "finished", "class": {"system": SCT, "code": "1"}, "type": [concept("2")], "reasonCode": [concept("3")],
         "period": {"start": "2020-01-01T10:00:00Z", "end": "2020-01-02T10:00:00Z"}},
        {"status": "completed", "class": [concept("1")], "type": [concept("2")], "reason": [{"value": [{"concept": concept("3")}]}],
         "actualPeriod": {"start": "2020-01-01T10:00:00Z", "end": "2020-01-02T10:00:00Z"}},
    ),
    "MedicationRequest": (
        {"status": "active", "intent": "order", "authoredOn": "2020-01-01", "medicationCodeableConcept": concept("7")},
        {"status": "active", "intent": "order", "authoredOn": "2020-01-01", "medication": {"concept": concept("7")}},
    ),
    "MedicationStatement": (
        {"status": "active", "effectivePeriod": {"start": "2019"}, "dateAsserted": "2020-01-01",
         "medicationCodeableConcept": concept("7")},
        {"status": "recorded", "effectivePeriod": {"start": "2019"}, "dateAsserted": "2020-01-01",
         "medication": {"concept": concept("7")}},
    ),
    "MedicationAdministration": (
        {"status": "completed", "effectiveDateTime": "2020-01-01T10:00:00Z", "medicationCodeableConcept": concept("7")},
        {"status": "completed", "occurenceDateTime": "2020-01-01T10:00:00Z", "medication": {"concept": concept("7")}},
    ),
    "Procedure": (
        {"status": "completed", "performedPeriod": {"start": "2020-01-01", "end": "2020-01-03"}, "code": concept("7")},
        {"status": "completed", "occurrencePeriod": {"start": "2020-01-01", "end": "2020-01-03"}, "code": concept("7")},
    ),
    "ServiceRequest": (
        {"status": "active", "intent": "order", "authoredOn": "2020-01-01", "code": concept("7"), "reasonCode": [concept("8")]},
        {"status": "active", "intent": "order", "authoredOn": "2020-01-01", "code": {"concept": concept("7")},
         "reason": [{"concept": concept("8")}]},
    ),
    "ImagingStudy": (
        {"status": "available", "started": "2020-01-01", "modality": [{"system": SCT, "code": "MR"}]},
        {"status": "available", "started": "2020-01-01", "modality": [concept("MR")]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PAIRS)
def test_r4_and_r5_say_the_same(kind: str):
    old, new = ({"resourceType": kind, "id": "x", "subject": WHO} | shape for shape in PAIRS[kind])
    assert facts(old) == facts(new)
    assert facts(old) and all(codes and valid for codes, _, _, _, valid, *_ in facts(old))


def test_an_encounter_is_known_at_its_start_and_its_reason_at_its_end():
    shape = PAIRS["Encounter"][0] | {
        "resourceType": "Encounter", "diagnosis": [{"condition": {"reference": "Condition/1"}, "use": concept("9")}],
        "hospitalization": {"dischargeDisposition": concept("exp")}, "length": {"value": 3},
    }  # fmt: skip
    known = {one.codes: one.known for one in extract(shape).events}
    start, end = span_of("2020-01-01T10:00:00Z"), span_of("2020-01-02T10:00:00Z")
    assert known == {("SNOMED|1",): start, ("SNOMED|2",): start, ("reason:SNOMED|3",): end}


def test_a_patients_death_is_in_no_event():
    found = extract(
        {"resourceType": "Patient", "id": "a", "gender": "male", "birthDate": "1950", "deceasedDateTime": "2021-01-01",
         "address": [{"city": "X"}], "maritalStatus": concept("M"), "active": False}
    )  # fmt: skip
    assert found.events == []
    assert found.person is not None and found.person.is_dead and found.person.sex == "male"


def observation(**fields: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation", "id": "o", "status": "final", "subject": WHO, "effectiveDateTime": "2020-01-01T10:00:00Z",
        "code": concept("2345-7", "http://loinc.org"),
    } | fields  # fmt: skip


def test_a_value_lies_in_the_files_own_range_before_the_usual_one():
    value = {"value": 5.0, "unit": "mmol/L"}
    ends = {"low": {"value": 4.0, "unit": "mmol/L"}, "high": {"value": 6.0, "unit": "mmol/L"}}
    (own,) = extract(observation(valueQuantity=value, referenceRange=[{"text": "x"}, ends])).events
    assert own.position == pytest.approx(0.5) and own.canonical == pytest.approx(90.08)
    assert (own.value, own.unit, own.canonical_unit) == (5.0, "mmol/L", "mg/dL")
    bare = {"low": {"value": 4.0}, "high": {"value": 6.0}}  # the value's unit is meant
    (same,) = extract(observation(valueQuantity=value, referenceRange=[bare])).events
    assert same.position == pytest.approx(0.5)
    (usual,) = extract(observation(valueQuantity=value)).events
    assert usual.position == pytest.approx((90.08 - 70) / 29)
    backwards = {"low": {"value": 6.0}, "high": {"value": 4.0}}
    (still,) = extract(observation(valueQuantity=value, referenceRange=[backwards])).events
    assert still.position == usual.position


def test_a_code_without_a_row_has_a_position_where_its_range_has_its_unit():
    other = concept("99999-9", "http://loinc.org")
    value, ends = (
        {"value": 3.0, "unit": "foo"},
        {"low": {"value": 2.0, "unit": "foo"}, "high": {"value": 6.0, "unit": "foo"}},
    )
    (one,) = extract(observation(code=other, valueQuantity=value, referenceRange=[ends])).events
    assert (one.state, one.position, one.canonical) == (State.RELATIVE, 0.25, None)
    ends["high"]["unit"] = "bar"
    (one,) = extract(observation(code=other, valueQuantity=value, referenceRange=[ends])).events
    assert (one.state, one.position) == (State.NO_ANALYTE, None)


def test_components_are_events_of_their_own():
    parts = [
        {"code": concept(code, "http://loinc.org"), "valueQuantity": {"value": value, "code": "mm[Hg]"}}
        for code, value in (("8480-6", 120), ("8462-4", 80))
    ]
    found = extract(observation(code=concept("85354-9", "http://loinc.org"), component=parts)).events
    assert [(one.codes[0], one.canonical) for one in found] == [
        ("ANALYTE|systolic pressure", 120.0), ("ANALYTE|diastolic pressure", 80.0),
    ]  # fmt: skip


def test_a_coded_answer_names_question_and_answer():
    (one,) = extract(observation(code=concept("72166-2"), valueCodeableConcept=concept("8517006"))).events
    assert (one.codes, one.broader) == (("SNOMED|72166-2=SNOMED|8517006",), ("SNOMED|72166-2",))
    (one,) = extract(observation(code=concept("1"), valueBoolean=False)).events
    assert one.codes == ("SNOMED|1=false",)
    (one,) = extract(observation(code=concept("1"), valueString="the patient's own words")).events
    assert one.codes == ("SNOMED|1",) and one.text is None
    (one,) = extract(observation(code=concept("1"), valueString="words"), free_text=True).events
    assert one.text == "words"


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        ({"issued": "2020-01-02T10:00:00Z"}, span_of("2020-01-02T10:00:00Z")),
        ({}, span_of("2020-01-01T10:00:00Z")),
        ({"issued": "yesterday"}, None),  # there is a stamp and nobody can read it: unknown, not "when it was taken"
        ({"effectiveDateTime": None, "effectivePeriod": {"start": "2020-01-01"}}, None),
    ],
)
def test_when_an_observation_was_known(fields: dict[str, Any], known: Any):
    (one,) = extract(observation(valueQuantity={"value": 1}, **fields)).events
    assert one.known == known


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("Observation", {"status": "entered-in-error"}),
        ("Observation", {"status": "cancelled"}),
        ("Observation", {}),
        ("Observation", {"status": "final", "dataAbsentReason": concept("unknown")}),
        ("Condition", {"verificationStatus": {"coding": [{"code": "refuted"}]}}),
        ("Condition", {"verificationStatus": "entered-in-error"}),
        ("AllergyIntolerance", {"verificationStatus": {"coding": [{"code": "entered-in-error"}]}}),
        ("MedicationRequest", {"status": "active", "doNotPerform": True}),
        ("MedicationRequest", {"status": "active", "intent": "proposal"}),
        ("MedicationStatement", {"status": "not-taken"}),
        ("Procedure", {"status": "not-done"}),
        ("Encounter", {"status": "planned", "class": {"code": "AMB"}}),
        ("ServiceRequest", {"status": "revoked"}),
        ("ImagingStudy", {"status": "cancelled", "modality": [{"code": "MR"}]}),
        ("DiagnosticReport", {"status": "registered"}),
    ],
)
def test_what_was_not_so_is_not_valid(kind: str, fields: dict[str, Any]):
    found = extract({"resourceType": kind, "code": concept("1"), **fields}).events
    assert found and not any(one.is_valid for one in found)


def test_what_was_recorded_had_begun():
    """A partial onset ends where the record says that it was known."""
    (one,) = extract(
        {
            "resourceType": "Condition",
            "code": concept("1"),
            "onsetDateTime": "2020",
            "recordedDate": "2020-03-01T10:00:00Z",
        }
    ).events
    assert one.happened is not None and one.known is not None
    assert one.happened.hi == one.known.hi


def test_contained_resources_are_read_with_their_owner():
    found = extract(
        {"resourceType": "DiagnosticReport", "id": "r", "status": "final", "subject": WHO, "result": [{"reference": "#o"}],
         "contained": [observation(id="o", valueQuantity={"value": 90, "unit": "mg/dL"})]}
    )  # fmt: skip
    assert [one.kind for one in found.events] == ["DiagnosticReport", "Observation"]
    assert [one.link for one in found.events] == found.links
    assert found.links[1].part_of is found.links[0] and found.links[0].results == found.links[1].keys == (
        "DiagnosticReport/r#o",
    )
    drug = extract(
        {"resourceType": "MedicationRequest", "id": "m", "status": "active", "subject": WHO,
         "medicationReference": {"reference": "#d"}, "contained": [{"resourceType": "Medication", "id": "d", "code": concept("7")}]}
    )  # fmt: skip
    assert [one.codes for one in drug.events] == [("SNOMED|7",)]


@pytest.mark.parametrize(
    ("reference", "key"),
    [
        ("Patient/1", "Patient/1"),
        ("Patient/1/_history/4", "Patient/1"),
        ("https://server.example/fhir/Patient/1", "Patient/1"),
        ("urn:uuid:ABC", "urn:uuid:abc"),
        ("urn:oid:1.2.3", "uid:1.2.3"),
        ("#x", "Report/1#x"),
        ("Patient?identifier=http://a.example|17", "id:http://a.example|17"),
        ("", None),
        ("x" * 10_000, None),
    ],
)
def test_a_reference_has_one_key(reference: str, key: str | None):
    assert key_of(reference, "Report/1") == key


def test_references_are_found_in_r4_and_r5_shapes():
    r4 = {"reasonReference": [{"reference": "A/1"}], "evidence": [{"detail": [{"reference": "A/2"}]}]}
    r5 = {"reason": [{"reference": {"reference": "A/1"}}], "evidence": [{"reference": {"reference": "A/2"}}]}
    assert references_in(list(r4.values())) == references_in(list(r5.values())) == ("A/1", "A/2")
    by_number = {"identifier": {"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}}
    assert "uid:1.2.3" in references_in(by_number)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    "junk",
    [None, 7, -1.5, True, "x", "", [], [None], [[]], {}, {"coding": 3}, [{"coding": [7]}], [{"resourceType": {}}]],
)
def test_junk_in_any_field_is_no_error(kind: str, junk: Any):
    """Every field that any reader looks at, holding what it should not."""
    names = {name for old, new in PAIRS.values() for name in (*old, *new)} | {
        "id", "status", "subject", "patient", "code", "component", "valueQuantity", "referenceRange", "issued", "encounter",
        "condition", "verificationStatus", "recordedDate", "onsetDateTime", "onsetPeriod", "contained", "basedOn", "result",
        "derivedFrom", "identifier", "series", "conclusionCode", "birthDate", "gender", "deceasedDateTime", "effectivePeriod",
        "medicationReference", "valueCodeableConcept", "valueInteger", "conclusion", "note", "date", "started", "evidence",
    }  # fmt: skip
    extract({"resourceType": kind} | dict.fromkeys(names, junk), free_text=True)
    for name in names:
        extract({"resourceType": kind, "id": "x", "status": "final", name: junk}, junk, free_text=True)
