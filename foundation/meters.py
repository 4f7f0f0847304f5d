"""How fast a run is, against what this machine can do: samples, tokens and products per second, and the wait for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch


@dataclass(frozen=True)
class Work:
    """What a batch asks of the model: tokens that went through it, and multiply-adds counted as two, backward included."""

    tokens: int
    flops: float

    def times(self, number: int) -> Work:
        return Work(number * self.tokens, number * self.flops)

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens and {self.flops:.3g} operations"


@runtime_checkable
class SaysWork(Protocol):
    """An objective that can say what a batch costs; where it cannot, or says nothing, the loop reports samples alone."""

    def work(self, batch: Any) -> Work | None: ...


def transformer_flops(tokens: int, width: int, depth: int, mlp_ratio: float) -> float:
    """Forward, one bag of n tokens, D wide: 8 n D^2 for queries, keys, values and the way out, 6 r n D^2 for the three
    matrices of a SwiGLU of ratio r, 4 n^2 D for scores and what is made of them, in each block."""
    return depth * ((8 + 6 * mlp_ratio) * tokens * width**2 + 4 * tokens**2 * width)


class Meter:
    """Sums up between two readings. Time is the clock's, so a checkpoint or a slow disk shows."""

    def __init__(self, *, world: int, peak_flops: float | None):
        self.world, self.peak_flops = world, peak_flops
        self._restart()

    def _restart(self) -> None:
        self._began = time.perf_counter()
        self._samples, self._tokens, self._flops, self._waited_s = 0, 0, 0.0, 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def count(self, samples: int, work: Work | None) -> None:
        """One process's share of a batch; the others are taken to do as much."""
        self._samples += samples * self.world
        if work is not None:
            self._tokens += work.tokens * self.world
            self._flops += work.flops

    def waited(self, seconds: float) -> None:
        self._waited_s += seconds

    def reading(self) -> dict[str, float]:
        """Since the last one."""
        passed = max(time.perf_counter() - self._began, 1e-9)
        reading = {"samples_per_s": self._samples / passed, "waiting_for_data": self._waited_s / passed}
        if self._tokens:
            reading["tokens_per_s"] = self._tokens / passed
        if self._flops and self.peak_flops:
            reading["flop_utilisation"] = self._flops / passed / self.peak_flops
        self._restart()
        return reading


def timed(batches: Iterator[Any], meter: Meter) -> Iterator[Any]:
    """The same batches; the time each was waited for goes to `meter`."""
    while True:
        began = time.perf_counter()
        try:
            batch = next(batches)
        except StopIteration:
            return
        meter.waited(time.perf_counter() - began)
        yield batch


@lru_cache(maxsize=4)
def matmul_rate(device: str, bf16: bool, threads: int) -> float:
    """Operations per second of one large matrix product on this device, in the run's precision: the best of a few.

    Random numbers, because zeros switch fewer transistors and a GPU runs them a tenth faster.
    """
    edge = 8192 if device.startswith("cuda") else 1024
    dtype = torch.bfloat16 if bf16 else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(edge, edge, generator=generator, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        torch.matmul(left, right)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * edge**3 / best
