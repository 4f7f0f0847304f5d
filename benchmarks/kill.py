"""Kill a training run with SIGKILL at random moments, again and again, and see that it always ends as if nothing had been.

    python -m benchmarks.kill --times 100

Each life of the run is a forked process that trains a small model on the CPU in fp32, saving every third step in the
background. It is killed after a random time, the next life continues from what it left, and the run that reaches the end must
have exactly the weights and the losses of one that was never disturbed. Prints what happened; the exit code is 0 when every
life could continue and every end was equal to the last bit.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from foundation.training import Draw, TrainingConfig, read_records, seeded, train

CONFIG = TrainingConfig(
    steps=60,
    batch_size=4,
    warmup_steps=4,
    ema_decay=0.9,
    precision="fp32",
    checkpoint_every=3,
    log_every=1,
)
WIDTH = 192  # 110,000 weights: writing takes about as long as the steps between


@dataclass(frozen=True)
class Points:
    x: Tensor

    def to(self, device: Any) -> Points:
        return Points(self.x.to(device))


class Cloud:
    """Random points; the noise of each comes from its draw."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, draw: Draw) -> Tensor:
        return torch.randn(WIDTH, generator=seeded(draw.index)) + torch.randn(WIDTH, generator=seeded(draw.seed))

    def collate(self, samples: list[Tensor]) -> Points:
        return Points(torch.stack(samples))


class Copier(nn.Module):
    """Learns to return its input; dropout, so that the random state of a step matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(WIDTH, 256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, WIDTH))

    def forward(self, batch: Points) -> dict[str, Tensor]:
        return {"loss": nn.functional.mse_loss(self.net(batch.x), batch.x)}

    def learning_rate_scale(self, name: str) -> float:
        return 1.0


def live(folder: Path, say: Path) -> None:
    """One life of the run, in a process of its own, from wherever the last one ended."""
    torch.set_num_threads(1)
    model = Copier()
    with say.open("a") as spoken:
        train(model, Cloud(), CONFIG, folder, label="kill", on_start=lambda text: print(text, file=spoken, flush=True))
    safetensors.torch.save_file(model.state_dict(), folder / "end.safetensors")


def forked(folder: Path, say: Path) -> int:
    """Start a life without importing torch again; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        with say.open("a") as spoken:
            os.dup2(spoken.fileno(), 2)  # the progress bar
            live(folder, say)
        os._exit(0)
    except BaseException:
        with say.open("a") as spoken:
            traceback.print_exc(file=spoken)
        os._exit(1)


def status_within(pid: int, limit_s: float) -> int | None:
    """How a process ended, or None if it lives on after so long."""
    until = time.monotonic() + limit_s
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() >= until:
            return None
        time.sleep(0.005)


def same_end(folder: Path, reference: Path) -> bool:
    ours, theirs = (safetensors.torch.load_file(one / "end.safetensors") for one in (folder, reference))
    losses = [[record["loss"] for record in read_records(one / "metrics.jsonl")] for one in (folder, reference)]
    return losses[0] == losses[1] and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.kill", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--times", type=int, default=100, help="how often to kill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    draw = random.Random(options.seed)
    with TemporaryDirectory() as home:
        reference = Path(home) / "reference"
        reference.mkdir()
        began = time.monotonic()
        _, status = os.waitpid(forked(reference, reference / "said"), 0)
        whole_s = time.monotonic() - began
        if status:
            print((reference / "said").read_text())
            return 1
        killed, ends, equal, run = 0, 0, 0, 0
        folder = Path(home) / "run-0"
        while killed < options.times or folder.exists():
            is_first = not folder.exists()
            folder.mkdir(exist_ok=True)
            began = time.monotonic()
            pid = forked(folder, folder / "said")
            # A life is a fork, reading the checkpoint, and steps: all of its moments are equally likely.
            moment_s = draw.uniform(0, whole_s) if killed < options.times else math.inf
            status = status_within(pid, moment_s)
            if status is None:
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
            elif is_first:
                # A first run on a busy machine may take ten times as long as the next, which would then never be killed.
                whole_s = time.monotonic() - began
            if os.WIFSIGNALED(status):
                killed += 1
                continue
            if status:
                print(f"a life after {killed} kills could not continue:\n{(folder / 'said').read_text()[-3000:]}")
                return 1
            ends += 1
            equal += same_end(folder, reference)
            shutil.rmtree(folder)
            run += 1
            folder = Path(home) / f"run-{run}"
    print(
        f"killed {killed} times; {ends} runs reached the end, {equal} of them equal to the undisturbed one to the last bit "
        f"({whole_s:.1f} s a run)"
    )
    return int(equal != ends)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
