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
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from torch import Tensor, nn

from foundation.encoder import Encoder
from foundation.errors import InputError
from foundation.meters import Work
from foundation.tokens import Tokens
from foundation.training import Draw, Samples, fold, seeded
from pretrain.config import CropConfig
from pretrain.damage import use_study
from pretrain.masking import mask_bags
from pretrain.objectives import ObjectiveConfig, base
from pretrain.samples import Ready, Studies, box_with_body


class Config(ObjectiveConfig):
    """`visible_fraction` of a view's tokens are encoded. With probability `fewer_series` a view lacks some of the study's."""

    kind: Literal["agreement"] = "agreement"
    width: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float, Field(gt=0)] = 0.2
    visible_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    fewer_series: Annotated[float, Field(ge=0, le=1)] = 0.5


@dataclass(frozen=True)
class Views:
    """Row i of both is of one study, whose number is `study[i]`; all tokens are real."""

    one: Tokens
    other: Tokens
    study: Int[Tensor, " batch"]

    def to(self, device: torch.device | str) -> Views:
        return Views(self.one.to(device), self.other.to(device), self.study.to(device))


class Objective(base.Objective):
    """`forward` is encode both, project, compare with everything in the batch, that of other processes included."""

    def __init__(self, encoder: Encoder, config: Config):
        super().__init__(encoder, config)
        self.config = config
        width = encoder.config.width
        self.project = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.width))

    def forward(self, batch: Views) -> dict[str, Tensor]:
        projected = [self.project(self.encoder(view).registers.mean(dim=1)) for view in (batch.one, batch.other)]
        with torch.autocast(batch.study.device.type, enabled=False):  # bf16 would tell apart no more than 200 cosines
            one, other = (nn.functional.normalize(view.float(), dim=1) for view in projected)
            return self._compare(one, other, batch.study)

    def _compare(
        self, one: Float[Tensor, "batch width"], other: Float[Tensor, "batch width"], study: Int[Tensor, " batch"]
    ) -> dict[str, Tensor]:
        first = len(one) * (torch.distributed.get_rank() if _is_one_of_many() else 0)
        right = first + torch.arange(len(one), device=one.device)
        studies = _everywhere(study)
        if len(studies) < 2:
            raise InputError(
                "agreement compares a study with others",
                got="a batch of one",
                remedy="Raise training.batch_size, or lower training.accumulate.",
            )
        # Another draw of the same study is no stranger, though it is not the pair that is looked for.
        is_same = studies == study[:, None]
        is_same[torch.arange(len(one)), right] = False
        losses, hits = [], []
        for mine, theirs in ((one, other), (other, one)):
            likeness = (mine @ _everywhere(theirs).T / self.config.temperature).masked_fill(is_same, -torch.inf)
            losses.append(nn.functional.cross_entropy(likeness, right))
            hits.append((likeness.argmax(dim=1) == right).float().mean())
        return {"loss": torch.stack(losses).mean(), "recognised": torch.stack(hits).mean().detach()}

    def work(self, batch: Views) -> Work:
        seen = [(len(view.is_real), len(view)) for view in (batch.one, batch.other)]
        flops = sum(3 * studies * self.encoder.flops(tokens) for studies, tokens in seen)
        return Work(sum(studies * tokens for studies, tokens in seen), flops)

    def make_samples(self, studies: Studies, crop: CropConfig) -> Samples:
        return TwoViews(studies, crop, self.config)


def _is_one_of_many() -> bool:
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def _everywhere(rows: Shaped[Tensor, "batch *width"]) -> Shaped[Tensor, "all *width"]:
    """The rows of all processes, in their order; gradients flow back to where they came from."""
    return torch.cat(between_processes.all_gather(rows)) if _is_one_of_many() else rows


class TwoViews:
    """The dataset: a sample is two bags and the seed that their tokens are chosen by."""

    def __init__(self, studies: Studies, crop: CropConfig, config: Config):
        self.studies, self.crop, self.config = studies, crop, config

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, draw: Draw) -> tuple[Tokens, Tokens, Draw]:
        def views(study: Sequence[Ready]) -> tuple[Tokens, Tokens, Draw]:
            one, other = (self._view(study, fold(draw.seed, 41, number)) for number in range(2))
            return one, other, draw

        return use_study(self.studies, draw, views)

    def _view(self, study: Sequence[Ready], seed: int) -> Tokens:
        rng = np.random.default_rng(seed)
        chosen = list(study)
        if len(study) > 1 and rng.random() < self.config.fewer_series:
            kept = np.sort(rng.permutation(len(study))[: int(rng.integers(1, len(study)))])
            chosen = [study[i] for i in kept]
        return box_with_body(chosen, seed, self.crop).bag

    def collate(self, samples: list[tuple[Tokens, Tokens, Draw]]) -> Views:
        views = []
        for which, bags in enumerate(zip(*((one, other) for one, other, _ in samples), strict=True)):
            masked = mask_bags(
                bags,
                [seeded(draw.seed, 42, which) for _, _, draw in samples],
                max_tokens=self.crop.max_tokens,
                visible_fraction=self.config.visible_fraction,
                max_targets=1,
                hide_series=0.0,
            )
            views.append(masked.visible)
        one, other = views
        return Views(one, other, torch.tensor([draw.index for _, _, draw in samples]))
