"""An *adapter folder*: what a task adds to a backbone, a few MB beside the one copy of the encoder.

    loaded = load_model(folder)                                # an adapter folder, or a whole task folder

The backbone is a model folder, an encoder's or a task's, and known by the hash of its weights: where it lies may change, what it
is may not. An adapter folder loads strictly, as every model folder does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from foundation.checkpoint import load_model_folder, read_about, save_model_folder
from foundation.config import Config
from foundation.encoder import Encoder
from foundation.errors import InputError
from foundation.lora import Adapter, LowRank, adapted
from heads.base import TaskConfig, TaskModel, load_task, model_folders

HASH_SHOWN = 12  # digits of a hash in messages


class Backbone(Config):
    """The model folder that an adapter was fitted on: where it lay then, and the hash of its weights."""

    path: Path
    weights_sha256: str

    @classmethod
    def of(cls, folder: Path) -> Backbone:
        return cls(path=folder.resolve(), weights_sha256=str(read_about(folder)["provenance"].get("weights_sha256")))


class AdapterConfig(Config):
    """The task, its backbone, and which of the encoder's linear maps have a low-rank one beside them, which parameters changed."""

    task: TaskConfig
    backbone: Backbone
    rank: int
    alpha: int
    adapted: tuple[str, ...]
    learned: tuple[str, ...]


@dataclass(frozen=True)
class LoadedModel:
    """A task model ready to read, and what a reading must say of it. A whole task folder has no backbone."""

    model: TaskModel
    config: TaskConfig
    folder: Path
    weights_sha256: str
    adapter: Adapter | None = None
    backbone: Backbone | None = None


class Backbones:
    """The backbones of several adapters, each found, checked and loaded once, so that what two models share is one module.

    Where none is `given`, one is looked for where it lay when the adapter was fitted, beside the adapter, and among the models
    that are used when none is named.
    """

    def __init__(self, given: Sequence[Path] = ()):
        self.given = tuple(given)
        self._loaded: dict[str, Encoder] = {}

    def encoder(self, wanted: Backbone, adapter: Path) -> Encoder:
        """The encoder with exactly those weights, or an `InputError` that says what was there instead."""
        if wanted.weights_sha256 not in self._loaded:
            folder = self._find(wanted, adapter)
            is_encoder = read_about(folder)["kind"] == "encoder"
            encoder = Encoder.load(folder) if is_encoder else load_task(folder)[0].encoder
            assert isinstance(encoder, Encoder)
            self._loaded[wanted.weights_sha256] = encoder.eval()
        return self._loaded[wanted.weights_sha256]

    def _find(self, wanted: Backbone, adapter: Path) -> Path:
        if self.given:
            there = [(folder, Backbone.of(folder).weights_sha256) for folder in self.given]
        else:
            there = list(_places(wanted.path, adapter))
        for folder, sha256 in there:
            if sha256 == wanted.weights_sha256:
                return folder
        needed = wanted.weights_sha256[:HASH_SHOWN]
        seen = [f"{sha256[:HASH_SHOWN]} in {folder}" for folder, sha256 in there]
        raise InputError(
            f"an adapter is read with the backbone it was fitted on, whose weights are {needed}",
            got=", ".join(seen) or "no model folder where it lay or beside the adapter",
            remedy=f"Name its folder with --backbone; it was {wanted.path}.",
            file=adapter,
        )


def _places(recorded: Path, adapter: Path) -> Iterator[tuple[Path, str]]:
    """Where a backbone may be, and the hash of what is there; folders that are no model's are passed over."""
    for folder in (recorded, *model_folders(adapter.resolve().parent), *model_folders()):
        with suppress(InputError):
            if read_about(folder)["kind"] != "adapter":
                yield folder, Backbone.of(folder).weights_sha256


def save_adapter(
    folder: Path,
    adapter: Adapter,
    head: nn.Module,
    task: TaskConfig,
    backbone: Backbone,
    *,
    card: str,
    provenance: dict[str, Any],
) -> None:
    config = AdapterConfig(
        task=task,
        backbone=backbone,
        rank=adapter.rank,
        alpha=adapter.alpha,
        adapted=tuple(adapter.low_rank),
        learned=tuple(adapter.learned),
    )
    state = {f"encoder.{name}": tensor for name, tensor in adapter.learned.items()}
    for name, low in adapter.low_rank.items():
        state |= {f"encoder.{name}.lora_a": low.a, f"encoder.{name}.lora_b": low.b}
    state |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    save_model_folder(folder, kind="adapter", config=config, state=state, card=card, provenance=provenance)


def encoder_of(folder: Path) -> Encoder:
    """The encoder of a model folder, or of a task's."""
    if read_about(folder)["kind"] == "encoder":
        return Encoder.load(folder)
    encoder = load_model(folder).model.encoder
    assert isinstance(encoder, Encoder)
    return encoder


def load_model(folder: Path, backbones: Backbones | None = None) -> LoadedModel:
    """Read a task's folder of either kind. Models that are loaded with the same `backbones` share modules, and so passes."""
    if read_about(folder)["kind"] != "adapter":
        model, config, weights_sha256 = load_task(folder)
        return LoadedModel(model, config, folder, weights_sha256)
    loaded = load_model_folder(folder, kind="adapter", config=AdapterConfig)
    config = loaded.config
    backbone = (backbones or Backbones()).encoder(config.backbone, folder)
    if backbone.config != config.task.encoder:
        raise InputError(
            "an adapter's encoder has the sizes of its backbone",
            got=f"{config.task.encoder} on {backbone.config}",
            remedy="config.json was changed: restore the folder from where it was made.",
            file=folder,
        )
    model = loaded.build(
        lambda: TaskModel.build(backbone, config.task.head),
        wanted=lambda model: _shapes(config, backbone, model.head, folder),
    )
    weights = loaded.checked(_shapes(config, backbone, model.head, folder))
    low_rank = {
        name: LowRank(weights[f"encoder.{name}.lora_a"], weights[f"encoder.{name}.lora_b"]) for name in config.adapted
    }
    learned = {name: weights[f"encoder.{name}"] for name in config.learned}
    adapter = Adapter(config.rank, config.alpha, low_rank, learned)
    model.encoder = adapted(backbone, adapter)
    model.head.load_state_dict({name: weights[f"head.{name}"] for name in model.head.state_dict()})
    return LoadedModel(model.eval(), config.task, folder, loaded.weights_sha256, adapter, config.backbone)


def _shapes(config: AdapterConfig, backbone: Encoder, head: nn.Module, folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the folder must hold."""
    maps = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    parameters = dict(backbone.named_parameters())
    unknown = sorted(set(config.adapted) - maps.keys()) + sorted(set(config.learned) - parameters.keys())
    if unknown:
        raise InputError(
            "an adapter changes what its backbone has",
            got=", ".join(unknown[:3]),
            remedy="config.json was changed: restore the folder from where it was made.",
            file=folder,
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for name in config.adapted:
        shapes[f"encoder.{name}.lora_a"] = (config.rank, maps[name].in_features)
        shapes[f"encoder.{name}.lora_b"] = (maps[name].out_features, config.rank)
    shapes |= {f"encoder.{name}": tuple(parameters[name].shape) for name in config.learned}
    return shapes | {f"head.{name}": tuple(tensor.shape) for name, tensor in head.state_dict().items()}
