"""A study as a bag of tokens: cubes of 8 x 8 x 8 voxels that know where in the patient they are and what made them.

Air is not tokenised. A bag has no order and no grid: series of any shape, number and spacing go into the same one, and
because positions are patient millimetres, attention aligns a 1 mm T1w with a 5 mm FLAIR without registering either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from foundation.preprocess import Grid
from foundation.study import Acquisition, Contrast, contrast_index

PATCH = 8  # voxels along an edge; 16 loses small lesions in published work
PATCH_VOXELS = PATCH**3


@dataclass(frozen=True)
class Tokens:
    """A batch of bags. `is_real` is False where a shorter bag was padded; `has_padding` says whether that occurs at all.

    `cell` is the patch's index on its series' patch grid, so that a dense head can lay features back into a volume.
    """

    patches: Float[Tensor, "batch tokens voxels"]
    centre_mm: Float[Tensor, "batch tokens 3"]
    voxel_mm: Float[Tensor, "batch tokens 3"]
    contrast: Int[Tensor, "batch tokens"]
    acquisition: Float[Tensor, "batch tokens numbers"]
    series: Int[Tensor, "batch tokens"]
    cell: Int[Tensor, "batch tokens 3"]
    is_real: Bool[Tensor, "batch tokens"]
    has_padding: bool = False

    def __len__(self) -> int:
        return self.is_real.shape[1]

    def _each(self, change) -> dict[str, Tensor]:
        return {name: change(getattr(self, name)) for name in TENSOR_FIELDS}

    def to(self, device: torch.device | str) -> Tokens:
        return replace(self, **self._each(lambda tensor: tensor.to(device, non_blocking=True)))

    def take(self, index: Int[Tensor, "batch chosen"]) -> Tokens:
        """The bag of the tokens at `index`, in that order; everything is gathered before it is embedded."""

        def gather(tensor: Tensor) -> Tensor:
            shaped = index.reshape(index.shape + (1,) * (tensor.ndim - 2))
            return tensor.gather(1, shaped.expand(*index.shape, *tensor.shape[2:]))

        return replace(self, **self._each(gather))

    def bags(self, where: slice | list[int]) -> Tokens:
        """Some bags of the batch, with the padding that all of them have."""
        return replace(self, **self._each(lambda tensor: tensor[where]))

    @staticmethod
    def join(bags: Sequence[Tokens]) -> Tokens:
        """One bag of everything in several bags of the same batch."""
        joined = {name: torch.cat([getattr(bag, name) for bag in bags], dim=1) for name in TENSOR_FIELDS}
        return Tokens(has_padding=any(bag.has_padding for bag in bags), **joined)

    @staticmethod
    def collate(bags: Sequence[Tokens]) -> Tokens:
        """A batch of bags of different length, the shorter ones padded with tokens that are not real."""
        longest = max(len(bag) for bag in bags)

        def pad(tensor: Tensor) -> Tensor:
            missing = longest - tensor.shape[1]
            return torch.cat([tensor, tensor.new_zeros(tensor.shape[0], missing, *tensor.shape[2:])], dim=1)

        batch = {name: torch.cat([pad(getattr(bag, name)) for bag in bags]) for name in TENSOR_FIELDS}
        return Tokens(**batch, has_padding=any(bag.has_padding or len(bag) < longest for bag in bags))


TENSOR_FIELDS = tuple(entry.name for entry in fields(Tokens) if entry.name != "has_padding")


def tokenise(
    voxels: Float[Tensor, "x y z"],
    body: Bool[Tensor, "x y z"],
    grid: Grid,
    contrast: Contrast,
    acquisition: Acquisition,
    series: int = 0,
) -> Tokens:
    """The patches of one volume that hold any body, as a batch of one bag; an empty bag if there are none.

    `voxels` are normalised and lie on `grid`, whose axes run closest to RAS. A grid that is not a multiple of the patch is
    continued at its far end by the edge value.
    """
    voxels, body = pad_to_patches(voxels), pad_to_patches(body)
    x, y, z = (n // PATCH for n in voxels.shape)
    patches = to_patches(voxels)
    kept = to_patches(body).any(dim=1).nonzero().squeeze(1)
    cell = torch.stack(torch.unravel_index(kept, (x, y, z)), dim=-1)
    centre_voxel = cell.double() * PATCH + (PATCH - 1) / 2
    affine = torch.from_numpy(np.asarray(grid.affine, dtype=np.float64))
    num = len(kept)
    bag = {
        "patches": patches[kept],
        "centre_mm": (centre_voxel @ affine[:3, :3].T + affine[:3, 3]).float(),
        "voxel_mm": torch.from_numpy(grid.spacing_mm).float().expand(num, 3),
        "contrast": torch.full((num,), contrast_index(contrast)),
        "acquisition": torch.from_numpy(acquisition.as_vector()).expand(num, -1),
        "series": torch.full((num,), series),
        "cell": cell,
        "is_real": torch.ones(num, dtype=torch.bool),
    }
    return Tokens(has_padding=False, **{name: tensor[None] for name, tensor in bag.items()})


def to_patches(volume: Tensor) -> Tensor:
    """`(x, y, z)` voxels, each a multiple of the patch, as `(cells, voxels)`; cells run in C order."""
    return rearrange(volume, "(x p) (y q) (z r) -> (x y z) (p q r)", p=PATCH, q=PATCH, r=PATCH)


def from_patches(patches: Tensor, cells: tuple[int, int, int]) -> Tensor:
    """The inverse of `to_patches`."""
    x, y, z = cells
    return rearrange(patches, "(x y z) (p q r) -> (x p) (y q) (z r)", x=x, y=y, z=z, p=PATCH, q=PATCH, r=PATCH)


def patches_of(volume: Tensor, tokens: Tokens) -> Tensor:
    """What another volume holds, on the grid that a bag of one was cut from, in the voxels of its tokens: `(tokens, voxels)`."""
    padded = pad_to_patches(volume)
    _, j, k = (n // PATCH for n in padded.shape)
    x, y, z = tokens.cell[0].unbind(dim=-1)
    return to_patches(padded)[(x * j + y) * k + z]


def pad_to_patches(volume: Tensor) -> Tensor:
    """Continue the last three axes at their far end, by the edge value, to a multiple of the patch."""
    for axis in range(-3, 0):
        missing = -volume.shape[axis] % PATCH
        if missing:
            edge = volume.narrow(axis, volume.shape[axis] - 1, 1)
            repeats = [missing if volume.ndim + axis == i else 1 for i in range(volume.ndim)]
            volume = torch.cat([volume, edge.repeat(repeats)], dim=axis)
    return volume
