"""Image quality: which artefact spoils a study's reference series, and how badly, on the simulator's scale of 0 to 5.

Truth comes from the cohort, or from artefacts that training itself puts into images that have none (`augment.artefact`); so
no one has to label anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc, multiclass_accuracy

from foundation.encoder import EncoderConfig
from foundation.findings import Finding, Measurement
from foundation.physics.artefacts import ARTEFACTS, SEVERITIES
from foundation.preprocess import PreparedStudy
from foundation.registry import KindConfig
from heads._study import StudyHead, class_of, number_of, one_of, refused, whole_study_finding
from heads.base import HeadReading, StudyBatch, Target

KINDS = ("none", *ARTEFACTS)
KIND, SEVERITY = "artefact", "artefact_severity"  # the keys of a row's targets


class Config(KindConfig):
    kind: Literal["quality"] = "quality"
    anatomy: str = "images"
    dropout: float = 0.1


class Head(StudyHead):
    """Scores of each kind, none among them, and the severity, which is 0 where there is none."""

    def __init__(self, encoder: EncoderConfig, config: Config):
        super().__init__(encoder, config, num_outputs=len(KINDS) + 1, dropout=config.dropout)
        self.config = config

    def loss(self, output: Tensor, batch: StudyBatch) -> dict[str, Tensor]:
        """Cross-entropy of the kind plus Huber's loss of the severity, over the rows that know; 0 where a batch knows none."""
        output = output.float()
        truth = torch.tensor([self.truth_of(targets) for targets in batch.targets], device=output.device)
        known = torch.isfinite(truth[:, 0])
        if not known.any():
            return {"loss": 0 * output.sum()}
        kind_loss = nn.functional.cross_entropy(output[known, :-1], truth[known, 0].long())
        severity_loss = nn.functional.huber_loss(output[known, -1], truth[known, 1])
        return {"loss": kind_loss + severity_loss, "kind": kind_loss, "severity": severity_loss}

    def columns(self, targets: Sequence[dict[str, Target]]) -> list[tuple[np.ndarray, bool]]:
        truth = np.array([self.truth_of(one) for one in targets])
        return [*((one, True) for one in one_of(truth[:, 0], len(KINDS))), (truth[:, 1], False)]

    @staticmethod
    def truth_of(targets: dict[str, Target]) -> list[float]:
        """The index of the kind and the severity from 0 to 1, as the output has them; not a number where it is not known."""
        kind = class_of(targets, KIND, KINDS)
        return [float("nan")] * 2 if kind is None else [float(kind), _severity(targets) / max(SEVERITIES)]

    def _said(self, output: Tensor) -> tuple[Float[Tensor, " kinds"], float]:
        severity = float(output[0, -1]) * max(SEVERITIES)
        return output[0, :-1].float().softmax(dim=0), min(max(severity, 0.0), float(max(SEVERITIES)))

    def refuse(self, *, source: str, why: str) -> list[Finding]:
        return refused(_names(), self.config.anatomy, source=source, why=why, abnormal=False)

    def read(self, output: Tensor, prepared: PreparedStudy, *, source: str, mask_path: str | None) -> HeadReading:
        """One finding per kind of artefact; the severity is a measurement of the one that is there."""
        probabilities, severity = self._said(output)
        likeliest = int(probabilities.argmax())
        findings = []
        for index, name in enumerate(_names(), start=1):
            found = whole_study_finding(
                name,
                self.config.anatomy,
                source=source,
                is_present=index == likeliest,
                probability=float(probabilities[index]),
                abnormal=False,
            )
            if index == likeliest:
                method = f"regression by {source}; 1 hardly visible, 5 useless"
                measured = Measurement(name="severity", value=severity, unit="1", method=method)
                found = found.model_copy(update={"measurements": (measured,)})
            findings.append(found)
        return HeadReading(findings)

    def score_case(
        self, output: Tensor, prepared: PreparedStudy, labels: np.ndarray | None, targets: dict[str, Target]
    ) -> dict[str, float]:
        probabilities, severity = self._said(output)
        truth = class_of(targets, KIND, KINDS)
        scores = {f"p {name}": float(p) for name, p in zip(KINDS, probabilities, strict=True)} | {"said": severity}
        if truth is None:
            return scores | {"truth": float("nan"), "severity": float("nan")}
        return scores | {"truth": float(truth), "severity": _severity(targets)}

    def summarise(self, cases: Sequence[dict[str, float]]) -> dict[str, float]:
        """AUROC of spoilt against not, balanced accuracy of the kind, mean absolute error of the severity."""
        cases = [case for case in cases if np.isfinite(case["truth"])]
        if not cases:
            return {name: float("nan") for name in ("auroc", "balanced accuracy", "severity error")}
        truth = torch.tensor([int(case["truth"]) for case in cases])
        probabilities = torch.tensor([[case[f"p {name}"] for name in KINDS] for case in cases])
        is_spoilt = (truth > 0).long()
        auroc = float(binary_auroc(1 - probabilities[:, 0], is_spoilt)) if len(is_spoilt.unique()) > 1 else float("nan")
        recalls = multiclass_accuracy(probabilities, truth, len(KINDS), average="none")
        error = float(np.mean([abs(case["said"] - case["severity"]) for case in cases]))
        return {"auroc": auroc, "balanced accuracy": float(recalls[truth.unique()].mean()), "severity error": error}


def _names() -> list[str]:
    """As findings call them."""
    return [f"{name} artefact" for name in KINDS[1:]]


def _severity(targets: dict[str, Target]) -> float:
    return number_of(targets, SEVERITY) or 0.0
