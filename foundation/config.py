"""Configs are data: one frozen pydantic class per stage, a YAML file that lists only what differs, `a.b=value` on top.

    config = load_config(PretrainConfig, "configs/pretrain/tiny.yaml", ["training.learning_rate=1e-4"])

A misspelt key is an `InputError` with the closest known one; nothing unknown passes unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from foundation.errors import InputError, did_you_mean
from foundation.files import write_aside


class Config(BaseModel):
    """Base of every config: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_config(kind: type[ConfigT], path: str | Path | None, overrides: Sequence[str] = ()) -> ConfigT:
    """Defaults of `kind`, then the YAML file at `path`, then `key.sub=value` overrides (values are read as YAML)."""
    values: dict[str, Any] = {}
    if path is not None:
        values = _read_yaml(Path(path))
    for override in overrides:
        _apply_override(values, override)
    return parse_config(kind, values, source=path)


def parse_config(kind: type[ConfigT], values: dict[str, Any], *, source: str | Path | None = None) -> ConfigT:
    """`values` as a `kind`; the first thing wrong with them is an `InputError` that names `source`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _as_input_error(kind, error, source) from None


def save_config(config: BaseModel, path: Path) -> None:
    """The resolved config as YAML, so that a run explains itself."""
    with write_aside(path) as aside:
        aside.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def check_continues(what: str, earlier: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Work in a folder continues with the settings it began with, or an `InputError` names the first that differs."""
    for name, value in now.items():
        if earlier.get(name) != value:
            raise InputError(
                f"a {what} continues with the {name} it began with",
                got=f"{value} instead of {earlier.get(name)}",
                remedy="Name another folder, or remove this one.",
                file=folder,
            )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError("a config file can be read", got=error.strerror, remedy="Check the path.", file=path) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError("a config file is YAML", got=reason, remedy="Mend that line.", file=path) from None
    if not isinstance(values or {}, dict):
        raise InputError(
            "a config holds 'key: value' pairs", got=type(values).__name__, remedy="See configs/.", file=path
        )
    return values or {}


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(
            "an override is written key=value", got=repr(override), remedy="For example training.steps=100."
        )
    *parents, leaf = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise InputError(
                "an override reaches into a group", got=f"'{parent}', which is a value", remedy=f"Set '{parent}'."
            )
    try:
        values[leaf] = _number_if_scientific(yaml.safe_load(text))
    except yaml.YAMLError:
        raise InputError("an override's value is YAML", got=repr(text), remedy="Quote it.") from None


def _number_if_scientific(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text because it has no dot; nobody who writes it means text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _as_input_error(kind: type[BaseModel], error: ValidationError, source: str | Path | None) -> InputError:
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return cause.in_file(source) if source and not cause.file else cause
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys(kind, first["loc"][:-1])
        return InputError(
            "a config has no unknown key",
            got=f"'{where}'",
            remedy=did_you_mean(str(first["loc"][-1]), known),
            file=source,
        )
    return InputError(f"'{where}': {first['msg']}", got=repr(first["input"]), remedy="Correct the value.", file=source)


def _known_keys(kind: Any, location: tuple[int | str, ...]) -> list[str]:
    """The field names that are valid at `location` inside `kind`; list indices in the location are passed through."""
    if location and isinstance(location[0], int):
        return _known_keys(kind, location[1:])
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return [key for inner in get_args(kind) for key in _known_keys(inner, location)]
    if not location:
        return list(kind.model_fields)
    field = kind.model_fields.get(str(location[0]))
    return _known_keys(field.annotation, location[1:]) if field else list(kind.model_fields)
