"""Convolutions of a volume a few planes at a time, for when nothing is learnt, so that no map has to be kept.

A segmentation takes its memory for maps of the whole head at full resolution: in one piece, two convolutions hold what goes in,
two outputs and their normalised copies. Here each plane of what goes in is made when it is needed, and what comes out may lie
where that lay. The numbers are the same: a piece sees the planes beside it, and a normalisation the whole volume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

VOXELS_AT_A_TIME = 10_000
SLOPE = 0.01  # of the leaky rectifier below zero
EPS = 1e-5  # of torch's instance normalisation

# Planes lo to hi, along the first axis of space, of a `(batch, channels, x, y, z)` map.
Planes = Callable[[int, int], Tensor]


def planes_at_a_time(shape: Sequence[int]) -> int:
    return max(1, VOXELS_AT_A_TIME // (shape[1] * shape[2]))


def convolve(
    weight: Tensor, planes: Planes, shape: Sequence[int], out: Tensor | None = None, *, stride: int = 1
) -> Tensor:
    """A convolution of 3 x 3 x 3 without a bias, zeros around the volume of `shape`, which is even where the stride is 2.

    `planes` is asked for each plane once, in order. It may read from `out`, where a plane is written only after all that depends
    on what lay there has been asked for.
    """
    made_of = [n // stride for n in shape]
    at_a_time = planes_at_a_time(made_of)
    held: list[Tensor] = []
    asked = 0
    for lo in range(0, made_of[0], at_a_time):
        hi = min(lo + at_a_time, made_of[0])
        upto = stride * (hi - 1) + 2  # of what goes in, where -1 and shape[0] are zeros
        end = min(upto, shape[0])
        piece = torch.cat([*held, *([planes(asked, end)] if end > asked else [])], dim=2)
        if lo == 0 or upto > end:
            piece = nn.functional.pad(piece, (0, 0, 0, 0, int(lo == 0), upto - end))
        made = _conv3d(piece, weight, stride)
        if out is None:
            out = made.new_empty(*made.shape[:2], *made_of)
        out[:, :, lo:hi] = made
        held, asked = [piece[:, :, stride * (hi - lo) :]], end
    assert out is not None
    return out


def convolve_twice(block: nn.Sequential, planes: Planes, shape: Sequence[int], out: Tensor | None = None) -> Tensor:
    """`segmentation.ConvBlock` of a volume of `shape`; `planes` and `out` are as in `convolve`."""
    first, first_norm, second, second_norm = (block[index] for index in (0, 1, 3, 4))
    assert isinstance(first, nn.Conv3d)
    x = convolve(first.weight, planes, shape, out, stride=first.stride[0])
    known = normal(x, first_norm.get_parameter("weight"), first_norm.get_parameter("bias"))
    return convolve_once(second, second_norm, lambda lo, hi: active(x[:, :, lo:hi], *known), x.shape[2:], out=x)


def convolve_once(conv: nn.Module, norm: nn.Module, planes: Planes, shape: Sequence[int], out: Tensor) -> Tensor:
    """A convolution, normalised and activated; `planes` and `out` are as in `convolve`."""
    x = convolve(conv.get_parameter("weight"), planes, shape, out)
    return activate_(x, *normal(x, norm.get_parameter("weight"), norm.get_parameter("bias")))


def _conv3d(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """With zeros around planes and not between them. Torch (2.13) keeps small fp32 volumes, up to 20,480 channels x planes x rows,
    from oneDNN if nobody insists, and needs up to ten times as long for them."""
    strides, padding = [stride] * 3, [0, 1, 1]
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.mkldnn_convolution(x, weight, None, padding, strides, [1, 1, 1], 1)
    return nn.functional.conv3d(x, weight, stride=strides, padding=padding)


def normal(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """What instance normalisation multiplies every channel of every volume by, and what it adds: `(batch, channels, 1, 1, 1)`;
    `weight` and `bias` are its own, `(channels)` or `(batch, channels)`."""
    variance, mean = torch.var_mean(x.float(), dim=(2, 3, 4), correction=0)
    scale = weight * (variance + EPS).rsqrt()
    shift = bias - mean * scale
    return scale[:, :, None, None, None].to(x.dtype), shift[:, :, None, None, None].to(x.dtype)


def active(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalised and activated."""
    return nn.functional.leaky_relu_(torch.addcmul(shift, x, scale), SLOPE)


def activate_(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The same, where `x` lies."""
    for piece in x.split(planes_at_a_time(x.shape[2:]), dim=2):
        nn.functional.leaky_relu_(torch.addcmul(shift, piece, scale, out=piece), SLOPE)
    return x
