"""Split-conformal sets and intervals: answers that hold the truth in a stated share of cases, whatever the model is.

With n studies that the model did not learn from and how wrong it was on each, the ceil((n + 1)(1 - alpha))-th smallest error is
not exceeded by a new study's with probability 1 - alpha at least, if that study is of the same kind (Vovk et al. 2005; sets of
classes as LAC, Sadinle et al. 2019). Coverage that is measured on studies of another kind shows how far that assumption carries.
Where the temperature comes from the same studies as the errors, the promise is very nearly but not strictly kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finetune.trust.calibration import scored_of
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


# ------------------------------------------------------------------------------------------------ measuring


class Turns:
    """Who is measured with which quantile: every case with that of stored errors, or by turns one random half with the other's.

    A case is covered, by a set as by an interval, where its own error does not exceed the quantile.
    """

    def __init__(self, errors: Float[np.ndarray, " n"], stored: Sequence[float], alpha: float):
        self.errors = errors
        if stored:
            self.parts = [(np.arange(len(errors)), conformal_quantile(stored, alpha))]
            return
        rng, half = np.random.default_rng(0), (len(errors) + 1) // 2
        orders = [rng.permutation(len(errors)) for _ in range(HALVINGS)]
        self.parts = [(order[half:], conformal_quantile(errors[order[:half]], alpha)) for order in orders]

    @property
    def quantile(self) -> float:
        return float(np.median([quantile for _, quantile in self.parts]))

    def coverage(self, chosen: Bool[np.ndarray, " n"] | None = None) -> Estimate:
        """Of all cases, or of the chosen; a case counts once, however many turns it took part in."""
        chosen = np.ones(len(self.errors), bool) if chosen is None else chosen
        covered = [self.errors[part][chosen[part]] <= quantile for part, quantile in self.parts]
        hits, num = np.concatenate(covered), int(chosen.sum())
        return wilson(round(float(hits.mean()) * num) if len(hits) else 0, num)


def measure_sets(
    probabilities: Float[Tensor, "cases classes"],
    truth: Int[Tensor, " cases"],
    classes: Sequence[str],
    stored: Sequence[float] = (),
    alpha: float = ALPHA,
) -> SetsReport:
    """`stored` are the errors of calibrating studies; without them the cases calibrate each other."""
    turns = Turns(1 - probabilities.gather(1, truth[:, None])[:, 0].double().numpy(), stored, alpha)
    sizes: list[list[int]] = [[] for _ in truth]
    for part, quantile in turns.parts:
        for case, size in zip(
            part, class_sets(probabilities.double()[part], quantile).sum(dim=1).tolist(), strict=True
        ):
            sizes[case].append(size)
    sizes = [one for one in sizes if one]
    return SetsReport(
        coverage=turns.coverage(),
        coverage_of_class={name: turns.coverage((truth == index).numpy()) for index, name in enumerate(classes)},
        size=mean_of([float(np.mean(one)) for one in sizes]),
        single=mean_of([float(np.mean([size == 1 for size in one])) for one in sizes]),
    )


def measure_interval(
    name: str,
    unit: str,
    predicted: Float[np.ndarray, " n"],
    truth: Float[np.ndarray, " n"],
    stored: Sequence[float] = (),
    alpha: float = ALPHA,
) -> IntervalReport:
    """For any predicted number. `stored` are absolute errors of calibrating studies, as for `measure_sets`."""
    turns = Turns(absolute_errors(predicted, truth), stored, alpha)
    return IntervalReport(
        name=name,
        unit=unit,
        half_width=finite(turns.quantile),
        coverage=turns.coverage(),
        mean_truth=float(truth.mean()),
    )


def measure_conformal(
    seen: Sequence[Seen], classes: Sequence[str], calibration: Calibration | None, *, alpha: float = ALPHA
) -> ConformalReport | str:
    """Sets for a classification, intervals of volumes for a segmentation; a text says why neither."""
    scored = scored_of(seen)
    if scored is None:
        return "this kind of head gives neither classes nor volumes"
    stored = {} if calibration is None else calibration.errors
    if not stored and len(scored) < 4:
        return f"the model folder holds no calibration, and {len(scored)} cases are too few to halve"
    sets, intervals = None, ()
    volumes = [one.volumes_ml for one in seen if one.volumes_ml is not None]
    if volumes:
        pairs = {name: np.array([one[name] for one in volumes]).T for name in volumes[0]}
        intervals = tuple(
            measure_interval(name, "ml", found, true, stored.get(name, ()), alpha)
            for name, (found, true) in pairs.items()
        )
    else:
        told = Scored.pool(scored)
        if told.num_questions > 1:
            return "sets are of classes that exclude each other, and these labels do not"
        probabilities = told.probabilities((1.0,) if calibration is None else calibration.temperatures)
        sets = measure_sets(probabilities, told.truth, classes, stored.get("class", ()), alpha)
    return ConformalReport(
        alpha=alpha,
        calibrated_on=calibration.fitted_on if calibration and stored else f"half of the {len(scored)} evaluated cases",
        is_by_construction=not stored,
        sets=sets,
        intervals=intervals,
    )
