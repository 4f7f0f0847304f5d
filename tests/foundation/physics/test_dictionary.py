"""Matching finds what made the signals, whatever the images' gains."""

from __future__ import annotations

import torch

from foundation.physics.dictionary import match, table
from foundation.physics.signal import Mprage, TurboSpinEcho

SEQUENCES = (Mprage(), TurboSpinEcho(tr_ms=4500.0, te_ms=95.0), TurboSpinEcho(tr_ms=3000.0, te_ms=15.0))


def test_pairs_are_possible() -> None:
    pairs, signals = table(SEQUENCES)
    assert bool((pairs[:, 1] <= pairs[:, 0]).all()) and signals.shape == (len(pairs), 3)
    assert bool((signals >= 0).all()) and bool(signals.any(dim=1).all())


def test_noiseless_signals_are_found_again() -> None:
    """The median voxel is the typical one, so that the gains begin where they end."""
    pairs, signals = table(SEQUENCES)
    near = (pairs.log() - torch.tensor([1100.0, 85.0]).log()).norm(dim=1)
    chosen = near.argsort()[:41]
    gains = torch.tensor([300.0, 2.0, 40.0])
    t1, t2 = match((signals[chosen] * gains).T, SEQUENCES)
    error = torch.stack([t1, t2], dim=1).log() - pairs[chosen].log()
    assert float(error.abs().median()) < 0.1
