"""Figures of survival against second implementations: cases worked by hand, loops over pairs, and torchsurv."""

import warnings

import numpy as np
import pytest
import torch

from foundation import survival
from foundation.errors import InputError
from foundation.survival import FollowUp, NotEstimable, kaplan_meier

ONES = np.ones((1, 120))


@pytest.fixture
def cohort() -> tuple[np.ndarray, FollowUp]:
    """Risks and times with ties in both, half of them censored."""
    rng = np.random.default_rng(3)
    risk = np.round(rng.normal(size=120), 1)
    event = rng.exponential(300 * np.exp(-risk))
    lost = rng.uniform(50, 700, 120)
    return risk, FollowUp.of(np.ceil(np.minimum(event, lost) / 10) * 10, event <= lost)


def test_kaplan_meier_by_hand() -> None:
    """Times 1, 2+, 2, 3+, 4: S falls by 1/5 at 1, 1/4 at 2, all at 4."""
    seen = FollowUp.of(np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([True, False, True, False, True]))
    curve = kaplan_meier(seen)
    assert curve.at(np.array([0.5, 1.0, 2.5, 4.0])) == pytest.approx([1.0, 0.8, 0.6, 0.0])
    assert curve.before(np.array([1.0, 2.0])) == pytest.approx([1.0, 0.8])
    # Greenwood at 2: 1 / (5 * 4) + 1 / (4 * 3).
    assert curve.variance[1] == pytest.approx(1 / 20 + 1 / 12)
    # Of being watched: at 2 the event came first, so one of three is lost there, then one of two.
    assert survival.censoring(seen).at(np.array([2.0, 3.0])) == pytest.approx([2 / 3, 1 / 3])


def test_late_comers_are_at_risk_only_from_their_entry() -> None:
    seen = FollowUp.of(np.array([2.0, 4.0, 6.0]), np.array([True, True, False]), entry=np.array([0.0, 0.0, 3.0]))
    assert kaplan_meier(seen).at(np.array([2.0, 4.0])) == pytest.approx([0.5, 0.25])
    # Patient 0 had the event before patient 2 came: only (0, 1) and (1, 2) are compared.
    risk = np.array([3.0, 1.0, 2.0])
    assert survival.harrell(risk, seen).of(np.ones((1, 3))) == pytest.approx(0.5)


def test_concordance_is_that_of_a_loop_over_pairs(cohort) -> None:
    risk, seen = cohort
    groups = np.arange(120) % 3
    left = survival.censoring(seen)
    sums = {"harrell": [0.0, 0.0], "grouped": [0.0, 0.0], "uno": [0.0, 0.0]}
    for i in range(120):
        for j in range(120):
            later = seen.time[j] > seen.time[i] or (seen.time[j] == seen.time[i] and not seen.is_observed[j])
            if not (seen.is_observed[i] and later):
                continue
            win = 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
            sums["harrell"][0] += win
            sums["harrell"][1] += 1
            if groups[i] == groups[j]:
                sums["grouped"][0] += win
                sums["grouped"][1] += 1
            if seen.time[i] < 400:
                weight = left.before(seen.time[i]) ** -2.0
                sums["uno"][0] += win * weight
                sums["uno"][1] += weight
    expected = {name: good / everything for name, (good, everything) in sums.items()}
    assert survival.harrell(risk, seen).of(ONES)[0] == pytest.approx(expected["harrell"])
    assert survival.harrell(risk, seen, groups).of(ONES)[0] == pytest.approx(expected["grouped"])
    assert survival.uno(risk, seen, 400.0).of(ONES)[0] == pytest.approx(expected["uno"])


