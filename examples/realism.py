"""How like real heads the synthetic ones are: python -m examples.realism DATA OUT [--anatomy DIR]

T1w of the cohort beside the IXI heads in DATA/ixi_2mm_dlmuse, all at 2 mm, each image divided by its own white matter:
the radial power spectrum, the histogram of gradient magnitudes in the brain, the ratios of tissues, and the volumes.
Writes OUT/realism.png and OUT/realism.json and prints the table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from examples.ixi import write_ixi_manifest
from foundation.cohort.materials import STRUCTURES
from foundation.cohort.patient import CohortConfig, make_patient
from foundation.figures import save_png
from foundation.files import write_aside
from foundation.preprocess import to_closest_ras
from foundation.progress import progress
from foundation.reading.collection import read_manifest, read_mask, read_study
from foundation.study import Series

BRAIN = [STRUCTURES[name] for name in ("cerebral cortex", "cerebral white matter", "thalamus", "caudate", "putamen")]
RATIOS = {
    "cortex": "cerebral cortex",
    "ventricle": "lateral ventricle",
    "thalamus": "thalamus",
    "putamen": "putamen",
    "hippocampus": "hippocampus",
}
VOLUMES = ("cerebral cortex", "cerebral white matter", "lateral ventricle", "thalamus", "hippocampus", "cerebellum")


@dataclass(frozen=True)
class Looks:
    """What is compared of one head; frequencies are in 1/mm, gradients in white matter levels per mm."""

    spectrum: np.ndarray
    gradients: np.ndarray
    ratios: dict[str, float]
    volumes_ml: dict[str, float]


FREQUENCIES = np.linspace(0.02, 0.24, 23)  # up to what 2 mm can hold
GRADIENTS = np.linspace(0, 0.4, 41)


def looks_of(series: Series, labels: np.ndarray) -> Looks:
    """`labels` are the cohort's structures on the series' grid. The middle of a structure: the median of its voxels."""
    level = float(np.median(series.voxels[labels == STRUCTURES["cerebral white matter"]]))
    voxels = series.voxels / level
    gradient = np.sqrt(sum(one**2 for one in np.gradient(voxels, *series.spacing_mm.tolist())))
    counts, _ = np.histogram(gradient[np.isin(labels, BRAIN)], GRADIENTS, density=True)
    middles = {name: float(np.median(voxels[labels == STRUCTURES[structure]])) for name, structure in RATIOS.items()}
    volumes = {name: float(np.count_nonzero(labels == STRUCTURES[name])) * series.voxel_volume_ml for name in VOLUMES}
    return Looks(_radial_spectrum(voxels, labels, series.spacing_mm), counts, middles, volumes)


def _radial_spectrum(voxels: np.ndarray, labels: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Power by distance from the middle of k-space, of the box around the brain, tapered, on 0.02 1/mm shells."""
    where = np.argwhere(np.isin(labels, BRAIN))
    box = tuple(slice(a, b + 1) for a, b in zip(where.min(axis=0), where.max(axis=0), strict=True))
    part = np.where(np.isin(labels, [0]), 0, voxels)[box]
    for axis, size in enumerate(part.shape):
        part = part * np.hanning(size).reshape([-1 if a == axis else 1 for a in range(3)])
    power = np.abs(np.fft.fftn(part)) ** 2 / part.size
    axes = [np.fft.fftfreq(n, d) for n, d in zip(part.shape, spacing_mm, strict=True)]
    radius = np.sqrt(sum(one**2 for one in np.meshgrid(*axes, indexing="ij")))
    shell = np.digitize(radius, FREQUENCIES)
    return np.array([power[shell == i].mean() for i in range(1, len(FREQUENCIES))])


def synthetic(config: CohortConfig, number: int) -> Iterable[tuple[Series, np.ndarray]]:
    with progress(total=number, label="synthetic heads", unit="head") as bar:
        for index in range(number):
            patient = make_patient(config, index)
            if patient.scans[0].protocol.artefact is None and not patient.lesions:
                yield patient.scans[0].series, patient.labels
            bar.update()


def real(source: Path, folder: Path) -> Iterable[tuple[Series, np.ndarray]]:
    collection = read_manifest(write_ixi_manifest(source, folder / "ixi" / "manifest.jsonl"))
    for row in collection.rows:
        study = read_study(row, collection.root)
        labels = read_mask(row, study, collection.root)
        ras = to_closest_ras(study.reference)
        stored = to_closest_ras(study.reference.with_voxels(labels.astype(np.float32))).voxels
        yield ras, stored.astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--anatomy", type=Path)
    parser.add_argument("--heads", type=int, default=24)
    chosen = parser.parse_args()
    config = CohortConfig(contrasts=("T1w",), missing_series=0.0)
    groups = {
        "real (IXI)": [looks_of(*one) for one in real(chosen.data / "ixi_2mm_dlmuse", chosen.out)],
        "cohort, templates": [looks_of(*one) for one in synthetic(config, chosen.heads)],
    }
    if chosen.anatomy is not None:
        mapped = config.model_copy(update={"anatomy": chosen.anatomy})
        groups["cohort, label maps"] = [looks_of(*one) for one in synthetic(mapped, chosen.heads)]
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    spectrum, gradients, ratios = figure.subplots(1, 3)
    middle = (FREQUENCIES[1:] + FREQUENCIES[:-1]) / 2
    table: dict[str, dict[str, object]] = {}
    for number, (name, heads) in enumerate(groups.items()):
        power = np.array([one.spectrum for one in heads])
        shape = np.array([one.gradients for one in heads])
        spectrum.loglog(middle, np.median(power, axis=0), label=name)
        spectrum.fill_between(middle, *np.quantile(power, [0.05, 0.95], axis=0), alpha=0.15)
        gradients.plot((GRADIENTS[1:] + GRADIENTS[:-1]) / 2, np.median(shape, axis=0), label=name)
        for place, key in enumerate(RATIOS):
            values = [one.ratios[key] for one in heads]
            ratios.plot(
                np.full(len(values), place + 0.22 * (number - 1)), values, "o", ms=3, alpha=0.5, color=f"C{number}"
            )
        slope = float(np.polyfit(np.log(middle), np.log(np.median(power, axis=0)), 1)[0])
        table[name] = {
            "heads": len(heads),
            "spectral slope": round(slope, 2),
            "median gradient": round(float(np.median([_median_gradient(one) for one in heads])), 3),
            "over white matter": {key: _spread([one.ratios[key] for one in heads]) for key in RATIOS},
            "ml": {key: _spread([one.volumes_ml[key] for one in heads]) for key in VOLUMES},
        }
    spectrum.set(title="Power spectrum", xlabel="1/mm", ylabel="power")
    gradients.set(title="Gradients in the brain", xlabel="white matter levels per mm", ylabel="density")
    ratios.set(title="Median over white matter, T1w", xticks=range(len(RATIOS)), xticklabels=list(RATIOS))
    spectrum.legend()
    save_png(chosen.out / "realism.png", figure)
    with write_aside(chosen.out / "realism.json") as aside:
        aside.write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps(table, indent=1))
    print(f"wrote {chosen.out / 'realism.png'}")


def _median_gradient(head: Looks) -> float:
    total = np.cumsum(head.gradients)
    return float(GRADIENTS[1:][np.searchsorted(total, total[-1] / 2)])


def _spread(values: list[float]) -> str:
    """Median and the middle 90 %."""
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


if __name__ == "__main__":
    main()
