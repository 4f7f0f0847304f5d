"""An audit as FHIR: an AuditEvent for every row, and a Provenance for what made or changed a report. R4B and R5.

    bundle = trail_bundle(audit.entries(), version="R5")

A case is named by its own random id, a user by the name he logs in with, and what was read or written by its hash: as the audit
itself, the bundle holds nothing of a patient.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from ehr.output import HL7, NAMESPACE, Json, Version, checked

CASES = "urn:larmor:case"
USERS = "urn:larmor:user"
# By the first word of an action's second part; what else happens to a case is an update of it.
ACTIONS = {
    "read": "C",
    "failed": "C",
    "cancelled": "C",
    "deleted": "D",
    "downloaded": "R",
    "seen": "R",
    "exported": "R",
}
ROLES = {"signed": "verifier", "read": "assembler"}
MAKES = {"read": "CREATE", "signed": "UPDATE", "amended": "UPDATE", "reworded": "UPDATE", "redrawn": "UPDATE",
         "decided": "UPDATE", "deleted": "DELETE"}  # fmt: skip


@runtime_checkable
class Row(Protocol):
    """One row of an audit."""

    @property
    def number(self) -> int: ...
    @property
    def at(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def action(self) -> str: ...
    @property
    def case_id(self) -> str: ...
    @property
    def detail(self) -> Mapping[str, Any]: ...
    @property
    def hash(self) -> str: ...


def trail_bundle(rows: Iterable[Row], *, version: Version = "R4B", software: str = "larmor") -> Json:
    """A `collection` Bundle, every resource of it valid under its version's models."""
    resources = [one for row in rows for one in _resources(row, version, software)]
    bundle: Json = {"resourceType": "Bundle", "type": "collection"}
    if resources:
        bundle["entry"] = [{"fullUrl": f"urn:uuid:{one['id']}", "resource": one} for one in resources]
        checked(bundle, version)
    return bundle


def _resources(row: Row, version: Version, software: str) -> Iterator[Json]:
    yield _event(row, version, software)
    if row.case_id and _verb(row) in MAKES:
        yield _provenance(row)


def _event(row: Row, version: Version, software: str) -> Json:
    area = row.action.partition(".")[0]
    is_login = area == "login"
    failed = row.action in ("login.failed", "login.locked", "reading.failed", "reading.cancelled")
    kind = {"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "110114" if is_login else "110100",
            "display": "User Authentication" if is_login else "Application Activity"}  # fmt: skip
    what = {"text": row.action}
    detail = [{"type": _typed(name, version), "valueString": _text(value)} for name, value in row.detail.items()]
    detail.append({"type": _typed("row's hash", version), "valueString": row.hash})
    entity: Json = {"detail": detail}
    if row.case_id:
        entity["what"] = _case(row)
    event: Json = {
        "resourceType": "AuditEvent",
        "id": _id(row, "AuditEvent"),
        "recorded": row.at,
        "action": "E" if is_login else ACTIONS.get(_verb(row), "U"),
        "agent": [{"who": _user(row), "requestor": True}],
        "source": {"observer": {"display": software}},
        "entity": [entity],
    }
    if version == "R5":
        code = "4" if failed else "0"
        severity = {"system": "http://terminology.hl7.org/CodeSystem/audit-event-outcome", "code": code}
        return event | {"category": [{"coding": [kind]}], "code": what, "outcome": {"code": severity}}
    return event | {"type": kind, "subtype": [{"code": row.action}], "outcome": "4" if failed else "0"}


def _provenance(row: Row) -> Json:
    verb = _verb(row)
    role = ROLES.get(verb, "author")
    activity = {"system": f"{HL7}/v3-DataOperation", "code": MAKES[verb], "display": MAKES[verb].lower()}
    hashes = [(name, value) for name, value in row.detail.items() if isinstance(value, str) and len(value) == 64]
    made: Json = {
        "resourceType": "Provenance",
        "id": _id(row, "Provenance"),
        "target": [_case(row)],
        "recorded": row.at,
        "activity": {"coding": [activity], "text": row.action},
        "agent": [
            {
                "type": {"coding": [{"system": f"{HL7}/provenance-participant-type", "code": role}]},
                "who": _user(row),
            }
        ],
    }
    if hashes:
        made["entity"] = [
            {"role": "source", "what": {"identifier": {"value": f"sha256:{value}"}, "display": name}}
            for name, value in hashes
        ]
    return made


def _verb(row: Row) -> str:
    return row.action.partition(".")[2]


def _case(row: Row) -> Json:
    return {"identifier": {"system": CASES, "value": row.case_id}}


def _user(row: Row) -> Json:
    return {"identifier": {"system": USERS, "value": row.user or "nobody"}}


def _typed(name: str, version: Version) -> Any:
    return {"text": name} if version == "R5" else name


def _text(value: object) -> str:
    return "none" if value is None or value == "" else str(value)


def _id(row: Row, kind: str) -> str:
    return str(uuid.uuid5(NAMESPACE, f"{kind}\n{row.hash}"))
