"""ICC against Shrout and Fleiss's own example and an analysis of variance by loops; scanners of one head."""

from pathlib import Path

import numpy as np
import pytest

from finetune.samples import LabelledStudy
from finetune.trust.agreement import SCANNERS, Simulated, between_scanners, feature_icc, icc, measure_agreement
from finetune.trust.ledger import Ledger
from foundation.preprocess import prepare_study
from foundation.reading.collection import Row, SeriesEntry
from foundation.study import Study
from heads.base import TaskModel

# Shrout and Fleiss 1979, table 2: six targets, four judges.
RATINGS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float)


def naive_icc(ratings: np.ndarray) -> float:
    n, k = ratings.shape
    grand = sum(ratings[i, j] for i in range(n) for j in range(k)) / (n * k)
    rows = [sum(ratings[i]) / k for i in range(n)]
    columns = [sum(ratings[:, j]) / n for j in range(k)]
    ms_rows = k * sum((row - grand) ** 2 for row in rows) / (n - 1)
    ms_columns = n * sum((column - grand) ** 2 for column in columns) / (k - 1)
    residual = sum((ratings[i, j] - rows[i] - columns[j] + grand) ** 2 for i in range(n) for j in range(k))
    ms_error = residual / ((n - 1) * (k - 1))
    return (ms_rows - ms_error) / (ms_rows + (k - 1) * ms_error + k * (ms_columns - ms_error) / n)


def test_icc_is_that_of_shrout_and_fleiss() -> None:
    assert round(icc(RATINGS), 2) == 0.29
    drawn = np.random.default_rng(0).normal(size=(9, 3)) + np.arange(9)[:, None]
    for ratings in (RATINGS, drawn):
        assert icc(ratings) == pytest.approx(naive_icc(ratings))
    assert icc(np.repeat(RATINGS[:, :1], 3, axis=1)) == pytest.approx(1.0)
    assert np.isnan(icc(np.ones((4, 2))))


def test_features_agree_when_scanners_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    people = rng.normal(size=(8, 1, 20))
    assert feature_icc(np.repeat(people, 2, axis=1)) == pytest.approx(1.0)
    noise = rng.normal(size=(8, 2, 20))
    assert feature_icc(people + 0.3 * noise) > 0.8 > 0.4 > feature_icc(people + 3 * noise)
    scanners = np.array([0.0, 10.0])[None, :, None]
    assert between_scanners(people + scanners) > 0.9 and between_scanners(np.repeat(people, 2, axis=1)) < 1e-9
    # The components are those of a naive decomposition of the covariance.
    features = people + 0.3 * noise
    flat = (features - features.mean(axis=(0, 1))).reshape(16, 20)
    values, vectors = np.linalg.eigh(flat.T @ flat)
    values, vectors = values[::-1][:10], vectors[:, ::-1][:, :10]
    naive = [naive_icc((flat @ vectors[:, i]).reshape(8, 2)) for i in range(10)]
    assert feature_icc(features) == pytest.approx(np.average(naive, weights=values))


def test_two_sessions_of_a_subject_are_a_pair(model: TaskModel, make_series, tmp_path: Path) -> None:
    studies = []
    for subject in range(6):
        series = make_series((16, 16, 16), seed=subject, spacing_mm=(4.0, 4.0, 4.0))
        for session in ("a", "b"):
            row = Row(subject=f"sub-{subject}", session=session, series=(SeriesEntry(path="x.nii"),))
            studies.append(LabelledStudy(row, prepare_study(Study(row.subject, (series,)), (4.0, 4.0, 4.0)), None))
    report = measure_agreement(
        model, (4.0, 4.0, 4.0), studies, ("T1w",), Ledger(tmp_path / "a.jsonl", {}), num_subjects=2
    )
    assert not isinstance(report, str) and report.subjects == "6 subjects with two sessions"
    (found,) = report.among.values()
    assert [one.name for one in found] == ["volume of core", "features"]
    assert found[1].icc.value == pytest.approx(1.0) and report.variance_by_scanner == pytest.approx(0.0, abs=1e-9)


def test_simulated_scanners_see_one_head_differently(model: TaskModel, tmp_path: Path) -> None:
    head = Simulated((4.0, 4.0, 4.0), ("T1w",), 0)
    scans = [head.scan(one) for one in SCANNERS]
    for scanner, scan in zip(SCANNERS, scans, strict=True):
        assert scan.study.reference.acquisition.field_strength_t == scanner.field_t
        assert scan.study.reference.acquisition.vendor == scanner.vendor
    images = {scan.voxels.tobytes() for scan in scans}
    assert len(images) == len(SCANNERS) and np.array_equal(scans[0].voxels, head.scan(SCANNERS[0]).voxels)
    ledger = Ledger(tmp_path / "agreement.jsonl", {})
    report = measure_agreement(model, (4.0, 4.0, 4.0), [], ("T1w",), ledger, num_subjects=2)
    assert not isinstance(report, str) and len(report.among) == 2
    assert (tmp_path / "agreement.jsonl").read_text().count("\n") == 1 + 2 * len(SCANNERS)
    assert "acquires none" in str(measure_agreement(model, (4.0,) * 3, [], ("unknown",), ledger, num_subjects=2))
