"""Studies that turn out to be damaged while a run is under way: noted, replaced, and too many of them end the run.

The replacement is a pure function of the draw and of which files can be read, so it is the same after a resume and for any
number of processes. It cannot make the run equal to one that never had the study: all later draws were laid out over all
studies. Where that matters, damage is found before: `larmor prepare` leaves bad files out of a store, and `larmor prepare
--verify` whatever was damaged since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from foundation.errors import InputError
from foundation.quarantine import BadFile, append_bad_file, check_budget, read_bad_files
from foundation.training import Draw, fold
from pretrain.samples import Ready, Studies

TRIES = 64  # a handful of studies may all be damaged and still be within the budget
SUBSTITUTE = 61  # sets these draws apart from all others that are made from a sample's seed

Sample = TypeVar("Sample")


class Damage:
    """The list of a run's damaged studies, in a file: the processes that read samples share it, and a resume finds it."""

    def __init__(self, path: Path | None, budget: float):
        """Without a path the list is kept in memory: a rehearsal writes nothing."""
        self.path, self.budget = path, budget
        self._unwritten: list[BadFile] = []
        self._noted: set[str] = set()

    def found(self) -> list[BadFile]:
        return self._unwritten if self.path is None else read_bad_files(self.path)

    def note(self, bad: BadFile, total: int) -> None:
        if bad.file in self._noted:
            return
        self._noted.add(bad.file)
        if bad.file not in {one.file for one in self.found()}:
            if self.path is None:
                self._unwritten.append(bad)
            else:
                append_bad_file(self.path, bad)
        check_budget(self.found(), total, self.budget, listed=self.path or Path("damaged.jsonl"))


class Mended:
    """Studies of which some cannot be read: whoever draws one of these gets the first drawn in its place that can be."""

    def __init__(self, studies: Studies, damage: Damage):
        self.studies, self.damage = studies, damage

    def __len__(self) -> int:
        return len(self.studies)

    def ready(self, index: int, seed: int) -> Sequence[Ready]:
        return self.studies.ready(index, seed)

    def name(self, index: int) -> str:
        return self.studies.name(index)

    def fingerprint(self) -> str:
        return self.studies.fingerprint()

    def use(self, draw: Draw, make: Callable[[Sequence[Ready]], Sample]) -> Sample:
        index = draw.index
        for attempt in range(1, TRIES):
            try:
                return make(self.ready(index, draw.seed))
            except InputError as error:
                self.damage.note(BadFile(self.name(index), str(error)), len(self))
            index = fold(draw.seed, SUBSTITUTE, attempt) % len(self)
        return make(self.ready(index, draw.seed))


def use_study(studies: Studies, draw: Draw, make: Callable[[Sequence[Ready]], Sample]) -> Sample:
    """What `make` makes of the study that was drawn. Reading goes on in it, box by box, so it may fail there too."""
    return studies.use(draw, make) if isinstance(studies, Mended) else make(studies.ready(draw.index, draw.seed))
