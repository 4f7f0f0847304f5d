"""`larmor report-evaluate` on a few written truths: the writer is faithful, and who did not look at the study scores badly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from numpy.random import default_rng

from finetune.report import imitate, read_cases, read_truths, score
from foundation.cohort.claims import claims_of_truth, imagine_truth
from heads.report.metrics import perception, total
from serve.__main__ import main


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    for number in range(12):
        folder = tmp_path / "cohort" / f"sub-{number:05d}"
        folder.mkdir(parents=True)
        (folder / "truth.json").write_text(json.dumps(imagine_truth(default_rng(number))))
    return tmp_path / "cohort"


def test_scores_of_the_templates(cohort: Path):
    cases = read_cases(cohort, [], noise=0.1, seed=0)
    scores = score(cases)
    faith = scores["figures"]["faithfulness"]["f1"]
    assert faith["value"] == 1.0 and faith["num"] == 12
    assert scores["urgent omitted"] == 0 and sum(scores["problems"].values()) == 0
    assert scores["baselines"]["oracle"]["f1"]["value"] == 1.0
    assert (
        scores["baselines"]["shuffled images"]["f1"]["value"] < scores["baselines"]["this writer"]["f1"]["value"] - 0.2
    )
    assert scores["baselines"]["constant"]["distinct"] == pytest.approx(1 / 12)
    assert scores["numbers right"]["value"] == 1.0


def test_the_imitated_reader_errs_as_much_as_asked(cohort: Path):
    truths = read_truths(cohort)
    still = [imitate(truth, 0.0, default_rng(0)) for truth in truths]
    assert still == truths
    f1 = [
        total([perception(imitate(t, noise, default_rng([1, i])), t) for i, t in enumerate(truths)]).f1
        for noise in (0.0, 0.2, 0.6)
    ]
    assert f1[0] == 1.0 > f1[1] > f1[2]
    assert claims_of_truth(imagine_truth(default_rng(0)), subject="a").findings == truths[0].findings


def test_the_command_writes_tables_and_reports(cohort: Path, tmp_path: Path, capsys):
    assert main(["report-evaluate", str(cohort), str(tmp_path / "out"), "--noise", "0"]) == 0
    assert "faithfulness" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "reports").glob("*.txt"))) == 12
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["studies"] == 12
    (tmp_path / "none").mkdir()
    assert main(["report-evaluate", str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert main(["report-evaluate", str(cohort), str(tmp_path / "out"), "--noise", "2"]) == 2
