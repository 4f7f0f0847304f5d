"""The facts about the encoder that everything else relies on, shown on studies rather than on tensors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from foundation.encoder import Encoder, EncoderConfig, PatientRotation, layer_rate
from foundation.preprocess import prepare_study
from foundation.study import Acquisition, Series, Study
from foundation.tokens import Tokens
from heads.base import StudySample

TOLERANCE = 2e-5  # float32 over six blocks


def phantom(seed: int = 0, shape: tuple[int, int, int] = (40, 44, 36), contrast: str = "T1w") -> Series:
    """A bright, textured ball in dark air, off centre so that no axis is like another."""
    rng = np.random.default_rng(seed)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    inside = np.linalg.norm((index - np.array([18, 22, 17])) / np.array([13, 15, 12]), axis=-1) < 1
    voxels = np.where(inside, 100 + 20 * rng.random(shape), rng.random(shape)).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-40, -44, -36)
    return Series(voxels, affine, contrast=contrast, acquisition=Acquisition(echo_time_ms=80.0), name=contrast)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig.of_size("tiny")).eval()
    for parameter in encoder.parameters():  # biases and embeddings that start at 0 would hide what they do
        parameter.data += 0.02 * torch.randn_like(parameter)
    return encoder


@pytest.fixture(scope="module")
def study() -> Study:
    return Study("phantom", (phantom(0, contrast="T1w"), phantom(1, contrast="T2w")))


def tokens_of(study: Study) -> Tokens:
    return StudySample.of(prepare_study(study, (2.0, 2.0, 2.0))).tokens()


@torch.no_grad()
def test_permuting_tokens_permutes_features(encoder: Encoder, study: Study) -> None:
    bag = tokens_of(study)
    order = torch.randperm(len(bag), generator=torch.Generator().manual_seed(0))
    straight, shuffled = encoder(bag), encoder(bag.take(order[None]))
    assert torch.allclose(straight.tokens[:, order], shuffled.tokens, atol=TOLERANCE)
    assert torch.allclose(straight.registers, shuffled.registers, atol=TOLERANCE)


@torch.no_grad()
def test_padding_changes_nothing(encoder: Encoder, study: Study) -> None:
    bag = tokens_of(study)
    short = bag.take(torch.arange(10)[None])
    batch = Tokens.collate([bag, short])
    assert batch.has_padding
    together = encoder(batch)
    assert torch.allclose(together.tokens[:1], encoder(bag).tokens, atol=TOLERANCE)
    assert torch.allclose(together.tokens[1:, :10], encoder(short).tokens, atol=TOLERANCE)
    assert torch.allclose(together.registers[1:], encoder(short).registers, atol=TOLERANCE)


@torch.no_grad()
def test_moving_the_whole_study_changes_nothing(encoder: Encoder, study: Study) -> None:
    here, there = encoder(tokens_of(study)), encoder(tokens_of(study.moved(np.array([30.0, 30.0, 30.0]))))
    assert torch.allclose(here.tokens, there.tokens, atol=TOLERANCE)
    assert torch.allclose(here.registers, there.registers, atol=TOLERANCE)


@torch.no_grad()
def test_moving_one_series_does_change_something(encoder: Encoder, study: Study) -> None:
    """Otherwise the two tests above would pass for an encoder that ignores position."""
    bag = tokens_of(study)
    moved = replace(bag, centre_mm=bag.centre_mm + 30.0 * (bag.series == 1)[..., None])
    assert not torch.allclose(encoder(bag).tokens, encoder(moved).tokens, atol=100 * TOLERANCE)


def test_flipping_left_and_right_moves_positions(study: Study) -> None:
    """A head mirrored in the patient has its tokens at mirrored places; a head whose array alone is mirrored has not."""
    first = study.reference
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    mirrored = Study("mirrored", (replace(first, affine=mirror @ first.affine),))
    stored_backwards = Study(
        "stored backwards",
        (first.with_voxels(first.voxels[::-1].copy(), first.affine @ _reversal(first.shape[0])),),
    )
    place = {
        name: tokens_of(one).centre_mm[0]
        for name, one in {"as it is": Study("a", (first,)), "mirrored": mirrored}.items()
    }
    assert torch.allclose(place["as it is"][:, 0].mean(), -place["mirrored"][:, 0].mean(), atol=9.0)
    assert abs(float(place["as it is"][:, 0].mean())) > 2
    assert torch.equal(place["as it is"], tokens_of(stored_backwards).centre_mm[0])


def _reversal(length: int) -> np.ndarray:
    matrix = np.diag([-1.0, 1.0, 1.0, 1.0])
    matrix[0, 3] = length - 1
    return matrix


@torch.no_grad()
def test_a_study_with_one_series_fewer_goes_through(encoder: Encoder, study: Study) -> None:
    bag = tokens_of(study.without(0))
    assert set(bag.series.flatten().tolist()) == {0}
    assert torch.isfinite(encoder(bag).tokens).all()


def test_every_parameter_gets_a_gradient(study: Study) -> None:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig.of_size("tiny"))
    features = encoder(tokens_of(study))
    (features.tokens.square().mean() + features.registers.square().mean()).backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize(
    ("size", "width", "depth"), [("tiny", 192, 6), ("small", 384, 12), ("base", 768, 12), ("large", 1024, 24)]
)
def test_sizes(size: str, width: int, depth: int) -> None:
    config = EncoderConfig.of_size(size)  # type: ignore[arg-type]
    assert (config.width, config.depth) == (width, depth)
    with torch.device("meta"):
        assert len(Encoder(config).blocks) == depth


def test_rotation_equals_a_naive_one(study: Study) -> None:
    """Pair by pair, token by token, against the vectorised sine and cosine that timm's blocks take."""
    bag = tokens_of(study)
    rotation = PatientRotation()
    sine, cosine = rotation(bag)[0, 0].chunk(2, dim=-1)
    middle = bag.centre_mm[0].double().mean(dim=0)
    for token in (0, len(bag) - 1):
        for pair in range(32):
            axis, which = divmod(pair, 10)
            angle = 0.0
            if pair < 30:
                wavelength = 16.0 * (512.0 / 16.0) ** (which / 9)
                angle = float(2 * np.pi * (bag.centre_mm[0, token, axis].double() - middle[axis]) / wavelength)
            for channel in (2 * pair, 2 * pair + 1):
                assert float(sine[token, channel]) == pytest.approx(np.sin(angle), abs=1e-4)
                assert float(cosine[token, channel]) == pytest.approx(np.cos(angle), abs=1e-4)


def test_layer_wise_decay_falls_from_the_last_block_to_the_embedding():
    """Under any prefix, an adapter's too; what comes after the blocks learns at the full rate."""
    encoder = Encoder(EncoderConfig(width=64, depth=3))
    rates = {name: layer_rate(f"encoder.base_model.model.{name}", 3, 0.5) for name, _ in encoder.named_parameters()}
    assert {rate for name, rate in rates.items() if name.startswith("blocks.2.")} == {1.0}
    assert {rate for name, rate in rates.items() if name.startswith("blocks.0.")} == {0.25}
    assert rates["embed.patch.weight"] == rates["registers"] == 0.125 and rates["norm.weight"] == 1.0
    assert {layer_rate(name, 3, 1.0) for name in rates} == {1.0}
