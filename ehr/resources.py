"""One FHIR resource to events, in the shapes of R4, R4B and R5 alike; what is missing or misshapen is left out, never an error.

    extract(resource, full_url).events

Read: Patient, Condition, Observation, MedicationRequest, MedicationStatement, MedicationAdministration, Medication,
Procedure, Encounter, AllergyIntolerance, FamilyMemberHistory, ServiceRequest, ImagingStudy, DiagnosticReport. Never read, because
they are written when all is over or are not about medicine: an encounter's diagnoses, discharge and length, a condition's
abatement, names, addresses, narrative.

`known` is when a fact could first be read: what the resource says of its own availability (issued, recordedDate, authoredOn),
and only where it cannot say, when it had happened. A stamp that is there and cannot be read makes it unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import tzinfo
from typing import Any

from ehr.codes import LONGEST, codes_of, in_role
from ehr.events import Event, ImagedStudy, Link, Person, Stay, name_mark
from ehr.times import Span, span_of
from ehr.units import MOST_CHARACTERS, Measurement, State, factor_of, measure

Json = dict[str, Any]

VALID = {
    "Observation": {"preliminary", "final", "amended", "corrected", "appended"},
    "DiagnosticReport": {"partial", "preliminary", "modified", "final", "amended", "corrected", "appended"},
    "MedicationRequest": {"active", "on-hold", "completed", "stopped", "ended"},
    "MedicationStatement": {"active", "completed", "stopped", "on-hold", "recorded"},
    "MedicationAdministration": {"in-progress", "on-hold", "completed", "stopped"},
    "Procedure": {"completed"},
    "Encounter": {"arrived", "triaged", "in-progress", "onleave", "on-hold", "finished", "discharged", "completed", "discontinued"},
    "FamilyMemberHistory": {"partial", "completed"},
    "ServiceRequest": {"active", "on-hold", "completed"},
    "ImagingStudy": {"registered", "available"},
}  # fmt: skip
REFUTED = {"refuted", "entered-in-error"}
ORDERED = {"order", "original-order", "reflex-order", "filler-order", "instance-order", "directive"}
# The fields by which a resource says what it was derived from, belongs to or is about.
CITING = (
    "partOf", "derivedFrom", "hasMember", "imagingStudy", "study", "evidence", "report", "reasonReference", "reason",
    "focus", "supportingInfo", "supportingInformation", "procedureReference", "media", "result", "triggeredBy",
    "usedReference", "complicationDetail",
)  # fmt: skip
RESULTS = {
    "DiagnosticReport": ("result", "media"),
    "Observation": ("hasMember",),
    "ImagingStudy": ("procedureReference",),
}
DEEPEST = 6  # of references inside a field: {"evidence": [{"detail": [{"reference": ...}]}]} is three
# Identifiers join only resources that name one study: a report, its order, its images. A patient's number joins everything.
IDENTIFIED = ("ImagingStudy", "DiagnosticReport", "ServiceRequest", "Procedure", "Observation")


@dataclass
class Extract:
    """What one resource, and those contained in it, came to."""

    kind: str
    keys: tuple[str, ...]
    subject: tuple[str, ...] = ()
    events: list[Event] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    stay: Stay | None = None
    study: ImagedStudy | None = None
    person: Person | None = None
    codes: tuple[str, ...] = ()  # of a Medication, which others refer to


def extract(resource: Json, full_url: object = None, *, zone: tzinfo | None = None, free_text: bool = False) -> Extract:
    """Everything that is read from a resource; `full_url` is its address in a bundle."""
    kind = text_of(resource.get("resourceType")) or ""
    reader = _Reader(resource, kind, own_keys(resource, kind, full_url), zone, free_text)
    found = Extract(kind, reader.keys)
    if kind not in READERS:
        return found
    found.subject = references_in(resource.get("patient" if kind in BY_PATIENT else "subject"), reader.source)
    found.links.append(reader.link)
    READERS[kind](reader, found)
    for inner in _list(resource.get("contained")):
        if isinstance(inner, dict) and text_of(inner.get("resourceType")) in READERS:
            _take_contained(inner, reader, found)
    return found


def _take_contained(resource: Json, owner: _Reader, found: Extract) -> None:
    """A resource inside another is known by "OWNER#id" and shares its subject; what it refers to by "#id" lies beside it."""
    kind, name = resource["resourceType"].strip(), text_of(resource.get("id")) or ""
    keys = tuple(f"{key}#{name}" for key in owner.keys)
    reader = _Reader(resource, kind, keys, owner.zone, owner.free_text, owner)
    inner = Extract(kind, keys)
    READERS[kind](reader, inner)
    if kind == "Patient":
        found.person = inner.person
    elif kind == "Medication":
        found.events = [
            replace(one, codes=inner.codes, medication=None) if one.medication in keys else one for one in found.events
        ]
    else:
        found.events += inner.events
        found.links.append(reader.link)


# ------------------------------------------------------------------------------------------------ references


def own_keys(resource: Json, kind: str, full_url: object = None) -> tuple[str, ...]:
    """What a resource is known by, its own reference first."""
    keys = []
    name = text_of(resource.get("id"))
    if name:
        keys.append(f"{kind}/{name}")
    address = key_of(full_url) if isinstance(full_url, str) else None
    if address:
        keys.append(address)
    if kind in IDENTIFIED or kind == "Patient":
        for identifier in _list(resource.get("identifier")):
            keys += _identifier_keys(identifier)
    return tuple(dict.fromkeys(key for key in keys if not key.startswith("id:|")))  # "1" without a system names nobody


def key_of(reference: str, owner: str = "") -> str | None:
    """A reference as a key: without version, server or case of a urn; "#x" with its owner before it."""
    reference = reference.strip()
    if not reference or len(reference) > 4 * LONGEST:
        return None
    if reference.startswith("#"):
        return f"{owner}{reference}"
    if reference[:4].lower() == "urn:":
        return _uid_key(reference) or reference.lower()
    path, _, query = reference.partition("?")
    if query.startswith("identifier="):  # a conditional reference: Practitioner?identifier=SYSTEM|VALUE
        return f"id:{query.removeprefix('identifier=')}"
    parts = path.partition("/_history")[0].rstrip("/").split("/")
    return "/".join(parts[-2:])


def references_in(value: object, owner: str = "", depth: int = 0) -> tuple[str, ...]:
    """The keys that a Reference, a CodeableReference or anything made of them names."""
    if isinstance(value, list):
        return tuple(key for one in value for key in references_in(one, owner, depth))
    if not isinstance(value, dict) or depth > DEEPEST:
        return ()
    keys: list[str] = []
    for name, inner in value.items():
        if name == "reference" and isinstance(inner, str):
            key = key_of(inner, owner)
            keys += [key] if key else []
        elif name == "identifier":
            for one in _list(inner):
                keys += _identifier_keys(one)
        elif isinstance(inner, (dict, list)):
            keys += references_in(inner, owner, depth + 1)
    return tuple(keys)


def _identifier_keys(identifier: object) -> list[str]:
    if not isinstance(identifier, dict):
        return []
    value = text_of(identifier.get("value"))
    if not value:
        return []
    keys = [f"id:{text_of(identifier.get('system')) or ''}|{value}"]
    uid = _uid_key(value)
    if uid is None and identifier.get("system") == "urn:dicom:uid":
        uid = f"uid:{value}"
    if uid:
        keys.append(uid)
    if any(code.endswith("|ACSN") for code in codes_of(identifier.get("type"))):
        keys.append(f"accession:{value}")
    return keys


def _uid_key(value: str) -> str | None:
    lower = value.lower()
    return f"uid:{lower.removeprefix('urn:oid:')}" if lower.startswith("urn:oid:") else None


# ------------------------------------------------------------------------------------------------ one resource


class _Reader:
    """A resource with what its readers share."""

    def __init__(
        self,
        resource: Json,
        kind: str,
        keys: tuple[str, ...],
        zone: tzinfo | None,
        free_text: bool,
        owner: _Reader | None = None,
    ):
        self.resource = resource
        self.kind = kind
        self.keys = keys
        self.zone = zone
        self.free_text = free_text
        self.source = keys[0] if keys else kind
        self.owner = owner.source if owner else self.source  # "#x" lies in the outermost resource
        self.get = resource.get
        encounter = references_in(resource.get("encounter") or resource.get("context"), self.owner)
        self.encounter = encounter[0] if encounter else None
        status = text_of(resource.get("status"))
        self.status = status if status and status.isascii() and len(status) <= MOST_CHARACTERS else ""
        self.link = self._link(owner.link if owner else None)

    def _link(self, part_of: Link | None) -> Link:
        cites = [key for name in CITING if name in self.resource for key in references_in(self.get(name), self.owner)]
        results = [key for name in RESULTS.get(self.kind, ()) for key in references_in(self.get(name), self.owner)]
        orders = references_in(self.get("basedOn"), self.owner) if "basedOn" in self.resource else ()
        return Link(self.kind, self.keys, tuple(cites), tuple(results), orders, part_of)

    def span(self, name: str) -> Span | None:
        return span_of(self.get(name), self.zone)

    def is_valid(self) -> bool:
        return self.status in VALID[self.kind]

    def is_verified(self) -> bool:
        """For what has a verification instead of a status."""
        concept = self.get("verificationStatus")
        codings = concept.get("coding") if isinstance(concept, dict) else None
        codes = {
            one.get("code") for one in _list(codings) if isinstance(one, dict) and isinstance(one.get("code"), str)
        }
        plain = concept if isinstance(concept, str) else self.status  # a bare code before R4
        return not codes & REFUTED and plain not in REFUTED

    def known(self, name: str, otherwise: Span | None) -> Span | None:
        """When it could first be read: the stamp `name`, and only where there is none what is given for that case."""
        return self.span(name) if self.get(name) is not None else otherwise

    def period(self, name: str) -> tuple[Span | None, Span | None]:
        """The spans of a Period's two ends."""
        period = self.get(name)
        if not isinstance(period, dict):
            return None, None
        return span_of(period.get("start"), self.zone), span_of(period.get("end"), self.zone)

    def when(self, *names: str) -> Span | None:
        """The whole time of a dateTime, instant or Period, whichever of these fields there is; None if its end is open."""
        for name in names:
            value = self.get(name)
            if isinstance(value, dict):
                start, end = self.period(name)
                return Span(min(start.lo, end.lo), end.hi) if start and end else end
            if value is not None:
                return self.span(name)
        return None

    def event(self, codes: tuple[str, ...], happened: Span | None, known: Span | None, **more: Any) -> Event:
        return Event(
            self.kind, codes, happened, known, more.pop("status", self.status), more.pop("is_valid", True), self.source,
            self.link, self.encounter, **more,
        )  # fmt: skip

    def words(self, *values: object) -> str | None:
        """Free text, if it was asked for."""
        if not self.free_text:
            return None
        found = [text for value in values for text in _texts(value)]
        return "; ".join(dict.fromkeys(found)) or None


