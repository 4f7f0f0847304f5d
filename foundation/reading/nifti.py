"""NIfTI files in and out: what is read is complete, finite and has a place in the patient, or it is one `InputError`.

nibabel parses the header; the bytes are read here, because nibabel stops at the last voxel and so never meets the
checksum at the end of a .nii.gz (84 % of single flipped bits then load as other voxels), and because the header has to
be judged before memory is taken for what it announces.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.nifti1 import Nifti1Header, data_type_codes
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from foundation.errors import InputError
from foundation.files import write_aside
from foundation.study import Acquisition, Contrast, Series, checked_contrast, known_numbers
from foundation.text import shown

# 2 GiB as float32: a whole head at 0.3 mm (800 x 800 x 800) fits, the 32767 cubed that 1 kB can claim does not.
MAX_VOXELS = 2**29
MAX_HEADER_BYTES = 64 * 2**20  # with extensions, which at most hold the DICOM headers that the volume was made from
MAX_SIDECAR_BYTES = 16 * 2**20
MAX_DEFLATE_RATIO = 1032  # DEFLATE's own limit: 258 bytes from two bits. More is never in the file.
SPACING_MM = (0.01, 50.0)  # from MR microscopy to the slice distance of a coarse localiser, each with room to spare
MAX_POSITION_MM = 10_000.0  # from the scanner's centre; no table is longer

MAX_SHEAR = 1e-3
ROUNDING_SHEAR = 1e-6  # what rounding an orthogonal affine to float32 leaves behind

GRID_TOLERANCE_VOXELS = 0.01
LABEL_TOLERANCE = 1e-3  # uint8 masks stored with a slope of 1/255 come back as 1.0000001

CHUNK_BYTES = 2**20
MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # by NIfTI code: unset (mm by custom), metre, mm, micron
PREDICTED = b"predicted, not measured"  # in the header's description, which no copy loses
MAGIC = {348: b"n+1\0", 540: b"n+2\0\r\n\x1a\n"}

# BIDS suffixes that name one contrast. 'PDT2', 'MP2RAGE', 'mask' and the like name several or none.
BIDS_CONTRASTS: dict[str, Contrast] = {
    "T1w": "T1w",
    "T2w": "T2w",
    "FLAIR": "FLAIR",
    "PDw": "PD",
    "dwi": "DWI",
    "ADC": "ADC",
    "T2starw": "T2star",
    "angio": "MRA",
}

# Sidecar key -> our name, factor to our unit, and the most that is possible in the sidecar's unit: an echo time of 30
# was written in milliseconds, a field of 15000 in gauss.
SIDECAR_NUMBERS = {
    "EchoTime": ("echo_time_ms", 1000.0, 5.0),
    "RepetitionTime": ("repetition_time_ms", 1000.0, 100.0),
    "InversionTime": ("inversion_time_ms", 1000.0, 20.0),
    "FlipAngle": ("flip_angle_deg", 1.0, 360.0),
    "MagneticFieldStrength": ("field_strength_t", 1.0, 30.0),
}

Answer = TypeVar("Answer")


def read_nifti(path: str | Path, contrast: str = "unknown", acquisition: Acquisition | None = None) -> Series:
    """The series in a 3-D NIfTI-1 or NIfTI-2 file, `.nii` or `.nii.gz`; every failure is an `InputError` with the file.

    `contrast` 'unknown' is looked up in the file name's BIDS suffix, `acquisition` None in the sidecar `<stem>.json`;
    what the caller gives wins. The affine is rounded to float32, so that NIfTI-1 can hold it and a mask written on this
    grid reads back on exactly this grid; at 200 mm that moves a voxel by 0.00001 mm.
    """
    path = Path(path)
    with as_input_error(path):
        contrast = checked_contrast(contrast)
        voxels, affine, side_is_known, predicted = _read_volume(path)
        name = nifti_stem(path)
        named = _bids_contrast(name)
        return Series(
            voxels=voxels,
            affine=affine,
            contrast=named if contrast == "unknown" else contrast,
            acquisition=_read_sidecar(path.with_name(f"{name}.json")) if acquisition is None else acquisition,
            name=name,
            side_is_known=side_is_known,
            path=path,
            predicted=predicted,
            contrast_from="what was said of it"
            if contrast != "unknown"
            else ""
            if named == "unknown"
            else "its file name",
        )


def read_scaling(path: str | Path) -> tuple[float, float]:
    """Slope and intercept of a file that stores integers, (1, 0) where it stores anything else or has none.

    Its voxels are whole multiples of the slope above the intercept, so that who stores them again can do it without loss.
    """
    path = Path(path)
    with as_input_error(path), open(path, "rb") as file:
        is_compressed = file.peek(2)[:2] == b"\x1f\x8b"
        stream = gzip.GzipFile(fileobj=file) if is_compressed else file
        header = _parse_header(stream.read(max(MAGIC)))
        return _slope_and_intercept(header) if _checked_dtype(header).kind in "iu" else (1.0, 0.0)


def read_labels(path: str | Path, series: Series) -> np.ndarray:
    """The label map in a NIfTI file, `(x, y, z)` int16, which must lie on the grid of `series`.

    Values may be stored as floats but must be whole. The same grid means the same shape, and every corner voxel within
    1 % of the smallest spacing: far below what moves a boundary, and above what tools differ by when one writes the
    grid as a matrix and the next as a float32 quaternion. When neither file says where it lies in the patient, only
    shape and spacing can be compared.
    """
    path = Path(path)
    with as_input_error(path):
        voxels, affine, side_is_known, _ = _read_volume(path)
        if voxels.shape != series.shape:
            raise InputError(
                f"a label map has the shape of its series {series.name!r}, {series.shape}",
                got=voxels.shape,
                remedy="Resample it onto the series with nearest-neighbour interpolation.",
            )
        if side_is_known or series.side_is_known:
            apart_mm = _corners(affine, series.shape) - _corners(series.affine, series.shape)
        else:
            apart_mm = (voxel_sizes(affine) - series.spacing_mm) * series.shape
        distance_mm = float(np.linalg.norm(apart_mm, axis=-1).max())
        tolerance_mm = GRID_TOLERANCE_VOXELS * float(series.spacing_mm.min())
        if distance_mm > tolerance_mm:
            raise InputError(
                f"a label map lies on the grid of its series {series.name!r}: corners within {tolerance_mm:.2g} mm",
                got=f"{distance_mm:.3g} mm",
                remedy="Resample it onto the series with nearest-neighbour interpolation.",
            )
        whole = np.rint(voxels)
        broken = voxels[np.abs(voxels - whole) > LABEL_TOLERANCE]
        if broken.size:
            raise InputError(
                "a label map holds whole numbers",
                got=f"{broken.size} others, such as {broken[0]:.6g}",
                remedy="Give labels, not probabilities; resample labels with nearest-neighbour interpolation.",
            )
        low, high = float(whole.min()), float(whole.max())
        if low < -(2**15) or high >= 2**15:
            got = f"{low:.0f} to {high:.0f}"
            raise InputError("labels lie in -32768 to 32767", got=got, remedy="Renumber the labels.")
        return whole.astype(np.int16)


def write_labels(path: str | Path, labels: np.ndarray, series: Series) -> None:
    """Write `(x, y, z)` integer or boolean labels on the grid of `series`: uint8 where they fit, otherwise int16."""
    assert labels.dtype.kind in "iub", labels.dtype
    fits = labels.size == 0 or (labels.min() >= 0 and labels.max() < 2**8)
    assert fits or (labels.min() >= -(2**15) and labels.max() < 2**15), (labels.min(), labels.max())
    _write(Path(path), labels.astype(np.uint8 if fits else np.int16), series, intent="label")


def write_volume(path: str | Path, voxels: np.ndarray, series: Series) -> None:
    """Write `(x, y, z)` real voxels as float32 on the grid of `series`."""
    assert voxels.dtype.kind in "iufb" and np.isfinite(voxels).all(), voxels.dtype
    _write(Path(path), voxels.astype(np.float32), series, intent="none")


def write_shades(path: str | Path, shades: np.ndarray, series: Series) -> None:
    """Write `(x, y, z)` uint8 grey values on the grid of `series`: for looking at, not for measuring."""
    assert shades.dtype == np.uint8, shades.dtype
    _write(Path(path), shades, series, intent="none")


def write_sidecar(path: Path, acquisition: Acquisition) -> None:
    """Write the BIDS sidecar that `read_nifti` looks for beside a volume; what is not known is left out."""
    known = known_numbers(acquisition)
    content: dict[str, float | str] = {
        key: known[name] / factor  # pyright: ignore[reportOperatorIssue]
        for key, (name, factor, _) in SIDECAR_NUMBERS.items()
        if name in known
    }
    if "vendor" in known:
        content["Manufacturer"] = known["vendor"]
    publish_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def nifti_stem(path: Path) -> str:
    """The file name without `.nii` or `.nii.gz`."""
    return path.name.removesuffix(".gz").removesuffix(".nii") if is_nifti_name(path) else path.name


def is_nifti_name(path: Path) -> bool:
    return path.name.endswith((".nii", ".nii.gz"))


def publish_bytes(path: Path, content: bytes) -> None:
    """Make `content` appear at `path` complete or not at all; what stands in the way is an `InputError`."""
    try:
        with write_aside(path) as aside:
            aside.write_bytes(content)
    except OSError as error:
        remedy = "Choose a folder that is writable and has room."
        raise InputError("the result can be written", got=error.strerror or error, remedy=remedy, file=path) from error


# ------------------------------------------------------------------------------------------------ errors


@contextmanager
def as_input_error(path: Path) -> Iterator[None]:
    """A bad file or system is one `InputError` that names `path`; a complaint that names a file already keeps it."""
    try:
        yield
    except InputError as error:
        raise (error if error.file else error.in_file(path)) from error.__cause__
    except EOFError as error:  # gzip's word for a missing end
        raise incomplete(error).in_file(path) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        remedy = "Copy or download it again."
        raise InputError("the compressed file is undamaged", got=error, remedy=remedy, file=path) from error
    except OSError as error:
        remedy = "Check the path and its permissions."
        raise InputError("the file can be read", got=error.strerror or error, remedy=remedy, file=path) from error
    except MemoryError as error:
        remedy = "Free memory, or resample the volume."
        raise InputError("the volume fits in memory", got="no memory left", remedy=remedy, file=path) from error


def _ask(question: Callable[[], Answer]) -> Answer:
    """What nibabel makes of a header. Its complaints have many types; only its own calls are asked through here, so
    that a mistake of ours is not blamed on the file."""
    try:
        return question()
    except (HeaderDataError, ValueError, OverflowError, TypeError, KeyError) as error:
        raise _bad_header("the header is a valid NIfTI header", f"{type(error).__name__}: {error}") from error


def incomplete(got: object) -> InputError:
    return InputError("the file is complete", got=got, remedy="Copy or download it again.")


def _bad_header(rule: str, got: object) -> InputError:
    return InputError(rule, got=got, remedy="Convert the volume again from its source.")


# ------------------------------------------------------------------------------------------------ reading


def _read_volume(path: Path) -> tuple[np.ndarray, np.ndarray, bool, bool]:
    """Voxels `(x, y, z)` float32 after scaling, affine in mm, whether the file says where right is, and whether that it was
    predicted."""
    if not path.exists():
        raise InputError("the file exists", got="no such file", remedy="Check the path.")
    if not path.is_file():  # a folder; also a pipe or a device, which would never end
        raise InputError(
            "a series is one file",
            got="a folder" if path.is_dir() else "no regular file",
            remedy="Give the .nii or .nii.gz file.",
        )
    with open(path, "rb") as file:
        # By content, not by name: a .nii.gz that some mail program unpacked is still a good file.
        is_compressed = file.peek(2)[:2] == b"\x1f\x8b"
        stream = gzip.GzipFile(fileobj=file) if is_compressed else file
        contents = bytearray(stream.read(max(MAGIC)))
        header = _parse_header(bytes(contents))
        shape, dtype = _checked_shape(header), _checked_dtype(header)
        with np.errstate(all="ignore"):  # of damaged numbers; the result is checked instead
            affine, side_is_known = _checked_affine(header, shape)
        offset = _checked_offset(header)
        size = offset + math.prod(shape) * dtype.itemsize
        most = os.fstat(file.fileno()).st_size * (MAX_DEFLATE_RATIO if is_compressed else 1)
        if size > most:
            raise incomplete(f"at most {most} of {size} bytes")
        _read_to_end(stream, contents, size)
    stored = np.frombuffer(contents, dtype, math.prod(shape), offset).reshape(shape, order="F")
    return _scaled(stored, header), affine, side_is_known, PREDICTED in header["descrip"].tobytes()


def _parse_header(start: bytes) -> Nifti1Header:
    """The header that a file starts with, NIfTI-1 or its subclass NIfTI-2.

    No field is repaired: nibabel's repairs turn a spacing of 0 into 1 mm.
    """
    for byte_order in "<>":
        size = struct.unpack(f"{byte_order}i", start[:4])[0] if len(start) >= 4 else 0
        if size not in MAGIC:
            continue
        if len(start) < size:
            raise incomplete(f"{len(start)} of {size} bytes")
        header = (Nifti1Header if size == 348 else Nifti2Header)(start[:size], byte_order, check=False)
        magic = start[344:348] if size == 348 else start[4:12]
        if magic == MAGIC[size]:
            return header
        raise InputError(
            "a volume and its header are one NIfTI file, marked n+1 or n+2",
            got=f"the mark {shown(magic)}",
            remedy="Convert an .hdr/.img pair or Analyze file to .nii; a file sent as text must be copied again.",
        )
    raise InputError(
        "the file is NIfTI",
        got=f"a file that starts with {shown(start[:4])}" if start else "an empty file",
        remedy="Give a .nii or .nii.gz; dcm2niix converts DICOM.",
    )


def _checked_shape(header: Nifti1Header) -> tuple[int, int, int]:
    num_axes = int(header["dim"][0])
    shape = tuple(int(length) for length in header["dim"][1 : num_axes + 1]) if 1 <= num_axes <= 7 else ()
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        raise InputError(
            "a series is one volume of three axes",
            got=f"shape {shape}" if shape else f"{num_axes} axes",
            remedy="Split a longer file into volumes and give one of them, or their mean.",
        )
    x, y, z = shape[:3]
    if min(x, y, z) < 1:
        raise _bad_header("every axis has at least one voxel", f"shape {(x, y, z)}")
    if x * y * z > MAX_VOXELS:
        raise InputError(
            f"a volume has at most {MAX_VOXELS} voxels",
            got=f"shape {(x, y, z)}",
            remedy="Crop it or resample it to larger voxels.",
        )
    return (x, y, z)


def _checked_dtype(header: Nifti1Header) -> np.dtype:
    dtype = _ask(header.get_data_dtype)
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(
            "voxels are real numbers of at most 64 bits",
            got=data_type_codes.label[int(header["datatype"])],
            remedy="Convert RGB to grey, complex to its magnitude, anything else to float32.",
        )
    return dtype


def _checked_offset(header: Nifti1Header) -> int:
    """Where the voxels begin. Zero is seen in the wild and means right after the header."""
    least = int(header["sizeof_hdr"]) + 4
    offset = _ask(header.get_data_offset) or least
    if not least <= offset <= MAX_HEADER_BYTES:
        raise _bad_header(f"voxels begin at byte {least} to {MAX_HEADER_BYTES}", offset)
    return offset


def _checked_affine(header: Nifti1Header, shape: tuple[int, int, int]) -> tuple[np.ndarray, bool]:
    """Voxel indices to patient RAS+ mm, orthogonal, exact in float32; and whether the file says where right is.

    Shear is the largest |cosine| between two of the three voxel axes. Up to `ROUNDING_SHEAR` it is rounding and stays;
    below `MAX_SHEAR` the nearest orthogonal axes take over (polar decomposition; spacing and centre are kept).
    """
    codes = int(header["sform_code"]), int(header["qform_code"])
    if not all(0 <= code <= 5 for code in codes):
        raise _bad_header("sform_code and qform_code are 0 to 5", codes)
    if header["pixdim"][0] == 0:  # qfac: the standard reads 0 as 1
        header["pixdim"][0] = 1
    unit = int(header["xyzt_units"]) % 8
    if unit not in MM_PER_UNIT:
        raise InputError(
            "lengths are in metre, mm or micron (codes 1 to 3)",
            got=f"code {unit}",
            remedy="Correct xyzt_units in the header.",
        )
    affine = np.array(_ask(header.get_best_affine), dtype=np.float64)
    affine[:3] *= MM_PER_UNIT[unit]
    if not np.isfinite(affine).all():
        raise _bad_header("the affine is finite", affine[:3].tolist())

    spacing_mm = voxel_sizes(affine)
    low, high = SPACING_MM
    if not ((spacing_mm >= low) & (spacing_mm <= high)).all():
        raise InputError(
            f"voxels are {low:g} to {high:g} mm apart",
            got=" x ".join(f"{step:.4g}" for step in spacing_mm),
            remedy="Correct the spacing or its unit in the header.",
        )
    axes = affine[:3, :3] / spacing_mm
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear >= MAX_SHEAR:
        raise InputError(
            f"voxel axes are at right angles: the largest |cosine| between two is below {MAX_SHEAR:g}",
            got=f"{shear:.4g}",
            remedy="Resample the volume onto an orthogonal grid.",
        )
    if shear > ROUNDING_SHEAR:
        centre = (np.asarray(shape) - 1) / 2
        centre_mm = apply_affine(affine, centre)
        left, _, right = np.linalg.svd(axes)
        affine[:3, :3] = left @ right * spacing_mm
        affine[:3, 3] = centre_mm - affine[:3, :3] @ centre
    affine = affine.astype(np.float32).astype(np.float64)

    farthest_mm = float(np.abs(_corners(affine, shape)).max())
    if farthest_mm > MAX_POSITION_MM:
        raise InputError(
            f"the volume lies within {MAX_POSITION_MM:g} mm of the scanner's centre",
            got=f"{farthest_mm:.4g} mm",
            remedy="Correct the offset in the header.",
        )
    # Both codes set, but the two transforms mirror each other: the file says where right is twice, and differently.
    contradicts = min(codes) > 0 and np.linalg.det(affine[:3, :3]) * header["pixdim"][0] < 0
    return affine, max(codes) > 0 and not contradicts


def _read_to_end(stream: io.BufferedIOBase, contents: bytearray, size: int) -> None:
    """Append to `contents` until it holds the `size` bytes that the header announces and the stream ends there.

    Asking for one byte more makes gzip reach its end and check length and CRC. Bytes left over mean that header and
    voxels do not belong together; of 680 files from a dozen programs none has any.
    """
    while len(contents) <= size:
        chunk = stream.read(min(CHUNK_BYTES, size + 1 - len(contents)))
        if not chunk:
            break
        contents += chunk
    if len(contents) < size:
        raise incomplete(f"{len(contents)} of {size} bytes")
    if len(contents) > size:
        raise _bad_header("the file ends after the voxels its header announces", f"more than {size} bytes")


def _scaled(stored: np.ndarray, header: Nifti1Header) -> np.ndarray:
    """Stored numbers times slope plus intercept, float32 and finite. A slope of 0 or NaN means no scaling."""
    slope, intercept = _slope_and_intercept(header)
    with np.errstate(over="ignore", invalid="ignore"):
        if (slope, intercept) == (1.0, 0.0):
            voxels = stored.astype(np.float32)
        else:
            scaled = np.multiply(stored, slope, dtype=np.float64)
            scaled += intercept
            voxels = scaled.astype(np.float32)
    num_bad = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
    if num_bad:
        raise InputError(
            "every voxel is a finite float32",
            got=f"{num_bad} of {voxels.size} that are not, with slope {slope:g} and intercept {intercept:g}",
            remedy="Replace NaN and infinity (air is 0), or correct scl_slope and scl_inter.",
        )
    return voxels


def _slope_and_intercept(header: Nifti1Header) -> tuple[float, float]:
    slope, intercept = (float(header[field]) for field in ("scl_slope", "scl_inter"))
    return (1.0, 0.0) if slope == 0 or math.isnan(slope) else (slope, intercept)


def _corners(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Patient millimetres of the eight corner voxels, `(8, 3)`."""
    corners = np.indices((2, 2, 2)).reshape(3, 8).T * (np.asarray(shape) - 1)
    return apply_affine(affine, corners)


