"""What a writer sees of the images beside the claims: a frozen encoder's features, and a resampler that makes a few tokens of them.

    eyes = Eyes.open(sight, folder)            the encoder that the writer was trained with, and no other
    features = eyes.look(study)                (1, tokens, width)
    prefix = resampler(features)               (1, latents, width of the language model)

The small decoder and a folder's model use the same module. Image tokens may only choose words: claims decide what is said, and
numbers and sides stay slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from foundation.config import Config
from foundation.encoder import Encoder
from foundation.preprocess import prepare_study
from foundation.study import Study
from heads.adapters.folder import Backbone, Backbones
from heads.base import StudyBatch, StudySample


class Sight(Config):
    """Which encoder's features a writer takes, on which grid, and how many tokens are made of them."""

    backbone: Backbone
    width: int
    spacing_mm: tuple[float, float, float]
    num_latents: Annotated[int, Field(ge=1)] = 8


@dataclass(frozen=True)
class Seen:
    """Features of several studies, padded. `owner` says whose each row of a batch is; rows of -1 see nothing."""

    features: Float[Tensor, "studies tokens width"]
    is_real: Bool[Tensor, "studies tokens"]
    owner: Int[Tensor, " rows"]

    @classmethod
    def of(cls, features: Sequence[Float[Tensor, "1 _ width"] | None], rows: Sequence[int]) -> Seen | None:
        """Of studies with features or without, each for so many rows; None where nobody sees."""
        there = [one[0] for one in features if one is not None]
        if not there:
            return None
        places = iter(range(len(there)))
        own = [-1 if one is None else next(places) for one in features]
        padded = nn.utils.rnn.pad_sequence(there, batch_first=True)
        lengths = torch.tensor([len(one) for one in there])
        is_real = torch.arange(padded.shape[1]) < lengths[:, None]
        return cls(padded, is_real, torch.tensor(own).repeat_interleave(torch.tensor(rows)))

    def to(self, device: torch.device | str) -> Seen:
        return Seen(self.features.to(device), self.is_real.to(device), self.owner.to(device))


class Resampler(nn.Module):
    """A few learned queries attend to any number of features; what they gather are the image's tokens (Perceiver; Jaegle et al.
    2021). Without an image other tokens, learned too, stand in their place."""

    def __init__(self, image_width: int, width: int, num_latents: int):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_latents, width) / width**0.5)
        self.blind = nn.Parameter(torch.randn(num_latents, width) / width**0.5)
        self.norm = nn.LayerNorm(image_width)
        heads = next(number for number in (max(1, width // 64), 1) if width % number == 0)
        self.attention = nn.MultiheadAttention(width, heads, kdim=image_width, vdim=image_width, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(
        self, features: Float[Tensor, "batch tokens image_width"], is_real: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch latents width"]:
        features = self.norm(features)
        queries = self.latents.expand(len(features), -1, -1)
        gathered, _ = self.attention(
            queries, features, features, key_padding_mask=None if is_real is None else ~is_real, need_weights=False
        )
        return gathered + self.mlp(gathered)

    def prefix(self, seen: Seen | None, rows: int) -> Float[Tensor, "rows latents width"]:
        """The tokens that stand before each row."""
        blind = self.blind.expand(rows, -1, -1)
        if seen is None:
            return blind
        tokens = torch.cat([self(seen.features, seen.is_real), self.blind[None]])
        return tokens[seen.owner]  # -1 is the last: the blind ones


class Eyes:
    """A frozen encoder, and how it is shown a study."""

    def __init__(self, encoder: Encoder, sight: Sight):
        self.encoder, self.sight = encoder.eval(), sight

    @classmethod
    def open(cls, sight: Sight, folder: Path, backbones: Sequence[Path] = ()) -> Eyes:
        """The encoder by the hash of its weights; an `InputError` says where it was looked for."""
        return cls(Backbones(backbones).encoder(sight.backbone, folder), sight)

    @torch.inference_mode()
    def look(self, study: Study) -> Float[Tensor, "1 tokens width"]:
        """Features of everything that was measured, registers first."""
        prepared = prepare_study(study.measured, self.sight.spacing_mm)
        device = next(self.encoder.parameters()).device
        batch = StudyBatch.of([StudySample.of(prepared)], dense=False).to(device)
        seen = self.encoder(batch.tokens)
        return torch.cat([seen.registers, seen.tokens], dim=1).float().cpu()
