"""One optimisation step of masked autoencoding against MONAI's MaskedAutoEncoderViT, and two reasons for the ratio.

Both sides start from the same voxels and have the same width, depth, heads, MLP weights, patch, visible fraction and
optimiser. Ours predicts a third of the masked tokens, in the precision that `training.precision=auto` means here. MONAI
predicts all of them, in fp32, because its forward fails under bf16 autocast on a CPU (1.6.1). Reading, resampling and
finding the body are on neither side.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT
from torch import Tensor, nn

from benchmarks._measure import Row, Work, compare
from foundation.encoder import HEAD_DIM, Encoder, EncoderConfig
from foundation.preprocess import Grid
from foundation.study import Acquisition
from foundation.tokens import PATCH, Tokens, to_patches, tokenise
from foundation.training import resolve_precision, seeded
from pretrain.masking import MaskedBatch, mask_bags
from pretrain.objectives.masked_autoencoding import Config, Objective

ENCODER = EncoderConfig.of_size("small")
DECODER = Config(decoder_width=192, decoder_depth=2)
SHAPE = (96, 96, 96)
BATCH = 2
VISIBLE = 0.25
PREDICTED = 1 / 3  # of the masked tokens

AUTO_IS_BF16 = resolve_precision("auto") == "bf16"


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    voxels = torch.randn(BATCH, *SHAPE)
    body = torch.ones(BATCH, *SHAPE, dtype=torch.bool)
    half = body.clone()
    half[..., SHAPE[2] // 2 :] = False
    # Without bf16 units the targets are lower: what remains is work that is not done.
    yield _step("pretraining step, all tokens real", voxels, body, target=2.5 if AUTO_IS_BF16 else 1.25)
    yield _step("pretraining step, half of it air", voxels, half, target=4.0 if AUTO_IS_BF16 else 2.0)
    yield _precision(voxels, body)
    yield _visible_only(voxels, body)


def _step(name: str, voxels: Float[Tensor, "batch x y z"], body: Bool[Tensor, "batch x y z"], *, target: float) -> Row:
    objective, autoencoder = Objective(Encoder(ENCODER), DECODER), _monai_autoencoder()
    generator = seeded(0)

    def our_loss() -> Tensor:
        with _autocast(AUTO_IS_BF16):
            return objective(_masked(_bags(voxels, body), generator))["loss"]

    def their_loss() -> Tensor:
        predicted, is_masked = autoencoder(voxels[:, None])
        error = (predicted - torch.stack([to_patches(volume) for volume in voxels])).square().mean(dim=-1)
        return (error * is_masked).sum() / is_masked.sum()

    visible = len(_masked(_bags(voxels, body), generator).visible)
    with torch.no_grad():
        assert torch.isfinite(our_loss()) and torch.isfinite(their_loss())
        their_visible = int((autoencoder(voxels[:, None])[1][0] == 0).sum())
    return compare(
        name,
        ours=_optimisation(objective, our_loss),
        theirs=_optimisation(autoencoder, their_loss),
        target=target,
        ours_is=_facts(objective, AUTO_IS_BF16, visible),
        theirs_is=_facts(autoencoder, False, their_visible),
    )


def _precision(voxels: Tensor, body: Tensor) -> Row:
    """What `training.precision=auto` chooses between: the encoder's forward and backward on visible tokens."""
    encoder = Encoder(ENCODER)
    visible = _masked(_bags(voxels, body), seeded(0)).visible
    in_bf16, in_fp32 = _backward(encoder, visible, bf16=True), _backward(encoder, visible, bf16=False)
    exact = in_fp32()
    difference = float((in_bf16() - exact).norm() / exact.norm())
    assert difference < 0.02, f"bf16 features are {difference:.3f} away from fp32"
    return compare("encoder, bf16 against fp32", ours=in_bf16, theirs=in_fp32, relative_difference=difference)


def _visible_only(voxels: Tensor, body: Tensor) -> Row:
    """What masking saves: the encoder's forward and backward on the visible tokens against all of them."""
    encoder = Encoder(ENCODER)
    bags = Tokens.collate(_bags(voxels, body))
    visible = _masked(_bags(voxels, body), seeded(0)).visible
    return compare(
        "encoder, visible tokens against all",
        ours=_backward(encoder, visible, bf16=AUTO_IS_BF16),
        theirs=_backward(encoder, bags, bf16=AUTO_IS_BF16),
        our_tokens=len(visible),
        their_tokens=len(bags),
    )


def _bags(voxels: Tensor, body: Tensor) -> list[Tokens]:
    grid = Grid(SHAPE, np.eye(4))
    return [tokenise(volume, inside, grid, "T1w", Acquisition()) for volume, inside in zip(voxels, body)]


def _masked(bags: list[Tokens], generator: torch.Generator) -> MaskedBatch:
    num_tokens = len(bags[0])
    max_targets = round(PREDICTED * (1 - VISIBLE) * num_tokens)
    return mask_bags(
        bags,
        [generator] * len(bags),
        max_tokens=num_tokens,
        visible_fraction=VISIBLE,
        max_targets=max_targets,
        hide_series=0.0,
    )


def _monai_autoencoder() -> MaskedAutoEncoderViT:
    width, decoder_width = ENCODER.width, DECODER.decoder_width
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)
        return MaskedAutoEncoderViT(
            in_channels=1,
            img_size=SHAPE,
            patch_size=PATCH,
            masking_ratio=1 - VISIBLE,
            hidden_size=width,
            mlp_dim=4 * width,
            num_layers=ENCODER.depth,
            num_heads=width // HEAD_DIM,
            decoder_hidden_size=decoder_width,
            decoder_mlp_dim=4 * decoder_width,
            decoder_num_layers=DECODER.decoder_depth,
            decoder_num_heads=decoder_width // HEAD_DIM,
        )


def _optimisation(model: nn.Module, loss: Callable[[], Tensor]) -> Work:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def _backward(encoder: Encoder, tokens: Tokens, *, bf16: bool) -> Callable[[], Tensor]:
    def forward_and_backward() -> Tensor:
        encoder.zero_grad()
        with _autocast(bf16):
            features = encoder(tokens).tokens
        features.float().square().mean().backward()
        return features.detach().float()

    return forward_and_backward


def _autocast(bf16: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=bf16)


def _facts(model: nn.Module, bf16: bool, visible: int) -> dict[str, Any]:
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"weights": weights, "precision": "bf16" if bf16 else "fp32", "visible_tokens": visible}
