"""Cases: whose they are, what becomes of them, what goes out of them, and that nothing is left when their time is over."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pydicom
import pytest
import yaml

from finetune.__main__ import main as finetune
from foundation.errors import InputError
from foundation.findings import Structure, measure_structures
from foundation.preprocess import Grid, find_body, sample_at
from foundation.reading.collection import read_manifest, study_from_path
from foundation.study import Study
from foundation.terms import WEIGHTS
from heads.report.templates import NOT_A_DEVICE
from serve.audit import Audit
from serve.cases import Case, CaseStore, display_grid
from serve.pipeline import StudyReading, load_models, read_study
from tests.foundation.reading.dicom_making import oblique, write_series
from tests.serve.making import head_series, small_reading, tiny_model

RIGHT, LEFT = "all.tumour.right", "all.tumour.left"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory):
    return load_models([tiny_model(tmp_path_factory.mktemp("models") / "all")])


@pytest.fixture(scope="module")
def result(models) -> StudyReading:
    return read_study(Study("patient-1", (head_series(), head_series(12.0, "sub-1_T2w"))), models)


@pytest.fixture
def store(tmp_path: Path) -> CaseStore:
    return CaseStore(tmp_path / "data")


def texts(case: Case) -> list[str]:
    return [one.text for one in case.sentences]


def fhir(folder: Path, kind: str, version: str = "R5") -> dict:
    bundle = json.loads((folder / "fhir" / f"report-{version}.json").read_text())
    return next(one["resource"] for one in bundle["entry"] if one["resource"]["resourceType"] == kind)


# ------------------------------------------------------------------------------------------------ keeping


def test_a_case_survives_a_restart(store: CaseStore, result: StudyReading):
    case = store.add("anna", result)
    store.reword("anna", case.id, 0, "Seen by me.")
    again = CaseStore(store.folder)
    assert again.case("anna", case.id) == store.case("anna", case.id)
    back = again.result("anna", case.id)
    assert back.reading == result.reading and back.study.subject == "patient-1"
    assert back.seconds == result.seconds and {"preparing the images", "model all"} <= set(back.seconds)
    for one, two in zip(back.study.series, result.study.series, strict=True):
        assert np.array_equal(one.voxels, two.voxels) and np.array_equal(one.affine, two.affine)
        assert (one.contrast, one.name, one.acquisition) == (two.contrast, two.name, two.acquisition)
    (mask,) = back.masks
    assert np.array_equal(back.masks[mask].labels, result.masks[mask].labels)
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert not any(result.study.subject in str(path) for path in store.folder.rglob("*"))


def test_what_a_crash_left_half_is_gone_after_a_restart(store: CaseStore, result: StudyReading):
    case = store.add("anna", result)
    (store.folder / "cases" / ".aside-1-x").mkdir()
    (store.folder / "cases" / ("0" * 32)).mkdir()
    CaseStore(store.folder)
    assert [one.name for one in (store.folder / "cases").iterdir()] == [case.id]


def test_nobody_else_has_the_case(store: CaseStore, result: StudyReading):
    case = store.add("anna", result)
    tries: list[Callable[[], object]] = [
        lambda: store.case("bert", case.id),
        lambda: store.result("bert", case.id),
        lambda: store.decide("bert", case.id, RIGHT, "accepted"),
        lambda: store.reword("bert", case.id, 0, "x"),
        lambda: store.redraw("bert", case.id, "masks/all.nii.gz", np.zeros(1)),
        lambda: store.sign("bert", case.id, "final"),
        lambda: store.amend("bert", case.id, "x"),
        lambda: store.outputs("bert", case.id),
        lambda: store.file("bert", case.id, case.displays[0]),
        lambda: store.delete("bert", case.id),
        lambda: store.case("anna", "0" * 32),
    ]
    for one in tries:
        with pytest.raises(InputError, match="no such case"):
            one()
    assert store.worklist("bert") == [] and store.case("anna", case.id) == case
    for path in ("../../cases.sqlite", "/etc/passwd", "reading.json", "series-1.b2nd"):
        with pytest.raises(InputError):
            store.file("anna", case.id, path)


def test_the_worklist_begins_with_what_is_most_urgent(store: CaseStore, result: StudyReading):
    quiet = store.add("anna", small_reading())
    finding = result.reading.findings[0].model_copy(update={"probability": 0.4, "is_calibrated": True})
    doubtful = replace(result, reading=result.reading.model_copy(update={"findings": (finding,)}))
    likely, certain = store.add("anna", doubtful), store.add("anna", result)
    lines = store.worklist("anna")
    assert [one.id for one in lines] == [certain.id, likely.id, quiet.id]
    assert [one.urgency for one in lines] == [WEIGHTS["urgent"], 0.4 * WEIGHTS["urgent"], 0.0]
    assert [one.finding for one in lines] == ["tumour", "tumour", None]
    for id in (RIGHT, LEFT):
        store.decide("anna", certain.id, id, "rejected")
    assert store.worklist("anna")[0].id == likely.id


def test_display_copies_are_small_and_in_place(store: CaseStore):
    series = head_series(1.0)
    case = store.add("anna", read_study(Study("s", (series,)), []))
    shown = nib.nifti1.load(store.file("anna", case.id, case.displays[0]))
    assert shown.get_data_dtype() == np.uint8 and all(n <= most for n, most in zip(shown.shape, (160, 192, 160)))
    bright = np.argwhere(np.asarray(shown.dataobj) > 200).mean(axis=0)
    assert np.allclose(nib.affines.apply_affine(shown.affine, bright), (30, 10, 20), atol=1.0)


# ------------------------------------------------------------------------------------------------ changing


def test_a_rejected_finding_is_in_no_output(store: CaseStore, result: StudyReading):
    case = store.add("anna", result)
    before = store.outputs("anna", case.id)
    assert "right" in (before / "report.md").read_text()
    case = store.decide("anna", case.id, RIGHT, "rejected")
    assert case.state == "draft" and not any("right" in one.text.lower() and one.finding_ids for one in case.sentences)
    assert any(LEFT in one.finding_ids for one in case.sentences)
    out = store.outputs("anna", case.id)
    assert not before.exists()
    for name in ("report.md", "report.html", "reading.json", "measurements.csv", "fhir/report-R5.json"):
        assert (RIGHT not in (out / name).read_text() and LEFT in (out / name).read_text()) or name.startswith("report")
    mask = nib.nifti1.load(out / "masks" / "all.nii.gz")
    where = nib.affines.apply_affine(mask.affine, np.argwhere(np.asarray(mask.dataobj) > 0))
    assert len(where) and (where[:, 0] < 4).all()
    assert store.decide("anna", case.id, RIGHT, "open").sentences == store.add("anna", result).sentences


def test_the_clinicians_words_stay_and_the_verifier_only_warns(store: CaseStore, result: StudyReading):
    case = store.add("anna", result)
    assert not case.warnings
    place = next(n for n, one in enumerate(case.sentences) if RIGHT in one.finding_ids)
    case = store.reword("anna", case.id, place, "No tumour on the right.")
    assert case.sentences[place].edited and case.warnings
    case = store.decide("anna", case.id, RIGHT, "rejected")
    assert "No tumour on the right." in texts(case)
    case = store.reword("anna", case.id, texts(case).index("No tumour on the right."), "")
    assert "No tumour on the right." not in texts(case)
    with pytest.raises(InputError):
        store.reword("anna", case.id, 99, "x")
    with pytest.raises(InputError):
        store.decide("anna", case.id, "all.tumor.right", "rejected")


@pytest.mark.parametrize("on_display", [False, True])
def test_a_redrawn_mask_is_measured_anew(store: CaseStore, models, on_display: bool):
    series = head_series(1.0 if on_display else 8.0)
    result = read_study(Study("s", (series,)), models)
    case = store.add("anna", result)
    (name,) = case.masks
    first = store.redraw("anna", case.id, name, (series.voxels > 50).astype(np.int16))
    labels = store.result("anna", case.id).masks[name].labels.copy()
    if on_display:
        labels = np.asarray(nib.nifti1.load(first.folder / first.masks[name].display).dataobj).copy()
        assert labels.shape == display_grid(series)[1].shape != series.shape
    labels[labels.shape[0] // 2 :] = 0  # the right side
    case = store.redraw("anna", case.id, name, labels)
    findings = {one.id: one for one in case.reading.findings}
    old = {one.id: one for one in first.reading.findings}
    volumes = {id: (findings[id].measured("volume"), old[id].measured("volume")) for id in (RIGHT, LEFT)}
    assert volumes[RIGHT][0] < 0.1 * volumes[RIGHT][1] and volumes[LEFT][0] == pytest.approx(volumes[LEFT][1], rel=0.05)
    assert old[LEFT].measured("volume") < result.reading.findings[1].measured("volume")
    assert case.masks[name].redrawn and "clinician" in (findings[LEFT].note or "")
    said = " ".join(one.text for one in case.sentences if LEFT in one.finding_ids)
    assert f"{volumes[LEFT][0]:.0f}"[:3] in said and f"{volumes[LEFT][1] + volumes[RIGHT][1]:.0f}" not in said
    shown = np.asarray(nib.nifti1.load(case.folder / case.masks[name].display).dataobj)
    assert not shown[shown.shape[0] // 2 + 2 :].any() and shown.any()
    assert len(list(case.folder.glob("mask-*"))) == 1
    for wrong in (labels[1:], np.where(labels > 0, 7, 0), labels + 0.5):
        with pytest.raises(InputError):
            store.redraw("anna", case.id, name, wrong)


TWO = (Structure(value=3, name="tumour", paired=True), Structure(value=7, name="cyst", paired=False))


@pytest.fixture
def outlined(store: CaseStore, models) -> tuple[Case, np.ndarray]:
    """A head that is finer than its display copy, with two structures whose voxels alternate: none is whole on the copy."""
    coarse = head_series(8.0)
    affine = np.diag([0.75, 8.0, 8.0, 1.0])
    affine[:3, 3] = [0.375 - 96, *coarse.affine[1:3, 3]]
    series = coarse.with_voxels(sample_at(coarse.voxels, coarse.affine, Grid((256, 24, 24), affine)), affine)
    result = read_study(Study("s", (series,)), models)
    labels = np.where(np.arange(256)[:, None, None] % 2, 3, 7) * (series.voxels > 150)
    labels = labels.astype(np.int16)
    found = measure_structures(labels, series, TWO, body=find_body(series), mask_path="masks/all.nii.gz", source="all")
    found = [one.model_copy(update={"probability": 0.8}) for one in found]
    reading = result.reading.model_copy(update={"findings": tuple(found)})
    mask = replace(result.masks["masks/all.nii.gz"], labels=labels, structures=TWO)
    return store.add("anna", replace(result, reading=reading, masks={"masks/all.nii.gz": mask})), labels


def drawing(case: Case, change: Callable[[np.ndarray], None], path: Path) -> Path:
    """What a browser sends: numbers of structures on the display copy's grid."""
    (mask,) = case.masks.values()
    shown = nib.nifti1.load(case.folder / mask.display)
    numbers = np.searchsorted([0, *(one.value for one in mask.structures)], np.asarray(shown.dataobj)).astype(np.uint8)
    change(numbers)
    nib.nifti1.save(nib.nifti1.Nifti1Image(numbers, shown.affine), path)
    return path


