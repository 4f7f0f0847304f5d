"""The cohort's reports: a synthetic reader's words for claims, with slots. What the small decoder learns language from.

    text = phrase(statement, Style(terse=True), default_rng(0))
    draft = cohort_report(reading, Style(normals=False), default_rng(0))

A grammar of alternatives, not a list of sentences: how a finding is called, where it is, how large, how it looks and how sure the
reader is are drawn one by one and put together in several orders. The verifier knows nothing of this file.
"""

from __future__ import annotations

from collections.abc import Sequence

from numpy.random import Generator

from foundation.findings import Finding, Reading
from heads.report import Draft, Sentence
from heads.report.hedging import Hedge, hedge_of
from heads.report.plan import Statement, Style, plan
from heads.report.slots import CONTRAST_WORDS, fill, has
from heads.report.templates import closing, opening

# How each finding is called: (one, several, whether "a" stands before one). No word here is a side, a number or a comparison.
NAMES: dict[str, tuple[tuple[str, str, bool], ...]] = {
    "tumour": (
        ("mass", "masses", True), ("tumour", "tumours", True), ("space-occupying lesion", "space-occupying lesions", True),
        ("intra-axial mass", "intra-axial masses", True), ("neoplasm", "neoplasms", True),
    ),
    "enhancing tumour": (
        ("enhancing component", "enhancing components", True), ("area of enhancement", "areas of enhancement", True),
        ("contrast enhancement", "contrast enhancement", False), ("enhancing tumour", "enhancing tumour", False),
    ),
    "necrosis": (
        ("central necrosis", "central necrosis", False), ("necrotic core", "necrotic cores", True),
        ("necrotic component", "necrotic components", True), ("necrosis", "necrosis", False),
    ),
    "oedema": (
        ("vasogenic oedema", "vasogenic oedema", False), ("oedema", "oedema", False),
        ("perilesional oedema", "perilesional oedema", False),
    ),
    "acute infarct": (
        ("acute infarct", "acute infarcts", True), ("recent infarct", "recent infarcts", True),
        ("area of acute ischaemia", "areas of acute ischaemia", True),
        ("acute ischaemic lesion", "acute ischaemic lesions", True), ("acute infarction", "acute infarction", False),
    ),
    "haemorrhage": (
        ("haemorrhage", "haemorrhage", False), ("haematoma", "haematomas", True),
        ("intracerebral haematoma", "intracerebral haematomas", True),
        ("parenchymal haemorrhage", "parenchymal haemorrhage", False),
        ("intracranial haemorrhage", "intracranial haemorrhage", False),
    ),
    "plaque": (
        ("demyelinating plaque", "demyelinating plaques", True), ("demyelinating lesion", "demyelinating lesions", True),
        ("plaque of demyelination", "plaques of demyelination", True),
    ),
    "white matter hyperintensity": (
        ("white matter hyperintensity", "white matter hyperintensities", True),
        ("focus of white matter hyperintensity", "foci of white matter hyperintensity", True),
        ("small vessel white matter lesion", "small vessel white matter lesions", True),
    ),
    "midline shift": (("midline shift", "midline shift", False), ("shift of the midline", "shift of the midline", False)),
    "ventricular enlargement": (
        ("ventricular enlargement", "ventricular enlargement", False), ("ventriculomegaly", "ventriculomegaly", False),
        ("enlargement of the lateral ventricles", "enlargement of the lateral ventricles", False),
        ("dilatation of the lateral ventricles", "dilatation of the lateral ventricles", False),
    ),
    "brain atrophy": (
        ("brain atrophy", "brain atrophy", False), ("cerebral atrophy", "cerebral atrophy", False),
        ("generalised volume loss", "generalised volume loss", False),
        ("parenchymal volume loss", "parenchymal volume loss", False),
    ),
    "image artefact": (("image artefact", "image artefacts", False), ("artefact", "artefacts", False)),
}  # fmt: skip
PLACES = {
    "frontal lobe", "parietal lobe", "temporal lobe", "occipital lobe", "cerebellum", "brainstem", "deep grey matter",
    "cerebral white matter", "lateral ventricle", "hippocampus", "thalamus", "caudate", "putamen", "pallidum",
}  # fmt: skip
EVERYWHERE = {"brain", "images", "lateral ventricle"}  # places that the finding's name already says
WITHOUT_PLACE = {
    "white matter hyperintensity",
    "midline shift",
    "ventricular enlargement",
    "brain atrophy",
    "image artefact",
}
HISTORY = (
    "hypertension", "diabetes", "smoking", "atrial fibrillation", "anticoagulation", "seizure", "cognitive impairment",
)  # fmt: skip
SIGNAL_WORDS = {
    "hyperintense": ("hyperintense", "bright", "of high signal"), "hypointense": ("hypointense", "dark", "of low signal"),
    "isointense": ("isointense",), "enhancing": ("enhancing",),
}  # fmt: skip
SEVERITY_WORDS = {"mild": ("mild", "slight"), "moderate": ("moderate",), "severe": ("severe", "marked")}
LIKELY, POSSIBLE = ("likely", "probable"), ("possible",)


