"""Three questions about a report, each with its own figure, because each fails alone.

    perception(claims, truth)         did the models see what is there?          findings against truth
    faithfulness(text, claims)        does the text say what they saw?           text against findings
    correctness(text, truth)          is what the text says true?                text against truth

Each gives `Counts` of one study, which add up (`total`); a bootstrap over studies makes intervals of them (`finetune/report.py`).
Weighted counts weigh a finding by its urgency (`foundation/terms.py`): a missed haemorrhage costs four white matter lesions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from foundation.findings import Finding, Reading
from foundation.terms import WEIGHTS, term_of
from heads.report.plan import Style, is_positive, must_be_said
from heads.report.verifier import LOOKS, Mention, differences, is_nowhere, parse, sentences_of, split_sections, verify

_NAMES = ("said", "said_right", "there", "there_found")
Key = tuple[str, str]  # a finding's name and side


@dataclass(frozen=True)
class Counts:
    """`said` are those of the thing judged, `there` those it is judged by; `*_right` and `*_found` of them agree."""

    said: float | int = 0
    said_right: float | int = 0
    there: float | int = 0
    there_found: float | int = 0

    @property
    def precision(self) -> float:
        return self.said_right / self.said if self.said else math.nan

    @property
    def recall(self) -> float:
        return self.there_found / self.there if self.there else math.nan

    @property
    def f1(self) -> float:
        """Of both; where nothing was there and nothing said there is no figure."""
        precision, recall = self.precision, self.recall
        if math.isnan(precision) or math.isnan(recall):
            return math.nan if self.said == self.there == 0 else 0.0
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def total(counts: Sequence[Counts]) -> Counts:
    return Counts(*(sum(getattr(one, name) for one in counts) for name in _NAMES))


def perception(claims: Reading, truth: Reading, *, weighted: bool = False) -> Counts:
    """Abnormalities that are there or may be, by name and side. Names that are no term of ours count nowhere."""
    return _compared(_keys(_positive(claims)), _keys(_positive(truth)), weighted)


def correctness(text: str, truth: Reading, *, weighted: bool = False) -> Counts:
    """Abnormalities that the Findings section says are there or may be, by name and side."""
    return _compared(said_in(text, [one.name for one in truth.findings]), _keys(_positive(truth)), weighted)


def only(reading: Reading, names: Collection[str]) -> Reading:
    """The reading with findings of these names alone: what a truth is for those who look for nothing else."""
    return reading.model_copy(update={"findings": tuple(one for one in reading.findings if one.name in names)})


def faithfulness(text: str, claims: Reading, style: Style | None = None) -> Counts:
    """Every mention against the findings, in everything that it says: certainty, side, place, severity, numbers, change. Absent
    and not assessed findings count like others."""
    style = style or Style()
    images = [one for one in claims.findings if one.origin == "image"]
    mentions = mentions_in(text, [one.name for one in images])
    right = [mention for mention in mentions if _is_right(mention, images, images)]
    needed = [one for one in images if must_be_said(one, style)]
    found = [one for one in needed if any(_is_right(mention, [one], images) for mention in mentions)]
    return Counts(len(mentions), len(right), len(needed), len(found))


def mentions_in(text: str, names: Sequence[str], sections: Sequence[str] = ("Findings", "Impression")) -> list[Mention]:
    parts = split_sections(text)
    return [
        mention
        for section, part in parts.items()
        if section in sections
        for sentence in sentences_of(part)
        for mention in parse(sentence, names).mentions
        if mention.finding not in LOOKS and not mention.is_record
    ]


def said_in(text: str, names: Sequence[str]) -> set[Key]:
    """What the Findings section says is there, or may be."""
    sure = ("stated", "likely", "possible")
    return _both_are_one(
        (mention.finding, _side(mention.side)) for mention in mentions_in(text, names, ("Findings",))
        if mention.hedge in sure
    )  # fmt: skip


def urgent_omissions(text: str, claims: Reading) -> tuple[int, int]:
    """How many urgent findings were claimed, and how many of them the Findings section names nowhere."""
    urgent = [one for one in _positive(claims) if one.urgency == "urgent"]
    named = {
        mention.finding
        for mention in mentions_in(text, [one.name for one in urgent], ("Findings",))
        if mention.hedge != "absent"
    }
    return len(urgent), sum(one.name.lower() not in named for one in urgent)


def problem_kinds(text: str, claims: Reading, style: Style | None = None) -> dict[str, int]:
    """What the verifier objects to in a text, by kind."""
    kinds = [problem.kind for problem in verify(text, claims, style)]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def numbers_right(text: str, claims: Reading) -> tuple[int, int]:
    """Printed numbers, and how many of them are the measurement of a finding that their mention may mean."""
    images = [one for one in claims.findings if one.origin == "image"]
    printed = right = 0
    for mention in mentions_in(text, [one.name for one in images]):
        number = len(mention.numbers) + (mention.count is not None)
        if not number:
            continue
        printed += number
        own = [one for one in images if one.name.lower() == mention.finding]
        wrong = [sum(kind == "number" for kind, _ in differences(mention, one)) for one in own]
        right += number - min([number, *wrong])
    return printed, right


# ------------------------------------------------------------------------------------------------ collapse


def distinct_ratio(texts: Sequence[str]) -> float:
    """Different reports over reports: 1 where no two are alike."""
    return len(set(texts)) / len(texts) if texts else math.nan


def normal_share(texts: Sequence[str], names: Sequence[str]) -> float:
    """The share of reports that say nothing abnormal is there."""
    return sum(not said_in(text, names) for text in texts) / len(texts) if texts else math.nan


def rare_survival(texts: Sequence[str], truths: Sequence[Reading], *, rare: float = 0.12) -> tuple[int, int]:
    """Of findings that few studies have, how many are said of how many there are, by name."""
    names = [{one.name for one in _positive(truth)} for truth in truths]
    counts = {name: sum(name in one for one in names) for name in set().union(*names)}
    few = {name for name, number in counts.items() if number <= rare * len(truths)}
    found = there = 0
    for text, own in zip(texts, names, strict=True):
        said = {name for name, _ in said_in(text, sorted(few))}
        there += len(own & few)
        found += len({name.lower() for name in own & few} & said)
    return found, there


# ------------------------------------------------------------------------------------------------ parts


def _positive(reading: Reading) -> list[Finding]:
    return [one for one in reading.findings if one.origin == "image" and is_positive(one)]


def _keys(findings: Iterable[Finding]) -> set[Key]:
    return _both_are_one((one.name.lower(), _side(one.side)) for one in findings)


def _both_are_one(keys: Iterable[Key]) -> set[Key]:
    """Of known terms. A name on the right and on the left is one on both sides, whether it was said in one sentence or in two."""
    found = {(name, side) for name, side in keys if term_of(name) is not None}
    both = {name for name, _ in found if {(name, "right"), (name, "left")} <= found}
    return {(name, "" if name in both else side) for name, side in found}


def _side(side: str | None) -> str:
    return side if side in ("right", "left") else ""


def _compared(said: set[Key], there: set[Key], weighted: bool) -> Counts:
    def size(keys: set[Key]) -> float:
        return float(sum(_weight(name) for name, _ in keys) if weighted else len(keys))

    both = said & there
    return Counts(size(said), size(both), size(there), size(both))


def _weight(name: str) -> float:
    term = term_of(name)
    return WEIGHTS[term.urgency] if term else WEIGHTS["actionable"]


def _is_right(mention: Mention, findings: Sequence[Finding], images: Sequence[Finding]) -> bool:
    """Whether it says one of the findings; `images` are all that there are."""
    nowhere = is_nowhere([one for one in images if one.name.lower() == mention.finding])
    return any(
        one.name.lower() == mention.finding and not differences(mention, one, nowhere=nowhere) for one in findings
    )
