"""From fine-tuning to a trust report: what is calibrated says so, every part answers, and a stopped evaluation continues."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from finetune.config import FinetuneConfig
from finetune.evaluate import evaluate_to_folder
from finetune.run import finetune
from finetune.trust.__main__ import main
from finetune.trust.fit import calibrating_rows
from finetune.trust.report import PARTS, TrustConfig, TrustReport, choose
from foundation.checkpoint import read_about
from foundation.config import parse_config
from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError
from foundation.reading.collection import Row, read_manifest, write_manifest
from heads.base import load_task

SLOW = ("failures", "corruption", "agreement")
HEADS = {
    "segmentation": {
        "structures": [{"value": 1, "name": "core", "paired": False}],
        "channels": [4, 8, 8],
        "bottleneck": 16,
    },
    "classification": {"target": "large", "classes": ["small", "large"]},
}


@pytest.fixture(autouse=True)
def encoder(tmp_path: Path) -> None:
    """What every run here starts from."""
    torch.manual_seed(0)
    Encoder(EncoderConfig(width=64, depth=1)).save(tmp_path / "encoder", card="# test\n", provenance={})


def with_splits(manifest: Path, splits: str) -> Path:
    """The collection with its subjects, in order, in the splits t(rain), v(alidation) and e(valuation)."""
    names = {"t": "train", "v": "validation", "e": "test"}
    rows = read_manifest(manifest).rows
    changed = [Row.model_validate(row.model_dump() | {"split": names[s]}) for row, s in zip(rows, splits, strict=True)]
    write_manifest(manifest, changed)
    return manifest


def with_two_sessions(manifest: Path, path: Path) -> Path:
    """The test subjects, each seen twice: the same images stand for both sessions."""
    rows = [
        row.model_copy(update={"session": session}) for row in read_manifest(manifest).split("test") for session in "ab"
    ]
    write_manifest(path, rows)
    return path


def config_of(manifest: Path, folder: Path, kind: str, **data: object) -> FinetuneConfig:
    values = {
        "name": f"test-{kind}",
        "folder": str(folder),
        "recipe": "full",
        "encoder": str(folder.parent / "encoder"),
        "head": {"kind": kind, **HEADS[kind]},
        "data": {"manifest": str(manifest), "spacing_mm": [4.0, 4.0, 4.0], **data},
        "training": {"steps": 2, "batch_size": 2, "warmup_steps": 1, "ema_decay": None},
    }
    return parse_config(FinetuneConfig, values)


def trust_of(folder: Path) -> TrustReport:
    return TrustReport.model_validate(json.loads((folder / "metrics.json").read_text())["trust"])


@pytest.mark.parametrize("kind", HEADS)
def test_every_part_answers(kind: str, make_collection, tmp_path: Path, capsys) -> None:
    """Of a classification all of them; of a segmentation those that take no time."""
    manifest = with_splits(make_collection(17, num_series=1), "tt" + "v" * 10 + "e" * 5)
    parts = PARTS if kind == "classification" else tuple(part for part in PARTS if part not in (*SLOW, "explanations"))
    fitted = finetune(config_of(manifest, tmp_path / "run", kind))
    assert fitted.model_folder is not None and fitted.evaluation is not None
    card = (fitted.model_folder / "card.md").read_text()
    assert "Probabilities are calibrated: temperature" in card and "10 validation studies" in card
    _, config, _ = load_task(fitted.model_folder)
    assert config.calibration is not None and config.calibration == fitted.model.head.calibration
    assert set(config.calibration.errors) == ({"class"} if kind == "classification" else {"core"})

    twice = with_two_sessions(manifest, tmp_path / "twice.jsonl")
    options = {"cases": 1, "by": ("large",), "ood": (manifest,), "passes": 1, "maps": True}
    evaluate_to_folder(f"test-{kind}", twice, tmp_path / "out", fitted.model_folder, "test", ",".join(parts), **options)
    printed = capsys.readouterr().out
    report = trust_of(tmp_path / "out")
    assert not report.not_available, report.not_available
    for part in parts:
        assert getattr(report, part) is not None, part
        assert f"\n{part}:" in printed
    assert printed.rstrip().splitlines()[-1].startswith("wrote ")
    assert report.calibration is not None and "10 validation studies" in report.calibration.fitted_on
    assert report.conformal is not None and not report.conformal.is_by_construction
    assert [check.by for check in report.leaks.checks] == ["name", "name", "content"] and not report.leaks.overlap
    pictures = {path.name for path in (tmp_path / "out" / "trust").glob("*.png")}
    assert pictures == {f"{part}.png" for part in parts if part not in ("leaks", "conformal", "explanations")}
    maps = list((tmp_path / "out" / "trust" / "uncertainty").glob("*.nii.gz"))
    assert len(maps) == (10 if kind == "segmentation" else 0)
    if kind == "segmentation":
        return

    assert "on 1 of 10 cases" in printed
    assert report.failures is not None and all(one.answers.value == 0 for one in report.failures.lossless)
    assert report.agreement is not None and report.agreement.subjects == "5 subjects with two sessions"
    ledgers = [tmp_path / "out" / "trust" / f"{part}.jsonl" for part in SLOW]
    before = [ledger.read_text() for ledger in ledgers]
    evaluate_to_folder(kind, twice, tmp_path / "out", fitted.model_folder, "test", ",".join(SLOW), cases=1)
    assert [ledger.read_text() for ledger in ledgers] == before, "what was measured is not measured again"
    assert all(getattr(trust_of(tmp_path / "out"), part) == getattr(report, part) for part in SLOW)


def test_who_was_learnt_from_is_not_evaluated_on(make_collection, tmp_path: Path) -> None:
    manifest = with_splits(make_collection(6, num_series=1), "ttteee")
    fitted = finetune(config_of(manifest, tmp_path / "run", "segmentation"))
    assert fitted.model_folder is not None
    card = (fitted.model_folder / "card.md").read_text()
    assert "Probabilities are not calibrated." in card
    with pytest.raises(InputError, match="3 in both: sub-00, sub-01, sub-02"):
        evaluate_to_folder("segmentation", manifest, tmp_path / "out", fitted.model_folder, "train")
    assert not (tmp_path / "out").exists()
    evaluate_to_folder("segmentation", manifest, tmp_path / "out", fitted.model_folder, "train", allow_overlap=True)
    assert trust_of(tmp_path / "out").leaks.overlap == ["sub-00", "sub-01", "sub-02"]

    # Without a calibration of its own the parts fall back on the evaluated cases, or say what is missing.
    evaluate_to_folder("segmentation", manifest, tmp_path / "out", fitted.model_folder, "test", "calibration,conformal")
    report = trust_of(tmp_path / "out")
    assert "too few" in report.not_available["calibration"] and "too few" in report.not_available["conformal"]

    # A calibration can be added, but not from those who were learnt from.
    arguments = [str(fitted.model_folder), str(manifest), "--out", str(tmp_path / "added")]
    assert main([*arguments, "--split", "train"]) == 2 and main([*arguments, "--split", "validation"]) == 2
    assert not (tmp_path / "added").exists()
    assert main([*arguments, "--split", "test"]) == 0
    config = load_task(tmp_path / "added")[1]
    assert config.calibration is not None and config.calibration.num_studies == 3
    assert read_about(tmp_path / "added")["provenance"]["calibrated_on"] == ["sub-03", "sub-04", "sub-05"]
    card = (tmp_path / "added" / "card.md").read_text()
    assert "are calibrated" in card and "not calibrated" not in card
    with pytest.raises(InputError, match="calibrating subjects"):
        evaluate_to_folder("segmentation", manifest, tmp_path / "out", tmp_path / "added", "test")


def test_held_out_studies_serve_where_there_is_no_validation_split(make_collection, tmp_path: Path) -> None:
    manifest = with_splits(make_collection(12, num_series=1), "t" * 10 + "ee")
    config = config_of(manifest, tmp_path / "run", "segmentation", hold_out=0.3)
    collection = read_manifest(manifest)
    rows, held, source = calibrating_rows(collection, collection.split("train"), config)
    assert (len(rows), len(held), source) == (7, 3, "studies held out from training")
    fitted = finetune(config)
    assert fitted.model_folder is not None
    about = read_about(fitted.model_folder)
    trained, calibrated = about["provenance"]["trained_on"], about["provenance"]["calibrated_on"]
    assert len(trained) == 7 and len(calibrated) == 3 and not set(trained) & set(calibrated)
    assert about["config"]["calibration"]["fitted_on"] == "3 studies held out from training"
    with_validation = read_manifest(with_splits(manifest, "t" * 8 + "vvee"))
    assert [len(part) for part in calibrating_rows(with_validation, with_validation.split("train"), config)[:2]] == [
        8,
        2,
    ]
    one = collection.split("train")[:1]
    assert calibrating_rows(collection, one, config)[:2] == (list(one), []), "one study at least is learnt from"


def test_parts_are_known_by_name() -> None:
    assert parse_config(TrustConfig, {"parts": "all"}).parts == PARTS
    assert parse_config(TrustConfig, {"parts": "ood, leaks"}).parts == ("ood", "leaks")
    assert parse_config(TrustConfig, {"parts": ""}).parts == ()
    with pytest.raises(InputError, match="calibration"):
        parse_config(TrustConfig, {"parts": "calibraton"})
    with pytest.raises(ValidationError):
        TrustConfig(cases=0)


def test_fewer_cases_are_among_more() -> None:
    numbers = list(range(20))
    assert set(choose(numbers, 4, 0)) < set(choose(numbers, 9, 0)) and choose(numbers, 99, 0) == numbers
    assert choose(numbers, 4, 0) != choose(numbers, 4, 1)
