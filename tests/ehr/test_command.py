"""`larmor record` and `larmor cohort --record`: counts that add up, files where they were asked for, one line when it is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ehr.synthesis import make_bundle
from serve.__main__ import main
from tests.ehr.making import patient_truth


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, str]:
    """Two patients, of whom one has the study that is returned, and a line that is no JSON."""
    folder = tmp_path / "export"
    folder.mkdir()
    for number in range(2):
        bundle, truth = make_bundle(patient_truth(number))
        (folder / f"{number}.json").write_text(json.dumps(bundle))
    (folder / "bad.ndjson").write_text("{\n")
    return folder, truth["study_uid"]


def test_it_counts(source: tuple[Path, str], capsys: pytest.CaptureFixture[str]):
    assert main(["record", str(source[0])]) == 0
    fast = capsys.readouterr().out
    assert "2 patients; nothing was validated" in fast
    assert "set aside: 1\n  1 document, not JSON" in fast
    assert main(["record", str(source[0]), "--strict"]) == 0
    strict = capsys.readouterr().out
    assert "valid under: R4B" in strict
    assert fast.splitlines()[-1] == strict.splitlines()[-1]


def test_it_audits(source: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    audit, aside = tmp_path / "audit.json", tmp_path / "aside.jsonl"
    command = ["record", str(source[0]), "--study", source[1], "--audit", str(audit), "--quarantine", str(aside)]
    assert main(command) == 0
    assert "over 1 patient:" in capsys.readouterr().out
    plain = json.loads(audit.read_text())
    assert plain["num_kept"] > 10 and plain["num_dropped"] > 10
    assert plain["values_kept"]["usable"] > 5 and plain["resources_set_aside"] == {"document, not JSON": 1}
    assert json.loads(aside.read_text()) == {
        "file": "bad.ndjson", "place": "line 1", "kind": "", "reason": "not JSON",
    }  # fmt: skip
    assert main([*command, "--landmark", "follow-up=2035-01-01"]) == 0
    later = json.loads(audit.read_text())
    assert later["landmark"] == "follow-up" and later["num_kept"] > plain["num_kept"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["{source}/absent"],
        ["{source}", "--audit", "x.json"],
        ["{source}", "--landmark", "surgery=2020"],
        ["{source}", "--study", "9.9.9"],
        ["{source}", "--at", "someday"],
        ["{source}", "--at", "2020-01-01", "--landmark", "surgery"],
        ["{source}", "--zone", "Mars"],
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], source: tuple[Path, str], capsys: pytest.CaptureFixture[str]):
    assert main(["record", *(one.format(source=source[0]) for one in arguments)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("content", ["hello", "{}", '{"resourceType": "Bundle", "type": "collection"}', "[1, 2]", ""])
def test_what_is_no_record_is_refused(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, aside = tmp_path / "x.json", tmp_path / "aside.jsonl"
    source.write_text(content)
    assert main(["record", str(source), "--quarantine", str(aside)]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and not said.out


def test_records_in_no_version_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """That a cohort has records is seen where its command is tested, tests/foundation/cohort/test_writing.py."""
    assert main(["cohort", str(tmp_path / "c"), "--record", "R3"]) == 2
    assert "R5" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
