"""A mark of its own in every field of a DICOM header and of a FHIR record that can hold words, and the search for them afterwards.

planted = plant_dicom(folder)          files, names and private elements included; `planted.fields` says which mark lies where
planted.found_in(path)                 the fields whose marks are anywhere below, packed files opened
"""

from __future__ import annotations

import gzip
import json
import re
import zipfile
import zlib
from base64 import a85decode
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag
from pydicom.uid import UID

from foundation.reading.dicom.deidentify import CODES, NUMBERS, SEQUENCES, TAGS, UIDS
from tests.foundation.reading.dicom_making import T1, Made, oblique, write_series

DAY, DAY_ISO, TIME, AGE = "17530214", "1753-02-14", "031415.926535", "117Y"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Without these as they are nothing is read: what is an image, of what, where, and how pixels are stored. Most may be planted
# one by one all the same: what is then refused must not quote them.
READ_BY = _names(
    """
    SpecificCharacterSet Modality ImageType SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID
    SeriesNumber InstanceNumber AcquisitionNumber PixelSpacing SliceThickness SpacingBetweenSlices ImagePositionPatient
    ImageOrientationPatient PhotometricInterpretation SamplesPerPixel NumberOfFrames PixelData FloatPixelData
    DoubleFloatPixelData RescaleSlope RescaleIntercept WindowCenter WindowWidth VOILUTFunction EchoTime RepetitionTime
    InversionTime FlipAngle MagneticFieldStrength EchoNumbers TemporalPositionIdentifier TriggerTime DiffusionBValue
    ScanningSequence SequenceVariant BurnedInAnnotation LossyImageCompression PixelPaddingValue ModalityLUTSequence
    VOILUTSequence RealWorldValueMappingSequence NumberOfTemporalPositions ImagesInAcquisition EffectiveEchoTime
    PatientIdentityRemoved SliceLocation FrameTime WaveformSequence
    """
)
WORDS = frozenset(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"))
# Groups of acquisition and image: their numbers place and order slices, for us or for dcm2niix, so they are planted one by one.
ACQUISITION = (0x0018, 0x0020, 0x0028, 0x0054)
MARK = re.compile(rb"QX\d{5}Z|7799\d{5}|(?<![\d.])88\d{5}99(?!\d)|17530214|1753-02-14|031415\.926")


@dataclass
class Planted:
    """`fields` is keyed by mark. Marks of days and times are shared by all of them."""

    fields: dict[str, str] = field(default_factory=lambda: {DAY: "a day", DAY_ISO: "a day", "031415.926": "a time"})
    files: tuple[Path, ...] = ()
    first: int = 0

    def mark(self, where: str, kind: str = "LO") -> str:
        """A new mark as a value of this kind."""
        number = self.first + len(self.fields)
        if kind in ("DA", "DT", "TM", "AS"):
            return {"DA": DAY, "DT": f"{DAY}{TIME}", "TM": TIME, "AS": AGE}[kind]
        if kind == "UI":
            self.fields[f"7799{number:05d}"] = where
            return f"1.2.826.0.7799{number:05d}.1"
        if kind in ("IS", "DS"):
            self.fields[f"88{number:05d}99"] = where
            return f"88{number:05d}99"
        mark = f"QX{number:05d}Z"
        self.fields[mark] = where
        return f"{mark}^{mark}" if kind == "PN" else f"http://{mark}.example" if kind == "UR" else mark

    def found_in(self, *places: Path | str | bytes) -> set[str]:
        """The fields whose marks are in texts, in files, or below folders, names included."""
        return {
            self.fields[mark]
            for content in contents(places)
            for found in MARK.findall(content)
            if (mark := found.decode()) in self.fields
        }


def contents(places: Iterable[Path | str | bytes]) -> Iterator[bytes]:
    for place in places:
        if isinstance(place, Path):
            for path in [place, *place.rglob("*")] if place.is_dir() else [place]:
                yield path.name.encode()
                if path.is_file():
                    yield from opened(path.read_bytes())
        else:
            yield place.encode("utf-8", "surrogatepass") if isinstance(place, str) else place


def opened(content: bytes) -> Iterator[bytes]:
    """The bytes, and what is packed in them: zip, gzip, the streams of a PDF."""
    yield content
    if content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(BytesIO(content)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from opened(archive.read(name))
    elif content[:2] == b"\x1f\x8b":
        yield from opened(gzip.decompress(content))
    elif content[:5] == b"%PDF-":
        for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL):
            for unpack in (zlib.decompress, lambda one: zlib.decompress(a85decode(one, adobe=True))):
                with suppress(Exception):
                    yield unpack(stream if unpack is zlib.decompress else b"<~" + stream.lstrip(b"<~"))


# ------------------------------------------------------------------------------------------------ DICOM


def plant_dicom(folder: Path) -> Planted:
    """A readable series in folders and files whose names are planted too; every file has the same marks."""
    planted = Planted()
    uids = {name: planted.mark(name, "UI") for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    made: Made = write_series(folder / "plain", shape=(24, 24, 6), affine=oblique(20.0, (3.0, 3.0, 12.0)), **uids)
    place = folder / planted.mark("a folder's name") / planted.mark("a folder's name")
    place.mkdir(parents=True)
    extra = Dataset()
    fill(extra, planted)
    block = extra.private_block(0x0029, planted.mark("private creator"), create=True)
    for number, kind in enumerate(("LO", "PN", "UT", "DS", "UI", "DA"), start=1):
        block.add_new(number, kind, planted.mark(f"private {kind}", kind))
    block.add_new(9, "OB", planted.mark("private OB").encode())
    block.add_new(10, "UN", planted.mark("private UN").encode())
    block.add_new(11, "SQ", Items([item(planted, "private sequence")]))
    meta = {name: planted.mark(f"file meta {name}", kind) for name, kind in (
        ("SourceApplicationEntityTitle", "AE"), ("SendingApplicationEntityTitle", "AE"), ("PrivateInformationCreatorUID", "UI"),
        ("ReceivingApplicationEntityTitle", "AE"), ("ImplementationVersionName", "SH"))}  # fmt: skip
    preamble, files = planted.mark("preamble"), []
    for file in made.files:
        dataset = pydicom.dcmread(file)
        for element in extra:
            if element.keyword not in dataset or element.keyword not in T1:
                dataset.add(element)
        for name, value in meta.items():
            setattr(dataset.file_meta, name, value)
        dataset.file_meta.PrivateInformation = planted.mark("file meta PrivateInformation").encode()
        dataset.preamble = preamble.encode().ljust(128, b"\0")
        files.append(place / f"{planted.mark('a file name')}-{len(files):03d}")
        dataset.save_as(files[-1])
        file.unlink()
    (folder / "plain").rmdir()
    planted.files = tuple(files)
    return planted


def fill(dataset: Dataset, planted: Planted, *, but: frozenset[str] = READ_BY | SEQUENCES | TAGS) -> None:
    """Every element of the dictionary that can hold words, a day, a UID or a number as text."""
    for number, (kinds, _, _, _, keyword) in DicomDictionary.items():
        tag = Tag(number)
        if not keyword or tag.group in (0, 2, 4, 6) or keyword in but:
            continue
        for kind in kinds.split(" or "):
            if kind == "SQ":
                dataset.add(DataElement(tag, "SQ", Items([item(planted, keyword)])))
            elif kind in ("IS", "DS") and tag.group in ACQUISITION:
                continue
            elif kind in WORDS | {"DA", "DT", "TM", "AS", "UI", "IS", "DS"}:
                dataset.add(DataElement(tag, kind, planted.mark(keyword, kind)))
            elif kind in ("OB", "UN") and "Pixel" not in keyword:
                dataset.add(DataElement(tag, kind, planted.mark(keyword).encode()))


def item(planted: Planted, where: str, depth: int = 2) -> Dataset:
    """An item with a name, a number, a day, a UID and private words, and another one inside."""
    made = Dataset()
    for name, kind in (("PatientName", "PN"), ("PatientID", "LO"), ("PatientComments", "LT"), ("StudyDate", "DA"),
                       ("StudyInstanceUID", "UI"), ("PatientWeight", "DS"), ("InstitutionName", "LO")):  # fmt: skip
        setattr(made, name, planted.mark(f"{where} > {name}", kind))
    made.private_block(0x0031, planted.mark(f"{where} > private creator"), create=True).add_new(
        1, "LO", planted.mark(f"{where} > private LO")
    )
    if depth > 1:
        made.OtherPatientIDsSequence = Items([item(planted, f"{where} > OtherPatientIDsSequence", depth - 1)])
    return made


def one_by_one(file: Path) -> Iterator[tuple[str, bytes, Planted]]:
    """The same file with one of the fields that decide how it is read planted, for each of them in turn."""
    kinds = {entry[4]: entry[0].split(" ")[0] for entry in DicomDictionary.values()}
    numbers = {
        entry[4]
        for number, entry in DicomDictionary.items()
        if number >> 16 in ACQUISITION and entry[0] in ("IS", "DS")
    }
    for name in sorted((READ_BY | NUMBERS | UIDS | numbers | set(CODES)) - {"PixelData", "SpecificCharacterSet"}):
        kind = kinds[name]
        if kind not in WORDS | {"UI", "IS", "DS"}:
            continue
        planted, dataset = Planted(), pydicom.dcmread(file)
        setattr(dataset, name, None)
        value = planted.mark(
            name, kind if kind == "UI" else "LO"
        )  # also where a number belongs: a damaged or hostile header
        dataset[name] = DataElement(Tag(name), kind if kind not in ("IS", "DS") else "LO", value)
        stream = BytesIO()
        dataset.save_as(stream)
        yield name, stream.getvalue(), planted


def identity_in(file: Path, planted: Planted) -> set[str]:
    """The keywords of a DICOM file whose values, at any depth, are planted."""
    found: set[str] = set()

    def look(dataset: Dataset) -> None:
        for element in dataset:
            if element.VR == "SQ":
                for one in element.value:
                    look(one)
            elif planted.found_in(str(element.value)):
                found.add(element.keyword or str(element.tag))

    dataset = pydicom.dcmread(file)
    look(dataset)
    look(dataset.file_meta)
    assert isinstance(dataset.file_meta.MediaStorageSOPClassUID, UID)
    return found


# ------------------------------------------------------------------------------------------------ FHIR

# What decides what a resource is, of whom, when and how much.
FHIR_READ_BY = _names(
    """
    resourceType system code status gender birthDate reference unit url intent category type class period start end started
    issued authoredOn recordedDate onsetDateTime effectiveDateTime performedDateTime date use contentType div comparator
    occurrenceDateTime abatementDateTime deceasedDateTime effectiveInstant value
    """
)


def plant_fhir(bundle: dict[str, Any]) -> tuple[dict[str, Any], Planted]:
    """A copy of a bundle with marks in every text, in codings, identifiers, notes and extensions that are added, and in keys."""
    planted = Planted(first=50_000)  # beside a header's, whose marks end before
    names = {
        entry["resource"]["id"]: planted.mark(f"{entry['resource']['resourceType']}.id") for entry in bundle["entry"]
    }
    text = json.dumps(bundle)
    for name, mark in names.items():
        text = re.sub(rf'(?<=["/]){re.escape(name)}(?=")', mark, text)

    def walk(value: Any, where: str) -> Any:
        if isinstance(value, dict):
            grown = {key: walk(one, f"{where}.{key}") if key not in FHIR_READ_BY or isinstance(one, dict | list) else one
                     for key, one in value.items()}  # fmt: skip
            if "coding" in grown:
                grown["coding"] = [*grown["coding"], {name: planted.mark(f"{where}.coding.{name}")
                                                      for name in ("system", "code", "display", "version")}]  # fmt: skip
                grown["text"] = planted.mark(f"{where}.text")
            return grown
        if isinstance(value, list):
            return [walk(one, where) for one in value]
        if isinstance(value, str) and not MARK.search(value.encode()) and "/" not in value and ":" not in value:
            return value if where.endswith((".id", ".fullUrl")) else planted.mark(where)
        return value

    grown = json.loads(text)
    for entry in grown["entry"]:
        kind = entry["resource"]["resourceType"]
        entry["resource"] = walk(entry["resource"], kind)
        resource = entry["resource"]

        def mark(what: str, kind: str = kind) -> str:
            return planted.mark(f"{kind}.{what}")

        resource["text"] = {"status": "additional", "div": f"<div>{mark('text.div')}</div>"}
        resource["note"] = [{"text": mark("note"), "authorString": mark("note.author")}]
        resource["identifier"] = [*resource.get("identifier", []), {"system": f"urn:{mark('identifier.system')}",
                                                                    "value": mark("identifier.value")}]  # fmt: skip
        resource["extension"] = [{"url": mark("extension.url"), "valueString": mark("extension.valueString")}]
        resource["meta"] = {"source": mark("meta.source"), "tag": [{"display": mark("meta.tag")}]}
        resource["contained"] = [
            {"resourceType": "Organization", "id": mark("contained.id"), "name": mark("contained.name")}
        ]
        resource[mark("a key")] = mark("an unknown value")
        if kind == "Patient":
            resource["name"] = [
                {"family": mark("name.family"), "given": [mark("name.given")], "text": mark("name.text")}
            ]
            resource["address"] = [{"line": [mark("address.line")], "city": mark("address.city")}]
            resource["telecom"] = [{"system": "phone", "value": mark("telecom")}]
            resource["contact"] = [{"name": {"family": mark("contact.name")}}]
            resource["photo"] = [{"title": mark("photo.title"), "data": mark("photo.data")}]
    return grown, planted
