"""The one training loop, on accelerate. It knows one verb: an objective takes a batch and returns a dict with `loss`.

What a step sees is a pure function of (seed, step): the order of samples and the random draws inside each sample do not
depend on the number of processes or on where the run was stopped, and dropout is seeded anew at each step and process. A
checkpoint therefore stores integers and tensors, no iterators and no random states.
"""

from __future__ import annotations

import hashlib
import json
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from pydantic import Field
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from foundation.checkpoint import newest_good_checkpoint, publish_checkpoint
from foundation.config import Config
from foundation.errors import InputError
from foundation.files import write_aside

Precision = Literal["auto", "fp32", "bf16"]
Record = dict[str, Any]  # one row of metrics.jsonl: step, loss, learning_rate, seconds and what the objective says
IDENTITY = "identity.json"


class TrainingConfig(Config):
    """`batch_size` counts samples over all processes; one epoch passes over every sample once."""

    steps: Annotated[int, Field(ge=1)] = 200
    batch_size: Annotated[int, Field(ge=1)] = 8
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    warmup_steps: int = 20
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    ema_decay: float | None = None
    precision: Precision = "auto"
    seed: int = 0
    num_workers: int = 0
    checkpoint_every: Annotated[int, Field(ge=1)] = 500
    log_every: Annotated[int, Field(ge=1)] = 10


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


class SampleOrder:
    """The draws of each step for one process: a slice of the global batch, which is a pure function of (seed, step)."""

    def __init__(self, num_samples: int, config: TrainingConfig, *, start: int, rank: int, world_size: int):
        if config.batch_size % world_size:
            raise InputError(
                "the global batch divides over the processes",
                got=f"batch_size {config.batch_size} over {world_size}",
                remedy=f"Set training.batch_size to a multiple of {world_size}.",
            )
        self.num_samples, self.config, self.start = num_samples, config, start
        self.rank, self.per_process = rank, config.batch_size // world_size

    def __len__(self) -> int:
        return self.config.steps - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.start, self.config.steps):
            first = step * self.config.batch_size + self.rank * self.per_process
            yield [self.draw(position) for position in range(first, first + self.per_process)]

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


def make_accelerator(precision: Precision) -> Accelerator:
    if not torch.cuda.is_available():
        PartialState(cpu=True)  # else every rank of a CPU launch believes that it is alone (accelerate 1.15)
    # accelerate keeps the first precision of a process for ever; several runs in one process may differ in it.
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=resolve_precision(precision))


