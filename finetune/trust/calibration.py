"""Do probabilities mean what they say, and do they after temperature scaling (Guo et al. 2017, arXiv 1706.04599)?

A temperature is fitted on studies that the model did not learn from: the validation split or what training held out, kept in the
task folder. Where there is none, evaluation fits it on other evaluated cases (in folds), which shows what it would be worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from finetune.trust.intervals import Estimate, mean_of, resampled
from finetune.trust.seen import Scored, Seen
from foundation.calibration import Calibration
from foundation.config import Config

NUM_BINS = 15
FEWEST_PER_RANGE = 5  # of ACE: a range of one case is right or wrong, and says nothing
FEWEST_STUDIES = 10  # a temperature from fewer answers is noise
FEWEST_HEADS = 2  # of voxels there are thousands in each
RANGE = (0.05, 20.0)
FOLDS = 5


class Quality(Config):
    """`ece` compares confidence in the most probable class with how often it is right, in bins of equal width; `ace` compares every
    class's probability with its frequency, in ranges of equal number (Nixon et al. 2019). `nll` is per study or voxel, in nats."""

    ece: Estimate
    ace: float
    nll: Estimate


class Bin(Config):
    """The cases (or voxels) whose confidence lies in one of the bins of equal width."""

    confidence: float
    right: float
    num: int


class CalibrationReport(Config):
    """`fitted_on` says where the temperatures come from; with some per fold `temperatures` are their means."""

    what: str
    fitted_on: str
    temperatures: tuple[float, ...]
    before: Quality
    after: Quality
    bins_before: tuple[Bin, ...]
    bins_after: tuple[Bin, ...]

    def lines(self) -> list[str]:
        limit = " (the limit: these scores say next to nothing)" if max(self.temperatures) > 0.95 * RANGE[1] else ""
        temperatures = ", ".join(f"{one:.2f}" for one in self.temperatures)
        return [
            f"temperature {temperatures}{limit}, fitted on {self.fitted_on}; of {self.what}:",
            *(
                f"{name:22s} before {getattr(self.before, name)}   after {getattr(self.after, name)}"
                for name in ("ece", "nll")
            ),
            f"{'ace':22s} before {self.before.ace:.3f}   after {self.after.ace:.3f}",
        ]


# ------------------------------------------------------------------------------------------------ fitting


def fit_temperatures(scored: Scored, num_questions: int) -> tuple[float, ...]:
    """Of each question the temperature at which its true classes are likeliest, between 0.05 and 20; 1 where no truth is known."""

    def fit(one: Scored) -> float:
        if not len(one.truth):
            return 1.0
        return _likeliest(lambda t: float(nn.functional.cross_entropy(one.scores / t, one.truth)))

    return tuple(fit(scored.to_question(index)) for index in range(num_questions))


def _likeliest(loss: Callable[[float], float]) -> float:
    """The loss has one minimum over 1 / temperature, and so over its logarithm."""
    found = minimize_scalar(lambda log: loss(float(np.exp(log))), bounds=np.log(RANGE), method="bounded")
    return float(np.exp(found.x))  # pyright: ignore[reportAttributeAccessIssue]


def fit_calibration(seen: Sequence[Seen], *, num_questions: int = 1, dense: bool, source: str) -> Calibration | None:
    """What a task folder keeps; None with too few studies, or for heads without classes. `source` words where they come from."""
    scored = scored_of(seen)
    if scored is None or len(scored) < (FEWEST_HEADS if dense else FEWEST_STUDIES):
        return None
    pooled = Scored.pool(scored)
    temperatures = fit_temperatures(pooled, num_questions)
    return Calibration(
        temperatures=temperatures,
        fitted_on=f"{len(scored)} {source}",
        num_studies=len(scored),
        errors=errors_of(seen, temperatures),
    )


def scored_of(seen: Sequence[Seen]) -> list[Scored] | None:
    """Of the cases whose truth is known; None where there are none, or no scores of classes."""
    scored = [one.scored for one in seen if one.scored is not None and len(one.scored.truth)]
    return scored or None


def errors_of(seen: Sequence[Seen], temperatures: tuple[float, ...]) -> dict[str, tuple[float, ...]]:
    """How wrong the model was on each case, in ascending order, under the names that `Calibration` explains; none of labels that
    do not exclude each other, of which there are no sets."""
    volumes = [one.volumes_ml for one in seen if one.volumes_ml is not None]
    if volumes:
        pairs = {name: [one[name] for one in volumes] for name in volumes[0]}
        return {name: tuple(sorted(abs(found - true) for found, true in cases)) for name, cases in pairs.items()}
    if len(temperatures) > 1:
        return {}
    pooled = Scored.pool(one.scored for one in seen if one.scored is not None)
    true = pooled.probabilities(temperatures).gather(1, pooled.truth[:, None])
    return {"class": tuple(sorted((1 - true[:, 0]).tolist()))}


