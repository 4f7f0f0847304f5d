"""What the tests of the server share: a head as a file, a model that outlines all of it, and readings of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from foundation.encoder import Encoder, EncoderConfig
from foundation.findings import Structure
from foundation.reading.nifti import write_volume
from foundation.study import Series, Study
from heads import parse_head
from heads.base import Scope, TaskConfig, TaskModel, save_task
from serve.pipeline import StudyReading, read_study


def head_series(spacing_mm: float = 8.0, name: str = "sub-1_T1w", seed: int = 0) -> Series:
    """A head of 150 x 180 x 160 mm with something bright in its right half."""
    length = round(192 / spacing_mm)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = spacing_mm / 2 - 96
    empty = Series(np.zeros((length,) * 3, np.float32), affine)
    mm = np.moveaxis(empty.to_patient_mm(np.moveaxis(np.indices(empty.shape), 0, -1)), -1, 0)
    head = sum((x / radius) ** 2 for x, radius in zip(mm, (75, 90, 80), strict=True)) < 1
    ball = sum((x - centre) ** 2 for x, centre in zip(mm, (30, 10, 20), strict=True)) < 15**2
    voxels = 100 * head + 100 * ball + np.random.default_rng(seed).random(empty.shape)
    return Series(voxels.astype(np.float32), affine, "T1w", name=name)


def head_file(path: Path, spacing_mm: float = 8.0, seed: int = 0) -> Path:
    series = head_series(spacing_mm, seed=seed)
    write_volume(path, series.voxels, series)
    return path


def tiny_model(folder: Path, name: str = "all") -> Path:
    """A model that outlines everything, of a structure that occurs on both sides."""
    structure = Structure(value=1, name="tumour", paired=True)
    head = parse_head({"kind": "segmentation", "structures": [structure.model_dump()]})
    encoder = EncoderConfig(depth=1)
    task = TaskModel.build(Encoder(encoder), head)
    with torch.no_grad():
        task.head.classify.weight.zero_()
        task.head.classify.bias.copy_(torch.tensor([0.0, 1.0]))
    scope = Scope(contrasts=("T1w",), smallest_extent_mm=(50.0,) * 3, largest_extent_mm=(250.0,) * 3)
    config = TaskConfig(name=name, caution=None, encoder=encoder, head=head, spacing_mm=(8.0,) * 3, scope=scope)
    save_task(folder, task, config, card="outlines everything", provenance={})
    return folder


def small_reading(seed: int = 0, subject: str = "s") -> StudyReading:
    """A reading of a study so small that a thousand of them are made in seconds; no model is asked."""
    voxels = np.random.default_rng(seed).random((4, 4, 4)).astype(np.float32)
    return read_study(Study(subject, (Series(voxels, np.eye(4), "T1w", name="t1"),)), [])