def test_a_drawing_changes_the_voxels_that_were_drawn_on_and_no_others(store: CaseStore, outlined, tmp_path: Path):
    case, labels = outlined
    (name,), file = case.masks, tmp_path / "drawing.nii.gz"
    tumour, left, cyst = (one.id for one in case.reading.findings)
    store.decide("anna", case.id, tumour, "rejected")
    store.decide("anna", case.id, left, "accepted")

    def rub_out(numbers: np.ndarray) -> None:  # the tumour, of which the copy shows some voxels
        box = numbers[100:120, 12:14]
        assert (box == 1).any() and (box == 2).any()
        box[box == 1] = 0

    again = store.redraw_from("anna", case.id, name, drawing(case, rub_out, file), case.masks[name].display)
    full = store.result("anna", case.id).masks[name].labels
    changed = full != labels
    assert changed.any() and not full[changed].any() and (labels[changed] == 3).all()  # cysts that it hid are there
    assert np.array_equal(full == 7, labels == 7)
    where = np.argwhere(changed)
    assert set(where[:, 1]) <= {12, 13} and np.ptp(where[:, 0]) < 30
    now = {one.id: one for one in again.reading.findings}
    old = {one.id: one for one in case.reading.findings}
    assert now[cyst] == old[cyst] and now[tumour].probability is None and now[tumour].note == "outlined by a clinician"
    assert now[left].evidence == old[left].evidence and now[left].presence == old[left].presence
    assert tumour not in again.decisions and set(again.decisions) <= {left}

    def paint(numbers: np.ndarray) -> None:
        numbers[5:9, 3, 3] = 2

    with pytest.raises(InputError, match="stands"):
        store.redraw_from("anna", case.id, name, drawing(again, paint, file), case.masks[name].display)
    last = store.redraw_from("anna", case.id, name, drawing(again, paint, file), again.masks[name].display)
    painted = store.result("anna", case.id).masks[name].labels
    assert set(painted[painted != full].tolist()) == {7} and last.masks[name].display != again.masks[name].display
    assert len(list(case.folder.glob("display/mask-*"))) == 1

    def other(numbers: np.ndarray) -> None:
        numbers[0, 0, 0] = 3

    file.write_bytes(b"no image")
    for wrong in (file, drawing(last, other, tmp_path / "other.nii.gz"), tmp_path / "none.nii.gz"):
        with pytest.raises(InputError):
            store.redraw_from("anna", case.id, name, wrong, last.masks[name].display)
    store.sign("anna", case.id, "final")
    with pytest.raises(InputError, match="not changed"):
        store.redraw_from("anna", case.id, name, drawing(last, paint, file), last.masks[name].display)