def _names(value: object) -> list[Json]:
    """HumanNames, also of documents that give one where FHIR has a list."""
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, dict)]


def _patient(reader: _Reader, found: Extract) -> None:
    get = reader.get
    sex = text_of(get("gender"))
    death = reader.span("deceasedDateTime")
    found.person = Person(
        keys=reader.keys,
        birth=reader.span("birthDate"),
        sex=sex if sex in ("female", "male", "other") else "unknown",
        is_dead=get("deceasedBoolean") is True or get("deceasedDateTime") is not None,
        death=death,
        names=frozenset(filter(None, (name_mark(one.get("family")) for one in _names(get("name"))))),
    )
    found.subject = reader.keys


def _condition(reader: _Reader, found: Extract) -> None:
    known = reader.span("recordedDate")
    happened = reader.span("onsetDateTime") or reader.period("onsetPeriod")[0] or known
    if happened and known and happened.lo <= known.hi < happened.hi:  # what was recorded had begun
        happened = Span(happened.lo, known.hi)
    codes = codes_of(reader.get("code"))
    text = reader.words(reader.get("code"))
    found.events.append(reader.event(codes, happened, known, is_valid=reader.is_verified(), text=text))


def _allergy(reader: _Reader, found: Extract) -> None:
    known = reader.span("recordedDate")
    codes = in_role("allergy", codes_of(reader.get("code")))
    happened = reader.span("onsetDateTime") or known
    found.events.append(reader.event(codes, happened, known, is_valid=reader.is_verified()))


