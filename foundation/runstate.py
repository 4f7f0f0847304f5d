"""A training checkpoint: everything a run needs to continue, by parameter name, whatever engine or number of processes wrote it.

    step_00000500/
        weights.safetensors     fp32 weights and buffers
        moments.safetensors     AdamW's two moments of every trained weight
        average.safetensors     the averaged weights, where the run keeps any
        state.json              step, AdamW's counts, what the run is, the steps it skipped
        manifest.json           size and sha256 of all of these

A folder is written aside and renamed into place, and older ones are removed only afterwards. Nothing is pickled. A shard of
weights belongs to one number of processes; whole tensors by name belong to none.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from foundation.errors import InputError
from foundation.files import sha256, write_folder_aside

FORMAT = 2
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's own names
MANIFEST = "manifest.json"

Tensors = dict[str, Tensor]


@dataclass
class RunState:
    """A run after `step` steps. `counts` holds how often AdamW has stepped each weight: its bias correction needs that."""

    step: int
    weights: Tensors
    moments: dict[str, Tensors] = field(default_factory=lambda: {moment: {} for moment in MOMENTS})
    counts: dict[str, float] = field(default_factory=dict)
    average: Tensors | None = None
    identity: dict[str, str] = field(default_factory=dict)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def notes(self) -> dict[str, Any]:
        """What is not a tensor."""
        names = ("step", "counts", "identity", "ledger", "norms")
        return {"format": FORMAT, **{name: getattr(self, name) for name in names}}

    def write(self, folder: Path) -> None:
        safetensors.torch.save_file(self.weights, folder / "weights.safetensors")
        flat = {f"{moment}/{name}": tensor for moment, own in self.moments.items() for name, tensor in own.items()}
        safetensors.torch.save_file(flat, folder / "moments.safetensors")
        if self.average is not None:
            safetensors.torch.save_file(self.average, folder / "average.safetensors")
        (folder / "state.json").write_text(json.dumps(self.notes(), indent=1))

    @classmethod
    def read(cls, folder: Path) -> RunState:
        notes = json.loads((folder / "state.json").read_text())
        if notes.pop("format", None) != FORMAT:
            raise InputError(
                f"a training checkpoint is of format {FORMAT}",
                got="another",
                remedy="Continue it with the version that wrote it, or name another folder.",
                file=folder,
            )
        moments: dict[str, Tensors] = {moment: {} for moment in MOMENTS}
        for key, tensor in safetensors.torch.load_file(folder / "moments.safetensors").items():
            moment, _, name = key.partition("/")
            moments[moment][name] = tensor
        average = folder / "average.safetensors"
        return cls(
            weights=safetensors.torch.load_file(folder / "weights.safetensors"),
            moments=moments,
            average=safetensors.torch.load_file(average) if average.exists() else None,
            **notes,
        )


# ------------------------------------------------------------------------------------------------ publishing


def publish_checkpoint(folder: Path, step: int, write: Callable[[Path], None], *, keep: int = 2) -> Path:
    """Let `write` fill a folder, seal it with hashes, rename it into place, and only then remove what is too old.

    What is kept is judged by step and by being whole, never by name alone: after a fall-back, damaged checkpoints have later
    names than the one just written.
    """
    path = folder / f"step_{step:08d}"
    with write_folder_aside(path) as aside:
        write(aside)
        files = sorted(file for file in aside.rglob("*") if file.is_file())
        sealed = {str(file.relative_to(aside)): [file.stat().st_size, sha256(file)] for file in files}
        (aside / MANIFEST).write_text(json.dumps({"step": step, "files": sealed}, indent=1))
    earlier = [
        old for old in _checkpoints(folder) if old.name < path.name and _what_is_wrong(old, hashes=False) is None
    ]
    kept = {path, *earlier[: keep - 1]}
    for old in _checkpoints(folder):
        if old not in kept:
            shutil.rmtree(old)
    return path


def newest_good_checkpoint(folder: Path, *, say: Callable[[str], None] = lambda text: None) -> tuple[int, Path] | None:
    """The latest checkpoint whose files are all there and unchanged; `say` hears of each damaged one that is passed over.

    When there are checkpoints and none is good, that is an `InputError`: starting anew must be somebody's decision.
    """
    damaged = []
    for path in _checkpoints(folder):
        wrong = _what_is_wrong(path)
        if wrong is None:
            return int(path.name.removeprefix("step_")), path
        damaged.append(f"{path.name}: {wrong}")
        say(f"Checkpoint {path.name} is damaged ({wrong}); the one before it is taken.")
    if damaged:
        raise InputError(
            "a run that has checkpoints continues from one that is whole",
            got="; ".join(damaged),
            remedy="Restore one, or remove the folder to start anew.",
            file=folder,
        )
    return None


def sweep(folder: Path) -> None:
    """Remove what a writer that was killed left half done. Nobody else may be writing."""
    for pattern in (".aside-*", ".old-*"):
        for left in folder.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((path for path in folder.glob("step_*") if path.is_dir()), reverse=True)


def _what_is_wrong(path: Path, *, hashes: bool = True) -> str | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if f"step_{manifest['step']:08d}" != path.name:
            return f"{MANIFEST} is that of step {manifest['step']}"
        for name, (size, digest) in manifest["files"].items():
            file = path / name
            if not file.exists():
                return f"{name} is missing"
            if file.stat().st_size != size or (hashes and sha256(file) != digest):
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    return None


# ------------------------------------------------------------------------------------------------ off the training path


class BackgroundWriter:
    """Publishes checkpoints while training goes on. One at a time: a second save waits for the first.

    What goes wrong in the thread is raised where training next asks: at `check`, `save` or `join`.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        self.folder, self.keep = folder, keep
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._thread is not None:
            self._thread.join()
        if kind is None:
            self.check()

    def save(self, state: RunState) -> None:
        """`state` may not change until `join` or the next `save` has returned."""
        self.join()
        self._thread = threading.Thread(target=self._write, args=(state,), name="checkpoint writer")
        self._thread.start()

    def check(self) -> None:
        """Raise what the last save ran into, if it has ended in an error."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _write(self, state: RunState) -> None:
        try:
            publish_checkpoint(self.folder, state.step, state.write, keep=self.keep)
        except (OSError, SafetensorError) as error:
            self._error = InputError(
                "a checkpoint can be written",
                got=f"{error} at step {state.step}",
                remedy="Make room or write access, then repeat the command: it continues from the checkpoint before.",
                file=self.folder,
            )
        except Exception as error:
            self._error = error
