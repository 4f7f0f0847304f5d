"""Pseudonyms: nothing of a patient is left, everything that matters is, and who has no key cannot undo it."""

from __future__ import annotations

import json
import stat
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ehr.command import record_command
from ehr.features import age_years, sequence_of, tabulate
from ehr.index import admit, index_of
from ehr.outcomes import outcome_after
from ehr.privacy import FARTHEST_SHIFT_DAYS, KEY_BYTES, Pseudonyms, new_key
from ehr.record import Record, read_records
from ehr.synthesis import make_bundle
from ehr.times import DAY_S, YEAR_S
from ehr.vocabulary import Vocabulary
from foundation.errors import InputError
from tests.ehr.making import bundle, patient_truth

KEY = bytes(range(KEY_BYTES))
SECRETS = ("Musterfrau", "MRN-4711", "grimhilde@example.org", "1931-02-03", "2.25.99887766", "Beethovenstraße")


def secret_resources() -> list[dict[str, object]]:
    """A patient whose names and numbers are in every place that a file has for them, and in some that it has not."""
    name, number, mail, birth, uid, street = SECRETS
    who = {"reference": f"Patient/{number}", "display": name}
    code = {"coding": [{"system": "http://loinc.org", "code": "2345-7", "display": name}], "text": f"glucose of {name}"}
    patient = {
        "resourceType": "Patient", "id": number, "name": [{"family": name}], "birthDate": birth, "telecom": [{"value": mail}],
        "identifier": [{"system": "https://hospital.example", "value": number}], "address": [{"line": [street]}],
    }  # fmt: skip
    scan = {
        "resourceType": "ImagingStudy", "id": f"study-{number}", "status": "available", "subject": who,
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}], "modality": [{"code": "MR"}],
        "started": "2020-05-03T10:00:00Z", "note": [{"text": name}], "encounter": {"reference": f"Encounter/{number}"},
    }  # fmt: skip
    seen = {
        "resourceType": "Observation", "id": f"{name}-1", "status": "final", "subject": who, "code": code, "note": [{"text": mail}],
        "effectiveDateTime": "2020-04-01T10:00:00Z", "encounter": {"reference": f"Encounter/{number}"},
        "valueQuantity": {"value": 90, "unit": f"mg/dL ({name})", "code": "mg/dL"},
    }  # fmt: skip
    broken = {
        "resourceType": "Observation",
        "id": name,
        "status": name,
        "subject": None,
        name: {"deep": number},
        "code": name,
    }
    return [patient, scan, seen, seen | {"id": "2", "status": name, "issued": name}, broken, {"resourceType": name}]


def secrets_in(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret.lower() in text.lower()]


@pytest.fixture
def secret_record(tmp_path: Path) -> Record:
    (tmp_path / "bundle.json").write_text(json.dumps(bundle(*secret_resources())))
    return read_records(tmp_path / "bundle.json").only()


def test_nothing_of_a_patient_is_left(secret_record: Record):
    assert secrets_in(repr(secret_record))
    hidden = Pseudonyms(KEY).record(secret_record)
    assert secrets_in(repr(hidden)) == []
    assert secrets_in(json.dumps(asdict(hidden), default=str)) == []


@pytest.mark.parametrize("strict", [False, True])
def test_nothing_of_a_patient_is_printed_or_written(
    strict: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], secret_record: Record
):
    """The command's lines, its audit, its list of what was set aside, and every error on the way."""
    audit, aside = tmp_path / "audit.json", tmp_path / "aside.jsonl"
    source = tmp_path / "bundle.json"
    record_command(source, strict=strict, study_uid=SECRETS[4], audit=audit, quarantine=aside)
    printed = capsys.readouterr()
    assert "set aside" in printed.out and json.loads(audit.read_text())["num_kept"] >= 1
    assert len(aside.read_text().splitlines()) >= 1
    assert secrets_in(printed.out + printed.err + audit.read_text() + aside.read_text()) == []
    with pytest.raises(InputError) as caught:
        index_of(replace(secret_record, studies=()))
    assert secrets_in(str(caught.value)) == []


