"""How long the command line takes to answer."""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from benchmarks._measure import Row, alone


def rows() -> Iterator[Row]:
    larmor = Path(sysconfig.get_path("scripts")) / "larmor"
    yield alone(
        "larmor --help", lambda: subprocess.run([larmor, "--help"], check=True, stdout=subprocess.DEVNULL), target=0.5
    )
