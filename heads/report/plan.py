"""What a report says, in which order, before anybody words it: statements, each of which becomes one sentence.

    for statement in plan(reading): statement.kind, statement.findings

Indication and history come from the record, Technique from the headers, Comparison only with a prior; Findings name what is there,
then what is not, then anatomy, then what nobody could assess; Impression repeats what is there by urgency. Limits come last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from foundation.findings import Finding, Reading
from foundation.terms import WEIGHTS
from heads.report import Section
from heads.report.hedging import hedge_of

Kind = Literal["present", "unlikely", "absent", "not_assessed", "anatomy", "impression", "history"]
MOST_TOGETHER = 4  # names in one sentence
# What is said of no side has the few voxels of none.
NOWHERE = {"side": "not_applicable", "measurements": (), "pieces": (), "note": None}


@dataclass(frozen=True)
class Style:
    """How a reader writes. `normals` says whether what is absent and what is normal is mentioned at all."""

    terse: bool = False
    listed: bool = False
    normals: bool = True


@dataclass(frozen=True)
class Statement:
    """One sentence to be: the findings that it words, all of them and no other. `prior` is how the earlier study is called.

    What is absent on both sides is one finding here, of no side; `also` are the ids of those that it stands for besides its own.
    """

    section: Section
    kind: Kind
    findings: tuple[Finding, ...]
    prior: str | None = None
    also: tuple[str, ...] = ()

    @property
    def finding_ids(self) -> tuple[str, ...]:
        return (*(one.id for one in self.findings), *self.also)


def plan(reading: Reading, style: Style | None = None) -> list[Statement]:
    """Statements of the sections that a writer words: Indication (the history), Findings, Impression."""
    style = style or Style()
    # By its date or not at all: what somebody called it is quoted once, under Comparison, and stands in no other sentence.
    prior = None if reading.prior is None else reading.prior.date or "the prior study"
    both = _absent_on_both(reading)
    return [
        Statement(section, kind, tuple(found), prior, tuple(both[one.id] for one in found if one.id in both))
        for section, kind, found in _planned(reading, style, both)
    ]


def _planned(
    reading: Reading, style: Style, nowhere: Mapping[str, str]
) -> Iterator[tuple[Section, Kind, Sequence[Finding]]]:
    record = [one for one in reading.findings if one.origin == "record"]
    images = [one for one in reading.findings if one.origin == "image"]
    for some in _batches(record):
        yield "Indication", "history", some
    positive = [one for one in images if is_positive(one)]
    for one in positive:
        yield "Findings", "present", [one]
    for one in images:
        if one.is_abnormal and hedge_of(one) == "unlikely":
            yield "Findings", "unlikely", [one]
    if style.normals:
        absent = [
            one.model_copy(update=NOWHERE) if one.id in nowhere else one
            for one in images
            if one.presence == "absent" and hedge_of(one) == "absent" and one.id not in nowhere.values()
        ]
        without_side = [one for one in absent if one.side not in ("right", "left")]
        for some in _batches(without_side):
            yield "Findings", "absent", some
        for one in absent:
            if one.side in ("right", "left"):
                yield "Findings", "absent", [one]
        normal = [one for one in images if not one.is_abnormal and one.presence in ("present", "uncertain")]
        for _, pair in groupby(normal, key=lambda one: (one.source, one.name)):
            both = list(pair)
            for first in range(0, len(both), 2):
                yield "Findings", "anatomy", both[first : first + 2]
    missing = [one for one in images if one.presence == "not_assessed"]
    for _, group in groupby(sorted(missing, key=lambda one: one.note or ""), key=lambda one: one.note):
        for some in _batches(list(group)):
            yield "Findings", "not_assessed", some
    for one in sorted(filter(belongs_in_impression, images), key=lambda one: -WEIGHTS[one.urgency]):
        yield "Impression", "impression" if is_positive(one) else "not_assessed", [one]


def _absent_on_both(reading: Reading) -> dict[str, str]:
    """The id of every right finding that is absent, as its left one is, with the id of that."""
    absent = {
        (one.source, one.name, one.side): one.id
        for one in reading.findings
        if one.origin == "image" and one.presence == "absent" and hedge_of(one) == "absent"
    }
    return {
        id: absent[source, name, "left"]
        for (source, name, side), id in absent.items()
        if side == "right" and (source, name, "left") in absent
    }


def is_positive(finding: Finding) -> bool:
    """Whether an abnormality is there, or may be."""
    return finding.is_abnormal and finding.presence in ("present", "uncertain") and hedge_of(finding) != "unlikely"


def belongs_in_impression(finding: Finding) -> bool:
    """What is there, and what could have been urgent but could not be assessed."""
    return is_positive(finding) or (finding.presence == "not_assessed" and finding.urgency == "urgent")


def must_be_said(finding: Finding, style: Style) -> bool:
    """Whether a report without it is incomplete."""
    return (
        style.normals or is_positive(finding) or finding.presence == "not_assessed" or hedge_of(finding) == "unlikely"
    )


def _batches(findings: Sequence[Finding]) -> Iterator[Sequence[Finding]]:
    """At most a few names in one sentence, and one name once."""
    for first in range(0, len(findings), MOST_TOGETHER):
        yield findings[first : first + MOST_TOGETHER]
