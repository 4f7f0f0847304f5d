"""Training on the cohort, where maps are known and no contrast is missing: some are kept back, and to be said.

train_synthesis(TrainSynthesisConfig(), Path("runs/synthesis"))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from numpy.random import default_rng
from pydantic import Field
from torch import Tensor

from foundation.cohort.acquisition import quantitative_maps
from foundation.cohort.anatomy import Anatomy
from foundation.cohort.patient import scan_again
from foundation.cohort.stream import StreamConfig, shared_stream
from foundation.config import Config, save_config
from foundation.physics.relaxometry import TissueTable
from foundation.preprocess import Grid, prepare_study, sample_at
from foundation.study import Study
from foundation.training import Draw, TrainingConfig, TrainingResult, fold, software_versions, train
from heads.synthesis.network import CONTRASTS, MAPS, Translator, TranslatorConfig, View, Views, collate

CARD = """# Maps and missing contrasts

A U-Net of {channels} channels, {steps} training steps on synthetic heads made from MNI152 averages. Relaxation times are those of
the simulator: published T1 of white matter alone differs by a factor of two. What it says of a contrast is a guess of what a
scanner would have shown of a healthy head: lesions may be missing, and one that only that contrast shows is. Not a medical device.
"""


class TrainSynthesisConfig(Config):
    """`variants` studies are made of each head, and `kept_slices` slices of each are kept in memory."""

    network: TranslatorConfig = TranslatorConfig()
    training: TrainingConfig = TrainingConfig(
        steps=6000, batch_size=1, learning_rate=2e-3, warmup_steps=30, weight_decay=0.0, ema_decay=0.99
    )
    cohort: StreamConfig = StreamConfig(subjects=40, contrasts=CONTRASTS, missing_series=0.0)
    variants: Annotated[int, Field(ge=1)] = 3
    kept_slices: Annotated[int, Field(ge=1)] = 24
    slices: Annotated[int, Field(ge=1)] = 4
    missing: Annotated[float, Field(ge=0, lt=1)] = 0.4
    untold: Annotated[float, Field(ge=0, le=1)] = 0.3


class CohortViews:
    """The samples of the training loop: which head is the index's, all else the draw's."""

    def __init__(self, config: TrainSynthesisConfig):
        self.config = config
        self.stream = shared_stream(config.cohort)
        self.kept: dict[Draw, View] = {}

    def __len__(self) -> int:
        return self.config.cohort.subjects

    def __getitem__(self, draw: Draw) -> View:
        config, rng = self.config, default_rng(draw.seed)
        known = Draw(draw.index, draw.seed % config.variants)
        if known not in self.kept:
            view = whole_view(*self.stream.head(draw.index), config.cohort, known.seed + 1, config.network.spacing_mm)
            seen = view.body.flatten(1).any(1).nonzero()[:, 0]
            chosen = default_rng(fold(draw.index, known.seed)).choice(
                len(seen), min(config.kept_slices, len(seen)), replace=False
            )
            self.kept[known] = view.some(seen[torch.from_numpy(chosen)])
        view = self.kept[known]
        view = view.some(torch.from_numpy(rng.permutation(len(view.images))[: config.slices]))
        if rng.random() < config.untold:
            view = replace(view, acquisition=torch.zeros_like(view.acquisition))
        return view.keeping(drawn_presence(rng, config.missing))

    def collate(self, samples: list[View]) -> Views:
        return collate(samples)


def drawn_presence(rng: np.random.Generator, missing: float) -> Tensor:
    """At least one contrast is there and one is not: there is something to learn in every draw."""
    kept = rng.random(len(CONTRASTS)) >= missing
    if kept.all() or not kept.any():
        kept[int(rng.integers(len(kept)))] ^= True
    return torch.from_numpy(kept)


def whole_view(anatomy: Anatomy, tissues: TissueTable, config: StreamConfig, repeat: int, spacing_mm: float) -> View:
    """A study of a head with every contrast, and the truth on the same grid."""
    scans = scan_again(anatomy, tissues, config, repeat)
    study = Study(anatomy.subject.name, tuple(scan.series for scan in scans))
    prepared = prepare_study(study, (spacing_mm,) * 3)
    view = View.of(prepared)
    maps = truth(anatomy, tissues, prepared.grid)
    return replace(view, targets=view.images, maps=maps)


def truth(anatomy: Anatomy, tissues: TissueTable, grid: Grid) -> Float[Tensor, "slices maps rows columns"]:
    """The simulator's maps as log(value / typical), NaN in air: of the main material at each place, so nothing is averaged."""
    values = quantitative_maps(anatomy, tissues)
    on_grid = []
    for name, typical in MAPS.items():
        sampled = torch.from_numpy(sample_at(values[name], anatomy.affine, grid, nearest=True)).float()
        on_grid.append(torch.where(sampled > 0, sampled / typical, torch.nan).log())
    return torch.stack(on_grid).permute(3, 0, 1, 2)


def train_synthesis(
    config: TrainSynthesisConfig, folder: Path, *, on_start: Callable[[str], None] = print
) -> tuple[Translator, TrainingResult]:
    """Writes config.yaml, metrics.jsonl, checkpoints and `model/`; the same call continues where it was stopped."""
    torch.manual_seed(config.training.seed)
    network = Translator(config.network)
    save_config(config, folder / "config.yaml")
    result = train(network, CohortViews(config), config.training, folder, label="synthesis", on_start=on_start)
    card = CARD.format(channels=config.network.channels, steps=config.training.steps)
    provenance = {"training": config.model_dump(mode="json"), "versions": software_versions()}
    network.save(folder / "model", card=card, provenance=provenance)
    return network.eval(), result
