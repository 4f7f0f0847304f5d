"""Synthetic patients without files: heads are made when they are asked for, and scanned anew each time.

    stream = CohortStream(StreamConfig(subjects=200, appearance="mixed"))
    study = stream.study(index=7, repeat=123)

Making a head takes seconds, another scan of it a fraction of one; so the heads used last are kept, four bytes a voxel.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

from pydantic import Field

from foundation.cohort.anatomy import Anatomy, subject_name
from foundation.cohort.patient import CohortConfig, make_anatomy, scan_again
from foundation.physics.relaxometry import TissueTable
from foundation.study import Study


class StreamConfig(CohortConfig):
    """`subjects` heads in all, of which the `kept` used last stay in memory; the splits have no meaning here."""

    subjects: Annotated[int, Field(ge=1)] = 200
    kept: Annotated[int, Field(ge=1)] = 64


_streams: dict[str, CohortStream] = {}


def shared_stream(config: StreamConfig) -> CohortStream:
    """One stream for all who ask for the same one: a head takes seconds to make, and is made once."""
    return _streams.setdefault(config.model_dump_json(), CohortStream(config))


class CohortStream:
    """Study `index` as it looks in its scan number `repeat`: a pure function of (config, index, repeat)."""

    def __init__(self, config: StreamConfig):
        self.config = config
        self._heads: OrderedDict[int, tuple[Anatomy, TissueTable]] = OrderedDict()

    def __len__(self) -> int:
        return self.config.subjects

    def study(self, index: int, repeat: int) -> Study:
        scans = scan_again(*self.head(index), self.config, repeat)
        return Study(subject_name(index), tuple(scan.series for scan in scans))

    def head(self, index: int) -> tuple[Anatomy, TissueTable]:
        """The anatomy of a subject, and what its tissues are made of; not to be changed, for it is kept."""
        if index not in self._heads:
            self._heads[index] = make_anatomy(self.config, index)
            if len(self._heads) > self.config.kept:
                self._heads.popitem(last=False)
        self._heads.move_to_end(index)
        return self._heads[index]
