"""What of a record may be known when the images of one study are read: the rule that keeps the future out.

    index = index_of(record, study_uid="1.2.3")
    admitted = admit(record, index)
    admitted.events, admitted.audit

An event is admitted if it had happened and was known before the index study began, whatever its stamps may mean; and if it does not
come from the study itself; and, for diagnoses, if the encounter that they were made in was over. Each event that is left out is
counted under the first reason that holds. Moving the index earlier only ever removes events.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ehr.events import Event, Link, Stay
from ehr.record import Record
from ehr.times import DAY_S, Span, span_of, zone_named
from foundation.config import Config
from foundation.errors import InputError

KEPT = "kept"
REASONS = (
    "not valid: cancelled, refuted, absent or entered in error",
    "no date that can be read",
    "of the index study itself",
    "a diagnosis of an encounter that was not over",
    "nobody says when it was known",
    "happened after the index",
    "known after the index",
    "too imprecise: before or after the index",
)
INVALID, UNDATED, OWN, EMBARGOED, UNKNOWN, LATER, LATE, IMPRECISE = REASONS


class IndexRule(Config):
    """`availability` "strict" leaves out what nobody says when it was known; "lenient" takes it as known when it had happened.

    `embargo` "encounter" counts a diagnosis as known when its encounter is over, because until then its code may still be
    changed to what was found; "none" trusts its recordedDate.
    """

    availability: Literal["strict", "lenient"] = "strict"
    embargo: Literal["encounter", "none"] = "encounter"


@dataclass(frozen=True)
class Index:
    """The moment before which everything must lie: when the study began, or a declared later `landmark`.

    `study` are the keys of the index study; what comes from it stays out under a later landmark too.
    """

    time: float
    study: frozenset[str]
    landmark: str | None = None

    def earlier(self, by_s: float) -> Index:
        """The same study, looked at before it began."""
        assert by_s >= 0, by_s
        return replace(self, time=self.time - by_s)


@dataclass(frozen=True)
class Audit:
    """How many events were kept, and how many left out, by reason and resource type. Holds counts only."""

    rule: IndexRule = field(default_factory=IndexRule)
    landmark: str | None = None
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def num_kept(self) -> int:
        return sum(self.counts.get(KEPT, {}).values())

    def __add__(self, other: Audit) -> Audit:
        """Over two patients who were judged by one rule."""
        assert (self.rule, self.landmark) == (other.rule, other.landmark), "audits of two rules are not one"
        summed: dict[str, Counter[str]] = defaultdict(Counter)
        for counts in (self.counts, other.counts):
            for verdict, kinds in counts.items():
                summed[verdict].update(kinds)
        return replace(self, counts=_ordered(summed))

    def as_json(self) -> dict[str, Any]:
        dropped = {reason: dict(self.counts[reason]) for reason in REASONS if reason in self.counts}
        return {
            "rule": self.rule.model_dump(),
            "landmark": self.landmark,
            "kept": dict(self.counts.get(KEPT, {})),
            "dropped": dropped,
            "num_kept": self.num_kept,
            "num_dropped": sum(number for kinds in dropped.values() for number in kinds.values()),
        }


@dataclass(frozen=True)
class Admitted:
    """The events that may be known at the index, earliest first, and the audit of those that may not."""

    record: Record
    index: Index
    events: tuple[Event, ...]
    audit: Audit


# ------------------------------------------------------------------------------------------------ when the index is


def index_of(
    record: Record,
    *,
    study_uid: str | None = None,
    at: str | None = None,
    accession: str | None = None,
    landmark: tuple[str, str] | None = None,
    zone: str | None = None,
) -> Index:
    """The index of a study: the earliest moment that the record or `at` (a stamp from the images) says it began.

    The study is named by its DICOM StudyInstanceUID or accession number; without either, it is the record's only MR study. It need
    not be in the record if `at` is given. Facts that are later than the study (a finding at surgery, a genetic marker) may
    only be used by declaring it: `landmark=("surgery", "2020-05-07")`; time then counts from there.
    """
    keys = {f"uid:{study_uid}"} if study_uid else set()
    keys |= {f"accession:{accession}"} if accession else set()
    studies = [study for study in record.studies if keys & set(study.keys)]
    if not keys and at is None:
        studies = [study for study in record.studies if "DCM|MR" in study.modalities or "?|MR" in study.modalities]
        if len(studies) != 1:
            remedy = "Name it by its StudyInstanceUID, or give the time at which it began with --at."
            raise InputError("a record without a named study has one MR study", got=f"{len(studies)}", remedy=remedy)
    begins = [study.started.lo for study in studies if study.started]
    if at is not None:
        begins.append(_stamp(at, zone).lo)
        if not keys:  # whatever began on that day is taken for the study, so that its results stay out
            studies = [one for one in record.studies if one.started and 0 <= one.started.hi - begins[0] <= DAY_S]
    if not begins:
        remedy = "Give the time at which it began (of the images, StudyDate and StudyTime) with --at."
        raise InputError("the index study has a time", got="none, in the record or beside it", remedy=remedy)
    keys.update(key for study in studies for key in study.keys)
    index = Index(min(begins), frozenset(keys))
    if landmark is None:
        return index
    name, stamp = landmark
    time = _stamp(stamp, zone).lo
    if not name or time < index.time:
        remedy = "Name the landmark and give a time after the study, or leave it out."
        raise InputError("a landmark has a name and lies after the study", got="another one", remedy=remedy)
    return replace(index, time=time, landmark=name)


def _stamp(text: str, zone: str | None) -> Span:
    span = span_of(text, zone_named(zone))
    if span is None:
        remedy = "Write it as 2020-05-03T10:00:00+02:00, or less of it."
        raise InputError("a time is a date with or without a time of day", got="something else", remedy=remedy)
    return span


# ------------------------------------------------------------------------------------------------ what is admitted


def admit(record: Record, index: Index, rule: IndexRule | None = None) -> Admitted:
    """The record as it was known at the index."""
    rule = rule or IndexRule()
    own = links_from(record.links, index.study)
    embargo = _Embargo(record, index) if rule.embargo == "encounter" else None
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    kept = []
    for event in record.events:
        verdict = _verdict(event, index, rule, own, embargo)
        counts[verdict][event.kind] += 1
        if verdict is KEPT:
            kept.append(event)
    kept.sort(key=_canonical_order)
    return Admitted(record, index, tuple(kept), Audit(rule, index.landmark, _ordered(counts)))


def _verdict(event: Event, index: Index, rule: IndexRule, own: set[Link], embargo: _Embargo | None) -> str:
    if not event.is_valid:
        return INVALID
    if event.happened is None:
        return UNDATED
    if event.link in own:
        return OWN
    known = event.known
    if known is None:
        if rule.availability == "strict":
            return UNKNOWN
        known = event.happened
    if event.happened.lo >= index.time:
        return LATER
    if known.lo >= index.time:
        return LATE
    if embargo and event.kind == "Condition" and embargo.covers(event):
        return EMBARGOED
    return KEPT if event.happened.hi < index.time and known.hi < index.time else IMPRECISE


class _Embargo:
    """Which diagnoses belong to an encounter that was not over at the index."""

    def __init__(self, record: Record, index: Index):
        self._time = index.time
        self._stays: dict[str, list[Stay]] = defaultdict(list)
        for stay in record.stays:
            for key in stay.keys:
                self._stays[key].append(stay)
        self._open = [stay for stay in record.stays if not self._is_over(stay)]
        self._of_study = {study.encounter for study in record.studies if index.study & set(study.keys)} - {None}
        self._of_study |= {
            key for name in self._of_study for stay in self._stays.get(name or "", ()) for key in stay.keys
        }

    def covers(self, condition: Event) -> bool:
        name, known = condition.encounter, condition.known
        if name is not None and name in self._of_study:
            return True
        if known is None:
            return False
        stays = self._stays.get(name, []) if name else []
        stays = [stay for stay in stays if stay.start is None or stay.start.lo <= known.hi]
        if stays:  # of several versions of one encounter, an earlier one may have been written when it was over
            return not any(self._is_over(stay) for stay in stays)
        # No encounter that we have: any that was going on when the diagnosis was recorded.
        return any(stay.start is not None and stay.start.lo <= known.hi for stay in self._open)

    def _is_over(self, stay: Stay) -> bool:
        return stay.end is not None and stay.end.hi < self._time


def links_from(links: Iterable[Link], study: frozenset[str]) -> set[Link]:
    """The resources that come from the index study: its report, the report's results, what was derived from any of them.

    The walk starts at the study's keys. A resource that cites one that was reached, or was ordered by the same order, is
    reached; so are a report's results. Orders themselves are not: they were there before, and one of them is the
    indication. Nothing is reached through a patient, an encounter or a diagnosis, which join everything.
    """
    known_by, cited_by, ordered_by = (defaultdict[str, list[Link]](list) for _ in range(3))
    inside: dict[Link, list[Link]] = defaultdict(list)
    for link in links:
        for keys, found_by in ((link.keys, known_by), (link.cites, cited_by), (link.orders, ordered_by)):
            for key in keys:
                found_by[key].append(link)
        if link.part_of is not None:
            inside[link.part_of].append(link)

    reached: set[Link] = set()
    seen: set[tuple[str, bool]] = set()
    waiting: list[tuple[str, bool]] = [(key, False) for key in sorted(study)]  # (key, whether it is an order's)
    while waiting:
        key, is_order = waiting.pop()
        if (key, is_order) in seen:
            continue
        seen.add((key, is_order))
        found = list(ordered_by[key])
        if not is_order:
            found += cited_by[key]
        for link in known_by[key]:
            if link.kind == "ServiceRequest":  # an order that shares the study's number, or is named by it
                waiting += [(name, True) for name in link.keys]
            elif not is_order:
                found.append(link)
        while found:
            link = found.pop()
            if link not in reached:
                reached.add(link)
                found += inside[link]
                waiting += _leads(link)
    return reached


def _leads(link: Link) -> list[tuple[str, bool]]:
    """The keys under which a resource that was reached leads on; True marks those of an order."""
    leads = [(key, False) for key in (*link.keys, *link.results)] if link.kind in LEADING else []
    return leads + [(key, True) for key in link.orders if link.kind in ("ImagingStudy", "DiagnosticReport")]


# What the walk goes on from; anything else that it reaches is an end.
LEADING = ("ImagingStudy", "DiagnosticReport", "Observation", "Procedure")


def _canonical_order(event: Event) -> tuple[object, ...]:
    """By time, then by what is said: equal records give equal sequences, however their files are ordered."""
    assert event.happened is not None
    known = event.known or event.happened
    return (
        event.happened.middle, event.happened, known, event.kind, event.codes, event.state,
        event.position is not None, event.position or 0.0, event.value is not None, event.value or 0.0,
        event.comparator, event.unit or "", event.source,
    )  # fmt: skip


def _ordered(counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    return {verdict: dict(sorted(counts[verdict].items())) for verdict in (KEPT, *REASONS) if verdict in counts}
