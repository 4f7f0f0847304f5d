"""Split-conformal sets and intervals: answers that hold the truth in a stated share of cases, whatever the model is.

With n studies that the model did not learn from and how wrong it was on each, the ceil((n + 1)(1 - alpha))-th smallest error is
not exceeded by a new study's with probability 1 - alpha at least, if that study is of the same kind (Vovk et al. 2005; sets of
classes as LAC, Sadinle et al. 2019). Coverage that is measured on studies of another kind shows how far that assumption carries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from finetune.trust.calibration import errors_of, scored_of
from finetune.trust.intervals import Estimate, finite, mean_of, wilson
from finetune.trust.seen import Scored, Seen
from foundation.calibration import Calibration
from foundation.config import Config

ALPHA = 0.1
HALVINGS = 100


class SetsReport(Config):
    """Sets of classes. `size` is their mean number of classes; a set of all classes says nothing, an empty one that none fits."""

    coverage: Estimate
    coverage_of_class: dict[str, Estimate]
    size: Estimate
    single: Estimate


class IntervalReport(Config):
    """Intervals of plus or minus `half_width`, None where the calibrating studies are too few for any."""

    name: str
    unit: str
    half_width: float | None
    coverage: Estimate
    mean_truth: float


class ConformalReport(Config):
    """Asked for: `1 - alpha`. `is_by_construction` says that the same cases calibrate and measure, in random halves: then sizes and
    widths are information and the coverage is not, because it cannot come out otherwise."""

    alpha: float
    calibrated_on: str
    is_by_construction: bool
    sets: SetsReport | None = None
    intervals: tuple[IntervalReport, ...] = ()

    def lines(self) -> list[str]:
        said = " (halves of the same cases: coverage is as asked by construction)" if self.is_by_construction else ""
        lines = [f"asked for {1 - self.alpha:.0%}, calibrated on {self.calibrated_on}{said}"]
        if self.sets is not None:
            lines += [f"sets hold the truth in {self.sets.coverage}; mean size {self.sets.size}"]
            lines += [f"  of '{name}' in {share}" for name, share in self.sets.coverage_of_class.items()]
        for one in self.intervals:
            width = "no bound" if one.half_width is None else f"+- {one.half_width:.3g} {one.unit}"
            lines.append(f"{one.name:24s} {width} (mean {one.mean_truth:.3g}) holds the truth in {one.coverage}")
        return lines


# ------------------------------------------------------------------------------------------------ the method


def conformal_quantile(errors: Sequence[float] | Float[np.ndarray, " n"], alpha: float) -> float:
    """The error that a new one exceeds with probability `alpha` at most; infinite where n < 1 / alpha - 1."""
    rank = math.ceil((len(errors) + 1) * (1 - alpha) - 1e-9)
    return float(np.sort(errors)[rank - 1]) if rank <= len(errors) else math.inf


def class_sets(probabilities: Float[Tensor, "cases classes"], quantile: float) -> Bool[Tensor, "cases classes"]:
    """LAC: every class whose probability falls short of 1 by no more than the quantile."""
    return 1 - probabilities <= quantile


def absolute_errors(predicted: Float[np.ndarray, " n"], truth: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """What intervals of a regression are made of: prediction plus or minus `conformal_quantile` of these."""
    return np.abs(predicted - truth)


def covered(
    predicted: Float[np.ndarray, " n"], truth: Float[np.ndarray, " n"], half_width: float
) -> Bool[np.ndarray, " n"]:
    return absolute_errors(predicted, truth) <= half_width


# ------------------------------------------------------------------------------------------------ measuring


def measure_conformal(
    seen: Sequence[Seen], classes: Sequence[str], stored: Calibration | None, *, alpha: float = ALPHA
) -> ConformalReport | str:
    """Sets for a classification, intervals of volumes for a segmentation; a text says why neither.

    With the errors of a stored calibration every case measures; otherwise random halves calibrate and measure, in turn.
    """
    scored = scored_of(seen)
    volumes = [one.volumes_ml for one in seen if one.volumes_ml is not None]
    if scored is None:
        return "this kind of head gives neither classes nor volumes"
    errors = None if stored is None else stored.errors
    if not errors and len(seen) < 4:
        return f"the model folder holds no calibration, and {len(seen)} cases are too few to halve"
    temperature = 1.0 if stored is None else stored.temperatures[0]
    report = ConformalReport(
        alpha=alpha,
        calibrated_on=stored.fitted_on if stored and errors else f"half of the {len(seen)} evaluated cases",
        is_by_construction=not errors,
    )
    if volumes:
        return report.model_copy(update={"intervals": _volume_intervals(seen, volumes, errors, alpha)})
    told = Scored.pool(scored)
    return report.model_copy(update={"sets": _sets(seen, told, temperature, classes, errors, alpha)})


def _sets(
    seen: Sequence[Seen],
    told: Scored,
    temperature: float,
    classes: Sequence[str],
    errors: Mapping[str, Sequence[float]] | None,
    alpha: float,
) -> SetsReport:
    probabilities = told.probabilities(temperature)
    if errors:
        measured = [(i, conformal_quantile(errors["class"], alpha)) for i in range(len(seen))]
    else:
        measured = []
        for calibrating, measuring in _halves(len(seen)):
            own = errors_of([seen[i] for i in calibrating], temperature)["class"]
            measured += [(i, conformal_quantile(own, alpha)) for i in measuring]
    place = torch.tensor([i for i, _ in measured])
    sets = torch.stack([class_sets(probabilities[i : i + 1], quantile)[0] for i, quantile in measured])
    truth = told.truth[place]
    holds = sets.gather(1, truth[:, None])[:, 0]
    turns = len(measured) / len(seen)

    def share(hits: Tensor) -> Estimate:
        """Over all halvings a case counts once."""
        return wilson(round(int(hits.sum()) / turns), round(len(hits) / turns))

    return SetsReport(
        coverage=share(holds),
        coverage_of_class={name: share(holds[truth == index]) for index, name in enumerate(classes)},
        size=mean_of(
            [float(sets[place == i].sum(dim=1).double().mean()) for i in range(len(seen)) if (place == i).any()]
        ),
        single=share(sets.sum(dim=1) == 1),
    )


def _volume_intervals(
    seen: Sequence[Seen],
    volumes: Sequence[Mapping[str, tuple[float, float]]],
    errors: Mapping[str, Sequence[float]] | None,
    alpha: float,
) -> tuple[IntervalReport, ...]:
    reports = []
    for name in volumes[0]:
        found, truth = np.array([one[name] for one in volumes]).T
        if errors:
            widths = [conformal_quantile(errors[name], alpha)]
            hits, num = int(covered(found, truth, widths[0]).sum()), len(seen)
        else:
            widths, total = [], 0.0
            for calibrating, measuring in _halves(len(seen)):
                widths.append(conformal_quantile(absolute_errors(found[calibrating], truth[calibrating]), alpha))
                total += covered(found[measuring], truth[measuring], widths[-1]).mean()
            hits, num = round(total / len(widths) * len(seen)), len(seen)
        reports.append(
            IntervalReport(
                name=name,
                unit="ml",
                half_width=finite(float(np.median(widths))),
                coverage=wilson(hits, num),
                mean_truth=float(truth.mean()),
            )
        )
    return tuple(reports)


def _halves(num: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random halves (calibrating, measuring) of the cases, many times over."""
    rng = np.random.default_rng(0)
    orders = [rng.permutation(num) for _ in range(HALVINGS)]
    return [(order[: (num + 1) // 2], order[(num + 1) // 2 :]) for order in orders]