def test_states_and_locks(store: CaseStore, result: StudyReading):
    case = store.add("anna", result)
    assert store.sign("anna", case.id, "preliminary").state == "preliminary"
    case = store.decide("anna", case.id, LEFT, "accepted")
    assert case.state == "draft" and case.signed_by is None
    case = store.sign("anna", case.id, "final")
    assert case.is_locked and case.signed_by == "anna"
    (name,) = case.masks
    signed = texts(case)
    for change in (
        lambda: store.decide("anna", case.id, LEFT, "rejected"),
        lambda: store.reword("anna", case.id, 0, "x"),
        lambda: store.redraw("anna", case.id, name, result.masks[name].labels),
        lambda: store.sign("anna", case.id, "final"),
    ):
        with pytest.raises(InputError, match="not changed"):
            change()
    assert texts(store.case("anna", case.id)) == signed
    with pytest.raises(InputError, match="reason"):
        store.amend("anna", case.id, " ")
    case = store.amend("anna", case.id, "The side was wrong.")
    assert case.state == "amended" and not case.is_locked and case.reason == "The side was wrong."
    with pytest.raises(InputError):
        store.amend("anna", case.id, "Twice.")
    store.decide("anna", case.id, LEFT, "rejected")
    with pytest.raises(InputError):
        store.sign("anna", case.id, "preliminary")
    case = store.sign("anna", case.id, "final")
    assert case.state == "amended" and case.is_locked
    assert store.audit.verify() == len(store.audit.entries())
    actions = [one.action.partition(".")[2] for one in store.audit.entries(case.id)]
    assert actions == ["read", "signed", "decided", "signed", "amended", "decided", "signed"]
    assert "side was wrong" not in store.audit.path.read_bytes().decode("latin1")


