"""Whether a record and images may be of two persons: what both say of sex, birth and family name is compared.

    for warning in differences(study, record): ...

A warning and never a refusal: headers are typed by hand, names change, and a twin study is real. Files without headers say nothing
of a person, so nothing is compared. No warning quotes what it compared: it goes into reports that name nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ehr.events import Person, name_mark
from ehr.index import Admitted
from ehr.times import DAY_S, Span, span_of
from foundation.study import Study

YEAR_S = 365.25 * DAY_S
SEXES = {"M": "male", "F": "female"}
UNIT_S = {"D": DAY_S, "W": 7 * DAY_S, "M": YEAR_S / 12, "Y": YEAR_S}
ASK = "is this the patient's record?"


def differences(study: Study, record: Admitted) -> tuple[str, ...]:
    """In words for a reading's warnings; none where either side does not say, or where the identity was taken off."""
    source, person = study.reference.source, record.record.person
    if source is None or person is None:
        return ()
    header = source.headers[0]
    if _text(header, "PatientIdentityRemoved").upper() == "YES":
        return ()
    return tuple(f"{one}: {ASK}" for one in _differences(header, person))


def _differences(header: Any, person: Person) -> Iterator[str]:
    sex = SEXES.get(_text(header, "PatientSex").upper())
    if sex and person.sex in SEXES.values() and sex != person.sex:
        yield f"The record is of a {person.sex} patient, the images' headers say {sex}"
    born = _day(_text(header, "PatientBirthDate"))
    if born and person.birth:
        if _apart(born, person.birth):
            yield "The record and the images' headers give different dates of birth"
    elif person.birth and (age := _age(header)) and _apart(age, person.birth):
        yield "The age in the images' headers does not fit the record's date of birth"
    number = _text(header, "PatientID")
    has_same_number = bool(number) and any(key.startswith("id:") and key.endswith(f"|{number}") for key in person.keys)
    family = name_mark(_text(header, "PatientName").partition("=")[0].partition("^")[0])
    if family and person.names and family not in person.names and not has_same_number:
        yield "The record and the images' headers give different family names"


def _text(header: Any, name: str) -> str:
    return str(header.get(name, "") or "").strip()


def _day(text: str) -> Span | None:
    return span_of(f"{text[:4]}-{text[4:6]}-{text[6:]}") if len(text) == 8 and text.isdigit() else None


def _age(header: Any) -> Span | None:
    """When somebody was born who had this age when the study was made, with a year of tolerance."""
    text, made = _text(header, "PatientAge").upper(), _day(_text(header, "StudyDate"))
    if made is None or len(text) != 4 or not text[:3].isdigit() or text[3] not in UNIT_S:
        return None
    age_s = int(text[:3]) * UNIT_S[text[3]]
    return Span(made.lo - age_s - 2 * YEAR_S, made.hi - age_s + YEAR_S)


def _apart(one: Span, other: Span) -> bool:
    """Two days are compared by their middles: a date without a zone spans two days."""
    if max(one.hi - one.lo, other.hi - other.lo) < 3 * DAY_S:
        return abs(one.middle - other.middle) > DAY_S / 2
    return one.hi < other.lo or other.hi < one.lo
