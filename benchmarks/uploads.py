"""A hundred studies sent to `larmor serve` at the same moment, by several users: none is lost, none is mixed with another.

    python -m benchmarks.uploads                                 100 studies of 8 users, a small model made here
    python -m benchmarks.uploads --studies 10 --users 3 --model DIR

Every study has two series, a place, a size and a spacing of its own. Each is sent by a thread of its own, all at once, and waited
for; what the server then says of it (subject, series, every finding with its numbers) is compared with the same files read here,
one at a time, without a server. Then each user's worklist must hold his own studies and no others, and each case the voxels of
his files. The server is the real one: its command, its log-in, its line, its child processes.
"""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier
from typing import Any

import numpy as np
import torch

from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError
from foundation.findings import Finding, Reading, Structure
from foundation.reading.nifti import write_volume
from foundation.study import Contrast, Series
from heads import parse_head
from heads.base import Scope, TaskConfig, TaskModel, save_task
from serve.client import Client
from serve.intake import study_of
from serve.pipeline import load_models, read_study
from serve.users import Users

WAIT_S = 3600.0  # for the last of a hundred, on a busy machine
START_S = 300.0
CONTRASTS: tuple[Contrast, Contrast] = ("FLAIR", "T1w")  # as their names sort, which the server replaces


@dataclass(frozen=True)
class Sent:
    """A study that was sent and what became of it."""

    user: str
    subject: str
    files: tuple[Path, ...]
    seconds: float
    study: str
    reading: Reading


@dataclass(frozen=True)
class Outcome:
    """`lost` have no case or none in their user's worklist; `mixed` are cases that say anything of another study."""

    sent: int
    users: int
    lost: tuple[str, ...]
    mixed: tuple[str, ...]
    seconds: float
    waits_s: tuple[float, ...]
    server_mib: float

    def lines(self) -> list[str]:
        middle, late = np.percentile(self.waits_s, [50, 95]) if self.waits_s else (0.0, 0.0)
        return [
            f"{self.sent} studies of {self.users} users sent at once: {len(self.lost)} lost, {len(self.mixed)} mixed",
            f"all read after {self.seconds:.0f} s, {60 * self.sent / self.seconds:.0f} a minute, one at a time",
            f"sent to read: median {middle:.1f} s, 95 % within {late:.1f} s, longest {max(self.waits_s, default=0):.1f} s",
            f"the server's memory at its peak: {self.server_mib:.0f} MiB",
            *(f"lost: {one}" for one in self.lost),
            *(f"mixed: {one}" for one in self.mixed),
        ]


def make_study(folder: Path, number: int) -> tuple[Path, ...]:
    """Two series of a head with something bright in it, of a size, place and spacing that no other number has."""
    folder.mkdir(parents=True)
    rng, spacing_mm = np.random.default_rng(number), 8.0 + 0.01 * number
    shape = (24, 26, 22)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = -spacing_mm * (np.array(shape) - 1) / 2
    grid = Series(np.zeros(shape, np.float32), affine)
    mm = grid.to_patient_mm(np.moveaxis(np.indices(shape), 0, -1))
    head = np.square(mm / (75.0, 88.0, 78.0)).sum(axis=-1) < 1
    centre = rng.uniform(-25, 25, 3)
    ball = np.linalg.norm(mm - centre, axis=-1) < 12 + number % 9
    files = []
    for contrast, bright in zip(CONTRASTS, (100.0, 150.0), strict=True):
        voxels = (100.0 * head + bright * ball + 5 * rng.random(shape)).astype(np.float32)
        files.append(folder / f"sub-{number:03d}_{contrast}.nii.gz")
        write_volume(files[-1], voxels, Series(voxels, affine, contrast))
    return tuple(files)


def make_model(folder: Path) -> Path:
    """A small segmentation model, not fitted: what it outlines depends on the voxels, which is all that is asked."""
    torch.manual_seed(0)
    structure = Structure(value=1, name="tumour", paired=True)
    head = parse_head({"kind": "segmentation", "structures": [structure.model_dump()]})
    encoder = EncoderConfig(width=64, depth=2)
    scope = Scope(contrasts=CONTRASTS, smallest_extent_mm=(50.0, 50.0, 50.0), largest_extent_mm=(300.0, 300.0, 300.0))
    config = TaskConfig(name="small", caution=None, encoder=encoder, head=head, spacing_mm=(8.0, 8.0, 8.0), scope=scope)
    save_task(folder, TaskModel.build(Encoder(encoder), head), config, card="not fitted", provenance={})
    return folder


