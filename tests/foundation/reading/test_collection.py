"""A manifest is right as a whole or refused with the line that is wrong; a study is found by file, folder or row."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundation.errors import InputError
from foundation.reading.collection import (
    SPLITS,
    Collection,
    Row,
    read_manifest,
    read_mask,
    read_study,
    study_from_path,
    write_manifest,
)
from foundation.reading.nifti import write_labels, write_volume
from foundation.study import Series
from tests.foundation.reading.dicom_making import write_series

MakeSeries = Callable[..., Series]


def row(subject: str, session: str = "", **keys: Any) -> dict[str, Any]:
    """A row with one T1w in the file that `collection` writes for it."""
    path = f"images/{subject}{session}.nii.gz"
    return {"subject": subject, "session": session, "series": [{"path": path, "contrast": "T1w"}], **keys}


@pytest.fixture
def collection(tmp_path: Path, make_series: MakeSeries) -> Callable[..., Path]:
    """`collection(*rows)` writes the manifest, a volume for every series and a label map for every mask."""

    def write(*rows: dict[str, Any] | str) -> Path:
        (tmp_path / "images").mkdir(exist_ok=True)
        for number, entry in enumerate(rows):
            series = make_series(seed=number)
            for key in () if isinstance(entry, str) else entry.get("series", ()):
                write_volume(tmp_path / key["path"], series.voxels, series)
            if not isinstance(entry, str) and entry.get("mask"):
                write_labels(tmp_path / entry["mask"], series.voxels > 200, series)
        lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in rows]
        (tmp_path / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / "manifest.jsonl"

    return write


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_manifest(path)
    assert caught.value.file == str(path) and caught.value.remedy.endswith((".", "?"))
    return str(caught.value)


def test_a_row_becomes_a_study_and_its_mask(collection: Callable[..., Path], make_series: MakeSeries) -> None:
    targets = {"age": 61.5, "grade": 3, "site": "A", "curve": [1, 2.5, "x"], "unknown": None}
    manifest = read_manifest(collection(row("017", "b", mask="images/m.nii.gz", targets=targets, split="train")))
    study = read_study(manifest.rows[0], manifest.root)
    mask = read_mask(manifest.rows[0], study, manifest.root)
    expected = make_series(seed=0)
    assert (study.subject, study.session, study.reference.contrast) == ("017", "b", "T1w")
    np.testing.assert_array_equal(study.reference.voxels, expected.voxels)
    np.testing.assert_array_equal(mask, expected.voxels > 200)
    assert mask.dtype == np.int16 and manifest.rows[0].targets == targets


def test_only_subject_and_series_are_needed(collection: Callable[..., Path]) -> None:
    manifest = read_manifest(collection({"subject": "a", "series": [{"path": "images/x_T2w.nii"}]}))
    assert manifest.rows[0].model_dump(exclude={"subject", "series"}) == {
        "session": "",
        "mask": None,
        "targets": {},
        "ehr": None,
        "study_uid": None,
        "split": None,
    }
    study = read_study(manifest.rows[0], manifest.root)
    assert study.reference.contrast == "T2w"  # from the file's name
    with pytest.raises(InputError, match="the row has a mask"):
        read_mask(manifest.rows[0], study, manifest.root)


def test_what_is_known_comes_before_what_is_not(make_series: Callable[..., Any], tmp_path: Path) -> None:
    """The first series is the one that masks are drawn on, and no model was fitted on an unknown contrast."""
    for seed, name in enumerate(("a", "b_T2w", "c", "d_T1w")):
        series = make_series(seed=seed)
        write_volume(tmp_path / f"{name}.nii.gz", series.voxels, series)
    study = study_from_path(tmp_path)
    assert [one.name for one in study.series] == ["b_T2w", "d_T1w", "a", "c"] and study.reference.contrast == "T2w"


def test_blank_lines_byte_order_marks_and_odd_separators_are_no_rows(collection: Callable[..., Path]) -> None:
    path = collection("", row("a", targets={"note": "line\u2028separator"}), "", row("b"), "")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\\u2028", "\u2028".encode()).replace(b"\n", b"\r\n"))
    assert [entry.subject for entry in read_manifest(path).rows] == ["a", "b"]


def test_splits(collection: Callable[..., Path]) -> None:
    rows = [row(f"s{number}", split=split) for number, split in enumerate((*SPLITS, None, "train"))]
    manifest = read_manifest(collection(*rows))
    assert {name: [entry.subject for entry in manifest.split(name)] for name in SPLITS} == {
        "pretrain": ["s0"],
        "train": ["s1", "s5"],
        "validation": ["s2"],
        "test": ["s3"],
    }
    with pytest.raises(InputError, match="Did you mean 'train'"):
        manifest.split("trian")


BAD_LINES = {
    "not JSON": ("{'subject': 'a'}", "is one JSON object"),
    "cut": ('{"subject": "a", "series": [', "is one JSON object"),
    "two objects": ('{"subject": "a"} {"subject": "b"}', "is one JSON object"),
    "deep": ("[" * 100_000, "is one JSON object"),
    "a list": ("[1]", "row: "),
    "a key twice": ('{"subject": "a", "split": "train", "split": "test"}', "the key 'split' twice"),
    "NaN": ('{"subject": "a", "targets": {"age": NaN}}', "JSON does not have"),
    "unknown key": (json.dumps(row("a") | {"sesion": "1"}), "Did you mean 'session'?"),
    "unknown key of a series": (
        json.dumps({"subject": "a", "series": [{"path": "x", "contrst": "T1w"}]}),
        "series.0.contrst: keys are known (got 'T1w'). Did you mean 'contrast'?",
    ),
    "unknown contrast": (
        json.dumps({"subject": "a", "series": [{"path": "x", "contrast": "t1w"}]}),
        "Did you mean 'T1w'?",
    ),
    "unknown split": (json.dumps(row("a", split="tests")), "Did you mean 'test'?"),
    "no subject": (json.dumps({"series": [{"path": "x"}]}), 'Add "subject".'),
    "no series": (json.dumps({"subject": "a"}), 'Add "series".'),
    "an empty list of series": (json.dumps({"subject": "a", "series": []}), "at least 1 item"),
    "subject is a number": (json.dumps(row("a") | {"subject": 17}), "subject: Input should be a valid string"),
    "subject is empty": (json.dumps(row("a") | {"subject": ""}), "a name has no spaces"),
    "subject with a space": (json.dumps(row("a") | {"subject": "a "}), "a name has no spaces"),
    "session with a slash": (json.dumps(row("a") | {"session": "1/2"}), "a name has no spaces"),
    "absolute path": (json.dumps(row("a", mask="/masks/a.nii")), "relative to the manifest"),
    "empty path": (json.dumps(row("a", ehr="")), "relative to the manifest"),
    "a target that is true": (json.dumps(row("a", targets={"ill": True})), "targets.ill: a target is a number"),
    "a target that is an object": (
        json.dumps(row("a", targets={"ill": {"x": 1}})),
        "targets.ill: a target is a number",
    ),
    "missing file": (json.dumps(row("absent")), "no file images/absent.nii.gz"),
    "a folder for a mask": (json.dumps(row("good") | {"session": "2", "mask": "images"}), "no file images"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_told_with_its_number(collection: Callable[..., Path], case: str) -> None:
    line, complaint = BAD_LINES[case]
    message = refusal(collection(row("good"), "", line))
    assert "line 3" in message and complaint in message


def test_a_subject_in_two_splits_is_refused_with_both_lines(collection: Callable[..., Path]) -> None:
    rows = [row("a", "1", split="train"), row("b", split="test"), row("a", "2"), row("a", "3", split="test")]
    message = refusal(collection(*rows))
    assert "a subject is in one split" in message
    assert "subject 'a' in 'train' on line 1 and in 'test' on line 4" in message
    assert len(read_manifest(collection(*rows[:3])).rows) == 3  # no split is not another split


@pytest.mark.parametrize("first", SPLITS)
@pytest.mark.parametrize("second", SPLITS)
def test_any_two_splits_exclude_each_other(collection: Callable[..., Path], first: str, second: str) -> None:
    path = collection(row("a", "1", split=first), row("a", "2", split=second))
    if first == second:
        assert len(read_manifest(path).split(first)) == 2
    else:
        assert f"in '{first}' on line 1 and in '{second}' on line 2" in refusal(path)


def test_a_study_twice_is_refused(collection: Callable[..., Path]) -> None:
    assert "subject 'a', session '1' on lines 1 and 3" in refusal(collection(row("a", "1"), row("b"), row("a", "1")))


def test_an_image_under_two_subjects_is_refused(collection: Callable[..., Path]) -> None:
    again = row("b") | {"series": [{"path": "images/../images/a.nii.gz"}]}
    assert "of subject 'a' on line 1 and of subject 'b' on line 2" in refusal(collection(row("a"), again))


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xff\xfe{"])
def test_a_manifest_without_rows_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.jsonl").write_bytes(content)
    refusal(tmp_path / "m.jsonl")


def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "absent.jsonl")
    refusal(tmp_path)


def test_a_written_manifest_reads_back(collection: Callable[..., Path], tmp_path: Path) -> None:
    rows = read_manifest(
        collection(row("ä", "1", targets={"n": 1, "x": 1.0, "s": "1", "l": [None, "é"]}, split="test"), row("b"))
    ).rows
    write_manifest(tmp_path / "again.jsonl", rows)
    again = read_manifest(tmp_path / "again.jsonl").rows
    assert again == rows and type(again[0].targets["n"]) is int and type(again[0].targets["x"]) is float
    assert (tmp_path / "again.jsonl").read_text("utf-8").count("\n") == 2
    with pytest.raises(ValueError, match="frozen"):
        rows[0].subject = "c"  # pyright: ignore[reportAttributeAccessIssue]


def test_the_fingerprint_follows_manifest_names_and_sizes_wherever_they_lie(
    collection: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "ehr").mkdir()
    (tmp_path / "ehr" / "bundle.json").write_text("{}")
    rows = [row("a", mask="images/m.nii.gz", ehr="ehr"), row("b")]
    path = collection(*rows)
    first = read_manifest(path).fingerprint()
    assert len(first) == 64 and read_manifest(path).fingerprint() == first

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path, elsewhere, ignore=shutil.ignore_patterns("elsewhere"))
    assert read_manifest(elsewhere / "manifest.jsonl").fingerprint() == first

    seen = {first}
    for file in ("images/b.nii.gz", "images/m.nii.gz", "ehr/bundle.json"):
        with open(tmp_path / file, "ab") as handle:
            handle.write(b" ")
        seen.add(read_manifest(path).fingerprint())
    seen.add(read_manifest(collection(*rows, "")).fingerprint())
    assert len(seen) == 5


# ------------------------------------------------------------------------------------------------ one study


def complaint(path: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        study_from_path(path)
    assert caught.value.file
    return str(caught.value)


def test_a_file_is_a_study(nifti_file: Callable[..., Path]) -> None:
    study = study_from_path(nifti_file("head.nii.gz"))
    assert (study.subject, study.session, len(study.series)) == ("head", "", 1)
    study = study_from_path(str(nifti_file("sub-7_ses-2_T1w.nii")))
    assert (study.subject, study.session, study.reference.contrast) == ("sub-7", "ses-2", "T1w")


def test_a_folder_is_a_study_of_its_volumes_by_name(nifti_file: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("patient/T2w.nii", "patient/FLAIR.nii.gz", "patient/T1w.nii.gz"):
        nifti_file(name)
    (tmp_path / "patient" / "._T1w.nii.gz").write_bytes(b"macOS litter")
    (tmp_path / "patient" / "notes.txt").write_text("no volume")
    study = study_from_path(tmp_path / "patient")
    assert study.subject == "patient"
    assert [series.contrast for series in study.series] == ["FLAIR", "T1w", "T2w"]


def test_one_unreadable_volume_in_a_folder_is_an_error(nifti_file: Callable[..., Path]) -> None:
    nifti_file("patient/a.nii")
    folder = nifti_file("patient/b.nii", srow_x=[0, 0, 0, 0]).parent
    assert "b.nii: voxels are" in complaint(folder)


def test_two_subjects_or_sessions_in_a_folder_are_no_study(nifti_file: Callable[..., Path]) -> None:
    nifti_file("mixed/sub-1_T1w.nii")
    assert "sub-1 and sub-2" in complaint(nifti_file("mixed/sub-2_T1w.nii").parent)
    nifti_file("dates/sub-1_ses-a_T1w.nii")
    assert "ses-a and ses-b" in complaint(nifti_file("dates/sub-1_ses-b_T1w.nii").parent)


def test_a_row_is_named_behind_a_hash(collection: Callable[..., Path]) -> None:
    path = collection(row("a"), row("b", "1"), row("b", "2"))
    assert study_from_path(f"{path}#a").subject == "a"
    assert study_from_path(f"{path}#b/2").session == "2"
    assert "Use one of: 1, 2." in complaint(f"{path}#b")
    assert "Use one of: 1, 2." in complaint(f"{path}#b/3")
    assert "Use one of: a, b." in complaint(f"{path}#subject")
    assert "manifest.jsonl#a" in complaint(path)
    assert "readable" in complaint(path.with_name("absent.jsonl#a"))


def test_the_closest_of_many_subjects_is_suggested() -> None:
    rows = tuple(Row.model_validate(row(f"subject-{number:04d}")) for number in range(1000))
    with pytest.raises(InputError, match="Did you mean 'subject-0977'"):
        Collection(Path("m.jsonl"), rows, "").row("subjct-0977")
    with pytest.raises(InputError) as caught:
        Collection(Path("m.jsonl"), rows, "").row("xyz")
    assert len(str(caught.value)) < 500


def test_dicom_is_read_and_only_there_series_are_chosen(tmp_path: Path, nifti_file: Callable[..., Path]) -> None:
    made = write_series(tmp_path / "dicom" / "deep")
    for path in (tmp_path / "dicom", made.files[0].parent):
        assert study_from_path(path, ["1=T2w"]).reference.contrast == "T2w"
    with pytest.raises(InputError, match="chosen of DICOM"):
        study_from_path(nifti_file("T1w.nii"), ["1"])


def test_what_holds_no_study_is_refused_with_a_hint(tmp_path: Path, nifti_file: Callable[..., Path]) -> None:
    (tmp_path / "empty").mkdir()
    assert "0 files, none of them NIfTI" in complaint(tmp_path / "empty")
    nifti_file("anat/T1w.nii")
    assert "Give one of its folders: anat." in complaint(tmp_path)
    assert "no such file" in complaint(tmp_path / "absent.nii.gz")
    (tmp_path / "text.txt").write_bytes(gzip.compress(b"no volume"))
    assert "NIfTI" in complaint(tmp_path / "text.txt")


def test_real_folders(shared_data: Path) -> None:
    assert len(study_from_path(shared_data / "niivue_sample_heads").series) == 4
    with pytest.raises(InputError, match="8130 of 8192 bytes") as caught:
        study_from_path(shared_data / "edge_case_files" / "pydicom")
    assert caught.value.file is None  # names of DICOM folders are often patients' names
    assert study_from_path(shared_data / "niivue_sample_heads" / "T2w.nii.gz").reference.contrast == "T2w"
