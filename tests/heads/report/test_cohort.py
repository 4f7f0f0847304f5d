"""A cohort's reports: what the verifier reads in them is the truth, every style occurs, and the same seed writes the same text."""

from __future__ import annotations

import json
from pathlib import Path

from numpy.random import default_rng

from foundation.cohort.claims import imagine_truth
from foundation.findings import Reading
from foundation.reading.collection import Row, SeriesEntry, write_manifest
from heads.report.cohort import write_reports
from heads.report.plan import Style
from heads.report.verifier import verify


def cohort(folder: Path, number: int) -> Path:
    rows = []
    for index in range(number):
        name = f"sub-{index:05d}"
        (folder / name).mkdir(parents=True)
        (folder / name / "truth.json").write_text(json.dumps(imagine_truth(default_rng(index))))
        (folder / name / "T1w.nii.gz").touch()  # is not opened
        ehr = f"{name}/truth.json" if index % 2 else None  # nor is a record
        rows.append(Row(subject=name, series=(SeriesEntry(path=f"{name}/T1w.nii.gz", contrast="T1w"),), ehr=ehr))
    write_manifest(folder / "manifest.jsonl", rows)
    return folder


def written(folder: Path) -> list[str]:
    return [file.read_text() for file in sorted(folder.glob("*/report.txt"))]


def test_every_text_is_its_truth_and_says_how_it_was_made(tmp_path: Path):
    write_reports(cohort(tmp_path, 25), seed=3)
    styles = []
    for folder in sorted(tmp_path.glob("sub-*")):
        text = (folder / "report.txt").read_text()
        about = json.loads((folder / "report-truth.json").read_text())
        style = Style(**about["style"])
        reading = Reading.model_validate(about["reading"])
        assert verify(text, reading, style) == [], folder.name
        assert style.listed == ("\n- " in text)
        assert all(one["text"] in text for one in about["sentences"])
        ids = {one.id for one in reading.findings}
        assert {name for one in about["sentences"] for name in one["findings"]} <= ids
        if not int(folder.name[-1]) % 2:
            assert "istory" not in text, "without a record"
        styles.append(style)
    assert len(set(styles)) >= 6, "of eight"
    assert len(set(written(tmp_path))) == 25 and any("istory" in text for text in written(tmp_path))


def test_the_same_seed_writes_the_same_texts_and_another_others(tmp_path: Path):
    one, other = cohort(tmp_path / "a", 4), cohort(tmp_path / "b", 6)
    write_reports(one)
    write_reports(other)
    before = written(one)
    assert before == written(other)[:4], "a patient's report does not depend on who else is there"
    write_reports(one)
    assert written(one) == before
    write_reports(one, seed=1)
    assert all(text not in before for text in written(one))
