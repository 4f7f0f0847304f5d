"""Headers without identity: only what is listed here is kept, everything else goes, at every depth.

    clean = deidentified(dataset, Key(secret))
    larmor deidentify STUDY OUT --key FILE

DICOM's own way (PS3.15, table E.1-1) names some 600 attributes to remove and keeps what it does not name. A list of what to keep
fails safe where that fails open: private elements, retired ones, overlays, and whatever the next edition invents are gone without
being known. It removes all that the Basic Profile removes. Kept are what places and scales pixels, and the physics of the
acquisition: numbers below a million, codes from closed lists, and UIDs, which are replaced under a secret key as patients' names
are, so that the same patient has the same pseudonym wherever the same key is used. Pixels are not looked at: a face can be
recognised in a head scan, and text can be burned in.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
from pydicom.charset import python_encoding
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID

from foundation.errors import InputError
from foundation.reading.dicom.headers import VENDORS, text, texts

LEAST_KEY_BYTES = 32
MOST = 1e6  # a kept number is smaller; a patient's number seldom is
STANDARD_UIDS = "1.2.840.10008."
METHOD = "Larmor keep-list, stricter than PS3.15 Basic"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Numbers of pixels, geometry and physics.
NUMBERS = _names(
    """
    Rows Columns NumberOfFrames SamplesPerPixel PlanarConfiguration BitsAllocated BitsStored HighBit
    PixelRepresentation SmallestImagePixelValue LargestImagePixelValue PixelPaddingValue WindowCenter WindowWidth
    RescaleIntercept RescaleSlope PixelSpacing SliceThickness SpacingBetweenSlices SliceLocation
    ImagePositionPatient ImageOrientationPatient InstanceNumber SeriesNumber AcquisitionNumber
    TemporalPositionIdentifier NumberOfTemporalPositions ImagesInAcquisition TemporalPositionIndex StackID
    InStackPositionNumber DimensionIndexValues FrameAcquisitionNumber EchoTime RepetitionTime InversionTime
    FlipAngle EchoNumbers EchoTrainLength NumberOfAverages MagneticFieldStrength ImagingFrequency PixelBandwidth
    NumberOfPhaseEncodingSteps PercentSampling PercentPhaseFieldOfView AcquisitionMatrix ReconstructionDiameter SAR
    EffectiveEchoTime InversionTimes RFEchoTrainLength GradientEchoTrainLength DiffusionBValue
    DiffusionGradientOrientation DiffusionBValueXX DiffusionBValueXY DiffusionBValueXZ DiffusionBValueYY
    DiffusionBValueYZ DiffusionBValueZZ ParallelReductionFactorInPlane ParallelReductionFactorOutOfPlane
    RealWorldValueSlope RealWorldValueIntercept RealWorldValueFirstValueMapped RealWorldValueLastValueMapped
    """
)
_YES_NO = ("YES", "NO")
# Codes, each from a closed list: what is not on it could be anything.
CODES: dict[str, tuple[str, ...]] = {
    "SpecificCharacterSet": ("ISO_IR 100", "ISO_IR 192", "ISO_IR 6"),
    "Modality": ("MR", "SEG", "SR", "CT", "PT", "OT"),
    "PhotometricInterpretation": ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "PALETTE COLOR"),
    "ImageType": ("ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "M", "P", "R", "I", "MAGNITUDE", "PHASE", "REAL", "IMAGINARY",
                  "PHASE MAP", "ND", "NORM", "DIS2D", "DIS3D", "MOSAIC", "VFRAME", "M_FFE", "M_SE", "M_IR", "FFE", "SE", "IR",
                  "DIFFUSION", "ADC", "FA", "TRACEW", "NONE", "EPI", "OTHER", "AXIAL", "LOCALIZER", "MIXED", "T1", "T2", "MPR",
                  "PROJECTION IMAGE", "MIP"),
    "ScanningSequence": ("SE", "IR", "GR", "EP", "RM"),
    "SequenceVariant": ("SK", "MTC", "SS", "TRSS", "SP", "MP", "OSP", "NONE"),
    "ScanOptions": ("PER", "RG", "CG", "PPG", "FC", "PFF", "PFP", "SP", "FS", "OTHER", "NONE"),
    "MRAcquisitionType": ("2D", "3D"),
    "InPlanePhaseEncodingDirection": ("ROW", "COL"),
    "PatientPosition": ("HFS", "HFP", "HFDR", "HFDL", "FFS", "FFP", "FFDR", "FFDL"),
    "RescaleType": ("US", "HU", "OD"),
    "LossyImageCompression": ("00", "01"),
    "BurnedInAnnotation": _YES_NO,
    "AcquisitionContrast": ("T1", "T2", "T2_STAR", "PROTON_DENSITY", "FLUID_ATTENUATED", "DIFFUSION", "TOF", "UNKNOWN", "MIXED"),
    "ComplexImageComponent": ("MAGNITUDE", "PHASE", "REAL", "IMAGINARY", "MIXED"),
    "PixelPresentation": ("MONOCHROME", "COLOR", "MIXED", "TRUE_COLOR"),
    "VolumetricProperties": ("VOLUME", "SAMPLED", "DISTORTED", "MIXED"),
    "VolumeBasedCalculationTechnique": ("NONE", "MAX_IP", "MPR"),
    "EchoPulseSequence": ("SPIN", "GRADIENT", "BOTH"),
    "EchoPlanarPulseSequence": _YES_NO,
    "InversionRecovery": _YES_NO,
    "DiffusionDirectionality": ("DIRECTIONAL", "BMATRIX", "ISOTROPIC", "NONE"),
    "PatientIdentityRemoved": _YES_NO,
    "DimensionOrganizationType": ("3D", "3D_TEMPORAL"),
}  # fmt: skip
CODES["FrameType"] = CODES["ImageType"]
UIDS = _names(
    """
    SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID DimensionOrganizationUID
    ConcatenationUID
    """
)
SEQUENCES = _names(
    """
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PlanePositionSequence PlaneOrientationSequence
    PixelMeasuresSequence PixelValueTransformationSequence FrameContentSequence MREchoSequence
    MRTimingAndRelatedParametersSequence MRModifierSequence MRDiffusionSequence DiffusionGradientDirectionSequence
    DiffusionBMatrixSequence MRImageFrameTypeSequence FrameVOILUTSequence DimensionOrganizationSequence
    DimensionIndexSequence RealWorldValueMappingSequence
    """
)
TAGS = frozenset(("DimensionIndexPointer", "FunctionalGroupPointer", "FrameIncrementPointer"))
PIXELS = frozenset(("PixelData",))
EMPTY = ("StudyDate", "StudyTime", "AccessionNumber", "StudyID", "ReferringPhysicianName", "PatientBirthDate", "PatientSex",
         "PositionReferenceIndicator", "SeriesDescription")  # fmt: skip


# What an archive files SEG and SR by, and an earlier study or a record is compared with; no other word of a header goes on.
IDENTITY = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyDate",
            "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName")  # fmt: skip
SEXES = ("M", "F", "O")


def read_key(path: Path | None) -> bytes:
    """The secret in a file, or a new one that nobody keeps."""
    if path is None:
        return secrets.token_bytes(LEAST_KEY_BYTES)
    try:
        secret = path.read_bytes()
    except OSError as error:
        raise InputError("the key can be read", got=error.strerror, remedy="Check its path.") from None
    Key(secret)
    return secret


class Key:
    """The secret under which names and UIDs are replaced."""

    def __init__(self, secret: bytes):
        if len(secret) < LEAST_KEY_BYTES:
            remedy = "Make one: head -c 32 /dev/urandom > FILE, and keep it apart from the data."
            raise InputError(f"a key has at least {LEAST_KEY_BYTES} bytes", got=len(secret), remedy=remedy)
        self._secret = secret

    def patient(self, name: str) -> str:
        return f"patient-{self._digest('patient', name).hex()[:12]}"

    def uid(self, uid: str) -> str:
        return f"2.25.{int.from_bytes(self._digest('uid', uid)[:16], 'big')}"

    def _digest(self, purpose: str, value: str) -> bytes:
        return hmac.digest(self._secret, f"{purpose}:{value}".encode("utf-8", "surrogatepass"), hashlib.sha256)


def deidentified(dataset: Dataset, key: Key) -> Dataset:
    """A new dataset with what may be kept of this one; its file meta and preamble are made anew."""
    clean = _kept(dataset, key)
    patient = key.patient(subject_of(dataset))
    clean.PatientName, clean.PatientID = patient, patient
    for name in EMPTY:
        setattr(clean, name, "")
    clean.Manufacturer = _vendor(dataset)
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = METHOD
    profile = Dataset()
    profile.CodeValue, profile.CodingSchemeDesignator = "113100", "DCM"
    profile.CodeMeaning = "Basic Application Confidentiality Profile"
    clean.DeidentificationMethodCodeSequence = Items([profile])
    return _with_new_meta(clean, dataset)


def for_archive(dataset: Dataset) -> Dataset:
    """A new dataset with what SEG and SR repeat of this one: its place, its physics, its UIDs, and `IDENTITY`.

    They would otherwise repeat all that the standard lets a patient and a study have, down to comments and occupation.
    """
    clean = _kept(dataset, None)
    for name, value in _values(dataset):
        if name in IDENTITY or (name == "SpecificCharacterSet" and _is_known(value)):
            setattr(clean, name, value)
    if text(clean, "PatientSex") not in SEXES:  # an archive takes no other, and highdicom writes no other
        clean.PatientSex = ""
    clean.Manufacturer = _vendor(dataset)
    return _with_new_meta(clean, dataset)


def _is_known(charset: Any) -> bool:
    """Names keep their letters only under the character set that they were written in."""
    return all(str(one) in python_encoding for one in ([charset] if isinstance(charset, str) else charset or [""]))


def _vendor(dataset: Dataset) -> str:
    return next((one for one in VENDORS if text(dataset, "Manufacturer").lower().startswith(one.lower())), "")


def _with_new_meta(clean: Dataset, dataset: Dataset) -> Dataset:
    meta = FileMetaDataset()
    theirs = getattr(dataset, "file_meta", None) or Dataset()
    meta.TransferSyntaxUID = UID(text(theirs, "TransferSyntaxUID") or "1.2.840.10008.1.2")
    if "SOPClassUID" in clean and "SOPInstanceUID" in clean:
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = clean.SOPClassUID, clean.SOPInstanceUID
    clean.file_meta = meta
    clean.preamble = bytes(128)  # may hold a program, or a name
    return clean


def subject_of(dataset: Dataset) -> str:
    """What makes two headers one patient's."""
    return "\n".join(text(dataset, name) for name in ("PatientID", "PatientName", "PatientBirthDate"))


