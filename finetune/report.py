"""Drafted reports on a cohort whose truth is known: perception, faithfulness and correctness, beside baselines and an oracle.

    larmor report-evaluate runs/heldout runs/report-scores --writer runs/report/model
    larmor report-evaluate runs/heldout runs/report-scores --writer runs/report/model --model runs/structures --model runs/lesions

With models a writer words what they find in the cohort's images. Without, the findings of an imitated reader: the truth, of which a
share is missed, invented, put on the other side or measured wrongly (`imitate`). Perception measures the models or the imitation,
faithfulness the writer, and correctness what both come to.
Writes scores.json, report.md and every report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng

from finetune.trust.intervals import Estimate, resampled, wilson
from foundation.cohort.claims import claims_of_truth, imagine_truth
from foundation.errors import InputError
from foundation.files import write_folder_aside
from foundation.findings import Finding, Measurement, Reading, SeriesSummary
from foundation.progress import progress
from foundation.reading.collection import read_manifest, read_study
from foundation.terms import TERMS
from foundation.training import software_versions
from heads._reading import find
from heads.adapters.folder import Backbones, LoadedModel, load_model
from heads.report import metrics
from heads.report.metrics import Counts, correctness, faithfulness, perception, total
from heads.report.phrasing import HISTORY, cohort_report
from heads.report.plan import Style, is_positive
from heads.report.verifier import split_sections
from heads.report.writing import Writer, load_writers, write_report

Figure = Callable[[Counts], float]
FIGURES: dict[str, Figure] = {
    "precision": lambda counts: counts.precision, "recall": lambda counts: counts.recall, "f1": lambda counts: counts.f1,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A study: what is true, what the models or the imitated reader say, and the report on that."""

    subject: str
    truth: Reading
    claims: Reading
    text: str
    writers: tuple[str, ...]


def evaluate_command(
    cohort: Path,
    out: Path,
    *,
    writers: Sequence[Path] = (),
    models: Sequence[Path] = (),
    backbones: Sequence[Path] = (),
    split: str | None = None,
    studies: int | None = None,
    noise: float | None = None,
    seed: int = 0,
) -> None:
    """The `larmor report-evaluate` command."""
    if noise is not None and models:
        raise InputError("--noise is of the imitated reader", got="models too", remedy="Leave out one of them.")
    if not models and (split is not None or studies is not None):
        raise InputError("--split and --studies are for models", got="no --model", remedy="Name one with --model.")
    noise = 0.1 if noise is None else noise
    if not 0 <= noise < 1:
        raise InputError("the reader's noise is a share", got=noise, remedy="Give a number from 0 to 1.")
    loaded, reasons = load_writers(writers, backbones)
    for reason in reasons:
        print(reason)
    if models:
        together = Backbones(backbones)
        readers = [load_model(folder, together) for folder in models]
        cases = found_cases(cohort, loaded, readers, split=split, studies=studies, seed=seed)
    else:
        readers = []
        cases = read_cases(cohort, loaded, noise=noise, seed=seed)
    scores = score(cases, seed=seed)
    if readers:
        scores["by finding"] = by_finding(cases)
    about = {
        "cohort": str(cohort),
        "reader": ", ".join(one.config.name for one in readers) or f"imitated, noise {noise:g}",
        "seed": seed,
        "writers": [one.name for one in loaded] or ["templates"],
    }
    table = as_markdown(scores, about)
    with write_folder_aside(out) as folder:
        (folder / "scores.json").write_text(
            json.dumps({**about, **scores, "versions": software_versions()}, indent=1) + "\n"
        )
        (folder / "report.md").write_text(table)
        (folder / "reports").mkdir()
        for case in cases:
            (folder / "reports" / f"{case.subject}.txt").write_text(case.text, encoding="utf-8")
    print(table)
    print(f"wrote {out}")


def read_truths(cohort: Path) -> list[Reading]:
    """The oracle's findings of every patient of a cohort."""
    files = sorted(cohort.glob("*/truth.json"))
    if not files:
        remedy = "Give a folder that larmor cohort wrote."
        raise InputError("a cohort has patients with a truth.json", got="none", remedy=remedy, file=cohort)
    return [claims_of_truth(json.loads(file.read_text()), subject=file.parent.name) for file in files]


