"""Free truth: on synthetic patients every voxel's structure, lesion and tissue parameters are known, so they are learnt.

What segmentation heads do most of their work with, the full-resolution stem and the decoder, stays cold when an encoder is
pretrained alone. Here both are trained with the encoder, on heads that come with their labels, in contrasts of physics and at
random (as SynthSeg, Billot et al. 2023, and anatomix, Dey et al. 2024). The result is saved as a task folder, `dense/`: it segments
the cohort's structures as it is, and any segmentation task can start from it (`encoder=RUN/dense`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field, field_validator
from torch import Tensor, nn

from foundation.cohort.acquisition import labels_on, quantitative_maps
from foundation.cohort.anatomy import Anatomy, Box
from foundation.cohort.materials import LESIONS, STRUCTURES
from foundation.cohort.patient import scan_again
from foundation.cohort.stream import StreamConfig, shared_stream
from foundation.encoder import Encoder
from foundation.errors import did_you_mean
from foundation.figures import axial_plane, plot_labels
from foundation.findings import Structure
from foundation.preprocess import prepare_study, sample_at
from foundation.study import Study
from foundation.training import Draw, Samples, fold
from heads import segmentation
from heads.base import Scope, StudyBatch, StudySample, TaskConfig, TaskModel, save_task
from pretrain.config import SpacingRange
from pretrain.objectives import ObjectiveConfig, base
from pretrain.samples import Studies

PAIRED = (
    *("cerebral cortex", "cerebral white matter", "lateral ventricle", "thalamus", "caudate", "putamen", "pallidum"),
    *("hippocampus", *LESIONS),
)
MAPS = {"T1": 1000.0, "T2": 100.0, "ADC": 1000.0}  # ms, ms, 1e-6 mm^2/s: what is learnt is the logarithm of the ratio
SMALL_STRUCTURE = 0.5  # how often a box is centred in a structure drawn evenly, rather than anywhere in the head


class Config(ObjectiveConfig):
    """`cohort` is where the truth comes from, whatever the run's other studies are.

    A box is `voxels` along each edge at a spacing log-uniform in `spacing_mm`, or the whole head where that is smaller; the
    cohort's own spacing should not be coarser than the finest. Small boxes are best kept `near` the structures that a task
    will ask for. Of the cohort's labels `structures` are told apart and the rest is background: the fewer, the sooner the small
    ones are learnt. Intensities are raised to a power log-uniform between 1 / `gamma` and `gamma`: scanners' contrast differs
    more than that of our sequences. `maps_weight` is that of the tissue parameters.
    """

    kind: Literal["free_truth"] = "free_truth"
    cohort: StreamConfig = StreamConfig(subjects=200, appearance="mixed", contrasts=("T1w", "T2w", "FLAIR"))
    voxels: Annotated[int, Field(ge=16, multiple_of=8)] = 64
    spacing_mm: SpacingRange = (2.0, 3.5)
    channels: tuple[int, int, int] = (16, 32, 64)
    bottleneck: int = 128
    maps_weight: float = 0.2
    near: tuple[str, ...] = ()
    structures: Annotated[tuple[str, ...], Field(min_length=1)] = tuple(STRUCTURES)
    gamma: Annotated[float, Field(ge=1)] = 1.0

    @field_validator("near", "structures")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in STRUCTURES:
                raise ValueError(f"{name!r} is no structure of the cohort; {did_you_mean(name, STRUCTURES)}")
        return names

    @property
    def own_cohort(self) -> StreamConfig:
        return self.cohort


@dataclass(frozen=True)
class TruthSample:
    """A box of a synthetic study with its labels, and the logarithms of `MAPS` where there is tissue."""

    study: StudySample
    maps: Float[Tensor, "maps x y z"]
    is_tissue: Bool[Tensor, "x y z"]


@dataclass(frozen=True)
class TruthBatch:
    """As `TruthSample`, padded like the studies' voxels."""

    study: StudyBatch
    maps: Float[Tensor, "batch maps x y z"]
    is_tissue: Bool[Tensor, "batch x y z"]

    def to(self, device: torch.device | str) -> TruthBatch:
        return TruthBatch(self.study.to(device), self.maps.to(device), self.is_tissue.to(device))


