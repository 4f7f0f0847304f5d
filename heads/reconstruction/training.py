"""Training on the cohort's simulated k-space: every use of a head is another scan of it, with another mask.

    train_reconstruction(TrainReconstructionConfig(), Path("runs/reconstruction"))

Without the inverse crime (Shimron et al. 2022): the head is finer than what is measured of it, every slice has a phase of its
own, sensitivities are estimated from the lines that the mask keeps, and noise is there before anything is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from foundation.checkpoint import load_model_folder, shapes_of
from foundation.cohort.raw import FINER, simulate_raw
from foundation.cohort.stream import StreamConfig, shared_stream
from foundation.config import Config, save_config
from foundation.errors import did_you_mean
from foundation.raw import RawData
from foundation.study import CONTRASTS
from foundation.training import Draw, TrainingConfig, TrainingResult, fold, software_versions, train
from heads.adapters.folder import encoder_of
from heads.reconstruction.network import KIND, Scans, Unrolled, UnrolledConfig, collate
from heads.reconstruction.scan import Scan
from heads.reconstruction.tasks import TASKS, draw_task

MIXTURE = {"acceleration": 0.7, **dict.fromkeys(TASKS, 0.3 / len(TASKS))}
MODEL = "model"
ENCODED = re.compile(r"^encoder\.|\.look\.")  # what a network without an encoder does not have
UNTOLD = 0.3  # how often the contrast and the noise are kept from the network, since files often do

CARD = """# Reconstruction of accelerated scans

