"""One optimisation step of masked autoencoding against MONAI's MaskedAutoEncoderViT, in time and in memory, and the
reasons for the ratio.

Both sides start from the same voxels and have the same width, depth, heads, MLP weights, patch, visible fraction and
optimiser. Ours predicts a third of the masked tokens, in the precision that `training.precision=auto` means here. MONAI
predicts all of them, in fp32, because its forward fails under bf16 autocast on a CPU (1.6.1). Reading, resampling and
finding the body are on neither side.
"""

from __future__ import annotations

import multiprocessing
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from jaxtyping import Bool, Float
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT
from torch import Tensor, nn

from benchmarks._measure import Row, Work, compare, compare_sizes
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
    yield _decoder_subset(voxels, body)
    yield _peak_memory()


def _step(name: str, voxels: Float[Tensor, "batch x y z"], body: Bool[Tensor, "batch x y z"], *, target: float) -> Row:
    ours, our_facts = _our_step(voxels, body)
    theirs, their_facts = _their_step(voxels, body)
    return compare(name, ours=ours, theirs=theirs, target=target, ours_is=our_facts, theirs_is=their_facts)


def _our_step(voxels: Tensor, body: Tensor) -> tuple[Work, dict[str, Any]]:
    objective, generator = Objective(Encoder(ENCODER), DECODER), seeded(0)

    def loss() -> Tensor:
        with _autocast(AUTO_IS_BF16):
            return objective(_masked(_bags(voxels, body), generator))["loss"]

    with torch.no_grad():
        assert torch.isfinite(loss())
    visible = len(_masked(_bags(voxels, body), generator).visible)
    return _optimisation(objective, loss), _facts(objective, AUTO_IS_BF16, visible)


def _their_step(voxels: Tensor, body: Tensor) -> tuple[Work, dict[str, Any]]:
    """The same whatever is air."""
    autoencoder = _monai_autoencoder()

    def loss() -> Tensor:
        predicted, is_masked = autoencoder(voxels[:, None])
        error = (predicted - torch.stack([to_patches(volume) for volume in voxels])).square().mean(dim=-1)
        return (error * is_masked).sum() / is_masked.sum()

    with torch.no_grad():
        assert torch.isfinite(loss())
        visible = int((autoencoder(voxels[:, None])[1][0] == 0).sum())
    return _optimisation(autoencoder, loss), _facts(autoencoder, False, visible)


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
        target=4.0,
        our_tokens=len(visible),
        their_tokens=len(bags),
    )


def _decoder_subset(voxels: Tensor, body: Tensor) -> Row:
    """What it saves to predict a third of the masked tokens: a whole step against one that predicts all of them."""
    objective = Objective(Encoder(ENCODER), DECODER)

    def step(share: float) -> Work:
        generator = seeded(0)

        def loss() -> Tensor:
            with _autocast(AUTO_IS_BF16):
                return objective(_masked(_bags(voxels, body), generator, share))["loss"]

        return _optimisation(objective, loss)

    return compare("pretraining step, a third of the targets", ours=step(PREDICTED), theirs=step(1.0), target=1.25)


def _peak_memory() -> Row:
    """Bytes that a step takes at its worst, beyond the model and its data; each side in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        ours, theirs = pool.map(_peak_of_a_step, ["ours", "theirs"], chunksize=1)
    return compare_sizes("a step's peak memory, half of it air", ours=ours, theirs=theirs, target=2.5)


def _peak_of_a_step(side: str) -> int:
    torch.manual_seed(0)
    voxels, body = torch.randn(BATCH, *SHAPE), torch.ones(BATCH, *SHAPE, dtype=torch.bool)
    body[..., SHAPE[2] // 2 :] = False
    step, _ = (_our_step if side == "ours" else _their_step)(voxels, body)
    before = psutil.Process().memory_info().rss
    for _ in range(2):
        step()
    # Not ru_maxrss, which a new process takes over from the one that started it.
    high = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert high is not None
    return 1024 * int(high[1]) - before


def _bags(voxels: Tensor, body: Tensor) -> list[Tokens]:
    grid = Grid(SHAPE, np.eye(4))
    return [tokenise(volume, inside, grid, "T1w", Acquisition()) for volume, inside in zip(voxels, body)]


def _masked(bags: list[Tokens], generator: torch.Generator, predicted: float = PREDICTED) -> MaskedBatch:
    num_tokens = len(bags[0])
    max_targets = round(predicted * (1 - VISIBLE) * num_tokens)
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
