"""A backbone on disk, tasks fitted on it in a way, and a study to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from foundation.encoder import Encoder, EncoderConfig
from foundation.lora import Adapter, LowRank, adapted
from foundation.preprocess import PreparedStudy, prepare_study
from foundation.reading.collection import read_manifest, read_study
from heads import parse_head
from heads.adapters.folder import Backbone, save_adapter
from heads.base import Scope, TaskConfig, TaskModel

SPACING = (4.0, 4.0, 4.0)
ENCODER = EncoderConfig(width=64, depth=3)
HEADS: dict[str, dict[str, Any]] = {
    "size": {"kind": "classification", "target": "large", "classes": ["small core", "large core"]},
    "core": {
        "kind": "segmentation",
        "structures": [{"value": 1, "name": "core", "paired": False}],
        "channels": [4, 8, 8],
        "bottleneck": 16,
    },
}
LATE = ("blocks.2.mlp.fc1_g", "blocks.2.mlp.fc1_x", "blocks.2.mlp.fc2")
EARLIER = ("blocks.1.attn.q_proj", "blocks.1.mlp.fc2", "blocks.2.attn.v_proj")


@pytest.fixture
def study(make_collection) -> PreparedStudy:
    collection = read_manifest(make_collection(1))
    return prepare_study(read_study(collection.rows[0], collection.root), SPACING)


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    Encoder(ENCODER).save(tmp_path / "models" / "backbone", card="# backbone\n", provenance={})
    return tmp_path / "models" / "backbone"


def adapter_of(encoder: Encoder, maps: tuple[str, ...], learned: tuple[str, ...] = (), seed: int = 0) -> Adapter:
    """Random, and far from nothing."""
    generator = torch.Generator().manual_seed(seed)
    low_rank = {}
    for name in maps:
        linear = encoder.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        a = torch.randn(4, linear.in_features, generator=generator)
        low_rank[name] = LowRank(a, 0.05 * torch.randn(linear.out_features, 4, generator=generator))
    own = {name: encoder.get_parameter(name).detach() + 0.3 for name in learned}
    return Adapter(4, 8, low_rank, own)


class Made(NamedTuple):
    """An adapter folder and the model that it was saved from."""

    folder: Path
    model: TaskModel


@pytest.fixture
def make_adapter(tmp_path: Path, backbone: Path, study: PreparedStudy) -> Callable[..., Made]:
    """`make_adapter(name, head, maps, learned, seed)`: an adapter folder beside the backbone."""

    def make(
        name: str = "size",
        head: str = "size",
        maps: tuple[str, ...] = LATE,
        learned: tuple[str, ...] = (),
        seed: int = 0,
    ) -> Made:
        encoder = Encoder.load(backbone)
        adapter = adapter_of(encoder, maps, learned, seed)
        torch.manual_seed(seed)
        model = TaskModel.build(adapted(encoder, adapter), parse_head(HEADS[head])).eval()
        task = TaskConfig(
            name=name,
            caution=None,
            encoder=ENCODER,
            head=parse_head(HEADS[head]),
            spacing_mm=SPACING,
            scope=Scope.of([study]),
        )
        folder, about = tmp_path / "models" / name, {"data": "a fingerprint"}
        save_adapter(folder, adapter, model.head, task, Backbone.of(backbone), card=f"# {name}\n", provenance=about)
        return Made(folder, model)

    return make
