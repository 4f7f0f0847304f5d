"""Arrays and BART files: what is written comes back, and what is damaged is one `InputError` that names the file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from foundation.errors import InputError
from foundation.raw import RawData
from foundation.reading.raw import read_raw


def samples(*shape: int, seed: int = 0) -> np.ndarray:
    rng = default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def refusal(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_raw(path)
    assert caught.value.file is not None and Path(caught.value.file).name.startswith(path.stem)
    return caught.value


def write_bart(stem: Path, array: np.ndarray, header: str | None = None) -> Path:
    """As BART does: dimensions as text, samples with the first axis running fastest."""
    dims = " ".join(str(n) for n in array.shape) + " 1" * (16 - array.ndim)
    stem.with_suffix(".hdr").write_text(header or f"# Dimensions\n{dims} \n# Command\nfft\n")
    stem.with_suffix(".cfl").write_bytes(array.astype("<c8").tobytes(order="F"))
    return stem.with_suffix(".cfl")


# ------------------------------------------------------------------------------------------------ arrays


@pytest.mark.parametrize("shape", [(10, 12), (3, 10, 12), (2, 3, 10, 12)])
def test_an_array_is_read_whatever_its_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    kspace = samples(*shape)
    kspace[..., 1::2] = 0
    np.save(tmp_path / "k.npy", kspace.astype(np.complex128))
    raw = read_raw(tmp_path / "k.npy")
    np.testing.assert_array_equal(raw.kspace.reshape(shape).numpy(), kspace)
    assert raw.kspace.ndim == 4
    assert torch.equal(raw.mask.flatten(), torch.arange(12) % 2 == 0)
    assert (raw.phase_axes, raw.affine, raw.noise, raw.target) == ((1,), None, None, None)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_adds_what_is_known(tmp_path: Path, save: Callable[..., None]) -> None:
    kspace, affine = samples(2, 3, 10, 12), np.diag([1.0, 2.0, 3.0, 1.0])
    mask = np.arange(12) % 2
    save(tmp_path / "k.npz", kspace=kspace, mask=mask, affine=affine, noise=np.eye(3), other="text")
    raw = read_raw(tmp_path / "k.npz")
    assert raw.affine is not None and raw.planned is not None and raw.side_is_known and raw.is_complete
    np.testing.assert_array_equal(raw.affine, affine)
    assert raw.planned.flatten().tolist() == mask.tolist()
    assert raw.sigma == pytest.approx(2**-0.5)


def test_a_mask_that_says_what_was_measured_is_no_plan(tmp_path: Path) -> None:
    mask = np.arange(12) % 2 == 0
    np.savez(tmp_path / "k.npz", kspace=samples(3, 10, 12) * mask, mask=mask)
    raw = read_raw(tmp_path / "k.npz")
    assert raw.planned is None and raw.mask.flatten().tolist() == mask.tolist()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"kspace": samples(3, 10, 12).real}, "complex"),
        ({"kspace": samples(12)}, "complex array of 2 to 4"),
        ({"kspace": np.zeros((10, 12), complex)}, "all zero"),
        ({"kspace": np.full((10, 12), np.nan + 0j)}, "finite"),
        ({"kspace": np.zeros((0, 12), complex)}, "samples"),
        ({"image": samples(10, 12)}, "'kspace'"),
        ({"kspace": samples(10, 12), "mask": np.ones(10)}, "12 columns"),
        ({"kspace": samples(10, 12), "mask": np.ones((2, 2, 12))}, "12 columns"),
        ({"kspace": samples(10, 12), "affine": np.zeros((4, 4))}, "4 x 4"),
        ({"kspace": samples(10, 12), "affine": np.eye(3)}, "4 x 4"),
        ({"kspace": samples(2, 10, 12), "noise": np.eye(3)}, "2 x 2"),
        ({"kspace": np.array([{}, {}], dtype=object)}, "numbers"),
    ],
)
def test_a_bad_archive_says_what_is_wrong(tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
    np.savez(tmp_path / "k.npz", **arrays)  # pyright: ignore[reportArgumentType]
    assert says in str(refusal(tmp_path / "k.npz"))


def npy_bytes(array: np.ndarray, shape: tuple[int, ...]) -> bytes:
    """A .npy file of `array` whose header claims another shape."""
    stream = BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<c8", "fortran_order": False, "shape": shape})
    return stream.getvalue() + array.astype("<c8").tobytes()


@pytest.mark.parametrize("shape", [(10, 13), (2**20, 2**20)])
def test_an_array_that_claims_more_than_is_there_takes_no_memory(tmp_path: Path, shape: tuple[int, ...]) -> None:
    content = npy_bytes(samples(10, 12), shape)
    (tmp_path / "k.npy").write_bytes(content)
    assert "array" in str(refusal(tmp_path / "k.npy"))
    with zipfile.ZipFile(tmp_path / "k.npz", "w") as archive:
        archive.writestr("kspace.npy", content)
    refusal(tmp_path / "k.npz")


def test_a_header_that_is_no_python_is_refused(tmp_path: Path) -> None:
    content = npy_bytes(samples(10, 12), (10, 12)).replace(b"'shape': (10,", b"'shape': ((0,")
    (tmp_path / "k.npy").write_bytes(content)
    assert "array" in str(refusal(tmp_path / "k.npy"))
    with zipfile.ZipFile(tmp_path / "k.npz", "w") as archive:
        archive.writestr("kspace.npy", content)
    refusal(tmp_path / "k.npz")


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", np.array([{}], dtype=object))
    refusal(tmp_path / "k.npy")


@pytest.mark.parametrize("name", ["k.npz", "k.npy", "k.h5", "k.hdr"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04nothing", b"\x93NUMPY\x01\x00", b"\x89HDF\r\n\x1a\n" + bytes(80)])
def test_something_else_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refusal(tmp_path / name)


def test_an_unknown_suffix_and_a_missing_file(tmp_path: Path) -> None:
    assert ".cfl (BART)" in str(refusal(tmp_path / "k.dat"))
    refusal(tmp_path / "k.npy")


# ------------------------------------------------------------------------------------------------ BART


def axes(kspace: np.ndarray) -> np.ndarray:
    """(slices, coils, rows, columns) as BART counts axes: readout, phase 1, phase 2, coils, ..., slices at 13."""
    return kspace.transpose(2, 3, 1, 0)[:, :, None, :, *[None] * 9, :]


@pytest.mark.parametrize("slices", [1, 3])
def test_bart_slices_come_back(tmp_path: Path, slices: int) -> None:
    kspace = samples(slices, 4, 10, 12)
    path = write_bart(tmp_path / "k", axes(kspace))
    for name in (path, path.with_suffix(".hdr")):
        np.testing.assert_array_equal(read_raw(name).kspace.numpy(), kspace)


def test_a_bart_volume_becomes_planes_along_its_readout(tmp_path: Path) -> None:
    kspace = samples(8, 10, 12, 4)
    kspace[:, ::2, ::3] = 0
    raw = read_raw(write_bart(tmp_path / "k", kspace))
    assert raw.kspace.shape == (8, 4, 10, 12) and raw.phase_axes == (0, 1)
    left = np.ones((10, 12), bool)
    left[::2, ::3] = False
    np.testing.assert_array_equal(raw.mask.expand(1, 1, 10, 12)[0, 0].numpy(), left)
    middle = raw.kspace.sum(0).numpy() / 8**0.5  # the sum over places is the sample in the middle of the readout
    np.testing.assert_allclose(middle, kspace[4].transpose(2, 0, 1), atol=1e-5)


def test_one_place_of_a_bart_volume(tmp_path: Path) -> None:
    kspace = samples(1, 10, 12, 4)
    raw: RawData = read_raw(write_bart(tmp_path / "k", kspace))
    np.testing.assert_array_equal(raw.kspace[0].numpy(), kspace[0].transpose(2, 0, 1))
    assert raw.phase_axes == (0, 1)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("# Dimensions\n100000 100000 1 8\n", "samples"),
        ("# Dimensions\n10 12 2 4\n", "complete"),
        ("# Dimensions\n10 -12 1 4\n", "samples"),
        ("# Dimensions\n10 12 1 2 2\n", "2 maps"),
        ("# Dimensions\nten\n", "header"),
        ("# Dimensions", "header"),
        ("10 12 1 4", "header"),
        ("# Dimensions\n" + "1 " * 17, "header"),
    ],
)
def test_a_bad_bart_header(tmp_path: Path, header: str, says: str) -> None:
    assert says in str(refusal(write_bart(tmp_path / "k", axes(samples(1, 4, 10, 12)), header)))


def test_half_a_pair(tmp_path: Path) -> None:
    path = write_bart(tmp_path / "k", axes(samples(1, 4, 10, 12)))
    path.with_suffix(".hdr").unlink()
    assert "both files" in str(refusal(path))


# ------------------------------------------------------------------------------------------------ real


def test_a_real_accelerated_scan(shared_data: Path) -> None:
    raw = read_raw(shared_data / "kspace_sigpy_brain8ch" / "cartesian_ksp.npy")
    assert raw.kspace.shape == (1, 8, 230, 180) and not raw.is_complete
    assert raw.acceleration == pytest.approx(8.04, abs=0.01)


def test_a_real_complete_scan(shared_data: Path) -> None:
    raw = read_raw(shared_data / "kspace_siemens_twix" / "gre_ae8959_kspace.npy")
    assert raw.kspace.shape == (1, 2, 160, 320) and raw.is_complete
