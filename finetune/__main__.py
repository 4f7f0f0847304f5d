"""Fit a head to a task, with few labels if that is all there is.

    accelerate launch -m finetune configs/finetune/hippocampus.yaml data.num_labels=10 encoder=runs/pretrain/model

Writes into `folder`: the resolved config, metrics.jsonl, checkpoints, a loss curve, the evaluation on the test split, and
the model folder `model/` that `larmor read --model` takes. The same command continues a run that was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from finetune.config import FinetuneConfig
from finetune.run import finetune
from foundation.config import load_config
from foundation.errors import InputError

USAGE = "usage: accelerate launch -m finetune CONFIG.yaml [key=value ...]"


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\n{USAGE}")
        return 0 if arguments else 2
    try:
        fitted = finetune(load_config(FinetuneConfig, arguments[0], arguments[1:]))
    except InputError as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 2
    if fitted.evaluation is not None:
        for name, interval in fitted.evaluation.figures.items():
            print(f"{name:40s} {interval}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
