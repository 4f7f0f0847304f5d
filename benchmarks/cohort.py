"""How long synthetic patients take: another contrast of a head that is there, and a whole new patient."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch

from benchmarks._measure import Row, alone
from foundation.cohort.patient import CohortConfig, make_anatomy, make_patient, scan_again

PATIENT_S = 7.2  # of one core: 200 patients in 12 minutes on two


def rows() -> Iterator[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a cohort is written by one process per core
    config = CohortConfig(contrasts=("FLAIR",), missing_series=0.0)
    anatomy, tissues = make_anatomy(config, 0)
    repeat, index = count(), count(1)
    yield alone(
        "one more contrast of a head at 2 mm", lambda: scan_again(anatomy, tissues, config, next(repeat)), target=0.3
    )
    yield alone(
        "a new patient, four contrasts at 2 mm",
        lambda: make_patient(CohortConfig(missing_series=0.0), next(index)),
        target=PATIENT_S,
    )
    torch.set_num_threads(threads)
