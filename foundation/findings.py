"""The typed hinge between images and words: whatever a report may say is a `Finding` first.

    found = measure_structures(labels, series, structures, body=body, mask_path="masks/t1.nii.gz", source="hippocampus")
    reading = Reading(subject=study.subject, series=(SeriesSummary.of(series),), findings=tuple(found))
    reading.save(folder / "reading.json")

Coordinates are the patient's RAS+ millimetres, as in `foundation.study`: a larger x is further to the patient's right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float, Integer
from nibabel.affines import apply_affine
from pydantic import AwareDatetime, Field, FiniteFloat, ValidationError, field_validator, model_validator
from scipy import ndimage

from foundation.config import Config
from foundation.errors import InputError
from foundation.files import write_aside
from foundation.lesions import pieces_of
from foundation.study import Contrast, Series, known_numbers
from foundation.terms import Code, Signal, Urgency, place_codes, term_of

Side = Literal["right", "left", "midline", "bilateral", "not_assessed", "not_applicable"]
Presence = Literal["present", "absent", "uncertain", "not_assessed"]
Severity = Literal["mild", "moderate", "severe"]
Change = Literal["new", "resolved", "grown", "shrunk", "stable"]

LEAST_HEAD_MM = 100.0  # adult and child heads are 120 mm wide and more, so a narrower body is a crop
CELL_MM = 4.0
ON_PLANE_MM = 1e-6  # rounding differs with the order of the array's axes; a voxel on the plane must not change sides

# What is abnormal merely by being there, for names whose author did not say.
ABNORMAL = re.compile(
    r"abnormal|abscess|aneurysm|atroph|bleed|cyst|demyelinat|disease|enhancing|gliom|ha?ematoma|ha?emorrhage"
    r"|hydroceph|hyperintens|infarct|ischa?em|lesion|malformation|\bmass\b|meningiom|metasta|necro|o?edema|scleros"
    r"|stroke|tumou?r",
    re.IGNORECASE,
)


class Measurement(Config):
    """One number, its unit in UCUM (`1` is a plain ratio), and how it was obtained."""

    name: str
    value: FiniteFloat
    unit: str
    method: str


class Evidence(Config):
    """Where to look: `mask` is a path relative to the reading's folder, `slice_index` counts on the series' own array.

    `slice_index` names, for each array axis, the plane on which the finding is largest. A centroid can lie outside a
    curved structure; these planes always cut it.
    """

    series: str
    mask: str | None = None
    centroid_mm: tuple[FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    slice_index: tuple[int, int, int] | None = None

    @field_validator("mask")
    @classmethod
    def _stays_in_the_folder(cls, mask: str | None) -> str | None:
        """A reading that came by mail must not make the page open a file elsewhere."""
        if mask is not None and (PurePosixPath(mask).is_absolute() or ".." in mask.split("/") or "\\" in mask):
            remedy = "Keep masks in the reading's folder and write the path with '/'."
            raise InputError("a mask's path is relative to its reading", got=repr(mask), remedy=remedy)
        return mask


class Piece(Config):
    """One connected piece of a finding that can have several, as lesions are counted; `number` is its rank by volume."""

    number: Annotated[int, Field(ge=1)]
    volume_ml: FiniteFloat
    centroid_mm: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    slice_index: tuple[int, int, int]


class SeriesSignal(Config):
    """How a finding looks on one series, against what surrounds it; `ratio` is of the medians where it was measured."""

    series: str
    contrast: Contrast
    signal: Signal
    ratio: FiniteFloat | None = None


class Finding(Config):
    """One claim: what a model looked for and what it found, or what the record says (`origin`).

    `probability` is that of being present; it is only as good as `is_calibrated` says. `abnormal` says whether presence
    is a disease (a lesion) or normal anatomy (a hippocampus); None leaves it to the name. `note` is the reason for
    whatever was not assessed. `pieces` are counted only by heads that detect lesions. The side of a midline shift is
    where the midline went. `change` is against the reading's prior study, `event` the record's own id of what it says. An
    outlook is about what will become of the patient and not about what the images show: it is worded apart from the findings.
    """

    id: Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")]
    name: str
    anatomy: str
    side: Side
    presence: Presence
    probability: Annotated[float, Field(ge=0, le=1)] | None = None
    is_calibrated: bool = False
    abnormal: bool | None = None
    measurements: tuple[Measurement, ...] = ()
    evidence: Evidence | None = None
    pieces: tuple[Piece, ...] = ()
    signals: tuple[SeriesSignal, ...] = ()
    severity: Severity | None = None
    change: Change | None = None
    source: str
    origin: Literal["image", "record", "outlook"] = "image"
    event: str | None = None
    note: str | None = None

    @property
    def is_abnormal(self) -> bool:
        """Whether being present is abnormal in itself."""
        return is_abnormal_name(self.name) if self.abnormal is None else self.abnormal

    @property
    def urgency(self) -> Urgency:
        """How soon somebody must know, were it there; an abnormality of which nothing is known can be acted on."""
        term = term_of(self.name)
        return term.urgency if term else "actionable" if self.is_abnormal else "none"

    @property
    def codes(self) -> tuple[Code, ...]:
        """What it is and where, in published codes; empty where there are none."""
        term = term_of(self.name)
        return (*(term.codes if term else ()), *place_codes(self.anatomy))

    def measured(self, name: str) -> float | None:
        """The value of the measurement called `name`, None if it was not made."""
        return next((one.value for one in self.measurements if one.name == name), None)


def is_abnormal_name(name: str) -> bool:
    """Whether what is called so is abnormal by being there, where nobody said: by its words, or because it is a known term."""
    return ABNORMAL.search(name) is not None or term_of(name) is not None


class Structure(Config):
    """What one label value of a segmentation head means.

    `paired` says that it occurs on the right and on the left, lesions included, so that its voxels are split at the
    midline; without it the structure is taken to lie on the midline. Less than `min_ml` counts as absent. The values `also` count
    as this structure too, and may be structures of their own, as a tumour's necrosis is.
    """

    value: Annotated[int, Field(ge=1)]
    also: tuple[int, ...] = ()
    name: str
    paired: bool
    min_ml: Annotated[float, Field(ge=0)] = 0.01
    anatomy: str = "brain"
    abnormal: bool | None = None


class SeriesSummary(Config):
    """What a reading keeps of a series; the voxels stay where they are."""

    name: str
    contrast: Contrast
    shape: tuple[int, int, int]
    spacing_mm: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    orientation: str
    side_is_known: bool
    contrast_from: str = ""
    acquisition: dict[str, float | str] = Field(default_factory=dict)

    @classmethod
    def of(cls, series: Series) -> SeriesSummary:
        x, y, z = (float(step) for step in series.spacing_mm)
        return cls(
            name=series.name,
            contrast=series.contrast,
            shape=series.shape,
            spacing_mm=(x, y, z),
            orientation=series.orientation,
            side_is_known=series.side_is_known,
            contrast_from=series.contrast_from,
            acquisition=known_numbers(series.acquisition),
        )


class ModelUsed(Config):
    """Which weights spoke: an adapter's are those of its folder and those of its backbone. `name` is what their findings carry
    as `source`; `card` is the path of the model's card."""

    name: str
    weights_sha256: str
    backbone_sha256: str | None = None
    card: str | None = None


