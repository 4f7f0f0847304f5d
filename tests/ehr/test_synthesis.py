"""Synthetic records: valid but for what is meant to be broken, true to the cohort, and bait for whoever looks ahead."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ehr.analytes import BY_LOINC
from ehr.features import age_years, tabulate
from ehr.index import EMBARGOED, IMPRECISE, INVALID, LATE, LATER, OWN, Admitted, admit, index_of
from ehr.outcomes import outcome_after
from ehr.record import Records, read_records
from ehr.synthesis import FOUND, HISTORY, TIDY, Mess, make_bundle, write_records
from ehr.units import State
from ehr.vocabulary import Vocabulary
from foundation.errors import InputError
from foundation.reading.collection import Row, SeriesEntry, read_manifest, write_manifest
from tests.ehr.making import patient_truth

NUM_PATIENTS = 24
MUCH = Mess(no_unit=0.3, wrong_unit=0.2, other_unit=0.3, repeated=0.3, no_zone=0.3, unknown_field=0.3)


def made(
    folder: Path, mess: Mess | None = None, *, strict: bool = False
) -> tuple[Records, list[dict[str, Any]], list[Admitted]]:
    """The records of synthetic patients, R4 and R5 by turns, their truths, and what of them may be known at their index."""
    truths = []
    for number in range(NUM_PATIENTS):
        bundle, truth = make_bundle(patient_truth(number), version="R5" if number % 2 else "R4", mess=mess)
        (folder / f"{number:02d}.json").write_text(json.dumps(bundle))
        truths.append(truth)
    records = read_records(folder, strict=strict)
    indices = [index_of(one, study_uid=truth["study_uid"]) for one, truth in zip(records.values(), truths, strict=True)]
    return records, truths, [admit(one, index) for one, index in zip(records.values(), indices, strict=True)]


def test_tidy_records_are_valid_without_a_single_repair(tmp_path: Path):
    records, _, _ = made(tmp_path, TIDY, strict=True)
    summary = records.summary
    assert summary.quarantined == [] and summary.repairs == Counter() and summary.unread == Counter()
    assert set(summary.versions) == {"R4B", "R5"} and len(records) == NUM_PATIENTS


def test_messy_records_are_valid_once_mended(tmp_path: Path):
    records, _, _ = made(tmp_path, MUCH, strict=True)
    assert records.summary.quarantined == []
    assert set(records.summary.repairs) == {"an unknown field", "a time without a zone"}


@pytest.mark.parametrize("mess", [TIDY, Mess(), MUCH])
def test_what_was_drawn_is_what_is_read(mess: Mess, tmp_path: Path):
    """Every laboratory value that was not spoilt, to rounding, in the cohort's unit; history, age, sex and outcome."""
    records, truths, admitted = made(tmp_path, mess)
    table = tabulate(admitted, Vocabulary.fit(admitted, min_patients=1))
    num_spoilt = 0
    for number, (record, truth, one) in enumerate(zip(records.values(), truths, admitted, strict=True)):
        patient = patient_truth(number)
        for value in patient["laboratory"]:
            name = BY_LOINC[value["loinc"]].name
            if value["name"] in truth["spoilt"]:
                num_spoilt += 1
            else:
                assert table.column(f"ANALYTE|{name} last")[number] == pytest.approx(value["value"], rel=1e-6)
        codes = {code for event in one.events if event.kind == "Condition" for code in event.codes}
        for name, concept in HISTORY.items():
            its_codes = {f"{'SNOMED' if 'snomed' in system else 'ICD10CM'}|{code}" for system, code in concept.codes}
            assert bool(codes & its_codes) == (name in patient["history"]), name
        assert age_years(one) == pytest.approx(patient["subject"]["age_years"], abs=0.1)
        assert record.sex == patient["subject"]["sex"]
        outcome, drawn = outcome_after(record, one.index), patient["outcome"]
        assert outcome is not None
        assert outcome.time_days == pytest.approx(min(drawn["event_days"], drawn["censor_days"]), abs=0.02)
        assert outcome.is_observed == (drawn["event_days"] <= drawn["censor_days"])
    assert (num_spoilt > 0) == (mess != TIDY)


