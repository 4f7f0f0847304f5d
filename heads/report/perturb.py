"""Errors put into a report that was right, one at a time: what the verifier is measured on before it is trusted.

    wrong = perturb("side", draft, default_rng(0))      None where the report has nothing to get wrong in that way

The kinds are those that radiologists object to (docs/report.md). A perturbation changes one sentence of Findings or Impression, or
leaves one out; it works on words, knows nothing of claims, and shares no table with the verifier.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal, get_args

from numpy.random import Generator

from heads.report import Draft

Kind = Literal["side", "negation", "number", "severity", "prior", "omission", "swap"]
KINDS: tuple[Kind, ...] = get_args(Kind)

OTHER_SIDE = {"right": "left", "left": "right", "bilateral": "left"}
OTHER_SEVERITY = {"mild": "severe", "slight": "marked", "moderate": "severe", "severe": "mild", "marked": "slight"}
# Words for things that are not the same; each is exchanged for one of another row.
CALLED = (
    ("mass", "tumour", "neoplasm", "space-occupying lesion"), ("haematoma", "haemorrhage"), ("acute infarct", "acute infarction"),
    ("oedema",), ("demyelinating plaque", "demyelinating lesion"), ("white matter hyperintensity", "white matter lesion"),
    ("midline shift",), ("ventriculomegaly", "ventricular enlargement"), ("necrosis",), ("atrophy",),
)  # fmt: skip


def perturb(kind: Kind, draft: Draft, rng: Generator) -> Draft | None:
    """The draft with one error of that kind in a sentence drawn from those where it is possible."""
    body = [at for at, one in enumerate(draft.sentences) if one.section in ("Findings", "Impression")]
    for at in rng.permutation(body).tolist():
        one = draft.sentences[at]
        if kind == "omission":
            return Draft((*draft.sentences[:at], *draft.sentences[at + 1 :]))
        text = _changed(kind, one.text, rng)
        if text is not None and text.lower() != one.text.lower():
            return Draft((*draft.sentences[:at], replace(one, text=text), *draft.sentences[at + 1 :]))
    return None


def _changed(kind: Kind, text: str, rng: Generator) -> str | None:
    if kind == "side":
        return _exchange(text, OTHER_SIDE, rng)
    if kind == "severity":
        return _exchange(text, OTHER_SEVERITY, rng)
    if kind == "negation":
        return _negated(text)
    if kind == "number":
        return _renumbered(text, rng)
    if kind == "prior":
        return _compared(text, rng)
    if kind == "swap":
        return _swapped(text, rng)
    raise AssertionError(kind)


def _exchange(text: str, others: dict[str, str], rng: Generator) -> str | None:
    found = [match for match in re.finditer(r"[A-Za-z]+", text) if match[0].lower() in others]
    if not found:
        return None
    match = found[int(rng.integers(len(found)))]
    return text[: match.start()] + others[match[0].lower()] + text[match.end() :]


def _negated(text: str) -> str | None:
    """What is there is said to be absent, and what is absent to be there."""
    if re.search(r"assess|evaluat|unlikely|excluded|measures|hippocampus|thalamus", text, re.IGNORECASE):
        return None
    for pattern, instead in (
        (r"^There is no ", "There is "), (r"^No evidence of ", "Evidence of "),
        (r"^No (.*?)(?: is)? (?:seen|identified|demonstrated)\.$", r"\1 seen."),
        (r"^No ", "There is "), (r" (is|are) not ", r" \1 "), (r"negative for", "positive for"), (r": none\.", ": present."),
        (r"^There (is|are) (?:an? )?", r"There \1 no "), (r" there (is|are) (?:an? )?", r" there \1 no "),
        (r" (is|are) (seen|present|noted)", r" \1 not \2"),
    ):  # fmt: skip
        changed, number = re.subn(pattern, instead, text, count=1)
        if number:
            return changed[:1].upper() + changed[1:]
    return f"No {text[:1].lower()}{text[1:]}"


def _renumbered(text: str, rng: Generator) -> str | None:
    """A measured number, at least a tenth off: a digit changed, or the point moved."""
    found = list(re.finditer(r"(?<![\w.-])\d+(?:\.\d+)?(?= (?:mm|ml|%))", text))
    if not found:
        return None
    match = found[int(rng.integers(len(found)))]
    value = float(match[0])
    factor = float(rng.choice((0.1, 0.5, 0.8, 1.25, 2.0, 10.0)))
    digits = len(match[0].partition(".")[2])
    changed = f"{value * factor:.{digits}f}"
    return None if changed == match[0] else text[: match.start()] + changed + text[match.end() :]


def _compared(text: str, rng: Generator) -> str | None:
    """A comparison where there was none, or another one."""
    others = {
        "unchanged": "increased",
        "stable": "increased",
        "larger": "smaller",
        "smaller": "larger",
        "new": "unchanged",
    }
    if re.search(r"\b(?:since|on|compared with) \S*\d{4}", text):
        return _exchange(text, others, rng)
    ways = (", unchanged since the prior study.", ", increased compared with the previous examination.", ", stable.")
    return text.rstrip(".") + ways[int(rng.integers(len(ways)))]


def _swapped(text: str, rng: Generator) -> str | None:
    """One finding called by another's name."""
    found = [
        (row, word)
        for row, names in enumerate(CALLED)
        for word in names
        if re.search(rf"\b{word}\b", text, re.IGNORECASE)
    ]
    if not found:
        return None
    row, word = max(found, key=lambda one: len(one[1]))
    text = re.sub(
        rf"\b(?:enhancing|necrotic) (?={word})", "", text, flags=re.IGNORECASE
    )  # these words are findings too
    others = [names[0] for at, names in enumerate(CALLED) if at != row and names[0].lower() not in text.lower()]
    return re.sub(rf"\b{word}\b", others[int(rng.integers(len(others)))], text, count=1, flags=re.IGNORECASE)
