"""DICOM headers as plain facts: one `Slice` per image plane, whether it came as a file of its own or as a frame of many.

A header can hold anything. What is missing or no number is None here; a file that is no image at all is a `Slice` no one can make
and comes back as a reason instead. Runs in the child process (foundation/reading/sandbox.py).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import UID

from foundation.errors import InputError

Component = Literal["magnitude", "phase", "real", "imaginary"]
MAX_FRAMES = 20_000
DICOMDIR = "1.2.840.10008.1.3.10"
DEFLATED = "1.2.840.10008.1.2.1.99"
MAGIC = b"DICM"
BARE_STARTS = (
    b"\x08\x00\x00\x00",
    b"\x08\x00\x01\x00",
    b"\x08\x00\x05\x00",
    b"\x08\x00\x08\x00",
)  # group 8, no preamble
COMPONENTS: dict[str, Component] = {
    "P": "phase", "PHASE": "phase", "PHASE MAP": "phase", "R": "real", "REAL": "real", "I": "imaginary",
    "IMAGINARY": "imaginary",
}  # fmt: skip


@dataclass(frozen=True)
class SeriesFacts:
    """What is said once for a series. `words` are its descriptions, for recognising contrasts and never for printing."""

    uid: str
    study_uid: str
    subject: str  # a patient's number, name and birth date in one, to be hashed
    date: str
    number: int | None
    modality: str
    sop_class: str
    is_colour: bool
    kind: Literal["classic", "frames", "none"]  # one image per file, many, or no image at all
    mosaic: bool
    image_type: tuple[str, ...]
    words: str
    agent: bool | None
    acquisition_contrast: str
    scanning: tuple[str, ...]
    is_3d: bool
    echo_time_ms: float | None
    repetition_time_ms: float | None
    inversion_time_ms: float | None
    flip_angle_deg: float | None
    field_strength_t: float | None
    vendor: str | None
    annotated: bool  # BurnedInAnnotation


@dataclass(frozen=True)
class Slice:
    """One plane. Directions and positions are DICOM's LPS+ mm; `spacing_mm` is between rows and between columns."""

    file: int
    frame: int
    uid: str
    rows: int
    columns: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, ...] | None
    echo_time_ms: float | None
    component: Component
    b_value: float | None
    instance: int


@dataclass(frozen=True)
class Unusable:
    """A file with DICOM's mark that cannot be read, in words that quote nothing of it."""

    file: int
    why: str


def read_headers(file: Path, index: int) -> tuple[SeriesFacts, list[Slice]] | Unusable | None:
    """The planes of a file; None if it is no DICOM file and says so."""
    with file.open("rb") as stream:
        start = stream.read(132)
        bare = start[128:] != MAGIC
        if bare and start[:4] not in BARE_STARTS:
            return None
        stream.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                header = pydicom.dcmread(stream, stop_before_pixels=True, force=bare)
                syntax = UID(getattr(header.file_meta, "TransferSyntaxUID", "1.2.840.10008.1.2"))
                if syntax == DEFLATED:  # inflated whole, whatever its size
                    return Unusable(index, "stored deflated")
                found = _facts(header), slices_of(header, index)
                if header.file_meta.get("MediaStorageSOPClassUID") == DICOMDIR:
                    return None
                if not found[0].uid:
                    return Unusable(index, "a header that names no series")
                at_pixels = stream.tell() + (8 if syntax.is_implicit_VR else 12)  # behind tag, kind and length
                _check_pixels(header, syntax, file.stat().st_size - at_pixels)
        except InputError as error:
            return Unusable(index, f"{error.rule}: {error.got}")
        except MemoryError:
            raise
        except Exception as error:  # pydicom has no family of errors: eight types were met in 10,000 damaged files
            return Unusable(index, f"a damaged header ({type(error).__name__})")
    return found


# ------------------------------------------------------------------------------------------------ values


def text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip("\0 ")


def texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    value = dataset.get(keyword)
    if value is None:
        return ()
    return (value.strip(),) if isinstance(value, str) else tuple(str(one).strip() for one in value)


def number(dataset: Dataset, keyword: str) -> float | None:
    found = numbers(dataset, keyword)
    return found[0] if found else None


