"""Runs under several engines in one launch, because starting processes is what takes the time: `engine_job.py JOBS.json`.

A job sets the variables that `accelerate launch` would set for its engine, then trains: the real pretraining of a config, or a
small regression to which something happens at a step of one process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from benchmarks.kill import Points
from foundation.config import parse_config
from foundation.errors import InputError
from foundation.training import Draw, TrainingConfig, seeded, train
from pretrain.__main__ import pretrain
from pretrain.config import PretrainConfig

LAUNCHED = {
    "ddp": {},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    **{
        f"zero{stage}": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
        for stage in (1, 2, 3)
    },
}


def pretend_launched(engine: str) -> None:
    for name in {name for variables in LAUNCHED.values() for name in variables}:
        os.environ.pop(name, None)
    os.environ.update(LAUNCHED[engine])
    for state in [PartialState._shared_state] if PartialState._shared_state else []:
        state["distributed_type"] = PROCESSES_ARE


class Cloud:
    """Random points. What happens to a process that reads data happens here."""

    def __init__(self, event: dict[str, Any]):
        self.event = event

    def __len__(self) -> int:
        return 64

    def __getitem__(self, draw: Draw) -> Tensor:
        return torch.randn(40, generator=seeded(draw.index))

    def collate(self, samples: list[Tensor]) -> Points:
        return Points(torch.stack(samples))


class Regression(nn.Module):
    """A net of odd sizes, so that no shard is as long as the next; `event` says what happens at a step of a process."""

    def __init__(self, event: dict[str, Any]):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(40, 67), nn.GELU(), nn.Linear(67, 3))
        self.event, self.calls = event, 0

    def forward(self, batch: Points) -> dict[str, Tensor]:
        self.calls += 1
        loss = (self.net(batch.x) - batch.x[:, :3] ** 2).square().mean()
        if self.calls == self.event.get("step") and int(os.environ["RANK"]) == self.event["rank"]:
            match self.event["what"]:
                case "nan":
                    loss = loss * float("nan")
                case "spike":
                    loss = loss * 1e6
                case "signal":
                    os.kill(os.getpid(), signal.SIGTERM)
                case "hang":
                    time.sleep(3600)
        return {"loss": loss}

    def learning_rate_scale(self, name: str) -> float:
        return 1.0


def stop_after(step: int, metrics: Path) -> None:
    """Send this process the signal that a scheduler sends, once the run has logged `step`."""

    def watch() -> None:
        while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    PartialState(cpu=True)
    PROCESSES_ARE = PartialState().distributed_type
    for job in json.loads(Path(sys.argv[1]).read_text()):
        pretend_launched(job["engine"])
        name = Path(job["pretrain"]["folder"] if "pretrain" in job else job["folder"]).name
        try:
            if "stop_after" in job and os.environ["RANK"] == "0":
                stop_after(job["stop_after"], Path(job["pretrain"]["folder"]) / "metrics.jsonl")
            if "pretrain" in job:
                pretrain(parse_config(PretrainConfig, job["pretrain"]))
            else:
                event = job.get("event", {})
                config = parse_config(TrainingConfig, job["training"])
                train(Regression(event), Cloud(event), config, Path(job["folder"]), label=job["folder"])
        except SystemExit as stopped:
            print(f"process {os.environ['RANK']} leaves {name} with {stopped.code}", flush=True)
        except InputError as error:
            print(f"process {os.environ['RANK']} refuses {name}: {error}", flush=True)
