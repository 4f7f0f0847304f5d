"""What heads that answer for a whole study share: pooling of its tokens, the record beside them, and rows without the answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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

    It may begin with a glance: a linear map on what registers and the mean token say, fitted in closed form (finetune/linear.py).
    It stays as it was fitted, and what is learnt, which then begins as nothing, is added to it (after Kumar et al. 2022: first a
    linear probe, then fine-tuning). Some hundred steps from a random layer ended below that map alone.

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
        self.glance: Tensor
        self.glance_bias: Tensor
        self.register_buffer("glance", torch.zeros(num_outputs, (encoder.num_registers + 1) * encoder.width))
        self.register_buffer("glance_bias", torch.zeros(num_outputs))

    def forward(self, features: Features, batch: StudyBatch) -> Float[Tensor, "batch ..."]:
        x = self.norm(torch.cat([features.registers, features.tokens], dim=1))
        pooled = self.pool(x, attn_mask=attention_mask(batch.tokens, features.registers.shape[1]))
        answer = self.conclude(pooled, batch.record, batch.has_image)
        return self.finish(answer + self.at_a_glance(features, batch).to(answer.dtype))

    def at_a_glance(self, features: Features, batch: StudyBatch) -> Float[Tensor, "batch outputs"]:
        said = nn.functional.linear(self.glimpse(features, batch), self.glance, self.glance_bias)
        return said if batch.has_image is None else said * batch.has_image[:, None]

    @staticmethod
    def glimpse(features: Features, batch: StudyBatch) -> Float[Tensor, "batch numbers"]:
        """The registers and the mean token."""
        is_real = batch.tokens.is_real[..., None].float()
        mean = (features.tokens.float() * is_real).sum(dim=1) / is_real.sum(dim=1).clamp(min=1)
        return torch.cat([features.registers.float().flatten(1), mean], dim=1)

    def begin(self, weights: Float[Tensor, "outputs numbers"], constants: Float[Tensor, " outputs"]) -> None:
        """Take a map from a glimpse to the output as it was fitted, and say nothing else for now."""
        bias = self.unfinish(constants[None])
        with torch.no_grad():
            self.glance.copy_((self.unfinish(constants + weights.T) - bias).T)
            self.glance_bias.copy_(bias[0])
            self.answer.weight.zero_()
            self.answer.bias.zero_()

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

    def unfinish(self, output: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch outputs"]:
        """What the linear layer says where the output is this."""
        return output

    def columns(self, targets: Sequence[dict[str, Target]]) -> list[tuple[np.ndarray, bool]]:
        """What each of its outputs is to be: a number, or 0 and 1 for a class, and which of both; not a number where a row does
        not know. Empty where that is no plain number."""
        return []


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


def one_of(truth: Float[np.ndarray, " rows"], num_classes: int) -> list[Float[np.ndarray, " rows"]]:
    """For each class whether it is a row's index; not a number where that is not known."""
    known = np.where(np.isfinite(truth), 0.0, np.nan)
    return [(truth == index) + known for index in range(num_classes)]


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
