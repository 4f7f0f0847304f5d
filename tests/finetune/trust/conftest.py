"""What several questions of trust are asked of: an untrained model, small enough to be asked often."""

import pytest
import torch

from foundation.encoder import Encoder, EncoderConfig
from heads import parse_head
from heads.base import TaskModel


@pytest.fixture
def model() -> TaskModel:
    torch.manual_seed(0)
    head = {
        "kind": "segmentation",
        "structures": [{"value": 1, "name": "core", "paired": False}],
        "channels": [4, 8, 8],
        "bottleneck": 16,
    }
    return TaskModel.build(Encoder(EncoderConfig(width=64, depth=1)), parse_head(head)).eval()
