"""What of a pretrained encoder learns for a task.

LoRA (Hu et al. 2022) on attention and MLP, through peft. On dense tasks LoRA alone under-fits (0.62 against 0.80 Dice in
published work), so there norms and the patch embedding learn too. Merged back, the encoder is a plain one again.
"""

from __future__ import annotations

import peft
from peft.tuners.lora import LoraLayer
from torch import nn

from finetune.config import FinetuneConfig, LoraConfig
from foundation.encoder import Encoder
from heads.base import TaskModel

ADAPTED = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2")


def apply_recipe(model: TaskModel, config: FinetuneConfig) -> None:
    """Set, in place, which weights learn and how fast."""
    if config.recipe != "scratch":
        model.encoder_rate, model.layer_decay = config.encoder_rate, config.layer_decay
    if config.recipe in ("frozen", "lora"):
        model.encoder.requires_grad_(False)
    if config.recipe == "lora":
        assert isinstance(model.encoder, Encoder)
        add_lora(model.encoder, config.lora)
        if model.head.is_dense:
            for module in model.encoder.modules():
                if isinstance(module, nn.LayerNorm):
                    module.requires_grad_(True)
            model.encoder.embed.patch.requires_grad_(True)


def add_lora(encoder: Encoder, config: LoraConfig) -> None:
    """Put a low-rank adapter beside each linear map of the last blocks; only the adapters learn."""
    depth = len(encoder.blocks)
    first = 0 if config.blocks is None else max(0, depth - config.blocks)
    targets = [f"blocks.{block}.{name}" for block in range(first, depth) for name in ADAPTED]
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, bias="none"), encoder
    )


def merge_lora(module: nn.Module) -> None:
    """Add each adapter into the map beside it and take it away."""
    for name, child in module.named_children():
        if isinstance(child, LoraLayer):
            child.merge()
            setattr(module, name, child.get_base_layer())
        else:
            merge_lora(child)
