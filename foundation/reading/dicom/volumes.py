"""From planes to volumes: which belong together, which are complete, which are set aside and why.

A series may hold several volumes: echoes, phases, orientations, time points. Each gets a label that a person can choose it by:
'5' where a series is one volume, otherwise '8.e1', '8.e2.phase', '4.t3'. Nothing is averaged or picked silently.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foundation.reading.dicom.contrast import LOCALISER, Recognised, recognise
from foundation.reading.dicom.headers import SeriesFacts, Slice

SAME_DIRECTION = 1e-3  # direction cosines of one stack differ by rounding only
SAME_PLACE_MM = 0.01
LEAST_SLICES = 3
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from DICOM's axes to ours and back
EVEN = 0.02  # of the slice distance: what positions rounded to 0.01 mm leave
MAPS = ("FA", "TENSOR", "COLFA", "TTP", "CBF", "CBV", "MTT", "T1 MAP", "T2 MAP", "TRACEW_FA", "EXP")
OTHERS = ("CT", "PT", "NM", "US", "CR", "DX", "XA", "SR", "PR", "KO", "OT", "SEG", "RTSTRUCT", "DOC", "REG")
REFORMATTED = ("PROJECTION IMAGE", "MIP", "MPR", "MINIP", "REFORMATTED", "CSA MPR", "CSA 3D EDITOR")


@dataclass(frozen=True)
class Volume:
    """A stack of planes in order along its normal, or one mosaic file. `aside` and `broken` say why it is not to be read."""

    label: str
    what: str  # in a person's words, where a series has several: 'echo time 4.6 ms, phase'
    facts: SeriesFacts
    slices: tuple[Slice, ...]
    recognised: Recognised
    aside: str | None = None
    broken: str | None = None
    notes: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()  # of the label, after the series

    @property
    def files(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(plane.file for plane in self.slices))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, planes; of a mosaic its tiles' sheet."""
        return self.slices[0].columns, self.slices[0].rows, len(self.slices)

    @property
    def spacing_mm(self) -> tuple[float, ...] | None:
        affine = self.affine
        return None if affine is None else tuple(float(n) for n in np.linalg.norm(affine[:3, :3], axis=0))

    @property
    def holes(self) -> int:
        """How many instance numbers are missing among those that are there; 0 where the numbering tells nothing."""
        numbers = {plane.instance for plane in self.slices}
        if len(numbers) < len(self.slices) or len(self.slices) < LEAST_SLICES:
            return 0
        holes = max(numbers) - min(numbers) + 1 - len(numbers)
        return holes if holes <= max(2, len(numbers) // 10) else 0  # more, and the numbers count echoes or times too

    @property
    def affine(self) -> np.ndarray | None:
        """From (column, row, plane) to patient RAS+ mm as the headers say; None where they do not or it is a mosaic."""
        return None if self.facts.mosaic or not self.slices else affine_of(self.slices)


def affine_of(planes: Sequence[Slice]) -> np.ndarray | None:
    """From (column, row, plane) to patient RAS+ mm; None where a header does not say, or of less than two planes."""
    first, last = planes[0], planes[-1]
    if not (first.position and last.position and first.orientation and first.spacing_mm) or len(planes) < 2:
        return None
    affine = affine_of_plane(first)
    affine[:3, 2] = LPS[:3, :3] @ (np.subtract(last.position, first.position) / (len(planes) - 1))
    return affine


def affine_of_plane(plane: Slice) -> np.ndarray:
    """From (column, row, nothing) to patient RAS+ mm."""
    assert plane.position and plane.orientation and plane.spacing_mm
    affine = np.eye(4)
    affine[:3, 0] = (
        np.array(plane.orientation[:3]) * plane.spacing_mm[1]
    )  # along a row columns change: the second value
    affine[:3, 1] = np.array(plane.orientation[3:]) * plane.spacing_mm[0]
    affine[:3, 2] = 0
    affine[:3, 3] = plane.position
    return LPS @ affine


def volumes_of(found: Mapping[str, SeriesFacts], slices: Mapping[str, Sequence[Slice]]) -> list[Volume]:
    """All volumes of one study, series in the order of their numbers."""
    order = sorted(found, key=lambda uid: (found[uid].number is None, found[uid].number or 0, uid))
    return [volume for uid, label in _labels(found, order) for volume in _of_series(label, found[uid], slices[uid])]


def _labels(found: Mapping[str, SeriesFacts], order: Sequence[str]) -> Iterator[tuple[str, str]]:
    """A short name for each series: its number, with a letter where several have the same or none."""
    numbers = [found[uid].number for uid in order]
    for place, uid in enumerate(order):
        number = found[uid].number
        base = "" if number is None else str(number)
        rank = numbers[:place].count(number)
        alone = numbers.count(number) == 1 and number is not None
        yield uid, base if alone else f"{base}{chr(97 + rank) if rank < 26 else f'x{rank}'}"


def _of_series(label: str, facts: SeriesFacts, planes: Sequence[Slice]) -> list[Volume]:
    aside = _series_aside(facts)
    if not planes:
        unknown = Recognised("unknown", "nothing known")
        return [Volume(label, "", facts, (), unknown, aside=aside or "it has no image")]
    stacks = _stacks(planes)
    several = {kind: len({key[kind] for key in stacks}) > 1 for kind in range(3)}
    volumes: list[Volume] = []
    for key, stack in stacks.items():
        echo, component, geometry = key
        parts, words = [], []
        if several[0]:
            rank = sorted({one[0] for one in stacks}).index(echo) + 1
            parts.append(f"e{rank}")
            words.append(f"echo time {echo:g} ms" if echo >= 0 else "no echo time")
        if several[1]:
            parts.append(component)
            words.append(component)
        if several[2]:
            parts.append(f"o{geometry + 1}")
            words.append(f"orientation {geometry + 1}")
        volumes += _times(label, parts, words, facts, stack, aside)
    return volumes


def _stacks(planes: Sequence[Slice]) -> dict[tuple[float, str, int], list[Slice]]:
    """By echo time, component, and geometry (matrix, spacing, direction)."""
    geometries: list[Slice] = []
    stacks: dict[tuple[float, str, int], list[Slice]] = defaultdict(list)
    for plane in planes:
        place = next((i for i, one in enumerate(geometries) if _same_geometry(one, plane)), len(geometries))
        if place == len(geometries):
            geometries.append(plane)
        echo = round(plane.echo_time_ms, 2) if plane.echo_time_ms is not None else -1.0
        stacks[(echo, plane.component, place)].append(plane)
    return dict(sorted(stacks.items()))


def _same_geometry(a: Slice, b: Slice) -> bool:
    if (a.rows, a.columns) != (b.rows, b.columns) or (a.orientation is None) != (b.orientation is None):
        return False
    if a.orientation and b.orientation and max(map(_gap, a.orientation, b.orientation)) > SAME_DIRECTION:
        return False
    return not (a.spacing_mm and b.spacing_mm) or max(map(_gap, a.spacing_mm, b.spacing_mm)) < 1e-4


def _gap(a: float, b: float) -> float:
    return abs(a - b)


def _times(
    label: str, parts: list[str], words: list[str], facts: SeriesFacts, stack: Sequence[Slice], aside: str | None
) -> Iterator[Volume]:
    """The volumes of a stack, one per time point or diffusion direction."""
    broken = None
    if facts.mosaic:
        times = [[plane] for plane in sorted(stack, key=lambda one: (one.instance, one.file))]
    else:
        times, broken = _in_time(stack)
    if len(times[0]) < LEAST_SLICES and not facts.mosaic and aside is None:
        aside = f"it has {len(times[0])} slice{'s' * (len(times[0]) > 1)} in one direction, too few for a volume"
    for rank, planes in enumerate(times, start=1):
        b_value = planes[0].b_value
        own = [*parts, f"t{rank}"] if len(times) > 1 else list(parts)
        say = list(words)
        if len(times) > 1:
            say.append(f"time point {rank}" + ("" if b_value is None else f", b {b_value:g} s/mm²"))
        component = planes[0].component
        not_magnitude = None if component == "magnitude" else f"it is a {component} image"
        yield Volume(
            label=".".join([label, *own]),
            what=", ".join(say),
            facts=facts,
            slices=tuple(planes),
            recognised=recognise(facts, b_value),
            aside=aside or not_magnitude,
            broken=broken,
            parts=tuple(own),
        )


def _in_time(planes: Sequence[Slice]) -> tuple[list[list[Slice]], str | None]:
    """Planes sorted along the normal, one list per time point; and what is wrong with them, if anything is."""
    placed = [plane for plane in planes if plane.position is not None and plane.orientation is not None]
    if len(placed) < len(planes) or any(plane.spacing_mm is None or min(plane.spacing_mm) <= 0 for plane in planes):
        return [list(planes)], "its headers do not say where the slices are"
    row, column = (np.array(planes[0].orientation).reshape(2, 3)[i] for i in (0, 1))
    if abs(np.linalg.norm(row) - 1) > 0.01 or abs(np.linalg.norm(column) - 1) > 0.01 or abs(row @ column) > 0.01:
        return [list(planes)], "its headers give no two directions at right angles"
    normal = np.cross(row, column)
    normal = normal / np.linalg.norm(normal)
    positions = np.array([plane.position for plane in planes])
    along = positions @ normal
    order = sorted(range(len(planes)), key=lambda i: (along[i], planes[i].instance, planes[i].file, planes[i].frame))
    heights: list[float] = []
    at: list[list[int]] = []
    for i in order:
        if heights and along[i] - heights[-1] < SAME_PLACE_MM:
            at[-1].append(i)
        else:
            heights.append(float(along[i]))
            at.append([i])
    for members in at:
        members.sort(key=lambda i: (planes[i].instance, planes[i].file, planes[i].frame))
    count = max(len(members) for members in at)
    times = [[planes[members[t]] for members in at if t < len(members)] for t in range(count)]
    short = [height for height, members in zip(heights, at, strict=True) if len(members) < count]
    if short:
        where = _places(short)
        return times, f"of {count} images at each place some are missing at {where} mm along its normal"
    return times, _uneven(np.array(heights), positions, normal)


def _uneven(heights: np.ndarray, positions: np.ndarray, normal: np.ndarray) -> str | None:
    """Why planes at these heights in mm are no regular stack; None where they are one."""
    if len(heights) < LEAST_SLICES:
        return None
    steps = np.diff(heights)
    step = float(np.median(steps))
    sideways = positions - np.outer(positions @ normal, normal)
    if np.ptp(sideways, axis=0).max() > max(0.05, EVEN * step):
        return "its slices are shifted against each other (a tilted gantry, or several stacks in one)"
    multiples = steps / step
    if np.abs(multiples - 1).max() <= EVEN:
        return None
    whole = np.rint(multiples)
    if (np.abs(multiples - whole) <= EVEN * whole).all() and whole.min() >= 1:
        gaps = [height + step * k for height, n in zip(heights, whole, strict=False) for k in range(1, int(n))]
        return (
            f"{len(gaps)} slice{'s are' if len(gaps) > 1 else ' is'} missing between {len(heights)} that are there: "
            f"at {_places(gaps)} mm along its normal, where one is expected every {step:.4g} mm"
        )
    return f"its slices are {steps.min():.4g} to {steps.max():.4g} mm apart, not evenly"


def _places(heights: Sequence[float], most: int = 8) -> str:
    shown = ", ".join(f"{height:.1f}" for height in heights[:most])
    return f"{shown} and {len(heights) - most} more places" if len(heights) > most else shown


def _series_aside(facts: SeriesFacts) -> str | None:
    """Why a series is not for reading by itself; a person may still choose it where it is an image with a place."""
    kinds = {one.upper() for one in facts.image_type}
    if facts.modality not in ("MR", ""):
        return f"its modality is {facts.modality if facts.modality in OTHERS else 'another'}, not MR"
    if facts.kind == "none":
        return f"it is no image ({facts.sop_class or 'of no known kind'})"
    if "Secondary Capture" in facts.sop_class:
        return "it is a secondary capture, a picture of a screen or page"
    if facts.is_colour:
        return "it is in colour, so a derived map or a picture"
    if "LOCALIZER" in kinds or LOCALISER.search(facts.words.replace("_", " ")):
        return "it is a localiser"
    for name in MAPS:
        if name in kinds:
            return f"it is a derived map ({name})"
    if kinds & set(REFORMATTED) or {"DERIVED", "SECONDARY"} <= kinds:
        return "it was derived from other images"
    return None
