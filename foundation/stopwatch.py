"""How long the steps of some work took: `watch.lap("reading the files")` when one has ended; then `watch.seconds`."""

from __future__ import annotations

import time


class Stopwatch:
    """Seconds by step, in the order in which they ended first. Times are no result: nothing compares them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, step: str) -> None:
        """What went by since the last lap was this step; one that comes again is added up."""
        now = time.perf_counter()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self._since
        self._since = now


def in_words(seconds: float) -> str:
    """'0.03 s', '12.3 s' or '3 min 20 s'."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"
