"""Reads report text back into claims, by rules and offline, and compares them with the findings, both ways.

    problems = verify(draft.text(), reading)                 a whole report: every mention has a finding, every finding a mention
    problems = verify_sentence(text, findings, has_prior=False)

It does not know how a sentence was written; `parse` takes any text. It knows the words of `lexicon.py` and no others, so what
it does not understand it does not object to: docs/report.md says how much of real report text it reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from foundation.findings import Finding, Reading
from heads.report import SECTIONS, Section
from heads.report import lexicon as words
from heads.report.hedging import Hedge, hedge_of
from heads.report.plan import Style, belongs_in_impression, must_be_said

Kind = Literal[
    "unsupported", "omission", "negation", "hedge", "side", "anatomy", "severity", "number", "signal", "prior", "record"
]  # fmt: skip

LOOKS = ("abnormal signal", "lesion", "mass effect")  # how something looks; of what, another word in the sentence says


@dataclass(frozen=True)
class Problem:
    kind: Kind
    text: str


@dataclass(frozen=True)
class Mention:
    """What one stretch of text says of one finding. `numbers` are (value as printed, unit), `signals` (contrast, how it looks)."""

    finding: str
    hedge: Hedge
    side: str | None
    places: frozenset[str]
    numbers: tuple[tuple[str, str], ...]
    count: int | None
    severity: str | None
    change: str | None
    signals: tuple[tuple[str, str], ...]
    is_record: bool
    text: str


@dataclass(frozen=True)
class Parsed:
    """A sentence: its mentions, and whether it speaks of an earlier study or of the record at all."""

    mentions: tuple[Mention, ...]
    has_prior: bool
    has_record: bool
    loose_numbers: tuple[tuple[str, str], ...]  # of a sentence without mentions


# ------------------------------------------------------------------------------------------------ reading


def sentences_of(text: str) -> list[str]:
    """Split at full stops that end a sentence, and at line breaks; decimals and 'vs.' do not end one."""
    parts = re.split(r"(?<=[.!?])(?<!\b[Vv]s\.)(?<!\b[Dd]r\.)(?<!\bapprox\.)(?<!\be\.g\.)(?<!\bi\.e\.)\s+|\n+|//", text)
    return [part.strip(" -\t") for part in parts if part.strip(" -\t.")]


def parse(sentence: str, names: Sequence[str] = ()) -> Parsed:
    """The claims of one sentence; `names` are findings to look for besides those of the lexicon, spelt as they are."""
    text = _unquoted(sentence).lower()
    for pattern in (words.SIDE_UNKNOWN, words.RULE):
        text = pattern.sub(lambda match: " " * len(match[0]), text)
    contrasts: list[tuple[int, str]] = []
    for contrast, pattern in words.CONTRASTS.items():
        for match in _compiled(pattern).finditer(text):
            contrasts.append((match.start(), contrast))
            text = text[: match.start()] + "¤" * len(match[0]) + text[match.end() :]
    said_prior = (
        words.PRIOR.search(text) is not None
        or any(_compiled(p).search(text) for p in words.CHANGES.values())
        or re.search(r"\b(?:since|on|than) \d{4}-\d\d-\d\d", text) is not None
    )
    undated = re.sub(r"\d{4}-\d\d-\d\d|\d{1,2}/\d{1,2}/\d{2,4}", lambda match: "§" * len(match[0]), text)
    said_record = words.RECORD.search(undated) is not None
    mentions: list[Mention] = []
    for start, end in _clauses(undated):
        mentions += _mentions(undated, start, end, names, contrasts, said_record)
    loose = () if mentions else _numbers(undated)
    return Parsed(tuple(mentions), said_prior, said_record, loose)


def _unquoted(text: str) -> str:
    """What stands between quotation marks is somebody else's, and blank."""
    return re.sub(r"“[^”]*”?", lambda match: " " * len(match[0]), text)


def _clauses(text: str) -> Iterator[tuple[int, int]]:
    """A sentence is one clause, but for what follows 'but' and its like."""
    start = 0
    for match in re.finditer(r"[,;]? (?:but|however|although|whereas)\b", text):
        yield start, match.start()
        start = match.start()
    yield start, len(text)


