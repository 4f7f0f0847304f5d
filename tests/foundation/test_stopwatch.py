"""Steps add up, in the order in which they came, and are said as people say them."""

from __future__ import annotations

import time

from foundation.stopwatch import Stopwatch, in_words


def test_steps_add_up_to_the_time_that_went_by():
    began = time.perf_counter()
    watch = Stopwatch()
    time.sleep(0.02)
    watch.lap("files")
    watch.lap("models")
    time.sleep(0.01)
    watch.lap("files")
    went_by = time.perf_counter() - began
    assert list(watch.seconds) == ["files", "models"]
    assert watch.seconds["files"] >= 0.03 and watch.seconds["models"] >= 0
    assert went_by - 0.02 < sum(watch.seconds.values()) <= went_by


def test_times_in_words():
    assert [in_words(one) for one in (0.034, 12.34, 200.0, 3600.0)] == ["0.03 s", "12.3 s", "3 min 20 s", "60 min 0 s"]
