"""How the classical methods do on real raw data: python -m examples.reconstruction DATA OUT

DATA holds kspace_siemens_twix, kspace_from_philips_complex and kspace_sigpy_brain8ch as .npy files. Complete scans lose
lines at random, as an accelerated scan would, and what each method makes of the rest is compared with the whole; a head of
the cohort stands beside them, because no complete real scan of many coils is at hand. The scan that was accelerated on the
scanner has no reference: some of its samples are kept back, and the image has to predict them. Prints the tables, writes
OUT/reconstruction.json and a picture of each comparison.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex
from numpy.random import default_rng

from foundation.cohort.patient import CohortConfig, make_anatomy
from foundation.cohort.raw import simulate_raw
from foundation.files import write_aside
from foundation.physics.kspace import SenseOperator, crop_field_of_view, to_kspace
from foundation.raw import RawData
from foundation.reading.raw import of_array, of_kspace, read_raw
from foundation.reconstruction.command import Comparison, Undersampling, compare, write_result
from foundation.reconstruction.methods import (
    CG_ITERATIONS,
    CG_PENALTY,
    METHODS,
    Slice,
    solve_l1_wavelet,
    solve_sense,
)
from heads.reconstruction.command import LEARNED, LearnedMethod
from heads.reconstruction.network import Unrolled, folder_of
from heads.reconstruction.scan import Scan

ACCELERATED = ("zero-filled", "zero-filled-sense", "cg-sense", "l1-wavelet")
PARTIAL = ("zero-filled", "homodyne", "pocs")
SEED = 0
HELD_BACK = 0.1  # of the samples outside the calibration area
CALIBRATION = 24


def siemens(path: Path) -> RawData:
    """(repetition, coil, line, sample), two samples for each one that is needed: the readout becomes the rows."""
    kspace = torch.from_numpy(np.load(path)[0]).transpose(-2, -1)
    return of_kspace(crop_field_of_view(kspace, kspace.shape[-2] // 2, -2)[None])


def philips(path: Path) -> RawData:
    """Complex images of a scanner as the k-space of one coil; a third of their voxels is exactly zero."""
    images = torch.from_numpy(np.load(path)).permute(2, 0, 1)
    return of_array(to_kspace(images)[:, None].numpy())


def synthetic() -> RawData:
    anatomy, tissues = make_anatomy(CohortConfig(spacing_mm=1.0), 0)
    return simulate_raw(anatomy, tissues, "T2w", default_rng(SEED), num_slices=4)


def complete_scans(data: Path) -> dict[str, Callable[[], RawData]]:
    twix, image = data / "kspace_siemens_twix", "kspace_from_philips_complex/philips_fieldmap_echo1_complex.npy"
    return {
        "ACR phantom, gradient echo, 2 coils, 160 lines": lambda: siemens(twix / "gre_ae8959_kspace.npy"),
        "sphere, 1 coil, 256 lines": lambda: siemens(twix / "singlechannel_24e139_kspace.npy"),
        "head in vivo, 1 coil, 80 lines, 53 slices": lambda: philips(data / image),
        "synthetic head, 8 coils, 4 slices": synthetic,
    }


def held_back(path: Path, network: Unrolled) -> dict[str, float]:
    """Of a scan without reference: the part of the energy of samples kept back that the image does not predict.

    Zero filling predicts nothing, which is 1; noise alone keeps anything from reaching 0.
    """
    raw = read_raw(path)
    mask = raw.mask[0].expand(1, *raw.shape)
    outside = torch.ones(raw.shape, dtype=torch.bool)
    middle = [slice(n // 2 - CALIBRATION // 2, n // 2 + CALIBRATION // 2) for n in raw.shape]
    outside[middle[0], middle[1]] = False
    away = mask & outside & torch.from_numpy(default_rng(SEED).random(raw.shape) < HELD_BACK)
    scale = raw.kspace.abs().max()
    wanted = raw.kspace[0] / scale * away
    one = Slice(raw.kspace[0] / scale * ~away, mask & ~away)
    everywhere = SenseOperator(one.operator.maps, torch.ones(1, 1, 1, dtype=torch.bool))
    images = {
        "cg-sense": solve_sense(one.operator, one.kspace, CG_ITERATIONS, CG_PENALTY),
        "l1-wavelet": solve_l1_wavelet(one),
        LEARNED: learned_image(network, replace(raw, kspace=raw.kspace * ~away, mask=(mask & ~away)[None]))[0] / scale,
    }
    return {
        name: float(((everywhere.forward(image) - wanted) * away).norm() ** 2 / wanted.norm() ** 2)
        for name, image in images.items()
    }


@torch.inference_mode()
def learned_image(network: Unrolled, raw: RawData) -> Complex[torch.Tensor, "slices rows columns"]:
    scan = Scan.of(raw)
    return scan.scale * network.reconstruct(scan).image


def row(name: str, result: Comparison) -> list[str]:
    """A line of Markdown for each method."""
    kept = f"{1 / result.used.acceleration:.1%}"
    return [
        f"| {name} | {kept} | {method} | {said['nmse']:.4f} | {said['psnr']:.2f} | {said['ssim']:.3f} |"
        for method, said in result.scores().items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    chosen = parser.parse_args()
    network = Unrolled.load(folder_of(None))
    learnt = {LEARNED: LearnedMethod(network)}
    assert set(ACCELERATED) | set(PARTIAL) == set(METHODS)
    lines, record = ["| scan | kept | method | NMSE | PSNR | SSIM |", "|---|---|---|---|---|---|"], {}
    for name, read in complete_scans(chosen.data).items():
        raw = read()
        jobs: list[tuple[str, Sequence[str], Undersampling]] = [
            (f"{name}, R = {acceleration}", ACCELERATED, Undersampling(acceleration, "random", seed=SEED))
            for acceleration in (4, 8)
        ]
        jobs.append((f"{name}, 6/8 of the lines", PARTIAL, Undersampling(partial_fourier=6 / 8)))
        for words, methods, undersampling in jobs:
            result = compare(raw, methods, undersampling, learnt if methods == ACCELERATED else {})
            write_result(chosen.out / words.replace("/", " of ").replace(",", ""), raw, result, about={"scan": words})
            record[words] = result.scores()
            lines += row(words, result)
    print("\n".join(lines))
    record["held back"] = held_back(chosen.data / "kspace_sigpy_brain8ch" / "cartesian_ksp.npy", network)
    print("head, 8 coils, accelerated 8 times by the scanner; unexplained energy of samples kept back:")
    print(", ".join(f"{name} {value:.3f}" for name, value in record["held back"].items()))
    with write_aside(chosen.out / "reconstruction.json") as aside:
        aside.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
