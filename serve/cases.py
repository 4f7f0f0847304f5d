"""Readings as cases: whose they are, what a clinician has made of them, and when they go.

    store = CaseStore(Path("data"), keep_s=7 * 86400)
    case = store.add("anna", read_study(study, models))         a draft
    store.decide("anna", case.id, finding_id, "rejected")
    store.sign("anna", case.id, "final")                        locked from now on, until amended
    store.outputs("anna", case.id)                              a folder: everything that `larmor read` writes, as it stands now

A case is a row in `cases.sqlite` and a folder under `cases/`, both named by nothing but a random number, and belongs to one user:
to anybody else it does not exist. Every step is in the audit before it is done for good. After `keep_s` everything of a case is
deleted, and the audit says what was deleted, when, and the hash of all of it. What is on disk is enough to go on after a restart.

draft -> preliminary -> final -> amended (open again) -> amended (signed again). A change of what is preliminary makes it a draft.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import blosc2
import numpy as np
from pydantic import Field

from ehr.output import Standing
from foundation.config import Config
from foundation.errors import InputError, did_you_mean
from foundation.files import sha256, write_aside, write_folder_aside
from foundation.findings import Finding, Reading, Structure, find_midline, lies_left, measure_structures
from foundation.preprocess import Grid, find_body, resample, sample_at
from foundation.reading.collection import Row, SeriesEntry, write_manifest
from foundation.reading.nifti import read_labels, write_labels, write_shades, write_volume
from foundation.study import Acquisition, Contrast, DicomSource, Series, Study
from foundation.terms import WEIGHTS
from heads.report import SECTIONS, Draft, Section, Sentence, templates
from heads.report.verifier import verify
from serve.audit import Audit, sha256_of
from serve.pipeline import Mask, StudyReading, save_reading

State = Literal["draft", "preliminary", "final", "amended"]
Decision = Literal["open", "accepted", "rejected"]
DECISIONS: tuple[str, ...] = get_args(Decision)
DAY_S = 86_400.0
KEEP_S = 7 * DAY_S
DISPLAY_VOXELS = (
    160,
    192,
    160,
)  # right, anterior, superior: what a browser without a graphics card still turns quickly
MARGIN_VOXELS = 2
MOST_TEXT = 2_000  # characters of a sentence, or of a reason
PACKED: dict[str, Any] = {"mode": "w", "cparams": {"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1}}
OUTLINED = "outlined by a clinician"
CLINICIAN = "clinician"  # who worded a sentence that was edited


class CaseSentence(Config):
    section: Section
    text: str
    finding_ids: tuple[str, ...] = ()
    edited: bool = False
    writer: str = "templates"


class CaseMask(Config):
    """A mask of the case; `display` is relative to the case's folder, on the grid of the first display copy, and another file for
    every drawing: so its name says which one somebody saw."""

    structures: tuple[Structure, ...]
    display: str
    redrawn: bool = False
    voxels: str


class _SeriesRecord(Config):
    name: str
    contrast: Contrast
    acquisition: dict[str, float | str | None]
    affine: tuple[tuple[float, ...], ...]
    side_is_known: bool
    predicted: bool
    contrast_from: str
    voxels: str
    display: str


class _Document(Config):
    """All of a case but its voxels. `said` are the models' sentences and those that were edited or added since."""

    session: str
    notes: tuple[str, ...]
    series: tuple[_SeriesRecord, ...]
    slices: tuple[tuple[int, int], ...] = ()
    num_headers: int = 0
    reading: Reading
    said: tuple[CaseSentence, ...]
    masks: dict[str, CaseMask]
    rests_on: dict[str, str] = Field(default_factory=dict)
    relevance: dict[str, str] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    decisions: dict[str, Decision] = Field(default_factory=dict)
    remeasured: tuple[str, ...] = ()
    reason: str | None = None
    signed_by: str | None = None
    signed_at: datetime | None = None


@dataclass(frozen=True)
class Case:
    """A case as it stands. `reading` holds every finding, rejected ones too; `sentences` are what the report says now.

    `displays` (one per series, the reference first), the masks' `display` and `relevance` (by finding) are files of `folder` for a
    viewer. `seconds` are what each step of the reading took. `warnings` are what the verifier objects to in the text: the
    clinician's to judge, and never in the way.
    """

    id: str
    owner: str
    state: State
    reading: Reading
    sentences: tuple[CaseSentence, ...]
    decisions: Mapping[str, Decision]
    masks: Mapping[str, CaseMask]
    displays: tuple[str, ...]
    relevance: Mapping[str, str]
    seconds: Mapping[str, float]
    folder: Path
    warnings: tuple[str, ...]
    read_at: datetime
    goes_at: datetime
    version: int
    signed_by: str | None
    signed_at: datetime | None
    reason: str | None

    @property
    def is_locked(self) -> bool:
        return self.signed_by is not None and self.state in ("final", "amended")

    @property
    def standing(self) -> Standing:
        if self.signed_by is None or self.state == "draft":
            return Standing()
        return Standing(self.state, self.signed_by, self.signed_at)

    @property
    def kept(self) -> tuple[Finding, ...]:
        """The findings that were not rejected."""
        return tuple(one for one in self.reading.findings if self.decisions.get(one.id) != "rejected")