def test_a_resample_is_the_same_patients_written_out(cohort) -> None:
    risk, seen = cohort
    counts = survival.resamples(120, 3, seed=5)
    assert (counts.sum(axis=1) == 120).all()
    figure = survival.harrell(risk, seen)
    for one, value in zip(counts, figure.of(counts), strict=True):
        rows = np.repeat(np.arange(120), one.astype(int))
        assert survival.harrell(risk[rows], seen.take(rows)).of(np.ones((1, 120)))[0] == pytest.approx(value)
    assert kaplan_meier(seen, counts[0]).at(200.0) == pytest.approx(
        kaplan_meier(seen.take(np.repeat(np.arange(120), counts[0].astype(int)))).at(200.0)
    )


def test_torchsurv_says_the_same(cohort) -> None:
    with warnings.catch_warnings():  # it compiles with torch.jit.script, which torch has deprecated
        warnings.simplefilter("ignore")
        from torchsurv.metrics.auc import Auc
        from torchsurv.metrics.brier_score import BrierScore
        from torchsurv.metrics.cindex import ConcordanceIndex
        from torchsurv.stats.ipcw import get_ipcw

    risk, seen = cohort
    rng = np.random.default_rng(8)
    seen = FollowUp.of(seen.time + rng.uniform(0, 1, 120), seen.is_observed)  # without ties, where conventions differ
    event, time = torch.from_numpy(seen.is_observed), torch.from_numpy(seen.time)
    estimate = torch.from_numpy(risk)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = ConcordanceIndex()(estimate, event, time)
        weight = get_ipcw(event, time)
        at = torch.tensor([200.0], dtype=torch.double)
        auc = Auc()(estimate, event, time, new_time=at, weight=weight, weight_new_time=get_ipcw(event, time, at))
        survivors = np.exp(-0.002 * np.exp(risk)[:, None] * np.array([100.0, 200.0]))
        both = torch.tensor([100.0, 200.0], dtype=torch.double)
        brier = BrierScore()(
            torch.from_numpy(survivors), event, time, new_time=both,
            weight=weight, weight_new_time=get_ipcw(event, time, both),
        )  # fmt: skip
    assert survival.harrell(risk, seen).of(ONES)[0] == pytest.approx(float(theirs), abs=1e-6)
    # Theirs weights an event by G at its time, ours by G just before: without ties the same.
    assert survival.auc_at(risk, seen, 200.0).of(ONES)[0] == pytest.approx(float(auc), abs=1e-4)
    ours = survival.brier_scores(survivors, seen, np.array([100.0, 200.0])).mean(axis=0)
    assert ours == pytest.approx(brier.numpy(), abs=1e-4)


def test_without_censoring_brier_and_auc_are_those_of_a_yes_or_no() -> None:
    rng = np.random.default_rng(0)
    risk = rng.uniform(0.1, 0.9, 80)
    time = rng.exponential(100 / risk)
    seen = FollowUp.of(time, np.ones(80, bool))
    had = time <= 150
    scores = survival.brier_scores(1 - risk[:, None], seen, np.array([150.0]))
    assert scores.mean() == pytest.approx(((had - risk) ** 2).mean())
    wins = (risk[had][:, None] > risk[~had][None]).mean()
    assert survival.auc_at(risk, seen, 150.0).of(np.ones((1, 80)))[0] == pytest.approx(wins)


def test_skill_of_the_reference_itself_is_none_and_of_the_truth_some(cohort) -> None:
    risk, seen = cohort
    times = survival.brier_times(seen, 400.0)
    curve = kaplan_meier(seen)
    null = np.repeat(curve.at(times)[None], 120, axis=0)
    true = np.exp(-np.exp(risk)[:, None] * times / 300)
    reference, error = (survival.integrated_brier(one, seen, times) for one in (null, true))
    assert isinstance(reference, survival.Mean) and isinstance(error, survival.Mean)
    assert survival.Skill(reference, reference).of(ONES)[0] == 0
    assert survival.Skill(error, reference).of(ONES)[0] > 0.1


