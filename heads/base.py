"""What a head is, what it is given, and the model that an encoder and a head make together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, SerializeAsAny, field_validator
from torch import Tensor, nn

from ehr.features import RecordSequence
from foundation.calibration import Calibration
from foundation.checkpoint import load_model_folder, read_about, save_model_folder
from foundation.config import Config
from foundation.encoder import Encoder, EncoderConfig, Features, layer_rate
from foundation.errors import InputError
from foundation.findings import Finding
from foundation.preprocess import Grid, PreparedStudy
from foundation.study import Acquisition, Contrast, Study, contrast_index
from foundation.tokens import Tokens, pad_to_patches, tokenise
from heads import HeadConfig, head_module, parse_head
from heads._record import RecordBatch, RecordConfig

EMBEDDED = Path(__file__).parent / "weights"  # the models that come with Larmor (examples/embedded.py makes them)

Target = float | int | str | list | None


@dataclass(frozen=True)
class StudySample:
    """One study, or a crop of one, on one grid; the truth is there in training and evaluation."""

    voxels: Float[Tensor, "series x y z"]
    body: Bool[Tensor, "series x y z"]
    grid: Grid
    contrasts: tuple[Contrast, ...]
    acquisitions: tuple[Acquisition, ...]
    labels: Int[Tensor, "x y z"] | None = None
    targets: dict[str, Target] | None = None
    record: RecordSequence | None = None

    @classmethod
    def of(
        cls,
        prepared: PreparedStudy,
        labels: np.ndarray | None = None,
        targets: dict[str, Target] | None = None,
        record: RecordSequence | None = None,
    ) -> StudySample:
        return cls(
            torch.from_numpy(prepared.voxels),
            torch.from_numpy(prepared.body),
            prepared.grid,
            prepared.contrasts,
            prepared.acquisitions,
            None if labels is None else torch.from_numpy(labels.astype(np.int64)),
            targets,
            record,
        )

    def tokens(self) -> Tokens:
        bag = Tokens.join(
            [
                tokenise(self.voxels[i], self.body[i], self.grid, contrast, acquisition, i)
                for i, (contrast, acquisition) in enumerate(zip(self.contrasts, self.acquisitions, strict=True))
            ]
        )
        if not len(bag):
            raise InputError(
                "a study shows some body", got="only air", remedy="Check the series' intensities and geometry."
            )
        return bag


@dataclass(frozen=True)
class StudyBatch:
    """Studies as a head sees them. `voxels`, `has_series`, `contrast` and `labels` are there only for dense heads.

    `voxels` is padded to a common shape, a multiple of the patch; `labels` is -1 there. `record` is None where nobody has one,
    `has_image` where everybody has images.
    """

    tokens: Tokens
    voxels: Float[Tensor, "batch series x y z"] | None
    has_series: Bool[Tensor, "batch series"] | None
    contrast: Int[Tensor, "batch series"] | None
    labels: Int[Tensor, "batch x y z"] | None
    targets: tuple[dict[str, Target], ...]
    record: RecordBatch | None = None
    has_image: Bool[Tensor, " batch"] | None = None

    def to(self, device: torch.device | str) -> StudyBatch:
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            tokens=self.tokens.to(device),
            voxels=move(self.voxels),
            has_series=move(self.has_series),
            contrast=move(self.contrast),
            labels=move(self.labels),
            record=None if self.record is None else self.record.to(device),
            has_image=move(self.has_image),
        )

    @classmethod
    def of(cls, samples: Sequence[StudySample], *, dense: bool) -> StudyBatch:
        """Collate samples of any shape and number of series."""
        tokens = Tokens.collate([sample.tokens() for sample in samples])
        targets = tuple(sample.targets or {} for sample in samples)
        records = [sample.record for sample in samples]
        record = None if all(one is None for one in records) else RecordBatch.of(records)
        if not dense:
            return cls(tokens, None, None, None, None, targets, record)
        padded = [pad_to_patches(sample.voxels) for sample in samples]
        shape = [max(volume.shape[axis] for volume in padded) for axis in range(4)]
        voxels = torch.zeros(len(samples), *shape)
        has_series = torch.zeros(len(samples), shape[0], dtype=torch.bool)
        contrast = torch.zeros(len(samples), shape[0], dtype=torch.long)
        for i, volume in enumerate(padded):
            s, x, y, z = volume.shape
            voxels[i, :s, :x, :y, :z] = volume
            has_series[i, :s] = True
            contrast[i, :s] = torch.tensor([contrast_index(name) for name in samples[i].contrasts])
        labels = None
        if all(sample.labels is not None for sample in samples):
            labels = torch.full((len(samples), *shape[1:]), -1)
            for i, sample in enumerate(samples):
                assert sample.labels is not None
                x, y, z = sample.labels.shape
                labels[i, :x, :y, :z] = sample.labels
        return cls(tokens, voxels, has_series, contrast, labels, targets, record)


@dataclass(frozen=True)
class HeadReading:
    """What a head says of one study: findings, a label map on the reference series' own voxels if it makes one, and remarks that
    a reader must see before believing any of it."""

    findings: list[Finding]
    labels: np.ndarray | None = None
    remarks: tuple[str, ...] = ()


class Head(nn.Module):
    """A head takes features and the batch to an output, compares it with the truth, and words it as findings.

    `is_dense` heads learn from label maps, get voxels beside tokens, and more of the encoder learns for them
    (`finetune/adapters.py`). Heads that `draw` give a label map with their reading, in values that their config's `structures`
    name. `main_score` is the entry of `score_case` that says how good a case is, larger being better. `num_questions` is how many
    temperatures its `calibration` has; without one scores stay what they are.
    """

    is_dense: bool
    draws: bool = False
    looks_once: bool = True
    main_score: str | None = None
    num_questions: int = 1
    calibration: Calibration | None = None

    @property
    def answers(self) -> dict[str, int]:
        """Findings that one number of the output answers, and which along its axis 1: what a relevance map can be made of."""
        return {}

    @property
    def sees_voxels(self) -> bool:
        """Whether batches bring voxels beside tokens."""
        return self.is_dense

    def __init__(self, encoder: EncoderConfig, config: Any):
        super().__init__()

    def forward(self, features: Features, batch: StudyBatch) -> Tensor:
        raise NotImplementedError

    @property
    def reads_record(self) -> RecordConfig | None:
        """How the head reads the patient's record beside the images; None if it does not."""
        return getattr(getattr(self, "config", None), "record", None)

    def ask(self, encoder: nn.Module, batch: StudyBatch) -> Tensor:
        """The output, with everything that the head wants of the encoder; `looks_once` says that this is one look at all tokens,
        which other heads may then share."""
        return self(encoder(batch.tokens), batch)

    def loss(self, output: Tensor, batch: StudyBatch) -> dict[str, Tensor]:
        """Scalars with `loss`."""
        raise NotImplementedError

    def meet(self, targets: Sequence[dict[str, Target]]) -> None:
        """Take from the training rows what is not learnt by gradient: how frequent a class is, a number's mean and spread."""

    def settle(self, outputs: Sequence[Tensor], targets: Sequence[dict[str, Target]]) -> None:
        """After training, from studies that were not learnt from: what besides a `calibration` makes answers mean what they say."""

    def look_back(
        self, studies: Sequence[tuple[PreparedStudy, np.ndarray]], ask: Callable[[PreparedStudy], Tensor]
    ) -> None:
        """After training, from what was learnt from: studies with their true label maps, on the reference series' own voxels and in
        the values of the files; `ask` gives the output for one. For what is fitted without a gradient."""

    def calibrated(self, output: Tensor) -> Tensor:
        """An output of scores with classes along axis 1, over the temperatures of the head's calibration if it has one."""
        return output if self.calibration is None else self.calibration.scale(output)

    def adopt(self, start: Head, *, but: frozenset[str] = frozenset()) -> frozenset[str]:
        """Copy what fits by name and shape from a fitted head, `but` for some; return the names of what was copied whole."""
        theirs, ours = start.state_dict(), self.state_dict()
        shared = (theirs.keys() & ours.keys()) - but
        fits = {name: theirs[name] for name in shared if ours[name].shape == theirs[name].shape}
        self.load_state_dict(fits, strict=False)
        return frozenset(fits)

    def read(self, output: Tensor, prepared: PreparedStudy, *, source: str, mask_path: str | None) -> HeadReading:
        """Findings of a batch of one; `source` names the model, `mask_path` is where the label map will be written."""
        raise NotImplementedError

    def classes_of(self, labels: np.ndarray) -> np.ndarray:
        """Dense heads: the values of a label map as class indices, 0 being none of the head's structures."""
        raise NotImplementedError

    def refuse(self, *, source: str, why: str) -> list[Finding]:
        """What `read` would have found, each as not assessed, and why."""
        raise NotImplementedError

    def score_case(
        self, output: Tensor, prepared: PreparedStudy, labels: np.ndarray | None, targets: dict[str, Target]
    ) -> dict[str, float]:
        """What is measured on one case with known truth; `labels` lie on the reference series' own voxels."""
        raise NotImplementedError

    def summarise(self, cases: Sequence[dict[str, float]]) -> dict[str, float]:
        """Figures over cases. Called again on every bootstrap resample, so it must be a plain function of its cases."""
        raise NotImplementedError


