"""What a fitted model's folder keeps so that its results can be judged later: a calibration."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.config import FinetuneConfig
from finetune.samples import LabelledStudy, progress_over
from finetune.trust.calibration import fit_calibration
from finetune.trust.seen import look_back
from foundation.calibration import Calibration
from foundation.reading.collection import Collection, Row
from heads import HeadConfig, head_module
from heads.base import TaskModel

NOT_CALIBRATED = "Probabilities are not calibrated."


def calibrating_rows(
    collection: Collection, rows: Sequence[Row], config: FinetuneConfig
) -> tuple[list[Row], list[Row], str]:
    """The rows to learn from, those to calibrate on, and what the latter are in words.

    The validation split as far as it says what is asked for; without one, the last `hold_out` of the rows, whose order was drawn.
    """
    if validation := [row for row in collection.split("validation") if has_truth(row, config.head)]:
        return list(rows), validation, "validation studies"
    num = min(round(config.data.hold_out * len(rows)), len(rows) - 1)
    return list(rows[: len(rows) - num]), list(rows[len(rows) - num :]), "studies held out from training"


def has_truth(row: Row, head: HeadConfig) -> bool:
    """Whether the row says what the head is asked for."""
    if head_module(head.kind).Head.is_dense:
        return row.mask is not None
    target = getattr(head, "target", None)  # what a head of another kind asks for is its own affair
    return target is None or row.targets.get(target) is not None


def calibrate(model: TaskModel, studies: Sequence[LabelledStudy], *, source: str) -> Calibration | None:
    """Fit a calibration on studies that the model did not learn from and give it to the head; None where that cannot be."""
    seen, outputs = [], []
    for number, study in enumerate(progress_over(studies, "calibrate")):
        output = model.output_of(study.prepared, study.record_for(model.head))
        if not model.head.is_dense:
            outputs.append(output)
        # `case` is what a score would need; a calibration needs none.
        seen.append(look_back(model.head, study, output, {}, seed=number))
    head = model.head
    if outputs:
        head.settle(outputs, [study.targets for study in studies])
    head.calibration = fit_calibration(seen, num_questions=head.num_questions, dense=head.is_dense, source=source)
    return head.calibration


def calibration_words(calibration: Calibration | None) -> str:
    """A sentence for a card."""
    if calibration is None:
        return NOT_CALIBRATED
    temperatures = ", ".join(f"{one:.2f}" for one in calibration.temperatures)
    return f"Probabilities are calibrated: temperature {temperatures}, fitted on {calibration.fitted_on}."
