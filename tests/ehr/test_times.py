"""Stamps: every instant that they may mean and no other, in any zone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from ehr.times import DAY_S, Span, span_of, zone_named
from foundation.errors import InputError


def seconds(*parts: int, hours: float = 0) -> float:
    return datetime(*parts, tzinfo=timezone(timedelta(hours=hours))).timestamp()


@pytest.mark.parametrize(
    ("stamp", "expected"),
    [
        ("2020-05-03T10:20:30Z", Span(seconds(2020, 5, 3, 10, 20, 30), seconds(2020, 5, 3, 10, 20, 31))),
        ("2020-05-03T10:20:30.25+02:00", Span(*[seconds(2020, 5, 3, 8, 20, 30) + 0.25] * 2)),
        ("2020-05-03T23:30:00-08:00", Span(seconds(2020, 5, 4, 7, 30), seconds(2020, 5, 4, 7, 30, 1))),
        ("2020-05-03T10:20Z", Span(seconds(2020, 5, 3, 10, 20), seconds(2020, 5, 3, 10, 21))),
        ("1969-12-31T23:59:59Z", Span(-1.0, 0.0)),
    ],
)
def test_a_stamp_with_a_zone_covers_its_last_digit(stamp: str, expected: Span):
    assert span_of(stamp) == expected


@pytest.mark.parametrize("stamp", ["2020", "2020-05", "2020-05-03", "2020-05-03T10:00:00", "2020-05-03T10:00"])
def test_a_stamp_without_a_zone_covers_what_it_means_in_every_zone(stamp: str):
    """Naive reference: the same wall clock read in each zone of the earth, first and last moment."""
    span = span_of(stamp)
    first = datetime.fromisoformat({4: stamp + "-01-01", 7: stamp + "-01"}.get(len(stamp), stamp))
    lengths = {
        4: timedelta(366),
        7: timedelta(31),
        10: timedelta(1),
        19: timedelta(seconds=1),
        16: timedelta(minutes=1),
    }
    readings = [first.replace(tzinfo=timezone(timedelta(hours=zone))) for zone in range(-12, 15)]
    assert span is not None
    assert span.lo == min(one.timestamp() for one in readings)
    assert span.hi == max((one + lengths[len(stamp)]).timestamp() for one in readings)


def test_a_named_zone_knows_its_summer():
    zone = zone_named("Europe/Berlin")
    assert span_of("2020-07-01T12:00:00", zone) == span_of("2020-07-01T12:00:00+02:00")
    assert span_of("2020-12-01T12:00:00", zone) == span_of("2020-12-01T12:00:00+01:00")
    day = span_of("2020-03-29", zone)  # an hour short
    assert day is not None and day.hi - day.lo == DAY_S - 3600
    assert span_of("2020-12-01T12:00:00Z", zone) == span_of("2020-12-01T12:00:00Z")
    assert span_of("0001", zone) is not None and span_of("9999", zone) is not None


@pytest.mark.parametrize(
    "stamp",
    [
        "", "now", "2020-13", "2020-02-30", "2020-05-03T25:00:00Z", "2020-05-03T10:61:00Z", "20200503", "0000", "2020-W01",
        "2020-05-03T10:00:00+99:00", "٢٠٢٠", "2020-05-03T10", 2020, None, ["2020"], {"value": "2020"}, True,
    ],
)  # fmt: skip
def test_what_is_no_stamp_is_none(stamp: object):
    assert span_of(stamp) is None


def test_an_unknown_zone_is_an_input_error():
    for name in ("Mars/Olympus", "../../etc/passwd", ""):
        with pytest.raises(InputError):
            zone_named(name)
    assert datetime.now(UTC).utcoffset() == timedelta(0)