class Objective(base.Objective):
    """A segmentation head over the encoder, and one more 1 x 1 x 1 convolution for the tissue parameters."""

    def __init__(self, encoder: Encoder, config: Config):
        super().__init__(encoder, config)
        self.config = config
        self.head_config = segmentation.Config(
            structures=structures(config.structures), channels=config.channels, bottleneck=config.bottleneck
        )
        self.head = segmentation.Head(encoder.config, self.head_config)
        self.to_maps = nn.Conv3d(config.channels[0], len(MAPS), kernel_size=1)

    def forward(self, batch: TruthBatch) -> dict[str, Tensor]:
        decoded = self.head.decode(self.encoder(batch.study.tokens), batch.study)
        labels = self.head.loss(self.head.classify(decoded), batch.study)["loss"]
        error = (self.to_maps(decoded).float() - batch.maps).abs() * batch.is_tissue[:, None]
        maps = error.sum() / (len(MAPS) * batch.is_tissue.sum()).clamp(min=1)
        return {"loss": labels + self.config.maps_weight * maps, "labels": labels, "maps": maps}

    def make_samples(self, studies: Studies, crop: Any) -> Samples:
        return TruthStudies(self.config, self.head)

    def save_beside(self, folder: Path, *, provenance: dict[str, Any]) -> list[Path]:
        """The task folder `dense/`."""
        config, middle = self.config, float(np.sqrt(np.prod(self.config.spacing_mm)))
        least, most = (config.voxels * spacing for spacing in config.spacing_mm)
        task = TaskConfig(
            name="cohort-structures",
            caution="fitted on synthetic heads only, so nothing is known of how right it is on real ones.",
            encoder=self.encoder.config,
            head=self.head_config,
            spacing_mm=(middle, middle, middle),
            scope=Scope(
                contrasts=("unknown",), smallest_extent_mm=(least, least, least), largest_extent_mm=(most, most, most)
            ),
        )
        card = (
            "# Structures and lesions of the synthetic cohort\n\nLearnt together with the encoder beside it; a start for "
            "segmentation tasks (`encoder=` this folder). Not a medical device.\n"
        )
        model = TaskModel(self.encoder, self.head)
        save_task(folder / "dense", model, task, card=card, provenance=provenance)
        return [folder / "dense"]

    @torch.no_grad()
    def save_pictures(self, folder: Path, sample: TruthSample) -> list[Path]:
        """The middle plane of a box: its first series, the structures it was made from, and what the model says."""
        batch = StudyBatch.of([sample.study], dense=True)
        guess = self.head(self.encoder(batch.tokens), batch)[0].argmax(dim=0)
        truth, image = sample.study.labels, sample.study.voxels[0]
        assert truth is not None
        x, y, z = truth.shape

        def plane(volume: Tensor) -> np.ndarray:
            return axial_plane(volume[:x, :y].float().numpy(), z // 2)

        path = folder / "structures.png"
        num_classes = 1 + len(self.config.structures)
        plot_labels(path, plane(image), {"truth": plane(truth), "said": plane(guess)}, num_classes=num_classes)
        return [path]


def structures(names: Sequence[str] = tuple(STRUCTURES)) -> tuple[Structure, ...]:
    """What the cohort labels by these names, as a segmentation head asks for it."""
    return tuple(
        Structure(value=STRUCTURES[name], name=name, paired=name in PAIRED, abnormal=name in LESIONS) for name in names
    )


class TruthStudies:
    """Boxes of synthetic heads, scanned anew each time; a pure function of the draw."""

    def __init__(self, config: Config, head: segmentation.Head):
        self.config, self.head = config, head
        self.stream = shared_stream(config.cohort)

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, draw: Draw) -> TruthSample:
        config, rng = self.config, np.random.default_rng(fold(draw.seed, 31))
        anatomy, tissues = self.stream.head(draw.index)
        low, high = np.log(config.spacing_mm)
        spacing_mm = np.full(3, np.exp(rng.uniform(low, high)))
        part = anatomy.crop(_box(anatomy, config.voxels * spacing_mm, config.near, rng))
        scans = scan_again(part, tissues, config.cohort, fold(draw.seed, 32) % 2**31)
        study = Study(anatomy.subject.name, tuple(scan.series for scan in scans))
        prepared = prepare_study(study, spacing_mm.tolist())
        powers = config.gamma ** rng.uniform(-1, 1, len(prepared.voxels))
        voxels = [_to_the_power(*one) for one in zip(prepared.voxels, prepared.body, powers, strict=True)]
        prepared = replace(prepared, voxels=np.stack(voxels))
        # Not the first series' own labels, which are as thick as its slices.
        labels = self.head.classes_of(labels_on(part, prepared.grid.shape, prepared.grid.affine))
        maps = [
            sample_at(np.log(np.maximum(values, 1e-3) / MAPS[name]), part.affine, prepared.grid, nearest=True)
            for name, values in quantitative_maps(part, tissues).items()
        ]
        tissue = sample_at((part.first.numpy() > 0).astype(np.float32), part.affine, prepared.grid, nearest=True) > 0.5
        return TruthSample(
            StudySample.of(prepared, labels), torch.from_numpy(np.stack(maps)).float(), torch.from_numpy(tissue)
        )

    def collate(self, samples: list[TruthSample]) -> TruthBatch:
        study = StudyBatch.of([sample.study for sample in samples], dense=True)
        assert study.voxels is not None
        shape = study.voxels.shape[2:]
        return TruthBatch(
            study,
            torch.stack([_pad(sample.maps, shape) for sample in samples]),
            torch.stack([_pad(sample.is_tissue, shape) for sample in samples]),
        )


