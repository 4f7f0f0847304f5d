"""The linear fit against scipy, and its penalties: silent where a kind says nothing, light where it says much."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from finetune.prognosis.linear import MOST, Law, weights_of
from foundation import hazard
from foundation.hazard import Interval
from foundation.survival import FollowUp


def simulated(x: np.ndarray, weights: np.ndarray, seed: int):
    """The law and what is known of patients whose log hazard is x @ weights."""
    rng = np.random.default_rng(seed)
    event, lost = rng.exponential(250 * np.exp(-x @ weights)), rng.uniform(50, 700, len(x))
    seen = FollowUp.of(np.minimum(event, lost), event <= lost)
    edges = hazard.quantile_edges(seen, 6)
    law = Law(torch.from_numpy(hazard.baseline_logits(seen, edges)), torch.from_numpy(edges))
    return law, Interval.of(seen, law.edges)


def test_the_weights_are_the_minimum_that_scipy_finds() -> None:
    x = np.random.default_rng(0).normal(size=(80, 4))
    law, known = simulated(x, np.array([1.0, 0, 0, 0.5]), 1)
    weights, penalty = weights_of(x, ["a", "a", "b", "b"], known, law)
    cost = np.array([penalty["a"]] * 2 + [penalty["b"]] * 2)

    def unlikely(weights: np.ndarray) -> float:
        logits = law.baseline + torch.from_numpy(x @ weights[1:] + weights[0])[:, None]
        return float(-hazard.log_likelihood(logits, law.edges, known).sum() + (cost * weights[1:] ** 2).sum() / 2)

    best = minimize(unlikely, np.zeros(5), tol=1e-8)
    assert weights == pytest.approx(best.x, abs=2e-3)


def test_a_kind_that_says_nothing_falls_silent_and_one_that_speaks_does_not() -> None:
    """Three columns that matter, forty that do not; held together by one penalty, those would cost much of the three."""
    rng = np.random.default_rng(2)
    x, true = rng.normal(size=(400, 43)), np.zeros(43)
    true[:3] = (0.8, -0.6, 0.5)
    law, known = simulated(x, true, 3)
    apart, penalty = weights_of(x, ["said"] * 3 + ["noise"] * 40, known, law)
    assert penalty["noise"] > 30 * penalty["said"] and penalty["noise"] <= MOST
    together, _ = weights_of(x, ["all"] * 43, known, law)
    assert np.linalg.norm(apart[1:] - true) < 0.6 * np.linalg.norm(together[1:] - true)


def test_more_columns_than_patients_are_the_same_ridge() -> None:
    """A kind wider than there are patients is fitted in another basis: its weights satisfy the ridge's own condition."""
    x = np.random.default_rng(4).normal(size=(30, 50))
    law, known = simulated(x, np.full(50, 0.15), 5)
    weights, penalty = weights_of(x, ["wide"] * 50, known, law)
    scores = torch.from_numpy(x @ weights[1:] + weights[0]).requires_grad_()
    likely = hazard.log_likelihood(law.baseline + scores[:, None], law.edges, known).sum()
    (slope,) = torch.autograd.grad(likely, scores)
    assert x.T @ slope.numpy() == pytest.approx(penalty["wide"] * weights[1:], abs=1e-2)
