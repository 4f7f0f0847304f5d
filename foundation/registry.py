"""Kinds by file name: a head or an objective is one module with a `Config`; no list, no decorator."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType
from typing import Any

from foundation.config import Config, parse_config
from foundation.errors import InputError, did_you_mean


class KindConfig(Config):
    """A config whose `kind` is the name of the module it belongs to; the subclass narrows it to that one name."""

    kind: Any


def kinds(package: ModuleType) -> list[str]:
    """The modules of `package` that define a kind; those whose name starts with '_' and 'base' are helpers."""
    names = (module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg)
    return sorted(name for name in names if name != "base" and not name.startswith("_"))


def module_of(package: ModuleType, kind: object) -> ModuleType:
    """The module of a kind, or an `InputError` that suggests the closest one."""
    known = kinds(package)
    if kind not in known:
        what = package.__name__.rpartition(".")[2]
        raise InputError(f"'kind' is one of the {what}", got=repr(kind), remedy=did_you_mean(str(kind), known))
    return import_module(f"{package.__name__}.{kind}")


def parse_kind(package: ModuleType, values: dict[str, Any]) -> Any:
    """`values` as the `Config` of the module that its `kind` names."""
    return parse_config(module_of(package, values.get("kind")).Config, values)