def _box(anatomy: Anatomy, edge_mm: np.ndarray, near: Sequence[str], rng: np.random.Generator) -> Box:
    """Voxels of a box with these edges, in the head, around some structure: small ones would hardly be seen otherwise."""
    size = np.minimum(np.round(edge_mm / anatomy.spacing_mm), anatomy.shape).astype(int)
    labels = anatomy.labels
    wanted = np.isin(labels, [STRUCTURES[name] for name in near]) if near else labels > 0
    if not near and rng.random() < SMALL_STRUCTURE:
        wanted = labels == rng.choice(np.unique(labels[wanted]))
    inside = np.flatnonzero(wanted)
    centre = np.array(np.unravel_index(inside[rng.integers(len(inside))], labels.shape))
    first = np.clip(centre - (rng.random(3) * size).astype(int), 0, np.asarray(anatomy.shape) - size)
    x, y, z = (slice(int(a), int(a + n)) for a, n in zip(first, size, strict=True))
    return x, y, z


def _to_the_power(
    voxels: Float[np.ndarray, "x y z"], body: Bool[np.ndarray, "x y z"], power: float
) -> Float[np.ndarray, "x y z"]:
    """Of intensities between the darkest and the brightest; mean 0 and standard deviation 1 in the body again."""
    low, high = voxels.min(), voxels.max()
    if power == 1 or low == high or not body.any():
        return voxels
    bent = ((voxels - low) / (high - low)) ** power
    inside = bent[body]
    return ((bent - inside.mean()) / max(inside.std(), 1e-6)).astype(np.float32)


def _pad(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros at the far ends of the last three axes."""
    padded = values.new_zeros(*values.shape[:-3], *shape)
    x, y, z = values.shape[-3:]
    padded[..., :x, :y, :z] = values
    return padded
