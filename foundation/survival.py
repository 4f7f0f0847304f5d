"""Times to an event that not everybody had while they were watched: curves, and how good predictions of them are.

    seen = FollowUp.of(time, is_observed)
    curve = kaplan_meier(seen)                       curve.at(365.0)
    figure = harrell(risk, seen)                     figure.of(ones), figure.of(resamples(len(seen), 1000, seed=0))

A figure is prepared once and is then a function of how often each patient counts, so a bootstrap over patients is one product of
matrices. What cannot be estimated is not a number, and `not_estimable` says why; nothing is added to a probability of
zero to make it divisible. Time is in days throughout, but any one unit will do.

Censoring is weighted for by its own Kaplan-Meier curve (IPCW), taken from the patients given and the same in every resample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import chi2, norm

from foundation.errors import InputError

FEWEST = 10  # patients who had the event before a time, and who were watched beyond it, for figures at that time


@dataclass(frozen=True)
class FollowUp:
    """When each patient was last known to be free of the event, or had it.

    Patients who came under observation only later (left truncation) have an `entry`: they count from then on. An event that was
    found at a visit has happened since the one before, `after`; where it equals `time` the day is known. Of events that exclude
    each other (competing risks) `cause` says which it was, counted from 0; it means nothing where none was seen.
    """

    time: Float[np.ndarray, " patients"]
    is_observed: Bool[np.ndarray, " patients"]
    entry: Float[np.ndarray, " patients"]
    after: Float[np.ndarray, " patients"]
    cause: Int[np.ndarray, " patients"]

    @classmethod
    def of(
        cls,
        time: Float[np.ndarray, " patients"],
        is_observed: Bool[np.ndarray, " patients"],
        *,
        entry: Float[np.ndarray, " patients"] | None = None,
        after: Float[np.ndarray, " patients"] | None = None,
        cause: Int[np.ndarray, " patients"] | None = None,
    ) -> FollowUp:
        """Without `entry` everybody was there from 0; without `after` the day of every event is known; without `cause` there is
        one."""
        entry = np.zeros(len(time)) if entry is None else entry
        cause = np.zeros(len(time), int) if cause is None else cause
        return cls(time, is_observed, entry, time if after is None else after, cause)

    def __post_init__(self) -> None:
        if not (np.isfinite(self.time).all() and (self.time >= 0).all() and (self.after >= 0).all()):
            raise InputError("times are numbers from 0 up", got="another", remedy="Leave such patients out.")
        if (self.entry > self.time).any() or (self.after > self.time).any():
            got = "a patient who left before coming, or an event before the visit that it came after"
            raise InputError("entry <= time and after <= time", got=got, remedy="Mend the times, or leave them out.")

    def __len__(self) -> int:
        return len(self.time)

    def take(self, rows: Int[np.ndarray, " some"] | Bool[np.ndarray, " patients"]) -> FollowUp:
        return FollowUp(*(getattr(self, one.name)[rows] for one in fields(self)))

    def until(self, horizon: float) -> FollowUp:
        """As if everybody had been watched no longer than this; who came later is not at risk before it and counts for nothing."""
        time = np.minimum(self.time, horizon)
        observed = self.is_observed & (self.time <= horizon)
        return FollowUp(time, observed, np.minimum(self.entry, time), np.minimum(self.after, time), self.cause)

    def lost_to_others(self, cause: int) -> FollowUp:
        """As if this were the only event, and any other a loss: what the hazard of one cause is learnt from."""
        is_it = self.is_observed & (self.cause == cause)
        return FollowUp.of(self.time, is_it, entry=self.entry, after=np.where(is_it, self.after, self.time))

    def had(self, cause: int | None) -> Bool[np.ndarray, " patients"]:
        """Who was seen to have the event, of this cause or of any."""
        return self.is_observed if cause is None else self.is_observed & (self.cause == cause)


@dataclass(frozen=True)
class Curve:
    """A step function from 1 at time 0 that falls at `times` to `values`; `variance` is Greenwood's sum for log(value)."""

    times: Float[np.ndarray, " steps"]
    values: Float[np.ndarray, " steps"]
    variance: Float[np.ndarray, " steps"]
    last: float  # the longest time that anybody was watched

    def at(self, times: Float[np.ndarray, " n"] | float) -> np.ndarray:
        return np.asarray(np.append(1.0, self.values)[np.searchsorted(self.times, times, side="right")])

    def before(self, times: Float[np.ndarray, " n"] | float) -> np.ndarray:
        """The limit from the left: what is left just before these times."""
        return np.asarray(np.append(1.0, self.values)[np.searchsorted(self.times, times, side="left")])

    def interval(self, times: Float[np.ndarray, " n"] | float, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Pointwise, of log(-log), which stays within 0 and 1; not a number where the curve is 0 or has not fallen."""
        value = self.at(times)
        variance = np.append(0.0, self.variance)[np.searchsorted(self.times, times, side="right")]
        with np.errstate(divide="ignore", invalid="ignore"):
            width = norm.ppf((1 + level) / 2) * np.sqrt(variance) / np.abs(np.log(value))
            low, high = value ** np.exp(width), value ** np.exp(-width)
        known = (value > 0) & (value < 1)
        return np.where(known, low, np.nan), np.where(known, high, np.nan)


def kaplan_meier(seen: FollowUp, counts: Float[np.ndarray, " patients"] | None = None) -> Curve:
    """The share without the event over time (Kaplan & Meier 1958); who came late is at risk only from then on."""
    return _product_limit(seen.time, seen.is_observed, seen.entry, counts)


def aalen_johansen(seen: FollowUp, cause: int) -> Curve:
    """The share that has not had this cause, whatever else it had: 1 minus the cumulative incidence (Aalen & Johansen 1978).

    Over all causes the incidences and Kaplan-Meier's share without any event add up to 1; 1 minus Kaplan-Meier of one cause, with
    the others as losses, is the risk in a world without the others, and too high in this one. No interval.
    """
    everything = kaplan_meier(seen)
    steps = everything.times
    falling = np.array([(seen.had(cause) & (seen.time == step)).sum() for step in steps])
    any_falling = np.array([(seen.is_observed & (seen.time == step)).sum() for step in steps])
    values = np.append(1.0, everything.values)
    fallen = (values[:-1] - values[1:]) * falling / np.maximum(any_falling, 1)
    return Curve(steps, 1 - np.cumsum(fallen), np.full(len(steps), np.nan), everything.last)


def censoring(seen: FollowUp) -> Curve:
    """The same of being watched: of an event and a loss on one day the event came first."""
    return _product_limit(seen.time, ~seen.is_observed, seen.entry, None, leaves_first=seen.is_observed)


def _product_limit(
    time: np.ndarray,
    falls: np.ndarray,
    entry: np.ndarray,
    counts: np.ndarray | None,
    leaves_first: np.ndarray | None = None,
) -> Curve:
    counts = np.ones(len(time)) if counts is None else counts
    steps = np.unique(time[falls])
    num_falling = np.array([counts[falls & (time == step)].sum() for step in steps])
    # A late comer is at risk after `entry`, not on that moment.
    at_risk = np.array([counts[(time >= step) & ((entry < step) | (entry == 0))].sum() for step in steps])
    if leaves_first is not None:
        at_risk = at_risk - [counts[leaves_first & (time == step)].sum() for step in steps]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(at_risk > 0, num_falling / at_risk, 0.0)
        variance = np.cumsum(np.where(at_risk > num_falling, num_falling / (at_risk * (at_risk - num_falling)), np.inf))
    return Curve(steps, np.cumprod(1 - share), variance, float(time.max(initial=0.0)))


def number_at_risk(seen: FollowUp, times: Sequence[float]) -> list[int]:
    return [int(((seen.time >= time) & (seen.entry <= time)).sum()) for time in times]


def logrank(seen: FollowUp, groups: Int[np.ndarray, " patients"]) -> float:
    """The p of all groups having one hazard (Mantel 1966)."""
    names = np.unique(groups)
    surplus, covariance = np.zeros(len(names)), np.zeros((len(names), len(names)))
    for step in np.unique(seen.time[seen.is_observed]):
        risk = (seen.time >= step) & ((seen.entry < step) | (seen.entry == 0))
        here = seen.is_observed & (seen.time == step)
        of_group = np.array([(risk & (groups == name)).sum() for name in names])
        events, total = here.sum(), risk.sum()
        surplus += [(here & (groups == name)).sum() for name in names] - events * of_group / total
        if total > 1:
            shares = of_group / total
            spread = np.diag(shares) - np.outer(shares, shares)
            covariance += events * (total - events) / (total - 1) * spread
    statistic = surplus[:-1] @ np.linalg.pinv(covariance[:-1, :-1]) @ surplus[:-1]
    return float(chi2.sf(statistic, len(names) - 1))


# ------------------------------------------------------------------------------------------------ figures


class Figure:
    """Something measured that is a function of how often each patient counts."""

    def of(self, counts: Float[np.ndarray, "resamples patients"]) -> Float[np.ndarray, " resamples"]:
        raise NotImplementedError


@dataclass(frozen=True)
class Pairs(Figure):
    """The share of what `all` holds that `good` holds too, over pairs of patients."""

    good: Float[np.ndarray, "patients patients"]
    all: Float[np.ndarray, "patients patients"]

    def of(self, counts: Float[np.ndarray, "resamples patients"]) -> Float[np.ndarray, " resamples"]:
        good, everything = (((counts @ one) * counts).sum(axis=1) for one in (self.good, self.all))
        return _ratio(good, everything)


@dataclass(frozen=True)
class Mean(Figure):
    """The mean over patients."""

    values: Float[np.ndarray, " patients"]

    def of(self, counts: Float[np.ndarray, "resamples patients"]) -> Float[np.ndarray, " resamples"]:
        return _ratio(counts @ self.values, counts.sum(axis=1))


@dataclass(frozen=True)
class Skill(Figure):
    """One minus an error over that of a reference: 1 is perfect, 0 no better than the reference."""

    error: Mean
    reference: Mean

    def of(self, counts: Float[np.ndarray, "resamples patients"]) -> Float[np.ndarray, " resamples"]:
        return 1 - _ratio(self.error.of(counts), self.reference.of(counts))


@dataclass(frozen=True)
class NotEstimable(Figure):
    """In the place of a figure, and why."""

    why: str

    def of(self, counts: Float[np.ndarray, "resamples patients"]) -> Float[np.ndarray, " resamples"]:
        return np.full(len(counts), np.nan)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def resamples(num_patients: int, num: int, *, seed: int) -> Float[np.ndarray, "resamples patients"]:
    """How often each patient counts in each of `num` bootstrap resamples (Efron 1979)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_patients, np.full(num_patients, 1 / num_patients), size=num).astype(float)


