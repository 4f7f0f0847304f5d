"""Is a study like those that the model was fitted on? The distance of its features from theirs.

Features are the mean over the encoder's tokens, in units of the training studies' standard deviations; the distance is that to
the fifth nearest training study (Sun et al. 2022, arXiv 2204.06507). Nothing is fitted, so a dozen training studies will do, and
what is usual among them is known from each one's distance to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import torch
from jaxtyping import Float

from finetune.samples import LabelledStudy, progress_over
from finetune.trust.changes import Spacing
from finetune.trust.intervals import Estimate, resampled_groups, wilson
from foundation.checkpoint import read_about
from foundation.config import Config
from foundation.encoder import Encoder
from foundation.files import write_aside
from foundation.preprocess import PreparedStudy, prepare_study
from foundation.reading.collection import read_manifest, read_study
from heads.base import StudySample, TaskModel

FILE = "training_features.safetensors"
NEIGHBOUR = 5
HELD_IN = 0.95  # of the training studies lie within the threshold
MOST_STUDIES = 200  # whose features are kept: more hardly change what is near
NO_ENCODER = "the model has no encoder"


class OodSet(Config):
    """`beyond` is the share of studies beyond the threshold, `auroc` how well distances tell them from training studies."""

    name: str
    distances: tuple[float, ...]
    beyond: Estimate
    auroc: Estimate | None = None


class OodReport(Config):
    """The first set are the training studies, each measured from the others."""

    num_training: int
    threshold: float
    sets: tuple[OodSet, ...]

    def lines(self) -> list[str]:
        return [
            f"distance to {self.num_training} training studies; threshold {self.threshold:.2f} holds {HELD_IN:.0%} of them",
            *(
                f"{one.name:44s} n = {len(one.distances):<4d} median {np.median(one.distances):.2f}, beyond {one.beyond}"
                + ("" if one.auroc is None else f", AUROC {one.auroc}")
                for one in self.sets
            ),
        ]


@torch.inference_mode()
def pooled_features(model: TaskModel, prepared: PreparedStudy) -> Float[np.ndarray, " width"]:
    assert isinstance(model.encoder, Encoder)
    device = next(model.encoder.parameters()).device
    return model.encoder(StudySample.of(prepared).tokens().to(device)).tokens[0].mean(dim=0).float().cpu().numpy()


@dataclass(frozen=True)
class Reference:
    """The features of the studies that a model was fitted on."""

    features: Float[np.ndarray, "studies width"]

    @classmethod
    def of(cls, model: TaskModel, studies: Sequence[PreparedStudy]) -> Reference:
        chosen = progress_over(studies[:MOST_STUDIES], "features")
        return cls(np.stack([pooled_features(model.eval(), one) for one in chosen]))

    def save(self, folder: Path) -> None:
        """Beside the weights of a task folder, and saying which."""
        weights = str(read_about(folder)["provenance"].get("weights_sha256"))
        with write_aside(folder / FILE) as aside:
            safetensors.numpy.save_file({"features": self.features}, aside, {"weights_sha256": weights})

    @classmethod
    def load(cls, folder: Path, weights_sha256: str) -> Reference | str:
        """A text says why there is none."""
        file = folder / FILE
        if not file.is_file():
            return "the model folder holds no features of its training studies (python -m finetune.trust adds them)"
        try:
            with safetensors.safe_open(file, "numpy") as opened:
                if (opened.metadata() or {}).get("weights_sha256") != weights_sha256:
                    return f"{FILE} belongs to other weights"
                return cls(opened.get_tensor("features"))
        except (OSError, safetensors.SafetensorError) as error:
            return f"{FILE} cannot be read: {error}"

    def distances(self, features: Float[np.ndarray, "studies width"]) -> Float[np.ndarray, " studies"]:
        return self._distances(features, NEIGHBOUR)

    def own_distances(self) -> Float[np.ndarray, " studies"]:
        """Of each training study from the others: itself is the nearest of all, and not counted."""
        return self._distances(self.features, NEIGHBOUR + 1)

    def _distances(self, features: np.ndarray, neighbour: int) -> np.ndarray:
        middle, spread = self.features.mean(axis=0), self.features.std(axis=0) + 1e-6
        theirs, ours = (features - middle) / spread, (self.features - middle) / spread
        apart = np.linalg.norm(theirs[:, None] - ours[None], axis=-1)
        return np.sort(apart, axis=1)[:, min(neighbour, len(ours)) - 1]

    @property
    def threshold(self) -> float:
        return float(np.quantile(self.own_distances(), HELD_IN, method="higher"))


def auroc(inside: Sequence[float] | np.ndarray, outside: Sequence[float] | np.ndarray) -> float:
    """How often a study from outside is further than one from inside; ties count half."""
    difference = np.asarray(outside)[:, None] - np.asarray(inside)[None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def measure_ood(
    model: TaskModel,
    spacing_mm: Spacing,
    reference: Reference | str,
    studies: Sequence[LabelledStudy],
    manifests: Sequence[Path],
) -> OodReport | str:
    """The evaluated studies, and those of manifests that are said to be of another kind; a text says why not."""
    if not isinstance(model.encoder, Encoder):
        return NO_ENCODER
    if isinstance(reference, str):
        return reference
    own, threshold = reference.own_distances(), reference.threshold

    def measured(name: str, distances: np.ndarray, *, is_training: bool = False) -> OodSet:
        beyond = wilson(int((distances > threshold).sum()), len(distances))
        differs = (
            None
            if is_training
            else resampled_groups(distances.tolist(), own.tolist(), lambda ours, held: auroc(held, ours))
        )
        return OodSet(name=name, distances=tuple(distances.tolist()), beyond=beyond, auroc=differs)

    def features(prepared: Sequence[PreparedStudy]) -> np.ndarray:
        return np.stack([pooled_features(model, one) for one in progress_over(prepared, "features")])

    sets = [
        measured("training studies, each from the others", own, is_training=True),
        measured("evaluated studies", reference.distances(features([study.prepared for study in studies]))),
    ]
    for path in manifests:
        collection = read_manifest(path)
        other = [prepare_study(read_study(row, collection.root), spacing_mm) for row in collection.rows]
        sets.append(measured(str(path), reference.distances(features(other))))
    return OodReport(num_training=len(own), threshold=threshold, sets=tuple(sets))
