"""The patients of a prognosis: what became of them, their record, and what was taken from their images; from a table here, from a
collection of studies in `finetune/prognosis/collect.py`.

Of a table every column must be declared as known before the images were made or as later. Later ones (what surgery found, how much
of a tumour it removed) are refused unless a `landmark` says from when on the question is asked.
"""

from __future__ import annotations

import csv
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, SerializeAsAny, field_validator, model_validator

from ehr.features import RecordSequence, sequence_of, tabulate
from ehr.index import Admitted
from ehr.vocabulary import Vocabulary
from foundation.config import Config
from foundation.errors import InputError, did_you_mean
from foundation.survival import FollowUp
from heads import HeadConfig, parse_head
from heads.prognosis import Config as PrognosisHeadConfig

MOST_KINDS = 12  # of a column of words: more are a name, not a kind


class TableConfig(Config):
    """CSV files joined by their `id` column; `time` in days, `observed` 1 where it was the event, `cause` which of the
    head's causes it was.

    `age` and `sex` are the columns of the plainest row. `record` and `image` name columns, with * for any text, that were known
    when the images were made; `later` those of the record that were not, which only a `landmark` lets in.
    """

    files: Annotated[tuple[Path, ...], Field(min_length=1)]
    id: str
    time: str
    observed: str
    cause: str | None = None
    age: str
    sex: str
    record: tuple[str, ...] = ()
    image: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    landmark: str | None = None

    @model_validator(mode="after")
    def _later_needs_a_landmark(self) -> TableConfig:
        if self.later and not self.landmark:
            raise InputError(
                "what was known only after the images needs a declared landmark",
                got=", ".join(self.later),
                remedy="Set table.landmark=surgery (time then counts from there), or leave the columns out.",
            )
        return self


class TableTrialConfig(Config):
    """A prognosis from a table, through the same command as one from studies."""

    name: str
    folder: Path
    caution: str | None = None
    head: SerializeAsAny[HeadConfig]
    table: TableConfig

    @field_validator("head", mode="before")
    @classmethod
    def _by_kind(cls, value: object) -> object:
        return parse_head(value) if isinstance(value, dict) else value


@dataclass(frozen=True)
class View:
    """What some patients look like to a model: columns (NaN where not known) and what kind each is of, and the record's events
    where there are any."""

    person: Float[np.ndarray, "patients person"]
    record: Float[np.ndarray, "patients record"]
    image: Float[np.ndarray, "patients image"]
    record_kinds: tuple[str, ...]
    image_kinds: tuple[str, ...]
    sequences: tuple[RecordSequence | None, ...] | None = None
    num_codes: int = 0
    law: Float[np.ndarray, "patients features"] | None = None

    def take(self, rows: Int[np.ndarray, " some"]) -> View:
        sequences = None if self.sequences is None else tuple(self.sequences[row] for row in rows)
        columns = {name: getattr(self, name)[rows] for name in ("person", "record", "image")}
        columns["law"] = None if self.law is None else self.law[rows]
        return replace(self, **columns, sequences=sequences)

    def with_records_of(self, rows: Int[np.ndarray, " patients"]) -> View:
        """Everybody with somebody else's record; age and sex go with it."""
        return replace(self.take(rows), image=self.image, law=self.law)


@dataclass(frozen=True)
class Patients:
    """`records` are admitted events (of a collection), `columns` a table's, those of `person` first. `oracle` holds the true log
    hazards, where they are known: what "image" and "record" add; `law` the columns whose weighted sum they are. `notes` is what
    a reader of the figures must know."""

    names: tuple[str, ...]
    seen: FollowUp
    person: Float[np.ndarray, "patients person"]
    image: Float[np.ndarray, "patients image"]
    image_kinds: tuple[str, ...]
    columns: Float[np.ndarray, "patients columns"] | None = None
    records: tuple[Admitted | None, ...] | None = None
    oracle: Mapping[str, Float[np.ndarray, " patients"]] | None = None
    law: Float[np.ndarray, "patients features"] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def view(self, fitted_on: Int[np.ndarray, " train"], config: PrognosisHeadConfig) -> View:
        """Everybody, through a vocabulary that only these patients were asked for."""
        if self.records is None:
            assert self.columns is not None
            num = self.person.shape[1]
            kinds = ("person",) * num + ("record",) * (self.columns.shape[1] - num)
            return View(self.person, self.columns, self.image, kinds, self.image_kinds, law=self.law)
        known = [one for row in fitted_on if (one := self.records[row]) is not None]
        reading = config.record
        minimum, longest = (5, 256) if reading is None else (reading.min_patients, reading.max_events)
        vocabulary = Vocabulary.fit(known, min_patients=minimum)
        sequences = tuple(
            None if one is None else sequence_of(one, vocabulary, max_events=longest) for one in self.records
        )
        there = [row for row, one in enumerate(self.records) if one is not None]
        table = tabulate([one for one in self.records if one is not None], vocabulary)
        record = np.full((len(self), len(table.names)), np.nan)
        record[there] = table.values
        return View(
            self.person, record, self.image, table.kinds, self.image_kinds, sequences, len(vocabulary), self.law
        )


