"""A learned reconstruction, trained on synthetic heads: python -m examples.learn_reconstruction OUT

    python -m examples.learn_reconstruction runs/reconstruction              2,000 steps at 2 mm, most of an hour on one core
    python -m examples.learn_reconstruction runs/smoke --smoke               minutes: small, coarse, 150 steps
    python -m examples.learn_reconstruction runs/compare --compare           what its parts are worth, few steps each

OUT/model is what `larmor reconstruct --model` and `python -m examples.measure_reconstruction` take. `--compare` trains the same
small network four times on the same scans: as it is, without being told of the scan, as a plain U-Net that never sees the
samples again, and with an encoder that looks at the zero-filled image. Stopped, each continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from foundation.encoder import EncoderConfig
from foundation.training import TrainingConfig
from heads.reconstruction.network import UnrolledConfig
from heads.reconstruction.training import CohortScans, TrainReconstructionConfig, train_reconstruction

SMALL = UnrolledConfig(cascades=3, channels=12)
VARIANTS: dict[str, dict[str, Any]] = {
    "small": {},
    "untold": {"context": False},
    "plain": {"data_steps": False, "cascades": 1, "channels": 24},
    "tokens": {"encoder": EncoderConfig(width=128, depth=2)},
}


def smoke() -> TrainReconstructionConfig:
    whole = TrainReconstructionConfig()
    return whole.model_copy(
        update={
            "network": SMALL,
            "training": few_steps(150),
            "cohort": whole.cohort.model_copy(update={"subjects": 10, "spacing_mm": 4.0}),
        }
    )


def few_steps(steps: int) -> TrainingConfig:
    return TrainingConfig(
        steps=steps, batch_size=1, learning_rate=2e-3, warmup_steps=10, weight_decay=0.0, ema_decay=0.98
    )


def comparison(name: str, steps: int) -> TrainReconstructionConfig:
    """The plain U-Net has as many pixels of channels to fill as the three cascades; every variant sees the same scans."""
    whole = TrainReconstructionConfig()
    return whole.model_copy(
        update={
            "network": SMALL.model_copy(update=VARIANTS[name]),
            "training": few_steps(steps),
            "cohort": whole.cohort.model_copy(update={"subjects": 12}),
            "tasks": {"acceleration": 1.0},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="small and coarse, for minutes")
    parser.add_argument("--compare", action="store_true", help="what its parts are worth")
    parser.add_argument("--steps", type=int)
    chosen = parser.parse_args()
    if chosen.compare:
        steps = chosen.steps or 200
        samples = CohortScans(comparison("tokens", steps))
        for name in VARIANTS:
            _, result = train_reconstruction(comparison(name, steps), chosen.out / name, samples=samples)
            print(f"{name}: {result.seconds:.0f} s, last loss {result.last_loss:.3f}")
        return
    config = smoke() if chosen.smoke else TrainReconstructionConfig()
    if chosen.steps is not None:
        training = config.training.model_copy(update={"steps": chosen.steps})
        config = config.model_copy(update={"training": training})
    _, result = train_reconstruction(config, chosen.out)
    print(f"trained for {result.seconds:.0f} s, last loss {result.last_loss:.3f}")


if __name__ == "__main__":
    main()