def not_estimable(seen: FollowUp, time: float, cause: int | None = None) -> str | None:
    """Why figures at this time cannot be estimated from these patients; None where they can."""
    before, beyond = int((seen.had(cause) & (seen.time <= time)).sum()), int((seen.time > time).sum())
    if beyond < FEWEST:
        return f"{beyond} patients were watched beyond {time:g} days; {FEWEST} are needed"
    if before < FEWEST:
        return f"{before} had the event within {time:g} days; {FEWEST} are needed"
    return None


def harrell(
    risk: Float[np.ndarray, " patients"],
    seen: FollowUp,
    groups: Int[np.ndarray, " patients"] | None = None,
    cause: int | None = None,
) -> Figure:
    """Harrell's C: of two of whom one is known to have had the event first, how often that one had the higher risk.

    Equal risks count half, two events on one day are not compared, and censored on the day of an event counts as later. With
    `groups` only patients of one group are compared, as where each group's risks come from another model. Of one `cause`, who had
    another event first counts as never having this one (Wolbers 2009).
    """
    return _concordance(risk, seen, groups, np.ones(len(seen)), cause)


def uno(
    risk: Float[np.ndarray, " patients"],
    seen: FollowUp,
    until: float,
    groups: Int[np.ndarray, " patients"] | None = None,
) -> Figure:
    """Uno's C (2011): the same for events before `until`, weighted so that it does not depend on who was censored."""
    if why := not_estimable(seen, until):
        return NotEstimable(why)
    weights = np.zeros(len(seen))
    counted = seen.is_observed & (seen.time < until)
    weights[counted] = censoring(seen).before(seen.time[counted]) ** -2.0
    return _concordance(risk, seen, groups, weights)


