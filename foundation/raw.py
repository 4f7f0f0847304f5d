"""What a scanner measured before there was an image: Cartesian multi-coil k-space, slice by slice.

    raw = read_raw(Path("file_brain_AXT2.h5"))          foundation/reading/raw.py
    picture = zero_filled(raw)                          foundation/reconstruction/methods.py

A volume whose readout is complete is a batch of slices too: after an inverse transform along the readout, every place along
it is a plane with two phase-encoding axes. So there is one layout, fastMRI's: slices, coils, rows, columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from foundation.errors import InputError
from foundation.physics.kspace import to_image
from foundation.study import Acquisition, Series

OFF_CENTRE_LINES = (
    2  # by how many lines more on one side than on the other a scan may differ and still count as complete
)


Shown = Float[Tensor, "_ _ _"] | Complex[Tensor, "_ _ _"]


@dataclass(frozen=True)
class RawData:
    """Samples that were not taken are zero. `mask` is True where they were, and broadcasts against k-space.

    `planned` is what an accelerated scan would have kept of a complete one, where the file says so. `target` is the image
    that the file holds to compare with. `noise` is the covariance of the coils' complex noise. `phase_axes` are those of
    rows (0) and columns (1) along which a scanner could have left out samples. `image_shape` is the part, around the
    middle, that the scanner shows. `affine` takes (row, column, slice) to patient RAS+ millimetres; where `side_is_known`
    is False only the spacing in it is true, and None means that not even that is known.
    """

    kspace: Complex[Tensor, "slices coils rows columns"]
    mask: Bool[Tensor, "#slices 1 #rows #columns"]
    phase_axes: tuple[int, ...] = (1,)
    planned: Bool[Tensor, "#slices 1 #rows #columns"] | None = None
    target: Float[Tensor, "slices height width"] | None = None
    noise: Complex[Tensor, "coils coils"] | None = None
    image_shape: tuple[int, int] | None = None
    affine: np.ndarray | None = None
    side_is_known: bool = False
    acquisition: Acquisition = field(default_factory=Acquisition)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of k-space."""
        rows, columns = self.kspace.shape[-2:]
        return rows, columns

    @property
    def sigma(self) -> float | None:
        """The standard deviation of each of the two parts of a sample's noise, averaged over coils."""
        return None if self.noise is None else float((self.noise.diagonal().real.mean() / 2).sqrt())

    @property
    def acceleration(self) -> float:
        """The number of samples of the grid over those that were taken."""
        return 1 / float(self.mask.float().mean())

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing but what lies outside a box around the middle: a smaller matrix, zero-filled.

        A partial Fourier scan is not complete, since its box lies off the middle.
        """
        taken = self.mask.expand(-1, -1, *self.shape)
        for one in taken[:, 0]:
            for axis, n in enumerate(one.shape):
                lines = one.any(dim=1 - axis).nonzero()[:, 0]
                if not len(lines):
                    return False
                first, last = int(lines[0]), int(lines[-1])
                if abs((n // 2 - first) - (last - n // 2 + 1)) > OFF_CENTRE_LINES or len(lines) != last - first + 1:
                    return False
            if int(one.sum()) != int(one.any(dim=1).sum()) * int(one.any(dim=0).sum()):
                return False
        return True

    def keep(self, mask: Bool[Tensor, "#slices 1 #rows #columns"]) -> RawData:
        """The data as an accelerated scan would have left them; what was not measured stays so."""
        mask = mask & self.mask
        return replace(self, kspace=self.kspace * mask, mask=mask)

    def slices(self, which: slice) -> RawData:
        """The same scan of some slices only; where they lie is not said any more."""

        def some(values: Tensor | None) -> Any:
            return None if values is None else values if len(values) == 1 < len(self.kspace) else values[which]

        kspace, mask, planned, target = (some(one) for one in (self.kspace, self.mask, self.planned, self.target))
        return replace(self, kspace=kspace, mask=mask, planned=planned, target=target, affine=None, side_is_known=False)

    def whitened(self) -> RawData:
        """The same with noise that is of equal size in all coils and independent between them, of the mean size it had.

        What least squares assume (Pruessmann 2001, equation 10). Unchanged when the noise is not known.
        """
        if self.noise is None or not self.noise.any():
            return self
        noise = self.noise.to(torch.complex128)
        size = noise.diagonal().real.mean()
        factor = torch.linalg.cholesky_ex(noise / size)
        if int(factor.info):
            rule = "the noise of the coils has a covariance that can be inverted"
            raise InputError(rule, got="one that cannot", remedy="Leave the noise out, or the coil that is broken.")
        mixing = torch.linalg.inv(factor.L).to(self.kspace.dtype)
        kspace = torch.einsum("ab,sbrc->sarc", mixing, self.kspace)
        return replace(self, kspace=kspace, noise=size * torch.eye(len(noise), dtype=torch.complex64))

    def shown(self, images: Shown) -> Shown:
        """The part of images on the grid of k-space that the scanner shows."""
        shape = self.image_shape or self.shape
        for axis, (n, num) in enumerate(zip(self.shape, shape), start=-2):
            images = images.narrow(axis, n // 2 - num // 2, num)
        return images

    def series(self, images: Float[Tensor, "slices height width"], name: str = "") -> Series:
        """Shown images as a volume `(row, column, slice)` with its place in the patient, as far as that is known."""
        affine = np.eye(4) if self.affine is None else self.affine.copy()
        shape = self.image_shape or self.shape
        assert images.shape[1:] == shape, (images.shape, shape)
        for axis, (n, num) in enumerate(zip(self.shape, shape)):
            affine[:3, 3] += affine[:3, axis] * (n // 2 - num // 2)
        voxels = images.permute(1, 2, 0).float().contiguous().numpy()
        return Series(voxels, affine, acquisition=self.acquisition, name=name, side_is_known=self.side_is_known)


def measured(kspace: Complex[Tensor, "slices coils rows columns"]) -> Bool[Tensor, "_ 1 _ _"]:
    """The samples at which any coil received anything, in as few axes as it takes: nobody measures exact zeros."""
    mask = (kspace != 0).any(dim=1, keepdim=True)
    for axis in (0, 2, 3):
        first = mask.narrow(axis, 0, 1)
        if bool((mask == first).all()):
            mask = first
    return mask


def from_volume(
    kspace: Complex[Tensor, "coils x y z"], readout: int = 0
) -> Complex[Tensor, "slices coils rows columns"]:
    """3-D k-space as planes along its readout: they stand for 2-D acquisitions of their own, to be solved one by one."""
    return to_image(kspace, (1 + readout,)).movedim(1 + readout, 0)
