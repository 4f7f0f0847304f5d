"""Several ways of fitting the same task, over seeds, on the same test cases: a table with intervals, and a picture.

A figure is the mean over seeds; its interval is a bootstrap over cases of that mean, so it says how sure we are about these
seeds on other patients. Runs that are already in the folder are not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetune.baselines import FITTED
from finetune.config import FinetuneConfig
from finetune.evaluate import Interval, bootstrap, without_nan
from finetune.run import finetune, make_model, start_of
from finetune.samples import LabelledStudy, read_labelled
from foundation.config import load_config, parse_config
from foundation.errors import InputError
from foundation.figures import ScoreRow, plot_dice_table
from foundation.files import write_aside
from foundation.reading.collection import read_manifest
from heads.base import Head

Cases = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Contender:
    """A row of the table: what it is called and in which config keys it differs, written as on the command line."""

    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """A contender's figures, its mean training time, and its main figure minus the first contender's, paired by case; the same
    figures of each group of cases, where the comparison was asked for groups."""

    title: str
    figures: dict[str, Interval]
    training_seconds: float
    difference: Interval | None
    model_folder: Path
    by_group: dict[str, dict[str, Interval]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    task: str
    main_figure: str
    num_labels: int
    num_cases: int
    seeds: tuple[int, ...]
    scores: tuple[Score, ...]

    def table(self) -> str:
        """Markdown: one row per contender."""
        lines = [
            f"**{self.task}**, {self.num_labels} labels, {self.num_cases} test studies, seeds {', '.join(map(str, self.seeds))}; "
            "mean over seeds [bootstrap 95 % interval over studies].",
            "",
            f"| fitted how | {self.main_figure} | minus the first row | training, s |",
            "|---|---|---|---|",
        ]
        for score in self.scores:
            difference = "" if score.difference is None else str(score.difference)
            lines.append(
                f"| {score.title} | {score.figures[self.main_figure]} | {difference} | {score.training_seconds:.0f} |"
            )
        return "\n".join(lines)


def compare(
    config: FinetuneConfig,
    contenders: Sequence[Contender],
    folder: Path,
    *,
    seeds: Sequence[int] = (0,),
    note: str = "",
    test: list[LabelledStudy] | None = None,
    by: str | None = None,
) -> Comparison:
    """Run every contender with every seed; write comparison.md, comparison.json and comparison.png into `folder`.

    `note` is printed under the table, for example that its cohort is synthetic. `test` may be given when several comparisons
    share it. `by` is the key of a row's targets whose values are the groups, for example the family of patients.
    """
    head = head_of(config)
    test = read_test_studies(config) if test is None else test
    data = read_manifest(config.data.manifest).fingerprint()
    measured: dict[str, list[dict[str, Any]]] = {contender.title: [] for contender in contenders}
    for seed in seeds:
        for contender in contenders:
            changes = {"folder": str(place_of(folder, contender, seed)), "training.seed": seed}
            run = _changed(config, {**contender.changes, **changes})
            if measured[contender.title] and _nothing_is_drawn(run):
                measured[contender.title].append(measured[contender.title][0])
                continue
            content = _finished(run, data)
            if content is None:
                finetune(run, test_studies=test)
                content = _finished(run, data)
                assert content is not None
            measured[contender.title].append(content)
    runs: dict[str, list[Cases]] = {title: [one["cases"] for one in contents] for title, contents in measured.items()}
    first = _pooled(runs[contenders[0].title])
    main_figure = next(iter(head.summarise([case[0] for case in first])))
    scores = []
    for contender in contenders:
        own = _pooled(runs[contender.title])
        difference = None
        if contender is not contenders[0]:
            pairs = list(zip(own, first, strict=True))
            difference = bootstrap(pairs, lambda pairs: _difference(pairs, head, main_figure))[main_figure]
        scores.append(
            Score(
                contender.title,
                bootstrap(own, lambda cases: _mean_over_seeds(cases, head)),
                float(np.mean([one["training_seconds"] for one in measured[contender.title]])),
                difference,
                place_of(folder, contender, seeds[0]) / "model",
                {
                    group: bootstrap(
                        _pooled([_only(cases, names) for cases in runs[contender.title]]),
                        lambda cases: _mean_over_seeds(cases, head),
                    )
                    for group, names in _groups(test, by).items()
                },
            )
        )
    num_labels = measured[contenders[0].title][0]["num_labels"]
    comparison = Comparison(config.name, main_figure, num_labels, len(test), tuple(seeds), tuple(scores))
    _save(comparison, runs, folder, note)
    return comparison


def _nothing_is_drawn(run: FinetuneConfig) -> bool:
    """Whether every seed gives the same: no gradient, and no choice of rows."""
    return run.recipe in FITTED and run.data.num_labels is None and not run.data.hold_out


def read_test_studies(config: FinetuneConfig) -> list[LabelledStudy]:
    """The studies that every contender is scored on."""
    collection = read_manifest(config.data.manifest)
    rows = collection.split(config.data.test_split)
    if not rows:
        raise InputError(
            "a comparison has test studies", got="none", remedy="Name another data.test_split.", file=collection.path
        )
    return read_labelled(collection, rows, head_of(config), config.data.spacing_mm, label="read test studies")


def head_of(config: FinetuneConfig) -> Head:
    return make_model(config.model_copy(update={"recipe": "scratch"})).head


def place_of(folder: Path, contender: Contender, seed: int) -> Path:
    return folder / f"{contender.title.replace(' ', '-').replace(',', '')}-seed{seed}"


def _changed(config: FinetuneConfig, changes: Mapping[str, Any]) -> FinetuneConfig:
    values = config.model_dump(mode="json")
    for key, value in changes.items():
        *parents, leaf = key.split(".")
        group = values
        for parent in parents:
            group = group[parent]
        group[leaf] = value
    return parse_config(FinetuneConfig, values)


def _finished(run: FinetuneConfig, data: str) -> dict[str, Any] | None:
    """What an earlier run of exactly this config, from this start and on this collection, measured, if it finished."""
    metrics, config = run.folder / "metrics.json", run.folder / "config.yaml"
    if not (metrics.exists() and config.exists()):
        return None
    if _without_places(load_config(FinetuneConfig, config)) != _without_places(run):
        return None
    content = json.loads(metrics.read_text())
    return content if (content["data"], content["start"]) == (data, start_of(run)) else None


def _without_places(config: FinetuneConfig) -> FinetuneConfig:
    """Data and start are known by their hashes: elsewhere they are the same, and other ones may lie in the same place."""
    data = config.data.model_copy(update={"manifest": Path()})
    return config.model_copy(update={"folder": Path(), "encoder": None, "data": data})


def _groups(studies: Sequence[LabelledStudy], by: str | None) -> dict[str, set[str]]:
    """The cases' names under each value of a target."""
    groups: dict[str, set[str]] = {}
    for study in studies if by is not None else ():
        if by not in study.targets:
            raise InputError(
                "every test study has a group", got=f"{study.row.name} without '{by}'", remedy="Add it to its targets."
            )
        groups.setdefault(str(study.targets[by]), set()).add(study.row.name)
    return groups