class Scope(Config):
    """What a model was fitted on; outside it a reading says 'not assessed' instead of guessing."""

    contrasts: tuple[str, ...]
    smallest_extent_mm: tuple[float, float, float]
    largest_extent_mm: tuple[float, float, float]

    SLACK: ClassVar[float] = 1.4  # how much smaller or larger a field of view may be than any the model was fitted on

    @classmethod
    def of(cls, studies: Sequence[PreparedStudy]) -> Scope:
        extents = np.stack([study.grid.extent_mm for study in studies])
        contrasts = sorted({contrast for study in studies for contrast in study.contrasts})
        return cls(
            contrasts=tuple(contrasts),
            smallest_extent_mm=tuple(extents.min(axis=0).tolist()),
            largest_extent_mm=tuple(extents.max(axis=0).tolist()),
        )

    def known_part(self, study: Study) -> Study:
        """The study without series of contrasts that the model never saw, as long as its reference is not among them."""
        if self.contrasts == ("unknown",):
            return study
        kept = tuple(series for series in study.series if series.contrast in (*self.contrasts, "unknown"))
        return replace(study, series=kept) if kept and kept[0] is study.reference else study

    def objection(self, prepared: PreparedStudy) -> str | None:
        """Why this study is outside, in words for a report; None when it is inside."""
        extent = prepared.grid.extent_mm
        too_large = extent > self.SLACK * np.asarray(self.largest_extent_mm)
        too_small = extent * self.SLACK < np.asarray(self.smallest_extent_mm)
        if too_large.any() or too_small.any():
            seen = " x ".join(
                f"{a:.0f}-{b:.0f}" for a, b in zip(self.smallest_extent_mm, self.largest_extent_mm, strict=True)
            )
            here = " x ".join(f"{n:.0f}" for n in extent)
            return f"the model was fitted on fields of view of {seen} mm and this one is {here} mm"
        foreign = sorted(set(prepared.contrasts) - {"unknown"} - set(self.contrasts))
        if foreign and self.contrasts != ("unknown",):
            return f"the model was fitted on {', '.join(self.contrasts)} and this study also has {', '.join(foreign)}"
        return None


