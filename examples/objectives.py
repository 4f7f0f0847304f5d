"""What each pretraining objective is worth: `python -m examples.objectives DATA`.

DATA holds `synthseg_label_maps` and `ixi_2mm_dlmuse` (see examples/real.py). Pretrains a tiny encoder on synthetic heads made from
the label maps, by masked autoencoding alone, with the study term, with free truth, with all three; then fits ten structures
of the whole head at 4 mm on 3 and on 5 real IXI heads, from each of them and from nothing, and scores the heads left over.
What free truth knows before it has seen any real image or label is scored too. Stopped, it continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from examples.ixi import write_ixi_manifest
from finetune.compare import Contender, compare
from finetune.config import FinetuneConfig
from finetune.evaluate import Evaluation, evaluate_studies, save_evaluation
from finetune.run import make_model
from finetune.samples import read_labelled
from foundation.config import load_config
from foundation.files import write_aside
from foundation.reading.collection import read_manifest
from pretrain.__main__ import pretrain
from pretrain.config import PretrainConfig

CONFIGS = Path(__file__).parent.parent / "configs"
TERMS = {
    "masked": ("masked_autoencoding",),
    "masked, study term": ("masked_autoencoding", "agreement"),
    "masked, free truth": ("masked_autoencoding", "free_truth"),
    "all three": ("masked_autoencoding", "agreement", "free_truth"),
}
STEPS, LONGER = 150, 3  # from nothing a network is also given three times the steps
NOTE = (
    "Whole heads at 4 mm, ten structures, DLMUSE's automatic labels (IXI, CC BY-SA 3.0): a silver standard. Pretrained on "
    "synthetic heads made from six label maps, half of them in random contrast."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--folder", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", type=int, nargs="+", default=[3, 5])
    parser.add_argument("--pretrain", nargs="*", choices=list(TERMS), help="only pretrain these, and stop")
    arguments = parser.parse_args()
    if arguments.pretrain is not None:
        for name in arguments.pretrain:
            pretrained(name, arguments.data, arguments.folder)
        return
    starts = {name: pretrained(name, arguments.data, arguments.folder) for name in TERMS}
    manifest = write_ixi_manifest(
        arguments.data / "ixi_2mm_dlmuse", arguments.folder / "ixi" / "manifest.jsonl", train_every=3
    )
    tables = []
    for num_labels in arguments.labels:
        config = load_config(
            FinetuneConfig,
            CONFIGS / "finetune" / "brain-structures.yaml",
            [
                f"data.manifest={manifest}",
                f"data.num_labels={num_labels}",
                "data.spacing_mm=[4.0,4.0,4.0]",
                f"training.steps={STEPS}",
                "training.warmup_steps=20",
                "training.ema_decay=0.98",
            ],
        )
        if not tables:
            without = without_real_labels(config, starts["masked, free truth"], arguments.folder / "no-real-label")
            tables.append(f"No real image or label: Dice {without.figures['dice']}")
        contenders = [
            Contender("none", {"recipe": "scratch"}),
            Contender("none, three times the steps", {"recipe": "scratch", "training.steps": LONGER * STEPS}),
            *(Contender(name, {"recipe": "full", "encoder": str(start)}) for name, start in starts.items()),
        ]
        folder = arguments.folder / f"ixi-{num_labels}"
        found = compare(config, contenders, folder, seeds=arguments.seeds, note=NOTE)
        tables.append(f"{num_labels} labelled heads\n\n{found.table()}")
    report = "\n\n".join([*tables, NOTE])
    with write_aside(arguments.folder / "results.md") as aside:
        aside.write_text(report + "\n")
    print(f"\n{report}\nwrote {arguments.folder / 'results.md'}")


def without_real_labels(config: FinetuneConfig, start: Path, folder: Path) -> Evaluation:
    """The start as it is: the rows of its last layer that are the task's structures."""
    model = make_model(config.model_copy(update={"recipe": "full", "encoder": start}))
    collection = read_manifest(config.data.manifest)
    studies = read_labelled(collection, collection.split("test"), model.head, config.data.spacing_mm, label="read")
    evaluation = evaluate_studies(model, studies)
    save_evaluation(evaluation, folder, about={"start": str(start)})
    return evaluation


def pretrained(name: str, data: Path, folder: Path) -> Path:
    """The start that an objective leaves: with the dense path where it learnt one, otherwise the encoder alone."""
    run = folder / name.replace(", ", "-").replace(" ", "-")
    start = run / ("dense" if "free_truth" in TERMS[name] else "model")
    if not (start / "config.json").is_file():
        cohort = {
            "subjects": 40,
            "appearance": "mixed",
            "contrasts": ["T1w"],
            "missing_series": 0.0,
            "anatomy": str(data / "synthseg_label_maps"),
        }
        truth = {"cohort": cohort, "voxels": 56, "spacing_mm": [3.0, 4.5]}
        terms = [{"kind": kind, **(truth if kind == "free_truth" else {})} for kind in TERMS[name]]
        overrides = [
            f"folder={run}",
            f"cohort={cohort}",
            f"objective.terms={terms}",
            f"objective.weights={ {'agreement': 0.1} if 'agreement' in TERMS[name] else {} }",
            # Masked boxes are cheap: without free truth there are four times as many, in less time.
            f"training.batch_size={2 if 'free_truth' in TERMS[name] else 8}",
        ]
        pretrain(load_config(PretrainConfig, CONFIGS / "pretrain" / "mixture.yaml", overrides))
    return start


if __name__ == "__main__":
    main()
