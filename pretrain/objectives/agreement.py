"""Two views of one study agree: each study must recognise its other view among those of the batch (InfoNCE, van den Oord 2018).

A view is a box somewhere in the patient, at a spacing of its own, from some of the series; of its tokens only a part is
encoded. The registers, which speak for the study as a whole, are compared after a small projection that is thrown away later
(Chen et al. 2020). Masked reconstruction serves segmentation; a term like this serves classification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.distributed.nn.functional as between_processes
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from foundation.encoder import Encoder
from foundation.registry import KindConfig
from foundation.tokens import Tokens
from foundation.training import Draw, Samples, fold, seeded
from pretrain.config import CropConfig
from pretrain.masking import mask_bags
from pretrain.objectives import base
from pretrain.samples import Ready, Studies, box_with_body


class Config(KindConfig):
    """`visible_fraction` of a view's tokens are encoded. With probability `fewer_series` a view lacks some of the study's."""

    kind: Literal["agreement"] = "agreement"
    width: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float, Field(gt=0)] = 0.2
    visible_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    fewer_series: Annotated[float, Field(ge=0, le=1)] = 0.5


@dataclass(frozen=True)
class Views:
    """Row i of both is of study i; all tokens are real."""

    one: Tokens
    other: Tokens

    def to(self, device: torch.device | str) -> Views:
        return Views(self.one.to(device), self.other.to(device))


class Objective(base.Objective):
    """`forward` is encode both, project, compare with everything in the batch, that of other processes included."""

    def __init__(self, encoder: Encoder, config: Config):
        super().__init__(encoder, config)
        self.config = config
        width = encoder.config.width
        self.project = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.width))

    def forward(self, batch: Views) -> dict[str, Tensor]:
        one, other = (self.embed(view) for view in (batch.one, batch.other))
        first = len(one) * (torch.distributed.get_rank() if torch.distributed.is_initialized() else 0)
        right = first + torch.arange(len(one), device=one.device)
        losses, hits = [], []
        for mine, theirs in ((one, other), (other, one)):
            likeness = mine @ _everywhere(theirs).T / self.config.temperature
            losses.append(nn.functional.cross_entropy(likeness, right))
            hits.append((likeness.argmax(dim=1) == right).float().mean())
        return {"loss": torch.stack(losses).mean(), "recognised": torch.stack(hits).mean().detach()}

    def embed(self, view: Tokens) -> Float[Tensor, "batch width"]:
        """One unit vector per study, always in float32."""
        registers = self.encoder(view).registers.mean(dim=1)
        return nn.functional.normalize(self.project(registers).float(), dim=1)

    def make_samples(self, studies: Studies, crop: CropConfig) -> Samples:
        return TwoViews(studies, crop, self.config)


def _everywhere(vectors: Float[Tensor, "batch width"]) -> Float[Tensor, "all width"]:
    """The vectors of all processes, in their order; gradients flow back to where they came from."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return vectors
    return torch.cat(between_processes.all_gather(vectors))


class TwoViews:
    """The dataset: a sample is two bags and the seed that their tokens are chosen by."""

    def __init__(self, studies: Studies, crop: CropConfig, config: Config):
        self.studies, self.crop, self.config = studies, crop, config

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, draw: Draw) -> tuple[Tokens, Tokens, int]:
        study = self.studies.ready(draw.index, draw.seed)
        one, other = (self._view(study, fold(draw.seed, 41, number)) for number in range(2))
        return one, other, draw.seed

    def _view(self, study: Sequence[Ready], seed: int) -> Tokens:
        rng = np.random.default_rng(seed)
        chosen = list(study)
        if len(study) > 1 and rng.random() < self.config.fewer_series:
            kept = np.sort(rng.permutation(len(study))[: int(rng.integers(1, len(study)))])
            chosen = [study[i] for i in kept]
        return box_with_body(chosen, seed, self.crop).bag

    def collate(self, samples: list[tuple[Tokens, Tokens, int]]) -> Views:
        views = []
        for which, bags in enumerate(zip(*((one, other) for one, other, _ in samples), strict=True)):
            masked = mask_bags(
                bags,
                [seeded(seed, 42, which) for _, _, seed in samples],
                max_tokens=self.crop.max_tokens,
                visible_fraction=self.config.visible_fraction,
                max_targets=1,
                hide_series=0.0,
            )
            views.append(masked.visible)
        return Views(*views)