@dataclass(frozen=True)
class CaseLine:
    """A line of the worklist. `urgency` is from 0 to 1: how urgent the finding would be times how probable it is."""

    id: str
    subject: str
    state: State
    finding: str | None
    urgency: float
    read_at: datetime
    goes_at: datetime


class CaseStore:
    """The cases below a folder, which only this process may write to."""

    def __init__(self, folder: Path, keep_s: float = KEEP_S, audit: Audit | None = None):
        self.folder, self.keep_s = folder.absolute(), keep_s
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.chmod(0o700)
        self.audit = audit or Audit(self.folder / "audit.sqlite")
        self._places = self.folder / "cases"
        self._places.mkdir(exist_ok=True, mode=0o700)
        self._lock = threading.Lock()  # of the two below
        self._locks: dict[str, threading.RLock] = {}
        self._studies: OrderedDict[str, Study] = OrderedDict()
        with self._connection() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS cases (id TEXT PRIMARY KEY, owner TEXT NOT NULL, state TEXT NOT NULL, "
                "read_at REAL NOT NULL, version INTEGER NOT NULL, subject TEXT NOT NULL, finding TEXT, "
                "urgency REAL NOT NULL, document TEXT NOT NULL) STRICT"
            )
            known = {id for (id,) in connection.execute("SELECT id FROM cases")}
        for place in self._places.iterdir():  # what a crash left of a case that was being added or deleted
            if place.name not in known:
                shutil.rmtree(place)

    # -------------------------------------------------------------------------------------------- making and finding

    def add(self, user: str, result: StudyReading) -> Case:
        """Keep a reading as a draft of this user's."""
        id = secrets.token_hex(16)
        with write_folder_aside(self._places / id) as folder:
            folder.chmod(0o700)
            document = _written(result, folder)
            images = [sha256(folder / one.voxels) for one in document.series]
        finding, urgency = most_urgent(document.reading.findings)
        row = (
            id,
            user,
            "draft",
            time.time(),
            1,
            document.reading.subject,
            finding,
            urgency,
            document.model_dump_json(),
        )
        detail = {"images": sha256_of(" ".join(images)), "text": _text_hash(document.said), "series": len(images)}
        models = {f"model-{number}": one.weights_sha256 for number, one in enumerate(document.reading.models, start=1)}
        try:
            with self._connection() as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("INSERT INTO cases VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
                self.audit.append(user, "case.read", id, {**detail, **models})
                connection.execute("COMMIT")
        except BaseException:
            shutil.rmtree(self._places / id, ignore_errors=True)
            raise
        return self.case(user, id)

    def case(self, user: str, case_id: str) -> Case:
        """The case as it stands, for whom it belongs to."""
        with self._connection() as connection:
            return self._case(_row(connection, user, case_id))

    def has(self, user: str, case_id: str) -> bool:
        with self._connection() as connection:
            return bool(
                connection.execute("SELECT 1 FROM cases WHERE id = ? AND owner = ?", (case_id, user)).fetchone()
            )

    def worklist(self, user: str) -> list[CaseLine]:
        """The user's cases, most urgent first, then the oldest."""
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT id, subject, state, finding, urgency, read_at FROM cases WHERE owner = ? "
                "ORDER BY urgency DESC, read_at",
                (user,),
            ).fetchall()
        return [
            CaseLine(id, subject, state, finding, urgency, _time(read_at), _time(read_at + self.keep_s))
            for id, subject, state, finding, urgency, read_at in rows
        ]

    def result(self, user: str, case_id: str) -> StudyReading:
        """The reading with its volumes and masks, rejected findings included; the text is as it stands."""
        with self._alone(case_id), self._connection() as connection:
            row = _row(connection, user, case_id)
            return self._result(row, self._case(row))

    # -------------------------------------------------------------------------------------------- changing

    def decide(self, user: str, case_id: str, finding_id: str, decision: Decision) -> Case:
        """Accept a finding, reject it, or leave it open again. What is rejected is in no output."""
        if decision not in DECISIONS:
            raise InputError("a decision is known", got=repr(decision), remedy=did_you_mean(decision, DECISIONS))

        def change(document: _Document) -> _Document:
            _known_finding(document, finding_id)
            return document.model_copy(update={"decisions": {**document.decisions, finding_id: decision}})

        detail = {"finding": finding_id, "decision": decision}
        return self._change(user, case_id, "case.decided", detail, change)

    def reword(self, user: str, case_id: str, sentence_index: int, text: str) -> Case:
        """Put the clinician's words in place of a sentence; an empty text takes it out."""
        text = " ".join(text.split())
        if len(text) > MOST_TEXT:
            raise InputError(
                f"a sentence has at most {MOST_TEXT} characters", got=len(text), remedy="Make two sentences of it."
            )

        def change(document: _Document) -> _Document:
            now = _sentences(document)
            if not 0 <= sentence_index < len(now):
                raise InputError(f"the report has sentences 0 to {len(now) - 1}", got=sentence_index,
                                 remedy="Load the case again: it changed meanwhile.")  # fmt: skip
            place, old = now[sentence_index]
            new = old.model_copy(update={"text": text, "edited": True, "writer": CLINICIAN})
            said = list(document.said)
            if place is None:
                said.append(new)
            else:
                said[place] = new
            return document.model_copy(update={"said": tuple(said)})

        detail = {"sentence": sentence_index, "text": sha256_of(text)}
        return self._change(user, case_id, "case.reworded", detail, change)

    def redraw_from(self, user: str, case_id: str, mask_name: str, drawing: Path, seen: str) -> Case:
        """The same from a file that a viewer made on the display copy's grid: 1 is the mask's first structure, 2 the second, and
        so on, because a browser's pen knows 255 values. `seen` is the `display` of the mask that was drawn on."""
        with self._alone(case_id):
            case, reference = self.case(user, case_id), self.result(user, case_id).study.reference
            record = _known_mask(case, mask_name)
            if seen != record.display:
                raise InputError("what is redrawn is the mask as it stands", got="a drawing on an earlier one",
                                 remedy="It was redrawn meanwhile: draw again on what it is now.")  # fmt: skip
            drawn = read_labels(drawing, _on_grid(reference, display_grid(reference)[1]))
            values = np.array([0, *(one.value for one in record.structures)], np.int16)
            if drawn.min() < 0 or drawn.max() >= len(values):
                raise InputError(f"a drawing holds 0 to {len(values) - 1}", got=f"{drawn.min()} to {drawn.max()}",
                                 remedy="Load the case again and redraw it.")  # fmt: skip
            return self.redraw(user, case_id, mask_name, values[drawn])

    def redraw(self, user: str, case_id: str, mask_name: str, labels: np.ndarray) -> Case:
        """Put labels in place of a mask's, and measure what it shows anew.

        They lie on the reference series' grid, or on its display copy's: of these, only what differs from what was displayed is
        carried over, so that nothing is lost of what a smaller picture cannot show. Findings whose outline is the same on their
        side stay as they were; what was decided of the others was said of another outline, and is open again.
        """
        with self._alone(case_id):
            case, result = self.case(user, case_id), self.result(user, case_id)
            if case.is_locked:
                raise _locked()
            record, reference = _known_mask(case, mask_name), result.study.reference
            full = _on_reference(labels, result.masks[mask_name].labels, reference)
            values = {0, *(one.value for one in record.structures)}
            if strange := set(np.unique(full).tolist()) - values:
                raise InputError("a mask holds its structures' values", got=sorted(strange)[:5],
                                 remedy=f"Use {', '.join(map(str, sorted(values)))}.")  # fmt: skip
            stem = f"{record.voxels.partition('.')[0]}.{secrets.token_hex(4)}"
            voxels, display = f"{stem}.b2nd", f"display/{stem}.nii.gz"
            _pack(full, case.folder / voxels)
            _write_display_mask(full, reference, case.folder / display)
            by_id, outlined = _measured_anew(full, result, mask_name, record.structures)
            changed_ids = {one.id for one in by_id.values() if one not in result.reading.findings}

            def change(document: _Document) -> _Document:
                new = record.model_copy(update={"redrawn": True, "voxels": voxels, "display": display})
                old = {one.id for one in document.reading.findings}
                kept = [one for one in document.reading.findings
                        if one.id in by_id or not _is_of_mask(one, mask_name, record.structures)]  # fmt: skip
                now = [by_id.get(one.id, one) for one in kept]
                now += [one for id, one in by_id.items() if id not in old]
                decided = {id: one for id, one in document.decisions.items() if id not in outlined}
                return document.model_copy(
                    update={
                        "reading": document.reading.model_copy(update={"findings": tuple(now)}),
                        "masks": {**document.masks, mask_name: new},
                        "remeasured": tuple(sorted({*document.remeasured, *changed_ids})),
                        "decisions": decided,
                    }
                )

            detail = {"before": sha256(case.folder / record.voxels), "after": sha256(case.folder / voxels)}
            try:
                changed = self._change(user, case_id, "case.redrawn", detail, change)
            except BaseException:
                for name in (voxels, display):
                    (case.folder / name).unlink(missing_ok=True)
                raise
            for name in (record.voxels, record.display):
                (case.folder / name).unlink()
            return changed

    def sign(self, user: str, case_id: str, state: Literal["preliminary", "final"]) -> Case:
        """Vouch for what the case says now. Final locks it; what was amended is signed by 'final' and stays 'amended'."""
        if state not in ("preliminary", "final"):
            raise InputError("a case is signed as preliminary or final", got=repr(state), remedy="Choose one of them.")

        def change(document: _Document) -> _Document:
            return document.model_copy(update={"signed_by": user, "signed_at": datetime.now(UTC)})

        with self._alone(case_id):
            case = self.case(user, case_id)
            if case.state == "amended" and state == "preliminary":
                raise InputError("what was final is signed as final again", got="preliminary", remedy="Sign as final.")
            becomes: State = "amended" if case.state == "amended" else state
            detail = {"state": becomes, "text": _text_hash(case.sentences), "images": self._images(case_id)}
            return self._change(user, case_id, "case.signed", detail, change, becomes=becomes)

    def amend(self, user: str, case_id: str, reason: str) -> Case:
        """Open a final case again. The reason stays with the case; the audit holds its hash."""
        reason = " ".join(reason.split())
        if not 1 <= len(reason) <= MOST_TEXT:
            got = f"{len(reason)} characters"
            raise InputError("an amendment has a reason", got=got, remedy="Say in a sentence why it is changed.")

        def change(document: _Document) -> _Document:
            return document.model_copy(update={"reason": reason, "signed_by": None, "signed_at": None})

        with self._alone(case_id):
            if not self.case(user, case_id).is_locked:
                remedy = "Change it as it is."
                raise InputError("what is amended is final", got="a case that is open", remedy=remedy)
            detail = {"reason": sha256_of(reason)}
            return self._change(user, case_id, "case.amended", detail, change, becomes="amended", unlocks=True)

    # -------------------------------------------------------------------------------------------- taking away

    def outputs(self, user: str, case_id: str) -> Path:
        """The folder of everything that a reading writes, as the case stands now, and `outputs.zip` beside it."""
        with self._alone(case_id), self._connection() as connection:
            row = _row(connection, user, case_id)
            case = self._case(row)
            place = case.folder / f"outputs-{case.version}"
            if not place.exists():
                for old in case.folder.glob("outputs-*"):
                    shutil.rmtree(old)
                result = _without_rejected(self._result(row, case), case)
                with write_folder_aside(place) as aside:
                    save_reading(result, aside / "reading", standing=case.standing)
                    shutil.make_archive(str(aside / "outputs"), "zip", aside / "reading")
            self.audit.append(user, "case.downloaded", case_id, {"zip": sha256(place / "outputs.zip")})
            return place / "reading"

    def file(self, user: str, case_id: str, path: str) -> Path:
        """A file of a case that its owner may fetch: display copies, and outputs of the present state."""
        case = self.case(user, case_id)
        displays = {*case.displays, *(one.display for one in case.masks.values()), *case.relevance.values()}
        if path in displays:
            return case.folder / path
        outputs = case.folder / f"outputs-{case.version}"
        place = (outputs / path).resolve()
        if not place.is_relative_to(outputs) or not place.is_file():
            raise InputError("the case has this file", got="none of that name", remedy="Ask for the outputs first.")
        return place

    def export_labels(self, user: str, out: Path) -> Path:
        """Signed cases as collections that `finetune` reads, a manifest for each model's mask: `OUT/NAME.jsonl`.

        Subjects are called by their case's random id. What was decided of findings is in the targets: 1 where it is there.
        """
        lines = [one for one in self.worklist(user) if self.case(user, one.id).is_locked]
        if not lines:
            remedy = "Check cases and sign them as final: only those are labels."
            raise InputError("there are signed cases to learn from", got="none", remedy=remedy)
        if out.exists():
            raise InputError("OUT is new", got="an existing one", remedy="Name another folder; nothing was written.")
        rows: dict[str, list[Row]] = {}
        with write_folder_aside(out) as folder:
            for line in sorted(lines, key=lambda one: one.id):
                case, result = self.case(user, line.id), self.result(user, line.id)
                entries = []
                for number, series in enumerate(result.study.series, start=1):
                    name = f"{case.id}_series-{number}.nii.gz"
                    write_volume(folder / name, series.voxels, series)
                    entries.append(SeriesEntry(path=name, contrast=series.contrast))
                row = Row(subject=case.id, series=tuple(entries), targets=_targets(case), split="train")
                for mask_name, mask in _without_rejected(result, case).masks.items():
                    stem = Path(mask_name).name.removesuffix(".nii.gz")
                    write_labels(folder / f"{case.id}_{stem}.nii.gz", mask.labels, result.study.reference)
                    masked = row.model_copy(update={"mask": f"{case.id}_{stem}.nii.gz"})
                    rows.setdefault(stem, []).append(masked)
                if not result.masks:
                    rows.setdefault("studies", []).append(row)
            for stem, own in rows.items():
                write_manifest(folder / f"{stem}.jsonl", own)
        for line in lines:
            self.audit.append(user, "case.exported", line.id, {"text": _text_hash(self.case(user, line.id).sentences)})
        return out

    # -------------------------------------------------------------------------------------------- going

    def delete(self, user: str, case_id: str) -> None:
        """Delete a case because its owner asks for it."""
        self.case(user, case_id)
        self._delete([case_id], user, "asked")

    def expire(self, now: float | None = None) -> list[str]:
        """Delete everything of the cases whose time is over; their ids, which the audit names with what was deleted."""
        before = (time.time() if now is None else now) - self.keep_s
        with self._connection() as connection:
            due = [id for (id,) in connection.execute("SELECT id FROM cases WHERE read_at <= ?", (before,))]
        self._delete(due, "server", "expired")
        return due

    def _delete(self, ids: Sequence[str], user: str, why: str) -> None:
        proofs = []
        for id in ids:
            place = self._places / id
            with self._alone(id):
                files = sorted(file for file in place.rglob("*") if file.is_file())
                hashes = "\n".join(f"{sha256(file)}  {file.relative_to(place)}" for file in files)
                num_bytes = sum(file.stat().st_size for file in files)
                if place.exists():  # a crash between this and the row's end leaves a case without files
                    shutil.rmtree(place)
                with self._lock:
                    self._studies.pop(id, None)
                    self._locks.pop(id, None)
            detail = {"why": why, "files": len(files), "bytes": num_bytes, "sha256": sha256_of(hashes)}
            proofs.append((user, "case.deleted", id, detail))
        if proofs:
            with self._connection() as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("DELETE FROM cases WHERE id = ?", [(id,) for id in ids])
                self.audit.append_all(proofs)
                connection.execute("COMMIT")

    # -------------------------------------------------------------------------------------------- inside

    def _alone(self, case_id: str) -> threading.RLock:
        """Held while a case's files and row must not part; other cases go on."""
        with self._lock:
            return self._locks.setdefault(case_id, threading.RLock())

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        path = self.folder / "cases.sqlite"
        path.touch(mode=0o600)
        with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
            connection.execute("PRAGMA secure_delete = ON")  # a deleted row is overwritten, not merely unlinked
            yield connection

    def _change(
        self,
        user: str,
        case_id: str,
        action: str,
        detail: Mapping[str, Any],
        change: Callable[[_Document], _Document],
        *,
        becomes: State | None = None,
        unlocks: bool = False,
    ) -> Case:
        """One step: the row and the audit together. What was preliminary and is changed without a signature is a draft."""
        with self._alone(case_id), self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            row = _row(connection, user, case_id)
            case = self._case(row)
            if case.is_locked and not unlocks:
                raise _locked()
            document = change(_Document.model_validate_json(row["document"]))
            state = becomes or ("draft" if case.state == "preliminary" else case.state)
            if becomes is None and case.state == "preliminary":
                document = document.model_copy(update={"signed_by": None, "signed_at": None})
            kept = [one for one in document.reading.findings if document.decisions.get(one.id) != "rejected"]
            finding, urgency = most_urgent(kept)
            connection.execute(
                "UPDATE cases SET state = ?, version = version + 1, finding = ?, urgency = ?, document = ? WHERE id = ?",
                (state, finding, urgency, document.model_dump_json(), case_id),
            )
            self.audit.append(user, action, case_id, detail)
            connection.execute("COMMIT")
            return self._case(_row(connection, user, case_id))

    def _case(self, row: Mapping[str, Any]) -> Case:
        document = _Document.model_validate_json(row["document"])
        sentences = tuple(one for _, one in _sentences(document))
        kept = [one for one in document.reading.findings if document.decisions.get(one.id) != "rejected"]
        reading = document.reading.model_copy(update={"findings": tuple(kept)})
        return Case(
            id=row["id"],
            owner=row["owner"],
            state=row["state"],
            reading=document.reading,
            sentences=sentences,
            decisions=document.decisions,
            masks=document.masks,
            displays=tuple(one.display for one in document.series),
            relevance=document.relevance,
            seconds=document.seconds,
            folder=self._places / row["id"],
            warnings=tuple(f"{one.kind}: {one.text}" for one in verify(_draft(sentences).text(), reading)),
            read_at=_time(row["read_at"]),
            goes_at=_time(row["read_at"] + self.keep_s),
            version=row["version"],
            signed_by=document.signed_by,
            signed_at=document.signed_at,
            reason=document.reason,
        )

    def _result(self, row: Mapping[str, Any], case: Case) -> StudyReading:
        document = _Document.model_validate_json(row["document"])
        with self._lock:
            study = self._studies.get(case.id)
        if study is None:
            study = _study(document, case.folder)
            with self._lock:
                self._studies[case.id] = study
                while len(self._studies) > 2:
                    self._studies.popitem(last=False)
        masks = {name: Mask(_unpack(case.folder / one.voxels), one.structures) for name, one in case.masks.items()}
        rests_on = {id: _unpack(case.folder / path) for id, path in document.rests_on.items()}
        return StudyReading(study, document.reading, _draft(case.sentences), masks, rests_on, document.seconds)

    def _images(self, case_id: str) -> str:
        return next(str(one.detail["images"]) for one in self.audit.entries(case_id) if one.action == "case.read")


