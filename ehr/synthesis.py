"""Records of the cohort's synthetic patients as FHIR bundles, R4 or R5, with the mess of real ones, and the truth of them.

    bundle, truth = make_bundle(patient_truth, version="R4")
    write_records(Path("cohort"), version="mixed")          sub-00007/record.json, record-truth.json; the manifest's `ehr`

A patient's laboratory values, history and outcome are the cohort's own (`foundation/cohort/outcome.py`). Everything else is made up
around them, to be fallen over: units missing, wrong or spelt as people spell them, partial dates, times without a zone, two
codings of one thing, things entered in error, results that came late, diagnoses written down after the scan and dated before
it, the report of the very scan, and all that happened later, death included. No evidence about people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.random import Generator, default_rng
from pydantic import Field

from foundation.config import Config
from foundation.errors import InputError, did_you_mean
from foundation.files import write_aside
from foundation.progress import progress
from foundation.reading.collection import read_manifest, write_manifest

Json = dict[str, Any]
Version = Literal["R4", "R5"]
VERSIONS = ("R4", "R5", "mixed")
BASE = "https://example.org/fhir"
DRAWS = 101  # sets the record's random numbers apart from the cohort's own, which count from 1
LOINC, SNOMED, ICD10 = "http://loinc.org", "http://snomed.info/sct", "http://hl7.org/fhir/sid/icd-10-cm"
RXNORM, ATC = "http://www.nlm.nih.gov/research/umls/rxnorm", "http://www.whocc.no/atc"
UCUM, DCM = "http://unitsofmeasure.org", "http://dicom.nema.org/resources/ontology/DCM"
ACT = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
CLINICAL = "http://terminology.hl7.org/CodeSystem/condition-clinical"
VERIFIED = "http://terminology.hl7.org/CodeSystem/condition-ver-status"


Chance = Annotated[float, Field(ge=0, le=1)]


class Mess(Config):
    """How often each thing is wrong; 0 everywhere is a tidy record."""

    no_unit: Chance = 0.06
    wrong_unit: Chance = 0.04
    other_unit: Chance = 0.2
    spelling: Chance = 0.3
    partial_date: Chance = 0.4
    duplicate_coding: Chance = 0.5
    repeated: Chance = 0.08
    no_zone: Chance = 0.05
    unknown_field: Chance = 0.05


TIDY = Mess(**dict.fromkeys(Mess.model_fields, 0.0))


class Concept(NamedTuple):
    """A thing under its codes, (system, code) each, commonest first."""

    name: str
    codes: tuple[tuple[str, str], ...]


HISTORY = {
    "hypertension": Concept("Hypertension", ((SNOMED, "38341003"), (ICD10, "I10"))),
    "diabetes": Concept("Type 2 diabetes mellitus", ((SNOMED, "44054006"), (ICD10, "E11.9"))),
    "atrial_fibrillation": Concept("Atrial fibrillation", ((SNOMED, "49436004"), (ICD10, "I48.91"))),
    "seizure": Concept("Seizure", ((SNOMED, "91175000"), (ICD10, "R56.9"))),
    "cognitive_impairment": Concept("Impaired cognition", ((SNOMED, "386806002"), (ICD10, "G31.84"))),
}
FOUND = {
    "glioma": Concept("Glioma", ((SNOMED, "393564001"), (ICD10, "C71.9"))),
    "multiple_sclerosis": Concept("Multiple sclerosis", ((SNOMED, "24700007"), (ICD10, "G35"))),
    "white_matter_disease": Concept("Cerebrovascular disease", ((ICD10, "I67.89"),)),
    "infarct": Concept("Cerebral infarction", ((SNOMED, "432504007"), (ICD10, "I63.9"))),
    "haemorrhage": Concept("Cerebral haemorrhage", ((SNOMED, "274100004"), (ICD10, "I61.9"))),
    "atrophy": Concept("Degenerative disease of nervous system", ((ICD10, "G31.9"),)),
}
HEADACHE = Concept("Headache", ((SNOMED, "25064002"), (ICD10, "R51.9")))
WARFARIN = Concept("Warfarin sodium 5 MG Oral Tablet", ((RXNORM, "855332"), (ATC, "B01AA03")))
SMOKING = Concept("Tobacco smoking status", ((LOINC, "72166-2"),))
SMOKES, NEVER_SMOKED = (
    Concept("Smokes tobacco daily", ((SNOMED, "449868002"),)),
    Concept("Never smoked tobacco", ((SNOMED, "266919005"),)),
)
MR_BRAIN, CT_HEAD = Concept("MR Brain", ((LOINC, "24590-2"),)), Concept("CT Head", ((LOINC, "24725-4"),))
PENICILLIN = Concept("Penicillin", ((RXNORM, "7980"),))
# The same value in another unit that laboratories print: unit, and what to divide by.
OTHER_UNITS = {
    "2345-7": ("mmol/L", 18.016), "2160-0": ("umol/L", 0.011312), "718-7": ("g/L", 0.1), "1751-7": ("g/L", 0.1),
    "6690-2": ("10*9/L", 1.0), "777-3": ("10*9/L", 1.0), "1988-5": ("mg/dL", 10.0), "2532-0": ("ukat/L", 60.0),
}  # fmt: skip
SPELT = {
    "10*3/uL": ("K/uL", "x10^3/uL", "10^3/µL"), "mg/dL": ("MG/DL", "mg/dl"), "g/dL": ("gm/dL", "G/DL"),
    "U/L": ("IU/L", "u/l"), "mmol/L": ("MMOL/L",), "mg/L": ("mg/l",), "{INR}": ("INR", "ratio"),
}  # fmt: skip


def write_records(folder: Path, *, version: str = "mixed", mess: Mess | None = None) -> None:
    """A record beside every patient of a cohort on disk, and its place and the study's UID in the manifest. Repeatable."""
    if version not in VERSIONS:
        raise InputError("a record is in a version of FHIR", got=repr(version), remedy=did_you_mean(version, VERSIONS))
    manifest = read_manifest(folder / "manifest.jsonl")
    rows = []
    with progress(total=len(manifest.rows), label="records", unit="record") as bar:
        for row in manifest.rows:
            patient = json.loads((folder / row.subject / "truth.json").read_text())
            chosen: Version = ("R4", "R5")[patient["subject"]["index"] % 2] if version == "mixed" else version  # pyright: ignore[reportAssignmentType]
            bundle, truth = make_bundle(patient, version=chosen, mess=mess)
            for name, content in (("record.json", bundle), ("record-truth.json", truth)):
                with write_aside(folder / row.subject / name) as aside:
                    aside.write_text(json.dumps(content) + "\n")
            rows.append(row.model_copy(update={"ehr": f"{row.subject}/record.json", "study_uid": truth["study_uid"]}))
            bar.update()
    write_manifest(folder / "manifest.jsonl", rows)


