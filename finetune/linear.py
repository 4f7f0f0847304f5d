"""Linear maps in closed form: a baseline, and what heads for whole studies begin with."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from finetune.samples import LabelledSamples, progress_over
from foundation.encoder import Encoder
from foundation.training import Draw, fold
from heads._study import StudyHead
from heads.base import TaskModel

RIDGE = 10.0  # of standardised features
LOOKS = 128  # at studies with artefacts, at least one at each

Columns = Sequence[tuple[np.ndarray, bool]]  # the truth of each output, and whether it is a class


@dataclass(frozen=True)
class LinearMap:
    weights: Float[np.ndarray, "outputs numbers"]
    constants: Float[np.ndarray, " outputs"]

    @classmethod
    def fit(cls, features: Float[np.ndarray, "rows numbers"], columns: Columns) -> LinearMap:
        """Logistic regression of classes, ridge regression of numbers, on standardised features."""
        mean, spread = features.mean(axis=0), features.std(axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        maps = [linear_map((features - mean) / spread, truth, is_class) for truth, is_class in columns]
        weights = np.stack([one for one, _ in maps]) / spread
        return cls(weights, np.array([constant for _, constant in maps]) - weights @ mean)

    def __call__(self, features: Float[np.ndarray, " numbers"]) -> Float[np.ndarray, " outputs"]:
        return self.weights @ features + self.constants


def linear_map(features: np.ndarray, truth: np.ndarray, is_class: bool) -> tuple[np.ndarray, float]:
    """Weights and constant, fitted to the rows that know; a class that all or none have is its frequency."""
    from sklearn.linear_model import LogisticRegression, Ridge

    known = np.isfinite(truth)
    features, truth = features[known], truth[known]
    nothing = np.zeros(features.shape[1])
    if not known.any():
        return nothing, 0.0
    if not is_class:
        fitted = Ridge(alpha=RIDGE).fit(features, truth)
        return fitted.coef_, float(fitted.intercept_)
    if len(np.unique(truth)) < 2:
        return nothing, log_odds(truth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        fitted = LogisticRegression(C=1 / RIDGE, max_iter=1000).fit(features, truth)
    return fitted.coef_[0], float(fitted.intercept_[0])


def log_odds(truth: np.ndarray) -> float:
    """Of 1 among 0 and 1, with Laplace's one of each, so that what was never seen is not impossible."""
    share = (truth.sum() + 1) / (len(truth) + 2)
    return float(np.log(share / (1 - share)))


def begin_at_a_glance(model: TaskModel, samples: LabelledSamples, seed: int) -> bool:
    """Fit the glance of a head for whole studies to the training studies as they are, or, where artefacts make a truth while they
    are changed, to changed ones: of what training will ask, studies as they are would say the opposite.

    Returns whether it was: heads for label maps have no glance, a prognosis no plain number, artefacts are learnt only where
    something makes or names them, and a head that was fitted before has its own.
    """
    head = model.head
    if not isinstance(head, StudyHead) or not isinstance(model.encoder, Encoder) or "head.answer.weight" in model.warm:
        return False
    if samples.augment.config.artefact:
        draws = range(max(LOOKS, len(samples)))
        seen = [samples[Draw(number % len(samples), fold(seed, 31, number))] for number in draws]
    else:
        seen = [samples.plain(Draw(index, 0)) for index in range(len(samples))]
    columns = head.columns([one.targets or {} for one in seen])
    if not _knows(columns):
        return False
    device, was_training, features = next(model.parameters()).device, model.training, []
    model.eval()
    for one in progress_over(seen, "a first look"):
        batch = samples.collate([one]).to(device)
        with torch.inference_mode():
            features.append(head.glimpse(model.encoder(batch.tokens), batch)[0].cpu().numpy())
    model.train(was_training)
    found = LinearMap.fit(np.stack(features), columns)
    head.begin(*(torch.from_numpy(one).float().to(device) for one in (found.weights, found.constants)))
    return True


def _knows(columns: Columns) -> bool:
    return any(np.isfinite(truth).any() for truth, _ in columns)
