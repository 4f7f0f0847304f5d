"""What pretraining learns from: one file per objective, each with a `Config`, an `Objective` and what it makes of a sample."""

from __future__ import annotations

import sys
from typing import Any

from foundation.cohort.stream import StreamConfig
from foundation.registry import KindConfig, kinds, module_of, parse_kind

__all__ = ["ObjectiveConfig", "objective_kinds", "objective_module", "parse_objective"]


class ObjectiveConfig(KindConfig):
    """What the config of every objective is."""

    @property
    def own_cohort(self) -> StreamConfig | None:
        """The patients of an objective that reads none of the run's studies; None for all others."""
        return None


def objective_kinds() -> list[str]:
    return kinds(sys.modules[__name__])


def objective_module(kind: str) -> Any:
    return module_of(sys.modules[__name__], kind)


def parse_objective(values: dict[str, Any]) -> ObjectiveConfig:
    return parse_kind(sys.modules[__name__], values)
