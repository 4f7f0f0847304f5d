"""The `larmor repair` command: an image that somebody has made already, with less of what is wrong with it.

    larmor repair scan.nii.gz OUT --fault "thick slices"
    larmor repair scan.nii.gz OUT --fault noise --strength 0.5 --model DIR

OUT/<name>.nii.gz, and a sidecar that says what was done, by which model and how strongly. Of a magnitude image there is one coil
and no phase; what a scanner's own reconstruction had from raw data (`larmor reconstruct`) is more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from foundation.errors import InputError, did_you_mean
from foundation.physics.kspace import to_image, to_kspace
from foundation.raw import RawData
from foundation.reading.nifti import publish_bytes, read_nifti, write_volume
from foundation.study import Series
from heads.reconstruction.before_after import BeforeAfter
from heads.reconstruction.command import LearnedMethod
from heads.reconstruction.network import Unrolled, folder_of
from heads.reconstruction.scan import FAULTS
from heads.reconstruction.tasks import of_thick_slices

NOISE = "noise"
THICK = "thick slices"
LEAST_THICKNESS = 1.3  # over the spacing in the slice: less is no thick slice
CAUTION = "A network changed this image; it may show what is not there. Keep the original beside it."


def repair_command(input: Path, out: Path, *, model: Path | None = None, fault: str, strength: float = 1.0) -> None:
    """`strength` between 0 and 1 is a share of the change: 0 is the image as it was."""
    known = (NOISE, *FAULTS)
    if fault not in known:
        raise InputError("what is wrong is one of the known faults", got=repr(fault), remedy=did_you_mean(fault, known))
    if not 0 <= strength <= 1:
        remedy = "0 leaves the image as it is, 1 does all that the model would."
        raise InputError("the strength lies between 0 and 1", got=strength, remedy=remedy)
    series, model = read_nifti(input), folder_of(model)
    repaired = repair(series, Unrolled.load(model), fault, strength)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{series.name}.nii.gz"
    write_volume(path, repaired.voxels, repaired)
    said = {"Repaired": fault, "RepairStrength": strength, "RepairModel": str(model), "Description": CAUTION}
    publish_bytes(out / f"{series.name}.json", (json.dumps(said) + "\n").encode())
    print(f"wrote {path}: {' x '.join(map(str, repaired.shape))} voxels")
    print(CAUTION)


def repair(series: Series, network: Unrolled, fault: str, strength: float = 1.0) -> Series:
    """On the same grid, but for thick slices, which become as thin as the slice's pixels are wide."""
    return repair_before_after(series, network, fault).at(strength)


def repair_before_after(
    series: Series, network: Unrolled, fault: str, tell: Callable[[float], None] | None = None
) -> BeforeAfter:
    """At strength 0 the image as it was; thick slices interpolated, and what averaging took from them taken back.

    `tell` hears which share of the slices is done, and may raise to end it.
    """
    axis = int(np.argmax(series.spacing_mm))
    voxels = torch.from_numpy(series.voxels).movedim(axis, -1)
    if fault != THICK:
        planes, back, grid = voxels.permute(2, 0, 1), (1, 2, 0), series
        raw = RawData(to_kspace(planes.to(torch.complex64))[:, None], torch.ones(1, 1, 1, 1, dtype=torch.bool))
        method = LearnedMethod(network, fault=None if fault == NOISE else fault, tell=tell)
    else:
        spacing_mm, thick = np.delete(series.spacing_mm, axis), series.spacing_mm[axis]
        num = round(voxels.shape[-1] * thick / spacing_mm.min())
        if thick < LEAST_THICKNESS * spacing_mm.min():
            rule = f"thick slices are at least {LEAST_THICKNESS:g} times as thick as their pixels are wide"
            got = f"{thick:.2f} and {spacing_mm.min():.2f} mm"
            raise InputError(rule, got=got, remedy="There is nothing to repair.")
        scale = (num / voxels.shape[-1]) ** 0.5  # as many more columns keep their brightness
        along = voxels.permute(1, 0, 2).to(torch.complex64)  # along either axis of the slice
        raw = RawData(*of_thick_slices(scale * to_kspace(along)[:, None], num))
        planes, back = to_image(raw.kspace)[:, 0].abs(), (1, 0, 2)
        method = LearnedMethod(network, fault=THICK, tell=tell)
        affine = series.affine.copy()
        step = affine[:3, axis] * voxels.shape[-1] / num
        affine[:3, 3] += affine[:3, axis] * (voxels.shape[-1] // 2) - step * (
            num // 2
        )  # the middle of a transform stays
        affine[:3, axis] = step
        grid = replace(series, affine=affine, path=None)
    found = method(raw)
    before, after, doubt = (_stored(one.permute(back), axis) for one in (planes, found, method.maps["doubt"]))
    return BeforeAfter(grid.with_voxels(before), before, after, (np.zeros_like(doubt), doubt))


def _stored(volume: Float[Tensor, "first second slices"], axis: int) -> Float[np.ndarray, "x y z"]:
    return np.ascontiguousarray(volume.movedim(-1, axis).float().numpy())