def numbers(dataset: Dataset, keyword: str, count: int = 0) -> tuple[float, ...] | None:
    """Finite numbers, `count` of them where that is given; anything else is None."""
    value = dataset.get(keyword)
    if value is None or isinstance(value, str) or value == "":
        return None
    values = value if isinstance(value, Sequence) or hasattr(value, "__iter__") else [value]
    try:
        found = tuple(float(one) for one in values)
    except (TypeError, ValueError):
        return None
    return found if found and all(map(math.isfinite, found)) and count in (0, len(found)) else None


def whole(dataset: Dataset, keyword: str) -> int | None:
    value = number(dataset, keyword)
    return None if value is None else int(value)


def _group(places: Sequence[Dataset], keyword: str) -> Dataset:
    """A functional group of a frame, or the shared one, or an empty one."""
    for place in places:
        items = place.get(keyword)
        if isinstance(items, Sequence) and len(items) and isinstance(items[0], Dataset):
            return items[0]
    return Dataset()


def _first(dataset: Dataset, keyword: str) -> Dataset:
    return _group([dataset], keyword)


# ------------------------------------------------------------------------------------------------ facts


def _facts(header: FileDataset) -> SeriesFacts:
    shared = _first(header, "SharedFunctionalGroupsSequence")
    frame = _first(header, "PerFrameFunctionalGroupsSequence")
    places = [header, _group([frame, shared], "MREchoSequence")]
    timing = [header, _group([frame, shared], "MRTimingAndRelatedParametersSequence")]
    modifier = [header, _group([frame, shared], "MRModifierSequence")]
    agents = texts(header, "ContrastBolusAgent")
    image_type = texts(header, "ImageType")
    words = (text(header, name) for name in ("SeriesDescription", "ProtocolName"))  # 'T1FFE' is any spoiled echo
    sop_class = UID(text(header, "SOPClassUID"))
    return SeriesFacts(
        uid=text(header, "SeriesInstanceUID"),
        study_uid=text(header, "StudyInstanceUID"),
        subject="\n".join(text(header, name) for name in ("PatientID", "PatientName", "PatientBirthDate")),
        date=text(header, "StudyDate") + text(header, "StudyTime"),
        number=whole(header, "SeriesNumber"),
        modality=text(header, "Modality"),
        sop_class=sop_class.name if sop_class.is_valid else "",
        is_colour=(whole(header, "SamplesPerPixel") or 1) > 1 or "Color" in sop_class.name,
        kind=_kind(header),
        mosaic="MOSAIC" in image_type or "VFRAME" in image_type,
        image_type=image_type,
        words=" ".join(filter(None, words)),
        agent=_agent(agents, header),
        acquisition_contrast=text(header, "AcquisitionContrast"),
        scanning=(
            *texts(header, "ScanningSequence"),
            *texts(header, "SequenceVariant"),
            *texts(header, "EchoPulseSequence"),
            *(("EP",) if text(header, "EchoPlanarPulseSequence") == "YES" else ()),
        ),
        is_3d=text(header, "MRAcquisitionType") == "3D",
        echo_time_ms=_any(places, "EchoTime", "EffectiveEchoTime"),
        repetition_time_ms=_any(timing, "RepetitionTime"),
        inversion_time_ms=_any(modifier, "InversionTime", "InversionTimes"),
        flip_angle_deg=_any(timing, "FlipAngle"),
        field_strength_t=number(header, "MagneticFieldStrength"),
        vendor=_vendor(text(header, "Manufacturer")),
        annotated=text(header, "BurnedInAnnotation").upper() == "YES",
    )


def _kind(header: Dataset) -> Literal["classic", "frames", "none"]:
    if not (whole(header, "Rows") and whole(header, "Columns")):
        return "none"
    return "frames" if "PerFrameFunctionalGroupsSequence" in header else "classic"


def _any(places: Sequence[Dataset], *keywords: str) -> float | None:
    """The first number above zero; scanners write 0 for what does not apply."""
    for place in places:
        for keyword in keywords:
            value = number(place, keyword)
            if value is not None and value > 0:
                return value
    return None


def _agent(agents: Sequence[str], header: Dataset) -> bool | None:
    """Whether a contrast agent is named; None where nothing is said."""
    said = [one for one in agents if one]
    if said:
        return not any(one.upper() in ("NO", "NONE", "N", "0", "NULL") for one in said)
    return True if _first(header, "ContrastBolusAgentSequence").get("CodeMeaning") else None


