"""Collections: a manifest names the studies, their masks, targets and splits, one JSON object per line.

    {"subject": "017", "session": "2021", "series": [{"path": "017/t1.nii.gz", "contrast": "T1w"}],
     "mask": "017/lesions.nii.gz", "targets": {"age": 61.5}, "ehr": "017/bundle.json", "study_uid": "1.2.3", "split": "train"}

Only `subject` and `series` are needed; `study_uid` is the study's name in DICOM, by which the record knows it. Paths are
relative to the manifest, so that a collection can be moved. A new data set is a manifest and a config, no Python.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from foundation.errors import InputError, did_you_mean
from foundation.reading.dicom.study import is_dicom, study_from_dicom
from foundation.reading.nifti import is_nifti_name, nifti_stem, publish_bytes, read_labels, read_nifti
from foundation.study import CONTRASTS, Contrast, Series, Study

Split = Literal["pretrain", "train", "validation", "test"]
SPLITS: tuple[str, ...] = get_args(Split)


def _relative(path: str) -> str:
    if not path or Path(path).is_absolute():
        raise ValueError("paths are relative to the manifest")
    return path


RelativePath = Annotated[str, AfterValidator(_relative)]
# '/' and '#' separate the parts of 'manifest.jsonl#SUBJECT/SESSION', and '017 ' must not pass for another than '017'.
Identifier = Annotated[str, Field(pattern=r"^[^\s/\\#]+$")]
Target = float | int | str | list[JsonValue] | None


class _Strict(BaseModel):
    """Immutable, no unknown keys, no conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SeriesEntry(_Strict):
    """`removed` is a mask on the series' grid of the voxels that were removed with the face; nothing detects them."""

    path: RelativePath
    contrast: Contrast = "unknown"
    removed: RelativePath | None = None


class Row(_Strict):
    """One study of a collection, as the manifest words it. The first series is the reference for `mask`."""

    subject: Identifier
    session: Annotated[str, Field(pattern=r"^[^\s/\\#]*$")] = ""
    series: Annotated[tuple[SeriesEntry, ...], Field(min_length=1, strict=False)]
    mask: RelativePath | None = None
    targets: dict[str, Target] = {}
    ehr: RelativePath | None = None
    study_uid: Annotated[str, Field(pattern=r"^[0-9.]+$")] | None = None
    split: Split | None = None

    @property
    def name(self) -> str:
        """'subject', or 'subject/session' where there is one."""
        return "/".join(filter(None, (self.subject, self.session)))

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file or folder that the row refers to."""
        others = (self.mask, self.ehr, *(entry.removed for entry in self.series))
        return (*(entry.path for entry in self.series), *(path for path in others if path is not None))


@dataclass(frozen=True)
class Collection:
    """The rows of a manifest that was read and checked; volumes are opened only by `read_study` and `read_mask`."""

    path: Path
    rows: tuple[Row, ...]
    manifest_sha256: str

    @property
    def root(self) -> Path:
        """The folder that the rows' paths start from."""
        return self.path.parent

    def split(self, name: str) -> tuple[Row, ...]:
        """The rows of one split, in manifest order; empty when the manifest assigns none to it."""
        if name not in SPLITS:
            raise InputError(
                "a split is one of the known names", got=repr(name), remedy=did_you_mean(name, SPLITS), file=self.path
            )
        return tuple(row for row in self.rows if row.split == name)

    def row(self, subject: str, session: str | None = None) -> Row:
        """The row of a subject; `session` may be left out where the subject has only one."""
        rows = [row for row in self.rows if row.subject == subject]
        if not rows:
            names = {row.subject for row in self.rows}
            remedy = did_you_mean(subject, get_close_matches(subject, names, n=1) or _some(names))
            raise InputError("the subject is in the manifest", got=repr(subject), remedy=remedy, file=self.path)
        if session is None and len(rows) == 1:
            return rows[0]
        for row in rows:
            if row.session == session:
                return row
        remedy = did_you_mean(session or "", (row.session for row in rows))
        rule = f"one session of subject '{subject}', who has {len(rows)}, is chosen"
        raise InputError(rule, got="none" if session is None else repr(session), remedy=remedy, file=self.path)

    def fingerprint(self) -> str:
        """sha256 over the manifest's bytes and the name and size of every file it refers to.

        Saved beside weights to say what they were trained on. Sizes, not contents: a collection of terabytes must be
        fingerprinted in seconds, and a damaged .nii.gz of the same size is caught when it is read.
        """
        digest = hashlib.sha256(self.manifest_sha256.encode())
        for path in sorted({path for row in self.rows for path in row.paths}):
            for file in _files(self.root / path):
                digest.update(
                    json.dumps([path, file.relative_to(self.root / path).as_posix(), file.stat().st_size]).encode()
                )
        return digest.hexdigest()


