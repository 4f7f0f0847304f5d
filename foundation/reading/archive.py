"""The files of a folder or a zip, brought together under numbers: names say who a patient is, and where a zip would like to write.

    files = gather(Path("upload.zip"), Path("/private/files"))     # /private/files/00001, 00002, ...

A folder is searched to any depth and its files are linked; of a zip the files are unpacked under our names, so that no path in it
is ever used. Its sizes are checked before, and counted while unpacking, because what a zip says of itself need not be true.
"""

from __future__ import annotations

import gzip
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

from foundation.errors import InputError

MAX_FILES = 50_000
MAX_FILE_BYTES = 2 * 2**30
MAX_TOTAL_BYTES = 8 * 2**30
MAX_RATIO = 200  # uncompressed to compressed, over a whole zip: DICOM of much air reaches 20, a bomb 1,000
SMALL_BYTES = 64 * 2**20  # below which no ratio is a bomb
LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db")
CHUNK = 2**20


def is_zip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    except OSError:
        return False


def gather(source: Path, into: Path) -> list[Path]:
    """The source's files as `into/00001`, `00002` and so on, in the order of their names; .gz files are unpacked."""
    into.mkdir(parents=True, exist_ok=True)
    budget = _Budget()
    found: list[Path] = []
    if source.is_dir():
        for file in _below(source):
            found.append(_take_file(file, into / f"{len(found) + 1:05d}", budget))
    elif is_zip(source):
        found = _unpack(source, into, budget)
    elif source.is_file():
        found = [_take_file(source, into / "00001", budget)]
    else:
        raise InputError("a study is a folder, a zip or a file", got="none of these", remedy="Check the path.")
    return found


class _Budget:
    """How much may still be unpacked."""

    def __init__(self) -> None:
        self.files, self.bytes = MAX_FILES, MAX_TOTAL_BYTES

    def count_file(self) -> None:
        self.files -= 1
        if self.files < 0:
            raise _too_much(f"more than {MAX_FILES} files")

    def copy(self, stream: BufferedIOBase, to: Path, most: int = MAX_FILE_BYTES) -> None:
        with to.open("wb") as file:
            while chunk := stream.read(CHUNK):
                self.bytes -= len(chunk)
                most -= len(chunk)
                if self.bytes < 0 or most < 0:
                    raise _too_much("more than that")
                file.write(chunk)


def _too_much(got: str) -> InputError:
    limit = f"{MAX_FILES} files, {MAX_FILE_BYTES >> 30} GiB each, {MAX_TOTAL_BYTES >> 30} GiB in all"
    return InputError(f"a study has at most {limit}", got=got, remedy="Give one visit of one patient.")


def _below(folder: Path) -> Iterator[Path]:
    """Files of a folder, in order; links that lead out of it are not followed, nor are pipes and devices opened."""
    root = folder.resolve()
    for place, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(place) / name
            if name in LITTER or not path.resolve().is_relative_to(root) or not path.is_file():
                continue
            yield path


def _take_file(file: Path, as_name: Path, budget: _Budget) -> Path:
    budget.count_file()
    with file.open("rb") as stream:
        is_gzip = stream.read(2) == b"\x1f\x8b"
    if not is_gzip:
        as_name.symlink_to(file.resolve())
        return as_name
    try:
        with gzip.open(file) as stream:
            start = stream.read(132)
            stream.seek(0)
            if start[128:] == b"DICM":
                budget.copy(stream, as_name)
            else:
                as_name.touch()  # a compressed NIfTI or log is nothing of a DICOM study, and need not be unpacked
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise InputError(
            "the compressed files are undamaged", got="a damaged .gz", remedy="Copy or download them again."
        ) from None
    return as_name


def _unpack(source: Path, into: Path, budget: _Budget) -> list[Path]:
    found: list[Path] = []
    try:
        with zipfile.ZipFile(source) as archive:
            members = [one for one in archive.infolist() if _is_wanted(one)]
            said = sum(one.file_size for one in members)
            if len(members) > MAX_FILES or said > MAX_TOTAL_BYTES:
                raise _too_much(f"{len(members)} files of {said / 2**30:.1f} GiB")
            packed = sum(one.compress_size for one in members)
            if said > SMALL_BYTES and said > MAX_RATIO * max(packed, 1):
                got = f"{said / max(packed, 1):.0f} times as much inside as outside"
                raise InputError("a zip holds a study", got=got, remedy="Zip the study's folder again.")
            for member in sorted(members, key=lambda one: one.filename):
                budget.count_file()
                path = into / f"{len(found) + 1:05d}"
                with archive.open(member) as stream:
                    assert isinstance(stream, BufferedIOBase)
                    budget.copy(stream, path, most=member.file_size)
                found.append(_unpack_inner(path, budget))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        got = "one with a password" if "password" in str(error) else f"a damaged one ({type(error).__name__})"
        raise InputError("a zip is whole and open", got=got, remedy="Zip the study's folder again.") from None
    return found


def _unpack_inner(path: Path, budget: _Budget) -> Path:
    """A .dcm.gz inside a zip."""
    with path.open("rb") as stream:
        if stream.read(2) != b"\x1f\x8b":
            return path
    packed = path.rename(path.with_suffix(".packed"))
    try:
        return _take_file(packed, path, budget)
    finally:
        packed.unlink()


def _is_wanted(member: zipfile.ZipInfo) -> bool:
    mode = member.external_attr >> 16
    if member.filename.endswith("/") or (  # `is_dir` asks for the last letter of a name that may have none
        mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG)
    ):  # a link or device is nothing of a study
        return False
    parts = member.filename.replace("\\", "/").split("/")
    return not any(part in LITTER or part.startswith("._") for part in parts)