def _mentions(
    text: str, start: int, end: int, names: Sequence[str], contrasts: list[tuple[int, str]], said_record: bool
) -> list[Mention]:
    clause = text[start:end]
    spans = _spans(clause, names)
    found = []
    for index, (first, last, name) in enumerate(spans):
        low = spans[index - 1][1] if index else 0
        high = spans[index + 1][0] if index + 1 < len(spans) else len(clause)
        if index == 0:
            before = clause[:first]
        else:  # words between two mentions belong to the second only after the last mark or joint
            between = clause[low:first]
            joint = max((m.end() for m in re.finditer(r"[,;:]|\b(?:and|or|with)\b", between)), default=0)
            before = between[joint:]
        after = clause[last:high]
        if index + 1 < len(spans):
            cut = [m.start() for m in re.finditer(r"[,;:]|\b(?:and|or|with)\b", after)]
            after = after[: cut[-1]] if cut else after
        near = f"{before} ¶ {after}"
        outside = f"{before}{' ' * (last - first)}{after}"
        hedge = _hedge(clause, first, last, near, spans)
        found.append(
            Mention(
                finding=name,
                hedge=hedge,
                side=_side(before, clause[first:last], after),
                places=frozenset(p for p, pattern in words.PLACES.items() if _compiled(pattern).search(outside)),
                numbers=_numbers(near),
                count=_count(before) or _count_after(after),
                severity=_first(words.SEVERITY, near),
                change=_first(words.CHANGES, near),
                signals=_signals(after, [(at - start - last, c) for at, c in contrasts]),
                is_record=said_record and _is_of_the_record(clause, first),
                text=clause[first:last],
            )
        )
    return found


def _spans(clause: str, names: Sequence[str]) -> list[tuple[int, int, str]]:
    """Where findings are named, longest first, no overlaps; structures only where no abnormality is named, or in a list of what
    nobody could assess: elsewhere their names are places."""
    candidates = [
        (match.start(), match.end(), name)
        for name, pattern in _lexicon(tuple(names)).items()
        for match in _compiled(rf"(?<![\w-])(?:{pattern})(?![\w])").finditer(clause)
        if match.end() > match.start()
    ]
    chosen = _without_overlaps(candidates)
    if any(name not in LOOKS for *_, name in chosen):
        chosen = [span for span in chosen if span[2] not in LOOKS]
    if not chosen or words.NOT_ASSESSED.search(clause):
        structures = [
            (match.start(), match.end(), name)
            for name, pattern in words.STRUCTURES.items()
            for match in _compiled(rf"(?<!\w)(?:{pattern})(?!\w)").finditer(clause)
        ]
        chosen = _without_overlaps([*chosen, *structures])
    return _with_ellipses(clause, chosen)


