"""Which tokens are seen and which are predicted, so that a batch of unequal bags becomes two dense rectangles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from foundation.tokens import PATCH_VOXELS, Tokens


@dataclass(frozen=True)
class MaskedBatch:
    """`visible` `(batch, K)` is encoded; `targets` `(batch, M)` is predicted; no token is in both, and none is padding.

    `removed` marks the targets' voxels that were removed with the face, where there is nothing to learn but the shape of the
    hole (leaving them out was worth 0.4 points of Dice in published work); None when the batch has none.
    """

    visible: Tokens
    targets: Tokens
    removed: Bool[Tensor, "batch targets voxels"] | None = None

    def to(self, device: torch.device | str) -> MaskedBatch:
        removed = None if self.removed is None else self.removed.to(device, non_blocking=True)
        return MaskedBatch(self.visible.to(device), self.targets.to(device), removed)


def mask_bags(
    bags: Sequence[Tokens],
    generators: Sequence[torch.Generator],
    *,
    max_tokens: int,
    visible_fraction: float,
    max_targets: int,
    hide_series: float,
    removed: Sequence[Tensor | None] = (),
) -> MaskedBatch:
    """Split each bag at random by its own generator. With probability `hide_series` one whole series of a bag is never visible.

    The counts K and M are the same for all bags: the shortest bag (or `max_tokens`) sets them. `removed` is `(tokens, voxels)` of
    each bag.
    """
    shortest = min(min(len(bag) for bag in bags), max_tokens)
    assert shortest >= 2, "a bag of fewer than two tokens cannot be masked"
    num_visible = min(max(1, round(visible_fraction * shortest)), shortest - 1)
    num_targets = min(shortest - num_visible, max_targets)
    visible, targets, holes = [], [], []
    removed = removed or [None] * len(bags)
    for bag, generator, hole in zip(bags, generators, removed, strict=True):
        order = _visible_first(bag, num_visible, generator, hide_series)
        visible.append(bag.take(order[None, :num_visible]))
        rest = order[num_visible:]
        chosen = rest[torch.randperm(len(rest), generator=generator)[:num_targets]]
        targets.append(bag.take(chosen[None]))
        holes.append(torch.zeros(num_targets, PATCH_VOXELS, dtype=torch.bool) if hole is None else hole[chosen])
    stacked = torch.stack(holes)
    return MaskedBatch(Tokens.collate(visible), Tokens.collate(targets), stacked if stacked.any() else None)


def _visible_first(bag: Tokens, num_visible: int, generator: torch.Generator, hide_series: float) -> Tensor:
    """A random order of the bag's tokens whose first `num_visible` avoid the hidden series, if one is hidden."""
    score = torch.rand(len(bag), generator=generator)
    series = bag.series[0]
    present = series.unique()
    hide = torch.rand((), generator=generator) < hide_series
    hidden = present[torch.randint(len(present), (), generator=generator)]
    if hide and (series != hidden).sum() >= num_visible:
        score = score + (series == hidden)
    return score.argsort()
