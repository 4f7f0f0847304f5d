"""Tables hold every number once, and nothing in them is a formula; the BIDS derivative has its names and values."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from foundation.findings import Finding, Measurement, ModelUsed, Piece, Reading, SeriesSummary, Structure
from foundation.reading.nifti import read_labels
from foundation.study import Series, Study
from heads.report.templates import draft
from serve.pipeline import Mask, StudyReading
from serve.tables import write_bids, write_lesions, write_measurements

NUMBERS = tuple(
    Measurement(name=name, value=value, unit="ml", method="count")
    for name, value in (("volume", 2.5), ("largest", -1.0))
)


def reading(series: Series) -> Reading:
    piece = Piece(number=1, volume_ml=0.12345, centroid_mm=(1.04, -2.0, 3.0), slice_index=(1, 2, 3))
    findings = (
        Finding(id="m.a", name="=cmd()", anatomy="brain", side="left", presence="present", probability=0.5, measurements=NUMBERS,
                pieces=(piece,), source="m"),
        Finding(id="m.b", name="b", anatomy="brain", side="right", presence="not_assessed", source="m"),
    )  # fmt: skip
    models = (ModelUsed(name="m", weights_sha256="0" * 64),)
    return Reading(subject="patient-1", series=(SeriesSummary.of(series),), findings=findings, models=models)


def rows(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def test_measurements_and_lesions(make_series: Callable[..., Series], tmp_path: Path) -> None:
    one = reading(make_series())
    write_measurements(one, tmp_path / "m.csv")
    first, second, third = rows(tmp_path / "m.csv")
    assert first["finding"] == "'=cmd()" and float(first["value"]) == 2.5 and first["probability"] == "0.5"
    assert second["measurement"] == "largest" and float(second["value"]) == -1 and third["value"] == ""
    write_lesions(one, tmp_path / "l.csv")
    assert rows(tmp_path / "l.csv")[0] | {"finding": ""} == {
        "finding": "", "side": "left", "source": "m", "number": "1", "volume_ml": "0.1235", "right_mm": "1.0",
        "anterior_mm": "-2.0", "superior_mm": "3.0",
    }  # fmt: skip


def test_a_bids_derivative(make_series: Callable[..., Series], tmp_path: Path) -> None:
    series = make_series(spacing_mm=(10.0, 10.0, 10.0))
    labels = np.zeros(series.shape, np.int16)
    labels[:2, 0, 0] = 7
    mask = Mask(
        labels, (Structure(value=7, name="thing", paired=False), Structure(value=9, name="other", paired=False))
    )
    one = reading(series)
    result = StudyReading(Study("patient-1", (series,), "b 2"), one, draft(one), {"masks/my-model.nii.gz": mask})
    write_bids(result, tmp_path / "bids")
    assert json.loads((tmp_path / "bids" / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    place = tmp_path / "bids" / "sub-patient1" / "ses-b2" / "anat"
    stem = "sub-patient1_ses-b2_desc-mymodel"
    np.testing.assert_array_equal(read_labels(place / f"{stem}_dseg.nii.gz", series), labels)
    assert [row["name"] for row in rows(place / f"{stem}_dseg.tsv", "\t")] == ["thing", "other"]
    assert [float(row["volume_ml"]) for row in rows(place / f"{stem}_morph.tsv", "\t")] == [2.0, 0.0]
