"""One synthetic patient, whole: anatomy, disease, a study of several series, a record and an outcome, and their truth.

    patient = make_patient(CohortConfig(), index=7)
    patient.study, patient.labels, patient.truth

A pure function of (config, index). A cohort on disk (`foundation/cohort/writing.py`) is many of these in files; pretraining
can also draw them on the fly (`foundation/cohort/stream.py`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import UInt8
from pydantic import Field, field_validator

from foundation.cohort.acquisition import CONTRASTS, RANDOM, Scan, acquire, draw_protocol
from foundation.cohort.anatomy import (
    DISEASES,
    IMAGE,
    OUTCOME,
    PROTOCOL,
    Anatomy,
    Family,
    Subject,
    simulate_midline_shift_mm,
)
from foundation.cohort.disease import Lesion, anatomy_with_disease, measure_lesions
from foundation.cohort.label_maps import LabelMaps
from foundation.cohort.materials import BRAIN, INTRACRANIAL, LESIONS, STRUCTURES
from foundation.cohort.outcome import Exposure, Outcome, draw_outcome
from foundation.cohort.templates import SPACINGS_MM, AnatomySource, BundledTemplate
from foundation.config import Config
from foundation.errors import did_you_mean
from foundation.physics.relaxometry import TissueTable, sample_tissues
from foundation.reading.collection import SPLITS
from foundation.study import Study

Appearance = Literal["physics", "random", "mixed"]

# Lateral ventricles over intracranial volume above which they count as enlarged. Not a clinical threshold: it lies near
# the median over subjects, so that both classes are about equally frequent.
ENLARGED_RATIO = 0.015


class CohortConfig(Config):
    """What makes a cohort. `anatomy` is a folder of whole-head label maps, None for the bundled templates.

    `splits` are shares of the subjects. A series is left out with `missing_series`, though never all of a study. In "mixed"
    appearance each study is physics or random contrast, evenly. `family` "shifted" is the one held apart: other fields, times,
    lesion shapes, thicker slices. `maps` adds T1, T2 and ADC maps, `raw` multi-coil k-space of a few slices.
    """

    seed: int = 0
    spacing_mm: float = 2.0
    contrasts: tuple[str, ...] = ("T1w", "T2w", "FLAIR", "DWI")
    appearance: Appearance = "physics"
    family: Family = "usual"
    anatomy: Path | None = None
    splits: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=lambda: {"pretrain": 0.5, "train": 0.25, "test": 0.25}
    )
    missing_series: Annotated[float, Field(ge=0, lt=1)] = 0.15
    maps: bool = False
    raw: bool = False

    @field_validator("contrasts")
    @classmethod
    def _known_contrasts(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in CONTRASTS:
                raise ValueError(f"a cohort's contrast is a known one, not {name!r}; {did_you_mean(name, CONTRASTS)}")
        if not names or len(set(names)) < len(names):
            raise ValueError("a cohort has contrasts, each named once")
        return names

    @field_validator("splits")
    @classmethod
    def _whole_splits(cls, splits: dict[str, float]) -> dict[str, float]:
        for name in splits:
            if name not in SPLITS:
                raise ValueError(f"a cohort's split is a known one, not {name!r}; {did_you_mean(name, SPLITS)}")
        if not math.isclose(sum(splits.values()), 1):
            raise ValueError(f"the splits' shares add up to 1, not {sum(splits.values()):g}")
        return splits

    @field_validator("spacing_mm")
    @classmethod
    def _known_spacing(cls, spacing_mm: float) -> float:
        if spacing_mm not in SPACINGS_MM:
            raise ValueError(f"a cohort's spacing is 1, 2 or 4 mm, not {spacing_mm:g}")
        return spacing_mm

    def source(self) -> AnatomySource:
        return BundledTemplate() if self.anatomy is None else LabelMaps(self.anatomy)


@dataclass(frozen=True)
class Patient:
    """`labels` lie on the first scan's grid; `truth` is everything that is known because we made it."""

    anatomy: Anatomy
    tissues: TissueTable
    scans: tuple[Scan, ...]
    lesions: tuple[Lesion, ...]
    outcome: Outcome
    truth: dict[str, Any]
    targets: dict[str, Any]

    @property
    def study(self) -> Study:
        return Study(self.anatomy.subject.name, tuple(scan.series for scan in self.scans))

    @property
    def labels(self) -> UInt8[np.ndarray, "i j k"]:
        return self.scans[0].labels


def make_anatomy(config: CohortConfig, index: int) -> tuple[Anatomy, TissueTable]:
    """A head with its disease, and what its tissues are made of."""
    subject, source = Subject.draw(config.seed, index, config.family), config.source()
    anatomy = anatomy_with_disease(subject, source, config.spacing_mm)
    return anatomy, sample_tissues(subject.field_t, subject.generator(PROTOCOL))


