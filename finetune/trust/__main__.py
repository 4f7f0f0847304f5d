"""Give a fitted model what its results need to be trusted: a calibration from labelled studies that it did not learn from, and the
features of its training studies.

    python -m finetune.trust MODEL MANIFEST --split validation [--training MANIFEST] [--out FOLDER]

Fine-tuning does this itself where the manifest has a validation split; this is for models from before, for a hospital's own
studies, and after the scanner has changed. Without --out the folder itself is replaced, whole.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune.samples import read_labelled
from finetune.trust.fit import calibrate, calibration_words, has_truth
from finetune.trust.leaks import find_leaks, find_near
from finetune.trust.ood import MOST_STUDIES, Reference
from foundation.checkpoint import read_about
from foundation.errors import InputError
from foundation.files import write_folder_aside
from foundation.preprocess import PreparedStudy, prepare_study
from foundation.reading.collection import read_manifest, read_study
from heads.base import load_task


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m finetune.trust", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("manifest", type=Path, metavar="MANIFEST")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--training", type=Path, metavar="MANIFEST", help="where the training studies are now")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    given = parser.parse_args(arguments)
    try:
        enrich(given.model, given.manifest, given.split, given.training, given.out or given.model)
    except InputError as error:
        print(f"finetune.trust: {error}", file=sys.stderr)
        return 2
    return 0


def enrich(folder: Path, manifest: Path, split: str, training: Path | None, out: Path) -> None:
    """Write `out`, a copy of the task folder with its calibration and the features of its training studies."""
    model, config, _ = load_task(folder)
    about = read_about(folder)
    provenance = about["provenance"]
    collection = read_manifest(manifest)
    rows = [row for row in collection.split(split) if has_truth(row, config.head)]
    find_leaks(rows, collection.root, provenance, folder, None).refuse(manifest)
    studies = read_labelled(collection, rows, model.head, config.spacing_mm, label="read")
    calibration = calibrate(model, studies, source=f"studies of {manifest}, split {split}")
    if calibration is None:
        raise InputError(
            "a calibration takes labelled studies and a head of classes",
            got=f"{len(studies)} in split '{split}', a head of kind '{config.head.kind}'",
            remedy="Give more studies: 10 for a classification, 2 for a segmentation.",
            file=manifest,
        )
    about["config"]["calibration"] = calibration.model_dump(mode="json")
    provenance["calibrated_on"] = [row.subject for row in rows]
    reference = _reference(folder, training, provenance, config.spacing_mm)
    card = (folder / "card.md").read_text()
    card = re.sub(r"Probabilities are [^\n]*?(?=Not a medical device\.|\n|$)", "", card).rstrip()
    with write_folder_aside(out) as aside:
        shutil.copytree(folder, aside, dirs_exist_ok=True)
        (aside / "config.json").write_text(json.dumps(about, indent=2) + "\n")
        (aside / "card.md").write_text(f"{card}\n\n{calibration_words(calibration)}\n")
        if reference is not None:
            Reference.of(model, reference).save(aside)
    print(calibration_words(calibration))
    print("features of training studies: " + ("none, they are not here" if reference is None else str(len(reference))))
    print(f"wrote {out}")


def _reference(
    folder: Path, training: Path | None, provenance: dict, spacing_mm: tuple[float, float, float]
) -> list[PreparedStudy] | None:
    """The training studies, prepared, if they can be found."""
    path = training or find_near(Path(provenance.get("manifest", "?")), folder)
    if path is None:
        return None
    collection = read_manifest(path)
    rows = [row for row in collection.rows if row.subject in set(provenance.get("trained_on", ()))]
    return [prepare_study(read_study(row, collection.root), spacing_mm) for row in rows[:MOST_STUDIES]] or None


if __name__ == "__main__":
    sys.exit(main())
