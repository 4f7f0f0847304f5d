"""A reading's FHIR bundle is valid in both versions, refers only to what is in it, and reads back unchanged."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from typing import Any
from xml.etree import ElementTree

import pytest

from ehr.output import checked, report_bundle
from foundation.errors import InputError
from foundation.findings import Finding, Measurement, ModelUsed, Reading
from heads.report.templates import draft

EVIL = "<script>alert(1)</script> & \"'"
VERSIONS = {"R4B": "fhir.resources.R4B", "R5": "fhir.resources"}


@pytest.fixture
def reading() -> Reading:
    volume = Measurement(name="volume", value=3.25, unit="ml", method="count")
    findings = (
        Finding(id="a.hippocampus.right", name="hippocampus", anatomy="brain", side="right", presence="present",
                measurements=(volume,), source="a", abnormal=False),
        Finding(id="a.plaque.left", name="plaque", anatomy="brain", side="left", presence="uncertain", probability=0.7,
                is_calibrated=True, source="a", note=EVIL, abnormal=True),
        Finding(id="b.age.midline", name=EVIL, anatomy="", side="midline", presence="not_assessed", source="b", note="why"),
        Finding(id="c.lesion.left", name="lesion", anatomy="brain", side="left", presence="absent", source="c"),
    )  # fmt: skip
    models = (
        ModelUsed(name="a", weights_sha256="1" * 64, backbone_sha256="2" * 64),
        ModelUsed(name="b", weights_sha256="3"),
    )
    created = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    return Reading(subject="patient-1", series=(), findings=findings, models=models, warnings=(EVIL,), created=created)


def references(thing: Any) -> Iterator[str]:
    if isinstance(thing, dict):
        if isinstance(thing.get("reference"), str):
            yield thing["reference"]
        thing = list(thing.values())
    if isinstance(thing, list):
        for one in thing:
            yield from references(one)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_bundle_is_valid_and_reads_back_unchanged(reading: Reading, version: Any) -> None:
    pdf = b"%PDF-1.7\x00\xff not a real one"
    made = report_bundle(reading, draft(reading).sentences, version=version, pdf=pdf, study_uid="1.2.3")
    bundle = checked(made, version)
    model = import_module(f"{VERSIONS[version]}.bundle").Bundle
    again = json.loads(model.model_validate(bundle).model_dump_json())
    assert again == bundle
    kinds = [entry["resource"]["resourceType"] for entry in bundle["entry"]]
    assert kinds.count("Observation") == 4 and kinds.count("Device") == 3 and kinds[0] == "DiagnosticReport"
    assert {"Patient", "Composition", "ImagingStudy", "Provenance"} <= set(kinds)
    assert set(references(bundle)) <= {entry["fullUrl"] for entry in bundle["entry"]}
    report = bundle["entry"][0]["resource"]
    assert base64.b64decode(report["presentedForm"][1]["data"]) == pdf
    assert "Possibly abnormal: plaque" in report["conclusion"]


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_said_is_preliminary_and_marked_as_made_by_a_machine(reading: Reading, version: Any) -> None:
    bundle = report_bundle(reading, draft(reading).sentences, version=version)
    for entry in bundle["entry"]:
        one = entry["resource"]
        if one["resourceType"] in ("DiagnosticReport", "Composition", "Observation"):
            assert one["status"] == "preliminary" and one["meta"]["security"][0]["code"] == "AIAST"
    [provenance] = [e["resource"] for e in bundle["entry"] if e["resource"]["resourceType"] == "Provenance"]
    assert len(provenance["target"]) == 6 and len(provenance["agent"]) == 2


def test_a_finding_keeps_its_numbers_side_and_doubt(reading: Reading) -> None:
    bundle = report_bundle(reading, draft(reading).sentences)
    found = [e["resource"] for e in bundle["entry"] if e["resource"]["resourceType"] == "Observation"]
    right, unsure, missing, absent = found
    assert right["code"]["coding"][0]["code"] == "5366008" and right["bodySite"]["coding"][1]["display"] == "Right"
    assert right["component"][0]["valueQuantity"] == {
        "value": 3.25, "unit": "mL", "system": "http://unitsofmeasure.org", "code": "mL",
    }  # fmt: skip
    assert (
        unsure["valueCodeableConcept"] == {"text": "uncertain"}
        and unsure["component"][0]["valueQuantity"]["value"] == 0.7
    )
    assert "valueCodeableConcept" not in missing and missing["dataAbsentReason"]["coding"][0]["code"] == "not-performed"
    assert absent["valueCodeableConcept"]["coding"][0]["code"] == "272519000"


def test_sections_carry_their_codes_and_text_stays_text(reading: Reading) -> None:
    bundle = report_bundle(reading, draft(reading).sentences)
    sections = bundle["entry"][1]["resource"]["section"]
    codes = {one["title"]: one.get("code", {}).get("coding", [{}])[0].get("code") for one in sections}
    assert codes == {"Technique": "55111-9", "Findings": "59776-5", "Impression": "19005-8", "Limits": None}
    for section in sections:
        tags = {element.tag.partition("}")[2] for element in ElementTree.fromstring(section["text"]["div"]).iter()}
        assert tags == {"div", "p"}
    assert "alert(1)" in json.dumps(sections) and "<script>" not in json.dumps(sections)


def test_a_reading_of_nothing_and_a_broken_bundle(reading: Reading) -> None:
    empty = Reading(subject="", series=())
    checked(report_bundle(empty, draft(empty).sentences), "R4B")
    bundle = report_bundle(reading, draft(reading).sentences)
    bundle["entry"][0]["resource"]["colour"] = "red"
    with pytest.raises(InputError, match="DiagnosticReport of ours is valid R4B"):
        checked(bundle, "R4B")
    assert report_bundle(reading, ()) == report_bundle(reading, ())
