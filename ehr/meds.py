"""Records as MEDS, the Medical Event Data Standard (schema 0.4), for tools that speak it: `larmor record SOURCE --meds OUT`.

    OUT/data/0.parquet            subject_id, time, code, numeric_value; by subject, then by time
    OUT/metadata/dataset.json, codes.parquet, subject_splits.parquet (everybody is in "train")

An event stands at the time when it was known, not when it happened, so that whoever cuts at a time cuts the future off; of a
stamp that may mean several instants the last one counts. Values are canonical, with their unit in the code; what cannot be used
has none. Subjects are numbers in the order of the source: no name, no free text. `ehr/privacy.py` moves dates.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ehr.events import Event
from ehr.record import Record
from ehr.times import Span
from foundation.errors import InputError
from foundation.files import write_folder_aside

MEDS_VERSION = "0.4.0"
BIRTH, DEATH = "MEDS_BIRTH", "MEDS_DEATH"
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 (MEDS has times without a zone; these are UTC)


def write_meds(records: Iterable[Record], out: Path) -> int:
    """Write a new folder whole or not at all; returns the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if out.exists():
        raise InputError("OUT is a new folder", got="one that exists", remedy="Name another.", file=out)
    rows, num_subjects = [], 0
    for num_subjects, record in enumerate(records, start=1):
        own = sorted(rows_of(record), key=lambda row: (row["time"] is not None, row["time"] or EPOCH, row["code"]))
        rows += [{"subject_id": num_subjects, **row} for row in own]
    schema = pa.schema(
        [
            ("subject_id", pa.int64()),
            ("time", pa.timestamp("us")),
            ("code", pa.string()),
            ("numeric_value", pa.float32()),
        ]
    )
    codes = sorted({row["code"] for row in rows})
    with write_folder_aside(out) as folder:
        (folder / "data").mkdir()
        (folder / "metadata").mkdir()
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / "data" / "0.parquet")
        described = pa.table({
            "code": pa.array(codes, pa.string()),
            "description": pa.nulls(len(codes), pa.string()),
            "parent_codes": pa.nulls(len(codes), pa.list_(pa.string())),
        })  # fmt: skip
        pq.write_table(described, folder / "metadata" / "codes.parquet")
        everybody = {"subject_id": pa.array(range(1, num_subjects + 1), pa.int64()), "split": ["train"] * num_subjects}
        pq.write_table(pa.table(everybody), folder / "metadata" / "subject_splits.parquet")
        about = {
            "dataset_name": out.name,
            "etl_name": "larmor",
            "etl_version": version("larmor"),
            "meds_version": MEDS_VERSION,
            "created_at": datetime.now(UTC).isoformat(),
        }
        (folder / "metadata" / "dataset.json").write_text(json.dumps(about, indent=1) + "\n")
    return len(rows)


def rows_of(record: Record) -> Iterator[dict[str, Any]]:
    """A patient's rows without the subject, in no order: sex without a time, birth, every valid event, death."""
    if record.person is not None:
        yield _row(f"SEX//{record.person.sex or 'unknown'}", None)
        if record.person.birth is not None:
            yield _row(BIRTH, record.person.birth)
        if record.person.death is not None:
            yield _row(DEATH, record.person.death)
    for event in record.events:
        stamp = _last(event)
        if event.is_valid and event.codes and stamp is not None:
            unit = f"//{event.canonical_unit}" if event.canonical is not None and event.canonical_unit else ""
            yield _row(f"{event.codes[0]}{unit}", stamp, event.canonical)


def _last(event: Event) -> Span | None:
    """The later of when it happened and when it became known; None where nobody says."""
    stamps = [one for one in (event.happened, event.known) if one is not None]
    return max(stamps, key=lambda one: one.hi, default=None)


def _row(code: str, stamp: Span | None, value: float | None = None) -> dict[str, Any]:
    time = None if stamp is None else EPOCH + timedelta(seconds=stamp.hi)
    return {"time": time, "code": code, "numeric_value": value}
