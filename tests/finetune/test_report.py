"""`larmor report-evaluate` on a few written truths: the writer is faithful, and who did not look at the study scores badly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from numpy.random import default_rng

from finetune.report import by_finding, found_cases, imitate, read_cases, read_truths, score
from foundation.cohort.claims import claims_of_truth, imagine_truth
from foundation.encoder import Encoder, EncoderConfig
from foundation.preprocess import prepare_study
from foundation.reading.collection import read_manifest, read_study
from heads import parse_head
from heads._reading import find
from heads.adapters.folder import load_model
from heads.base import Scope, TaskConfig, TaskModel, save_task
from heads.report.metrics import perception, total
from heads.report.plan import is_positive
from heads.report.verifier import verify
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


@pytest.fixture
def images(make_collection, tmp_path: Path) -> Path:
    """Balls with a core, every one of which is somebody with a tumour and nothing else that a model here looks for."""
    manifest = make_collection(4)
    truth = imagine_truth(default_rng(0)) | {"lesions": []}
    truth["subject"] |= {"diagnoses": []}
    lesion = {"structure": "non-enhancing tumour", "volume_ml": 9.0, "side": "right", "lobe": "frontal"}
    for row in read_manifest(manifest).rows:
        (tmp_path / row.subject).mkdir()
        (tmp_path / row.subject / "truth.json").write_text(json.dumps(truth | {"lesions": [lesion]}))
    return tmp_path


@pytest.fixture
def model(images: Path, tmp_path: Path) -> Path:
    """Untrained: what it finds is noise, and that it is what the report says of the images is real."""
    collection = read_manifest(images / "manifest.jsonl")
    prepared = [prepare_study(read_study(row, collection.root), (4.0, 4.0, 4.0)) for row in collection.rows]
    values = {
        "kind": "segmentation",
        "structures": [{"value": 1, "name": "tumour", "paired": True}],
        "channels": [4, 4, 4],
    }
    torch.manual_seed(0)
    config = EncoderConfig(width=64, depth=1)
    head = parse_head(values)
    task = TaskConfig(
        name="core", caution=None, encoder=config, head=head, spacing_mm=(4.0, 4.0, 4.0), scope=Scope.of(prepared)
    )
    save_task(tmp_path / "model", TaskModel.build(Encoder(config), head), task, card="# test\n", provenance={})
    return tmp_path / "model"


def test_real_models_are_put_before_the_writer(images: Path, model: Path, tmp_path: Path, capsys):
    loaded = load_model(model)
    cases = found_cases(images, [], [loaded])
    collection = read_manifest(images / "manifest.jsonl")
    for case, row in zip(cases, collection.rows, strict=True):
        own = [one for one in case.claims.findings if one.origin == "image"]
        assert own == list(find([loaded], read_study(row, collection.root)).findings) and own
        assert {one.source for one in own} == {"core"} and verify(case.text, case.claims) == []
    table = by_finding(cases)
    assert table["tumour"]["there"] == table["tumour"]["looked for"] == 4
    assert table["tumour"]["found"] == sum(any(is_positive(one) for one in case.claims.findings) for case in cases)
    assert table["haemorrhage"] == {"there": 0, "found": 0, "both": 0, "looked for": 0}
    out = tmp_path / "out"
    command = ["report-evaluate", str(images), str(out), "--model", str(model)]
    assert main([*command, "--split", "test"]) == 0
    assert "| tumour | 1 |" in capsys.readouterr().out
    scores = json.loads((out / "scores.json").read_text())
    assert scores["studies"] == 1 and scores["reader"] == "core"
    assert scores["figures"]["faithfulness"]["f1"]["value"] == 1.0
    assert main([*command, "--noise", "0.1"]) == 2 and main([*command, "--split", "pretrain"]) == 2
    assert main(["report-evaluate", str(images), str(out), "--studies", "1"]) == 2


def test_the_command_writes_tables_and_reports(cohort: Path, tmp_path: Path, capsys):
    assert main(["report-evaluate", str(cohort), str(tmp_path / "out"), "--noise", "0"]) == 0
    assert "faithfulness" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "reports").glob("*.txt"))) == 12
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["studies"] == 12
    (tmp_path / "none").mkdir()
    assert main(["report-evaluate", str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert main(["report-evaluate", str(cohort), str(tmp_path / "out"), "--noise", "2"]) == 2