class PriorStudy(Config):
    """An earlier study of the same patient that this one was compared with. `lesions` counts, by name, the lesions of each fate."""

    name: str
    date: Annotated[str, Field(pattern=r"^\d{4}(-\d\d(-\d\d)?)?$")] | None = None
    lesions: dict[str, dict[Change, int]] = Field(default_factory=dict)


class Reading(Config):
    """Everything that was found in one study, by which models, with which reservations.

    `indication` is why the study was asked for: names of the request's coded reasons, or its words where they may be used. Only
    with a `prior` may anything be compared.
    """

    subject: str
    session: str = ""
    indication: str | None = None
    prior: PriorStudy | None = None
    series: tuple[SeriesSummary, ...]
    findings: tuple[Finding, ...] = ()
    models: tuple[ModelUsed, ...] = ()
    warnings: tuple[str, ...] = ()
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    software: str = Field(default_factory=lambda: software_version())

    @field_validator("findings")
    @classmethod
    def _ids_are_unique(cls, findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
        """A sentence cites its findings by id."""
        ids = [finding.id for finding in findings]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise InputError("each finding of a reading has its own id", got=twice, remedy="Let each model speak once.")
        return findings

    @model_validator(mode="after")
    def _changes_need_a_prior(self) -> Reading:
        if self.prior is None and any(finding.change for finding in self.findings):
            raise InputError("a change is against a prior study", got="no prior", remedy="Name the prior study.")
        return self

    def save(self, path: Path) -> None:
        """JSON for people and programs; what was at `path` stays whole until the new file is."""
        with write_aside(path) as aside:
            aside.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Reading:
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            remedy = "Give the path of a reading.json."
            raise InputError("a reading can be read", got=error.strerror, remedy=remedy, file=path) from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            remedy = "Read the study again with this version."
            raise InputError("a reading is whole", got=f"{where}: {first['msg']}", remedy=remedy, file=path) from None


def software_version() -> str:
    """The installed distribution's name and version; a plain checkout has none."""
    try:
        return f"larmor {version('larmor')}"
    except PackageNotFoundError:
        return "larmor, not installed"


def finding_id(source: str, name: str, side: Side) -> str:
    """The same finding of the same model has the same id in every reading: 'lesions-v1.hippocampus.right'."""
    parts = [re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") or "x" for part in (source, name)]
    return ".".join([*parts, side.replace("_", "-")])


def not_assessed(structures: Sequence[Structure], *, source: str, why: str) -> list[Finding]:
    """What a model would have said, had it been able to run: one finding per structure, and the reason."""
    return [
        Finding(
            id=finding_id(source, structure.name, "not_assessed"),
            name=structure.name,
            anatomy=structure.anatomy,
            side="not_assessed",
            presence="not_assessed",
            abnormal=structure.abnormal,
            source=source,
            note=why,
        )
        for structure in structures
    ]


def if_seen(finding: Finding, acquired: Collection[Contrast]) -> Finding:
    """The finding, or that it was not assessed where none of the contrasts that show it was acquired: then it is never absent.

    A contrast that nobody knows may be any.
    """
    term = term_of(finding.name)
    if finding.presence == "not_assessed" or term is None or not term.needs or "unknown" in acquired:
        return finding
    if set(acquired) & set(term.needs):
        return finding
    return Finding(
        id=finding_id(finding.source, finding.name, "not_assessed"),
        name=finding.name,
        anatomy="brain",
        side="not_assessed",
        presence="not_assessed",
        abnormal=finding.abnormal,
        source=finding.source,
        note=f"no {' or '.join(term.needs)} series",
    )


def each_once(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Of findings with one id, the first: two sides that could not be assessed are one finding."""
    return tuple({finding.id: finding for finding in reversed(list(findings))}.values())[::-1]


def signal_of(mask: Bool[np.ndarray, "x y z"], series: Series) -> SeriesSignal | None:
    """How what is masked looks on a series of the same grid: its median over that of what lies 2 to 8 mm around it.

    None where there is nothing to compare. Within a sixth of each other they are isointense.
    """
    where = ndimage.find_objects(mask.astype(np.uint8))
    if not where:
        return None
    margin = np.ceil(8 / series.spacing_mm).astype(int) + 1
    box = tuple(slice(max(0, one.start - m), one.stop + m) for one, m in zip(where[0], margin.tolist()))
    inside, voxels = mask[box], series.voxels[box]
    away_mm = np.asarray(ndimage.distance_transform_edt(~inside, sampling=series.spacing_mm))
    around = (away_mm >= 2) & (away_mm <= 8) & (voxels > 0)
    if not around.any() or (outside := float(np.median(voxels[around]))) <= 0:
        return None
    ratio = float(np.median(voxels[inside])) / outside
    signal: Signal = "hyperintense" if ratio > 7 / 6 else "hypointense" if ratio < 6 / 7 else "isointense"
    return SeriesSignal(series=series.name, contrast=series.contrast, signal=signal, ratio=ratio)


# ------------------------------------------------------------------------------------------------ measuring


def measure_structures(
    labels: Integer[np.ndarray, "x y z"],
    series: Series,
    structures: Sequence[Structure],
    *,
    body: Bool[np.ndarray, "x y z"] | None,
    mask_path: str | None,
    source: str,
    probabilities: Float[np.ndarray, "x y z"] | None = None,
    count_pieces: bool = False,
) -> list[Finding]:
    """Findings of a label map on the series' own grid, in the order of `structures`; right before left.

    Each structure is reported, also when absent. A paired one is split at the mid-sagittal plane of `body`, which is
    found from the outside of the head: where the brain is shifted, tissue close to the middle may be counted on the
    wrong side. Where no side can be told the finding is one, of the total, and its note says why.
    Labels that no structure names are left out. `probabilities` is what the head gave each voxel's label; its mean over
    a mask is not a probability of presence, and is kept as a measurement. How an abnormality looks on this series, both sides
    together, is measured too. With `count_pieces` the connected pieces of at least
    `min_ml` are listed and counted; a piece that crosses the midline is one, on the side of its centre, with all of its volume:
    number and volume of a side then speak of the same lesions.
    """
    assert labels.shape == series.shape, (labels.shape, series.shape)
    midline, why_no_side = find_midline(series, body)
    findings: list[Finding] = []
    count = partial(_tally, series=series, midline=midline, probabilities=probabilities, whole_pieces=count_pieces)
    for structure, shown, (first, second) in _tallied(labels, structures, count):
        sides: Mapping[Side, _Tally]
        if not structure.paired:
            sides = {"midline": first}
        elif midline is None:
            sides = {"not_assessed": first}
        else:
            sides = {"right": first, "left": second}
        shared = _asymmetry(structure, list(sides.values()))
        is_abnormal = is_abnormal_name(structure.name) if structure.abnormal is None else structure.abnormal
        looks = signal_of(shown == structure.value, series) if is_abnormal else None
        pieces = _pieces(shown, series, structure, midline if structure.paired else None) if count_pieces else ((), ())
        for (side, tally), own in zip(sides.items(), pieces, strict=False):
            notes = [why_no_side] if side == "not_assessed" else []
            is_present = tally.volume_ml > 0 and tally.volume_ml >= structure.min_ml
            if not is_present and tally.volume_ml > 0:
                notes.append(f"less than {structure.min_ml:g} ml counts as absent")
            findings.append(
                Finding(
                    id=finding_id(source, structure.name, side),
                    name=structure.name,
                    anatomy=structure.anatomy,
                    side=side,
                    presence="present" if is_present else "absent",
                    abnormal=structure.abnormal,
                    measurements=(*tally.measurements(), *shared, *(_number_of(own) if count_pieces else ())),
                    evidence=Evidence(
                        series=series.name, mask=mask_path, centroid_mm=tally.centroid_mm, slice_index=tally.slice_index
                    ),
                    pieces=own,
                    signals=(looks,) if looks and is_present else (),
                    source=source,
                    note="; ".join(notes) or None,
                )
            )
    return findings


def _tallied(
    labels: np.ndarray, structures: Sequence[Structure], count: Callable[..., list[tuple[_Tally, _Tally]]]
) -> Iterator[tuple[Structure, np.ndarray, tuple[_Tally, _Tally]]]:
    """Each structure with the label map that shows it and its tallies: all from one map, but those that have parts."""
    whole = [one for one in structures if not (one.also and np.isin(labels, one.also).any())]
    tallies = dict(zip(map(id, whole), count(labels, whole), strict=True)) if whole else {}
    for one in structures:
        if id(one) in tallies:
            yield one, labels, tallies[id(one)]
        else:
            joined = np.where(np.isin(labels, one.also), one.value, labels)
            yield one, joined, count(joined, [one])[0]


@dataclass(frozen=True)
class _Tally:
    """The voxels of one structure on one side."""

    volume_ml: float
    centroid_mm: tuple[float, float, float] | None
    slice_index: tuple[int, int, int] | None
    mean_probability: float | None

    def measurements(self) -> list[Measurement]:
        found = [Measurement(name="volume", value=self.volume_ml, unit="ml", method="voxel count times voxel volume")]
        if (mean := self.mean_probability) is not None:
            method = "mean over the mask, not calibrated"
            found.append(Measurement(name="mean voxel probability", value=mean, unit="1", method=method))
        return found


def find_midline(series: Series, body: np.ndarray | None) -> tuple[Float[np.ndarray, "4"], str] | tuple[None, str]:
    """The mid-sagittal plane, or None and the reason why no side can be told.

    The plane times `(x, y, z, 1)` is how far a point lies to the right of it, in mm along x. It is fitted to the
    midpoints between the right and the left surface. The centre of the body's extent would do for a head that lies
    straight, but one ear or a tilt moves it: on 30 heads it gave thalami a false asymmetry of up to 36 %, the fitted
    plane of up to 5 %.
    """
    if not series.side_is_known:
        return None, "the file does not say which side is right"
    if body is None or not body.any():
        return None, "the outline of the body is not known"
    assert body.shape == series.shape, (body.shape, series.shape)
    x, y, z = _surface_mm(series, body)
    width_mm = float(np.ptp(x) + np.abs(series.affine[0, :3]).sum())
    if width_mm < LEAST_HEAD_MM:
        return None, f"the images hold {width_mm:.0f} mm of the body from side to side, less than a whole head"

    # The surface in cells of y and z; the small shift keeps a point on a cell's edge in one cell whatever the rounding.
    cells = np.floor(np.stack([y, z]) / CELL_MM + 1e-6)
    cells, cell_of = np.unique(cells, axis=1, return_inverse=True)
    low, high = np.full(cells.shape[1], np.inf), np.full(cells.shape[1], -np.inf)
    np.minimum.at(low, cell_of, x)
    np.maximum.at(high, cell_of, x)
    is_wide = high - low >= LEAST_HEAD_MM / 2  # a cell of the nose or of one ear says nothing of the middle
    if is_wide.sum() < 3:
        return None, "the outline of the body is not that of a head"
    middle_mm = ((low + high) / 2)[is_wide]
    terms = np.column_stack([np.ones(middle_mm.size), CELL_MM * (cells[:, is_wide].T + 0.5)])
    coefficients = np.array([np.median(middle_mm), 0.0, 0.0])  # of x = a + b * y + c * z
    for _ in range(10):  # least absolute deviations by reweighting: an ear is an outlier, not evidence
        root = np.sqrt(1 / np.maximum(np.abs(middle_mm - terms @ coefficients), 1.0))
        coefficients = np.linalg.lstsq(terms * root[:, None], middle_mm * root, rcond=None)[0]
    a, b, c = coefficients
    return np.array([1.0, -b, -c, -a]), ""


def lies_left(
    mask: Bool[np.ndarray, "x y z"], series: Series, midline: Float[np.ndarray, "4"], *, whole_pieces: bool
) -> Bool[np.ndarray, "x y z"]:
    """Which voxels of a mask count as left of the midline; with `whole_pieces` each connected piece goes where its centre is."""
    found = np.zeros(mask.shape, dtype=bool)
    if whole_pieces:
        pieces = pieces_of(mask, series.affine)
        centres = np.array(pieces.centroids_mm).reshape(-1, 3)
        is_left = centres @ midline[:3] + midline[3] <= ON_PLANE_MM
        found[mask] = is_left[pieces.numbers[mask] - 1]
    else:
        found[mask] = _is_left(np.stack(np.nonzero(mask)), series, midline)
    return found


def _is_left(voxel: np.ndarray, series: Series, midline: np.ndarray) -> Bool[np.ndarray, " n"]:
    *per_voxel, at_origin = midline @ series.affine
    return np.array(per_voxel) @ voxel + at_origin <= ON_PLANE_MM


def _surface_mm(series: Series, body: np.ndarray) -> Float[np.ndarray, "3 n"]:
    """Patient mm of both ends of each column of the body; columns run along the array axis nearest to patient x."""
    axis = int(np.argmax(np.abs(series.affine[0, :3]) / series.spacing_mm))
    body = np.moveaxis(body, axis, 2)
    i, j = np.nonzero(body.any(axis=2))
    columns = body[i, j]
    first, last = columns.argmax(axis=1), body.shape[2] - 1 - columns[:, ::-1].argmax(axis=1)
    ends = np.concatenate([np.insert(np.stack([i, j]), axis, end, axis=0) for end in (first, last)], axis=1)
    return series.affine[:3, :3] @ ends + series.affine[:3, 3:]


def _tally(
    labels: np.ndarray,
    structures: Sequence[Structure],
    *,
    series: Series,
    midline: np.ndarray | None,
    probabilities: np.ndarray | None,
    whole_pieces: bool,
) -> list[tuple[_Tally, _Tally]]:
    """For each structure what lies right and left of the midline; all of it in the first when it is not to be split.

    One pass: along each array axis, the number of voxels of each part in each plane. Volume, centroid and the largest
    cross-section all follow from these three histograms.
    """
    values = [structure.value for structure in structures]
    assert len(set(values)) == len(values), values
    assert probabilities is None or probabilities.shape == labels.shape, probabilities.shape
    num_parts = 2 * len(structures)
    part_of = np.full(max([int(labels.max()), *values]) + 1, -1)
    part_of[values] = np.arange(0, num_parts, 2)
    is_split = np.repeat([structure.paired and midline is not None for structure in structures], 2)

    where = np.flatnonzero(labels > 0)
    part = part_of[labels.ravel()[where]]
    where, part = where[part >= 0], part[part >= 0]
    voxel = np.stack(np.unravel_index(where, labels.shape))
    if midline is not None:
        is_left = _is_left(voxel, series, midline)
        if whole_pieces:
            for structure in (one for one in structures if one.paired):
                own = labels.ravel()[where] == structure.value
                is_left[own] = lies_left(labels == structure.value, series, midline, whole_pieces=True).ravel()[
                    where[own]
                ]
        part = part + (is_split[part] & is_left)

    in_plane = [
        np.bincount(part * length + index, minlength=num_parts * length).reshape(num_parts, length)
        for index, length in zip(voxel, labels.shape, strict=True)
    ]
    num_voxels = in_plane[0].sum(axis=1)
    sum_probability = np.zeros(num_parts)
    if probabilities is not None:
        sum_probability = np.bincount(part, weights=probabilities.ravel()[where], minlength=num_parts)

    def tally(part: int) -> _Tally:
        number = int(num_voxels[part])
        if number == 0:
            return _Tally(0.0, None, None, None)
        planes = [counts[part] for counts in in_plane]
        centroid = np.array([counts @ np.arange(counts.size) / number for counts in planes])
        # Of equally large cross-sections the one nearest the centroid: distances are too small to outvote a voxel.
        largest = [
            int(np.argmax(counts - 1e-6 * np.abs(np.arange(counts.size) - middle)))
            for counts, middle in zip(planes, centroid, strict=True)
        ]
        x, y, z = (float(value) for value in apply_affine(series.affine, centroid))
        return _Tally(
            volume_ml=number * series.voxel_volume_ml,
            centroid_mm=(x, y, z),
            slice_index=(largest[0], largest[1], largest[2]),
            mean_probability=None if probabilities is None else float(sum_probability[part] / number),
        )

    return [(tally(part), tally(part + 1)) for part in range(0, num_parts, 2)]


def _pieces(
    labels: np.ndarray, series: Series, structure: Structure, midline: np.ndarray | None
) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """The pieces to the right and to the left of the midline; all of them in the first when it is not to be split."""
    found = pieces_of(labels == structure.value, series.affine, least_ml=structure.min_ml)
    sides: tuple[list[Piece], list[Piece]] = ([], [])
    for number, (volume_ml, centre) in enumerate(zip(found.volumes_ml, found.centroids_mm, strict=True), start=1):
        voxel = apply_affine(np.linalg.inv(series.affine), centre).round().astype(int)
        i, j, k = (int(n) for n in voxel.clip(0, np.array(series.shape) - 1))
        is_left = midline is not None and float(midline @ (*centre, 1.0)) <= ON_PLANE_MM
        sides[1 if is_left else 0].append(
            Piece(number=number, volume_ml=volume_ml, centroid_mm=centre, slice_index=(i, j, k))
        )
    return tuple(sides[0]), tuple(sides[1])


def _number_of(pieces: Sequence[Piece]) -> list[Measurement]:
    method = "connected pieces, 26 neighbours"
    counted = [Measurement(name="number", value=float(len(pieces)), unit="1", method=method)]
    if pieces:
        largest = max(piece.volume_ml for piece in pieces)
        counted.append(Measurement(name="largest", value=largest, unit="ml", method=method))
    return counted


def _asymmetry(structure: Structure, sides: Sequence[_Tally]) -> list[Measurement]:
    """Of a structure present on both sides, in percent of the mean; positive when the right is larger."""
    volumes = [tally.volume_ml for tally in sides]
    if len(volumes) < 2 or min(volumes) <= 0 or min(volumes) < structure.min_ml:
        return []
    right, left = volumes
    value = 100 * (right - left) / ((right + left) / 2)
    return [Measurement(name="asymmetry", value=value, unit="%", method="(right - left) / mean of both volumes")]