def most_urgent(findings: Sequence[Finding]) -> tuple[str | None, float]:
    """The finding that should be looked at first, and how soon, from 0 to 1: its urgency times how probable it is.

    Where no calibrated probability says so, what is there counts as certain and what is uncertain as even.
    """
    best: tuple[str | None, float] = (None, 0.0)
    for one in findings:
        if one.origin != "image" or one.presence == "not_assessed":
            continue
        certain = {"present": 1.0, "uncertain": 0.5}.get(one.presence, 0.0)
        calibrated = one.probability if one.is_calibrated else None
        urgency = WEIGHTS[one.urgency] * (certain if calibrated is None else calibrated)
        if urgency > best[1]:
            best = one.name, urgency
    return best


# ------------------------------------------------------------------------------------------------ rows and words


def _row(connection: sqlite3.Connection, user: str, case_id: str) -> Mapping[str, Any]:
    """The row, if it is this user's: another's does not exist, so that ids cannot be probed."""
    cursor = connection.execute("SELECT * FROM cases WHERE id = ? AND owner = ?", (case_id, user))
    row = cursor.fetchone()
    if row is None:
        raise InputError("the case is there and yours", got="no such case",
                         remedy="It may have been deleted after its time; read the study again.")  # fmt: skip
    return dict(zip([one[0] for one in cursor.description], row, strict=True))


