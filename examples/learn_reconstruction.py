"""A learned reconstruction, trained on synthetic heads: python -m examples.learn_reconstruction OUT

    python -m examples.learn_reconstruction runs/reconstruction              2,600 steps of three slices at 2 mm
    python -m examples.learn_reconstruction runs/smoke --smoke               minutes: small, coarse, 150 steps
    python -m examples.learn_reconstruction runs/compare --compare seeing untold unet      what its parts are worth
    python -m examples.learn_reconstruction runs/fine --after runs/compare/model           then heads at 1 mm

OUT/model is what `larmor reconstruct --model` and `python -m examples.measure_reconstruction` take. `--compare` trains more
networks on the same scans in the same steps: OUT/seeing, which also sees an encoder's features of the zero-filled image,
OUT/untold, which is not even told of the scan, and OUT/unet, a plain U-Net on the zero-filled image. `--after` goes on from a
model, with pixels of 1.25 to 2.5 mm. Stopped, it continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from foundation.encoder import EncoderConfig
from heads.reconstruction.network import UnrolledConfig
from heads.reconstruction.training import TrainReconstructionConfig, train_reconstruction

SMALL = UnrolledConfig(cascades=3, channels=12)
BESIDE = {
    "seeing": UnrolledConfig(encoder=EncoderConfig(width=64, depth=2), encoder_rate=0.3),
    "untold": UnrolledConfig(context=False),
    "unet": UnrolledConfig(unrolled=False, cascades=1, channels=28),
}


def smoke() -> TrainReconstructionConfig:
    whole = TrainReconstructionConfig()
    return whole.model_copy(
        update={
            "network": SMALL,
            "training": whole.training.model_copy(update={"steps": 150, "warmup_steps": 10}),
            "cohort": whole.cohort.model_copy(update={"subjects": 10, "spacing_mm": 4.0}),
        }
    )


def finer(start: Path) -> TrainReconstructionConfig:
    """From pixels of 2.5 mm, which are quick to learn from, to those that scanners make. Half a minute a head: fewer heads."""
    whole = TrainReconstructionConfig()
    return whole.model_copy(
        update={
            "start": start,
            "training": whole.training.model_copy(update={"steps": 2400, "learning_rate": 1e-3}),
            "cohort": whole.cohort.model_copy(update={"subjects": 24, "spacing_mm": 1.0}),
            "variants": 12,
            "slices_a_step": 2,
            "finer": (1.25, 2.5),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    recipe = parser.add_mutually_exclusive_group()
    recipe.add_argument("--smoke", action="store_true", help="small and coarse, for minutes")
    recipe.add_argument("--after", type=Path, metavar="MODEL", help="goes on from it at 1 mm")
    parser.add_argument("--compare", nargs="+", choices=list(BESIDE), default=[], help="what its parts are worth")
    parser.add_argument("--steps", type=int)
    chosen = parser.parse_args()
    config = smoke() if chosen.smoke else TrainReconstructionConfig()
    if chosen.after is not None:
        config = finer(chosen.after)
    if chosen.compare:
        config = config.model_copy(update={"beside": {name: BESIDE[name] for name in chosen.compare}})
    if chosen.steps is not None:
        training = config.training.model_copy(update={"steps": chosen.steps})
        config = config.model_copy(update={"training": training})
    _, result = train_reconstruction(config, chosen.out)
    print(f"trained for {result.seconds:.0f} s, last loss {result.last_loss:.3f}")


if __name__ == "__main__":
    main()
