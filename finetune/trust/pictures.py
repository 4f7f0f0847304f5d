"""The figures of a trust report, one for each part that is easier seen than read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import StrMethodFormatter

from finetune.trust.abstention import AbstentionReport
from finetune.trust.agreement import AgreementReport
from finetune.trust.calibration import Bin, CalibrationReport
from finetune.trust.corruption import CorruptionReport
from finetune.trust.failures import FailureReport
from finetune.trust.intervals import Estimate
from finetune.trust.ood import OodReport
from finetune.trust.subgroups import SubgroupReport
from foundation.figures import COLOURS, save_png

BLUE, ORANGE = COLOURS[4], COLOURS[5]


def plot_calibration(path: Path, report: CalibrationReport) -> None:
    """Reliability diagrams: how often right against how sure, before and after; the area of a dot is the share of the bin."""
    figure = Figure(figsize=(7.4, 4.3), layout="constrained")
    pairs = (
        ("as the model says", report.bins_before, report.before),
        ("after scaling", report.bins_after, report.after),
    )
    for axes, (title, bins, quality) in zip(figure.subplots(1, 2, sharey=True), pairs, strict=True):
        _diagonal(axes, bins)
        axes.set_title(f"{title}: ECE {quality.ece.value:.3f}, ACE {quality.ace:.3f}", fontsize=9)
        axes.set_xlabel("confidence")
        _plain(axes)
    figure.axes[0].set_ylabel("share right")
    figure.suptitle(report.what.capitalize(), fontsize=10)
    save_png(path, figure)


def _diagonal(axes: Axes, bins: Sequence[Bin]) -> None:
    x, y = [one.confidence for one in bins], [one.right for one in bins]
    share = np.array([one.num for one in bins]) / sum(one.num for one in bins)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.scatter(x, y, s=12 + 400 * share, color=BLUE, alpha=0.6, linewidths=0, clip_on=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")


def plot_risk(path: Path, report: AbstentionReport) -> None:
    """The mean risk of the cases answered, the surest first, for each score, and for no order at all."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for curve, colour in zip(report.curves, COLOURS[4:] + COLOURS[:4], strict=False):
        axes.plot(
            curve.answered, curve.risk, color=colour, linewidth=1.8, label=f"{curve.score}, AURC {curve.aurc.value:.3f}"
        )
    blind = report.curves[0].aurc_blind
    axes.axhline(blind, color="0.6", linestyle="--", linewidth=1, label=f"any order, {blind:.3f}")
    axes.set_xlabel("share of cases answered, the surest first")
    axes.set_ylabel(f"mean risk ({report.risk})")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)
    save_png(path, figure)


def plot_subgroups(path: Path, report: SubgroupReport) -> None:
    rows = {f"{one.column} {one.value} (n = {one.figure.num})": one.figure for one in report.groups}
    _plot_estimates(path, {f"all (n = {report.overall.num})": report.overall, **rows}, report.figure)


def plot_failures(path: Path, report: FailureReport) -> None:
    rows = {one.family: one.answers for one in report.lossless} | {one.name: one.failed for one in report.benign}
    _plot_estimates(path, rows, "share that fails (lossless above: any other answer)", (-0.02, 1.02))


def plot_agreement(path: Path, report: AgreementReport) -> None:
    """One line for each thing measured, a colour for each group of scanners."""
    names = [one.name for one in next(iter(report.among.values()))]
    figure = Figure(figsize=(7.4, 1.2 + 0.34 * len(names)), layout="constrained")
    axes, known = figure.subplots(), []
    for number, (scanners, found) in enumerate(report.among.items()):
        known.append(Line2D([], [], marker="o", linestyle="", color=COLOURS[4 + number], label=scanners))
        for place, one in enumerate(found):  # any of which may not be estimable
            _plot_estimate(axes, place + 0.3 * number, one.icc, COLOURS[4 + number])
    axes.legend(handles=known, frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    _finish(axes, names, f"ICC(2,1) of {report.subjects}")
    save_png(path, figure)


def plot_corruption(path: Path, report: CorruptionReport) -> None:
    """One small panel for each artefact: the mean main score at every severity, and its interval."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(2, -(-len(report.curves) // 2), sharex=True, sharey=True).ravel()
    for axes, curve in zip(panels, report.curves, strict=False):
        mean, low, high = (
            np.array([getattr(one, end) for one in curve.scores], dtype=float) for end in ("value", "low", "high")
        )
        axes.fill_between(report.severities, low, high, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(report.severities, mean, color=BLUE, marker="o", markersize=3, linewidth=1.6)
        axes.set_title(curve.artefact.replace("_", " "), fontsize=9)
        axes.set_xticks(report.severities)
        axes.set_ylim(0, 1)
        _plain(axes)
    for axes in panels[len(report.curves) :]:
        axes.set_axis_off()
    figure.supxlabel("severity (0: as it was)", fontsize=9)
    figure.supylabel(f"mean {report.score}, {report.num_cases} cases", fontsize=9)
    save_png(path, figure)


def plot_ood(path: Path, report: OodReport) -> None:
    """Every study's distance from the training studies: a row of dots for each set, and the threshold."""
    figure = Figure(figsize=(7, 1.0 + 0.45 * len(report.sets)), layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(report.sets):
        spread = 0.2 * np.sin(2.4 * np.arange(len(one.distances)))
        colour = BLUE if place == 0 else ORANGE
        axes.scatter(one.distances, place + spread, s=14, color=colour, alpha=0.5, linewidths=0)
    axes.axvline(report.threshold, color="0.4", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(report.sets)), [one.name for one in report.sets], fontsize=8)
    axes.set_ylim(len(report.sets) - 0.5, -0.5)
    axes.set_xscale("log", subs=[2, 3, 5])
    for formatted in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatted(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("distance from the training studies (dashed: threshold)")
    _plain(axes)
    save_png(path, figure)


def _plot_estimates(
    path: Path, rows: Mapping[str, Estimate], label: str, limits: tuple[float, float] | None = None
) -> None:
    """One line for each figure, the first on top: the value and its interval."""
    figure = Figure(figsize=(7.4, 0.8 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, estimate in enumerate(rows.values()):
        _plot_estimate(axes, place, estimate, BLUE)
    if limits is not None:
        axes.set_xlim(*limits)
    _finish(axes, list(rows), label)
    save_png(path, figure)


def _plot_estimate(axes: Axes, place: float | int, estimate: Estimate, colour: str) -> None:
    if estimate.value is None:
        return
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=2.5, solid_capstyle="round")
    axes.scatter([estimate.value], [place], s=36, color=colour, edgecolors="white", zorder=3)


def _finish(axes: Axes, names: Sequence[str], label: str) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