def _observation(reader: _Reader, found: Extract) -> None:
    get = reader.get
    happened = reader.when("effectiveDateTime", "effectiveInstant", "effectivePeriod")
    known = reader.known("issued", happened)
    is_valid = reader.is_valid()
    components = [one for one in _list(get("component")) if isinstance(one, dict)]
    if not components or _has_value(reader.resource):
        found.events.append(_measured(reader, reader.resource, happened, known, is_valid))
    found.events += [_measured(reader, one, happened, known, is_valid) for one in components]


def _has_value(resource: Json) -> bool:
    return any(name.startswith("value") for name in resource)


def _measured(reader: _Reader, part: Json, happened: Span | None, known: Span | None, is_valid: bool) -> Event:
    """An observation, or one component of it."""
    get = part.get
    codes = codes_of(get("code"))
    loinc = next((code.removeprefix("LOINC|") for code in codes if code.startswith("LOINC|")), "")
    quantity, answer = get("valueQuantity"), get("valueCodeableConcept")
    if quantity is None and is_number(get("valueInteger")):
        quantity = {"value": get("valueInteger")}
    text = reader.words(get("code"), get("valueString"), answer)
    if isinstance(quantity, dict) and quantity.get("value") is not None:
        return _with_value(reader, part, quantity, codes, loinc, (happened, known, is_valid), text)
    answers: tuple[str, ...] = codes_of(answer)
    if isinstance(get("valueBoolean"), bool):
        answers = ("true" if get("valueBoolean") else "false",)
    told = tuple(f"{code}={one}" for code in codes for one in answers)
    if "dataAbsentReason" in part and not answers:
        is_valid = False
    return reader.event(told or codes, happened, known, is_valid=is_valid, broader=codes if told else (), text=text)