VENDORS = ("Siemens", "Philips", "GE", "Canon", "Toshiba", "UIH", "Hitachi", "Bruker", "Fonar", "Esaote")


def _vendor(manufacturer: str) -> str | None:
    """One of the known makers: free text, where a hospital may have written anything, goes no further."""
    lower = manufacturer.lower()
    return next((name for name in VENDORS if lower.startswith(name.lower())), None)


# ------------------------------------------------------------------------------------------------ planes


def slices_of(header: Dataset, index: int) -> list[Slice]:
    """The planes of a header, in the order of its frames."""
    if not (whole(header, "Rows") and whole(header, "Columns")):
        return []
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    if not per_frame:
        if (whole(header, "NumberOfFrames") or 1) > 1:
            raise InputError("every frame says where it is", got="several frames in one file that do not", remedy=".")
        return [_slice(header, index, 0, [header])]
    if len(per_frame) > MAX_FRAMES or len(per_frame) != (whole(header, "NumberOfFrames") or 1):
        raise InputError("every frame has its header", got=f"{len(per_frame)} headers of frames", remedy=".")
    shared = _first(header, "SharedFunctionalGroupsSequence")
    return [_slice(header, index, number, [frame, shared]) for number, frame in enumerate(per_frame)]


def _slice(header: Dataset, file: int, frame: int, places: Sequence[Dataset]) -> Slice:
    """A plane of a classic file (`places` is the header itself) or a frame of an enhanced one."""
    flat = header if places[0] is header else None
    at = flat or _group(places, "PlanePositionSequence")
    toward = flat or _group(places, "PlaneOrientationSequence")
    pixels = flat or _group(places, "PixelMeasuresSequence")
    echo = flat or _group(places, "MREchoSequence")
    diffusion = flat or _group(places, "MRDiffusionSequence")
    kind = flat or _group(places, "MRImageFrameTypeSequence")
    return Slice(
        file=file,
        frame=frame,
        uid=text(header, "SOPInstanceUID"),
        rows=whole(header, "Rows") or 0,
        columns=whole(header, "Columns") or 0,
        position=numbers(at, "ImagePositionPatient", 3),
        orientation=numbers(toward, "ImageOrientationPatient", 6),
        spacing_mm=numbers(pixels, "PixelSpacing", 2),
        echo_time_ms=number(echo, "EchoTime") if flat else number(echo, "EffectiveEchoTime"),
        component=_component(header, kind),
        b_value=number(diffusion, "DiffusionBValue"),
        instance=(whole(header, "InstanceNumber") or 0) if flat else frame,
    )


def frame_scaling(header: Dataset, frame: int) -> tuple[float, float]:
    """Slope and intercept of a frame of an enhanced file."""
    own, shared = header.PerFrameFunctionalGroupsSequence[frame], _first(header, "SharedFunctionalGroupsSequence")
    group = _group([own, shared], "PixelValueTransformationSequence")
    slope, intercept = number(group, "RescaleSlope"), number(group, "RescaleIntercept")
    return 1.0 if slope is None else slope, intercept or 0.0


def _component(header: Dataset, frame_type: Dataset) -> Component:
    said = text(frame_type, "ComplexImageComponent").upper()
    if said in COMPONENTS:
        return COMPONENTS[said]
    for value in texts(frame_type, "FrameType") or texts(header, "ImageType"):
        if value.upper() in COMPONENTS:
            return COMPONENTS[value.upper()]
    return "magnitude"


def _check_pixels(header: Dataset, syntax: UID, bytes_left: int) -> None:
    """An uncompressed file is as long as its pixels need; dcm2niix would fill up with nothing said."""
    if syntax.is_compressed or not (header.get("Rows") and header.get("Columns")):
        return
    samples = whole(header, "SamplesPerPixel") or 1
    bits = whole(header, "BitsAllocated") or 16
    frames = whole(header, "NumberOfFrames") or 1
    needed = (whole(header, "Rows") or 0) * (whole(header, "Columns") or 0) * samples * bits * frames // 8
    if bytes_left < needed:
        raise InputError("an image is complete", got=f"{max(bytes_left, 0)} of {needed} bytes", remedy=".")
