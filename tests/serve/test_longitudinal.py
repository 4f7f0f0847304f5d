"""Two dates: each lesion's fate, volumes side by side, and what could not be compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundation.errors import InputError
from foundation.findings import Finding, Measurement, Reading, SeriesSummary
from foundation.reading.nifti import write_volume
from foundation.study import Series, Study
from heads.report import Draft
from heads.report.verifier import verify
from heads.report.writing import write_report
from serve.longitudinal import Change, Comparison, LesionChange, compare_command, lesion_changes, with_prior
from serve.pipeline import StudyReading
from tests.heads.report.making import Reader

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


def lesion(name: str, side: Any, ml: float) -> Finding:
    volume = Measurement(name="volume", value=ml, unit="ml", method="test")
    presence = "present" if ml else "absent"
    return Finding(
        id=f"m.{name}.{side}", name=name, anatomy="brain", side=side, presence=presence, abnormal=name == "tumour",
        measurements=(volume,), source="m",
    )  # fmt: skip


def reading_of(make_series, session: str, *findings: Finding) -> StudyReading:
    series = make_series(name="t1")
    study = Study("a", (series,), session)
    reading = Reading(subject="a", session=session, series=(SeriesSummary.of(series),), findings=findings)
    return StudyReading(study, reading, Draft(()), {})


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (0, 2, "new"), (2, 0, "resolved"), (2, 3.1, "grown"), (3.1, 2, "shrunk"), (2, 2.2, "stable"), (2, 2.7, None),
        (0, 0, None),
    ],
)  # fmt: skip
def test_a_prior_brings_a_comparison_and_its_words_and_without_one_there_are_none(
    make_series, before: float, after: float, change: str | None
) -> None:
    prior = reading_of(make_series, "2019", lesion("tumour", "right", before), lesion("hippocampus", "left", 3))
    current = reading_of(make_series, "2021", lesion("tumour", "right", after), lesion("hippocampus", "left", 2))
    counted = LesionChange(name="tumour", source="m", fate="new", prior_ml=0, current_ml=1, centroid_mm=(0.0, 0.0, 0.0))
    what = Change(
        subject="a", prior_session="2019", current_session="2021", volumes=(), lesions=(counted,), not_compared=()
    )
    result = with_prior(Comparison(prior, current, what, current.study.reference))
    tumour, hippocampus = result.reading.findings
    assert (tumour.change, hippocampus.change) == (change, None) and hippocampus.measured("prior volume") is None
    assert tumour.measured("prior volume") == before
    text = result.draft.text()
    assert "COMPARISON\nCompared with the study “2019”. Tumour, lesion by lesion: 1 new." in text
    words = {"new": "new since", "resolved": "Not found any more: right tumour", "grown": "larger than in",
             "shrunk": "smaller than in", "stable": "unchanged from"}  # fmt: skip
    assert {name for name, said in words.items() if said in text} == ({change} - {None})
    for writers in ((), (Reader(),)):
        assert verify(with_prior(Comparison(prior, current, what, current.study.reference), writers).draft.text(),
                      result.reading) == []  # fmt: skip
    alone = write_report(current.reading).text()
    assert "COMPARISON" not in alone and not any(said in alone for said in words.values())


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
        "reading",
    }
    reading = Reading.load(tmp_path / "out" / "reading" / "reading.json")
    assert reading.prior is not None and reading.prior.name == "prior"
    assert {one.change for one in reading.findings if one.is_abnormal} == {"stable"}
    report = (tmp_path / "out" / "reading" / "report.md").read_text()
    assert "## Comparison" in report and "unchanged from the prior study" in report
    with pytest.raises(InputError, match="compared by a model"):
        compare_command(*ask[:3], [], same_patient=True)
