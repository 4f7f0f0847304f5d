"""Codes in one spelling: "LOINC|2345-7", whatever the file calls the system, and what a code is a kind of.

codes_of({"coding": [{"system": "urn:oid:2.16.840.1.113883.6.1", "code": "2345-7"}]})    ("LOINC|2345-7",)
parents_of("ICD10CM|I63.9")                                                              ("ICD10|I63",)
"""

from __future__ import annotations

import re
from typing import Any

LONGEST = 120  # characters of a system or a code; a longer one is no code

SYSTEMS = {
    "http://loinc.org": "LOINC",
    "urn:oid:2.16.840.1.113883.6.1": "LOINC",
    "http://snomed.info/sct": "SNOMED",
    "urn:oid:2.16.840.1.113883.6.96": "SNOMED",
    "http://hl7.org/fhir/sid/icd-10": "ICD10",
    "urn:oid:2.16.840.1.113883.6.3": "ICD10",
    "http://hl7.org/fhir/sid/icd-10-cm": "ICD10CM",
    "urn:oid:2.16.840.1.113883.6.90": "ICD10CM",
    "http://fhir.de/codesystem/bfarm/icd-10-gm": "ICD10GM",
    "http://fhir.de/codesystem/dimdi/icd-10-gm": "ICD10GM",
    "http://hl7.org/fhir/sid/icd-9-cm": "ICD9CM",
    "urn:oid:2.16.840.1.113883.6.103": "ICD9CM",
    "http://www.cms.gov/medicare/coding/icd10": "ICD10PCS",
    "urn:oid:2.16.840.1.113883.6.4": "ICD10PCS",
    "http://www.nlm.nih.gov/research/umls/rxnorm": "RXNORM",
    "urn:oid:2.16.840.1.113883.6.88": "RXNORM",
    "http://www.whocc.no/atc": "ATC",
    "urn:oid:2.16.840.1.113883.6.73": "ATC",
    "http://hl7.org/fhir/sid/ndc": "NDC",
    "urn:oid:2.16.840.1.113883.6.69": "NDC",
    "http://www.ama-assn.org/go/cpt": "CPT",
    "urn:oid:2.16.840.1.113883.6.12": "CPT",
    "http://radlex.org": "RADLEX",
    "http://dicom.nema.org/resources/ontology/dcm": "DCM",
    "urn:oid:1.2.840.10008.2.16.4": "DCM",
    "http://terminology.hl7.org/codesystem/v3-actcode": "ACT",
    "http://hl7.org/fhir/v3/actcode": "ACT",
    "http://unitsofmeasure.org": "UCUM",
}
UNKNOWN_SYSTEM = "?"
# What a code is said of, where it is not simply what the patient has, took or was measured: "family:ICD10|I63.9".
ROLES = ("allergy", "conclusion", "family", "imaging", "order", "reason")
_ICD10 = re.compile(r"[A-TV-Z]\d[0-9A-Z]", re.ASCII | re.IGNORECASE)
_ATC = re.compile(r"[A-V](\d\d([A-Z]([A-Z](\d\d)?)?)?)?", re.ASCII)
_ATC_LEVELS = (5, 4, 3, 1)


def system_of(url: object) -> str:
    """The short name of a code system; of one that is not in `SYSTEMS` its address without scheme and last slash."""
    if not isinstance(url, str) or not url.strip():
        return UNKNOWN_SYSTEM
    address = url.strip().rstrip("/").lower()
    known = SYSTEMS.get(address) or SYSTEMS.get(address.replace("https://", "http://", 1))
    return known or address.partition("://")[2][:LONGEST] or address[:LONGEST]


def code_of(coding: object) -> str | None:
    """A Coding as "SYSTEM|code"; None where there is no code in it."""
    if not isinstance(coding, dict):
        return None
    code = coding.get("code")
    if not isinstance(code, str) or not (code := code.strip()) or len(code) > LONGEST:
        return None
    return f"{system_of(coding.get('system'))}|{code}"


def codes_of(concept: Any) -> tuple[str, ...]:
    """Every coding of a CodeableConcept (or of a bare Coding), in the file's order, each once."""
    if not isinstance(concept, dict):
        return ()
    codings = concept.get("coding")
    found = (code_of(one) for one in (codings if isinstance(codings, list) else [concept]))
    return tuple(dict.fromkeys(code for code in found if code is not None))


def in_role(role: str, codes: tuple[str, ...]) -> tuple[str, ...]:
    assert role in ROLES, role
    return tuple(f"{role}:{code}" for code in codes)


def parents_of(code: str) -> tuple[str, ...]:
    """What a code is a kind of, nearest first: the three characters of ICD-10 in any of its editions, the levels of ATC."""
    role, colon, bare = code.partition(":")
    if role in ROLES and colon:
        return in_role(role, parents_of(bare))
    system, _, value = code.partition("|")
    if system in ("ICD10", "ICD10CM", "ICD10GM") and _ICD10.match(value):
        parent = f"ICD10|{value[:3].upper()}"
        return (parent,) if parent != code else ()
    if system == "ATC" and _ATC.fullmatch(value):
        return tuple(f"ATC|{value[:level]}" for level in _ATC_LEVELS if level < len(value))
    return ()


def system_in(code: str) -> str:
    """The system of "SYSTEM|code", its role included."""
    return code.partition("|")[0]
