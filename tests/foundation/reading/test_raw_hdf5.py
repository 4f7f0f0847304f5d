"""fastMRI's and ISMRMRD's files: images in place, nothing but plain data accepted, damage named.

ISMRMRD files are written by the ismrmrd package, which our reader does not use.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine
from numpy.random import default_rng

from foundation.errors import InputError
from foundation.physics.kspace import to_image, to_kspace
from foundation.reading.raw import read_raw
from foundation.reading.raw_hdf5 import parse_header

HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <acquisitionSystemInformation><systemVendor>SIEMENS</systemVendor>
    <systemFieldStrength_T>2.8936</systemFieldStrength_T></acquisitionSystemInformation>
  <encoding>
    <encodedSpace><matrixSize><x>32</x><y>20</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>64</x><y>40</y><z>5</z></fieldOfView_mm></encodedSpace>
    <reconSpace><matrixSize><x>16</x><y>16</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>32</x><y>32</y><z>5</z></fieldOfView_mm></reconSpace>
    <encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>19</maximum><center>10</center>
      </kspace_encoding_step_1></encodingLimits>
    <trajectory>cartesian</trajectory>
  </encoding>
  <sequenceParameters><TR>4000</TR><TE>100</TE></sequenceParameters>
</ismrmrdHeader>"""


def samples(*shape: int, seed: int = 0) -> np.ndarray:
    rng = default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def kspace_of(image: np.ndarray, axes: tuple[int, ...] = (-2, -1)) -> np.ndarray:
    return to_kspace(torch.from_numpy(image), axes).numpy()


def refusal(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_raw(path)
    assert caught.value.file == str(path)
    return caught.value


# ------------------------------------------------------------------------------------------------ fastMRI


@pytest.fixture
def fastmri(tmp_path: Path) -> Callable[..., Path]:
    """A file in fastMRI's layout with the parts that are given."""

    def write(**parts: Any) -> Path:
        path = tmp_path / "file.h5"
        with h5py.File(path, "w") as file:
            for name, value in parts.items():
                file[name] = value
        return path

    return write


def test_a_fastmri_file_is_read_without_its_oversampling(fastmri: Callable[..., Path]) -> None:
    image = samples(2, 3, 32, 20)
    path = fastmri(kspace=kspace_of(image), ismrmrd_header=HEADER, mask=np.arange(20) % 2)
    raw = read_raw(path)
    assert raw.kspace.shape == (2, 3, 16, 20) and raw.image_shape == (16, 16) and raw.is_complete
    np.testing.assert_allclose(to_image(raw.kspace).numpy(), image[:, :, 8:24], atol=1e-5)
    np.testing.assert_allclose(raw.shown(to_image(raw.kspace)[:, 0]).numpy(), image[:, 0, 8:24, 2:18], atol=1e-5)
    assert raw.planned is not None and raw.planned.flatten().tolist() == (np.arange(20) % 2 > 0).tolist()
    assert raw.affine is not None and not raw.side_is_known
    np.testing.assert_allclose(np.diag(raw.affine), [2, 2, 5, 1])
    acquisition = raw.acquisition
    assert (acquisition.echo_time_ms, acquisition.repetition_time_ms, acquisition.vendor) == (100, 4000, "SIEMENS")
    assert (acquisition.inversion_time_ms, acquisition.field_strength_t) == (None, 2.8936)


def test_a_test_file_keeps_its_mask_and_a_single_coil_has_no_axis(fastmri: Callable[..., Path]) -> None:
    mask = np.arange(20) % 4 == 0
    raw = read_raw(fastmri(kspace=samples(2, 32, 20) * mask, mask=mask))
    assert raw.kspace.shape == (2, 1, 32, 20) and raw.planned is None
    assert raw.mask.flatten().tolist() == mask.tolist()


def test_the_stored_image_says_what_is_shown(fastmri: Callable[..., Path]) -> None:
    target = default_rng(0).random((2, 10, 12)).astype(np.float32)
    raw = read_raw(fastmri(kspace=samples(2, 3, 16, 20), reconstruction_rss=target))
    assert raw.target is not None and raw.image_shape == (10, 12)
    np.testing.assert_array_equal(raw.target.numpy(), target)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"kspace": np.ones((2, 3, 8, 8))}, "numbers"),
        ({"kspace": samples(2, 8)}, "(slices, coils, rows, columns)"),
        ({"kspace": samples(2, 3, 8, 8), "mask": np.ones(7)}, "8 columns"),
        ({"kspace": samples(2, 3, 8, 8), "mask": "text"}, "numbers"),
        ({"kspace": samples(2, 3, 8, 8), "reconstruction_rss": np.ones((2, 9, 8))}, "no larger than"),
        ({"kspace": samples(2, 3, 8, 8), "ismrmrd_header": "<a"}, "XML"),
        ({"kspace": samples(2, 3, 8, 8), "ismrmrd_header": "<a/>"}, "encodedSpace"),
        ({"kspace": samples(2, 3, 8, 8), "ismrmrd_header": 5}, "one text"),
        ({"kspace/inside": samples(2, 3, 8, 8)}, "is a dataset"),
        ({"other": np.ones(3)}, "fastMRI"),
    ],
)
def test_a_bad_file_says_what_is_wrong(fastmri: Callable[..., Path], parts: dict[str, Any], says: str) -> None:
    assert says in str(refusal(fastmri(**parts)))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("<x>32</x><y>20", "<x>0</x><y>20", "matrixSize/x"),
        ("<x>32</x><y>20", "<x>1e9</x><y>20", "matrixSize/x"),
        ("<x>64</x>", "<x>nan</x>", "fieldOfView_mm/x"),
        ("<x>64</x>", "<x>0.0100</x>", "mm apart"),
        ("<TR>4000</TR>", "<TR>soon</TR>", "TR"),
        ("<?xml", "<!DOCTYPE a [<!ENTITY b 'c'>]><?xml", "plain XML"),
    ],
)
def test_a_bad_header_says_what_is_wrong(fastmri: Callable[..., Path], old: str, new: str, says: str) -> None:
    assert old in HEADER
    header = HEADER.replace(old, new, 1)
    assert says in str(refusal(fastmri(kspace=samples(1, 1, 32, 20), ismrmrd_header=header)))