class Explanation(Config):
    """How far a map of what one answer rests on can be believed (`heads/_relevance.py`): means over studies of two tests.

    `likeness` is the rank correlation of the map with that of random weights. `fall` and `random_fall` are how much the answer
    falls, in its own unit, when its most relevant tokens are deleted and when random ones are.
    """

    likeness: float
    fall: float
    random_fall: float
    num_studies: int

    MOST_ALIKE: ClassVar[float] = 0.5  # an edge detector's map would not change with the weights

    @property
    def passes(self) -> bool:
        return abs(self.likeness) < self.MOST_ALIKE and self.fall > self.random_fall

    def __str__(self) -> str:
        return (
            f"{'passes' if self.passes else 'fails'}: rank correlation {self.likeness:.2f} with the map of random weights; without "
            f"its most relevant tokens the answer falls by {self.fall:.3g}, without random ones by {self.random_fall:.3g}, on "
            f"{self.num_studies} studies"
        )


class TaskConfig(Config):
    """Everything that rebuilds a task model but its weights."""

    name: str
    caution: str | None
    encoder: EncoderConfig
    head: SerializeAsAny[HeadConfig]
    spacing_mm: tuple[float, float, float]
    scope: Scope
    calibration: Calibration | None = None
    explanations: dict[str, Explanation] = Field(default_factory=dict)

    @field_validator("head", mode="before")
    @classmethod
    def _by_kind(cls, value: object) -> object:
        return parse_head(value) if isinstance(value, dict) else value


