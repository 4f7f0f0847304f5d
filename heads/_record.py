"""The record's encoder: a patient's events in, a few tokens out, as wide as the image's, for a head to read beside them.

    encoder = RecordEncoder(RecordEncoderConfig(vocabulary_size=len(vocabulary)))
    tokens = encoder(RecordBatch.of([sequence, None]))     # (2, num_tokens, width); None is no record

A head whose config has a `RecordConfig` reads them through a `RecordBranch`. Of the record only its plain features are known here.

One token per event: what it is and what was measured together (fused code and value, which beats a token for each), when it was
(log-days before the index and the order of moments, which beat inserted time tokens), a small transformer, and learned queries that
pool any number of events into `num_tokens` (Perceiver, Jaegle et al. 2021). A patient without a record has learned tokens
instead, and in training every record is at times left out, so that reading images alone is something the model has practised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn

from ehr.features import PADDING, RecordSequence, State
from foundation.config import Config
from foundation.encoder import HEAD_DIM, make_blocks

# Edges between the bins of a value's place in its reference range (0 to 1): a quarter of it, then ever wider.
EDGES = (-4.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 5.0)
# Shortest and longest wave of the sines by which time is told: moments back from the index, and ln(1 + days) before it.
ORDERS, LOG_DAYS = (4.0, 4096.0), (0.5, 24.0)


class RecordNetworkConfig(Config):
    """`record_dropout` is how often a record is left out in training."""

    width: Annotated[int, Field(multiple_of=HEAD_DIM)] = 64
    depth: Annotated[int, Field(ge=1)] = 1
    num_tokens: Annotated[int, Field(ge=1)] = 8
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    record_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3


class RecordEncoderConfig(RecordNetworkConfig):
    vocabulary_size: Annotated[int, Field(ge=2)]


class RecordConfig(RecordNetworkConfig):
    """How a head reads the patient's record beside the images.

    `codes` is the vocabulary, in its order. Fine-tuning fits it on the training patients before their index study, with the codes
    that `min_patients` of them have, and keeps it here with the weights. In training `record_dropout` of the records and
    `image_dropout` of the studies are left out, so that reading without either has been practised.
    """

    codes: tuple[str, ...] = ()
    min_patients: Annotated[int, Field(ge=1)] = 5
    max_events: Annotated[int, Field(ge=2)] = 256
    image_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def encoder(self, vocabulary_size: int) -> RecordEncoderConfig:
        """The record's network alone, for that many codes."""
        network = self.model_dump(include=set(RecordNetworkConfig.model_fields))
        return RecordEncoderConfig(vocabulary_size=vocabulary_size, **network)


@dataclass(frozen=True)
class RecordBatch:
    """Sequences padded to a common length. An empty record has no real event."""

    code: Int[Tensor, "batch events"]
    position: Float[Tensor, "batch events"]
    state: Int[Tensor, "batch events"]
    comparator: Int[Tensor, "batch events"]
    log_days: Float[Tensor, "batch events"]
    order: Int[Tensor, "batch events"]
    is_real: Bool[Tensor, "batch events"]

    @classmethod
    def of(cls, sequences: Sequence[RecordSequence | None]) -> RecordBatch:
        """Collate; None is a patient without a record."""
        found = [sequence or RecordSequence.empty() for sequence in sequences]
        longest = max((len(one) for one in found), default=0)

        def padded(name: str, dtype: torch.dtype) -> Tensor:
            out = torch.full((len(found), longest), PADDING, dtype=dtype)
            for row, one in zip(out, found, strict=True):
                row[: len(one)] = torch.from_numpy(getattr(one, name))
            return out

        lengths = torch.tensor([len(one) for one in found])
        return cls(
            code=padded("code", torch.long),
            position=padded("position", torch.float32),
            state=padded("state", torch.long),
            comparator=padded("comparator", torch.long),
            log_days=padded("log_days", torch.float32),
            order=padded("order", torch.long),
            is_real=torch.arange(longest)[None] < lengths[:, None],
        )

    def to(self, device: torch.device | str) -> RecordBatch:
        return replace(
            self, **{one.name: getattr(self, one.name).to(device, non_blocking=True) for one in fields(self)}
        )