def make_patient(config: CohortConfig, index: int) -> Patient:
    """Everything about one subject of a cohort."""
    anatomy, tissues = make_anatomy(config, index)
    subject = anatomy.subject
    scans = tuple(_scan(anatomy, tissues, contrast, config, repeat=0) for contrast in _acquired(subject, config))
    first = scans[0]
    lesions = tuple(measure_lesions(first.labels, first.series.affine, anatomy.mapping))
    ml = structure_ml(first.labels, first.series.voxel_volume_ml)
    exposure = _exposure(anatomy, ml, lesions)
    outcome = draw_outcome(exposure, subject.generator(OUTCOME))
    targets = _targets(subject, ml, exposure, outcome) | _artefact_of(first)
    truth = {
        "note": "A synthetic patient: exact for the simulator, no evidence about people.",
        "subject": asdict(subject),
        "anatomy": anatomy.source,
        "disease": dict(anatomy.facts),
        "volumes_ml": ml,
        "lesions": [asdict(lesion) for lesion in lesions],
        "midline_shift_mm": exposure.midline_shift_mm,
        "series": [scan.protocol.facts() for scan in scans],
        "tissues": {
            name: {"t1_ms": t1, "t2_ms": t2, "t2_star_ms": t2_star, "pd": pd, "adc_1e-3_mm2_s": adc}
            for name, t1, t2, t2_star, pd, adc in zip(
                tissues.names, *(column.tolist() for column in tissues.properties), strict=True
            )
        },
        "laboratory": [asdict(one) for one in outcome.laboratory],
        "history": list(outcome.history),
        "outcome": {
            "log_hazard": outcome.log_hazard,
            "log_hazard_parts": outcome.log_hazard_parts,
            "event_days": outcome.event_days,
            "censor_days": outcome.censor_days,
        },
    }
    return Patient(anatomy, tissues, scans, lesions, outcome, truth, targets)


def _acquired(subject: Subject, config: CohortConfig) -> list[str]:
    """The contrasts that this study has, in the config's order."""
    rng = subject.generator(PROTOCOL, 99)
    kept = rng.random(len(config.contrasts)) >= config.missing_series
    kept[int(rng.integers(len(kept)))] |= not kept.any()
    return [contrast for contrast, is_kept in zip(config.contrasts, kept, strict=True) if is_kept]


def _scan(anatomy: Anatomy, tissues: TissueTable, contrast: str, config: CohortConfig, *, repeat: int) -> Scan:
    """Each contrast and repeat has draws of its own, so that leaving one out changes no other."""
    subject = anatomy.subject
    number = CONTRASTS.index(contrast)
    appearance = config.appearance
    if appearance == "mixed":
        appearance = "random" if subject.generator(PROTOCOL, 98, repeat).random() < 0.5 else "physics"
    shown = RANDOM if appearance == "random" else contrast
    protocol = draw_protocol(shown, subject, config.spacing_mm, subject.generator(PROTOCOL, number, repeat))
    return acquire(anatomy, protocol, tissues, subject.generator(IMAGE, number, repeat))


def scan_again(anatomy: Anatomy, tissues: TissueTable, config: CohortConfig, repeat: int) -> tuple[Scan, ...]:
    """Another study of the same head: other protocols, noise and contrasts. A fraction of a second at 2 mm."""
    return tuple(_scan(anatomy, tissues, one, config, repeat=repeat) for one in _acquired(anatomy.subject, config))


def structure_ml(labels: UInt8[np.ndarray, "x y z"], voxel_ml: float) -> dict[str, float]:
    """Every structure's volume by counting voxels, and the intracranial and brain volume."""
    counts = np.bincount(labels.ravel(), minlength=max(STRUCTURES.values()) + 1)
    ml = {name: round(float(counts[value]) * voxel_ml, 3) for name, value in STRUCTURES.items()}
    ml["intracranial"] = round(sum(ml[name] for name in INTRACRANIAL), 3)
    ml["brain"] = round(sum(ml[name] for name in BRAIN), 3)
    return ml


def _exposure(anatomy: Anatomy, ml: dict[str, float], lesions: tuple[Lesion, ...]) -> Exposure:
    subject = anatomy.subject
    return Exposure(
        age_years=subject.age_years,
        sex=subject.sex,
        diagnoses=subject.diagnoses,
        enhancing_ml=ml["enhancing tumour"],
        necrosis_ml=ml["necrosis"],
        oedema_ml=ml["oedema"],
        midline_shift_mm=round(simulate_midline_shift_mm(anatomy), 2),
        infarct_ml=ml["acute infarct"],
        haemorrhage_ml=ml["haemorrhage"],
        white_matter_lesion_ml=round(ml["white matter hyperintensity"] + ml["plaque"], 3),
        num_plaques=sum(lesion.structure == "plaque" for lesion in lesions),
        hippocampus_ml=ml["hippocampus"],
        brain_fraction=min(1.0, ml["brain"] / max(ml["intracranial"], 1e-6)),
    )


def _artefact_of(scan: Scan) -> dict[str, Any]:
    """What spoils a study's reference series: its kind, and how badly from 0 to 5."""
    artefact = scan.protocol.artefact
    if artefact is None:
        return {"artefact": "none", "artefact_severity": 0}
    return {"artefact": artefact.kind, "artefact_severity": artefact.severity}


def _targets(subject: Subject, ml: dict[str, float], exposure: Exposure, outcome: Outcome) -> dict[str, Any]:
    """What a head can be asked for, flat, as a manifest's row holds it. The true hazard is not among them."""
    return {
        "age_years": subject.age_years,
        "sex": subject.sex,
        "field_strength_t": subject.field_t,
        **{name: int(name in subject.diagnoses) for name in DISEASES},
        "any_lesion": int(any(ml[name] > 0 for name in LESIONS)),
        "enlarged_ventricles": int(ml["lateral ventricle"] > ENLARGED_RATIO * ml["intracranial"]),
        **{f"{name.replace(' ', '_')}_ml": volume for name, volume in ml.items()},
        "num_plaques": exposure.num_plaques,
        "midline_shift_mm": exposure.midline_shift_mm,
        **{one.name: one.value for one in outcome.laboratory},
        "history": list(outcome.history),
        "time_days": round(outcome.time_days, 1),
        "is_observed": int(outcome.is_observed),
    }
