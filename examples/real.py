"""The main job on real MRI: `make real DATA=FOLDER`.

FOLDER holds `msd_task04_hippocampus` (images/, labels/; Medical Segmentation Decathlon task 4), `ixi_2mm_dlmuse` (t1/,
dlmuse/) and any whole-head series to read. Nothing is downloaded. Pretrains on the hippocampus images without labels and
fits them with 20 labels in five ways and with three seeds; then fits whole heads, and reads one. Stopped, it continues.
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
from foundation.config import load_config
from foundation.errors import InputError
from pretrain.__main__ import pretrain
from pretrain.config import PretrainConfig
from serve.pipeline import read_to_folder

CONFIGS = Path(__file__).parent.parent / "configs"
BASELINE_STEPS = 1.5  # DynUNet trains for this many times our steps, so that it has at least our wall time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="FOLDER")
    parser.add_argument("--folder", type=Path, default=Path("runs/real"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=("hippocampus", "ixi"), help="one of the two parts, and no reading")
    parser.add_argument(
        "--read", type=Path, default=Path("niivue_sample_heads/MR_Gd.nii.gz"), help="a series in FOLDER"
    )
    arguments = parser.parse_args()
    began = time.perf_counter()
    try:
        for name in ("msd_task04_hippocampus", "ixi_2mm_dlmuse"):
            if not (arguments.data / name).is_dir():
                raise InputError(
                    "the data is there", got=f"no {name}", remedy="See examples/real.py.", file=arguments.data
                )
        comparisons = []
        if arguments.only != "ixi":
            source = arguments.data / "msd_task04_hippocampus"
            comparisons.append(hippocampus_table(source, arguments.folder, arguments.seeds))
        if arguments.only != "hippocampus":
            comparisons.append(whole_heads(arguments.data / "ixi_2mm_dlmuse", arguments.folder / "ixi"))
        for comparison in comparisons:
            print(f"\n{comparison.table()}\n")
        if arguments.only is None:
            models = [comparison.scores[0].model_folder for comparison in reversed(comparisons)]
            read_to_folder(arguments.data / arguments.read, arguments.folder / "reading", models)
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


def whole_heads(source: Path, folder: Path) -> Comparison:
    """20 heads with automatic labels, 10 test heads: what `larmor read` then uses on a whole head."""
    manifest = write_ixi_manifest(source, folder / "manifest.jsonl")
    here = [f"manifest={manifest}", f"folder={folder / 'pretrain'}"]
    encoder = pretrain(load_config(PretrainConfig, CONFIGS / "pretrain" / "ixi.yaml", here))
    config = load_config(
        FinetuneConfig, CONFIGS / "finetune" / "ixi.yaml", [f"data.manifest={manifest}", f"encoder={encoder}"]
    )
    contenders = [Contender("pretrained, LoRA recipe"), Contender("from scratch", {"recipe": "scratch"})]
    return compare(
        config, contenders, folder, note="IXI (CC BY-SA 3.0) with DLMUSE labels: a silver standard, not manual."
    )


if __name__ == "__main__":
    sys.exit(main())
