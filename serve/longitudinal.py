"""Two dates of one patient: what grew, what shrank, which lesions are new and which are gone.

    larmor compare PRIOR CURRENT OUT --model runs/lesions/model

Both studies are read by the same models, and the current one's report is drafted with the prior beside it: a Comparison, and words
of change. Volumes are compared as each study gives them; for lesions the prior study is brought to the current one by a rigid
registration of their reference series. A change is what the models measured, not yet a change of the patient: the same patient
scanned twice does not give the same volume, and what that costs must be known of the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from foundation.config import Config
from foundation.errors import InputError
from foundation.figures import png_bytes, three_planes
from foundation.files import write_aside, write_folder_aside
from foundation.findings import Change as Fate
from foundation.findings import Finding, Measurement, PriorStudy, Side
from foundation.lesions import pieces_of
from foundation.preprocess import Grid, sample_at
from foundation.reading.collection import study_from_path
from foundation.registration import rigid
from foundation.study import Series
from heads.base import default_models
from heads.report import Sentence
from heads.report.writing import Writer, load_writers, write_report
from serve.pipeline import StudyReading, load_models, read_study, save_reading

TOLERANCE_MM = 2.0  # how far a lesion's edge may be off after registration and still be the same lesion

GROWN = 1.5  # the ratio of volumes from which a lesion counts as grown, and its inverse as shrunk
STABLE = 1.2  # up to which a finding is called unchanged; of what lies between nothing is said but both volumes


class VolumeChange(Config):
    """One structure on one side. `percent` is of the prior volume, None where that was nothing."""

    name: str
    side: Side
    source: str
    prior_ml: float
    current_ml: float

    @property
    def percent(self) -> float | None:
        return 100 * (self.current_ml - self.prior_ml) / self.prior_ml if self.prior_ml > 0 else None


class LesionChange(Config):
    """One lesion of either date; `centroid_mm` lies in the current study."""

    name: str
    source: str
    fate: Fate
    prior_ml: float
    current_ml: float
    centroid_mm: tuple[float, float, float]


class Change(Config):
    """Everything that was compared. `not_compared` says what was not, and why."""

    subject: str
    prior_session: str
    current_session: str
    volumes: tuple[VolumeChange, ...]
    lesions: tuple[LesionChange, ...]
    not_compared: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    prior: StudyReading
    current: StudyReading
    change: Change
    prior_series: Series  # the prior's reference, on the current's voxels


def compare_command(
    prior: Path,
    current: Path,
    out: Path,
    models: Sequence[Path],
    *,
    same_patient: bool,
    backbones: Sequence[Path] = (),
    writers: Sequence[Path] = (),
) -> None:
    """The `larmor compare` command: what changed, and in `reading/` the current study's reading with the prior beside it."""
    if not (models or default_models()):
        raise InputError("two dates are compared by a model", got="none", remedy="Name one with --model DIR.")
    studies = [study_from_path(path) for path in (prior, current)]  # what is wrong with them is said before models load
    names = [study.subject for study in studies]
    if names[0] != names[1] and not same_patient:
        raise InputError(
            "both studies are of one patient",
            got=f"'{names[0]}' and '{names[1]}'",
            remedy="Use --same-patient if they are.",
        )
    loaded = load_models(models, backbones)
    scribes, reasons = load_writers(writers, backbones)
    readings = [read_study(study, loaded) for study in studies]
    result = compare(readings[0], readings[1])
    reading = with_prior(result, scribes)
    for reason in dict.fromkeys((*reasons, *reading.draft.remarks)):
        print(reason)
    with write_folder_aside(out) as folder:
        with write_aside(folder / "change.json") as aside:
            aside.write_text(result.change.model_dump_json(indent=2) + "\n")
        text = words(result.change)
        with write_aside(folder / "change.md") as aside:
            aside.write_text(text)
        for name, picture in pictures_of(result).items():
            (folder / name).write_bytes(picture)
        save_reading(reading, folder / "reading")
    print(text)
    for path in sorted(file for file in out.rglob("*") if file.is_file()):
        print(f"wrote {path}")