def _concordance(
    risk: np.ndarray, seen: FollowUp, groups: np.ndarray | None, weights: np.ndarray, cause: int | None = None
) -> Figure:
    had = seen.had(cause)
    last = np.where(seen.is_observed & ~had, np.inf, seen.time)
    first, other = last[:, None], last[None]
    is_later = (first < other) | ((first == other) & ~had[None])
    is_watched = (seen.entry[None] < first) | (seen.entry[None] == 0)
    pairs = had[:, None] & is_later & is_watched
    return _pairs(risk, pairs * weights[:, None], groups, "no event before somebody's last day")


def auc_at(
    risk: Float[np.ndarray, " patients"],
    seen: FollowUp,
    time: float,
    groups: Int[np.ndarray, " patients"] | None = None,
    cause: int | None = None,
) -> Figure:
    """Cumulative/dynamic AUC: who had the event by `time` against who was free of it beyond, weighted for censoring (Uno 2007).

    Of one `cause`, who had another event by then is free of it too (Blanche 2013).
    """
    if why := not_estimable(seen, time, cause):
        return NotEstimable(why)
    weight = _weights_at(seen, np.array([time]))[:, 0]
    is_case = seen.had(cause) & (seen.time <= time)
    pairs = np.where(is_case, weight, 0.0)[:, None] * np.where(is_case, 0.0, weight)[None]
    return _pairs(risk, pairs, groups, f"no two to compare at {time:g} days")