def _locked() -> InputError:
    return InputError("what was signed as final is not changed", got="a signed case",
                      remedy="Amend it first, and give the reason.")  # fmt: skip


def _known_finding(document: _Document, finding_id: str) -> Finding:
    for one in document.reading.findings:
        if one.id == finding_id:
            return one
    remedy = did_you_mean(finding_id, (one.id for one in document.reading.findings))
    raise InputError("the finding is one of the case's", got="no such finding", remedy=remedy)


def _sentences(document: _Document) -> list[tuple[int | None, CaseSentence]]:
    """What the report says now, each sentence with its place in `said`, None where templates word it anew.

    The clinician's words stay. A sentence of the models goes when a finding that it cites was rejected or measured anew; what
    is then unsaid of the findings that are left is worded by templates, from the present numbers.
    """
    gone = {id for id, decision in document.decisions.items() if decision == "rejected"}
    left = [one for one in document.reading.findings if one.id not in gone]
    reading = document.reading.model_copy(update={"findings": tuple(left)})
    stale = gone | set(document.remeasured)
    known = {one.id for one in left}
    fresh = [CaseSentence(section=one.section, text=one.text, finding_ids=one.finding_ids)
             for one in templates.draft(reading).sentences] if stale else []  # fmt: skip
    now: list[tuple[int | None, CaseSentence]] = []
    for section in SECTIONS:
        own = [(place, one) for place, one in enumerate(document.said) if one.section == section]
        kept = [(place, one) for place, one in own if one.edited or not stale & set(one.finding_ids)]
        # Who said nothing of these findings here need not start now; an edited sentence speaks for all that it cites.
        cited = {id for _, one in own for id in one.finding_ids} & known
        unsaid = cited - {id for _, one in kept for id in one.finding_ids}
        if len(kept) < len(own):
            anew = [one for one in fresh if one.section == section and (unsaid & set(one.finding_ids) or not kept)]
        else:
            anew = []
        for place, one in kept:
            if one.text:
                ids = tuple(id for id in one.finding_ids if id in known)
                now.append((place, one.model_copy(update={"finding_ids": ids})))
        now += [(None, one) for one in anew]
    return now