def test_nothing_outside_the_file_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["kspace"] = samples(1, 1, 8, 8)
    (tmp_path / "samples.bin").write_bytes(samples(1, 1, 8, 8).tobytes())

    def link(file: h5py.File) -> None:
        file["kspace"] = h5py.ExternalLink("other.h5", "kspace")

    def soft(file: h5py.File) -> None:
        file["real"] = samples(1, 1, 8, 8)
        file["kspace"] = h5py.SoftLink("/real")

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((1, 1, 8, 8), np.complex64)
        layout[...] = h5py.VirtualSource("other.h5", "kspace", (1, 1, 8, 8))
        file.create_virtual_dataset("kspace", layout)

    def external(file: h5py.File) -> None:
        file.create_dataset(
            "kspace", (1, 1, 8, 8), np.complex64, external=[(str(tmp_path / "samples.bin"), 0, h5py.h5f.UNLIMITED)]
        )

    for number, make in enumerate((link, soft, virtual, external)):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            make(file)
        assert "the file itself" in str(refusal(path)), make


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"compression": "lzf"}, {"fletcher32": True}])
def test_filters_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file.create_dataset("kspace", data=samples(1, 1, 8, 8), **options)
    assert "h5repack" in str(refusal(tmp_path / "file.h5"))


@pytest.mark.parametrize("chunks", [None, (1, 1, 64, 64)])
def test_a_dataset_that_was_never_written_takes_no_memory(tmp_path: Path, chunks: tuple[int, ...] | None) -> None:
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file.create_dataset("kspace", (1000, 16, 640, 320), np.complex64, chunks=chunks)
    assert (tmp_path / "file.h5").stat().st_size < 10_000
    assert "complete" in str(refusal(tmp_path / "file.h5"))


