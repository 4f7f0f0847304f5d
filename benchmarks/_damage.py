"""Whole files of every kind that is read, small, and what damages them: bits, numbers, lengths, cuts, repeats, names, nesting.

Drawing is separate from applying: every function takes its generator, so that a case is found again by its number.
"""

from __future__ import annotations

import gzip
import json
import struct
import zipfile
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng

from benchmarks.mutate import mutated
from foundation.errors import InputError

LARGEST_BYTES = 200_000
PLANES = 5
BOMB_BYTES = 70 * 2**20  # more than a zip may unpack to from next to nothing (foundation/reading/archive.py)
TELLING_INTS = (-(2**31), -(2**15), -1, 0, 1, 7, 8, 255, 2**15 - 1, 2**16, 2**31 - 1)
TELLING_FLOATS = (np.nan, np.inf, -np.inf, -1.0, 0.0, 1e-38, 1e38, 1e6)
NAMES = ("../../../tmp/evil", "/etc/evil", "C:\\evil", "0", "a" * 300, "x\0y")


# ------------------------------------------------------------------------------------------------ bytes


def hurt(data: bytearray, rng: Generator, most: int = 4000) -> None:
    """One fault in the bytes, most often among the first `most`, where headers are."""
    if not data:
        return
    kind, at = int(rng.integers(6)), int(rng.integers(min(len(data), most) if rng.random() < 0.8 else len(data)))
    if kind == 1:
        data[at : at + 4] = struct.pack("<q", int(rng.choice(TELLING_INTS)))[:4]
    else:
        _strike(data, kind, at, rng)


