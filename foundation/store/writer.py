"""Writing a store: series prepared by many processes, their records appended to shards by one, in the collection's order.

The order decides everything: where a shard ends depends on the records before it alone, so the bytes are the same whatever the
number of processes, and a run that was killed writes again only the shard that it was writing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from foundation.errors import InputError
from foundation.files import write_aside
from foundation.parallel import in_order
from foundation.progress import progress
from foundation.quarantine import BadFile, check_budget, write_bad_files
from foundation.store.index import (
    EVERYTHING,
    Part,
    SeriesRow,
    Share,
    StoreConfig,
    StoreSettings,
    claim_folder,
    parts_of,
    read_part,
    write_part,
)
from foundation.store.prepare import Prepared, PrepareSeries
from foundation.store.sources import Sources

QUARANTINE = "quarantine.jsonl"


@dataclass(frozen=True)
class Written:
    """What a run found and made of its share: all series of the share that are done, and the bad files among them."""

    num_done: int
    bad: list[BadFile]


def write_store(
    folder: Path,
    sources: Sources,
    config: StoreConfig,
    *,
    share: Share = EVERYTHING,
    budget: float = 0.01,
    processes: int | None = None,
) -> Written:
    """Write one machine's share of a store, or what is missing of it. `processes` None uses every core."""
    processes = (os.cpu_count() or 1) if processes is None else processes
    if not 0 <= budget <= 1:
        raise InputError("a budget is a share of the files, 0 to 1", got=budget, remedy="For example 0.01.")
    settings = StoreSettings(**config.model_dump(), collection=sources.identity, machines=share.of)
    claim_folder(folder, settings)
    _clear(folder, share)
    parts = parts_of(folder, share)
    done = read_part(parts[-1]) if parts else Part(0, False, ())
    bad = [one for path in parts for one in read_part(path).bad]
    if done.is_last:
        return Written(done.num_done, bad)
    total = sources.total(share)
    with progress(total=total, initial=done.num_done, label=f"series of share {share}", unit="series") as bar:

        def results() -> Iterator[Prepared | BadFile]:
            missing = islice(sources.series(share), done.num_done, None)
            for result in in_order(PrepareSeries(config), missing, processes):
                bar.update()
                if isinstance(result, BadFile):
                    bad.append(result)
                    bar.set_postfix(bad=len(bad), refresh=False)
                    _check_budget(folder, bad, total or bar.n, budget)
                yield result

        ordered = results()
        number = len(parts)
        while not done.is_last:
            done = _write_shard(folder, share, number, ordered, config.shard_bytes, done.num_done)
            number += 1
    publish_quarantine(folder)
    return Written(done.num_done, bad)


def _write_shard(
    folder: Path, share: Share, number: int, results: Iterator[Prepared | BadFile], limit: int, num_done: int
) -> Part:
    """Records until the shard is full or the collection ends; then its part of the index."""
    rows: list[SeriesRow] = []
    bad: list[BadFile] = []
    position, is_last = 0, True
    with write_aside(folder / share.shard(number)) as aside, aside.open("wb") as file:
        for result in results:
            num_done += 1
            if isinstance(result, BadFile):
                bad.append(result)
                continue
            rows.append(replace(result.row, shard=share.shard(number), position=position))
            file.write(result.record)
            position += len(result.record)
            if position >= limit:
                is_last = False
                break
    part = Part(num_done, is_last, tuple(bad))
    write_part(folder / share.part(number), rows, part)
    return part


def publish_quarantine(folder: Path, unfinished: list[BadFile] | None = None) -> None:
    """The bad files of all machines so far, as one list; the parts of the index are where they are kept."""
    bad = [one for path in sorted(folder.glob("index-*.parquet")) for one in read_part(path).bad]
    known = {one.file for one in bad}
    bad += [one for one in unfinished or () if one.file not in known]
    write_bad_files(folder / QUARANTINE, bad)


def _check_budget(folder: Path, bad: list[BadFile], total: int, budget: float) -> None:
    try:
        check_budget(bad, total, budget, listed=folder / QUARANTINE)
    except InputError:
        publish_quarantine(folder, bad)
        raise


def _clear(folder: Path, share: Share) -> None:
    """What an earlier run of this share left unfinished when it was killed."""
    for path in [*folder.glob(f".aside-*-shard-{share}-*"), *folder.glob(f".aside-*-index-{share}-*")]:
        path.unlink(missing_ok=True)
