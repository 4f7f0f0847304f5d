"""Detection: lesions outlined as by a segmentation head, then counted one by one, with a table of where each is and how large.

What matters to a reader is which lesions were missed and which were invented, so that is what is scored: a lesion counts as
found when any voxel of it was outlined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from pydantic import model_validator
from torch import Tensor

from foundation.findings import Structure, measure_structures
from foundation.lesions import match, pieces_of
from foundation.preprocess import Grid, PreparedStudy, find_body, sample_at
from heads import segmentation
from heads._kinds import Kinds
from heads.base import HeadReading, Target
from heads.segmentation import score_labels


class Config(segmentation.DenseConfig):
    """`structures` are kinds of lesion; what is smaller than a structure's `min_ml` is no lesion, in the truth neither.

    With `kinds` the network outlines one structure, and each lesion is then called by a kind (`heads/_kinds.py`), which is what a
    reading says and draws. Kinds in `together` come in one lesion, as the parts of a tumour do.
    """

    kind: Literal["detection"] = "detection"
    kinds: tuple[Structure, ...] = ()
    together: tuple[int, ...] = ()

    @property
    def drawn(self) -> tuple[Structure, ...]:
        return self.kinds or self.structures

    @model_validator(mode="after")
    def _kinds_are_of_one(self) -> Config:
        if self.kinds:
            values = {one.value for one in self.kinds}
            covered = set() if len(self.structures) != 1 else {self.structures[0].value, *self.structures[0].also}
            if not values <= covered or len(values) < max(2, len(self.kinds)):
                raise ValueError("kinds are values of the one structure that is outlined, at least two, each once")
            if not set(self.together) <= values:
                raise ValueError(f"what comes together are kinds: {sorted(values)}, not {list(self.together)}")
        return self


class Head(segmentation.Head):
    """The network is that of segmentation; reading and scoring are by lesion."""

    config: Config

    def add_parts(self) -> None:
        kinds = self.config.kinds
        self.called = Kinds(sorted(one.value for one in kinds), self.config.together) if kinds else None

    def look_back(
        self, studies: Sequence[tuple[PreparedStudy, np.ndarray]], ask: Callable[[PreparedStudy], Tensor]
    ) -> None:
        if self.called is not None:
            outlined = (self._on_grid(self.labels_of(ask(prepared), prepared), prepared) for prepared, _ in studies)
            self.called.learn([(*study, mask) for study, mask in zip(studies, outlined, strict=True)])

    def drawn_from(self, labels: np.ndarray, prepared: PreparedStudy) -> np.ndarray:
        """The label map of a reading: outlined lesions on the reference series' own voxels, by their kinds where there are any."""
        if self.called is None:
            return labels
        named = self.called.name(self._on_grid(labels, prepared), prepared)
        drawn = sample_at(named, prepared.grid.affine, Grid.of(prepared.study.reference), nearest=True)
        return np.where(labels > 0, drawn, 0).astype(labels.dtype)

    @staticmethod
    def _on_grid(labels: np.ndarray, prepared: PreparedStudy) -> np.ndarray:
        """Where something is outlined, on the task's grid."""
        return sample_at((labels > 0).astype(np.float32), prepared.study.reference.affine, prepared.grid) >= 0.5

    def labels_of(self, output: Tensor, prepared: PreparedStudy) -> np.ndarray:
        """Without what is too small to be a lesion, so that outlines, volumes and numbers are of the same."""
        labels, affine = super().labels_of(output, prepared), prepared.study.reference.affine
        for structure in self.config.structures:
            own = labels == structure.value
            labels[own & (pieces_of(own, affine, least_ml=structure.min_ml).numbers == 0)] = 0
        return labels

    def read(self, output: Tensor, prepared: PreparedStudy, *, source: str, mask_path: str | None) -> HeadReading:
        labels, reference = self.drawn_from(self.labels_of(output, prepared), prepared), prepared.study.reference
        findings = measure_structures(
            labels,
            reference,
            self.config.drawn,
            body=find_body(reference),
            mask_path=mask_path,
            source=source,
            count_pieces=True,
        )
        return HeadReading(findings, labels)

    def score_case(
        self, output: Tensor, prepared: PreparedStudy, labels: np.ndarray | None, targets: dict[str, Target]
    ) -> dict[str, float]:
        """Beside what segmentation measures: how many lesions of each kind there are, were said, were found and are true."""
        assert labels is not None
        said, affine = self.labels_of(output, prepared), prepared.study.reference.affine
        scores = self.score_masks(said, self.known_part(labels), affine)
        drawn = self.drawn_from(said, prepared)
        for one in self.config.kinds:
            ours, theirs = (np.isin(them, (one.value, *one.also)) * one.value for them in (drawn, labels))
            own = self.score_masks(ours, theirs, affine, [one])
            scores |= {name: value for name, value in own.items() if name.endswith(f" {one.name}")}
        return scores

    def score_masks(
        self, said: np.ndarray, truth: np.ndarray, affine: np.ndarray, structures: Sequence[Structure] = ()
    ) -> dict[str, float]:
        """`score_case` of two label maps on one grid, whoever drew them."""
        structures = structures or self.config.structures
        scores = score_labels(said, truth, structures, np.linalg.norm(affine[:3, :3], axis=0))
        for structure in structures:
            ours, theirs = (
                pieces_of(one == structure.value, affine, least_ml=structure.min_ml) for one in (said, truth)
            )
            matches = match(ours, theirs)
            scores |= {
                f"lesions {structure.name}": float(len(theirs)),
                f"said {structure.name}": float(len(ours)),
                f"found {structure.name}": float(matches.found.sum()),
                f"true {structure.name}": float(matches.true.sum()),
            }
        return scores

    def summarise(self, cases: Sequence[dict[str, float]]) -> dict[str, float]:
        """Mean Dice first, which is 1 where there is nothing and nothing was said; then per kind Dice where there is a lesion, and
        over all lesions of all cases: found (recall), true (precision), F1, and the mean error of the count. Not a number where
        there was no lesion to find, or none was said."""
        plain = {
            name: [case[name] for case in cases]
            for name in cases[0]
            if not name.startswith(("lesions ", "said ", "found ", "true "))
        }
        summary = super().summarise(
            [dict(zip(plain, values, strict=True)) for values in zip(*plain.values(), strict=True)]
        )
        known = [one for one in (*self.config.structures, *self.config.kinds) if f"lesions {one.name}" in cases[0]]
        for structure in known:
            there, said, found, true = (
                np.array([case[f"{what} {structure.name}"] for case in cases])
                for what in ("lesions", "said", "found", "true")
            )
            dice = np.array([case[f"dice {structure.name}"] for case in cases])
            recall, precision = _ratio(found.sum(), there.sum()), _ratio(true.sum(), said.sum())
            summary |= {
                f"dice where there is {structure.name}": _ratio(dice[there > 0].sum(), float((there > 0).sum())),
                f"found {structure.name}": recall,
                f"true {structure.name}": precision,
                f"F1 {structure.name}": _ratio(2 * precision * recall, precision + recall),
                f"count error {structure.name}": float(np.abs(said - there).mean()),
            }
        return summary


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")
