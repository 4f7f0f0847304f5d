"""What `larmor reconstruct` does: raw data to images, after leaving out samples of a complete scan if asked to.

OUT/cg-sense.nii.gz, ...   the magnitude image of each method, where the file says so in its place in the patient
OUT/metrics.json           what was reconstructed, and how far each image is from the reference where there is one
OUT/errors.png             a slice by every method, below it where it differs from the reference
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from nibabel.orientations import io_orientation
from numpy.random import default_rng
from torch import Tensor

from foundation.errors import InputError, did_you_mean
from foundation.figures import plot_errors
from foundation.files import write_aside
from foundation.physics.kspace import MASKS, draw_mask, expand_mask, partial_fourier
from foundation.preprocess import to_closest_ras
from foundation.raw import RawData
from foundation.reading.nifti import write_sidecar, write_volume
from foundation.reading.raw import read_raw
from foundation.reconstruction.methods import check_method, reconstruct
from foundation.reconstruction.metrics import errors
from foundation.study import Series, known_numbers

Solve = Callable[[RawData], Float[Tensor, "slices rows columns"]]

STORED = "stored"
CALIBRATED_SHARE = 0.32  # of what is kept: fastMRI's 8 % of the lines at acceleration 4 and 4 % at 8


@dataclass(frozen=True)
class Undersampling:
    """Which samples of a complete scan to keep. `mask` None is equispaced, and Poisson disc for a 3-D scan."""

    acceleration: int | float | None = None
    mask: str | None = None
    calibration: int | None = None
    partial_fourier: int | float | None = None
    seed: int = 0

    def __bool__(self) -> bool:
        return any(one is not None for one in (self.acceleration, self.mask, self.partial_fourier))

    def draw(self, raw: RawData) -> Bool[Tensor, "1 1 #rows #columns"]:
        """The mask for this scan, over the axes that it is phase-encoded along."""
        if not raw.is_complete:
            got = f"{1 / raw.acceleration:.1%} of its samples"
            remedy = "Leave out --acceleration, --mask and --partial-fourier to reconstruct what is there."
            raise InputError("samples are left out of a complete scan", got=got, remedy=remedy)
        mask = torch.ones(1, 1, dtype=torch.bool)
        if self.mask == STORED:
            if raw.planned is None:
                raise InputError("a stored mask is in the file", got="none", remedy=f"Draw one: {', '.join(MASKS)}.")
            mask = raw.planned[0, 0]
        elif self.acceleration is not None:
            mask = self._drawn(raw, self.acceleration)
        elif self.mask is not None:
            raise InputError("a mask has an acceleration", got="none", remedy="Add --acceleration 4.")
        if self.partial_fourier is not None:
            axis = raw.phase_axes[-1]
            mask = mask & expand_mask(partial_fourier(raw.shape[axis], self.partial_fourier), (axis,), 2)
        return mask[None, None]

    def _drawn(self, raw: RawData, acceleration: int | float) -> Bool[Tensor, "#rows #columns"]:
        kind = self.mask or ("equispaced" if len(raw.phase_axes) == 1 else "poisson")
        if kind not in MASKS:
            remedy = did_you_mean(kind, (*MASKS, STORED))
            raise InputError("a mask is one of the known kinds", got=repr(kind), remedy=remedy)
        axes = (0, 1) if MASKS[kind][1] == 2 else raw.phase_axes[-1:]
        calibration = CALIBRATED_SHARE / max(1.0, acceleration) if self.calibration is None else self.calibration
        lines = tuple(raw.shape[axis] for axis in axes)
        drawn = draw_mask(kind, lines, acceleration, calibration, default_rng(self.seed))
        return expand_mask(drawn, axes, 2)


def reconstruct_command(
    input: Path,
    out: Path,
    *,
    methods: Sequence[str] = ("cg-sense",),
    acceleration: int | float | None = None,
    mask: str | None = None,
    calibration: int | None = None,
    partial_fourier: int | float | None = None,
    seed: int = 0,
    more: Mapping[str, Solve] = MappingProxyType({}),
) -> Comparison:
    """`more` are methods by name besides those of `methods`: whole scans to magnitude images."""
    for method in methods:
        check_method(method)
    raw = read_raw(input)
    result = compare(raw, methods, Undersampling(acceleration, mask, calibration, partial_fourier, seed), more)
    write_result(out, raw, result, about={"file": input.name})
    print(result.words(raw))
    print(f"wrote {out}")
    return result


@dataclass(frozen=True)
class Comparison:
    """What several methods made of the same samples. Images are the part that the scanner shows."""

    used: RawData
    undersampling: Undersampling
    images: dict[str, Float[Tensor, "slices height width"]]
    seconds: dict[str, float]
    reference: Float[Tensor, "slices height width"] | None
    reference_is: str | None

    def scores(self) -> dict[str, dict[str, float]]:
        if self.reference is None:
            return {}
        truth = self.reference.numpy()
        return {name: errors(truth, image.numpy()) for name, image in self.images.items()}

    def words(self, raw: RawData) -> str:
        """For people: what was reconstructed, and a table."""
        slices, coils, rows, columns = raw.kspace.shape
        lines = [
            f"{slices} slices of {rows} x {columns}, {coils} coils, every {self.used.acceleration:.2f}th sample",
            f"place in the patient: {geometry_words(raw)}",
            f"reference: {self.reference_is or 'none, so nothing says how wrong these images are'}",
        ]
        if len(raw.phase_axes) == 1 and self.used.mask.shape[-2] > 1 and self.undersampling:
            lines.append("the mask leaves out samples along the readout of a 2-D scan, which no scanner could")
        scores = self.scores()
        for name, seconds in self.seconds.items():
            figures = scores.get(name)
            said = "" if figures is None else "NMSE {nmse:.4f}  PSNR {psnr:5.2f}  SSIM {ssim:.4f}  ".format(**figures)
            lines.append(f"{name:18} {said}{seconds / slices:.2f} s a slice")
        return "\n".join(lines)


def compare(
    raw: RawData,
    methods: Sequence[str],
    undersampling: Undersampling,
    more: Mapping[str, Solve] = MappingProxyType({}),
) -> Comparison:
    """Reconstruct by each of `methods`; the reference is the file's own, or the root sum of squares of a complete scan."""
    used = raw.keep(undersampling.draw(raw)) if undersampling else raw
    images, seconds = {}, {}
    for method, solve in {**{name: partial(reconstruct, method=name) for name in methods}, **more}.items():
        began = time.perf_counter()
        images[method] = raw.shown(solve(used))
        seconds[method] = time.perf_counter() - began
    reference, reference_is = None, None
    if raw.target is not None:
        reference, reference_is = raw.target, "the image that the file holds"
    elif raw.is_complete:
        reference, reference_is = raw.shown(reconstruct(raw, "zero-filled")), "root sum of squares of all samples"
    return Comparison(used, undersampling, images, seconds, reference, reference_is)


