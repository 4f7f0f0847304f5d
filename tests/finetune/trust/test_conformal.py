"""Conformal sets and intervals: the definition by counting, and the promised coverage on cases of the same kind."""

import math

import numpy as np
import pytest
import torch

from finetune.trust.calibration import fit_calibration
from finetune.trust.conformal import (
    absolute_errors,
    class_sets,
    conformal_quantile,
    measure_conformal,
    measure_interval,
    measure_sets,
)
from finetune.trust.seen import Scored, Seen
from foundation.calibration import Calibration

CLASSES = ("none", "some", "many")


def drawn(num: int, seed: int, shift: float = 0.0) -> list[Seen]:
    """Studies whose true class follows from their scores; `shift` makes the scores worse than that."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(num, 3, generator=generator)
    truth = torch.multinomial(scores.softmax(dim=1), 1, generator=generator)
    scores = scores + shift * torch.randn(num, 3, generator=generator)
    return [Seen(f"{i}", {}, Scored.of_one(scores[i : i + 1], truth[i])) for i in range(num)]


@pytest.mark.parametrize("num", [5, 9, 10, 19, 57])
def test_the_quantile_is_the_least_error_that_enough_others_do_not_exceed(num: int) -> None:
    errors = np.random.default_rng(num).random(num)
    reaching = [error for error in errors if sum(errors <= error) >= (num + 1) * 0.9 - 1e-9]
    expected = min(reaching, default=math.inf)
    assert conformal_quantile(errors, 0.1) == expected
    assert math.isinf(expected) == (num < 9)


def test_coverage_is_at_least_what_was_asked_for_and_little_more() -> None:
    """Over many draws of 30 calibrating and one new case; the theory says 0.9 to 0.9 + 1/31."""
    rng = np.random.default_rng(0)
    hits = [bool(abs(rng.normal()) <= conformal_quantile(np.abs(rng.normal(size=30)), 0.1)) for _ in range(4000)]
    assert 0.888 < np.mean(hits) < 0.945


def test_sets_hold_every_class_that_is_probable_enough() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]])
    assert class_sets(probabilities, 0.7).tolist() == [[True, False, False], [True, True, False]]
    assert class_sets(probabilities, math.inf).all()


def test_intervals_of_plain_arrays() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(50, 10, 300)
    predicted = truth + rng.normal(0, 3, 300)
    stored = absolute_errors(predicted[:100], truth[:100]).tolist()
    report = measure_interval("age", "years", predicted[100:], truth[100:], stored, alpha=0.2)
    width = sorted(abs(a - b) for a, b in zip(predicted[:100], truth[:100]))[math.ceil(101 * 0.8) - 1]
    hits = sum(abs(a - b) <= width for a, b in zip(predicted[100:], truth[100:]))
    assert report.half_width == width and report.coverage.value == hits / 200 and report.coverage.num == 200
    assert 0.7 < hits / 200 < 0.9


def test_sets_are_measured_as_by_counting() -> None:
    cases = drawn(50, 5)
    scored = Scored.pool(one.scored for one in cases if one.scored is not None)
    probabilities, truth = scored.probabilities((1.0,)), scored.truth
    report = measure_sets(probabilities, truth, CLASSES, [0.1, 0.2, 0.5, 0.6, 0.65, 0.66, 0.7, 0.75, 0.8], alpha=0.2)
    sets = [{k for k in range(3) if 1 - float(p[k]) <= 0.75} for p in probabilities]
    hits = [int(true) in one for one, true in zip(sets, truth)]
    assert report.coverage.value == np.mean(hits) and report.size.value == pytest.approx(
        np.mean([len(s) for s in sets])
    )
    assert report.single.value == pytest.approx(np.mean([len(one) == 1 for one in sets]))
    of_last = [hit for hit, true in zip(hits, truth) if true == 2]
    assert report.coverage_of_class["many"].value == pytest.approx(np.mean(of_last))


def test_a_stored_calibration_covers_its_own_kind_and_not_another() -> None:
    stored = fit_calibration(drawn(300, 0), dense=False, source="other studies")
    assert stored is not None
    same = measure_conformal(drawn(400, 1), CLASSES, stored)
    other = measure_conformal(drawn(400, 1, shift=4.0), CLASSES, stored)
    assert not isinstance(same, str) and not isinstance(other, str)
    assert same.sets is not None and other.sets is not None and not same.is_by_construction
    assert same.sets.coverage.low is not None and same.sets.coverage.low < 0.9 < (same.sets.coverage.high or 0)
    assert other.sets.coverage.high is not None and other.sets.coverage.high < 0.85
    assert set(same.sets.coverage_of_class) == set(CLASSES)
    assert 1 <= (same.sets.size.value or 0) <= 3


def test_halves_of_the_same_cases_say_what_they_are() -> None:
    report = measure_conformal(drawn(60, 2), CLASSES, None)
    assert not isinstance(report, str) and report.is_by_construction and report.sets is not None
    assert report.sets.coverage.value == pytest.approx(0.92, abs=0.04) and report.sets.coverage.num == 60
    assert "by construction" in report.lines()[0]


def test_volumes_have_intervals() -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(8, 1, 40)
    found = truth + rng.normal(0, 0.5, 40)
    cases = [Seen(str(i), {}, drawn(1, i)[0].scored, {"thalamus": (found[i], truth[i])}) for i in range(40)]
    report = measure_conformal(cases, (), None)
    assert not isinstance(report, str)
    (thalamus,) = report.intervals
    assert thalamus.half_width is not None and 0.6 < thalamus.half_width < 1.4
    assert thalamus.mean_truth == pytest.approx(truth.mean())
    stored = Calibration(temperatures=(1.0,), fitted_on="5 heads", num_studies=5, errors={"thalamus": (0.1,) * 5})
    few = measure_conformal(cases, (), stored)
    assert not isinstance(few, str) and few.intervals[0].half_width is None and few.intervals[0].coverage.value == 1
    assert "no bound" in few.lines()[1]


def test_what_cannot_be_measured_is_said() -> None:
    assert "too few" in str(measure_conformal(drawn(3, 0), CLASSES, None))
    assert "neither" in str(measure_conformal([Seen("a", {})], (), None))
