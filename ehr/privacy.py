"""Records without names: keyed pseudonyms, every date of a patient moved by one secret number of days, ages over 89 as 90.

    pseudonyms = Pseudonyms.from_file(Path("key"))        # make one with new_key(Path("key")), and keep it apart
    record = pseudonyms.record(record)                    # intervals stay; names, numbers, free text and the century go

Whoever has the key can tell who is who; without it nobody can, and another key gives other names and other dates. What a model is
given (ehr/features.py) has no names and no dates in the first place. Codes are kept: `Vocabulary.fit` leaves out the rare ones.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ehr.events import Event, ImagedStudy, Link, Person, Stay
from ehr.features import OLDEST_YEARS
from ehr.index import Index
from ehr.record import Record
from ehr.resources import READERS, VALID
from ehr.times import DAY_S, YEAR_S, Span
from ehr.units import ucum_of
from foundation.errors import InputError

KEY_BYTES = 32
FARTHEST_SHIFT_DAYS = 730  # into the past, so that nothing seems to come from the future
PREFIXES = frozenset({*READERS, "uid", "id", "accession", "urn"})


def new_key(path: Path) -> None:
    """Write a new secret key that only its owner can read; an existing one is never replaced."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        remedy = "Name another file: with a new key all pseudonyms and dates would be others."
        raise InputError("a new key gets a file of its own", got="an existing one", remedy=remedy, file=path) from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))


class Pseudonyms:
    """A keyed, repeatable renaming: the same patient has the same pseudonym and shift in every source."""

    def __init__(self, key: bytes):
        if len(key) < KEY_BYTES:
            remedy = "Make one with ehr.privacy.new_key."
            raise InputError(f"a key has at least {KEY_BYTES} bytes", got=f"{len(key)}", remedy=remedy)
        self._key = key

    @classmethod
    def from_file(cls, path: Path) -> Pseudonyms:
        try:
            return cls(path.read_bytes())
        except OSError as error:
            remedy = "Make one with ehr.privacy.new_key."
            raise InputError("a key can be read", got=error.strerror or "nothing", remedy=remedy, file=path) from None

    def of(self, name: str) -> str:
        """26 letters and digits for a name."""
        return base64.b32encode(self._digest("name", name)[:16]).decode().rstrip("=").lower()

    def key(self, key: str) -> str:
        """A reference or number under which a resource is known, hidden; what kind of thing it is stays visible."""
        for mark in "/:":
            kind, found, rest = key.partition(mark)
            if found and kind in PREFIXES:
                return f"{kind}{mark}{self.of(rest)}"
        return self.of(key)

    def shift_s(self, subject: str) -> float:
        """By how much a patient's dates are moved, in whole days: hours of the day and all intervals stay."""
        number = int.from_bytes(self._digest("shift", subject)[:8], "big")
        return -DAY_S * (1 + number % FARTHEST_SHIFT_DAYS)

    def index(self, index: Index, record: Record) -> Index:
        """The index of a record, for its pseudonymous version."""
        study = frozenset(self.key(key) for key in index.study)
        return replace(index, time=index.time + self.shift_s(record.subject), study=study)

    def record(self, record: Record) -> Record:
        by_s = self.shift_s(record.subject)
        links: dict[Link, Link] = {}
        for link in record.links:  # what contains others comes before them
            links[link] = self._link(link, links)
        return Record(
            subject=self.of(record.subject),
            person=self._person(record, by_s),
            events=tuple(self._event(event, by_s, links[event.link]) for event in record.events),
            links=tuple(links.values()),
            stays=tuple(Stay(self._keys(one.keys), _moved(one.start, by_s), _moved(one.end, by_s)) for one in record.stays),
            studies=tuple(
                ImagedStudy(self._keys(one.keys), _moved(one.started, by_s), one.modalities, self._maybe(one.encounter))
                for one in record.studies
            ),
        )  # fmt: skip

    def _person(self, record: Record, by_s: float) -> Person | None:
        person = record.person
        if person is None:
            return None
        birth = person.birth
        stamps = [span.hi for event in record.events if (span := event.known or event.happened)]
        stamps += [person.death.hi] if person.death else []
        if birth and stamps:  # nobody is older than 90 at the end of the record
            earliest = max(stamps) - OLDEST_YEARS * YEAR_S
            birth = birth if birth.middle > earliest else Span(earliest - DAY_S, earliest - DAY_S)
        return Person(
            self._keys(person.keys), _moved(birth, by_s), person.sex, person.is_dead, _moved(person.death, by_s)
        )

    def _event(self, event: Event, by_s: float, link: Link) -> Event:
        return replace(
            event,
            link=link,
            happened=_moved(event.happened, by_s),
            known=_moved(event.known, by_s),
            status=event.status if event.status in VALID.get(event.kind, ()) else "",
            source=self.key(event.source),
            encounter=self._maybe(event.encounter),
            unit=event.unit if event.unit and ucum_of(event.unit) else None,
            medication=None,
            text=None,
        )

    def _link(self, link: Link, links: Mapping[Link, Link]) -> Link:
        cites, results, orders = (self._keys(keys) for keys in (link.cites, link.results, link.orders))
        part_of = None if link.part_of is None else links[link.part_of]
        return Link(link.kind, self._keys(link.keys), cites, results, orders, part_of)

    def _keys(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self.key(key) for key in keys)

    def _maybe(self, key: str | None) -> str | None:
        return None if key is None else self.key(key)

    def _digest(self, purpose: str, name: str) -> bytes:
        return hmac.digest(self._key, f"{purpose}:{name}".encode("utf-8", "surrogatepass"), hashlib.sha256)


def _moved(span: Span | None, by_s: float) -> Span | None:
    return None if span is None else span.shifted(by_s)
