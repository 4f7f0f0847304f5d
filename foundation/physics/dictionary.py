"""T1 and T2 from a few weighted images without a network: the pair whose signals fit best, of a table of pairs (a dictionary).

    t1_ms, t2_ms = match(images, sequences)         images (sequences, voxels), in any units, each with a gain of its own

Scanners scale every series as they like, so that the images' gains are unknown too. They are found by turns with the pairs: what
the best pairs would show, over what is shown. Three images leave little to determine both from: a baseline, not a measurement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.physics.signal import PulseSequence

T1_MS, T2_MS = (250.0, 5000.0), (20.0, 2500.0)
NUM_T1, NUM_T2 = 60, 60
TURNS = 8
TYPICAL_MS = (1100.0, 85.0)  # of the brain, grey and white together: the gains begin with the median voxel there
AT_ONCE = 4096


def table(sequences: Sequence[PulseSequence]) -> tuple[Float[Tensor, "pairs 2"], Float[Tensor, "pairs sequences"]]:
    """Every pair of T1 and T2 <= T1 of a logarithmic grid, and the magnitude of its signals for a proton density of one."""
    t1, t2 = (
        torch.logspace(math.log10(low), math.log10(high), num)
        for (low, high), num in ((T1_MS, NUM_T1), (T2_MS, NUM_T2))
    )
    pairs = torch.cartesian_prod(t1, t2)
    pairs = pairs[pairs[:, 1] <= pairs[:, 0]]
    return pairs, _signals(pairs, sequences)


def match(
    images: Float[Tensor, "sequences voxels"], sequences: Sequence[PulseSequence]
) -> tuple[Float[Tensor, "voxels"], Float[Tensor, "voxels"]]:
    pairs, signals = table(sequences)
    typical = _signals(torch.tensor([TYPICAL_MS]), sequences)[0]
    gains = images.median(dim=1).values / typical
    atoms = signals / torch.linalg.vector_norm(signals, dim=1, keepdim=True)
    best = torch.zeros(images.shape[1], dtype=torch.long)
    for _ in range(TURNS):
        scaled = (images / gains[:, None]).T
        best = torch.cat([(part @ atoms.T).argmax(dim=1) for part in scaled.split(AT_ONCE)])
        shown = atoms[best]
        density = (scaled * shown).sum(dim=1, keepdim=True)
        ratio = (scaled / (density * shown).clamp(min=1e-12)).median(dim=0).values
        gains = gains * ratio / ratio.log().mean().exp()  # all gains together are the density's
    return pairs[best, 0], pairs[best, 1]


def _signals(pairs: Float[Tensor, "pairs 2"], sequences: Sequence[PulseSequence]) -> Float[Tensor, "pairs sequences"]:
    """With T2* as T2 and no diffusion: for sequences of spin echoes, and echoes that are short."""
    t1, t2 = pairs.unbind(1)
    one, none = torch.ones_like(t1), torch.zeros_like(t1)
    return torch.stack([sequence.signal(t1, t2, t2, one, none).abs() for sequence in sequences], dim=1)
