"""A manifest for IXI heads with DLMUSE labels (as NiChart's demonstration set holds them): t1/, dlmuse/.

    python examples/ixi.py FOLDER manifest.jsonl

The 149 regions are merged into the cohort's structures, written beside the manifest; age and sex come from participants.csv. All
heads are for testing unless some are asked for to be learnt from.
"""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import numpy as np

from foundation.cohort.materials import STRUCTURES
from foundation.progress import progress
from foundation.reading.collection import Row, SeriesEntry, Target, write_manifest
from foundation.reading.nifti import read_labels, read_nifti, write_labels

# MUSE region numbers of each structure; as in the cohort, accumbens and amygdala count as cortex.
REGIONS = {
    "cerebral cortex": (23, 30, 31, 32, *range(100, 208)),
    "cerebral white matter": tuple(range(81, 96)),
    "lateral ventricle": (49, 50, 51, 52),
    "thalamus": (59, 60),
    "caudate": (36, 37),
    "putamen": (57, 58),
    "pallidum": (55, 56),
    "hippocampus": (47, 48),
    "cerebellum": (38, 39, 40, 41, 71, 72, 73),
    "brainstem": (35,),
}


def write_ixi_manifest(source: Path, manifest: Path, *, train_every: int | None = None) -> Path:
    """Merge labels, write the manifest; paths are relative to it. Every `train_every`-th head is to be learnt from."""
    table = np.zeros(256, dtype=np.int16)
    for name, regions in REGIONS.items():
        table[list(regions)] = STRUCTURES[name]
    images = sorted((source / "t1").glob("*.nii.gz"))
    with (source / "participants.csv").open() as file:
        people = {person["MRID"]: person for person in csv.DictReader(file)}
    rows = []
    with progress(total=len(images), label="merge labels", unit="head") as bar:
        for number, image in enumerate(images):
            series = read_nifti(image)
            stem = image.name.removesuffix(".nii.gz")
            labels = read_labels(source / "dlmuse" / f"{stem}_DLMUSE.nii.gz", series)
            mask = manifest.parent / "labels" / f"{stem}.nii.gz"
            write_labels(mask, table[labels], series)
            path = os.path.relpath(image.resolve(), manifest.parent.resolve())
            rows.append(
                Row(
                    subject=stem,
                    series=(SeriesEntry(path=path, contrast="T1w"),),
                    mask=f"labels/{mask.name}",
                    targets=_targets(people, stem),
                    split="train" if train_every and number % train_every == 0 else "test",
                )
            )
            bar.update()
    write_manifest(manifest, rows)
    return manifest


def _targets(people: dict[str, dict[str, str]], stem: str) -> dict[str, Target]:
    """Age and sex, where the table knows the person that a file's name begins with."""
    for name, person in people.items():
        if stem.startswith(name):
            return {"age_years": float(person["Age"]), "sex": person["Sex"]}
    return {}


if __name__ == "__main__":
    print(f"wrote {write_ixi_manifest(Path(sys.argv[1]), Path(sys.argv[2]))}")