@contextmanager
def running_server(folder: Path, model: Path, users: Path) -> Iterator[tuple[str, int]]:
    """The address and the process of a `larmor serve` that keeps everything in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "serve", "serve", "--model", str(model), "--port", str(port), "--data",
               str(folder / "data"), "--users", str(users)]  # fmt: skip
    log = folder / "log"
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONWARNINGS": "ignore"}
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment) as process:
        try:
            end = time.monotonic() + START_S
            while "Larmor is at" not in log.read_text():
                if process.poll() is not None or time.monotonic() > end:
                    raise InputError("the server starts", got=log.read_text()[-500:], remedy="Start it by hand.")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}", process.pid
            process.terminate()
            process.wait(60)
        finally:
            process.kill()


def send_all(studies: Sequence[tuple[Path, ...]], names: Sequence[str], model: Path, folder: Path) -> Outcome:
    """Send all studies at the same moment, those of each user by turns, and see what comes back."""
    listed = Users(folder / "users.json")
    tokens = {name: listed.add(name, secrets.token_urlsafe(12)) for name in names}
    with running_server(folder, model, listed.path) as (address, pid):
        together = Barrier(len(studies))

        def one(number: int) -> Sent | str:
            name = names[number % len(names)]
            subject = f"{name}-{number:03d}"
            with Client(address, tokens[name], timeout_s=WAIT_S) as client:
                together.wait()
                began = time.monotonic()
                try:
                    study = client.read(studies[number], subject=subject)
                    found = client.reading(study)
                except Exception as error:
                    return f"{subject}: {type(error).__name__}: {error}"
                took_s = time.monotonic() - began
                return Sent(name, subject, studies[number], took_s, study, Reading.model_validate(found))

        began = time.monotonic()
        with ThreadPoolExecutor(len(studies)) as threads:
            answers = list(threads.map(one, range(len(studies))))
        seconds = time.monotonic() - began
        held: dict[str, dict[str, str]] = {}
        for name in names:
            with Client(address, tokens[name]) as client:
                held[name] = {line["id"]: line["subject"] for line in client.worklist()}
        memory = _peak_mib(pid)
    sent = [one for one in answers if isinstance(one, Sent)]
    lost = [one for one in answers if isinstance(one, str)]
    lost += [f"{one.subject}: not in the worklist" for one in sent if one.study not in held[one.user]]
    mixed = [f"{name}'s worklist: {subject}" for name in names for subject in held[name].values()
             if not subject.startswith(f"{name}-")]  # fmt: skip
    mixed += [f"{one.subject}: {why}" for one, why in zip(sent, _differences(sent, model), strict=True) if why]
    if len({one.study for one in sent}) < len(sent):
        mixed.append("two studies have one case")
    waits = tuple(one.seconds for one in sent)
    return Outcome(len(studies), len(names), tuple(lost), tuple(mixed), seconds, waits, memory)


def _differences(sent: Sequence[Sent], model: Path) -> list[str]:
    """What a case says that the same files do not say when they are read here; empty where it is the same."""
    models = load_models([model])
    found = []
    for one in sent:
        alone = read_study(study_of(one.files, subject=one.subject), models).reading
        differs = [what for what, ours, theirs in (
            ("subject", one.subject, one.reading.subject),
            ("series", [_facts(series) for series in alone.series], [_facts(series) for series in one.reading.series]),
            ("findings", [_said(item) for item in alone.findings], [_said(item) for item in one.reading.findings]),
        ) if ours != theirs]  # fmt: skip
        found.append(", ".join(differs))
    return found


def _facts(series: Any) -> tuple[Any, ...]:
    return series.contrast, series.shape, series.spacing_mm, series.orientation


def _said(finding: Finding) -> dict[str, Any]:
    """All of a finding but what its series is called, which the server changes."""
    said = finding.model_dump()
    if said["evidence"]:
        said["evidence"].pop("series")
    for signal in said["signals"]:
        signal.pop("series")
    return said


def _peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def main(arguments: Sequence[str]) -> int:
    """0 when nothing was lost and nothing mixed."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.uploads", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--users", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--model", type=Path, metavar="DIR", help="(default: a small one, made here)")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as place:
        folder = Path(place)
        model = options.model or make_model(folder / "model")
        studies = [make_study(folder / "sent" / f"{number:03d}", number) for number in range(options.studies)]
        names = [f"user-{number}" for number in range(options.users)]
        outcome = send_all(studies, names, model, folder)
    print("\n".join(outcome.lines()))
    return int(bool(outcome.lost or outcome.mixed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
