"""What a fine-tuning run is. The defaults are a smoke run on two CPU cores; a YAML file lists only what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny, field_validator

from foundation.config import Config
from foundation.encoder import Size
from foundation.training import TrainingConfig
from heads import HeadConfig, parse_head

Recipe = Literal[
    "scratch", "frozen", "lora", "full", "dynunet", "densenet", "majority", "linear", "measured", "atlas", "threshold"
]


class DataConfig(Config):
    """`num_labels` studies of `train_split` are used (None: all), chosen by the training seed.

    `crop_voxels` is the box that dense heads train on, at `spacing_mm`; None trains on whole studies. Probabilities are calibrated
    on the validation split; where there is none, the share `hold_out` of the chosen studies is not learnt from and serves instead.
    """

    manifest: Path
    train_split: str = "train"
    test_split: str = "test"
    num_labels: int | None = None
    hold_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    crop_voxels: tuple[int, int, int] | None = None


class LoraConfig(Config):
    """Low-rank adapters on attention and MLP of the last `blocks` blocks; None leaves the places to the kind of head
    (finetune/adapters.py says which).

    `whole` puts them in every block and, where the head is dense, lets all norms and the patch embedding learn too. Nothing
    that the encoder computes is then shared with other tasks.
    """

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[int, Field(ge=1)] = 32
    blocks: Annotated[int, Field(ge=1)] | None = None
    whole: bool = False


class AugmentConfig(Config):
    """How far a training study is changed each time; probabilities are per sample.

    `mirror` swaps left and right half of the time: only for tasks whose answer does not depend on the side. `curve` bends the
    intensities along a random rising curve, as another sequence of the same contrast might. `artefact` spoils a series by
    physics (`foundation/physics/artefacts.py`) at any severity up to `worst_artefact`; what was done to the reference series
    becomes its truth for a head that asks for it.
    """

    mirror: bool = False
    rotate_degrees: float = 12.0
    scale: float = 0.15
    shear: float = 0.05
    noise: float = 0.1
    bias_field: float = 0.3
    gamma: float = 0.3
    smooth_mm: float = 0.6
    curve: Annotated[float, Field(ge=0, le=1)] = 0.0
    artefact: Annotated[float, Field(ge=0, le=1)] = 0.0
    worst_artefact: Annotated[int, Field(ge=1, le=5)] = 5
    probability: float = 0.5
    drop_series: float = 0.2
    forget_contrast: float = 0.1


class StoppingConfig(Config):
    """Every `every` steps (0: never) the loss is measured on `split`; where the collection has none such, on the training studies
    themselves, changed as training changes them but by draws of its own: that sees when nothing more is learnt, not when too
    much is. Training ends when the best of the last `patience` is not lower than the best before by the share `least`.
    """

    every: Annotated[int, Field(ge=0)] = 0
    split: str = "validation"
    patience: Annotated[int, Field(ge=1)] = 3
    least: Annotated[float, Field(ge=0, lt=1)] = 0.01


class FinetuneTraining(TrainingConfig):
    """The loop's settings with this stage's defaults."""

    batch_size: Annotated[int, Field(ge=1)] = 2
    ema_decay: float | None = 0.99


class FinetuneConfig(Config):
    """One task, one way of fitting it.

    `caution` is what every reading by this model must say of it. `encoder` is a pretrained model folder,
    or that of another task, which then also gives as much of its head as fits; `size` and
    `drop_path` are those of an encoder from scratch. `recipe` says what of the encoder learns: everything from random weights
    (scratch), nothing (frozen), adapters (lora: for dense heads also norms), or everything (full). What of
    a pretrained one learns does so at `encoder_rate` times the head's rate, each block `layer_decay` times as fast as the next.
    All other recipes are baselines (`finetune/baselines.py`).
    """

    name: str
    caution: str | None = None
    folder: Path = Path("runs/finetune")
    encoder: Path | None = None
    size: Size = "tiny"
    drop_path: float = 0.0
    recipe: Recipe = "lora"
    head: SerializeAsAny[HeadConfig]
    data: DataConfig
    lora: LoraConfig = LoraConfig()
    encoder_rate: float = 0.3
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    augment: AugmentConfig = AugmentConfig()
    stopping: StoppingConfig = StoppingConfig()
    training: FinetuneTraining = FinetuneTraining()

    @field_validator("head", mode="before")
    @classmethod
    def _by_kind(cls, value: object) -> object:
        return parse_head(value) if isinstance(value, dict) else value
