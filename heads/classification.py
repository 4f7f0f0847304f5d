"""Classification of a whole study: one of several classes, or any number of labels that do not exclude each other.

How frequent each class was among the training rows is added to what the network says (Menon et al. 2021, "Long-tail learning
via logit adjustment"): probabilities then mean what they say on patients like those, and what the network itself learns is
balanced, which is what decisions and balanced accuracy use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc, multiclass_accuracy

from foundation.encoder import EncoderConfig
from foundation.findings import Finding
from foundation.preprocess import PreparedStudy
from foundation.registry import KindConfig
from heads._record import RecordConfig
from heads._study import StudyHead, class_of, log_shares, one_of, refused, whole_study_finding
from heads.base import HeadReading, StudyBatch, Target

LABEL_VALUES = ("absent", "present")


class Config(KindConfig):
    """`target` is the key in a row's targets of one class among `classes`, by name or index; class 0 is the unremarkable one.

    Without a `target` each of the `classes` is a label of its own: the key of a row's targets whose value is 1 or 0. A row that
    does not know an answer has null there, or no such key, and is not learnt from for that answer. With a `record` the patient's
    record is read beside the images.
    """

    kind: Literal["classification"] = "classification"
    target: str | None = None
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    anatomy: str = "brain"
    dropout: float = 0.1
    record: RecordConfig | None = None

    @model_validator(mode="after")
    def _classes_differ(self) -> Config:
        if len(set(self.classes)) < len(self.classes) or (self.target is not None and len(self.classes) < 2):
            raise ValueError("a classification has classes that differ, at least two where they exclude each other")
        return self


class Head(StudyHead):
    def __init__(self, encoder: EncoderConfig, config: Config):
        super().__init__(encoder, config, num_outputs=len(config.classes), dropout=config.dropout)
        self.config = config
        self.main_score = None if config.target is None else "right"
        self.num_questions = len(config.classes) if config.target is None else 1
        prior = torch.zeros(len(config.classes)) if config.target is None else log_shares([0.0] * len(config.classes))
        self.prior: Tensor
        self.register_buffer("prior", prior)  # log shares of the classes, log odds of labels

    @property
    def answers(self) -> dict[str, int]:
        return {name: self.config.classes.index(name) for name in self._abnormal()}

    def meet(self, targets: Sequence[dict[str, Target]]) -> None:
        truth = np.array([self.truth_of(one) for one in targets])
        if self.config.target is not None:
            counts = [float((truth[:, 0] == index).sum()) for index in range(len(self.config.classes))]
            self.prior.copy_(log_shares(counts))
            return
        for index in range(len(self.config.classes)):
            absent, present = log_shares([float((truth[:, index] == value).sum()) for value in (0, 1)])
            self.prior[index] = present - absent

    def finish(self, answer: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        return answer + self.prior

    def unfinish(self, output: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        return output - self.prior

    def columns(self, targets: Sequence[dict[str, Target]]) -> list[tuple[np.ndarray, bool]]:
        truth = np.array([self.truth_of(one) for one in targets])
        if self.config.target is None:
            return [(truth[:, index], True) for index in range(truth.shape[1])]
        return [(one, True) for one in one_of(truth[:, 0], len(self.config.classes))]

    def loss(self, output: Tensor, batch: StudyBatch) -> dict[str, Tensor]:
        """Cross-entropy over the answers that are known; 0 where a batch knows none."""
        truth = torch.tensor([self.truth_of(targets) for targets in batch.targets], device=output.device)
        known = torch.isfinite(truth)
        output = output.float()
        if not known.any():
            return {"loss": 0 * output.sum()}
        if self.config.target is None:
            return {"loss": nn.functional.binary_cross_entropy_with_logits(output[known], truth[known])}
        rows = known[:, 0]
        return {"loss": nn.functional.cross_entropy(output[rows], truth[rows, 0].long())}

    def truth_of(self, targets: dict[str, Target]) -> list[float]:
        """The index of the class, or 0 and 1 for each label; not a number where it is not known."""
        config = self.config
        if config.target is not None:
            return [_or_nan(class_of(targets, config.target, config.classes))]
        return [_or_nan(class_of(targets, name, LABEL_VALUES)) for name in config.classes]

    def probabilities(self, output: Tensor) -> list[float]:
        """Of each class or label, for a batch of one."""
        one = self.calibrated(output.float())[0]
        return (one.sigmoid() if self.config.target is None else one.softmax(dim=0)).tolist()

    def refuse(self, *, source: str, why: str) -> list[Finding]:
        return refused(self._abnormal(), self.config.anatomy, source=source, why=why)

    def _abnormal(self) -> tuple[str, ...]:
        return self.config.classes if self.config.target is None else self.config.classes[1:]

    def read(self, output: Tensor, prepared: PreparedStudy, *, source: str, mask_path: str | None) -> HeadReading:
        """One finding per label, or per class but the unremarkable one; present when it is likelier than not, or likeliest."""
        probabilities = dict(zip(self.config.classes, self.probabilities(output), strict=True))
        likeliest = max(probabilities, key=probabilities.__getitem__)
        findings = []
        for name in self._abnormal():
            is_present = probabilities[name] >= 0.5 if self.config.target is None else name == likeliest
            findings.append(
                whole_study_finding(
                    name,
                    self.config.anatomy,
                    source=source,
                    is_present=is_present,
                    probability=probabilities[name],
                    is_calibrated=self.calibration is not None,
                )
            )
        return HeadReading(findings)

    def score_case(
        self, output: Tensor, prepared: PreparedStudy, labels: np.ndarray | None, targets: dict[str, Target]
    ) -> dict[str, float]:
        """`p` of each class, `says`, what the network says apart from how frequent the class was, the truth, and for classes that
        exclude each other whether the likeliest is `right`."""
        names, truth = self.config.classes, self.truth_of(targets)
        scores = {f"p {name}": p for name, p in zip(names, self.probabilities(output), strict=True)}
        said = (output[0].float() - self.prior.cpu()).tolist()
        scores |= {f"says {name}": value for name, value in zip(names, said, strict=True)}
        if self.config.target is not None:
            likeliest = int(np.argmax(self.probabilities(output)))
            return scores | {
                "truth": truth[0],
                "right": float(likeliest == truth[0]) if np.isfinite(truth[0]) else truth[0],
            }
        return scores | {f"truth {name}": value for name, value in zip(names, truth, strict=True)}

    def summarise(self, cases: Sequence[dict[str, float]]) -> dict[str, float]:
        """AUROC (the mean of one against the rest where there are several) and balanced accuracy, over the answers that are known.

        AUROC is not a number where the cases hold one class only; the mean leaves out labels of which that is so.
        """
        if self.config.target is None:
            return self._summarise_labels(cases)
        cases = [case for case in cases if np.isfinite(case["truth"])]
        if not cases:
            return {"auroc": float("nan"), "balanced accuracy": float("nan")}
        names = self.config.classes
        probabilities = torch.tensor([[case[f"p {name}"] for name in names] for case in cases])
        said = torch.tensor([[case[f"says {name}"] for name in names] for case in cases])
        truth = torch.tensor([int(case["truth"]) for case in cases])
        there = truth.unique()
        auroc = float("nan")
        if len(there) > 1:
            each = [binary_auroc(probabilities[:, index], (truth == index).long()) for index in there.tolist()]
            auroc = float(torch.stack(each).mean())
        recalls = multiclass_accuracy(said, truth, len(names), average="none")
        return {"auroc": auroc, "balanced accuracy": float(recalls[there].mean())}

    def _summarise_labels(self, cases: Sequence[dict[str, float]]) -> dict[str, float]:
        aurocs, accuracies = {}, []
        for name in self.config.classes:
            known = [case for case in cases if np.isfinite(case[f"truth {name}"])]
            truth = torch.tensor([int(case[f"truth {name}"]) for case in known])
            if len(truth.unique()) < 2:
                aurocs[f"auroc {name}"] = float("nan")
                continue
            said = torch.tensor([case[f"says {name}"] for case in known])
            aurocs[f"auroc {name}"] = float(binary_auroc(said, truth))
            is_right = (said > 0) == (truth == 1)
            accuracies.append(float(torch.stack([is_right[truth == value].float().mean() for value in (0, 1)]).mean()))
        finite = [value for value in aurocs.values() if np.isfinite(value)]
        return {
            "auroc": float(np.mean(finite)) if finite else float("nan"),
            "balanced accuracy": float(np.mean(accuracies)) if accuracies else float("nan"),
            **(aurocs if len(aurocs) > 1 else {}),
        }


def _or_nan(value: int | None) -> float:
    return float("nan") if value is None else float(value)
