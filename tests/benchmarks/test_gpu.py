"""The script for a large GPU, at toy size on the CPU: it measures both sides, reports, and ends in time."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import CASES, Result, main


def test_the_report_has_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    assert main(["--toy", "--minutes", "3"]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert len(report["rows"]) == 2
    for row in report["rows"]:
        assert row["step_ms"] > 0 and row["floor_ms"] > 0 and row["ratio"] > 0 and row["monai_batch"] >= 1
    assert (tmp_path / "gpu.md").read_text().count("| toy, patch") == 2
    assert "TFLOP/s in a large product" in capsys.readouterr().out


def test_what_there_is_no_time_for_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    main(["--toy", "--minutes", "0.01"])
    assert (tmp_path / "gpu.md").read_text().count("left out: no time") == 2


def test_a_missed_target_is_said() -> None:
    result = Result(CASES[0], step_ms=400, floor_ms=166, volumes_per_s=40, monai_volumes_per_s=20, monai_batch=1)
    assert result.misses() == ["step > 300 ms", "ratio < 5.5"]
    assert "42%" in result.row() and "2.00x" in result.row()
