"""The learned reconstruction, trained and measured on synthetic heads: python -m examples.learn_reconstruction OUT

    python -m examples.learn_reconstruction runs/reconstruction                       hours on two cores, 2,000 steps at 2 mm
    python -m examples.learn_reconstruction runs/smoke --smoke                        minutes: small, coarse, 150 steps

Scored on heads that were not trained on, beside the classical methods, at R = 4 and 8, against the noise-free image. A spot
that no head has is put into the measured data too: how much of it each method shows, and how much it changes elsewhere. Prints
the tables and writes OUT/heads.json and OUT/errors.png. Stopped, it continues.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.random import default_rng

from foundation.cohort.patient import make_anatomy
from foundation.cohort.raw import simulate_raw
from foundation.figures import plot_errors
from foundation.files import write_aside
from foundation.physics.kspace import combine, to_image, to_kspace
from foundation.physics.sensitivities import calibration_box, espirit_maps
from foundation.raw import RawData
from foundation.reconstruction.command import Solve, Undersampling
from foundation.reconstruction.methods import reconstruct
from foundation.reconstruction.metrics import errors
from foundation.training import TrainingConfig
from heads.reconstruction.command import LEARNED, learned
from heads.reconstruction.network import UnrolledConfig
from heads.reconstruction.training import TrainReconstructionConfig, train_reconstruction

CLASSICAL = ("zero-filled", "zero-filled-sense", "cg-sense", "l1-wavelet")
TEST_HEADS, TEST_SLICES, TEST_NOISE = 4, 4, 0.02
SPOT_PIXELS, SPOT_SIGNAL = 2.5, 0.5  # its radius, and its signal over that of the brightest place


def smoke() -> TrainReconstructionConfig:
    whole = TrainReconstructionConfig()
    return whole.model_copy(
        update={
            "network": UnrolledConfig(cascades=3, channels=12),
            "training": TrainingConfig(
                steps=150, batch_size=2, learning_rate=2e-3, warmup_steps=10, weight_decay=0.0, precision="fp32"
            ),
            "cohort": whole.cohort.model_copy(update={"subjects": 10, "spacing_mm": 4.0}),
            "num_slices": 3,
            "acceleration": (3.0, 8.0),
        }
    )


def held_out_scans(config: TrainReconstructionConfig) -> list[RawData]:
    """Heads after those trained on, each in another contrast by turns."""
    scans = []
    for number in range(TEST_HEADS):
        contrast = config.cohort.contrasts[number % len(config.cohort.contrasts)]
        anatomy, tissues = make_anatomy(config.cohort, config.cohort.subjects + number)
        scans.append(
            simulate_raw(anatomy, tissues, contrast, default_rng(number), num_slices=TEST_SLICES, noise=TEST_NOISE)
        )
    return scans


def scores(methods: Mapping[str, Solve], scans: list[RawData], acceleration: int) -> dict[str, dict[str, list[float]]]:
    """Every figure of every method, by head."""
    found: dict[str, dict[str, list[float]]] = {name: {"nmse": [], "psnr": [], "ssim": []} for name in methods}
    for seed, raw in enumerate(scans):
        assert raw.target is not None
        kept = raw.keep(Undersampling(acceleration, seed=seed, calibration=calibration(raw, acceleration)).draw(raw))
        for name, solve in methods.items():
            for figure, value in errors(raw.target.numpy(), solve(kept).numpy()).items():
                found[name][figure].append(value)
    return found


def calibration(raw: RawData, acceleration: int) -> int:
    return max(6, round(0.32 / acceleration * raw.shape[1]))


def spots(methods: Mapping[str, Solve], scans: list[RawData], acceleration: int) -> dict[str, tuple[float, float]]:
    """Of a spot that was measured: the share of its signal that is shown, and what changed elsewhere over what was put in.

    An image that invents nothing shows 1, and changes little elsewhere but by aliasing.
    """
    shown: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for seed, raw in enumerate(scans):
        assert raw.target is not None
        maps = torch.stack(
            [espirit_maps(one, calibration_box(torch.ones(raw.shape, dtype=torch.bool))) for one in raw.kspace]
        )
        image = combine(to_image(raw.kspace), maps, axis=1)
        row, column = torch.meshgrid(*(torch.arange(n) - n // 2 for n in raw.shape), indexing="ij")
        spot = ((row - raw.shape[0] // 8) ** 2 + column**2 <= SPOT_PIXELS**2).float()
        added = SPOT_SIGNAL * float(raw.target.max()) * spot * torch.polar(torch.ones_like(image.real), image.angle())
        with_spot = replace(raw, kspace=raw.kspace + to_kspace(maps * added[:, None]))
        mask = Undersampling(acceleration, seed=seed, calibration=calibration(raw, acceleration)).draw(raw)
        for name, solve in methods.items():
            change = solve(with_spot.keep(mask)) - solve(raw.keep(mask))
            true = (image + added).abs() - image.abs()
            here = spot.bool().expand_as(change)
            share = float(change[here].sum() / true[here].sum())
            shown[name].append((share, float(change[~here].norm() / true.norm())))
    return {
        name: (float(np.mean([a for a, _ in all])), float(np.mean([b for _, b in all]))) for name, all in shown.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="small and coarse, for minutes")
    parser.add_argument("--steps", type=int)
    chosen = parser.parse_args()
    config = smoke() if chosen.smoke else TrainReconstructionConfig()
    if chosen.steps is not None:
        training = config.training.model_copy(update={"steps": chosen.steps})
        config = config.model_copy(update={"training": training})
    network, result = train_reconstruction(config, chosen.out)
    print(f"trained for {result.seconds:.0f} s, last loss {result.last_loss:.3f}")
    methods: dict[str, Solve] = {name: partial(reconstruct, method=name) for name in CLASSICAL}
    methods[LEARNED] = partial(learned, network)
    scans = held_out_scans(config)
    record = {}
    print(
        f"| method, {TEST_HEADS} synthetic heads | NMSE | PSNR | SSIM | spot shown | changed elsewhere |\n|---|---|---|---|---|---|"
    )
    for acceleration in (4, 8):
        table, seen = scores(methods, scans, acceleration), spots(methods, scans, acceleration)
        record[f"R = {acceleration}"] = {name: {**figures, "spot": seen[name]} for name, figures in table.items()}
        for name, figures in table.items():
            nmse, psnr, ssim = (float(np.mean(figures[figure])) for figure in ("nmse", "psnr", "ssim"))
            share, elsewhere = seen[name]
            print(
                f"| {name}, R = {acceleration} | {nmse:.4f} | {psnr:.2f} | {ssim:.3f} | {share:.2f} | {elsewhere:.2f} |"
            )
    with write_aside(chosen.out / "heads.json") as aside:
        aside.write_text(json.dumps(record, indent=1) + "\n")
    one = scans[1]
    assert one.target is not None
    kept = one.keep(Undersampling(4, seed=1, calibration=calibration(one, 4)).draw(one))
    middle = TEST_SLICES // 2
    planes = {name: solve(kept)[middle].numpy() for name, solve in methods.items()}
    plot_errors(chosen.out / "errors.png", one.target[middle].numpy(), planes)


if __name__ == "__main__":
    main()
