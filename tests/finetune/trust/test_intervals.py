"""Intervals against scipy's, and against how often they hold what they promise."""

import numpy as np
import pytest
from scipy.stats import binomtest

from finetune.trust.intervals import Estimate, mean_of, resampled, resampled_groups, wilson


@pytest.mark.parametrize(("hits", "num"), [(0, 1), (0, 10), (3, 10), (10, 10), (1, 240), (199, 200)])
def test_wilsons_interval_is_that_of_scipy(hits: int, num: int) -> None:
    theirs = binomtest(hits, num).proportion_ci(method="wilson")
    ours = wilson(hits, num)
    assert (ours.value, ours.num) == (hits / num, num)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_nothing_is_not_known_and_few_cases_have_no_interval() -> None:
    assert wilson(0, 0) == Estimate(value=None, num=0) and str(wilson(0, 0)) == "not known"
    assert mean_of([]) == Estimate(value=None, num=0)
    assert mean_of([1.0, 2.0]) == Estimate(value=1.5, num=2) and str(mean_of([1.0, 2.0])) == "1.500"
    assert resampled([1.0] * 6, lambda drawn: float("nan")).value is None
    assert resampled_groups([], [1.0], lambda a, b: 0.0).value is None


def test_a_difference_of_groups_lies_in_its_interval_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(40):
        first, second = list(rng.normal(2, 1, 30)), list(rng.normal(1.5, 2, 40))
        found = resampled_groups(first, second, lambda a, b: float(np.mean(a) - np.mean(b)), seed=seed)
        assert found.low is not None and found.high is not None and found.num == 30
        hits += found.low <= 0.5 <= found.high
    assert 34 <= hits <= 40
