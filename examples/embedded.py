"""The models that come with Larmor: `make weights DATA=FOLDER` makes them anew, in heads/weights.

FOLDER holds `synthseg_label_maps` (Apache-2.0), the anatomy of the synthetic patients, and `ixi_2mm_dlmuse`, on which the first
model is scored and from which nothing is learnt. In order:

- `brain-structures`: ten structures of the whole head, from T1w. Its encoder is the backbone of the others.
- `lesion`: an adapter on that backbone, fitted on a cohort of five contrasts; the kinds of what it outlines from more patients.
- the writer of reports.
- `reconstruction`, the network of `larmor reconstruct` and `larmor repair`, from synthetic k-space.

Each is stored in bf16 and scored as it is stored; what it reached is in its card. Stopped, it continues.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from examples.ixi import write_ixi_manifest
from examples.learn_reconstruction import fine, going_on
from examples.measure_reconstruction import Held, progress_over, table_rows, tables
from examples.real import CONFIGS, synthetic_heads
from finetune.config import FinetuneConfig
from finetune.evaluate import evaluate_to_folder
from finetune.run import finetune
from finetune.samples import read_labelled
from foundation.checkpoint import read_about, shrink_model_folder
from foundation.cohort.patient import CohortConfig
from foundation.cohort.writing import write_cohort
from foundation.config import load_config
from foundation.files import write_aside
from foundation.reading.collection import read_manifest
from foundation.reconstruction.command import Solve
from foundation.reconstruction.methods import reconstruct
from heads.adapters.folder import load_model, save_adapter
from heads.base import EMBEDDED
from heads.reconstruction.command import LEARNED, LearnedMethod
from heads.reconstruction.network import Unrolled
from heads.reconstruction.training import TrainReconstructionConfig, train_reconstruction
from heads.report.learning import LearnConfig, train_decoder

BACKBONE = "brain-structures"
CONTRASTS = ("T1w", "T1w-contrast", "T2w", "FLAIR", "DWI")
SPLITS = {"train": 0.8, "validation": 0.05, "test": 0.15}
WRITER_STEPS = 600  # its sentences are checked, and templates stand in for those that fail
NUM_FOR_KINDS = 60  # patients besides the cohort's, of whom only the looks of lesions are learnt
NUM_HELD = 20  # heads that the reconstruction is measured on
LARGEST_BYTES = 25_000_000  # of everything that comes with Larmor
OURS = "Weights: Apache-2.0, as Larmor. Research software, not a medical device."
SYNTHETIC = (
    "Fitted on synthetic patients only (label maps of SynthSeg, Apache-2.0), with no real image and no real label. "
    + OURS
)

RECONSTRUCTION = f"""# reconstruction

An unrolled network that makes images of accelerated scans, and takes noise, ghosts, motion and thick slices out of others.

Fitted on synthetic patients only (heads made from the MNI152 averages inside nilearn), with no real scan. It holds to the
samples but can invent what they leave open: look at where it differs from cg-sense. {OURS}

As stored, a slice each of synthetic heads that were not trained on, 8 coils, 2.5 mm pixels, against the noise-free image:"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="FOLDER")
    parser.add_argument("--folder", type=Path, default=Path("runs/embedded"))
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    parser.add_argument("--subjects", type=int, default=90)
    parser.add_argument("--only", nargs="+", choices=list(STEPS), default=list(STEPS))
    arguments = parser.parse_args()
    for name in arguments.only:
        STEPS[name](arguments)
    total = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    print(f"{arguments.out} holds {total / 1e6:.1f} MB")
    assert total <= LARGEST_BYTES, f"{total} bytes are more than {LARGEST_BYTES}"


def structures(arguments: argparse.Namespace) -> None:
    fitted = synthetic_heads(arguments.data, arguments.folder)
    ixi = write_ixi_manifest(arguments.data / "ixi_2mm_dlmuse", arguments.folder / "ixi" / "manifest.jsonl")
    publish(
        fitted,
        arguments,
        ixi,
        about="Ten structures of the whole head, outlined on T1w at 3 mm.",
        measured_on="30 real heads of IXI at 2 mm, against DLMUSE's automatic labels (a silver standard)",
    )


def cohort(arguments: argparse.Namespace) -> Path:
    return write_cohort(arguments.folder / "cohort", cohort_config(arguments, 100, SPLITS), arguments.subjects)


def cohort_config(arguments: argparse.Namespace, seed: int, splits: dict[str, float]) -> CohortConfig:
    anatomy = arguments.data / "synthseg_label_maps"
    return CohortConfig(seed=seed, anatomy=anatomy, contrasts=CONTRASTS, splits=splits, missing_series=0.25)