def test_a_damaged_file_is_refused_or_read(fastmri: Callable[..., Path]) -> None:
    """Sixty files with a few changed bytes in what is not samples, and thirty cut short: never anything but `InputError`."""
    path = fastmri(kspace=samples(1, 1, 32, 20), ismrmrd_header=HEADER, mask=np.ones(20))
    whole, rng = path.read_bytes(), default_rng(0)
    refused = 0
    for trial in range(90):
        content = bytearray(whole)
        if trial < 60:
            for at in rng.integers(0, 2500, 4):
                content[at] = rng.integers(256)
        else:
            content = content[: rng.integers(0, len(whole))]
        path.write_bytes(content)
        with suppress(InputError):
            read_raw(path)
            continue
        refused += 1
    assert 30 < refused < 90


# ------------------------------------------------------------------------------------------------ ISMRMRD

CENTRES_MM = np.array([[3.0, -7.0, 11.0], [3.0, -7.0, 17.0], [3.0, -7.0, 23.0]])  # left, posterior, superior
READ, PHASE, NORMAL = np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, -1.0])


@pytest.fixture
def ismrmrd(tmp_path: Path) -> Callable[..., Path]:
    """`ismrmrd(kspace (slices, coils, x, y, z), header=..., change=...)`: a file as that package writes it.

    `change(acquisition, slice, y, z)` may alter a readout, or say by False that it was not taken.
    """
    package = pytest.importorskip("ismrmrd")

    def write(kspace: np.ndarray, header: str = HEADER, change: Callable[..., object] | None = None) -> Path:
        path = tmp_path / "scan.h5"
        path.unlink(missing_ok=True)
        file = package.Dataset(str(path), create_if_needed=True)
        file.write_xml_header(header.encode())
        slices, _, x, lines, partitions = kspace.shape
        for number in range(slices):
            for y in range(lines):
                for z in range(partitions):
                    acquisition = package.Acquisition.from_array(np.ascontiguousarray(kspace[number, :, :, y, z]))
                    acquisition.idx.slice = number
                    acquisition.idx.kspace_encode_step_1, acquisition.idx.kspace_encode_step_2 = y, z
                    acquisition.center_sample = x // 2
                    acquisition.sample_time_us = 5.0
                    acquisition.position[:] = CENTRES_MM[number]
                    acquisition.read_dir[:], acquisition.phase_dir[:] = READ, PHASE
                    acquisition.slice_dir[:] = NORMAL
                    if change is None or change(acquisition, number, y, z) is not False:
                        file.append_acquisition(acquisition)
        file.close()
        return path

    return write


def test_ismrmrd_slices_lie_where_the_scanner_says(ismrmrd: Callable[..., Path]) -> None:
    image = samples(3, 2, 32, 20)
    raw = read_raw(ismrmrd(kspace_of(image)[..., None]))
    assert raw.image_shape == (16, 16) and raw.side_is_known and raw.affine is not None and raw.is_complete
    # Slices are sorted along their normal, which here points to the feet: the last comes first.
    np.testing.assert_allclose(to_image(raw.kspace).numpy(), image[::-1, :, 8:24], atol=1e-5)
    for number in range(3):  # index n // 2 of every axis is the middle that was given, in RAS
        middle = apply_affine(raw.affine, [8, 10, number])
        np.testing.assert_allclose(middle, CENTRES_MM[2 - number] * [-1, -1, 1], atol=1e-4)
    along = apply_affine(raw.affine, [[9, 10, 0], [8, 11, 0]]) - apply_affine(raw.affine, [8, 10, 0])
    np.testing.assert_allclose(along, [[0, -2, 0], [-2, 0, 0]], atol=1e-4)


