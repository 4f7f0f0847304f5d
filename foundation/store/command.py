"""The `larmor prepare` command: a collection to a store, or a store verified."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from foundation.config import parse_config
from foundation.errors import InputError
from foundation.quarantine import describe
from foundation.store.index import Share, StoreConfig


def prepare_command(
    paths: Sequence[Path],
    *,
    hf: str | None = None,
    column: str | None = None,
    split: str | None = None,
    streaming: bool = False,
    shard: str = "0/1",
    verify: bool = False,
    budget: float = 0.01,
    processes: int | None = None,
    chunk: int | None = None,
    level: int | None = None,
    margin: float | None = None,
    shard_mib: float | None = None,
) -> int:
    """0 when all is well, 1 when a verification found damage."""
    if verify:
        return _verify(_one_path(paths, "larmor prepare --verify STORE"), processes)
    given = {
        "chunk_voxels": chunk,
        "level": level,
        "margin_mm": margin,
        "shard_bytes": None if shard_mib is None else int(shard_mib * 2**20),
    }
    config = parse_config(StoreConfig, {name: value for name, value in given.items() if value is not None})
    share = Share.parse(shard)
    if hf is not None:
        store = _one_path(paths, "larmor prepare --hf NAME_OR_FOLDER --column COLUMN STORE")
        if column is None:
            remedy = "Name it: --column nifti."
            raise InputError("a data set's column of NIfTI files is named", got="none", remedy=remedy)
        from foundation.store.sources import HuggingFaceSources

        sources = HuggingFaceSources(hf, column, split or "train", streaming)
    else:
        if column or split or streaming:
            remedy = "Add --hf NAME_OR_FOLDER, or leave them out: a manifest is stored with all its splits."
            raise InputError("--column, --split and --streaming belong to --hf", got="no --hf", remedy=remedy)
        if len(paths) != 2:
            got, remedy = f"{len(paths)} paths", "Write: larmor prepare MANIFEST STORE."
            raise InputError("a manifest and a store are named, in this order", got=got, remedy=remedy)
        manifest, store = paths
        if not manifest.is_file():
            raise InputError("the manifest exists", got=manifest, remedy="Give the path of an existing one.")
        from foundation.reading.collection import read_manifest
        from foundation.store.sources import ManifestSources

        sources = ManifestSources(read_manifest(manifest))
    from foundation.store.writer import write_store

    written = write_store(store, sources, config, share=share, budget=budget, processes=processes)
    print(f"share {share}: {written.num_done - len(written.bad)} of {written.num_done} series are in {store}")
    if written.bad:
        print(f"{store / 'quarantine.jsonl'}: {describe(written.bad)}")
    _finish(store)
    return 0


def _finish(folder: Path) -> None:
    """Where the results are, once every machine has written its share."""
    from foundation.store.reader import Store, unfinished_shares
    from foundation.store.summary import plot_store, summarise

    if missing := unfinished_shares(folder):
        print(f"{folder} is not complete: share {', '.join(missing[:20])} of it is still to be written")
        return
    store = Store.open(folder)
    print(summarise(store))
    plot_store(store, folder / "store.png")
    print(f"wrote {folder}\nwrote {folder / 'store.png'}")


def _verify(folder: Path, processes: int | None) -> int:
    from foundation.store.reader import DAMAGED, verify

    number, bad = verify(folder, (os.cpu_count() or 1) if processes is None else processes)
    if not bad:
        print(f"{folder}: all of {number} series are as they were written")
        return 0
    print(f"{folder}: {len(bad)} of {number} series are damaged and will be left out, until they are found whole again")
    print(f"{folder / DAMAGED}: {describe(bad)}")
    return 1


def _one_path(paths: Sequence[Path], usage: str) -> Path:
    if len(paths) != 1:
        raise InputError("one store is named", got=f"{len(paths)} paths", remedy=f"Write: {usage}.")
    return paths[0]
