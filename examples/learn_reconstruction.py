"""A learned reconstruction, trained on synthetic heads: python -m examples.learn_reconstruction OUT

    python -m examples.learn_reconstruction runs/reconstruction              2,600 steps of three slices at 2 mm
    python -m examples.learn_reconstruction runs/smoke --smoke               minutes: small, coarse, 150 steps
    python -m examples.learn_reconstruction runs/compare --compare seeing untold unet      what its parts are worth
    python -m examples.learn_reconstruction runs/look --start runs/compare/model --encoder heads/weights/brain-structures
    python -m examples.learn_reconstruction runs/fine --start runs/compare/model --fine    then pixels of 1.25 to 2.5 mm

OUT/model is what `larmor reconstruct --model` and `python -m examples.measure_reconstruction` take. `--compare` trains more
networks on the same scans in the same steps: OUT/seeing, which also sees an encoder's features of the zero-filled image,
OUT/untold, which is not even told of the scan, and OUT/unet, a plain U-Net on the zero-filled image. `--start` goes on from a
model, and `--encoder` does so beside with the features of a pretrained encoder too, OUT/looking. Stopped, it continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from foundation.encoder import EncoderConfig
from heads.adapters.folder import encoder_of
from heads.reconstruction.network import UnrolledConfig
from heads.reconstruction.training import TrainReconstructionConfig, train_reconstruction

SMALL = UnrolledConfig(cascades=3, channels=12)
BESIDE = {
    "seeing": UnrolledConfig(encoder=EncoderConfig(width=64, depth=2), encoder_rate=0.3),
    "untold": UnrolledConfig(context=False),
    "unet": UnrolledConfig(unrolled=False, cascades=1, channels=28),
}
LATER_RATE = 1e-3  # of a network that learnt before


def smoke() -> TrainReconstructionConfig:
    whole = TrainReconstructionConfig()
    return whole.model_copy(
        update={
            "network": SMALL,
            "training": whole.training.model_copy(update={"steps": 150, "warmup_steps": 10}),
            "cohort": whole.cohort.model_copy(update={"subjects": 10, "spacing_mm": 4.0}),
        }
    )


def fine() -> TrainReconstructionConfig:
    """Pixels as small as a scanner's. A head at 1 mm takes twenty seconds to make: fewer heads, each seen more often."""
    whole = TrainReconstructionConfig()
    return whole.model_copy(
        update={
            "training": whole.training.model_copy(update={"steps": 2400}),
            "cohort": whole.cohort.model_copy(update={"subjects": 24, "spacing_mm": 1.0}),
            "variants": 12,
            "slices_a_step": 2,
            "finer": (1.25, 2.5),
        }
    )


def going_on(config: TrainReconstructionConfig, start: Path) -> TrainReconstructionConfig:
    training = config.training.model_copy(update={"learning_rate": LATER_RATE})
    return config.model_copy(update={"start": start, "training": training})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    recipe = parser.add_mutually_exclusive_group()
    recipe.add_argument("--smoke", action="store_true", help="small and coarse, for minutes")
    recipe.add_argument("--fine", action="store_true", help="heads at 1 mm")
    parser.add_argument("--start", type=Path, metavar="MODEL", help="go on from it")
    parser.add_argument("--encoder", type=Path, metavar="MODEL", help="beside, with the features of its encoder")
    parser.add_argument("--compare", nargs="+", choices=list(BESIDE), default=[], help="what its parts are worth")
    parser.add_argument("--steps", type=int)
    chosen = parser.parse_args()
    config = smoke() if chosen.smoke else fine() if chosen.fine else TrainReconstructionConfig()
    if chosen.start is not None:
        config = going_on(config, chosen.start)
    if chosen.steps is not None:
        config = config.model_copy(update={"training": config.training.model_copy(update={"steps": chosen.steps})})
    beside = {name: BESIDE[name] for name in chosen.compare}
    if chosen.encoder is not None:
        beside["looking"] = UnrolledConfig(encoder=encoder_of(chosen.encoder).config)
    config = config.model_copy(update={"beside": beside, "encoder_start": chosen.encoder})
    _, result = train_reconstruction(config, chosen.out)
    print(f"trained for {result.seconds:.0f} s, last loss {result.last_loss:.3f}")


if __name__ == "__main__":
    main()
