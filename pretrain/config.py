"""What a pretraining run is. The defaults are a smoke run on two CPU cores; a YAML file lists only what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SerializeAsAny, field_validator, model_validator

from foundation.cohort.stream import StreamConfig
from foundation.config import Config
from foundation.encoder import EncoderConfig, Size
from foundation.quarantine import SHARE
from foundation.tokens import PATCH
from foundation.training import TrainingConfig
from pretrain.objectives import ObjectiveConfig, parse_objective
from pretrain.probe import ProbeConfig


def _ordered(spacing_mm: tuple[float, float]) -> tuple[float, float]:
    if not 0 < spacing_mm[0] <= spacing_mm[1]:
        raise ValueError("a range of spacings is positive, the finer one first")
    return spacing_mm


SpacingRange = Annotated[tuple[float, float], AfterValidator(_ordered)]
Share = Annotated[float, Field(ge=0, le=1)]


class CropConfig(Config):
    """What one sample shows: a box of about `voxels` along each edge, at a spacing drawn anew each time.

    The spacing is log-uniform in `spacing_mm`; with probability `anisotropic` one axis is up to three times coarser, as in
    clinical slices. Of the box's real tokens at most `max_tokens` are used: `visible_fraction` of them are seen and up to
    `max_targets` of the rest are predicted.
    """

    voxels: Annotated[int, Field(ge=PATCH)] = 64
    spacing_mm: SpacingRange = (0.8, 3.0)
    anisotropic: Share = 0.3
    max_tokens: Annotated[int, Field(ge=2)] = 512
    visible_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    max_targets: Annotated[int, Field(ge=1)] = 192
    hide_series: Share = 0.3


class PretrainConfig(Config):
    """Studies come from a `manifest`, from a `store` that was prepared from one, or are drawn from a synthetic `cohort` as they
    are needed; one of the three is given, unless the objective draws patients of its own.

    `splits` names the rows of the manifest that are used; None takes every row. Up to the share `bad_files` of the studies may
    turn out to be unreadable during the run. Each block of the encoder learns `layer_decay` times as fast as the next. `probe`
    measures on the way what frozen features know of a small labelled collection.
    """

    manifest: Path | None = None
    store: Path | None = None
    cohort: StreamConfig | None = None
    folder: Path = Path("runs/pretrain")
    splits: tuple[str, ...] | None = ("pretrain",)
    bad_files: Annotated[float, Field(ge=0, le=1)] = SHARE
    size: Size = "tiny"
    drop_path: float = 0.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    objective: SerializeAsAny[ObjectiveConfig] = Field(
        default_factory=lambda: parse_objective({"kind": "masked_autoencoding"})
    )
    crop: CropConfig = CropConfig()
    training: TrainingConfig = TrainingConfig()
    probe: ProbeConfig | None = None

    @field_validator("objective", mode="before")
    @classmethod
    def _by_kind(cls, value: object) -> object:
        return parse_objective(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _one_source(self) -> PretrainConfig:
        sources = sum(source is not None for source in (self.manifest, self.store, self.cohort))
        if self.objective.own_cohort is not None and sources:
            raise ValueError(f"'{self.objective.kind}' draws its own patients: leave out manifest, store and cohort")
        if self.objective.own_cohort is None and sources != 1:
            raise ValueError(
                "pretraining has one source of studies: set manifest=FILE, store=FOLDER or cohort, one of them"
            )
        return self

    @property
    def encoder(self) -> EncoderConfig:
        return EncoderConfig.of_size(self.size, drop_path=self.drop_path)
