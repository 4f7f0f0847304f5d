"""Small tools on volumes that know where they are: read at points, block means, smooth random fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Float, UInt8
from nibabel.affines import apply_affine, from_matvec
from numpy.random import Generator
from torch import Tensor


def sample(
    volume: Float[Tensor, "channel x y z"], affine: np.ndarray, points_mm: Float[Tensor, "px py pz 3"], *, padding: str
) -> Float[Tensor, "channel px py pz"]:
    """`volume`, whose voxels `affine` takes to mm, read trilinearly at points; `padding` is "zeros" or "border"."""
    to_voxel = torch.from_numpy(np.linalg.inv(affine)).float()
    size = torch.tensor(volume.shape[1:])
    normal = (points_mm @ to_voxel[:3, :3].T + to_voxel[:3, 3]) * (2 / (size - 1)) - 1
    # grid_sample names the last array axis first.
    return F.grid_sample(volume[None], normal.flip(-1)[None], padding_mode=padding, align_corners=True)[0]


def block_mean(
    volume: Float[Tensor, "channel x y z"], affine: np.ndarray, i: int, j: int | None = None, k: int | None = None
) -> tuple[Float[Tensor, "channel bx by bz"], np.ndarray]:
    """Means over blocks of `(i, j, k)` voxels, cubes if only `i` is given, and the affine of their centres."""
    j, k = j or i, k or i
    means = reduce(volume, "channel (x i) (y j) (z k) -> channel x y z", "mean", i=i, j=j, k=k)
    block = np.array([i, j, k], float)  # from_matvec takes over the type: integers would cut the half voxels off
    return means, affine @ from_matvec(np.diag(block), (block - 1) / 2)


def smooth_noise(
    rng: Generator, shape: tuple[int, ...], spacing_mm: float | np.ndarray, scale_mm: float
) -> Float[Tensor, "x y z"]:
    """A field of mean 0 and standard deviation about 1: cubic B-splines with normal coefficients every `scale_mm`."""
    bases = []
    for size, spacing in zip(shape, np.broadcast_to(spacing_mm, 3)):
        position = np.arange(size) * spacing / scale_mm
        t = abs(position[:, None] - np.arange(-1, math.ceil(position[-1]) + 2))
        basis = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6)
        bases.append(torch.from_numpy(basis / math.sqrt(151 / 315)).float())  # mean over t of the summed squares
    field = torch.from_numpy(rng.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32))
    for basis in bases:  # each turn replaces the first axis and puts it last
        field = torch.einsum("abc,xa->bcx", field, basis)
    return field


def largest_share(
    shape: tuple[int, ...], values: Iterable[int], share_of: Callable[[int], Float[Tensor, "i j k"]]
) -> UInt8[np.ndarray, "i j k"]:
    """The value that fills most of each voxel, 0 where none fills any; one share in memory at a time."""
    most, labels = torch.zeros(shape), torch.zeros(shape, dtype=torch.uint8)
    for value in values:
        share = share_of(value)
        labels = torch.where(share > most, value, labels)
        most = torch.maximum(share, most)
    return labels.numpy()


def mm_axes(shape: tuple[int, ...], affine: np.ndarray) -> tuple[np.ndarray, ...]:
    """x, y, z in mm along the axes of an axis-aligned RAS grid, shaped to broadcast."""
    axes = np.ogrid[tuple(slice(size) for size in shape)]
    lines = zip(axes, np.diag(affine), affine[:3, 3])
    return tuple((step * axis + origin).astype(np.float32) for axis, step, origin in lines)


def grid_mm(shape: tuple[int, ...], affine: np.ndarray) -> Float[Tensor, "x y z 3"]:
    """Where `affine` takes each voxel."""
    linear = torch.from_numpy(affine).float()
    x, y, z = (torch.arange(size).view(-1, *[1] * (2 - axis), 1) * linear[:3, axis] for axis, size in enumerate(shape))
    return x + y + z + linear[:3, 3]


def nearest_voxel(affine: np.ndarray, point_mm: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(np.rint(apply_affine(np.linalg.inv(affine), point_mm)).astype(int).tolist())
