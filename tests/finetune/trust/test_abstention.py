"""Risk and coverage against the definition, and ties against every order in which they might come."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import rankdata

from finetune.trust.abstention import aurc, measure_abstention, selective_risk


def naive_aurc(score: list[float], risk: list[float]) -> float:
    order = sorted(range(len(score)), key=lambda i: -score[i])
    return float(np.mean([np.mean([risk[i] for i in order[:k]]) for k in range(1, len(order) + 1)]))


def test_aurc_is_the_mean_risk_over_all_shares() -> None:
    rng = np.random.default_rng(0)
    score, risk = rng.random(30), rng.random(30)
    assert aurc(score, risk) == pytest.approx(naive_aurc(list(score), list(risk)))
    assert selective_risk(score, risk)[-1] == pytest.approx(risk.mean())


def test_ties_count_as_the_mean_over_their_orders() -> None:
    score, risk = np.array([3.0, 2, 2, 2, 1]), np.array([0.1, 0.9, 0.2, 0.4, 0.3])
    every = [naive_aurc([5, *places, 1], list(risk)) for places in permutations([4.0, 3.0, 2.0])]
    assert aurc(score, risk) == pytest.approx(np.mean(every))
    assert aurc(np.ones(5), risk) == pytest.approx(risk.mean())


def test_the_report_ranks_a_good_score_before_a_bad_one() -> None:
    rng = np.random.default_rng(1)
    dice = rng.random(40)
    scores = {"good": dice + 0.05 * rng.random(40), "blind": rng.random(40), "constant": np.ones(40)}
    report = measure_abstention({name: list(values) for name, values in scores.items()}, list(dice), what="1 - dice")
    good, blind, constant = report.curves
    naive = np.corrcoef(rankdata(scores["good"]), rankdata(dice))[0, 1]
    assert good.order.value == pytest.approx(naive) and good.order.low is not None and good.order.low > 0.9
    assert good.aurc_best <= (good.aurc.value or 0) < (blind.aurc.value or 0)
    assert constant.order.value is None and constant.aurc.value == pytest.approx(constant.aurc_blind)
    assert good.risk[-1] == pytest.approx(1 - dice.mean()) and good.answered[-1] == 1
    assert "AURC" in report.lines()[1]
