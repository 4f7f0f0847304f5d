"""Training on the cohort's simulated k-space: every use of a head is another scan of it, with another mask.

    train_reconstruction(TrainReconstructionConfig(), Path("runs/reconstruction"))

Without the inverse crime (Shimron et al. 2022): the head is finer than what is measured of it, every slice has a phase of its
own, sensitivities are estimated from the lines that the mask keeps, and noise is there before anything is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from foundation.cohort.raw import simulate_raw
from foundation.cohort.stream import StreamConfig, shared_stream
from foundation.config import Config, save_config
from foundation.raw import RawData
from foundation.reconstruction.command import Undersampling
from foundation.study import CONTRASTS
from foundation.training import Draw, TrainingConfig, TrainingResult, software_versions, train
from heads.reconstruction.network import Scans, Unrolled, UnrolledConfig, collate
from heads.reconstruction.scan import Scan

MASKS = ("equispaced", "random", "magic")
CALIBRATED = (0.32, 0.64)  # of what is kept: as fastMRI, and twice that
UNTOLD = 0.3  # how often the contrast and the noise are kept from the network, since files often do

CARD = """# Reconstruction of accelerated scans

{cascades} unrolled steps with U-Nets of {channels} channels, {steps} training steps on synthetic heads made from MNI152 averages.
Evidence about synthetic heads only. It holds to the samples but can invent what they leave open: look at where it differs
from cg-sense. Not a medical device.
"""


class TrainReconstructionConfig(Config):
    """`subjects` are the first of the cohort; those to test on come after them."""

    network: UnrolledConfig = UnrolledConfig()
    training: TrainingConfig = TrainingConfig(
        steps=2000, batch_size=2, learning_rate=1e-3, warmup_steps=50, weight_decay=0.0, precision="fp32"
    )
    cohort: StreamConfig = StreamConfig(subjects=40, contrasts=("T1w", "T2w", "FLAIR"), missing_series=0.0)
    num_slices: Annotated[int, Field(ge=1)] = 4
    num_coils: tuple[int, int] = (4, 12)
    noise: tuple[float, float] = (0.005, 0.04)
    acceleration: tuple[float, float] = (2.0, 8.0)
    denoise: tuple[float, float] = (0.0, 1.0)


class CohortScans:
    """The samples of the training loop. Which head is the index's; all else is the draw's."""

    def __init__(self, config: TrainReconstructionConfig):
        self.config = config
        self.stream = shared_stream(config.cohort)

    def __len__(self) -> int:
        return self.config.cohort.subjects

    def __getitem__(self, draw: Draw) -> Scan:
        config, rng = self.config, np.random.default_rng(draw.seed)
        raw = self.raw(draw.index, rng)
        low, high = config.acceleration
        acceleration = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        lines = max(5, round(rng.uniform(*CALIBRATED) / acceleration * raw.shape[1]))
        mask = Undersampling(acceleration, str(rng.choice(MASKS)), lines, None, int(rng.integers(2**31))).draw(raw)
        kept = raw.keep(mask)
        contrast = raw.facts["contrast"]
        if rng.random() < UNTOLD:
            contrast, kept = "unknown", replace(kept, noise=None)
        scan = Scan.of(
            kept,
            denoise=rng.uniform(*config.denoise),
            contrast=contrast if contrast in CONTRASTS else "unknown",
            with_tokens=config.network.encoder is not None,
        )
        return scan.aiming_at(raw)

    def raw(self, index: int, rng: np.random.Generator) -> RawData:
        """A complete scan of a head: contrast, coils, noise and slices are drawn."""
        config = self.config
        return simulate_raw(
            *self.stream.head(index),
            str(rng.choice(config.cohort.contrasts)),
            rng,
            num_slices=config.num_slices,
            num_coils=int(rng.integers(config.num_coils[0], config.num_coils[1] + 1)),
            noise=float(rng.uniform(*config.noise)),
        )

    def collate(self, samples: list[Scan]) -> Scans:
        return collate(samples)


def train_reconstruction(
    config: TrainReconstructionConfig, folder: Path, *, on_start: Callable[[str], None] = print
) -> tuple[Unrolled, TrainingResult]:
    """Writes config.yaml, metrics.jsonl, checkpoints and `model/`; the same call continues where it was stopped."""
    torch.manual_seed(config.training.seed)
    network = Unrolled(config.network)
    save_config(config, folder / "config.yaml")
    result = train(network, CohortScans(config), config.training, folder, label="reconstruction", on_start=on_start)
    card = CARD.format(cascades=config.network.cascades, channels=config.network.channels, steps=config.training.steps)
    provenance = {"training": config.model_dump(mode="json"), "versions": software_versions()}
    network.save(folder / "model", card=card, provenance=provenance)
    return network.eval(), result