class TaskModel(nn.Module):
    """An encoder and a head. `forward` gives the loss, as the training loop asks; `output` gives what the head says."""

    def __init__(self, encoder: nn.Module, head: Head):
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.encoder_rate, self.layer_decay = 1.0, 1.0
        self.depth = encoder.config.depth if isinstance(encoder, Encoder) else 0
        self.warm: frozenset[str] = frozenset()

    @classmethod
    def build(cls, encoder: Encoder, head: HeadConfig) -> TaskModel:
        return cls(encoder, head_module(head.kind).Head(encoder.config, head))

    def forward(self, batch: StudyBatch) -> dict[str, Tensor]:
        return self.head.loss(self.output(batch), batch)

    def output(self, batch: StudyBatch) -> Tensor:
        return self.head.ask(self.encoder, batch)

    def learning_rate_scale(self, name: str) -> float:
        """What was fitted before (the encoder, adapters included, and `warm`) learns at `encoder_rate` times the head's rate,
        and each block of the encoder `layer_decay` times as fast as the next."""
        if name.startswith("encoder."):
            return self.encoder_rate * layer_rate(name, self.depth, self.layer_decay)
        return self.encoder_rate if name in self.warm else 1.0

    @torch.inference_mode()
    def output_of(self, prepared: PreparedStudy, record: RecordSequence | None = None) -> Tensor:
        """The output for one whole study in one pass, on the model's device, as float32 on the CPU."""
        batch = StudyBatch.of([StudySample.of(prepared, record=record)], dense=self.head.sees_voxels)
        device = next(self.parameters()).device
        self.eval()
        return self.output(batch.to(device)).float().cpu()


def save_task(folder: Path, model: TaskModel, config: TaskConfig, *, card: str, provenance: dict[str, Any]) -> None:
    save_model_folder(folder, kind="task", config=config, state=model.state_dict(), card=card, provenance=provenance)


def model_folders(root: Path | None = None) -> list[Path]:
    """The model folders directly under `root`: by default $LARMOR_MODELS, or those that come with Larmor."""
    root = root or Path(os.environ.get("LARMOR_MODELS", EMBEDDED))
    return sorted(file.parent for file in root.glob("*/config.json"))


def default_folders(*kinds: str) -> list[Path]:
    """Of the models that are used when none is named, those of some kinds."""
    return [folder for folder in model_folders() if read_about(folder)["kind"] in kinds]


def default_models() -> list[Path]:
    """Those for a task, whole or as adapters; a backbone, a writer or a reconstruction may lie beside them."""
    return default_folders("task", "adapter")


def load_task(folder: Path) -> tuple[TaskModel, TaskConfig, str]:
    """A task folder's model, its config, and the hash of its weights; strict, as every model folder."""
    loaded = load_model_folder(folder, kind="task", config=TaskConfig)
    config = loaded.config
    model = loaded.build(lambda: TaskModel.build(Encoder(config.encoder), config.head))
    loaded.fill(model)
    model.head.calibration = loaded.config.calibration
    return model.eval(), loaded.config, loaded.weights_sha256
