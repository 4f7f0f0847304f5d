"""The encoder: a plain vision transformer on a bag of tokens (`foundation/tokens.py`).

Blocks are timm's `EvaBlock` (SwiGLU, LayerScale, fused attention; EVA-02, Fang et al. 2023) with separate q, k, v
projections so that LoRA and mixed-adapter batches work. Position enters only as a rotation of queries and keys by patient
millimetres (RoPE, Su et al. 2021, in three axes). Attention between tokens depends on differences alone; the registers,
which have no place, see millimetres from the middle of the bag. So moving a patient changes nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from foundation.checkpoint import load_model_folder, save_model_folder
from foundation.config import Config
from foundation.meters import transformer_flops
from foundation.study import ACQUISITION_SIZE, CONTRASTS
from foundation.tokens import PATCH_VOXELS, Tokens

HEAD_DIM = 64  # what the fused attention kernels are fastest at
AXIS_PAIRS = (
    10  # rotated pairs of channels per patient axis; 3 x 10 of the head's 32 pairs, the last two stay unrotated
)
SHORTEST_MM, LONGEST_MM = 16.0, 512.0  # wavelengths: from two patches at 1 mm to twice a head

Size = Literal["tiny", "small", "base", "large"]


class EncoderConfig(Config):
    """Sizes: tiny 192 wide and 6 deep, small 384 and 12, base 768 and 12, large 1024 and 24."""

    width: int = Field(default=192, ge=HEAD_DIM, le=2**13, multiple_of=HEAD_DIM)
    depth: int = Field(default=6, ge=0, le=2**8)
    mlp_ratio: float = Field(
        default=8 / 3, gt=0, le=64
    )  # SwiGLU has three matrices: as many weights as a plain MLP of ratio 4
    num_registers: int = Field(default=4, ge=0, le=2**10)
    drop_path: float = 0.0
    layer_scale: float = 0.1

    @classmethod
    def of_size(cls, size: Size, **changes: Any) -> EncoderConfig:
        width, depth = {"tiny": (192, 6), "small": (384, 12), "base": (768, 12), "large": (1024, 24)}[size]
        return cls(width=width, depth=depth, **changes)


class Features(NamedTuple):
    """What the encoder says of each token and of the study as a whole (its registers)."""

    tokens: Float[Tensor, "batch tokens width"]
    registers: Float[Tensor, "batch registers width"]


class OnTheWay(NamedTuple):
    """A bag between two blocks: registers and tokens so far, and what every block is told of their places."""

    x: Float[Tensor, "batch sequence width"]
    rotation: Float[Tensor, "batch 1 tokens sin_cos"]
    mask: Tensor | None


class TokenEmbedding(nn.Module):
    """A token's voxels, contrast, voxel size and acquisition as one vector. Position is not among them."""

    def __init__(self, width: int):
        super().__init__()
        self.patch = nn.Linear(PATCH_VOXELS, width)
        self.origin = OriginEmbedding(width)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch tokens width"]:
        return self.patch(tokens.patches) + self.origin(tokens)


class OriginEmbedding(nn.Module):
    """What made a token, without what it shows: contrast, voxel size, acquisition. Also what a decoder is told of a target."""

    def __init__(self, width: int):
        super().__init__()
        self.contrast = nn.Embedding(len(CONTRASTS), width)
        self.voxel_size = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        self.acquisition = nn.Linear(ACQUISITION_SIZE, width, bias=False)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch tokens width"]:
        # A padded token has voxel size 0; its logarithm must stay finite, because 0 x infinity in attention is not 0.
        log_size = tokens.voxel_mm.clamp(min=1e-3).log()
        return self.contrast(tokens.contrast) + self.voxel_size(log_size) + self.acquisition(tokens.acquisition)


