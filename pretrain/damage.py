"""Studies that turn out to be damaged while a run is under way: noted, replaced, and too many of them end the run.

The replacement is a pure function of the draw and of which files can be read, so it is the same after a resume and for any
number of processes. It cannot make the run equal to one that never had the study: all later draws were laid out over all
studies. Where that matters, damage is found before: `larmor prepare` leaves bad files out of a store, and `larmor prepare
--verify` whatever was damaged since.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from foundation.errors import InputError
from foundation.quarantine import BadFile, append_bad_file, check_budget, read_bad_files
from foundation.training import Draw, Samples, fold

TRIES = 64  # a handful of studies may all be damaged and still be within the budget
SUBSTITUTE = 41  # sets these draws apart from all others that are made from a sample's seed


class Damage:
    """The list of a run's damaged studies, in a file: the processes that read samples share it, and a resume finds it."""

    def __init__(self, path: Path, budget: float):
        self.path, self.budget = path, budget
        self._noted: set[str] = set()

    def found(self) -> list[BadFile]:
        return read_bad_files(self.path)

    def note(self, bad: BadFile, total: int) -> None:
        if bad.file in self._noted:
            return
        self._noted.add(bad.file)
        if bad.file not in {one.file for one in self.found()}:
            append_bad_file(self.path, bad)
        check_budget(self.found(), total, self.budget, listed=self.path)


class Mended:
    """A dataset whose samples may fail: the draw then gets the first study drawn in its place that can be read."""

    def __init__(self, samples: Samples, damage: Damage, name: Callable[[int], str]):
        self.samples, self.damage, self.name = samples, damage, name

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> Any:
        index = draw.index
        for attempt in range(1, TRIES):
            try:
                return self.samples[Draw(index, draw.seed)]
            except InputError as error:
                self.damage.note(BadFile(self.name(index), str(error)), len(self))
            index = fold(draw.seed, SUBSTITUTE, attempt) % len(self)
        return self.samples[Draw(index, draw.seed)]

    def collate(self, samples: list[Any]) -> Any:
        return self.samples.collate(samples)

    def first_readable(self, seed: int) -> Any:
        """A sample to show: a damaged study must not spoil the end of a run."""
        for index in range(len(self)):
            try:
                return self.samples[Draw(index, seed)]
            except InputError:
                continue
        raise AssertionError("a run that ended has read something")