# ------------------------------------------------------------------------------------------------ going out


def test_outputs_follow_the_state(store: CaseStore, result: StudyReading):
    case = store.add("anna", result)
    seen = []
    for step in (lambda: None, lambda: store.sign("anna", case.id, "final"),
                 lambda: store.amend("anna", case.id, "Why not."), lambda: store.sign("anna", case.id, "final")):  # fmt: skip
        step()
        out = store.outputs("anna", case.id)
        report, composition = fhir(out, "DiagnosticReport"), fhir(out, "Composition", "R4B")
        assert report["status"] == composition["status"] == fhir(out, "Observation")["status"]
        html = (out / "report.html").read_text()
        assert ("resultsInterpreter" in report) == (NOT_A_DEVICE not in html) == ("signed by anna" in html)
        seen.append(report["status"])
        assert (out.parent / "outputs.zip").is_file()
    assert seen == ["preliminary", "final", "preliminary", "amended"]


def test_dicom_objects_of_a_signed_case_are_final(store: CaseStore, models, tmp_path: Path):
    write_series(tmp_path / "dicom", shape=(24, 24, 24), affine=oblique(0.0, (6.0, 6.0, 6.0)))
    case = store.add("anna", read_study(study_from_path(tmp_path / "dicom"), models))
    again = CaseStore(store.folder)
    for signed in (False, True):
        if signed:
            again.sign("anna", case.id, "final")
        out = again.outputs("anna", case.id)
        report, mask = (pydicom.dcmread(out / "dicom" / f"{one}.dcm") for one in ("measurements", "seg-all"))
        assert report.VerificationFlag == ("VERIFIED" if signed else "UNVERIFIED")
        assert report.CompletionFlag == ("COMPLETE" if signed else "PARTIAL")
        assert mask.ContentLabel == ("FINAL" if signed else "DRAFT") and mask.StudyInstanceUID == "1.2.3.1"
        assert ("not verified" in mask.SeriesDescription) == (not signed)


