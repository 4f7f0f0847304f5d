"""Classification of a whole study into one of several classes, by attentive pooling of its tokens.

A learned query attends to all tokens and registers (timm's `AttentionPoolLatent`); a linear layer reads the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc, multiclass_accuracy, multiclass_auroc

from foundation.encoder import EncoderConfig, Features, attention_mask
from foundation.errors import InputError
from foundation.findings import Finding, finding_id
from foundation.preprocess import PreparedStudy
from foundation.registry import KindConfig
from heads import base
from heads.base import HeadReading, StudyBatch, Target


class Config(KindConfig):
    """`target` is the key in a row's targets, whose value is the index of a class; class 0 is the unremarkable one."""

    kind: Literal["classification"] = "classification"
    target: str
    classes: tuple[str, ...]
    anatomy: str = "brain"
    dropout: float = 0.1


class Head(base.Head):
    is_dense = False
    main_score = "right"

    def __init__(self, encoder: EncoderConfig, config: Config):
        super().__init__(encoder, config)
        self.config = config
        self.norm = nn.LayerNorm(encoder.width)
        self.pool = AttentionPoolLatent(
            encoder.width, num_heads=encoder.width // 64, mlp_ratio=2, norm_layer=nn.LayerNorm
        )
        self.dropout = nn.Dropout(config.dropout)
        self.classify = nn.Linear(encoder.width, len(config.classes))

    def forward(self, features: Features, batch: StudyBatch) -> Float[Tensor, "batch classes"]:
        x = self.norm(torch.cat([features.registers, features.tokens], dim=1))
        pooled = self.pool(x, attn_mask=attention_mask(batch.tokens, features.registers.shape[1]))
        return self.classify(self.dropout(pooled))

    def loss(self, output: Tensor, batch: StudyBatch) -> dict[str, Tensor]:
        truth = torch.tensor([self.class_index(targets) for targets in batch.targets], device=output.device)
        return {"loss": nn.functional.cross_entropy(output.float(), truth)}

    def class_index(self, targets: dict[str, Target]) -> int:
        value = targets.get(self.config.target)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(self.config.classes):
            raise InputError(
                f"targets.{self.config.target} is the index of a class",
                got=repr(value),
                remedy=f"Use an integer from 0 to {len(self.config.classes) - 1}: {', '.join(self.config.classes)}.",
            )
        return value

    def refuse(self, *, source: str, why: str) -> list[Finding]:
        return [
            Finding(
                id=finding_id(source, name, "not_assessed"),
                name=name,
                anatomy=self.config.anatomy,
                side="not_assessed",
                presence="not_assessed",
                abnormal=True,
                source=source,
                note=why,
            )
            for name in self.config.classes[1:]
        ]

    def read(self, output: Tensor, prepared: PreparedStudy, *, source: str, mask_path: str | None) -> HeadReading:
        """One finding per class but the unremarkable first; present when it is the most probable class."""
        probabilities = self.calibrated(output)[0].softmax(dim=0).tolist()
        likeliest = int(np.argmax(probabilities))
        findings = [
            Finding(
                id=finding_id(source, name, "not_assessed"),
                name=name,
                anatomy=self.config.anatomy,
                side="not_assessed",
                presence="present" if index == likeliest else "absent",
                probability=probabilities[index],
                is_calibrated=self.calibration is not None,
                abnormal=True,
                source=source,
            )
            for index, name in enumerate(self.config.classes)
            if index > 0
        ]
        return HeadReading(findings)

    def score_case(
        self, output: Tensor, prepared: PreparedStudy, labels: np.ndarray | None, targets: dict[str, Target]
    ) -> dict[str, float]:
        """The probability of each class, the index of the true one, and whether that is the most probable."""
        probabilities = self.calibrated(output)[0].softmax(dim=0).tolist()
        truth = self.class_index(targets)
        return {f"p {name}": p for name, p in zip(self.config.classes, probabilities, strict=True)} | {
            "truth": float(truth),
            "right": float(int(np.argmax(probabilities)) == truth),
        }

    def summarise(self, cases: Sequence[dict[str, float]]) -> dict[str, float]:
        """AUROC (one against the rest where there are more than two classes) and accuracy averaged over the classes that occur.

        AUROC is not a number when the cases hold one class only.
        """
        probabilities = torch.tensor([[case[f"p {name}"] for name in self.config.classes] for case in cases])
        truth = torch.tensor([int(case["truth"]) for case in cases])
        num_classes = len(self.config.classes)
        if len(truth.unique()) < 2:
            auroc = float("nan")
        elif num_classes == 2:
            auroc = float(binary_auroc(probabilities[:, 1], truth))
        else:
            auroc = float(multiclass_auroc(probabilities, truth, num_classes))
        recalls = multiclass_accuracy(probabilities, truth, num_classes, average="none")
        return {"auroc": auroc, "balanced accuracy": float(recalls[truth.unique()].mean())}