def _draft(sentences: Sequence[CaseSentence]) -> Draft:
    return Draft(
        tuple(
            Sentence(one.section, one.text, one.finding_ids, CLINICIAN if one.edited else one.writer)
            for one in sentences
        )
    )


def _text_hash(sentences: Sequence[CaseSentence]) -> str:
    return sha256_of(json.dumps([[one.section, one.text, one.finding_ids] for one in sentences]))


def _targets(case: Case) -> dict[str, Any]:
    """What a clinician said of each finding that he decided on: 1 there, 0 not there."""
    targets: dict[str, Any] = {}
    for one in case.reading.findings:
        decision = case.decisions.get(one.id, "open")
        if decision != "open" and one.presence in ("present", "absent"):
            name = f"{one.name}.{one.side}".replace(" ", "-")
            targets[name] = int((one.presence == "present") == (decision == "accepted"))
    return targets


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


# ------------------------------------------------------------------------------------------------ voxels


def _written(result: StudyReading, folder: Path) -> _Document:
    """Put everything of a reading that a restart must find into a folder."""
    (folder / "display").mkdir()
    series, reference = [], result.study.reference
    for number, one in enumerate(result.study.series, start=1):
        _pack(one.voxels, folder / f"series-{number}.b2nd")
        _write_display(one, folder / f"display/series-{number}.nii.gz")
        series.append(
            _SeriesRecord(
                name=one.name,
                contrast=one.contrast,
                acquisition=asdict(one.acquisition),
                affine=tuple(map(tuple, one.affine.tolist())),
                side_is_known=one.side_is_known,
                predicted=one.predicted,
                contrast_from=one.contrast_from,
                voxels=f"series-{number}.b2nd",
                display=f"display/series-{number}.nii.gz",
            )
        )
    masks, rests_on, relevance = {}, {}, {}
    for number, (name, mask) in enumerate(result.masks.items(), start=1):
        _pack(mask.labels, folder / f"mask-{number}.b2nd")
        display = f"display/mask-{number}.nii.gz"
        _write_display_mask(mask.labels, reference, folder / display)
        masks[name] = CaseMask(structures=mask.structures, display=display, voxels=f"mask-{number}.b2nd")
    for number, (id, labels) in enumerate(result.rests_on.items(), start=1):
        _pack(labels, folder / f"why-{number}.b2nd")
        _write_display_mask(labels, reference, folder / f"display/why-{number}.nii.gz")
        rests_on[id], relevance[id] = f"why-{number}.b2nd", f"display/why-{number}.nii.gz"
    source = reference.source
    if source is not None:
        (folder / "headers").mkdir()
        for number, header in enumerate(source.headers, start=1):
            header.save_as(folder / f"headers/{number:05d}.dcm")
    said = [CaseSentence(section=one.section, text=one.text, finding_ids=one.finding_ids, writer=one.writer)
            for one in result.draft.sentences]  # fmt: skip
    return _Document(
        session=result.study.session,
        notes=result.study.notes,
        series=tuple(series),
        slices=() if source is None else source.slices,
        num_headers=0 if source is None else len(source.headers),
        reading=result.reading,
        said=tuple(said),
        masks=masks,
        rests_on=rests_on,
        relevance=relevance,
        seconds=dict(result.seconds),
    )


