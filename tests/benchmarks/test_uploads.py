"""A tenth of the hundred studies that `python -m benchmarks.uploads` sends at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.uploads import Sent, _differences, make_model, make_study, send_all
from serve.intake import study_of
from serve.pipeline import load_models, read_study


@pytest.mark.timeout(600)
def test_ten_studies_at_once_are_neither_lost_nor_mixed(tmp_path: Path) -> None:
    studies = [make_study(tmp_path / f"{number}", number) for number in range(10)]
    outcome = send_all(studies, ("anna", "bert", "carl"), make_model(tmp_path / "model"), tmp_path)
    assert not outcome.lost and not outcome.mixed, outcome.lines()
    assert len(outcome.waits_s) == 10 and outcome.server_mib > 0


def test_a_mixed_study_would_be_found(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    one, two = (make_study(tmp_path / f"{number}", number) for number in (1, 2))
    reading = read_study(study_of(one, subject="anna-001"), load_models([model])).reading
    assert any(item.measurements for item in reading.findings), "there is something to compare"
    right = Sent("anna", "anna-001", one, 1.0, "case", reading)
    assert _differences([right, replace(right, files=two)], model) == ["", "series, findings"]
