"""What the child process does with a study's files: survey it, choose, convert. Answers are plain JSON, files lie in its folder,
which is the one it works in."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from foundation.errors import InputError
from foundation.reading.archive import gather
from foundation.reading.dicom.convert import REMEDY, convert
from foundation.reading.dicom.deidentify import Key, deidentified, for_archive
from foundation.reading.dicom.headers import SeriesFacts, Slice, Unusable, read_headers
from foundation.reading.dicom.volumes import Volume, volumes_of
from foundation.study import checked_contrast

# The first of a study is the reference, on which masks are drawn: an anatomical one, if there is any.
ORDER = ("T1w", "T1w-contrast", "FLAIR", "T2w", "PD", "T2star", "DWI", "ADC", "MRA", "unknown")
MOST_LISTED = 6


def survey(source: str, visit: int | None = None) -> dict[str, Any]:
    """What there is: every volume with its label, contrast, grid, and why it is set aside or cannot be read."""
    files = gather(Path(source), Path("files").absolute())
    volumes, subject, notes = _volumes(files, visit)
    return {"volumes": [_listed(volume) for volume in volumes], "subject": subject, "notes": notes}


def convert_study(
    source: str, choose: Sequence[str] = (), visit: int | None = None, key_hex: str | None = None
) -> dict[str, Any]:
    """The chosen volumes as NIfTI files in the working folder, the first one's headers beside it, without identity if there is
    a key."""
    key = None if key_hex is None else Key(bytes.fromhex(key_hex))
    files = gather(Path(source), Path("files").absolute())
    volumes, subject, notes = _volumes(files, visit, key)
    chosen = _chosen(volumes, choose) if choose else _sorted(_all_usable(volumes))
    made = []
    for place, (volume, contrast) in enumerate(chosen):
        if volume.broken:
            raise InputError(f"series {volume.label} is a whole and even stack", got=volume.broken, remedy=REMEDY)
        path, program = convert(volume, files, Path(f"volume-{place + 1}").absolute())
        headers: list[str] = []
        if place == 0 and not volume.facts.mosaic:
            headers = _write_headers(volume, files, Path("headers").absolute(), key)
        source = volume.recognised.source if contrast == volume.recognised.contrast else "what was said of it"
        made.append({**_listed(volume), "contrast": contrast, "source": source, "path": str(path), "program": program,
                     "headers": headers, "slices": _places(volume), "acquisition": _acquisition(volume)})  # fmt: skip
    return {"volumes": made, "subject": subject, "notes": [*notes, *_notes(volumes, chosen, bool(choose))]}


def _notes(volumes: Sequence[Volume], chosen: Sequence[tuple[Volume, str]], by_choice: bool) -> Iterator[str]:
    """What a reader of the study must know: what was left out, and what is in doubt of what was not."""
    for volume in volumes:
        if volume.aside and not by_choice:
            yield f"Series {volume.label} was set aside: {volume.aside}."
    for volume, contrast in chosen:
        if volume.recognised.conflict and contrast == "unknown":
            yield f"The contrast of series {volume.label} is in doubt: {volume.recognised.conflict}."
        if volume.holes:
            lost = f"{volume.holes} of its instance numbers are missing"
            yield f"Series {volume.label} may lack slices at an end: {lost}."
    kept = {volume.label for volume, _ in chosen}
    left = [volume.label for volume in volumes if by_choice and volume.label not in kept and not volume.aside]
    if left:
        yield f"Not chosen, so not read: series {', '.join(left[:20])}{' and more' if len(left) > 20 else ''}."


def _volumes(files: Sequence[Path], visit: int | None, key: Key | None = None) -> tuple[list[Volume], str, list[str]]:
    """The volumes of one visit, its pseudonym and what a reader should know."""
    facts: dict[str, SeriesFacts] = {}
    planes: dict[str, list[Slice]] = {}
    broken: list[Unusable] = []
    strangers = 0
    for index, file in enumerate(files):
        found = read_headers(file, index)
        if found is None:
            strangers += 1
        elif isinstance(found, Unusable):
            broken.append(found)
        else:
            series = f"{found[0].uid} {found[0].kind}"
            facts.setdefault(series, found[0])
            planes.setdefault(series, []).extend(found[1])
    if broken:
        why = sorted({one.why for one in broken})
        rule = "every DICOM file of a study can be read, because a lost slice at an end leaves no trace"
        got = f"{len(broken)} of {len(files)} that cannot: {'; '.join(why[:3])}"
        raise InputError(rule, got=got, remedy="Export the study again, or take the damaged files out.")
    if not facts:
        got = f"{strangers} files, none of them DICOM" if strangers else "no file"
        raise InputError("a study holds DICOM images", got=got, remedy="Give a DICOM folder or a zip of one.")
    _drop_copies(planes)
    shown = {one.uid for one in facts.values() if one.kind != "none"}
    facts = {uid: one for uid, one in facts.items() if one.kind != "none" or one.uid not in shown}  # raw data beside
    studies = sorted({one.study_uid for one in facts.values()}, key=lambda uid: _date(facts, uid))
    facts = {uid: one for uid, one in facts.items() if one.study_uid == _visit(studies, facts, visit)}
    one = next(iter(facts.values()))
    notes = []
    if len({each.subject for each in facts.values()}) > 1:
        got = "one study under several patients' names"
        raise InputError("a study is of one patient", got=got, remedy="Give each patient's files by themselves.")
    if any(each.annotated for each in facts.values()):
        notes.append("A header says that text is burned into the images: they may name the patient.")
    subject = key.patient(one.subject) if key else _pseudonym(one.subject)
    return volumes_of(facts, planes), subject, notes


def _drop_copies(planes: dict[str, list[Slice]]) -> None:
    """The same instance twice is a copy, as when a folder and its zip lie side by side."""
    for uid, stack in planes.items():
        planes[uid] = list({(plane.uid or str(plane.file), plane.frame): plane for plane in reversed(stack)}.values())[
            ::-1
        ]


def _date(facts: dict[str, SeriesFacts], study_uid: str) -> tuple[str, str]:
    return min((one.date, one.study_uid) for one in facts.values() if one.study_uid == study_uid)


def _visit(studies: Sequence[str], facts: dict[str, SeriesFacts], visit: int | None) -> str:
    if visit is not None and not 1 <= visit <= len(studies):
        raise InputError(f"a visit is a number from 1 to {len(studies)}", got=visit, remedy="1 is the earliest.")
    if len(studies) > 1 and visit is None:
        patients = len({one.subject for one in facts.values()})
        counts = ", ".join(
            f"visit {rank} with {sum(one.study_uid == uid for one in facts.values())} series"
            for rank, uid in enumerate(studies[:20], start=1)
        )
        got = f"{len(studies)} studies of {'one patient' if patients == 1 else f'{patients} patients'}: {counts}"
        remedy = "Choose one with --visit N (1 is the earliest), or give one visit's folder."
        raise InputError("what is read is one visit of one patient", got=got, remedy=remedy)
    return studies[(visit or 1) - 1]


def _pseudonym(subject: str) -> str:
    """The same patient has the same name in every study, and nobody can count through numbers to find who it is: who knows
    number, name and birth date can confirm it, no one else."""
    if not subject.strip():
        return "unnamed"
    return "patient-" + hmac.digest(b"larmor", subject.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()[:12]


# ------------------------------------------------------------------------------------------------ choosing


def _all_usable(volumes: Sequence[Volume]) -> list[tuple[Volume, str]]:
    """Every volume that was not set aside, if no series leaves a choice."""
    usable = [volume for volume in volumes if not volume.aside]
    if not usable:
        reasons = "; ".join(f"{volume.label}: {volume.aside}" for volume in volumes[:MOST_LISTED])
        more = f" and {len(volumes) - MOST_LISTED} more" if len(volumes) > MOST_LISTED else ""
        remedy = "Choose a series with --series if one of them is meant."
        raise InputError("a study has a series to read", got=f"none; {reasons}{more}", remedy=remedy)
    by_series: dict[str, list[Volume]] = {}
    for volume in usable:
        by_series.setdefault(volume.label.partition(".")[0], []).append(volume)
    several = [group for group in by_series.values() if len(group) > 1]
    if several:
        named = "; ".join(_choices(group) for group in several)
        example = " ".join(group[0].label for group in by_series.values())
        rule = "of a series that holds several volumes one is chosen"
        raise InputError(rule, got=named, remedy=f"For example --series {example}.")
    return [(volume, volume.recognised.contrast) for volume in usable]


def _choices(group: Sequence[Volume]) -> str:
    shown = [f"{volume.label} ({volume.what})" for volume in group]
    if len(group) > MOST_LISTED:
        shown = [shown[0], shown[1], f"and so on to {shown[-1]}"]
    return ", ".join(shown)


def _chosen(volumes: Sequence[Volume], choose: Sequence[str]) -> list[tuple[Volume, str]]:
    """The volumes of these labels, in this order; 'LABEL=CONTRAST' says what contrast one has."""
    found = []
    for choice in choose:
        label, equals, contrast = choice.partition("=")
        matching = [one for one in volumes if one.label == label or one.label.startswith(f"{label}.")]
        if len(matching) > 1:
            matching = [one for one in matching if not one.aside] or matching
        if not matching:
            known = ", ".join(volume.label for volume in volumes[:20])
            rule = "a chosen series is in the study"
            got = label if re.fullmatch(r"[\w.]{1,40}", label) else "no label"
            raise InputError(rule, got=got, remedy=f"There are: {known}; larmor dicom lists them.")
        if len(matching) > 1:
            rule = "of a series that holds several volumes one is chosen"
            raise InputError(rule, got=_choices(matching), remedy=f"For example --series {matching[0].label}.")
        volume = matching[0]
        if not volume.slices or volume.facts.is_colour or (volume.affine is None and not volume.facts.mosaic):
            got = volume.aside or volume.broken or "a single slice"
            raise InputError(f"series {volume.label} is a volume", got=got, remedy="Choose another one.")
        found.append((volume, checked_contrast(contrast) if equals else volume.recognised.contrast))
    return found


def _sorted(chosen: Sequence[tuple[Volume, str]]) -> list[tuple[Volume, str]]:
    def rank(one: tuple[Volume, str]) -> tuple[int, float]:
        volume, contrast = one
        return ORDER.index(contrast), max(volume.spacing_mm or (99.0,))

    return sorted(chosen, key=rank)


# ------------------------------------------------------------------------------------------------ answers


def _listed(volume: Volume) -> dict[str, Any]:
    return {
        "label": volume.label,
        "what": volume.what,
        "contrast": volume.recognised.contrast,
        "source": volume.recognised.source,
        "conflict": volume.recognised.conflict,
        "shape": list(volume.shape) if volume.slices else None,
        "spacing_mm": [round(n, 4) for n in volume.spacing_mm or ()] or None,
        "is_mosaic": volume.facts.mosaic,
        "aside": volume.aside,
        "broken": volume.broken,
        "words": volume.facts.words,
    }


def _places(volume: Volume) -> list[tuple[int, int]]:
    """For each plane the rank of its file among the volume's, and its frame there."""
    rank = {file: number for number, file in enumerate(volume.files)}
    return [(rank[plane.file], plane.frame) for plane in volume.slices]


def _acquisition(volume: Volume) -> dict[str, Any]:
    facts, echo = volume.facts, volume.slices[0].echo_time_ms
    return {
        "echo_time_ms": echo or facts.echo_time_ms,
        "repetition_time_ms": facts.repetition_time_ms,
        "inversion_time_ms": facts.inversion_time_ms,
        "flip_angle_deg": facts.flip_angle_deg,
        "field_strength_t": facts.field_strength_t,
        "vendor": facts.vendor,
    }


def _write_headers(volume: Volume, files: Sequence[Path], folder: Path, key: Key | None) -> list[str]:
    """What objects that refer to a volume's files must repeat of their headers, and no more."""
    import pydicom

    folder.mkdir()
    written = []
    for number, index in enumerate(volume.files, start=1):
        header = pydicom.dcmread(files[index], stop_before_pixels=True, force=True)
        header = for_archive(header) if key is None else deidentified(header, key)
        path = folder / f"{number:05d}.dcm"
        header.save_as(path)
        written.append(str(path))
    return written