def lesion(arguments: argparse.Namespace) -> None:
    """Fitted on the backbone as it is stored, so that the hash which the adapter asks for is that of the stored one."""
    manifest, folder = cohort(arguments), arguments.folder / "lesion"
    backbone = os.path.relpath(arguments.out / BACKBONE)  # it will be in what is published
    here = [f"data.manifest={manifest}", f"folder={folder}", f"encoder={backbone}"]
    if not (folder / "adapter" / "config.json").is_file():
        finetune(load_config(FinetuneConfig, CONFIGS / "finetune" / "lesion.yaml", here))
    more = cohort_config(arguments, 101, {"train": 1.0})
    call_kinds(folder / "adapter", [manifest, write_cohort(arguments.folder / "cohort-kinds", more, NUM_FOR_KINDS)])
    publish(
        folder / "adapter",
        arguments,
        manifest,
        about="Lesions outlined at 3 mm, called by their kind and counted, from whichever of five contrasts there are.",
        measured_on="held-out synthetic patients",
    )


def call_kinds(folder: Path, manifests: Sequence[Path]) -> None:
    """Learn anew how kinds of lesion look, from more patients than the network saw: that asks for no gradient."""
    loaded = load_model(folder)
    head = loaded.model.head
    assert loaded.adapter is not None and loaded.backbone is not None
    studies = []
    for manifest in manifests:
        collection = read_manifest(manifest)
        rows = collection.split("train")
        studies += read_labelled(collection, rows, head, loaded.config.spacing_mm, label="read for kinds")
    seen = [(study.prepared, study.labels) for study in studies if study.labels is not None]
    head.look_back(seen, loaded.model.output_of)
    about, card = read_about(folder)["provenance"], (folder / "card.md").read_text()
    provenance = {**about, "kinds_from": [study.row.subject for study in studies]}
    save_adapter(folder, loaded.adapter, head, loaded.config, loaded.backbone, card=card, provenance=provenance)


def writer(arguments: argparse.Namespace) -> None:
    folder, out = arguments.folder / "writer", arguments.out / "writer"
    config = LearnConfig()
    shorter = config.training.model_copy(update={"steps": WRITER_STEPS})
    train_decoder(config.model_copy(update={"training": shorter}), folder)
    card = f"{(folder / 'model' / 'card.md').read_text()}\n{OURS}\n"
    shrink_model_folder(folder / "model", out, config=read_about(folder / "model")["config"], card=card)


def reconstruction(arguments: argparse.Namespace) -> None:
    folder, out = arguments.folder / "reconstruction", arguments.out / "reconstruction"
    if not (folder / "model" / "config.json").is_file():
        wide = arguments.folder / "reconstruction-wide"
        train_reconstruction(TrainReconstructionConfig(), wide)
        train_reconstruction(going_on(fine(), wide / "model"), folder)
    shrink_model_folder(folder / "model", out, config=read_about(folder / "model")["config"], card=OURS)
    methods: dict[str, Solve] = {name: partial(reconstruct, method=name) for name in ("cg-sense", "l1-wavelet")}
    methods[LEARNED] = LearnedMethod(Unrolled.load(out))
    rows = []
    for number in progress_over(range(NUM_HELD)):
        held = Held(number, "usual", 2.0)
        for name, method in methods.items():
            about = {"family": "usual", "head": number, "part": "table", "method": name}
            rows += [about | row for row in table_rows(held, method)]
    card = [*RECONSTRUCTION.splitlines(), "", *"\n\n".join(tables(rows)).splitlines()]
    with write_aside(out / "card.md") as aside:
        aside.write_text("\n".join(card) + "\n")
    print(f"wrote {out}")


def publish(fitted: Path, arguments: argparse.Namespace, manifest: Path, *, about: str, measured_on: str) -> None:
    """Store a fitted task small, score what is stored, and write that into its card."""
    config = read_about(fitted)["config"]
    name = config.get("task", config)["name"]
    if "backbone" in config:
        config["backbone"]["path"] = BACKBONE  # it lies beside the adapter, wherever both are
    out, scored = arguments.out / name, arguments.folder / "scores" / name
    shrink_model_folder(fitted, out, config=config, card=SYNTHETIC)
    print(f"\n{name}, as stored, on {measured_on}:")
    evaluate_to_folder(name, manifest, scored, model=out, split="test")
    figures = json.loads((scored / "metrics.json").read_text())
    rows = [f"| {figure} | {_interval(one)} |" for figure, one in figures["figures"].items()]
    card = [
        f"# {name}", "", about, "", SYNTHETIC, "",
        f"{len(figures['cases'])} cases, {measured_on}; mean and bootstrap 95 % interval over cases:", "",
        "| figure | value |", "|---|---|", *rows, "",
        "`config.json` has the settings and versions that it was made with, and the hash of its weights.",
    ]  # fmt: skip
    with write_aside(out / "card.md") as aside:
        aside.write_text("\n".join(card) + "\n")
    print(f"wrote {out}")


def _interval(one: dict[str, float | None]) -> str:
    mean, low, high = (one[key] for key in ("mean", "low", "high"))
    return "not estimable" if mean is None else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


STEPS = {
    "structures": structures,
    "lesion": lesion,
    "writer": writer,
    "reconstruction": reconstruction,
}


if __name__ == "__main__":
    main()
