"""Records as MEDS: the schema, times at which things were known, values in canonical units, and nobody's name."""

import json
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ehr.meds import BIRTH
from ehr.synthesis import make_bundle
from serve.__main__ import main
from tests.ehr.making import PATIENT, bundle, observation, patient_truth


def test_a_late_result_stands_where_it_became_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = observation("late", issued="2020-06-01T09:00:00Z")
    wrong = observation("wrong", status="entered-in-error")
    vague = observation("vague", valueQuantity={"value": 90, "unit": "furlong"})
    (tmp_path / "a.json").write_text(json.dumps(bundle(PATIENT, observation("usual"), late, wrong, vague)))
    out = tmp_path / "meds"
    assert main(["record", str(tmp_path / "a.json"), "--meds", str(out)]) == 0
    assert f"to {out}" in capsys.readouterr().out
    table = pq.read_table(out / "data" / "0.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("subject_id", "int64"), ("time", "timestamp[us]"), ("code", "string"), ("numeric_value", "float")
    ]  # fmt: skip
    rows = table.to_pylist()
    assert [(row["subject_id"], row["code"], row["time"]) for row in rows[:1]] == [(1, "SEX//female", None)]
    values = [(row["time"].isoformat()[:13], row["code"], row["numeric_value"]) for row in rows[1:]]
    glucose = [one for one in values if "glucose" in one[1]]
    assert values[0][1] == BIRTH and len(glucose) == 3
    measured = [one for one in glucose if one[2] is not None]
    assert [when for when, _, _ in measured] == ["2020-05-01T09", "2020-06-01T09"]
    assert len({code for _, code, _ in measured}) == 1 and measured[0][1].count("//") == 1
    assert main(["record", str(tmp_path / "a.json"), "--meds", str(out)]) == 2


def test_patients_are_numbers_in_order_and_their_rows_are_sorted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(2):
        (tmp_path / "in" / f"{number}.json").write_text(json.dumps(make_bundle(patient_truth(number))[0]))
    assert main(["record", str(tmp_path / "in"), "--meds", str(tmp_path / "meds")]) == 0
    rows = pq.read_table(tmp_path / "meds" / "data" / "0.parquet").to_pylist()
    assert {row["subject_id"] for row in rows} == {1, 2} and len(rows) > 40
    order = [(row["subject_id"], row["time"] is not None, row["time"]) for row in rows]
    assert all(a[:2] < b[:2] or (a[:2] == b[:2] and (not a[1] or a[2] <= b[2])) for a, b in pairwise(order))
    codes = pq.read_table(tmp_path / "meds" / "metadata" / "codes.parquet")["code"].to_pylist()
    assert codes == sorted({row["code"] for row in rows}) and BIRTH in codes
    assert json.loads((tmp_path / "meds" / "metadata" / "dataset.json").read_text())["meds_version"] == "0.4.0"
