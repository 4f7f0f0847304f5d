"""What strangers send is read as any other study, by a child process that may use so much and no more."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from foundation.errors import InputError
from foundation.reading.collection import study_from_path
from foundation.reading.nifti import write_volume
from foundation.reading.sandbox import Limits
from foundation.reading.stranger import study_from_stranger
from tests.conftest import nifti_bytes
from tests.foundation.reading.dicom_making import write_series


def test_nifti_files_are_the_same_study(make_series, tmp_path: Path):
    for seed, name in enumerate(("sub-1_ses-2_T1w", "sub-1_ses-2_FLAIR")):
        series = make_series((7, 6, 5), seed, orientation="LPI", oblique_deg=12.0)
        write_volume(tmp_path / "study" / f"{name}.nii.gz", series.voxels, series)
    ours, theirs = study_from_stranger(tmp_path / "study"), study_from_path(tmp_path / "study")
    assert (ours.subject, ours.session) == (theirs.subject, theirs.session) == ("sub-1", "ses-2")
    for one, two in zip(ours.series, theirs.series, strict=True):
        assert np.array_equal(one.voxels, two.voxels) and np.array_equal(one.affine, two.affine)
        assert (one.name, one.contrast, one.side_is_known) == (two.name, two.contrast, two.side_is_known)


def test_dicom_and_zips_are_read_too(tmp_path: Path):
    made = write_series(tmp_path / "visit")
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "visit"))
    for path in (tmp_path / "visit", packed):
        (series,) = study_from_stranger(path, choose=["1"]).series
        assert sorted(series.shape) == sorted(made.voxels.shape) and series.source is not None


def test_a_broken_rule_is_told_and_a_bomb_ends_a_child(tmp_path: Path):
    broken = tmp_path / "a.nii.gz"
    broken.write_bytes(gzip.compress(nifti_bytes())[:-9])
    with pytest.raises(InputError, match="complete"):
        study_from_stranger(broken)
    bomb = tmp_path / "b.nii.gz"
    big = nifti_bytes(np.zeros((1, 1, 1), np.int16), dim=[3, 450, 450, 450, 1, 1, 1, 1])
    bomb.write_bytes(gzip.compress(big[:-2] + bytes(450**3 * 2), compresslevel=1))
    with pytest.raises(InputError, match=r"more memory|memory left"):
        study_from_stranger(bomb, limits=Limits(seconds=60.0, memory_bytes=2**29))
    with pytest.raises(InputError, match="manifest"):
        study_from_stranger(tmp_path / "x.jsonl")
