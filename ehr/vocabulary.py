"""Which codes a model knows, fitted on training patients as they were before their index.

    vocabulary = Vocabulary.fit([admit(record, index), ...], min_patients=5)
    vocabulary.place_of(event)      (17, "exact")

A code that is not in it is looked for as another coding of the same thing, as what it is a kind of, as any code of its
system, and last as any code at all. `coverage` says how often which of these was needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from ehr.codes import parents_of, system_in
from ehr.events import Event
from ehr.index import Admitted
from foundation.config import Config
from foundation.errors import InputError
from foundation.files import write_aside

PADDING, UNKNOWN = 0, 1
SPECIAL = ("", "?")
PATIENT_CODES = ("PATIENT|age", "PATIENT|female", "PATIENT|male", "PATIENT|other")
Match = Literal["exact", "parent", "system", "none"]
MATCHES: tuple[Match, ...] = ("exact", "parent", "system", "none")


class Vocabulary(Config):
    """The codes in a fixed order; the place of each is its index, after padding and unknown."""

    codes: tuple[str, ...] = Field(default=(*SPECIAL, *PATIENT_CODES))
    min_patients: int = 1

    @classmethod
    def fit(cls, patients: Iterable[Admitted], *, min_patients: int = 5) -> Vocabulary:
        """Codes, parents and systems that at least `min_patients` of these patients have; rarer ones could name somebody."""
        if min_patients < 1:
            raise InputError("a code is had by patients", got=min_patients, remedy="Ask for one at least.")
        counts: Counter[str] = Counter()
        for patient in patients:
            counts.update({name for event in patient.events for name in _names(event)})
        found = sorted(
            (name for name in counts if counts[name] >= min_patients), key=lambda name: (-counts[name], name)
        )
        return cls(codes=(*SPECIAL, *PATIENT_CODES, *found), min_patients=min_patients)

    def __len__(self) -> int:
        return len(self.codes)

    @cached_property
    def places(self) -> dict[str, int]:
        return {code: place for place, code in enumerate(self.codes)}

    def place_of(self, event: Event) -> tuple[int, Match]:
        """Where an event's best known name stands, and how close a match that is.

        Of several codings of one thing the commonest stands first, so that it has one place whichever way it was coded.
        """
        places = self.places
        for match, names in _names_by_match(event):
            known = [places[name] for name in names if name in places]
            if known:
                return min(known), match
        return UNKNOWN, "none"

    def coverage(self, patients: Iterable[Admitted]) -> dict[Match, int]:
        """How many events of these patients are matched how closely."""
        counts = Counter(self.place_of(event)[1] for patient in patients for event in patient.events)
        return {match: counts[match] for match in MATCHES}

    def save(self, path: Path) -> None:
        with write_aside(path) as aside:
            aside.write_text(self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        try:
            loaded = cls.model_validate_json(path.read_text())
        except (OSError, UnicodeDecodeError, ValidationError):
            remedy = "Give one that Vocabulary.save wrote."
            raise InputError("a vocabulary file can be read", got="another file", remedy=remedy, file=path) from None
        head = (*SPECIAL, *PATIENT_CODES)
        if loaded.codes[: len(head)] != head or len(set(loaded.codes)) < len(loaded.codes):
            remedy = "Fit it anew."
            raise InputError("a vocabulary has its own order, each code once", got="another", remedy=remedy, file=path)
        return loaded


def _names(event: Event) -> Iterator[str]:
    """Everything that an event may be found under."""
    return (name for _, names in _names_by_match(event) for name in names)


def _names_by_match(event: Event) -> Iterator[tuple[Match, Sequence[str]]]:
    """The names of an event by how close they come, nearest first."""
    codes = event.codes[:1] if event.codes and event.codes[0].startswith("ANALYTE|") else event.codes
    yield "exact", codes
    yield "parent", event.broader
    above = [parents_of(code) for code in (*codes, *event.broader)]
    for level in range(max(map(len, above), default=0)):
        yield "parent", [parents[level] for parents in above if level < len(parents)]
    yield "system", [f"{system_in(code)}|*" for code in codes]
