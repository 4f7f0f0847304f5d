"""Reading a .nii.gz as float32: ours to the end of the file, checksum verified; nibabel stops at the last voxel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np

from benchmarks._measure import Row, compare
from foundation.reading.nifti import read_nifti

EDGE = 192


def rows() -> Iterator[Row]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii.gz"
        stored = np.random.default_rng(0).integers(0, 1024, size=(EDGE, EDGE, EDGE), dtype=np.int16)
        nib.save(nib.Nifti1Image(stored, np.eye(4)), path)

        def theirs() -> np.ndarray:
            return nib.Nifti1Image.from_filename(path).get_fdata(dtype=np.float32)

        assert np.array_equal(read_nifti(path).voxels, theirs())
        yield compare("reading .nii.gz with the checksum verified", ours=lambda: read_nifti(path), theirs=theirs)
