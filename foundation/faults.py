"""What goes wrong while a run trains, and how it says so: bad steps, stop signals, lost workers, processes that hang."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from enum import IntEnum
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from torch import distributed

from foundation.errors import InputError

NORMS_KEPT = 100
NORMS_NEEDED = 50  # before that they say little, and the first steps of a run are wild anyway


class Trouble(IntEnum):
    """Why a step may not touch the weights. The largest over all processes is what all of them act on."""

    NONE = 0
    SPIKE = 1
    GRADIENT = 2
    LOSS = 3


class BadSteps:
    """Judges each step before it reaches the optimiser, and keeps the ledger of those that did not.

    A skipped step leaves weights, moments and averages as they were. It still counts as a step: order of samples and learning
    rate depend on the step alone, so the run after it is what it would have been with that batch left out.
    """

    def __init__(self, *, budget: int, spike_factor: float | None, ledger: list[dict[str, Any]], norms: list[float]):
        self.budget, self.spike_factor = budget, spike_factor
        self.ledger, self.norms = list(ledger), list(norms)

    def judge(self, loss: float, norm: float) -> Trouble:
        if not math.isfinite(loss):
            return Trouble.LOSS
        if not math.isfinite(norm):
            return Trouble.GRADIENT
        if self.spike_factor is not None and len(self.norms) >= NORMS_NEEDED:
            return Trouble.SPIKE if norm > self.spike_factor * self.usual else Trouble.NONE
        return Trouble.NONE

    @property
    def usual(self) -> float:
        """A large norm as it occurs, the upper decile. Where half of the studies have no lesion the median is next to nothing,
        and every step that had something to learn from was left out."""
        return quantiles(self.norms, n=10)[-1]

    def accept(self, norm: float) -> None:
        self.norms = [*self.norms[1 - NORMS_KEPT :], norm]

    def skip(self, step: int, trouble: Trouble, loss: float, norm: float, *, file: Path) -> dict[str, Any]:
        """The ledger's new row; an `InputError` when the budget is spent."""
        row = {"step": step, "skipped": trouble.name.lower(), "loss": _finite(loss), "gradient_norm": _finite(norm)}
        self.ledger.append(row)
        if len(self.ledger) > self.budget:
            rule, value = {
                Trouble.LOSS: ("the loss stays finite", loss),
                Trouble.GRADIENT: ("the gradient stays finite", norm),
                Trouble.SPIKE: (f"the gradient's norm stays within {self.spike_factor:g} times what is usual", norm),
            }[trouble]
            before = ", ".join(str(row["step"]) for row in self.ledger[:-1][-10:])
            raise InputError(
                rule,
                got=f"{value:g} at step {step}" + (f", after the skipped steps {before}" if before else ""),
                remedy="Lower training.learning_rate, set training.precision=fp32, or allow more by "
                "training.skip_budget; the last checkpoint is intact.",
                file=file,
            )
        return row


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


class Interruption:
    """Turns Ctrl-C and SIGTERM into a wish that the loop grants after the step; a second one is not held back."""

    wanted = False

    def __enter__(self) -> Interruption:
        self._previous = {}
        for kind in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[kind] = signal.signal(kind, self._ask)
            except ValueError:  # not the main thread (the page, a test runner): signals are not ours there
                break
        return self

    def _ask(self, kind: int, frame: Any) -> None:
        self.wanted = True
        signal.signal(kind, self._previous[kind])

    def __exit__(self, *error: object) -> None:
        for kind, previous in self._previous.items():
            signal.signal(kind, previous)


# ------------------------------------------------------------------------------------------------ loader workers


