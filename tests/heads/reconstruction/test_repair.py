"""Repairing an image that is there already: where it lies stays, how strongly is said, and nothing at strength zero."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from foundation.errors import InputError
from foundation.reading.nifti import read_nifti, write_volume
from foundation.study import Series
from heads.reconstruction.network import Unrolled, UnrolledConfig
from heads.reconstruction.repair import repair, repair_command

SPACING_MM = (2.0, 2.0, 5.0)


def blob(shape: tuple[int, int, int], spacing_mm: tuple[float, ...], offset_mm: tuple[float, ...]) -> Series:
    """A smooth thing off the middle, so that a shift would show."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = offset_mm
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    at_mm = index * spacing_mm + np.asarray(offset_mm) - (8.0, -6.0, 4.0)
    return Series(np.exp(-((at_mm / 14.0) ** 2).sum(-1)).astype(np.float32), affine, name="blob")


@pytest.fixture(scope="module")
def series() -> Series:
    return blob((40, 36, 16), SPACING_MM, (-40.0, -36.0, -40.0))


@pytest.fixture(scope="module")
def network() -> Unrolled:
    torch.manual_seed(0)
    return Unrolled(UnrolledConfig(cascades=1, channels=4)).eval()


@pytest.mark.parametrize("fault", ["noise", "ghost", "motion"])
def test_it_keeps_the_grid_and_an_untrained_network_hardly_changes_it(
    series: Series, network: Unrolled, fault: str
) -> None:
    repaired = repair(series, network, fault)
    assert np.array_equal(repaired.affine, series.affine)
    assert float(np.abs(repaired.voxels - series.voxels).max()) < 0.05


def test_thick_slices_become_thin_and_lie_where_they_lay(series: Series, network: Unrolled) -> None:
    """At strength zero it is interpolation, and what averaging took is taken back: the blob itself on the new grid."""
    repaired = repair(series, network, "thick slices", 0.0)
    assert repaired.shape == (40, 36, 40)
    np.testing.assert_allclose(repaired.spacing_mm, 2.0)
    truth = blob(repaired.shape, (2.0, 2.0, 2.0), tuple(repaired.affine[:3, 3].tolist()))
    inside = np.s_[5:-5, 5:-5, 6:-6]
    assert float(np.abs(repaired.voxels - truth.voxels)[inside].max()) < 0.08
    found, wanted = (
        one.to_patient_mm(np.array(np.unravel_index(one.voxels.argmax(), one.shape))) for one in (repaired, truth)
    )
    np.testing.assert_allclose(found, wanted, atol=2.0)


def test_the_command_says_what_was_done(series: Series, network: Unrolled, tmp_path: Path, capsys) -> None:
    network.save(tmp_path / "model", card="# test\n", provenance={})
    write_volume(tmp_path / "blob.nii.gz", series.voxels, series)
    repair_command(tmp_path / "blob.nii.gz", tmp_path / "out", model=tmp_path / "model", fault="ghost", strength=0.0)
    assert "may show what is not there" in capsys.readouterr().out
    said = json.loads((tmp_path / "out" / "blob.json").read_text())
    assert said["Repaired"] == "ghost" and said["RepairStrength"] == 0.0
    np.testing.assert_allclose(read_nifti(tmp_path / "out" / "blob.nii.gz").voxels, series.voxels, atol=1e-6)
    for fault, strength in (("gost", 1.0), ("ghost", 1.5)):
        with pytest.raises(InputError, match=r"known faults|between 0 and 1"):
            repair_command(
                tmp_path / "blob.nii.gz", tmp_path / "out", model=tmp_path / "model", fault=fault, strength=strength
            )


def test_thin_slices_are_not_thick(series: Series, network: Unrolled) -> None:
    thin = replace(series, affine=np.diag([2.0, 2.0, 2.2, 1.0]))
    with pytest.raises(InputError, match=r"at least 1\.3 times"):
        repair(thin, network, "thick slices")
