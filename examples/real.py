"""The main job on real MRI, from few labels: `make real DATA=FOLDER`.

FOLDER holds `msd_task04_hippocampus`, `ixi_2mm_dlmuse`, `tcga_lgg_buda`, `synthseg_label_maps`, and any whole-head series to read
(examples/hippocampus.py, ixi.py and tumour.py say what is in them). Nothing is downloaded. Each part is one grid of recipes, label
counts and seeds with its baselines, `larmor fewshot` as a function:

- `hippocampus`: its two parts at 1 mm, from free truth on synthetic boxes around it or from nothing.
- `heads`: ten structures of the whole head at 4 mm, from synthetic heads or from nothing; before that, what synthetic heads
  alone are worth on real ones, without a real label, and a reading of a whole head by that model.
- `age`: brain age of the same heads.
- `tumour`: the abnormality of lower-grade gliomas, eight studies in all, from the lesion model that comes with Larmor.

The whole grid takes many hours on two cores; `--only`, `--labels`, `--rows` and `--seeds` take parts of it, and `--set` changes
what each fit is given, as `--set training.steps=1500`. Stopped, it continues.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from examples.hippocampus import write_hippocampus_manifest
from examples.ixi import write_ixi_manifest
from examples.objectives import HIPPOCAMPI, pretrained
from examples.tumour import write_tumour_manifest
from finetune.config import FinetuneConfig, Recipe
from finetune.evaluate import evaluate_to_folder
from finetune.fewshot import fewshot
from finetune.run import finetune
from foundation.cohort.patient import CohortConfig
from foundation.cohort.writing import write_cohort
from foundation.config import load_config
from foundation.errors import InputError
from heads.adapters.command import adapter_command
from heads.base import EMBEDDED
from serve.pipeline import read_to_folder

CONFIGS = Path(__file__).parent.parent / "configs"
NUM_SYNTHETIC = 120
Counts = Sequence[int | None]


@dataclass(frozen=True)
class Part:
    """A grid: the config that it varies, with what differs here, the label counts, and a note below its table."""

    config: str
    overrides: Callable[[Path, Path], list[str]]  # of the data and of the part's folder
    counts: Counts
    rows: tuple[Recipe, ...]
    note: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="FOLDER")
    parser.add_argument("--folder", type=Path, default=Path("runs/real"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--labels", type=int, nargs="+", help="instead of the part's own; 0 is all of them")
    parser.add_argument("--rows", nargs="+", choices=get_args(Recipe), help="instead of the part's own")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="what else differs in the config")
    parser.add_argument(
        "--read", type=Path, default=Path("niivue_sample_heads/T1_head_ext2.nii.gz"), help="a series in FOLDER"
    )
    arguments = parser.parse_args()
    began = time.perf_counter()
    try:
        for name in arguments.only:
            part, folder = PARTS[name], arguments.folder / name
            config = load_config(
                FinetuneConfig,
                CONFIGS / "finetune" / part.config,
                [f"folder={folder}", *part.overrides(arguments.data, arguments.folder), *arguments.set],
            )
            counts = part.counts if arguments.labels is None else [count or None for count in arguments.labels]
            print(f"\n{fewshot(config, counts, arguments.seeds, rows=arguments.rows or part.rows, note=part.note)}\n")
        if "heads" in arguments.only:
            model = synthetic_heads(arguments.data, arguments.folder)
            read_to_folder(arguments.data / arguments.read, arguments.folder / "reading", [model])
    except InputError as error:
        print(f"real: {error}", file=sys.stderr)
        return 2
    print(f"Done in {(time.perf_counter() - began) / 60:.0f} minutes; everything is in {arguments.folder}.")
    return 0


def hippocampus(data: Path, folder: Path) -> list[str]:
    manifest = write_hippocampus_manifest(data / "msd_task04_hippocampus", folder / "hippocampus" / "manifest.jsonl")
    start = pretrained("free truth", HIPPOCAMPI, data, folder / "hippocampus")
    return [f"data.manifest={manifest}", f"encoder={start}", "training.steps=250", "training.ema_decay=0.98"]


def heads(data: Path, folder: Path) -> list[str]:
    manifest = write_ixi_manifest(data / "ixi_2mm_dlmuse", folder / "ixi" / "manifest.jsonl", train_every=3)
    return [
        f"data.manifest={manifest}",
        f"encoder={synthetic_heads(data, folder)}",
        "data.spacing_mm=[4.0,4.0,4.0]",
        "training.steps=120",
        "training.warmup_steps=20",
        "training.ema_decay=0.98",
    ]


def age(data: Path, folder: Path) -> list[str]:
    manifest = write_ixi_manifest(data / "ixi_2mm_dlmuse", folder / "ixi-halves" / "manifest.jsonl", train_every=2)
    return [f"data.manifest={manifest}", f"encoder={synthetic_heads(data, folder)}", "training.steps=150"]


def tumour(data: Path, folder: Path) -> list[str]:
    manifest = write_tumour_manifest(data / "tcga_lgg_buda", folder / "tumour" / "manifest.jsonl")
    start = folder / "tumour" / "start"
    if not (start / "config.json").is_file():
        adapter_command(EMBEDDED / "lesion", merge=start)
    # Large lesions in thick slices; at 2 x 2 x 1 a step took 22 s of two cores. From healthy structures at 0.3 of the rate it was
    # worse than from nothing, from synthetic lesions at the whole rate better: docs/diary.md. No study here lacks a series.
    return [
        f"data.manifest={manifest}",
        f"encoder={start}",
        "encoder_rate=1.0",
        "data.spacing_mm=[4.0,4.0,1.0]",
        "augment.drop_series=0.0",
        "training.steps=400",
    ]


def synthetic_heads(data: Path, folder: Path) -> Path:
    """Ten structures learnt from synthetic T1w heads alone, scored on all IXI heads; the model's folder."""
    here = folder / "heads-t1w"
    model = here / "model"
    if not (model / "config.json").is_file():
        cohort = CohortConfig(
            anatomy=data / "synthseg_label_maps", contrasts=("T1w",), splits={"train": 0.9, "test": 0.1}
        )
        manifest = write_cohort(here / "cohort", cohort, NUM_SYNTHETIC)
        overrides = [f"data.manifest={manifest}", f"folder={here}"]
        finetune(load_config(FinetuneConfig, CONFIGS / "finetune" / "brain-structures.yaml", overrides))
    if not (here / "real" / "metrics.json").is_file():
        ixi = write_ixi_manifest(data / "ixi_2mm_dlmuse", here / "ixi" / "manifest.jsonl")
        print("\nTen structures of real heads, without a real label:")
        evaluate_to_folder("brain-structures", ixi, here / "real", model=model, split="test")
    return model


PARTS = {
    "hippocampus": Part(
        "hippocampus.yaml",
        hippocampus,
        (5, 10, 20, 50, None),
        ("scratch", "full", "lora", "frozen", "dynunet", "atlas"),
        "Medical Segmentation Decathlon task 4 (CC BY-SA 4.0); the start has seen synthetic heads only.",
    ),
    "heads": Part(
        "brain-structures.yaml",
        heads,
        (3, 5),
        ("scratch", "full", "lora", "frozen", "dynunet", "atlas"),
        "IXI (CC BY-SA 3.0), DLMUSE's automatic labels: a silver standard; the start has seen synthetic heads only.",
    ),
    "age": Part(
        "brain-age.yaml",
        age,
        (5, None),
        ("majority", "scratch", "full", "lora", "linear", "measured", "densenet"),
        "IXI (CC BY-SA 3.0), half of 30 heads.",
    ),
    "tumour": Part(
        "tumour.yaml",
        tumour,
        (None,),
        ("scratch", "full", "lora", "dynunet", "threshold"),
        "TCGA-LGG as outlined by Buda et al. (CC BY-NC-SA 4.0), in voxels: no spacing survived.",
    ),
}


if __name__ == "__main__":
    sys.exit(main())
