"""Masking: two dense rectangles, nothing in both, hidden series hidden, everything from the seed."""

import pytest
import torch

from foundation.tokens import Tokens
from foundation.training import seeded
from pretrain.masking import MaskedBatch, mask_bags


def bag(num_tokens: int, num_series: int = 2) -> Tokens:
    number = torch.arange(num_tokens)
    return Tokens(
        patches=number[None, :, None].float().expand(1, -1, 512).clone(),
        centre_mm=torch.zeros(1, num_tokens, 3),
        voxel_mm=torch.ones(1, num_tokens, 3),
        contrast=torch.zeros(1, num_tokens, dtype=torch.long),
        acquisition=torch.zeros(1, num_tokens, 10),
        series=(number % num_series)[None],
        cell=torch.zeros(1, num_tokens, 3, dtype=torch.long),
        is_real=torch.ones(1, num_tokens, dtype=torch.bool),
    )


def masked(bags: list[Tokens], seed: int = 0, hide_series: float = 0.0, **limits: int) -> MaskedBatch:
    options = {"max_tokens": 100, "max_targets": 100} | limits
    return mask_bags(
        bags, [seeded(seed, i) for i in range(len(bags))], visible_fraction=0.25, hide_series=hide_series, **options
    )


def ids(tokens: Tokens) -> list[list[int]]:
    return tokens.patches[..., 0].long().tolist()


def test_bags_of_unequal_length_become_rectangles_without_padding() -> None:
    batch = masked([bag(40), bag(61), bag(90)])
    assert (len(batch.visible), len(batch.targets)) == (10, 30)
    assert not batch.visible.has_padding and not batch.targets.has_padding
    for seen, wanted in zip(ids(batch.visible), ids(batch.targets), strict=True):
        assert not set(seen) & set(wanted)
        assert len(set(seen)) == 10 and len(set(wanted)) == 30


def test_limits_hold() -> None:
    batch = masked([bag(90), bag(90)], max_tokens=40, max_targets=5)
    assert (len(batch.visible), len(batch.targets)) == (10, 5)


def test_targets_come_from_everything_that_is_not_visible() -> None:
    """Over many draws each token of a bag is a target about equally often: no token is never learnt from."""
    counts = torch.zeros(20)
    for seed in range(400):
        counts[ids(masked([bag(20)], seed=seed, max_targets=5).targets)[0]] += 1
    assert counts.min() > 0.6 * counts.mean()


def test_a_hidden_series_is_never_visible() -> None:
    for seed in range(30):
        batch = masked([bag(40)], seed=seed, hide_series=1.0)
        assert len(batch.visible.series.unique()) == 1


def test_a_study_of_one_series_or_too_few_other_tokens_still_goes_through() -> None:
    assert len(masked([bag(12, num_series=1)], hide_series=1.0).visible) == 3
    assert len(masked([bag(2)], hide_series=1.0).targets) == 1


def test_the_seed_decides() -> None:
    assert ids(masked([bag(40)], seed=3).visible) == ids(masked([bag(40)], seed=3).visible)
    assert ids(masked([bag(40)], seed=3).visible) != ids(masked([bag(40)], seed=4).visible)


def test_a_bag_of_one_token_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="fewer than two"):
        masked([bag(1)])