def _study(document: _Document, folder: Path) -> Study:
    source = None
    if document.num_headers:
        import pydicom

        headers = [pydicom.dcmread(folder / f"headers/{n:05d}.dcm") for n in range(1, document.num_headers + 1)]
        source = DicomSource(tuple(headers), document.slices)
    series = tuple(
        Series(
            _unpack(folder / one.voxels),
            np.array(one.affine),
            one.contrast,
            Acquisition(**one.acquisition),  # pyright: ignore[reportArgumentType]
            one.name,
            one.side_is_known,
            source=source if number == 0 else None,
            predicted=one.predicted,
            contrast_from=one.contrast_from,
        )
        for number, one in enumerate(document.series)
    )
    return Study(document.reading.subject, series, document.session, document.notes)


def _pack(array: np.ndarray, path: Path) -> None:
    with write_aside(path) as aside:
        blosc2.save_array(np.ascontiguousarray(array), str(aside), **PACKED)


def _unpack(path: Path) -> np.ndarray:
    return blosc2.load_array(str(path), dparams={"nthreads": 1})


def display_grid(series: Series) -> tuple[tuple[slice, ...], Grid]:
    """The box around the body in a series' voxels, and the grid of its display copy."""
    try:
        body = find_body(series)
    except InputError:  # a blank image is shown whole
        body = np.ones(series.shape, bool)
    box, limits = [], _limits(series)
    for axis in range(3):
        inside = np.flatnonzero(body.any(axis=tuple(n for n in range(3) if n != axis)))
        first, last = (inside[0], inside[-1]) if inside.size else (0, series.shape[axis] - 1)
        box.append(slice(max(0, int(first) - MARGIN_VOXELS), min(series.shape[axis], int(last) + 1 + MARGIN_VOXELS)))
    cropped = _cropped(series, tuple(box))
    grid = Grid.of(cropped)
    larger = np.maximum(1.0, np.array(grid.shape) / limits)
    return tuple(box), grid if (larger == 1).all() else grid.with_spacing(grid.spacing_mm * larger)


