"""Three tasks of the synthetic cohort, each with its baselines and what no model can beat: `python -m examples.cohort_tasks OUT`.

- `diagnoses`: six diseases, any number of them in one patient, from four contrasts or what there is of them.
- `lesion`: whatever disease puts into a head, outlined and counted.
- `quality`: which artefact spoils the reference series, and how badly.

Every task is scored on patients of the usual family and on some of the one held apart, which has other fields, times, lesion
shapes and thicker slices. The start is the backbone that comes with Larmor, which has seen synthetic T1w heads of other anatomy.
Nothing here is evidence about people, but for some columns: with `--plaques FOLDER`, the lesions of real patients with
multiple sclerosis whose images lie there (examples/plaques.py), outlined by what was fitted on the synthetic ones. Stopped, it
continues.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.plaques import plaque_rows
from examples.real import CONFIGS
from finetune.compare import Comparison, compare, head_of, read_test_studies
from finetune.config import FinetuneConfig, Recipe
from finetune.evaluate import Interval, bootstrap, without_nan
from finetune.fewshot import contender_of
from finetune.linear import LinearMap
from foundation.cohort.oracle import seen_twice
from foundation.cohort.patient import CohortConfig
from foundation.cohort.writing import write_cohort
from foundation.config import load_config
from foundation.errors import InputError
from foundation.files import write_aside
from foundation.progress import progress
from foundation.reading.collection import Collection, Row, read_manifest, write_manifest
from heads import classification, detection
from heads.base import EMBEDDED

CONTRASTS = ("T1w", "FLAIR", "T2w", "DWI")
SPACING_MM = 2.0
START = EMBEDDED / "brain-structures"
FAMILY = "family"  # the target that says which family a patient is of
NUM_SUBJECTS = {"usual": 200, "shifted": 60}
SPLITS = {"usual": {"train": 0.7, "test": 0.3}, "shifted": {"test": 1.0}}
REAL = "real plaques"  # the family of people
NOTE = "Synthetic patients, no evidence about people."

Bounds = dict[str, dict[str, Interval]]  # by family, then by figure


@dataclass(frozen=True)
class Task:
    """`rows` of a table; `overrides` of the config that lies in configs/finetune; `figures` that are shown; `bound` gives what no
    model can be expected to beat on the test rows, and `bound_words` say what that is."""

    rows: tuple[Recipe, ...]
    overrides: tuple[str, ...]
    figures: tuple[str, ...]
    bound: Callable[[FinetuneConfig, Collection], Bounds] | None
    bound_words: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--plaques", type=Path, metavar="FOLDER", help="real patients, as further tests of `lesion`")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="what else differs in the configs")
    arguments = parser.parse_args()
    began = time.perf_counter()
    try:
        manifest = write_families(arguments.out / "cohort")
        for name in arguments.only:
            known = manifest
            if name == "lesion" and arguments.plaques is not None:
                known = with_plaques(manifest, arguments.plaques)
            print(f"\n{measure(name, known, arguments.out / name, arguments.seeds, arguments.set)}\n")
    except InputError as error:
        print(f"cohort_tasks: {error}", file=sys.stderr)
        return 2
    print(f"Done in {(time.perf_counter() - began) / 60:.0f} minutes; everything is in {arguments.out}.")
    return 0


def cohort_of(family: str) -> CohortConfig:
    return CohortConfig.model_validate(
        {"seed": 31, "family": family, "contrasts": CONTRASTS, "splits": SPLITS[family], "spacing_mm": SPACING_MM}
    )


def write_families(folder: Path) -> Path:
    """Both families in one collection, whose manifest says which patient is of which."""
    rows: list[Row] = []
    for family, number in NUM_SUBJECTS.items():
        collection = read_manifest(write_cohort(folder / family, cohort_of(family), number))
        for row in collection.rows:
            moved = {
                "subject": f"{family}-{row.subject}",  # each family counts its patients from 0
                "series": tuple(one.model_copy(update={"path": f"{family}/{one.path}"}) for one in row.series),
                "mask": f"{family}/{row.mask}",
                "targets": {**row.targets, FAMILY: family},
                "ehr": None,
            }
            rows.append(row.model_copy(update=moved))
    write_manifest(folder / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"


def with_plaques(manifest: Path, source: Path) -> Path:
    """The same collection with real patients in its test split."""
    rows = [*read_manifest(manifest).rows, *plaque_rows(source, manifest.parent, family=REAL)]
    extended = manifest.with_name("manifest-plaques.jsonl")
    write_manifest(extended, rows)
    return extended


def measure(name: str, manifest: Path, folder: Path, seeds: Sequence[int], overrides: Sequence[str]) -> str:
    """Fit every row of a task's table with every seed; the table, which is also written beside them."""
    task = TASKS[name]
    config = load_config(
        FinetuneConfig,
        CONFIGS / "finetune" / f"{name}.yaml",
        [f"folder={folder}", f"encoder={START}", f"data.manifest={manifest}", *task.overrides, *overrides],
    )
    contenders = [contender_of(config, recipe) for recipe in task.rows]
    test = read_test_studies(config)
    found = compare(config, contenders, folder, seeds=seeds, note=NOTE, test=test, by=FAMILY)
    bounds = {} if task.bound is None else task.bound(config, read_manifest(manifest))
    text = table(found, task, bounds)
    with write_aside(folder / "families.md") as aside:
        aside.write_text(text + "\n")
    with write_aside(folder / "bounds.json") as aside:
        plain = {family: {key: vars(one) for key, one in figures.items()} for family, figures in bounds.items()}
        aside.write_text(json.dumps(without_nan(plain), indent=1) + "\n")
    return f"{text}\n\nwrote {folder / 'families.md'}"


