"""Which contrast each series has, from its voxels alone, so that a wrong or missing name is noticed before anything is believed.

A T1w that is read as a FLAIR misleads a model more than any artefact. Headers and names are not seen here: the encoder is told
that every contrast is unknown and nothing of how it was acquired. The truth for training is the name that a series has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from foundation.encoder import EncoderConfig, Features
from foundation.findings import Finding
from foundation.preprocess import PreparedStudy
from foundation.registry import KindConfig
from foundation.study import CONTRASTS, contrast_index
from foundation.tokens import Tokens
from heads import base
from heads._study import refused, whole_study_finding
from heads.base import HeadReading, StudyBatch, Target

UNKNOWN = contrast_index("unknown")
NAME = "contrast other than named"


class Config(KindConfig):
    """Below the probability `sure` nothing is said against a name, nor in place of one."""

    kind: Literal["contrast"] = "contrast"
    sure: Annotated[float, Field(gt=0.5, le=1)] = 0.9
    dropout: float = 0.1


class Head(base.Head):
    """Mean and maximum of a series' tokens, and a linear layer; `output` is `(batch, series, contrasts)`."""

    is_dense, looks_once = False, False

    def __init__(self, encoder: EncoderConfig, config: Config):
        super().__init__(encoder, config)
        self.config = config
        self.norm = nn.LayerNorm(encoder.width)
        self.dropout = nn.Dropout(config.dropout)
        self.answer = nn.Linear(2 * encoder.width, len(CONTRASTS))

    def ask(self, encoder: nn.Module, batch: StudyBatch) -> Tensor:
        tokens = batch.tokens
        blind = replace(
            tokens,
            contrast=torch.full_like(tokens.contrast, UNKNOWN),
            acquisition=torch.zeros_like(tokens.acquisition),
        )
        return self(encoder(blind), batch)

    def forward(self, features: Features, batch: StudyBatch) -> Float[Tensor, "batch series contrasts"]:
        belongs = _belongs(batch.tokens)[..., None]
        x = self.norm(features.tokens)[:, None]
        mean = (x * belongs).sum(dim=2) / belongs.sum(dim=2).clamp(min=1)
        most = x.masked_fill(~belongs, float("-inf")).amax(dim=2)
        pooled = torch.cat([mean, torch.where(belongs.any(dim=2), most, 0.0)], dim=-1)
        return self.answer(self.dropout(pooled))

    def loss(self, output: Tensor, batch: StudyBatch) -> dict[str, Tensor]:
        """Cross-entropy over the series whose contrast is known."""
        named = _named(batch.tokens)
        if not (named != UNKNOWN).any():
            return {"loss": 0 * output.sum()}
        return {"loss": nn.functional.cross_entropy(output.float().transpose(1, 2), named, ignore_index=UNKNOWN)}

    def refuse(self, *, source: str, why: str) -> list[Finding]:
        return refused([NAME], "images", source=source, why=why, abnormal=False)

    def read(self, output: Tensor, prepared: PreparedStudy, *, source: str, mask_path: str | None) -> HeadReading:
        """One finding, whether a series looks unlike its name; and for each that does, or has none, what it looks like."""
        chances = _chances(output)
        against, remarks = [0.0], []
        for series, contrast, row in zip(prepared.study.series, prepared.contrasts, chances, strict=True):
            likeliest = int(row.argmax())
            looks = f"looks like {CONTRASTS[likeliest]} (probability {row[likeliest]:.2f}, {source})"
            if contrast != "unknown":
                against.append(1 - float(row[contrast_index(contrast)]))
                if against[-1] > self.config.sure:
                    remarks.append(f"{series.name} is named {contrast} and {looks}.")
            elif row[likeliest] > self.config.sure:
                remarks.append(f"{series.name} {looks}; its contrast is not known otherwise.")
        finding = whole_study_finding(
            NAME,
            "images",
            source=source,
            is_present=max(against) > self.config.sure,
            probability=max(against),
            abnormal=False,
        )
        return HeadReading([finding], remarks=tuple(remarks))

    def score_case(
        self, output: Tensor, prepared: PreparedStudy, labels: np.ndarray | None, targets: dict[str, Target]
    ) -> dict[str, float]:
        """How many series have a name, how many of them are recognised, and how many of those not are so with certainty."""
        chances = _chances(output)
        pairs = [
            (row, contrast_index(one)) for row, one in zip(chances, prepared.contrasts, strict=True) if one != "unknown"
        ]
        right = sum(int(row.argmax()) == truth for row, truth in pairs)
        alarms = sum(1 - float(row[truth]) > self.config.sure for row, truth in pairs)
        return {"named": float(len(pairs)), "right": float(right), "alarms": float(alarms)}

    def summarise(self, cases: Sequence[dict[str, float]]) -> dict[str, float]:
        """Share of series that are recognised, and of those whose right name is contradicted."""
        named = sum(case["named"] for case in cases)
        return {
            name: sum(case[what] for case in cases) / named if named else float("nan")
            for name, what in (("accuracy", "right"), ("false alarms", "alarms"))
        }


def _belongs(tokens: Tokens) -> Tensor:
    """Whether a token is of a series: `(batch, series, tokens)`."""
    series = torch.arange(int(tokens.series.max()) + 1, device=tokens.series.device)
    return (tokens.series[:, None] == series[:, None]) & tokens.is_real[:, None]


def _named(tokens: Tokens) -> Int[Tensor, "batch series"]:
    """The contrast that each series has by name; unknown where there is no such series."""
    belongs = _belongs(tokens)
    named = torch.where(belongs, tokens.contrast[:, None], -1).amax(dim=2)
    return torch.where(named < 0, UNKNOWN, named)


def _chances(output: Tensor) -> Float[np.ndarray, "series contrasts"]:
    """Probabilities over what a series can be, unknown left out."""
    scores = output[0].float().clone()
    scores[:, UNKNOWN] = float("-inf")
    return scores.softmax(dim=1).numpy()
