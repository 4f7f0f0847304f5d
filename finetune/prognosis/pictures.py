"""Three pictures of a prognosis: what became of patients of low, middle and high predicted risk; whether predicted risks were
right; and single patients' curves.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from finetune.prognosis.rows import Said, Trial
from foundation.figures import COLOURS, save_png
from foundation.survival import calibration_at, kaplan_meier, logrank, number_at_risk

THIRDS = ("low", "middle", "high")
NUM_SHOWN = 6  # single patients
GROUPS = 5


def draw(trial: Trial, title: str, folder: Path) -> list[Path]:
    """All three, of one row's first repetition."""
    said = trial.said[title]
    return [
        tertiles(trial, said, title, folder / "tertiles.png"),
        calibration(trial, said, title, folder / "calibration.png"),
        individuals(trial, said, title, folder / "individuals.png"),
    ]


def tertiles(trial: Trial, said: Said, title: str, path: Path) -> Path:
    """Kaplan-Meier with 95 % intervals by third of predicted risk, and how many were still watched."""
    seen = trial.seen.until(trial.horizon_days)
    third = np.empty(len(said.risk), int)
    for place, rows in enumerate(np.array_split(np.argsort(said.risk, kind="stable"), len(THIRDS))):
        third[rows] = place
    ticks = np.linspace(0, trial.horizon_days, 6)
    figure = Figure(figsize=(6.5, 4.8), layout="constrained")
    axes, table = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    for place, name in enumerate(THIRDS):
        group = seen.take(third == place)
        curve, times = kaplan_meier(group), np.linspace(0, trial.horizon_days, 400)
        low, high = curve.interval(times)
        colour = COLOURS[(4, 1, 5)[place]]
        axes.fill_between(times, low, high, color=colour, alpha=0.15, linewidth=0, step="post")
        axes.step(times, curve.at(times), color=colour, where="post", label=f"{name} predicted risk")
        for tick, number in zip(ticks, number_at_risk(group, ticks.tolist()), strict=True):
            table.text(tick, -place, str(number), ha="center", va="center", color=colour, fontsize=9)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("without the event")
    axes.set_title(f"{title}; log-rank p = {logrank(seen, third):.1g}", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    table.set_ylim(-2.7, 0.7)
    table.set_yticks([])
    table.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    table.set_xlabel("days (numbers: still watched)")
    for one in (axes, table):
        one.spines[["top", "right"]].set_visible(False)
    table.spines["left"].set_visible(False)
    save_png(path, figure)
    return path


def calibration(trial: Trial, said: Said, title: str, path: Path) -> Path:
    """Predicted risk against Kaplan-Meier's in fifths of it, with 95 % intervals, at each horizon."""
    horizons = trial.horizons_days or (trial.horizon_days,)
    figure = Figure(figsize=(3.2 * len(horizons), 3.5), layout="constrained")
    for axes, day in zip(figure.subplots(1, len(horizons), squeeze=False)[0], horizons, strict=True):
        points = calibration_at(said.at(day), trial.seen, day, GROUPS)
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for one in points:
            axes.plot([one.predicted] * 2, [one.low, one.high], color=COLOURS[4])
            axes.plot(one.predicted, one.observed, "o", color=COLOURS[4], markersize=4)
        top = max([one.high for one in points if np.isfinite(one.high)] + [one.predicted for one in points] + [0.1])
        axes.set_xlim(0, min(1, 1.05 * top))
        axes.set_ylim(0, min(1, 1.05 * top))
        axes.set_title(f"{day:g} days" + ("" if points else ": not estimable"), fontsize=10)
        axes.set_xlabel("predicted risk")
        axes.set_ylabel("observed")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    save_png(path, figure)
    return path


def individuals(trial: Trial, said: Said, title: str, path: Path) -> Path:
    """Patients from the lowest to the highest predicted risk: the curve, the members' range, and what became of them."""
    order = np.argsort(said.risk, kind="stable")
    shown = order[np.round(np.linspace(0.02, 0.98, NUM_SHOWN) * (len(order) - 1)).astype(int)]
    everybody = kaplan_meier(trial.seen.until(trial.horizon_days))
    figure = Figure(figsize=(9, 5), layout="constrained")
    for axes, row in zip(figure.subplots(2, NUM_SHOWN // 2, sharex=True, sharey=True).flat, shown, strict=True):
        axes.plot(said.times, everybody.at(said.times), color="0.75", linewidth=1)
        axes.fill_between(said.times, said.lowest[row], said.highest[row], color=COLOURS[4], alpha=0.25, linewidth=0)
        axes.plot(said.times, said.survival[row], color=COLOURS[4])
        time, observed = float(trial.seen.time[row]), bool(trial.seen.is_observed[row])
        inside = min(time, trial.horizon_days)
        happened = observed and time <= trial.horizon_days
        axes.plot(inside, 0.03, "x" if happened else ">", color="black", clip_on=False)
        axes.set_title("event" if happened else "free when last seen", fontsize=9)
        axes.set_ylim(0, 1.02)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("days (x event, > last seen; grey: all patients; band: range of the members)", fontsize=9)
    figure.suptitle(title, fontsize=10)
    save_png(path, figure)
    return path
