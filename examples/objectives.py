"""What each pretraining objective is worth: `python -m examples.objectives DATA`.

DATA holds `synthseg_label_maps`, `ixi_2mm_dlmuse` and `msd_task04_hippocampus` (see examples/real.py). Tiny encoders are
pretrained on synthetic T1w heads made from the label maps: by masked autoencoding alone, with the study term, with free truth,
with all three.

- `ixi`: ten structures of the whole head at 4 mm, fitted on 3 and on 5 real heads from each of them and from nothing.
- `hippocampus`: its two parts at 1 mm, fitted on 5, 10 and 20 real crops from nothing and from free truth in small boxes around it.

In both, what free truth knows before it has seen any real image or label is scored too, and how well a linear map from each
start's frozen features tells the structures of a token's voxels. Stopped, it continues.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.hippocampus import write_hippocampus_manifest
from examples.ixi import REGIONS, write_ixi_manifest
from finetune.compare import Contender, compare
from finetune.config import FinetuneConfig
from finetune.evaluate import Interval, bootstrap, evaluate_studies, save_evaluation
from finetune.samples import read_labelled
from foundation.cohort.materials import STRUCTURES
from foundation.config import load_config
from foundation.encoder import Encoder, EncoderConfig
from foundation.files import write_aside
from foundation.reading.collection import read_manifest, write_manifest
from foundation.reading.nifti import read_labels, read_nifti, write_labels
from heads.adapters.folder import encoder_of
from heads.base import load_task
from pretrain.__main__ import pretrain
from pretrain.config import PretrainConfig
from pretrain.probe import Probe, ProbeConfig

CONFIGS = Path(__file__).parent.parent / "configs"
TERMS = {
    "free truth": ("free_truth",),
    "masked": ("masked_autoencoding",),
    "masked, study term": ("masked_autoencoding", "agreement"),
    "masked, free truth": ("masked_autoencoding", "free_truth"),
    "all three": ("masked_autoencoding", "agreement", "free_truth"),
}
Spacing = tuple[float, float, float]
Rows = dict[str, str | None]  # what is compared, and the folder of a start that was not made here

ROWS = ("none", "none, three times the steps")
LONGER = 3  # from nothing a network is also given three times the steps


@dataclass(frozen=True)
class Boxes:
    """What pretraining looks at and for how long: the cohort, its boxes' sizes, and what free truth tells apart, where.

    `best` is the objective whose start is scored before it has seen anything real.
    """

    best: str
    subjects: int
    steps: int
    batch_size: int
    finest_mm: float
    spacing_mm: tuple[float, float]
    voxels: int
    structures: tuple[str, ...]
    near: tuple[str, ...] = ()
    gamma: float = 1.0
    crop: dict[str, Any] = field(default_factory=dict)


HEADS = Boxes(
    best="masked, free truth",
    subjects=40,
    steps=400,
    batch_size=2,
    finest_mm=2.0,
    spacing_mm=(3.0, 4.5),
    voxels=56,
    structures=tuple(REGIONS),
)
HIPPOCAMPI = Boxes(
    best="free truth",
    subjects=12,
    steps=1500,
    batch_size=4,
    finest_mm=1.0,
    spacing_mm=(0.8, 1.3),
    voxels=40,
    structures=("hippocampus", "cerebral cortex", "cerebral white matter", "lateral ventricle"),
    near=("hippocampus",),
    gamma=2.5,  # the real crops have more contrast than synthetic heads
    crop={"voxels": 48, "spacing_mm": (0.8, 1.4), "max_tokens": 160, "max_targets": 96},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--folder", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=("ixi", "hippocampus"), default=["ixi", "hippocampus"])
    parser.add_argument("--labels", type=int, nargs="+", help="instead of 3 and 5 on IXI, 5, 10 and 20 on hippocampi")
    parser.add_argument("--also", nargs="+", default=[], metavar="NAME=FOLDER", help="other starts for IXI")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, *TERMS], help="only these")
    parser.add_argument(
        "--pretrain", nargs="*", choices=list(TERMS), help="only pretrain these for the tasks, and stop"
    )
    arguments = parser.parse_args()
    data, folder = arguments.data, arguments.folder
    if arguments.pretrain is not None:
        for task in arguments.tasks:
            for name in arguments.pretrain:
                pretrained(name, HEADS if task == "ixi" else HIPPOCAMPI, data, folder / task)
        return
    for task in arguments.tasks:
        run = ixi if task == "ixi" else hippocampus
        rows = dict.fromkeys(arguments.rows or [*ROWS, *TERMS]) | dict(text.split("=", 1) for text in arguments.also)
        report = run(data, folder / task, arguments.seeds, arguments.labels, rows)
        with write_aside(folder / task / "results.md") as aside:
            aside.write_text(report + "\n")
        print(f"\n{report}\nwrote {folder / task / 'results.md'}")


def ixi(data: Path, folder: Path, seeds: list[int], labels: list[int] | None, rows: Rows) -> str:
    note = (
        "Whole heads at 4 mm, ten structures, DLMUSE's automatic labels (IXI, CC BY-SA 3.0): a silver standard. Pretrained on "
        f"{HEADS.subjects} synthetic T1w heads made from six label maps."
    )
    starts = {
        name: pretrained(name, HEADS, data, folder) if start is None else Path(start)
        for name, start in rows.items()
        if name not in ROWS
    }
    manifest = write_ixi_manifest(data / "ixi_2mm_dlmuse", folder / "data" / "manifest.jsonl", train_every=3)
    steps = 120
    config = load_config(
        FinetuneConfig,
        CONFIGS / "finetune" / "brain-structures.yaml",
        [
            f"data.manifest={manifest}",
            "data.spacing_mm=[4.0,4.0,4.0]",
            f"training.steps={steps}",
            "training.warmup_steps=20",
            "training.ema_decay=0.98",
        ],
    )
    contenders = [
        Contender(ROWS[0], {"recipe": "scratch"}),
        Contender(ROWS[1], {"recipe": "scratch", "training.steps": LONGER * steps}),
        *(Contender(name, {"recipe": "full", "encoder": str(start)}) for name, start in starts.items()),
    ]
    contenders = [one for one in contenders if one.title in rows]
    best = HEADS.best if HEADS.best in starts else list(starts)[-1]
    spacing_mm = config.data.spacing_mm
    without = without_real_labels(manifest, list(REGIONS), spacing_mm, starts[best], folder / "no-real-label")
    frozen = linear_on_frozen(manifest, list(REGIONS), spacing_mm, starts)
    return tables(config, contenders, f"{without}\n\n{frozen}", folder, seeds, labels or [3, 5], note)


def hippocampus(data: Path, folder: Path, seeds: list[int], labels: list[int] | None, rows: Rows) -> str:
    note = (
        "Hippocampus, Medical Segmentation Decathlon task 4 (CC BY-SA 4.0). Pretrained on boxes around the hippocampi of "
        f"{HIPPOCAMPI.subjects} synthetic T1w heads made from six label maps."
    )
    starts = {
        name: pretrained(name, HIPPOCAMPI, data, folder) for name in {HIPPOCAMPI.best: None} | rows if name in TERMS
    }
    manifest = write_hippocampus_manifest(data / "msd_task04_hippocampus", folder / "data" / "manifest.jsonl")
    steps = 250
    config = load_config(
        FinetuneConfig,
        CONFIGS / "finetune" / "hippocampus.yaml",
        [f"data.manifest={manifest}", f"training.steps={steps}", "training.ema_decay=0.98"],
    )
    contenders = [
        Contender(ROWS[0], {"recipe": "scratch"}),
        *(Contender(name, {"recipe": "full", "encoder": str(start)}) for name, start in starts.items()),
    ]
    contenders = [one for one in contenders if one.title in rows]
    whole, spacing_mm = _both_parts_as_one(manifest), config.data.spacing_mm
    without = without_real_labels(whole, ["hippocampus"], spacing_mm, starts[HIPPOCAMPI.best], folder / "no-real-label")
    frozen = linear_on_frozen(whole, ["hippocampus"], spacing_mm, starts)
    return tables(config, contenders, f"{without}\n\n{frozen}", folder, seeds, labels or [5, 10, 20], note)


def tables(
    config: FinetuneConfig,
    contenders: list[Contender],
    before: str,
    folder: Path,
    seeds: list[int],
    labels: list[int],
    note: str,
) -> str:
    """What is known `before` anything is fitted, and one comparison for each number of labels."""
    parts = [f"No real image or label: Dice {before}"]
    for num_labels in labels:
        asked = config.model_copy(update={"data": config.data.model_copy(update={"num_labels": num_labels})})
        found = compare(asked, contenders, folder / f"labels-{num_labels}", seeds=seeds, note=note)
        parts.append(found.table())
    return "\n\n".join([*parts, note])


def without_real_labels(manifest: Path, names: list[str], spacing_mm: Spacing, start: Path, folder: Path) -> Interval:
    """Mean Dice of these structures by the start as it is: whatever it calls by their names, among all that it knows."""
    model, _, _ = load_task(start)
    collection = read_manifest(manifest)
    studies = read_labelled(collection, collection.split("test"), model.head, spacing_mm, label="read")
    evaluation = evaluate_studies(model, studies)
    save_evaluation(evaluation, folder, about={"start": str(start), "structures": names})
    figures = bootstrap(
        list(evaluation.cases.values()),
        lambda cases: {"dice": float(np.mean([case[f"dice {name}"] for case in cases for name in names]))},
    )
    return figures["dice"]


def linear_on_frozen(manifest: Path, names: list[str], spacing_mm: Spacing, starts: dict[str, Path]) -> str:
    """A table of what a linear map from each start's frozen token features knows, beside random weights; see `Probe`."""
    probe = Probe(
        ProbeConfig(
            manifest=manifest,
            split="test",
            spacing_mm=spacing_mm,
            structures=tuple(STRUCTURES[name] for name in names),
        )
    )
    torch.manual_seed(0)
    encoders = {"random weights": Encoder(EncoderConfig.of_size("tiny"))}
    encoders |= {name: encoder_of(start) for name, start in starts.items()}
    lines = ["| frozen features of | linear Dice |", "|---|---|"]
    for name, encoder in encoders.items():
        lines.append(f"| {name} | {probe.figures_of(encoder)['probe/dice']:.3f} |")
    return "\n".join(lines)


