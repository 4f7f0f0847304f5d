"""The commands of the record: `larmor record SOURCE` counts what a source holds, `larmor cohort OUT` writes records too."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from ehr.events import Event
from ehr.index import Admitted, admit, index_of
from ehr.record import Records, read_records
from ehr.units import State
from foundation.errors import InputError
from foundation.files import write_aside

SHOWN = 12  # of a list of counts


def record_command(
    source: Path,
    *,
    strict: bool = False,
    zone: str | None = None,
    study_uid: str | None = None,
    at: str | None = None,
    landmark: str | None = None,
    audit: Path | None = None,
    quarantine: Path | None = None,
    meds: Path | None = None,
) -> None:
    """The `larmor record` command. What it prints are counts, which name nobody."""
    if audit and not (study_uid or at):
        raise InputError("an audit is about an index", got="none", remedy="Name it with --study or --at.")
    if landmark and not (study_uid or at):
        raise InputError("a landmark comes after an index", got="none", remedy="Name it with --study or --at.")
    records = read_records(source, strict=strict, zone=zone)
    if quarantine:
        with write_aside(quarantine) as aside:
            aside.write_text("".join(json.dumps(asdict(one)) + "\n" for one in records.summary.quarantined))
    if not records:
        aside_for = ", ".join(f"{number} {reason}" for reason, number in _reasons(records).most_common(3))
        got = f"nobody; set aside: {aside_for}" if aside_for else "nobody"
        remedy = "Give a FHIR bundle, NDJSON, or a folder of them (R4, R4B or R5)."
        raise InputError("a record is of a patient", got=got, remedy=remedy, file=source)
    for line in describe(records, strict=strict):
        print(line)
    if quarantine:
        print(f"wrote {quarantine}")
    if meds:
        from ehr.meds import write_meds

        print(f"wrote {_number(write_meds(records.values(), meds), 'row')} to {meds}")
    if study_uid or at:
        admitted = _admitted(records, study_uid, at, landmark, zone)
        found = audit_of(records, admitted)
        print(f"before the index, over {_number(len(admitted), 'patient')}: {found['num_kept']} events kept")
        for reason, kinds in found["dropped"].items():
            print(f"  left out, {reason}: {_counts(kinds)}")
        if audit:
            with write_aside(audit) as aside:
                aside.write_text(json.dumps(found, indent=1) + "\n")
            print(f"wrote {audit}")


def audit_of(records: Records, admitted: Sequence[Admitted]) -> dict[str, Any]:
    """What audit.json holds: events kept and dropped by reason and type, the values of those kept, resources set aside."""
    kept = (event for one in admitted for event in one.events)
    return reduce(add, (one.audit for one in admitted)).as_json() | {
        "values_kept": _states(kept),
        "resources_set_aside": dict(_reasons(records)),
    }


def cohort_command(out: Path, *, record: str = "mixed", **settings: object) -> None:
    """A cohort, and a record beside every patient unless `record` is "none"."""
    from ehr.synthesis import VERSIONS, write_records
    from foundation.cohort.writing import cohort_command as write_images

    if record not in (*VERSIONS, "none"):
        got = repr(record)
        raise InputError(
            "a record is in a version of FHIR", got=got, remedy=f"Use one of: {', '.join(VERSIONS)}, none."
        )
    write_images(out, **settings)  # pyright: ignore[reportArgumentType]
    if record != "none":
        write_records(out, version=record)
        print(f"wrote their records: {record}")


def describe(records: Records, *, strict: bool) -> Iterable[str]:
    """A source in counts."""
    summary = records.summary
    checked = "every resource of a type that is read was validated" if strict else "nothing was validated"
    yield f"{_number(len(records), 'patient')}; {checked}"
    yield f"resources read: {_counts(summary.kinds, most=len(summary.kinds))}"
    yield f"of other types, not read: {_counts(summary.unread)}"
    if strict:
        yield f"valid under: {_counts(summary.versions)}; mended: {_counts(summary.repairs)}"
    reasons = _reasons(records)
    yield f"set aside: {sum(reasons.values())}"
    for reason, number in reasons.most_common():
        yield f"  {number} {reason}"
    events = [event for record in records.values() for event in record.events]
    yield f"events: {_counts(Counter(event.kind for event in events))}"
    yield f"values: {_counts(_states(events))}"


def _reasons(records: Records) -> Counter[str]:
    return Counter(f"{one.kind or 'document'}, {one.reason}" for one in records.summary.quarantined)


def _states(events: Iterable[Event]) -> dict[str, int]:
    return Counter(event.state.name.lower().replace("_", " ") for event in events if event.state is not State.NONE)


def _admitted(
    records: Records, study_uid: str | None, at: str | None, landmark: str | None, zone: str | None
) -> list[Admitted]:
    """Every patient at a given time; of a named study who has it, or the only one."""
    name, equals, stamp = (landmark or "").partition("=")
    if landmark and not (equals and name and stamp):
        raise InputError("a landmark is NAME=TIME", got="something else", remedy="For example surgery=2020-05-07.")
    declared = (name, stamp) if landmark else None
    having = list(records.values())
    if study_uid and len(having) > 1:
        having = [one for one in having if any(f"uid:{study_uid}" in study.keys for study in one.studies)]
    if not having:
        remedy = "Give its StudyInstanceUID as the record spells it, or the time with --at."
        raise InputError("the study is in one of the records", got="in none", remedy=remedy, file=records.source)
    indices = (
        (record, index_of(record, study_uid=study_uid, at=at, landmark=declared, zone=zone)) for record in having
    )
    return [admit(record, index) for record, index in indices]


def _counts(counts: Mapping[str, int], most: int = SHOWN) -> str:
    ordered = Counter(counts).most_common()
    more = [f"and {len(ordered) - most} more"] if len(ordered) > most else []
    return ", ".join([*(f"{name} {number}" for name, number in ordered[:most]), *more]) or "none"


def _number(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
