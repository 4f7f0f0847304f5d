"""Masked autoencoding of a bag of tokens (He et al. 2022, "Masked autoencoders are scalable vision learners").

Only visible tokens are embedded and encoded. A narrow decoder looks at them and at the targets, which it knows by place,
contrast and voxel size alone, and predicts the targets' voxels, standardised within each patch.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foundation.encoder import Encoder, OriginEmbedding, PatientRotation, make_blocks
from foundation.meters import Work, transformer_flops
from foundation.registry import KindConfig
from foundation.tokens import PATCH_VOXELS, Tokens
from pretrain.masking import MaskedBatch

FLAT_VARIANCE = 1e-3  # of a volume whose variance is 1: below it a patch is flat, and standardising would amplify noise


class Config(KindConfig):
    kind: Literal["masked_autoencoding"] = "masked_autoencoding"
    decoder_width: int = 192
    decoder_depth: int = 2


class Objective(nn.Module):
    """`forward` is encode, decode, compare."""

    def __init__(self, encoder: Encoder, config: Config):
        super().__init__()
        width = config.decoder_width
        self.encoder = encoder
        self.narrow = nn.Linear(encoder.config.width, width)
        self.target = nn.Parameter(torch.empty(width))
        self.origin = OriginEmbedding(width)
        self.rotation = PatientRotation()
        self.blocks = make_blocks(
            width,
            config.decoder_depth,
            mlp_ratio=encoder.config.mlp_ratio,
            num_prefix=encoder.config.num_registers,
            layer_scale=encoder.config.layer_scale,
            drop_path=0.0,
        )
        self.norm = nn.LayerNorm(width)
        self.to_voxels = nn.Linear(width, PATCH_VOXELS)
        nn.init.trunc_normal_(self.target, std=0.02)

    def forward(self, batch: MaskedBatch) -> dict[str, Tensor]:
        predicted = self.reconstruct(batch.visible, batch.targets).float()
        if batch.removed is None:
            return {"loss": nn.functional.mse_loss(predicted, standardised(batch.targets.patches))}
        kept = ~batch.removed
        error = (predicted - standardised(batch.targets.patches, kept)).square()
        return {"loss": (error * kept).sum() / kept.sum().clamp(min=1)}

    def reconstruct(self, visible: Tokens, targets: Tokens) -> Float[Tensor, "batch targets voxels"]:
        """The targets' standardised voxels; what `targets.patches` holds is not looked at."""
        features = self.encoder(visible)
        seen = self.narrow(torch.cat([features.registers, features.tokens], dim=1))
        wanted = self.target + self.origin(targets)
        x = torch.cat([seen, wanted.to(seen.dtype)], dim=1)
        rotation = self.rotation(Tokens.join([visible, targets]))
        for block in self.blocks:
            x = block(x, rope=rotation)
        return self.to_voxels(self.norm(x[:, -len(targets) :]))

    def work(self, batch: MaskedBatch) -> Work:
        studies, seen, wanted = len(batch.visible.is_real), len(batch.visible), len(batch.targets)
        return Work(studies * (seen + wanted), studies * self.operations(seen, wanted))

    def operations(self, visible: int, targets: int) -> float:
        """Of one sample, forward and backward, which costs twice as much: `visible` tokens are encoded and, narrow, decoded
        beside the `targets`."""
        config, width = self.encoder.config, self.narrow.out_features
        seen = config.num_registers + visible
        decode = transformer_flops(seen + targets, width, len(self.blocks), config.mlp_ratio)
        ends = 2 * seen * config.width * width + 2 * targets * width * (width + PATCH_VOXELS)
        return 3 * (self.encoder.flops(visible) + decode + ends)

    def learning_rate_scale(self, name: str) -> float:
        return 1.0


def standardised(
    patches: Float[Tensor, "batch tokens voxels"], kept: Bool[Tensor, "batch tokens voxels"] | None = None
) -> Float[Tensor, "batch tokens voxels"]:
    """Each patch with mean 0 and variance 1, so that the loss asks for structure and not for brightness.

    Of the `kept` voxels alone where some are left out: the hole of a removed face would set the mean of what is beside it.
    """
    patches = patches.float()
    if kept is None:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=0)
    else:
        number = kept.sum(dim=-1, keepdim=True).clamp(min=1)
        mean = (patches * kept).sum(dim=-1, keepdim=True) / number
        variance = ((patches - mean).square() * kept).sum(dim=-1, keepdim=True) / number
    return (patches - mean) / (variance + FLAT_VARIANCE).sqrt()
