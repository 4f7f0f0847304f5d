"""The future is poisoned and nothing changes: facts at or after the index, however they are dressed, leave every feature as it was.

The poison and the comparison, by bytes, are those of `benchmarks/poison.py`, which runs over whole sources.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.poison import (
    EARLIER_DAYS,
    Poison,
    features,
    gained_by_looking_earlier,
    indices_of,
    moved_by_poison,
    write_poison,
)
from ehr.index import Index, admit, index_of
from ehr.record import Records, read_records
from ehr.synthesis import make_bundle
from ehr.times import DAY_S
from ehr.vocabulary import Vocabulary
from tests.ehr.making import patient_truth

NUM_PATIENTS = 12


@pytest.fixture
def cohort(tmp_path: Path) -> tuple[Records, dict[str, Index]]:
    """Synthetic patients in both versions, and each one's index study; more may be written beside them."""
    uids = {}
    for number in range(NUM_PATIENTS):
        made, truth = make_bundle(patient_truth(number), version="R5" if number % 2 else "R4")
        (tmp_path / f"{number}.json").write_text(json.dumps(made))
        uids[f"Patient/sub-{number:05d}"] = truth["study_uid"]
    records = read_records(tmp_path)
    return records, {subject: index_of(record, study_uid=uids[subject]) for subject, record in records.items()}


def test_poison_changes_no_feature_of_the_cohort(cohort: tuple[Records, dict[str, Index]], tmp_path: Path):
    records, indices = cohort
    assert write_poison(tmp_path, records, indices, per_patient=70, seed=0) > 2000
    assert moved_by_poison(records, read_records(tmp_path), indices) == []


def test_the_poison_would_be_seen(cohort: tuple[Records, dict[str, Index]], tmp_path: Path):
    """The test above can fail: by a later index, or without the study's own left out, the same facts change every patient."""
    records, indices = cohort
    write_poison(tmp_path, records, indices, per_patient=40, seed=2)
    poisoned = read_records(tmp_path)
    later = {subject: replace(index, time=index.time + 3650 * DAY_S) for subject, index in indices.items()}
    assert moved_by_poison(records, poisoned, later) == list(indices)
    open_ended = {subject: replace(index, study=frozenset()) for subject, index in indices.items()}
    before = {subject: admit(records[subject], index) for subject, index in indices.items()}
    after = {subject: admit(poisoned[subject], index) for subject, index in open_ended.items()}
    vocabulary = Vocabulary.fit(before.values(), min_patients=1)
    ours, theirs = features(before, vocabulary), features(after, vocabulary)
    assert all(ours[subject][view] != theirs[subject][view] for subject in indices for view in (0, 1))


def test_an_earlier_index_only_removes_events(cohort: tuple[Records, dict[str, Index]]):
    records, indices = cohort
    assert [gained_by_looking_earlier(records[subject], index) for subject, index in indices.items()] == [
        0
    ] * NUM_PATIENTS
    latest, earliest = (
        indices["Patient/sub-00000"].earlier(days * DAY_S) for days in (EARLIER_DAYS[0], EARLIER_DAYS[-1])
    )
    record = records["Patient/sub-00000"]
    assert len(admit(record, latest).events) > 10 and len(admit(record, earliest).events) == 0


@pytest.mark.parametrize("name", ["fhir_synthea_r4/bundles", "fhir_hl7_r4_examples", "fhir_validator_cases"])
def test_neither_changes_real_records(name: str, shared_data: Path, tmp_path: Path):
    """Of Synthea's 56 bundles the two smallest; docs/record.md has the run over all of them."""
    if not (shared_data / name).is_dir():
        pytest.skip(f"{name} is not among the real data")
    files = sorted((shared_data / name).rglob("*.json*"), key=lambda path: path.stat().st_size)
    for path in files[:2] if "synthea" in name else files[:200]:
        (tmp_path / path.name).symlink_to(path)
    records = read_records(tmp_path)
    indices = indices_of(records)
    assert write_poison(tmp_path, records, indices, per_patient=12, seed=1) > 30
    assert moved_by_poison(records, read_records(tmp_path), indices) == []
    assert {gained_by_looking_earlier(records[subject], index) for subject, index in indices.items()} == {0}


def test_poison_repeats_with_its_seed(cohort: tuple[Records, dict[str, Index]]):
    from numpy.random import default_rng

    records, indices = cohort
    subject, index = next(iter(indices.items()))
    first, again, other = (Poison(records[subject], index, default_rng(seed), "x").facts(9) for seed in (3, 3, 4))
    assert first == again != other