def test_d_calibration_accepts_the_truth_and_refuses_what_is_twice_as_sure() -> None:
    rng = np.random.default_rng(1)
    rate = np.exp(rng.normal(size=1500))
    event, lost = rng.exponential(1 / rate), rng.exponential(2.0, 1500)
    time, observed = np.minimum(event, lost), event <= lost
    shares, p = survival.d_calibration(np.exp(-rate * time), observed)
    assert shares.sum() == pytest.approx(1) and p > 0.05
    assert survival.d_calibration(np.exp(-2 * rate * time), observed)[1] < 1e-6
    # By hand: a death at 0.05 is in the first tenth; lost at 0.2 is half in each of the first two.
    shares, _ = survival.d_calibration(np.array([0.05, 0.2]), np.array([True, False]))
    assert shares[:3] == pytest.approx([0.75, 0.25, 0.0])


def test_calibration_slope_says_how_much_too_sure() -> None:
    rng = np.random.default_rng(2)
    odds = rng.normal(-0.3, 1.2, 4000)
    rate = -np.log1p(-1 / (1 + np.exp(-odds)))  # the event within 1 with these odds
    event, lost = rng.exponential(1 / rate), rng.exponential(3.0, 4000)
    seen = FollowUp.of(np.minimum(event, lost), event <= lost)
    assert survival.calibration_slope(1 / (1 + np.exp(-odds)), seen, 1.0) == pytest.approx(1, abs=0.12)
    assert survival.calibration_slope(1 / (1 + np.exp(-2 * odds)), seen, 1.0) == pytest.approx(0.5, abs=0.06)
    points = survival.calibration_at(1 / (1 + np.exp(-odds)), seen, 1.0)
    assert len(points) == 5 and all(one.low - 0.02 <= one.predicted <= one.high + 0.02 for one in points)


def test_what_cannot_be_estimated_says_why(cohort) -> None:
    risk, seen = cohort
    beyond = survival.auc_at(risk, seen, 5000.0)
    assert isinstance(beyond, NotEstimable) and "watched beyond" in beyond.why
    assert np.isnan(beyond.of(ONES)).all()
    early = survival.uno(risk, seen, 1e-3)
    assert isinstance(early, NotEstimable) and "within" in early.why
    nobody = FollowUp.of(seen.time, np.zeros(120, bool))
    assert isinstance(survival.harrell(risk, nobody), NotEstimable)
    assert survival.calibration_at(risk, seen, 5000.0) == []


def test_logrank_is_chi_squared_by_hand() -> None:
    """Two pairs: events at 1 and 2 in one group, 3 and 4 in the other; O - E = 2 - (1/2 + 1/3), V = 1/4 + 2/9."""
    seen = FollowUp.of(np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4, bool))
    from scipy.stats import chi2

    expected = chi2.sf((2 - 5 / 6) ** 2 / (1 / 4 + 2 / 9), 1)
    assert survival.logrank(seen, np.array([0, 0, 1, 1])) == pytest.approx(expected)


def test_times_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="entry <= time"):
        FollowUp.of(np.array([1.0]), np.array([True]), entry=np.array([2.0]))
    with pytest.raises(InputError, match="from 0 up"):
        FollowUp.of(np.array([np.nan]), np.array([True]))


# ------------------------------------------------------------------------------------------------ competing risks


def test_aalen_johansen_by_hand() -> None:
    """Cause 0 on day 1, a loss on day 2, cause 1 on day 3, cause 0 on day 4, free on day 5. S is 4/5, then 4/5 * 2/3,
    then half of that; each step goes to the cause that fell."""
    seen = FollowUp.of(np.arange(1.0, 6.0), np.array([1, 0, 1, 1, 0]) > 0, cause=np.array([0, 0, 1, 0, 0]))
    first, second = (1 - survival.aalen_johansen(seen, cause).at(np.array([0.5, 1, 3, 4, 5])) for cause in (0, 1))
    assert first == pytest.approx([0, 1 / 5, 1 / 5, 1 / 5 + 4 / 15, 1 / 5 + 4 / 15])
    assert second == pytest.approx([0, 0, 4 / 15, 4 / 15, 4 / 15])
    assert first + second + kaplan_meier(seen).at(np.array([0.5, 1, 3, 4, 5])) == pytest.approx(np.ones(5))
    # The other cause as a loss: 1 - 4/5 * 1/2, which is the risk in a world without it.
    assert 1 - kaplan_meier(seen.lost_to_others(0)).at(4.0) == pytest.approx(1 - 4 / 5 / 2)
    alone = FollowUp.of(seen.time, seen.is_observed)
    assert survival.aalen_johansen(alone, 0).values == pytest.approx(kaplan_meier(alone).values)


