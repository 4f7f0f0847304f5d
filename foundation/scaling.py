"""What a model costs each process, by formula: bytes kept, bytes exchanged at each step.

Weights, gradients and AdamW's two moments are fp32: 4 + 4 + 8 bytes a weight. An averaged copy is 4 more.
"""

from __future__ import annotations

from dataclasses import dataclass

from foundation.engines import EngineName

FP32 = 4
# Of what forward keeps for backward, with fused attention: bytes for each token, width and block (bf16; docs/scaling.md).
ACTIVATION_BYTES = 34


@dataclass(frozen=True)
class Memory:
    """Bytes on one process."""

    weights: float
    gradients: float
    moments: float
    average: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.moments + self.average

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {as_bytes(value)}" for name, value in vars(self).items() if value)
        return f"{as_bytes(self.total)} ({parts})"


def memory_of(engine: EngineName, processes: int, *, weights: int, trained: int, averaged: bool) -> Memory:
    """`weights` counts all of them, `trained` those that learn."""
    cuts_weights = engine in ("zero3", "fsdp2")
    cuts_gradients = cuts_weights or engine == "zero2"
    cuts_moments = cuts_gradients or engine == "zero1"
    # ZeRO-1 and 2 keep, beside the whole weights, their own flat copy of the part that a process updates.
    copy = trained / processes if engine in ("zero1", "zero2") else 0

    def share(number: int, is_cut: bool) -> float:
        return FP32 * number / (processes if is_cut else 1)

    return Memory(
        weights=share(weights, cuts_weights) + FP32 * copy,
        gradients=share(trained, cuts_gradients),
        moments=2 * share(trained, cuts_moments),
        average=share(weights, cuts_weights) if averaged else 0.0,
    )


def traffic_of(engine: EngineName, processes: int, *, trained: int) -> float:
    """Bytes that one process sends in a step, with ring algorithms: gradients summed and handed back are 2 (p - 1) / p of
    their size; weights that are gathered twice, and gradients summed once, are 3."""
    passes = {"single": 0, "zero3": 3, "fsdp2": 3}.get(engine, 2)
    return passes * (processes - 1) / processes * FP32 * trained


def activations_of(tokens: int, width: int, depth: int) -> float:
    """Bytes of one bag's forward pass that wait for backward."""
    return float(ACTIVATION_BYTES * tokens * width * depth)


def as_bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.3g} {unit}"
        number /= 1000
    raise AssertionError