def _only(cases: Cases, names: set[str]) -> Cases:
    return {name: case for name, case in cases.items() if name in names}


def _pooled(seeds: Sequence[Cases]) -> list[tuple[dict[str, float], ...]]:
    """Per case, what each seed measured; null in the file is not a number here."""

    def numbers(case: Mapping[str, Any]) -> dict[str, float]:
        return {name: float("nan") if value is None else value for name, value in case.items()}

    return [tuple(numbers(cases[name]) for cases in seeds) for name in sorted(seeds[0])]


def _mean_over_seeds(cases: Sequence[tuple[dict[str, float], ...]], head: Head) -> dict[str, float]:
    summaries = [head.summarise(one_seed) for one_seed in zip(*cases, strict=True)]
    return {name: float(np.mean([summary[name] for summary in summaries])) for name in summaries[0]}


def _difference(pairs: Sequence[tuple[Any, Any]], head: Head, main: str) -> dict[str, float]:
    ours, theirs = zip(*pairs, strict=True)
    return {main: _mean_over_seeds(ours, head)[main] - _mean_over_seeds(theirs, head)[main]}


def _save(comparison: Comparison, runs: Mapping[str, list[Cases]], folder: Path, note: str) -> None:
    with write_aside(folder / "comparison.md") as aside:
        aside.write_text(f"{comparison.table()}\n\n{note}\n")
    with write_aside(folder / "comparison.json") as aside:
        aside.write_text(json.dumps(without_nan({**asdict(comparison), "note": note}), indent=2, default=str) + "\n")
    rows = []
    for score in comparison.scores:
        interval = score.figures[comparison.main_figure]
        own = _pooled(runs[score.title])
        values = [[seed[comparison.main_figure] for seed in case] for case in own if comparison.main_figure in case[0]]
        cases = tuple(float(np.mean(value)) for value in values)
        rows.append(ScoreRow(score.title, interval.mean, interval.low, interval.high, cases))
    plot_dice_table(folder / "comparison.png", rows, score=comparison.main_figure)
