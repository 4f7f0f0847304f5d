"""The report in plain templates: no model, no choice of words, nothing that is not in the findings.

    for sentence in draft(reading).sentences: ...

Also what a decoder's sentence is replaced by when the verifier turns it down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from foundation.findings import Finding, Measurement, PriorStudy, Reading, SeriesSummary
from foundation.text import one_line
from heads.report import Draft, Section, Sentence
from heads.report.hedging import hedge_of
from heads.report.plan import Statement
from heads.report.slots import CONTRAST_WORDS, amount, format_number

NOT_A_DEVICE = (
    "This is a draft from software that is not a medical device; a clinician must check it against the images."
)
LONGEST_QUOTE = 300
ACQUISITION_WORDS = {
    "echo_time_ms": "echo time {} ms",
    "repetition_time_ms": "repetition time {} ms",
    "inversion_time_ms": "inversion time {} ms",
    "flip_angle_deg": "flip angle {}°",
    "field_strength_t": "{} T",
    "vendor": "{}",
}


def draft(reading: Reading) -> Draft:
    """Every finding is in a sentence, every number from a finding; the last sentence says that this is a draft."""
    groups = _groups([one for one in reading.findings if one.origin == "image"])
    sentences = [*opening(reading), *_findings(reading, groups), *_impression(groups), *closing(reading)]
    return Draft(tuple(sentences))


def opening(reading: Reading) -> Iterator[Sentence]:
    """Why, how and against what the study was made: nothing here needs a choice of words."""
    yield from _indication(reading)
    yield from _technique(reading)
    if reading.prior is not None:
        yield from _comparison(reading, reading.prior)


def unworded(reading: Reading, statements: Sequence[Statement]) -> Iterator[Sentence]:
    """What a section says where nothing was planned for it: that nothing was found is never called normal."""
    groups = _groups([one for one in reading.findings if one.origin == "image"])
    planned = {one.section for one in statements}
    if "Findings" not in planned and not groups:
        yield from _findings(reading, groups)
    if not any(one.kind == "impression" for one in statements):
        missing = {one.id for group in groups for one in group if one.presence == "not_assessed"}
        yield from (one for one in _impression(groups) if not missing & set(one.finding_ids) or len(groups) == 0)
        if groups and all(one.id in missing for group in groups for one in group):
            yield _sentence("Impression", "Nothing was assessed, so nothing is excluded.")


def closing(reading: Reading) -> Iterator[Sentence]:
    yield from _outlook(reading)
    yield from _limits(reading)


def statement_text(statement: Statement) -> str:
    """What a statement becomes when no writer words it, or none that could be trusted."""
    groups = _groups(statement.findings)
    if statement.kind == "history":
        return f"History: {', '.join(one.name for one in statement.findings)}."
    lead = {"impression": "Abnormal: ", "not_assessed": ""}.get(statement.kind, "")
    if lead and statement.findings[0].presence == "uncertain":
        lead = "Possibly abnormal: "
    texts = [f"{group[0].name}: {_group_words(group)}" for group in groups]
    return one_line(_capital(f"{lead}{'; '.join(texts)}."))


def quoted(text: str) -> str:
    """Text from outside between quotation marks that it cannot close, and not more of it than a sentence bears."""
    return f"“{one_line(text, most=LONGEST_QUOTE).replace('“', '').replace('”', '')}”"


# ------------------------------------------------------------------------------------------------ sections


def _indication(reading: Reading) -> Iterator[Sentence]:
    if reading.indication:
        yield _sentence("Indication", f"Asked for: {quoted(reading.indication)}.")
    record = [one for one in reading.findings if one.origin == "record"]
    if record:
        yield _sentence("Indication", f"History: {', '.join(one.name for one in record)}.", record)


def _comparison(reading: Reading, prior: PriorStudy) -> Iterator[Sentence]:
    """With what, and what no sentence under Findings has a place for: lesions one by one, and what is there no more."""
    when = f" of {prior.date}" if prior.date else ""
    yield _sentence("Comparison", f"Compared with the study {quoted(prior.name)}{when}.")
    for name, fates in prior.lesions.items():
        counts = ", ".join(f"{number} {_FATES[fate]}" for fate, number in fates.items() if number)
        yield _sentence("Comparison", f"{_capital(name)}, lesion by lesion: {counts}.")
    gone = [one for one in reading.findings if one.change == "resolved"]
    if gone:
        names = ", ".join(f"{one.side} {one.name}" if one.side in ("right", "left") else one.name for one in gone)
        yield _sentence("Comparison", f"Not found any more: {names}.", gone)


def _technique(reading: Reading) -> Iterator[Sentence]:
    for series in reading.series:
        yield _sentence("Technique", _series_words(series))
    names = ", ".join(model.name for model in reading.models)
    yield _sentence("Technique", f"Models used: {names}." if names else "No model was used.")


def _series_words(series: SeriesSummary) -> str:
    shape = " × ".join(str(length) for length in series.shape if length)  # of an imagined series nobody knows it
    shape += " " if shape else ""
    spacing = " × ".join(f"{step:.3g}" for step in series.spacing_mm)
    known = [
        words.format(value if isinstance(value, str) else f"{value:.0f}" if value >= 1000 else f"{value:.4g}")
        for name, words in ACQUISITION_WORDS.items()
        if (value := series.acquisition.get(name)) is not None
    ]
    contrast = "contrast unknown" if series.contrast == "unknown" else series.contrast
    return (
        f"Series {series.name or 'without a name'}: {', '.join([contrast, f'{shape}voxels of {spacing} mm', *known])}."
    )


def _findings(reading: Reading, groups: Sequence[Sequence[Finding]]) -> Iterator[Sentence]:
    if not groups:
        what = "the models used returned no finding" if reading.models else "no model was used"
        yield _sentence("Findings", f"No structures were assessed: {what}.")
    for group in groups:
        name = group[0].name
        yield _sentence("Findings", f"{_capital(name)}: {_group_words(group)}.", group)


def _impression(groups: Sequence[Sequence[Finding]]) -> Iterator[Sentence]:
    """What is there and abnormal, what might be, what was not assessed. Nothing found is never called normal."""
    findings = [finding for group in groups for finding in group]
    assessed = [finding for finding in findings if finding.presence != "not_assessed"]
    if not assessed:
        yield _sentence("Impression", "Nothing was assessed, so nothing is excluded.", findings)
        return
    is_any = False
    for group in groups:
        for presence, words in (("present", "Abnormal"), ("uncertain", "Possibly abnormal")):
            found = [finding for finding in group if finding.is_abnormal and finding.presence == presence]
            if found:
                is_any = True
                yield _sentence("Impression", f"{words}: {found[0].name}, {_group_words(found)}.", found)
    if not is_any:
        yield _sentence("Impression", "No finding was assessed as abnormal by the models used.", assessed)
    if not any(finding.is_abnormal for finding in assessed):
        text = "The models used measured anatomy and looked for no abnormality, so none is excluded."
        yield _sentence("Impression", text, assessed)
    for group in groups:
        missing = [finding for finding in group if finding.presence == "not_assessed"]
        if missing:
            reasons = sorted({finding.note or "no reason was given" for finding in missing})
            text = f"Not assessed: {missing[0].name} ({'; '.join(reasons)})."
            yield _sentence("Impression", text, missing)


def _outlook(reading: Reading) -> Iterator[Sentence]:
    """What may become of the patient, with the model's own words on how it is known; no part of the findings."""
    for finding in reading.findings:
        if finding.origin == "outlook":
            why = sorted({one.method for one in finding.measurements})
            said = (
                [_measured(one) for one in finding.measurements]
                if finding.presence != "not_assessed"
                else ["not assessed"]
            )
            text = f"{_capital(finding.name)}: {', '.join(said)}"
            yield _sentence("Outlook", f"{'; '.join(filter(None, [text, finding.note, *why]))}.", [finding])


