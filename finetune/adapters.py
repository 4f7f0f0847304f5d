"""What of a pretrained encoder learns for a task.

LoRA (Hu et al. 2022) through peft, late in the encoder: what is below stays the backbone's, so that one pass serves all tasks.
A head that answers for the whole study adapts the MLP of the last block. On dense tasks LoRA alone under-fits (0.62 against 0.80
Dice in published work): there the last third of the blocks is adapted, attention and MLP, and its norms learn too; what is
fine in the image is the work of the head's own stem. `lora.whole` adapts everything. Merged back, the encoder is a plain one.
"""

from __future__ import annotations

import math

import peft
from peft.tuners.lora import LoraLayer
from torch import nn

from finetune.config import FinetuneConfig, LoraConfig
from foundation.encoder import Encoder
from foundation.lora import Adapter, LowRank
from heads.base import TaskModel

ATTENTION = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj")
MLP = ("mlp.fc1_g", "mlp.fc1_x", "mlp.fc2")
DENSE_SHARE = 1 / 3  # of the blocks, the last ones, that dense heads adapt


def apply_recipe(model: TaskModel, config: FinetuneConfig) -> None:
    """Set, in place, which weights learn and how fast."""
    if config.recipe != "scratch":
        model.encoder_rate, model.layer_decay = config.encoder_rate, config.layer_decay
    if config.recipe in ("frozen", "lora"):
        model.encoder.requires_grad_(False)
    if config.recipe == "lora":
        assert isinstance(model.encoder, Encoder)
        add_lora(model.encoder, config.lora, dense=model.head.is_dense)
        if model.head.is_dense:
            for block in model.encoder.blocks[first_block(model.depth, config.lora, dense=True) :]:
                _norms_learn(block)
            _norms_learn(model.encoder.norm)
            model.encoder.embed.patch.requires_grad_(config.lora.whole)


def first_block(depth: int, config: LoraConfig, *, dense: bool) -> int:
    """The first block with an adapter."""
    if config.whole:
        return 0
    if config.blocks is not None:
        return max(0, depth - config.blocks)
    return depth - math.ceil(DENSE_SHARE * depth) if dense else depth - 1


def add_lora(encoder: Encoder, config: LoraConfig, *, dense: bool = False) -> None:
    """Put a low-rank adapter beside each linear map that the recipe names; only the adapters learn."""
    depth = len(encoder.blocks)
    only_mlp = not dense and config.blocks is None and not config.whole
    targets = [
        f"blocks.{block}.{name}"
        for block in range(first_block(depth, config, dense=dense), depth)
        for name in (MLP if only_mlp else (*ATTENTION, *MLP))
    ]
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, bias="none"), encoder
    )


def _norms_learn(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.requires_grad_(True)


def take_adapter(encoder: nn.Module, config: LoraConfig) -> Adapter:
    """What a fitted encoder has that its backbone has not, copied; before `merge_lora`."""
    low_rank, learned = {}, {}
    for name, module in encoder.named_modules():
        if isinstance(module, LoraLayer):
            a, b = (maps["default"].get_parameter("weight").detach().clone() for maps in (module.lora_A, module.lora_B))
            low_rank[name] = LowRank(a, b)
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad and ".lora_" not in name:
            learned[name] = parameter.detach().clone()
    return Adapter(config.rank, config.alpha, low_rank, learned)


def merge_lora(module: nn.Module) -> None:
    """Add each adapter into the map beside it and take it away."""
    for name, child in module.named_children():
        if isinstance(child, LoraLayer):
            child.merge()
            setattr(module, name, child.get_base_layer())
        else:
            merge_lora(child)