def _without_overlaps(candidates: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    chosen: list[tuple[int, int, str]] = []
    for start, end, name in sorted(candidates, key=lambda one: (one[0] - one[1], one[0])):
        if all(end <= a or start >= b for a, b, _ in chosen):
            chosen.append((start, end, name))
    return sorted(chosen)


def _with_ellipses(clause: str, spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """'the right hippocampus measures 3 ml and the left 4 ml' names the hippocampus twice."""
    more = []
    for match in re.finditer(
        r"(?:[;,]|\band)\s+(?:the )?(?=(?:right|left|midline)\s+(?:\d|not\b|uncertain|[a-z ]{0,30}\d))",
        clause,
    ):
        before = [span for span in spans if span[1] <= match.start()]
        after = [span for span in spans if span[0] >= match.end()]
        side = re.search(r"\b(right|left|midline)\b", clause[: match.start()])
        if before and side and not (after and after[0][0] - match.end() < 45):
            more.append((match.end(), match.end(), before[-1][2]))
    return sorted([*spans, *more])


def _hedge(clause: str, first: int, last: int, near: str, spans: Sequence[tuple[int, int, str]]) -> Hedge:
    """How sure the clause is of the mention at `first`; negation reaches over a list, doubt only as far as its neighbours."""
    if words.NOT_ASSESSED.search(clause):
        return "not_assessed"
    doubt = _first(words.HEDGES, near)
    quiet = clause
    for pattern in (words.NOT_NEGATION, _compiled(words.CHANGES["new"])):
        quiet = pattern.sub(lambda match: " " * len(match[0]), quiet)
    # What is said of the other side, before an ellipsis, is not said of this one.
    before = quiet[:first] if last > first else ""
    triggers = [match.end() for match in words.NEGATED_BEFORE.finditer(before)]
    if triggers and not words.SCOPE_ENDS.search(before, triggers[-1]):
        return "unlikely" if doubt == "unlikely" else "absent"
    after = quiet[last:]
    end = words.SCOPE_ENDS.search(after)
    own = after[: end.start()] if end else after
    ellipsis = next((span[0] - last for span in spans if span[0] == span[1] and span[0] > last), len(own))
    if words.NEGATED_AFTER.search(own[:ellipsis]) and not re.search(r"\bexcluded\b", near.split("¶")[0]):
        return "absent"
    return doubt or "stated"  # pyright: ignore[reportReturnType]


def _side(before: str, inside: str, after: str) -> str | None:
    """The nearest side: inside the name, before it, then after it. Which side is the larger of two says not which is meant."""
    after = re.sub(r"\b(?:right|left) larger\b", "", after)
    for part, from_end in ((inside, False), (before, True), (after, False)):
        found = sorted(
            (match.start(), side)
            for side, pattern in words.SIDES.items()
            for match in _compiled(pattern).finditer(part)
        )
        sides = [side for _, side in found if side != "midline"]
        if {"right", "left"} <= set(sides) and not re.search(r"\bto the (?:right|left)\b", part):
            return "bilateral"
        if sides:
            return sides[-1] if from_end else sides[0]
        if found and part is not inside:
            return "midline"
    return None


def _numbers(text: str) -> tuple[tuple[str, str], ...]:
    found = []
    for match in words.NUMBER.finditer(text):
        unit = words.UNITS.get(match[4].rstrip("s"), match[4])
        found += [(value.replace(",", "."), unit) for value in match.groups()[:3] if value]
    return tuple(found)


def _count(before: str) -> int | None:
    """'27 severe bilateral plaques': a bare number among the few words before the finding."""
    found = list(words.COUNT.finditer(before))
    if not found or len(before[found[-1].end() :].split()) > 4:
        return None
    return words.COUNT_WORDS.get(found[-1][1]) or int(found[-1][1])


def _count_after(after: str) -> int | None:
    match = re.search(r"\bnumber (\d+)\b", after)
    return int(match[1]) if match else None


def _signals(after: str, contrasts: Sequence[tuple[int, str]]) -> tuple[tuple[str, str], ...]:
    """Each contrast named after the finding, with the last word before it for how something looks."""
    looks = sorted(
        (match.start(), signal)
        for signal, pattern in words.SIGNALS.items()
        for match in _compiled(pattern).finditer(after)
    )
    found = []
    for at, contrast in sorted(contrasts):
        before = [signal for place, signal in looks if place < at]
        if 0 <= at < len(after) and before:
            found.append((contrast, before[-1]))
    return tuple(found)


def _is_of_the_record(clause: str, first: int) -> bool:
    return re.search(r"\b(?:history|known|status post|s/p|record|indication)\b", clause[:first]) is not None


def _first(patterns: Mapping[str, str], text: str) -> str | None:
    found = [(match.start(), name) for name, p in patterns.items() if (match := _compiled(p).search(text))]
    return min(found)[1] if found else None


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


@lru_cache(maxsize=256)
def _lexicon(names: tuple[str, ...]) -> dict[str, str]:
    known = words.FINDINGS.keys() | words.STRUCTURES.keys()
    own = {name.lower(): f"{re.escape(name.lower())}s?" for name in names if name.lower() not in known}
    return {**words.FINDINGS, **own}


# ------------------------------------------------------------------------------------------------ comparing


def verify_sentence(text: str, findings: Sequence[Finding], *, has_prior: bool) -> list[Problem]:
    """What is wrong with a sentence that should word exactly these findings."""
    record = [one for one in findings if one.origin == "record"]
    if record:
        missing = [one for one in record if one.name.lower() not in text.lower()]
        return [Problem("omission", one.name) for one in missing]
    parsed = parse(text, [one.name for one in findings])
    denied = [mention.finding for mention in parsed.mentions if mention.hedge == "absent"]
    named = [one.name.lower() for one in findings]
    twice = {name for name in denied if denied.count(name) > max(1, named.count(name))}
    return [
        *(Problem("unsupported", f"{name}, denied twice") for name in sorted(twice)),
        *_compare(parsed, findings, has_prior=has_prior, has_record=False),
        *_unsaid([parsed], findings),
    ]


def verify(text: str, reading: Reading, style: Style | None = None) -> list[Problem]:
    """What is wrong with a whole report: in Findings everything that must be said is, in Impression everything that is there."""
    style = style or Style()
    images = [one for one in reading.findings if one.origin == "image"]
    record = [one for one in reading.findings if one.origin == "record"]
    problems: list[Problem] = []
    sections = split_sections(text)
    for section in ("Findings", "Impression"):
        parsed = [parse(one, [finding.name for finding in images]) for one in sentences_of(sections.get(section, ""))]
        for one in parsed:
            problems += _compare(one, images, has_prior=reading.prior is not None, has_record=bool(record))
        if section == "Findings":
            needed = [one for one in images if must_be_said(one, style)]
        else:
            needed = [one for one in images if belongs_in_impression(one)]
        problems += _unsaid(parsed, needed)
    indication = _unquoted(sections.get("Indication", ""))
    if "history" in indication.lower() and not record:
        problems.append(Problem("record", "a history without a record"))
    problems += [Problem("omission", one.name) for one in record if one.name.lower() not in indication.lower()]
    return problems


def split_sections(text: str) -> dict[Section, str]:
    """By the headings that drafts have; a text without any is all Findings."""
    pattern = re.compile(rf"^\W*({'|'.join(SECTIONS)})\W*$", re.IGNORECASE | re.MULTILINE)
    heads = list(pattern.finditer(text))
    if not heads:
        return {"Findings": text}
    ends = [*(head.start() for head in heads[1:]), len(text)]
    return {head[1].capitalize(): text[head.end() : end] for head, end in zip(heads, ends, strict=True)}  # pyright: ignore[reportReturnType]


def _compare(parsed: Parsed, findings: Sequence[Finding], *, has_prior: bool, has_record: bool) -> list[Problem]:
    problems = []
    if parsed.has_prior and not has_prior:
        problems.append(Problem("prior", "compares, and no earlier study was given"))
    if parsed.loose_numbers:
        problems.append(Problem("number", f"{' '.join(parsed.loose_numbers[0])} belongs to no finding"))
    for mention in parsed.mentions:
        if mention.is_record:
            if not has_record:
                problems.append(Problem("record", mention.text))
            continue
        if mention.finding in LOOKS:
            continue
        same = [one for one in findings if one.name.lower() == mention.finding]
        if not same:
            problems.append(Problem("unsupported", mention.text))
            continue
        nowhere = is_nowhere(same)
        least = min((differences(mention, one, nowhere=nowhere) for one in same), key=len)
        problems += [Problem(kind, f"{mention.text}: {detail}") for kind, detail in least]
    return problems


def _unsaid(parsed: Sequence[Parsed], findings: Sequence[Finding]) -> list[Problem]:
    """Findings that no mention words, right or wrong; a wrong one was complained of already, but leaves its finding unsaid."""
    mentions = [mention for one in parsed for mention in one.mentions if not mention.is_record]
    problems = []
    for finding in findings:
        own = [mention for mention in mentions if mention.finding == finding.name.lower()]
        nowhere = is_nowhere([one for one in findings if one.name == finding.name])
        if not any(not differences(mention, finding, nowhere=nowhere) for mention in own):
            problems.append(Problem("omission", f"{finding.name} ({finding.side})"))
    return problems


def is_nowhere(findings: Sequence[Finding]) -> bool:
    return all(one.presence == "absent" for one in findings)


def differences(mention: Mention, finding: Finding, *, nowhere: bool = False) -> list[tuple[Kind, str]]:
    """Everything in which a mention contradicts a finding of its name. What is `nowhere` may be denied without a side."""
    found: list[tuple[Kind, str]] = []
    hedge = hedge_of(finding)
    unsure = ("likely", "possible", "unlikely")
    if mention.hedge != hedge:
        both_unsure = mention.hedge in (*unsure, "stated") and hedge in (*unsure, "stated")
        found.append(("hedge" if both_unsure else "negation", f"{mention.hedge} instead of {hedge}"))
    denied = nowhere and mention.hedge == "absent" and mention.side in (None, "bilateral")
    if not denied and _side_is_wrong(mention, finding):
        found.append(("side", f"{mention.side} instead of {finding.side}"))
    if mention.places and finding.anatomy in words.PLACES and finding.anatomy not in mention.places:
        found.append(("anatomy", f"{', '.join(sorted(mention.places))} instead of {finding.anatomy}"))
    if mention.severity and mention.severity != finding.severity:
        found.append(("severity", f"{mention.severity} instead of {finding.severity}"))
    for value, unit in mention.numbers:
        if not any(_agree(value, unit, one.value, one.unit) for one in finding.measurements):
            found.append(("number", f"{value} {unit} was not measured"))
    counted = finding.measured("number")
    if mention.count is not None and (counted is None or round(counted) != mention.count):
        found.append(("number", f"{mention.count} instead of {counted}"))
    if mention.change and mention.change != finding.change:
        found.append(("prior", f"{mention.change} instead of {finding.change}"))
    signals = {(one.contrast, one.signal) for one in finding.signals}
    for contrast, looks in mention.signals:
        if (contrast, looks) not in signals:
            found.append(("signal", f"{looks} on {contrast}"))
    return found


def _side_is_wrong(mention: Mention, finding: Finding) -> bool:
    if finding.side in ("right", "left"):
        return mention.side != finding.side
    if finding.side == "bilateral":
        return mention.side not in ("bilateral", None)
    return mention.side not in ("midline", None)


def _agree(printed: str, unit: str, value: float, own_unit: str) -> bool:
    """Whether a printed number is the value, rounded to the digits that are printed."""
    if unit == "cm" and own_unit == "mm":
        value, own_unit = value / 10, "cm"
    if unit != own_unit:
        return False
    digits = len(printed.partition(".")[2])
    return abs(float(printed) - abs(value)) <= 0.5 * 10**-digits * 1.001
