"""A reading as FHIR: a Bundle with the drafted report, one Observation per finding, and who or what said it. R4B and R5.

    bundle = report_bundle(reading, draft.sentences, version="R5", pdf=pdf, study_uid="1.2.3")

Everything in it is marked as asserted by artificial intelligence (AIAST), the DiagnosticReport, each Observation, the Composition
whose sections hold the sentences, and the Provenance that names a Device per model with the hash of its weights. It is preliminary
until a clinician has signed it: then the status follows the `Standing`, and a Provenance names who verified it.
The patient is only as named as the reading is: the receiving system puts its own Patient in place of ours.
`checked` validates every resource under fhir.resources' models of its version.
"""

from __future__ import annotations

import uuid
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from ehr.validation import Validator
from foundation.errors import InputError
from foundation.findings import Finding, Measurement, ModelUsed, Reading
from foundation.terms import PRESENCE, SIDES, Code, snomed_of, ucum

Json = dict[str, Any]
Version = Literal["R4B", "R5"]
VERSIONS: tuple[Version, ...] = get_args(Version)
LOINC, UCUM, SNOMED = "http://loinc.org", "http://unitsofmeasure.org", "http://snomed.info/sct"
HL7 = "http://terminology.hl7.org/CodeSystem"
NAMESPACE = uuid.UUID("5e1c2b0a-7f5d-4c59-9d0f-3a5d6b1f2c77")  # so that the same reading gives the same ids

REPORT = (LOINC, "24590-2", "MR Brain")
DOCUMENT = (LOINC, "18748-4", "Diagnostic imaging study")
SECTIONS = {
    "Technique": (LOINC, "55111-9", "Current imaging procedure descriptions"),
    "Findings": (LOINC, "59776-5", "Procedure findings"),
    "Impression": (LOINC, "19005-8", "Radiology Imaging study [Impression] (narrative)"),
}  # what limits the reading has no code of its own, and goes as text
AI = {"system": f"{HL7}/v3-ObservationValue", "code": "AIAST", "display": "Artificial Intelligence asserted"}


@dataclass(frozen=True)
class Standing:
    """How far a report has come, and who vouches for it; nobody does for a draft."""

    status: Literal["preliminary", "final", "amended"] = "preliminary"
    signed_by: str | None = None
    signed_at: datetime | None = None

    @property
    def is_verified(self) -> bool:
        return self.signed_by is not None and self.status != "preliminary"

    @property
    def words(self) -> str:
        """'Draft.', or 'Final, signed by anna on 2026-01-31 10:05 UTC.'"""
        if self.signed_by is None or self.signed_at is None:
            return "Draft."
        when = self.signed_at.astimezone(UTC)
        return f"{self.status.capitalize()}, signed by {self.signed_by} on {when:%Y-%m-%d %H:%M} UTC."


DRAFT = Standing()


