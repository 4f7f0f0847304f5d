"""The `larmor reconstruct` command: the classical methods, and a learned one beside them where it is asked for.

Besides the methods' images, OUT then has `learned-doubt.nii.gz`, the error that the model expects at each place, and
`learned-unexplained.nii.gz`, what is left of the samples once the image is taken from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.errors import InputError
from foundation.raw import RawData
from foundation.reading.nifti import write_volume
from foundation.reconstruction.command import reconstruct_command as classical
from heads.reconstruction.network import Unrolled, folder_of, magnitude
from heads.reconstruction.scan import Scan

LEARNED = "learned"
SLICES_AT_ONCE = 4  # memory then does not grow with the scan


@dataclass
class LearnedMethod:
    """The model as a method: whole scans to magnitude images. `maps` are what else it said of the last one.

    `denoise` between 0 and 1 is how much of the noise to remove. With `hard`, what was sampled is put back into every coil,
    noise and all. `tell` hears which share of the slices is done, and may raise to end it.
    """

    network: Unrolled
    denoise: float = 1.0
    hard: bool = False
    fault: str | None = None
    tell: Callable[[float], None] | None = None
    maps: dict[str, Float[Tensor, "slices rows columns"]] = field(default_factory=dict)

    @torch.inference_mode()
    def __call__(self, raw: RawData) -> Float[Tensor, "slices rows columns"]:
        network = self.network
        images, doubts, unexplained = [], [], []
        for begin in range(0, len(raw.kspace), SLICES_AT_ONCE):
            if self.tell is not None:
                self.tell(begin / len(raw.kspace))
            one = raw.slices(slice(begin, begin + SLICES_AT_ONCE))
            scan = Scan.of(one, denoise=self.denoise, fault=self.fault, with_tokens=network.encoder is not None)
            found = network.reconstruct(scan, hard=self.hard)
            operator = scan.operator
            left = operator.adjoint(scan.kspace) - operator.normal(found.image)
            images.append(scan.scale * magnitude(found.image))
            doubts.append(scan.scale * found.doubt)
            unexplained.append(scan.scale * magnitude(left))
        self.maps = {"doubt": torch.cat(doubts), "unexplained": torch.cat(unexplained)}
        return torch.cat(images)


def reconstruct_command(
    input: Path,
    out: Path,
    *,
    methods: Sequence[str] = ("cg-sense",),
    model: Path | None = None,
    denoise: float = 1.0,
    hard: bool = False,
    **options: Any,
) -> None:
    if not 0 <= denoise <= 1:
        remedy = "0 keeps the noise of the scan, 1 removes what the model takes for noise."
        raise InputError("the strength of denoising lies between 0 and 1", got=denoise, remedy=remedy)
    asked, methods = LEARNED in methods or model is not None, [name for name in methods if name != LEARNED]
    if not asked:
        classical(input, out, methods=methods, **options)
        return
    method = LearnedMethod(Unrolled.load(folder_of(model)), denoise, hard)
    used = classical(input, out, methods=methods, more={LEARNED: method}, **options).used
    for name, values in method.maps.items():
        series = used.series(used.shown(values), name)
        write_volume(out / f"{LEARNED}-{name}.nii.gz", series.voxels, series)
    print("'learned' may show what was not measured: trust only what another method shows too")


def learned(network: Unrolled, raw: RawData, denoise: float = 1.0) -> Float[Tensor, "slices rows columns"]:
    return LearnedMethod(network, denoise)(raw)