def from_table(config: TableConfig, causes: Sequence[str] = ()) -> Patients:
    """The rows of the first file that the others have too and whose outcome is known; `causes` exclude each other."""
    tables = [_read(path, config.id) for path in config.files]
    names = [name for name in tables[0] if all(name in other for other in tables[1:])]
    merged = {name: {key: value for table in tables for key, value in table[name].items()} for name in names}
    known = list(next(iter(merged.values()))) if merged else []
    if bool(causes) != (config.cause is not None):
        got = f"head.causes={list(causes)}, table.cause={config.cause}"
        raise InputError("causes have names and a column", got=got, remedy="Set both, or neither.")
    for name in filter(None, (config.time, config.observed, config.cause, config.age, config.sex)):
        if name not in known:
            raise InputError(
                "a named column is in the table", got=repr(name), remedy=did_you_mean(name, known), file=config.files[0]
            )
    times = {name: _number(merged[name][config.time]) for name in names}
    usable = [name for name in names if np.isfinite(times[name]) and times[name] > 0]
    events = [_number(merged[name][config.observed]) for name in usable]
    if not np.isfinite(events).all():
        got = f"{int((~np.isfinite(events)).sum())} of {len(events)} that are no number"
        raise InputError(f"'{config.observed}' is 1 or 0", got=got, remedy="Mend them.", file=config.files[0])
    rows = [merged[name] for name in usable]
    person = _columns(rows, (config.age, config.sex), config.files[0])
    record = _columns(rows, (config.age, config.sex, *config.record, *config.later), config.files[0])
    image = _columns(rows, config.image, config.files[0])
    notes = [f"{len(names) - len(usable)} of {len(names)} without a usable time left out."]
    if config.landmark:
        later = ", ".join(config.later)
        notes.append(
            f"Asked at '{config.landmark}', after the images: {later} count as known. No forecast from the images' day."
        )
    which = None
    if config.cause is not None:
        said = [row[config.cause].strip() for row in rows]
        unknown = sorted({one for one, event in zip(said, events, strict=True) if event > 0 and one not in causes})
        if unknown:
            got, remedy = ", ".join(map(repr, unknown)), f"There are {', '.join(causes)}."
            raise InputError("an event has one of the head's causes", got=got, remedy=remedy, file=config.files[0])
        which = np.array([causes.index(one) if one in causes else 0 for one in said])
    seen = FollowUp.of(np.array([times[name] for name in usable]), np.array(events) > 0, cause=which)
    kinds = ("image",) * image.shape[1]
    return Patients(tuple(usable), seen, person, image, kinds, columns=record, notes=tuple(notes))


def _read(path: Path, key: str) -> dict[str, dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("a table can be read", got=str(error), remedy="Give a CSV file.", file=path) from None
    if not rows or key not in rows[0]:
        got = f"{len(rows)} rows, columns {', '.join(list(rows[0])[:5]) if rows else 'none'}"
        raise InputError(f"a table has rows and the column '{key}'", got=got, remedy="Set table.id.", file=path)
    if len({row[key] for row in rows}) < len(rows):
        raise InputError("a patient has one row", got="several of one id", remedy="Keep one each.", file=path)
    return {row[key]: row for row in rows}


def _columns(
    rows: Sequence[Mapping[str, Any]], patterns: Sequence[str], path: Path
) -> Float[np.ndarray, "rows columns"]:
    """Numbers as they are; of words one column for each kind but the commonest; NaN where empty."""
    found: list[np.ndarray] = []
    for pattern in patterns:
        names = [name for name in rows[0] if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            raise InputError(
                "a named column is in the table", got=repr(pattern), remedy=did_you_mean(pattern, rows[0]), file=path
            )
        for name in names:
            texts = [(row[name] or "").strip() for row in rows]
            numbers = np.array([_number(text) for text in texts])
            if np.isfinite(numbers[[bool(text) for text in texts]]).all():
                found.append(numbers)
                continue
            kinds = sorted({text for text in texts if text}, key=lambda kind: (-texts.count(kind), kind))
            if len(kinds) > MOST_KINDS:
                got = f"'{name}' with {len(kinds)} kinds"
                raise InputError(
                    f"a column of words has at most {MOST_KINDS} kinds", got=got, remedy="Leave it out.", file=path
                )
            found += [np.array([float(text == kind) if text else np.nan for text in texts]) for kind in kinds[1:]]
    return np.stack(found, axis=1) if found else np.zeros((len(rows), 0))


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