def read_cases(cohort: Path, writers: Sequence[Writer], *, noise: float, seed: int) -> list[Case]:
    cases = []
    truths = read_truths(cohort)
    with progress(total=len(truths), label="reports", unit="report") as bar:
        for number, truth in enumerate(truths):
            claims = imitate(truth, noise, default_rng([seed, number]))
            draft = write_report(claims, writers, seed=seed + number)
            by = tuple(one.writer for one in draft.sentences if one.section in ("Findings", "Impression"))
            cases.append(Case(truth.subject, truth, claims, draft.text(), by))
            bar.update()
    return cases


def found_cases(
    cohort: Path,
    writers: Sequence[Writer],
    models: Sequence[LoadedModel],
    *,
    split: str | None = None,
    studies: int | None = None,
    seed: int = 0,
) -> list[Case]:
    """Reports on what models find in the images of a cohort's patients; of a `split` of its manifest, and the first so many."""
    collection = read_manifest(cohort / "manifest.jsonl")
    rows = [row for row in collection.rows if split is None or row.split == split][:studies]
    if not rows:
        remedy = "Name a split that its manifest has."
        raise InputError("a cohort to read has patients", got=f"none of split {split!r}", remedy=remedy, file=cohort)
    cases = []
    with progress(total=len(rows), label="reports", unit="report") as bar:
        for number, row in enumerate(rows):
            truth = claims_of_truth(json.loads((cohort / row.subject / "truth.json").read_text()), subject=row.subject)
            found = find(models, read_study(row, collection.root))
            claims = Reading(
                subject=row.subject,
                series=tuple(SeriesSummary.of(series) for series in found.study.series),
                findings=(*found.findings, *(one for one in truth.findings if one.origin == "record")),
            )
            draft = write_report(claims, writers, seed=seed + number, study=found.study)
            by = tuple(one.writer for one in draft.sentences if one.section in ("Findings", "Impression"))
            cases.append(Case(row.subject, truth, claims, draft.text(), by))
            bar.update()
    return cases


def by_finding(cases: Sequence[Case]) -> dict[str, dict[str, int]]:
    """For each abnormality: in how many studies it is there, was found, both, and whether any model looks for it at all."""
    counts = {}
    for name in sorted(TERMS):
        there, found = (
            [any(one.name == name and is_positive(one) for one in reading.findings) for reading in readings]
            for readings in ([case.truth for case in cases], [case.claims for case in cases])
        )
        asked = [any(one.name == name for one in case.claims.findings) for case in cases]
        both = [a and b for a, b in zip(there, found)]
        counts[name] = {"there": sum(there), "found": sum(found), "both": sum(both), "looked for": sum(asked)}
    return counts


def imitate(truth: Reading, noise: float, rng: Generator) -> Reading:
    """A reader who misses a share `noise` of what is there, invents a fifth as much, and now and then errs in side or size."""
    donors = _donors()
    findings: list[Finding] = []
    for one in truth.findings:
        chance = rng.random(3)
        if one.origin == "image" and is_positive(one):
            if chance[0] < noise:
                same = [other for other in truth.findings if other.name == one.name]
                if one is same[0]:
                    findings.append(_as_absent(one))
                continue
            if chance[1] < noise / 2 and one.side in ("right", "left"):
                side = "left" if one.side == "right" else "right"
                if not any(other.name == one.name and other.side == side for other in truth.findings):
                    one = one.model_copy(update={"side": side, "id": one.id.rpartition(".")[0] + f".{side}"})
            one = one.model_copy(update={"measurements": tuple(_blurred(m, noise, rng) for m in one.measurements)})
        elif one.presence == "absent" and chance[0] < noise / 5 and one.name in donors:
            one = donors[one.name]
        findings.append(one)
    return truth.model_copy(update={"findings": tuple(findings)})


@cache
def _donors() -> dict[str, Finding]:
    """One of each abnormality, to be invented."""
    imagined = (claims_of_truth(imagine_truth(default_rng(seed)), subject="") for seed in range(40))
    return {one.name: one for reading in imagined for one in reading.findings if is_positive(one)}


def _as_absent(one: Finding) -> Finding:
    return Finding(
        id=one.id,
        name=one.name,
        anatomy=one.anatomy,
        side="not_applicable",
        presence="absent",
        abnormal=True,
        source=one.source,
    )


def _blurred(measurement: Measurement, noise: float, rng: Generator) -> Measurement:
    if measurement.name == "number":
        return measurement.model_copy(
            update={"value": max(1.0, float(round(measurement.value * math.exp(noise * rng.normal()))))}
        )
    return measurement.model_copy(update={"value": measurement.value * math.exp(noise * rng.normal())})


# ------------------------------------------------------------------------------------------------ scores