def _strike(data: bytearray, kind: int, at: int, rng: Generator) -> None:
    """What befalls bytes of any format: a bit, two bytes, the end, some lost, some twice. 1 is a number, which formats write each
    in their own way."""
    if kind == 0:
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        data[at : at + 2] = rng.bytes(2)
    elif kind == 3:
        del data[int(rng.integers(len(data) // 2, len(data))) :]
    elif kind == 4:
        del data[at : at + int(rng.integers(1, 64))]
    else:
        data[at:at] = data[at : at + int(rng.integers(1, 64))]


def hurt_bytes(content: bytes, rng: Generator, most: int = 4000) -> bytes:
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        hurt(data, rng, most)
    return bytes(data)


# ------------------------------------------------------------------------------------------------ NIfTI


def nifti_sources(into: Path) -> None:
    """NIfTI-1 and -2 of several number types, plain, compressed and scaled, and one with its sidecar."""
    import nibabel as nib

    rng = default_rng(0)
    affine = np.diag([2.0, 2.5, 3.0, 1.0])
    affine[:3, 3] = (-10.5, 3.25, 7.0)
    for kind, dtype, ending in (("Nifti1", np.int16, ".nii"), ("Nifti1", np.uint8, ".nii.gz"), ("Nifti2", np.float32, ".nii.gz"),
                                ("Nifti1", np.float64, ".nii"), ("Nifti2", np.uint16, ".nii")):  # fmt: skip
        image = getattr(nib, f"{kind}Image")((100 * rng.random((12, 10, 8))).astype(dtype), affine)
        image.header.set_xyzt_units("mm")
        if dtype == np.uint16:
            image.header.set_slope_inter(0.5, -3.0)
        stem = f"sub-1_{kind}-{np.dtype(dtype).name}"
        image.to_filename(into / f"{stem}_T1w{ending}")
    (into / "sub-1_Nifti1-int16_T1w.json").write_text(json.dumps(
        {"EchoTime": 0.03, "RepetitionTime": 2.0, "FlipAngle": 90, "MagneticFieldStrength": 3, "Manufacturer": "Siemens"}
    ))  # fmt: skip


def damage_nifti(whole: dict[str, bytes], rng: Generator) -> dict[str, bytes]:
    """One file with faults in its header, its voxels, its compression or its sidecar."""
    name = str(rng.choice(sorted(one for one in whole if ".nii" in one)))
    sidecar = f"{name.partition('.')[0]}.json"
    content = whole[name]
    files = {sidecar: whole[sidecar]} if sidecar in whole else {}
    if files and rng.random() < 0.3:
        return {name: content, sidecar: mutated(json.loads(files[sidecar]), rng)}
    is_packed = name.endswith(".gz")
    if is_packed and rng.random() < 0.4:
        return files | {name: hurt_bytes(content, rng, most=64)}
    data = bytearray(gzip.decompress(content) if is_packed else content)
    for _ in range(int(rng.integers(1, 4))):
        kind, at = int(rng.integers(5)), int(rng.integers(540))
        if kind == 0:
            data[at : at + 2] = struct.pack("<i", int(rng.choice(TELLING_INTS)))[:2]
        elif kind == 1:
            at -= at % 4
            data[at : at + 4] = struct.pack("<f", float(rng.choice(TELLING_FLOATS)))
        elif kind == 2:
            at -= at % 8
            data[at : at + 8] = struct.pack("<q", int(rng.choice(TELLING_INTS)) * 2 ** int(rng.integers(32)))
        elif kind == 3:  # an extension that says it is large
            data[348:352] = struct.pack("<4B", 1, 0, 0, 0)
            data[352:360] = struct.pack("<2i", int(rng.choice(TELLING_INTS)), 6)
        else:
            hurt(data, rng, most=540)
    return files | {name: gzip.compress(bytes(data), compresslevel=1) if is_packed else bytes(data)}


# ------------------------------------------------------------------------------------------------ DICOM, zips


def dicom_sources(into: Path, data: Path | None = None, planes: int = PLANES) -> None:
    """A few neighbouring planes of the first small classic series below `data`, or of one made here."""
    if data is None:
        return _made_series(into, planes)
    import pydicom

    found: dict[str, list[tuple[float, Path]]] = {}
    for path in sorted(path for path in data.rglob("*") if path.is_file() and path.stat().st_size < LARGEST_BYTES):
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                continue
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if "ImagePositionPatient" in header:
            normal = np.cross(header.ImageOrientationPatient[:3], header.ImageOrientationPatient[3:])
            where = float(normal @ header.ImagePositionPatient)
            found.setdefault(header.SeriesInstanceUID, []).append((where, path))
    series = next((one for one in found.values() if len({round(where, 2) for where, _ in one}) >= planes), None)
    if series is None:
        raise InputError("the folder holds a small DICOM series", got="none", remedy=f"Give {planes} planes or more.")
    for number, (_, path) in enumerate(list(dict(sorted(series)).items())[:planes]):
        (into / str(number)).write_bytes(path.read_bytes())
    return None


def _made_series(into: Path, planes: int) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    kind, rng = "1.2.840.10008.5.1.4.1.1.4", default_rng(0)
    for plane in range(planes):
        one = Dataset()
        meta: Any = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, kind
        one.SOPClassUID, one.SOPInstanceUID = kind, f"1.2.3.4.{plane + 1}"
        meta.MediaStorageSOPInstanceUID, one.file_meta = one.SOPInstanceUID, meta
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
        one.PatientName, one.PatientID, one.StudyDate, one.SeriesNumber = "A^B", "1", "20200101", 1
        one.Modality, one.Manufacturer, one.ImageType = "MR", "SIEMENS", ["ORIGINAL", "PRIMARY", "M"]
        one.ScanningSequence, one.SequenceVariant, one.EchoTime, one.RepetitionTime = "SE", "SP", "4", "500"
        one.Rows, one.Columns, one.PixelSpacing, one.SliceThickness = 16, 20, [1.5, 1.5], 3
        one.ImageOrientationPatient, one.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-15, -12, 3 * plane]
        one.InstanceNumber, one.SamplesPerPixel, one.PhotometricInterpretation = plane + 1, 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 12, 11, 0
        one.PixelData = rng.integers(0, 4000, (16, 20)).astype(np.uint16).tobytes()
        one.save_as(into / str(plane), enforce_file_format=True)


def damage_dicom(content: bytes, rng: Generator) -> bytes:
    """One or a few faults: bits, lengths, tags, cuts, repeats, nesting, or a preamble that is a program."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        kind, at = int(rng.integers(9)), int(rng.integers(len(data)))
        if rng.random() < 0.8:
            at = int(rng.integers(128, max(129, min(len(data), 4000))))
        at = min(at, max(0, len(data) - 8))
        if kind == 1:
            data[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 2**16, 2**31 - 1, 2**32 - 2, 2**32 - 1])))
        elif kind <= 5:
            _strike(data, kind, at, rng)
        elif kind == 6:
            depth = int(rng.integers(1, 400))
            data[at:at] = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * depth
        elif kind == 7:
            data[:4] = (b"MZ\x90\0", b"\x7fELF", b"#!/b", b"II*\0")[int(rng.integers(4))]
        else:
            text = rng.choice([b"nan\0", b"inf\0", b"-1e9", b"1e40", b"'--\0", b"\\\\\\\\"])
            data[at : at + 4] = bytes(text).ljust(4, b"\0")[:4]
        if len(data) < 16:
            break
    return bytes(data)


def damaged_zip(contents: list[bytes], rng: Generator) -> bytes:
    """A zip of these files with a fault: in its bytes, its names, what its sizes say, or another zip's end."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number, content in enumerate(contents):
            archive.writestr(f"{number}{NAMES[int(rng.integers(len(NAMES)))]}", content)
        if rng.random() < 0.2:
            archive.writestr("inner.zip", _bomb())
        if rng.random() < 0.2:
            link = zipfile.ZipInfo("link")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "/etc/passwd")
    data = bytearray(file.getvalue())
    if rng.random() < 0.2:
        data = bytearray(_bomb())
    directory = len(data) - 2000  # where a small zip keeps its names and sizes
    for _ in range(int(rng.integers(0, 4))):
        low = max(0, directory) if rng.random() < 0.5 else 0
        at = int(rng.integers(low, len(data)))
        kind = rng.random()
        if kind < 0.1:
            del data[at:]
            break
        if kind < 0.3:
            data[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 2**31 - 1, 2**32 - 1])))
        else:
            data[at] ^= 1 << int(rng.integers(8))
    return bytes(data) or b"PK\x03\x04"


