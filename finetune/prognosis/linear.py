"""A weighted sum of columns that raises all hazards alike, with a ridge penalty of its own for every kind of column.

A record's table has some hundreds of columns, of which a dozen say something: one penalty for all of them either lets the rest in
or takes the few away. A penalty is the precision of a normal prior on the weights of a kind; those are chosen under which the
training patients' outcomes are likeliest with the weights integrated out (Laplace; MacKay's fixed point, 1992), from within one
fit and without cross-validation. What a kind is worth is so found out together with what its columns are worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor

from foundation import hazard
from foundation.hazard import Interval

LEAST, MOST = 0.3, 1e5  # what a penalty may be: the latter is silence
FREE = ("law",)  # kinds that are not penalised: a synthetic law's own columns
PLAIN, DETAIL = 30.0, 1e4  # where it starts: what repeats the plain kinds in other words has to earn its place
DETAILS = ("change", "days since", "is known", "window")
ROUNDS, SETTLED = 40, 0.05  # until no penalty's logarithm moves by more
STEPS, GAIN = 25, 1e-5  # of Newton's method, until the penalised log likelihood gains less
FASTEST = 4.0
FLATTEST = 1e-6  # curvature of one patient's log likelihood, which may fail to be concave where an interval spans bins


@dataclass(frozen=True)
class Law:
    """The hazards of an average patient, which a score moves all together: the logits of the bins between `edges`."""

    baseline: Float[Tensor, " bins"]
    edges: Float[Tensor, " edges"]


def weights_of(
    x: Float[np.ndarray, "patients columns"],
    kinds: Sequence[str],
    known: Interval,
    law: Law,
    *,
    start: Mapping[str, float] | None = None,
) -> tuple[Float[np.ndarray, " weights"], dict[str, float]]:
    """Constant (not penalised) and weights of standardised columns, and each kind's penalty; `start` where to look from."""
    names = sorted(set(kinds))
    blocks = {name: np.flatnonzero([kind == name for kind in kinds]) for name in names}
    # A kind with more columns than patients is turned into as many as there are patients: for a ridge that is the same.
    turns = {name: _turn(x[:, rows]) for name, rows in blocks.items()}
    turned = np.concatenate([np.ones((len(x), 1)), *(x[:, blocks[name]] @ turns[name] for name in names)], axis=1)
    ends = 1 + np.cumsum([0, *(turns[name].shape[1] for name in names)])
    places = {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(names)}

    penalty = {name: (start or {}).get(name, _beginning(name)) for name in names}
    pace, before = dict.fromkeys(names, 1.0), dict.fromkeys(names, 0.0)
    found = np.zeros(turned.shape[1])
    for left in reversed(range(ROUNDS)):
        cost = np.zeros(turned.shape[1])
        for name, place in places.items():
            cost[place] = penalty[name]
        found, variance = _newton(turned, cost, known, law, found)
        after = {}
        for name, place in places.items():
            if name in FREE:
                after[name] = penalty[name]
                continue
            num = place.stop - place.start
            well_determined = max(num - penalty[name] * float(variance[place].sum()), 1e-9)
            wanted = well_determined / max(float((found[place] ** 2).sum()), 1e-12)
            move = float(np.log(wanted / penalty[name]))
            # The fixed point is slow where it leads to silence: it goes faster as long as it goes one way.
            pace[name] = min(2 * pace[name], FASTEST) if move * before[name] > 0 else 1.0
            before[name] = move
            after[name] = float(np.clip(penalty[name] * np.exp(np.clip(pace[name] * move, -5, 5)), LEAST, MOST))
        if not left or max(abs(np.log(after[name] / penalty[name])) for name in names) < SETTLED:
            break
        penalty = after
    weights = np.zeros(1 + x.shape[1])
    weights[0] = found[0]
    for name, place in places.items():
        weights[1 + blocks[name]] = turns[name] @ found[place]
    return weights, penalty


def _beginning(kind: str) -> float:
    if kind in FREE:
        return 1e-3
    return DETAIL if kind.removeprefix("no ") in DETAILS else PLAIN


def _turn(x: Float[np.ndarray, "patients columns"]) -> Float[np.ndarray, "columns turned"]:
    """Directions in which these patients differ; every column its own where there are fewer columns than patients."""
    if x.shape[1] <= x.shape[0]:
        return np.eye(x.shape[1])
    _, size, directions = np.linalg.svd(x, full_matrices=False)
    return directions[size > 1e-8 * size[0]].T


def _newton(
    x: np.ndarray, cost: np.ndarray, known: Interval, law: Law, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The weights of the largest penalised likelihood, looked for from `weights`, and their variances there."""

    def at(weights: np.ndarray) -> tuple[Tensor, Tensor, float]:
        scores = torch.from_numpy(x @ weights).requires_grad_()
        likely = hazard.log_likelihood(law.baseline + scores[:, None], law.edges, known).sum()
        return scores, likely, float(likely.detach()) - 0.5 * float((cost * weights**2).sum())

    def bend(scores: Tensor, likely: Tensor, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which way is up, and how the penalised likelihood bends there."""
        (slope,) = torch.autograd.grad(likely, scores, create_graph=True)
        (curve,) = torch.autograd.grad(
            slope.sum(), scores
        )  # each patient's score is its own: the diagonal is all there is
        curved = np.maximum(-curve.numpy(), FLATTEST)
        return x.T @ slope.detach().numpy() - cost * weights, x.T @ (x * curved[:, None]) + np.diag(cost + 1e-9)

    scores, likely, value = at(weights)
    climb, bent = bend(scores, likely, weights)
    for _ in range(STEPS):
        step, share = cho_solve(cho_factor(bent), climb), 1.0
        while True:
            scores, likely, new = at(weights + share * step)
            if new >= value or share < 1e-3:
                break
            share /= 2
        weights, gain, value = weights + share * step, new - value, new
        climb, bent = bend(scores, likely, weights)
        if gain < GAIN:
            break
    return weights, np.diag(cho_solve(cho_factor(bent), np.eye(x.shape[1])))