def phrase(statement: Statement, style: Style, rng: Generator) -> str:
    """One sentence with slots, lower case, words and marks apart."""
    findings = statement.findings
    if statement.kind == "history":
        text = _history(findings, style, rng)
    elif statement.kind == "absent":
        text = _absent(findings, style, rng)
    elif statement.kind == "not_assessed":
        text = _not_assessed(findings, style, rng)
    elif statement.kind == "anatomy":
        text = _anatomy(findings, style, rng)
    elif statement.kind == "unlikely":
        text = _unlikely(findings[0], style, rng)
    else:
        short = statement.kind == "impression"
        text = _present(findings[0], statement.prior is not None, style, rng, short=short)
    return " ".join(text.split())


def cohort_report(reading: Reading, style: Style, rng: Generator) -> Draft:
    """The report that a synthetic reader of that style would write."""
    words = [
        Sentence(one.section, fill(phrase(one, style, rng), one), one.finding_ids, "cohort")
        for one in plan(reading, style)
    ]
    seen = ", ".join(dict.fromkeys(CONTRAST_WORDS[one.contrast] for one in reading.series))
    technique = Sentence("Technique", f"MRI of the brain with {seen}.", writer="cohort")
    before = [one for one in opening(reading) if one.section == "Comparison"]
    return Draft((technique, *before, *words, *closing(reading)))


# ------------------------------------------------------------------------------------------------ kinds


def _present(one: Finding, has_prior: bool, style: Style, rng: Generator, *, short: bool) -> str:
    if one.name == "midline shift":
        return _shift(one, has_prior, style, rng, short=short)
    many = has(one, "number")
    name, article = _name(one, 1, rng, many=many)
    hedge = _hedge_word(hedge_of(one), rng)
    severity = _pick(rng, *SEVERITY_WORDS[one.severity]) if one.severity else ""
    counted = "<c1.number> " if many and not short else ""
    side_first = one.side in ("bilateral", "midline") and one.name not in ("ventricular enlargement", "brain atrophy")
    side = "<c1.side>" if side_first else ""
    subject = " ".join(part for part in (counted, hedge, severity, side, name) if part)
    if article and not many:
        subject = f"a {subject}"
    place = _place(one)
    size = "" if short and rng.random() < 0.5 else _size(one, rng)
    signal = "" if short or (style.terse and rng.random() < 0.7) else _signal(one, rng)
    change = _change(one, rng) if has_prior else ""
    tail = " , ".join(part for part in (size, signal, change) if part)
    verb = "are" if many else "is"
    bare = subject.removeprefix("a ")
    if style.terse or short:
        frames = [f"{bare} {place} {'' if not tail else ', ' + tail} ."]
        if place:
            frames.append(f"{place.removeprefix('in the ')} : {bare} {'' if not tail else ', ' + tail} .")
    else:
        frames = [
            f"there {verb} {subject} {place} {'' if not tail else ', ' + tail} .",
            f"{subject} {verb} {_pick(rng, 'seen', 'present', 'noted')} {place} {'' if not tail else ', ' + tail} .",
        ]
        if place:
            frames.append(f"{place} there {verb} {subject} {'' if not tail else ', ' + tail} .")
    return _pick(rng, *frames)


