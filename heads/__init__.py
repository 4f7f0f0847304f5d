"""What reads features: one file per head, each with a `Config` and a `Head` (`heads/base.py` says what they promise)."""

from __future__ import annotations

import sys
from typing import Any

from foundation.registry import KindConfig as HeadConfig
from foundation.registry import kinds, module_of, parse_kind

__all__ = ["HeadConfig", "head_kinds", "head_module", "parse_head"]


def head_kinds() -> list[str]:
    return kinds(sys.modules[__name__])


def head_module(kind: str) -> Any:
    return module_of(sys.modules[__name__], kind)


def parse_head(values: dict[str, Any]) -> HeadConfig:
    return parse_kind(sys.modules[__name__], values)
