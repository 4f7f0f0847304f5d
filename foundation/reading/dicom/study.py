"""The way in: `study_from_dicom(path)` makes a study of a folder, zip or file, `larmor dicom` lists what is there.

    study = study_from_dicom("visit.zip", choose=["5", "8.e1", "12=FLAIR"])

What a header says of the patient stays in the child process, but for the headers of the reference series, which objects that go
back to the archive must repeat. Messages name series by number and files not at all.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from foundation.errors import InputError
from foundation.reading.archive import is_zip
from foundation.reading.nifti import read_nifti
from foundation.reading.sandbox import Limits, run_limited
from foundation.study import Acquisition, DicomSource, Series, Study

CHILD = "foundation.reading.dicom.child"
SUFFIXES = (".dcm", ".ima", ".dicom")
MOST_TIMES = 4  # of a series that a table shows
MOST_LOOKED_AT = 5_000  # files of a folder, to find one that is DICOM


@dataclass(frozen=True)
class Listed:
    """One volume of a study as `larmor dicom` shows it. `words` are the header's own and may say anything."""

    label: str
    what: str
    contrast: str
    source: str
    conflict: str | None
    shape: tuple[int, ...] | None
    spacing_mm: tuple[float, ...] | None
    is_mosaic: bool
    aside: str | None
    broken: str | None
    words: str


def is_dicom(path: Path) -> bool:
    """Whether a path is for this reader: a DICOM file, a zip, or a folder with a DICOM file anywhere below."""
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file())
        return any(map(_is_dicom_file, islice(files, MOST_LOOKED_AT)))
    return is_zip(path) or _is_dicom_file(path)


def list_dicom(path: str | Path, visit: int | None = None, limits: Limits | None = None) -> list[Listed]:
    """Every volume that is there, also those that a study leaves out."""
    answer = _ask("survey", {"source": str(Path(path).resolve()), "visit": visit}, limits)
    return [_listed(one) for one in answer["volumes"]]


def study_from_dicom(
    path: str | Path,
    choose: Sequence[str] = (),
    visit: int | None = None,
    *,
    deidentify: bool = False,
    key: bytes | None = None,
    limits: Limits | None = None,
) -> Study:
    """The study of one visit: every volume that was not set aside, or those that `choose` names, in that order.

    `visit` counts from the earliest, where a folder holds several. The first series is the reference, an anatomical one unless
    `choose` says otherwise, and has a `source`; with `deidentify` that one's headers have no identity, under a secret `key` or a
    new one.
    """
    with TemporaryDirectory(prefix="larmor-") as private:  # made so that nobody else may enter it
        arguments = {"source": str(Path(path).resolve()), "choose": list(choose), "visit": visit}
        if deidentify:
            arguments["key_hex"] = (secrets.token_bytes(32) if key is None else key).hex()
        answer = run_limited(f"{CHILD}:convert_study", arguments, folder=Path(private), limits=limits)
        series = tuple(_series(one) for one in answer["volumes"])
    return Study(answer["subject"], series, notes=tuple(answer["notes"]))


def dicom_command(study: Path, visit: int | None = None, names: bool = False) -> None:
    """The `larmor dicom` command. Descriptions are printed only on request: people write names into them."""
    listed = list_dicom(study, visit)
    for line in table(listed, names=names):
        print(line)


def table(listed: Sequence[Listed], *, names: bool = False) -> list[str]:
    """A line per volume under a line of titles; of many time points the first and the last."""
    rows = [("series", "contrast", "from", "voxels", "spacing (mm)", "read", *(("description",) if names else ()))]
    rows += [
        (
            one.label,
            one.contrast,
            one.source,
            "" if one.shape is None else "mosaic" if one.is_mosaic else " × ".join(map(str, one.shape)),
            "" if one.spacing_mm is None else " × ".join(f"{step:.3g}" for step in one.spacing_mm),
            _verdict(one),
            *((" ".join(one.words.split()),) if names else ()),
        )
        for one in without_middle(listed)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def without_middle(listed: Sequence[Listed]) -> list[Listed]:
    series: dict[str, list[Listed]] = {}
    for one in listed:
        series.setdefault(one.label.rpartition(".t")[0] or one.label, []).append(one)
    return [one for group in series.values() for one in (group if len(group) <= MOST_TIMES else (group[0], group[-1]))]


def _verdict(one: Listed) -> str:
    if one.aside:
        return f"set aside: {one.aside}"
    if one.broken:
        return f"cannot be: {one.broken}"
    parts = ["yes"] + ([one.what] if one.what else []) + ([f"but {one.conflict}"] if one.conflict else [])
    return ", ".join(parts)


def _ask(function: str, arguments: dict[str, Any], limits: Limits | None) -> Any:
    with TemporaryDirectory(prefix="larmor-") as private:
        return run_limited(f"{CHILD}:{function}", arguments, folder=Path(private), limits=limits)


def _listed(one: dict[str, Any]) -> Listed:
    tuples = {name: None if one[name] is None else tuple(one[name]) for name in ("shape", "spacing_mm")}
    return Listed(**{**one, **tuples})


def _series(one: dict[str, Any]) -> Series:
    """A volume that the child wrote, read as strictly as any other NIfTI file."""
    name = f"mr-{one['label']}"
    try:
        series = read_nifti(one["path"], one["contrast"], Acquisition(**one["acquisition"]))
    except InputError as error:
        raise InputError(f"series {one['label']}: {error.rule}", got=error.got, remedy=error.remedy) from None
    source = _source(one) if one["headers"] else None
    return replace(
        series, name=name, side_is_known=True, path=None, source=source, predicted=False, contrast_from=one["source"]
    )


def _source(one: dict[str, Any]) -> DicomSource:
    import pydicom

    headers = tuple(pydicom.dcmread(path) for path in one["headers"])
    return DicomSource(headers, tuple((file, frame) for file, frame in one["slices"]))


def _is_dicom_file(path: Path) -> bool:
    if path.suffix.lower() in SUFFIXES or path.name.lower().endswith(".dcm.gz") or path.name.upper() == "DICOMDIR":
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def deidentify_command(study: Path, out: Path, key: Path | None = None) -> None:
    """The `larmor deidentify` command: a folder of the study's images under numbers, without identity."""
    from foundation.files import write_folder_aside
    from foundation.reading.dicom.deidentify import read_key

    if out.exists():
        raise InputError("OUT is new", got="an existing one", remedy="Name another folder; nothing was written.")
    secret = read_key(key)  # a short one is refused before anything is read
    with write_folder_aside(out) as folder:
        arguments = {"source": str(study.resolve()), "key_hex": secret.hex(), "out": str(folder.resolve())}
        with TemporaryDirectory(prefix="larmor-") as private:
            counts = run_limited(
                "foundation.reading.dicom.deidentify:deidentify_files", arguments, folder=Path(private)
            )
        if not counts["written"]:
            remedy = "Give a DICOM study; pictures of screens are never taken."
            raise InputError("a study holds images to de-identify", got="none", remedy=remedy)
    for what, number in counts.items():
        print(f"{what}: {number}")
    print("Pixels were not changed: a face can be recognised in a head scan, and text may be burned in.")
