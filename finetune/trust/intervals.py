"""A figure and how sure it is: Wilson's interval for a share, a bootstrap over cases for anything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from finetune.evaluate import RESAMPLES, bootstrap
from foundation.config import Config

Item = TypeVar("Item")

Z = 1.959964  # the normal distribution's 97.5th percentile
FEWEST = 5  # cases for an interval: fewer resample to hardly anything else


class Estimate(Config):
    """A figure over `num` cases, and the ends of its 95 % interval; None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    num: int

    def __str__(self) -> str:
        if self.value is None:
            return "not known"
        return f"{self.value:.3f}" + ("" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]")


def wilson(hits: int, num: int) -> Estimate:
    """A share and its score interval (Wilson 1927): within 0 and 1, and not of no width where nothing or everything was hit."""
    if num == 0:
        return Estimate(value=None, num=0)
    share, square = hits / num, Z**2 / num
    middle = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(share * (1 - share) / num + square / num / 4)
    return Estimate(value=share, low=max(0.0, middle - half), high=min(1.0, middle + half), num=num)


def resampled(cases: Sequence[Item], figure: Callable[[Sequence[Item]], float], *, seed: int = 0) -> Estimate:
    """A figure over cases with its percentile bootstrap; not a number becomes None."""
    if not cases:
        return Estimate(value=None, num=0)
    if len(cases) < FEWEST:
        return Estimate(value=finite(figure(cases)), num=len(cases))
    interval = bootstrap(cases, lambda drawn: {"figure": figure(drawn)}, seed=seed)["figure"]
    value, low, high = (finite(one) for one in (interval.mean, interval.low, interval.high))
    return Estimate(value=value, low=low, high=high, num=len(cases))


def resampled_groups(
    first: Sequence[Item],
    second: Sequence[Item],
    figure: Callable[[Sequence[Item], Sequence[Item]], float],
    *,
    seed: int = 0,
) -> Estimate:
    """A figure of two groups of different people, each resampled by itself; `num` is that of the first."""
    if not len(first) or not len(second):
        return Estimate(value=None, num=len(first))
    value = finite(figure(first, second))
    if min(len(first), len(second)) < FEWEST:
        return Estimate(value=value, num=len(first))
    rng = np.random.default_rng(seed)

    def drawn(cases: Sequence[Item]) -> list[Item]:
        return [cases[i] for i in rng.integers(len(cases), size=len(cases))]

    values = np.array([figure(drawn(first), drawn(second)) for _ in range(RESAMPLES)])
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, [2.5, 97.5]).tolist() if len(values) else (None, None)
    return Estimate(value=value, low=low, high=high, num=len(first))


def mean_of(values: Sequence[float], *, seed: int = 0) -> Estimate:
    return resampled(values, lambda drawn: math.fsum(drawn) / len(drawn), seed=seed)


def finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