@cache
def _bomb() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(BOMB_BYTES))
    return file.getvalue()


# ------------------------------------------------------------------------------------------------ raw k-space

ISMRMRD = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>32</x><y>8</y><z>1</z></matrixSize><fieldOfView_mm><x>64</x><y>16</y><z>5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>16</x><y>8</y><z>1</z></matrixSize><fieldOfView_mm><x>32</x><y>16</y><z>5</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>7</maximum><center>4</center></kspace_encoding_step_1></encodingLimits>
<trajectory>cartesian</trajectory></encoding><sequenceParameters><TR>4000</TR><TE>100</TE></sequenceParameters></ismrmrdHeader>"""


def hdf5_sources(into: Path) -> None:
    """fastMRI's layout, and ISMRMRD's as its own package writes it."""
    import h5py
    import ismrmrd

    kspace = _samples(2, 2, 32, 8)
    with h5py.File(into / "fastmri.h5", "w") as file:
        file["kspace"], file["mask"], file["ismrmrd_header"] = kspace, np.arange(8) % 2, ISMRMRD
        file.attrs["max"], file.attrs["patient_id"] = 1.0, "0"
    scan = ismrmrd.Dataset(str(into / "ismrmrd.h5"), create_if_needed=True)
    scan.write_xml_header(ISMRMRD.encode())
    for number in range(2):
        for line in range(8):
            readout: Any = ismrmrd.Acquisition.from_array(np.ascontiguousarray(kspace[number, :, :, line]))
            readout.idx.slice, readout.idx.kspace_encode_step_1, readout.center_sample = number, line, 16
            readout.position[:], readout.read_dir[:] = (0.0, 0.0, 5.0 * number), (1.0, 0.0, 0.0)
            readout.phase_dir[:], readout.slice_dir[:] = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
            scan.append_acquisition(readout)
    scan.close()


def array_sources(into: Path) -> None:
    """The same as numpy's files and BART's pair."""
    kspace = _samples(2, 2, 32, 8)
    np.save(into / "array.npy", kspace)
    np.savez(into / "plain.npz", kspace=kspace, mask=np.arange(8) % 2, affine=np.eye(4), noise=np.eye(2))
    np.savez_compressed(into / "packed.npz", kspace=kspace)
    kspace.transpose(2, 3, 1, 0).astype("<c8").T.tofile(into / "bart.cfl")
    (into / "bart.hdr").write_text("# Dimensions\n32 8 1 2 1 1 1 1 1 1 1 1 1 2 1 1\n")


def damage_one(whole: dict[str, bytes], rng: Generator) -> dict[str, bytes]:
    """One of the files with faults in its bytes, beside what belongs to it."""
    name = str(rng.choice(sorted(whole)))
    stem = name.partition(".")[0]
    beside = {other: content for other, content in whole.items() if other.partition(".")[0] == stem}
    content = whole[name]
    if name.endswith(".h5") and rng.random() < 0.3:  # somewhere in the data and the lists, not only near the beginning
        return beside | {name: hurt_bytes(content, rng, most=len(content))}
    if name.endswith(".h5") and rng.random() < 0.2:  # numbers of the header that is text
        return beside | {name: _other_digits(content, rng)}
    return beside | {name: hurt_bytes(content, rng, most=1000 if name.endswith((".npy", ".npz")) else 4000)}


def _other_digits(content: bytes, rng: Generator) -> bytes:
    data = bytearray(content)
    digits = [at for at in range(len(data)) if chr(data[at]).isdigit() and data[at - 1 : at] == b">"]
    for _ in range(int(rng.integers(1, 4))):
        if digits:
            data[int(rng.choice(digits))] = int(rng.choice(list(b"0987-.eNx<")))
    return bytes(data)


def _samples(*shape: int) -> np.ndarray:
    rng = default_rng(0)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


# ------------------------------------------------------------------------------------------------ model folders


def model_sources(into: Path) -> None:
    """A small task's folder, an encoder's, and an adapter's that needs it; as `encoder--config.json` and so on."""
    import torch

    from foundation.encoder import Encoder, EncoderConfig
    from foundation.lora import Adapter, LowRank
    from heads import parse_head
    from heads.adapters.folder import Backbone, save_adapter
    from heads.base import Scope, TaskConfig, TaskModel, save_task

    torch.manual_seed(0)
    sizes = EncoderConfig(width=64, depth=1)
    encoder = Encoder(sizes)
    head = parse_head({"kind": "classification", "target": "t", "classes": ["no", "yes"]})
    dense = parse_head({"kind": "segmentation", "structures": [{"value": 1, "name": "tumour", "paired": True}]})
    scope = Scope(contrasts=("T1w",), smallest_extent_mm=(50.0, 50.0, 50.0), largest_extent_mm=(250.0, 250.0, 250.0))
    about = {"caution": None, "encoder": sizes, "spacing_mm": (8.0,) * 3, "scope": scope}
    made = into / "made"
    encoder.save(made / "encoder", card="", provenance={})
    save_task(made / "task", TaskModel.build(Encoder(sizes), dense), TaskConfig(name="dense", head=dense, **about),
              card="", provenance={})  # fmt: skip
    place = "blocks.0.mlp.fc2"
    width = encoder.get_parameter(f"{place}.weight").shape
    low = LowRank(torch.zeros(4, width[1]), torch.zeros(width[0], 4))
    model = TaskModel.build(encoder, head)
    save_adapter(made / "adapter", Adapter(4, 8, {place: low}), model.head, TaskConfig(name="a", head=head, **about),
                 Backbone.of(made / "encoder"), card="", provenance={})  # fmt: skip
    for folder in sorted(made.iterdir()):
        for file in folder.iterdir():
            file.rename(into / f"{folder.name}--{file.name}")
        folder.rmdir()
    made.rmdir()