def test_spoilt_values_are_present_and_unusable(tmp_path: Path):
    _, truths, admitted = made(tmp_path, MUCH)
    states = Counter(event.state for one in admitted for event in one.events)
    spoilt = Counter(how for truth in truths for how in truth["spoilt"].values())
    assert states[State.NO_UNIT] >= spoilt["no unit"] > 0
    assert states[State.UNKNOWN_UNIT] >= spoilt["wrong unit"] > 0


def test_the_disease_is_in_the_record_and_never_in_what_is_admitted(tmp_path: Path):
    """Dated before, recorded before, a result of the report: every way in which the answer lies there, none gets in."""
    records, _, admitted = made(tmp_path)
    answers = {code for concept in FOUND.values() for _, code in concept.codes}
    num_leaks = 0
    for record, one in zip(records.values(), admitted, strict=True):
        said = [event for event in record.events if any(code.rpartition("|")[2] in answers for code in event.codes)]
        num_leaks += sum(event.happened.lo < one.index.time for event in said if event.happened)
        assert not [event for event in one.events if event in said and not event.codes[0].startswith("family:")]
    assert num_leaks > 20
    reasons = set().union(*(one.audit.counts for one in admitted))
    assert reasons >= {INVALID, OWN, EMBARGOED, LATER, LATE, IMPRECISE}


def test_a_bundle_repeats_and_versions_say_the_same(tmp_path: Path):
    assert make_bundle(patient_truth(3)) == make_bundle(patient_truth(3))
    assert make_bundle(patient_truth(3)) != make_bundle(patient_truth(3, seed=1))
    found = []
    for version in ("R4", "R5"):
        bundle, truth = make_bundle(patient_truth(3), version=version)
        (tmp_path / "b.json").write_text(json.dumps(bundle))
        record = read_records(tmp_path).only()
        events = admit(record, index_of(record, study_uid=truth["study_uid"])).events
        found.append(([replace(event, status="") for event in events], truth | {"version": ""}))
    assert found[0] == found[1]


def test_records_lie_beside_a_cohort_and_are_named_in_its_manifest(tmp_path: Path):
    """The cohort's files as far as records need them; `test_command.py` makes a whole one."""
    manifest, rows = tmp_path / "manifest.jsonl", []
    for number in range(3):
        patient = patient_truth(number)
        name, (event, censor) = f"sub-{number:05d}", patient["outcome"].values()
        (tmp_path / name).mkdir()
        (tmp_path / name / "truth.json").write_text(json.dumps(patient))
        (tmp_path / name / "T1w.nii.gz").touch()
        targets: dict[str, Any] = {"time_days": min(event, censor), "is_observed": int(event <= censor)}
        rows.append(Row(subject=name, series=(SeriesEntry(path=f"{name}/T1w.nii.gz"),), targets=targets))
    write_manifest(manifest, rows)
    write_records(tmp_path, version="mixed")
    first = manifest.read_bytes()
    rows = read_manifest(manifest).rows
    for row in rows:
        assert row.ehr is not None
        record = read_records(manifest.parent / row.ehr, strict=True).only()
        index = index_of(record, study_uid=row.study_uid)
        outcome = outcome_after(record, index)
        assert outcome is not None and admit(record, index).audit.num_kept > 10
        assert outcome.time_days == pytest.approx(row.targets["time_days"], abs=0.1)
        assert outcome.is_observed == bool(row.targets["is_observed"])
    write_records(tmp_path, version="mixed")
    assert manifest.read_bytes() == first
    with pytest.raises(InputError, match="R4"):
        write_records(tmp_path, version="R3")
