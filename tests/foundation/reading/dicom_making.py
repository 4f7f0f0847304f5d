"""DICOM series made by hand, so that tests know every voxel's place in the patient and can put anything into a header."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CLASSIC, ENHANCED = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
T1 = {"EchoTime": "4", "RepetitionTime": "500", "ScanningSequence": "SE", "SequenceVariant": "SP"}
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Made:
    """A volume as it was written: `(columns, rows, planes)` and from these to patient RAS+ mm."""

    voxels: np.ndarray
    affine: np.ndarray
    files: tuple[Path, ...]


def oblique(turn_deg: float = 0.0, spacing_mm: Sequence[float] = (1.0, 1.2, 3.0)) -> np.ndarray:
    """From (column, row, plane) to DICOM's LPS+ mm, turned about an odd axis."""
    affine = np.eye(4)
    affine[:3, :3] = nib.quaternions.angle_axis2mat(np.deg2rad(turn_deg), [1.0, 2.0, -0.5]) @ np.diag(spacing_mm)
    affine[:3, 3] = (-20.5, 11.25, -30.125)
    return affine


def header(series: str = "1", study: str = "1", sop_class: str = CLASSIC, **fields: Any) -> Dataset:
    """What every file of a study of ours says; `series` and `study` tell their UIDs apart."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.StudyInstanceUID = f"1.2.3.{study}"
    dataset.SeriesInstanceUID = f"1.2.3.{study}.{series}"
    dataset.FrameOfReferenceUID = f"1.2.3.{study}.99"
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "P-1"
    dataset.PatientBirthDate, dataset.PatientSex = "19600701", "F"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20200501", "101010", "7", "A-1"
    dataset.Modality, dataset.Manufacturer = "MR", "SIEMENS"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    dataset.SeriesNumber = series
    dataset.SeriesDescription = "t1 se"
    dataset.PositionReferenceIndicator = ""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    for name, value in fields.items():
        setattr(dataset, name, value)
    return dataset


def save(dataset: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    series: str = "1",
    *,
    shape: tuple[int, int, int] = (10, 8, 6),
    affine: np.ndarray | None = None,
    keep: Callable[[int], bool] = lambda plane: True,
    order: Sequence[int] | None = None,
    per_plane: Callable[[int], dict[str, Any]] = lambda plane: {},
    seed: int = 0,
    **fields: Any,
) -> Made:
    """A classic series, one file per plane; names and instance numbers follow `order`, which by default is not spatial."""
    affine = oblique(20.0) if affine is None else affine
    columns, rows, planes = shape
    voxels = np.random.default_rng(seed).integers(0, 4000, shape).astype(np.uint16)
    order = np.random.default_rng(seed + 1).permutation(planes) if order is None else order
    files = []
    for number, plane in enumerate(order, start=1):
        if not keep(plane):
            continue
        dataset = header(series, **(T1 | fields | per_plane(plane)))
        dataset.Rows, dataset.Columns = rows, columns
        dataset.PixelSpacing = [float(np.linalg.norm(affine[:3, 1])), float(np.linalg.norm(affine[:3, 0]))]
        dataset.SliceThickness = float(np.linalg.norm(affine[:3, 2]))
        dataset.ImageOrientationPatient = [float(n) for n in _unit(affine[:3, 0])] + [
            float(n) for n in _unit(affine[:3, 1])
        ]
        dataset.ImagePositionPatient = [round(float(n), 6) for n in affine[:3, 3] + plane * affine[:3, 2]]
        dataset.InstanceNumber = number
        dataset.PixelData = np.ascontiguousarray(voxels[:, :, plane].T).tobytes()
        files.append(save(dataset, folder / f"series-{series}-{number:04d}-{seed}"))
    return Made(voxels, LPS @ affine, tuple(files))


def write_enhanced(
    folder: Path,
    series: str = "1",
    *,
    shape: tuple[int, int, int] = (10, 8, 6),
    affine: np.ndarray | None = None,
    echoes_ms: Sequence[float] = (10.0,),
    seed: int = 0,
    **fields: Any,
) -> list[Made]:
    """An enhanced multi-frame file: for each echo a volume, planes from the last to the first, echoes interleaved."""
    affine = oblique(-15.0) if affine is None else affine
    columns, rows, planes = shape
    voxels = np.random.default_rng(seed).integers(0, 4000, (len(echoes_ms), *shape)).astype(np.uint16)
    dataset = header(series, sop_class=ENHANCED, **fields)
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = rows, columns, planes * len(echoes_ms)
    dataset.InstanceNumber, dataset.AcquisitionContrast = 1, "UNKNOWN"
    measures, toward = Dataset(), Dataset()
    measures.PixelSpacing = [float(np.linalg.norm(affine[:3, 1])), float(np.linalg.norm(affine[:3, 0]))]
    measures.SliceThickness = measures.SpacingBetweenSlices = float(np.linalg.norm(affine[:3, 2]))
    toward.ImageOrientationPatient = [float(n) for n in _unit(affine[:3, 0])] + [float(n) for n in _unit(affine[:3, 1])]
    transform = Dataset()
    transform.RescaleIntercept, transform.RescaleSlope, transform.RescaleType = 0, 1, "US"
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([toward])
    shared.PixelValueTransformationSequence = Items([transform])
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    frames, pixels = [], []
    for plane in reversed(range(planes)):
        for echo, echo_ms in enumerate(echoes_ms):
            place, echoed, content, frame = Dataset(), Dataset(), Dataset(), Dataset()
            place.ImagePositionPatient = [round(float(n), 6) for n in affine[:3, 3] + plane * affine[:3, 2]]
            echoed.EffectiveEchoTime = echo_ms
            content.StackID, content.InStackPositionNumber = "1", plane + 1
            content.DimensionIndexValues = [plane + 1, echo + 1]
            frame.PlanePositionSequence, frame.MREchoSequence = Items([place]), Items([echoed])
            frame.FrameContentSequence = Items([content])
            frames.append(frame)
            pixels.append(np.ascontiguousarray(voxels[echo, :, :, plane].T).tobytes())
    dataset.PerFrameFunctionalGroupsSequence = Items(frames)
    dataset.PixelData = b"".join(pixels)
    file = save(dataset, folder / f"series-{series}")
    return [Made(one, LPS @ affine, (file,)) for one in voxels]


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
