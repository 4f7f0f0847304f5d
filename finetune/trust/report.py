"""Everything that `larmor evaluate --trust` asks of a task model, while it looks at the cases and afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator
from torch import Tensor

from finetune.samples import LabelledStudy, Thing
from finetune.trust import pictures
from finetune.trust.abstention import AbstentionReport, measure_abstention
from finetune.trust.agreement import AgreementReport, measure_agreement
from finetune.trust.calibration import CalibrationReport, measure_calibration
from finetune.trust.conformal import ConformalReport, measure_conformal
from finetune.trust.corruption import CorruptionReport, measure_corruption
from finetune.trust.failures import FailureReport, measure_failures
from finetune.trust.leaks import LeakReport
from finetune.trust.ledger import Ledger
from finetune.trust.ood import OodReport, Reference, measure_ood
from finetune.trust.seen import Seen, look_back
from finetune.trust.subgroups import SubgroupReport, measure_subgroups
from finetune.trust.uncertainty import quality_scores, write_entropy
from foundation.config import Config
from foundation.errors import InputError, did_you_mean
from foundation.training import fold
from heads import classification
from heads._relevance import explain
from heads.base import Explanation, TaskConfig, TaskModel
from heads.segmentation import LabelMapHead

PARTS = (
    "leaks", "calibration", "conformal", "uncertainty", "subgroups", "ood", "failures", "corruption", "agreement",
    "explanations",
)  # fmt: skip
LIMITED = ("failures", "corruption", "explanations")  # to a few cases, because they look at each a hundred times


class TrustConfig(Config):
    """`parts` to measure, 'all' for every one; the slow ones take `cases` cases, drawn by `seed`.

    `by` names the columns of the subgroups, None the usual ones. `ood` are manifests of studies of another kind. `passes` more
    looks at each case, slightly changed, go into its uncertainty, of which `maps` writes a volume for each case. `pretrained_on`
    are stores and manifests that the model folder does not name itself.
    """

    parts: tuple[str, ...] = ()
    cases: Annotated[int, Field(ge=1)] = 5
    seed: int = 0
    by: tuple[str, ...] | None = None
    ood: tuple[Path, ...] = ()
    passes: Annotated[int, Field(ge=0)] = 0
    maps: bool = False
    pretrained_on: tuple[Path, ...] = ()
    allow_overlap: bool = False

    @field_validator("parts", mode="before")
    @classmethod
    def _known(cls, parts: Any) -> tuple[str, ...]:
        names = parts.split(",") if isinstance(parts, str) else tuple(parts or ())
        names = PARTS if "all" in names else tuple(name.strip() for name in names if name.strip())
        for name in names:
            if name not in PARTS:
                raise InputError(
                    "--trust names known parts, with commas", got=repr(name), remedy=did_you_mean(name, ("all", *PARTS))
                )
        return names


class ExplanationReport(Config):
    """Of each answer, whether a map of what it rests on can be believed."""

    of: dict[str, Explanation]

    def lines(self) -> list[str]:
        return [f"{name:24s} {one}" for name, one in self.of.items()]


class TrustReport(Config):
    """A part is None where it was not asked for, or in `not_available` with the reason."""

    leaks: LeakReport
    calibration: CalibrationReport | None = None
    conformal: ConformalReport | None = None
    uncertainty: AbstentionReport | None = None
    subgroups: SubgroupReport | None = None
    ood: OodReport | None = None
    failures: FailureReport | None = None
    corruption: CorruptionReport | None = None
    agreement: AgreementReport | None = None
    explanations: ExplanationReport | None = None
    not_available: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For people: each part under its name."""
        lines = []
        for part in PARTS:
            report = getattr(self, part)
            if report is not None:
                lines += ["", f"{part}:", *(f"  {line}" for line in report.lines())]
            elif part in self.not_available:
                lines += ["", f"{part}: not available: {self.not_available[part]}"]
        return [*lines, *(["", *self.notes] if self.notes else [])]


@dataclass
class Watch:
    """Called with every case in turn while the model is evaluated, and keeps what the parts need of it."""

    model: TaskModel
    config: TrustConfig
    folder: Path
    mirror: bool
    seen: list[Seen] = field(default_factory=list)
    quality: list[dict[str, float]] = field(default_factory=list)

    def __call__(self, study: LabelledStudy, output: Tensor, case: dict[str, float]) -> None:
        number, head, parts = len(self.seen), self.model.head, self.config.parts
        if "calibration" in parts or "conformal" in parts:
            self.seen.append(look_back(head, study, output, case, seed=fold(self.config.seed, number)))
        else:
            self.seen.append(Seen(study.row.name, case))
        if not ("uncertainty" in parts or self.config.maps):
            return
        if isinstance(head, LabelMapHead):
            scores, mean = quality_scores(
                self.model,
                study.prepared,
                output,
                passes=self.config.passes,
                mirror=self.mirror and self.config.passes > 0,
                seed=fold(self.config.seed, 1, number),
            )
            self.quality.append(scores)
            if self.config.maps:
                write_entropy(self.folder / "uncertainty" / f"{study.row.name.replace('/', '_')}.nii.gz", mean, study)
        elif isinstance(head, classification.Head):
            self.quality.append({"confidence": float(head.calibrated(output).softmax(dim=1).max())})


