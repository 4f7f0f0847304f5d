"""A manifest for the lower-grade gliomas of TCGA, outlined by Buda et al. (2019): in each case's folder CASE_{pre,flair,post,mask}.

    python examples/tumour.py FOLDER manifest.jsonl

FLAIR comes first, because the abnormality was outlined on it. No spacing survived in these files, so one voxel counts as one
millimetre and no volume means anything. Their licence is non-commercial: for measuring, not for weights that are given away.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from foundation.reading.collection import Row, SeriesEntry, write_manifest
from foundation.study import Contrast

SERIES: dict[str, Contrast] = {"flair": "FLAIR", "pre": "T1w", "post": "T1w-contrast"}
TEST_EVERY = 3


def write_tumour_manifest(source: Path, manifest: Path) -> Path:
    """Every third case, by name, is for testing; paths are relative to the manifest, and a contrast that a case lacks is absent."""
    start = manifest.parent.resolve()
    rows = []
    for number, case in enumerate(sorted(folder for folder in source.iterdir() if folder.is_dir())):
        files = {name: case / f"{case.name}_{name}.nii.gz" for name in (*SERIES, "mask")}
        entries = [
            SeriesEntry(path=os.path.relpath(files[name].resolve(), start), contrast=contrast)
            for name, contrast in SERIES.items()
            if files[name].is_file()
        ]
        rows.append(
            Row(
                subject=case.name,
                series=tuple(entries),
                mask=os.path.relpath(files["mask"].resolve(), start),
                split="test" if number % TEST_EVERY == 0 else "train",
            )
        )
    manifest.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(manifest, rows)
    return manifest


if __name__ == "__main__":
    print(f"wrote {write_tumour_manifest(Path(sys.argv[1]), Path(sys.argv[2]))}")