class EventEmbedding(nn.Module):
    """One vector per event: code and value fused, and the time."""

    edges: Tensor
    of_order: Tensor
    of_log_days: Tensor

    def __init__(self, vocabulary_size: int, width: int):
        super().__init__()
        self.code = nn.Embedding(vocabulary_size, width, padding_idx=PADDING)
        self.bin = nn.Embedding(len(EDGES) + 1, width)
        self.state = nn.Embedding(len(State), width)
        self.value = nn.Sequential(nn.Linear(2, width), nn.GELU(), nn.Linear(width, width))
        self.time = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width))
        self.fuse = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.register_buffer("edges", torch.tensor(EDGES), persistent=False)
        for name, (shortest, longest) in (("of_order", ORDERS), ("of_log_days", LOG_DAYS)):
            wavelengths = shortest * (longest / shortest) ** torch.linspace(0, 1, width // 2)
            self.register_buffer(name, 2 * math.pi / wavelengths, persistent=False)
        for table in (self.code, self.bin, self.state):
            nn.init.trunc_normal_(table.weight, std=0.02)
        with torch.no_grad():
            self.code.weight[PADDING] = 0

    def forward(self, batch: RecordBatch) -> Float[Tensor, "batch events width"]:
        has_value = ((batch.state == State.USABLE) | (batch.state == State.RELATIVE))[..., None]
        value = torch.stack([_squashed(batch.position), batch.comparator.float()], dim=-1)
        measured = self.bin(torch.bucketize(batch.position, self.edges)) + self.value(value)
        # The sum goes through a layer that mixes it: what a value means depends on whose it is.
        fact = self.code(batch.code) + self.state(batch.state) + torch.where(has_value, measured, 0.0)
        angles = torch.cat(
            [batch.order[..., None] * self.of_order, batch.log_days[..., None] * self.of_log_days], dim=-1
        )
        return fact + self.fuse(fact) + self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))


class RecordEncoder(nn.Module):
    """Events to `num_tokens` tokens, whatever the order in which they are given."""

    def __init__(self, config: RecordEncoderConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.embed = EventEmbedding(config.vocabulary_size, width)
        self.start = nn.Parameter(torch.empty(1, width))  # always there to be attended to, even in an empty record
        self.blocks = make_blocks(width, config.depth, mlp_ratio=8 / 3, num_prefix=1, layer_scale=0.1, drop_path=0.0)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.pool = AttentionPoolLatent(
            width, num_heads=width // HEAD_DIM, mlp_ratio=2, latent_len=config.num_tokens, pool_type="",
            norm_layer=nn.LayerNorm,
        )  # fmt: skip
        self.no_record = nn.Parameter(torch.empty(config.num_tokens, width))
        for parameter in (self.start, self.no_record):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(
        self, batch: RecordBatch, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """`generator` draws which records are left out in training; without it torch's own state does."""
        embedded = self.embed(batch)
        x = torch.cat([self.start.expand(len(embedded), -1, -1).to(embedded.dtype), self.dropout(embedded)], dim=1)
        may_see = nn.functional.pad(batch.is_real, (1, 0), value=True)[:, None, None]
        for block in self.blocks:
            x = block(x, attn_mask=may_see)
        pooled = self.pool(self.norm(x), attn_mask=may_see)
        # Selected, not branched: every weight has a gradient in every step, which distributed training relies on.
        has_record = batch.is_real.any(dim=1) & ~self._left_out(batch, generator)
        return torch.where(has_record[:, None, None], pooled, self.no_record.to(pooled.dtype))

    def _left_out(self, batch: RecordBatch, generator: torch.Generator | None) -> Bool[Tensor, " batch"]:
        device = batch.code.device
        if not self.training:
            return torch.zeros(len(batch.code), dtype=torch.bool, device=device)
        drawn = torch.rand(len(batch.code), generator=generator, device=generator.device if generator else device)
        return drawn.to(device) < self.config.record_dropout


class RecordBranch(nn.Module):
    """The record beside what a head took from the images: both side by side, each replaced by a learned vector where it is missing.

    The record's tokens are averaged and the two are not mixed before the head's last layer, so what each says adds up: with few
    patients there is nothing to learn interactions from.
    """

    def __init__(self, config: RecordConfig, image_width: int):
        super().__init__()
        self.config = config
        self.encoder = RecordEncoder(config.encoder(max(len(config.codes), PADDING + 2)))
        self.norm = nn.LayerNorm(config.width)
        self.no_image = nn.Parameter(torch.zeros(image_width))
        self.out_features = image_width + config.width

    def join(
        self,
        image: Float[Tensor, "batch image_width"],
        record: RecordBatch | None,
        has_image: Bool[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch both"]:
        """None is: nobody has a record, everybody has images."""
        if record is None:
            record = RecordBatch.of([None] * len(image)).to(image.device)
        seen = torch.ones(len(image), dtype=torch.bool, device=image.device) if has_image is None else has_image
        if self.training:
            seen = seen & (torch.rand(len(image), device=image.device) >= self.config.image_dropout)
        image = torch.where(seen[:, None], image, self.no_image.to(image.dtype))
        return torch.cat([image, self.norm(self.encoder(record)).mean(dim=1).to(image.dtype)], dim=1)


def _squashed(position: Tensor) -> Tensor:
    """Distance from the middle of the reference range, its logarithm where it is far."""
    from_middle = 2 * position - 1
    return from_middle.sign() * from_middle.abs().log1p() / math.log(2)
