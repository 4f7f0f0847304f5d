"""Mutate FHIR resources thousands of times and see that reading them never ends in anything but an answer.

    python -m benchmarks.mutate SOURCE --times 20000

Each resource of the source is taken in turn and damaged in one to four places: values of every wrong type, keys gone, misspelt or
twice, numbers beyond any range, texts without end, deep nesting, swapped references and stamps, and in one of ten the bytes
themselves. The damaged ones are read again from files, fast and strict, brought to an index and to features. Allowed are an answer,
an entry in the quarantine, and `InputError`. Prints what happened and the slowest file; the exit code is 0 when nothing else did.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.random import Generator, default_rng

from ehr.bundle import Quarantine, resources_in
from ehr.command import describe
from ehr.features import sequence_of, tabulate
from ehr.index import Index, IndexRule, admit
from ehr.outcomes import outcome_after
from ehr.privacy import Pseudonyms
from ehr.record import read_records
from ehr.resources import READERS
from ehr.vocabulary import Vocabulary
from foundation.errors import InputError
from foundation.progress import progress

Json = dict[str, Any]
PER_FILE = 50
SLOW_S = 30.0  # for a file of 50 resources; a hang is longer
DEEP: Any = []
for _ in range(400):
    DEEP = [DEEP]
JUNK = (
    None, True, False, 0, -1, 1e308, 10**400, 0.1, "", " ", "x", "x" * 100_000, "\x00", "\ud800", "٢٠٢٠-٠١-٠١", "‮", "NaN",
    "2020", "2020-13-45", "9999-12-31T23:59:59+14:00", "0001-01-01T00:00:00-12:00", "2020-01-01T00:00:00Z" * 50, "#", "#x",
    "Patient/", "/", "urn:uuid:", "urn:oid:", "http://", "Patient?identifier=", "1e999", "-", "(((((((((", [], [[]], [None], {},
    {"": None}, {"reference": {"reference": {}}}, {"coding": [{"system": [], "code": {}}]}, {"value": "7", "unit": 3}, DEEP,
)  # fmt: skip


@dataclass
class Tally:
    """What became of the resources, and what should not have happened."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


def mutated(resource: Json, rng: Generator) -> bytes:
    """A damaged copy as JSON text, or nearly."""
    damaged = copy.deepcopy(resource)
    for _ in range(int(rng.integers(1, 5))):
        places = list(_places(damaged))
        if not places:
            break
        holder, key = places[int(rng.integers(len(places)))]
        _damage(holder, key, rng)
    content = bytearray(json.dumps(damaged).encode())
    if rng.random() < 0.1:
        for _ in range(int(rng.integers(1, 6))):
            content[int(rng.integers(len(content)))] = int(rng.integers(256))
    return bytes(content).replace(b"\n", b" ")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document that holds a value: its holder and the key."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _damage(holder: Any, key: Any, rng: Generator) -> None:
    kind, value = int(rng.integers(7)), holder[key]
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key] = [value, copy.deepcopy(value)]
    elif kind == 2 and isinstance(holder, dict):
        other = list(holder)[int(rng.integers(len(holder)))]
        holder[key], holder[other] = holder[other], holder[key]
    elif kind == 3 and isinstance(holder, dict):
        holder[f"{key}X"] = holder.pop(key)
    elif kind == 4 and isinstance(value, str):
        at = int(rng.integers(len(value) + 1))
        holder[key] = value[:at] + chr(int(rng.integers(1, 0xD7FF))) + value[at:]
    elif kind == 5:
        holder[key] = {"value": value, "reference": value, "code": value}
    else:
        holder[key] = copy.deepcopy(JUNK[int(rng.integers(len(JUNK)))])


def read_through(source: Path) -> Counter[str]:
    """The whole way of a source, fast and strict, to features of every patient; what became of its resources."""
    found: Counter[str] = Counter()
    for strict in (False, True):
        way = "strict" if strict else "fast"
        records = read_records(source, strict=strict, free_text=not strict)
        list(describe(records, strict=strict))
        found[f"{way}, read"] += records.summary.kinds.total()
        found[f"{way}, set aside"] += len(records.summary.quarantined)
        found[f"{way}, not read"] += records.summary.unread.total()
        admitted = []
        for record in records.values():
            keys = frozenset(key for study in record.studies for key in study.keys)
            index = Index(1.6e9, keys)
            admitted += [admit(record, index, rule) for rule in (IndexRule(), IndexRule(availability="lenient"))]
            outcome_after(record, index)
            Pseudonyms(bytes(32)).record(record)
        vocabulary = Vocabulary.fit(admitted, min_patients=1)
        found[f"{way}, events admitted"] += sum(len(sequence_of(one, vocabulary)) for one in admitted)
        tabulate(admitted[:4], vocabulary)
    return found


def mutate(resources: Sequence[Json], times: int, seed: int, *, show: bool = False) -> Tally:
    """Damage and read that many resources."""
    rng, tally = default_rng(seed), Tally()
    with TemporaryDirectory() as home, progress(total=times, label="mutated", unit="resource", enabled=show) as bar:
        for first in range(0, times, PER_FILE):
            number = min(PER_FILE, times - first)
            chosen = [resources[(first + place) % len(resources)] for place in range(number)]
            path = Path(home) / "mutated.ndjson"
            path.write_bytes(b"\n".join(mutated(one, rng) for one in chosen))
            began = time.perf_counter()
            try:
                tally.outcomes.update(read_through(path))
            except InputError:
                tally.outcomes["InputError"] += 1
            except Exception:
                tally.failures.append(
                    f"file {first // PER_FILE}, seed {seed}: {traceback.format_exc(limit=-3)[-2000:]}"
                )
            tally.slowest_s = max(tally.slowest_s, time.perf_counter() - began)
            bar.update(number)
    return tally


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.mutate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--times", type=int, default=20_000, help="how many resources (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    resources = [one.resource for one in resources_in(options.source, Quarantine())]
    groups = [[one for one in resources if one["resourceType"] == kind] for kind in sorted(READERS)]
    groups = [group for group in groups if group]
    if not groups:
        remedy = "Give another one."
        raise InputError("the source holds resources that are read", got="none", remedy=remedy, file=options.source)
    # Types by turns, so that the rare ones are met as often as observations.
    spread = [
        groups[turn % len(groups)][turn // len(groups) % len(groups[turn % len(groups)])]
        for turn in range(options.times)
    ]
    tally = mutate(spread, options.times, options.seed, show=True)
    print(f"{options.times} mutated resources of {len(groups)} types: {dict(tally.outcomes)}")
    print(f"slowest file of {PER_FILE}: {tally.slowest_s:.1f} s; failures: {len(tally.failures)}")
    print("\n".join(tally.failures[:5]))
    return int(bool(tally.failures) or tally.slowest_s > SLOW_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
