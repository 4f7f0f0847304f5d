"""The probe: what it must see in features that know something, in ones that know nothing, and in collapsed ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError
from pretrain.probe import Probe, ProbeConfig, cross_validated_auroc, effective_rank, linear_dice


def test_the_effective_rank_counts_directions():
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(400, 3, generator=generator) @ torch.linalg.qr(torch.randn(16, 3, generator=generator))[0].T
    assert effective_rank(flat) == pytest.approx(3, abs=0.1)
    assert effective_rank(torch.randn(4000, 16, generator=generator)) > 15
    assert effective_rank(torch.ones(50, 1) * torch.randn(1, 16, generator=generator)) <= 1.0 + 1e-6
    assert effective_rank(torch.linspace(0, 1, 50)[:, None] * torch.ones(1, 16)) == pytest.approx(1, abs=0.01)


def test_auroc_knows_signal_from_noise():
    rng = np.random.default_rng(0)
    targets = np.arange(60) % 2
    noise = rng.standard_normal((60, 8))
    assert 0.25 < cross_validated_auroc(noise, targets) < 0.75
    noise[:, 0] += 4 * targets
    assert cross_validated_auroc(noise, targets) > 0.95


def test_linear_dice_is_one_for_features_that_hold_the_labels_and_low_for_noise():
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(0, 3, (60, 8), generator=generator) for _ in range(6)]
    knowing = [torch.nn.functional.one_hot(one, 3).flatten(1).float() for one in labels]
    assert linear_dice(knowing, labels, 3) > 0.99
    ignorant = [torch.randn(60, 24, generator=generator) for _ in labels]
    assert linear_dice(ignorant, labels, 3) < 0.5


def test_a_probe_of_an_encoder_leaves_it_as_it_was(make_collection):
    config = ProbeConfig(manifest=make_collection(12), spacing_mm=(4.0, 4.0, 4.0), target="large", structures=(1,))
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(width=64, depth=2)).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    figures = Probe(config).measure(encoder)
    assert set(figures) == {"probe/rank_studies", "probe/rank_tokens", "probe/auroc", "probe/dice"}
    assert 0 <= figures["probe/auroc"] <= 1 and 0 <= figures["probe/dice"] <= 1 and figures["probe/rank_tokens"] > 1
    assert encoder.training and all(torch.equal(before[name], now) for name, now in encoder.state_dict().items())
    assert Probe(config).measure(encoder) == figures


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"target": "size_ml"}, "0 or 1"), ({"split": "validation"}, "at least four"), ({"target": "nothing"}, "0 or 1")],
)
def test_a_probe_that_cannot_be_is_refused(make_collection, changed, words):
    with pytest.raises(InputError, match=words):
        Probe(ProbeConfig(manifest=make_collection(9), spacing_mm=(4.0, 4.0, 4.0), **changed))
