"""Nothing that a model says may depend on how a file is written; and where it does, it is counted."""

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.samples import LabelledStudy
from finetune.trust.changes import benign_changes, lossless_changes, resave, same_input, seed_of
from finetune.trust.corruption import measure_corruption, spoil
from finetune.trust.failures import has_failed, measure_failures
from finetune.trust.ledger import Ledger
from foundation.encoder import Encoder, EncoderConfig
from foundation.physics.artefacts import ARTEFACTS, SEVERITIES
from foundation.preprocess import PreparedStudy, prepare_study, to_closest_ras
from foundation.reading.collection import read_manifest, read_mask, read_study
from foundation.study import Study
from heads import parse_head
from heads.base import TaskModel

SPACING = (4.0, 4.0, 4.0)
HEADS = {
    "segmentation": {
        "kind": "segmentation",
        "structures": [{"value": 1, "name": "core", "paired": False}],
        "channels": [4, 8, 8],
        "bottleneck": 16,
    },
    "classification": {"kind": "classification", "target": "large", "classes": ["small", "large"]},
}


class Silent(TaskModel):
    """Must not be asked."""

    def output_of(self, prepared: PreparedStudy) -> torch.Tensor:
        raise AssertionError("this was measured before")


def make(kind: str, model: type[TaskModel] = TaskModel) -> TaskModel:
    torch.manual_seed(0)
    return model.build(Encoder(EncoderConfig(width=64, depth=1)), parse_head(HEADS[kind])).eval()


@pytest.fixture
def studies(make_collection) -> list[LabelledStudy]:
    collection = read_manifest(make_collection(3))
    labelled = []
    for row in collection.rows:
        study = read_study(row, collection.root)
        labelled.append(LabelledStudy(row, prepare_study(study, SPACING), read_mask(row, study, collection.root)))
    return labelled


def test_every_file_is_the_same_head_and_no_two_orders_are_alike(make_series, tmp_path: Path) -> None:
    """Oblique, with steps and an origin that float32 cannot hold, and two series."""
    series = make_series((20, 24, 28), orientation="LPI", spacing_mm=(1.1, 0.7, 2.3), oblique_deg=9)
    other = make_series((24, 20, 26), seed=1, orientation="PSR", spacing_mm=(1.3, 1.7, 0.9), oblique_deg=4)
    study = Study("one", (series, other))
    prepared = prepare_study(study, (2.0, 2.0, 2.0))
    orientations = set()
    for how in lossless_changes():
        again = resave(study, how, tmp_path)
        if how.dtype == "int16":
            assert again is None, "these voxels are no whole numbers"
            continue
        assert again is not None
        orientations.add(again.reference.orientation)
        turned = to_closest_ras(again.reference)
        assert np.array_equal(turned.voxels, to_closest_ras(series).voxels)
        assert np.allclose(turned.affine, to_closest_ras(series).affine, atol=1e-4)
        if how.sform:  # a quaternion rounds the axes themselves
            assert same_input(prepared, prepare_study(again, (2.0, 2.0, 2.0)))
    assert len(orientations) == 48


def test_whole_numbers_are_stored_as_such(make_series, tmp_path: Path) -> None:
    series = make_series((8, 8, 8))
    whole = Study("one", (series.with_voxels(np.rint(series.voxels)),))
    how = next(one for one in lossless_changes() if one.dtype == "int16")
    again = resave(whole, how, tmp_path)
    assert again is not None and np.array_equal(again.reference.voxels, whole.reference.voxels)


