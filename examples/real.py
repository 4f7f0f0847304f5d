"""The main job on real MRI: `make real DATA=FOLDER`.

FOLDER holds `msd_task04_hippocampus` (images/, labels/; Medical Segmentation Decathlon task 4), `ixi_2mm_dlmuse` (t1/,
dlmuse/), `synthseg_label_maps` (whole-head label maps), and any whole-head series to read. Nothing is downloaded.

1. Pretrains on the hippocampus images without labels and fits them with 20 labels in five ways and with three seeds.
2. Fits ten structures of the whole head on synthetic heads made from the label maps, once of random contrast and once T1w, and
   scores both on the IXI heads: no real image and no real label was learnt from.
3. Fits the hippocampus with 10 labels, starting from the first of these or from scratch. Reads a whole head with the second.

Stopped, it continues.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from examples.hippocampus import write_hippocampus_manifest
from examples.ixi import write_ixi_manifest
from finetune.compare import Comparison, Contender, compare
from finetune.config import FinetuneConfig
from finetune.evaluate import evaluate_to_folder
from finetune.run import finetune
from foundation.cohort.patient import Appearance, CohortConfig
from foundation.cohort.writing import write_cohort
from foundation.config import load_config
from foundation.errors import InputError
from pretrain.__main__ import pretrain
from pretrain.config import PretrainConfig
from serve.pipeline import read_to_folder

CONFIGS = Path(__file__).parent.parent / "configs"
NUM_SYNTHETIC = 120
BASELINE_STEPS = 1.5  # DynUNet trains for this many times our steps, so that it has at least our wall time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="FOLDER")
    parser.add_argument("--folder", type=Path, default=Path("runs/real"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=("hippocampus", "heads"), help="one of the two parts")
    parser.add_argument(
        "--read", type=Path, default=Path("niivue_sample_heads/T1_head_ext2.nii.gz"), help="a series in FOLDER"
    )
    arguments = parser.parse_args()
    began = time.perf_counter()
    try:
        for name in ("msd_task04_hippocampus", "ixi_2mm_dlmuse", "synthseg_label_maps"):
            if not (arguments.data / name).is_dir():
                raise InputError(
                    "the data is there", got=f"no {name}", remedy="See examples/real.py.", file=arguments.data
                )
        if arguments.only != "heads":
            source = arguments.data / "msd_task04_hippocampus"
            table = hippocampus_table(source, arguments.folder, arguments.seeds)
            print(f"\n{table.table()}\n")
        if arguments.only != "hippocampus":
            random = whole_heads(arguments.data, arguments.folder / "heads", "random")
            t1w = whole_heads(arguments.data, arguments.folder / "heads-t1w", "physics")
            source = arguments.data / "msd_task04_hippocampus"
            print(f"\n{transfer_table(source, random, arguments.folder / 'transfer', arguments.seeds).table()}\n")
            read_to_folder(arguments.data / arguments.read, arguments.folder / "reading", [t1w])
    except InputError as error:
        print(f"real: {error}", file=sys.stderr)
        return 2
    print(f"Done in {(time.perf_counter() - began) / 60:.0f} minutes; everything is in {arguments.folder}.")
    return 0


def hippocampus_table(source: Path, folder: Path, seeds: Sequence[int]) -> Comparison:
    """20 labels, 60 test cases: the five rows."""
    manifest = write_hippocampus_manifest(source, folder / "hippocampus" / "manifest.jsonl")
    here = [f"manifest={manifest}", f"folder={folder / 'hippocampus' / 'pretrain'}"]
    encoder = pretrain(load_config(PretrainConfig, CONFIGS / "pretrain" / "hippocampus.yaml", here))
    config = load_config(
        FinetuneConfig, CONFIGS / "finetune" / "hippocampus.yaml", [f"data.manifest={manifest}", f"encoder={encoder}"]
    )
    longer = round(BASELINE_STEPS * config.training.steps)
    contenders = [
        Contender("pretrained, LoRA recipe"),
        Contender("pretrained, all weights", {"recipe": "full"}),
        Contender("pretrained, frozen", {"recipe": "frozen"}),
        Contender("from scratch", {"recipe": "scratch"}),
        Contender("DynUNet from scratch", {"recipe": "dynunet", "training.steps": longer}),
    ]
    note = "Hippocampus, Medical Segmentation Decathlon task 4 (CC BY-SA 4.0); Dice is the mean of both structures."
    return compare(config, contenders, folder / "hippocampus", seeds=seeds, note=note)


def whole_heads(data: Path, folder: Path, appearance: Appearance) -> Path:
    """Learn from synthetic heads, be scored on real ones (a silver standard: DLMUSE's labels); return the model folder."""
    cohort = CohortConfig(
        anatomy=data / "synthseg_label_maps",
        appearance=appearance,
        contrasts=("random",) if appearance == "random" else ("T1w",),
        splits={"train": 0.9, "test": 0.1},
    )
    manifest = write_cohort(folder / "cohort", cohort, NUM_SYNTHETIC)
    model = folder / "model"
    if not (model / "config.json").is_file():
        overrides = [f"data.manifest={manifest}", f"folder={folder}"]
        finetune(load_config(FinetuneConfig, CONFIGS / "finetune" / "brain-structures.yaml", overrides))
    ixi = write_ixi_manifest(data / "ixi_2mm_dlmuse", folder / "ixi" / "manifest.jsonl")
    print(f"\nTen structures of real heads, without a real label (synthetic heads, {appearance} appearance):")
    evaluate_to_folder("brain-structures", ixi, folder / "real", model=model, split="test")
    return model


def transfer_table(source: Path, start: Path, folder: Path, seeds: Sequence[int]) -> Comparison:
    """10 labels, 60 test cases: does a model that saw only synthetic heads help with real ones?"""
    manifest = write_hippocampus_manifest(source, folder / "manifest.jsonl")
    overrides = [f"data.manifest={manifest}", f"encoder={start}", "data.num_labels=10", "training.steps=600"]
    config = load_config(FinetuneConfig, CONFIGS / "finetune" / "hippocampus.yaml", overrides)
    contenders = [
        Contender("from scratch", {"recipe": "scratch"}),
        Contender("from synthetic heads, all weights", {"recipe": "full"}),
    ]
    note = "Hippocampus, 10 labels. The start: encoder, stem and decoder fitted on synthetic heads of random contrast at 2 mm."
    return compare(config, contenders, folder, seeds=seeds, note=note)


if __name__ == "__main__":
    sys.exit(main())
