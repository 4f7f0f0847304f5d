"""How many labels a task needs, and what pretraining is worth at each number: every recipe, every label count, every seed.

    larmor fewshot configs/finetune/hippocampus.yaml --labels 5,10,20,50,all --seeds 3 --set encoder=runs/pretrain/model

With --record the rows are one recipe without the patient's record and with it, so that what the record adds to this very task is
the difference, paired by test study:

    larmor fewshot configs/finetune/TASK.yaml --labels all --seeds 3 --record --set head.record={}

Writes into the config's folder: a folder for each cell of the grid (its config reproduces it), `fewshot.md` with the table and the
command of each cell, `fewshot.json`, and the curve with its bands. Stopped, it continues; cells that are there are not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from finetune.baselines import NETWORKS
from finetune.compare import Comparison, Contender, compare, place_of, read_test_studies
from finetune.config import FinetuneConfig, Recipe
from finetune.evaluate import without_nan
from finetune.run import make_model
from foundation.config import load_config
from foundation.errors import InputError, did_you_mean
from foundation.figures import Band, plot_bands
from foundation.files import write_aside

TITLES: dict[Recipe, str] = {
    "scratch": "from scratch",
    "full": "all weights",
    "lora": "LoRA recipe",
    "frozen": "frozen encoder",
    "dynunet": "DynUNet from scratch",
    "densenet": "DenseNet from scratch",
    "linear": "linear, frozen features",
    "measured": "linear, measured volumes",
    "atlas": "atlas",
    "threshold": "intensity threshold",
    "majority": "majority or mean",
}
LONGER = 1.5  # other networks are quicker at a step, and get at least our wall time
ALL = "all"


def fewshot_command(
    config: Path, *, overrides: Sequence[str], labels: str, seeds: int, rows: str | None, record: bool = False
) -> None:
    """The `larmor fewshot` command."""
    counts = [_count(text) for text in labels.split(",")]
    if seeds < 1:
        raise InputError("a result has a seed", got=seeds, remedy="Use --seeds 3.")
    task = load_config(FinetuneConfig, config, overrides)
    print(f"\n{fewshot(task, counts, range(seeds), rows=_recipes(rows), by_record=record)}")


def _with_and_without(config: FinetuneConfig, recipes: Sequence[Recipe] | None) -> list[Contender]:
    """One recipe twice. The folder of each says what it is."""
    (recipe, *others) = recipes or [config.recipe]
    if others:
        raise InputError("--record compares one recipe", got=", ".join([recipe, *others]), remedy="Name one in --rows.")
    if getattr(config.head, "record", None) is None:
        remedy = "Add --set head.record={}; heads for whole studies take one."
        raise InputError("the task's head reads records", got=f"head.kind={config.head.kind} without", remedy=remedy)
    one = contender_of(config, recipe)
    return [
        Contender(f"{one.title}, images alone", {**one.changes, "head.record": None}),
        Contender(f"{one.title}, with the record", one.changes),
    ]


def _count(text: str) -> int | None:
    if text.strip() == ALL:
        return None
    if not text.strip().isdigit() or int(text) < 1:
        raise InputError("labels are numbers, or 'all'", got=repr(text), remedy="Use --labels 5,10,20,all.")
    return int(text)


def _recipes(text: str | None) -> list[Recipe] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in get_args(Recipe):
            raise InputError("a row is a recipe", got=repr(name), remedy=did_you_mean(name, get_args(Recipe)))
    return names  # pyright: ignore[reportReturnType]


def fewshot(
    config: FinetuneConfig,
    counts: Sequence[int | None],
    seeds: Sequence[int],
    *,
    rows: Sequence[Recipe] | None = None,
    by_record: bool = False,
    note: str = "",
) -> str:
    """Run the grid and return its table; `rows` None takes every recipe that can do this task with what the config names, or the
    config's own where it is `by_record`: once without the record and once with it."""
    if by_record:
        contenders = _with_and_without(config, rows)
    else:
        contenders = rows_of(config) if rows is None else [contender_of(config, recipe) for recipe in rows]
    folder, test = config.folder, read_test_studies(config)
    found: dict[str, Comparison] = {}
    for count in counts:
        cell = config.model_copy(update={"data": config.data.model_copy(update={"num_labels": count})})
        name = ALL if count is None else str(count)
        found[name] = compare(cell, contenders, folder / f"labels-{name}", seeds=seeds, note=note, test=test)
    return _save(config, found, contenders, folder, note)


def rows_of(config: FinetuneConfig) -> list[Contender]:
    """Every recipe that can do the task, from scratch first."""
    contenders = []
    for recipe in TITLES:
        try:
            make_model(config.model_copy(update={"recipe": recipe}))
        except InputError:
            continue
        contenders.append(contender_of(config, recipe))
    return contenders


def contender_of(config: FinetuneConfig, recipe: Recipe) -> Contender:
    steps = round(LONGER * config.training.steps) if recipe in NETWORKS else config.training.steps
    return Contender(TITLES[recipe], {"recipe": recipe, "training.steps": steps})


def _save(
    config: FinetuneConfig, found: dict[str, Comparison], contenders: Sequence[Contender], folder: Path, note: str
) -> str:
    first = next(iter(found.values()))
    seeds = ", ".join(map(str, first.seeds))
    table = [
        f"**{config.name}**: {first.main_figure} on {first.num_cases} test studies, seeds {seeds}; "
        "mean over seeds [bootstrap 95 % interval over studies].",
        "",
        f"| fitted how | {' | '.join(f'{one.num_labels} labels' for one in found.values())} |",
        f"|---|{'---|' * len(found)}",
    ]
    for row, contender in enumerate(contenders):
        cells = [str(one.scores[row].figures[first.main_figure]) for one in found.values()]
        table.append(f"| {contender.title} | {' | '.join(cells)} |")
        if "head.record" in contenders[0].changes and row:
            cells = [str(one.scores[row].difference) for one in found.values()]
            table.append(f"| {contender.title} minus {contenders[0].title} | {' | '.join(cells)} |")
    commands = [
        f"- {contender.title}, {one.num_labels} labels, seed {seed}: `accelerate launch -m finetune "
        f"{place_of(folder / f'labels-{name}', contender, seed) / 'config.yaml'} folder=NEW`"
        for contender in contenders
        for name, one in found.items()
        for seed in first.seeds
    ]
    text = "\n".join([*table, *(["", note] if note else [])])
    with write_aside(folder / "fewshot.md") as aside:
        aside.write_text("\n".join([text, "", "Each cell again:", "", *commands, ""]))
    with write_aside(folder / "fewshot.json") as aside:
        content = {name: asdict(one) for name, one in found.items()}
        aside.write_text(json.dumps(without_nan(content), indent=2, default=str) + "\n")
    bands = []
    for row, contender in enumerate(contenders):
        points = [(one.num_labels, one.scores[row].figures[first.main_figure]) for one in found.values()]
        bands.append(Band(contender.title, tuple((float(n), one.mean, one.low, one.high) for n, one in points)))
    plot_bands(folder / "fewshot.png", bands, x="labelled studies", y=first.main_figure)
    for name in ("fewshot.md", "fewshot.json", "fewshot.png"):
        print(f"wrote {folder / name}")
    return text
