"""What is kept of a case once the model has looked at it: enough for calibration, sets and abstention, and small."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor, nn

from finetune.samples import LabelledStudy
from foundation.training import seeded
from heads import classification
from heads.base import Head
from heads.segmentation import LabelMapHead

NEAR_VOXELS = 2  # how far from what is outlined a voxel is still asked for its confidence
MOST_VOXELS = 4000  # of a case, drawn at random: neighbours say nearly the same


@dataclass(frozen=True)
class Scored:
    """Uncalibrated scores of classes that exclude each other, and which class was true.

    `question` counts what was asked: 0 everywhere where a head chooses one class; of a head of labels that do not exclude each
    other each label is a question of its own, whose classes are absent and present. Each has its own temperature.
    """

    scores: Float[Tensor, "samples classes"]
    truth: Int[Tensor, " samples"]
    question: Int[Tensor, " samples"]

    @classmethod
    def of_one(cls, scores: Float[Tensor, "samples classes"], truth: Int[Tensor, " samples"]) -> Scored:
        """All samples answer the same question."""
        return cls(scores, truth, torch.zeros_like(truth))

    @classmethod
    def of_labels(cls, scores: Float[Tensor, " labels"], truth: Float[Tensor, " labels"]) -> Scored:
        """One study's labels, as far as their truth is known; the sigmoid of a score is the softmax of (0, score)."""
        known = torch.isfinite(truth)
        question = known.nonzero()[:, 0]
        return cls(nn.functional.pad(scores[known, None], (1, 0)), truth[known].long(), question)

    @property
    def num_questions(self) -> int:
        return 1 + int(self.question.max()) if len(self.question) else 0

    def probabilities(self, temperatures: Sequence[float]) -> Float[Tensor, "samples classes"]:
        return (self.scores / torch.tensor(temperatures).to(self.scores)[self.question][:, None]).softmax(dim=1)

    def to_question(self, index: int) -> Scored:
        """The samples that answer one of the questions."""
        chosen = self.question == index
        return Scored(self.scores[chosen], self.truth[chosen], self.question[chosen])

    @classmethod
    def pool(cls, parts: Iterable[Scored]) -> Scored:
        parts = list(parts)
        return cls(*(torch.cat([getattr(one, name) for one in parts]) for name in ("scores", "truth", "question")))


@dataclass(frozen=True)
class Seen:
    """`case` is what `Head.score_case` measured. `scored` is the study, or voxels in and around what the model outlined: chosen
    by what it says alone, because voxels chosen by the truth would make it look worse than it is.

    `volumes_ml` holds (found, true) for each structure. Heads that neither segment nor classify leave both empty.
    """

    name: str
    case: dict[str, float]
    scored: Scored | None = None
    volumes_ml: dict[str, tuple[float, float]] | None = None


def look_back(head: Head, study: LabelledStudy, output: Tensor, case: dict[str, float], *, seed: int = 0) -> Seen:
    """What is kept of one study's output; `seed` draws the voxels."""
    name = study.row.name
    if isinstance(head, LabelMapHead):
        return Seen(name, case, scored_voxels(head, study, output, seed=seed), _volumes(head, study, output))
    if isinstance(head, classification.Head):
        truth = torch.tensor(head.truth_of(study.targets))
        if head.config.target is None:
            return Seen(name, case, Scored.of_labels(output[0], truth))
        return Seen(name, case, Scored.of_one(output, truth.long()) if truth.isfinite() else None)
    return Seen(name, case)


def scored_voxels(
    head: LabelMapHead, study: LabelledStudy, output: Float[Tensor, "1 classes x y z"], *, seed: int
) -> Scored:
    assert study.labels is not None
    x, y, z = study.prepared.grid.shape
    scores = output[0, :, :x, :y, :z]
    index = torch.from_numpy(around_structures(scores).ravel()).nonzero().squeeze(1)
    index = index[torch.randperm(len(index), generator=seeded(seed, 31))[:MOST_VOXELS]]
    truth = torch.from_numpy(study.prepared.labels_to_grid(head.classes_of(study.labels)).astype(np.int64))
    return Scored.of_one(scores.flatten(1)[:, index].T.clone(), truth.flatten()[index])


def around_structures(scores: Float[Tensor, "classes x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Voxels that are called a structure, and those close by; everything where nothing is called one."""
    found = (scores.argmax(dim=0) > 0).numpy()
    return ndimage.binary_dilation(found, iterations=NEAR_VOXELS) if found.any() else np.ones_like(found)


def _volumes(head: LabelMapHead, study: LabelledStudy, output: Tensor) -> dict[str, tuple[float, float]]:
    found, voxel_ml = head.labels_of(output, study.prepared), study.prepared.study.reference.voxel_volume_ml
    return {
        one.name: (float((found == one.value).sum()) * voxel_ml, float((study.labels == one.value).sum()) * voxel_ml)
        for one in head.config.structures
    }
