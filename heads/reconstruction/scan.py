"""What the network is given of a scan: its samples, what the coils see, and a few numbers about how it was made."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from foundation.physics.kspace import SenseOperator, combine, root_sum_of_squares, to_image
from foundation.physics.sensitivities import calibration_box, espirit_maps
from foundation.preprocess import Grid
from foundation.raw import RawData
from foundation.study import CONTRASTS, contrast_index
from foundation.tokens import Tokens, tokenise

MAX_CALIBRATION = 24  # samples along an axis
FAULTS = ("thick slices", "ghost", "motion")  # what spoils all samples, so that the mask does not show it
# Acceleration, calibration, whether the noise is known and which, denoising, how far k-space reaches; fault; contrast.
CONTEXT_SIZE = 9 + len(FAULTS) + len(CONTRASTS)
FAULTED = slice(9, 9 + len(FAULTS))


@dataclass(frozen=True)
class Scan:
    """The slices of one scan. Everything is divided by `scale`, so that images are of order one.

    `blurred` are the coils' images of the calibration lines alone, of unit root sum of squares as the maps are. `tokens`
    are of the zero-filled image, a bag for each slice, where an encoder is to look at it. `target` is there in training.
    """

    kspace: Complex[Tensor, "slices coils rows columns"]
    mask: Bool[Tensor, "#slices 1 #rows #columns"]
    maps: Complex[Tensor, "slices coils rows columns"]
    blurred: Complex[Tensor, "slices coils rows columns"]
    context: Float[Tensor, "numbers"]
    scale: float
    tokens: Tokens | None = None
    target: Float[Tensor, "slices rows columns"] | None = None

    @property
    def operator(self) -> SenseOperator:
        return SenseOperator(self.maps, self.mask)

    def only(self, *numbers: int) -> Scan:
        """Some slices of it."""
        here = list(numbers)
        return replace(
            self,
            kspace=self.kspace[here],
            mask=self.mask if len(self.mask) == 1 else self.mask[here],
            maps=self.maps[here],
            blurred=self.blurred[here],
            tokens=None if self.tokens is None else self.tokens.bags(here),
            target=None if self.target is None else self.target[here],
        )

    def to(self, device: torch.device | str) -> Scan:
        return replace(
            self,
            kspace=self.kspace.to(device),
            mask=self.mask.to(device),
            maps=self.maps.to(device),
            blurred=self.blurred.to(device),
            context=self.context.to(device),
            tokens=None if self.tokens is None else self.tokens.to(device),
            target=None if self.target is None else self.target.to(device),
        )

    @classmethod
    def of(
        cls,
        raw: RawData,
        *,
        denoise: int | float = 1.0,
        contrast: str = "unknown",
        fault: str | None = None,
        with_tokens: bool = False,
    ) -> Scan:
        """Sensitivities come from the calibration lines that the mask has, in training as in use."""
        raw = raw.whitened()
        masks = raw.mask.expand(len(raw.kspace), -1, *raw.shape)[:, 0]
        boxes = [_at_most(calibration_box(mask)) for mask in masks]
        peak = raw.kspace.abs().max()
        maps = torch.stack([espirit_maps(one / peak, box) for one, box in zip(raw.kspace, boxes)])
        blurred = torch.stack([_blurred(one, box) for one, box in zip(raw.kspace, boxes)])
        zero_filled = SenseOperator(maps, raw.mask).adjoint(raw.kspace)
        scale = float(zero_filled.abs().max())
        lines = calibration_box(masks[0])[raw.phase_axes[-1]]
        context = torch.zeros(CONTEXT_SIZE)
        context[0] = math.log2(raw.acceleration)
        context[1] = 10 * (lines.stop - lines.start) / raw.shape[raw.phase_axes[-1]]
        if raw.sigma:
            context[2], context[3] = 1.0, math.log10(raw.sigma / scale) + 2
        context[4] = denoise
        context[5:9] = _reach(masks[0])
        if fault is not None:
            context[9 + FAULTS.index(fault)] = 1
        context[9 + len(FAULTS) + contrast_index(contrast)] = 1
        tokens = _tokens(zero_filled.abs() / scale, raw, contrast) if with_tokens else None
        return cls(raw.kspace / scale, raw.mask, maps, blurred, context, scale, tokens)

    def aiming_at(self, complete: RawData) -> Scan:
        """With the image to make: as much of the way from the noisy complete scan to its clean image as is asked for."""
        assert complete.target is not None
        noisy = combine(to_image(complete.kspace), self.maps, axis=1).abs()
        share = float(self.context[4])
        return replace(self, target=((1 - share) * noisy + share * complete.target) / self.scale)


def _at_most(box: tuple[slice, slice], lines: int = MAX_CALIBRATION) -> tuple[slice, slice]:
    """Its middle: the time that ESPIRiT takes grows with the square of the lines, and the maps hardly improve."""

    def trimmed(one: slice) -> slice:
        num = min(one.stop - one.start, lines)
        start = one.start + (one.stop - one.start - num) // 2
        return slice(start, start + num)

    return trimmed(box[0]), trimmed(box[1])


def _reach(mask: Bool[Tensor, "rows columns"]) -> Float[Tensor, "4"]:
    """How far the samples go to either side along each axis, 1 being the end: less for partial Fourier or a small matrix."""
    found = []
    for axis, n in enumerate(mask.shape):
        lines = mask.any(dim=1 - axis).nonzero()[:, 0] - n // 2
        found += [-2 * float(lines[0]) / n, 2 * float(lines[-1] + 1) / n]
    return torch.tensor(found)


def _blurred(
    kspace: Complex[Tensor, "coils rows columns"], box: tuple[slice, slice]
) -> Complex[Tensor, "coils rows columns"]:
    lines = torch.zeros_like(kspace)
    lines[:, box[0], box[1]] = kspace[:, box[0], box[1]]
    images = to_image(lines)
    return images / root_sum_of_squares(images).clamp(min=torch.finfo(torch.float32).tiny)


def _tokens(images: Float[Tensor, "slices rows columns"], raw: RawData, contrast: str) -> Tokens:
    """Every patch of every slice, air too, in the order of the patches: eight voxels across the slice are that slice."""
    affine = np.eye(4) if raw.affine is None else raw.affine
    bags = [
        tokenise(
            (one[..., None] - 0.5) / 0.25,
            torch.ones(*one.shape, 1, dtype=torch.bool),
            Grid((*raw.shape, 1), affine),
            contrast,  # pyright: ignore[reportArgumentType]
            raw.acquisition,
        )
        for one in images
    ]
    return Tokens.collate(bags)