@dataclass(frozen=True)
class Evaluated:
    """A model on studies of a collection, looked at once. `settings` are what slow figures depend on."""

    model: TaskModel
    task: TaskConfig
    reference: Reference | str
    studies: Sequence[LabelledStudy]
    seen: Sequence[Seen]
    quality: Sequence[dict[str, float]]
    folder: Path
    settings: Mapping[str, object]


def measure_trust(evaluated: Evaluated, config: TrustConfig, leaks: LeakReport) -> tuple[TrustReport, list[Path]]:
    """The report and the pictures written; each part that was asked for is in one or the other way accounted for."""
    measured: dict[str, Any] = {}
    missing: dict[str, str] = {}
    pictured: list[Path] = []
    for part, measure in _measures(evaluated, config).items():
        if part not in config.parts:
            continue
        found = measure()
        if isinstance(found, str):
            missing[part] = found
            continue
        measured[part] = found
        if part in PICTURES:
            pictured.append(evaluated.folder / f"{part}.png")
            PICTURES[part](pictured[-1], found)
    notes = ()
    limited, num = [part for part in LIMITED if part in config.parts], len(evaluated.studies)
    if limited and config.cases < num:
        notes = (f"{', '.join(limited)}: on {config.cases} of {num} cases, drawn by seed {config.seed} (--cases)",)
    if config.maps and evaluated.quality and isinstance(evaluated.model.head, LabelMapHead):
        pictured.append(evaluated.folder / "uncertainty")
    return TrustReport(leaks=leaks, not_available=missing, notes=notes, **measured), pictured


PICTURES: dict[str, Callable[[Path, Any], None]] = {
    "calibration": pictures.plot_calibration,
    "uncertainty": pictures.plot_risk,
    "subgroups": pictures.plot_subgroups,
    "ood": pictures.plot_ood,
    "failures": pictures.plot_failures,
    "corruption": pictures.plot_corruption,
    "agreement": pictures.plot_agreement,
}


def _measures(evaluated: Evaluated, config: TrustConfig) -> dict[str, Callable[[], Any]]:
    """How each part is measured; a text in place of a report says why not."""
    model, task, seen = evaluated.model, evaluated.task, evaluated.seen
    head = model.head
    chosen = choose(evaluated.studies, config.cases, config.seed)
    cases = [one.case for one in seen]
    classes = head.config.classes if isinstance(head, classification.Head) else ()

    def explanations() -> ExplanationReport | str:
        found = explain(model, [study.prepared for study in chosen], seed=config.seed)
        return ExplanationReport(of=found) if found else "this kind of head answers nothing of which a map is made"

    def ledger(part: str) -> Ledger:
        return Ledger(evaluated.folder / f"{part}.jsonl", {**evaluated.settings, "part": part, "seed": config.seed})

    def uncertainty() -> AbstentionReport | str:
        if not evaluated.quality or head.main_score is None:
            return "this kind of head has no score of its own certainty"
        scores = {name: [one[name] for one in evaluated.quality] for name in evaluated.quality[0]}
        return measure_abstention(
            scores, [case[head.main_score] for case in cases], what=f"1 - {head.main_score} of a case"
        )

    return {
        "calibration": lambda: measure_calibration(seen, task.calibration, dense=head.is_dense),
        "conformal": lambda: measure_conformal(seen, classes, task.calibration),
        "uncertainty": uncertainty,
        "subgroups": lambda: measure_subgroups(evaluated.studies, cases, head.summarise, config.by),
        "ood": lambda: measure_ood(model, task.spacing_mm, evaluated.reference, evaluated.studies, config.ood),
        "failures": lambda: measure_failures(model, task.spacing_mm, chosen, ledger("failures"), seed=config.seed),
        "corruption": lambda: measure_corruption(
            model, task.spacing_mm, chosen, ledger("corruption"), seed=config.seed
        ),
        "agreement": lambda: measure_agreement(
            model,
            task.spacing_mm,
            evaluated.studies,
            task.scope.contrasts,
            ledger("agreement"),
            num_subjects=max(2, config.cases),
        ),
        "explanations": explanations,
    }


def choose(things: Sequence[Thing], num: int, seed: int) -> list[Thing]:
    """At most `num` of them, the first of an order drawn by the seed, so that more cases hold the fewer ones."""
    order = np.random.default_rng(seed).permutation(len(things))
    return [things[i] for i in sorted(order[:num].tolist())]
