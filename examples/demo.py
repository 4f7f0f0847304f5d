"""The whole main job on embedded data, in minutes on two cores: `make demo`.

Makes synthetic patients from the templates inside nilearn, pretrains on some of them without their labels and on the free truth of
others, fits a task with few labels, compares it with starting from scratch and a plain baseline on held-out subjects, reads one
study, drafts its report, and says where everything is. Needs no network and no other data. Stopped, it continues where it was.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from finetune.compare import Comparison, Contender, compare
from finetune.config import FinetuneConfig
from foundation.cohort.patient import CohortConfig
from foundation.cohort.writing import write_cohort
from foundation.config import load_config
from foundation.files import copy_folder_aside, write_aside
from foundation.reading.collection import read_manifest, study_from_path
from pretrain.__main__ import pretrain
from pretrain.config import PretrainConfig
from serve.pipeline import load_models, read_study, save_reading

SPLITS = {"pretrain": 0.4, "train": 0.25, "test": 0.35}
CONFIGS = Path(__file__).parent.parent / "configs"
SYNTHETIC = "Measured on synthetic heads (deformed templates): a test of the system, no evidence about patients."
NOTE = f"{SYNTHETIC} What is pretrained has seen the truth of other synthetic heads, which costs nobody a label."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"))
    parser.add_argument("--subjects", type=int, default=64)
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of everything: shows that it runs, not how well"
    )
    arguments = parser.parse_args()
    began = time.perf_counter()
    written = run(arguments.folder, arguments.subjects, quick=arguments.quick)
    print(f"\nDone in {(time.perf_counter() - began) / 60:.1f} minutes. {SYNTHETIC}")
    for what, path in written.items():
        print(f"  {what:32s} {path}")


def run(folder: Path, num_subjects: int, *, quick: bool = False) -> dict[str, Path]:
    """Everything in order; returns what was written, by what it is."""
    few = ["training.steps=6", "training.warmup_steps=2"] if quick else []
    print(f"1/4 {num_subjects} synthetic patients")
    manifest = write_cohort(folder / "cohort", CohortConfig(contrasts=("T1w", "FLAIR"), splits=SPLITS), num_subjects)

    print("2/4 pretraining: masked patches, and free truth on other synthetic heads")
    here = [f"manifest={manifest}", f"folder={folder / 'pretrain'}", *few]
    start = pretrain(load_config(PretrainConfig, CONFIGS / "pretrain" / "demo.yaml", here)).parent / "dense"

    print("3/4 structures, few labels")
    structures = _compare(folder, manifest, start, "structures", few=few)

    print("4/4 reading one held-out study")
    models = folder / "models"
    copy_folder_aside(structures.scores[0].model_folder, models / structures.task)
    row = read_manifest(manifest).split("test")[0]
    reading = folder / "reading"
    study = study_from_path(f"{manifest}#{row.subject}")
    save_reading(read_study(study, load_models([models / "structures"])), reading)

    table = f"# The demo's figures\n\n{structures.table()}\n\n{NOTE}"
    with write_aside(folder / "results.md") as aside:
        aside.write_text(table + "\n")
    print(f"\n{table}")
    return {
        "the table": folder / "results.md",
        "what pretraining learnt": folder / "pretrain" / "reconstruction.png",
        "and of free truth": folder / "pretrain" / "structures.png",
        "pretraining's loss": folder / "pretrain" / "loss.png",
        "structures, compared": folder / "structures" / "comparison.png",
        "the drafted report": reading / "report.html",
        "its pictures": reading / "pictures",
        "its masks": reading / "masks",
        "models (larmor read --model ...)": models,
    }


def _compare(folder: Path, manifest: Path, start: Path, task: str, *, few: list[str]) -> Comparison:
    overrides = [f"data.manifest={manifest}", f"encoder={start}", *few, *(["data.num_labels=3"] if few else [])]
    config = load_config(FinetuneConfig, CONFIGS / "finetune" / f"{task}.yaml", overrides)
    contenders = [
        # At the whole rate: what was pretrained for minutes has little to be forgotten, and at 0.3 of it is slower than nothing.
        Contender("pretrained, LoRA recipe", {"encoder_rate": 1.0}),
        Contender("from scratch", {"recipe": "scratch"}),
        Contender("DynUNet from scratch", {"recipe": "dynunet"}),
    ]
    return compare(config, contenders, folder / task, note=NOTE)


if __name__ == "__main__":
    main()