def test_free_text_is_kept_only_if_it_is_asked_for(tmp_path: Path):
    (tmp_path / "b.json").write_text(json.dumps(bundle(*secret_resources())))
    assert {event.text for event in read_records(tmp_path).only().events} == {None}
    asked = read_records(tmp_path, free_text=True).only()
    assert any(event.text for event in asked.events)
    assert {event.text for event in Pseudonyms(KEY).record(asked).events} == {None}


def test_features_and_outcomes_are_those_of_the_record_itself(tmp_path: Path):
    """Byte by byte: a shift of whole days moves nothing against anything else."""
    (tmp_path / "b.json").write_text(json.dumps(make_bundle(patient_truth(1))[0]))
    uid = make_bundle(patient_truth(1))[1]["study_uid"]
    record = read_records(tmp_path).only()
    index = index_of(record, study_uid=uid)
    pseudonyms = Pseudonyms(KEY)
    hidden = pseudonyms.record(record)
    plain, moved = admit(record, index), admit(hidden, pseudonyms.index(index, record))
    assert plain.audit == moved.audit and plain.audit.num_kept > 20
    vocabulary = Vocabulary.fit([plain], min_patients=1)
    ours, theirs = sequence_of(plain, vocabulary), sequence_of(moved, vocabulary)
    assert sorted(zip(ours.code.tolist(), ours.log_days.tolist())) == sorted(
        zip(theirs.code.tolist(), theirs.log_days.tolist())
    )
    assert tabulate([plain], vocabulary).values.tobytes() == tabulate([moved], vocabulary).values.tobytes()
    assert outcome_after(record, index) == outcome_after(hidden, pseudonyms.index(index, record))
    assert index_of(hidden, study_uid=pseudonyms.key(f"uid:{uid}").removeprefix("uid:")).time != index.time


def test_a_patient_has_one_shift_of_whole_days_into_the_past(secret_record: Record):
    pseudonyms = Pseudonyms(KEY)
    hidden = pseudonyms.record(secret_record)
    shifts = {
        round(new.happened.lo - old.happened.lo, 6)
        for old, new in zip(secret_record.events, hidden.events, strict=True)
        if old.happened and new.happened
    }
    (shift,) = shifts
    assert shift % DAY_S == 0 and -FARTHEST_SHIFT_DAYS * DAY_S <= shift < 0
    everybody = {pseudonyms.shift_s(f"Patient/{number}") for number in range(200)}
    assert len(everybody) > 150


def test_another_key_gives_other_names_and_dates(secret_record: Record):
    ours, again, theirs = (Pseudonyms(key).record(secret_record) for key in (KEY, KEY, KEY[::-1]))
    assert ours == again
    assert ours.subject != theirs.subject and ours.events[0].happened != theirs.events[0].happened
    assert len(ours.subject) == 26


def test_nobody_is_older_than_90_in_a_pseudonymous_record(secret_record: Record):
    old = replace(secret_record.person, birth=secret_record.person.birth.shifted(-30 * YEAR_S))  # pyright: ignore[reportOptionalMemberAccess, reportArgumentType]
    record = replace(secret_record, person=old)
    pseudonyms = Pseudonyms(KEY)
    hidden = pseudonyms.record(record)
    last = max(event.happened.hi for event in hidden.events if event.happened)
    assert hidden.birth is not None
    assert last - hidden.birth.lo <= 90.01 * YEAR_S
    index = index_of(record)
    assert age_years(admit(record, index)) == age_years(admit(hidden, pseudonyms.index(index, record))) == 90


def test_a_key_is_secret_and_never_replaced(tmp_path: Path):
    path = tmp_path / "key"
    new_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(path.read_bytes()) == KEY_BYTES
    assert Pseudonyms.from_file(path).of("x") != Pseudonyms(KEY).of("x")
    with pytest.raises(InputError):
        new_key(path)
    with pytest.raises(InputError):
        Pseudonyms(b"short")
    with pytest.raises(InputError):
        Pseudonyms.from_file(tmp_path / "absent")