def _with_value(
    reader: _Reader, part: Json, quantity: Json, codes: tuple[str, ...], loinc: str,
    when: tuple[Span | None, Span | None, bool], text: str | None,
) -> Event:  # fmt: skip
    value = number_of(quantity.get("value"))
    units = units_of(quantity)
    measured = measure(loinc, math.nan if value is None else value, units)
    position = _position(measured, value, units, part.get("referenceRange"))
    state = State.RELATIVE if measured.state is State.NO_ANALYTE and position is not None else measured.state
    comparator = text_of(quantity.get("comparator")) or ""
    analyte = measured.analyte
    return reader.event(
        codes if analyte is None else (f"ANALYTE|{analyte.name}", *codes), when[0], when[1], is_valid=when[2],
        value=value, unit=next(iter(units), None), state=state, canonical=measured.value, position=position, text=text,
        canonical_unit=analyte.unit if analyte and measured.value is not None else None,
        comparator=comparator if comparator in ("<", "<=", ">", ">=") else "",
    )  # fmt: skip


def _position(measured: Measurement, value: float | None, units: tuple[str, ...], ranges: object) -> float | None:
    """Where a value lies in the range that the file gives, or else in the usual one: 0 its lower end, 1 its upper."""
    given = next((one for one in _list(ranges) if isinstance(one, dict) and isinstance(one.get("high"), dict)), None)
    analyte = measured.analyte
    low, high = (None, None) if given is None else (_end(given.get("low")), _end(given.get("high")))
    if analyte is not None and measured.value is not None:
        ends = [_canonical_end(end, units, measured, otherwise) for end, otherwise in zip((low, high), analyte.usual)]
        if high is None or ends[0] >= ends[1]:
            ends = list(analyte.usual)
        return (measured.value - ends[0]) / (ends[1] - ends[0])
    if measured.state is not State.NO_ANALYTE or value is None or low is None or high is None or not units:
        return None
    same = {low[1], high[1], units} == {units}  # a range in the value's own unit needs no table
    return (value - low[0]) / (high[0] - low[0]) if same and low[0] < high[0] else None


def _end(quantity: object) -> tuple[float, tuple[str, ...]] | None:
    if not isinstance(quantity, dict):
        return None
    value = number_of(quantity.get("value"))
    return None if value is None or not math.isfinite(value) else (value, units_of(quantity))


def _canonical_end(
    end: tuple[float, tuple[str, ...]] | None, units: tuple[str, ...], measured: Measurement, otherwise: float
) -> float:
    """An end of a range in the canonical unit; one without a unit has the value's."""
    assert measured.analyte is not None
    if end is None:
        return otherwise
    factor = factor_of(measured.analyte, end[1] or units)
    return otherwise if isinstance(factor, State) else end[0] * factor[0] + factor[1]


def _medication_request(reader: _Reader, found: Extract) -> None:
    authored = reader.span("authoredOn")
    intent = text_of(reader.get("intent"))
    is_valid = reader.is_valid() and (intent is None or intent in ORDERED) and reader.get("doNotPerform") is not True
    found.events.append(_drug(reader, authored, authored, is_valid))


def _medication_statement(reader: _Reader, found: Extract) -> None:
    happened = reader.span("effectiveDateTime") or reader.period("effectivePeriod")[0]
    found.events.append(_drug(reader, happened, reader.span("dateAsserted"), reader.is_valid()))


