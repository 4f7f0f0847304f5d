"""When a fit has learnt what it will: a loss beside the training's own, and the rule that ends training by it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from finetune.config import FinetuneConfig
from finetune.samples import LabelledSamples, LabelledStudy
from foundation.training import Draw, Record, fold
from heads.base import Head, StudySample

LOSS = "validation_loss"
DRAWS = 16  # of training studies, where there are no others


class ValidationLoss:
    """The gauge of `foundation.training` that measures and judges it. The samples are the same each time."""

    def __init__(
        self, validation: Sequence[LabelledStudy], training: LabelledSamples, head: Head, config: FinetuneConfig
    ):
        self.rule = config.stopping
        self.every = config.stopping.every
        self.size = config.training.batch_size
        seed = config.training.seed
        self.collate = training.collate
        self.samples: list[StudySample] = []
        if validation:
            held = LabelledSamples(validation, head, config)
            self.samples = [held.plain(Draw(index, fold(seed, 71, index))) for index in range(len(held))]
        else:
            self.samples = [training[Draw(draw % len(training), fold(seed, 72, draw))] for draw in range(DRAWS)]

    @torch.inference_mode()
    def measure(self, objective: nn.Module) -> dict[str, float]:
        was_training, device = objective.training, next(objective.parameters()).device
        objective.eval()
        total = 0.0
        for first in range(0, len(self.samples), self.size):
            part = self.samples[first : first + self.size]
            total += len(part) * float(objective(self.collate(part).to(device))["loss"])
        objective.train(was_training)
        return {LOSS: total / len(self.samples)}

    def enough(self, records: Sequence[Record]) -> bool:
        values = [record[LOSS] for record in records if LOSS in record]
        before, after = values[: -self.rule.patience], values[-self.rule.patience :]
        return bool(before) and min(after) > (1 - self.rule.least) * min(before)
