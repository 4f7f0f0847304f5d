"""What a model that may stay silent is worth: cases answered in the order of a score, and the mean risk of those answered.

AURC is the mean of that risk over all shares answered (Geifman and El-Yaniv 2017): at best that of cases in the order of their
risk, and for a score that knows nothing the mean risk itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy.stats import spearmanr

from finetune.trust.intervals import Estimate, resampled
from foundation.config import Config

ANSWERED = (1.0, 0.9, 0.8, 0.7, 0.5)


class RiskCurve(Config):
    """How well `score` orders cases. `risk` at each share of cases answered, the surest first; `order` is the rank correlation
    (Spearman) of the score with the case's main score."""

    score: str
    aurc: Estimate
    aurc_best: float
    aurc_blind: float
    order: Estimate
    answered: tuple[float, ...]
    risk: tuple[float, ...]


class AbstentionReport(Config):
    """`risk` says what the risk of one case is."""

    risk: str
    curves: tuple[RiskCurve, ...]

    def lines(self) -> list[str]:
        lines = [f"risk: {self.risk}"]
        for one in self.curves:
            lines.append(
                f"{one.score}: AURC {one.aurc} (best {one.aurc_best:.3f}, blind {one.aurc_blind:.3f}), rank correlation {one.order}"
            )
            at = (f"{share:.0%}: {_at(one, share):.3f}" for share in ANSWERED)
            lines.append(f"  mean risk of the surest {', '.join(at)}")
        return lines


def _at(curve: RiskCurve, share: float) -> float:
    return curve.risk[max(1, round(share * len(curve.risk))) - 1]


def selective_risk(score: Float[np.ndarray, " n"], risk: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The mean risk of the k surest cases, k = 1 to n. Cases of one score come in no order, so each counts with their mean risk."""
    values, place = np.unique(-score, return_inverse=True)
    expected = np.bincount(place, risk, minlength=len(values)) / np.bincount(place)
    return np.cumsum(expected[np.sort(place)]) / np.arange(1, len(risk) + 1)


def aurc(score: Float[np.ndarray, " n"], risk: Float[np.ndarray, " n"]) -> float:
    return float(selective_risk(score, risk).mean())


def measure_abstention(scores: Mapping[str, Sequence[float]], main: Sequence[float], *, what: str) -> AbstentionReport:
    """`scores` by name, larger where the model is surer; the risk of a case is 1 minus its main score."""
    risk = 1 - np.asarray(main, dtype=float)
    curves = []
    for name, values in scores.items():
        certainty = np.asarray(values, dtype=float)
        pairs = list(zip(certainty.tolist(), risk.tolist(), strict=True))
        curves.append(
            RiskCurve(
                score=name,
                aurc=resampled(pairs, lambda drawn: aurc(*np.array(drawn).T)),
                aurc_best=aurc(-risk, risk),
                aurc_blind=float(risk.mean()),
                order=resampled(pairs, lambda drawn: _rank_correlation(*np.array(drawn).T)),
                answered=tuple(((1 + np.arange(len(risk))) / len(risk)).tolist()),
                risk=tuple(selective_risk(certainty, risk).tolist()),
            )
        )
    return AbstentionReport(risk=what, curves=tuple(curves))


def _rank_correlation(score: Float[np.ndarray, " n"], risk: Float[np.ndarray, " n"]) -> float:
    """Not a number where either is the same for all."""
    if np.ptp(score) == 0 or np.ptp(risk) == 0:
        return float("nan")
    return float(spearmanr(score, -risk).statistic)  # pyright: ignore[reportAttributeAccessIssue]