def pretrained(name: str, boxes: Boxes, data: Path, folder: Path) -> Path:
    """The start that an objective leaves: with the dense path where it learnt one, otherwise the encoder alone."""
    run = folder / "pretrained" / name.replace(", ", "-").replace(" ", "-")
    is_free = "free_truth" in TERMS[name]
    start = run / ("dense" if is_free else "model")
    if not (start / "config.json").is_file():
        cohort = {
            "subjects": boxes.subjects,
            "spacing_mm": boxes.finest_mm,
            "appearance": "physics",
            "contrasts": ["T1w"],
            "missing_series": 0.0,
            "anatomy": str(data / "synthseg_label_maps"),
        }
        truth = {
            "cohort": cohort,
            "voxels": boxes.voxels,
            "spacing_mm": list(boxes.spacing_mm),
            "near": list(boxes.near),
            "structures": list(boxes.structures),
            "gamma": boxes.gamma,
        }
        terms = [{"kind": kind, **(truth if kind == "free_truth" else {})} for kind in TERMS[name]]
        overrides = [
            f"folder={run}",
            # Free truth alone draws its own patients.
            f"cohort={cohort if TERMS[name] != ('free_truth',) else 'null'}",
            f"objective.terms={terms}",
            f"objective.weights={ {'agreement': 0.1} if 'agreement' in TERMS[name] else {} }",
            *(f"crop.{key}={list(value) if isinstance(value, tuple) else value}" for key, value in boxes.crop.items()),
            # Masked boxes are cheap: without free truth there are six times as many, in less time.
            f"training.steps={boxes.steps if is_free else boxes.steps * 3 // 2}",
            f"training.batch_size={boxes.batch_size if is_free else 4 * boxes.batch_size}",
        ]
        pretrain(load_config(PretrainConfig, CONFIGS / "pretrain" / "mixture.yaml", overrides))
    return start


def _both_parts_as_one(manifest: Path) -> Path:
    """The same test crops with one label for the whole hippocampus, written beside the manifest."""
    collection = read_manifest(manifest)
    folder = manifest.parent / "whole"
    rows = []
    for row in collection.split("test"):
        assert row.mask is not None
        image = manifest.parent / row.series[0].path
        series = read_nifti(image)
        mask = folder / f"{row.subject}.nii.gz"
        labels = read_labels(manifest.parent / row.mask, series)
        write_labels(mask, STRUCTURES["hippocampus"] * (labels > 0).astype("uint8"), series)
        entry = row.series[0].model_copy(update={"path": os.path.relpath(image.resolve(), folder.resolve())})
        rows.append(row.model_copy(update={"series": (entry,), "mask": mask.name}))
    write_manifest(folder / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"


if __name__ == "__main__":
    main()
