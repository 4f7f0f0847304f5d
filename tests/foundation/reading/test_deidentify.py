"""Identifiers planted in every field that DICOM has: none is left, in headers, outputs, messages, logs or names."""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag

from foundation.errors import InputError
from foundation.findings import Finding, Reading, SeriesSummary
from foundation.reading.dicom.deidentify import Key, deidentified
from foundation.reading.dicom.study import study_from_dicom
from heads.report.templates import draft
from serve.__main__ import main
from serve.pipeline import StudyReading, save_reading
from tests.foundation.reading.dicom_making import CAPTURE, header, oblique, write_enhanced, write_series

TOKEN, NUMBER, DATE = "QXPLANTED", 987654321, "19501231"
TOKENS = (TOKEN.encode(), str(NUMBER).encode(), DATE.encode(),
          *(kind(NUMBER).tobytes() for kind in (np.uint32, np.float32, np.float64)))  # fmt: skip
WORDS = {"AE": TOKEN, "AS": "071Y", "CS": TOKEN, "DA": DATE, "DT": f"{DATE}101010", "LO": TOKEN, "LT": TOKEN, "PN": f"{TOKEN}^A",
         "SH": TOKEN, "ST": TOKEN, "TM": "101010", "UC": TOKEN, "UR": TOKEN, "UT": TOKEN, "UI": f"1.2.{NUMBER}.1"}  # fmt: skip
NUMERIC = {"DS": str(NUMBER), "IS": str(NUMBER), "FL": float(NUMBER), "FD": float(NUMBER), "SL": NUMBER, "UL": NUMBER, "SV": NUMBER,
           "UV": NUMBER}  # fmt: skip
BYTES = {"OB": TOKEN.encode() + b"X", "OW": TOKEN.encode() + b"X", "UN": TOKEN.encode() + b"X"}


def planted(depth: int = 0) -> Dataset:
    """A dataset with every element of the dictionary that can hold an identifier, and private ones; sequences hold them again."""
    dataset = Dataset()
    for number, (kind, _, _, _, keyword) in DicomDictionary.items():
        tag = Tag(number)
        if not keyword or tag.group <= 2 or keyword in ("SpecificCharacterSet", "PixelData"):
            continue
        kind = kind.split(" ")[0]
        if kind == "SQ":
            if depth < 1:
                dataset.add(
                    DataElement(
                        tag, "SQ", Items([planted(depth + 1)] if keyword.startswith(("P", "Req", "Sh")) else [_few()])
                    )
                )
        elif (value := {**WORDS, **NUMERIC, **BYTES}.get(kind)) is not None:
            dataset.add(DataElement(tag, kind, value))
    block = dataset.private_block(0x0019, f"{TOKEN} MAKER", create=True)
    block.add_new(0x01, "LO", TOKEN)
    block.add_new(0x02, "DS", str(NUMBER))
    return dataset


def _few() -> Dataset:
    item = Dataset()
    item.PatientName, item.PatientID, item.StudyDate = f"{TOKEN}^B", TOKEN, DATE
    return item


def leaks(content: bytes) -> list[bytes]:
    return [token for token in TOKENS if token in content]


def test_nothing_planted_in_any_field_is_left() -> None:
    dataset = planted()
    dataset.file_meta = header().file_meta
    dataset.file_meta.SourceApplicationEntityTitle = TOKEN
    dataset.preamble = TOKEN.encode().ljust(128)
    assert len(dataset) > 3000, "the dictionary is what it was"
    file = BytesIO()
    dataset.save_as(file)
    assert len(leaks(file.getvalue())) >= 5, "they were planted"
    out = BytesIO()
    deidentified(dataset, Key(b"k" * 32)).save_as(out)
    assert leaks(out.getvalue()) == []


def test_what_places_and_scales_the_pixels_is_kept(tmp_path: Path) -> None:
    write_series(tmp_path / "classic", affine=oblique(27.0))
    write_enhanced(tmp_path / "frames")
    for name in ("classic", "frames"):
        assert main(["deidentify", str(tmp_path / name), str(tmp_path / f"{name}-clean")]) == 0
        before, after = (study_from_dicom(tmp_path / place).reference for place in (name, f"{name}-clean"))
        np.testing.assert_array_equal(before.voxels, after.voxels)
        np.testing.assert_allclose(before.affine, after.affine, atol=1e-6)
        assert before.acquisition == after.acquisition
    clean = pydicom.dcmread(tmp_path / "classic-clean" / "00001.dcm")
    assert clean.PatientIdentityRemoved == "YES" and clean.PatientBirthDate == "" and clean.StudyDate == ""
    assert clean.PatientID.startswith("patient-") and "SeriesTime" not in clean and clean.SeriesDescription == ""