def _limits(series: Series) -> np.ndarray:
    """The most voxels along each axis of the array."""
    nearest = np.abs(series.affine[:3, :3] / series.spacing_mm).argmax(axis=0)
    return np.array([DISPLAY_VOXELS[n] for n in nearest])


def _cropped(series: Series, box: tuple[slice, ...]) -> Series:
    affine = series.affine.copy()
    affine[:3, 3] = series.to_patient_mm(np.array([one.start for one in box]))
    return series.with_voxels(np.ascontiguousarray(series.voxels[box]), affine)


def _write_display(series: Series, path: Path) -> None:
    import torch

    box, grid = display_grid(series)
    cropped = _cropped(series, box)
    voxels = resample(torch.from_numpy(cropped.voxels), Grid.of(cropped), grid).numpy()
    low, high = np.percentile(voxels, [0.1, 99.95])  # a small lesion must not vanish among what is brightest
    shades = np.clip((voxels - low) / max(float(high - low), 1e-12), 0, 1) * 255
    write_shades(path, np.rint(shades).astype(np.uint8), cropped.with_voxels(voxels, grid.affine))


def _write_display_mask(labels: np.ndarray, reference: Series, path: Path) -> None:
    _, grid = display_grid(reference)
    write_labels(path, sample_at(labels, reference.affine, grid, nearest=True), _on_grid(reference, grid))


def _on_grid(reference: Series, grid: Grid) -> Series:
    """Where labels of the display copy lie; of no image."""
    return reference.with_voxels(np.zeros(grid.shape, np.float32), grid.affine)