def software_versions() -> dict[str, str]:
    names = ("larmor", "torch", "timm", "peft", "monai", "accelerate", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


@dataclass(frozen=True)
class TrainingResult:
    """Where a finished run left its records, and how long it trained; `objective` carries the averaged weights if any."""

    folder: Path
    records: list[Record]
    seconds: float


def train(
    objective: nn.Module,
    dataset: Samples,
    config: TrainingConfig,
    folder: Path,
    *,
    label: str,
    accelerator: Accelerator | None = None,
    on_start: Callable[[str], None] = print,
) -> TrainingResult:
    """Train `objective` in place, continuing from the newest good checkpoint in `folder` if there is one.

    Writes `metrics.jsonl` (one row every `log_every` steps) and checkpoints. Ctrl-C or SIGTERM finishes the step, saves a
    checkpoint and exits; the same command continues. A loss or gradient that is not finite stops the run before it touches a
    weight. A folder that holds checkpoints of other settings is refused.
    """
    accelerator = accelerator or make_accelerator(config.precision)
    main = accelerator.is_main_process
    parameters = _parameter_groups(objective, config)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=config.betas, fused=True)
    ema = ModelEmaV3(objective, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        plugin = accelerator.state.deepspeed_plugin
        assert plugin is not None
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.batch_size // accelerator.num_processes
    model, optimizer = accelerator.prepare(objective, optimizer)
    if ema is not None:
        ema.to(accelerator.device)
        accelerator.register_for_checkpointing(ema)
    schedule = CosineLRScheduler(
        _inner(optimizer),
        t_initial=max(1, config.steps),
        lr_min=config.final_learning_rate,
        warmup_t=config.warmup_steps,
        warmup_lr_init=config.final_learning_rate,
        t_in_epochs=False,
    )
    identity = _identity(objective, config, label)
    start, records = _resume(accelerator, folder, identity)
    spent = records[-1]["seconds"] if records else 0.0
    order = SampleOrder(
        len(dataset), config, start=start, rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    loader = DataLoader(
        _AsDataset(dataset),
        batch_sampler=order,
        num_workers=config.num_workers,
        collate_fn=dataset.collate,
        pin_memory=accelerator.device.type == "cuda",
        persistent_workers=config.num_workers > 0,
    )
    if main:
        trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
        on_start(
            f"{label}: {_engine(accelerator)} on {accelerator.num_processes} x {accelerator.device.type}, "
            f"{accelerator.mixed_precision if accelerator.mixed_precision != 'no' else 'fp32'}, "
            f"{trained / 1e6:.2f} M trained weights, {len(dataset)} samples, steps {start} to {config.steps}"
        )
    began, step = time.perf_counter(), start
    model.train()
    with (
        _Interruption() as interruption,
        progress(total=config.steps, initial=start, label=label, unit="step", enabled=main) as bar,
    ):
        for step, batch in enumerate(loader, start=start + 1):
            torch.manual_seed(fold(config.seed, step, accelerator.process_index))
            schedule.step_update(step)
            with accelerator.autocast():
                losses = model(batch.to(accelerator.device))
            loss = losses["loss"]
            _check_finite("loss", loss, step, folder)
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(objective.parameters(), config.clip_norm)
            if norm is not None:  # DeepSpeed clips inside its own step and reports none here
                _check_finite("gradient", torch.as_tensor(norm), step, folder)
            optimizer.step()
            optimizer.zero_grad()
            if ema is not None:
                ema.update(accelerator.unwrap_model(model), step=step)
            last = step == config.steps
            if step % config.log_every == 0 or last:
                record = {name: float(value) for name, value in accelerator.reduce(_detached(losses), "mean").items()}
                record |= {"step": step, "learning_rate": optimizer.param_groups[0]["lr"]}
                record |= {} if norm is None else {"gradient_norm": float(norm)}
                record["seconds"] = spent + time.perf_counter() - began
                records.append(record)
                bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
                if main:
                    _append_record(folder, record)
            bar.update()
            if step % config.checkpoint_every == 0 or last or interruption.wanted:
                _save(accelerator, folder, step, identity)
            if interruption.wanted and not last:
                if main:
                    on_start(f"Stopped at step {step}; the same command continues from {folder}.")
                raise SystemExit(130)
    if ema is not None:
        accelerator.unwrap_model(model).load_state_dict(ema.module.state_dict())
    return TrainingResult(folder, records, spent + time.perf_counter() - began)


def _engine(accelerator: Accelerator) -> str:
    kind = accelerator.distributed_type
    return "one process" if kind == DistributedType.NO else kind.value.lower().replace("_", " ")


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


def _detached(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().float() for name, value in losses.items()}


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """timm's schedules insist on a torch optimizer; the wrappers of accelerate and DeepSpeed hold one and share its groups."""
    while not type(optimizer).__module__.startswith("torch.optim"):
        optimizer = optimizer.optimizer
    return optimizer


def _check_finite(what: str, value: Tensor, step: int, folder: Path) -> None:
    if not torch.isfinite(value).all():
        raise InputError(
            f"the {what} stays finite",
            got=f"{value.item()} at step {step}",
            remedy="Lower training.learning_rate or set training.precision=fp32; the last checkpoint is intact.",
            file=folder,
        )


def _identity(objective: nn.Module, config: TrainingConfig, label: str) -> dict[str, str]:
    """What a checkpoint may not differ in: what is trained, and every setting but how long and how often to save."""
    free = {"steps", "checkpoint_every", "log_every", "num_workers"}
    settings = {f"training.{name}": repr(value) for name, value in config if name not in free}
    shapes = str([(name, tuple(p.shape), p.requires_grad) for name, p in objective.named_parameters()])
    return {"label": label, **settings, "weights": hashlib.sha256(shapes.encode()).hexdigest()[:16]}


def _save(accelerator: Accelerator, folder: Path, step: int, identity: dict[str, str]) -> None:
    """All ranks write into one folder aside; the main process publishes it once every rank has finished."""
    aside = folder / "checkpoints" / ".writing"
    accelerator.save_state(str(aside))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for random_state in aside.glob("random_states_*.pkl"):  # nothing here depends on it
            random_state.unlink()
        (aside / IDENTITY).write_text(json.dumps(identity))
        publish_checkpoint(folder / "checkpoints", step, lambda target: _move_content(aside, target))
    accelerator.wait_for_everyone()


def _move_content(source: Path, target: Path) -> None:
    for entry in source.iterdir():
        entry.rename(target / entry.name)
    source.rmdir()


def _resume(accelerator: Accelerator, folder: Path, identity: dict[str, str]) -> tuple[int, list[Record]]:
    """Load the newest good checkpoint; return its step and the records up to it. Later records are dropped: they will recur."""
    found = newest_good_checkpoint(folder / "checkpoints")
    step = 0
    if found is not None:
        step, path = found
        earlier = json.loads((path / IDENTITY).read_text())
        for name, value in identity.items():
            if earlier.get(name) != value:
                raise InputError(
                    f"a run continues with the {name} it began with",
                    got=f"{value} instead of {earlier.get(name)}",
                    remedy="Name another folder, or remove this one.",
                    file=folder,
                )
        accelerator.load_state(str(path))
    metrics = folder / "metrics.jsonl"
    records = read_records(metrics) if metrics.exists() else []
    kept = [record for record in records if record["step"] <= step]
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and metrics.exists():  # also mends a last line cut short by a crash
        with write_aside(metrics) as aside:
            aside.write_text("".join(json.dumps(record) + "\n" for record in kept))
    return step, kept


def read_records(path: Path) -> list[Record]:
    """The rows of a metrics.jsonl; a last line cut short by a crash is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _append_record(folder: Path, record: Record) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


class _AsDataset(Dataset):
    """torch's DataLoader wants its own class; ours only promise what `Samples` says."""

    def __init__(self, samples: Samples):
        self.samples = samples

    def __getitem__(self, index: Draw) -> Any:
        return self.samples[index]


def progress(*, total: int | None, label: str, unit: str, initial: int = 0, enabled: bool = True) -> tqdm:
    """A progress bar with an ETA; in a log file it prints a line now and then instead of a thousand."""
    quiet = not sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=label,
        unit=unit,
        disable=not enabled,
        dynamic_ncols=True,
        mininterval=20 if quiet else 0.3,
    )


class _Interruption:
    """Turns Ctrl-C and SIGTERM into a wish that the loop grants after the step; a second one is not held back."""

    wanted = False

    def __enter__(self) -> _Interruption:
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
