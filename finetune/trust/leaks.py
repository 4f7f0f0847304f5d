"""Was anything of what is evaluated also learnt from? By the subjects' names, and by what the images hold.

A model folder says on whom it was fitted and where its encoder came from; that chain is followed as far as its files are here.
Images are compared by a hash of their voxels on closest-to-RAS axes, so a copy is found under another name, format or order of
axes; the series of a store by what its index holds of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.samples import progress_over
from foundation.checkpoint import read_about
from foundation.config import Config
from foundation.errors import InputError
from foundation.preprocess import to_closest_ras
from foundation.reading.collection import Collection, Row, read_manifest
from foundation.reading.nifti import read_nifti
from foundation.store.index import SETTINGS, SeriesRow
from foundation.store.prepare import Source, prepare_series
from foundation.store.reader import Store

SHOWN = 10


class Check(Config):
    """`num` subjects (by name) or series (by content) were compared with; `overlap` names the evaluated cases found among them."""

    against: str
    by: Literal["name", "content"]
    num: int
    overlap: tuple[str, ...]

    def __str__(self) -> str:
        found = f"{len(self.overlap)} in both: {', '.join(self.overlap[:SHOWN])}" if self.overlap else "none in both"
        return f"checked against {self.num} {self.against} by {self.by}, {found}"


class LeakReport(Config):
    """`unchecked` is what could not be compared, and why."""

    checks: tuple[Check, ...]
    unchecked: tuple[str, ...]

    @property
    def overlap(self) -> list[str]:
        return sorted({name for check in self.checks for name in check.overlap})

    def lines(self) -> list[str]:
        return [*map(str, self.checks), *(f"not checked: {one}" for one in self.unchecked)]

    def refuse(self, manifest: Path) -> None:
        """Overlap is an `InputError`."""
        if self.overlap:
            raise InputError(
                "a model is evaluated on subjects that it did not learn from",
                got="; ".join(str(check) for check in self.checks if check.overlap),
                remedy="Evaluate on others, or give --allow-overlap (also where other people merely have the same names).",
                file=manifest,
            )


def find_leaks(
    rows: Sequence[Row], root: Path, provenance: Mapping[str, Any], folder: Path, pretrained_on: Sequence[Path] | None
) -> LeakReport:
    """By name always, because it is free; by content with `pretrained_on`, what the user names besides the model folder's own
    sources, and not with None."""
    checks, unchecked = _by_name(rows, provenance)
    if pretrained_on is None:
        return LeakReport(checks=tuple(checks), unchecked=tuple(unchecked))
    sources, absent = _sources_of(provenance, folder)
    for source in [*sources, *(Learnt(path, f"series of {path}") for path in pretrained_on)]:
        num, overlap = _compare_with_store(rows, root, source) if source.is_store else _compare(rows, root, source)
        checks.append(Check(against=source.words, by="content", num=num, overlap=tuple(sorted(overlap))))
    return LeakReport(checks=tuple(checks), unchecked=(*unchecked, *absent))


def _by_name(rows: Sequence[Row], provenance: Mapping[str, Any]) -> tuple[list[Check], list[str]]:
    if "trained_on" not in provenance:
        return [], ["training subjects, whom the model folder does not name"]
    checks = []
    for key, what in (("trained_on", "training subjects"), ("calibrated_on", "calibrating subjects")):
        if known := set(provenance.get(key, ())):
            overlap = sorted({row.name for row in rows if row.subject in known})
            checks.append(Check(against=what, by="name", num=len(known), overlap=tuple(overlap)))
    return checks, []


# ------------------------------------------------------------------------------------------------ what was learnt from


@dataclass(frozen=True)
class Learnt:
    """A manifest or a store; of it only these subjects or splits, where they are not None."""

    path: Path
    words: str
    subjects: frozenset[str] | None = None
    splits: tuple[str, ...] | None = None

    @property
    def is_store(self) -> bool:
        return (self.path / SETTINGS).is_file()

    def has(self, subject: str, split: str | None) -> bool:
        return (self.subjects is None or subject in self.subjects) and (self.splits is None or split in self.splits)


def _sources_of(provenance: Mapping[str, Any], folder: Path) -> tuple[list[Learnt], list[str]]:
    """What a task was fitted on, and what its start had learnt from, back to the beginning of the chain."""
    sources: list[Learnt] = []
    unchecked: list[str] = []

    def add(path: str, words: str, **chosen: Any) -> None:
        here = find_near(Path(path), folder)
        if here is None:
            unchecked.append(f"{words}: {path} is not here (name it with --pretrained-on)")
        else:
            sources.append(Learnt(here, f"{words} ({path})", **chosen))

    while True:
        config = provenance.get("config") or {}
        if "trained_on" in provenance and "manifest" in provenance:
            add(provenance["manifest"], "training series", subjects=frozenset(provenance["trained_on"]))
        elif config.get("store") or config.get("manifest"):
            splits = None if config.get("splits") is None else tuple(config["splits"])
            add(config.get("store") or config["manifest"], "pretraining series", splits=splits)
        start = config.get("encoder")
        if not isinstance(start, str):  # the beginning, or a pretraining, whose encoder is no path
            return sources, unchecked
        here = find_near(Path(start), folder)
        if here is None or not (here / "config.json").is_file():
            unchecked.append(f"what the encoder learnt from: {start} is not here (name the data with --pretrained-on)")
            return sources, unchecked
        provenance = read_about(here)["provenance"]


def find_near(path: Path, folder: Path) -> Path | None:
    """A path as it was written when the model was made: from here, or from any folder that the model's lies in."""
    for start in (Path(), *folder.resolve().parents):
        if (start / path).exists():
            return start / path
    return None


