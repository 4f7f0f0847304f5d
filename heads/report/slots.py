"""Sentences with slots: whoever words a report writes `<c1.volume>`, and the number is put in here, from the finding.

    fill("a mass in the <c1.side> frontal lobe , <c1.diameter> .", statement)    "A mass in the right frontal lobe, 34 mm."

A number, a unit, a side, a series' name, a date, and every name that is not in the vocabulary are slots, so that no writer can get
them wrong. Text from files goes through slots only, as one line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from foundation.findings import Finding, Measurement
from foundation.study import CONTRASTS
from foundation.text import one_line
from heads.report.plan import Statement

SLOT = re.compile(r"<([a-z0-9]+)(?:\.([A-Za-z0-9_-]+))?>")
MEASURED = ("volume", "diameter", "shift", "brain fraction", "asymmetry", "number")
CONTRAST_WORDS = {
    "T1w": "T1", "T1w-contrast": "T1 after contrast", "T2w": "T2", "FLAIR": "FLAIR", "PD": "proton density", "DWI": "DWI",
    "ADC": "ADC", "T2star": "T2*", "MRA": "MRA", "unknown": "a series of unknown contrast",
}  # fmt: skip
assert CONTRAST_WORDS.keys() == set(CONTRASTS)


class UnfilledSlot(ValueError):
    """A sentence asks for what its findings do not have."""


def format_number(value: float) -> str:
    """Three digits, as segmentations are not more exact than that, and never 0 for something that is there."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 0.001:
        return f"{value:.1g}"
    return f"{value:.{3 if size < 0.1 else 2 if size < 10 else 1 if size < 100 else 0}f}"


def amount(measurement: Measurement) -> str:
    """'34.2 mm', '12': the number as measurements of its kind are exact, and its unit."""
    if measurement.name == "number":
        return f"{measurement.value:.0f}"
    return f"{format_number(measurement.value)}{'' if measurement.unit == '1' else ' ' + measurement.unit}"


def has(finding: Finding, name: str) -> bool:
    """Whether a measurement can be worded; one lesion is not "1 lesions"."""
    value = finding.measured(name)
    return value is not None and (name != "number" or value >= 2)


def fill(text: str, statement: Statement) -> str:
    """The sentence for people: slots filled, punctuation closed up, a capital in front."""
    text = re.sub(r"\s+([,.;:)])", r"\1", re.sub(r"\(\s+", "(", one_line(text)))
    filled = SLOT.sub(lambda match: _value(match[1], match[2], statement), text)
    if "<" in filled:
        raise UnfilledSlot(filled)
    filled = one_line(re.sub(r"\ba (?=[aeiou])", "an ", filled))
    return filled[:1].upper() + filled[1:]


def _value(kind: str, name: str | None, statement: Statement) -> str:
    if kind == "prior" and statement.prior is not None:
        return _quiet(statement.prior)
    if kind == "reason":
        return _quiet(statement.findings[0].note or "no reason was given")
    if kind == "x" and name in CONTRAST_WORDS:
        return CONTRAST_WORDS[name]
    number = int(kind[1:]) if kind[:1] == "c" and kind[1:].isdigit() else 0
    if not 1 <= number <= len(statement.findings) or name is None:
        raise UnfilledSlot(kind)
    return _of_finding(statement.findings[number - 1], name.replace("_", " "))


def _of_finding(finding: Finding, name: str) -> str:
    if name == "name":
        return _plural(_quiet(finding.name)) if has(finding, "number") else _quiet(finding.name)
    if name == "anatomy":
        return _quiet(finding.anatomy)
    if name == "side" and finding.side in ("right", "left", "bilateral", "midline"):
        return finding.side
    if name in MEASURED and has(finding, name):
        return amount(next(one for one in finding.measurements if one.name == name))
    raise UnfilledSlot(name)


def _plural(name: str) -> str:
    """Of a name that is an English noun, as a kind of lesion is; what ends otherwise than in a letter is left alone."""
    return f"{name}s" if name[-1:].isalpha() and not name.endswith("s") else name


def _quiet(text: str) -> str:
    """Text from a file inside a sentence: one line, without the marks that would end the sentence or look like a slot."""
    return re.sub(r"[<>]", "", one_line(text)).strip(" .")


def slots_of(findings: Sequence[Finding], prior: str | None) -> set[str]:
    """Every slot that a sentence on these findings may use."""
    allowed = {"<reason>"} if findings and findings[0].presence == "not_assessed" else set()
    if prior is not None:
        allowed.add("<prior>")
    for number, one in enumerate(findings, start=1):
        allowed |= {f"<c{number}.name>", f"<c{number}.anatomy>"}
        if one.side in ("right", "left", "bilateral", "midline"):
            allowed.add(f"<c{number}.side>")
        allowed |= {f"<c{number}.{name.replace(' ', '_')}>" for name in MEASURED if has(one, name)}
        allowed |= {f"<x.{signal.contrast}>" for signal in one.signals}
    return allowed
