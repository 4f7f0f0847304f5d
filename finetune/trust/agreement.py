"""Do two scanners get the same from one head? ICC(2,1) of what is measured, and of the encoder's features.

ICC(2,1) (Shrout and Fleiss 1979: two-way random effects, absolute agreement, one measurement) is the share of all variance that
comes from the people. Pairs are subjects with two sessions in the manifest, or else synthetic heads that four simulated scanners
look at: two of the usual kind and two of another (fields, times and slices that no training head has).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Float

from finetune.samples import LabelledStudy, progress_over
from finetune.trust.changes import Spacing
from finetune.trust.intervals import FEWEST, Estimate, finite, resampled
from finetune.trust.ledger import Figures, Ledger
from finetune.trust.ood import pooled_features
from foundation.cohort.acquisition import CONTRASTS, RANDOM
from foundation.cohort.anatomy import PROTOCOL, Family
from foundation.cohort.patient import scan_again
from foundation.cohort.stream import StreamConfig, shared_stream
from foundation.cohort.templates import SPACINGS_MM
from foundation.config import Config
from foundation.encoder import Encoder
from foundation.physics.relaxometry import sample_tissues
from foundation.preprocess import PreparedStudy, prepare_study
from foundation.study import Study
from heads import classification
from heads.base import TaskModel
from heads.segmentation import LabelMapHead

FEATURE = "feature "
COMPONENTS = 10  # of the features, those of the largest variance
SEED = 90_000  # of a cohort that nothing was trained on, unless its seed was this


@dataclass(frozen=True)
class Scanner:
    name: str
    family: Family
    field_t: float
    vendor: str


SCANNERS = (
    Scanner("1.5 T", "usual", 1.5, "Siemens"),
    Scanner("3 T", "usual", 3.0, "GE"),
    Scanner("0.55 T (shifted)", "shifted", 0.55, "Philips"),
    Scanner("7 T (shifted)", "shifted", 7.0, "Siemens"),
)


class Agreement(Config):
    """`icc` of a measured volume, or of the features' principal components, weighted by their variance."""

    name: str
    icc: Estimate


class AgreementReport(Config):
    """`among` names the scanners of each comparison, all of them or the first two; `variance_by_scanner` is the share of the
    features' variance that lies between scanners, not people."""

    subjects: str
    among: dict[str, tuple[Agreement, ...]]
    variance_by_scanner: float | None

    def lines(self) -> list[str]:
        lines = [f"ICC(2,1) of {self.subjects}"]
        for scanners, found in self.among.items():
            lines += [f"among {scanners}:", *(f"  {one.name:34s} {one.icc}" for one in found)]
        if self.variance_by_scanner is not None:
            lines.append(f"variance of the features between scanners: {self.variance_by_scanner:.0%}")
        return lines


# ------------------------------------------------------------------------------------------------ figures


def icc(ratings: Float[np.ndarray, "subjects raters"]) -> float:
    """ICC(2,1); not a number of one subject, or where nothing varies."""
    n, k = ratings.shape
    if n < 2:
        return float("nan")
    total = ratings.mean()
    people, raters = ratings.mean(axis=1), ratings.mean(axis=0)
    rest = ratings - people[:, None] - raters[None] + total
    between_people = k * ((people - total) ** 2).sum() / (n - 1)
    between_raters = n * ((raters - total) ** 2).sum() / (k - 1)
    error = (rest**2).sum() / ((n - 1) * (k - 1))
    whole = between_people + (k - 1) * error + k * (between_raters - error) / n
    return float((between_people - error) / whole) if whole > 0 else float("nan")


def feature_icc(features: Float[np.ndarray, "subjects raters width"]) -> float:
    """The mean ICC of the principal components of all measurements together, weighted by how much each varies."""
    n, k, width = features.shape
    centred = (features - features.mean(axis=(0, 1))).reshape(n * k, width)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    num = min(COMPONENTS, int((values > 1e-9 * max(values[0], 1e-30)).sum()))
    if num == 0:
        return float("nan")
    components = (left[:, :num] * values[:num]).reshape(n, k, num)
    return float(np.average([icc(components[..., i]) for i in range(num)], weights=values[:num] ** 2))


def between_scanners(features: Float[np.ndarray, "subjects raters width"]) -> float:
    """The share of the total sum of squares that the means of the scanners account for."""
    total = ((features - features.mean(axis=(0, 1))) ** 2).sum()
    means = features.mean(axis=0) - features.mean(axis=(0, 1))
    return float(len(features) * (means**2).sum() / total) if total > 0 else float("nan")


# ------------------------------------------------------------------------------------------------ measuring


