"""Admitted events as arrays: a sequence for the record's encoder, and a table for a plain baseline. numpy only.

    sequence = sequence_of(admitted, vocabulary)
    table = tabulate([admitted, ...], vocabulary)     table.names, table.values with NaN where nothing is known

`RecordSequence` is the plain type that heads may take; heads/_record.py turns it into tokens. Both views are pure functions of
what was admitted, to the last bit, however the files were ordered.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Float32, Int8, Int32

from ehr.events import Event
from ehr.index import Admitted
from ehr.times import DAY_S, YEAR_S
from ehr.units import State
from ehr.vocabulary import PADDING, UNKNOWN, Vocabulary
from foundation.errors import InputError

__all__ = [
    "PADDING", "RecordSequence", "State", "Table", "age_years", "sequence_of", "tabulate",
]  # fmt: skip

OLDEST_YEARS = 90.0  # anyone above 89 counts as this
COMPARATORS = {"": 0, "<": -1, "<=": -1, ">": 1, ">=": 1}
FARTHEST = 20.0  # reference ranges away from the middle: beyond, a value says no more
OF_ANALYTE = ("last", "change", "days since", "is known")
WINDOWS_DAYS = (1.0, 30.0, 365.0, 1826.0, math.inf)


@dataclass(frozen=True)
class RecordSequence:
    """A patient's events, earliest first, after the patient's age and sex; all arrays have one entry per event.

    `position` is 0 at the lower and 1 at the upper end of the reference range (age: 0 at birth, 1 at 90 years), and 0 where
    there is none. `state` is a `units.State`: whether there is a value, and why not. `comparator` is -1 for "<", 1 for ">".
    `log_days` is ln(1 + days before the index). `order` counts the moments back from the index: the last ones are 1, and
    what happened at one moment shares a number; age and sex have 0.
    """

    code: Int32[np.ndarray, " events"]
    position: Float32[np.ndarray, " events"]
    state: Int8[np.ndarray, " events"]
    comparator: Int8[np.ndarray, " events"]
    log_days: Float32[np.ndarray, " events"]
    order: Int32[np.ndarray, " events"]

    def __len__(self) -> int:
        return len(self.code)

    @classmethod
    def empty(cls) -> RecordSequence:
        """No record at all."""
        return cls(**{name: np.zeros(0, dtype) for name, dtype in DTYPES.items()})

    def tobytes(self) -> bytes:
        """Every array's bytes, for comparing to the last bit."""
        return b"".join(getattr(self, one.name).tobytes() for one in fields(self))


DTYPES = {
    "code": np.int32, "position": np.float32, "state": np.int8, "comparator": np.int8, "log_days": np.float32,
    "order": np.int32,
}  # fmt: skip


def sequence_of(admitted: Admitted, vocabulary: Vocabulary, *, max_events: int = 512) -> RecordSequence:
    """The events before the index as arrays; of more than `max_events` the latest. Repetitions of one fact count once."""
    if max_events < 2:
        raise InputError("a sequence has room for age and sex", got=max_events, remedy="Allow two events at least.")
    index = admitted.index.time
    events = _without_repetitions(admitted.events)
    person = _person_rows(admitted, vocabulary)
    events = events[max(0, len(events) - (max_events - len(person))) :]
    moments = sorted({_moment(event) for event in events}, reverse=True)
    order = {moment: place for place, moment in enumerate(moments, start=1)}
    rows = [
        (
            vocabulary.place_of(event)[0],
            0.0 if event.position is None else float(np.clip(event.position, -FARTHEST, FARTHEST)),
            int(event.state),
            COMPARATORS[event.comparator],
            math.log1p((index - _moment(event)) / DAY_S),
            order[_moment(event)],
        )
        for event in events
    ]
    columns = zip(*(person + rows), strict=True) if person or rows else ((),) * len(DTYPES)
    return RecordSequence(
        **{name: np.array(column, dtype) for (name, dtype), column in zip(DTYPES.items(), columns, strict=True)}
    )