def damage_model(whole: dict[str, bytes], rng: Generator) -> tuple[str, dict[str, bytes]]:
    """Which folder to load, and the files of all of them, of which one is damaged."""
    target = str(rng.choice(["task", "encoder", "adapter", "adapter"]))
    files = dict(whole)
    name = f"{target}--{'config.json' if rng.random() < 0.5 else 'model.safetensors'}"
    content = files[name]
    if name.endswith(".json"):
        document = json.loads(content)
        if rng.random() < 0.3:
            _scale_a_number(document, rng)
        files[name] = mutated(document, rng) if rng.random() < 0.7 else json.dumps(document).encode()
        return target, files
    length = int.from_bytes(content[:8], "little")
    if rng.random() < 0.5:  # what the file says of its tensors
        said = json.loads(content[8 : 8 + length])
        if rng.random() < 0.5:
            _scale_a_number(said, rng)
            text = json.dumps(said).encode()
        else:
            text = mutated(said, rng)
        size = len(text) if rng.random() < 0.8 else (0, 1, 2**31, 2**63 - 1, 2**64 - 1)[int(rng.integers(5))]
        files[name] = size.to_bytes(8, "little") + text + content[8 + length :]
    else:
        files[name] = hurt_bytes(content, rng, most=length + 8)
    return target, files


def _scale_a_number(document: Any, rng: Generator) -> None:
    """One of a document's whole numbers, somewhere, larger or smaller by powers of ten, or negative."""
    places: list[tuple[Any, Any]] = []
    stack = [document]
    while stack:
        one = stack.pop()
        for key in one if isinstance(one, dict) else range(len(one)):
            if isinstance(one[key], dict | list):
                stack.append(one[key])
            elif type(one[key]) is int:
                places.append((one, key))
    if places:
        holder, key = places[int(rng.integers(len(places)))]
        holder[key] = [-1, 0, 1, 10, 64, 1000, 10**6, 10**12][int(rng.integers(8))] * max(1, abs(holder[key]))
