"""Detection: lesions outlined as by a segmentation head, then counted one by one, with a table of where each is and how large.

What matters to a reader is which lesions were missed and which were invented, so that is what is scored: a lesion counts as
found when any voxel of it was outlined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from foundation.findings import measure_structures
from foundation.lesions import match, pieces_of
from foundation.preprocess import PreparedStudy, find_body
from heads import segmentation
from heads.base import HeadReading, Target
from heads.segmentation import score_labels


class Config(segmentation.DenseConfig):
    """`structures` are kinds of lesion; what is smaller than a structure's `min_ml` is no lesion, in the truth neither."""

    kind: Literal["detection"] = "detection"


class Head(segmentation.Head):
    """The network is that of segmentation; reading and scoring are by lesion."""

    def labels_of(self, output: Tensor, prepared: PreparedStudy) -> np.ndarray:
        """Without what is too small to be a lesion, so that outlines, volumes and numbers are of the same."""
        labels, affine = super().labels_of(output, prepared), prepared.study.reference.affine
        for structure in self.config.structures:
            own = labels == structure.value
            labels[own & (pieces_of(own, affine, least_ml=structure.min_ml).numbers == 0)] = 0
        return labels

    def read(self, output: Tensor, prepared: PreparedStudy, *, source: str, mask_path: str | None) -> HeadReading:
        labels, reference = self.labels_of(output, prepared), prepared.study.reference
        findings = measure_structures(
            labels,
            reference,
            self.config.structures,
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
        return self.score_masks(
            self.labels_of(output, prepared), self.known_part(labels), prepared.study.reference.affine
        )

    def score_masks(self, said: np.ndarray, truth: np.ndarray, affine: np.ndarray) -> dict[str, float]:
        """`score_case` of two label maps on one grid, whoever drew them."""
        scores = score_labels(said, truth, self.config.structures, np.linalg.norm(affine[:3, :3], axis=0))
        for structure in self.config.structures:
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
        for structure in self.config.structures:
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
