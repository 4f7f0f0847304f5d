"""The index rule, clause by clause: what enters, what does not and the reason that is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ehr.index import (
    EMBARGOED,
    IMPRECISE,
    INVALID,
    KEPT,
    LATE,
    LATER,
    OWN,
    UNDATED,
    UNKNOWN,
    Audit,
    IndexRule,
    admit,
    index_of,
)  # fmt: skip
from ehr.outcomes import Outcome, outcome_after
from ehr.record import Record
from ehr.times import DAY_S
from foundation.errors import InputError
from tests.ehr.making import PATIENT, WHO, concept, observation, study

UID = "1.2.3"
STARTED = "2020-05-03T10:00:00Z"
SCAN = study("scan", STARTED, UID)
MakeRecord = Callable[..., Record]


def verdicts(record: Record, rule: IndexRule | None = None, **options: Any) -> dict[str, str]:
    """The verdict on each event, by source, of a record in which every resource gives one event."""
    found = {}
    index = index_of(record, **({"study_uid": UID} | options))
    for event in record.events:
        alone = Record(record.subject, record.person, (event,), record.links, record.stays, record.studies)
        ((verdict, _),) = admit(alone, index, rule).audit.counts.items()
        found[event.source] = verdict
    return found


def condition(name: str, recorded: str | None = "2020-05-01T10:00:00Z", **fields: Any) -> dict[str, Any]:
    resource = {"resourceType": "Condition", "id": name, "subject": WHO, "code": concept("1"), "recordedDate": recorded}
    return {key: value for key, value in (resource | fields).items() if value is not None}


def encounter(name: str, start: str | None, end: str | None, **fields: Any) -> dict[str, Any]:
    period = {key: value for key, value in (("start", start), ("end", end)) if value}
    return {"resourceType": "Encounter", "id": name, "subject": WHO, "status": "finished", "period": period,
            "class": {"code": "AMB"}} | fields  # fmt: skip


@pytest.mark.parametrize(
    ("resource", "verdict"),
    [
        (observation("o"), KEPT),
        (observation("o", status="entered-in-error"), INVALID),
        (observation("o", effectiveDateTime="soon"), UNDATED),
        (observation("o", day=None), UNDATED),
        (observation("o", effectiveDateTime="2020-05-03T10:00:00Z", issued=None), LATER),  # the very second
        (observation("o", effectiveDateTime="2020-05-03T09:59:59Z", issued=None), IMPRECISE),  # up to the very second
        (observation("o", effectiveDateTime="2020-05-03T09:59:58Z", issued=None), KEPT),
        (observation("o", issued="2020-05-03T10:00:01Z"), LATE),
        (observation("o", issued="no stamp"), UNKNOWN),
        (observation("o", effectiveDateTime="2020-05-03", issued=None), IMPRECISE),  # the index day
        (
            observation("o", effectiveDateTime="2020-05-02", issued=None),
            IMPRECISE,
        ),  # it may have been the index day there
        (observation("o", effectiveDateTime="2020-05-01", issued=None), KEPT),
        (observation("o", effectiveDateTime="2020-05", issued=None), IMPRECISE),
        (observation("o", effectiveDateTime="2020-04", issued=None), KEPT),
        (observation("o", effectiveDateTime="2020-05-03T09:00:00", issued=None), IMPRECISE),  # where?
        (observation("o", effectiveDateTime="2020-05-03T23:30:00+14:00", issued=None), KEPT),  # 09:30 in Greenwich
        (observation("o", effectiveDateTime="2020-05-02T23:30:00-12:00", issued=None), LATER),  # 11:30 in Greenwich
        (condition("c"), KEPT),
        (condition("c", None), UNDATED),
        (condition("c", None, onsetDateTime="2010-01-01"), UNKNOWN),
        (condition("c", "2020-05-04T10:00:00Z", onsetDateTime="2010-01-01"), LATE),
        (condition("c", "2020-05-01T10:00:00Z", onsetDateTime="2020"), KEPT),  # what was recorded had begun
        (condition("c", "2020-05-03T08:00:00Z", encounter={"reference": "Encounter/unknown"}), KEPT),
    ],
)
def test_time_decides(resource: dict[str, Any], verdict: str, record: MakeRecord):
    found = verdicts(record(resource, SCAN))
    assert found[f"{resource['resourceType']}/{resource['id']}"] == verdict


def test_lenient_takes_what_nobody_dates_as_known_when_it_happened(record: MakeRecord):
    report = {"resourceType": "DiagnosticReport", "id": "r", "status": "final", "subject": WHO, "code": concept("1")}
    whole = record(SCAN, report | {"effectiveDateTime": "2020-04-01"})
    assert verdicts(whole)["DiagnosticReport/r"] == UNKNOWN
    assert verdicts(whole, IndexRule(availability="lenient"))["DiagnosticReport/r"] == KEPT


def test_a_named_zone_makes_dates_precise(record: MakeRecord):
    yesterday = observation("o", effectiveDateTime="2020-05-02", issued=None)
    assert verdicts(record(yesterday, SCAN))["Observation/o"] == IMPRECISE
    assert verdicts(record(yesterday, SCAN, zone="Europe/Berlin"))["Observation/o"] == KEPT


# ------------------------------------------------------------------------------------------------ the study's own


def backdated(name: str, **fields: Any) -> dict[str, Any]:
    """A fact that by its stamps was there before the scan."""
    return observation(name) | fields


def report(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "resourceType": "DiagnosticReport", "id": name, "status": "final", "subject": WHO, "code": concept("r"),
        "effectiveDateTime": "2020-05-01T08:00:00Z", "issued": "2020-05-01T09:00:00Z",
    } | fields  # fmt: skip


TO_SCAN, TO_ORDER, TO_REPORT = ({"reference": f"{kind}/{name}"} for kind, name in (
    ("ImagingStudy", "scan"), ("ServiceRequest", "order"), ("DiagnosticReport", "report")))  # fmt: skip
ORDER = {
    "resourceType": "ServiceRequest", "id": "order", "subject": WHO, "status": "active", "intent": "order", "code": concept("m"),
    "authoredOn": "2020-05-01T08:00:00Z",
}  # fmt: skip


@pytest.mark.parametrize(
    "related",
    [
        [backdated("x", derivedFrom=[TO_SCAN])],
        [backdated("x", partOf=[TO_SCAN])],
        [backdated("x", basedOn=[TO_ORDER])],
        [report("x", imagingStudy=[TO_SCAN])],
        [report("x", study=[TO_SCAN])],  # R5
        [report("x", imagingStudy=[{"identifier": {"system": "urn:dicom:uid", "value": f"urn:oid:{UID}"}}])],
        [report("x", basedOn=[TO_ORDER])],
        [report("x", identifier=[{"system": "https://ris.example", "value": "A17"}])],  # the study's accession number
        [report("report", imagingStudy=[TO_SCAN], result=[{"reference": "Observation/x"}]), backdated("x")],
        [report("report", basedOn=[TO_ORDER], result=[{"reference": "Observation/p"}]),
         backdated("p", hasMember=[{"reference": "Observation/x"}]), backdated("x")],
        [report("report", imagingStudy=[TO_SCAN]), backdated("x", derivedFrom=[TO_REPORT])],
        [report("report", imagingStudy=[TO_SCAN]), condition("x", evidence=[{"detail": [TO_REPORT]}])],
        [report("report", imagingStudy=[TO_SCAN]), condition("x", evidence=[{"reference": TO_REPORT}])],  # R5
        [backdated("o", derivedFrom=[TO_SCAN]), backdated("x", derivedFrom=[{"reference": "Observation/o"}])],
        [{"resourceType": "Procedure", "id": "x", "subject": WHO, "status": "completed", "code": concept("p"),
          "performedDateTime": "2020-05-01T08:00:00Z", "partOf": [TO_SCAN]}],
        [report("x", imagingStudy=[TO_SCAN] , subject={"reference": "https://server.example/Patient/a"})],
    ],
)  # fmt: skip
def test_what_comes_from_the_study_is_left_out_whatever_its_stamps(related: list[dict[str, Any]], record: MakeRecord):
    accession = {
        "type": {"coding": [{"system": "v2", "code": "ACSN"}]},
        "system": "https://ris.example",
        "value": "A17",
    }
    scan = SCAN | {"basedOn": [TO_ORDER], "identifier": [*SCAN["identifier"], accession]}
    found = verdicts(record(scan, ORDER, *related))
    assert found.pop("ServiceRequest/order") == KEPT  # the order and its indication were there before
    assert set(found.values()) == {OWN}


def test_a_contained_result_goes_with_its_report(record: MakeRecord):
    inside = observation("x")
    del inside["subject"]
    found = verdicts(
        record(SCAN, report("r", imagingStudy=[TO_SCAN], contained=[inside], result=[{"reference": "#x"}]))
    )
    assert found == {"ImagingStudy/scan": OWN, "DiagnosticReport/r": OWN, "DiagnosticReport/r#x": OWN}


def test_what_only_shares_patient_encounter_or_prior_is_kept(record: MakeRecord):
    visit = encounter(
        "e", "2020-04-01T08:00:00Z", "2020-04-01T09:00:00Z", diagnosis=[{"condition": {"reference": "Condition/c"}}]
    )
    in_visit = {"encounter": {"reference": "Encounter/e"}}
    prior = study("prior", "2020-04-01T08:30:00Z", "9.9")
    found = verdicts(
        record(
            SCAN | {"encounter": {"reference": "Encounter/now"}},
            visit,
            prior,
            observation("o", **in_visit),
            condition("c", **in_visit),
            report("old", imagingStudy=[{"reference": "ImagingStudy/prior"}]),
            report("new", imagingStudy=[TO_SCAN], supportingInfo=[{"reference": "DiagnosticReport/old"}]),
        )
    )
    assert {found.pop("ImagingStudy/scan"), found.pop("DiagnosticReport/new")} == {OWN}
    assert set(found.values()) == {KEPT} and len(found) == 5


def test_results_are_left_out_where_the_study_is_known_by_its_time_alone(record: MakeRecord):
    whole = record(SCAN, backdated("x", derivedFrom=[TO_SCAN]), backdated("y"))
    found = verdicts(whole, study_uid=None, at="2020-05-03T09:30:00Z")
    assert (found["Observation/x"], found["Observation/y"]) == (OWN, KEPT)


# ------------------------------------------------------------------------------------------------ encounters


@pytest.mark.parametrize(
    ("start", "end", "is_linked", "verdict"),
    [
        ("2020-05-03T08:00:00Z", "2020-05-03T20:00:00Z", True, EMBARGOED),
        ("2020-05-03T08:00:00Z", "2020-05-03T20:00:00Z", False, EMBARGOED),  # recorded while it went on
        ("2020-05-03T08:00:00Z", None, True, EMBARGOED),  # nobody says that it ended
        (None, None, True, EMBARGOED),
        (None, None, False, KEPT),
        ("2020-05-01T08:00:00Z", "2020-05-02T09:00:00Z", True, KEPT),
        (
            "2020-05-04T08:00:00Z",
            "2020-05-05T09:00:00Z",
            True,
            KEPT,
        ),  # began after the diagnosis: not where it was made
    ],
)
def test_a_diagnosis_counts_when_its_encounter_is_over(
    start: str | None, end: str | None, is_linked: bool, verdict: str, record: MakeRecord
):
    link = {"encounter": {"reference": "Encounter/e"}} if is_linked else {}
    whole = record(SCAN, encounter("e", start, end), condition("c", "2020-05-03T09:00:00Z", **link))
    assert verdicts(whole)["Condition/c"] == verdict
    assert verdicts(whole, IndexRule(embargo="none"))["Condition/c"] == KEPT


def test_the_studys_own_encounter_is_under_embargo_even_if_it_is_over(record: MakeRecord):
    visit = encounter("e", "2020-04-01T08:00:00Z", "2020-04-01T09:00:00Z")
    link = {"encounter": {"reference": "Encounter/e"}}
    whole = record(
        SCAN | link, visit, condition("c", "2020-04-01T08:30:00Z", **link), condition("d", "2020-04-02T08:30:00Z")
    )
    assert verdicts(whole)["Condition/c"] == EMBARGOED
    assert verdicts(whole)["Condition/d"] == KEPT


# ------------------------------------------------------------------------------------------------ the index itself


def test_the_index_is_the_earliest_that_anything_says(record: MakeRecord):
    series = [{"uid": "1", "started": "2020-05-03T09:50:00Z"}, {"uid": "2", "started": "2020-05-03T10:30:00Z"}]
    whole = record(SCAN | {"series": series})
    early = index_of(whole, study_uid=UID)
    assert early == index_of(whole) == index_of(whole, study_uid=UID, at="2020-05-03T11:00:00Z")
    assert early.time == index_of(whole, study_uid=UID, at="2020-05-03T09:50:00Z").time
    assert index_of(whole, study_uid=UID, at="2020-05-03T09:00:00Z").time == early.time - 3000


def test_a_study_that_cannot_be_told_is_an_input_error(record: MakeRecord):
    with pytest.raises(InputError, match="one MR study"):
        index_of(record(observation("o")))
    with pytest.raises(InputError, match="one MR study"):
        index_of(record(SCAN, study("other", STARTED, "7")))
    with pytest.raises(InputError, match="has a time"):
        index_of(record(SCAN), study_uid="9.9.9")
    with pytest.raises(InputError, match="time is a date") as caught:
        index_of(record(SCAN), at="the day that Grimhilde fell")
    assert "Grimhilde" not in str(caught.value)


def test_a_later_landmark_has_to_be_declared(record: MakeRecord):
    after = observation("o", day="2020-05-05")
    result = observation("r", day="2020-05-04", derivedFrom=[TO_SCAN])
    whole = record(SCAN, after, result)
    assert verdicts(whole, at="2020-05-07")["Observation/o"] == LATER  # a later time alone changes nothing
    surgery = ("surgery", "2020-05-07T12:00:00Z")
    found = verdicts(whole, landmark=surgery)
    assert found["Observation/o"] == KEPT
    assert found["Observation/r"] == found["ImagingStudy/scan"] == OWN  # the study's own stays out
    audit = admit(whole, index_of(whole, study_uid=UID, landmark=surgery)).audit
    assert audit.as_json()["landmark"] == "surgery"
    for wrong in (("surgery", "2020-05-01"), ("", "2020-05-07")):
        with pytest.raises(InputError, match="landmark"):
            index_of(whole, study_uid=UID, landmark=wrong)


def test_an_audit_adds_up(record: MakeRecord):
    whole = record(
        SCAN, observation("a"), observation("b", day="2020-06-01"), condition("c", None, onsetDateTime="2010")
    )
    audit = admit(whole, index_of(whole)).audit
    assert audit.as_json() == {
        "rule": {"availability": "strict", "embargo": "encounter"},
        "landmark": None,
        "kept": {"Observation": 1},
        "dropped": {OWN: {"ImagingStudy": 1}, UNKNOWN: {"Condition": 1}, LATER: {"Observation": 1}} ,
        "num_kept": 1,
        "num_dropped": 3,
    }  # fmt: skip
    assert (audit + audit).num_kept == 2 and (audit + Audit()).counts == audit.counts


# ------------------------------------------------------------------------------------------------ outcomes


@pytest.mark.parametrize(
    ("died", "days", "is_observed"),
    [
        ({}, 365.0, False),
        ({"deceasedDateTime": "2020-08-11T10:00:00Z"}, 100.0, True),
        ({"deceasedBoolean": True}, None, None),
        ({"deceasedDateTime": "2020-05-01"}, None, None),
        ({"deceasedBoolean": False}, 365.0, False),
    ],
)
def test_outcomes(died: dict[str, Any], days: float | None, is_observed: bool | None, record: MakeRecord):
    last = observation("o", effectiveDateTime="2021-05-03T10:00:00.0Z", issued=None)
    error = observation("e", day="2030-01-01", status="entered-in-error")
    whole = record(PATIENT | died, SCAN, last, error)
    outcome = outcome_after(whole, index_of(whole))
    if days is None:
        assert outcome is None
    else:
        assert outcome is not None
        assert outcome.time_days == pytest.approx(days, abs=1e-4) and outcome.is_observed is is_observed


def test_time_counts_from_the_landmark_and_only_for_who_reached_it(record: MakeRecord):
    whole = record(PATIENT | {"deceasedDateTime": "2020-05-13T10:00:00.0Z"}, SCAN)
    surgery = index_of(whole, landmark=("surgery", "2020-05-08T10:00:00.0Z"))
    assert outcome_after(whole, surgery) == Outcome(5.0, True)
    assert outcome_after(whole, index_of(whole, landmark=("discharge", "2020-05-20"))) is None
    assert surgery.time - index_of(whole).time == 5 * DAY_S
