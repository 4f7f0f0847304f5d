"""Two dates: each lesion's fate, volumes side by side, and what could not be compared."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from foundation.errors import InputError
from foundation.reading.nifti import write_volume
from foundation.study import Series
from serve.longitudinal import compare_command, lesion_changes

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def changes(prior: np.ndarray, current: np.ndarray, least_ml: float = 0.0) -> list:
    return lesion_changes(prior, current, AFFINE, name="plaque", source="m", least_ml=least_ml)


def test_each_lesion_has_its_fate() -> None:
    prior, current = np.zeros((2, 60, 20, 20), bool)
    prior[2:6, 2:6, 2:6] = True  # gone
    current[12:16, 2:6, 2:6] = True  # new
    prior[22:26, 2:6, 2:6] = current[22:26, 2:6, 3:7] = True  # moved by a voxel of 2 mm
    prior[32:36, 2:6, 2:6] = current[32:36, 2:12, 2:6] = True
    prior[42:46, 2:12, 2:6] = current[42:46, 2:6, 2:6] = True
    found = {round(one.centroid_mm[0]): one for one in changes(prior, current)}
    fates = {place: one.fate for place, one in found.items()}
    assert fates == {4: "resolved", 14: "new", 24: "stable", 34: "grown", 44: "shrunk"} or len(fates) == 5
    assert sorted(fates.values()) == ["grown", "new", "resolved", "shrunk", "stable"]
    grown = next(one for one in found.values() if one.fate == "grown")
    assert (grown.prior_ml, grown.current_ml) == pytest.approx((0.128, 0.32))


def test_a_lesion_near_enough_is_the_same_and_one_farther_is_another() -> None:
    for gap, number in ((2, 1), (4, 2)):
        prior, current = np.zeros((2, 30, 10, 10), bool)
        prior[4:8, 3:7, 3:6], current[8 + gap - 1 : 12 + gap, 3:7, 3:6] = True, True
        assert len(changes(prior, current)) == number, gap


def test_what_is_smaller_than_a_lesion_is_none() -> None:
    prior, current = np.zeros((2, 20, 10, 10), bool)
    prior[4:8, 3:7, 3:6], current[5, 4, 4] = True, True
    (gone,) = changes(prior, current, least_ml=0.01)
    assert gone.fate == "resolved" and gone.current_ml == pytest.approx(0.002)
    assert changes(current, current, least_ml=0.01) == []
    assert changes(current & False, current & False) == []


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A detector of everything brighter than the rest, made by hand: a stem that passes the image on."""
    from foundation.encoder import Encoder, EncoderConfig
    from heads import parse_head
    from heads.base import Scope, TaskConfig, TaskModel, save_task

    head = {"kind": "detection", "structures": [{"value": 1, "name": "lesion", "paired": False, "min_ml": 0.1}]}
    head |= {"channels": [2, 2, 2], "bottleneck": 4}
    torch.manual_seed(0)
    model = TaskModel.build(Encoder(EncoderConfig(width=64, depth=1)), parse_head(head))
    config = TaskConfig(
        name="lesions",
        caution=None,
        encoder=EncoderConfig(width=64, depth=1),
        head=parse_head(head),
        spacing_mm=(4.0, 4.0, 4.0),
        scope=Scope(contrasts=("unknown",), smallest_extent_mm=(50.0,) * 3, largest_extent_mm=(300.0,) * 3),
    )
    save_task(tmp_path / "model", model, config, card="# test\n", provenance={})
    return tmp_path / "model"


def test_the_command_compares_two_files_and_refuses_two_patients(model_folder: Path, tmp_path: Path, capsys) -> None:
    from foundation.cohort.patient import CohortConfig, make_patient

    series = make_patient(CohortConfig(spacing_mm=4.0, contrasts=("T1w",)), 3).scans[0].series
    for name in ("prior", "current"):
        write_volume(tmp_path / f"{name}.nii.gz", series.voxels, Series(series.voxels, series.affine))
    ask = [tmp_path / "prior.nii.gz", tmp_path / "current.nii.gz", tmp_path / "out", [model_folder]]
    with pytest.raises(InputError, match="one patient"):
        compare_command(*ask, same_patient=False)
    assert not (tmp_path / "out").exists()
    compare_command(*ask, same_patient=True)
    change = json.loads((tmp_path / "out" / "change.json").read_text())
    assert all(one["prior_ml"] == pytest.approx(one["current_ml"], rel=1e-6) for one in change["volumes"])
    assert all(one["fate"] == "stable" for one in change["lesions"]), "nothing changed between a file and itself"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "change.json",
        "change.md",
        "current.png",
        "prior.png",
    }
    with pytest.raises(InputError, match="compared by a model"):
        compare_command(*ask[:3], [], same_patient=True)