def _pairs(risk: np.ndarray, pairs: np.ndarray, groups: np.ndarray | None, why: str) -> Figure:
    if groups is not None:
        pairs = pairs * (groups[:, None] == groups[None])
    if not pairs.any():
        return NotEstimable(why)
    wins = (risk[:, None] > risk[None]) + 0.5 * (risk[:, None] == risk[None])
    return Pairs(pairs * wins, pairs.astype(float))


def brier_scores(
    survival: Float[np.ndarray, "patients times"],
    seen: FollowUp,
    times: Float[np.ndarray, " times"],
    cause: int | None = None,
) -> Float[np.ndarray, "patients times"]:
    """What each patient adds to the Brier score at each time, weighted for censoring (Graf 1999); the score is the mean.

    Of one `cause`, `survival` is the chance of not having it, whatever else (Schoop 2011); other events are no censoring.
    """
    had = (seen.time[:, None] <= times) & seen.had(cause)[:, None]
    return _weights_at(seen, times) * (~had - survival) ** 2


def _weights_at(seen: FollowUp, times: Float[np.ndarray, " times"]) -> Float[np.ndarray, "patients times"]:
    """For how many each patient stands at each time: those as far along who were lost before; 0 for who was lost by then."""
    left = censoring(seen)
    had = (seen.time[:, None] <= times) & seen.is_observed[:, None]
    free = seen.time[:, None] > times
    with np.errstate(divide="ignore"):
        return np.where(had, 1 / left.before(seen.time)[:, None], np.where(free, 1 / left.at(times), 0.0))


def integrated_brier(
    survival: Float[np.ndarray, "patients times"],
    seen: FollowUp,
    times: Float[np.ndarray, " times"],
    cause: int | None = None,
) -> Mean | NotEstimable:
    """The Brier score's mean over the time from the first to the last of `times`."""
    if len(times) < 2:
        raise InputError("an integral has two times at least", got=len(times), remedy="Give more times.")
    for time in (float(times[0]), float(times[-1])):
        if why := not_estimable(seen, time, cause):
            return NotEstimable(why)
    return Mean(np.trapezoid(brier_scores(survival, seen, times, cause), times, axis=1) / (times[-1] - times[0]))