def _shift(one: Finding, has_prior: bool, style: Style, rng: Generator, *, short: bool) -> str:
    hedge, size = _hedge_word(hedge_of(one), rng), "of <c1.shift>" if has(one, "shift") else ""
    severity = _pick(rng, *SEVERITY_WORDS[one.severity]) if one.severity else ""
    to = "to the <c1.side>" if one.side in ("right", "left") else ""
    change = _change(one, rng) if has_prior else ""
    tail = f", {change}" if change else ""
    frames = [f"{hedge} {severity} midline shift {to} {size} {tail} ."]
    if not (style.terse or short):
        frames += [
            f"there is {hedge} {severity} midline shift {size} {to} {tail} .",
            f"{hedge} {severity} shift of the midline {to} {size} is present {tail} .",
        ]
    return _pick(rng, *frames)


def _unlikely(one: Finding, style: Style, rng: Generator) -> str:
    name, article = _name(one, 1, rng)
    where = "on the <c1.side>" if one.side in ("right", "left") else ""
    frames = [f"{name} {where} unlikely .", f"unlikely {name} {where} ."] if style.terse else [
        f"{'a ' if article else ''}{name} {where} is {_pick(rng, 'unlikely', 'considered unlikely')} .",
        f"an unlikely {name} {where} is not entirely excluded ." if article else f"{name} {where} is thought unlikely .",
    ]  # fmt: skip
    return _pick(rng, *frames)


def _absent(findings: Sequence[Finding], style: Style, rng: Generator) -> str:
    names = [_name(one, number, rng, many=rng.random() < 0.3)[0] for number, one in enumerate(findings, start=1)]
    where = "on the <c1.side>" if findings[0].side in ("right", "left") else ""
    listed = _listed(names, "or")
    if style.terse:
        return _pick(rng, f"no {listed} {where} .", f"{listed} {where} : none .", f"no {listed} {where} seen .")
    return _pick(
        rng,
        f"there is no {listed} {where} .",
        f"no evidence of {listed} {where} .",
        f"no {listed} {where} is {_pick(rng, 'seen', 'identified', 'demonstrated')} .",
        f"{_listed(names, 'and')} {where} {'are' if len(names) > 1 else 'is'} not {_pick(rng, 'seen', 'identified')} .",
        f"the images are negative for {listed} {where} .",
    )


def _not_assessed(findings: Sequence[Finding], style: Style, rng: Generator) -> str:
    names = [_name(one, number, rng)[0] for number, one in enumerate(findings, start=1)]
    listed, are = _listed(names, "and"), "were" if len(names) > 1 else "was"
    reason = _pick(rng, "( <reason> )", "; <reason>")
    if style.terse:
        return _pick(rng, f"{listed} not assessed {reason} .", f"not assessed : {listed} {reason} .")
    return _pick(
        rng,
        f"{listed} {are} not assessed {reason} .",
        f"{listed} could not be {_pick(rng, 'assessed', 'evaluated')} {reason} .",
        f"no assessment of {listed} was possible {reason} .",
    )


