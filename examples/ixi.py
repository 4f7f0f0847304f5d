"""A manifest for IXI heads with DLMUSE labels (as NiChart's demonstration set holds them): t1/, dlmuse/.

    python examples/ixi.py FOLDER manifest.jsonl

The 149 regions are merged into eight structures, written beside the manifest; every third head is for testing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from foundation.reading.collection import Row, SeriesEntry, write_manifest
from foundation.reading.nifti import read_labels, read_nifti, write_labels
from foundation.training import progress

# MUSE region numbers of each of our labels (values as in configs/finetune/ixi.yaml); cortex is every region from 100 on.
REGIONS = {
    1: (51, 52),
    2: (47, 48),
    3: (59, 60),
    4: (23, 30, 36, 37, 55, 56, 57, 58),
    5: (38, 39, 40, 41, 71, 72, 73),
    6: (35,),
    7: (81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91, 92, 93, 94, 95),
    8: tuple(range(100, 208)),
}


def write_ixi_manifest(source: Path, manifest: Path) -> Path:
    """Merge labels, write the manifest; paths are relative to it."""
    table = np.zeros(256, dtype=np.int16)
    for value, regions in REGIONS.items():
        table[list(regions)] = value
    images = sorted((source / "t1").glob("*.nii.gz"))
    rows = []
    with progress(total=len(images), label="merge labels", unit="head") as bar:
        for index, image in enumerate(images):
            series = read_nifti(image)
            stem = image.name.removesuffix(".nii.gz")
            labels = read_labels(source / "dlmuse" / f"{stem}_DLMUSE.nii.gz", series)
            mask = manifest.parent / "labels" / f"{stem}.nii.gz"
            write_labels(mask, table[labels], series)
            rows.append(
                Row(
                    subject=stem,
                    series=(
                        SeriesEntry(path=os.path.relpath(image.resolve(), manifest.parent.resolve()), contrast="T1w"),
                    ),
                    mask=f"labels/{mask.name}",
                    split="test" if index % 3 == 2 else "train",
                )
            )
            bar.update()
    write_manifest(manifest, rows)
    return manifest


if __name__ == "__main__":
    print(f"wrote {write_ixi_manifest(Path(sys.argv[1]), Path(sys.argv[2]))}")
