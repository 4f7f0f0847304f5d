"""The record and the outcome of a synthetic patient, whose laws depend on what the images show.

    outcome = draw_outcome(exposure, np.random.default_rng(0))
    outcome.time_days, outcome.is_observed

These laws are ours. They are a test bed for models that read images and a record together: no coefficient was fitted to
anybody, and nothing found with them is evidence about patients. Orders of magnitude alone were taken from published
cohorts: half of the people with a grade 4 glioma die within about 600 days, and a decade of age costs them about 0.35 in
log hazard. The laws are written for adults. "Event" is death from any cause, far more frequent in the healthy than it is.

The order of causation is disease -> history -> laboratory -> hazard -> event. With x the features below,

    h(t) = (k / s) (t / s)^(k - 1) exp(log_hazard),     k = `SHAPE`, s = `SCALE_DAYS`,
    log_hazard = sum over images of b x + sum over the record of b x + frailty,     frailty ~ N(0, `FRAILTY`^2).

A log hazard of 0 is the baseline: a woman of 60 with a healthy brain, typical laboratory values and an empty history.
The name of a diagnosis has no coefficient: it acts through what can be seen or measured. Images and record add up and do
not interact, so that what each adds is one number.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy.random import Generator

from foundation.errors import InputError, did_you_mean

DIAGNOSES = ("glioma", "multiple_sclerosis", "white_matter_disease", "infarct", "haemorrhage", "atrophy")

# The baseline: half of its patients have an event within 9 years.
SHAPE = 1.2
SCALE_DAYS = 4500.0
FRAILTY = 0.5

# A study closes on one day, and patients enter it evenly over the years before: administrative censoring is uniform
# between these. Besides, patients are lost at a constant rate.
SHORTEST_FOLLOW_UP_DAYS = 550.0
LONGEST_FOLLOW_UP_DAYS = 2200.0
LOST_PER_DAY = 0.06 / 365.25

TYPICAL_HIPPOCAMPUS_ML = 5.0  # both sides, as the cohort's heads have
TYPICAL_BRAIN_FRACTION = 0.80

# Beyond these a measurement has the wrong unit. Volumes end at what a skull holds.
LARGEST = {
    "age_years": 120,
    "enhancing_ml": 2000,
    "necrosis_ml": 2000,
    "oedema_ml": 2000,
    "midline_shift_mm": 50,
    "infarct_ml": 2000,
    "haemorrhage_ml": 2000,
    "white_matter_lesion_ml": 2000,
    "num_plaques": 10_000,
    "hippocampus_ml": 50,
    "brain_fraction": 1,
}


@dataclass(frozen=True)
class Exposure:
    """What the images of one patient show, counted in the truth, with age and sex; no diagnosis means a normal study.

    `hippocampus_ml` is both sides together, `brain_fraction` the brain's share of the intracranial volume.
    """

    age_years: float
    sex: Literal["female", "male"]
    diagnoses: tuple[str, ...]
    enhancing_ml: float
    necrosis_ml: float
    oedema_ml: float
    midline_shift_mm: float
    infarct_ml: float
    haemorrhage_ml: float
    white_matter_lesion_ml: float
    num_plaques: int
    hippocampus_ml: float
    brain_fraction: float

    def __post_init__(self):
        for name in self.diagnoses:
            if name not in DIAGNOSES:
                raise InputError("a diagnosis is a known one", got=repr(name), remedy=did_you_mean(name, DIAGNOSES))
        if len(set(self.diagnoses)) < len(self.diagnoses):
            raise InputError("a diagnosis is named once", got=self.diagnoses, remedy="Remove the repetition.")
        if self.sex not in ("female", "male"):
            raise InputError("sex is female or male", got=repr(self.sex), remedy="The laws know these two.")
        for name, most in LARGEST.items():
            value = getattr(self, name)
            if not 0 <= value <= most:  # also refuses NaN
                rule = f"{name} is a number from 0 to {most:g}"
                raise InputError(rule, got=value, remedy=f"Mend {name}, or leave this patient out.")


@dataclass(frozen=True)
class Laboratory:
    """One laboratory value taken before the study; the unit is UCUM."""

    name: str
    loinc: str
    value: float
    unit: str


@dataclass(frozen=True)
class Outcome:
    """A patient's record, the true hazard behind it, and the two latent times of which a study sees the earlier.

    `log_hazard_parts` says what "image", "record" and "unexplained" add to `log_hazard`; the last is seen by no model.
    """

    laboratory: tuple[Laboratory, ...]
    history: tuple[str, ...]
    log_hazard_parts: dict[str, float]
    event_days: float
    censor_days: float

    @property
    def log_hazard(self) -> float:
        return sum(self.log_hazard_parts.values())

    @property
    def time_days(self) -> float:
        return min(self.event_days, self.censor_days)

    @property
    def is_observed(self) -> bool:
        return self.event_days <= self.censor_days


# -------------------------------------------------------------------------------- The laws: tables, all ours


@dataclass(frozen=True)
class ConditionLaw:
    """Known before the study with log odds `log_odds` + sum of effects times features."""

    log_odds: float
    effects: Mapping[str, float]


@dataclass(frozen=True)
class LaboratoryLaw:
    """A value whose deviation from `typical` is the sum of effects times features, plus noise of standard deviation `noise`.

    The deviation is ln(value / typical) if `is_log`, otherwise value - typical; it is itself a feature of later laws.
    """

    loinc: str
    unit: str
    typical: float
    noise: float
    effects: Mapping[str, float]
    limits: tuple[float, float]  # what a laboratory would still believe
    digits: int
    is_log: bool = True

    def deviation(self, value: float) -> float:
        return math.log(value / self.typical) if self.is_log else value - self.typical

    def value(self, deviation: float) -> float:
        """The value as it is printed: inside `limits`, rounded to `digits` decimals."""
        value = self.typical * math.exp(deviation) if self.is_log else self.typical + deviation
        return round(min(max(value, self.limits[0]), self.limits[1]), self.digits)


# In the order in which they are drawn: each may depend on those above it.
HISTORY = {
    "hypertension": ConditionLaw(
        -0.7, {"decades": 0.45, "infarct": 0.9, "haemorrhage": 1.1, "white_matter_disease": 0.9}
    ),
    "diabetes": ConditionLaw(-2.2, {"decades": 0.25, "hypertension": 0.8, "infarct": 0.4, "white_matter_disease": 0.3}),
    "smoking": ConditionLaw(-1.2, {"decades": -0.15, "male": 0.3, "infarct": 0.6, "multiple_sclerosis": 0.4}),
    "atrial_fibrillation": ConditionLaw(-3.3, {"decades": 0.6, "hypertension": 0.5, "infarct": 1.2}),
    "anticoagulation": ConditionLaw(-4.5, {"decades": 0.2, "atrial_fibrillation": 5.2, "haemorrhage": 0.5}),
    "seizure": ConditionLaw(-4.0, {"glioma": 3.4, "haemorrhage": 1.6, "infarct": 1.0, "atrophy": 0.6}),
    "cognitive_impairment": ConditionLaw(-3.6, {"decades": 0.5, "atrophy": 2.2, "white_matter_disease": 1.0}),
}

# Glucose and leukocytes rise with oedema as they would under the steroids that are given for it.
LABORATORY = {
    "C-reactive protein": LaboratoryLaw(
        "1988-5",
        "mg/L",
        typical=1.8,
        noise=0.8,
        effects={
            "decades": 0.10,
            "smoking": 0.25,
            "diabetes": 0.20,
            "log_enhancing": 0.12,
            "log_infarct": 0.18,
            "log_haemorrhage": 0.18,
        },
        limits=(0.1, 400.0),
        digits=1,
    ),
    "albumin": LaboratoryLaw(
        "1751-7",
        "g/dL",
        typical=4.3,
        noise=0.25,
        effects={"decades": -0.06, "C-reactive protein": -0.12, "log_enhancing": -0.05, "log_infarct": -0.03},
        limits=(1.5, 5.5),
        digits=1,
        is_log=False,
    ),
    "lactate dehydrogenase": LaboratoryLaw(
        "2532-0",
        "U/L",
        typical=180.0,
        noise=0.15,
        effects={"C-reactive protein": 0.04, "log_enhancing": 0.05, "necrosis_fraction": 0.10, "log_haemorrhage": 0.03},
        limits=(80.0, 2000.0),
        digits=0,
    ),
    "haemoglobin A1c": LaboratoryLaw(
        "4548-4",
        "%",
        typical=5.4,
        noise=0.05,
        effects={"diabetes": 0.25, "decades": 0.01},
        limits=(4.0, 15.0),
        digits=1,
    ),
    "glucose": LaboratoryLaw(
        "2345-7",
        "mg/dL",
        typical=94.0,
        noise=0.10,
        effects={"haemoglobin A1c": 1.1, "log_oedema": 0.04, "log_haemorrhage": 0.03, "log_infarct": 0.02},
        limits=(45.0, 700.0),
        digits=0,
    ),
    "creatinine": LaboratoryLaw(
        "2160-0",
        "mg/dL",
        typical=0.78,
        noise=0.15,
        effects={"male": 0.22, "decades": 0.06, "hypertension": 0.08, "diabetes": 0.08},
        limits=(0.3, 12.0),
        digits=2,
    ),
    "haemoglobin": LaboratoryLaw(
        "718-7",
        "g/dL",
        typical=13.4,
        noise=0.8,
        effects={"male": 1.4, "decades": -0.15, "C-reactive protein": -0.25, "creatinine": -1.0},
        limits=(5.0, 20.0),
        digits=1,
        is_log=False,
    ),
    "leukocytes": LaboratoryLaw(
        "6690-2",
        "10*3/uL",
        typical=6.5,
        noise=0.20,
        effects={"C-reactive protein": 0.09, "smoking": 0.12, "log_oedema": 0.04},
        limits=(1.0, 60.0),
        digits=1,
    ),
    "platelets": LaboratoryLaw(
        "777-3",
        "10*3/uL",
        typical=245.0,
        noise=0.20,
        effects={"C-reactive protein": 0.06, "male": -0.06, "decades": -0.03},
        limits=(20.0, 1000.0),
        digits=0,
    ),
    "INR": LaboratoryLaw(
        "6301-6",
        "{INR}",
        typical=1.0,
        noise=0.06,
        effects={"anticoagulation": 0.85, "albumin": -0.05},
        limits=(0.8, 8.0),
        digits=1,
    ),
    "sodium": LaboratoryLaw(
        "2951-2",
        "mmol/L",
        typical=140.0,
        noise=2.0,
        effects={"decades": -0.2, "log_oedema": -0.2, "log_haemorrhage": -0.4, "glucose": -2.0},
        limits=(110.0, 165.0),
        digits=0,
        is_log=False,
    ),
}

# What one unit of each feature adds to the log hazard.
IMAGE_COEFFICIENTS = {
    "log_enhancing": 0.32,
    "necrosis_fraction": 0.80,
    "log_oedema": 0.08,
    "midline_shift_mm": 0.06,
    "log_infarct": 0.28,
    "log_haemorrhage": 0.35,
    "log_white_matter_lesion": 0.20,
    "log_plaques": 0.08,
    "hippocampus_lost_ml": 0.15,
    "brain_fraction_lost": 8.0,
}
RECORD_COEFFICIENTS = {
    "decades": 0.35,
    "male": 0.10,
    "hypertension": 0.10,
    "diabetes": 0.15,
    "smoking": 0.20,
    "atrial_fibrillation": 0.20,
    "cognitive_impairment": 0.30,
    "C-reactive protein": 0.20,
    "albumin": -0.50,
    "lactate dehydrogenase": 0.60,
    "glucose": 0.50,
    "creatinine": 0.40,
    "haemoglobin": -0.06,
    "leukocytes": 0.25,
    "INR": 0.30,
    "sodium": -0.02,
}


# -------------------------------------------------------------------------------- Drawing


def draw_outcome(exposure: Exposure, generator: Generator) -> Outcome:
    """History, laboratory values, hazard and times of one patient.

    Every patient takes the same draws in the same order, whatever the exposure: two exposures under one seed are twins,
    and differ by what the exposures differ in alone.
    """
    image = image_features(exposure)
    features = dict(image)
    features["decades"] = (exposure.age_years - 60) / 10
    features["male"] = float(exposure.sex == "male")
    features.update({name: float(name in exposure.diagnoses) for name in DIAGNOSES})
    for name, law in HISTORY.items():
        probability = 1 / (1 + math.exp(-law.log_odds - _weighted(law.effects, features)))
        features[name] = float(generator.random() < probability)

    laboratory = []
    for name, law in LABORATORY.items():
        value = law.value(_weighted(law.effects, features) + law.noise * generator.standard_normal())
        features[name] = law.deviation(value)  # of the printed value: the hazard is a function of the record as written
        laboratory.append(Laboratory(name, law.loinc, value, law.unit))

    parts = {
        "image": _weighted(IMAGE_COEFFICIENTS, image),
        "record": _weighted(RECORD_COEFFICIENTS, features),
        "unexplained": FRAILTY * generator.standard_normal(),
    }
    return Outcome(
        laboratory=tuple(laboratory),
        history=tuple(name for name in HISTORY if features[name]),
        log_hazard_parts=parts,
        event_days=draw_event_days(sum(parts.values()), generator),
        censor_days=_draw_censor_days(generator),
    )


def image_features(exposure: Exposure) -> dict[str, float]:
    """What `IMAGE_COEFFICIENTS` multiply: logarithms are ln(1 + ml) or ln(1 + count), losses are against the typical."""
    core_ml = exposure.enhancing_ml + exposure.necrosis_ml
    return {
        "log_enhancing": math.log1p(exposure.enhancing_ml),
        "necrosis_fraction": exposure.necrosis_ml / core_ml if core_ml else 0.0,
        "log_oedema": math.log1p(exposure.oedema_ml),
        "midline_shift_mm": exposure.midline_shift_mm,
        "log_infarct": math.log1p(exposure.infarct_ml),
        "log_haemorrhage": math.log1p(exposure.haemorrhage_ml),
        "log_white_matter_lesion": math.log1p(exposure.white_matter_lesion_ml),
        "log_plaques": math.log1p(exposure.num_plaques),
        "hippocampus_lost_ml": TYPICAL_HIPPOCAMPUS_ML - exposure.hippocampus_ml,
        "brain_fraction_lost": TYPICAL_BRAIN_FRACTION - exposure.brain_fraction,
    }


def record_features(exposure: Exposure, laboratory: Iterable[Laboratory], history: Collection[str]) -> dict[str, float]:
    """What `RECORD_COEFFICIENTS` multiply, of a record as it is written."""
    features = {"decades": (exposure.age_years - 60) / 10, "male": float(exposure.sex == "male")}
    features |= {name: float(name in history) for name in HISTORY}
    features |= {one.name: LABORATORY[one.name].deviation(one.value) for one in laboratory}
    return {name: features[name] for name in RECORD_COEFFICIENTS}


def draw_event_days(log_hazard: float, generator: Generator) -> float:
    """Days until the event: the cumulative hazard (t / s)^k exp(log_hazard) at the event is standard exponential."""
    return SCALE_DAYS * (generator.standard_exponential() * math.exp(-log_hazard)) ** (1 / SHAPE)


def _draw_censor_days(generator: Generator) -> float:
    closing = generator.uniform(SHORTEST_FOLLOW_UP_DAYS, LONGEST_FOLLOW_UP_DAYS)
    return min(closing, generator.standard_exponential() / LOST_PER_DAY)


def _weighted(weights: Mapping[str, float], features: Mapping[str, float]) -> float:
    return sum(weight * features[name] for name, weight in weights.items())


# -------------------------------------------------------------------------------- The ceiling


def oracle_concordance(
    log_hazards: Float[np.ndarray, "patient"],
    times: Float[np.ndarray, "patient"],
    observed: Bool[np.ndarray, "patient"],
) -> float:
    """Harrell's C: the share of comparable pairs in which the one with the higher log hazard has the earlier event.

    A pair is comparable if one has an observed event and the other is known to be without it for longer; censored on the
    day of the event counts as longer. Equal log hazards count half, and two events on one day are not compared.

    Given the sum of "image" and "record" this is what no model can beat on average, since no model sees the frailty.
    Given "image" alone it is no strict ceiling: images also tell about age and laboratory values, so a model can learn
    more from them than what they add to the hazard. The same holds for "record".
    """
    if not (np.isfinite(log_hazards).all() and np.isfinite(times).all()):
        raise InputError("log hazards and times are finite", got="one that is not", remedy="Leave such patients out.")
    concordant, num_comparable = 0.0, 0
    for patient in np.flatnonzero(observed):
        others = log_hazards[(times > times[patient]) | ((times == times[patient]) & ~observed)]
        concordant += np.sum(others < log_hazards[patient]) + 0.5 * np.sum(others == log_hazards[patient])
        num_comparable += len(others)
    if num_comparable == 0:
        got = f"{int(observed.sum())} events in {len(times)} patients"
        remedy = "Follow the patients for longer, or take more of them."
        raise InputError("concordance needs an observed event before somebody's last day", got=got, remedy=remedy)
    return float(concordant / num_comparable)
