"""The one training loop. It knows one verb: an objective takes a batch and returns a dict with `loss`.

What a step sees is a pure function of (seed, step): the order of samples and the random draws inside each sample do not
depend on the number of processes or on where the run was stopped, and dropout is seeded anew at each step and process. A
checkpoint therefore stores integers and tensors, no iterators and no random states.

What runs the step is in `engines`, what can go wrong in `faults`, what a run leaves to continue from in `runstate`.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from pydantic import Field
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from foundation.config import Config, check_continues
from foundation.engines import (
    Average,
    Crew,
    Engine,
    EngineName,
    check_engine,
    engine_class,
    make_accelerator,
    preferred_attention,
    put_tensors,
    running_engine,
    saved_buffers,
)
from foundation.errors import InputError
from foundation.faults import BadSteps, Feed, Interruption, Trouble, Watchdog, prepare_worker
from foundation.files import write_aside
from foundation.meters import Meter, SaysWork, matmul_rate, timed
from foundation.progress import progress
from foundation.runstate import BackgroundWriter, RunState, newest_good_checkpoint, sweep
from foundation.scaling import as_bytes, memory_of, traffic_of

Precision = Literal["auto", "fp32", "bf16"]
Tracker = Literal["tensorboard", "wandb", "trackio"]
Record = dict[str, Any]  # one row of metrics.jsonl: step, loss, learning_rate, seconds and what the objective says


class TrainingConfig(Config):
    """`batch_size` counts samples over all processes; one epoch passes over every sample once.

    A step's samples go through the model in `accumulate` parts. `engine` and `processes` are what must be running: the
    launcher decides, and a run that is not what its config says is refused. A step whose loss or gradient is not finite, or
    whose gradient is `spike_factor` times what is usual (the upper decile of the last hundred), is left out; after `skip_budget`
    of them the run ends. Nothing is waited for longer than `hang_timeout_s`. `compile` compiles each transformer block.
    """

    steps: Annotated[int, Field(ge=1)] = 200
    batch_size: Annotated[int, Field(ge=1)] = 8
    accumulate: Annotated[int, Field(ge=1)] = 1
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    warmup_steps: int = 20
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    ema_decay: float | None = None
    precision: Precision = "auto"
    compile: bool = False
    engine: Literal["any", "single", "ddp", "zero1", "zero2", "zero3", "fsdp2"] = "any"
    processes: int | None = None
    seed: int = 0
    num_workers: int = 0
    checkpoint_every: Annotated[int, Field(ge=1)] = 500
    log_every: Annotated[int, Field(ge=1)] = 10
    trackers: tuple[Tracker, ...] = ()
    skip_budget: Annotated[int, Field(ge=0)] = 10
    spike_factor: float | None = 20.0
    hang_timeout_s: Annotated[float, Field(gt=0)] = 600.0


# What a run may change when it continues: how long, how often it reports and saves, and on what it runs.
FREE = {
    "steps", "checkpoint_every", "log_every", "trackers", "num_workers", "accumulate", "compile", "engine", "processes",
    "skip_budget", "spike_factor", "hang_timeout_s",
}  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """Which sample of a dataset, and the seed of everything random in this use of it."""

    index: int
    seed: int


@runtime_checkable
class Samples(Protocol):
    """A dataset of this loop: `dataset[Draw]` gives a sample, `collate` makes a batch that has `.to(device)`."""

    def __len__(self) -> int: ...
    def __getitem__(self, draw: Draw) -> Any: ...
    def collate(self, samples: list[Any]) -> Any: ...


@runtime_checkable
class Gauge(Protocol):
    """Something other than the loss that is measured on the way. All processes call `measure` together, with what they train.

    Training ends early once the records so far are `enough`; that must be a plain function of them, for a run that continues.
    """

    every: int

    def measure(self, objective: nn.Module) -> dict[str, float]: ...

    def enough(self, records: Sequence[Record]) -> bool: ...


class SampleOrder:
    """The draws of each step for one process: a slice of the global batch, which is a pure function of (seed, step)."""

    def __init__(self, num_samples: int, config: TrainingConfig, *, start: int, rank: int, world_size: int):
        if config.batch_size % (world_size * config.accumulate):
            parts = f"{world_size} processes" + (f" in {config.accumulate} parts" if config.accumulate > 1 else "")
            raise InputError(
                "the global batch divides over the processes",
                got=f"batch_size {config.batch_size} over {parts}",
                remedy=f"Set training.batch_size to a multiple of {world_size * config.accumulate}.",
            )
        self.num_samples, self.config, self.start = num_samples, config, start
        self.rank, self.per_process = rank, config.batch_size // world_size

    def __len__(self) -> int:
        return (self.config.steps - self.start) * self.config.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        """One list for each part of each step."""
        return (self.part(number) for number in range(len(self)))

    def part(self, number: int) -> list[Draw]:
        """This process's draws of a part of a step, counted from the start."""
        steps, part = divmod(number, self.config.accumulate)
        size = self.per_process // self.config.accumulate
        first = (self.start + steps) * self.config.batch_size + self.rank * self.per_process + part * size
        return [self.draw(position) for position in range(first, first + size)]

    def words(self, number: int) -> str:
        """Which samples those are, for a message."""
        samples = ", ".join(str(draw.index) for draw in self.part(number)[:8])
        return f"step {self.start + 1 + number // self.config.accumulate} (samples {samples})"

    def draw(self, position: int) -> Draw:
        """The sample at a position of the endless sequence of shuffled epochs."""
        epoch, within = divmod(position, self.num_samples)
        return Draw(int(_shuffled(self.num_samples, self.config.seed, epoch)[within]), fold(self.config.seed, position))


