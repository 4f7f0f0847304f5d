"""Who did what to which case: a log that only grows, in which every row's hash covers the row before it.

    audit = Audit(folder / "audit.sqlite")
    audit.append("anna", "case.signed", case.id, {"state": "final", "text": sha})
    audit.verify()                                 the number of rows, or an InputError that names the first one that is wrong

The hash and number of the last row are kept in a second file (`head`, which may lie on another disk), written in the same
transaction: without it nobody could tell a log from one whose end was cut off. Whoever can write both files can still write a new
history from its beginning; against that, note the head now and then (`larmor audit DIR` prints it) and ask `verify` for it later.

No patient's data belongs here, so nothing that could be a sentence gets in: users, actions and details are short words, numbers and
hashes, of which the form is checked.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ehr.output import Version
from ehr.trail import trail_bundle
from foundation.errors import InputError
from foundation.files import write_aside

START = "0" * 64  # what the first row's hash covers
WORD = re.compile(r"[A-Za-z0-9_.:+-]{0,80}")
Detail = Mapping[str, str | int | float | bool | None]

SCHEMA = (
    """CREATE TABLE main.log (
    number INTEGER PRIMARY KEY, at TEXT NOT NULL, user TEXT NOT NULL, action TEXT NOT NULL, case_id TEXT NOT NULL,
    detail TEXT NOT NULL, hash TEXT NOT NULL) STRICT""",
    """CREATE TRIGGER main.log_is_not_changed BEFORE UPDATE ON log
    BEGIN SELECT RAISE(ABORT, 'the audit only grows'); END""",
    """CREATE TRIGGER main.log_is_not_cut BEFORE DELETE ON log
    BEGIN SELECT RAISE(ABORT, 'the audit only grows'); END""",
    "CREATE TABLE second.head (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER, hash TEXT) STRICT",
    f"INSERT INTO second.head VALUES (1, 0, '{START}')",
)


@dataclass(frozen=True)
class Entry:
    """One row. `hash` covers all else of it, and the hash of the row before."""

    number: int
    at: str
    user: str
    action: str
    case_id: str
    detail: dict[str, str | int | float | bool | None]
    hash: str


class Audit:
    """The log at `path`; threads and processes may share it."""

    def __init__(self, path: Path, head: Path | None = None):
        self.path, self.head = path.absolute(), (head or path.with_suffix(".head")).absolute()
        self._lock = threading.Lock()
        for file in (self.path, self.head):
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.touch(mode=0o600)
        with self._connection() as connection:
            if self.path.stat().st_size:
                return
            connection.execute("BEGIN IMMEDIATE")
            if not connection.execute("SELECT 1 FROM main.sqlite_master").fetchone():  # nobody was faster
                if connection.execute("SELECT 1 FROM second.sqlite_master").fetchone():
                    raise _wrong("no log, but the head of one", self.path)
                for statement in SCHEMA:
                    connection.execute(statement)
            connection.execute("COMMIT")

    def append(self, user: str, action: str, case_id: str = "", detail: Detail | None = None) -> Entry:
        """Add a row; when this returns, it and the new head are on disk."""
        (entry,) = self.append_all([(user, action, case_id, detail or {})])
        return entry

    def append_all(self, rows: Sequence[tuple[str, str, str, Detail]]) -> list[Entry]:
        """Several rows, all of them or none."""
        for user, action, case_id, detail in rows:
            words = [user, action, case_id, *detail, *(one for one in detail.values() if isinstance(one, str))]
            bad = [word for word in words if not WORD.fullmatch(word)]
            assert not bad, f"{len(bad)} of {action}'s words are no plain words"  # not shown: who knows what they say
        entries: list[Entry] = []
        with self._lock, self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            if not connection.execute("SELECT 1 FROM second.sqlite_master").fetchone():
                raise _wrong("a log whose head was lost", self.path)
            number, before = connection.execute("SELECT number, hash FROM second.head").fetchone()
            for user, action, case_id, detail in rows:
                number += 1
                at = datetime.now(UTC).isoformat(timespec="milliseconds")
                before = _hash(before, number, at, user, action, case_id, _json(detail))
                entries.append(Entry(number, at, user, action, case_id, dict(detail), before))
            connection.executemany(
                "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(e.number, e.at, e.user, e.action, e.case_id, _json(e.detail), e.hash) for e in entries],
            )
            connection.execute("UPDATE second.head SET number = ?, hash = ?", (number, before))
            connection.execute("COMMIT")
        return entries

    def entries(self, case_id: str | None = None) -> list[Entry]:
        """All rows in order, or those of one case."""
        with self._connection() as connection:
            found = connection.execute("SELECT * FROM log WHERE ?1 IS NULL OR case_id = ?1 ORDER BY number", (case_id,))
            return [
                Entry(number, at, user, action, case, json.loads(detail), digest)
                for number, at, user, action, case, detail, digest in found
            ]

    @property
    def tip(self) -> str:
        """The hash of the last row, to be noted elsewhere."""
        with self._connection() as connection:
            return connection.execute("SELECT hash FROM second.head").fetchone()[0]

    def verify(self, noted: str | None = None) -> int:
        """The number of rows, if not a byte of them was changed, dropped, moved, added or cut off; `noted` is a hash that was
        printed earlier, which must still be there."""
        seen = {START}
        number, before = 0, START
        try:
            with self._connection() as connection:
                for (verdict,) in (*connection.execute("PRAGMA main.integrity_check"),
                                   *connection.execute("PRAGMA second.integrity_check")):  # fmt: skip
                    if verdict != "ok":
                        raise _wrong("a damaged file", self.path)
                rows = connection.execute("SELECT * FROM log ORDER BY number").fetchall()
                head = connection.execute("SELECT number, hash FROM second.head").fetchall()
            for number, row in enumerate(rows, start=1):
                if row[0] != number or _hash(before, *row[:6]) != row[6]:
                    raise _wrong(f"row {number} changed, moved or missing", self.path)
                before = row[6]
                seen.add(before)
        except (sqlite3.DatabaseError, UnicodeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise _wrong(f"a file that is no log any more ({type(error).__name__})", self.path) from None
        if head != [(number, before)]:
            raise _wrong(f"{number} rows, and a head that names others", self.path)
        if noted is not None and noted not in seen:
            raise _wrong("a history in which the noted hash does not occur", self.path)
        return number

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection for one use: they cost a tenth of a millisecond, and none is left open between threads."""
        with closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as connection:
            connection.execute("ATTACH ? AS second", (str(self.head),))
            connection.execute("PRAGMA synchronous = FULL")
            yield connection


def audit_command(data: Path, noted: str | None = None, fhir: Path | None = None, version: Version = "R4B") -> None:
    """The `larmor audit` command."""
    path = data / "audit.sqlite"
    if not path.is_file():
        remedy = "Give the folder of serve --data."
        raise InputError("the folder holds an audit", got="no audit.sqlite", remedy=remedy, file=data)
    audit = Audit(path)
    rows = audit.verify(noted)
    print(f"{rows} rows, all whole. The last one's hash, to be noted elsewhere:\n{audit.tip}")
    if fhir is not None:
        with write_aside(fhir) as aside:
            aside.write_text(json.dumps(trail_bundle(audit.entries(), version=version), indent=1) + "\n")
        print(f"wrote {fhir}")


def sha256_of(content: bytes | str) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def _hash(before: str, *parts: object) -> str:
    return sha256_of(_json([before, *parts]))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"))


def _wrong(got: str, file: Path) -> InputError:
    remedy = "Keep both files as they are, and compare with the last backup whose audit was whole."
    return InputError("an audit is whole: every row follows from the one before, and the head is its end",
                      got=got, remedy=remedy, file=file)  # fmt: skip
