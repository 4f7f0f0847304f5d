"""What an objective is: a module that takes a batch and returns a dict with `loss`, and that says what its samples are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from foundation.encoder import Encoder, layer_rate
from foundation.training import Samples
from pretrain.samples import Studies


class Objective(nn.Module):
    """`make_samples` turns the run's studies into this objective's samples; `forward` takes their batches."""

    encoder: Encoder
    layer_decay = 1.0

    def __init__(self, encoder: Encoder, config: Any):
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Scalars with `loss`."""
        raise NotImplementedError

    def make_samples(self, studies: Studies, crop: Any) -> Samples:
        """`crop` is the run's `CropConfig`: what one box shows."""
        raise NotImplementedError

    def learning_rate_scale(self, name: str) -> float:
        """Deeper blocks of the encoder learn faster where `layer_decay` is below 1."""
        if not name.startswith("encoder."):
            return 1.0
        return layer_rate(name, self.encoder.config.depth, self.layer_decay)

    def save_beside(self, folder: Path, *, provenance: dict[str, Any]) -> list[Path]:
        """Write what was learnt besides the encoder and is of use later; return the paths."""
        return []

    def save_pictures(self, folder: Path, sample: Any) -> list[Path]:
        """Show what was learnt on one of its samples; return the paths. The module is on the CPU, for evaluation."""
        return []