# ------------------------------------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class Told:
    """What one case was given as probabilities, and what was true."""

    probabilities: Float[Tensor, "samples classes"]
    truth: Int[Tensor, " samples"]


def measure_calibration(seen: Sequence[Seen], stored: Calibration | None, *, dense: bool) -> CalibrationReport | str:
    """Before and after temperature scaling; a text says why not."""
    scored = scored_of(seen)
    if scored is None:
        return "this kind of head gives no probabilities of classes"
    if stored is not None:
        temperatures, fitted_on = [stored.temperatures] * len(scored), stored.fitted_on
    else:
        fewest = FOLDS if dense else FEWEST_STUDIES
        if len(scored) < fewest:
            return f"the model folder holds none, and {len(scored)} cases are too few to fit one (at least {fewest})"
        temperatures = _from_other_folds(scored)
        fitted_on = f"other evaluated cases, in {FOLDS} folds: the model folder holds no calibration"
    ones = (1.0,) * len(temperatures[0])
    before = [Told(one.probabilities(ones), one.truth) for one in scored]
    after = [Told(one.probabilities(t), one.truth) for one, t in zip(scored, temperatures, strict=True)]
    return CalibrationReport(
        what="voxels in and near what the model outlines" if dense else "studies" if len(ones) == 1 else "labels",
        fitted_on=fitted_on,
        temperatures=tuple(np.mean(temperatures, axis=0).tolist()),
        before=_quality(before),
        after=_quality(after),
        bins_before=reliability(before),
        bins_after=reliability(after),
    )


def _from_other_folds(scored: Sequence[Scored]) -> list[tuple[float, ...]]:
    num_questions = Scored.pool(scored).num_questions
    fold = np.random.default_rng(0).permutation(len(scored)) % FOLDS
    others = (Scored.pool(one for one, f in zip(scored, fold, strict=True) if f != k) for k in range(FOLDS))
    fitted = [fit_temperatures(pooled, num_questions) for pooled in others]
    return [fitted[k] for k in fold]


def _quality(told: Sequence[Told]) -> Quality:
    """Cases, not voxels, are drawn again for the intervals: the voxels of one head err together."""
    return Quality(
        ece=resampled([_bin_sums(one) for one in told], lambda drawn: ece_of_sums(np.sum(drawn, axis=0))),
        ace=adaptive_error(told),
        nll=mean_of([_log_loss(one) for one in told]),
    )


def _log_loss(told: Told) -> float:
    true = told.probabilities.gather(1, told.truth[:, None])
    return float(-true.clamp(min=1e-12).log().mean())


def _bin_sums(told: Told) -> Float[np.ndarray, "3 bins"]:
    """Of each bin: how many, the sum of their confidence, how many are right. Sums of cases add up, so resampling is cheap."""
    confidence, likeliest = told.probabilities.double().max(dim=1)
    place = (confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1).numpy()
    weights = (None, confidence.numpy(), (likeliest == told.truth).double().numpy())
    return np.stack([np.bincount(place, weight, minlength=NUM_BINS).astype(float) for weight in weights])


def ece_of_sums(sums: Float[np.ndarray, "3 bins"]) -> float:
    """Expected calibration error: the mean over cases of |how often right - confidence| of their bin."""
    number, confidence, right = sums
    return float(np.abs(right - confidence).sum() / number.sum())


def reliability(told: Sequence[Told]) -> tuple[Bin, ...]:
    """The bins of a reliability diagram that hold anything."""
    return tuple(
        Bin(confidence=confidence / number, right=right / number, num=int(number))
        for number, confidence, right in np.sum([_bin_sums(one) for one in told], axis=0).T
        if number > 0
    )


def adaptive_error(told: Sequence[Told]) -> float:
    """ACE: each class's samples in ascending order of its probability, cut into ranges of equal number; the mean over classes
    and ranges of |frequency - mean probability|."""
    probabilities, truth = torch.cat([one.probabilities for one in told]), torch.cat([one.truth for one in told])
    num_ranges = max(1, min(NUM_BINS, len(truth) // FEWEST_PER_RANGE))
    errors = []
    for index, probability in enumerate(probabilities.double().T):
        order = probability.argsort(stable=True)
        is_class = (truth == index).double()
        for part in order.tensor_split(num_ranges):
            errors.append(float((is_class[part].mean() - probability[part].mean()).abs()))
    return float(np.mean(errors))