{cascades} unrolled steps with U-Nets of {channels} channels, {steps} training steps on synthetic heads made from MNI152 averages.
Evidence about synthetic heads only. It holds to the samples but can invent what they leave open: look at where it differs
from cg-sense. Not a medical device.
"""


class TrainReconstructionConfig(Config):
    """`subjects` are the first of the cohort; those to test on come after them.

    `tasks` are the shares of what is learned, of `heads/reconstruction/tasks.py`; what is not named is not learned.
    `variants` scans are made of each head, and kept in memory (some MB each), since to make one takes about as long as to
    learn from it; None makes another one each time. A step sees `slices_a_step` of the `num_slices` of one. Pixels are `finer`
    times as wide as the voxels of the head. `denoise` above 1 is 1, so that more are to be noise-free than lie between. `start`
    is the folder of a model whose weights every network begins with, as far as it has them; `encoder_start` that of a model
    whose encoder those with an encoder of its shape begin with.

    `beside` are other networks that learn from the same scans in the same steps, to compare with.
    """

    network: UnrolledConfig = UnrolledConfig()
    beside: dict[str, UnrolledConfig] = Field(default_factory=dict)
    start: Path | None = None
    encoder_start: Path | None = None
    training: TrainingConfig = TrainingConfig(
        steps=2600,
        batch_size=1,
        learning_rate=2e-3,
        warmup_steps=30,
        weight_decay=0.0,
        clip_norm=10.0,
        ema_decay=0.99,
        checkpoint_every=50,
    )
    cohort: StreamConfig = StreamConfig(subjects=48, contrasts=("T1w", "T2w", "FLAIR"), missing_series=0.0)
    variants: Annotated[int, Field(ge=1)] | None = 6
    num_slices: Annotated[int, Field(ge=1)] = 3
    slices_a_step: Annotated[int, Field(ge=1)] = 3
    num_coils: tuple[int, int] = (4, 8)
    noise: tuple[float, float] = (0.005, 0.04)
    spots: Annotated[int, Field(ge=0)] = 6
    finer: tuple[float, float] = (FINER, FINER)
    acceleration: tuple[float, float] = (2.5, 9.0)
    denoise: tuple[float, float] = (0.0, 2.0)
    tasks: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=lambda: dict(MIXTURE))

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, tasks: dict[str, float]) -> dict[str, float]:
        for name in tasks:
            if name not in MIXTURE:
                raise ValueError(f"a task is a known one, not {name!r}; {did_you_mean(name, MIXTURE)}")
        if not sum(tasks.values()) > 0:
            raise ValueError("some task has a share above 0")
        return tasks


class Together(nn.Module):
    """Networks that do not know of each other, and see the same scans."""

    def __init__(self, networks: dict[str, Unrolled]):
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    def forward(self, batch: Scans) -> dict[str, Tensor]:
        losses = {name: network(batch) for name, network in self.networks.items()}
        each = {f"{name} {what}": value for name, one in losses.items() for what, value in one.items()}
        return {"loss": torch.stack([one["loss"] for one in losses.values()]).sum(), **each}

    def learning_rate_scale(self, name: str) -> float:
        _, network, inside = name.split(".", 2)
        return cast(Unrolled, self.networks[network]).learning_rate_scale(inside)


class CohortScans:
    """The samples of the training loop. Which head is the index's; all else is the draw's."""

    def __init__(self, config: TrainReconstructionConfig):
        self.config = config
        self.stream = shared_stream(config.cohort)
        self.kept: dict[Draw, Scan] = {}

    def __len__(self) -> int:
        return self.config.cohort.subjects

    def __getitem__(self, draw: Draw) -> Scan:
        if self.config.variants is None:
            return self.some(self.make(draw), draw.seed)
        again, variant = divmod(draw.seed, self.config.variants)
        draw = Draw(draw.index, variant)
        if draw not in self.kept:
            self.kept[draw] = self.make(Draw(draw.index, fold(draw.index, variant)))
        return self.some(self.kept[draw], again)

    def some(self, scan: Scan, first: int) -> Scan:
        """As many slices as a step sees, from this one on and round again."""
        number = len(scan.kspace)
        return scan.only(*((first + one) % number for one in range(min(number, self.config.slices_a_step))))

    def make(self, draw: Draw) -> Scan:
        config, rng = self.config, np.random.default_rng(draw.seed)
        names, shares = list(config.tasks), np.array(list(config.tasks.values()))
        task = str(rng.choice(names, p=shares / shares.sum()))
        spoilt = draw_task(self.raw(draw.index, rng), task, rng, acceleration=config.acceleration)
        contrast, raw = spoilt.whole.facts["contrast"], spoilt.raw
        if rng.random() < UNTOLD:
            contrast, raw = "unknown", replace(raw, noise=None)
        scan = Scan.of(
            raw,
            denoise=min(1.0, rng.uniform(*config.denoise)),
            contrast=contrast if contrast in CONTRASTS else "unknown",
            fault=spoilt.fault,
            with_tokens=any(one.encoder is not None for one in (config.network, *config.beside.values())),
        )
        return scan.aiming_at(spoilt.whole)

    def raw(self, index: int, rng: np.random.Generator) -> RawData:
        """A complete scan of a head: contrast, coils, noise, slices, pixels, and which axis is phase-encoded, are drawn."""
        config = self.config
        raw = simulate_raw(
            *self.stream.head(index),
            str(rng.choice(config.cohort.contrasts)),
            rng,
            num_slices=config.num_slices,
            num_coils=int(rng.integers(config.num_coils[0], config.num_coils[1] + 1)),
            noise=float(rng.uniform(*config.noise)),
            anywhere=True,
            spots=config.spots,
            finer=float(rng.uniform(*config.finer)),
        )
        return turned(raw) if rng.random() < 0.5 else raw

    def collate(self, samples: list[Scan]) -> Scans:
        return collate(samples)


def turned(raw: RawData) -> RawData:
    """Rows and columns exchanged."""
    assert raw.target is not None and raw.affine is not None
    return replace(
        raw,
        kspace=raw.kspace.transpose(-2, -1),
        target=raw.target.transpose(-2, -1),
        affine=raw.affine[:, [1, 0, 2, 3]],
        planned=None,
    )


def begun(network: Unrolled, config: TrainReconstructionConfig) -> Unrolled:
    """The network with the weights that it is to begin with; without an encoder to begin as, its own is left as it is."""
    if config.start is not None:
        loaded = load_model_folder(config.start, kind=KIND, config=UnrolledConfig)
        shapes = shapes_of(network)
        if loaded.config.encoder is None:
            shapes = {name: shape for name, shape in shapes.items() if not ENCODED.search(name)}
        network.load_state_dict(loaded.checked(shapes), strict=False)
    if config.encoder_start is not None and network.encoder is not None:
        network.encoder.load_state_dict(encoder_of(config.encoder_start).state_dict())
    return network


def train_reconstruction(
    config: TrainReconstructionConfig,
    folder: Path,
    *,
    on_start: Callable[[str], None] = print,
) -> tuple[Unrolled, TrainingResult]:
    """Writes config.yaml, metrics.jsonl, checkpoints, `model/` and a folder for each network beside; the same call continues
    where it was stopped."""
    networks = {}
    for name, one in {MODEL: config.network, **config.beside}.items():
        torch.manual_seed(config.training.seed)
        networks[name] = begun(Unrolled(one), config)
    save_config(config, folder / "config.yaml")
    together, samples = Together(networks), CohortScans(config)
    result = train(together, samples, config.training, folder, label="reconstruction", on_start=on_start)
    provenance = {"training": config.model_dump(mode="json"), "versions": software_versions()}
    for name, network in networks.items():
        said = {"cascades": network.config.cascades, "channels": network.config.channels}
        network.save(folder / name, card=CARD.format(**said, steps=config.training.steps), provenance=provenance)
    return networks[MODEL].eval(), result