def deidentify_files(source: str, key_hex: str, out: str) -> dict[str, Any]:
    """For the child process: the images of a source as files `out/00001.dcm` and so on; counts of what was done."""
    from foundation.reading.archive import gather

    key = Key(bytes.fromhex(key_hex))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"written": 0, "no image": 0, "not DICOM": 0, "burned in": 0}
    for file in gather(Path(source), Path("files").absolute()):
        with file.open("rb") as stream:
            if stream.read(132)[128:] != b"DICM":
                counts["not DICOM"] += 1
                continue
        dataset = pydicom.dcmread(file)
        if not (
            "PixelData" in dataset and "Rows" in dataset and text(dataset, "SOPClassUID").startswith(STANDARD_UIDS)
        ):
            counts["no image"] += 1
            continue
        if may_be_burned_in(dataset):
            counts["burned in"] += 1
            continue
        counts["written"] += 1
        clean = deidentified(dataset, key)
        clean.save_as(folder / f"{counts['written']:05d}.dcm", enforce_file_format=True)
    return counts


def may_be_burned_in(dataset: Dataset) -> bool:
    """Whether text may be part of the picture: a header says so, or it is a picture of a screen or page."""
    captured = "Secondary Capture" in UID(text(dataset, "SOPClassUID")).name
    return (
        captured or text(dataset, "BurnedInAnnotation").upper() == "YES" or "SCREEN SAVE" in texts(dataset, "ImageType")
    )


