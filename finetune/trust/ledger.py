"""Figures that took long, one JSON line each, so that an evaluation that was stopped continues where it was.

ledger = Ledger(out / "trust" / "corruption.jsonl", {"weights": sha256, "data": fingerprint})
score = ledger.get("sub-01|motion 3", lambda: measure(...))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from foundation.files import write_aside

Figures: TypeAlias = dict[str, float | None]


class Ledger:
    """What stands under other settings (weights, data, seed) is of no use, and is begun anew."""

    def __init__(self, path: Path, settings: Mapping[str, object]):
        self.path = path
        self._known: dict[str, Figures] = {}
        first = json.dumps({"settings": settings})
        lines = path.read_text().splitlines() if path.is_file() else []
        if lines[:1] == [first]:
            for line in lines[1:]:
                if (entry := _parsed(line)) is not None:  # the last one may be half a line
                    self._known[entry["key"]] = entry["figures"]
        with write_aside(path) as aside:
            kept = (json.dumps({"key": key, "figures": figures}) for key, figures in self._known.items())
            aside.write_text("".join(f"{line}\n" for line in (first, *kept)))

    def get(self, key: str, measure: Callable[[], Figures]) -> Figures:
        """The figures under `key`, measured and kept if they are not there yet; numbers that do not exist are None."""
        if key not in self._known:
            self._known[key] = measure()
            with self.path.open("a") as file:
                file.write(json.dumps({"key": key, "figures": self._known[key]}, allow_nan=False) + "\n")
        return self._known[key]


def _parsed(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        return None
