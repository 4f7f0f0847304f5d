"""Calibration against second implementations: a grid search for the temperature, torchmetrics for ECE, plain loops for ACE."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from finetune.trust.calibration import (
    NUM_BINS,
    Told,
    adaptive_error,
    errors_of,
    fit_calibration,
    fit_temperatures,
    measure_calibration,
    reliability,
)
from finetune.trust.seen import Scored, Seen
from foundation.calibration import Calibration


def overconfident(num: int, classes: int = 4, temperature: float = 3.0, seed: int = 0) -> Scored:
    """Truth drawn from the softmax of scores, which are then made `temperature` times too large."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(num, classes, generator=generator)
    truth = torch.multinomial(scores.softmax(dim=1), 1, generator=generator)[:, 0]
    return Scored.of_one(scores * temperature, truth)


def as_cases(scored: Scored, per_case: int = 1) -> list[Seen]:
    parts = zip(scored.scores.split(per_case), scored.truth.split(per_case), strict=True)
    return [Seen(f"case-{i}", {}, Scored.of_one(scores, truth)) for i, (scores, truth) in enumerate(parts)]


def test_the_temperature_is_that_of_a_grid_search() -> None:
    scored = overconfident(300)
    grid = np.exp(np.linspace(np.log(0.5), np.log(10), 4000))
    losses = [-scored.probabilities((t,)).log()[torch.arange(300), scored.truth].mean().item() for t in grid]
    assert fit_temperatures(scored, 1) == pytest.approx((grid[int(np.argmin(losses))],), rel=3e-3)


def test_a_known_temperature_is_found_again() -> None:
    assert fit_temperatures(overconfident(20_000), 1) == pytest.approx((3.0,), rel=0.05)
    assert fit_temperatures(overconfident(20_000, temperature=0.5), 1) == pytest.approx((0.5,), rel=0.05)


def test_labels_that_do_not_exclude_each_other_have_a_temperature_each() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = 2 * torch.randn(20_000, 2, generator=generator)
    truth = torch.bernoulli(scores.sigmoid(), generator=generator)
    truth[::7, 0] = torch.nan  # not known
    scores = scores * torch.tensor([4.0, 0.5])
    studies = [Scored.of_labels(*one) for one in zip(scores, truth, strict=True)]
    fitted = fit_temperatures(Scored.pool(studies), 2)
    assert fitted == pytest.approx((4.0, 0.5), rel=0.06)
    grid = np.exp(np.linspace(np.log(2), np.log(8), 2000))
    known = truth[:, 0].isfinite()
    score, true = scores[known, 0].double(), truth[known, 0].double()
    losses = [
        -(true * (score / t).sigmoid().log() + (1 - true) * (-score / t).sigmoid().log()).mean().item() for t in grid
    ]
    assert fitted[0] == pytest.approx(grid[int(np.argmin(losses))], rel=3e-3)
    assert fit_temperatures(Scored.of_labels(scores[0], torch.full((2,), torch.nan)), 2) == (1.0, 1.0)


def test_scaling_mends_labels_each_by_its_own_temperature() -> None:
    """One overconfident label and one that is too shy: a single temperature could not mend both."""

    def studies(seed: int) -> list[Seen]:
        generator = torch.Generator().manual_seed(seed)
        scores = 2 * torch.randn(400, 2, generator=generator)
        truth = torch.bernoulli(scores.sigmoid(), generator=generator)
        truth[::5] = torch.nan  # of some studies nothing is known
        scores = scores * torch.tensor([4.0, 0.4])
        return [Seen(str(i), {}, Scored.of_labels(*one)) for i, one in enumerate(zip(scores, truth, strict=True))]

    calibration = fit_calibration(studies(0), num_questions=2, dense=False, source="others")
    assert calibration is not None and calibration.num_studies == 320 and calibration.errors == {}
    assert calibration.temperatures == pytest.approx((4.0, 0.4), rel=0.35)
    for stored in (calibration, None):
        report = measure_calibration(studies(1), stored, dense=False)
        assert not isinstance(report, str) and report.what == "labels" and len(report.temperatures) == 2
        assert report.after.ece.high is not None and report.before.ece.low is not None
        assert report.after.ece.high < report.before.ece.low


