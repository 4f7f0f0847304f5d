"""How good a task model is on studies it was not fitted on: each case, the mean, and a bootstrap 95 % interval.

larmor evaluate segmentation collection/manifest.jsonl out --model runs/finetune/model --trust all

With --trust also what that is worth: calibration, subgroups, benign changes, artefacts, scanners and more (`finetune/trust`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from finetune.samples import LabelledStudy, progress_over, read_labelled
from foundation.checkpoint import read_about
from foundation.config import parse_config
from foundation.errors import InputError, did_you_mean
from foundation.figures import ScoreRow, plot_dice_table
from foundation.files import write_aside
from foundation.reading.collection import read_manifest
from foundation.training import software_versions
from heads.adapters.folder import Backbones, load_model
from heads.base import TaskModel, default_models

RESAMPLES = 1000

Item = TypeVar("Item")


@dataclass(frozen=True)
class Interval:
    """A figure over cases and where 95 % of its bootstrap resamples lie."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Evaluation:
    """`cases` maps 'subject' or 'subject/session' to what was measured there; `figures` summarises them."""

    cases: dict[str, dict[str, float]]
    figures: dict[str, Interval]


def evaluate_studies(
    model: TaskModel,
    studies: Sequence[LabelledStudy],
    *,
    label: str = "evaluate",
    watch: Callable[[LabelledStudy, Tensor, dict[str, float]], None] | None = None,
) -> Evaluation:
    """Run the model on whole studies and score each on the reference series' own voxels; `watch` sees each output and its score."""
    cases = {}
    for study in progress_over(studies, label):
        output = model.output_of(study.prepared, study.record_for(model.head))
        case = cases[study.row.name] = model.head.score_case(output, study.prepared, study.labels, study.targets)
        if watch is not None:
            watch(study, output, case)
    return Evaluation(cases, bootstrap(list(cases.values()), model.head.summarise))


def bootstrap(
    cases: Sequence[Item], summarise: Callable[[Sequence[Item]], dict[str, float]], *, seed: int = 0
) -> dict[str, Interval]:
    """Percentile bootstrap over cases (Efron 1979): resample cases with replacement, summarise, take the middle 95 %."""
    rng = np.random.default_rng(seed)
    whole = summarise(cases)
    drawn = [summarise([cases[i] for i in rng.integers(len(cases), size=len(cases))]) for _ in range(RESAMPLES)]
    figures = {}
    for name, value in whole.items():
        values = np.asarray([one[name] for one in drawn])
        values = values[np.isfinite(values)]
        low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
        figures[name] = Interval(value, float(low), float(high))
    return figures


def save_evaluation(evaluation: Evaluation, folder: Path, *, about: dict[str, object]) -> list[Path]:
    """Write metrics.json (figures that do not exist are null) and a picture; return their paths."""
    metrics = folder / "metrics.json"
    content = {
        **about,
        "num_cases": len(evaluation.cases),
        "interval": f"percentile bootstrap over cases, {RESAMPLES} resamples, 95 %",
        "figures": {name: asdict(interval) for name, interval in evaluation.figures.items()},
        "cases": evaluation.cases,
        "versions": software_versions(),
    }
    with write_aside(metrics) as aside:
        aside.write_text(json.dumps(without_nan(content), indent=2, allow_nan=False) + "\n")
    written = [metrics]
    each = next(iter(evaluation.cases.values()))  # some figures are of all cases together
    shown = [name for name in evaluation.figures if name.startswith("dice") and name in each]
    if shown:
        picture = folder / "dice.png"
        rows = []
        for name in shown:
            interval = evaluation.figures[name]
            values = tuple(case[name] for case in evaluation.cases.values())
            rows.append(ScoreRow(name, interval.mean, interval.low, interval.high, values))
        plot_dice_table(picture, rows)
        written.append(picture)
    return written


def evaluate_to_folder(
    task: str,
    manifest: Path,
    out: Path,
    model: Path | None,
    split: str,
    trust: str = "",
    backbones: Sequence[Path] = (),
    **options: Any,
) -> None:
    """The `larmor evaluate` command. `task` is the kind of head or the name of the task, as a check that it is the one meant;
    `trust` names the parts of `finetune/trust` to measure and `options` the rest of its `TrustConfig`."""
    from finetune.trust.leaks import find_leaks
    from finetune.trust.ood import Reference
    from finetune.trust.report import Evaluated, TrustConfig, Watch, measure_trust
    from finetune.trust.subgroups import check_columns

    asked = parse_config(TrustConfig, {"parts": trust} | {k: v for k, v in options.items() if v is not None})
    if model is None:
        model = _only_default(task)
    loaded = load_model(model, Backbones(backbones))
    task_model, config = loaded.model, loaded.config
    if task not in (config.head.kind, config.name):
        raise InputError(
            "the model does the task",
            got=f"'{task}' for a model of '{config.name}' ({config.head.kind})",
            remedy=did_you_mean(task, (config.head.kind, config.name)),
            file=model,
        )
    collection = read_manifest(manifest)
    rows = collection.split(split)
    if not rows:
        raise InputError(
            "the split has studies", got=f"none in '{split}'", remedy="Name another with --split.", file=manifest
        )
    check_columns(rows, asked.by)
    for path in asked.ood:  # what is wrong with them is better said now than after the evaluation
        read_manifest(path)
    provenance = read_about(model)["provenance"]
    pretrained_on = asked.pretrained_on if "leaks" in asked.parts else None
    leaks = find_leaks(rows, collection.root, provenance, model, pretrained_on)
    if not asked.allow_overlap:
        leaks.refuse(manifest)
    studies = read_labelled(collection, rows, task_model.head, config.spacing_mm, label="read")
    folder = out / "trust"
    watch = Watch(task_model, asked, folder, mirror=_may_be_mirrored(provenance))
    evaluation = evaluate_studies(task_model, studies, watch=watch)
    about: dict[str, object] = {
        "task": config.name,
        "model": str(model),
        "weights_sha256": loaded.weights_sha256,
        "manifest": str(manifest),
        "split": split,
        "data": collection.fingerprint(),
    }
    temperatures = None if config.calibration is None else config.calibration.temperatures
    settings = {"weights": loaded.weights_sha256, "temperatures": temperatures, "data": about["data"], "split": split}
    evaluated = Evaluated(
        task_model,
        config,
        Reference.load(model, loaded.weights_sha256),
        studies,
        watch.seen,
        watch.quality,
        folder,
        settings,
    )
    report, pictured = measure_trust(evaluated, asked, leaks)
    written = save_evaluation(evaluation, out, about={**about, "trust": report.model_dump(mode="json")})
    for name, interval in evaluation.figures.items():
        print(f"{name:40s} {interval}")
    for line in report.lines():
        print(line)
    for path in (*written, *pictured):
        print(f"wrote {path}")


def _may_be_mirrored(provenance: dict[str, Any]) -> bool:
    """Whether the task's training says that its answer does not depend on the side."""
    return bool(provenance.get("config", {}).get("augment", {}).get("mirror"))


def _only_default(task: str) -> Path:
    fitting = [folder for folder in default_models() if task in (folder.name, load_model(folder).config.head.kind)]
    if len(fitting) != 1:
        raise InputError(
            "there is one model for the task", got=f"{len(fitting)} for '{task}'", remedy="Name it with --model DIR."
        )
    return fitting[0]


def without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
