"""What is seen of images is made once for each study and way of looking, whatever is added, interrupted or moved."""

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.config import FinetuneConfig
from finetune.prognosis import looks
from finetune.prognosis.looks import FAR, QUANTILES, look, looks_of
from foundation.config import parse_config
from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError
from foundation.preprocess import prepare_study
from foundation.reading.collection import Collection, read_manifest, read_study
from heads import parse_head
from heads.base import Scope, TaskConfig, TaskModel, save_task

SPACING = (8.0, 8.0, 8.0)
STRUCTURES = [{"value": value, "name": name, "paired": False} for value, name in ((1, "core"), (2, "rim"))]
HEADS = {
    "outlines": {"kind": "segmentation", "structures": STRUCTURES, "channels": [4, 4, 4]},
    "classifies": {"kind": "classification", "target": "large", "classes": ["small", "large"]},
}


@pytest.fixture
def collection(make_collection) -> Collection:
    return read_manifest(make_collection(4))


@pytest.fixture
def save(collection: Collection, tmp_path: Path):
    """A tiny untrained model of each kind, which looks at a coarser grid than the task."""
    prepared = [prepare_study(read_study(collection.rows[0], collection.root), SPACING)]

    def folder(name: str, seed: int = 0) -> Path:
        torch.manual_seed(seed)
        encoder, head = EncoderConfig(width=64, depth=1), parse_head(HEADS[name])
        model, place = TaskModel.build(Encoder(encoder), head), tmp_path / f"{name}{seed}"
        config = TaskConfig(
            name=name, caution=None, encoder=encoder, head=head, spacing_mm=SPACING, scope=Scope.of(prepared)
        )
        save_task(place, model, config, card="# test\n", provenance={})
        return place

    return folder


@pytest.fixture
def task(collection: Collection, tmp_path: Path) -> FinetuneConfig:
    values = {"name": "x", "folder": str(tmp_path / "run"), "encoder": None, "recipe": "scratch"}
    head = {"kind": "prognosis", "horizons_days": [50]}
    data = {"manifest": str(collection.path), "spacing_mm": [4.0, 4.0, 4.0]}
    return parse_config(FinetuneConfig, values | {"head": head, "data": data})


def test_each_way_looks_once_at_each_study(
    collection: Collection, save, task: FinetuneConfig, tmp_path: Path, monkeypatch
) -> None:
    kept, first = tmp_path / "looks", save("outlines")
    counted = {"read": 0, "outlined": 0}

    def counting(name: str, of: str):
        real = getattr(looks, of)

        def call(*arguments):
            counted[name] += 1
            return real(*arguments)

        monkeypatch.setattr(looks, of, call)

    counting("read", "read_study")
    counting("outlined", "measured_volumes")
    ways = looks_of(task, collection.rows, [first])
    found, kinds = look(ways, collection.rows, collection.root, kept)
    num_counts = 2 * (len(QUANTILES) + len(FAR))
    assert kinds == ("brightness",) * num_counts + ("volumes",) * 2 and found.shape == (4, num_counts + 2)
    assert counted == {"read": 4, "outlined": 4}

    again, _ = look(looks_of(task, collection.rows, [first]), collection.rows, collection.root, kept)
    assert np.array_equal(again, found, equal_nan=True) and counted == {"read": 4, "outlined": 4}
    # Stopped in the middle: what was written is not made again.
    next(iter((kept / ways[1].name).iterdir())).unlink()
    again, _ = look(ways, collection.rows, collection.root, kept)
    assert np.array_equal(again, found, equal_nan=True) and counted == {"read": 5, "outlined": 5}
    # Another model beside it: one pass of its own, and of nobody else.
    both, _ = look(
        looks_of(task, collection.rows, [first, save("outlines", 1)]), collection.rows, collection.root, kept
    )
    assert np.array_equal(both[:, :-2], found, equal_nan=True) and counted == {"read": 9, "outlined": 9}
    assert not np.array_equal(both[:, -2:], found[:, -2:])
    # Another study under an old name is another study.
    entry = collection.rows[0].series[0].path
    (collection.root / entry).write_bytes((collection.root / collection.rows[1].series[0].path).read_bytes())
    look(ways, collection.rows, collection.root, kept)
    assert counted == {"read": 10, "outlined": 10}


def test_volumes_are_of_the_models_own_grid_and_add_up_to_the_heads(
    collection: Collection, save, task: FinetuneConfig
) -> None:
    """An untrained model is about equally unsure of three classes everywhere, so it finds about a third of the grid each."""
    (_, way) = looks_of(task, collection.rows, [save("outlines")])
    assert way.spacing_mm == SPACING
    prepared = prepare_study(read_study(collection.rows[0], collection.root), SPACING)
    ml = np.expm1(way.see(prepared))
    whole = float(np.prod(prepared.grid.shape) * np.prod(SPACING)) / 1000
    assert (ml > 0.05 * whole).all() and ml.sum() < whole


def test_a_model_that_outlines_nothing_is_refused(collection: Collection, save, task: FinetuneConfig) -> None:
    with pytest.raises(InputError, match="outlines structures"):
        looks_of(task, collection.rows, [save("classifies")])
