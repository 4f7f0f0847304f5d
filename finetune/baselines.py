"""The baseline that a segmentation head has to beat: MONAI's DynUNet, the network of nnU-Net (Isensee et al. 2021)."""

from __future__ import annotations

from jaxtyping import Float
from monai.networks.nets.dynunet import DynUNet
from torch import Tensor, nn

from foundation.encoder import EncoderConfig, Features
from foundation.tokens import Tokens
from heads.base import StudyBatch, TaskModel
from heads.segmentation import Config, LabelMapHead

FILTERS = (16, 32, 64, 128)  # nnU-Net's plan for these volumes has three halvings; it starts from 32 on a GPU


def dynunet(config: Config) -> TaskModel:
    """A task model whose encoder looks at nothing and whose head is a DynUNet on the mean of the series."""
    return TaskModel(_Nothing(), _DynUNetHead(config))


class _Nothing(nn.Module):
    def forward(self, tokens: Tokens) -> None:
        return None


class _DynUNetHead(LabelMapHead):
    def __init__(self, config: Config):
        super().__init__(EncoderConfig(), config)
        depth = len(FILTERS)
        self.net = DynUNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=1 + len(config.structures),
            kernel_size=[3] * depth,
            strides=[1] + [2] * (depth - 1),
            upsample_kernel_size=[2] * (depth - 1),
            filters=FILTERS,
        )
        # `skip_layers` is what runs and holds the same blocks again: named once, they are averaged and saved once.
        for twice in ("input_block", "downsamples", "bottleneck", "upsamples"):
            delattr(self.net, twice)

    def forward(self, features: Features | None, batch: StudyBatch) -> Float[Tensor, "batch classes x y z"]:
        assert batch.voxels is not None and batch.has_series is not None
        weight = batch.has_series.float() / batch.has_series.sum(dim=1, keepdim=True)
        mean = (batch.voxels * weight[:, :, None, None, None]).sum(dim=1, keepdim=True)
        return self.net(mean)