def _bids_contrast(name: str) -> Contrast:
    """The contrast that the BIDS suffix names, in whatever case; `ce-` (contrast agent) makes a T1w a T1w-contrast."""
    *entities, suffix = name.split("_")
    is_enhanced = any(entity.startswith("ce-") for entity in entities)
    for known, contrast in BIDS_CONTRASTS.items():
        if known.lower() == suffix.lower():
            return "T1w-contrast" if contrast == "T1w" and is_enhanced else contrast
    return "unknown"


def _read_sidecar(path: Path) -> Acquisition:
    """The BIDS sidecar, in our units; all unknown when there is none."""
    if not path.is_file():
        return Acquisition()
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_SIDECAR_BYTES + 1)
        if len(content) > MAX_SIDECAR_BYTES:
            raise ValueError(f"more than {MAX_SIDECAR_BYTES} bytes")
        sidecar = json.loads(content)
        if not isinstance(sidecar, dict):
            raise ValueError(f"a {type(sidecar).__name__} where an object belongs")
    except (OSError, ValueError, RecursionError) as error:
        remedy = "Correct the sidecar, or move it away if it is not one."
        raise InputError("a .json beside a volume is its BIDS sidecar", got=error, remedy=remedy, file=path) from error

    known: dict[str, float | str] = {}
    for key, (name, factor, most) in SIDECAR_NUMBERS.items():
        value = sidecar.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            rule = f"{key} is a number from 0 to {most:g}{' seconds' if name.endswith('_ms') else ''}"
            raise InputError(rule, got=repr(value), remedy="Correct it or leave it out.", file=path)
        known[name] = factor * value
    vendor = sidecar.get("Manufacturer")
    if not isinstance(vendor, str | None):
        raise InputError("Manufacturer is text", got=repr(vendor), remedy="Correct it or leave it out.", file=path)
    return Acquisition(**known, vendor=vendor)  # pyright: ignore[reportArgumentType]


