"""Regression: one number for a whole study, such as brain age.

The network says how far from the training rows' mean, in their standard deviations, so that its weights know no unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from foundation.encoder import EncoderConfig
from foundation.errors import InputError
from foundation.findings import Finding, Measurement, finding_id
from foundation.preprocess import PreparedStudy
from foundation.registry import KindConfig
from heads._record import RecordConfig
from heads._study import StudyHead, number_of, refused
from heads.base import HeadReading, StudyBatch, Target


class Config(KindConfig):
    """`target` is the key in a row's targets; rows without it are not learnt from. `unit` is in UCUM (`a` is a year).

    `name` is what a reading calls the number, which is a measurement and no disease. With a `record` the patient's record is read
    beside the images.
    """

    kind: Literal["regression"] = "regression"
    target: str
    name: str
    unit: str
    anatomy: str = "brain"
    dropout: float = 0.1
    record: RecordConfig | None = None


class Head(StudyHead):
    def __init__(self, encoder: EncoderConfig, config: Config):
        super().__init__(encoder, config, num_outputs=1, dropout=config.dropout)
        self.config = config
        self.mean: Tensor
        self.spread: Tensor
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def meet(self, targets: Sequence[dict[str, Target]]) -> None:
        values = np.array([number_of(one, self.config.target) for one in targets], dtype=float)
        values = values[np.isfinite(values)]
        if not len(values):
            raise InputError(
                "a regression has rows to learn from",
                got=f"none with targets.{self.config.target}",
                remedy="Name another target, or write it into the manifest.",
            )
        self.mean.fill_(float(values.mean()))
        self.spread.fill_(float(values.std()) or 1.0)

    def finish(self, answer: Float[Tensor, "batch 1"]) -> Float[Tensor, " batch"]:
        return self.mean + self.spread * answer[:, 0]

    def unfinish(self, output: Float[Tensor, "batch 1"]) -> Float[Tensor, "batch 1"]:
        return (output - self.mean) / self.spread

    def columns(self, targets: Sequence[dict[str, Target]]) -> list[tuple[np.ndarray, bool]]:
        return [(np.array([self.truth_of(one) for one in targets]), False)]

    def loss(self, output: Tensor, batch: StudyBatch) -> dict[str, Tensor]:
        """Huber's, in standard deviations, over the rows that know; 0 where a batch knows none."""
        truth = torch.tensor([self.truth_of(targets) for targets in batch.targets], device=output.device)
        known = torch.isfinite(truth)
        output = output.float()
        if not known.any():
            return {"loss": 0 * output.sum()}
        error = (output[known] - truth[known]) / self.spread
        return {"loss": nn.functional.huber_loss(error, torch.zeros_like(error))}

    def truth_of(self, targets: dict[str, Target]) -> float:
        value = number_of(targets, self.config.target)
        return float("nan") if value is None else value

    def refuse(self, *, source: str, why: str) -> list[Finding]:
        return refused([self.config.name], self.config.anatomy, source=source, why=why, abnormal=False)

    def read(self, output: Tensor, prepared: PreparedStudy, *, source: str, mask_path: str | None) -> HeadReading:
        """The number as the measurement of a finding that is not abnormal by being there."""
        config = self.config
        value = Measurement(
            name=config.name, value=float(output[0]), unit=config.unit, method=f"regression by {source}"
        )
        finding = Finding(
            id=finding_id(source, config.name, "not_assessed"),
            name=config.name,
            anatomy=config.anatomy,
            side="not_assessed",
            presence="present",
            abnormal=False,
            measurements=(value,),
            source=source,
        )
        return HeadReading([finding])

    def score_case(
        self, output: Tensor, prepared: PreparedStudy, labels: np.ndarray | None, targets: dict[str, Target]
    ) -> dict[str, float]:
        return {"said": float(output[0]), "truth": self.truth_of(targets)}

    def summarise(self, cases: Sequence[dict[str, float]]) -> dict[str, float]:
        """Mean absolute error, mean error and the correlation, over the cases whose truth is known."""
        said, truth = (np.array([case[name] for case in cases]) for name in ("said", "truth"))
        known = np.isfinite(truth)
        if not known.any():
            return {"mae": float("nan"), "bias": float("nan"), "correlation": float("nan")}
        error = said[known] - truth[known]
        varies = known.sum() > 1 and np.ptp(said[known]) > 0 and np.ptp(truth[known]) > 0
        correlation = float(np.corrcoef(said[known], truth[known])[0, 1]) if varies else float("nan")
        return {"mae": float(np.abs(error).mean()), "bias": float(error.mean()), "correlation": correlation}
