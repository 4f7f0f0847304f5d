"""A *model folder*, for people: config.json + model.safetensors + card.md. It loads strictly.

What a run needs to continue is another thing, a *training checkpoint* (`foundation/runstate.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import safetensors.torch
import torch
from pydantic import BaseModel, RootModel
from safetensors import SafetensorError
from torch import Tensor, nn

from foundation.config import ConfigT, parse_config
from foundation.errors import InputError
from foundation.files import sha256, write_folder_aside

FORMAT = 1
ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class ModelFolder(Generic[ConfigT]):
    """A model folder as read: its config and provenance, and its weights not yet put into a module."""

    path: Path
    config: ConfigT
    provenance: dict[str, Any]
    weights: dict[str, Tensor]

    @property
    def weights_sha256(self) -> str:
        return str(self.provenance.get("weights_sha256"))

    def build(
        self, make: Callable[[], ModuleT], wanted: Callable[[ModuleT], Mapping[str, Sequence[int]]] | None = None
    ) -> ModuleT:
        """The module that `make` makes of the config; the folder holds what is `wanted` for it, by default all of it.

        It is made without memory first, because a config may ask for more than there is: memory is taken once the tensors are
        known to be those of the weights. What cannot be made is a complaint about the config.
        """
        try:
            with torch.device("meta"):
                self.fits((wanted or shapes_of)(make()))
            return make()
        except InputError:
            raise
        except Exception as error:
            got = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            remedy = "config.json was changed: restore the folder from where it was made."
            rule = "a model can be made of its config"
            raise InputError(rule, got=got, remedy=remedy, file=self.path / "config.json") from error

    def fill(self, module: nn.Module) -> None:
        """Put the weights into `module`; every tensor must be there with its shape, and none may be left over."""
        module.load_state_dict(self.checked(shapes_of(module)))

    def fits(self, wanted: Mapping[str, Sequence[int]]) -> None:
        """Complain unless the weights are exactly those `wanted`, by name and shape."""
        missing, extra = sorted(wanted.keys() - self.weights.keys()), sorted(self.weights.keys() - wanted.keys())
        file = self.path / "model.safetensors"
        remedy = "The weights and config.json do not belong together: restore the folder from where it was made."
        if missing or extra:
            got = "; ".join(
                f"{what} {_some(names)}" for what, names in (("missing", missing), ("extra", extra)) if names
            )
            raise InputError(
                "a model folder holds exactly the tensors of its config", got=got, remedy=remedy, file=file
            )
        for name, shape in wanted.items():
            if self.weights[name].shape != tuple(shape):
                got = f"{name} {tuple(self.weights[name].shape)} instead of {tuple(shape)}"
                raise InputError("a model's tensors have the shapes of its config", got=got, remedy=remedy, file=file)

    def checked(self, wanted: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """The weights, once they are known to be exactly those `wanted`, by name and shape, and those that were saved."""
        self.fits(wanted)
        file = self.path / "model.safetensors"
        remedy = "The weights and config.json do not belong together: restore the folder from where it was made."
        if (found := sha256(file)) != self.weights_sha256:
            got = f"{found[:12]} instead of {self.weights_sha256[:12]}"
            raise InputError("weights have the hash they were saved with", got=got, remedy=remedy, file=file)
        return self.weights


def save_model_folder(
    folder: Path, *, kind: str, config: BaseModel, state: Mapping[str, Tensor], card: str, provenance: Mapping[str, Any]
) -> None:
    """Publish a model folder whole or not at all. `provenance` says what it was trained with: versions, data, seed."""
    with write_folder_aside(folder) as aside:
        weights = aside / "model.safetensors"
        safetensors.torch.save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, weights
        )
        about = {
            "format": FORMAT,
            "kind": kind,
            "config": config.model_dump(mode="json"),
            "provenance": {**provenance, "weights_sha256": sha256(weights)},
        }
        (aside / "config.json").write_text(json.dumps(about, indent=2) + "\n")
        (aside / "card.md").write_text(card)


def load_model_folder(folder: Path, *, kind: str, config: type[ConfigT]) -> ModelFolder[ConfigT]:
    """Read a model folder of that kind and config class; `ModelFolder.fill` checks its weights. What is
    stored as bf16, to be small, is float32 in use."""
    about = read_about(folder)
    if about["kind"] != kind:
        raise InputError(
            f"this place needs a model of kind '{kind}'",
            got=repr(about["kind"]),
            remedy="Give another folder.",
            file=folder,
        )
    weights = folder / "model.safetensors"
    try:
        state = safetensors.torch.load_file(weights)
    except (OSError, SafetensorError) as error:
        remedy = "Restore the folder from where it was made."
        raise InputError("a model folder holds readable weights", got=str(error), remedy=remedy, file=weights) from None
    whole = {name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor for name, tensor in state.items()}
    return ModelFolder(
        folder, parse_config(config, about["config"], source=folder / "config.json"), about["provenance"], whole
    )


def shrink_model_folder(folder: Path, out: Path, *, config: dict[str, Any], card: str) -> None:
    """The same model at half the size, under another config and card: its matrices are rounded to bf16. It has another hash.

    Vectors stay as they are: they are few, and edges of time or a mean age do not bear three digits.
    """
    about = read_about(folder)
    state = safetensors.torch.load_file(folder / "model.safetensors")
    small = {
        name: tensor.bfloat16() if tensor.dim() > 1 and tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    save_model_folder(
        out, kind=about["kind"], config=RootModel(config), state=small, card=card, provenance=about["provenance"]
    )


def read_about(folder: Path) -> dict[str, Any]:
    """config.json of a model folder: format, kind, config, provenance."""
    file = folder / "config.json"
    try:
        about = json.loads(file.read_text())
    except OSError:
        remedy = "Give a folder that pretraining or fine-tuning wrote."
        raise InputError("a model folder has a config.json", got="none", remedy=remedy, file=folder) from None
    except (ValueError, RecursionError) as error:
        raise InputError("config.json is JSON", got=str(error), remedy="Restore the folder.", file=file) from None
    needed = {"format", "kind", "config", "provenance"}
    is_about = isinstance(about, dict) and needed <= about.keys() and about["format"] == FORMAT
    if not (is_about and isinstance(about["provenance"], dict) and isinstance(about["config"], dict)):
        got = f"format {about.get('format')}" if isinstance(about, dict) else type(about).__name__
        raise InputError(
            f"config.json is of format {FORMAT}", got=got, remedy="Save the model again with this version.", file=file
        )
    return about


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