@runtime_checkable
class Worded(Protocol):
    """A sentence of a draft, whoever wrote it."""

    @property
    def section(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def finding_ids(self) -> tuple[str, ...]: ...


def report_bundle(
    reading: Reading,
    sentences: Sequence[Worded],
    *,
    version: Version = "R4B",
    pdf: bytes | None = None,
    study_uid: str | None = None,
    standing: Standing = DRAFT,
) -> Json:
    """A `collection` Bundle whose resources refer to each other; `study_uid` is the study's name in DICOM."""
    return _Writer(reading, sentences, version, pdf, study_uid, standing).bundle()


def checked(bundle: Json, version: Version) -> Json:
    """The bundle itself, if every resource is valid under this version's models as it is."""
    validator = Validator()
    for entry in bundle["entry"]:
        verdict = validator.errors_under(version, entry["resource"])
        if verdict:
            kind = entry["resource"]["resourceType"]
            raise InputError(
                f"a {kind} of ours is valid {version}", got=verdict, remedy="Report this as a fault of ours."
            )
    return bundle


class _Writer:
    """One bundle in the making: its resources know each other's addresses."""

    def __init__(
        self,
        reading: Reading,
        sentences: Sequence[Worded],
        version: Version,
        pdf: bytes | None,
        study_uid: str | None,
        standing: Standing,
    ):
        self.reading, self.sentences, self.version, self.pdf = reading, sentences, version, pdf
        self.study_uid, self.standing = study_uid, standing
        self.is_r5 = version == "R5"
        self.time = _instant(reading.created)
        self.patient = self._to("Patient")
        self.devices = {model.name: self._to("Device", model.name) for model in reading.models}
        self.software = self._to("Device", "")

    def bundle(self) -> Json:
        resources = list(self._resources())
        return {
            "resourceType": "Bundle",
            "type": "collection",
            "timestamp": self.time,
            "entry": [{"fullUrl": f"urn:uuid:{one['id']}", "resource": one} for one in resources],
        }

    def _resources(self) -> Iterator[Json]:
        yield self._report()
        yield self._composition()
        yield self._resource("Patient", identifier=[{"value": self.reading.subject or "unnamed"}])
        if self.study_uid:
            yield self._imaging_study(self.study_uid)
        for finding in self.reading.findings:
            yield self._observation(finding)
        yield self._device("", self.reading.software, None)
        for model in self.reading.models:
            yield self._device(model.name, model.name, model)
        yield self._provenance()
        if self.standing.signed_by and self.standing.signed_at:
            yield self._verified(self.standing.signed_by, self.standing.signed_at)

    # -------------------------------------------------------------------------------------------- resources

    def _report(self) -> Json:
        forms = [{"contentType": "text/plain", "language": "en", "data": _base64(self._plain().encode())}]
        if self.pdf is not None:
            forms.append({"contentType": "application/pdf", "language": "en", "data": _base64(self.pdf)})
        impression = " ".join(one.text for one in self.sentences if one.section == "Impression")
        report = self._resource(
            "DiagnosticReport",
            meta={"security": [AI]},
            status=self.standing.status,
            category=[_concept((LOINC, "LP29684-5", "Radiology"))],
            code=_concept(REPORT),
            subject=self.patient,
            effectiveDateTime=self.time,
            issued=_instant(self.standing.signed_at) if self.standing.signed_at else self.time,
            resultsInterpreter=[{"display": self.standing.signed_by}] if self.standing.is_verified else None,
            result=[self._to("Observation", finding.id) for finding in self.reading.findings] or None,
            conclusion=impression or None,
            presentedForm=forms,
        )
        if self.study_uid:
            report["study" if self.is_r5 else "imagingStudy"] = [self._to("ImagingStudy")]
        if self.is_r5:
            report["composition"] = self._to("Composition")
        return report

    def _composition(self) -> Json:
        names = dict.fromkeys(one.section for one in self.sentences)
        return self._resource(
            "Composition",
            meta={"security": [AI]},
            status=self.standing.status,
            type=_concept(DOCUMENT),
            subject=[self.patient] if self.is_r5 else self.patient,
            date=self.time,
            author=[*self.devices.values()] or [self.software],
            title=f"{self.standing.words.rstrip('.')}{'' if self.standing.is_verified else ', not verified by a clinician'}",
            section=[self._section(name) for name in names] or None,
        )

    def _section(self, name: str) -> Json:
        own = [one for one in self.sentences if one.section == name]
        cited = dict.fromkeys(id for one in own for id in one.finding_ids)
        section: Json = {
            "title": name,
            "text": {"status": "generated", "div": _div(one.text for one in own)},
            "entry": [self._to("Observation", id) for id in cited],
        }
        if name in SECTIONS:
            section["code"] = _concept(SECTIONS[name])
        return {key: value for key, value in section.items() if value}

    def _observation(self, finding: Finding) -> Json:
        site = _concept(snomed_of(finding.anatomy), finding.anatomy or "not said")
        if finding.side in SIDES:
            site = {**site, "coding": [*site.get("coding", []), _coding(SIDES[finding.side])],
                    "text": f"{finding.side} {finding.anatomy}".strip()}  # fmt: skip
        observation = self._resource(
            "Observation",
            identifier=[{"value": finding.id}],
            meta={"security": [AI]},
            status=self.standing.status,
            category=[_concept((f"{HL7}/observation-category", "imaging", "Imaging"))],
            code=_concept(snomed_of(finding.name), finding.name),
            subject=self.patient,
            effectiveDateTime=self.time,
            issued=self.time,
            bodySite=site,
            method={"text": f"model {finding.source}"},
            device=self.devices.get(finding.source, self.software),
            component=[*map(_component, finding.measurements), *_probability(finding)] or None,
            note=[{"text": finding.note}] if finding.note else None,
        )
        if finding.presence == "not_assessed":
            observation["dataAbsentReason"] = _concept((f"{HL7}/data-absent-reason", "not-performed", "Not Performed"))
        else:
            observation["valueCodeableConcept"] = _concept(PRESENCE.get(finding.presence), finding.presence)
        return observation

    def _imaging_study(self, uid: str) -> Json:
        return self._resource(
            "ImagingStudy",
            identifier=[{"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}],
            status="available",
            subject=self.patient,
        )

    def _device(self, key: str, name: str, model: ModelUsed | None) -> Json:
        hashes = [] if model is None else [("weights", model.weights_sha256), ("backbone", model.backbone_sha256)]
        kind = "user-friendly-name"
        return self._resource(
            "Device",
            key,
            identifier=[{"value": f"sha256:{value}"} for _, value in hashes if value] or None,
            status="active",
            manufacturer="Larmor",
            **(
                {"name": [{"value": name or "unnamed", "type": kind}]}
                if self.is_r5
                else {"deviceName": [{"name": name or "unnamed", "type": kind}]}
            ),
            version=[{"type": {"text": what}, "value": value} for what, value in hashes if value] or None,
            note=[{"text": "Research software, not a medical device."}],
        )

    def _provenance(self) -> Json:
        agents = [*self.devices.values()] or [self.software]
        targets = [self._to("DiagnosticReport"), self._to("Composition")]
        targets += [self._to("Observation", finding.id) for finding in self.reading.findings]
        role = _concept((f"{HL7}/provenance-participant-type", "assembler", "Assembler"))
        activity = (f"{HL7}/v3-DataOperation", "CREATE", "create")
        return self._resource(
            "Provenance",
            meta={"security": [AI]},
            target=targets,
            recorded=self.time,
            activity=_concept(activity),
            agent=[{"type": role, "who": who} for who in agents],
        )

    def _verified(self, by: str, at: datetime) -> Json:
        """Who signed; the text is his from then on, and what it came from stays marked as the models'."""
        role = _concept((f"{HL7}/provenance-participant-type", "verifier", "Verifier"))
        return self._resource(
            "Provenance",
            "signature",
            target=[self._to("DiagnosticReport"), self._to("Composition")],
            recorded=_instant(at),
            activity=_concept((f"{HL7}/v3-DataOperation", "UPDATE", "revise")),
            agent=[{"type": role, "who": {"display": by}}],
        )

    # -------------------------------------------------------------------------------------------- pieces

    def _resource(self, kind: str, key: str = "", **fields: Any) -> Json:
        if kind == "Observation":
            key = fields["identifier"][0]["value"]
        known = {name: value for name, value in fields.items() if value is not None}
        return {"resourceType": kind, "id": self._id(kind, key), **known}

    def _to(self, kind: str, key: str = "") -> Json:
        return {"reference": f"urn:uuid:{self._id(kind, key)}"}

    def _id(self, kind: str, key: str) -> str:
        return str(uuid.uuid5(NAMESPACE, "\n".join([self.reading.subject, self.time, kind, key])))

    def _plain(self) -> str:
        names = dict.fromkeys(one.section for one in self.sentences)
        parts = (
            "\n".join([name.upper(), *(one.text for one in self.sentences if one.section == name)]) for name in names
        )
        return "\n\n".join(parts) + "\n"


def _concept(code: Code | tuple[str, str, str] | None, text: str | None = None) -> Json:
    """A CodeableConcept of one of our terms, of (system, code, display), or of text alone."""
    coded = {"coding": [_coding(code)]} if code else {}
    return coded | ({"text": text} if text else {})


def _coding(code: Code | tuple[str, str, str]) -> Json:
    system, value, display = (SNOMED, code.code, code.display) if isinstance(code, Code) else code
    return {"system": system, "code": value, "display": display}


def _component(measurement: Measurement) -> Json:
    unit = ucum(measurement.unit)
    quantity = {"value": measurement.value, "unit": unit, "system": UCUM, "code": unit}
    return {"code": {"text": f"{measurement.name} ({measurement.method})"}, "valueQuantity": quantity}


def _probability(finding: Finding) -> list[Json]:
    if finding.probability is None:
        return []
    name = "probability of being present, calibrated" if finding.is_calibrated else "score, not calibrated"
    quantity = {"value": finding.probability, "unit": "1", "system": UCUM, "code": "1"}
    return [{"code": {"text": name}, "valueQuantity": quantity}]


def _div(texts: Iterable[str]) -> str:
    """Text from files as XHTML that shows it and obeys nothing."""
    return f'<div xmlns="http://www.w3.org/1999/xhtml">{"".join(f"<p>{escape(text)}</p>" for text in texts)}</div>'


def _instant(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _base64(content: bytes) -> str:
    return b64encode(content).decode("ascii")