class PatientRotation(nn.Module):
    """Rotary position in three patient axes: pairs of channels turn by 2 pi times position over wavelength."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        wavelengths = SHORTEST_MM * (LONGEST_MM / SHORTEST_MM) ** torch.linspace(0, 1, AXIS_PAIRS, dtype=torch.float64)
        self.register_buffer("frequencies", (2 * torch.pi / wavelengths).float(), persistent=False)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch 1 tokens sin_cos"]:
        """Sine then cosine for each channel of a head, as timm's blocks take them; always in float32."""
        with torch.autocast(tokens.centre_mm.device.type, enabled=False):
            real = tokens.is_real[..., None].float()
            middle = (tokens.centre_mm * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True)
            angle = ((tokens.centre_mm - middle)[..., None] * self.frequencies.float()).flatten(-2)
            angle = nn.functional.pad(angle, (0, HEAD_DIM // 2 - angle.shape[-1]))
            angle = angle.repeat_interleave(2, dim=-1)
            return torch.cat([angle.sin(), angle.cos()], dim=-1)[:, None]


def make_blocks(
    width: int, depth: int, *, mlp_ratio: float, num_prefix: int, layer_scale: float, drop_path: float
) -> nn.ModuleList:
    """Transformer blocks with rotary attention whose first `num_prefix` tokens have no position."""
    assert width % HEAD_DIM == 0, f"width {width} is not a multiple of the head dimension {HEAD_DIM}"
    rates = [drop_path * block / max(1, depth - 1) for block in range(depth)]
    blocks = nn.ModuleList(
        EvaBlock(
            width,
            num_heads=width // HEAD_DIM,
            qkv_fused=False,
            mlp_ratio=mlp_ratio,
            swiglu_mlp=True,
            swiglu_align_to=64,
            num_prefix_tokens=num_prefix,
            init_values=layer_scale,
            drop_path=rate,
        )
        for rate in rates
    )
    blocks.apply(_initialise)
    return blocks


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Encoder(nn.Module):
    """Bag of tokens in, one feature vector per token and per register out. It never sees a cube."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.embed = TokenEmbedding(config.width)
        self.registers = nn.Parameter(torch.empty(config.num_registers, config.width))
        self.rotation = PatientRotation()
        self.blocks = make_blocks(
            config.width,
            config.depth,
            mlp_ratio=config.mlp_ratio,
            num_prefix=config.num_registers,
            layer_scale=config.layer_scale,
            drop_path=config.drop_path,
        )
        self.norm = nn.LayerNorm(config.width)
        self.embed.apply(_initialise)
        nn.init.trunc_normal_(self.registers, std=0.02)

    def forward(self, tokens: Tokens) -> Features:
        way = self.begin(tokens)
        for block in self.blocks:
            way = way._replace(x=block(way.x, rope=way.rotation, attn_mask=way.mask))
        return self.finish(way.x)

    def begin(self, tokens: Tokens) -> OnTheWay:
        """The bag before the first block."""
        embedded = self.embed(tokens)
        registers = self.registers.expand(len(embedded), -1, -1).to(embedded.dtype)
        mask = attention_mask(tokens, self.config.num_registers)
        return OnTheWay(torch.cat([registers, embedded], dim=1), self.rotation(tokens), mask)

    def finish(self, x: Float[Tensor, "batch sequence width"]) -> Features:
        """What the last block gave, as features."""
        x = self.norm(x)
        num_registers = self.config.num_registers
        return Features(tokens=x[:, num_registers:], registers=x[:, :num_registers])

    def flops(self, tokens: int) -> float:
        """Of one forward pass over a bag of that many tokens: embedding and blocks, a multiply-add counted as two."""
        config = self.config
        embed = (
            2 * tokens * config.width * (PATCH_VOXELS + config.width)
        )  # the voxels, and the voxel size's second layer
        return embed + transformer_flops(tokens + config.num_registers, config.width, config.depth, config.mlp_ratio)

    def save(self, folder: Path, *, card: str, provenance: dict[str, Any]) -> None:
        """Write the model folder: config.json, model.safetensors, card.md."""
        save_model_folder(
            folder, kind="encoder", config=self.config, state=self.state_dict(), card=card, provenance=provenance
        )

    @classmethod
    def load(cls, folder: Path) -> Encoder:
        """Read a model folder strictly: a missing, extra or misshapen tensor is an `InputError`."""
        loaded = load_model_folder(folder, kind="encoder", config=EncoderConfig)
        encoder = loaded.build(lambda: cls(loaded.config))
        loaded.fill(encoder)
        return encoder


def layer_rate(name: str, depth: int, decay: float) -> float:
    """The learning rate of an encoder's weight relative to that of its last block: `decay` for each block below it (ELECTRA's
    layer-wise decay, Clark et al. 2020). `name` may have any prefix; what is after the blocks learns at 1."""
    block = re.search(r"\bblocks\.(\d+)\.", name)
    if block:
        return decay ** (depth - 1 - int(block[1]))
    return decay**depth if re.search(r"\b(embed|registers)\b", name) else 1.0


def attention_mask(tokens: Tokens, num_prefix: int) -> Tensor | None:
    """Which keys may be looked at, `(batch, 1, 1, prefix + tokens)`; None when all may, which is the fast path."""
    if not tokens.has_padding:
        return None
    return nn.functional.pad(tokens.is_real, (num_prefix, 0), value=True)[:, None, None]
