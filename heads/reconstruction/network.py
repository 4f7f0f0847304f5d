"""An unrolled network: gradient steps towards the samples, and between them a small U-Net that says what images look like.

    x <- x - step_k (A^H A x - A^H y) + refine_k(x, scan)

as in the variational network (Hammernik 2018) with the steps of E2E-VarNet (Sriram 2020) taken in the image, where they are
the same for known sensitivities. The U-Nets see real and imaginary part, what is known of the scan (FiLM, Perez 2018), and,
where an encoder is given, its features of the zero-filled image. Steps and refinements are learnt; the samples are not.
"""

from __future__ import annotations

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
from foundation.reconstruction.metrics import K1, K2, WINDOW
from foundation.tokens import PATCH
from heads.reconstruction.scan import CONTEXT_SIZE, Scan

KIND = "reconstruction"
NORM_GROUPS = 4


class UnrolledConfig(Config):
    """`encoder` None works without; otherwise one of that shape looks at the zero-filled image and is trained along."""

    cascades: Annotated[int, Field(ge=1)] = 5
    channels: Annotated[int, Field(ge=NORM_GROUPS, multiple_of=NORM_GROUPS)] = 16
    encoder: EncoderConfig | None = None
    encoder_rate: float = 0.1


@dataclass(frozen=True)
class Scans:
    """A batch: scans of any shape, worked on one after the other, the slices of each together."""

    scans: tuple[Scan, ...]

    def to(self, device: torch.device | str) -> Scans:
        return Scans(tuple(scan.to(device) for scan in self.scans))


class Unrolled(nn.Module):
    """`forward` gives the loss, as the training loop asks; `images` what a scan shows."""

    def __init__(self, config: UnrolledConfig):
        super().__init__()
        self.config = config
        self.encoder = None if config.encoder is None else Encoder(config.encoder)
        width = None if config.encoder is None else config.encoder.width
        self.steps = nn.Parameter(torch.ones(config.cascades))
        self.refine = nn.ModuleList(Refinement(config.channels, width) for _ in range(config.cascades))

    def forward(self, batch: Scans) -> dict[str, Tensor]:
        """Mean absolute error over the mean of the target, plus 1 - SSIM; means over scans."""
        l1, unlike = [], []
        for scan in batch.scans:
            assert scan.target is not None
            image = magnitude(self.images(scan))
            l1.append((image - scan.target).abs().mean() / scan.target.mean())
            unlike.append(1 - ssim(scan.target, image))
        losses = {"l1": torch.stack(l1).mean(), "unlike": torch.stack(unlike).mean()}
        return {"loss": losses["l1"] + losses["unlike"], **losses}

    def images(self, scan: Scan) -> Complex[Tensor, "slices rows columns"]:
        operator = scan.operator
        back = operator.adjoint(scan.kspace)
        seen = self._seen(scan)
        image = back
        for step, refine in zip(self.steps, self.refine):
            image = image - step * (operator.normal(image) - back) + refine(image, scan.context, seen)
        return image

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


class Refinement(nn.Module):
    """A U-Net of three levels on real and imaginary part; it sees half, and with an encoder a patch, at a quarter of the size."""

    def __init__(self, channels: int, token_width: int | None):
        super().__init__()
        widths = (channels, 2 * channels, 4 * channels)
        self.down = nn.ModuleList(Block(n, width) for n, width in zip((2, *widths), widths))
        self.look = None if token_width is None else nn.Conv2d(token_width, widths[-1], kernel_size=1)
        self.up = nn.ModuleList(Block(deep + fine, fine) for fine, deep in zip(widths[1::-1], widths[:0:-1]))
        self.last = nn.Conv2d(channels, 2, kernel_size=1)
        nn.init.normal_(self.last.weight, std=1e-3)  # begins as plain gradient steps
        nn.init.zeros_(self.last.get_parameter("bias"))

    def forward(
        self,
        image: Complex[Tensor, "slices rows columns"],
        context: Float[Tensor, "numbers"],
        seen: Float[Tensor, "slices width cells_r cells_c"] | None,
    ) -> Complex[Tensor, "slices rows columns"]:
        rows, columns = image.shape[-2:]
        x = torch.view_as_real(image).permute(0, 3, 1, 2)
        x = nn.functional.pad(x, (0, -columns % PATCH, 0, -rows % PATCH))
        kept = []
        for level, block in enumerate(self.down):
            x = block(nn.functional.avg_pool2d(x, 2) if level else x, context)
            kept.append(x)
        x = kept.pop()
        if self.look is not None and seen is not None:
            x = x + self.look(nn.functional.interpolate(seen, size=x.shape[-2:], mode="nearest"))
        for block in self.up:
            fine = kept.pop()
            x = nn.functional.interpolate(x, size=fine.shape[-2:], mode="nearest")
            x = block(torch.cat([x, fine], dim=1), context)
        x = self.last(x)[..., :rows, :columns]
        return torch.view_as_complex(x.permute(0, 2, 3, 1).contiguous().float())


class Block(nn.Module):
    """Two convolutions; the context scales and shifts what comes between them."""

    def __init__(self, num_in: int, num_out: int):
        super().__init__()
        self.first = nn.Conv2d(num_in, num_out, kernel_size=3, padding=1)
        self.norm = nn.GroupNorm(NORM_GROUPS, num_out, affine=False)
        self.tell = nn.Linear(CONTEXT_SIZE, 2 * num_out)
        self.second = nn.Conv2d(num_out, num_out, kernel_size=3, padding=1)

    def forward(self, x: Tensor, context: Float[Tensor, "numbers"]) -> Tensor:
        scale, shift = self.tell(context)[:, None, None].chunk(2)
        x = nn.functional.silu(self.norm(self.first(x)) * (1 + scale) + shift)
        return nn.functional.silu(self.second(x))


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
