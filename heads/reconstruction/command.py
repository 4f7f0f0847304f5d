"""The `larmor reconstruct` command: the classical methods, and a learned one beside them where a model is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.errors import InputError
from foundation.raw import RawData
from foundation.reconstruction.command import Solve
from foundation.reconstruction.command import reconstruct_command as classical
from heads.reconstruction.network import Unrolled
from heads.reconstruction.scan import Scan

LEARNED = "learned"


def reconstruct_command(
    input: Path, out: Path, *, model: Path | None = None, denoise: float = 1.0, **options: Any
) -> None:
    if not 0 <= denoise <= 1:
        remedy = "0 keeps the noise of the scan, 1 removes what the model takes for noise."
        raise InputError("the strength of denoising lies between 0 and 1", got=denoise, remedy=remedy)
    classical(input, out, **options, more={} if model is None else {LEARNED: solver(model, denoise)})
    if model is not None:
        print("'learned' may show what was not measured: trust only what another method shows too")


def solver(model: Path, denoise: int | float = 1.0) -> Solve:
    """The model in a folder as a method: whole scans to magnitude images."""
    network = Unrolled.load(model)
    return lambda raw: learned(network, raw, denoise)


@torch.inference_mode()
def learned(network: Unrolled, raw: RawData, denoise: int | float = 1.0) -> Float[Tensor, "slices rows columns"]:
    scan = Scan.of(raw, denoise=denoise, with_tokens=network.encoder is not None)
    return scan.scale * network.images(scan).abs()