def age_years(admitted: Admitted) -> float | None:
    """Age at the index, 90 for anybody over 89; None where no birth date is known, or one after the index."""
    birth = admitted.record.birth
    if birth is None or birth.middle > admitted.index.time:
        return None
    years = (admitted.index.time - birth.middle) / YEAR_S
    return OLDEST_YEARS if years >= OLDEST_YEARS else years


def _person_rows(admitted: Admitted, vocabulary: Vocabulary) -> list[tuple[int, float, int, int, float, int]]:
    """Age and sex, those of them that are known."""
    rows = []
    age = age_years(admitted)
    if age is not None:
        rows.append((vocabulary.places["PATIENT|age"], age / OLDEST_YEARS, int(State.USABLE), 0, 0.0, 0))
    sex = vocabulary.places.get(f"PATIENT|{admitted.record.sex}")
    if sex is not None:
        rows.append((sex, 0.0, int(State.NONE), 0, 0.0, 0))
    return rows


def _moment(event: Event) -> float:
    assert event.happened is not None
    return event.happened.middle


def _without_repetitions(events: Sequence[Event]) -> list[Event]:
    """One of each: files repeat a result under two identifiers, and an order under two versions."""
    seen = {
        (event.codes, event.happened, event.value, event.unit, event.comparator): event for event in reversed(events)
    }
    return list(reversed(seen.values()))


# ------------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Table:
    """One row per patient; NaN where nothing is known. A column's name says what it holds, its kind what sort of thing that is:
    "person", "last", "change", "days since", "is known", "ever" (a count) or "window" (the same in less time)."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    values: Float[np.ndarray, "patients columns"]

    def column(self, name: str) -> Float[np.ndarray, " patients"]:
        return self.values[:, self.names.index(name)]


def tabulate(
    patients: Sequence[Admitted], vocabulary: Vocabulary, *, windows_days: Sequence[float] = WINDOWS_DAYS
) -> Table:
    """Plain features. Age and sex; then for every analyte of the vocabulary the last usable value in its canonical unit, its
    change from the one before, days since, and whether there is any (0 or 1); then for every code how often it occurs in
    each window before the index, and days since the last. A count is never NaN: nothing recorded is a count of 0.
    """
    # Values of different analytes, which any of them falls back to, are not one column.
    analytes = [code for code in vocabulary.codes if code.startswith("ANALYTE|") and code != "ANALYTE|*"]
    codes = [code for code in vocabulary.codes[UNKNOWN + 1 :] if not code.startswith("PATIENT|")]
    names, kinds = ["age_years", "is_male", "is_female"], ["person"] * 3
    for code in analytes:
        names += [f"{code} {what}" for what in OF_ANALYTE]
        kinds += OF_ANALYTE
    for code in codes:
        names += [f"{code} in {_window_name(days)}" for days in windows_days] + [f"{code} days since any"]
        kinds += ["ever" if math.isinf(days) else "window" for days in windows_days] + ["days since"]
    values = np.full((len(patients), len(names)), np.nan)
    for row, admitted in zip(values, patients, strict=True):
        by_code = defaultdict(list)
        for event in _without_repetitions(admitted.events):
            by_code[vocabulary.codes[vocabulary.place_of(event)[0]]].append(event)
        found: list[float] = [
            math.nan if (age := age_years(admitted)) is None else age,
            float(admitted.record.sex == "male"),
            float(admitted.record.sex == "female"),
        ]
        for code in analytes:
            found += _of_analyte(by_code[code], admitted.index.time)
        for code in codes:
            days = [(admitted.index.time - _moment(event)) / DAY_S for event in by_code[code]]
            found += [sum(one <= window for one in days) for window in windows_days]
            found.append(min(days, default=math.nan))
        row[:] = found
    return Table(tuple(names), tuple(kinds), values)


def _of_analyte(events: Sequence[Event], index: float) -> list[float]:
    usable = [event for event in events if event.canonical is not None]
    if not usable:
        return [math.nan, math.nan, math.nan, 0.0]
    last = usable[-1].canonical or 0.0
    change = last - (usable[-2].canonical or 0.0) if len(usable) > 1 else math.nan
    return [last, change, (index - _moment(usable[-1])) / DAY_S, 1.0]


def _window_name(days: float) -> str:
    return "all" if math.isinf(days) else f"{days:g} days"
