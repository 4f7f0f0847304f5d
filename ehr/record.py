"""The records of a source: its resources read, sorted by patient, and counted.

    records = read_records("export/", strict=False)
    records.only(), records.summary

The fast way reads what it understands of every resource and validates nothing. `strict=True` takes only resources that are
valid FHIR (`ehr/validation.py`). Either way one bad resource costs one resource.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ehr.bundle import Found, Quarantine, SetAside, resources_in
from ehr.events import Event, ImagedStudy, Link, Person, Stay
from ehr.resources import NOT_READ, READERS, WITHOUT_SUBJECT, Extract, extract
from ehr.times import Span, zone_named
from foundation.errors import InputError

NO_PATIENT = (
    "Group/",
    "Device/",
    "Location/",
    "Organization/",
    "Practitioner/",
    "Medication/",
    "Substance/",
    "Procedure/",
)


@dataclass(frozen=True)
class Record:
    """One patient's. `subject` is a key within its source and may name somebody: it belongs in no log and no message."""

    subject: str
    person: Person | None
    events: tuple[Event, ...]
    links: tuple[Link, ...] = field(compare=False, repr=False)
    stays: tuple[Stay, ...]
    studies: tuple[ImagedStudy, ...]

    @property
    def birth(self) -> Span | None:
        return self.person.birth if self.person else None

    @property
    def sex(self) -> str:
        return self.person.sex if self.person else "unknown"


@dataclass
class Summary:
    """Counts over a source, which name nobody. `kinds` are resources by type, `unread` those of types that are not read."""

    kinds: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    quarantined: list[SetAside] = field(default_factory=list)


@dataclass(frozen=True)
class Records(Mapping[str, Record]):
    """Records by subject, in the order in which the source first names them."""

    source: Path
    by_subject: dict[str, Record]
    summary: Summary

    def __getitem__(self, subject: str) -> Record:
        return self.by_subject[subject]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_subject)

    def __len__(self) -> int:
        return len(self.by_subject)

    def only(self) -> Record:
        """The record, where there is to be one."""
        if len(self) != 1:
            remedy = "Give one patient's file or folder."
            raise InputError("a record is of one patient", got=f"{len(self)} patients", remedy=remedy, file=self.source)
        return next(iter(self.by_subject.values()))


@dataclass
class _Draft:
    """A record while it is read."""

    events: list[Event] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    stays: list[Stay] = field(default_factory=list)
    studies: list[ImagedStudy] = field(default_factory=list)
    persons: list[tuple[Person, Found]] = field(default_factory=list)

    def add(self, found: Extract) -> None:
        self.events += found.events
        self.links += found.links
        self.stays += [found.stay] if found.stay else []
        self.studies += [found.study] if found.study else []

    def take(self, other: _Draft) -> None:
        """Another draft that turned out to be of the same patient."""
        self.events += other.events
        self.links += other.links
        self.stays += other.stays
        self.studies += other.studies
        self.persons += other.persons


def read_records(
    source: str | Path, *, strict: bool = False, zone: str | None = None, free_text: bool = False
) -> Records:
    """Everything that a source holds, by patient.

    `zone` names the place whose clock wrote the stamps without a zone; without it they may mean any, and those near the index
    are then left out. `free_text` keeps the words of indications, conclusions and code texts, which may name somebody.
    """
    reading = _Reading(strict, zone, free_text)
    for found in resources_in(Path(source), reading.quarantine):
        reading.take(found)
    return reading.finished(Path(source))


class _Reading:
    def __init__(self, strict: bool, zone: str | None, free_text: bool):
        self.quarantine = Quarantine()
        self.zone = zone_named(zone)
        self.free_text = free_text
        self.validator = None
        if strict:
            from ehr.validation import Validator  # a second of importing that the fast way does not need

            self.validator = Validator()
        self.drafts: dict[str, _Draft] = {}
        self.drugs: dict[str, tuple[str, ...]] = {}
        self.summary = Summary()

    def take(self, found: Found) -> None:
        kind = found.resource["resourceType"]
        if kind not in READERS:
            self.summary.unread[kind if kind in NOT_READ else "unknown"] += 1
            return
        try:
            if self.validator:
                verdict = self.validator.check(found.resource)
                if verdict.version is None:
                    return self._set_aside(found, verdict.reason or "invalid")
                self.summary.versions[verdict.version] += 1
                self.summary.repairs.update(verdict.repairs)
            got = extract(found.resource, found.full_url, zone=self.zone, free_text=self.free_text)
        except RecursionError:
            return self._set_aside(found, "nested too deeply")
        if kind not in WITHOUT_SUBJECT:
            if not got.subject:
                return self._set_aside(found, "no subject")
            if got.subject[0].startswith(NO_PATIENT):
                return self._set_aside(found, "the subject is no patient")
        self.summary.kinds[kind] += 1
        if kind == "Medication":
            for key in got.keys:
                self.drugs.setdefault(key, got.codes)  # of several versions the first
            return
        # A Patient without any name is one by itself.
        subject = got.subject[0] if got.subject else f"{found.file}, {found.place}"
        draft = self.drafts.setdefault(subject, _Draft())
        if got.person:
            draft.persons.append((got.person, found))
        if kind != "Patient":
            draft.add(got)

    def finished(self, source: Path) -> Records:
        by_subject = {}
        for subject, draft in _joined(self.drafts).items():
            births = [person.birth for person, _ in draft.persons if person.birth]
            if births and max(one.lo for one in births) > min(one.hi for one in births):
                # Several people, whose events nobody can tell apart.
                self._set_aside(draft.persons[-1][1], "one id, several birth dates: the record is left out")
                continue
            by_subject[subject] = _record(subject, draft, self.drugs)
        self.summary.quarantined = self.quarantine.entries
        return Records(source, by_subject, self.summary)

    def _set_aside(self, found: Found, reason: str) -> None:
        self.quarantine.add(found.file, found.place, reason, found.resource["resourceType"])


def _joined(drafts: dict[str, _Draft]) -> dict[str, _Draft]:
    """Drafts under the name of the Patient that they refer to, whichever of its names they used."""
    names: dict[str, str] = {}
    shared: set[str] = set()
    for subject, draft in drafts.items():
        for person, _ in draft.persons:
            for key in person.keys:
                if names.setdefault(key, subject) != subject:
                    shared.add(key)  # a number that several patients have names none of them
    joined: dict[str, _Draft] = {}
    for subject, draft in drafts.items():
        name = subject if subject in shared else names.get(subject, subject)
        if name in joined:
            joined[name].take(draft)
        else:
            joined[name] = draft
    return joined


def _record(subject: str, draft: _Draft, drugs: dict[str, tuple[str, ...]]) -> Record:
    events = tuple(
        replace(event, codes=drugs[event.medication]) if event.medication in drugs else event for event in draft.events
    )
    person = _together([person for person, _ in draft.persons])
    return Record(subject, person, events, tuple(draft.links), tuple(draft.stays), tuple(draft.studies))


def _together(persons: list[Person]) -> Person | None:
    """Several versions of one Patient: what any of them says, the first one first."""
    if not persons:
        return None
    return Person(
        keys=tuple(dict.fromkeys(key for one in persons for key in one.keys)),
        birth=min((one.birth for one in persons if one.birth), key=lambda span: span.hi - span.lo, default=None),
        sex=next((one.sex for one in persons if one.sex != "unknown"), "unknown"),
        is_dead=any(one.is_dead for one in persons),
        death=next((one.death for one in persons if one.death), None),
        names=frozenset(name for one in persons for name in one.names),
    )