@pytest.mark.parametrize("kind", HEADS)
def test_lossless_changes_change_nothing(kind: str, studies, tmp_path: Path) -> None:
    model = make(kind)
    report = measure_failures(model, SPACING, studies[2:], Ledger(tmp_path / "failures.jsonl", {}))
    assert not isinstance(report, str)
    assert {one.family: one.answers.num for one in report.lossless}["48 axis orders"] == 48
    assert all(one.answers.value == 0 and one.scores == 0 for one in report.lossless)
    assert len(report.benign) == len(benign_changes()) and all(one.failed.num == 1 for one in report.benign)
    assert (tmp_path / "failures.jsonl").read_text().count("\n") == 1 + len(lossless_changes()) + len(benign_changes())
    again = measure_failures(make(kind, Silent), SPACING, studies[2:], Ledger(tmp_path / "failures.jsonl", {}))
    assert again == report


def test_a_map_that_is_not_turned_back_is_found_out(studies, tmp_path: Path) -> None:
    """Wrong is what runs backwards along the file's first axis, wherever that points: right for 16 of 48 orders."""
    first, model = studies[0], make("segmentation")
    assert first.prepared.study.reference.orientation == "RAS"
    labels_of = model.head.labels_of
    model.head.labels_of = lambda output, prepared: labels_of(output, prepared)[::-1]
    report = measure_failures(model, SPACING, [first], Ledger(tmp_path / "failures.jsonl", {}))
    assert not isinstance(report, str)
    answers = {one.family: one.answers.value for one in report.lossless}
    assert answers == {"48 axis orders": pytest.approx(32 / 48), "file formats": 0, "number types": 0}


def test_what_counts_as_a_failure() -> None:
    assert not has_failed({"change": -0.19, "other class": 0.0})
    assert has_failed({"change": -0.21, "other class": 0.0})
    assert has_failed({"change": 0.0, "other class": 1.0})
    assert has_failed({"change": None, "other class": None})


@pytest.mark.parametrize("name", benign_changes())
def test_benign_changes_keep_the_truth_where_it_is(name: str, studies) -> None:
    """The core is dark on T1w and bright on T2w before and after, and keeps its volume."""
    for study in studies:
        changed = benign_changes()[name](study, SPACING, np.random.default_rng(0))
        reference = changed.prepared.study.reference
        assert changed.labels is not None and changed.labels.shape == reference.shape
        volume = changed.labels.sum() * reference.voxel_volume_ml
        assert volume == pytest.approx(study.labels.sum() * study.prepared.study.reference.voxel_volume_ml, rel=0.35)
        around = (reference.voxels > 60) & (changed.labels == 0)
        assert reference.voxels[changed.labels > 0].mean() < reference.voxels[around].mean() - 20
        same = np.array_equal(changed.prepared.voxels, study.prepared.voxels)
        assert not same, "something must have changed"


def test_artefacts_spoil_more_and_more_and_can_be_repeated(studies, tmp_path: Path) -> None:
    study = studies[1]
    for kind in ARTEFACTS:
        apart = [
            np.abs(
                spoil(study, SPACING, kind, severity, 7).prepared.study.reference.voxels
                - study.prepared.study.reference.voxels
            ).mean()
            for severity in (1, 5)
        ]
        assert 0 < apart[0] < apart[1], kind
    first, again = (spoil(study, SPACING, "motion", 3, seed_of(study, 0)) for _ in range(2))
    assert np.array_equal(first.prepared.voxels, again.prepared.voxels) and first.labels is study.labels


def test_curves_begin_at_the_unchanged_score(studies, tmp_path: Path) -> None:
    model = make("segmentation")
    report = measure_corruption(model, SPACING, studies[:1], Ledger(tmp_path / "corruption.jsonl", {}))
    assert not isinstance(report, str) and report.severities == (0, *SEVERITIES)
    scores = [
        model.head.score_case(model.output_of(one.prepared), one.prepared, one.labels, one.targets)["dice"]
        for one in studies[:1]
    ]
    assert [curve.artefact for curve in report.curves] == list(ARTEFACTS)
    for curve in report.curves:
        assert curve.scores[0].value == pytest.approx(np.mean(scores))
        assert len(curve.scores) == 6 and all(one.num == 1 for one in curve.scores)