def test_an_accelerated_scan_with_averages_and_noise(ismrmrd: Callable[..., Path]) -> None:
    package = pytest.importorskip("ismrmrd")
    kspace, rng = kspace_of(samples(1, 2, 32, 20))[..., None], default_rng(0)
    mixing = np.array([[2.0, 0], [1j, 1]])

    def change(acquisition: Any, number: int, y: int, z: int) -> bool:
        if y % 4 == 1:  # another kind of readout, which must not reach the image
            acquisition.setFlag(package.ACQ_IS_NAVIGATION_DATA)
        if y % 4 == 3:
            acquisition.data[:] = mixing @ (rng.standard_normal((2, 32)) + 1j * rng.standard_normal((2, 32)))
            acquisition.sample_time_us = 10.0
            acquisition.setFlag(package.ACQ_IS_NOISE_MEASUREMENT)
        return True

    path = ismrmrd(kspace, change=change)
    file = package.Dataset(str(path), create_if_needed=False)
    for line in range(file.number_of_acquisitions()):  # every line once more, three times as strong: the mean is twice
        acquisition = file.read_acquisition(line)
        acquisition.data[:] = 3 * acquisition.data
        if not acquisition.isFlagSet(package.ACQ_IS_NOISE_MEASUREMENT):
            file.append_acquisition(acquisition)
    file.close()
    raw = read_raw(path)
    assert raw.mask.flatten().tolist() == [y % 4 in (0, 2) for y in range(20)]
    assert raw.facts["averages"] == 2
    expected = to_image(torch.from_numpy(2 * kspace[..., 0] * (np.arange(20) % 2 == 0)))[:, :, 8:24]
    torch.testing.assert_close(to_image(raw.kspace), expected, atol=1e-4, rtol=1e-4)
    # Noise was sampled half as fast, so has half the variance, but each line is the mean of two.
    assert raw.noise is not None
    wanted = torch.from_numpy(2 * mixing @ mixing.conj().T).to(torch.complex64)
    torch.testing.assert_close(raw.noise, wanted * 2 / 2, atol=1.5, rtol=0)


def test_a_volume_in_ismrmrd(ismrmrd: Callable[..., Path]) -> None:
    image = samples(1, 2, 32, 20, 6)
    header = HEADER.replace("<z>1</z>", "<z>6</z>").replace("<z>5</z>", "<z>30</z>")
    raw = read_raw(ismrmrd(kspace_of(image, (-3, -2, -1)), header))
    assert raw.kspace.shape == (16, 2, 20, 6) and raw.phase_axes == (0, 1) and raw.image_shape == (16, 6)
    np.testing.assert_allclose(to_image(raw.kspace).numpy(), image[0, :, 8:24].transpose(1, 0, 2, 3), atol=1e-5)
    assert raw.affine is not None
    np.testing.assert_allclose(apply_affine(raw.affine, [10, 3, 8]), CENTRES_MM[0] * [-1, -1, 1], atol=1e-4)
    np.testing.assert_allclose(raw.affine[:3, :3].T, [[-2, 0, 0], [0, 0, -5], [0, -2, 0]], atol=1e-4)


def test_a_line_is_put_by_its_number_and_centre(ismrmrd: Callable[..., Path]) -> None:
    """A scan of fewer lines than the matrix has, with an echo that is not in the middle of the readout."""
    kspace = kspace_of(samples(1, 1, 32, 20))
    header = HEADER.replace("<center>10</center>", "<center>7</center>")

    def change(acquisition: Any, number: int, y: int, z: int) -> bool:
        acquisition.idx.kspace_encode_step_1 = y
        return y < 17

    def late(acquisition: Any, number: int, y: int, z: int) -> bool:
        acquisition.center_sample = 10
        return y < 17

    lines = read_raw(ismrmrd(kspace[..., None], header, change)).mask.flatten()
    assert lines.tolist() == [3 <= y < 20 for y in range(20)]
    partial = kspace[:, :, 6:]  # six samples before the echo are missing: its middle is number 10
    raw = read_raw(ismrmrd(partial[..., None], change=late))
    expected = kspace.copy()
    expected[:, :, :6] = 0
    expected[..., 17:] = 0
    torch.testing.assert_close(
        to_image(raw.kspace), to_image(torch.from_numpy(expected))[:, :, 8:24], atol=1e-5, rtol=0
    )


