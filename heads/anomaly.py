"""An attention aid without labels: where a study looks unlike what the model expects there from the rest of it.

Fitted on studies without disease. A part of the places of a study is hidden, in all series at once, and predicted from the rest;
in use each place is hidden once. Where the prediction is worse than it was almost anywhere in training, something is unusual:
a lesion, an artefact, or anatomy that training did not show. It finds nothing by name and is no finding by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from foundation.encoder import EncoderConfig, Features
from foundation.findings import Finding, Structure, measure_structures, not_assessed
from foundation.masked import MaskedDecoder
from foundation.preprocess import PreparedStudy, find_body
from foundation.registry import KindConfig
from foundation.tokens import PATCH, Tokens, from_patches
from heads import base
from heads.base import HeadReading, StudyBatch, Target

MOMENTUM = 0.05  # of what is usual, from one training step to the next
AID = "an attention aid: the model could not predict this place from the rest of the study; it does not say why"


class Config(KindConfig):
    """Each look hides one of `looks` parts of the places. A patch is unusual when its error is above that of all but
    `unusual` of the patches in training; less than `min_ml` of unusual voxels is not pointed at."""

    kind: Literal["anomaly"] = "anomaly"
    looks: Annotated[int, Field(ge=2)] = 4
    unusual: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    min_ml: Annotated[float, Field(ge=0)] = 0.1
    decoder_width: int = 192
    decoder_depth: int = 2

    @property
    def structures(self) -> tuple[Structure]:
        """What the values of the label map mean."""
        return (Structure(value=1, name="unusual appearance", paired=True, min_ml=self.min_ml, abnormal=True),)


class Head(base.Head):
    """`ask` gives the squared error of every voxel of every token that was hidden; not a number elsewhere."""

    is_dense, draws, looks_once = False, True, False

    def __init__(self, encoder: EncoderConfig, config: Config):
        super().__init__(encoder, config)
        self.config = config
        self.decoder = MaskedDecoder(encoder, config.decoder_width, config.decoder_depth)
        self.threshold: Tensor
        self.register_buffer("threshold", torch.ones(()))  # of a patch's mean squared error

    def ask(self, encoder: nn.Module, batch: StudyBatch) -> Float[Tensor, "batch tokens voxels"]:
        tokens = batch.tokens
        # The same places whatever else is in the batch, and in training others at each step.
        salt = int(torch.randint(2**31, ())) if self.training else 0
        part = _scatter(tokens, salt) % self.config.looks
        error = torch.full_like(tokens.patches, float("nan"))
        for look in range(1 if self.training else self.config.looks):
            hidden = (part == look) & tokens.is_real
            visible = _only(tokens, tokens.is_real & ~hidden)
            predicted = self.decoder(encoder(visible), visible, _only(tokens, hidden))
            error = torch.where(hidden[..., None], (predicted - tokens.patches).float().square(), error)
        return error

    def forward(self, features: Features, batch: StudyBatch) -> Tensor:
        raise AssertionError("this head asks the encoder several times; call `ask`")

    def loss(self, output: Tensor, batch: StudyBatch) -> dict[str, Tensor]:
        """The mean squared error of what was hidden; in training also what is usual is followed."""
        hidden = torch.isfinite(output)
        if not hidden.any():
            return {"loss": 0 * batch.tokens.patches.sum()}
        if self.training:
            with torch.no_grad():
                patches = output[hidden.all(dim=-1)].mean(dim=-1)
                self.threshold.lerp_(torch.quantile(patches, 1 - self.config.unusual), MOMENTUM)
        return {"loss": output[hidden].mean()}

    def error_map(self, output: Tensor, prepared: PreparedStudy) -> Float[np.ndarray, "series x y z"]:
        """The squared error on the grid, of each series, 0 where nothing was hidden, as in air."""
        batch = StudyBatch.of([base.StudySample.of(prepared)], dense=False)
        tokens = batch.tokens
        shape = np.array(prepared.grid.shape)
        i, j, k = (int(n) for n in -(-shape // PATCH))
        maps = []
        for series in range(len(prepared.voxels)):
            cells = torch.zeros(i * j * k, output.shape[-1])
            own = tokens.series[0] == series
            x, y, z = tokens.cell[0, own].unbind(dim=-1)
            cells[(x * j + y) * k + z] = torch.nan_to_num(output[0, own])
            maps.append(from_patches(cells, (i, j, k))[: shape[0], : shape[1], : shape[2]].numpy())
        return np.stack(maps)

    def unusual_map(self, output: Tensor, prepared: PreparedStudy) -> Float[np.ndarray, "i j k"]:
        """The error over what is usual, its largest over the series, on the reference series' own voxels."""
        largest = torch.from_numpy(self.error_map(output, prepared)).amax(dim=0)
        smooth = nn.functional.avg_pool3d(largest[None, None], 3, stride=1, padding=1, count_include_pad=False)[0, 0]
        return prepared.values_from_grid(smooth / self.threshold.cpu())

    def refuse(self, *, source: str, why: str) -> list[Finding]:
        return not_assessed(self.config.structures, source=source, why=why)

    def read(self, output: Tensor, prepared: PreparedStudy, *, source: str, mask_path: str | None) -> HeadReading:
        """Where to look, as uncertain; a place is pointed at, and never called a disease."""
        reference = prepared.study.reference
        labels = (self.unusual_map(output, prepared) > 1).astype(np.int16)
        findings = measure_structures(
            labels,
            reference,
            self.config.structures,
            body=find_body(reference),
            mask_path=mask_path,
            source=source,
        )
        worded = [
            one.model_copy(update={"presence": "uncertain" if one.presence == "present" else one.presence, "note": AID})
            for one in findings
        ]
        return HeadReading(worded, labels)

    def score_case(
        self, output: Tensor, prepared: PreparedStudy, labels: np.ndarray | None, targets: dict[str, Target]
    ) -> dict[str, float]:
        """`error`, and where there is a mask how well the map ranks its voxels above the rest of the body."""
        there = output[torch.isfinite(output)]
        scores = {"error": float(there.mean()), "unusual share": 0.0, "auroc": float("nan")}
        unusual = self.unusual_map(output, prepared)
        body = find_body(prepared.study.reference)
        scores["unusual share"] = float((unusual[body] > 1).mean())
        if labels is not None and (labels[body] > 0).any() and (labels[body] == 0).any():
            truth = torch.from_numpy((labels[body] > 0).astype(np.int64))
            scores["auroc"] = float(binary_auroc(torch.from_numpy(unusual[body]), truth))
        return scores

    def summarise(self, cases: Sequence[dict[str, float]]) -> dict[str, float]:
        summary = {}
        for name in ("auroc", "error", "unusual share"):
            values = np.array([case[name] for case in cases])
            summary[name] = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
        return summary


def _scatter(tokens: Tokens, salt: int) -> Tensor:
    """A number for each place that is the same for all series of a study, as if drawn at random."""
    x, y, z = (tokens.cell[..., axis].long() for axis in range(3))
    mixed = (x * 73856093) ^ (y * 19349663) ^ (z * 83492791) ^ salt  # Teschner et al. 2003
    return (mixed * 2654435761 % 2**32) >> 8


def _only(tokens: Tokens, kept: Bool[Tensor, "batch tokens"]) -> Tokens:
    """The bag in which only these tokens are real; no bag is empty, for attention to nothing is not a number."""
    none = ~kept.any(dim=1, keepdim=True)
    return replace(
        tokens, is_real=kept | (none & (torch.arange(len(tokens), device=kept.device) == 0)), has_padding=True
    )
