"""Segmentation: a label for every voxel, of any number of structures, from any number of series, in one pass.

The encoder's 8-voxel patches are too coarse for edges, so a small convolutional stem looks at full resolution, and a decoder
brings the two together (as in UNETR, Hatamizadeh et al. 2022, but with the stem on the voxels themselves). The stem's first
convolution reads each series alone, told its contrast, and what it says is averaged, so a missing series changes nothing but
what is known.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from monai.losses.dice import DiceLoss
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from torch import Tensor, nn

from foundation.encoder import EncoderConfig, Features
from foundation.findings import Finding, Structure, measure_structures, not_assessed
from foundation.preprocess import PreparedStudy, find_body
from foundation.registry import KindConfig
from foundation.study import CONTRASTS
from foundation.tokens import PATCH, Tokens
from heads import base
from heads._planes import SLOPE, activate_, convolve, convolve_once, convolve_twice, normal, planes_at_a_time
from heads.base import HeadReading, StudyBatch, Target


class DenseConfig(KindConfig):
    """`structures` are the values of the label map; `channels` are the stem's at full, half and quarter resolution."""

    structures: tuple[Structure, ...]
    channels: tuple[int, int, int] = (16, 32, 64)
    bottleneck: int = 128

    @property
    def drawn(self) -> tuple[Structure, ...]:
        """What the values of the label map in a reading mean."""
        return self.structures


class Config(DenseConfig):
    kind: Literal["segmentation"] = "segmentation"


class LabelMapHead(base.Head):
    """Everything of a segmentation head but the network: its output is `(batch, classes, x, y, z)` scores on the batch's grid."""

    is_dense, draws = True, True
    main_score = "dice"

    def __init__(self, encoder: EncoderConfig, config: DenseConfig):
        super().__init__(encoder, config)
        self.config = config
        self._dice = DiceLoss(include_background=False, softmax=True, batch=True, reduction="none")
        self.add_parts()

    def add_parts(self) -> None:
        """What a kind of head has beside the network, whichever that is."""

    def loss(self, output: Tensor, batch: StudyBatch) -> dict[str, Tensor]:
        """Dice of the structures that the batch shows, plus cross-entropy of all; padding (label -1) is background, which it is.

        Averaged over structures that are not there too, Dice would nearly be a constant where there are many kinds: with 27 of
        them, of which a box shows nine, small ones were not learnt in 450 steps.
        """
        assert batch.labels is not None
        labels, output = batch.labels.clamp(min=0), output.float()
        truth = nn.functional.one_hot(labels, output.shape[1]).movedim(-1, 1)
        is_there = truth.flatten(2).any(dim=2).any(dim=0)[1:]
        dice = self._dice(output, truth.float()).flatten()
        loss = nn.functional.cross_entropy(output, labels) + (dice * is_there).sum() / is_there.sum().clamp(min=1)
        return {"loss": loss}

    def labels_of(self, output: Tensor, prepared: PreparedStudy) -> np.ndarray:
        """The label map on the reference series' own voxels, int16."""
        x, y, z = prepared.grid.shape
        classes = prepared.labels_from_grid(output[0, :, :x, :y, :z].softmax(dim=0))
        return self._values[classes]

    @property
    def _values(self) -> np.ndarray:
        return np.asarray([0, *(structure.value for structure in self.config.structures)], dtype=np.int16)

    def classes_of(self, labels: np.ndarray) -> np.ndarray:
        """Label values as class indices 0..K; values that are no structure of ours become background."""
        classes = np.zeros(labels.shape, dtype=np.int16)
        for index, structure in enumerate(self.config.structures, start=1):
            classes[np.isin(labels, (structure.value, *structure.also))] = index
        return classes

    def known_part(self, labels: np.ndarray) -> np.ndarray:
        """A label map from elsewhere in our own values."""
        return self._values[self.classes_of(labels)]

    def refuse(self, *, source: str, why: str) -> list[Finding]:
        return not_assessed(self.config.structures, source=source, why=why)

    def read(self, output: Tensor, prepared: PreparedStudy, *, source: str, mask_path: str | None) -> HeadReading:
        labels = self.labels_of(output, prepared)
        reference = prepared.study.reference
        findings = measure_structures(
            labels, reference, self.config.structures, body=find_body(reference), mask_path=mask_path, source=source
        )
        return HeadReading(findings, labels)

    def score_case(
        self, output: Tensor, prepared: PreparedStudy, labels: np.ndarray | None, targets: dict[str, Target]
    ) -> dict[str, float]:
        """Dice and 95th percentile Hausdorff distance in mm of each structure, on the reference series' own voxels."""
        assert labels is not None
        spacing_mm = prepared.study.reference.spacing_mm
        return score_labels(
            self.labels_of(output, prepared), self.known_part(labels), self.config.structures, spacing_mm
        )

    def summarise(self, cases: Sequence[dict[str, float]]) -> dict[str, float]:
        """Means over cases; a distance that does not exist is left out of its mean (`one-sided structures` counts those)."""
        summary = {}
        for name in cases[0]:
            values = np.asarray([case[name] for case in cases])
            there = np.isfinite(values)
            summary[name] = float(values[there].mean()) if there.any() else float("nan")
        return summary