def read_manifest(path: str | Path) -> Collection:
    """The collection that a JSONL manifest describes: every row valid, every file there, no subject in two splits."""
    path = Path(path)
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8-sig").split("\n")  # not splitlines: JSON text may contain U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "a manifest is a readable UTF-8 file", got=error, remedy="Check the path and how it was saved.", file=path
        ) from error
    numbered = [(number, _parse_row(line, number, path)) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise InputError(
            "a manifest has at least one row",
            got="none",
            remedy='Write one {"subject": ..., "series": [...]} per line.',
            file=path,
        )
    _check_unique(numbered, path)
    _check_files(numbered, path)
    return Collection(
        path=path, rows=tuple(row for _, row in numbered), manifest_sha256=hashlib.sha256(content).hexdigest()
    )


def write_manifest(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows as a manifest, complete or not at all; what has its default value is left out."""
    publish_bytes(Path(path), "".join(f"{row.model_dump_json(exclude_defaults=True)}\n" for row in rows).encode())


def read_study(row: Row, root: Path) -> Study:
    """The row's series, read from `root`, the manifest's folder."""
    series = tuple(read_nifti(root / entry.path, entry.contrast) for entry in row.series)
    return Study(subject=row.subject, session=row.session, series=series)


def read_mask(row: Row, study: Study, root: Path) -> np.ndarray:
    """The row's mask, `(x, y, z)` int16, on the grid of the study's reference series."""
    if row.mask is None:
        raise InputError(
            "the row has a mask", got=f"none for subject '{row.subject}'", remedy='Add "mask", or leave the row out.'
        )
    return read_labels(root / row.mask, study.reference)


def read_removed(entry: SeriesEntry, series: Series, root: Path) -> np.ndarray | None:
    """Where the face was removed from the series, `(x, y, z)` bool on its grid; None where nobody told us."""
    return None if entry.removed is None else read_labels(root / entry.removed, series) != 0


def study_from_path(
    path: str | Path, choose: Sequence[str] = (), visit: int | None = None, *, deidentify: bool = False
) -> Study:
    """The study that a user names: a NIfTI file, a folder of them (by name, each one a series), a manifest's row, or DICOM: a
    folder of any depth, a zip or a file, of which `choose` names the series and `visit` the date where there are several.

    A row is `manifest.jsonl#SUBJECT`, or `manifest.jsonl#SUBJECT/SESSION` where there are several sessions. A file
    that cannot be read is an error, not a missing series: nobody should get a report on half a study unknowingly.
    """
    text, path = str(path), Path(path)
    if path.exists() and not _has_nifti(path) and is_dicom(path):
        return study_from_dicom(path, choose, visit, deidentify=deidentify)
    if choose or visit is not None or deidentify:
        remedy = "Leave out --series, --visit and --deidentify; a folder of NIfTI files is one study."
        raise InputError("series and visits are chosen of DICOM", got="no DICOM", remedy=remedy, file=path)
    if not path.exists() and "#" in text:
        manifest, _, name = text.rpartition("#")
        subject, slash, session = name.partition("/")
        collection = read_manifest(manifest)
        return read_study(collection.row(subject, session if slash else None), collection.root)
    if path.is_dir():
        return _study_from_files(_nifti_files(path), fallback=path.resolve().name, place=path)
    if path.suffix == ".jsonl":
        names = ", ".join(_some(f"{path.name}#{row.subject}" for row in read_manifest(path).rows))
        raise InputError(
            "one study of a manifest is named", got="the whole manifest", remedy=f"Use one of: {names}.", file=path
        )
    return _study_from_files([path], fallback=nifti_stem(path), place=path)


# ------------------------------------------------------------------------------------------------ rows


def _parse_row(line: str, number: int, path: Path) -> Row:
    try:
        return Row.model_validate(json.loads(line, object_pairs_hook=_without_duplicates, parse_constant=_no_constant))
    except ValidationError as error:
        first = error.errors()[0]
        # Below a target's name pydantic lists the types it tried, which helps nobody.
        place = ".".join(str(part) for part in first["loc"][: 2 if first["loc"][:1] == ("targets",) else None]) or "row"
        rule, remedy = _rule_and_remedy(first)
        raise InputError(
            f"line {number}, {place}: {rule}", got=_short(first["input"]), remedy=remedy, file=path
        ) from error
    except json.JSONDecodeError as error:
        got = f"{error.msg} at column {error.colno}"
        raise InputError(
            f"line {number} is one JSON object",
            got=got,
            remedy="One study per line, strings in double quotes.",
            file=path,
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"line {number} is one JSON object", got=error, remedy="Correct the line.", file=path
        ) from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a key come twice and keeps the last; of two splits on one line neither can be trusted."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the key '{key}' twice")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name}, which JSON does not have; write null")


def _rule_and_remedy(error: Any) -> tuple[str, str]:
    """One of pydantic's complaints in our words; those that a manifest rarely meets keep pydantic's."""
    kind, place = error["type"], error["loc"]
    key = str(place[-1]) if place else ""
    if kind == "extra_forbidden":
        return "keys are known", did_you_mean(key, (SeriesEntry if "series" in place else Row).model_fields)
    if kind == "literal_error":
        return f"a {key} is one of the known names", did_you_mean(
            str(error["input"]), SPLITS if key == "split" else CONTRASTS
        )
    if kind == "string_pattern_mismatch":
        return "a name has no spaces, '/', '\\' or '#', and a subject has one", "Rename it, in every row alike."
    if kind == "value_error":
        return "a path is relative to the manifest", "Write it from the manifest's folder, with '..' where needed."
    if kind == "missing":
        return "the key is there", f'Add "{key}".'
    if place and place[0] == "targets":
        return "a target is a number, text, a list or null", "Write true and false as 1 and 0."
    return error["msg"], "Correct the value."


def _check_unique(numbered: list[tuple[int, Row]], path: Path) -> None:
    """No study twice, no subject in two splits, no image under two subjects (the same leak under another name)."""
    studies: dict[tuple[str, str], int] = {}
    splits: dict[str, tuple[int, str]] = {}
    images: dict[str, tuple[int, str]] = {}
    for number, row in numbered:
        subject = f"subject '{row.subject}'"
        first = studies.setdefault((row.subject, row.session), number)
        if first != number:
            got = f"{subject}, session '{row.session}' on lines {first} and {number}"
            raise InputError(
                "a session of a subject has one row",
                got=got,
                remedy="Merge the rows or name their sessions.",
                file=path,
            )
        if row.split is not None:
            first, split = splits.setdefault(row.subject, (number, row.split))
            if split != row.split:
                got = f"{subject} in '{split}' on line {first} and in '{row.split}' on line {number}"
                raise InputError(
                    "a subject is in one split", got=got, remedy="Give all rows of a subject the same split.", file=path
                )
        for entry in row.series:
            first, owner = images.setdefault(os.path.normpath(entry.path), (number, row.subject))
            if owner != row.subject:
                got = f"{entry.path} of subject '{owner}' on line {first} and of {subject} on line {number}"
                raise InputError(
                    "an image belongs to one subject", got=got, remedy="Correct the path or the subject.", file=path
                )


def _check_files(numbered: list[tuple[int, Row]], path: Path) -> None:
    for number, row in numbered:
        for name in row.paths:
            file = path.parent / name
            if not (file.is_file() or (name == row.ehr and file.is_dir())):  # a record may be a folder of FHIR files
                raise InputError(
                    f"line {number}, subject '{row.subject}': every file is there",
                    got=f"no file {name}",
                    remedy="Paths are relative to the manifest; correct the path or copy the file.",
                    file=path,
                )


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _some(names: Iterable[str], limit: int = 20) -> Iterator[str]:
    """The first few different names: a message need not list a whole collection."""
    yield from sorted(set(names))[:limit]


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


# ------------------------------------------------------------------------------------------------ studies


def _nifti_files(folder: Path) -> list[Path]:
    try:
        files = sorted(
            path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")
        )  # '._x.nii' is macOS litter
        found = [path for path in files if is_nifti_name(path)]
        if found:
            return found
        deeper = sorted(
            path.name
            for path in folder.iterdir()
            if path.is_dir() and any(is_nifti_name(file) for file in path.iterdir())
        )
    except OSError as error:
        raise InputError(
            "the folder can be read", got=error.strerror or error, remedy="Check its permissions.", file=folder
        ) from error
    remedy = f"Give one of its folders: {', '.join(deeper[:20])}." if deeper else "Give .nii, .nii.gz or DICOM files."
    got = f"{len(files)} files, none of them NIfTI"
    raise InputError("a study's folder holds NIfTI or DICOM files", got=got, remedy=remedy, file=folder)


def _has_nifti(path: Path) -> bool:
    try:
        return is_nifti_name(path) or (path.is_dir() and any(is_nifti_name(file) for file in path.iterdir()))
    except OSError:  # whoever reads it next says why
        return True


def _study_from_files(files: list[Path], fallback: str, place: Path) -> Study:
    """Subject and session from BIDS names (`sub-`, `ses-`) where there are any; two of either are not one study.

    The first is the reference, on which masks are drawn: a file of unknown contrast comes after all whose contrast is known,
    because no model was fitted on it. Otherwise they come in the order of their names.
    """
    series: tuple[Series, ...] = tuple(sorted(map(read_nifti, files), key=lambda one: one.contrast == "unknown"))
    named: dict[str, str] = {}
    for entity in ("sub", "ses"):
        found = sorted({part for volume in series for part in volume.name.split("_") if part.startswith(f"{entity}-")})
        if len(found) > 1:
            remedy = "Give one study's files, in a folder of their own."
            raise InputError(
                "a study is one session of one subject", got=" and ".join(found[:5]), remedy=remedy, file=place
            )
        named[entity] = found[0] if found else ""
    return Study(subject=named["sub"] or fallback, session=named["ses"], series=series)
