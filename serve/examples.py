"""Studies to try the page with: synthetic patients, made at the first click in a few seconds and never shipped.

    example = EXAMPLES["tumour-before"]
    made = make_example("tumour-before")       its study, and where it has them the record and an earlier study

They are a test of the system and no patients: whatever a model says of them is about the simulator.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from ehr.index import Admitted
from ehr.synthesis import make_bundle
from foundation.cohort.anatomy import Subject
from foundation.cohort.disease import anatomy_with_disease
from foundation.cohort.patient import CohortConfig, make_anatomy, make_patient, scan_again
from foundation.study import Study
from serve.pipeline import record_before

SEED = 2026
CONTRASTS = ("T1w", "T1w-contrast", "FLAIR", "T2w")
NOTE = "A synthetic patient: no evidence about people."


@dataclass(frozen=True)
class Example:
    """`diagnoses` are the cohort's names; a `record` comes beside the images, an `earlier` study is of before the disease."""

    title: str
    words: str
    diagnoses: tuple[str, ...]
    record: bool = False
    earlier: bool = False


EXAMPLES = {
    "normal": Example("A normal head", "four series and nothing to find", ()),
    "tumour": Example("Tumour and record", "history and laboratory beside the images", ("glioma",), record=True),
    "tumour-before": Example("Tumour, then and now", "with a study from before it, and what changed", ("glioma",), earlier=True),
    "white-matter": Example("White matter disease", "many small lesions, with the record", ("white_matter_disease",), record=True),
}  # fmt: skip


@dataclass(frozen=True)
class MadeExample:
    study: Study
    record: Admitted | None
    earlier: Study | None


@lru_cache(maxsize=len(EXAMPLES))
def make_example(name: str, spacing_mm: float = 2.0) -> MadeExample:
    """The first patient of the cohort who has what is asked for and nothing else, an adult of middle age at least."""
    example = EXAMPLES[name]
    config = CohortConfig(seed=SEED, spacing_mm=spacing_mm, contrasts=CONTRASTS, missing_series=0)
    index = next(number for number in count() if _suits(Subject.draw(SEED, number), example))
    patient = make_patient(config, index)
    earlier = _before(config, index) if example.earlier else None
    record = None
    if example.record:
        bundle, truth = make_bundle(patient.truth, version="R4")
        with TemporaryDirectory() as folder:
            file = Path(folder) / "record.json"
            file.write_text(json.dumps(bundle))
            record = record_before(file, study_uid=truth["study_uid"])
    study = _named(patient.study, name)
    return MadeExample(
        study, record, None if earlier is None else replace(_named(earlier, name), session="a year before")
    )


def _suits(subject: Subject, example: Example) -> bool:
    return subject.diagnoses == example.diagnoses and 45 <= subject.age_years <= 75


def _before(config: CohortConfig, index: int) -> Study:
    """The same head scanned once more, as it was without the disease."""
    anatomy, tissues = make_anatomy(config, index)
    healthy = anatomy_with_disease(replace(anatomy.subject, diagnoses=()), config.source(), config.spacing_mm)
    return Study(anatomy.subject.name, tuple(scan.series for scan in scan_again(healthy, tissues, config, repeat=1)))


def _named(study: Study, name: str) -> Study:
    series = tuple(replace(one, contrast_from="the simulator") for one in study.series)
    return replace(study, subject=f"example-{name}", series=series, notes=(NOTE,))