def of_two_causes(num: int = 120, seed: int = 5) -> tuple[np.ndarray, FollowUp]:
    rng = np.random.default_rng(seed)
    risk = np.round(rng.normal(size=num), 1)
    first, second, lost = rng.exponential(300 * np.exp(-risk)), rng.exponential(400, num), rng.uniform(50, 900, num)
    time = np.ceil(np.minimum(np.minimum(first, second), lost) / 5) * 5
    return risk, FollowUp.of(time, np.minimum(first, second) <= lost, cause=(second < first).astype(int))


def test_concordance_and_auc_of_a_cause_are_those_of_a_loop() -> None:
    """Who had the other event is of those who never have this one."""
    risk, seen = of_two_causes()
    good = num = 0.0
    for i in range(len(seen)):
        for j in range(len(seen)):
            never = seen.is_observed[j] and seen.cause[j] == 1
            later = seen.time[j] > seen.time[i] or (seen.time[j] == seen.time[i] and not seen.is_observed[j])
            if seen.is_observed[i] and seen.cause[i] == 0 and (never or later):
                num += 1
                good += (risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j])
    one = np.ones((1, len(seen)))
    assert survival.harrell(risk, seen, cause=0).of(one)[0] == pytest.approx(good / num)
    left, day = survival.censoring(seen), 300.0
    good = num = 0.0
    for i in range(len(seen)):
        for j in range(len(seen)):
            if seen.is_observed[i] and seen.cause[i] == 0 and seen.time[i] <= day:
                weight = 1 / left.before(seen.time[i])
                if seen.time[j] > day:
                    weight /= left.at(day)
                elif seen.is_observed[j] and seen.cause[j] == 1:
                    weight /= left.before(seen.time[j])
                else:
                    continue
                num += weight
                good += weight * ((risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j]))
    assert survival.auc_at(risk, seen, day, cause=0).of(one)[0] == pytest.approx(good / num)


def test_brier_of_a_cause_is_that_of_a_loop_and_others_are_no_censoring() -> None:
    risk, seen = of_two_causes()
    free, times = 1 / (1 + np.exp(risk[:, None] + np.array([0.0, -0.5]))), np.array([200.0, 400.0])
    left, expected = survival.censoring(seen), np.zeros((len(seen), 2))
    for i in range(len(seen)):
        for j, day in enumerate(times):
            if seen.time[i] > day:
                expected[i, j] = (1 - free[i, j]) ** 2 / left.at(day)
            elif seen.is_observed[i]:
                expected[i, j] = (float(seen.cause[i] == 1) - free[i, j]) ** 2 / left.before(seen.time[i])
    assert survival.brier_scores(free, seen, times, 0) == pytest.approx(expected)
    alone = FollowUp.of(seen.time, seen.is_observed)
    assert np.array_equal(survival.brier_scores(free, alone, times, 0), survival.brier_scores(free, alone, times))


def test_a_cause_that_hardly_happened_is_not_estimable() -> None:
    _, seen = of_two_causes()
    rare = FollowUp.of(seen.time, seen.is_observed, cause=np.where(np.arange(len(seen)) < 3, 1, 0))
    assert survival.not_estimable(rare, 400.0) is None
    assert isinstance(survival.auc_at(np.zeros(len(rare)), rare, 400.0, cause=1), NotEstimable)
    times = np.array([200.0, 400.0])
    assert isinstance(survival.integrated_brier(np.ones((len(rare), 2)), rare, times, 1), NotEstimable)