def compare(prior: StudyReading, current: StudyReading) -> Comparison:
    """The findings of two readings by the same models, one to one."""
    there = {finding.id: finding for finding in prior.reading.findings}
    volumes, not_compared = [], []
    for finding in current.reading.findings:
        before = there.get(finding.id)
        ours, theirs = finding.measured("volume"), None if before is None else before.measured("volume")
        if before is None or ours is None or theirs is None:
            not_compared.append(_why_not(finding, before))
        elif finding.is_abnormal or finding.presence == before.presence == "present":
            volumes.append(
                VolumeChange(
                    name=finding.name, side=finding.side, source=finding.source, prior_ml=theirs, current_ml=ours
                )
            )
    to_prior = rigid(current.study.reference, prior.study.reference)
    on_current = Grid(current.study.reference.shape, to_prior @ current.study.reference.affine)
    lesions = []
    for path, mask in current.masks.items():
        if path not in prior.masks:
            continue
        source = Path(path).name.removesuffix(".nii.gz")
        earlier = sample_at(prior.masks[path].labels, prior.study.reference.affine, on_current, nearest=True)
        for structure in mask.structures:
            if _is_lesion(current.reading.findings, source, structure.name):
                lesions += lesion_changes(
                    earlier == structure.value,
                    mask.labels == structure.value,
                    current.study.reference.affine,
                    name=structure.name,
                    source=source,
                    least_ml=structure.min_ml,
                )
    reference = prior.study.reference
    moved = sample_at(reference.voxels, reference.affine, on_current)
    change = Change(
        subject=current.reading.subject,
        prior_session=prior.reading.session,
        current_session=current.reading.session,
        volumes=tuple(volumes),
        lesions=tuple(lesions),
        not_compared=tuple(dict.fromkeys(not_compared)),
    )
    return Comparison(prior, current, change, current.study.reference.with_voxels(moved.astype(np.float32)))


def with_prior(
    result: Comparison, writers: Sequence[Writer] = (), said: Callable[[Sentence], None] | None = None
) -> StudyReading:
    """The current reading as one that knows the prior, put into words anew; `said` hears each sentence when it is written."""
    there = {finding.id: finding for finding in result.prior.reading.findings}
    lesions: dict[str, dict[Fate, int]] = {}
    for one in result.change.lesions:
        counts = lesions.setdefault(one.name, {})
        counts[one.fate] = counts.get(one.fate, 0) + 1
    prior = PriorStudy(
        name=result.prior.reading.session or result.prior.study.reference.name or "without a name",
        date=_date(result.prior.study.reference),
        lesions=lesions,
    )
    findings = tuple(_changed(one, there.get(one.id)) for one in result.current.reading.findings)
    reading = result.current.reading.model_copy(update={"prior": prior, "findings": findings})
    draft = write_report(reading, writers, study=result.current.study, said=said)
    return replace(result.current, reading=reading, draft=draft)


def _changed(finding: Finding, before: Finding | None) -> Finding:
    """An abnormality with its volume in the prior, and what became of it; anatomy, and what was not seen twice, as it is."""
    ours, theirs = finding.measured("volume"), None if before is None else before.measured("volume")
    if before is None or ours is None or theirs is None or not finding.is_abnormal:
        return finding
    then, now = (one.presence == "present" for one in (before, finding))
    method = next(one.method for one in before.measurements if one.name == "volume")
    earlier = Measurement(name="prior volume", value=theirs, unit="ml", method=method)
    change: Fate | None = None
    if then and now:
        ratio = ours / theirs if theirs else GROWN
        if ratio >= GROWN or ratio <= 1 / GROWN:
            change = "grown" if ratio > 1 else "shrunk"
        elif 1 / STABLE <= ratio <= STABLE:
            change = "stable"
    elif then or now:
        change = "new" if now else "resolved"
    return finding.model_copy(update={"change": change, "measurements": (*finding.measurements, earlier)})


def _date(series: Series) -> str | None:
    """When the study was made, where its DICOM headers say."""
    if series.source is None:
        return None
    day = str(series.source.headers[0].get("StudyDate", ""))
    return f"{day[:4]}-{day[4:6]}-{day[6:8]}" if re.fullmatch(r"\d{8}", day) else None


def _why_not(finding: Finding, before: Finding | None) -> str:
    reason = finding.note or (before.note if before else None) or "it has no volume in both"
    return f"{finding.name} ({finding.source}): {reason}"