class Head(LabelMapHead):
    """Full-resolution stem, token features at an eighth, and a decoder that joins them."""

    def __init__(self, encoder: EncoderConfig, config: DenseConfig):
        super().__init__(encoder, config)
        full, half, quarter = config.channels
        self.look = ContrastBlock(full)
        widths = (full, half, quarter, config.bottleneck)
        self.deepen = nn.ModuleList(ConvBlock(fine, deep, stride=2) for fine, deep in pairwise(widths))
        self.project = nn.Linear(encoder.width, config.bottleneck)
        self.air = nn.Parameter(torch.zeros(config.bottleneck))
        self.join = ConvBlock(2 * config.bottleneck, config.bottleneck)
        widths = widths[::-1]
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(deep, fine, kernel_size=2, stride=2) for deep, fine in pairwise(widths)
        )
        self.merge = nn.ModuleList(ConvBlock(2 * fine, fine) for fine in widths[1:])
        self.classify = nn.Conv3d(full, 1 + len(config.structures), kernel_size=1)
        for up, width in zip(self.up, widths, strict=False):
            # torch's default gives a third of this, and after three levels what the encoder says is drowned by the stem.
            nn.init.normal_(up.get_parameter("weight"), std=width**-0.5)

    def forward(self, features: Features, batch: StudyBatch) -> Float[Tensor, "batch classes x y z"]:
        x, classes = self.decode(features, batch), self.classify.out_channels
        if torch.is_grad_enabled() or classes > x.shape[1]:
            return self.classify(x)
        for planes in x.split(planes_at_a_time(x.shape[2:]), dim=2):
            planes[:, :classes] = self.classify(planes)
        return x[:, :classes]

    def decode(self, features: Features, batch: StudyBatch) -> Float[Tensor, "batch channels x y z"]:
        """What is known of every voxel, at full resolution."""
        assert batch.voxels is not None and batch.has_series is not None and batch.contrast is not None
        details = self._details(batch.voxels, batch.has_series, batch.contrast)
        x = self._lay_out(self.project(features.tokens), batch.tokens, batch.voxels.shape[2:])
        x = self.join(torch.cat([x, details.pop()], dim=1))
        for up, merge in zip(self.up, self.merge, strict=True):
            x = _merge(up, merge, x, details.pop())
        return x

    def adopt(self, start: base.Head, *, but: frozenset[str] = frozenset()) -> frozenset[str]:
        """Everything but the last layer by shape; that layer's rows by the names of the structures."""
        last = frozenset(f"classify.{name}" for name, _ in self.classify.named_parameters())
        copied = super().adopt(start, but=but | last)
        if not isinstance(start, Head) or start.config.channels != self.config.channels:
            return copied
        theirs = {None: 0} | {one.name: row for row, one in enumerate(start.config.structures, start=1)}
        ours = [None, *(one.name for one in self.config.structures)]
        with torch.no_grad():
            for row, name in enumerate(ours):
                if name in theirs:
                    for parameter, fitted in zip(self.classify.parameters(), start.classify.parameters(), strict=True):
                        parameter[row] = fitted[theirs[name]]
        return copied | last if set(ours) <= set(theirs) else copied

    def _details(self, voxels: Tensor, has_series: Tensor, contrast: Tensor) -> list[Tensor]:
        """The stem's maps at full, half, quarter and an eighth of the resolution, of all series together."""
        maps = [self.look(voxels, has_series, contrast)]
        for block in self.deepen:
            maps.append(block(maps[-1]))
        return maps

    def _lay_out(
        self, x: Float[Tensor, "batch tokens c"], tokens: Tokens, shape: Sequence[int]
    ) -> Float[Tensor, "batch c i j k"]:
        """Token features at their cells, averaged over series; a learned vector where there is only air."""
        i, j, k = (n // PATCH for n in shape)
        flat = (tokens.cell[..., 0] * j + tokens.cell[..., 1]) * k + tokens.cell[..., 2]
        real = tokens.is_real[..., None].to(x.dtype)
        total = x.new_zeros(len(x), i * j * k, x.shape[-1]).scatter_add(1, flat[..., None].expand_as(x), x * real)
        number = x.new_zeros(len(x), i * j * k, 1).scatter_add(1, flat[..., None], real)
        grid = torch.where(number > 0, total / number.clamp(min=1), self.air.to(x.dtype))
        return grid.transpose(1, 2).unflatten(2, (i, j, k))


def _merge(up: nn.Module, merge: nn.Module, x: Tensor, detail: Tensor) -> Tensor:
    """A coarse map and the stem's fine one as one, which may lie where the fine one lay."""
    if torch.is_grad_enabled():
        return merge(torch.cat([up(x), detail], dim=1))

    def both(lo: int, hi: int) -> Tensor:
        finer = up(x[:, :, lo // 2 : (hi + 1) // 2])[:, :, lo % 2 :][:, :, : hi - lo]
        return torch.cat([finer, detail[:, :, lo:hi]], dim=1)

    assert isinstance(merge, ConvBlock)
    return convolve_twice(merge, both, detail.shape[2:], out=detail)


def score_labels(
    predicted: np.ndarray, truth: np.ndarray, structures: Sequence[Structure], spacing_mm: np.ndarray
) -> dict[str, float]:
    """`dice`, its mean over structures first, and `hd95_mm` of each structure. Two empty masks agree: Dice 1.

    HD95 is not a number where exactly one of the masks is empty; `one-sided structures` is how many those are.
    """
    values = [structure.value for structure in structures]
    one_hot = [torch.from_numpy(np.stack([volume == value for value in values]))[None] for volume in (predicted, truth)]
    box = _bounding_box(one_hot[0] | one_hot[1])
    guess, real = (mask[box] for mask in one_hot)
    dice = compute_dice(guess, real, ignore_empty=False)[0]
    with warnings.catch_warnings():  # MONAI warns of an argument that it passes to itself
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="the (prediction|ground truth) of class")  # counted below
        distance = compute_hausdorff_distance(
            guess, real, include_background=True, percentile=95, spacing=spacing_mm.tolist()
        )[0]
    scores = {"dice": float(dice.mean())}
    for index, structure in enumerate(structures):
        scores[f"dice {structure.name}"] = float(dice[index])
        both_empty = not guess[0, index].any() and not real[0, index].any()
        hd95 = 0.0 if both_empty else float(distance[index])
        scores[f"hd95_mm {structure.name}"] = hd95 if np.isfinite(hd95) else float("nan")
    scores["one-sided structures"] = float((guess[0].flatten(1).any(1) != real[0].flatten(1).any(1)).sum())
    return scores


def _bounding_box(mask: Tensor) -> tuple[slice, ...]:
    """Slices of a `(1, classes, x, y, z)` mask around what is set, with a voxel to spare; everything if nothing is."""
    where = mask.any(dim=1)[0].nonzero()
    if not len(where):
        return (slice(None),) * 5
    low, high = where.amin(dim=0).tolist(), where.amax(dim=0).tolist()
    return (slice(None), slice(None), *(slice(max(0, a - 1), b + 2) for a, b in zip(low, high, strict=True)))


class ConvBlock(nn.Sequential):
    """Two 3 x 3 x 3 convolutions, each normalised per volume and channel; the first may halve the resolution."""

    def __init__(self, num_in: int, num_out: int, *, stride: int = 1):
        super().__init__(
            nn.Conv3d(num_in, num_out, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.InstanceNorm3d(num_out, affine=True),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv3d(num_out, num_out, kernel_size=3, padding=1, bias=False),
            nn.InstanceNorm3d(num_out, affine=True),
            nn.LeakyReLU(SLOPE, inplace=True),
        )

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(input)
        return convolve_twice(self, lambda lo, hi: input[:, :, lo:hi], input.shape[2:])


class ContrastBlock(nn.Module):
    """As `ConvBlock` on the series of a study: each passes the first convolution alone, and they go on as their average.

    What is bright in T2w is dark in T1w: averaged before that is known, two series undo each other. So the first normalisation's
    scale and shift belong to the contrast, which is conditional instance normalisation (Dumoulin et al. 2017); all contrasts
    start alike. What follows sees how contrasts go together, as in a network with a channel for each, at the cost of one series.
    """

    def __init__(self, num_out: int):
        super().__init__()
        self.first = nn.Conv3d(1, num_out, kernel_size=3, padding=1, bias=False)
        self.scale = nn.Embedding(len(CONTRASTS), num_out)
        self.shift = nn.Embedding(len(CONTRASTS), num_out)
        self.rest = nn.Sequential(
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv3d(num_out, num_out, kernel_size=3, padding=1, bias=False),
            nn.InstanceNorm3d(num_out, affine=True),
            nn.LeakyReLU(SLOPE, inplace=True),
        )
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(
        self,
        voxels: Float[Tensor, "batch series x y z"],
        has_series: Bool[Tensor, "batch series"],
        contrast: Int[Tensor, "batch series"],
    ) -> Float[Tensor, "batch channels x y z"]:
        weight = (has_series / has_series.sum(dim=1, keepdim=True)).to(voxels.dtype)
        if not torch.is_grad_enabled():
            return self._by_planes(voxels, weight, contrast)
        x, told = self.first(voxels.flatten(0, 1)[:, None]), contrast.flatten()
        # Series as channels of one volume: then each has a scale and a shift of its own in one fused operation.
        x = nn.functional.instance_norm(
            x.flatten(0, 1)[None], weight=self.scale(told).flatten(), bias=self.shift(told).flatten()
        ).view_as(x)
        each = self.rest[0](x).unflatten(0, has_series.shape)
        return self.rest[1:]((each * weight[:, :, None, None, None, None]).sum(dim=1))

    def _by_planes(self, voxels: Tensor, weight: Tensor, contrast: Tensor) -> Tensor:
        """`forward` where nothing is learnt: one series after another, `weight` of each in their average."""
        shape, average = voxels.shape[2:], None
        for one, part, told in zip(voxels.unbind(1), weight.unbind(1), contrast.unbind(1), strict=True):
            x = convolve(self.first.weight, lambda lo, hi, one=one: one[:, None, lo:hi], shape)
            x = activate_(x, *normal(x, self.scale(told), self.shift(told)))
            x = x.mul_(part[:, None, None, None, None])
            average = x if average is None else average.add_(x)
        assert average is not None
        return convolve_once(self.rest[1], self.rest[2], lambda lo, hi: average[:, :, lo:hi], shape, out=average)
