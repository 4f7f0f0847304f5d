"""What a record is made of once it is no longer FHIR: events, and what is needed to tell which of them the images may be read with.

A resource gives one event, several or none (`ehr/resources.py`); `ehr/index.py` decides which of them count.
"""

from __future__ import annotations

import hmac
import unicodedata
from dataclasses import dataclass, field

from ehr.times import Span
from ehr.units import State


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """A resource as a node of the record's graph: the keys that it is known by, and the keys that it names.

    `cites` are what the resource was derived from or belongs to, `results` what it brought forth, `orders` what asked for
    it, `part_of` the resource that contains it. A key is a reference ("Observation/17", "urn:uuid:..."), an identifier
    ("id:SYSTEM|VALUE"), a study's DICOM identifier ("uid:1.2.3") or an accession number ("accession:A17").
    """

    kind: str
    keys: tuple[str, ...]
    cites: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    orders: tuple[str, ...] = ()
    part_of: Link | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, under every code that names it ("ANALYTE|glucose", "LOINC|2345-7").

    `broader` are codes of what it is an instance of: of a question, where `codes` are the question with its answer.
    `happened` and `known` are intervals because stamps are; None where the file has none that can be read. A value is kept as
    it was written (`value`, `unit`) beside what it means: `canonical` in the canonical unit, and `position`, 0 at the lower
    and 1 at the upper end of the reference range. Both are None where `state` says that the value cannot be used.
    `is_valid` is False for what was cancelled, refuted or entered in error. `link` is its resource among
    `Record.links`, `source` its reference, "Observation/17". `text` is free text, and None unless it was asked for.
    """

    kind: str
    codes: tuple[str, ...]
    happened: Span | None
    known: Span | None
    status: str
    is_valid: bool
    source: str
    link: Link = field(compare=False, repr=False)
    encounter: str | None = None
    broader: tuple[str, ...] = ()
    value: float | None = None
    unit: str | None = None
    comparator: str = ""
    state: State = State.NONE
    canonical: float | None = None
    canonical_unit: str | None = None
    position: float | None = None
    medication: str | None = None  # where the codes are, when they are in a resource of their own
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Stay:
    """An encounter: when it began and ended; None where nobody says."""

    keys: tuple[str, ...]
    start: Span | None
    end: Span | None


@dataclass(frozen=True, slots=True)
class ImagedStudy:
    """An ImagingStudy: when it, or the first of its series, started."""

    keys: tuple[str, ...]
    started: Span | None
    modalities: tuple[str, ...]
    encounter: str | None


def name_mark(family: object) -> str:
    """A mark that two spellings of a family name share whatever their case, accents and signs; empty where there is no letter.

    It hides a name from who reads a log, not from who tries all names: it is kept in memory only.
    """
    plain = unicodedata.normalize("NFKD", family).casefold() if isinstance(family, str) else ""
    letters = "".join(one for one in plain if one.isalpha())
    return hmac.digest(b"larmor", letters.encode("utf-8", "surrogatepass"), "sha256").hex()[:16] if letters else ""


@dataclass(frozen=True, slots=True)
class Person:
    """A Patient: what a model may know (`birth`, `sex`), and the death, which only an outcome may.

    `names` are marks of the family names (`name_mark`): enough to see that a header names somebody else, and no name.
    """

    keys: tuple[str, ...]
    birth: Span | None
    sex: str
    is_dead: bool
    death: Span | None
    names: frozenset[str] = field(default=frozenset(), repr=False)
