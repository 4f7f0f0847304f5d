"""Raw k-space from files: fastMRI and ISMRMRD (HDF5), BART (.cfl and .hdr), and plain arrays (.npy, .npz).

    raw = read_raw("file_brain_AXT2.h5")

What a file announces is checked against its size before memory is taken for it, and whatever it gets wrong is one
`InputError` that names the file.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tokenize import TokenError  # numpy's way with a header of its oldest versions that is no Python
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foundation.errors import InputError
from foundation.raw import RawData, from_volume, measured
from foundation.reading.nifti import MAX_DEFLATE_RATIO, as_input_error, incomplete
from foundation.text import without_bytes

MAX_SAMPLES = 2**30  # 8 GiB as complex64
MAX_TEXT_BYTES = 2**20  # of a BART header
BART_AXES = ("readout", "phase 1", "phase 2", "coils", "maps", "echo times", "coefficients", "coefficients 2", "iterations",
             "cycle", "times", "times 2", "levels", "slices", "averages", "batch")  # fmt: skip
BART_USED = (0, 1, 2, 3, 13)
KNOWN = {".h5": "fastMRI, ISMRMRD", ".cfl": "BART", ".hdr": "BART", ".npy": "an array", ".npz": "arrays"}


def read_raw(path: str | Path) -> RawData:
    """The k-space in a file, of a kind told by its suffix.

    An array is `(rows, columns)`, `(coils, rows, columns)` or `(slices, coils, rows, columns)`, complex, centred, zero where
    nothing was measured; a .npz names it `kspace` and may add `mask`, `affine` and `noise` (coils by coils). Of all kinds
    the readout of a 2-D scan runs along rows, and of a 3-D scan rows and columns are both phase-encoded.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in KNOWN:
        known = ", ".join(f"{name} ({what})" for name, what in KNOWN.items())
        raise InputError("raw data have a known suffix", got=path.name, remedy=f"Known are {known}.", file=path)
    with as_input_error(path):
        if not path.is_file():
            raise InputError("raw data are a file", got="none", remedy="Check the path.")
        if suffix == ".h5":
            from foundation.reading.raw_hdf5 import read_hdf5

            return read_hdf5(path)
        if suffix in (".cfl", ".hdr"):
            return _read_bart(path.with_suffix(""))
        return _read_npz(path) if suffix == ".npz" else of_array(_load_array(path))


def of_array(kspace: np.ndarray, **known: Any) -> RawData:
    """Raw data from an array as `read_raw` describes it; `known` are further fields of `RawData`."""
    if kspace.dtype.kind != "c" or not 2 <= kspace.ndim <= 4:
        raise InputError(
            "k-space is a complex array of 2 to 4 axes: (slices, coils, rows, columns)",
            got=f"{kspace.dtype} of shape {kspace.shape}",
            remedy="Keep real and imaginary part together, and give 3-D scans slice by slice along the readout.",
        )
    tensor = torch.from_numpy(np.ascontiguousarray(kspace, dtype=np.complex64))
    return of_kspace(tensor.reshape(*[1] * (4 - kspace.ndim), *kspace.shape), **known)


def of_kspace(kspace: Tensor, mask: Tensor | None = None, **known: Any) -> RawData:
    """Raw data whose samples are finite; what is not zero was measured.

    A `mask` over columns, or rows and columns, that leaves out some of it is what an accelerated scan would keep: planned.
    """
    if min(kspace.shape) < 1 or not bool((kspace != 0).any()):
        raise InputError(
            "k-space holds samples", got=f"shape {tuple(kspace.shape)}, all zero", remedy="Check the file."
        )
    if not bool(torch.isfinite(torch.view_as_real(kspace)).all()):
        raise InputError("every sample is finite", got="NaN or infinity", remedy="Leave out the lines that are broken.")
    found = measured(kspace)
    if mask is not None:
        rows, columns = kspace.shape[-2:]
        if tuple(mask.shape) not in ((columns,), (1, columns), (rows, columns)):
            rule = f"a mask has one value for each of {columns} columns, or for {rows} rows by {columns} columns"
            raise InputError(rule, got=f"shape {tuple(mask.shape)}", remedy="Cut or repeat it to fit.")
        mask = mask.reshape(1, 1, -1, columns)
        if bool((found & ~mask).any()):
            known["planned"] = mask
    return RawData(kspace, found, **known)


def of_volume(planes: Tensor, **known: Any) -> RawData:
    """Raw data of a 3-D scan, of which every place along the readout is a plane; all have the same samples."""
    raw = of_kspace(planes, **known)
    return replace(raw, mask=raw.mask.any(dim=0, keepdim=True), phase_axes=(0, 1))


def check_size(shape: Sequence[int]) -> None:
    if any(n < 1 for n in shape) or math.prod(shape) > MAX_SAMPLES:
        raise InputError(
            f"k-space has 1 to {MAX_SAMPLES} samples", got=f"shape {tuple(shape)}", remedy="Split the file."
        )


# ------------------------------------------------------------------------------------------------ arrays