# ------------------------------------------------------------------------------------------------ writing


def _write(path: Path, voxels: np.ndarray, series: Series, intent: str) -> None:
    """One NIfTI-1 file on the series' grid: affine in sform and qform, the same bytes for the same input.

    Both codes are 1 (scanner) where the sides are known and 0 where they are not, so that no reader downstream can take
    a guess for a fact. NIfTI then puts the volume's centre at the origin, and the guessed position is not kept.
    """
    assert voxels.shape == series.shape, (voxels.shape, series.shape)
    if not is_nifti_name(path):
        raise InputError("a volume is written as .nii or .nii.gz", got=path.name, remedy="Change the name.", file=path)
    code = "scanner" if series.side_is_known else "unknown"
    header = Nifti1Header()
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(voxels.dtype)
    header.set_qform(series.affine, code)  # sets pixdim too
    header.set_sform(series.affine, code)
    header.set_xyzt_units("mm")
    header.set_intent(intent)
    if series.predicted:
        header["descrip"] = PREDICTED
    header.set_slope_inter(1, 0)
    header.set_data_offset(header.single_vox_offset)
    content = header.binaryblock + bytes(4) + voxels.tobytes(order="F")  # four zeros: no extensions
    publish_bytes(path, gzip.compress(content, compresslevel=3, mtime=0) if path.name.endswith(".gz") else content)