def test_exported_labels_train_a_model(store: CaseStore, models, tmp_path: Path):
    with pytest.raises(InputError, match="signed"):
        store.export_labels("anna", tmp_path / "none")
    for seed in range(3):
        series = head_series(8.0, seed=seed)
        case = store.add("anna", read_study(Study(f"secret-{seed}", (series,)), models))
        if seed == 0:
            store.redraw("anna", case.id, "masks/all.nii.gz", (series.voxels > 150).astype(np.int16))
            store.decide("anna", case.id, LEFT, "rejected")
        store.decide("anna", case.id, RIGHT, "accepted")
        store.sign("anna", case.id, "final")
    store.add("anna", small_reading())  # not signed
    out = store.export_labels("anna", tmp_path / "labels")
    collection = read_manifest(out / "all.jsonl")
    assert len(collection.rows) == 3
    decided = sorted(tuple(sorted(row.targets.items())) for row in collection.rows)
    assert decided[0] == (("tumour.left", 1), ("tumour.right", 1))  # 'absent' was rejected: it is there
    assert (
        not any("secret" in path.name for path in out.iterdir()) and b"secret" not in (out / "all.jsonl").read_bytes()
    )
    task = {
        "name": "again", "folder": str(tmp_path / "run"), "recipe": "scratch",
        "head": {"kind": "segmentation", "structures": [{"value": 1, "name": "tumour", "paired": True}]},
        "data": {"manifest": str(out / "all.jsonl"), "test_split": "train", "spacing_mm": [8, 8, 8], "crop_voxels": [16, 16, 16]},
        "training": {"steps": 1, "batch_size": 1, "num_workers": 0, "warmup_steps": 0},
    }  # fmt: skip
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    assert finetune([str(tmp_path / "task.yaml")]) == 0


# ------------------------------------------------------------------------------------------------ going


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: on a disk a thousand cases wait for it some ten thousand times."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_a_thousand_cases_leave_nothing_but_the_proof(quick_folder: Path):
    store = CaseStore(quick_folder / "data", keep_s=100.0)
    reading = small_reading(subject="Doe-Jane-19600701")
    ids = {store.add("anna", reading).id for _ in range(1000)}
    assert store.expire() == [] and len(list(store.folder.glob("cases/*/*"))) >= 2000
    assert set(store.expire(time.time() + 101)) == ids
    assert list((store.folder / "cases").iterdir()) == [] and store.worklist("anna") == []
    assert sorted(one.name for one in store.folder.rglob("*")) == [
        "audit.head",
        "audit.sqlite",
        "cases",
        "cases.sqlite",
    ]
    for file in store.folder.glob("*.*"):
        assert b"Doe-Jane" not in file.read_bytes(), file
    proofs = {one.case_id: one.detail for one in store.audit.entries() if one.action == "case.deleted"}
    assert proofs.keys() == ids and store.audit.verify() == 2000
    assert all(
        one["files"] == 2 and one["why"] == "expired" and len(str(one["sha256"])) == 64 for one in proofs.values()
    )


def test_an_owner_may_delete(store: CaseStore, result: StudyReading):
    kept, gone = store.add("anna", result), store.add("anna", result)
    store.outputs("anna", gone.id)
    store.delete("anna", gone.id)
    assert not gone.folder.exists() and kept.folder.exists()
    assert [one.id for one in store.worklist("anna")] == [kept.id]
    last = Audit(store.audit.path).entries()[-1]
    assert (last.user, last.action, last.case_id, last.detail["why"]) == ("anna", "case.deleted", gone.id, "asked")


def test_measurements_are_of_the_present_state(store: CaseStore, result: StudyReading):
    case = store.add("anna", result)
    store.redraw("anna", case.id, "masks/all.nii.gz", np.zeros_like(result.masks["masks/all.nii.gz"].labels))
    with (store.outputs("anna", case.id) / "measurements.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["presence"] for row in rows} == {"absent"}
