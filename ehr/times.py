"""Stamps as intervals: a partial date is every instant that it may mean, in seconds since 1970 UTC.

    span_of("2020-05")                 the month, wherever on earth it was written
    span_of("2020-05-03T10:00:00Z")    that second

A stamp without a zone was written in one that nobody told us: it covers all of them, 26 hours, unless `zone` names it.
So "before the index" is only said of what was before it whatever the stamp meant.
"""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta, tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from foundation.errors import InputError

DAY_S = 86_400.0
YEAR_S = 365.25 * DAY_S
FIRST_ZONE_S, LAST_ZONE_S = -12 * 3600.0, 14 * 3600.0  # from UTC, the zones that the earth has
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_STAMP = re.compile(
    r"\s*(\d{4})(?:-(\d\d)(?:-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(\.\d{1,12})?)?\s*(Z|z|[+-]\d\d:?\d\d)?)?)?)?\s*",
    re.ASCII,
)


class Span(NamedTuple):
    """From `lo` to `hi`, both in seconds since 1970 UTC; nothing earlier or later is meant."""

    lo: float
    hi: float

    @property
    def middle(self) -> float:
        return (self.lo + self.hi) / 2

    def shifted(self, by_s: float) -> Span:
        return Span(self.lo + by_s, self.hi + by_s)


def span_of(stamp: object, zone: tzinfo | None = None) -> Span | None:
    """What a FHIR date, dateTime or instant may mean; None where it is none. A stamp covers its last digit: 10:00 a minute."""
    match = _STAMP.fullmatch(stamp) if isinstance(stamp, str) else None
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    try:
        if day is None:
            lo, hi = _start_of(int(year), int(month or 1)), _end_of(int(year), int(month or 12))
            return _anywhere(lo, hi, zone)
        lo = _day_start(int(year), int(month), int(day))
    except ValueError:  # the 31st of February
        return None
    if hour is None:
        return _anywhere(lo, lo + DAY_S, zone)
    if int(hour) > 23 or int(minute) > 59 or int(second or 0) > 60:
        return None
    lo += 3600 * int(hour) + 60 * int(minute)
    width = 60.0
    if second is not None:
        lo, width = lo + int(second), 1.0
    if fraction is not None:
        lo, width = lo + float(fraction), 0.0
    if offset is None:
        return _anywhere(lo, lo + width, zone)
    if offset in "Zz":
        return Span(lo, lo + width)
    hours, minutes = int(offset[1:3]), int(offset[-2:])
    if hours > 14 or minutes > 59:
        return None
    lo -= (3600 * hours + 60 * minutes) * (-1 if offset[0] == "-" else 1)
    return Span(lo, lo + width)


def zone_named(name: str | None) -> ZoneInfo | None:
    """The zone that stamps without one were written in, as "Europe/Berlin"; None where nobody knows."""
    try:
        return None if name is None else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        remedy = "Name one as Europe/Berlin or UTC."
        raise InputError("a time zone is one of the IANA names", got=repr(name), remedy=remedy) from None


def _day_start(year: int, month: int, day: int) -> float:
    return (date(year, month, day).toordinal() - _EPOCH_DAY) * DAY_S


def _start_of(year: int, month: int) -> float:
    return _day_start(year, month, 1)


def _end_of(year: int, month: int) -> float:
    last = 31 if month == 12 else (date(year, month + 1, 1) - timedelta(days=1)).day
    return _day_start(year, month, last) + DAY_S


def _anywhere(lo: float, hi: float, zone: tzinfo | None) -> Span:
    """The instants that a wall clock may have meant by `lo` to `hi`, which are its readings as if it showed UTC."""
    if zone is None:
        return Span(lo - LAST_ZONE_S, hi - FIRST_ZONE_S)
    return Span(_instant(lo, zone), _instant(hi, zone))


def _instant(wall_s: float, zone: tzinfo) -> float:
    try:
        offset = (datetime(1970, 1, 1, tzinfo=zone) + timedelta(seconds=wall_s)).utcoffset()
    except OverflowError:  # the years 1 and 9999
        offset = None
    return wall_s - (offset.total_seconds() if offset else 0.0)