def score(cases: Sequence[Case], *, seed: int = 0) -> dict[str, Any]:
    """Everything that is reported; intervals resample studies."""
    truths, claims, texts = ([getattr(case, name) for case in cases] for name in ("truth", "claims", "text"))
    parts = {
        "perception": [perception(c, t) for c, t in zip(claims, truths)],
        "perception, weighted": [perception(c, t, weighted=True) for c, t in zip(claims, truths)],
        "faithfulness": [faithfulness(text, c) for text, c in zip(texts, claims)],
        "perception of what is looked for": [
            perception(c, metrics.only(t, {one.name for one in c.findings})) for c, t in zip(claims, truths)
        ],
        "correctness": [correctness(text, t) for text, t in zip(texts, truths)],
        "correctness, weighted": [correctness(text, t, weighted=True) for text, t in zip(texts, truths)],
    }
    problems = [metrics.problem_kinds(text, c) for text, c in zip(texts, claims)]
    kinds = ("side", "negation", "number", "hedge", "severity", "anatomy", "prior", "record", "unsupported", "omission")
    numbers = [metrics.numbers_right(text, c) for text, c in zip(texts, claims)]
    urgent = [metrics.urgent_omissions(text, c) for text, c in zip(texts, claims)]
    rare = metrics.rare_survival(texts, truths)
    names = sorted(TERMS)
    oracle_texts = [cohort_report(t, Style(), default_rng([seed, i, 1])).text() for i, t in enumerate(truths)]
    without_prior = [case for case in cases if case.claims.prior is None]
    sentences = [writer for case in cases for writer in case.writers]
    return {
        "studies": len(cases),
        "figures": {
            name: {figure: _estimate(counts, of, seed) for figure, of in FIGURES.items()}
            for name, counts in parts.items()
        },
        "problems": {kind: sum(one.get(kind, 0) for one in problems) for kind in kinds},
        "invented priors": wilson(
            sum("prior" in metrics.problem_kinds(case.text, case.claims) for case in without_prior), len(without_prior)
        ).model_dump(),
        "numbers right": wilson(
            sum(right for _, right in numbers), sum(printed for printed, _ in numbers)
        ).model_dump(),
        "urgent claimed": sum(number for number, _ in urgent),
        "urgent omitted": sum(omitted for _, omitted in urgent),
        "distinct reports": metrics.distinct_ratio([_body(text) for text in texts]),
        "distinct truths": metrics.distinct_ratio([_claims_key(truth) for truth in truths]),
        "normal reports": metrics.normal_share(texts, names),
        "normal truths": metrics.normal_share(oracle_texts, names),
        "rare findings said": wilson(*rare).model_dump(),
        "sentences by writer": {name: sentences.count(name) for name in sorted(set(sentences))},
        "baselines": baselines(cases, seed=seed),
        "overlap": overlap(texts, oracle_texts),
    }


def _estimate(counts: Sequence[Counts], of: Figure, seed: int) -> dict[str, Any]:
    return resampled(list(counts), lambda drawn: of(total(drawn)), seed=seed).model_dump()


def baselines(cases: Sequence[Case], *, seed: int = 0) -> dict[str, Any]:
    """Correctness of reports that did not look at the study, or hardly: what any real report must beat.

    One report for all (the most frequent findings), that of another study drawn at random, of the study whose findings look most
    alike to the reader, and of the one whose record is most alike. The oracle's own report is the ceiling.
    """
    rng = default_rng([seed, 2])
    texts, truths = [case.text for case in cases], [case.truth for case in cases]
    shift = 1 + int(rng.integers(max(1, len(cases) - 1)))
    seen = np.array([_vector(case.claims) for case in cases])
    told = np.array([_history_vector(case.claims) for case in cases])
    write = partial(cohort_report, style=Style(), rng=default_rng([seed, 3]))
    oracle = [write(truth).text() for truth in truths]
    rows = {
        "constant": [_commonest(oracle, truths)] * len(cases),
        "shuffled images": [texts[(i + shift) % len(texts)] for i in range(len(texts))],
        "record only": [oracle[_nearest(told, i)] for i in range(len(cases))],
        "nearest neighbour": [oracle[_nearest(seen, i)] for i in range(len(cases))],
        "this writer": texts,
        "oracle": oracle,
    }
    return {
        name: {
            figure: _estimate([correctness(text, truth) for text, truth in zip(row, truths)], of, seed)
            for figure, of in FIGURES.items()
        }
        | {"distinct": metrics.distinct_ratio([_body(text) for text in row])}
        for name, row in rows.items()
    }