def _anatomy(findings: Sequence[Finding], style: Style, rng: Generator) -> str:
    one = findings[0]
    name = one.name.lower() if one.name.lower() in PLACES else "<c1.name>"
    both = len(findings) == 2 and {finding.side for finding in findings} == {"right", "left"}
    known = [slot for slot in ("volume", "diameter") if all(has(finding, slot) for finding in findings)]
    if both and known:
        slot = known[0]
        return _pick(
            rng,
            f"the <c1.side> {name} measures <c1.{slot}> and the <c2.side> <c2.{slot}> .",
            f"{name} : <c1.side> <c1.{slot}> , <c2.side> <c2.{slot}> .",
        )
    parts = []
    for number, finding in enumerate(findings, start=1):
        side = f"<c{number}.side> " if finding.side in ("right", "left") else ""
        known = [slot for slot in ("volume", "diameter") if has(finding, slot)]
        called = finding.name.lower() if finding.name.lower() in PLACES else f"<c{number}.name>"
        measured = f"measures <c{number}.{known[0]}>" if known else "is present"
        called += f" ( <c{number}.side> )" if finding.side == "bilateral" else ""
        parts.append(f"{side}{called} {f': <c{number}.{known[0]}>' if style.terse and known else measured}")
    return f"{'' if style.terse else 'the '}{' and '.join(parts)} ."


def _history(findings: Sequence[Finding], style: Style, rng: Generator) -> str:
    names = [one.name if one.name in HISTORY else f"<c{number}.name>" for number, one in enumerate(findings, start=1)]
    listed = _listed(names, "and")
    return _pick(
        rng,
        f"history of {listed} .",
        f"history : {listed} ." if style.terse else f"the record gives a history of {listed} .",
    )


# ------------------------------------------------------------------------------------------------ parts


def _name(one: Finding, number: int, rng: Generator, *, many: bool = False) -> tuple[str, bool]:
    """What it is called, and whether one of it takes an article."""
    known = NAMES.get(one.name.lower())
    if known is None:
        return f"<c{number}.name>", False
    single, several, article = known[rng.integers(len(known))]
    return (several, False) if many else (single, article)


def _place(one: Finding) -> str:
    if one.anatomy in EVERYWHERE or one.name in WITHOUT_PLACE:
        return "on the <c1.side>" if one.side in ("right", "left") else ""
    anatomy = one.anatomy if one.anatomy in PLACES else "<c1.anatomy>"
    return f"in the <c1.side> {anatomy}" if one.side in ("right", "left") else f"in the {anatomy}"


def _size(one: Finding, rng: Generator) -> str:
    ways = []
    if has(one, "diameter"):
        ways += ["measuring <c1.diameter>", "<c1.diameter> in diameter"]
    if has(one, "volume"):
        ways += ["with a volume of <c1.volume>", "volume <c1.volume>"]
    if has(one, "diameter") and has(one, "volume"):
        ways += ["measuring <c1.diameter> ( <c1.volume> )"]
    if has(one, "brain fraction"):
        ways += ["brain fraction <c1.brain_fraction>", "with a brain fraction of <c1.brain_fraction>"]
    return _pick(rng, *ways) if ways else ""


def _signal(one: Finding, rng: Generator) -> str:
    """Series of one signal together; the commonest signal only."""
    if not one.signals:
        return ""
    first = one.signals[0].signal
    contrasts = list(dict.fromkeys(signal.contrast for signal in one.signals if signal.signal == first))
    word = _pick(rng, *SIGNAL_WORDS[first])
    return f"{word} on {_listed([f'<x.{contrast}>' for contrast in contrasts[:3]], 'and')}"


def _change(one: Finding, rng: Generator) -> str:
    ways = {
        "new": ("new since <prior>", "not present on <prior>"),
        "resolved": ("resolved since <prior>",),
        "grown": ("larger than on <prior>", "increased since <prior>"),
        "shrunk": ("smaller than on <prior>", "decreased since <prior>"),
        "stable": ("unchanged since <prior>", "stable compared with <prior>"),
    }
    return _pick(rng, *ways[one.change]) if one.change else ""


def _hedge_word(hedge: Hedge, rng: Generator) -> str:
    return _pick(rng, *(LIKELY if hedge == "likely" else POSSIBLE)) if hedge in ("likely", "possible") else ""


def _listed(names: Sequence[str], joint: str) -> str:
    if len(names) < 2:
        return names[0]
    return f"{' , '.join(names[:-1])} {joint} {names[-1]}"


def _pick(rng: Generator, *ways: str) -> str:
    return ways[int(rng.integers(len(ways)))]