def _is_lesion(findings: Sequence[Finding], source: str, name: str) -> bool:
    return any(one.source == source and one.name == name and one.is_abnormal for one in findings)


def lesion_changes(
    prior: np.ndarray, current: np.ndarray, affine: np.ndarray, *, name: str, source: str, least_ml: float
) -> list[LesionChange]:
    """Lesions of both dates, given as masks on one grid: two that touch, `TOLERANCE_MM` allowed, are one.

    Several that merge, or one that falls apart, are one lesion with all their volume.
    """
    together = pieces_of(_wide(prior | current, np.linalg.norm(affine[:3, :3], axis=0)), affine)
    changes = []
    voxel_ml = float(abs(np.linalg.det(affine[:3, :3]))) / 1000
    for number, centroid_mm in enumerate(together.centroids_mm, start=1):
        here = together.numbers == number
        before, after = (voxel_ml * float((mask & here).sum()) for mask in (prior, current))
        if max(before, after) < least_ml:
            continue
        changes.append(
            LesionChange(
                name=name,
                source=source,
                fate=_fate(before if before >= least_ml else 0.0, after if after >= least_ml else 0.0),
                prior_ml=before,
                current_ml=after,
                centroid_mm=centroid_mm,
            )
        )
    return sorted(changes, key=lambda one: -abs(one.current_ml - one.prior_ml))


def _wide(mask: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """The mask and what lies within half the tolerance of it, so that two that far apart touch."""
    if not mask.any():
        return mask
    away_mm = np.asarray(ndimage.distance_transform_edt(~mask, sampling=spacing_mm))
    return away_mm <= TOLERANCE_MM / 2


def _fate(before: float, after: float) -> Fate:
    if before == 0:
        return "new"
    if after == 0:
        return "resolved"
    ratio = after / before
    return "grown" if ratio >= GROWN else "shrunk" if ratio <= 1 / GROWN else "stable"


def words(change: Change) -> str:
    """Markdown for a reader: two tables and what they do not say."""
    lines = [f"# {change.subject}: {change.current_session or 'current'} against {change.prior_session or 'prior'}", ""]
    lines += ["| structure | side | prior, ml | current, ml | change |", "|---|---|---|---|---|"]
    for one in change.volumes:
        percent = "" if one.percent is None else f"{one.percent:+.1f} %"
        lines.append(f"| {one.name} | {one.side} | {one.prior_ml:.2f} | {one.current_ml:.2f} | {percent} |")
    lines.append("")
    counts = {
        fate: sum(one.fate == fate for one in change.lesions)
        for fate in ("new", "resolved", "grown", "shrunk", "stable")
    }
    if change.lesions:
        lines += ["Lesions: " + ", ".join(f"{number} {fate}" for fate, number in counts.items()) + ".", ""]
        lines += [
            "| lesion | fate | prior, ml | current, ml | centre, mm (right, anterior, superior) |",
            "|---|---|---|---|---|",
        ]
        for one in change.lesions:
            x, y, z = one.centroid_mm
            lines.append(
                f"| {one.name} | {one.fate} | {one.prior_ml:.2f} | {one.current_ml:.2f} | {x:.0f}, {y:.0f}, {z:.0f} |"
            )
        lines.append("")
    lines += [f"Not compared: {reason}." for reason in change.not_compared]
    lines.append(
        "A change is what the models measured on two scans; how much two scans of an unchanged patient differ is not taken off. "
        "Not a medical device."
    )
    return "\n".join(lines) + "\n"


def pictures_of(result: Comparison) -> dict[str, bytes]:
    """Both dates in the same planes: through the lesion that changed most, or the middle."""
    current = result.current
    mask = next(iter(current.masks.values()), None)
    labels, structures = (None, None) if mask is None else (mask.labels, mask.structures)
    reference = current.study.reference
    if result.change.lesions:
        at_mm = result.change.lesions[0].centroid_mm
    else:
        at_mm = apply_affine(reference.affine, (np.array(reference.shape) - 1) / 2)
    now = three_planes(reference, labels, at_mm=at_mm, structures=structures)
    return {"current.png": png_bytes(now), "prior.png": png_bytes(three_planes(result.prior_series, at_mm=at_mm))}
