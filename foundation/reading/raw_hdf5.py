"""Raw k-space in HDF5, in fastMRI's layout and in ISMRMRD's (Inati et al. 2017), both with ISMRMRD's XML header.

HDF5 is read with care: a dataset may point into other files and may claim to hold what is not stored, and a filter may
unpack little into much. None of that is needed for raw data and none of it is accepted. ISMRMRD's own Python package is
not used here, because it opens whatever it is given; the tests read with this module what that package wrote.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import h5py
import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from foundation.errors import InputError
from foundation.physics.kspace import crop_field_of_view
from foundation.raw import RawData, from_volume
from foundation.reading.nifti import MAX_POSITION_MM, SPACING_MM
from foundation.reading.raw import check_size, checked_affine, of_kspace, of_volume
from foundation.study import Acquisition
from foundation.text import without_bytes

MAX_HEADER_BYTES = 16 * 2**20
MAX_MATRIX = 2**15
MAX_SPARSITY = 256  # samples of the grid to those in the file; nobody accelerates so far
RECORDS_AT_ONCE = 256
EVEN_SLICES_MM = 0.01  # how far a slice may lie from where even spacing would have it

# Bits of an ISMRMRD acquisition's flags, counted from one. Lines with these were not taken to make the image of.
NOISE, CALIBRATION, CALIBRATION_AND_IMAGING, REVERSED = 19, 20, 21, 22
OTHER_PURPOSES = (23, 24, 26, 27, 28, 29, 30, 31)  # navigators, phase correction, feedback, dummies, surface coils
DIMENSIONS_READ_FIRST = ("contrast", "phase", "repetition", "set")  # of which the first of each is read


HEAD = ("flags", "number_of_samples", "active_channels", "center_sample", "discard_pre", "discard_post", "encoding_space_ref",
        "sample_time_us", "position", "read_dir", "phase_dir", "slice_dir")  # fmt: skip
COUNTERS = ("kspace_encode_step_1", "kspace_encode_step_2", "slice", *DIMENSIONS_READ_FIRST)


def read_hdf5(path: Path) -> RawData:
    with _opened(path) as file:
        names = set(file)  # of links, none of which is followed; bytes where they are no text
        if "kspace" in names:
            return _read_fastmri(file, names)
        if "dataset" in names:
            return _read_ismrmrd(file)
        rule = "an .h5 of raw data has 'kspace' (fastMRI) or 'dataset' (ISMRMRD)"
        raise InputError(
            rule,
            got=", ".join(sorted(without_bytes(name) for name in names)[:8]) or "nothing",
            remedy="Give a file of one of these layouts.",
        )


# ------------------------------------------------------------------------------------------------ HDF5


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """A damaged file may raise nearly anything inside h5py; what it raises there is a complaint about the file."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeError) as error:
        if not _is_from_h5py(error):
            raise
        raise InputError(
            "the file is undamaged HDF5", got=without_bytes(error), remedy="Copy or download it again."
        ) from error


def _is_from_h5py(error: BaseException) -> bool:
    """Whether the error arose inside h5py: a mistake of ours is not blamed on the file."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "h5py" in trace.tb_frame.f_code.co_filename


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset whose every byte lies in this very file as it is, or an `InputError`."""
    node: Any = file
    for part in name.split("/"):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            raise InputError(f"the file has '{name}'", got="none", remedy="Check how it was exported.")
        if not isinstance(link, h5py.HardLink):
            remedy = "Copy the data into one file: h5repack, or h5py."
            raise InputError("raw data lie in the file itself", got=f"a link at '{name}'", remedy=remedy)
        node = node[part]
    if not isinstance(node, h5py.Dataset):
        raise InputError(f"'{name}' is a dataset", got="a group", remedy="Check how it was exported.")
    creation = node.id.get_create_plist()
    if node.is_virtual or creation.get_external_count():
        remedy = "Copy the data into one file: h5repack, or h5py."
        raise InputError("raw data lie in the file itself", got=f"'{name}' in other files", remedy=remedy)
    if creation.get_nfilters():
        got, remedy = f"'{name}' with {node.compression or 'a filter'}", "Unpack it: h5repack -f NONE IN OUT."
        raise InputError("raw data are stored without filters", got=got, remedy=remedy)
    size, stored = node.size * node.dtype.itemsize, node.id.get_storage_size()
    there = os.path.getsize(file.filename)
    if size > stored or stored > there:
        got = f"{size} bytes announced, {stored} stored, in a file of {there}"
        raise InputError(f"'{name}' is complete", got=got, remedy="Copy or download it again.")
    return node


