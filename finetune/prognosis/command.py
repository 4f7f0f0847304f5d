"""The `larmor prognosis` command: one table with every row, three pictures, and everything as JSON.

larmor prognosis configs/finetune/prognosis.yaml --measured-by runs/lesions/model
larmor prognosis configs/prognosis/ucsf-pdgm.yaml --repeats 5
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import yaml

from finetune.config import FinetuneConfig
from finetune.evaluate import RESAMPLES, without_nan
from finetune.prognosis import pictures
from finetune.prognosis.patients import Patients, TableTrialConfig, from_table
from finetune.prognosis.rows import ROWS, Row, Scored, Trial, run_trial
from foundation.config import load_config
from foundation.encoder import EncoderConfig
from foundation.errors import InputError, did_you_mean
from foundation.files import write_aside
from foundation.training import software_versions
from heads import prognosis

SHOWN = ("concordance", "Uno's C", "integrated Brier", "Brier skill")
PICTURED = ("both, deep", "both, linear", "record only, linear", "age and sex")  # the first that there is


def prognosis_command(
    config: Path,
    *,
    overrides: Sequence[str] = (),
    folds: int = 5,
    repeats: int = 1,
    seed: int = 0,
    rows: str | None = None,
    measured_by: Sequence[Path] = (),
    measured: Sequence[str] = (),
    picture: str | None = None,
) -> None:
    """Fit and measure every row, print the table, write it and its pictures into the config's folder."""
    if folds < 2 or repeats < 1:
        raise InputError(
            "there are two folds and one repetition at least", got=f"{folds}, {repeats}", remedy="Use --folds 5."
        )
    chosen = _rows(rows)
    patients, head, folder, name, caution = _gather(config, overrides, measured_by, measured)
    trial = run_trial(patients, head, rows=chosen, folds=folds, repeats=repeats, seed=seed, kept=folder / "cells")
    shown = picture or next((title for title in PICTURED if title in trial.said), chosen[0].title)
    if shown not in trial.said:
        raise InputError("a picture is of a row", got=repr(shown), remedy=did_you_mean(shown, trial.said))
    written = [folder / "prognosis.md", folder / "prognosis.json", *pictures.draw(trial, shown, folder)]
    text = "\n".join([table(trial, name), *([] if caution is None else ["", f"Caution: {caution}"])])
    with write_aside(written[0]) as aside:
        aside.write_text(text + "\n")
    with write_aside(written[1]) as aside:
        aside.write_text(json.dumps(without_nan(_as_json(trial, name)), indent=1) + "\n")
    print(f"\n{text}\n")
    for path in written:
        print(f"wrote {path}")


def _gather(
    config: Path, overrides: Sequence[str], measured_by: Sequence[Path], measured: Sequence[str]
) -> tuple[Patients, prognosis.Config, Path, str, str | None]:
    """The patients of a fine-tuning config, or those of one with a table."""
    if _has_table(config):
        if measured_by or measured:
            remedy = "Name its columns in table.image."
            raise InputError("images are measured where there are images", got="a table", remedy=remedy)
        task = load_config(TableTrialConfig, config, overrides)
        head = _head(task.head)
        return from_table(task.table, head.causes), head, task.folder, task.name, task.caution
    from finetune.prognosis.collect import from_collection

    study = load_config(FinetuneConfig, config, overrides)
    head = _head(study.head)
    patients = from_collection(
        study, prognosis.Head(EncoderConfig(width=64, depth=1), head), measured_by=measured_by, measured=measured
    )
    return patients, head, study.folder, study.name, study.caution


def _has_table(path: Path) -> bool:
    try:
        return "table" in (yaml.safe_load(path.read_text()) or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError):
        return False  # what is wrong with it is said when it is loaded


def _head(config: object) -> prognosis.Config:
    if not isinstance(config, prognosis.Config):
        got = getattr(config, "kind", "another")
        raise InputError("a prognosis has a head of kind 'prognosis'", got=got, remedy="Name another config.")
    return config


def _rows(text: str | None) -> Sequence[Row]:
    """All, or those whose titles are named; Kaplan-Meier is always there, as what errors are compared with."""
    if text is None:
        return ROWS
    titles = [title.strip() for title in text.split(";")]
    known = {row.title: row for row in ROWS}
    for title in titles:
        if title not in known:
            raise InputError("a row is one of the known", got=repr(title), remedy=did_you_mean(title, known))
    needed = {ROWS[0].title, *titles, *(source for title in titles if (source := known[title].reads_as))}
    return [row for row in ROWS if row.title in needed]


def table(trial: Trial, name: str) -> str:
    """Markdown."""
    aucs = tuple(f"AUC at {day:g} d" for day in trial.horizons_days)
    names = (*SHOWN[:2], *aucs, *SHOWN[2:])
    lines = [
        f"**{name}**: {trial.num_patients} patients, {trial.num_events} events within {trial.horizon_days:.0f} days; "
        f"{trial.folds}-fold cross-validation, {trial.repeats} repetition(s), seed {trial.seed}; bootstrap 95 % intervals over "
        f"patients ({RESAMPLES} resamples).",
        "",
        f"| row | {' | '.join(names)} | D-calibration p |",
        f"|---|{'---|' * (len(names) + 1)}",
    ]
    for row in trial.rows:
        cells = " | ".join(_cell(row, name) for name in names)
        lines.append(f"| {row.title} | {cells} | {row.d_calibration_p:.2g} |")
    for cause in trial.causes:
        names = [f"{one} of {cause}" for one in ("concordance", *aucs, *SHOWN[2:])]
        lines += ["", f"| row | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
        for row in trial.rows:
            if names[0] in row.figures:
                title = "Aalen-Johansen only" if row.title == ROWS[0].title else row.title
                lines.append(f"| {title} | {' | '.join(_cell(row, name) for name in names)} |")
    if trial.differences:
        lines += ["", "| difference of concordance, paired by patient | |", "|---|---|"]
        lines += [f"| {title} | {interval} |" for title, interval in trial.differences.items()]
    reasons = sorted({f"{figure}: {why}" for row in trial.rows for figure, why in row.why.items()})
    lines += ["", *(f"Not estimable, {reason}." for reason in reasons), *trial.notes]
    return "\n".join(lines)


def _cell(row: Scored, figure: str) -> str:
    return str(row.figures[figure]) if np.isfinite(row.figures[figure].mean) else "not estimable"


def _as_json(trial: Trial, name: str) -> dict[str, object]:
    rows = [{**asdict(row), "by_fold": list(row.by_fold)} for row in trial.rows]
    return {
        "name": name,
        "num_patients": trial.num_patients,
        "num_events": trial.num_events,
        "horizon_days": trial.horizon_days,
        "folds": trial.folds,
        "repeats": trial.repeats,
        "seed": trial.seed,
        "causes": list(trial.causes),
        "rows": rows,
        "differences": {title: asdict(interval) for title, interval in trial.differences.items()},
        "notes": list(trial.notes),
        "versions": software_versions(),
    }
