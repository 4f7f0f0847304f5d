"""The narrow decoder of masked autoencoding: what it was not shown of a study, from what the encoder saw of the rest.

He et al. 2022, "Masked autoencoders are scalable vision learners". A target is known by its place, contrast and voxel size alone.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foundation.encoder import EncoderConfig, Features, OriginEmbedding, PatientRotation, attention_mask, make_blocks
from foundation.tokens import PATCH_VOXELS, Tokens


class MaskedDecoder(nn.Module):
    """A few blocks, `width` wide, over what was seen and what is wanted."""

    def __init__(self, encoder: EncoderConfig, width: int, depth: int):
        super().__init__()
        self.narrow = nn.Linear(encoder.width, width)
        self.target = nn.Parameter(torch.empty(width))
        self.origin = OriginEmbedding(width)
        self.rotation = PatientRotation()
        self.blocks = make_blocks(
            width,
            depth,
            mlp_ratio=encoder.mlp_ratio,
            num_prefix=encoder.num_registers,
            layer_scale=encoder.layer_scale,
            drop_path=0.0,
        )
        self.norm = nn.LayerNorm(width)
        self.to_voxels = nn.Linear(width, PATCH_VOXELS)
        nn.init.trunc_normal_(self.target, std=0.02)

    def forward(self, features: Features, visible: Tokens, targets: Tokens) -> Float[Tensor, "batch targets voxels"]:
        """`features` are the encoder's of `visible`; what `targets.patches` holds is not looked at."""
        seen = self.narrow(torch.cat([features.registers, features.tokens], dim=1))
        wanted = self.target + self.origin(targets)
        x = torch.cat([seen, wanted.to(seen.dtype)], dim=1)
        both = Tokens.join([visible, targets])
        rotation, mask = self.rotation(both), attention_mask(both, features.registers.shape[1])
        for block in self.blocks:
            x = block(x, rope=rotation, attn_mask=mask)
        return self.to_voxels(self.norm(x[:, -len(targets) :]))
