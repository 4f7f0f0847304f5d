"""A manifest for the hippocampus task of the Medical Segmentation Decathlon (task 4, CC BY-SA 4.0): images/ and labels/.

    python examples/hippocampus.py FOLDER_WITH_IMAGES_AND_LABELS manifest.jsonl

60 cases, chosen by a fixed seed, are for testing; the rest are for training.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from foundation.reading.collection import Row, SeriesEntry, write_manifest

NUM_TEST = 60


def write_hippocampus_manifest(source: Path, manifest: Path) -> Path:
    """One row per labelled volume; paths are relative to the manifest, wherever the source lies."""
    images = sorted((source / "images").glob("*.nii.gz"))
    test = set(np.random.default_rng(0).permutation(len(images))[:NUM_TEST].tolist())
    start = manifest.parent.resolve()
    rows = [
        Row(
            subject=image.name.removesuffix(".nii.gz"),
            series=(SeriesEntry(path=os.path.relpath(image.resolve(), start), contrast="T1w"),),
            mask=os.path.relpath((source / "labels" / image.name).resolve(), start),
            split="test" if index in test else "train",
        )
        for index, image in enumerate(images)
    ]
    manifest.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(manifest, rows)
    return manifest


if __name__ == "__main__":
    print(f"wrote {write_hippocampus_manifest(Path(sys.argv[1]), Path(sys.argv[2]))}")
