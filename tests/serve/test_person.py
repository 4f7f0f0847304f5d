"""A record of somebody else beside the images is told, never refused; what is not said by both is not compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ehr.events import name_mark
from ehr.index import Admitted, admit, index_of
from ehr.record import read_records
from foundation.errors import InputError
from foundation.study import DicomSource, Study
from serve.person import differences
from serve.pipeline import read_study, record_before
from tests.ehr.making import PATIENT, bundle
from tests.foundation.reading.dicom_making import header
from tests.serve.making import head_series

JANE = PATIENT | {"name": [{"family": "Doe", "given": ["Jane"]}, {"family": "Müller"}]}
AT = "2020-05-01T10:00:00Z"
SEX, BORN, AGE, NAME = "say", "dates of birth", "age", "family names"


def record_of(folder: Path, patient: dict[str, Any]) -> Admitted:
    import json

    path = folder / "record.json"
    path.write_text(json.dumps(bundle(patient)))
    record = read_records(path).only()
    return admit(record, index_of(record, at=AT))


def study_of(**fields: Any) -> Study:
    """`Doe^Jane`, female, born on 1 July 1960, scanned on 1 May 2020, unless told otherwise."""
    return Study("s", (replace(head_series(16.0), source=DicomSource((header(**fields),), ())),))


@pytest.mark.parametrize(
    ("fields", "patient", "told"),
    [
        ({}, {}, []),
        ({"PatientSex": "M"}, {}, [SEX]),
        ({"PatientSex": "O"}, {}, []),
        ({"PatientSex": ""}, {"gender": "male"}, []),
        ({"PatientBirthDate": "19600702"}, {}, [BORN]),
        ({"PatientBirthDate": "19600101"}, {"birthDate": "1960"}, []),
        ({"PatientBirthDate": "19610101"}, {"birthDate": "1960-07"}, [BORN]),
        ({"PatientBirthDate": "", "PatientAge": "059Y"}, {}, []),
        ({"PatientBirthDate": "", "PatientAge": "040Y"}, {}, [AGE]),
        ({"PatientBirthDate": "", "PatientAge": ""}, {}, []),
        ({"PatientName": "DOE^JANE"}, {}, []),
        ({"PatientName": "Mu\u0308ller^J"}, {}, []),
        ({"PatientName": "Roe^Jane"}, {}, [NAME]),
        ({"PatientName": "Roe^Jane"}, {"identifier": [{"system": "urn:h", "value": "P-1"}]}, []),
        ({"PatientName": "Roe^Jane"}, {"name": "no list"}, []),
        ({"PatientName": "Roe^R", "PatientSex": "M", "PatientIdentityRemoved": "YES"}, {}, []),
        ({"PatientName": "Roe^R", "PatientSex": "M", "PatientBirthDate": "19800101"}, {}, [SEX, BORN, NAME]),
    ],
)  # fmt: skip
def test_what_differs_is_told(tmp_path: Path, fields: dict[str, Any], patient: dict[str, Any], told: list[str]) -> None:
    found = differences(study_of(**fields), record_of(tmp_path, JANE | patient))
    assert len(found) == len(told) and all(word in one for word, one in zip(told, found, strict=True)), found
    assert not any(word in one for one in found for word in ("Roe", "Doe", "19", "P-1")), "nobody is named"


def test_files_without_headers_say_nothing_and_a_reading_says_what_headers_do(tmp_path: Path) -> None:
    record = record_of(tmp_path, JANE | {"gender": "male"})
    assert differences(Study("s", (head_series(16.0),)), record) == ()
    reading = read_study(study_of(), [], record=record).reading
    assert any("is this the patient's record?" in one for one in reading.warnings), reading.warnings


def test_a_mark_is_no_name() -> None:
    assert name_mark("O'Neill") == name_mark("oneill") != name_mark("Neill") and "neill" not in name_mark("Neill")
    assert name_mark("") == name_mark(7) == name_mark("...") == ""


def test_a_record_without_its_time_is_told_which_option_says_it(tmp_path: Path) -> None:
    record_of(tmp_path, JANE)
    with pytest.raises(InputError, match="--at"):
        record_before(tmp_path / "record.json")