def brier_times(seen: FollowUp, horizon: float, num: int = 50, cause: int | None = None) -> Float[np.ndarray, " times"]:
    """Evenly spaced times to integrate over: from the `FEWEST`-th event to the horizon, or to where too few are watched."""
    events = np.sort(seen.time[seen.had(cause)])
    watched = np.sort(seen.time)
    if len(events) < FEWEST or len(watched) <= FEWEST:
        return np.linspace(0, horizon, num)
    last = np.nextafter(watched[-FEWEST], 0)
    return np.linspace(events[FEWEST - 1], min(horizon, last), num)


def d_calibration(
    survival_at_time: Float[np.ndarray, " patients"], is_observed: Bool[np.ndarray, " patients"], num_bins: int = 10
) -> tuple[Float[np.ndarray, " bins"], float]:
    """The share of patients in each tenth of predicted survival at their own time, and the p of all being equal (Haider 2020).

    Where predictions are right, what a model gave as the chance of living beyond the day of death is uniform. A censored patient is
    spread evenly over what is left below. Small p: the probabilities are not those of these patients.
    """
    edges = np.linspace(0, 1, num_bins + 1)
    counts = np.zeros(num_bins)
    for value, observed in zip(np.clip(survival_at_time, 0, 1), is_observed, strict=True):
        place = min(int(np.searchsorted(edges, value, side="right")) - 1, num_bins - 1)
        if observed:
            counts[place] += 1
        elif value > 0:
            covered = np.clip(value - edges[:-1], 0, 1 / num_bins)
            counts += covered / value
        else:
            counts[0] += 1
    expected = len(survival_at_time) / num_bins
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return counts / counts.sum(), float(chi2.sf(statistic, num_bins - 1))


@dataclass(frozen=True)
class CalibrationPoint:
    """Patients of similar predicted risk at one horizon: the mean they were given, and what became of them with its interval."""

    predicted: float
    observed: float
    low: float
    high: float
    num: int


def calibration_at(
    risk: Float[np.ndarray, " patients"], seen: FollowUp, time: float, num_groups: int = 5
) -> list[CalibrationPoint]:
    """Predicted against Kaplan-Meier's risk in equally large groups; none where the time cannot be estimated."""
    if not_estimable(seen, time):
        return []
    points = []
    for rows in np.array_split(np.argsort(risk, kind="stable"), num_groups):
        curve = kaplan_meier(seen.take(rows))
        if curve.last < time:
            continue
        low, high = curve.interval(time)
        points.append(
            CalibrationPoint(
                float(risk[rows].mean()), float(1 - curve.at(time)), float(1 - high), float(1 - low), len(rows)
            )
        )
    return points


def calibration_slope(risk: Float[np.ndarray, " patients"], seen: FollowUp, time: float) -> float:
    """By how much log odds of what happened by `time` rise with predicted log odds, weighted for censoring; 1 is right, less
    is too sure. Not a number where it cannot be estimated."""
    if not_estimable(seen, time) or np.ptp(risk) == 0:
        return float("nan")
    left = censoring(seen)
    had, free = seen.is_observed & (seen.time <= time), seen.time > time
    weight = np.where(had, 1 / np.maximum(left.before(seen.time), 1e-300), np.where(free, 1 / left.at(time), 0.0))
    p = np.clip(risk, 1e-6, 1 - 1e-6)
    x = np.column_stack([np.ones(len(p)), np.log(p / (1 - p))])
    beta = np.array([0.0, 1.0])
    for _ in range(25):
        fitted = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
        hessian = x.T @ (x * (weight * fitted * (1 - fitted))[:, None])
        beta = beta + np.linalg.lstsq(hessian, x.T @ (weight * (had - fitted)), rcond=None)[0]
    return float(beta[1])
