"""A learned reconstruction, trained on synthetic heads: python -m examples.learn_reconstruction OUT

    python -m examples.learn_reconstruction runs/reconstruction              2,600 steps of three slices at 2 mm
    python -m examples.learn_reconstruction runs/smoke --smoke               minutes: small, coarse, 150 steps
    python -m examples.learn_reconstruction runs/compare --compare told untold unet        what its parts are worth

OUT/model is what `larmor reconstruct --model` and `python -m examples.measure_reconstruction` take. `--compare` trains more
networks on the same scans in the same steps: OUT/told, which is told of the scan and sees no tokens, OUT/untold, which is not
told either, and OUT/unet, a plain U-Net on the zero-filled image, as large as takes the same time. Stopped, it continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from heads.reconstruction.network import UnrolledConfig
from heads.reconstruction.training import TrainReconstructionConfig, train_reconstruction

SMALL = UnrolledConfig(cascades=3, channels=12)
BESIDE = {
    "told": UnrolledConfig(cascades=6),
    "untold": UnrolledConfig(cascades=6, context=False),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="small and coarse, for minutes")
    parser.add_argument("--compare", nargs="+", choices=list(BESIDE), default=[], help="what its parts are worth")
    parser.add_argument("--steps", type=int)
    chosen = parser.parse_args()
    config = smoke() if chosen.smoke else TrainReconstructionConfig()
    if chosen.compare:
        config = config.model_copy(update={"beside": {name: BESIDE[name] for name in chosen.compare}})
    if chosen.steps is not None:
        training = config.training.model_copy(update={"steps": chosen.steps})
        config = config.model_copy(update={"training": training})
    _, result = train_reconstruction(config, chosen.out)
    print(f"trained for {result.seconds:.0f} s, last loss {result.last_loss:.3f}")


if __name__ == "__main__":
    main()
