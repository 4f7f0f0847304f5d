"""What the tests of the record make their records from: resources, and a patient's truth as the cohort would write it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from foundation.cohort.anatomy import OUTCOME, Subject
from foundation.cohort.outcome import Exposure, draw_outcome

WHO = {"reference": "Patient/a"}
PATIENT = {"resourceType": "Patient", "id": "a", "gender": "female", "birthDate": "1960-07-01"}


def concept(code: str, system: str = "http://loinc.org") -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}]}


def observation(name: str, *, day: str | None = "2020-05-01", **fields: Any) -> dict[str, Any]:
    """A glucose of 90 mg/dL, final, unless told otherwise."""
    resource = {
        "resourceType": "Observation",
        "id": name,
        "status": "final",
        "subject": WHO,
        "code": concept("2345-7"),
        "valueQuantity": {"value": 90, "unit": "mg/dL"},
        "effectiveDateTime": day and f"{day}T08:00:00Z",
        "issued": day and f"{day}T09:00:00Z",
    } | fields
    return {key: value for key, value in resource.items() if value is not None}


def study(name: str, started: str, uid: str, **fields: Any) -> dict[str, Any]:
    return {
        "resourceType": "ImagingStudy",
        "id": name,
        "status": "available",
        "subject": WHO,
        "started": started,
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}],
        "modality": [{"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "MR"}],
    } | fields


def bundle(*resources: dict[str, Any]) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": one} for one in resources]}


def patient_truth(index: int, seed: int = 0) -> dict[str, Any]:
    """The part of a subject's truth.json that a record is made of, with volumes made up instead of images."""
    subject = Subject.draw(seed, index)
    has = {name: float(name in subject.diagnoses) for name in ("glioma", "infarct", "haemorrhage")}
    outcome = draw_outcome(
        Exposure(
            age_years=subject.age_years,
            sex=subject.sex,
            diagnoses=subject.diagnoses,
            enhancing_ml=12 * has["glioma"],
            necrosis_ml=4 * has["glioma"],
            oedema_ml=30 * has["glioma"],
            midline_shift_mm=3 * has["glioma"],
            infarct_ml=8 * has["infarct"],
            haemorrhage_ml=6 * has["haemorrhage"],
            white_matter_lesion_ml=2.0,
            num_plaques=3 * ("multiple_sclerosis" in subject.diagnoses),
            hippocampus_ml=4.5,
            brain_fraction=0.8,
        ),
        subject.generator(OUTCOME),
    )
    return {
        "subject": asdict(subject),
        "laboratory": [asdict(one) for one in outcome.laboratory],
        "history": list(outcome.history),
        "outcome": {"event_days": outcome.event_days, "censor_days": outcome.censor_days},
    }