def table(found: Comparison, task: Task, bounds: Bounds) -> str:
    """Markdown: a row for each way of fitting and the bound, a column for each figure of each family."""
    families = list(found.scores[0].by_group)
    columns = [(family, figure) for figure in task.figures for family in families]
    lines = [
        f"**{found.task}**, {found.num_labels} labels, {found.num_cases} test studies, seeds {', '.join(map(str, found.seeds))}; "
        f"mean over seeds [bootstrap 95 % interval over studies]. {NOTE}",
        "",
        f"| fitted how | {' | '.join(f'{figure}, {family}' for family, figure in columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(
            f"| {one.title} | {' | '.join(str(one.by_group[family][figure]) for family, figure in columns)} |"
            for one in found.scores
        ),
    ]
    if bounds:
        cells = [str(bounds.get(family, {}).get(figure, "")) for family, figure in columns]
        lines.append(f"| {task.bound_words} | {' | '.join(cells)} |")
    else:
        lines += ["", f"Bound: {task.bound_words}."]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ what no model can beat


def volumes_bound(config: FinetuneConfig, collection: Collection) -> Bounds:
    """Logistic regression on the true volume of every structure and lesion, as shares of the intracranial one: what a perfect
    segmentation would know. Fitted on the training rows, scored as the head scores."""
    assert isinstance(config.head, classification.Config)
    rows, tested = collection.split("train"), collection.split("test")
    names = config.head.classes
    known = [np.array([float(row.targets[name]) for row in rows]) for name in names]  # pyright: ignore[reportArgumentType]
    fitted = LinearMap.fit(_volumes(rows), [(truth, True) for truth in known])
    cases: dict[str, list[dict[str, float]]] = {}
    for row, features in zip(tested, _volumes(tested), strict=True):
        case = {f"says {name}": float(value) for name, value in zip(names, fitted(features), strict=True)}
        case |= {f"truth {name}": float(row.targets[name]) for name in names}  # pyright: ignore[reportArgumentType]
        cases.setdefault(str(row.targets[FAMILY]), []).append(case)
    head = head_of(config)
    return {family: bootstrap(own, head.summarise) for family, own in cases.items()}


def _volumes(rows: Sequence[Row]) -> np.ndarray:
    names = sorted(name for name in rows[0].targets if name.endswith("_ml") and name != "intracranial_ml")
    shares = [[row.targets[name] / row.targets["intracranial_ml"] for name in names] for row in rows]  # pyright: ignore
    return np.log(1e-6 + np.array(shares, float))


def grids_bound(config: FinetuneConfig, collection: Collection) -> Bounds:
    """Every test head against itself made on another grid, half a voxel apart, at the cohort's spacing."""
    head = head_of(config)
    assert isinstance(head, detection.Head)
    tested = [row for row in collection.split("test") if row.targets[FAMILY] in NUM_SUBJECTS]
    cases: dict[str, list[dict[str, float]]] = {}
    with progress(total=len(tested), label="heads on another grid", unit="head") as bar:
        for row in tested:
            family = str(row.targets[FAMILY])
            labels, again, affine = seen_twice(cohort_of(family), int(row.subject.rpartition("-")[2]))
            scores = head.score_masks(head.known_part(again), head.known_part(labels), affine)
            cases.setdefault(family, []).append(scores)
            bar.update()
    return {family: bootstrap(own, head.summarise) for family, own in cases.items()}


SHORT = ("training.warmup_steps=20", "training.ema_decay=0.98", "training.checkpoint_every=50")
WHOLE = ("data.spacing_mm=[4.0,4.0,4.0]", "training.batch_size=4", "training.steps=200", *SHORT)
TASKS = {
    "diagnoses": Task(
        ("majority", "linear", "measured", "scratch", "frozen", "lora", "full", "densenet"),
        WHOLE,
        ("auroc", "balanced accuracy"),
        volumes_bound,
        "linear on the true volumes",
    ),
    "lesion": Task(
        ("threshold", "scratch", "lora", "full", "dynunet"),
        ("data.spacing_mm=[4.0,4.0,4.0]", "training.steps=250", *SHORT),
        ("dice where there is lesion", "F1 lesion", "count error lesion"),
        grids_bound,
        "the same heads on another grid",
    ),
    "quality": Task(
        ("majority", "linear", "scratch", "frozen", "lora", "full", "densenet"),
        WHOLE,
        ("severity error", "auroc", "balanced accuracy"),
        None,
        "the truth is drawn and not estimated, so that nothing but the images' noise stands between a reader and an error of 0",
    ),
}


if __name__ == "__main__":
    sys.exit(main())
