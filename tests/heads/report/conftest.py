"""A tiny decoder that has learnt nothing: how it is used is real."""

from __future__ import annotations

import pytest

from heads.report.decoder import Decoder
from heads.report.learning import LearnConfig, new_decoder


@pytest.fixture(scope="session")
def tiny_decoder() -> Decoder:
    return new_decoder(LearnConfig(width=48, depth=2, hidden=64, vocabulary_from=60)).eval()
