"""A small part of the 60,000 damaged files that `python -m benchmarks.mutate_files` reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.mutate_files import KINDS, Tally, main, read_cases, run, table

CASES = {"nifti": 600, "dicom": 60, "zip": 20, "hdf5": 100, "array": 100, "model": 60}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_damaged_is_read_or_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "whole").mkdir()
    KINDS[kind].sources(tmp_path / "whole")
    kept = tmp_path / "kept.jsonl"
    tally = run(kind, tmp_path / "whole", CASES[kind], kept=kept)
    assert tally.cases == CASES[kind] and not tally.other, tally
    assert tally.read and tally.refused > CASES[kind] / 20, "both happen"
    assert run(kind, tmp_path / "gone", CASES[kind], kept=kept) == tally, "what is kept is not done again"


def test_a_fault_is_told_with_its_place_and_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> object:
        raise ZeroDivisionError("Doe^Jane")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("foundation.reading.nifti.read_nifti", broken)
    (tmp_path / "whole").mkdir()
    KINDS["nifti"].sources(tmp_path / "whole")
    read_cases("nifti", str(tmp_path / "whole"), 0, 3, 2)
    lines = [json.loads(line) for line in (tmp_path / "done.jsonl").read_text().splitlines()]
    place = f"ZeroDivisionError in test_mutate_files.py:{broken.__code__.co_firstlineno + 1}"
    assert [line["became"] for line in lines] == [place, place]
    assert main(["--only", "nifti:3"]) == 1
    assert json.loads(capsys.readouterr().out)["became"] == place
    tally = Tally(read=3, refused=4, slowest_s=6.0)
    assert not tally.holds and table({"nifti": tally}).splitlines()[1].split()[:5] == ["nifti", "7", "4", "3", "0"]