def test_one_key_gives_one_pseudonym_and_another_key_another() -> None:
    dataset, key = header(), Key(b"k" * 32)
    one, two, three = (deidentified(dataset, each) for each in (key, Key(b"k" * 32), Key(b"x" * 32)))
    assert one == two and one.PatientID != three.PatientID and one.StudyInstanceUID != three.StudyInstanceUID
    assert one.SOPClassUID == dataset.SOPClassUID and one.StudyInstanceUID != dataset.StudyInstanceUID
    assert deidentified(header("2"), key).StudyInstanceUID == one.StudyInstanceUID
    with pytest.raises(InputError, match="at least 32 bytes"):
        Key(b"short")


def test_pictures_of_screens_are_not_passed_on(tmp_path: Path, capsys: Any) -> None:
    write_series(tmp_path / "in", "1")
    write_series(tmp_path / "in", "2", sop_class=CAPTURE)
    write_series(tmp_path / "in", "3", BurnedInAnnotation="YES")
    (tmp_path / "in" / "notes.txt").write_text("x")
    assert main(["deidentify", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "written: 6" in said and "burned in: 12" in said and "not DICOM: 1" in said
    assert len(list((tmp_path / "out").iterdir())) == 6


@pytest.mark.parametrize("deidentify", [True, False])
def test_a_reading_names_the_patient_only_where_it_was_asked_to(
    tmp_path: Path, deidentify: bool, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way of `larmor read`, with identifiers in fields, private elements, folder and file names."""
    monkeypatch.setenv("LARMOR_MODELS", str(tmp_path / "none"))
    fields = dict.fromkeys(("SeriesDescription", "ProtocolName", "InstitutionName", "StudyDescription", "PatientComments",
                            "StationName", "OperatorsName", "AccessionNumber", "StudyID", "ImageComments"), TOKEN)  # fmt: skip
    fields |= {"PatientName": f"{TOKEN}^X", "PatientID": str(NUMBER), "PatientBirthDate": DATE, "StudyDate": DATE}
    fields |= {"SoftwareVersions": TOKEN, "Manufacturer": TOKEN}
    made = write_series(tmp_path / "made", order=range(6), **fields)
    scans = tmp_path / "in" / TOKEN
    scans.mkdir(parents=True)
    for number, file in enumerate(made.files):
        dataset = pydicom.dcmread(file)
        dataset.private_block(0x0019, "MAKER", create=True).add_new(1, "LO", TOKEN)
        dataset.save_as(scans / f"{TOKEN}-{number}.dcm")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    options = ["--deidentify"] if deidentify else []
    assert main(["read", str(tmp_path / "in"), str(tmp_path / "out"), *options]) == 0
    study = study_from_dicom(tmp_path / "in", deidentify=deidentify)
    finding = Finding(id="m.a", name="a", anatomy="brain", side="left", presence="present", source="m")
    reading = Reading(subject=study.subject, series=(SeriesSummary.of(study.reference),), findings=(finding,))
    save_reading(StudyReading(study, reading, draft(reading), {}), tmp_path / "out" / "with a finding", bids=True)
    assert (tmp_path / "out" / "with a finding" / "dicom" / "measurements.dcm").is_file()
    for file in (path for path in (tmp_path / "out").rglob("*") if path.is_file()):
        is_for_the_archive = file.parent.name == "dicom" and not deidentify
        assert leaks(file.name.encode()) == [] and bool(leaks(file.read_bytes())) is is_for_the_archive, file
    said = capfd.readouterr()
    assert leaks((said.out + said.err).encode()) == [] and list(temporary.iterdir()) == []

    damaged = scans / f"{TOKEN}-1.dcm"
    damaged.write_bytes(damaged.read_bytes()[:-7])
    assert main(["read", str(tmp_path / "in"), str(tmp_path / "out2"), *options]) == 2
    damaged.unlink()
    assert main(["read", str(tmp_path / "in"), str(tmp_path / "out2"), *options]) == 2
    shutil.rmtree(scans)
    said = capfd.readouterr()
    assert leaks((said.out + said.err).encode()) == [] and "missing" in said.err
