"""What of a patient's record a report may say: why the study was asked for, and what the patient is known to have.

    indication_of(admitted)      "headache", or None where no request of the study gives a reason
    history_of(admitted)         findings whose origin is the record, each with the event that it comes from

Conditions are recognised by code and called by our own name, so nothing that somebody typed into a record is in them. The words
of a request are there only if the record was read with `free_text`; they are data, shown between quotation marks, and nothing reads
them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ehr.codes import parents_of
from ehr.events import Event
from ehr.index import Admitted
from foundation.findings import Finding, finding_id
from foundation.text import one_line

LONGEST_INDICATION = 300
CODE = re.compile(r"[A-Z0-9]+\|[A-Za-z0-9.-]{1,18}")

# Each condition under its codes: SNOMED CT, and ICD-10 as its three characters where all of them mean it.
CONDITIONS: dict[str, tuple[str, ...]] = {
    "hypertension": ("SNOMED|38341003", "SNOMED|59621000", "ICD10|I10"),
    "diabetes": (
        "SNOMED|73211009", "SNOMED|44054006", "SNOMED|46635009", "ICD10|E10", "ICD10|E11", "ICD10|E13", "ICD10|E14",
    ),
    "smoking": ("SNOMED|77176002", "ICD10|F17", "LOINC|72166-2=SNOMED|449868002", "LOINC|72166-2=SNOMED|77176002"),
    "atrial fibrillation": ("SNOMED|49436004", "ICD10|I48"),
    "anticoagulation": (
        "ICD10CM|Z79.01", "ATC|B01AA", "ATC|B01AB", "ATC|B01AE", "ATC|B01AF",
        "RXNORM|855332", "RXNORM|11289", "RXNORM|1364430", "RXNORM|1114195", "RXNORM|1037042",
    ),
    "seizure": ("SNOMED|91175000", "ICD10|R56"),
    "epilepsy": ("SNOMED|84757009", "ICD10|G40"),
    "cognitive impairment": ("SNOMED|386806002", "ICD10CM|G31.84"),
    "dementia": ("SNOMED|52448006", "SNOMED|26929004", "ICD10|F00", "ICD10|F01", "ICD10|F03", "ICD10|G30"),
    "headache": ("SNOMED|25064002", "ICD10|R51"),
    "migraine": ("SNOMED|37796009", "ICD10|G43"),
    "dizziness": ("SNOMED|404640003", "ICD10|R42"),
    "syncope": ("SNOMED|271594007", "ICD10|R55"),
    "hemiplegia": ("SNOMED|50582007", "ICD10|G81"),
    "head injury": ("SNOMED|82271004", "ICD10|S06"),
    "cerebral infarction": ("SNOMED|432504007", "ICD10|I63"),
    "transient ischaemic attack": ("SNOMED|266257000", "ICD10|G45"),
    "cerebral haemorrhage": ("SNOMED|274100004", "ICD10|I61"),
    "multiple sclerosis": ("SNOMED|24700007", "ICD10|G35"),
    "glioma": ("SNOMED|393564001",),
    "malignant neoplasm of the brain": ("ICD10|C71",),
    "Parkinson's disease": ("SNOMED|49049000", "ICD10|G20"),
}  # fmt: skip
NAME_OF = {code: name for name, codes in CONDITIONS.items() for code in codes}


def history_of(admitted: Admitted) -> tuple[Finding, ...]:
    """The conditions that are known at the index, each once under its earliest event, in the order in which they were known."""
    found: dict[str, Finding] = {}
    for event in admitted.events:
        name = None if event.kind == "ServiceRequest" else name_of(event.codes)
        if name is not None and name not in found:
            found[name] = Finding(
                id=finding_id("record", name, "not_applicable"), name=name, anatomy="history", side="not_applicable",
                presence="present", abnormal=False, source="record", origin="record", event=event.source,
            )  # fmt: skip
    return tuple(found.values())


def num_without_name(admitted: Admitted) -> int:
    """Diagnoses that are known at the index and have no name here: a history that left them out without a word would mislead."""
    return sum(one.kind == "Condition" and name_of(one.codes) is None for one in admitted.events)


def indication_of(admitted: Admitted) -> str | None:
    """Why the index study was asked for: the words of its request if they may be used, else the names of its coded reasons.

    Only a request that the study names, or that shares its number, counts; a code without a name here is given as it is.
    """
    reasons = list(_requested(admitted))
    words = [event.text for event in reasons if event.text]
    coded = (_reason(event.codes) for event in reasons)
    said = words or dict.fromkeys(reason for reason in coded if reason is not None)
    return one_line("; ".join(said), most=LONGEST_INDICATION) or None


def _requested(admitted: Admitted) -> Iterable[Event]:
    """Events of the requests that the index study was made for. They may be dated less exactly than what a model is told."""
    links, study = admitted.record.links, admitted.index.study
    ordered = {key for one in links if one.kind == "ImagingStudy" and study & set(one.keys) for key in one.orders}
    asked = {one for one in links if one.kind == "ServiceRequest" and (ordered | study) & set(one.keys)}
    for event in admitted.record.events:
        known = event.known
        if event.link in asked and event.is_valid and (known is None or known.lo < admitted.index.time):
            yield event


def name_of(codes: Iterable[str]) -> str | None:
    """Our name of what these codings say, None where none of them is known."""
    codes = tuple(codes)
    broader = (parent for code in codes for parent in parents_of(code))
    return next((NAME_OF[code] for code in (*codes, *broader) if code in NAME_OF), None)


def _reason(codes: tuple[str, ...]) -> str | None:
    bare = [code.removeprefix("reason:") for code in codes if code.startswith("reason:")]
    known = name_of(bare)
    if known is not None:
        return known
    return next((f"{code.replace('|', ' ')}" for code in bare if CODE.fullmatch(code)), None)
