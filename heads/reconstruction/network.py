"""An unrolled network: what the samples say, and in between a small U-Net that says what images look like.

    x <- the image that explains the samples best and lies near x, how near depends on the scan
    x <- x + refine_k(x, A^H (y - A x), scan)

as in MoDL (Aggarwal 2019): the first line is a few conjugate gradients, the first time from nothing, which is SENSE. Single
gradient steps leave an image more blurred than SENSE's. As in E2E-VarNet (Sriram 2020) the sensitivities that few calibration
lines give are mended first. The U-Nets see real and imaginary part, what is known of the scan (FiLM, Perez 2018), and, where an
encoder is given, its features of the zero-filled image. Another small U-Net says how wrong the image may be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Complex, Float
from pydantic import Field
from torch import Tensor, nn

from foundation.checkpoint import load_model_folder, save_model_folder
from foundation.config import Config
from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError
from foundation.physics.kspace import SenseOperator
from foundation.reconstruction.methods import solve_normal
from foundation.reconstruction.metrics import K1, K2, WINDOW
from foundation.tokens import PATCH
from heads._unet import NORM_GROUPS, UNet
from heads.base import default_folders
from heads.reconstruction.scan import CONTEXT_SIZE, FAULTED, Scan

KIND = "reconstruction"
MAP_CHANNELS, DOUBT_CHANNELS = 8, 8
START_PENALTY, PENALTY = 1e-2, 0.1  # at first; where all samples are spoilt, so many e-folds more
FAULT_PENALTY = 4.0
EXACT = 0.02  # relative errors much smaller than this are not worth learning
DOUBT_WEIGHT = 0.1
DOUBT_UNIT, LEAST_DOUBT = 20.0, 1e-4  # errors are some hundredths of the brightest place


class UnrolledConfig(Config):
    """`start_steps` conjugate gradients make the image that it begins with, `data_steps` follow every refinement but the last.

    `encoder` None works without; otherwise one of that shape looks at the zero-filled image and is trained along.

    For comparison: without `context` the network is told nothing about the scan, and not `unrolled` it is a plain
    U-Net (or several in a row) that has the zero-filled image and never sees the samples again.
    """

    cascades: Annotated[int, Field(ge=1)] = 6
    channels: Annotated[int, Field(ge=NORM_GROUPS, multiple_of=NORM_GROUPS)] = 16
    start_steps: Annotated[int, Field(ge=1)] = 6
    data_steps: Annotated[int, Field(ge=1)] = 3
    context: bool = True
    unrolled: bool = True
    encoder: EncoderConfig | None = None
    encoder_rate: float = 0.1


@dataclass(frozen=True)
class Scans:
    """A batch: scans of any shape, worked on one after the other, the slices of each together."""

    scans: tuple[Scan, ...]

    def to(self, device: torch.device | str) -> Scans:
        return Scans(tuple(scan.to(device) for scan in self.scans))


@dataclass(frozen=True)
class Reconstruction:
    """What a scan shows. `doubt` is the expected magnitude of its error at each place, as the network judges it."""

    image: Complex[Tensor, "slices rows columns"]
    doubt: Float[Tensor, "slices rows columns"]


class Unrolled(nn.Module):
    """`forward` gives the loss, as the training loop asks; `reconstruct` what a scan shows."""

    def __init__(self, config: UnrolledConfig):
        super().__init__()
        self.config = config
        self.encoder = None if config.encoder is None else Encoder(config.encoder)
        width = None if config.encoder is None else config.encoder.width
        self.coils = UNet(4, 2, CONTEXT_SIZE, channels=MAP_CHANNELS, levels=2) if config.unrolled else None
        if config.unrolled:
            # How near each solution stays to the image before it, by what is known of the scan.
            self.penalty = nn.Linear(CONTEXT_SIZE, config.cascades)
            with torch.no_grad():
                self.penalty.bias.fill_(math.log(PENALTY))[0] = math.log(START_PENALTY)
                self.penalty.weight.zero_()[1:, FAULTED] = FAULT_PENALTY
        self.refine = nn.ModuleList(
            UNet(4, 2, CONTEXT_SIZE, channels=config.channels, token_width=width) for _ in range(config.cascades)
        )
        self.doubt = UNet(3, 1, CONTEXT_SIZE, channels=DOUBT_CHANNELS)

    def forward(self, batch: Scans) -> dict[str, Tensor]:
        """The logarithm of the relative error, so that a decibel counts the same in every scan, and 1 - SSIM; means over scans.

        And the likelihood of the error if it were Laplace distributed with the scale that `doubt` says (Kendall and Gal
        2017), which teaches nothing but `doubt`.
        """
        every = [self._losses(scan) for scan in batch.scans]
        losses = {name: torch.stack([one[name] for one in every]).mean() for name in every[0]}
        doubted = losses.pop("doubt")
        return {"loss": torch.stack(list(losses.values())).sum() + DOUBT_WEIGHT * doubted, **losses, "doubt": doubted}

    def _losses(self, scan: Scan) -> dict[str, Tensor]:
        assert scan.target is not None
        found = self.reconstruct(scan)
        image = magnitude(found.image)
        error = image - scan.target
        relative = (error.square().mean() / scan.target.square().mean()).sqrt()
        return {
            "error": (relative + EXACT).log(),
            "unlike": 1 - ssim(scan.target, image),
            "doubt": (error.detach().abs() / found.doubt + found.doubt.log()).mean(),
        }

    def reconstruct(self, scan: Scan, *, hard: bool = False) -> Reconstruction:
        """With `hard`, what was sampled is put back into every coil in the end, noise and all."""
        context = scan.context if self.config.context else torch.zeros_like(scan.context)
        operator = self._operator(scan, context)
        back = operator.adjoint(scan.kspace)
        seen = self._seen(scan)
        image, unexplained = back, torch.zeros_like(back)
        penalty = None
        if self.config.unrolled:
            image, unexplained = unexplained, back
            penalty = self.penalty(context).float().exp()
        for number, refine in enumerate(self.refine):
            if penalty is not None:
                steps = self.config.data_steps if number else self.config.start_steps
                image = image + solve_normal(operator, unexplained, steps, penalty[number])
            image = image + as_complex(refine(as_real(image, unexplained), context, seen))
            if penalty is not None:
                unexplained = back - operator.normal(image)
        if hard:
            image = hold_to_samples(image, scan, operator)
        hints = torch.stack([magnitude(one) for one in (image, back, back - operator.normal(image))], dim=1).detach()
        doubt = nn.functional.softplus(self.doubt(hints, context, None)[:, 0].float()) / DOUBT_UNIT + LEAST_DOUBT
        return Reconstruction(image, doubt)

    def images(self, scan: Scan) -> Complex[Tensor, "slices rows columns"]:
        return self.reconstruct(scan).image

    def _operator(self, scan: Scan, context: Float[Tensor, "numbers"]) -> SenseOperator:
        """With the sensitivities mended: each coil by itself, then all of them to unit root sum of squares."""
        if self.coils is None or scan.maps.shape[1] == 1:
            return scan.operator
        hints = as_real(scan.maps.flatten(0, 1), scan.blurred.flatten(0, 1))
        half = self.coils(nn.functional.avg_pool2d(hints, 2, ceil_mode=True), context, None)
        whole = nn.functional.interpolate(half.float(), scale_factor=2, mode="bilinear")
        rows, columns = scan.maps.shape[-2:]
        maps = scan.maps + as_complex(whole[..., :rows, :columns]).reshape_as(scan.maps)
        return SenseOperator(maps / magnitude(maps).square().sum(1, keepdim=True).sqrt(), scan.mask)

    def _seen(self, scan: Scan) -> Float[Tensor, "slices width cells_r cells_c"] | None:
        """The encoder's features, laid out as the patches lie."""
        if self.encoder is None:
            return None
        assert scan.tokens is not None, "a network with an encoder reads scans with tokens"
        features = self.encoder(scan.tokens).tokens
        rows, columns = (-(-n // PATCH) for n in scan.kspace.shape[-2:])
        return features.transpose(1, 2).unflatten(-1, (rows, columns))

    def learning_rate_scale(self, name: str) -> float:
        return self.config.encoder_rate if name.startswith("encoder.") else 1.0

    def save(self, folder: Path, *, card: str, provenance: dict[str, Any]) -> None:
        save_model_folder(
            folder, kind=KIND, config=self.config, state=self.state_dict(), card=card, provenance=provenance
        )

    @classmethod
    def load(cls, folder: Path) -> Unrolled:
        loaded = load_model_folder(folder, kind=KIND, config=UnrolledConfig)
        network = cls(loaded.config)
        loaded.fill(network)
        return network.eval()


def folder_of(named: Path | None) -> Path:
    """The folder that was named, or that of the network which comes with Larmor."""
    if named is None and (named := default_network()) is None:
        remedy = "Name its folder: --model DIR (python -m examples.learn_reconstruction makes one)."
        raise InputError("the learned method has a model", got="none", remedy=remedy)
    return named


def default_network() -> Path | None:
    """The network among the models that are used when none is named, if there is one."""
    return next(iter(default_folders(KIND)), None)


def as_real(*images: Complex[Tensor, "slices rows columns"]) -> Float[Tensor, "slices parts rows columns"]:
    return torch.cat([torch.view_as_real(image).permute(0, 3, 1, 2) for image in images], dim=1)


def as_complex(parts: Float[Tensor, "slices 2 rows columns"]) -> Complex[Tensor, "slices rows columns"]:
    return torch.view_as_complex(parts.permute(0, 2, 3, 1).contiguous())


def hold_to_samples(
    image: Complex[Tensor, "slices rows columns"], scan: Scan, operator: SenseOperator
) -> Complex[Tensor, "slices rows columns"]:
    """What was sampled where something was, what this image says where not, and the coils of that combined.

    With one coil the result explains its samples exactly, with several as well as any image of these maps nearly does.
    """
    everywhere = SenseOperator(operator.maps, torch.ones_like(scan.mask))
    return everywhere.adjoint(torch.where(scan.mask, scan.kspace, everywhere.forward(image)))


def magnitude(image: Complex[Tensor, "..."]) -> Float[Tensor, "..."]:
    """With a gradient that exists at zero too."""
    return (torch.view_as_real(image).square().sum(-1) + 1e-12).sqrt()


def ssim(reference: Float[Tensor, "slices rows columns"], image: Float[Tensor, "slices rows columns"]) -> Tensor:
    """`foundation.reconstruction.metrics.ssim`, to learn by."""
    x, y = reference[:, None], image[:, None]
    n = WINDOW**2

    def mean(values: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(values, WINDOW, stride=1)

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = (mean(one * one) - middle * middle for one, middle in ((x, mean_x), (y, mean_y)))
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (K1 * reference.max()) ** 2, (K2 * reference.max()) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance * n / (n - 1) + c2)
    return (similarity / ((mean_x**2 + mean_y**2 + c1) * ((var_x + var_y) * n / (n - 1) + c2))).mean()


def collate(scans: Sequence[Scan]) -> Scans:
    return Scans(tuple(scans))