def _medication_administration(reader: _Reader, found: Extract) -> None:
    happened = reader.when("effectiveDateTime", "effectivePeriod", "occurenceDateTime", "occurencePeriod")
    known = reader.known("recorded", happened)
    found.events.append(_drug(reader, happened, known, reader.is_valid()))


def _drug(reader: _Reader, happened: Span | None, known: Span | None, is_valid: bool) -> Event:
    """R4 has a code or a reference; R5 one of the two inside `medication`."""
    given = _dict(reader.get("medication"))
    codes = codes_of(reader.get("medicationCodeableConcept")) or codes_of(given.get("concept"))
    where = references_in(reader.get("medicationReference") or given.get("reference"), reader.owner)
    text = reader.words(reader.get("medicationCodeableConcept"), given.get("concept"))
    medication = where[0] if where and not codes else None
    return reader.event(codes, happened, known, is_valid=is_valid, medication=medication, text=text)


def _medication(reader: _Reader, found: Extract) -> None:
    found.codes = codes_of(reader.get("code"))


def _procedure(reader: _Reader, found: Extract) -> None:
    happened = reader.when("performedDateTime", "performedPeriod", "occurrenceDateTime", "occurrencePeriod")
    known = reader.known("recorded", happened)
    text = reader.words(reader.get("code"))
    codes = codes_of(reader.get("code"))
    found.events.append(reader.event(codes, happened, known, is_valid=reader.is_valid(), text=text))


def _encounter(reader: _Reader, found: Extract) -> None:
    """That it began, and of what kind, is known at its start; why, only when it is over."""
    start, end = reader.period("actualPeriod" if "actualPeriod" in reader.resource else "period")
    found.stay = Stay(reader.keys, start, end)
    reader.encounter = reader.source
    kinds = [*_list(reader.get("class")), *_list(reader.get("type"))]
    for codes in map(codes_of, kinds):
        if codes:
            found.events.append(reader.event(codes, start, start, is_valid=reader.is_valid()))
    for codes in _reasons(reader):
        found.events.append(reader.event(codes, start, end, is_valid=reader.is_valid()))


def _reasons(reader: _Reader) -> Iterator[tuple[str, ...]]:
    """Coded reasons. R4: `reasonCode`; R5: `reason`, whose concepts may lie one or two levels deep."""
    concepts = [*_list(reader.get("reasonCode")), *_list(reader.get("reason"))]
    for concept in concepts:
        inner = [_dict(one).get("concept") for one in _list(_dict(concept).get("value"))]
        for one in (concept, _dict(concept).get("concept"), *inner):
            codes = in_role("reason", codes_of(one))
            if codes:
                yield codes


def _family(reader: _Reader, found: Extract) -> None:
    known = reader.span("date")
    for one in _list(reader.get("condition")):
        codes = in_role("family", codes_of(_dict(one).get("code")))
        if codes:
            found.events.append(reader.event(codes, known, known, is_valid=reader.is_valid()))


def _service_request(reader: _Reader, found: Extract) -> None:
    """The order, and why: the indication. Its words are the only ones that a report may want (`free_text`)."""
    authored = reader.span("authoredOn")
    intent = text_of(reader.get("intent"))
    is_valid = reader.is_valid() and (intent is None or intent in ORDERED) and reader.get("doNotPerform") is not True
    code = reader.get("code")
    asked = codes_of(code) or codes_of(_dict(code).get("concept"))
    text = reader.words(reader.get("reasonCode"), reader.get("reason"), reader.get("note"))
    found.events.append(reader.event(in_role("order", asked), authored, authored, is_valid=is_valid, text=text))
    found.events += [reader.event(codes, authored, authored, is_valid=is_valid) for codes in _reasons(reader)]


def _imaging_study(reader: _Reader, found: Extract) -> None:
    series = [one for one in _list(reader.get("series")) if isinstance(one, dict)]
    stamps = [reader.span("started"), *(span_of(one.get("started"), reader.zone) for one in series)]
    spans = [span for span in stamps if span]
    started = Span(min(span.lo for span in spans), min(span.hi for span in spans)) if spans else None
    concepts = [*_list(reader.get("modality")), *(one.get("modality") for one in series)]
    modalities = tuple(dict.fromkeys(code for concept in concepts for code in codes_of(concept)))
    found.study = ImagedStudy(reader.keys, started, modalities, reader.encounter)
    for modality in modalities:
        codes = in_role("imaging", (modality,))
        found.events.append(reader.event(codes, started, started, is_valid=reader.is_valid()))