def _commonest(oracle: Sequence[str], truths: Sequence[Reading]) -> str:
    """The report of the study that has most in common with all the others."""
    sets = [{(one.name, one.side) for one in truth.findings if is_positive(one)} for truth in truths]
    # The mean F1 of each as everybody's report; of the first 60, which is plenty.
    likeness = [np.nanmean([_overlap_of(one, other) for other in sets]) for one in sets[:60]]
    return oracle[int(np.argmax(likeness))]


def _overlap_of(one: set, other: set) -> float:
    return 1.0 if not one and not other else 2 * len(one & other) / max(1, len(one) + len(other))


def _nearest(vectors: np.ndarray, index: int) -> int:
    """The other study whose vector lies nearest; the first of equals after it, so that nobody's is everybody's."""
    away = np.abs(vectors - vectors[index]).sum(axis=1).astype(float)
    away[index] = np.inf
    order = (np.arange(len(away)) - index) % len(away)
    return int(np.lexsort((order, away))[0])


def _vector(reading: Reading) -> np.ndarray:
    """What a reader sees, as numbers without words: log volumes of each finding, or log shift."""
    names = [name for name in sorted(TERMS) if name != "image artefact"]
    volumes = dict.fromkeys(names, 0.0)
    for one in reading.findings:
        if one.name in volumes and is_positive(one):
            volumes[one.name] += math.log1p(one.measured("volume") or one.measured("shift") or 1.0)
    return np.array(list(volumes.values()))


def _history_vector(reading: Reading) -> np.ndarray:
    there = {one.name for one in reading.findings if one.origin == "record"}
    return np.array([float(name in there) for name in HISTORY])


def overlap(texts: Sequence[str], references: Sequence[str]) -> dict[str, float | None]:
    """BLEU and ROUGE-L against another synthetic reader's words on the truth: for comparison with papers only."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu import corpus_bleu
    except ImportError:
        return {"bleu": None, "rougeL": None}
    ours, theirs = ([_body(text) for text in some] for some in (texts, references))
    scorer = RougeScorer(["rougeL"])
    rouge = [scorer.score(reference, text)["rougeL"].fmeasure for text, reference in zip(ours, theirs)]
    return {"bleu": float(corpus_bleu(ours, [theirs]).score) / 100, "rougeL": float(np.mean(rouge))}


def _body(text: str) -> str:
    """Findings and Impression alone: what the draft says of itself is the same everywhere."""
    parts = split_sections(text)
    return " ".join(" ".join(parts.get(name, "").split()) for name in ("Findings", "Impression"))


def _claims_key(reading: Reading) -> str:
    return reading.model_dump_json(include={"findings"})


def as_markdown(scores: dict[str, Any], about: dict[str, Any]) -> str:
    """Tables for people."""

    def cell(one: dict[str, Any]) -> str:
        return str(Estimate(**one))

    lines = [
        f"{scores['studies']} synthetic studies, {', '.join(about['writers'])}, reader: {about['reader']}",
        "",
    ]
    lines += ["| | precision | recall | F1 |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {' | '.join(cell(row[figure]) for figure in FIGURES)} |" for name, row in scores["figures"].items()
    ]
    lines += ["", "| correctness of | precision | recall | F1 | distinct |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {' | '.join(cell(row[figure]) for figure in FIGURES)} | {row['distinct']:.3f} |"
        for name, row in scores["baselines"].items()
    ]
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| objections: {kind} | {number} |" for kind, number in scores["problems"].items()]
    for name in ("invented priors", "numbers right", "rare findings said"):
        lines.append(f"| {name} | {cell(scores[name])} of {scores[name]['num']} |")
    lines.append(f"| urgent findings omitted | {scores['urgent omitted']} of {scores['urgent claimed']} claimed |")
    lines.append(
        f"| distinct reports, of the truths | {scores['distinct reports']:.3f}, {scores['distinct truths']:.3f} |"
    )
    lines.append(
        f"| reports without a finding, of the truths | {scores['normal reports']:.3f}, {scores['normal truths']:.3f} |"
    )
    lines.append(f"| sentences by writer | {', '.join(f'{k} {v}' for k, v in scores['sentences by writer'].items())} |")
    for name, value in scores["overlap"].items():
        lines.append(f"| {name} | {'not installed' if value is None else f'{value:.3f}'} |")
    if "by finding" in scores:
        lines += ["", "| studies in which it is | there | found | both | looked for |", "|---|---|---|---|---|"]
        lines += [f"| {name} | {' | '.join(map(str, row.values()))} |" for name, row in scores["by finding"].items()]
    return "\n".join(lines) + "\n"
