"""One volume of DICOM files to one NIfTI file: dcm2niix first, then highdicom or pydicom, the headers as the judge of all.

dcm2niix knows the makers' mosaics, scalings and compressions; it also fills gaps by interpolation and says so only in a file name.
So it is given the files of one volume at a time, under numbers, and what it makes is compared with the place that the headers give:
all eight corners, and the number of slices. highdicom refuses whatever is no regular volume; of a file that holds several volumes,
as echoes are interleaved, the frames of one are taken.
"""

from __future__ import annotations

import json
import subprocess
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine

from foundation.errors import InputError
from foundation.reading.dicom.headers import Component, frame_scaling
from foundation.reading.dicom.volumes import Volume
from foundation.reading.nifti import write_volume
from foundation.study import Series

CORNER_MM = 0.01
SAME_ECHO_MS = 0.02
SUFFIX: dict[Component, str] = {
    "phase": "_ph",
    "real": "_real",
    "imaginary": "_imaginary",
}  # dcm2niix's; magnitude has none
REMEDY = "Export the series again from its source, complete and uncompressed, or leave it out with --series."


@dataclass(frozen=True)
class _Made:
    path: Path
    shape: tuple[int, ...]
    affine: np.ndarray
    echo_time_ms: float | None
    component: Component


def convert(volume: Volume, files: Sequence[Path], folder: Path) -> tuple[Path, str]:
    """A NIfTI file in `folder` with the volume, and which program made it."""
    folder.mkdir(parents=True)
    wanted = [files[index] for index in volume.files]
    found = _by_dcm2niix(volume, wanted, folder)
    if found is not None:
        return found, "dcm2niix"
    if volume.affine is not None:
        by_other = {"classic": _by_highdicom, "frames": _by_frames}[volume.facts.kind]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = by_other(volume, wanted)
        if made is not None:
            voxels, affine = made
            write_volume(folder / "volume.nii", voxels, Series(voxels, affine))
            return folder / "volume.nii", "highdicom" if volume.facts.kind == "classic" else "pydicom"
    rule = f"series {volume.label} becomes a volume that lies where its headers say"
    raise InputError(rule, got="no program makes one of it", remedy=REMEDY)


def corners_mm(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The eight corner voxels' centres in mm, `(8, 3)`."""
    return apply_affine(affine, np.indices((2, 2, 2)).reshape(3, 8).T * (np.asarray(shape[:3]) - 1))


def corner_error_mm(a: np.ndarray, shape_a: Sequence[int], b: np.ndarray, shape_b: Sequence[int]) -> float:
    """How far the farthest corner of one grid is from the other's nearest; axes may be in another order or reversed."""
    one, other = corners_mm(a, shape_a), corners_mm(b, shape_b)
    return float(np.linalg.norm(one[:, None] - other[None], axis=-1).min(axis=1).max())


# ------------------------------------------------------------------------------------------------ dcm2niix


def _by_dcm2niix(volume: Volume, wanted: Sequence[Path], folder: Path) -> Path | None:
    import dcm2niix

    given, out = folder / "in", folder / "out"
    given.mkdir()
    out.mkdir()
    for number, file in enumerate(wanted, start=1):
        (given / f"{number:05d}.dcm").symlink_to(file.resolve())
    # -ba y: nothing of a patient in the sidecar; -f v: nor in names. -z 3: time points one by one; those of one file then fit
    # alike, and are left to `_by_frames`.
    options = ["-b", "y", "-ba", "y", "-z", "3", "-f", "v", "-w", "2", "-d", "0", "-o", str(out), str(given)]
    subprocess.run([dcm2niix.bin, *options], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    candidates = [one for one in map(_read, sorted(out.glob("*.nii"))) if one is not None and _fits(volume, one)]
    return candidates[0].path if len(candidates) == 1 else None


def _read(path: Path) -> _Made | None:
    if "_Eq" in path.stem or "_Tilt" in path.stem:  # resampled
        return None
    try:
        image = nib.Nifti1Image.from_filename(path)
        affine = image.affine
        assert affine is not None
    except Exception:  # what dcm2niix wrote of a damaged file
        return None
    stem = path.stem
    named: list[Component] = [name for name, suffix in SUFFIX.items() if suffix in stem]
    component = named[0] if named else "magnitude"
    sidecars = [side for side in path.parent.glob("*.json") if stem == side.stem or stem.startswith(f"{side.stem}_")]
    echo = None
    if sidecars:
        with suppress(ValueError, AttributeError):  # a sidecar of damaged headers
            value = json.loads(max(sidecars, key=lambda side: len(side.stem)).read_text(errors="replace")).get(
                "EchoTime"
            )
            echo = 1000 * value if isinstance(value, int | float) else None
    return _Made(path, image.shape, affine, echo, component)


def _fits(volume: Volume, made: _Made) -> bool:
    """Whether what was made lies where the headers say, and of a file that may hold several volumes is the right one."""
    if volume.facts.kind == "frames":
        echo = volume.slices[0].echo_time_ms
        other_echo = echo is not None and made.echo_time_ms is not None and abs(made.echo_time_ms - echo) > SAME_ECHO_MS
        if made.component != volume.slices[0].component or other_echo:
            return False
    affine = volume.affine
    if affine is None:  # a mosaic, whose tiles the headers do not place: its sheet must at least be made of them
        columns, rows, _ = volume.shape
        return len(made.shape) == 3 and columns % made.shape[0] == 0 and rows % made.shape[1] == 0
    if sorted(made.shape) != sorted(volume.shape):
        return False
    return corner_error_mm(made.affine, made.shape, affine, volume.shape) < CORNER_MM


# ------------------------------------------------------------------------------------------------ the others


def _by_highdicom(volume: Volume, wanted: Sequence[Path]) -> tuple[np.ndarray, np.ndarray] | None:
    """The voxels `(x, y, z)` and RAS+ affine of a classic series."""
    import highdicom
    import pydicom

    try:
        made = highdicom.get_volume_from_series([pydicom.dcmread(file, force=True) for file in wanted])
        voxels = np.ascontiguousarray(made.array, dtype=np.float32)
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ made.affine
    except MemoryError:
        raise
    except Exception:  # whatever pydicom, highdicom or a decoder make of it: it is no volume by strict rules
        return None
    expected = volume.affine
    assert expected is not None
    if voxels.ndim != 3 or corner_error_mm(affine, voxels.shape, expected, volume.shape) >= CORNER_MM:
        return None
    return voxels, affine


def _by_frames(volume: Volume, wanted: Sequence[Path]) -> tuple[np.ndarray, np.ndarray] | None:
    """The volume's frames of enhanced files, each scaled as its header says; they lie where the headers say by construction."""
    import pydicom

    try:
        datasets = [pydicom.dcmread(file, force=True) for file in wanted]
        pixels = {index: dataset.pixel_array for index, dataset in zip(volume.files, datasets, strict=True)}
        headers = dict(zip(volume.files, datasets, strict=True))
        planes = []
        for plane in volume.slices:
            slope, intercept = frame_scaling(headers[plane.file], plane.frame)
            stored = pixels[plane.file].reshape(-1, plane.rows, plane.columns)[plane.frame]
            planes.append(stored.T * np.float64(slope) + intercept)
    except MemoryError:
        raise
    except Exception:  # a decoder's complaint
        return None
    affine = volume.affine
    assert affine is not None
    return np.stack(planes, axis=2).astype(np.float32), affine