def _load_array(path: Path) -> np.ndarray:
    """Mapped, not read: so numpy itself finds, before memory is taken, that a file is shorter than its header says."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, TokenError) as error:
        raise InputError(
            "the file is one whole .npy array", got=without_bytes(error), remedy="Save it again with numpy.save."
        ) from error
    check_size(array.shape)
    return np.array(array)


def _read_npz(path: Path) -> RawData:
    """The arrays of an archive, each checked before it is unpacked."""
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in ("kspace", "mask", "affine", "noise"):
                if f"{name}.npy" in archive.namelist():
                    arrays[name] = _load_member(archive, archive.getinfo(f"{name}.npy"))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, TokenError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "the archive is undamaged", got=without_bytes(error), remedy="Save it again with numpy.savez."
        ) from error
    if "kspace" not in arrays:
        raise InputError(
            "an archive has an array 'kspace'", got="none", remedy="numpy.savez(file, kspace=..., mask=...)"
        )
    known: dict[str, Any] = {}
    if "affine" in arrays:
        known |= {"affine": checked_affine(arrays["affine"]), "side_is_known": True}
    if "noise" in arrays:
        known["noise"] = _checked_noise(arrays["noise"], arrays["kspace"].shape)
    if "mask" in arrays:
        known["mask"] = torch.from_numpy(arrays["mask"] != 0)
    return of_array(arrays["kspace"], **known)


def _load_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise InputError(
            "arrays hold numbers", got=f"{member.filename} of {dtype}", remedy="Save numbers, not objects."
        )
    check_size(shape)
    if size > min(member.file_size, MAX_DEFLATE_RATIO * member.compress_size):
        raise incomplete(f"{member.filename}: at most {member.file_size} of {size} bytes")
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def checked_affine(affine: np.ndarray) -> np.ndarray:
    affine = np.asarray(affine)
    if affine.shape != (4, 4) or affine.dtype.kind not in "fiu" or not abs(np.linalg.det(affine.astype(float))) > 0:
        got, remedy = f"{affine.dtype} of shape {affine.shape}", "It takes (row, column, slice) to patient RAS+ mm."
        raise InputError("an affine is a 4 x 4 matrix of real numbers that can be inverted", got=got, remedy=remedy)
    return affine.astype(np.float64)


def _checked_noise(noise: np.ndarray, shape: Sequence[int]) -> Tensor:
    coils = shape[-3] if len(shape) > 2 else 1
    if noise.shape != (coils, coils) or not np.isfinite(noise).all():
        rule = f"the noise's covariance is finite, {coils} x {coils} as there are coils"
        raise InputError(rule, got=f"shape {noise.shape}", remedy="Give the covariance of the complex noise.")
    return torch.from_numpy(np.asarray(noise, dtype=np.complex64))


# ------------------------------------------------------------------------------------------------ BART


def _read_bart(stem: Path) -> RawData:
    """BART's pair: `stem.hdr` has up to 16 dimensions as text, `stem.cfl` the samples in Fortran's order."""
    header, samples = stem.with_suffix(".hdr"), stem.with_suffix(".cfl")
    for file in (header, samples):
        if not file.is_file():
            remedy = "Give both files of the pair, .hdr and .cfl."
            raise InputError("BART's data are two files", got=f"no {file.name}", remedy=remedy)
    dims = _bart_dims(header)
    check_size(dims)
    size, there = 8 * math.prod(dims), os.path.getsize(samples)
    if size != there:
        raise incomplete(f"{there} of {size} bytes")
    used = {axis: dims[axis] for axis in BART_USED}
    for axis, n in enumerate(dims):
        if axis not in used and n != 1:
            what = BART_AXES[axis] if axis < len(BART_AXES) else f"axis {axis}"
            remedy = f"Take one of them: bart slice {axis} 0."
            raise InputError("k-space has readout, phase, coil and slice axes", got=f"{n} {what}", remedy=remedy)
    stored = np.fromfile(samples, "<c8").reshape(
        tuple(used.values()), order="F"
    )  # readout, phase 1, phase 2, coils, slices
    kspace = torch.from_numpy(np.ascontiguousarray(stored)).permute(4, 3, 0, 1, 2)
    slices, _, readout, _, partitions = kspace.shape
    if partitions == 1:
        return of_kspace(kspace[..., 0])
    if slices > 1:
        got, remedy = f"{slices} slices of {partitions} partitions", "Take one slab: bart slice 13 0."
        raise InputError("a 3-D scan is one slab", got=got, remedy=remedy)
    planes = kspace[0].movedim(1, 0) if readout == 1 else from_volume(kspace[0])
    return of_volume(planes)


def _bart_dims(header: Path) -> tuple[int, ...]:
    with open(header, "rb") as file:
        text = file.read(MAX_TEXT_BYTES).decode("ascii", "replace")
    lines = [line.strip() for line in text.splitlines()]
    try:
        dims = tuple(int(word) for word in lines[lines.index("# Dimensions") + 1].split())
    except (ValueError, IndexError):
        dims = ()
    if not dims or len(dims) > len(BART_AXES):
        remedy = "Write it again with BART."
        raise InputError("a BART header has a line of up to 16 dimensions", got=text[:60], remedy=remedy, file=header)
    return dims + (1,) * (len(BART_AXES) - len(dims))
