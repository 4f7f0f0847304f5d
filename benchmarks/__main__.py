"""Measured ratios, printed as a table and written to runs/bench.json.

    python -m benchmarks                 every group
    python -m benchmarks reading         one of pretraining, training, serving, reading, store, cohort, record, report,
                                         study, reconstruction, command

A target is the least ratio that three quarters of the pairs reach. Runs on the CPU: ratios hold on a busy machine, times
do not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from foundation.files import write_aside
from foundation.training import resolve_precision, software_versions

GROUPS = (
    "pretraining",
    "training",
    "serving",
    "reading",
    "store",
    "cohort",
    "record",
    "report",
    "study",
    "reconstruction",
    "command",
)
HEADER = ("", "ours", "theirs", "ratio (quartiles)", "target", "verdict")
WIDTHS = (43, 9, 9, 24, 10, 7)
OUTPUT = Path("runs/bench.json")


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 when every target holds, 1 when one is missed."""
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; all when none is named")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch (default: %(default)s)")
    options = parser.parse_args(arguments)
    unknown = set(options.groups) - set(GROUPS)
    if unknown:
        parser.error(f"no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    torch.set_num_threads(options.threads)

    machine = _machine()
    print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in machine.items() if name != "cpu_flags"))
    print(_line(HEADER))
    rows = []
    for group in options.groups or GROUPS:
        for row in import_module(f"benchmarks.{group}").rows():
            print(_line(row.cells()), flush=True)
            rows.append(row)
    report = {"machine": machine, "versions": software_versions(), "rows": [row.record() for row in rows]}
    with write_aside(OUTPUT) as aside:
        aside.write_text(json.dumps(report, indent=2) + "\n")
    print(f"wrote {OUTPUT}")
    return int(any(row.holds is False for row in rows))


def _machine() -> dict[str, Any]:
    cpu = torch.cpu.get_capabilities()
    flags = sorted(name for name, value in cpu.items() if value is True)
    units = [name for name in ("amx_bf16", "avx512_bf16") if name in flags]
    return {
        "cpu": cpu["cpu_name"],
        "bf16_units": units[0] if units else "none",
        "auto_precision": resolve_precision("auto").replace("no", "fp32"),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ["OMP_WAIT_POLICY"].lower(),
        "load": round(os.getloadavg()[0], 2),
        "cpu_flags": flags,
    }


def _line(cells: Sequence[str]) -> str:
    return "  ".join(f"{cell:{width}}" for cell, width in zip(cells, WIDTHS)).rstrip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
