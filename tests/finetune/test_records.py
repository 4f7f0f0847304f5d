"""Records through a whole fine-tuning run: the vocabulary comes from the training patients and lives in the model's folder."""

import json
from pathlib import Path

import pytest

from ehr.synthesis import make_bundle
from finetune.config import FinetuneConfig
from finetune.run import finetune
from finetune.samples import read_labelled
from foundation.config import load_config, parse_config
from foundation.reading.collection import read_manifest, write_manifest
from heads.base import load_task
from serve.__main__ import main
from tests.ehr.making import patient_truth


@pytest.fixture
def manifest(make_collection) -> Path:
    """Phantoms with records and outcomes of synthetic patients; the last has no record."""
    path = make_collection(9)
    rows = []
    for number, row in enumerate(read_manifest(path).rows):
        bundle, truth = make_bundle(patient_truth(number), version="R5" if number % 2 else "R4")
        (path.parent / f"{number}.json").write_text(json.dumps(bundle))
        known = {"ehr": f"{number}.json", "study_uid": truth["study_uid"]} if number < 8 else {}
        targets = row.targets | {"time_days": 100.0 + 50 * number, "is_observed": int(number % 3 > 0)}
        rows.append(row.model_copy(update={**known, "targets": targets}))
    write_manifest(path, rows)
    return path


@pytest.mark.parametrize("kind", ["prognosis", "classification"])
def test_a_run_with_records_ends_in_a_folder_that_reads_them(manifest: Path, tmp_path: Path, kind: str, capsys) -> None:
    head = {
        "prognosis": {"members": 2, "num_bins": 4, "horizons_days": [150, 250, 3000]},
        "classification": {"target": "large", "classes": ["small", "large"]},
    }[kind]
    values = {
        "name": "small",
        "folder": str(tmp_path / "run"),
        "recipe": "scratch",
        "head": {"kind": kind, "record": {"min_patients": 2}, **head},
        "data": {"manifest": str(manifest), "spacing_mm": [4.0, 4.0, 4.0]},
        "training": {"steps": 2, "batch_size": 3, "warmup_steps": 1, "ema_decay": 0.9},
    }
    config = parse_config(FinetuneConfig, values)
    fitted = finetune(config)
    assert fitted.model_folder is not None
    assert load_config(FinetuneConfig, tmp_path / "run" / "config.yaml") == config  # as it was asked for
    model, task, _ = load_task(fitted.model_folder)
    codes = task.head.record.codes  # type: ignore[attr-defined]
    assert len(codes) > 20 and any(code.startswith("ANALYTE|") for code in codes)
    collection = read_manifest(manifest)
    with_record, without = (
        read_labelled(collection, [collection.rows[number]], model.head, (4.0, 4.0, 4.0), label="read")[0]
        for number in (2, 8)
    )
    assert without.record_for(model.head) is None
    record = with_record.record_for(model.head)
    assert record is not None and len(record) > 5 and record.code.max() < len(codes)
    heard, alone = (model.output_of(with_record.prepared, one) for one in (record, None))
    assert not heard.equal(alone)

    # The same through the command, where the record's only MR study is the one that is read.
    row = collection.rows[2]
    out = tmp_path / "out"
    arguments = ["read", f"{manifest}#{row.subject}", str(out), "--model", str(fitted.model_folder)]
    assert main([*arguments, "--ehr", str(collection.root / str(row.ehr)), "--study-uid", str(row.study_uid)]) == 0
    reading = json.loads((out / "reading.json").read_text())
    (said,) = [one for one in reading["findings"] if one["origin"] != "record"]
    if kind == "prognosis":
        risk = next(one["value"] for one in said["measurements"] if one["name"] == "risk within 150 days")
        assert risk == pytest.approx(1 - float(model.head.survival(heard, [150.0])[0].mean()), abs=1e-4)  # type: ignore[operator]
        assert said["origin"] == "outlook" and "Outlook" in (out / "report.md").read_text()
    else:
        assert said["probability"] == pytest.approx(float(heard.softmax(dim=1)[0, 1]), abs=1e-4)
    capsys.readouterr()
    assert main([*arguments, "--at", "2020-01-01"]) == 2
    assert "--ehr" in capsys.readouterr().err


def test_what_a_record_adds_to_a_task_is_a_paired_difference(manifest: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "task.yaml").write_text(
        f"""
name: small
folder: {tmp_path / "fusion"}
recipe: scratch
head: {{kind: classification, target: large, classes: [small, large]}}
data: {{manifest: {manifest}, spacing_mm: [8.0, 8.0, 8.0]}}
training: {{steps: 2, batch_size: 3, warmup_steps: 1, ema_decay: 0.9}}
"""
    )
    command = ["fewshot", str(tmp_path / "task.yaml"), "--labels", "all", "--seeds", "1", "--record"]
    assert main(command) == 2
    assert "head.record" in capsys.readouterr().err
    asked = ["--set", "head.record={min_patients: 2}"]
    assert main([*command, "--rows", "scratch,lora", *asked]) == 2
    assert "one recipe" in capsys.readouterr().err
    assert main([*command, *asked]) == 0
    out = capsys.readouterr().out
    assert "| from scratch, with the record minus from scratch, images alone |" in out
    (content,) = json.loads((tmp_path / "fusion" / "fewshot.json").read_text()).values()
    alone, heard = content["scores"]
    assert heard["difference"] is not None and alone["difference"] is None
    for score, reads in ((alone, False), (heard, True)):
        model, task, _ = load_task(Path(score["model_folder"]))
        assert (model.head.reads_record is not None) is reads and (
            getattr(task.head, "record", None) is not None
        ) is reads
