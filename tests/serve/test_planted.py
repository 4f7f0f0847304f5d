"""A mark in every field of headers and records that can hold words: none is found where it was not asked for."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ehr.synthesis import make_bundle
from foundation.errors import InputError
from foundation.reading.dicom.child import survey
from foundation.reading.dicom.deidentify import IDENTITY
from serve.__main__ import main
from tests.ehr.making import patient_truth
from tests.foundation.reading.dicom_making import write_series
from tests.planting import Planted, identity_in, one_by_one, plant_dicom, plant_fhir
from tests.serve.making import head_file, tiny_model

pytestmark = pytest.mark.timeout(600)
ARCHIVED = {
    *IDENTITY,
    "StudyInstanceUID",
    "SeriesInstanceUID",
}  # what SEG and SR may repeat: the archive files them by it


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.parametrize("deidentify", [False, True])
def test_no_word_of_a_header_is_anywhere_but_where_the_archive_needs_it(
    tmp_path: Path, temporary: Path, deidentify: bool, capfd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    planted = plant_dicom(tmp_path / "in")
    assert len(planted.fields) > 5_000, "the dictionary is what it was"
    assert planted.found_in(tmp_path / "in") >= set(planted.fields.values()), (
        "they were planted and the search finds them"
    )
    model, out = tiny_model(tmp_path / "all"), tmp_path / "out"
    about = (model / "config.json").read_text()  # an agent is planted too, which makes it another contrast
    (model / "config.json").write_text(about.replace('"T1w"', '"T1w", "T1w-contrast"'))
    options = ["--deidentify"] if deidentify else []
    with caplog.at_level(logging.DEBUG):
        assert main(["read", str(tmp_path / "in"), str(out), "--model", str(model), "--bids", *options]) == 0
        assert main(["dicom", str(tmp_path / "in")]) == 0
    said = capfd.readouterr()
    assert planted.found_in(said.out, said.err, caplog.text, temporary) == set() and not list(temporary.iterdir())
    objects = set(out.rglob("*.dcm"))
    assert len(objects) == 2
    for file in (path for path in out.rglob("*") if path.is_file()):
        found = planted.found_in(file)
        if file in objects:
            # A content item's value is an element of its own: the series that a segment was drawn on.
            assert identity_in(file, planted) <= (set() if deidentify else {*ARCHIVED, "UID"}), file
            assert found <= (set() if deidentify else {*ARCHIVED, "a day", "a time"}) and bool(found) is not deidentify
        elif file.suffix == ".json" and file.parent.name == "fhir":
            assert found == (set() if deidentify else {"StudyInstanceUID"}), file
        else:
            assert found == set(), file


def test_what_cannot_be_read_is_not_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fields that decide how a file is read, each with words in place of its value."""
    files = write_series(tmp_path / "in", shape=(8, 8, 5)).files
    refused: set[str] = set()
    for number, (name, content, planted) in enumerate(one_by_one(files[0])):
        place = tmp_path / str(number)
        (place / "study").mkdir(parents=True)
        monkeypatch.chdir(place)
        (place / "study" / "one").write_bytes(content)
        for other in files[1:]:
            (place / "study" / other.name).hardlink_to(other)  # a link that leads out would not be followed
        try:
            answer = survey(str(place / "study"))
        except InputError as error:
            refused.add(name)
            said = str(error)
        else:
            for volume in answer["volumes"]:
                volume.pop("words")  # shown by larmor dicom --names alone
                refused |= {name} if volume["broken"] or volume["aside"] else set()
            said = json.dumps(answer)
        assert planted.found_in(said) <= ({"SeriesNumber"} if name == "SeriesNumber" else set()), (name, said)
    assert number > 250 and 5 < len(refused) < 100, refused


def planted_record(folder: Path) -> tuple[Path, Planted, str]:
    bundle, truth = make_bundle(patient_truth(0))
    grown, planted = plant_fhir(bundle)
    path = folder / f"{planted.mark('the name of a file')}.json"
    path.write_text(json.dumps(grown))
    return path, planted, truth["study_uid"]


def test_no_word_of_a_record_is_anywhere_unless_it_was_asked_for(
    tmp_path: Path, temporary: Path, capfd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    record, planted, uid = planted_record(tmp_path)
    assert len(planted.fields) > 1_000 and len(planted.found_in(record)) > 0.95 * len(set(planted.fields.values()))
    head, model = head_file(tmp_path / "sub-1_T1w.nii.gz"), tiny_model(tmp_path / "all")
    command = ["read", str(head), "--model", str(model), "--ehr", str(record), "--study-uid", uid]
    with caplog.at_level(logging.DEBUG):
        assert main([*command[:2], str(tmp_path / "out"), *command[2:]]) == 0
        assert main(["record", str(record)]) == 0
        audit, aside = (str(tmp_path / "record" / name) for name in ("audit.json", "aside.jsonl"))
        (tmp_path / "record").mkdir()
        assert main(["record", str(record), "--study", uid, "--audit", audit, "--quarantine", aside]) == 0
        for wrong in (["--study-uid", "9.9"], []):
            main([*command[:2], str(tmp_path / "wrong"), *command[2:-2], *wrong])
    said = capfd.readouterr()
    assert "larmor: " in said.err, "something was refused"
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != "reading.json"]
    assert planted.found_in(*written, tmp_path / "record", said.out, said.err, caplog.text) == set()
    # A program finds a diagnosis again in the record by its resource's own name, which reading.json repeats.
    assert all(one.endswith(".id") for one in planted.found_in(tmp_path / "out" / "reading.json"))
    assert not list(temporary.iterdir())
    assert main([*command[:2], str(tmp_path / "words"), *command[2:], "--record-words"]) == 0
    quoted = {one for one in planted.found_in(tmp_path / "words", capfd.readouterr().out) if not one.endswith(".id")}
    assert quoted == {"ServiceRequest.note", "ServiceRequest.reasonCode.text"}