def measure_agreement(
    model: TaskModel,
    spacing_mm: Spacing,
    studies: Sequence[LabelledStudy],
    contrasts: Sequence[str],
    ledger: Ledger,
    *,
    num_subjects: int,
) -> AgreementReport | str:
    """All pairs that the manifest names, if they are a few at least; else `num_subjects` simulated heads, in the `contrasts` that
    the model was fitted on."""
    pairs = repeated(studies)
    if len(pairs) >= FEWEST:
        scanners, subjects = ("first session", "second session"), f"{len(pairs)} subjects with two sessions"
        looks = [[Look(one.row.name, partial(_prepared, one)) for one in pair] for pair in pairs]
    else:
        scanned = tuple(name for name in contrasts if name in CONTRASTS and name != RANDOM)
        if not scanned:
            return f"no subjects have two sessions, and the simulator acquires none of {', '.join(contrasts)}"
        scanners, subjects = (
            tuple(one.name for one in SCANNERS),
            f"{num_subjects} synthetic heads on simulated scanners",
        )
        looks = [Simulated(spacing_mm, scanned, index).looks() for index in range(num_subjects)]
    table = [
        [ledger.get(look.key, partial(_measure, model, look)) for look in of_subject]
        for of_subject in progress_over(looks, "agreement")
    ]
    return _report(table, scanners, subjects)


@dataclass(frozen=True)
class Look:
    """One scanner's examination of one head, made when it is needed."""

    key: str
    prepare: Callable[[], PreparedStudy]


def repeated(studies: Sequence[LabelledStudy]) -> list[tuple[LabelledStudy, LabelledStudy]]:
    """The first two sessions of every subject that has two."""
    by_subject: dict[str, list[LabelledStudy]] = {}
    for study in studies:
        by_subject.setdefault(study.row.subject, []).append(study)
    return [(found[0], found[1]) for found in by_subject.values() if len(found) > 1]


def _prepared(study: LabelledStudy) -> PreparedStudy:
    return study.prepared


class Simulated:
    """One synthetic head before every scanner."""

    def __init__(self, spacing_mm: Spacing, contrasts: tuple[str, ...], index: int):
        own_mm = max((step for step in SPACINGS_MM if step <= min(spacing_mm)), default=min(SPACINGS_MM))
        self.config = StreamConfig(seed=SEED, spacing_mm=own_mm, contrasts=contrasts, missing_series=0.0)
        self.spacing_mm, self.index = spacing_mm, index

    def looks(self) -> list[Look]:
        return [Look(f"head {self.index}|{one.name}", partial(self.scan, one)) for one in SCANNERS]

    def scan(self, scanner: Scanner) -> PreparedStudy:
        """The anatomy stays; field, vendor and family are the scanner's, protocol and noise this scan's own."""
        anatomy, _ = shared_stream(self.config).head(self.index)
        subject = replace(anatomy.subject, family=scanner.family, field_t=scanner.field_t, vendor=scanner.vendor)
        there = replace(anatomy, mapping=replace(anatomy.mapping, subject=subject))
        tissues = sample_tissues(scanner.field_t, subject.generator(PROTOCOL))
        scans = scan_again(there, tissues, self.config, repeat=1 + SCANNERS.index(scanner))
        return prepare_study(Study(subject.name, tuple(scan.series for scan in scans)), self.spacing_mm)


def _measure(model: TaskModel, look: Look) -> Figures:
    """Volumes or probabilities, and the features, each under a name."""
    prepared = look.prepare()
    output = model.output_of(prepared)
    figures: dict[str, float | None] = {}
    head = model.head
    if isinstance(head, LabelMapHead):
        labels, voxel_ml = head.labels_of(output, prepared), prepared.study.reference.voxel_volume_ml
        for one in head.config.structures:
            figures[f"volume of {one.name}"] = float((labels == one.value).sum()) * voxel_ml
    elif isinstance(head, classification.Head):
        probabilities = head.calibrated(output)[0].softmax(dim=0).tolist()
        figures |= {f"probability of {name}": p for name, p in zip(head.config.classes, probabilities, strict=True)}
    if isinstance(model.encoder, Encoder):
        features = pooled_features(model, prepared)
        figures |= {f"{FEATURE}{place}": float(value) for place, value in enumerate(features)}
    return figures


def _report(table: Sequence[Sequence[Figures]], scanners: Sequence[str], subjects: str) -> AgreementReport:
    measured = [name for name in table[0][0] if not name.startswith(FEATURE)]
    features = [name for name in table[0][0] if name.startswith(FEATURE)]

    def ratings(names: Sequence[str], num: int) -> Float[np.ndarray, "subjects raters figures"]:
        return np.array([[[one[name] for name in names] for one in row[:num]] for row in table], dtype=float)

    among = {}
    for num in sorted({2, len(scanners)}):
        found = [
            Agreement(name=name, icc=resampled(list(ratings([name], num)[..., 0]), lambda rows: icc(np.array(rows))))
            for name in measured
        ]
        if features:
            estimate = resampled(list(ratings(features, num)), lambda rows: feature_icc(np.array(rows)))
            found.append(Agreement(name="features", icc=estimate))
        among[", ".join(scanners[:num])] = tuple(found)
    share = finite(between_scanners(ratings(features, len(scanners)))) if features else None
    return AgreementReport(subjects=subjects, among=among, variance_by_scanner=share)