def _check_heaps(file: h5py.File, dataset: h5py.Dataset) -> None:
    """Texts and lists of any length lie in heaps, which the library must not be sent into unseen: it walks from object to
    object by their sizes, and from one of no size it never returns.

    By HDF5's file format, III.E and IV.B: a reference is a length, the address of a heap and a number in it; a heap is
    'GCOL', a version, its size, and objects that each say how many bytes follow, padded to eight.
    """
    if file.userblock_size or file.id.get_create_plist().get_sizes() != (8, 8):
        raise InputError("the file has HDF5's usual layout", got="another", remedy="Copy it: h5repack IN OUT.")
    type_id = dataset.id.get_type()
    is_compound = isinstance(type_id, h5py.h5t.TypeCompoundID)
    members = range(type_id.get_nmembers() if is_compound else 1)
    offsets = [
        type_id.get_member_offset(i) if is_compound else 0
        for i in members
        if not is_compound or type_id.get_member_class(i) == h5py.h5t.VLEN
    ]
    # A reference has 16 bytes in the file; in memory a list's has as many and a text's has 8, which is what is told here.
    record = np.dtype({"names": [str(offset) for offset in offsets], "formats": ["V16"] * len(offsets), "offsets": offsets,
                       "itemsize": max(16, type_id.get_size())})  # fmt: skip
    places: list[tuple[int, int]] = []  # where in the file, and how many bytes
    if dataset.chunks is None:
        if (start := dataset.id.get_offset()) is not None:
            places.append((start, dataset.id.get_storage_size()))
    else:
        dataset.id.chunk_iter(lambda chunk: places.append((chunk.byte_offset, chunk.size)))
    size = os.path.getsize(file.filename)
    checked: set[int] = {0, 2**64 - 1}  # nowhere: lists without elements
    with open(file.filename, "rb") as raw:
        for start, length in places:
            raw.seek(start)
            records = np.frombuffer(raw.read(length - length % record.itemsize), record)
            for name in record.names or ():
                for address in np.unique(
                    np.ascontiguousarray(records[name]).view("<u4").reshape(-1, 4)[:, 1:3], axis=0
                ):
                    at = int(address[0]) | int(address[1]) << 32
                    if at not in checked:
                        checked.add(at)
                        _check_heap(raw, at, size)


