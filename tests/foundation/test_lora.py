"""Adapters on an encoder: merged, taken out again, beside it in mixed batches; against peft, which knows another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.serving import peft_model
from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError
from foundation.lora import Adapter, LowRank, MixedEncoder, adapted, unmerge
from foundation.preprocess import Grid
from foundation.study import Acquisition
from foundation.tokens import Tokens, tokenise

ENCODER = EncoderConfig(width=64, depth=3)
MAPS = ("blocks.1.attn.q_proj", "blocks.1.attn.v_proj", "blocks.1.mlp.fc1_g", "blocks.2.attn.proj", "blocks.2.mlp.fc2")
NORMS = ("blocks.2.norm1.weight", "blocks.2.norm1.bias", "norm.weight", "norm.bias")


@pytest.fixture
def backbone() -> Encoder:
    torch.manual_seed(0)
    return Encoder(ENCODER).eval()


def adapter_of(backbone: Encoder, seed: int, *, rank: int = 4, maps=MAPS, learned=()) -> Adapter:
    """An adapter far from nothing: it moves features by about as much as they are."""
    generator = torch.Generator().manual_seed(seed)
    low_rank = {}
    for name in maps:
        linear = backbone.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        a = torch.randn(rank, linear.in_features, generator=generator)
        b = 0.05 * torch.randn(linear.out_features, rank, generator=generator)
        low_rank[name] = LowRank(a, b)
    own = {
        name: backbone.get_parameter(name).detach() + 0.3 * torch.randn(ENCODER.width, generator=generator)
        for name in learned
    }
    return Adapter(rank, 2 * rank, low_rank, own)


def bags(*num_slabs: int) -> Tokens:
    """A batch of bags of different length, of noise."""
    made = []
    for number, slabs in enumerate(num_slabs):
        shape = (8 * slabs, 16, 16)
        voxels = torch.randn(shape, generator=torch.Generator().manual_seed(number))
        grid = Grid(shape, np.diag([2.0, 2.0, 2.0, 1.0]))
        made.append(tokenise(voxels, torch.ones(shape, dtype=torch.bool), grid, "T1w", Acquisition(), 0))
    return Tokens.collate(made)


def far(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).abs().max()) > 0.05


@torch.no_grad()
def test_merging_and_taking_out_again_is_where_it_began(backbone: Encoder) -> None:
    adapter, bag = adapter_of(backbone, 1, learned=NORMS), bags(3)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    plain = backbone(bag).tokens
    merged = adapted(backbone, adapter)
    assert far(merged(bag).tokens, plain)
    assert torch.equal(backbone(bag).tokens, plain), "the backbone is as it was"
    unmerge(merged, adapter, backbone)
    assert torch.allclose(merged(bag).tokens, plain, atol=1e-5)
    for name, tensor in merged.state_dict().items():
        assert torch.allclose(tensor, before[name], atol=1e-6), name


def test_what_an_adapter_leaves_alone_is_the_backbone_itself(backbone: Encoder) -> None:
    merged = adapted(backbone, adapter_of(backbone, 1, maps=("blocks.2.mlp.fc2",)))
    assert merged.embed is backbone.embed and merged.registers is backbone.registers
    assert merged.blocks[0] is backbone.blocks[0] and merged.blocks[1] is backbone.blocks[1]
    ours, theirs = merged.blocks[2], backbone.blocks[2]
    assert ours is not theirs and ours.attn is theirs.attn and ours.gamma_1 is theirs.gamma_1
    assert ours.mlp.fc1_g is theirs.mlp.fc1_g and ours.mlp.fc2 is not theirs.mlp.fc2
    own = {id(parameter) for parameter in merged.parameters()} - {id(parameter) for parameter in backbone.parameters()}
    assert len(own) <= 2, "the map's weight and bias at most"


def test_the_first_block_that_changes(backbone: Encoder) -> None:
    assert adapter_of(backbone, 0).first_block(3) == 1
    assert adapter_of(backbone, 0, maps=(), learned=("norm.weight",)).first_block(3) == 3
    assert adapter_of(backbone, 0, maps=(), learned=("embed.origin.voxel_size.0.bias",)).first_block(3) == 0


@torch.no_grad()
def test_each_row_of_a_mixed_batch_goes_through_its_own_adapter(backbone: Encoder) -> None:
    """Ranks, maps and learnt norms differ between adapters; one bag is shorter than the others."""
    adapters = [
        adapter_of(backbone, 1),
        adapter_of(backbone, 2, rank=2, maps=MAPS[3:], learned=NORMS),
        adapter_of(backbone, 3, maps=()),
    ]
    batch, rows = bags(3, 2, 3, 3), [1, 0, 2, 1]
    mixed = MixedEncoder(backbone, adapters).eval()
    together = mixed(batch, torch.tensor(rows))
    for row, (number, slabs) in enumerate(zip(rows, (3, 2, 3, 3), strict=True)):
        alone = adapted(backbone, adapters[number])(batch)
        for ours, merged in zip(together, alone, strict=True):
            assert torch.allclose(ours[row, : 4 * slabs], merged[row, : 4 * slabs], atol=1e-5)
    assert far(together.tokens[0], together.tokens[2])


@torch.no_grad()
def test_one_bag_for_several_adapters(backbone: Encoder) -> None:
    adapters = [adapter_of(backbone, seed) for seed in range(3)]
    bag = bags(3)
    together = MixedEncoder(backbone, adapters).eval()(bag, torch.tensor([0, 1, 2]))
    for row, adapter in enumerate(adapters):
        assert torch.allclose(together.tokens[row], adapted(backbone, adapter)(bag).tokens[0], atol=1e-5)


@torch.no_grad()
def test_a_mixed_batch_equals_pefts(backbone: Encoder) -> None:
    adapters = [adapter_of(backbone, seed) for seed in range(4)]
    batch = bags(3, 3, 3, 3)
    theirs = peft_model(backbone, adapters)
    expected = theirs(batch, adapter_names=["a2", "a0", "a3", "a1"])
    ours = MixedEncoder(backbone, adapters).eval()(batch, torch.tensor([2, 0, 3, 1]))
    assert torch.allclose(ours.tokens, expected.tokens, atol=1e-5)
    assert torch.allclose(ours.registers, expected.registers, atol=1e-5)


def test_adapters_that_learnt_more_than_norms_are_not_mixed(backbone: Encoder) -> None:
    patch = {"embed.patch.bias": torch.zeros(ENCODER.width)}
    with pytest.raises(InputError, match="no more whole than norms"):
        MixedEncoder(backbone, [Adapter(1, 1, {}, patch)])