def test_repetitions_are_not_added_up(ismrmrd: Callable[..., Path]) -> None:
    kspace = samples(2, 1, 32, 20)

    def change(acquisition: Any, number: int, y: int, z: int) -> bool:
        acquisition.idx.slice, acquisition.idx.repetition = 0, number
        return True

    raw = read_raw(ismrmrd(kspace[..., None], change=change))
    np.testing.assert_allclose(to_image(raw.kspace), to_image(torch.from_numpy(kspace[:1]))[:, :, 8:24], atol=1e-5)
    assert raw.facts["first of repetitions"] == 2


def uneven(acquisition: Any, number: int, y: int, z: int) -> None:
    acquisition.position[2] += float(number == 1)


def skewed(acquisition: Any, number: int, y: int, z: int) -> None:
    acquisition.phase_dir[:] = READ


@pytest.mark.parametrize("change", [uneven, skewed])
def test_a_place_that_cannot_be_is_not_known(ismrmrd: Callable[..., Path], change: Callable[..., None]) -> None:
    raw = read_raw(ismrmrd(samples(3, 1, 32, 20, 1), change=change))
    assert raw.affine is not None and not raw.side_is_known
    np.testing.assert_allclose(np.diag(raw.affine), [2, 2, 5, 1])


def backwards(acquisition: Any, number: int, y: int, z: int) -> None:
    acquisition.setFlag(22)


def noise_only(acquisition: Any, number: int, y: int, z: int) -> None:
    acquisition.setFlag(19)


def elsewhere(acquisition: Any, number: int, y: int, z: int) -> None:
    acquisition.idx.kspace_encode_step_1 = 200


def shifted(acquisition: Any, number: int, y: int, z: int) -> None:
    acquisition.center_sample = 31


@pytest.mark.parametrize(
    ("change", "header", "says"),
    [
        (backwards, HEADER, "one direction"),
        (noise_only, HEADER, "readouts of the image"),
        (elsewhere, HEADER, "inside the encoded matrix"),
        (shifted, HEADER, "inside the encoded matrix"),
        (None, HEADER.replace("cartesian", "spiral"), "spiral"),
        (None, HEADER.replace("<x>32</x><y>20</y>", "<x>16</x><y>20</y>"), "inside the encoded matrix"),
        (None, HEADER.replace("<x>32</x><y>20</y>", "<x>9999</x><y>9999</y>"), "what was measured"),
    ],
)
def test_readouts_that_do_not_fit_are_refused(
    ismrmrd: Callable[..., Path], change: Callable[..., None] | None, header: str, says: str
) -> None:
    assert says in str(refusal(ismrmrd(samples(1, 1, 32, 20, 1), header, change)))


def test_a_list_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["dataset/xml"] = [HEADER]
        file["dataset/data"] = np.zeros(5)
    assert "list of readouts" in str(refusal(path))


def test_the_packages_own_header_is_understood() -> None:
    xsd = pytest.importorskip("ismrmrd.xsd")
    size, extent = xsd.matrixSizeType(x=64, y=48, z=1), xsd.fieldOfViewMm(x=256.0, y=192.0, z=4.0)
    space = xsd.encodingSpaceType(matrixSize=size, fieldOfView_mm=extent)
    limit = xsd.limitType(minimum=0, maximum=47, center=20)
    encoding = xsd.encodingType(
        encodedSpace=space,
        reconSpace=space,
        encodingLimits=xsd.encodingLimitsType(kspace_encoding_step_1=limit),
        trajectory=xsd.trajectoryType.CARTESIAN,
    )
    conditions = xsd.experimentalConditionsType(H1resonanceFrequency_Hz=63_500_000)
    header = parse_header(xsd.ToXML(xsd.ismrmrdHeader(experimentalConditions=conditions, encoding=[encoding])))
    assert header.encoded.matrix == (64, 48, 1) and header.encoded.spacing_mm == (4, 4, 4)
    assert header.centres == (20, 0) and header.num_readout == 64 and header.trajectory == "cartesian"
