"""How two ways of doing the same thing are timed: A B A B in one process, judged by the ratio within each pair.

A neighbour who takes half of the machine slows both halves of a pair, so their ratio moves far less than either time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

WARM_UPS = 2
PAIRS = 9

Work = Callable[[], object]


class Quartiles(NamedTuple):
    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Quartiles:
        low, median, high = (float(value) for value in np.percentile(values, [25, 50, 75]))
        return cls(low, median, high)


@dataclass(frozen=True)
class Row:
    """One line of the table; `target` is the least ratio, or the most `unit`s where there is nothing to compare with.

    A ratio is theirs over ours, of seconds or of whatever else is better when there is less of it.
    """

    name: str
    ours: Quartiles
    theirs: Quartiles | None
    ratio: Quartiles | None
    target: float | None
    facts: dict[str, Any]
    unit: str = "s"

    @property
    def holds(self) -> bool | None:
        """Whether three quarters of the measurements reach the target; None where there is none."""
        if self.target is None:
            return None
        return self.ratio.low >= self.target if self.ratio else self.ours.high <= self.target

    def cells(self) -> tuple[str, ...]:
        """Name, ours, theirs, ratio with its quartiles, target, verdict."""
        sign, unit = (">=", "x") if self.ratio else ("<=", f" {self.unit}")
        return (
            self.name,
            f"{self.ours.median:.3f} {self.unit}",
            f"{self.theirs.median:.3f} {self.unit}" if self.theirs else "",
            f"{self.ratio.median:.2f}x ({self.ratio.low:.2f} to {self.ratio.high:.2f})" if self.ratio else "",
            f"{sign} {self.target:.3g}{unit}" if self.target else "",
            {None: "", True: "holds", False: "missed"}[self.holds],
        )

    def record(self) -> dict[str, Any]:
        quartiles = {name: value._asdict() for name, value in vars(self).items() if isinstance(value, Quartiles)}
        return {**asdict(self), **quartiles, "holds": self.holds}


def compare(name: str, *, ours: Work, theirs: Work, target: float | None = None, **facts: Any) -> Row:
    """How many times faster `ours` is than `theirs`; what else is worth knowing goes into `facts`."""
    pairs = [(_seconds(ours), _seconds(theirs)) for _ in range(WARM_UPS + PAIRS)][WARM_UPS:]
    ours_s, theirs_s = (Quartiles.of(list(times)) for times in zip(*pairs))
    ratio = Quartiles.of([slow / fast for fast, slow in pairs])
    return Row(name, ours_s, theirs_s, ratio, target, facts)


def alone(name: str, ours: Work, *, target: float | None = None) -> Row:
    """How many seconds `ours` takes."""
    seconds = [_seconds(ours) for _ in range(WARM_UPS + PAIRS)][WARM_UPS:]
    return Row(name, Quartiles.of(seconds), None, None, target, {})


def compare_sizes(name: str, *, ours: int, theirs: int, target: float | None = None, **facts: Any) -> Row:
    """How many times smaller `ours` is than `theirs`, in bytes."""
    mine, other = (Quartiles.of([number / 1e6]) for number in (ours, theirs))
    return Row(name, mine, other, Quartiles.of([theirs / ours]), target, facts, unit="MB")


def _seconds(work: Work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
