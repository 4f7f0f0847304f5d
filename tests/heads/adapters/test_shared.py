"""One pass for several models: the same outputs as one by one, what they share runs once, and a cache that is never mistaken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from finetune.baselines import network
from foundation.preprocess import Grid, PreparedStudy
from foundation.tokens import Tokens
from heads import parse_head
from heads.adapters.folder import Backbones, load_model
from heads.adapters.shared import FeatureCache, features_of, outputs_of
from heads.base import StudySample, TaskModel

NORMS = ("blocks.2.norm1.weight", "norm.bias")
EARLIER = ("blocks.1.attn.q_proj", "blocks.1.mlp.fc2", "blocks.2.attn.v_proj")


@pytest.fixture
def shelf() -> Backbones:
    return Backbones()


@pytest.fixture
def models(make_adapter: Callable, shelf: Backbones) -> list[TaskModel]:
    """Two that part at the last MLP, a head alone, a dense one that parts before, and one with nothing in common."""
    made = [
        make_adapter("one", seed=1),
        make_adapter("two", seed=2),
        make_adapter("head", maps=()),
        make_adapter("dense", "core", EARLIER, NORMS),
    ]
    return [*(load_model(one.folder, shelf).model for one in made), make_adapter("apart", seed=3).model]


@contextmanager
def counted(*modules: torch.nn.Module) -> Iterator[list[int]]:
    """How often each of these modules ran."""
    counts = [0] * len(modules)

    def count(number: int) -> Callable:
        def hook(*_: object) -> None:
            counts[number] += 1

        return hook

    handles = [module.register_forward_hook(count(number)) for number, module in enumerate(modules)]
    yield counts
    for handle in handles:
        handle.remove()


def test_together_equals_one_by_one(models: list[TaskModel], study: PreparedStudy) -> None:
    baseline = network(
        "dynunet", parse_head({"kind": "segmentation", "structures": [{"value": 1, "name": "core", "paired": False}]})
    )
    models = [baseline, *models]
    outputs = dict(outputs_of(models, study))
    assert sorted(outputs) == list(range(6))
    for index, model in enumerate(models):
        assert torch.allclose(outputs[index], model.output_of(study), atol=1e-5), index
    assert list(outputs_of([], study)) == []


@torch.no_grad()
def test_bags_of_different_length_go_together_too(models: list[TaskModel], study: PreparedStudy) -> None:
    bag = StudySample.of(study).tokens()
    batch = Tokens.collate([bag, bag.take(torch.arange(5)[None])])
    encoders = [model.encoder for model in models]
    for index, features in features_of(encoders, batch):
        expected = encoders[index](batch)
        for ours, alone in zip(features, expected, strict=True):
            assert torch.allclose(ours, alone, atol=1e-5)


def test_what_is_shared_runs_once(models: list[TaskModel], study: PreparedStudy) -> None:
    one, two, head, dense, _ = (model.encoder for model in models)
    last = head.blocks[2]
    with counted(
        head.embed, head.blocks[0].mlp, last.attn, last.mlp, one.blocks[2].mlp, dense.blocks[2].attn
    ) as counts:
        list(outputs_of(models, study))
    assert counts == [1, 1, 1, 2, 1, 1], "the dense task's attention is its own, the MLP after it the backbone's again"
    assert one.blocks[2].attn is two.blocks[2].attn is last.attn and dense.blocks[2].attn is not last.attn


def test_cached_features_leave_only_the_heads(models: list[TaskModel], study: PreparedStudy) -> None:
    cache = FeatureCache()
    first = dict(outputs_of(models, study, cache))
    parts = [part for model in models for block in model.encoder.blocks for part in (block.attn, block.mlp)]
    with counted(*parts) as counts:
        again = dict(outputs_of(models, study, cache))
        alone = dict(outputs_of(models[:1], study, cache))
    assert sum(counts) == 0
    for index, output in first.items():
        assert torch.equal(output, again[index])
    assert torch.equal(alone[0], first[0])


def test_a_new_task_on_a_cached_trunk_runs_only_what_is_its_own(
    models: list[TaskModel], make_adapter: Callable, shelf: Backbones, study: PreparedStudy
) -> None:
    cache = FeatureCache()
    list(outputs_of(models, study, cache))
    new = load_model(make_adapter("new", seed=9).folder, shelf).model
    blocks = new.encoder.blocks
    with counted(blocks[0].attn, blocks[1].mlp, blocks[2].attn, blocks[2].mlp) as counts:
        output = dict(outputs_of([new], study, cache))[0]
    assert counts == [0, 0, 0, 1]
    assert torch.allclose(output, new.output_of(study), atol=1e-5)


def test_another_study_is_not_mistaken_for_the_one_that_was_cached(
    models: list[TaskModel], study: PreparedStudy
) -> None:
    cache = FeatureCache()
    list(outputs_of(models, study, cache))
    voxels = study.voxels.copy()
    voxels[0, 12, 12, 12] += 1.0
    wider = Grid(study.grid.shape, study.grid.affine @ np.diag([1.5, 1.0, 1.0, 1.0]))
    for changed in (replace(study, voxels=voxels), replace(study, grid=wider)):
        for index, output in outputs_of(models, changed, cache):
            assert torch.allclose(output, models[index].output_of(changed), atol=1e-5)


def test_the_cache_keeps_to_its_size(models: list[TaskModel], study: PreparedStudy) -> None:
    cache = FeatureCache(max_bytes=1)
    assert len(dict(outputs_of(models, study, cache))) == len(models)
    with counted(models[0].encoder.embed, models[0].encoder.blocks[0].attn) as counts:
        list(outputs_of(models[:1], study, cache))
    assert counts == [1, 1], "nothing was kept"
