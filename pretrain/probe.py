"""What the frozen features know, measured while they are learnt: a loss can fall while they collapse.

On a small labelled collection, at intervals: an AUROC (logistic regression on the study's registers, cross-validated), the Dice
of a linear map from each token's features to its voxels' labels (ridge regression on half of the studies, scored on the other),
and the effective rank of the features (RankMe, Garrido et al. 2023, arXiv 2210.02885).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from foundation.config import Config
from foundation.encoder import Encoder
from foundation.errors import InputError
from foundation.preprocess import prepare_study
from foundation.progress import progress
from foundation.reading.collection import Row, read_manifest, read_mask, read_study
from foundation.tokens import Tokens, patches_of
from foundation.training import Record
from heads.base import StudySample

RIDGE = 1e-2  # of the mean squared feature
FOLDS = 5


class ProbeConfig(Config):
    """`target` is a 0/1 target of the manifest, `structures` are values of its masks; either may be left out."""

    manifest: Path
    split: str = "train"
    spacing_mm: tuple[float, float, float] = (3.0, 3.0, 3.0)
    target: str | None = None
    structures: tuple[int, ...] = ()
    every: Annotated[int, Field(ge=1)] = 200
    max_studies: Annotated[int, Field(ge=4)] = 40


@dataclass(frozen=True)
class ProbeCase:
    """One study's tokens, its class, and the class index of every voxel of every token."""

    bag: Tokens
    target: int | None
    labels: Int[Tensor, "tokens voxels"] | None


class Probe:
    """Reads its studies once; `measure` takes seconds."""

    def __init__(self, config: ProbeConfig):
        self.config, self.every = config, config.every
        collection = read_manifest(config.manifest)
        rows = collection.split(config.split)[: config.max_studies]
        if len(rows) < 4:
            raise InputError(
                "a probe has at least four studies",
                got=f"{len(rows)} in split '{config.split}'",
                remedy="Name another probe.split or manifest.",
                file=config.manifest,
            )
        self.cases = []
        with progress(total=len(rows), label="read probe", unit="study") as bar:
            for row in rows:
                self.cases.append(self._case(row, collection.root))
                bar.update()
        held = [case.labels for case in self.cases[len(self.cases) // 2 :] if case.labels is not None]
        if config.structures and not any((labels > 0).any() for labels in held):
            raise InputError(
                "a probe's structures occur in its second half of studies, which it is scored on",
                got=f"none of {list(config.structures)}",
                remedy="Name other values in probe.structures.",
                file=config.manifest,
            )
        targets = [case.target for case in self.cases if case.target is not None]
        if config.target and min(targets.count(0), targets.count(1)) < 2:
            raise InputError(
                "a probe's target occurs with and without, twice each at least",
                got=f"'{config.target}' is 1 in {targets.count(1)} of {len(targets)} studies",
                remedy="Name another probe.target, or raise probe.max_studies.",
                file=config.manifest,
            )

    def _case(self, row: Row, root: Path) -> ProbeCase:
        config = self.config
        study = read_study(row, root)
        prepared = prepare_study(study, config.spacing_mm)
        bag = StudySample.of(prepared).tokens()
        target = row.targets.get(config.target) if config.target else None
        if config.target and target not in (0, 1):
            raise InputError(
                "a probe's target is 0 or 1 in every study",
                got=f"{config.target} = {target!r} of {row.subject}",
                remedy="Name another probe.target.",
                file=config.manifest,
            )
        labels = None
        if config.structures:
            if row.mask is None:
                raise InputError(
                    "a probe of structures has a mask for every study",
                    got=f"none for {row.subject}",
                    remedy="Leave probe.structures empty, or give masks.",
                    file=config.manifest,
                )
            values = prepared.labels_to_grid(read_mask(row, study, root))
            classes = np.zeros(values.shape, np.int64)
            for index, value in enumerate(config.structures, start=1):
                classes[values == value] = index
            # The study's series lie on one grid, so a cell is the same place in all of them.
            labels = patches_of(torch.from_numpy(classes), bag)
        return ProbeCase(bag, None if target is None else int(target), labels)  # pyright: ignore[reportArgumentType]

    def enough(self, records: Sequence[Record]) -> bool:
        """A probe watches; it ends nothing."""
        return False

    def measure(self, objective: nn.Module) -> dict[str, float]:
        """As `figures_of`, of the encoder that is learning."""
        assert isinstance(objective.encoder, Encoder)
        return self.figures_of(objective.encoder)

    @torch.no_grad()
    def figures_of(self, encoder: Encoder) -> dict[str, float]:
        """Figures by name, each `probe/...`; the encoder stays as it is."""
        was_training = encoder.training
        encoder.eval()
        device = next(encoder.parameters()).device
        features = [encoder(case.bag.to(device)) for case in self.cases]
        encoder.train(was_training)
        studies = torch.cat([one.registers.mean(dim=1) for one in features]).float().cpu()
        tokens = [one.tokens[0].float().cpu() for one in features]
        figures = {
            "probe/rank_studies": effective_rank(studies),
            "probe/rank_tokens": effective_rank(torch.cat(tokens)[:: max(1, sum(map(len, tokens)) // 4000)]),
        }
        if self.config.target:
            targets = np.array([case.target for case in self.cases])
            figures["probe/auroc"] = cross_validated_auroc(studies.numpy(), targets)
        if self.config.structures:
            labels = [case.labels for case in self.cases if case.labels is not None]
            figures["probe/dice"] = linear_dice(tokens, labels, 1 + len(self.config.structures))
        return figures


def effective_rank(features: Float[Tensor, "samples width"]) -> float:
    """exp of the entropy of the singular values' shares, of centred features: 1 when all vary along one line, at most the width."""
    values = torch.linalg.svdvals((features - features.mean(dim=0)).double())
    share = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))


def cross_validated_auroc(features: Float[np.ndarray, "samples width"], targets: np.ndarray) -> float:
    """Of logistic regression on standardised features; every study is scored by a model that did not see it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedKFold(min(FOLDS, int(np.bincount(targets).min())), shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    scores = cross_val_predict(model, features, targets, cv=folds, method="decision_function")
    return float(roc_auc_score(targets, scores))


def linear_dice(tokens: list[Tensor], labels: list[Tensor], num_classes: int) -> float:
    """Mean over structures of the Dice over all held-out voxels; fitted on the first half of the studies."""
    half = len(tokens) // 2
    gram, product = 0.0, 0.0
    for features, classes in zip(tokens[:half], labels[:half], strict=True):
        x = _with_one(features)
        gram = gram + x.T @ x
        product = product + x.T @ torch.nn.functional.one_hot(classes, num_classes).float().flatten(1)
    assert isinstance(gram, Tensor) and isinstance(product, Tensor)
    weights = torch.linalg.solve(gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram)), product)
    guess = torch.cat(
        [(_with_one(features) @ weights).unflatten(1, (-1, num_classes)).argmax(-1) for features in tokens[half:]]
    )
    true = torch.cat(labels[half:])
    dice = [
        float(2 * ((guess == c) & (true == c)).sum() / ((guess == c).sum() + (true == c).sum()).clamp(min=1))
        for c in range(1, num_classes)
        if (true == c).any()
    ]
    return float(np.mean(dice))


def _with_one(features: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width1"]:
    return torch.nn.functional.pad(features, (0, 1), value=1.0)