def test_ece_is_that_of_torchmetrics() -> None:
    scored = overconfident(997)
    told = [Told(scored.probabilities((1.0,)), scored.truth)]
    theirs = multiclass_calibration_error(
        told[0].probabilities, scored.truth, num_classes=4, n_bins=NUM_BINS, norm="l1"
    )
    bins = reliability(told)
    ours = sum(one.num * abs(one.right - one.confidence) for one in bins) / sum(one.num for one in bins)
    assert ours == pytest.approx(float(theirs), abs=1e-6)
    report = measure_calibration(as_cases(scored), None, dense=False)
    assert not isinstance(report, str)
    assert report.before.ece.value == pytest.approx(float(theirs), abs=1e-6)


def test_ace_is_that_of_plain_loops() -> None:
    scored = overconfident(210, classes=3)
    probabilities = scored.probabilities((1.0,)).numpy()
    errors = []
    for index in range(3):
        pairs = sorted((probabilities[i, index], scored.truth[i].item() == index) for i in range(210))
        for part in range(NUM_BINS):  # 210 cases in 15 ranges: 14 each
            chosen = pairs[14 * part : 14 * (part + 1)]
            errors.append(abs(np.mean([p for p, _ in chosen]) - np.mean([is_class for _, is_class in chosen])))
    halves = [Told(scored.probabilities((1.0,))[part], scored.truth[part]) for part in (slice(100), slice(100, None))]
    assert adaptive_error(halves) == pytest.approx(np.mean(errors), abs=1e-6)


@pytest.mark.parametrize("stored", [False, True])
def test_scaling_mends_overconfidence_on_cases_that_it_was_not_fitted_on(stored: bool) -> None:
    calibration = fit_calibration(as_cases(overconfident(200, seed=1)), dense=False, source="other studies")
    assert calibration is not None and calibration.num_studies == 200
    report = measure_calibration(as_cases(overconfident(400)), calibration if stored else None, dense=False)
    assert not isinstance(report, str)
    assert ("200 other studies" in report.fitted_on) == stored
    assert report.temperatures == pytest.approx((3.0,), rel=0.2)
    before, after = report.before, report.after
    assert before.ece.low is not None and after.ece.high is not None and after.ece.high < before.ece.low
    assert after.ace < before.ace / 2
    assert before.nll.value is not None and after.nll.value is not None and after.nll.value < before.nll.value
    assert any("temperature" in line for line in report.lines())


def test_too_few_cases_and_heads_without_classes_are_said_to_be_so() -> None:
    few = as_cases(overconfident(9))
    assert fit_calibration(few, dense=False, source="x") is None
    assert "too few" in str(measure_calibration(few, None, dense=False))
    assert "no probabilities" in str(measure_calibration([Seen("one", {})], None, dense=False))
    assert fit_calibration([Seen("one", {})] * 20, dense=False, source="x") is None


def test_errors_are_what_conformal_sets_need() -> None:
    scored = overconfident(12)
    kept = errors_of(as_cases(scored), (3.0,))["class"]
    naive = sorted(1 - float((scores / 3).softmax(dim=0)[true]) for scores, true in zip(scored.scores, scored.truth))
    assert kept == pytest.approx(naive)
    cases = [Seen("a", {}, None, {"thalamus": (6.0, 7.0)}), Seen("b", {}, None, {"thalamus": (7.5, 7.0)})]
    assert errors_of(cases, (1.0,)) == {"thalamus": (0.5, 1.0)}


def test_a_calibration_scales_scores_and_changes_no_order() -> None:
    scores = torch.randn(2, 3, 4, 5, 6)
    scaled = Calibration(temperatures=(2.0,), fitted_on="x", num_studies=3).scale(scores)
    assert torch.equal(scaled, scores / 2) and torch.equal(scaled.argmax(dim=1), scores.argmax(dim=1))
    labels = Calibration(temperatures=(1.0, 2.0, 4.0), fitted_on="x", num_studies=3).scale(scores[:, :, 0, 0, 0])
    assert torch.equal(labels, scores[:, :, 0, 0, 0] / torch.tensor([1.0, 2.0, 4.0]))
