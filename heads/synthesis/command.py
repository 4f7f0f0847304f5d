"""The commands `larmor map` and `larmor synthesise`: what a study says of what was not measured.

    larmor map STUDY OUT --model DIR                            T1.nii.gz and T2.nii.gz (ms), ADC.nii.gz where there is diffusion
    larmor synthesise STUDY OUT --contrast FLAIR --model DIR    desc-predicted_FLAIR.nii.gz

Both on the reference series' own voxels, marked as predicted in the header, and so refused by everything that reads a study. The
series of a study are taken to lie where they say that they do: nothing is registered.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from foundation.errors import InputError, did_you_mean
from foundation.preprocess import PreparedStudy, prepare_study
from foundation.reading.collection import study_from_path
from foundation.reading.nifti import publish_bytes, write_volume
from foundation.study import Acquisition, Study
from heads.synthesis.network import CONTRASTS, MAPS, Translator, View

CAVEAT = (
    "These are a network's estimates from weighted images, learned from a simulator: its T1 and T2 are those of the simulator's "
    "tissues, and published values differ by up to a factor of two. They are not measurements."
)
UNITS = {"T1": "ms", "T2": "ms", "ADC": "1e-6 mm^2/s"}
PREDICTED = (
    "Predicted from {sources} by a model, not measured: lesions may be missing, and one that only {contrast} shows is."
)
GREY, CENTRE = 250.0, 500.0  # grey values of one standard deviation and of the mean


@dataclass(frozen=True)
class Estimates:
    """On the reference series' voxels; `sources` are the contrasts that were there."""

    prepared: PreparedStudy
    sources: tuple[str, ...]
    maps: dict[str, Float[np.ndarray, "x y z"]]
    contrasts: dict[str, Float[np.ndarray, "x y z"]]


@torch.inference_mode()
def estimate(network: Translator, study: Study) -> Estimates:
    """Everything that the network says of a study; maps are 0 in air, and ADC is said only where diffusion was measured."""
    study = study.measured
    prepared = prepare_study(study, (network.config.spacing_mm,) * 3)
    view = View.of(prepared)
    sources = tuple(name for name, there in zip(CONTRASTS, view.present) if there)
    if not sources:
        got = ", ".join(series.contrast for series in study.series)
        remedy = "Name the contrasts in a manifest or by BIDS suffixes."
        raise InputError(f"a study has one of {', '.join(CONTRASTS)}", got=got, remedy=remedy)
    outputs = torch.cat([network.outputs(view.some(part)) for part in torch.arange(len(view.images)).split(8)])
    inside = view.body.float().permute(1, 2, 0)

    def back(values: torch.Tensor) -> np.ndarray:
        return prepared.values_from_grid(values.contiguous())

    maps = {
        name: back(outputs[:, number].exp().permute(1, 2, 0) * MAPS[name] * inside)
        for number, name in enumerate(MAPS)
        if name != "ADC" or "DWI" in sources
    }
    contrasts = {
        name: back(((GREY * outputs[:, len(MAPS) + number].permute(1, 2, 0) + CENTRE) * inside).clamp(min=0))
        for number, name in enumerate(CONTRASTS)
        if name not in sources
    }
    return Estimates(prepared, sources, maps, contrasts)


def map_command(study: Path, out: Path, *, model: Path) -> None:
    network = Translator.load(model)
    found = estimate(network, study_from_path(study))
    for name, values in found.maps.items():
        _write(out / f"{name}.nii.gz", values, found, {"Units": UNITS[name], "Description": CAVEAT})
    if "ADC" not in found.maps:
        print("no ADC: the study has no diffusion-weighted series")
    print(f"{', '.join(found.maps)} from {', '.join(found.sources)}, written to {out}")
    print(CAVEAT)


def synthesise_command(study: Path, out: Path, *, model: Path, contrast: str) -> None:
    if contrast not in CONTRASTS:
        remedy = did_you_mean(contrast, CONTRASTS)
        raise InputError("a contrast that can be predicted is a known one", got=repr(contrast), remedy=remedy)
    network = Translator.load(model)
    found = estimate(network, study_from_path(study))
    if contrast in found.sources:
        remedy = "Look at the measured one."
        raise InputError(f"the study has no {contrast}", got="one that was measured", remedy=remedy)
    words = PREDICTED.format(sources=", ".join(found.sources), contrast=contrast)
    suffix = "PDw" if contrast == "PD" else "dwi" if contrast == "DWI" else contrast  # BIDS
    path = out / f"desc-predicted_{suffix}.nii.gz"
    _write(path, found.contrasts[contrast], found, {"Description": words})
    print(f"wrote {path}")
    print(words)


def _write(path: Path, values: Float[np.ndarray, "x y z"], found: Estimates, about: dict[str, str]) -> None:
    """The volume, marked in its header, and a sidecar that says so in words."""
    reference = replace(found.prepared.study.reference, predicted=True, acquisition=Acquisition())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, values, reference)
    sidecar = {"Predicted": True, "PredictedFrom": list(found.sources), **about}
    publish_bytes(path.with_name(path.name.removesuffix(".nii.gz") + ".json"), (json.dumps(sidecar) + "\n").encode())
