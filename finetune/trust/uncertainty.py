"""Where a segmentation is unsure, and how good a case is likely to be when nobody knows the truth.

A voxel's uncertainty is the entropy of its (calibrated) class probabilities. A case's quality is guessed in three ways:

    agreement    mean pairwise Dice of several passes over slightly changed images (Zenk et al. 2025 found it best, of ensembles)
    soft Dice    Dice of the probabilities with their own most probable class
    confidence   mean probability of the most probable class where that is a structure
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from finetune.augment import Augment
from finetune.config import AugmentConfig
from finetune.samples import LabelledStudy
from foundation.preprocess import Grid, PreparedStudy, from_closest_ras, resample, to_closest_ras
from foundation.reading.nifti import write_volume
from foundation.training import fold
from heads.base import StudySample, TaskModel

# Brightness and noise alone: whatever moves the head would have to be moved back.
UNMOVED = AugmentConfig(rotate_degrees=0, scale=0, shear=0, drop_series=0, forget_contrast=0, probability=1.0)


def quality_scores(
    model: TaskModel,
    prepared: PreparedStudy,
    output: Float[Tensor, "1 classes i j k"],
    *,
    passes: int,
    mirror: bool,
    seed: int,
) -> tuple[dict[str, float], Float[Tensor, "classes x y z"]]:
    """The quality scores by name, larger being better, and the mean probabilities on the prepared grid.

    `passes` further looks are averaged in; `mirror` adds one at the head with its sides exchanged, which is right only for tasks
    whose labels do not name a side.
    """
    x, y, z = prepared.grid.shape

    def probabilities(output: Tensor) -> Tensor:
        return model.head.calibrated(output)[0, :, :x, :y, :z].softmax(dim=0)

    members = [probabilities(output)]
    x_mm, y_mm, z_mm = prepared.grid.spacing_mm.tolist()
    augment = Augment(UNMOVED, (x_mm, y_mm, z_mm))
    for number in range(passes):
        sample = augment(StudySample.of(prepared), fold(seed, 41, number))
        changed = replace(prepared, voxels=sample.voxels.numpy(), body=sample.body.numpy())
        members.append(probabilities(model.output_of(changed)))
    if mirror:
        flipped = replace(prepared, voxels=prepared.voxels[:, ::-1].copy(), body=prepared.body[:, ::-1].copy())
        members.append(probabilities(model.output_of(flipped)).flip(1))
    mean = torch.stack(members).mean(dim=0)
    scores = {"soft Dice": soft_dice(mean), "confidence": foreground_confidence(mean)}
    if len(members) > 1:
        scores = {"agreement": pairwise_dice([one.argmax(dim=0) for one in members]), **scores}
    return scores, mean


def soft_dice(probabilities: Float[Tensor, "classes x y z"]) -> float:
    """Mean over the structures that are found; 0 where none is."""
    labels = probabilities.argmax(dim=0)
    found = [value for value in labels.unique().tolist() if value > 0]
    dice = []
    for value in found:
        mask = (labels == value).to(probabilities)
        dice.append(float(2 * (probabilities[value] * mask).sum() / (probabilities[value].sum() + mask.sum())))
    return float(np.mean(dice)) if dice else 0.0


def foreground_confidence(probabilities: Float[Tensor, "classes x y z"]) -> float:
    confidence, labels = probabilities.max(dim=0)
    inside = labels > 0
    return float(confidence[inside].mean()) if inside.any() else 0.0


def pairwise_dice(maps: Sequence[Int[Tensor, "x y z"]]) -> float:
    """Dice of each two label maps, averaged over the structures that either holds, then over pairs; 1 where both hold none."""
    values = []
    for one, other in combinations(maps, 2):
        found = [value for value in torch.cat([one.unique(), other.unique()]).unique().tolist() if value > 0]
        dice = [
            float(2 * ((one == value) & (other == value)).sum() / ((one == value).sum() + (other == value).sum()))
            for value in found
        ]
        values.append(float(np.mean(dice)) if dice else 1.0)
    return float(np.mean(values))


def entropy(probabilities: Float[Tensor, "classes x y z"]) -> Float[Tensor, "x y z"]:
    """Of each voxel, as a share of what a voxel could have: 0 sure of one class, 1 all equally likely."""
    terms = probabilities * probabilities.clamp(min=1e-12).log()
    return -terms.sum(dim=0) / float(np.log(len(probabilities)))


def write_entropy(path: Path, probabilities: Float[Tensor, "classes x y z"], study: LabelledStudy) -> None:
    """The uncertainty map on the reference series' own voxels, as NIfTI."""
    prepared, reference = study.prepared, study.prepared.study.reference
    ras = Grid.of(to_closest_ras(reference))
    own = resample(entropy(probabilities), prepared.grid, ras).numpy()
    write_volume(path, np.ascontiguousarray(from_closest_ras(own, reference)), reference)
