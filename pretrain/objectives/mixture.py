"""Several objectives at once over one encoder: each with samples of its own, their losses added by weight.

objective:
  kind: mixture
  terms: [{kind: masked_autoencoding}, {kind: agreement}, {kind: free_truth}]
  weights: {agreement: 0.1}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, SerializeAsAny, field_validator, model_validator
from torch import Tensor, nn

from foundation.cohort.stream import StreamConfig
from foundation.encoder import Encoder
from foundation.errors import did_you_mean
from foundation.meters import SaysWork, Work
from foundation.training import Draw, Samples, fold
from pretrain.config import CropConfig
from pretrain.objectives import ObjectiveConfig, base, objective_module, parse_objective
from pretrain.samples import Studies


class Config(ObjectiveConfig):
    """A term that `weights` does not name counts once; each kind occurs once at most."""

    kind: Literal["mixture"] = "mixture"
    terms: tuple[SerializeAsAny[ObjectiveConfig], ...] = Field(
        default_factory=lambda: (parse_objective({"kind": "masked_autoencoding"}),)
    )
    weights: dict[str, float] = Field(default_factory=dict)

    @property
    def own_cohort(self) -> StreamConfig | None:
        """None as soon as one term reads the run's studies."""
        cohorts = [term.own_cohort for term in self.terms]
        return None if None in cohorts else cohorts[0]

    @field_validator("terms", mode="before")
    @classmethod
    def _by_kind(cls, values: Any) -> Any:
        return tuple(parse_objective(value) if isinstance(value, dict) else value for value in values)

    @model_validator(mode="after")
    def _terms_differ(self) -> Config:
        names = [term.kind for term in self.terms]
        if not names or len(set(names)) < len(names) or "mixture" in names:
            raise ValueError("a mixture has terms of different kinds, none a mixture itself")
        for name in self.weights:
            if name not in names:
                raise ValueError(f"a mixture weighs its own terms, not {name!r}; {did_you_mean(name, names)}")
        return self


@dataclass(frozen=True)
class MixedBatch:
    """The batch of each term, in the terms' order."""

    parts: tuple[Any, ...]

    def to(self, device: torch.device | str) -> MixedBatch:
        return MixedBatch(tuple(part.to(device) for part in self.parts))


class Objective(base.Objective):
    """`forward` gives the weighted sum, and each term's own figures as `kind/name`."""

    def __init__(self, encoder: Encoder, config: Config):
        super().__init__(encoder, config)
        self.config = config
        self.terms = nn.ModuleList(objective_module(term.kind).Objective(encoder, term) for term in config.terms)

    @property
    def named_terms(self) -> dict[str, Any]:
        return dict(zip((term.kind for term in self.config.terms), self.terms, strict=True))

    def forward(self, batch: MixedBatch) -> dict[str, Tensor]:
        total: Tensor | float = 0.0
        figures = {}
        for (name, term), part in zip(self.named_terms.items(), batch.parts, strict=True):
            losses = term(part)
            total = total + self.config.weights.get(name, 1.0) * losses["loss"]
            figures |= {f"{name}/{figure}": value.detach() for figure, value in losses.items()}
        assert isinstance(total, Tensor)
        return {"loss": total, **figures}

    def work(self, batch: MixedBatch) -> Work | None:
        """Nothing where a term cannot say."""
        said = [
            term.work(part) if isinstance(term, SaysWork) else None
            for term, part in zip(self.terms, batch.parts, strict=True)
        ]
        if None in said:
            return None
        return Work(sum(one.tokens for one in said if one), sum(one.flops for one in said if one))

    def make_samples(self, studies: Studies, crop: CropConfig) -> Samples:
        return MixedStudies([term.make_samples(studies, crop) for term in self.terms])  # pyright: ignore[reportCallIssue]

    def save_beside(self, folder: Path, *, provenance: dict[str, Any]) -> list[Path]:
        return [path for term in self.named_terms.values() for path in term.save_beside(folder, provenance=provenance)]

    def save_pictures(self, folder: Path, sample: tuple[Any, ...]) -> list[Path]:
        terms = zip(self.named_terms.values(), sample, strict=True)
        return [path for term, part in terms for path in term.save_pictures(folder, part)]


class MixedStudies:
    """As long as its first term. Terms with as many studies show the same one; of others one is drawn, with replacement."""

    def __init__(self, parts: list[Samples]):
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, draw: Draw) -> tuple[Any, ...]:
        other = fold(draw.seed, 51)
        return tuple(
            part[draw if len(part) == len(self) else Draw(other % len(part), draw.seed)] for part in self.parts
        )

    def collate(self, samples: list[tuple[Any, ...]]) -> MixedBatch:
        return MixedBatch(
            tuple(part.collate(list(column)) for part, column in zip(self.parts, zip(*samples), strict=True))
        )
