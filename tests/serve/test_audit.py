"""The audit: whatever is done to it behind its back is found, and it can be handed over as FHIR."""

from __future__ import annotations

import json
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ehr.output import VERSIONS
from ehr.trail import trail_bundle
from foundation.errors import InputError
from serve.__main__ import main
from serve.audit import Audit

ROWS = [
    ("anna", "login.succeeded", "", {}),
    ("anna", "case.read", "k3", {"images": "a" * 64, "series": 2}),
    ("anna", "case.decided", "k3", {"finding": "all.tissue.right", "decision": "rejected"}),
    ("anna", "case.signed", "k3", {"state": "final", "text": "b" * 64}),
    ("bert", "login.failed", "", {"wait_s": 2.0}),
    ("server", "case.deleted", "k3", {"files": 9, "sha256": "c" * 64}),
    ("anna", "reading.failed", "", {"job": "d" * 32, "kind": "input", "where": "foundation.reading.nifti.read_nifti"}),
]


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    audit = Audit(tmp_path / "audit.sqlite")
    for row in ROWS:
        audit.append(*row)
    return audit


def behind_its_back(audit: Audit, *statements: str) -> None:
    connection = sqlite3.connect(audit.path)
    with connection:
        connection.execute("DROP TRIGGER log_is_not_changed")
        connection.execute("DROP TRIGGER log_is_not_cut")
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_what_was_appended_is_there_after_a_restart(audit: Audit):
    again = Audit(audit.path)
    assert again.verify() == len(ROWS)
    assert [(one.user, one.action, one.case_id, one.detail) for one in again.entries()] == ROWS
    assert [one.number for one in again.entries("k3")] == [2, 3, 4, 6]
    assert again.entries()[-1].hash == again.tip
    again.append("anna", "logout", "", {})
    assert audit.verify(noted=again.entries()[2].hash) == len(ROWS) + 1


def test_it_refuses_to_be_changed(audit: Audit):
    connection = sqlite3.connect(audit.path)
    for statement in ("UPDATE log SET user = 'x'", "DELETE FROM log WHERE number = 6"):
        with pytest.raises(sqlite3.IntegrityError, match="only grows"):
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "statements",
    [
        ("UPDATE log SET user = 'bert' WHERE number = 4",),
        ("UPDATE log SET at = replace(at, 'T', ' ') WHERE number = 1",),
        ("UPDATE log SET action = 'case.read' WHERE number = 6",),
        ("UPDATE log SET case_id = 'k4' WHERE number = 2",),
        ("UPDATE log SET detail = replace(detail, 'rejected', 'accepted')",),
        ("UPDATE log SET hash = replace(hash, 'a', 'b') WHERE number = 6",),
        ("DELETE FROM log WHERE number = 3",),
        ("DELETE FROM log WHERE number = 3", "UPDATE log SET number = number - 1 WHERE number > 3"),
        ("DELETE FROM log WHERE number = 6",),
        ("DELETE FROM log",),
        ("UPDATE log SET number = 99 WHERE number = 3", "UPDATE log SET number = 3 WHERE number = 4",
         "UPDATE log SET number = 4 WHERE number = 99"),
        ("INSERT INTO log SELECT 8, at, user, action, case_id, detail, hash FROM log WHERE number = 6",),
        ("DROP TABLE log",),
    ],
    ids=["user", "time", "action", "case", "detail", "hash", "drop", "drop and close up", "tail", "all", "reorder", "add",
         "no table"],
)  # fmt: skip
def test_every_forgery_is_found(audit: Audit, statements: tuple[str, ...]):
    behind_its_back(audit, *statements)
    with pytest.raises(InputError, match="audit is whole"):
        audit.verify()


def test_a_flipped_byte_is_found_or_changes_nothing(audit: Audit, tmp_path: Path):
    """Of the file's bytes many are free space: what matters is that no flip changes what the log says unseen."""
    content, said = audit.path.read_bytes(), audit.entries()
    rng = np.random.default_rng(0)
    at = content.index(b"anna")
    places = [*range(at, at + 120), *rng.choice(len(content), 200, replace=False).tolist()]
    found = 0
    for place in places:
        copy = Audit.__new__(Audit)
        copy.__dict__.update(audit.__dict__, path=tmp_path / "flipped.sqlite", head=tmp_path / "flipped.head")
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        copy.path.write_bytes(flipped)
        shutil.copy(audit.head, copy.head)
        try:
            copy.verify()
        except InputError:
            found += 1
            continue
        assert copy.entries() == said
    assert found >= 120


def test_a_lost_log_or_head_is_found(audit: Audit):
    head = audit.head.read_bytes()
    audit.head.unlink()
    with pytest.raises(InputError):
        Audit(audit.path).verify()
    with pytest.raises(InputError, match="head was lost"):
        audit.append("anna", "logout")
    audit.head.write_bytes(head)
    assert audit.verify() == len(ROWS)
    audit.path.unlink()
    with pytest.raises(InputError, match="head of one"):
        Audit(audit.path)


def test_a_new_history_does_not_hold_the_noted_hash(audit: Audit, tmp_path: Path):
    other = Audit(tmp_path / "other.sqlite")
    other.append("anna", "login.succeeded", "", {})
    with pytest.raises(InputError, match="noted"):
        other.verify(noted=audit.tip)


def test_no_sentence_gets_in(audit: Audit):
    for user, detail in (("Jane Doe", {}), ("anna", {"why": "the patient asked"}), ("anna", {"a b": 1})):
        with pytest.raises(AssertionError):
            audit.append(user, "case.amended", "k3", detail)
    assert audit.verify() == len(ROWS)


def test_threads_make_one_chain(audit: Audit):
    others = [audit, Audit(audit.path)]  # the second as another process would have it
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: others[n % 8 == 0].append(f"u{n}", "logout", "", {}), range(32)))
    assert audit.verify() == len(ROWS) + 32


def test_the_command_checks_and_hands_over(audit: Audit, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["audit", str(audit.path.parent), "--noted", audit.entries()[1].hash]
    assert main([*command, "--fhir", str(tmp_path / "trail.json"), "--version", "R5"]) == 0
    assert audit.tip in capsys.readouterr().out
    assert len(json.loads((tmp_path / "trail.json").read_text())["entry"]) == len(ROWS) + 4
    behind_its_back(audit, "UPDATE log SET user = 'bert' WHERE number = 4")
    assert main(command) == 2 and "row 4" in capsys.readouterr().err
    assert main(["audit", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_valid_fhir(audit: Audit, version):
    bundle = trail_bundle(audit.entries(), version=version)
    kinds = [one["resource"]["resourceType"] for one in bundle["entry"]]
    assert kinds.count("AuditEvent") == len(ROWS) and kinds.count("Provenance") == 4
    actions = [one["resource"]["action"] for one in bundle["entry"] if "action" in one["resource"]]
    assert actions == ["E", "C", "U", "U", "E", "D", "C"]
    failed = [one["resource"] for one in bundle["entry"] if "reading.failed" in json.dumps(one["resource"])]
    assert len(failed) == 1 and '"4"' in json.dumps(failed[0]["outcome"])
    assert trail_bundle([], version=version) == {"resourceType": "Bundle", "type": "collection"}
