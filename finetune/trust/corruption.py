"""The main score against the severity of each artefact of `foundation/physics/artefacts.py`, as ROOD-MRI does (Boone et al. 2022).

Every series of a study is spoilt by an artefact of the same kind and severity, drawn for it alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from finetune.samples import LabelledStudy, progress_over
from finetune.trust.changes import Spacing, seed_of, with_series
from finetune.trust.intervals import Estimate, finite, mean_of
from finetune.trust.ledger import Figures, Ledger
from foundation.config import Config
from foundation.errors import InputError
from foundation.physics.artefacts import ARTEFACTS, SEVERITIES, draw_artefact
from foundation.study import Series
from heads.base import TaskModel


class Curve(Config):
    """The mean main score at severity 0 (as it was), 1, ... 5; a study that can no longer be read counts as 0."""

    artefact: str
    scores: tuple[Estimate, ...]


class CorruptionReport(Config):
    score: str
    num_cases: int
    severities: tuple[int, ...]
    curves: tuple[Curve, ...]

    def lines(self) -> list[str]:
        head = "".join(f"{severity:>8d}" for severity in self.severities)
        lines = [f"mean {self.score} of {self.num_cases} cases at severity", f"{'':12s}{head}"]
        for curve in self.curves:
            values = ("     n/a" if one.value is None else f"{one.value:8.3f}" for one in curve.scores)
            lines.append(f"{curve.artefact:12s}{''.join(values)}")
        return lines


def measure_corruption(
    model: TaskModel, spacing_mm: Spacing, studies: Sequence[LabelledStudy], ledger: Ledger, *, seed: int = 0
) -> CorruptionReport | str:
    score = model.head.main_score
    if score is None:
        return "this kind of head has no main score"
    found: dict[tuple[str, int], list[float]] = {(kind, level): [] for kind in ARTEFACTS for level in (0, *SEVERITIES)}

    def measure(study: LabelledStudy, kind: str, severity: int, drawn: int) -> Figures:
        try:
            spoilt = spoil(study, spacing_mm, kind, severity, drawn) if severity else study
            output = model.output_of(spoilt.prepared, spoilt.record_for(model.head))
            return {score: finite(model.head.score_case(output, spoilt.prepared, spoilt.labels, spoilt.targets)[score])}
        except InputError:
            return {score: 0.0}

    for study in progress_over(studies, "artefacts"):
        for place, kind in enumerate(ARTEFACTS):
            for severity in (0, *SEVERITIES):
                key = f"{study.row.name}|{kind if severity else 'as it was'} {severity}"
                drawn = seed_of(study, seed, 100 + place, severity)
                value = ledger.get(key, partial(measure, study, kind, severity, drawn))[score]
                found[kind, severity] += [] if value is None else [value]
    curves = (
        Curve(artefact=kind, scores=tuple(mean_of(found[kind, level]) for level in (0, *SEVERITIES)))
        for kind in ARTEFACTS
    )
    return CorruptionReport(score=score, num_cases=len(studies), severities=(0, *SEVERITIES), curves=tuple(curves))


def spoil(study: LabelledStudy, spacing_mm: Spacing, kind: str, severity: int, seed: int) -> LabelledStudy:
    """The study with one artefact of this kind in each series. Artefacts keep the grid, so the truth stays where it is."""

    def series() -> Iterator[Series]:
        for number, one in enumerate(study.prepared.study.series):
            artefact = draw_artefact(kind, severity, np.random.default_rng([seed, number]))
            volume = torch.from_numpy(one.voxels).to(torch.complex64)
            yield replace(one, voxels=artefact.apply(volume, one.spacing_mm).abs().float().numpy())

    return with_series(study, series(), spacing_mm)