def _report(reader: _Reader, found: Extract) -> None:
    happened = reader.when("effectiveDateTime", "effectivePeriod")
    known = reader.span("issued")
    is_valid = reader.is_valid()
    text = reader.words(reader.get("conclusion"))
    codes = codes_of(reader.get("code"))
    found.events.append(reader.event(codes, happened or known, known, is_valid=is_valid, text=text))
    for concept in _list(reader.get("conclusionCode")):
        told = in_role("conclusion", codes_of(concept) or codes_of(_dict(concept).get("concept")))
        if told:
            found.events.append(reader.event(told, happened or known, known, is_valid=is_valid))


READERS: dict[str, Callable[[_Reader, Extract], None]] = {
    "Patient": _patient,
    "Condition": _condition,
    "Observation": _observation,
    "MedicationRequest": _medication_request,
    "MedicationStatement": _medication_statement,
    "MedicationAdministration": _medication_administration,
    "Medication": _medication,
    "Procedure": _procedure,
    "Encounter": _encounter,
    "AllergyIntolerance": _allergy,
    "FamilyMemberHistory": _family,
    "ServiceRequest": _service_request,
    "ImagingStudy": _imaging_study,
    "DiagnosticReport": _report,
}
# What else may be named when it is counted; a name that is not here may be anybody's.
NOT_READ = frozenset((
    "Account", "Appointment", "AuditEvent", "Basic", "Binary", "BodyStructure", "CarePlan", "CareTeam", "Claim",
    "ClaimResponse", "ClinicalImpression", "CodeSystem", "Communication", "CommunicationRequest", "Composition",
    "Consent", "Contract", "Coverage", "DetectedIssue", "Device", "DeviceRequest", "DeviceUseStatement",
    "DocumentManifest", "DocumentReference", "Endpoint", "EpisodeOfCare", "ExplanationOfBenefit", "Flag", "Goal",
    "Group", "GuidanceResponse", "HealthcareService", "ImagingSelection", "Immunization",
    "ImmunizationRecommendation", "InsurancePlan", "Invoice", "Library", "List", "Location", "Measure",
    "MeasureReport", "Media", "MedicationDispense", "MedicationKnowledge", "MessageHeader", "MolecularSequence",
    "NutritionOrder", "OperationOutcome", "Organization", "Parameters", "PlanDefinition", "Practitioner",
    "PractitionerRole", "Provenance", "Questionnaire", "QuestionnaireResponse", "RelatedPerson", "RequestGroup",
    "ResearchStudy", "ResearchSubject", "RiskAssessment", "Schedule", "Slot", "Specimen", "StructureDefinition",
    "Substance", "Subscription", "SupplyDelivery", "SupplyRequest", "Task", "ValueSet", "VisionPrescription"
))  # fmt: skip
BY_PATIENT = ("AllergyIntolerance", "FamilyMemberHistory")  # they call their subject so
WITHOUT_SUBJECT = ("Patient", "Medication")


# ------------------------------------------------------------------------------------------------ anything at all


def text_of(value: object) -> str | None:
    """A string without the blanks around it; None where there is none."""
    return (value.strip() or None) if isinstance(value, str) else None


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def number_of(value: object) -> float | None:
    """A JSON number, or one that was written as text; None where it is neither."""
    if not (is_number(value) or (isinstance(value, str) and len(value) <= MOST_CHARACTERS and "_" not in value)):
        return None
    try:
        return float(value)  # pyright: ignore[reportArgumentType]
    except (ValueError, OverflowError):
        return None


def units_of(quantity: Json) -> tuple[str, ...]:
    """The units that a quantity has: its code, and what it prints."""
    units = (text_of(quantity.get(name)) for name in ("code", "unit"))
    return tuple(dict.fromkeys(unit for unit in units if unit))


def _texts(value: object) -> Iterator[str]:
    """The text of a CodeableConcept, or else what its first coding displays; of an Annotation; of whatever holds one of them."""
    for one in _list(value):
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            codings = [coding for coding in _list(one.get("coding")) if isinstance(coding, dict)]
            if text_of(one.get("text")):
                yield one["text"].strip()
            elif shown := next(filter(None, (text_of(coding.get("display")) for coding in codings)), None):
                yield shown
            yield from (text for name in ("concept", "value") for text in _texts(one.get(name)) if name in one)


def _dict(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> Sequence[Any]:
    """What should be a list: one thing is a list of one, nothing is none."""
    if isinstance(value, list):
        return value
    return () if value is None else (value,)
