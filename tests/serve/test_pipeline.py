"""`larmor read` as a clinic would use it: whole studies, incomplete ones, outside a model's scope, and every bad file."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ehr.synthesis import make_bundle
from foundation.encoder import Encoder, EncoderConfig
from foundation.findings import Reading
from foundation.lora import Adapter, LowRank
from foundation.preprocess import prepare_study
from foundation.reading.collection import read_manifest, read_study
from foundation.reading.nifti import read_labels, read_nifti, write_volume
from heads import parse_head
from heads.adapters.folder import Backbone, save_adapter
from heads.base import Explanation, Scope, TaskConfig, TaskModel, load_task, save_task
from serve.__main__ import main
from tests.ehr.making import patient_truth

HEADS = {
    "core": {
        "kind": "segmentation",
        "structures": [{"value": 1, "name": "core", "paired": True}],
        "channels": [4, 4, 4],
    },
    "size": {"kind": "classification", "target": "large", "classes": ["small core", "large core"]},
}


@pytest.fixture
def manifest(make_collection) -> Path:
    return make_collection(4)


@pytest.fixture
def models(manifest: Path, tmp_path: Path) -> list[str]:
    """Two untrained models: what they say is noise, but how it is said is real."""
    collection = read_manifest(manifest)
    prepared = [prepare_study(read_study(row, collection.root), (4.0, 4.0, 4.0)) for row in collection.rows]
    options = []
    for name, values in HEADS.items():
        torch.manual_seed(0)
        config = EncoderConfig(width=64, depth=1)
        model = TaskModel.build(Encoder(config), parse_head(values))
        task = TaskConfig(
            name=name,
            caution="made for a test.",
            encoder=config,
            head=parse_head(values),
            spacing_mm=(4.0, 4.0, 4.0),
            scope=Scope.of(prepared),
        )
        save_task(tmp_path / "models" / name, model, task, card="# test\n", provenance={})
        options += ["--model", str(tmp_path / "models" / name)]
    return options


def test_a_reading_is_whole(manifest: Path, models: list[str], tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["read", f"{manifest}#sub-01", str(out), *models]) == 0
    printed = capsys.readouterr().out
    for name in ("reading.json", "report.md", "report.html", "masks/core.nii.gz", "pictures/core.png"):
        assert (out / name).stat().st_size > 0
        assert str(out / name) in printed
    reading = Reading.load(out / "reading.json")
    assert {finding.source for finding in reading.findings} == {"core", "size"}
    assert any("made for a test" in warning for warning in reading.warnings)
    series = read_nifti(tmp_path / "sub-01_T1w.nii.gz")
    labels = read_labels(out / "masks" / "core.nii.gz", series)
    measured = sum(f.measured("volume") or 0 for f in reading.findings if f.source == "core")
    assert measured == pytest.approx((labels == 1).sum() * series.voxel_volume_ml, rel=1e-6)
    html = (out / "report.html").read_text()
    assert "data:image/png;base64," in html and "Not a medical device" in html
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org", ""), (
        "nothing is fetched from elsewhere"
    )


@pytest.fixture
def adapters(models: list[str], tmp_path: Path) -> list[Path]:
    """The same two tasks as adapters of one backbone, each with a late map of its own."""
    torch.manual_seed(1)
    backbone = tmp_path / "backbone"
    Encoder(EncoderConfig(width=64, depth=1)).save(backbone, card="# test\n", provenance={})
    folders = []
    for number, name in enumerate(HEADS):
        _, task, _ = load_task(tmp_path / "models" / name)
        encoder = Encoder.load(backbone)
        torch.manual_seed(2 + number)  # untrained, but of two minds: about half of the voxels are core
        maps = {"blocks.0.mlp.fc2": LowRank(torch.randn(2, 192), torch.randn(64, 2))}
        head = TaskModel.build(encoder, task.head).head
        folders.append(tmp_path / "adapters" / name)
        save_adapter(
            folders[-1], Adapter(2, 4, maps), head, task, Backbone.of(backbone), card="# test\n", provenance={}
        )
    return folders


def test_adapters_of_one_backbone_read_as_whole_models_do(
    manifest: Path, adapters: list[Path], tmp_path: Path, capsys
) -> None:
    named, merged = [], []
    for folder in adapters:
        named += ["--model", str(folder)]
        merged += ["--model", str(tmp_path / "merged" / folder.name)]
        assert main(["adapter", str(folder), "--merge", merged[-1]]) == 0
    assert main(["read", f"{manifest}#sub-01", str(tmp_path / "together"), *named]) == 0
    assert main(["read", f"{manifest}#sub-01", str(tmp_path / "apart"), *merged]) == 0
    together, apart = (Reading.load(tmp_path / name / "reading.json") for name in ("together", "apart"))
    assert [finding.id for finding in together.findings] == [finding.id for finding in apart.findings]
    [ours], [theirs] = ([f.probability for f in one.findings if f.source == "size"] for one in (together, apart))
    assert ours == pytest.approx(theirs, abs=1e-5)
    series = read_nifti(tmp_path / "sub-01_T1w.nii.gz")
    masks = [read_labels(tmp_path / name / "masks" / "core.nii.gz", series) for name in ("together", "apart")]
    assert masks[0].any() and (masks[0] != masks[1]).mean() < 1e-3
    assert len({one.backbone_sha256 for one in together.models} - {None}) == 1
    assert {one.backbone_sha256 for one in apart.models} == {None}

    (tmp_path / "backbone").rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert main(["read", f"{manifest}#sub-01", str(tmp_path / "lost"), *named]) == 2
    assert "--backbone" in capsys.readouterr().err
    given = ["--backbone", str(tmp_path / "elsewhere")]
    assert main(["read", f"{manifest}#sub-01", str(tmp_path / "found"), *named, *given]) == 0


def test_a_missing_series_and_a_single_file_still_read(manifest: Path, models: list[str], tmp_path: Path) -> None:
    assert main(["read", f"{manifest}#sub-03", str(tmp_path / "fewer"), *models]) == 0
    assert main(["read", str(tmp_path / "sub-00_T2w.nii.gz"), str(tmp_path / "one"), *models]) == 0
    assert len(Reading.load(tmp_path / "one" / "reading.json").series) == 1


def test_a_predicted_series_is_not_read(manifest: Path, models: list[str], tmp_path: Path, capsys) -> None:
    """Findings of a study are the same whether or not somebody left a predicted series in its folder, even as its first."""
    for folder in ("alone", "beside"):
        (tmp_path / folder).mkdir()
        shutil.copy(tmp_path / "sub-01_T1w.nii.gz", tmp_path / folder / "sub-01_T1w.nii.gz")
    series = read_nifti(tmp_path / "sub-01_T1w.nii.gz")
    write_volume(tmp_path / "beside" / "sub-01_FLAIR.nii.gz", 2 * series.voxels, replace(series, predicted=True))
    readings = []
    for folder in ("alone", "beside"):
        assert main(["read", str(tmp_path / folder), str(tmp_path / f"out-{folder}"), *models]) == 0
        readings.append(Reading.load(tmp_path / f"out-{folder}" / "reading.json"))
    alone, beside = readings
    assert beside.findings == alone.findings and [one.contrast for one in beside.series] == ["T1w"]
    assert any("sub-01_FLAIR was predicted by a model" in warning for warning in beside.warnings)
    assert not any("predicted" in warning for warning in alone.warnings)
    (tmp_path / "beside" / "sub-01_T1w.nii.gz").unlink()
    assert main(["read", str(tmp_path / "beside"), str(tmp_path / "out-none"), *models]) == 2
    assert "predicted ones only" in capsys.readouterr().err and not (tmp_path / "out-none").exists()


@pytest.mark.parametrize("fall", [2.0, 0.5])
def test_what_an_answer_rests_on_is_shown_if_its_tests_were_passed(manifest: Path, tmp_path: Path, fall: float) -> None:
    """The class is present whatever the image, so only the tests that its folder remembers decide."""
    collection = read_manifest(manifest)
    study = read_study(collection.rows[0], collection.root)
    prepared = prepare_study(study, (4.0, 4.0, 4.0))
    torch.manual_seed(0)
    config = EncoderConfig(width=64, depth=1)
    model = TaskModel.build(Encoder(config), parse_head(HEADS["size"]))
    with torch.no_grad():
        model.head.get_parameter("answer.bias").copy_(torch.tensor([-50.0, 50.0]))
    task = TaskConfig(
        name="size",
        caution=None,
        encoder=config,
        head=parse_head(HEADS["size"]),
        spacing_mm=(4.0, 4.0, 4.0),
        scope=Scope.of([prepared]),
        explanations={"large core": Explanation(likeness=0.1, fall=fall, random_fall=1.0, num_studies=4)},
    )
    save_task(tmp_path / "size", model, task, card="# test\n", provenance={})
    assert main(["read", f"{manifest}#{study.subject}", str(tmp_path / "out"), "--model", str(tmp_path / "size")]) == 0
    reading = Reading.load(tmp_path / "out" / "reading.json")
    (finding,) = [one for one in reading.findings if one.name == "large core"]
    assert finding.presence == "present"
    shown = [path.name for path in (tmp_path / "out" / "pictures").iterdir()]
    assert (f"why-{finding.id}.png" in shown) == (fall > 1)
    assert ("rests on" in (tmp_path / "out" / "report.html").read_text()) == (fall > 1)


def test_two_studies_get_two_reports(manifest: Path, models: list[str], tmp_path: Path) -> None:
    for subject in ("sub-00", "sub-01"):
        main(["read", f"{manifest}#{subject}", str(tmp_path / subject), *models])
    texts = [(tmp_path / subject / "report.md").read_text().split("## Findings")[1] for subject in ("sub-00", "sub-01")]
    assert texts[0] != texts[1]


def test_outside_its_scope_a_model_is_not_asked(models: list[str], tmp_path: Path, make_series) -> None:
    from foundation.reading.nifti import write_volume

    crop = make_series((30, 30, 30), spacing_mm=(1.0, 1.0, 1.0))
    write_volume(tmp_path / "crop.nii.gz", crop.voxels, crop)
    assert main(["read", str(tmp_path / "crop.nii.gz"), str(tmp_path / "out"), *models]) == 0
    reading = Reading.load(tmp_path / "out" / "reading.json")
    assert {finding.presence for finding in reading.findings} == {"not_assessed"}
    assert all("fields of view" in (finding.note or "") for finding in reading.findings)
    assert not (tmp_path / "out" / "masks").exists()


@pytest.mark.parametrize("what", ["blank", "CT"])
def test_what_shows_nothing_of_an_mri_is_non_diagnostic(
    models: list[str], tmp_path: Path, make_series, what: str
) -> None:
    from foundation.reading.nifti import write_volume

    blank = make_series((30, 30, 30), spacing_mm=(4.0, 4.0, 4.0))
    voxels = np.zeros_like(blank.voxels)
    if what == "CT":
        voxels -= 1000
        voxels[8:22, 8:22, 8:22] = blank.voxels[8:22, 8:22, 8:22]
    write_volume(tmp_path / "blank.nii.gz", voxels, blank)
    assert main(["read", str(tmp_path / "blank.nii.gz"), str(tmp_path / "out"), *models]) == 0
    reading = Reading.load(tmp_path / "out" / "reading.json")
    assert {finding.presence for finding in reading.findings} == {"not_assessed"}
    report = (tmp_path / "out" / "report.md").read_text()
    assert "non-diagnostic" in report.lower() and ("CT" in report) == (what == "CT")


def test_a_writer_that_cannot_be_loaded_leaves_the_templates_and_says_why(
    manifest: Path, models: list[str], tmp_path: Path, capsys
) -> None:
    (tmp_path / "writer").mkdir()
    named = ["--writer", str(tmp_path / "writer")]
    assert main(["read", f"{manifest}#sub-01", str(tmp_path / "out"), *models, *named]) == 0
    assert "does not write" in capsys.readouterr().out
    assert main(["read", f"{manifest}#sub-01", str(tmp_path / "plain"), *models]) == 0
    reports = [(tmp_path / name / "report.md").read_text().split("## Table")[0] for name in ("out", "plain")]
    assert reports[0] == reports[1]


def test_a_record_gives_the_indication_and_the_history(
    manifest: Path, models: list[str], tmp_path: Path, capsys
) -> None:
    truth = next(one for one in map(patient_truth, range(20)) if one["history"])
    bundle, about = make_bundle(truth)
    bundle["entry"][-1]["resource"]["note"] = [{"text": "unread"}]
    for entry in bundle["entry"]:
        if entry["resource"]["resourceType"] == "ServiceRequest":
            entry["resource"]["reasonCode"][0]["text"] = "Headache of Jane Doe"
    (tmp_path / "record.json").write_text(json.dumps(bundle))
    ask = ["read", f"{manifest}#sub-01", str(tmp_path / "out"), *models, "--ehr", str(tmp_path / "record.json")]
    assert main([*ask, "--study-uid", about["study_uid"]]) == 0
    said = capsys.readouterr().out
    assert "indication or history" in said and "writing the report: " in said and "writing the outputs: " in said
    times = json.loads((tmp_path / "out" / "times.json").read_text())["seconds"]
    steps = ["reading the record", "reading the files", "loading the models", "preparing the images"]
    assert list(times)[:4] == steps and list(times)[-1] == "writing the report" and min(times.values()) >= 0
    assert any(one.startswith("model ") for one in times)
    assert (
        "seconds" not in (tmp_path / "out" / "reading.json").read_text()
    )  # no result, and in nothing that is compared
    reading = Reading.load(tmp_path / "out" / "reading.json")
    assert reading.indication == "headache"
    said = [one for one in reading.findings if one.origin == "record"]
    assert {one.name for one in said} == {name.replace("_", " ") for name in truth["history"]}
    report = (tmp_path / "out" / "report.md").read_text()
    assert "Asked for: “headache”." in report and "History: " in report and "Jane Doe" not in report
    assert main([*ask, "--study-uid", about["study_uid"], "--record-words"]) == 0
    assert "Asked for: “Headache of Jane Doe”." in (tmp_path / "out" / "report.md").read_text()
    assert main(["read", f"{manifest}#sub-01", str(tmp_path / "out"), *models, "--record-words"]) == 2


def test_without_a_model_nothing_is_assessed_and_the_report_says_so(
    manifest: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("LARMOR_MODELS", str(tmp_path / "none"))
    assert main(["read", f"{manifest}#sub-00", str(tmp_path / "out")]) == 0
    assert "nothing in the images is assessed" in capsys.readouterr().out
    assert Reading.load(tmp_path / "out" / "reading.json").findings == ()


def bad_inputs(folder: Path) -> dict[str, Path]:
    good = folder / "sub-00_T1w.nii.gz"
    raw = good.read_bytes()
    flipped = bytearray(raw)
    flipped[len(raw) // 2] ^= 4
    contents = {
        "text.nii.gz": b"not an image",
        "truncated.nii.gz": raw[: len(raw) // 2],
        "flipped.nii.gz": bytes(flipped),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents} | {"missing": folder / "missing.nii.gz"}


def test_a_bad_file_is_one_line_exit_2_and_nothing_written(
    manifest: Path, models: list[str], tmp_path: Path, capsys
) -> None:
    for name, path in bad_inputs(tmp_path).items():
        assert main(["read", str(path), str(tmp_path / "out"), *models]) == 2, name
        error = capsys.readouterr().err
        assert error.startswith("larmor: ") and error.count("\n") == 1 and path.name in error, error
        assert not (tmp_path / "out").exists()


def test_a_manifest_row_whose_file_is_missing_and_a_damaged_model(
    manifest: Path, models: list[str], tmp_path: Path, capsys
) -> None:
    (tmp_path / "models" / "core" / "model.safetensors").write_bytes(b"")
    assert main(["read", f"{manifest}#sub-00", str(tmp_path / "out"), *models]) == 2
    assert "readable weights" in capsys.readouterr().err
    (tmp_path / "sub-00_T1w.nii.gz").unlink()
    assert main(["read", f"{manifest}#sub-01", str(tmp_path / "out")]) == 2
    assert "sub-00_T1w.nii.gz" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_reading_is_not_replaced(manifest: Path, models: list[str], tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("ten years")
    assert main(["read", f"{manifest}#sub-00", str(precious), *models]) == 2
    assert [path.name for path in precious.iterdir()] == ["thesis.txt"]


def test_reading_again_replaces_the_reading(manifest: Path, models: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for subject in ("sub-00", "sub-01"):
        assert main(["read", f"{manifest}#{subject}", str(out), *models]) == 0
    assert json.loads((out / "reading.json").read_text())["subject"] == "sub-01"
    shutil.rmtree(out)


def test_a_real_whole_head_is_read(shared_data: Path, models: list[str], tmp_path: Path) -> None:
    """Real voxels, oblique affine, no contrast in the name; the phantom's scope does not hold a whole head, and says so."""
    head = shared_data / "niivue_sample_heads" / "MR_Gd.nii.gz"
    assert main(["read", str(head), str(tmp_path / "out"), *models]) == 0
    reading = Reading.load(tmp_path / "out" / "reading.json")
    assert {finding.presence for finding in reading.findings} == {"not_assessed"}
    assert np.prod(reading.series[0].shape) == 176 * 188 * 144
