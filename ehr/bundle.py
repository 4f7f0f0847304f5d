"""FHIR files to resources, one by one: a Bundle, NDJSON (bulk export), single resources, a folder of any of these, gzipped or not.

    for found in resources_in(Path("export/"), quarantine):
        found.resource["resourceType"], found.full_url, found.place

NDJSON is read line by line and needs the memory of one line; a Bundle is one JSON document and is held whole. What cannot be
read is set aside with its place and the reason, and the rest goes on. Reasons never hold anything that the file says.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase
from itertools import count
from pathlib import Path
from typing import Any

from foundation.errors import InputError

SUFFIXES = (".json", ".ndjson", ".jsonl")
BY_LINE = (".ndjson", ".jsonl")
LARGEST_BYTES = 2**30  # of a document, or of a line, once unpacked: what expands beyond is no record
DEEPEST_BUNDLE = 4  # of bundles inside bundles


@dataclass(frozen=True)
class Found:
    """A resource, its address in a bundle if it has one, and where it was: file (relative to the source) and place in it."""

    resource: dict[str, Any]
    full_url: object
    file: str
    place: str


@dataclass(frozen=True)
class SetAside:
    """Something that could not be read: where it is, what type it was if that is known, and why. Nothing of its content."""

    file: str
    place: str
    kind: str
    reason: str


@dataclass
class Quarantine:
    """What was set aside while reading, in the order it was met."""

    entries: list[SetAside] = field(default_factory=list)

    def add(self, file: str, place: str, reason: str, kind: str = "") -> None:
        self.entries.append(SetAside(file, place, kind, reason))


class _Unreadable(Exception):
    """Why a document cannot be read, in words that quote nothing of it, and where in it."""

    def __init__(self, reason: str, place: str = "file"):
        super().__init__(reason)
        self.place = place


def files_in(source: Path) -> list[Path]:
    """The FHIR files of a source: itself, or those below a folder, in the order of their names."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError("a record is a file or a folder", got="neither", remedy="Check the path.", file=source)
    found = sorted(path for path in source.rglob("*") if path.is_file() and _suffix(path) in SUFFIXES)
    found = [path for path in found if not path.name.startswith(".")]
    if not found:
        remedy = f"Give a folder with {', '.join(SUFFIXES)} files, gzipped (.gz) or not."
        raise InputError("a record's folder holds FHIR files", got="none", remedy=remedy, file=source)
    return found


def resources_in(source: Path, quarantine: Quarantine) -> Iterator[Found]:
    """Every resource of a source. Bundles are opened, also those inside bundles; they are not themselves among the resources."""
    for path in files_in(source):
        file = path.name if path == source else path.relative_to(source).as_posix()
        try:
            yield from _from_file(path, file, quarantine)
        except _Unreadable as error:
            quarantine.add(file, error.place, str(error))
        except (EOFError, zlib.error, gzip.BadGzipFile):
            quarantine.add(file, "file", "damaged gzip")
        except OSError as error:
            quarantine.add(file, "file", f"cannot be read: {error.strerror or type(error).__name__}")


def _from_file(path: Path, file: str, quarantine: Quarantine) -> Iterator[Found]:
    with _opened(path) as stream:
        if _suffix(path) in BY_LINE:
            yield from _from_lines(stream, file, quarantine)
            return
        content = stream.read(LARGEST_BYTES + 1)
        if len(content) > LARGEST_BYTES:
            raise _Unreadable("larger than a document may be")
    try:
        document = _parsed(content)
    except _Unreadable:
        if not _starts_with_objects(content):
            raise
        with _opened(path) as stream:  # NDJSON that is called .json
            yield from _from_lines(stream, file, quarantine)
        return
    yield from _from_document(document, file, "document", quarantine)


def _opened(path: Path) -> BufferedIOBase:
    return gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb")


def _from_lines(stream: BufferedIOBase, file: str, quarantine: Quarantine) -> Iterator[Found]:
    for number in count(1):
        line = stream.readline(LARGEST_BYTES + 1)
        if not line:
            return
        if len(line) > LARGEST_BYTES:
            raise _Unreadable("a line is larger than a resource may be")
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            yield from _from_document(_parsed(line.strip()), file, place, quarantine)
        except _Unreadable as error:
            quarantine.add(file, place, str(error))


def _from_document(
    document: Any, file: str, place: str, quarantine: Quarantine, full_url: object = None, depth: int = 0
) -> Iterator[Found]:
    """The resource itself, or those of its entries if it is a bundle."""
    if not isinstance(document, dict):
        quarantine.add(file, place, "not a JSON object")
    elif not isinstance(document.get("resourceType"), str):
        quarantine.add(file, place, "no resourceType")
    elif document["resourceType"] != "Bundle":
        yield Found(document, full_url, file, place)
    elif depth >= DEEPEST_BUNDLE:
        quarantine.add(file, place, "bundles inside bundles without end", "Bundle")
    else:
        entries = document.get("entry", [])
        if not isinstance(entries, list):
            quarantine.add(file, place, "a bundle's entry is not a list", "Bundle")
            return
        for number, entry in enumerate(entries):
            here = f"entry {number}" if place == "document" else f"{place}, entry {number}"
            if not isinstance(entry, dict):
                quarantine.add(file, here, "not a JSON object")
            elif entry.get("resource") is not None:  # a deletion or a bare response has none
                yield from _from_document(entry["resource"], file, here, quarantine, entry.get("fullUrl"), depth + 1)


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise _Unreadable("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _Unreadable("not JSON", f"line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _Unreadable("nested too deeply") from None
    except ValueError:  # NaN, or a number of thousands of digits
        raise _Unreadable("a number that JSON does not have") from None


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _starts_with_objects(content: bytes) -> bool:
    """Whether the first of several lines is a JSON object by itself."""
    first, newline, rest = content.partition(b"\n")
    if not (newline and rest.strip() and first.strip()):
        return False
    try:
        return isinstance(_parsed(first), dict)
    except _Unreadable:
        return False


def _suffix(path: Path) -> str:
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()
