"""Classical reconstruction, one file: zero filling, conjugate gradients, wavelets, and partial Fourier.

    images = reconstruct(raw, "cg-sense")       (slices, rows, columns), magnitudes

A learned method has to beat these, and the honest ones among them are not bad. Each takes one slice and knows nothing of
any other image: what is not in the data cannot appear, but noise and aliasing can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from foundation.errors import InputError, did_you_mean
from foundation.physics.kspace import PARTIAL_FOURIER, SenseOperator, root_sum_of_squares, to_image, to_kspace
from foundation.physics.sensitivities import calibration_box, espirit_maps
from foundation.progress import progress
from foundation.raw import RawData

CROP = 0.8  # places whose sensitivities explain less of the data are air
# Chosen on one synthetic head at 4 and 8 times acceleration: with this penalty more iterations change nothing any more.
CG_ITERATIONS = 30
CG_PENALTY = 3e-3
WAVELET_ITERATIONS = 60
WAVELET_PENALTY = 1e-3  # of the brightest pixel
POCS_ITERATIONS = 20


@dataclass(frozen=True)
class Slice:
    """One slice to reconstruct; samples that were not taken are zero. The mask is one of rows, or columns, or both."""

    kspace: Complex[Tensor, "coils rows columns"]
    mask: Bool[Tensor, "1 #rows #columns"]

    @cached_property
    def operator(self) -> SenseOperator:
        """With sensitivities from the calibration lines that the mask has: nothing is known that was not measured."""
        taken = self.mask[0].expand(self.kspace.shape[1:])
        return SenseOperator(espirit_maps(self.kspace, calibration_box(taken), crop=CROP), self.mask)


Method = Callable[[Slice], Float[Tensor, "rows columns"]]


def reconstruct(raw: RawData, method: str) -> Float[Tensor, "slices rows columns"]:
    """Magnitude images on the grid of k-space; `raw.shown` cuts out what a scanner shows.

    Whatever the noise of the coils is known to be is made equal and independent first.
    """
    check_method(method)
    raw = raw.whitened()
    solve = METHODS[method]
    size = raw.kspace.abs().max()  # some scanners' numbers are so small that their squares are none
    images = []
    with progress(total=len(raw.kspace), label=method, unit="slice") as bar:
        for kspace, mask in zip(raw.kspace, raw.mask.expand(len(raw.kspace), -1, -1, -1)):
            images.append(size * solve(Slice(kspace / size, mask)))
            bar.update()
    return torch.stack(images)


def check_method(method: str) -> None:
    """An `InputError` if there is no such method, or if what it needs is not installed."""
    if method not in METHODS:
        raise InputError("a method is one of the known ones", got=repr(method), remedy=did_you_mean(method, METHODS))
    if method == "l1-wavelet":
        try:
            import sigpy.mri.app  # noqa: F401
        except ImportError:
            remedy = "Install it: pip install 'larmor[recon]'."
            raise InputError("l1-wavelet needs the package sigpy", got="none", remedy=remedy) from None


# ------------------------------------------------------------------------------------------------ zero filling


def zero_filled(one: Slice) -> Float[Tensor, "rows columns"]:
    """What was not measured is taken for zero; coils are added as a root sum of squares (Roemer 1990)."""
    return root_sum_of_squares(to_image(one.kspace))


def zero_filled_sense(one: Slice) -> Float[Tensor, "rows columns"]:
    """The same, coils added by their sensitivities: A^H y."""
    return one.operator.adjoint(one.kspace).abs()


# ------------------------------------------------------------------------------------------------ SENSE


def cg_sense(one: Slice) -> Float[Tensor, "rows columns"]:
    """Iterative SENSE (Pruessmann 2001): the image that explains the samples best, found by a few conjugate gradients."""
    return solve_sense(one.operator, one.kspace, CG_ITERATIONS, CG_PENALTY).abs()


def solve_sense(
    operator: SenseOperator, kspace: Complex[Tensor, "..."], num_iterations: int, penalty: int | float = 0.0
) -> Complex[Tensor, "..."]:
    """Minimise |A x - y|^2 + penalty |x|^2 by conjugate gradients from zero. Images of a batch are solved side by side.

    Stopping early is a penalty too: what the data determine well converges first.
    """
    return solve_normal(operator, operator.adjoint(kspace), num_iterations, penalty)


def solve_normal(
    operator: SenseOperator,
    residual: Complex[Tensor, "..."],
    num_iterations: int,
    penalty: int | float | Float[Tensor, ""] = 0.0,
) -> Complex[Tensor, "..."]:
    """(A^H A + penalty) d = `residual`. With A^H (y - A z) for it, z + d explains the samples and stays near z."""
    axes = operator.axes
    penalty = torch.as_tensor(penalty, dtype=residual.real.dtype, device=residual.device)

    def inner(a: Tensor, b: Tensor) -> Tensor:
        """Over each image by itself."""
        return (a.conj() * b).real.sum(axes, keepdim=True)

    image, direction = torch.zeros_like(residual), residual
    energy = inner(residual, residual)
    least = torch.finfo(energy.dtype).tiny
    for _ in range(num_iterations):
        bent = torch.addcmul(operator.normal(direction), penalty, direction)
        step = energy / inner(direction, bent).clamp(min=least)
        image = torch.addcmul(image, step, direction)
        residual = torch.addcmul(residual, step, bent, value=-1)
        before, energy = energy, inner(residual, residual)
        direction = torch.addcmul(residual, energy / before.clamp(min=least), direction)
    return image


# ------------------------------------------------------------------------------------------------ wavelets


def l1_wavelet(one: Slice) -> Float[Tensor, "rows columns"]:
    """Compressed sensing (Lustig 2007): of the images that explain the samples, one of few Daubechies-4 wavelets."""
    return solve_l1_wavelet(one).abs()


def solve_l1_wavelet(one: Slice) -> Complex[Tensor, "rows columns"]:
    """By sigpy's FISTA. The operator's norm is at most one, so no step size is searched for."""
    from sigpy.mri.app import L1WaveletRecon

    brightest = one.operator.adjoint(one.kspace).abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    solver = L1WaveletRecon(
        (one.kspace / brightest).numpy(),
        one.operator.maps.numpy(),
        WAVELET_PENALTY,
        weights=one.mask[0].expand(one.kspace.shape[1:]).to(torch.complex64).numpy(),
        alpha=1,
        max_iter=WAVELET_ITERATIONS,
        show_pbar=False,
    )
    return torch.from_numpy(solver.run()) * brightest


# ------------------------------------------------------------------------------------------------ partial Fourier


def homodyne(one: Slice) -> Float[Tensor, "rows columns"]:
    """Homodyne detection (Noll 1991): what is missing on one side is what the other says, once the phase is taken out.

    Measured samples without a measured opposite count twice; the real part that is left after the phase of the symmetric
    middle is removed has both sides. Nothing at all is assumed of the image but that its phase is smooth.
    """
    axis = _partial_axis(one.mask)
    n = one.mask.shape[axis]
    # With zero at index n // 2, index i lies opposite 2 (n // 2) - i, modulo n: the lowest of an even axis opposite itself.
    opposite = one.mask.index_select(axis, (2 * (n // 2) - torch.arange(n)) % n)
    images = to_image(one.kspace * torch.where(opposite, 1.0, 2.0))
    return torch.linalg.vector_norm((images * _smooth_phase(one, axis).conj()).real, dim=0)


def pocs(one: Slice) -> Float[Tensor, "rows columns"]:
    """Projection onto convex sets (Haacke 1991): in turn, the phase of the symmetric middle and the measured samples."""
    phase = _smooth_phase(one, _partial_axis(one.mask))
    kspace = one.kspace
    for _ in range(POCS_ITERATIONS):
        guess = to_kspace(to_image(kspace).abs() * phase)
        kspace = torch.where(one.mask, one.kspace, guess)
    return root_sum_of_squares(to_image(kspace))


def _partial_axis(mask: Bool[Tensor, "1 #rows #columns"]) -> int:
    """The axis along which one end of an otherwise complete scan is missing: -2 for rows, -1 for columns."""
    for axis in (-2, -1):
        n = mask.shape[axis]
        if mask.numel() == n > 1:
            lines = mask.flatten().nonzero()[:, 0].tolist()
            runs = bool(lines) and lines == list(range(lines[0], lines[-1] + 1))
            if runs and (lines[0] == 0 or lines[-1] == n - 1) and len(lines) >= round(PARTIAL_FOURIER[0] * n):
                return axis
    raise InputError(
        "partial Fourier methods take scans of which one end of one phase-encoding axis is missing, at most 3/8",
        got=f"{int(mask.sum())} of {mask.numel()} lines or points",
        remedy="Use cg-sense or l1-wavelet, or make such a scan: --partial-fourier 0.75.",
    )


def _smooth_phase(one: Slice, axis: int) -> Complex[Tensor, "coils rows columns"]:
    """exp(i phase) of each coil's image of the symmetric middle of k-space, tapered so that it does not ring."""
    lines = one.mask.flatten().nonzero()[:, 0]
    middle = one.mask.shape[axis] // 2
    reach = min(middle - int(lines[0]), int(lines[-1]) - middle)
    window = torch.zeros(one.mask.numel())
    window[middle - reach : middle + reach + 1] = torch.hann_window(2 * reach + 3, periodic=False)[1:-1]
    image = to_image(one.kspace * window.reshape(one.mask.shape))
    return torch.polar(torch.ones_like(image.real), image.angle())


METHODS: dict[str, Method] = {
    "zero-filled": zero_filled,
    "zero-filled-sense": zero_filled_sense,
    "cg-sense": cg_sense,
    "l1-wavelet": l1_wavelet,
    "homodyne": homodyne,
    "pocs": pocs,
}