# ------------------------------------------------------------------------------------------------ comparing


def image_hash(path: Path) -> str:
    """Of the voxels on closest-to-RAS axes, and their shape."""
    voxels = to_closest_ras(read_nifti(path)).voxels
    return hashlib.sha256(f"{voxels.shape}".encode() + np.ascontiguousarray(voxels).tobytes()).hexdigest()


def _series(rows: Sequence[Row], root: Path) -> Iterator[tuple[Row, int, Path]]:
    for row in rows:
        for number, entry in enumerate(row.series):
            yield row, number, root / entry.path


def _compare(rows: Sequence[Row], root: Path, source: Learnt) -> tuple[int, set[str]]:
    collection: Collection = read_manifest(source.path)
    learnt = [row for row in collection.rows if source.has(row.subject, row.split)]
    evaluated = {
        image_hash(path): row.name for row, _, path in progress_over(list(_series(rows, root)), "hash evaluated")
    }
    known = list(_series(learnt, collection.root))
    found = {evaluated.get(image_hash(path)) for _, _, path in progress_over(known, "hash learnt")}
    return len(known), {name for name in found if name is not None}


def _compare_with_store(rows: Sequence[Row], root: Path, source: Learnt) -> tuple[int, set[str]]:
    store = Store.open(source.path, with_damaged=True)
    learnt = [one for one in (store.row(number) for number in range(len(store))) if source.has(one.subject, one.split)]
    known = {trait for one in learnt for trait in _traits(one)}
    found = set()
    for row, number, path in progress_over(list(_series(rows, root)), "hash evaluated"):
        entry = row.series[number]
        removed = None if entry.removed is None else root / entry.removed
        own = Source(row.subject, row.session, number, entry.path, path, contrast=entry.contrast, removed=removed)
        if not known.isdisjoint(_traits(prepare_series(own, store.settings).row)):
            found.add(row.name)
    return len(learnt), found


def _traits(row: SeriesRow) -> tuple[object, ...]:
    """What marks a stored image: the hash of its content, which a mask of the face would change; and numbers that it would not."""
    return row.sha256, (tuple(row.shape), row.body_voxels, row.mean, row.std)
