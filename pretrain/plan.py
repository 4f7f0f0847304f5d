"""Which engine for which size: `python -m pretrain --plan CONFIG` prints what each would cost, before anything is started."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import torch

from foundation.encoder import Encoder, EncoderConfig, Size
from foundation.engines import EngineName
from foundation.scaling import activations_of, as_bytes, memory_of, traffic_of
from pretrain.config import PretrainConfig
from pretrain.objectives import masked_autoencoding

PROCESSES = (8, 64)


def plan(config: PretrainConfig) -> Iterator[str]:
    """Lines of markdown: memory and traffic of every size and engine, on one host of 8 processes and on 8 hosts."""
    crop = config.crop
    visible = round(crop.visible_fraction * crop.max_tokens)
    targets = min(crop.max_tokens - visible, crop.max_targets)
    heads = ["size", "weights", "GFLOP a sample", "activations a sample", "engine"]
    heads += [head for number in PROCESSES for head in (f"state, {number} processes", "sent a step")]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for size in get_args(Size):
        with torch.device("meta"):
            encoder = Encoder(EncoderConfig.of_size(size))
            objective = masked_autoencoding.Objective(encoder, _masked(config))
        weights = sum(p.numel() for p in objective.parameters())
        operations = objective.operations(visible, targets) / 1e9
        waiting = activations_of(visible + encoder.config.num_registers, encoder.config.width, encoder.config.depth)
        for engine in ("ddp", "zero1", "zero2", "zero3", "fsdp2"):
            cells = [cell for number in PROCESSES for cell in _costs(engine, number, weights, config)]
            first = (
                [size, f"{weights / 1e6:.1f} M", f"{operations:.3g}", as_bytes(waiting)]
                if engine == "ddp"
                else [""] * 4
            )
            yield f"| {' | '.join([*first, engine, *cells])} |"


def _masked(config: PretrainConfig) -> masked_autoencoding.Config:
    """The run's masked autoencoding, or the usual one: it is what a large run spends its time on."""
    terms = getattr(config.objective, "terms", (config.objective,))
    found = [term for term in terms if isinstance(term, masked_autoencoding.Config)]
    return found[0] if found else masked_autoencoding.Config()


def _costs(engine: EngineName, processes: int, weights: int, config: PretrainConfig) -> tuple[str, str]:
    averaged = config.training.ema_decay is not None
    memory = memory_of(engine, processes, weights=weights, trained=weights, averaged=averaged)
    return as_bytes(memory.total), as_bytes(traffic_of(engine, processes, trained=weights))
