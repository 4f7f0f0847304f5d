"""What heads that answer for a whole study share: pooling of its tokens, the record beside them, and rows without the answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn

from foundation.encoder import HEAD_DIM, EncoderConfig, Features, attention_mask
from foundation.errors import InputError
from foundation.findings import Finding, finding_id
from heads import base
from heads._record import RecordBatch, RecordBranch, RecordConfig
from heads.base import StudyBatch, Target

PRIOR_COUNT = 1.0  # added to each class, so that one that a handful of rows lacks is not impossible


class StudyHead(base.Head):
    """A learned query attends to all tokens and registers; a linear layer, `answer`, reads the result.

    Where the head's config has a `record`, the patient's record stands beside it (`heads/_record.py`).
    """

    is_dense = False

    def __init__(self, encoder: EncoderConfig, config: base.HeadConfig, *, num_outputs: int, dropout: float):
        super().__init__(encoder, config)
        self.norm = nn.LayerNorm(encoder.width)
        self.pool = AttentionPoolLatent(
            encoder.width, num_heads=encoder.width // HEAD_DIM, mlp_ratio=2, norm_layer=nn.LayerNorm
        )
        self.dropout = nn.Dropout(dropout)
        record: RecordConfig | None = getattr(config, "record", None)
        self.record = None if record is None else RecordBranch(record, encoder.width)
        self.answer = nn.Linear(encoder.width if self.record is None else self.record.out_features, num_outputs)

    def forward(self, features: Features, batch: StudyBatch) -> Float[Tensor, "batch ..."]:
        x = self.norm(torch.cat([features.registers, features.tokens], dim=1))
        pooled = self.pool(x, attn_mask=attention_mask(batch.tokens, features.registers.shape[1]))
        return self.finish(self.conclude(pooled, batch.record, batch.has_image))

    def conclude(
        self,
        pooled: Float[Tensor, "batch width"],
        record: RecordBatch | None,
        has_image: Bool[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch outputs"]:
        """The last layer's answer from what was pooled of the images, and the record."""
        if self.record is not None:
            pooled = self.record.join(pooled, record, has_image)
        return self.answer(self.dropout(pooled))

    def finish(self, answer: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch ..."]:
        """The output from what a linear layer says, ours or another network's: in the target's unit, with its frequencies."""
        return answer


def number_of(targets: dict[str, Target], name: str) -> float | None:
    """A row's number, None where it has none; anything else is an `InputError`."""
    value = targets.get(name)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return None if value is None else float(value)
    raise InputError(
        f"targets.{name} is a number", got=repr(value), remedy="Use a number, or null where it is not known."
    )


def class_of(targets: dict[str, Target], name: str, classes: Sequence[str]) -> int | None:
    """The index of a row's class, which it gives by index or by name; None where it is not known."""
    value = targets.get(name)
    if value is None:
        return None
    if isinstance(value, str) and value in classes:
        return list(classes).index(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(classes):
        raise InputError(
            f"targets.{name} is a class by name or index, or null where it is not known",
            got=repr(value),
            remedy=f"Use an integer from 0 to {len(classes) - 1}, or one of: {', '.join(classes)}.",
        )
    return value


def log_shares(counts: Sequence[float]) -> Tensor:
    """The logarithm of how frequent each class is, `PRIOR_COUNT` more of each than there were."""
    smoothed = torch.tensor(counts, dtype=torch.float32) + PRIOR_COUNT
    return (smoothed / smoothed.sum()).log()


def whole_study_finding(
    name: str,
    anatomy: str,
    *,
    source: str,
    is_present: bool,
    probability: float,
    is_calibrated: bool = False,
    abnormal: bool = True,
) -> Finding:
    """A finding that has no place and no side."""
    return Finding(
        id=finding_id(source, name, "not_assessed"),
        name=name,
        anatomy=anatomy,
        side="not_assessed",
        presence="present" if is_present else "absent",
        probability=probability,
        is_calibrated=is_calibrated,
        abnormal=abnormal,
        source=source,
    )


def refused(names: Sequence[str], anatomy: str, *, source: str, why: str, abnormal: bool = True) -> list[Finding]:
    """Each of these, not assessed."""
    return [
        Finding(
            id=finding_id(source, name, "not_assessed"),
            name=name,
            anatomy=anatomy,
            side="not_assessed",
            presence="not_assessed",
            abnormal=abnormal,
            source=source,
            note=why,
        )
        for name in names
    ]