def prepare_worker(worker: int) -> None:
    """Runs first in a loader worker: it inherited the loop's signal handlers, with which it could not be ended."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the loop decides when workers end
    torch.set_num_threads(1)


class Feed:
    """A loader's batches, and the end of its workers, whatever ends the loop.

    torch reports a dead worker from a signal handler, wherever the program is just then, and again whenever any other child
    process ends. Here it may only speak while a batch is waited for.
    """

    def __init__(self, loader: Iterable[Any], *, num_workers: int, timeout_s: float, reads: Callable[[int], str]):
        """`reads` says in words what the batch of a number, counted from 0, is made of."""
        self._batches = iter(loader)
        self._num_workers, self._timeout_s, self._reads = num_workers, timeout_s, reads
        self._number = 0
        self._is_waiting = self._has_missed = False

    def __enter__(self) -> Feed:
        self._torchs = signal.getsignal(signal.SIGCHLD)
        self._is_ours = callable(self._torchs) and threading.current_thread() is threading.main_thread()
        if self._is_ours:
            signal.signal(signal.SIGCHLD, self._child_ended)
        return self

    def __exit__(self, *error: object) -> None:
        # By name and not by letting go of it: a traceback may hold it for as long as the error is looked at.
        end = getattr(self._batches, "_shutdown_workers", None)
        if end is not None:
            end()
        if self._is_ours:
            signal.signal(signal.SIGCHLD, self._torchs)

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Any:
        try:
            batch = self._awaited()
        except (RuntimeError, ConnectionError, EOFError) as error:
            if self._num_workers == 0:
                raise
            worker, reads = self._number % self._num_workers, self._reads(self._number)
            raise worker_trouble(error, worker=worker, reads=reads, timeout_s=self._timeout_s) or error from None
        self._number += 1
        return batch

    def _awaited(self) -> Any:
        """The next batch. Once this is left the handler is silent: it may not end the telling of what it already ended."""
        self._is_waiting = True
        try:
            if self._has_missed:
                self._has_missed = False
                self._torchs(signal.SIGCHLD, None)  # pyright: ignore[reportCallIssue, reportOptionalCall]
            return next(self._batches)
        finally:
            self._is_waiting = False

    def _child_ended(self, kind: int, frame: Any) -> None:
        if self._is_waiting:
            self._torchs(kind, frame)  # pyright: ignore[reportCallIssue, reportOptionalCall]
        else:
            self._has_missed = True


def worker_trouble(error: Exception, *, worker: int, reads: str, timeout_s: float) -> InputError | None:
    """`error` as the user's if it says that a loader worker died or hangs; `worker` is the one whose turn it was."""
    text = str(error)
    if "DataLoader timed out" in text:
        return InputError(
            "a loader worker delivers its batch in time",
            got=f"nothing from worker {worker} in {timeout_s:g} s, for {reads}",
            remedy="Look at those samples and the disk they are on, or raise training.hang_timeout_s.",
        )
    died = re.search(r"DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\) ([^.]*)", text)
    if died or isinstance(error, ConnectionError | EOFError):  # the second when it died while it handed a batch over
        which = f"the one with process id {died[1].strip()} {died[2].strip()}" if died else f"worker {worker} is gone"
        return InputError(
            "loader workers stay alive",
            got=f"{which} near {reads}",
            remedy="Killed usually means out of memory: lower training.num_workers or the sample's size. "
            "The last checkpoint is intact.",
        )
    return None


# ------------------------------------------------------------------------------------------------ processes that hang


class Watchdog:
    """Ends the run, by name, when a process makes no progress for `timeout_s`.

    Each process writes what it is doing into the store that the launcher holds. A thread compares clocks; the loop itself may
    be stuck in a collective that never returns, on gloo and NCCL alike, and a collective's own error names nobody.
    """

    GRACE_S = 3.0  # a loader worker's own timeout, which can name the samples, speaks first
    DOINGS = ("reading data", "computing", "measuring", "saving")  # in the order of a step

    def __init__(self, *, label: str, timeout_s: float):
        self.label, self.timeout_s = label, timeout_s
        self.watches = distributed.is_initialized() and distributed.get_world_size() > 1
        if self.watches:
            # The rendezvous store has no public name, and a second one would need a port of its own.
            self._store = distributed.distributed_c10d._get_default_store()
            self._rank, self._world = distributed.get_rank(), distributed.get_world_size()
        self._over = threading.Event()

    def __enter__(self) -> Watchdog:
        if self.watches:
            self.beat(0, self.DOINGS[0])
            distributed.barrier()  # nobody looks for a beat that was never written
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def beat(self, step: int, doing: str) -> None:
        assert doing in self.DOINGS, doing
        if self.watches:
            self._since = time.monotonic()
            beat = {"step": step, "doing": doing, "host": socket.gethostname(), "pid": os.getpid()}
            self._store.set(self._key(self._rank), json.dumps(beat))

    def _key(self, rank: int) -> str:
        return f"larmor/beat/{rank}"

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.timeout_s / 4)):
            silent_s = time.monotonic() - self._since
            if silent_s > self.timeout_s + self.GRACE_S:
                try:
                    print(f"{self.label}: {self._accusation(silent_s)}", file=sys.stderr, flush=True)
                finally:
                    os._exit(1)  # the main thread cannot be woken; the launcher ends the other processes

    def _accusation(self, silent_s: float) -> InputError:
        beats = [json.loads(self._store.get(self._key(rank))) for rank in range(self._world)]
        places = [(beat["step"], self.DOINGS.index(beat["doing"])) for beat in beats]
        last = min(places)
        who = ", ".join(
            f"process {rank} of {self._world} (id {beat['pid']} on {beat['host']})"
            for rank, (beat, place) in enumerate(zip(beats, places))
            if place == last
        )
        if max(places) == last:
            who = "every process"
        return InputError(
            "processes keep pace with each other",
            got=f"{who} {self.DOINGS[last[1]]} of step {last[0]} for {silent_s:.0f} s",
            remedy="Look at that host, or raise training.hang_timeout_s. The same command continues from the last checkpoint.",
        )
