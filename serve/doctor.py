"""`larmor doctor`: what this machine has, and how to mend what is wrong.

Each check is a function that returns one `Check`; add one to `CHECKS` and it is in the table.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Literal

PACKAGES = ("ehr", "finetune", "foundation", "heads", "pretrain", "serve")
MEND_TORCH = (
    "In the checkout: uv pip install --reinstall-package torch --reinstall-package torchvision -r requirements.txt "
    "(uv takes both from one index; pip may take a CPU-only torch from somewhere else)."
)
HOME = Path(__file__).resolve().parents[1]
GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One row. `remedy` is what to do, and is never empty for a verdict other than ok."""

    name: str
    found: str
    verdict: Literal["ok", "warn", "fail"] = "ok"
    remedy: str = ""

    def __post_init__(self) -> None:
        assert self.verdict == "ok" or self.remedy, self.name


def main() -> int:
    """Print the table; 1 if anything fails."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for header in ("check", "what is here", "verdict", "remedy"):
        table.add_column(header, overflow="fold")
    checks = [_guarded(check) for check in CHECKS]
    for check in checks:
        color = {"ok": "green", "warn": "yellow", "fail": "red"}[check.verdict]
        table.add_row(*map(Text, (check.name, check.found)), Text(check.verdict, color), Text(check.remedy))
    Console().print(table)
    return int(any(check.verdict == "fail" for check in checks))


def python() -> Check:
    return Check("Python", f"{platform.python_version()} at {sys.executable}")


def larmor() -> Check:
    """Our package names are generic: another library called `finetune` could be imported in place of ours."""
    strangers = [name for name in PACKAGES if _folder_of(name) != HOME / name]
    if strangers:
        found = ", ".join(f"{name} from {_folder_of(name)}" for name in strangers)
        return Check("Larmor", found, "fail", "Install Larmor into an environment of its own: make clean setup.")
    return Check("Larmor", f"{_version('larmor') or 'not installed, run'} from {HOME}")


def torch_pair() -> Check:
    """Imported in another process: a mismatched pair may fail in any way, and must not take the doctor with it."""
    found = ", ".join(f"{name} {_version(name) or 'absent'}" for name in ("torch", "torchvision"))
    command = [sys.executable, "-c", "import torchvision"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode == 0:
        return Check("torch and torchvision", found)
    reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Check("torch and torchvision", f"{found}: {reason}", "fail", MEND_TORCH)


def gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        found = ", ".join(f"{device.name} ({device.total_memory / GIB:.0f} GiB)" for device in devices)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Check("GPU", found)
        return Check("GPU", f"{found}, no bf16", "warn", "Train with training.precision=fp32.")
    if torch.backends.mps.is_available():
        return Check("GPU", "Apple GPU (mps)")
    if shutil.which("nvidia-smi"):
        remedy = f"Install a driver for CUDA {torch.version.cuda}." if torch.version.cuda else MEND_TORCH
        return Check("GPU", "there is an NVIDIA driver, but torch cannot use it", "warn", remedy)
    return Check("GPU", "none; the CPU is used")


def bfloat16_on_cpu() -> Check:
    """Whether bf16 pays is measured and not read off the instruction set: some libraries emulate it, slowly."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    units = [
        name for name in ("amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16", "sve_bf16") if capabilities.get(name)
    ]
    speedup = _matmul_speedup()
    found = f"{', '.join(units) or 'no instructions for it'}; matrix product {speedup:.1f} times as fast as fp32"
    if speedup < 1:
        return Check("bf16 on the CPU", found, "warn", "On the CPU, train with training.precision=fp32.")
    return Check("bf16 on the CPU", found)


def accelerate() -> Check:
    version = _version("accelerate")
    if version is None:
        return Check("accelerate", "not installed", "fail", "make setup")
    return Check("accelerate", version)


def deepspeed() -> Check:
    """Optional. It compiles one small operator on first use, which needs a compiler and ninja."""
    version = _version("deepspeed")
    if version is None:
        return Check("DeepSpeed", "not installed; only several GPUs need it", remedy="uv pip install -e '.[cluster]'")
    lacking = [tool for tool in ("g++", "ninja") if not shutil.which(tool, path=_path_with_environment())]
    if lacking:
        return Check(
            "DeepSpeed", f"{version}, without {' and '.join(lacking)}", "warn", f"Install {' and '.join(lacking)}."
        )
    return Check("DeepSpeed", version)


def cores_and_memory() -> Check:
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    found = f"{cores} cores, {memory.available / GIB:.0f} of {memory.total / GIB:.0f} GiB free"
    if memory.available < 4 * GIB:
        return Check("cores and memory", found, "warn", "Close other programs: whole volumes are held in memory.")
    return Check("cores and memory", found)


def disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{free / GIB:.0f} GiB free in {Path.cwd()}"
    if free < 5 * GIB:
        return Check("disk", found, "warn", "Make room, or write elsewhere: checkpoints are large.")
    return Check("disk", found)


CHECKS: tuple[Callable[[], Check], ...] = (
    python, larmor, torch_pair, gpu, bfloat16_on_cpu, accelerate, deepspeed, cores_and_memory, disk,
)  # fmt: skip


def _guarded(check: Callable[[], Check]) -> Check:
    """A check that breaks is itself a finding."""
    try:
        return check()
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        return Check(check.__name__.replace("_", " "), found, "fail", "Mend the failures above, or make clean setup.")


def _folder_of(package: str) -> Path | None:
    spec = find_spec(package)
    return Path(spec.origin).resolve().parent if spec and spec.origin else None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _path_with_environment() -> str:
    """PATH as an activated environment has it: `larmor` also runs without activation."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _matmul_speedup(size: int = 1024, pairs: int = 5) -> float:
    """Median over pairs of fp32 seconds per bf16 second, for one square matrix product."""
    import torch

    def seconds(matrix: torch.Tensor) -> float:
        start = perf_counter()
        torch.mm(matrix, matrix)
        return perf_counter() - start

    single = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    half = single.bfloat16()
    ratios = [seconds(single) / seconds(half) for _ in range(pairs + 1)]
    return median(ratios[1:])  # the first pair warms up
