"""Subgroups: each figure is that of its cases alone, whatever the column is made of."""

from dataclasses import replace

import numpy as np
import pytest

from finetune.samples import LabelledStudy
from finetune.trust.subgroups import check_columns, group_names, measure_subgroups
from foundation.errors import InputError
from foundation.preprocess import prepare_study
from foundation.reading.collection import Row, SeriesEntry
from foundation.study import Acquisition, Study


@pytest.fixture
def studies(make_series) -> list[LabelledStudy]:
    """24 people; women score higher, and so do the scans of one vendor."""
    made = []
    for i in range(24):
        series = replace(make_series((8, 8, 8), seed=i), acquisition=Acquisition(vendor="A" if i % 3 else "B"))
        targets = {
            "sex": "female" if i % 2 else "male",
            "age": 20.5 + i,
            "grade": None if i < 3 else i % 2,
            "notes": [],
        }
        row = Row(subject=f"sub-{i}", series=(SeriesEntry(path="x.nii"),), targets=targets)
        made.append(LabelledStudy(row, prepare_study(Study(row.subject, (series,)), (1.0, 1.0, 1.0)), None))
    return made


def summarise(cases) -> dict[str, float]:
    return {"dice": float(np.mean([case["dice"] for case in cases])), "other": 0.0}


def test_each_group_has_the_figure_of_its_cases(studies) -> None:
    cases = [{"dice": 0.5 + 0.3 * (i % 2) + 0.001 * i} for i in range(24)]
    report = measure_subgroups(studies, cases, summarise, None)
    assert not isinstance(report, str) and report.figure == "dice"
    assert {one.column for one in report.groups} == {"sex", "age", "vendor"}
    assert report.overall.value == pytest.approx(np.mean([case["dice"] for case in cases])) and report.overall.num == 24
    women = next(one for one in report.groups if one.value == "female")
    assert women.figure.value == pytest.approx(np.mean([case["dice"] for case in cases[1::2]]))
    assert women.minus_rest.value == pytest.approx(0.301) and (women.minus_rest.low or 0) > 0.29
    for column in ("sex", "age", "vendor"):
        assert sum(one.figure.num for one in report.groups if one.column == column) == 24
    vendor = next(one for one in report.groups if one.value == "B")
    assert vendor.figure.value == pytest.approx(np.mean([case["dice"] for case in cases[::3]]))


def test_columns_can_be_named_and_misspelt(studies) -> None:
    cases = [{"dice": 0.5}] * 24
    report = measure_subgroups(studies, cases, summarise, ["grade"])
    assert not isinstance(report, str)
    assert [(one.value, one.figure.num) for one in report.groups] == [("0", 10), ("1", 11)]
    rows = [study.row for study in studies]
    check_columns(rows, ["grade", "vendor"])
    with pytest.raises(InputError, match="vendor"):
        check_columns(rows, ["vendro"])
    assert "none of" in str(measure_subgroups(studies[1:2], cases[:1], summarise, None))


def test_numbers_become_bands_that_hold_every_case_once() -> None:
    values = [*np.random.default_rng(0).normal(50, 10, 31).tolist(), None]
    bands = group_names(values)
    assert bands[-1] is None and len(set(bands[:-1])) == 3
    counts = [bands.count(band) for band in set(bands[:-1])]
    assert sum(counts) == 31 and max(counts) - min(counts) <= 1
    for value, band in zip(values[:-1], bands[:-1]):
        low, high = map(float, str(band).split(" to "))
        assert low - 0.01 <= value <= high + 0.01
    assert group_names([1.5, 3.0, 3.0, "other", []]) == ["1.5", "3.0", "3.0", "other", None]