@lru_cache(maxsize=2)
def _shuffled(num_samples: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(num_samples, generator=seeded(seed, epoch))


def fold(*numbers: int) -> int:
    """Several integers as one well-mixed 63-bit seed (splitmix64), the same on every machine."""
    state = 0
    for number in numbers:
        state = (state ^ (number & (2**64 - 1))) + 0x9E3779B97F4A7C15 & (2**64 - 1)
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & (2**64 - 1)
        state ^= state >> 31
    return state >> 1


def seeded(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(fold(*numbers))


def cpu_has_fast_bf16() -> bool:
    """Whether matrix products in bf16 run on units made for them; emulated bf16 is slower than fp32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def resolve_precision(wanted: Precision) -> Literal["no", "bf16"]:
    """What 'auto' means on this machine, in accelerate's words."""
    if wanted != "auto":
        return "bf16" if wanted == "bf16" else "no"
    fast = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else cpu_has_fast_bf16()
    return "bf16" if fast else "no"


def software_versions() -> dict[str, str]:
    names = ("larmor", "torch", "timm", "peft", "monai", "accelerate", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


@dataclass(frozen=True)
class TrainingResult:
    """Where a finished run left its records, and how long it trained; `objective` carries the averaged weights if any.

    Under an engine that cuts weights apart, `objective` carries them on the main process.
    """

    folder: Path
    records: list[Record]
    seconds: float

    @property
    def last_loss(self) -> float:
        """Of the last step that was logged and not skipped."""
        losses = [record["loss"] for record in self.records if "loss" in record and "skipped" not in record]
        return losses[-1] if losses else float("nan")


def train(
    objective: nn.Module,
    dataset: Samples,
    config: TrainingConfig,
    folder: Path,
    *,
    label: str,
    accelerator: Accelerator | None = None,
    on_start: Callable[[str], None] = print,
    rehearse: bool = False,
    gauge: Gauge | None = None,
    about: Callable[[], Mapping[str, str]] = dict,
    on_accept: Callable[[], None] | None = None,
) -> TrainingResult:
    """Train `objective` in place, continuing from the newest good checkpoint in `folder` if there is one.

    Writes `metrics.jsonl` (one row every `log_every` steps) and checkpoints. Ctrl-C or SIGTERM, to any process, finishes the
    step, saves a checkpoint and exits; the same command continues. A folder that holds checkpoints of other settings is
    refused. `rehearse` does everything up to the first update, on a real batch, says what it found and writes nothing.
    `gauge` adds figures to the records, at intervals of its own. `about` says what else a checkpoint may not differ in, the
    data for one; it and `on_accept` are called on the main process, the second once the folder is known to belong to this run.
    """
    accelerator = accelerator or make_accelerator()
    name = what_runs(accelerator, config)
    crew = Crew(accelerator)
    say = on_start if crew.is_main else _silence
    order = SampleOrder(len(dataset), config, start=0, rank=crew.rank, world_size=crew.world)

    trackers = _installed_trackers(config, folder)  # a rehearsal too says what is missing
    identity = _identity(objective, config, label) | {"samples": str(len(dataset))}

    def read_state() -> RunState | None:
        identity.update(
            about()
        )  # by the main process alone: to fingerprint a collection is to look at all of its files
        return _read_state(folder, identity, say, tidy=not rehearse)

    state = crew.state_from_main(read_state)
    if state is not None:
        put_tensors(objective, state.weights)
    if crew.is_main and on_accept is not None and not rehearse:
        on_accept()
    start = order.start = 0 if state is None else state.step
    engine = engine_class(name)(
        accelerator,
        name,
        objective,
        groups=lambda module: _parameter_groups(module, config),
        bf16=resolve_precision(config.precision) == "bf16",
        clip_norm=config.clip_norm,
        per_process=order.per_process,
        accumulate=config.accumulate,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True),
        compile_blocks=config.compile,
    )
    if state is not None:
        engine.set_moments(state)
    average = None if config.ema_decay is None else Average(engine, config.ema_decay, state and state.average)
    bad_steps = BadSteps(
        budget=config.skip_budget,
        spike_factor=config.spike_factor,
        ledger=state.ledger if state else [],
        norms=state.norms if state else [],
    )
    del state
    schedule = CosineLRScheduler(
        engine.torch_optimizer,
        t_initial=max(1, config.steps),
        lr_min=config.final_learning_rate,
        warmup_t=config.warmup_steps,
        warmup_lr_init=config.final_learning_rate,
        t_in_epochs=False,
    )
    log = _Log(folder, accelerator, config, trackers, label=label, start=start, is_main=crew.is_main and not rehearse)
    peak_flops = None
    if isinstance(objective, SaysWork) and start < config.steps:
        peak_flops = matmul_rate(str(engine.device), engine.bf16, torch.get_num_threads())
    meter = Meter(world=crew.world, peak_flops=peak_flops)
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        feed = Feed(
            _loader(dataset, order, config),
            num_workers=config.num_workers,
            timeout_s=config.hang_timeout_s,
            reads=lambda number: order.words(number),
        )
        batches = timed(stack.enter_context(feed), meter)
        attention = stack.enter_context(preferred_attention(engine.device))
        say(
            f"{label}: {_what_it_is(engine, objective, attention)}, {len(dataset)} samples, steps {start} to {config.steps}"
        )
        say(f"{label}: {_what_it_costs(engine, objective, averaged=average is not None)}")
        writer = stack.enter_context(BackgroundWriter(folder / "checkpoints"))
        watchdog = stack.enter_context(Watchdog(label=label, timeout_s=config.hang_timeout_s))
        bar = stack.enter_context(
            progress(total=config.steps, initial=start, label=label, unit="step", enabled=crew.is_main)
        )
        engine.model.train()

        def is_enough() -> bool:
            return bool(crew.agree(int(gauge is not None and crew.is_main and gauge.enough(log.records)))[0])

        for step in range(start + 1, start if is_enough() else config.steps + 1):
            losses: dict[str, Tensor] = {}
            for part in range(config.accumulate):
                watchdog.beat(step, "reading data")
                batch = next(batches)
                if isinstance(batch, InputError):
                    raise batch
                watchdog.beat(step, "computing")
                if part == 0:
                    torch.manual_seed(fold(config.seed, step, crew.rank))
                    schedule.step_update(step)
                work = objective.work(batch) if isinstance(objective, SaysWork) else None
                if work is not None and (step, part) == (start + 1, 0):
                    say(f"{label}: about {work.times(config.accumulate * crew.world)} a step")
                meter.count(order.per_process // config.accumulate, work)
                _add(losses, engine.learn(batch, last=part == config.accumulate - 1))

            loss, norm = float(losses["loss"]), engine.gradient_norm()
            if rehearse:
                engine.discard()
                say(f"{label}: loss {loss:.4g}, gradient norm {norm:.4g}, {meter.seconds:.2f} s for the first step")
                if engine.device.type == "cuda":
                    say(
                        f"{label}: at most {as_bytes(float(torch.cuda.max_memory_allocated()))} of GPU memory were taken"
                    )
                return TrainingResult(folder, [], log.seconds)
            worst, stop = crew.agree(bad_steps.judge(loss, norm), interruption.wanted)
            trouble, last = Trouble(worst), step == config.steps
            if trouble:
                engine.discard()
                loss = crew.mean({"loss": losses["loss"]})["loss"]  # it may have been another process's
                row = bad_steps.skip(step, trouble, loss, norm, file=folder)
                log.add(row, engine.torch_optimizer)
                say(f"{label}: step {step} skipped ({row['skipped']}), {len(bad_steps.ledger)} of {config.skip_budget}")
            else:
                engine.step()
                bad_steps.accept(norm)
                if average is not None:
                    average.update(step)
            is_gauged = gauge is not None and (step % gauge.every == 0 or last)
            if not trouble and (step % config.log_every == 0 or last or is_gauged):
                record = {**crew.mean(losses), "step": step, "gradient_norm": norm, **meter.reading()}
                if gauge is not None and is_gauged:
                    watchdog.beat(step, "measuring")
                    engine.bring_home()
                    record |= gauge.measure(objective)
                log.add(record, engine.torch_optimizer)
                bar.set_postfix(_postfix(record), refresh=False)
            if is_gauged and not last and is_enough():
                say(f"{label}: enough at step {step}")
                last = True
            bar.update()
            writer.check()
            if step % config.checkpoint_every == 0 or last or stop:
                watchdog.beat(step, "saving")
                _save(engine, writer, step, identity, bad_steps, average)
            if last:
                break
            if stop:
                writer.join()
                crew.agree(0)  # a process that left sooner would have the launcher kill the one that still writes
                say(f"Stopped at step {step}; the same command continues from {folder}.")
                raise SystemExit(130)
    engine.finish(None if average is None else average.wholes())
    log.close()
    return TrainingResult(folder, log.records, log.seconds)


def what_runs(accelerator: Accelerator, config: TrainingConfig) -> EngineName:
    """The engine that runs, which is the one that the config asks for."""
    name = running_engine(accelerator)
    check_engine(name, accelerator.num_processes, wanted=config.engine, wanted_processes=config.processes)
    return name


def _silence(text: str) -> None:
    """What processes other than the main one say."""


def _postfix(record: Record) -> dict[str, str]:
    said = {"loss": f"{record['loss']:.3f}", "samples/s": f"{record['samples_per_s']:.3g}"}
    if "flop_utilisation" in record:
        said["of machine"] = f"{record['flop_utilisation']:.0%}"
    return said | {"waiting": f"{record['waiting_for_data']:.0%}"}


def _add(sums: dict[str, Tensor], losses: dict[str, Tensor]) -> None:
    for name, value in losses.items():
        sums[name] = sums[name] + value if name in sums else value


def _what_it_is(engine: Engine, objective: nn.Module, attention: str) -> str:
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    return (
        f"{engine.name} on {engine.world} x {engine.device.type}, {'bf16' if engine.bf16 else 'fp32'}, "
        f"attention {attention}, {trained / 1e6:.2f} M trained weights"
    )


def _what_it_costs(engine: Engine, objective: nn.Module, *, averaged: bool) -> str:
    """By formula; a dry run on the machine itself shows whether it fits."""
    weights = sum(p.numel() for p in objective.parameters())
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    memory = memory_of(engine.name, engine.world, weights=weights, trained=trained, averaged=averaged)
    sent = traffic_of(engine.name, engine.world, trained=trained)
    return f"each process keeps {memory}, and sends {as_bytes(sent)} a step"


def _parameter_groups(objective: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """Weights that learn at the same rate and with the same decay together; vectors (norms, biases) do not decay."""
    scale: Callable[[str], float] = objective.learning_rate_scale  # pyright: ignore[reportAssignmentType]
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((scale(name), decay), []).append(parameter)
    return [
        {"params": group, "lr": config.learning_rate * rate, "weight_decay": decay}
        for (rate, decay), group in groups.items()
    ]


# ------------------------------------------------------------------------------------------------ stop and continue


def _identity(objective: nn.Module, config: TrainingConfig, label: str) -> dict[str, str]:
    """What a checkpoint may not differ in: what is trained, and every setting that is not free."""
    settings = {f"training.{name}": repr(value) for name, value in config if name not in FREE}
    tensors = [*objective.named_parameters(), *saved_buffers(objective)]
    shapes = str([(name, tuple(one.shape), one.requires_grad) for name, one in tensors])
    return {"label": label, **settings, "weights": hashlib.sha256(shapes.encode()).hexdigest()[:16]}


def _read_state(folder: Path, identity: dict[str, str], say: Callable[[str], None], *, tidy: bool) -> RunState | None:
    """The newest good checkpoint, if there is any and it belongs to this run."""
    checkpoints = folder / "checkpoints"
    if tidy:
        sweep(checkpoints)
    found = newest_good_checkpoint(checkpoints, say=say)
    if found is None:
        return None
    state = RunState.read(found[1])
    check_continues("run", state.identity, identity, folder)
    return state


def _save(
    engine: Engine,
    writer: BackgroundWriter,
    step: int,
    identity: dict[str, str],
    bad_steps: BadSteps,
    average: Average | None,
) -> None:
    """Copy the run's state to the main process's memory; the writer takes it from there while training goes on."""
    writer.join()  # the copy goes where the last one lay
    state = engine.snapshot(step)
    if average is not None:
        engine.keep_average(state, average.parts)
    if state is not None:
        state.identity, state.ledger, state.norms = identity, list(bad_steps.ledger), list(bad_steps.norms)
        writer.save(state)


# ------------------------------------------------------------------------------------------------ records


class _Log:
    """metrics.jsonl, and the trackers that the config names. Records later than the checkpoint are dropped: they will recur."""

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        config: TrainingConfig,
        trackers: list[Any],
        *,
        label: str,
        start: int,
        is_main: bool,
    ):
        self.path, self.is_main = folder / "metrics.jsonl", is_main
        there = read_records(self.path) if is_main and self.path.exists() else []
        self.records = [record for record in there if record["step"] <= start]
        if is_main and self.path.exists():  # also mends a last line cut short by a crash
            with write_aside(self.path) as aside:
                aside.write_text("".join(json.dumps(record) + "\n" for record in self.records))
        self._spent = self.records[-1]["seconds"] if self.records else 0.0
        self._began = time.perf_counter()
        self._accelerator = accelerator if config.trackers and is_main else None
        if self._accelerator is not None:
            _open_trackers(self._accelerator, trackers, config, folder, label)

    @property
    def seconds(self) -> float:
        return self._spent + time.perf_counter() - self._began

    def add(self, record: Record, optimizer: torch.optim.Optimizer) -> None:
        record |= {"learning_rate": optimizer.param_groups[0]["lr"], "seconds": self.seconds}
        self.records.append(record)
        if self.is_main:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        if self._accelerator is not None:
            numbers = {key: value for key, value in record.items() if isinstance(value, float)}
            self._accelerator.log(numbers, step=record["step"])

    def close(self) -> None:
        if self._accelerator is not None:
            for tracker in self._accelerator.trackers:  # accelerate's `end_training` also takes the processes apart
                tracker.finish()


def _open_trackers(
    accelerator: Accelerator, trackers: list[Any], config: TrainingConfig, folder: Path, label: str
) -> None:
    accelerator.project_configuration.set_directories(str(folder))
    accelerator.log_with = trackers
    settings = {name: value for name, value in config if isinstance(value, (int, float, str))}
    accelerator.init_trackers(label.replace(" ", "-"), config=settings)


def _installed_trackers(config: TrainingConfig, folder: Path) -> list[Any]:
    """What accelerate knows the config's trackers by; all of them must be there."""
    from accelerate.tracking import filter_trackers

    found = []
    try:
        found = filter_trackers(list(config.trackers), str(folder)) if config.trackers else []
        missing = set(config.trackers) - {getattr(one, "value", str(one)) for one in found}
    except ImportError as error:
        missing = {error.name or str(error)}
    if missing:
        raise InputError(
            "training.trackers are installed",
            got=", ".join(sorted(missing)),
            remedy="Install them beside Larmor, or take them out: metrics.jsonl is written anyway.",
        )
    return found


def read_records(path: Path) -> list[Record]:
    """The rows of a metrics.jsonl; a last line cut short by a crash is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


# ------------------------------------------------------------------------------------------------ data


def _loader(dataset: Samples, order: SampleOrder, config: TrainingConfig) -> DataLoader:
    return DataLoader(
        _AsDataset(dataset),
        batch_sampler=order,
        num_workers=config.num_workers,
        collate_fn=_Collate(dataset),
        worker_init_fn=prepare_worker,
        timeout=config.hang_timeout_s if config.num_workers else 0,
    )


class _AsDataset(Dataset):
    """torch's DataLoader wants its own class; ours only promise what `Samples` says.

    What is wrong with a file travels as a value: as an exception torch would take it apart and lose its kind.
    """

    def __init__(self, samples: Samples):
        self.samples = samples

    def __getitem__(self, index: Draw) -> Any:
        try:
            return self.samples[index]
        except InputError as error:
            return error


class _Collate:
    def __init__(self, samples: Samples):
        self.samples = samples

    def __call__(self, samples: list[Any]) -> Any:
        wrong = next((sample for sample in samples if isinstance(sample, InputError)), None)
        try:
            return self.samples.collate(samples) if wrong is None else wrong
        except InputError as error:
            return error
