"""The strict way in: every resource against fhir.resources' models, one by one, mended first where the fault is a known habit.

    Validator().check(resource)    Verdict(version="R4B", repairs=("a time without a zone",), reason=None)

fhir.resources 8 has models of R4B and R5. R4's radiology and laboratory resources are valid under R4B's; which version a file
has is seen from what its resources satisfy, and the version that was right last is tried first. A whole Bundle is never
validated at once: one bad entry would refuse all of them.

Importing the models takes a second, so only those that are met are imported.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic import BaseModel, ValidationError

VERSIONS = {"R4B": "fhir.resources.R4B", "R5": "fhir.resources"}
MOST_ROUNDS = 4  # of mending: one fault hides the next
_ZONELESS = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?", re.ASCII)
_NAME = re.compile(r"[A-Za-z]{1,40}")


@dataclass(frozen=True)
class Verdict:
    """`version` is that of the models it satisfies, None where it satisfies none, and then `reason` says where it fails."""

    version: str | None
    repairs: tuple[str, ...] = ()
    reason: str | None = None


class Validator:
    """Remembers which version the resources seen so far had."""

    def __init__(self) -> None:
        self._order = list(VERSIONS)
        self._models: dict[tuple[str, str], type[BaseModel] | None] = {}

    def check(self, resource: dict[str, Any]) -> Verdict:
        """Whether a resource is valid as it is or mended. The resource is not changed: whoever reads it mends as it reads.

        As it is under any version comes first: what R5 is rightly called is an unknown field under R4B.
        """
        kind = str(resource.get("resourceType"))
        models = {version: model for version in self._order if (model := self._model(version, kind))}
        if not models:
            return Verdict(None, reason="no FHIR resource type")
        errors = {}
        for version, model in models.items():
            errors[version] = _errors(model, resource)
            if not errors[version]:
                return self._settled(Verdict(version))
        verdicts = [_mended(version, model, resource, errors[version]) for version, model in models.items()]
        valid = [verdict for verdict in verdicts if verdict.version]
        return self._settled(min(valid, key=lambda verdict: len(verdict.repairs))) if valid else verdicts[0]

    def errors_under(self, version: str, resource: dict[str, Any]) -> str | None:
        """What is wrong with a resource under one version as it is; None where nothing is."""
        model = self._model(version, str(resource.get("resourceType")))
        if model is None:
            return "no FHIR resource type"
        errors = _errors(model, resource)
        return _reason(errors[0]) if errors else None

    def _settled(self, verdict: Verdict) -> Verdict:
        if verdict.version != self._order[0]:
            self._order.reverse()
        return verdict

    def _model(self, version: str, kind: str) -> type[BaseModel] | None:
        key = (version, kind)
        if key not in self._models:
            lookup: Callable[[str], type[BaseModel]] = import_module(VERSIONS[version]).get_fhir_model_class
            try:
                self._models[key] = lookup(kind) if _NAME.fullmatch(kind) else None
            except (ValueError, KeyError, ImportError):  # what fhir.resources says of a type that it has not
                self._models[key] = None
        return self._models[key]


def _errors(model: type[BaseModel], resource: dict[str, Any]) -> list[Any]:
    try:
        model.model_validate(resource)
    except ValidationError as error:
        return error.errors(include_url=False)
    except RecursionError:
        return [{"type": "recursion", "loc": ()}]
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, ArithmeticError) as error:
        # fhir.resources meets shapes that its own checks did not expect (a list where it looks for text).
        return [{"type": type(error).__name__, "loc": ()}]
    return []


def _mended(version: str, model: type[BaseModel], resource: dict[str, Any], errors: list[Any]) -> Verdict:
    mended = copy.deepcopy(resource)
    repairs: list[str] = []
    for _ in range(MOST_ROUNDS):
        errors.reverse()  # from the end, so that taking one thing out of a list does not move the next
        done = [_mend(mended, error) for error in errors]
        if not all(done):
            return Verdict(None, reason=_reason(errors[done.index("")]))
        repairs += done
        errors = _errors(model, mended)
        if not errors:
            return Verdict(version, tuple(repairs))
    return Verdict(None, reason="more faults than can be mended")


def _mend(resource: dict[str, Any], error: Any) -> str:
    """Mend one fault in place and name the habit, or return "" where it is none."""
    *path, last = error["loc"] or (None,)
    holder: Any = resource
    for step in path:
        try:
            holder = holder[step]
        except (KeyError, IndexError, TypeError):  # a step of the models' own, not of the file
            return ""
    try:
        value = holder[last]
    except (KeyError, IndexError, TypeError):
        return ""
    if error["type"] == "extra_forbidden":
        del holder[last]
        return "an unknown field"
    if isinstance(value, str) and not value.strip():
        del holder[last]
        return "an empty text"
    if isinstance(value, str) and _ZONELESS.fullmatch(value):
        holder[last] = value.replace(" ", "T") + ("Z" if value.count(":") > 1 else ":00Z")
        return "a time without a zone"
    return ""


def _reason(error: Any) -> str:
    """The kind of fault and the place, by names that FHIR has: what a file calls its own fields may be a patient's name."""
    if error["type"] == "extra_forbidden":
        return "invalid: an unknown field"
    steps = [step for step in error["loc"] if isinstance(step, str) and _NAME.fullmatch(step)]
    return f"invalid {'.'.join(steps) or 'resource'}: {error['type']}"
