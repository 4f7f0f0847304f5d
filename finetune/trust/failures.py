"""How often a model that was right fails when nothing of consequence has changed.

After a lossless change (`changes.py`) its answer must be exactly the same: the label map, or the most probable class. After a
benign one, a case has failed catastrophically when its main score falls by more than `TOLERANCE`, its most probable class is
another, or it cannot be read at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from finetune.samples import LabelledStudy, progress_over
from finetune.trust.changes import (
    Change,
    Resaved,
    Spacing,
    benign_changes,
    lossless_changes,
    resave,
    same_input,
    seed_of,
)
from finetune.trust.intervals import Estimate, mean_of, wilson
from finetune.trust.ledger import Figures, Ledger
from foundation.config import Config
from foundation.errors import InputError
from foundation.preprocess import PreparedStudy, prepare_study, to_closest_ras
from heads import classification
from heads.base import TaskModel
from heads.segmentation import LabelMapHead

TOLERANCE = 0.2


class Lossless(Config):
    """`answers` is how often the answer was another one, of all files tried, which must be 0; `scores` how often any score differed
    in its last digit, and `largest` by how much at most. What could not be written exactly was not tried."""

    family: str
    answers: Estimate
    scores: int
    largest: float


class Benign(Config):
    """`failed` is over cases; `change` is the mean change of their main score."""

    name: str
    failed: Estimate
    change: Estimate


class FailureReport(Config):
    """`any_benign` is the share of cases that failed after at least one of the benign changes."""

    score: str
    tolerance: float
    num_cases: int
    lossless: tuple[Lossless, ...]
    benign: tuple[Benign, ...]
    any_benign: Estimate

    def lines(self) -> list[str]:
        rule = f"{self.score} falls by more than {self.tolerance:g}, the class changes, or it cannot be read"
        lines = [f"{self.num_cases} cases; after a lossless change any other answer fails, after a benign one: {rule}"]
        for one in self.lossless:
            scores = f"scores differ in {one.scores}" + (f", by {one.largest:.1g} at most" if one.scores else "")
            lines.append(f"{one.family:42s} failed {one.answers} of {one.answers.num} files; {scores}")
        for one in self.benign:
            lines.append(f"{one.name:42s} failed {one.failed}; mean change {one.change}")
        return [*lines, f"{'any benign change':42s} failed {self.any_benign}"]


def measure_failures(
    model: TaskModel, spacing_mm: Spacing, studies: Sequence[LabelledStudy], ledger: Ledger, *, seed: int = 0
) -> FailureReport | str:
    """Under every change, case by case; a text says why not."""
    score = model.head.main_score
    if score is None:
        return "this kind of head has no main score"
    resaved, changes = lossless_changes(), benign_changes()
    benign: dict[str, list[Figures]] = {name: [] for name in changes}
    lossless: dict[str, list[Figures]] = {how.family: [] for how in resaved}
    for study in progress_over(studies, "benign changes"):
        before = _Before(model, spacing_mm, study)
        for place, how in enumerate(resaved):
            figures = ledger.get(f"{study.row.name}|lossless {place}", partial(before.after_resaving, how))
            lossless[how.family].append(figures)
        for place, (name, change) in enumerate(changes.items()):
            drawn = seed_of(study, seed, place)
            figures = ledger.get(f"{study.row.name}|{name}", partial(before.after, change, drawn))
            benign[name].append(figures)
    return FailureReport(
        score=score,
        tolerance=TOLERANCE,
        num_cases=len(studies),
        lossless=tuple(_lossless(family, tried) for family, tried in lossless.items()),
        benign=tuple(
            Benign(
                name=name,
                failed=wilson(sum(has_failed(one) for one in tried), len(tried)),
                change=mean_of([one["change"] for one in tried if one["change"] is not None]),
            )
            for name, tried in benign.items()
        ),
        any_benign=wilson(
            sum(any(map(has_failed, of_case)) for of_case in zip(*benign.values(), strict=True)), len(studies)
        ),
    )


def has_failed(after: Figures) -> bool:
    """An answer with no score is none at all."""
    change = after["change"]
    return change is None or change < -TOLERANCE or after["other class"] == 1.0


def _lossless(family: str, tried: Sequence[Figures]) -> Lossless:
    real = [one for one in tried if one["tried"] == 1.0]
    return Lossless(
        family=family,
        answers=wilson(sum(one["other answer"] == 1.0 for one in real), len(real)),
        scores=sum(one["difference"] != 0.0 for one in real),
        largest=max((one["difference"] or 0.0 for one in real), default=0.0),
    )


class _Before:
    """A case and what the model says of it unchanged; asked only where the ledger does not know the rest."""

    def __init__(self, model: TaskModel, spacing_mm: Spacing, labelled: LabelledStudy):
        self.model, self.spacing_mm, self.labelled = model, spacing_mm, labelled

    @cached_property
    def output(self) -> Tensor:
        return self._ask(self.labelled.prepared)

    @cached_property
    def answer(self) -> np.ndarray:
        return self._answer(self.labelled.prepared, self.output)

    @cached_property
    def score(self) -> float:
        return self._score(self.labelled, self.output)

    def _ask(self, prepared: PreparedStudy) -> Tensor:
        """Of other images with the same patient's record."""
        return self.model.output_of(prepared, self.labelled.record_for(self.model.head))

    def after_resaving(self, how: Resaved) -> Figures:
        """An input that is the same to the last bit has the same output, and the model is not asked again."""
        prepared = self.labelled.prepared
        with TemporaryDirectory() as folder:
            study = resave(prepared.study, how, Path(folder))
        if study is None:
            return {"tried": 0.0, "other answer": 0.0, "difference": 0.0}
        try:
            again = prepare_study(study, self.spacing_mm)
            output = self.output if same_input(prepared, again) else self._ask(again)
            same = np.array_equal(self.answer, self._answer(again, output))
        except InputError:
            return {"tried": 1.0, "other answer": 1.0, "difference": None}
        return {"tried": 1.0, "other answer": float(not same), "difference": float((output - self.output).abs().max())}

    def after(self, change: Change, seed: int) -> Figures:
        try:
            changed = change(self.labelled, self.spacing_mm, np.random.default_rng(seed))
            output = self._ask(changed.prepared)
            moved = self._score(changed, output) - self.score
        except InputError:
            return {"change": None, "other class": None}
        is_other = isinstance(self.model.head, classification.Head) and not torch.equal(
            output.argmax(dim=1), self.output.argmax(dim=1)
        )
        return {"change": moved if np.isfinite(moved) else None, "other class": float(is_other)}

    def _score(self, labelled: LabelledStudy, output: Tensor) -> float:
        head = self.model.head
        assert head.main_score is not None
        return head.score_case(output, labelled.prepared, labelled.labels, labelled.targets)[head.main_score]

    def _answer(self, prepared: PreparedStudy, output: Tensor) -> np.ndarray:
        """The label map on closest-to-RAS axes, the most probable class, or whatever the output is."""
        head = self.model.head
        if isinstance(head, LabelMapHead):
            reference = prepared.study.reference
            labels = head.labels_of(output, prepared).astype(np.float32)
            return to_closest_ras(reference.with_voxels(labels)).voxels
        return (output.argmax(dim=1) if isinstance(head, classification.Head) else output).numpy()