def _limits(reading: Reading) -> Iterator[Sentence]:
    for series in reading.series:
        if not series.side_is_known:
            name = series.name or "without a name"
            yield _sentence("Limits", f"Series {name} does not say which side is right; no side is named from it.")
    if any(finding.probability is not None and not finding.is_calibrated for finding in reading.findings):
        yield _sentence(
            "Limits", "A probability marked as not calibrated is a score, not how often the model is right."
        )
    for warning in reading.warnings:
        text = warning.strip()
        yield _sentence("Limits", text if text.endswith((".", "!", "?")) else f"{text}.")
    yield _sentence("Limits", NOT_A_DEVICE)


# ------------------------------------------------------------------------------------------------ words

_FATES = {"new": "new", "resolved": "gone", "grown": "grown", "shrunk": "shrunk", "stable": "unchanged"}
_NO_PLACE = ("brain", "images", "")  # where everything is
_CHANGED = {
    "new": "new since the prior study", "resolved": "gone since the prior study", "grown": "larger than in the prior study",
    "shrunk": "smaller than in the prior study", "stable": "unchanged from the prior study",
}  # fmt: skip


def _groups(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings that one sentence words together: neighbours of one name, one source and one series, as a pair is."""

    def key(finding: Finding) -> tuple[str, str, str | None]:
        return finding.source, finding.name, finding.evidence.series if finding.evidence else None

    return [list(group) for _, group in groupby(findings, key)]


def _group_words(group: Sequence[Finding]) -> str:
    """One clause per finding; what is shared by a pair is said once, at the end."""
    clauses = [_clause(finding) for finding in group]
    asymmetry = group[0].measured("asymmetry")
    if len(group) > 1 and asymmetry is not None:
        larger = "equal" if asymmetry == 0 else "right larger" if asymmetry > 0 else "left larger"
        clauses.append(f"asymmetry {format_number(abs(asymmetry))} % ({larger})")
    return "; ".join(clauses)


def _clause(finding: Finding) -> str:
    """'right 3.42 ml', 'left not found', 'not assessed (no T2w series)', 'present, probability 0.83, calibrated'."""
    named = finding.side in ("right", "left", "bilateral") or (finding.side == "midline" and finding.is_abnormal)
    side = f"{finding.side} " if named else ""
    if finding.presence == "not_assessed":
        return f"{side}not assessed ({finding.note or 'no reason was given'})"
    volume = finding.measured("volume")
    amount = "" if volume is None else f"{format_number(volume)} ml"
    hedge = hedge_of(finding)
    if hedge == "unlikely":
        words = f"unlikely ({amount})" if volume else "unlikely"
    elif finding.presence == "present":
        words = f"{hedge} {amount}".rstrip() if hedge in ("likely", "possible") else amount or "present"
    elif finding.presence == "absent":
        words = f"not found ({amount})" if volume else "not found"
    else:
        words = f"uncertain ({amount})" if volume else "uncertain"
    where = "" if finding.anatomy.lower() in _NO_PLACE or finding.presence == "absent" else f"{finding.anatomy} "
    where = where if where.strip().lower() != finding.name.lower() else ""
    parts = [f"{side}{where}{words}"]
    if finding.presence in ("present", "uncertain") and finding.severity:
        parts.append(finding.severity)
    if finding.probability is not None:
        calibrated = "calibrated" if finding.is_calibrated else "not calibrated"
        parts.append(f"probability {finding.probability:.2f}, {calibrated}")
    if finding.presence != "absent":  # that there are none of it was said
        parts += [_measured(one) for one in finding.measurements if one.name not in ("volume", "asymmetry")]
    parts += [f"{one.signal} on {CONTRAST_WORDS[one.contrast]}" for one in finding.signals]
    if finding.change:
        parts.append(_CHANGED[finding.change])
    if finding.side == "not_assessed" and finding.note:
        parts.append(f"side not assessed ({finding.note})")
    elif finding.note:
        parts.append(finding.note)
    return ", ".join(parts)


def _measured(measurement: Measurement) -> str:
    return f"{measurement.name} {amount(measurement)}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sentence(section: Section, text: str, findings: Sequence[Finding] = ()) -> Sentence:
    """Names and notes come from files: whatever they hold, a sentence is one line."""
    return Sentence(section, one_line(text), tuple(finding.id for finding in findings))
