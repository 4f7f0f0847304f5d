"""Parsing what strangers sent in a child process with limits on time, memory and output: what goes wrong there stays there.

    answer = run_limited("foundation.reading.dicom.child:survey", {"source": "/data/upload"}, folder=private, limits=Limits())

The target takes keyword arguments that JSON can hold and returns what JSON can hold; whatever is larger it writes as files into
`folder`, which is also its TMPDIR and HOME. Nothing is pickled: a child that was taken over can send text, and no objects. What it
prints is dropped, because parsers quote headers, and headers name patients. A rule broken in the child is the same `InputError`
here; a crash, a hang or too much memory is an `InputError` too.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from foundation.errors import InputError, place_of

MAX_ANSWER_BYTES = 64 * 2**20
WHERE = r"[A-Za-z_][\w.]{0,78}"  # a module and a function: a child that was taken over may say anything
KEPT = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "SYSTEMROOT",
)  # of the environment; the rest is not the parser's business


@dataclass(frozen=True)
class Limits:
    """What a child may use. `seconds` is wall-clock time for the whole job; memory counts for each of its processes."""

    seconds: float = 300.0
    memory_bytes: int = 6 * 2**30
    file_bytes: int = 4 * 2**30  # of any file that it writes


def run_limited(target: str, arguments: dict[str, Any], *, folder: Path, limits: Limits | None = None) -> Any:
    """What `target`, a 'module:function', answers in a child process."""
    limits = limits or Limits()
    job = {"target": target, "arguments": arguments, "memory": limits.memory_bytes, "file": limits.file_bytes,
           "cpu": int(limits.seconds) + 5}  # fmt: skip
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment |= {"HOME": str(folder), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-m", "foundation.reading.sandbox"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env=environment,
        start_new_session=True,  # so that the programs it started can be ended with it
    )
    try:
        said, _ = child.communicate(json.dumps(job).encode(), timeout=limits.seconds)
    except subprocess.TimeoutExpired:
        raise _given_up(f"{limits.seconds:g} s and no end") from None
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    try:
        answer = json.loads(said[:MAX_ANSWER_BYTES])
    except ValueError:
        raise _given_up(f"a parser that ended with code {child.returncode}") from None
    if "broken" in answer:
        broken = InputError(answer["broken"]["rule"], got=answer["broken"]["got"], remedy=answer["broken"]["remedy"])
        if re.fullmatch(WHERE, where := str(answer["broken"].get("where")), re.ASCII):
            broken.where = where
        raise broken
    if "failed" in answer:
        raise _given_up(answer["failed"])
    return answer["value"]


def _given_up(got: str) -> InputError:
    remedy = "It is damaged, larger than the limits, or made to do harm; export it again from its source."
    return InputError("the input can be parsed within limits", got=got, remedy=remedy)


def _set_limits(job: dict[str, Any]) -> None:
    try:
        import resource
    except ImportError:  # not on Windows: there the time limit alone holds
        return
    wanted = {"RLIMIT_AS": job["memory"], "RLIMIT_FSIZE": job["file"], "RLIMIT_CPU": job["cpu"], "RLIMIT_CORE": 0}
    for name, most in wanted.items():
        with suppress(ValueError, OSError):  # macOS knows RLIMIT_AS and refuses it
            resource.setrlimit(getattr(resource, name), (most, most))


def _serve() -> None:
    """The child: one job from stdin, one answer to stdout, with nothing else able to print there."""
    job = json.load(sys.stdin.buffer)
    answer_to = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _set_limits(job)
    module, function = job["target"].split(":")
    try:
        answer = {"value": getattr(import_module(module), function)(**job["arguments"])}
    except InputError as error:
        answer = {
            "broken": {"rule": error.rule, "got": str(error.got), "remedy": error.remedy, "where": place_of(error)}
        }
    except MemoryError:
        answer = {"failed": "more memory needed than allowed"}
    except (
        BaseException
    ) as error:  # whatever it was; its message may quote the file, so only where it came from is told
        frame = traceback.extract_tb(error.__traceback__)[-1]
        answer = {"failed": f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}"}
    answer_to.write(json.dumps(answer).encode())
    answer_to.flush()


if __name__ == "__main__":
    _serve()