# ------------------------------------------------------------------------------------------------ what is kept


def _kept(dataset: Dataset, key: Key | None) -> Dataset:
    """Without a key UIDs stay as they are."""
    clean = Dataset()
    for name, value in _values(dataset):
        if name in SEQUENCES:
            if isinstance(value, Items):
                setattr(clean, name, Items([_kept(item, key) for item in value]))
        elif name in UIDS:
            uid = str(value)
            if uid:
                setattr(clean, name, uid if key is None or uid.startswith(STANDARD_UIDS) else key.uid(uid))
        elif name in CODES:
            codes = [value] if isinstance(value, str) else list(value or [])
            known = [code for code in codes if code in CODES[name]]
            if known:
                setattr(clean, name, known if len(known) > 1 else known[0])
        elif name in NUMBERS:
            if _is_small(value):
                setattr(clean, name, value)
        elif name in TAGS or name in PIXELS:
            clean.add(dataset[name])
    return clean


def _values(dataset: Dataset) -> Iterator[tuple[str, Any]]:
    """Keyword and value of every element that has both; what cannot be decoded is left out."""
    for tag in list(dataset.keys()):
        if tag.is_private:
            continue
        try:
            element = dataset[tag]
            yield element.keyword, element.value
        except MemoryError:
            raise
        except Exception:  # a damaged value, of which pydicom says so in eight ways
            continue


def _is_small(value: Any) -> bool:
    values = list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    try:
        return all(abs(float(one)) < MOST for one in values)
    except (TypeError, ValueError):
        return False