def _check_heap(raw: BinaryIO, at: int, size: int) -> None:
    def damaged(got: object) -> InputError:
        return InputError("the file is undamaged HDF5", got=got, remedy="Copy or download it again.")

    if at + 16 > size:
        raise damaged("a list outside of the file")
    raw.seek(at)
    head = raw.read(16)
    length = int.from_bytes(head[8:], "little")
    if head[:5] != b"GCOL\x01" or not 16 <= length <= size - at:
        raise damaged("a list that is no list")
    content = raw.read(length - 16)
    place = 0
    while place + 16 <= len(content):
        is_free = content[place : place + 2] == b"\0\0"
        length = int.from_bytes(content[place + 8 : place + 16], "little")
        step = length if is_free else 16 + -(-length // 8) * 8  # what is free counts its own 16 bytes
        if not 16 <= step <= len(content) - place:
            raise damaged("a list of another length than it says")
        place += step


def _array(file: h5py.File, name: str, kinds: str) -> np.ndarray:
    dataset = _dataset(file, name)
    if dataset.dtype.kind not in kinds:
        raise InputError(f"'{name}' holds numbers", got=dataset.dtype, remedy="Check how it was exported.")
    check_size(dataset.shape or (1,))
    return dataset[()]


def _attribute(file: h5py.File, name: str) -> np.ndarray | None:
    """A small attribute of numbers; None where there is none."""
    if name not in file.attrs:
        return None
    found = file.attrs.get_id(name)
    if found.dtype.kind not in "fiu" or math.prod(found.shape) > 256:
        got = f"{found.dtype} of shape {found.shape}"
        raise InputError(f"the attribute '{name}' is a few numbers", got=got, remedy="Write it again, or remove it.")
    return np.asarray(file.attrs[name], dtype=np.float64)


# ------------------------------------------------------------------------------------------------ header


@dataclass(frozen=True)
class Space:
    """A grid: `matrix` counts its points along readout, first and second phase encoding."""

    matrix: tuple[int, int, int]
    field_of_view_mm: tuple[float, float, float]

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        return tuple(extent / n for extent, n in zip(self.field_of_view_mm, self.matrix))


@dataclass(frozen=True)
class Header:
    """What an ISMRMRD header says of the first encoding. `centres` are the k-space lines, by number, of frequency zero."""

    encoded: Space
    shown: Space
    trajectory: str
    centres: tuple[int, int]
    acquisition: Acquisition

    @property
    def num_readout(self) -> int:
        """The points along the readout that remain when what was oversampled is cut off."""
        ratio = self.shown.field_of_view_mm[0] / self.encoded.field_of_view_mm[0]
        return min(self.encoded.matrix[0], max(1, round(self.encoded.matrix[0] * ratio)))


def parse_header(text: bytes | str) -> Header:
    """An ISMRMRD header; namespaces are not looked at."""
    content = text.encode() if isinstance(text, str) else text
    if len(content) > MAX_HEADER_BYTES or any(word in content for word in (b"<!DOCTYPE", b"<!ENTITY", b"\0")):
        raise _bad_header("an ISMRMRD header is plain XML of at most 16 MiB", f"{len(content)} bytes")
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError) as error:
        raise _bad_header("the ISMRMRD header is XML", error) from error

    def number(path: str, least: int | float, most: int | float, default: int | float | None = None) -> int | float:
        """The first number at `path`, by local names, between two limits."""
        element = root.find("/".join(f"{{*}}{part}" for part in path.split("/")))
        if element is None or not (element.text or "").strip():
            if default is None:
                raise _bad_header(f"the ISMRMRD header has {path}", "none")
            return default
        try:
            value = float(element.text or "")
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise _bad_header(f"{path} is a number from {least:g} to {most:g}", element.text)
        return value

    def space(name: str) -> Space:
        size = [number(f"encoding/{name}/matrixSize/{axis}", 1, MAX_MATRIX) for axis in "xyz"]
        extent = [number(f"encoding/{name}/fieldOfView_mm/{axis}", 0.01, MAX_POSITION_MM) for axis in "xyz"]
        x, y, z = (int(n) for n in size)
        return Space((x, y, z), (extent[0], extent[1], extent[2]))

    encoded = space("encodedSpace")
    _, y, z = encoded.matrix
    centres = [
        int(number(f"encoding/encodingLimits/kspace_encoding_step_{which}/center", 0, n - 1, n // 2))
        for which, n in ((1, y), (2, z))
    ]
    trajectory = root.find("{*}encoding/{*}trajectory")
    vendor = root.find("{*}acquisitionSystemInformation/{*}systemVendor")
    times = {
        name: number(f"sequenceParameters/{key}", 0, 1e6, -1.0)
        for name, key in (("repetition_time_ms", "TR"), ("echo_time_ms", "TE"), ("inversion_time_ms", "TI"),
                          ("flip_angle_deg", "flipAngle_deg"))
    }  # fmt: skip
    times["field_strength_t"] = number("acquisitionSystemInformation/systemFieldStrength_T", 0, 30, -1.0)
    acquisition = Acquisition(
        **{name: value for name, value in times.items() if value > 0},
        vendor=None if vendor is None else vendor.text,
    )
    kind = "cartesian" if trajectory is None else (trajectory.text or "").strip().lower()
    return Header(encoded, space("reconSpace"), kind, (centres[0], centres[1]), acquisition)


def _bad_header(rule: str, got: object) -> InputError:
    return InputError(rule, got=got, remedy="Export the raw data again.")


def _read_header(file: h5py.File, name: str) -> Header:
    dataset = _dataset(file, name)
    if dataset.size != 1 or dataset.dtype.kind not in "OS":
        raise _bad_header(f"'{name}' is one text", f"{dataset.dtype} of shape {dataset.shape}")
    _check_heaps(file, dataset)
    text = np.ravel(dataset[()])[0]
    if not isinstance(text, bytes | str):
        raise _bad_header(f"'{name}' is one text", type(text).__name__)
    return parse_header(text)


# ------------------------------------------------------------------------------------------------ fastMRI


def _read_fastmri(file: h5py.File, names: set[str]) -> RawData:
    """`kspace` (slices, [coils,] rows, columns); a mask, a reconstruction and a header where there are any.

    The rows are the readout, twice oversampled by Siemens: what lies outside the field of view is cut off, and the image is
    the middle of what remains, as large as the reconstruction. Our own cohort adds the attributes `affine` and `sigma`.
    """
    kspace = torch.from_numpy(_array(file, "kspace", "c").astype(np.complex64, copy=False))
    if kspace.ndim == 3:
        kspace = kspace[:, None]
    if kspace.ndim != 4:
        got, remedy = f"shape {tuple(kspace.shape)}", "Check how it was exported."
        raise InputError("fastMRI's k-space is (slices, coils, rows, columns)", got=got, remedy=remedy)
    known: dict[str, Any] = {"facts": {"layout": "fastMRI"}}
    header = _read_header(file, "ismrmrd_header") if "ismrmrd_header" in names else None
    if header is not None:
        rows, columns = kspace.shape[-2:]
        extent_mm = header.encoded.field_of_view_mm
        spacing_mm = (extent_mm[0] / rows, extent_mm[1] / columns, header.encoded.spacing_mm[2])
        if rows == header.encoded.matrix[0] and header.num_readout < rows:
            kspace = crop_field_of_view(kspace, header.num_readout, -2)
            known["facts"]["oversampling removed"] = rows / header.num_readout
        known |= {"affine": _checked_spacing(spacing_mm), "acquisition": header.acquisition}
        known["image_shape"] = tuple(min(n, m) for n, m in zip(kspace.shape[-2:], header.shown.matrix[:2]))
    if "mask" in names:
        known["mask"] = torch.from_numpy(np.asarray(_array(file, "mask", "biuf") != 0))
    affine, sigma = _attribute(file, "affine"), _attribute(file, "sigma")
    if affine is not None:
        known |= {"affine": checked_affine(affine), "side_is_known": True}
    if sigma is not None:
        if sigma.shape != () or not 0 <= float(sigma) < math.inf:
            raise InputError("'sigma' is one number, not negative", got=sigma, remedy="Write it again, or remove it.")
        known["noise"] = 2 * float(sigma) ** 2 * torch.eye(kspace.shape[1], dtype=torch.complex64)
    known |= _stored_target(file, names, kspace)
    return of_kspace(kspace, **known)


def _stored_target(
    file: h5py.File, names: set[str], kspace: Complex[Tensor, "slices coils rows columns"]
) -> dict[str, Any]:
    for name in ("reconstruction_rss", "reconstruction_esc"):
        if name in names:
            target = torch.from_numpy(_array(file, name, "f").astype(np.float32))
            fits = target.ndim == 3 and len(target) == len(kspace)
            if not fits or any(n > m for n, m in zip(target.shape[1:], kspace.shape[-2:])):
                rule = f"'{name}' has an image for each slice, no larger than k-space {tuple(kspace.shape)}"
                raise InputError(rule, got=f"shape {tuple(target.shape)}", remedy="Remove it, or write it again.")
            return {"target": target, "image_shape": tuple(target.shape[1:])}
    return {}


def _checked_spacing(spacing_mm: tuple[float, ...]) -> np.ndarray:
    """An affine of which only the spacing is meant."""
    low, high = SPACING_MM
    if not all(low <= step <= high for step in spacing_mm):
        got = " x ".join(f"{step:.4g}" for step in spacing_mm)
        raise _bad_header(f"samples of the image are {low:g} to {high:g} mm apart", got)
    return np.diag([*spacing_mm, 1.0])


# ------------------------------------------------------------------------------------------------ ISMRMRD


def _read_ismrmrd(file: h5py.File) -> RawData:
    """One record for each readout: its header says where in k-space it lies, and where in the patient."""
    header = _read_header(file, "dataset/xml")
    records = _dataset(file, "dataset/data")
    if records.ndim != 1 or not {"head", "data"} <= set(records.dtype.names or ()) or not len(records):
        raise _bad_header("'dataset/data' is a list of readouts", f"{records.dtype} of shape {records.shape}")
    if header.trajectory != "cartesian":
        remedy = "Only Cartesian scans are read."
        raise InputError("the trajectory is cartesian", got=header.trajectory, remedy=remedy)
    _check_heaps(file, records)
    heads = records.fields("head")[:]
    for fields, dtype in (
        (HEAD, heads.dtype),
        (COUNTERS, heads.dtype["idx"] if "idx" in (heads.dtype.names or ()) else None),
    ):
        if dtype is None or not set(fields) <= set(dtype.names or ()):
            raise _bad_header("the head of a readout has ISMRMRD's fields", heads.dtype)
    lines, facts = _imaging_lines(heads)
    chosen = heads[lines]
    coils, samples = (_the_one(chosen[name], name) for name in ("active_channels", "number_of_samples"))
    counters = {
        name: chosen["idx"][name].astype(int) for name in ("kspace_encode_step_1", "kspace_encode_step_2", "slice")
    }
    x, y, z = header.encoded.matrix
    slices = np.unique(counters["slice"])
    grid = (len(slices), coils, x, y, z)
    check_size(grid)
    if math.prod(grid) > MAX_SPARSITY * len(lines) * coils * samples:
        raise _bad_header("the encoded matrix is of the size of what was measured", f"matrix {header.encoded.matrix}")
    ky = counters["kspace_encode_step_1"] - header.centres[0] + y // 2
    kz = counters["kspace_encode_step_2"] - header.centres[1] + z // 2
    centre = _the_one(chosen["center_sample"], "center_sample")
    first, last = (_the_one(chosen[name], name) for name in ("discard_pre", "discard_post"))
    start = x // 2 - centre + first
    num = samples - first - last
    if min(ky.min(), kz.min(), start) < 0 or ky.max() >= y or kz.max() >= z or start + num > x or num < 1:
        rule = f"readouts lie inside the encoded matrix {header.encoded.matrix}"
        raise _bad_header(
            rule, f"lines {ky.min()} to {ky.max()}, {kz.min()} to {kz.max()}, samples {start} to {start + num}"
        )

    place = np.searchsorted(slices, counters["slice"])
    kspace = np.zeros(grid, np.complex64)
    count = np.zeros((len(slices), y, z), np.int64)
    for one, values in zip(range(len(lines)), _readouts(records, heads, lines)):
        with np.errstate(over="ignore", invalid="ignore"):  # of damaged numbers, which are refused later
            kspace[place[one], :, start : start + num, ky[one], kz[one]] += values[:, first : first + num]
        count[place[one], ky[one], kz[one]] += 1
    kspace /= np.maximum(count, 1)[:, None, None]  # averages
    known: dict[str, Any] = {
        "acquisition": header.acquisition,
        "facts": {"layout": "ISMRMRD", **facts, "averages": int(count.max())},
        "noise": _noise(records, heads, chosen, averages=float(count[count > 0].mean())),
    }
    cropped = crop_field_of_view(torch.from_numpy(kspace), header.num_readout, -3)
    along, order = _geometry(chosen, place, header)
    known |= along
    columns = [min(n, m) for n, m in zip((y, z), header.shown.matrix[1:])]
    if z == 1:
        known["image_shape"] = (header.num_readout, columns[0])
        return of_kspace(cropped[torch.from_numpy(order), ..., 0], **known)
    if len(slices) > 1:
        raise InputError("a 3-D scan is one slab", got=f"{len(slices)} slabs", remedy="Export them one by one.")
    known["image_shape"] = tuple(columns)
    return of_volume(from_volume(cropped[0]), **known)


def _has(flags: np.ndarray, bit: int) -> np.ndarray:
    return (flags.astype(np.uint64) >> np.uint64(bit - 1)) & np.uint64(1) == 1


def _imaging_lines(heads: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """The numbers of the readouts to make the image of, and what was left out besides.

    Of several contrasts, cardiac phases, repetitions and sets the first of each is read.
    """
    flags = heads["flags"]
    image = ~_has(flags, NOISE) & ~(_has(flags, CALIBRATION) & ~_has(flags, CALIBRATION_AND_IMAGING))
    for bit in OTHER_PURPOSES:
        image &= ~_has(flags, bit)
    image &= heads["encoding_space_ref"] == 0
    if not image.any():
        raise _bad_header("the file has readouts of the image", f"{len(heads)} readouts for other purposes")
    if (_has(flags, REVERSED) & image).any():
        remedy = "Correct and regrid the lines first, with the scanner's or another program."
        raise InputError("readouts run in one direction", got="lines read backwards, as EPI has", remedy=remedy)
    facts: dict[str, Any] = {}
    for name in DIMENSIONS_READ_FIRST:
        values = np.unique(heads["idx"][name][image])
        if len(values) > 1:
            facts[f"first of {name}s"] = len(values)
            image &= heads["idx"][name] == values[0]
    return np.flatnonzero(image), facts


def _the_one(values: np.ndarray, name: str) -> int:
    if len(np.unique(values)) != 1:
        raise _bad_header(f"all readouts of the image have the same {name}", f"{values.min()} to {values.max()}")
    return int(values[0])


def _readouts(
    records: h5py.Dataset, heads: np.ndarray, lines: np.ndarray
) -> Iterator[Complex[np.ndarray, "coils samples"]]:
    """The samples of the readouts numbered `lines` (ascending), a block of records at a time."""
    data = records.fields("data")
    for begin in range(0, len(records), RECORDS_AT_ONCE):
        wanted = lines[(lines >= begin) & (lines < begin + RECORDS_AT_ONCE)]
        if not len(wanted):
            continue
        block = data[begin : begin + RECORDS_AT_ONCE]
        for line in wanted:
            shape = (int(heads["active_channels"][line]), int(heads["number_of_samples"][line]), 2)
            values = np.asarray(block[line - begin])
            if values.dtype.kind != "f" or values.size != math.prod(shape):
                rule = f"readout {line} has {shape[0]} coils of {shape[1]} samples"
                raise _bad_header(rule, f"{values.size} numbers of {values.dtype}")
            yield np.ascontiguousarray(values, dtype=np.float32).view(np.complex64).reshape(shape[:2])


def _noise(
    records: h5py.Dataset, heads: np.ndarray, chosen: np.ndarray, *, averages: float
) -> Complex[Tensor, "coils coils"] | None:
    """The coils' covariance from the readouts that measured only noise, at the image's bandwidth and averages."""
    lines = np.flatnonzero(_has(heads["flags"], NOISE) & (heads["active_channels"] == chosen["active_channels"][0]))
    if not len(lines):
        return None
    values = torch.from_numpy(np.concatenate(list(_readouts(records, heads, lines)), axis=1))
    dwell_us, noise_dwell_us = float(chosen["sample_time_us"][0]), float(heads["sample_time_us"][lines[0]])
    longer = noise_dwell_us / dwell_us if dwell_us > 0 and noise_dwell_us > 0 else 1.0
    return (values @ values.mH) / values.shape[1] * (longer / averages)


def _geometry(chosen: np.ndarray, place: np.ndarray, header: Header) -> tuple[dict[str, Any], np.ndarray]:
    """The affine of the planes as they will lie, and the order of slices along their normal.

    ISMRMRD gives the middle of each slice (or slab) and three directions in DICOM's axes (left, posterior, superior); the
    middle is where the transform has its origin, index n // 2.
    """
    first = np.array([np.flatnonzero(place == one)[0] for one in range(place.max() + 1)])
    to_ras = np.array([-1.0, -1.0, 1.0])
    centres_mm = chosen["position"][first].astype(float) * to_ras
    directions = [chosen[name][first[0]].astype(float) * to_ras for name in ("read_dir", "phase_dir", "slice_dir")]
    spacing_mm = header.encoded.spacing_mm
    unknown = {"affine": _checked_spacing(spacing_mm)}
    axes = np.stack(directions, axis=1)
    plain = np.arange(len(first))
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3) or not np.abs(centres_mm).max() < MAX_POSITION_MM:
        return unknown, plain
    order = np.argsort(centres_mm @ axes[:, 2], kind="stable")
    centres_mm = centres_mm[order]
    x, y, z = header.num_readout, *header.encoded.matrix[1:]
    if z > 1:  # planes are (first phase, second phase, readout)
        turned = axes[:, [1, 2, 0]] * np.array(spacing_mm)[[1, 2, 0]]
        return _placed(turned, centres_mm[0], (y // 2, z // 2, x // 2)), plain
    step_mm = axes[:, 2] * spacing_mm[2]
    if len(order) > 1:
        step_mm = (centres_mm[-1] - centres_mm[0]) / (len(order) - 1)
        even = centres_mm[0] + np.arange(len(order))[:, None] * step_mm
        if np.abs(even - centres_mm).max() > EVEN_SLICES_MM or np.linalg.norm(step_mm) < SPACING_MM[0]:
            return unknown, plain
    return _placed(np.column_stack([axes[:, :2] * spacing_mm[:2], step_mm]), centres_mm[0], (x // 2, y // 2, 0)), order


def _placed(
    columns: Float[np.ndarray, "3 3"], centre_mm: Float[np.ndarray, "3"], at: tuple[int, int, int]
) -> dict[str, Any]:
    affine = np.eye(4)
    affine[:3, :3] = columns
    affine[:3, 3] = centre_mm - columns @ np.array(at)
    return {"affine": checked_affine(affine), "side_is_known": True}