def make_bundle(patient: Json, *, version: Version = "R4", mess: Mess | None = None) -> tuple[Json, Json]:
    """A bundle, and what is true of it, for a patient's `truth.json`; the same for the same patient, version and mess."""
    subject = patient["subject"]
    rng = default_rng([subject["seed"], subject["index"], DRAWS])
    writer = _Writer(patient, version, mess or Mess(), rng)
    writer.write()
    bundle = {"resourceType": "Bundle", "type": "collection", "entry": writer.entries}
    return bundle, writer.truth


class _Writer:
    def __init__(self, patient: Json, version: Version, mess: Mess, rng: Generator):
        self.patient, self.version, self.mess, self.rng = patient, version, mess, rng
        self.is_r5 = version == "R5"
        subject = patient["subject"]
        self.name = f"sub-{subject['index']:05d}"
        self.who = {"reference": f"Patient/{self.name}"}
        self.zone = timezone(timedelta(hours=int(rng.integers(-5, 3))))
        first = datetime(2013, 1, 1, 8, tzinfo=self.zone)
        self.index = first + timedelta(days=int(rng.integers(0, 3000)), seconds=int(rng.integers(0, 36_000)))
        self.uid = f"2.25.{int.from_bytes(rng.bytes(15), 'big')}"
        self.entries: list[Json] = []
        self.truth: Json = {
            "note": "A synthetic record.",
            "version": version,
            "study_uid": self.uid,
            "started": self.stamp(0.0),
            "laboratory": {},
            "history": sorted(patient["history"]),
            "spoilt": {},
        }

    def write(self) -> None:
        outcome = self.patient["outcome"]
        self.days_known = min(outcome["event_days"], outcome["censor_days"])
        self.has_died = outcome["event_days"] <= outcome["censor_days"]
        self._patient()
        self._history()
        self._prior_study()
        self._laboratory()
        self._index_study()
        self._afterwards()

    # ---------------------------------------------------------------------------------------------- pieces

    def happens(self, chance: float) -> bool:
        return bool(self.rng.random() < chance)

    def pick(self, options: tuple[Any, ...]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def stamp(self, days: float) -> str:
        """Days from the index study's start, as an instant."""
        return (self.index + timedelta(days=days)).isoformat(timespec="seconds")

    def partial(self, days: float) -> str:
        """The same as a date, or less of one: as people remember it."""
        return self.stamp(days)[: self.pick((4, 7, 10))] if self.happens(self.mess.partial_date) else self.stamp(days)

    def add(self, kind: str, **fields: Any) -> Json:
        """Append a resource and return the reference to it. None leaves a field out."""
        number = sum(entry["resource"]["resourceType"] == kind for entry in self.entries)
        name = f"{self.name}-{number}" if kind != "Patient" else self.name
        resource = {
            "resourceType": kind,
            "id": name,
            **{key: value for key, value in fields.items() if value is not None},
        }
        if self.happens(self.mess.unknown_field):
            resource["localNumber"] = number
        self.entries.append({"fullUrl": f"{BASE}/{kind}/{name}", "resource": resource})
        return {"reference": f"{kind}/{name}"}

    def concept(self, concept: Concept) -> Json:
        """A CodeableConcept with one of the codings, or with all of them in either order."""
        codings = [{"system": system, "code": code, "display": concept.name} for system, code in concept.codes]
        if not self.happens(self.mess.duplicate_coding):
            codings = [self.pick(tuple(codings))]
        elif self.happens(0.5):
            codings.reverse()
        return {"coding": codings, "text": concept.name}

    def encounter(self, start: float, end: float, kind: str = "AMB") -> Json:
        coding = {"system": ACT, "code": kind}
        shape: Json = {
            "class": coding,
            "status": "finished",
            "period": {"start": self.stamp(start), "end": self.stamp(end)},
        }
        if self.is_r5:
            period = shape["period"]
            shape = {"class": [{"coding": [coding]}], "status": "completed", "actualPeriod": period}
        return self.add("Encounter", subject=self.who, **shape)

    def condition(
        self, concept: Concept, onset: str, recorded: float, encounter: Json | None, *, in_error: bool = False
    ) -> Json:
        status = {"coding": [{"system": CLINICAL, "code": "active"}]}
        verification = {"coding": [{"system": VERIFIED, "code": "entered-in-error" if in_error else "confirmed"}]}
        return self.add(
            "Condition", subject=self.who, code=self.concept(concept), encounter=encounter, onsetDateTime=onset,
            recordedDate=self.stamp(recorded), verificationStatus=verification,
            clinicalStatus=status if self.is_r5 or not in_error else None,
        )  # fmt: skip

    def observation(self, code: Json, taken: float | None, issued: float | None, **fields: Any) -> Json:
        return self.add(
            "Observation", **{"status": "final", "subject": self.who, "code": code}
            | {"effectiveDateTime": None if taken is None else self.stamp(taken)}
            | {"issued": None if issued is None else self.stamp(issued)} | fields,
        )  # fmt: skip

    def medication(self, concept: Concept, days: float, encounter: Json | None) -> Json:
        code = self.concept(concept)
        shape = {"medication": {"concept": code}} if self.is_r5 else {"medicationCodeableConcept": code}
        return self.add(
            "MedicationRequest", status="active", intent="order", subject=self.who, authoredOn=self.stamp(days),
            encounter=encounter, **shape,
        )  # fmt: skip

    def study(self, uid: str, days: float, modality: str, order: Json | None, encounter: Json | None) -> Json:
        coding: Json = {"system": DCM, "code": modality}
        shown: Json = {"coding": [coding]} if self.is_r5 else coding
        series = {"uid": f"{uid}.1", "modality": shown, "started": self.stamp(days)}
        return self.add(
            "ImagingStudy", status="available", subject=self.who, started=self.stamp(days), modality=[shown],
            identifier=[{"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}], encounter=encounter,
            basedOn=[order] if order else None, series=[series],
        )  # fmt: skip

    def report(
        self, concept: Concept, days: float, issued: float, study: Json, order: Json | None, **fields: Any
    ) -> Json:
        link = {"study" if self.is_r5 else "imagingStudy": [study]}
        return self.add(
            "DiagnosticReport", status="final", subject=self.who, code=self.concept(concept),
            effectiveDateTime=self.stamp(days), issued=self.stamp(issued), basedOn=[order] if order else None, **link, **fields,
        )  # fmt: skip

    # ---------------------------------------------------------------------------------------------- before

    def _patient(self) -> None:
        subject = self.patient["subject"]
        birth = self.stamp(-365.25 * subject["age_years"])[:10]
        self.add(
            "Patient", gender=subject["sex"], birthDate=birth[:7] if self.happens(0.1) else birth,
            name=[{"family": "Synthetic", "given": [self.name]}],
            deceasedDateTime=self.stamp(self.days_known) if self.has_died else None,
        )  # fmt: skip

    def _history(self) -> None:
        """What was known long before: conditions, smoking, drugs, an allergy, the family; and one diagnosis that was a mistake."""
        oldest = min(3000.0, 365.25 * (self.patient["subject"]["age_years"] - 16))
        for name in self.patient["history"]:
            if name in HISTORY:
                days = -float(self.rng.uniform(30, oldest))
                visit = self.encounter(days, days + 0.02)
                onset = self.partial(days - float(self.rng.uniform(0, 400)))
                self.condition(HISTORY[name], onset, days + 0.01, visit)
        smokes = "smoking" in self.patient["history"]
        answer = self.concept(SMOKES if smokes else NEVER_SMOKED)
        self.observation(self.concept(SMOKING), -200.0, -200.0, valueCodeableConcept=answer)
        if "anticoagulation" in self.patient["history"]:
            self.medication(WARFARIN, -float(self.rng.uniform(20, 400)), None)
        never = [name for name in HISTORY if name not in self.patient["history"]]
        if never:
            self.condition(HISTORY[self.pick(tuple(never))], self.stamp(-90.0), -90.0, None, in_error=True)
        if self.happens(0.2):
            status = {"coding": [{"system": CLINICAL.replace("condition", "allergyintolerance"), "code": "active"}]}
            self.add(
                "AllergyIntolerance", patient=self.who, code=self.concept(PENICILLIN), clinicalStatus=status,
                recordedDate=self.stamp(-800.0),
            )  # fmt: skip
        if self.happens(0.2):
            father = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-RoleCode", "code": "FTH"}]}
            self.add(
                "FamilyMemberHistory", status="completed", patient=self.who, relationship=father,
                date=self.stamp(-200.0)[:10], condition=[{"code": self.concept(FOUND["infarct"])}],
            )  # fmt: skip

    def _prior_study(self) -> None:
        if self.happens(0.3):
            days = -float(self.rng.uniform(60, 1000))
            study = self.study(f"2.25.{int.from_bytes(self.rng.bytes(15), 'big')}", days, "CT", None, None)
            self.report(CT_HEAD, days, days + 0.2, study, None, conclusion="A prior report.")

    def _laboratory(self) -> None:
        """The cohort's values days before the scan, older ones around them, pressures; results in error; one that came late."""
        days = -float(self.rng.uniform(1.5, 14))  # far enough for a time without a zone
        for one in self.patient["laboratory"]:
            for _ in range(int(self.rng.integers(0, 3))):
                older = one["value"] * float(np.exp(0.08 * self.rng.standard_normal()))
                self._value(one, round(older, 2), days - float(self.rng.uniform(30, 900)), TIDY)
            how = self._value(one, one["value"], days, self.mess)
            if how in ("no unit", "wrong unit"):
                self.truth["spoilt"][one["name"]] = how
            self.truth["laboratory"][one["name"]] = {"value": one["value"], "unit": one["unit"], "days": days}
        mistake = {**self.patient["laboratory"][0], "value": 399.0}
        self._value(mistake, 399.0, days / 2, TIDY, status="entered-in-error")
        parts = [
            {"code": {"coding": [{"system": LOINC, "code": code}]}, "valueQuantity": _quantity(value, "mm[Hg]")}
            for code, value in (("8480-6", round(self.rng.normal(130, 12))), ("8462-4", round(self.rng.normal(80, 8))))
        ]
        panel = {"coding": [{"system": LOINC, "code": "85354-9"}]}
        self.observation(panel, days, days, component=parts)
        late = {"coding": [{"system": LOINC, "code": "3255-7"}]}
        issued = min(1.5, self.days_known / 2)
        self.observation(late, days, issued, valueQuantity=_quantity(round(self.rng.normal(300, 40)), "mg/dL"))

    def _value(self, one: Mapping[str, Any], value: float, days: float, mess: Mess, status: str = "final") -> str:
        """A laboratory value as somebody wrote it down; returns how. Its stamps and codings have a mess of their own."""
        loinc, unit, how = one["loinc"], one["unit"], "as it is"
        drawn, kind = self.rng.random(), self.rng.random()
        if drawn < mess.no_unit and unit != "{INR}":
            quantity, how = {"value": value}, "no unit"
        elif drawn < mess.no_unit + mess.wrong_unit:
            quantity, how = _quantity(value, "kg"), "wrong unit"
        elif kind < mess.other_unit and loinc in OTHER_UNITS:
            other, factor = OTHER_UNITS[loinc]
            quantity, how = _quantity(value / factor, other), "other unit"
        elif kind < mess.other_unit + mess.spelling and unit in SPELT:
            quantity, how = {"value": value, "unit": self.pick(SPELT[unit])}, "spelling"
        else:
            quantity = _quantity(value, unit)
        codings = [{"system": LOINC, "code": loinc}, {"system": "https://example.org/laboratory", "code": f"L-{loinc}"}]
        code = {"coding": codings[: 2 if self.happens(mess.duplicate_coding) else 1]}
        fields: Json = {"valueQuantity": quantity, "status": status}
        if self.happens(mess.no_zone):
            fields["effectiveDateTime"] = self.stamp(days)[:19]
        for _ in range(1 + self.happens(mess.repeated)):
            self.observation(code, days, days + 0.1, **fields)
        return how

    # ---------------------------------------------------------------------------------------------- the scan and after

    def _index_study(self) -> None:
        """The order, the scan, its report, and what the report came to; some of it dated as if it had been there before."""
        began, ended = -float(self.rng.uniform(0.1, 0.9)), float(self.rng.uniform(0.3, 6))
        visit = self.encounter(began, ended, "EMER")
        reason = self.concept(HEADACHE)
        shape: Json = {"code": self.concept(MR_BRAIN), "reasonCode": [reason]}
        if self.is_r5:
            shape = {"code": {"concept": shape["code"]}, "reason": [{"concept": reason}]}
        order = self.add(
            "ServiceRequest",
            status="completed",
            intent="order",
            subject=self.who,
            authoredOn=self.stamp(began / 2),
            **shape,
        )
        study = self.study(self.uid, 0.0, "MR", order, visit)
        diseases = self.patient["subject"]["diagnoses"]
        finding = {"coding": [{"system": LOINC, "code": "59776-5"}]}
        results = []
        for name in diseases:
            answer = self.concept(FOUND[name])
            results.append(self.observation(finding, 0.0, 0.1, valueCodeableConcept=answer, derivedFrom=[study]))
            # Dated to the order, with no word on when it could be read: only the report says that it is a result.
            results.append(self.observation(finding, began / 2, None, valueCodeableConcept=answer))
            # Decided when the scan was read, written into the encounter as if at its beginning.
            self.condition(FOUND[name], self.partial(-300.0), began / 3, visit)
            self.condition(FOUND[name], self.stamp(-400.0), 0.15, visit)
        codes = [self.concept(FOUND[name]) for name in diseases] or None
        self.report(
            MR_BRAIN, 0.0, 0.1, study, order, result=results or None, conclusionCode=codes, conclusion="The report."
        )
        today = {"coding": [{"system": LOINC, "code": "9269-2"}]}
        self.observation(
            today, None, None, effectiveDateTime=self.stamp(0.0)[:10], valueQuantity=_quantity(13, "{score}")
        )

    def _afterwards(self) -> None:
        """Follow-up until the last day on which anything is known."""
        days = self.days_known
        for one in self.patient["laboratory"]:
            self._value(one, one["value"] * 1.2, days / 2, TIDY)
        if self.patient["subject"]["diagnoses"] and days > 90:
            study = self.study(f"{self.uid}.2", 60.0, "MR", None, None)
            self.report(MR_BRAIN, 60.0, 60.1, study, None, conclusion="A later report.")
        if self.has_died:
            cause = {"coding": [{"system": LOINC, "code": "69453-9"}]}
            self.observation(cause, days, days, valueString="died")
        else:
            self.encounter(days - 0.01, days)


def _quantity(value: float | int, unit: str) -> Json:
    return {"value": float(value), "unit": unit, "system": UCUM, "code": unit}
