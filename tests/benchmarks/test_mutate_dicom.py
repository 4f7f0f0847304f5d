"""A small part of the 10,000 damaged studies that `python -m benchmarks.mutate_dicom` reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.mutate_dicom import run, small_series
from tests.foundation.reading.dicom_making import write_series


@pytest.mark.parametrize(("kind", "cases"), [("file", 100), ("zip", 20)])
def test_damaged_studies_are_read_or_refused(tmp_path: Path, kind: str, cases: int) -> None:
    write_series(tmp_path / "in")
    (tmp_path / "whole").mkdir()
    small_series(tmp_path / "in", tmp_path / "whole")
    result = run(tmp_path / "whole", cases, kind)
    assert result["cases"] == result.get("read", 0) + result["refused"] and result["refused"] > cases / 20, result
    assert result["peak_mib"] < 2048
