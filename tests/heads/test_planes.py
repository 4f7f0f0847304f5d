"""A few planes at a time, the numbers are those of the whole volume; and memory that is read is written only afterwards."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from foundation.encoder import EncoderConfig, Features
from foundation.preprocess import Grid
from foundation.study import Acquisition
from heads import _planes, parse_head
from heads._planes import convolve
from heads.base import StudyBatch, StudySample
from heads.segmentation import ContrastBlock, ConvBlock, Head

ENCODER = EncoderConfig(width=64, depth=1)


@pytest.fixture(autouse=True, params=[1, 200, 10_000])
def _voxels_at_a_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One plane, a few, and all of these small volumes."""
    monkeypatch.setattr(_planes, "VOXELS_AT_A_TIME", request.param)


def unlike(module: nn.Module) -> nn.Module:
    """No scale is 1 and no shift is 0."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def both_ways(module: nn.Module, *inputs: object) -> tuple[Tensor, Tensor]:
    """In one piece, as while something is learnt, and by planes."""
    with torch.enable_grad():
        whole = module(*inputs).detach()
    with torch.no_grad():
        return whole, module(*inputs)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(2, 4, 6), (6, 4, 2), (8, 10, 12), (22, 4, 6)])
def test_a_block_by_planes_is_the_block(shape: Sequence[int], stride: int) -> None:
    block = unlike(ConvBlock(3, 5, stride=stride))
    x = torch.randn(2, 3, *shape)
    before = x.clone()
    whole, by_planes = both_ways(block, x)
    assert by_planes.shape == whole.shape
    assert torch.allclose(by_planes, whole, atol=1e-5)
    assert torch.equal(x, before)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7])
def test_what_comes_out_may_lie_where_what_goes_in_lay(number: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 4, number, 5, 6), torch.randn(4, 4, 3, 3, 3)
    expected = nn.functional.conv3d(x, weight, padding=1)
    asked: list[int] = []

    def planes(lo: int, hi: int) -> Tensor:
        asked.extend(range(lo, hi))
        return x[:, :, lo:hi]

    assert convolve(weight, planes, x.shape[2:], out=x) is x
    assert torch.allclose(x, expected, atol=1e-5)
    assert asked == list(range(number))


def test_an_absent_series_says_nothing_by_planes_either() -> None:
    block = unlike(ContrastBlock(3))
    voxels, contrast = torch.randn(2, 3, 6, 4, 8), torch.tensor([[0, 4, 2], [1, 0, 0]])
    has_series = torch.tensor([[True, True, True], [True, False, True]])
    whole, by_planes = both_ways(block, voxels, has_series, contrast)
    assert torch.allclose(by_planes, whole, atol=1e-5)
    voxels[1, 1] = 100.0
    assert torch.equal(both_ways(block, voxels, has_series, contrast)[1], by_planes)


@pytest.mark.parametrize("structures", [2, 7])
def test_a_head_reads_by_planes_what_it_learnt_in_one_piece(structures: int) -> None:
    """With fewer and with more classes than the stem has channels; two studies of different shapes, one of two series."""
    parts = [{"value": value, "name": f"part {value}", "paired": False} for value in range(1, 1 + structures)]
    head = parse_head({"kind": "segmentation", "structures": parts, "channels": [4, 3, 2], "bottleneck": 5})
    model = unlike(Head(ENCODER, head))
    samples = [sample((16, 24, 8), ("T1w",)), sample((24, 16, 16), ("T2w", "FLAIR"))]
    batch = StudyBatch.of(samples, dense=True)
    features = Features(torch.randn(*batch.tokens.is_real.shape, 64), torch.randn(2, 1, 64))
    whole, by_planes = both_ways(model, features, batch)
    assert whole.shape == (2, 1 + structures, 24, 24, 16)
    assert torch.allclose(by_planes, whole, atol=1e-5)


def sample(shape: tuple[int, int, int], contrasts: tuple[str, ...]) -> StudySample:
    voxels, body = torch.randn(len(contrasts), *shape), torch.ones(len(contrasts), *shape, dtype=torch.bool)
    return StudySample(voxels, body, Grid(shape, torch.eye(4).numpy()), contrasts, (Acquisition(),) * len(contrasts))
