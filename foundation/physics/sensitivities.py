"""What the coils see, estimated from the fully sampled middle of their own k-space (ESPIRiT: Uecker et al. 2014).

    maps = espirit_maps(kspace, calibration_box(mask))      (coils, rows, columns) -> the same shape
    operator = SenseOperator(maps, mask)

Neighbouring samples of all coils are dependent, because what each coil adds is smooth. Which dependence there is, the
calibration area shows: windows of it span a subspace. An image that is made of the right sensitivities is not changed by
projecting all of its windows onto this subspace, so at each place the sensitivities are the eigenvector of the projection
with eigenvalue one.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from foundation.errors import InputError

WINDOW = 6  # samples along each axis
LEAST_WINDOW = 2
NULL_SPACE = 0.04  # singular values below this part of the largest are noise
MAX_CALIBRATION = 48  # samples along an axis; more make the estimate slower, not better
SQUARINGS = 7  # the other eigenvectors are raised to the power 128
ROWS_AT_ONCE = 16


def calibration_box(mask: Bool[Tensor, "rows columns"]) -> tuple[slice, slice]:
    """A large box around the middle of k-space without a gap: grown evenly on all sides, then along each axis."""
    rows, columns = mask.shape
    reach = [0, 0]  # samples on either side of the middle one

    def box(reach: list[int]) -> tuple[slice, slice]:
        row, column = (slice(n // 2 - r, n // 2 + r + 1) for n, r in zip((rows, columns), reach))
        return row, column

    def fits(reach: list[int]) -> bool:
        return all(r <= (n - 1) // 2 for n, r in zip((rows, columns), reach)) and bool(mask[box(reach)].all())

    for step in ([1, 1], [1, 0], [0, 1]):
        while fits(grown := [r + s for r, s in zip(reach, step)]):
            reach = grown
    # An even number of calibration lines has one more before the middle than the odd box found, or one after.
    row, column = box(reach)
    if row.start > 0 and bool(mask[row.start - 1, column].all()):
        row = slice(row.start - 1, row.stop)
    if column.start > 0 and bool(mask[row, column.start - 1].all()):
        column = slice(column.start - 1, column.stop)
    return row, column


def espirit_maps(
    kspace: Complex[Tensor, "coils rows columns"], box: tuple[slice, slice], *, crop: float = 0.0
) -> Complex[Tensor, "coils rows columns"]:
    """Sensitivities of unit root sum of squares; zero where the eigenvalue is below `crop`, which are places without signal.

    Their phase is that of what the coils measure relative to their strongest combination, so images keep a smooth phase. One
    coil alone sees everything: its map is one.
    """
    coils, rows, columns = kspace.shape
    if coils == 1:
        return torch.ones_like(kspace)
    calibration = kspace[:, _middle(box[0]), _middle(box[1])]
    sizes = [min(WINDOW, (n + 1) // 2) for n in calibration.shape[1:]]
    if min(sizes) < LEAST_WINDOW:
        rule = (
            f"coil sensitivities need {2 * LEAST_WINDOW - 1} fully sampled lines around the middle of k-space, or more"
        )
        got = f"{calibration.shape[1]} x {calibration.shape[2]} samples"
        raise InputError(rule, got=got, remedy="Ask for more calibration lines, or for a method without sensitivities.")
    lags = _projection(calibration, (sizes[0], sizes[1]))
    strongest = torch.linalg.eigh(torch.einsum("arc,brc->ab", calibration, calibration.conj())).eigenvectors[:, -1]
    waves = [_waves(n, size, kspace) for n, size in zip((rows, columns), sizes)]
    maps = torch.empty_like(kspace)
    for begin in range(0, rows, ROWS_AT_ONCE):
        part = waves[0][begin : begin + ROWS_AT_ONCE]
        projection = torch.einsum("rd,abde,ce->rcab", part, lags, waves[1])
        vectors, values = _leading(projection, strongest)
        maps[:, begin : begin + ROWS_AT_ONCE] = (vectors * (values >= crop)[..., None]).permute(2, 0, 1)
    return maps


def _middle(lines: slice) -> slice:
    num = min(lines.stop - lines.start, MAX_CALIBRATION)
    start = lines.start + (lines.stop - lines.start - num) // 2
    return slice(start, start + num)


def _projection(
    calibration: Complex[Tensor, "coils rows columns"], sizes: tuple[int, int]
) -> Complex[Tensor, "coils coils lags_r lags_c"]:
    """The projection onto the windows' subspace, averaged over the windows that a sample is in, as a filter between coils.

    With P the projection between samples t and s of a window, a sample of coil a becomes the sum over coils b and lags d of
    h[a, b, d] y_b[k + d] with h[a, b, d] the mean over t of P[(a, t), (b, t + d)].
    """
    coils = len(calibration)
    windows = calibration.unfold(1, sizes[0], 1).unfold(2, sizes[1], 1)  # coils, places, places, samples, samples
    matrix = windows.permute(0, 3, 4, 1, 2).reshape(coils * math.prod(sizes), -1).to(torch.complex128)
    values, vectors = torch.linalg.eigh(matrix @ matrix.mH)  # values are squares of singular values
    kept = vectors[:, values > NULL_SPACE**2 * values[-1]]
    projection = (kept @ kept.mH).reshape(coils, *sizes, coils, *sizes)
    lags = torch.zeros(
        coils, coils, *(2 * size - 1 for size in sizes), dtype=projection.dtype, device=projection.device
    )
    for row in range(sizes[0]):
        for column in range(sizes[1]):
            rows = slice(sizes[0] - 1 - row, 2 * sizes[0] - 1 - row)
            columns = slice(sizes[1] - 1 - column, 2 * sizes[1] - 1 - column)
            lags[..., rows, columns] += projection[:, row, column]
    return (lags / math.prod(sizes)).to(calibration.dtype)


def _waves(n: int, size: int, like: Tensor) -> Complex[Tensor, "n lags"]:
    """exp(-2 pi i d r / n) for every place r, counted from n // 2, and every lag d: a shift of k-space by d, in the image."""
    place = torch.arange(n, dtype=torch.float64, device=like.device) - n // 2
    lag = torch.arange(1 - size, size, dtype=torch.float64, device=like.device)
    angle = -2 * math.pi * place[:, None] * lag / n
    return torch.polar(torch.ones_like(angle), angle).to(like.dtype)


def _leading(
    matrices: Complex[Tensor, "*places coils coils"], towards: Complex[Tensor, "coils"]
) -> tuple[Complex[Tensor, "*places coils"], Float[Tensor, "*places"]]:
    """The unit eigenvectors of the largest eigenvalue, their product with `towards` real and positive; and the eigenvalues.

    By squaring the matrices: seven products of 16 x 16 take a sixth of the time of an eigenvalue decomposition.
    """
    power = matrices
    for _ in range(SQUARINGS):
        power = power / power.diagonal(dim1=-2, dim2=-1).real.sum(-1).clamp(min=1e-30)[..., None, None]
        power = power @ power
    largest = power.diagonal(dim1=-2, dim2=-1).real.argmax(-1)
    vectors = power.take_along_dim(largest[..., None, None], dim=-1)[..., 0]
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp(min=1e-30)
    turn = (vectors.conj() * towards).sum(-1, keepdim=True)
    vectors = vectors * torch.polar(torch.ones_like(turn.real), turn.angle())
    values = torch.einsum("...a,...ab,...b->...", vectors.conj(), matrices, vectors).real
    return vectors, values