def _on_reference(labels: np.ndarray, old: np.ndarray, reference: Series) -> np.ndarray:
    """Labels on the reference's own grid, from that one or from the display copy's."""
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iub":
        whole = np.rint(labels)
        if not np.array_equal(whole, labels):
            raise InputError("a mask holds whole numbers", got="others", remedy="Draw with labels.")
        labels = whole
    labels = labels.astype(np.int16)
    if labels.shape == reference.shape:
        return labels
    _, grid = display_grid(reference)
    if labels.shape != grid.shape:
        raise InputError(f"a mask has the shape of its series {reference.shape} or of its display copy {grid.shape}",
                         got=labels.shape, remedy="Load the case again and redraw it.")  # fmt: skip
    shown = sample_at(old, reference.affine, grid, nearest=True)
    own = Grid.of(reference)
    changed = sample_at((labels != shown).astype(np.uint8), grid.affine, own, nearest=True) > 0
    drawn, before = (sample_at(one, grid.affine, own, nearest=True) for one in (labels, shown.astype(np.int16)))
    # Where a voxel of the display copy was rubbed out, it was of one structure: what it hid of others stays.
    changed &= (drawn > 0) | (old == before)
    return np.where(changed, drawn, old).astype(np.int16)


def _known_mask(case: Case, name: str) -> CaseMask:
    if name not in case.masks:
        raise InputError("the mask is one of the case's", got=repr(name), remedy=did_you_mean(name, case.masks))
    return case.masks[name]


def _is_of_mask(finding: Finding, mask_name: str, structures: Sequence[Structure]) -> bool:
    names = {one.name for one in structures}
    return finding.evidence is not None and finding.evidence.mask == mask_name and finding.name in names


def _measured_anew(
    labels: np.ndarray, result: StudyReading, mask_name: str, structures: Sequence[Structure]
) -> tuple[dict[str, Finding], set[str]]:
    """The mask's findings by id, and the ids of those whose outline is another now: what a clinician outlined is there, and no
    model's probability speaks of it any more. Of the others only what both sides share is measured anew."""
    known = {one.id: one for one in result.reading.findings if _is_of_mask(one, mask_name, structures)}
    reference, name = result.study.reference, Path(mask_name).name.removesuffix(".nii.gz")
    try:
        body = find_body(reference)
    except InputError:
        body = None

    def measured(labels: np.ndarray) -> dict[str, Finding]:
        found = measure_structures(
            labels,
            reference,
            structures,
            body=body,
            mask_path=mask_name,
            source=next((one.source for one in known.values()), name),
            count_pieces=any(one.measured("number") is not None for one in known.values()),
        )
        return {one.id: one for one in found}

    old, new = measured(result.masks[mask_name].labels), measured(labels)
    findings, outlined = {}, set()
    for id, one in new.items():
        before, said = old.get(id), known.get(id)
        if before is None or said is None or _outline(before) != _outline(one):
            note = "; ".join(filter(None, [one.note, OUTLINED]))
            findings[id] = one.model_copy(update={"note": note})
            outlined.add(id)
        elif before == one:
            findings[id] = said
        else:
            shared = {two.name: two for two in one.measurements if two not in before.measurements}
            kept = [shared.pop(two.name, two) for two in said.measurements if one.measured(two.name) is not None
                    or before.measured(two.name) is None]  # fmt: skip
            update = {"measurements": (*kept, *shared.values()), "signals": one.signals}
            findings[id] = said.model_copy(update=update)
    return findings, outlined


def _outline(finding: Finding) -> tuple[Any, ...]:
    return finding.presence, finding.measured("volume"), finding.evidence, finding.pieces


def _without_rejected(result: StudyReading, case: Case) -> StudyReading:
    """The reading as it goes out: rejected findings are in no table, no text and no mask."""
    rejected = [one for one in case.reading.findings if case.decisions.get(one.id) == "rejected"]
    masks = dict(result.masks)
    for name, mask in result.masks.items():
        gone = [one for one in rejected if _is_of_mask(one, name, mask.structures)]
        if gone:
            masks[name] = replace(mask, labels=_without(mask, gone, result.study.reference))
    reading = result.reading.model_copy(update={"findings": case.kept})
    sentences = result.draft.sentences
    if case.standing.is_verified:  # it is no draft any more
        sentences = tuple(one for one in sentences if one.text != templates.NOT_A_DEVICE)
    kept = {one.id for one in case.kept}
    rests_on = {id: labels for id, labels in result.rests_on.items() if id in kept}
    return replace(result, reading=reading, draft=Draft(sentences), masks=masks, rests_on=rests_on)


def _without(mask: Mask, gone: Sequence[Finding], reference: Series) -> np.ndarray:
    """The labels without those of rejected findings, each on its own side."""
    labels = mask.labels.copy()
    values = {one.name: one.value for one in mask.structures}
    midline = None
    if any(one.side in ("right", "left") for one in gone):
        midline, _ = find_midline(reference, find_body(reference))
    for one in gone:
        where = labels == values[one.name]
        if one.side in ("right", "left") and midline is not None:
            is_left = lies_left(where, reference, midline, whole_pieces=one.measured("number") is not None)
            labels[where & (is_left == (one.side == "left"))] = 0
        else:
            labels[where] = 0
    return labels
