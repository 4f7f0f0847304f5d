"""What is seen of a study's images, as columns of numbers, made once and kept.

Plain counts of how bright each contrast is inside; an encoder's registers, and mean, spread and largest value of every feature
over its tokens; the volumes that models which outline structures find. Each is a `Look` of its own, kept under what it depends
on: the bytes of the study's files, the weights, the spacing. So another model beside the others costs its own pass and no more,
and what was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from finetune.config import FinetuneConfig
from foundation.checkpoint import read_about
from foundation.encoder import Encoder
from foundation.errors import InputError
from foundation.files import sha256, write_aside
from foundation.preprocess import PreparedStudy, prepare_study
from foundation.progress import progress
from foundation.reading.collection import Row, read_study
from foundation.reading.nifti import nifti_stem
from foundation.study import Contrast
from heads.adapters.folder import LoadedModel, encoder_of, load_model
from heads.base import StudyBatch, StudySample
from heads.segmentation import LabelMapHead

DEPTH_MM = 24.0  # inside the skull, mostly
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
FAR = (-3.0, -2.0, -1.0, 1.0, 1.5, 2.0, 3.0, 4.0)  # interquartile ranges from the median
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Look:
    """One way to look: `kind` of the columns, the grid it looks at, and what its numbers depend on besides the study."""

    kind: str
    spacing_mm: Spacing
    depends_on: str
    see: Callable[[PreparedStudy], np.ndarray]

    @property
    def name(self) -> str:
        return _short(json.dumps([self.kind, self.spacing_mm, self.depends_on]))


def looks_of(config: FinetuneConfig, rows: Sequence[Row], measured_by: Sequence[Path]) -> list[Look]:
    """Brightness always; the encoder at the task's spacing; each model that outlines at its own."""
    spacing = config.data.spacing_mm
    contrasts: list[Contrast] = sorted({series.contrast for row in rows for series in row.series})
    looks = [Look("brightness", spacing, " ".join(contrasts), lambda study: brightness(study, contrasts))]
    if config.encoder is not None:
        encoder = encoder_of(config.encoder).eval()
        weights = str(read_about(config.encoder)["provenance"].get("weights_sha256"))
        looks.append(Look("features", spacing, weights, lambda study: pooled_features(encoder, study)))
    for folder in measured_by:
        loaded = load_model(folder)
        if not isinstance(loaded.model.head, LabelMapHead):
            got, remedy = loaded.config.head.kind, "Name the folder of a model that outlines structures."
            raise InputError("--measured-by outlines structures", got=got, remedy=remedy, file=folder)
        see = lambda study, loaded=loaded: measured_volumes(loaded, study)  # noqa: E731
        looks.append(Look("volumes", loaded.config.spacing_mm, loaded.weights_sha256, see))
    return looks


def look(looks: Sequence[Look], rows: Sequence[Row], root: Path, kept: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Columns of all studies, and the kind of each; a study is read once for all that have not yet looked at it."""
    found: list[list[np.ndarray]] = []
    with progress(total=len(rows), label="look", unit="study") as bar:
        for row in rows:
            files = {one.name: kept / one.name / f"{_content(row, root)}.npy" for one in looks}
            missing = [one for one in looks if not files[one.name].is_file()]
            if missing:
                study = read_study(row, root)
                prepared = {spacing: prepare_study(study, spacing) for spacing in {one.spacing_mm for one in missing}}
                for one in missing:
                    with write_aside(files[one.name]) as aside:
                        np.save(aside, one.see(prepared[one.spacing_mm]))
            found.append([np.load(files[one.name]) for one in looks])
            bar.update()
    kinds = tuple(one.kind for one, values in zip(looks, found[0], strict=True) for _ in values)
    return np.stack([np.concatenate(one) for one in found]), kinds


def _content(row: Row, root: Path) -> str:
    """Of the images, their sidecars and what was removed of them, wherever they lie."""
    parts = []
    for series in row.series:
        path = root / series.path
        files = [path, path.with_name(f"{nifti_stem(path)}.json"), *([root / series.removed] if series.removed else [])]
        parts.append([series.contrast, *(sha256(file) for file in files if file.is_file())])
    return _short(json.dumps(parts))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


# ------------------------------------------------------------------------------------------------ the ways


def brightness(prepared: PreparedStudy, contrasts: Sequence[Contrast]) -> np.ndarray:
    """Of each contrast, deeper than `DEPTH_MM`: quantiles, and ln(1 + ml) of what is far brighter or darker than most.

    Plain counts, which need no model: how much is bright on FLAIR is most of what there is to know of some diseases.
    """
    voxel_ml = float(np.prod(prepared.grid.spacing_mm)) / 1000
    found = np.full((len(contrasts), len(QUANTILES) + len(FAR)), np.nan)
    for place, contrast in enumerate(contrasts):
        if contrast in prepared.contrasts:
            index = prepared.contrasts.index(contrast)
            depth_mm = distance_transform_edt(prepared.body[index], sampling=prepared.grid.spacing_mm)
            values = prepared.voxels[index][np.asarray(depth_mm) > DEPTH_MM]
            if len(values):
                quantiles = np.quantile(values, QUANTILES)
                low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
                far = [np.sum(np.sign(k) * (values - middle) > abs(k) * (high - low)) * voxel_ml for k in FAR]
                found[place] = [*quantiles, *np.log1p(far)]
    return found.ravel()


@torch.inference_mode()
def pooled_features(encoder: Encoder, prepared: PreparedStudy) -> np.ndarray:
    """Registers, then mean, standard deviation and maximum over all tokens."""
    features = encoder(StudyBatch.of([StudySample.of(prepared)], dense=False).tokens)
    tokens = features.tokens[0].float()
    parts = [features.registers[0].flatten(), tokens.mean(dim=0), tokens.std(dim=0), tokens.max(dim=0).values]
    return torch.cat([part.float() for part in parts]).numpy()


@torch.inference_mode()
def measured_volumes(loaded: LoadedModel, prepared: PreparedStudy) -> np.ndarray:
    """ln(1 + ml) of each structure that the model outlines, counted by probability: a voxel that is half sure is half a voxel."""
    output = loaded.model.output_of(prepared)
    x, y, z = prepared.grid.shape
    probable = output[0, :, :x, :y, :z].softmax(dim=0)[1:]
    voxel_ml = float(np.prod(prepared.grid.spacing_mm)) / 1000
    return np.log1p(probable.flatten(1).sum(dim=1).numpy() * voxel_ml)