def geometry_words(raw: RawData) -> str:
    if raw.affine is None:
        return "not known, nor the spacing; written with voxels of 1 mm and no orientation"
    return "known" if raw.side_is_known else "not known but for the spacing; written without orientation"


def write_result(out: Path, raw: RawData, result: Comparison, *, about: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    volumes = {name: raw.series(image, name) for name, image in result.images.items()}
    for name, series in volumes.items():
        write_volume(out / f"{name}.nii.gz", series.voxels, series)
        if known_numbers(raw.acquisition):
            write_sidecar(out / f"{name}.json", raw.acquisition)
    scores = result.scores()
    chosen = result.undersampling
    record = {
        **about,
        **raw.facts,
        "kspace": list(raw.kspace.shape),
        "sampled": float(result.used.mask.float().mean()),
        "acceleration": chosen.acceleration,
        "mask": chosen.mask,
        "calibration": chosen.calibration,
        "partial_fourier": chosen.partial_fourier,
        "seed": chosen.seed,
        "geometry": geometry_words(raw),
        "reference": result.reference_is,
        "methods": {name: {**scores.get(name, {}), "seconds": result.seconds[name]} for name in result.images},
    }
    with write_aside(out / "metrics.json") as aside:
        aside.write_text(json.dumps(without_infinity(record), indent=1, allow_nan=False) + "\n")
    planes = {name: plane(series) for name, series in volumes.items()}
    reference = None if result.reference is None else plane(raw.series(result.reference))
    plot_errors(out / "errors.png", reference, planes)


def without_infinity(content: Any) -> Any:
    """JSON has no infinity, which is the PSNR of an image without error: null."""
    if isinstance(content, dict):
        return {key: without_infinity(value) for key, value in content.items()}
    return None if isinstance(content, float) and not np.isfinite(content) else content


def plane(series: Series, share: float = 0.5) -> Float[np.ndarray, "height width"]:
    """The slice at that share of the way through, as radiologists hang it where the sides are known, and as it is stored where
    not."""
    if not series.side_is_known:
        return series.voxels[..., _place(share, series.shape[2])]
    across = int(io_orientation(series.affine)[2, 0])
    voxels = to_closest_ras(series).voxels
    return voxels.take(_place(share, voxels.shape[across]), axis=across)[::-1, ::-1].T


def _place(share: float, num: int) -> int:
    return min(int(share * num), num - 1)
