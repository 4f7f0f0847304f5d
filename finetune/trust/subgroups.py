"""The same figure for parts of the cases: by sex, age, vendor, field strength, or any other column of the manifest's targets.

Groups of a few cases differ by chance alone, and of many columns one will look remarkable; the intervals say how little is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from finetune.samples import LabelledStudy
from finetune.trust.intervals import Estimate, resampled, resampled_groups
from foundation.config import Config
from foundation.errors import InputError, did_you_mean
from foundation.reading.collection import Row

MOST_VALUES = 6  # a column with more different numbers is cut into bands of equal size
NUM_BANDS = 3
ACQUIRED = ("vendor", "field_strength_t", "contrast")  # what the files themselves say, of the reference series
BY_DEFAULT = ("sex", "age", "age_years", "vendor", "field_strength_t", "site", "scanner")


class Group(Config):
    """`minus_rest` is the group's figure minus that of all other cases."""

    column: str
    value: str
    figure: Estimate
    minus_rest: Estimate


class SubgroupReport(Config):
    """`figure` is the name of what is compared, `overall` its value over all cases."""

    figure: str
    overall: Estimate
    groups: tuple[Group, ...]

    def lines(self) -> list[str]:
        names = [f"{one.column} {one.value}" for one in self.groups]
        width = max(map(len, names))
        return [
            f"{self.figure} (of all {self.overall}), and minus that of the rest",
            *(
                f"{name:{width}s}  n = {one.figure.num:<4d} {one.figure}   {one.minus_rest}"
                for name, one in zip(names, self.groups, strict=True)
            ),
        ]


def known_columns(rows: Sequence[Row]) -> set[str]:
    return {column for row in rows for column in (*row.targets, *ACQUIRED)}


def check_columns(rows: Sequence[Row], columns: Sequence[str] | None) -> None:
    """Before anything takes long: each column is one of the manifest's targets, or one that files tell."""
    known = known_columns(rows)
    for column in columns or ():
        if column not in known:
            remedy = did_you_mean(column, known)
            raise InputError("subgroups go by a column of the manifest's targets", got=repr(column), remedy=remedy)


def measure_subgroups(
    studies: Sequence[LabelledStudy],
    cases: Sequence[dict[str, float]],
    summarise: Callable[[Sequence[dict[str, float]]], dict[str, float]],
    columns: Sequence[str] | None,
) -> SubgroupReport | str:
    """The main figure, the first that `summarise` gives, of every group; `columns` None takes the usual ones that are known."""
    known = known_columns([study.row for study in studies])
    main = next(iter(summarise(cases)))
    groups: list[Group] = []
    for column in columns or [name for name in BY_DEFAULT if name in known]:
        values = group_names([_value(study, column) for study in studies])
        found = sorted({value for value in values if value is not None}, key=_natural)
        if len(found) > 1 or columns:
            groups += [_group(column, one, values, cases, lambda part: summarise(part)[main]) for one in found]
    if not groups:
        return f"the manifest's targets and the files hold none of {', '.join(BY_DEFAULT)} in more than one value"
    overall = resampled(cases, lambda part: summarise(part)[main])
    return SubgroupReport(figure=main, overall=overall, groups=tuple(groups))


def _group(
    column: str,
    value: str,
    values: Sequence[str | None],
    cases: Sequence[dict[str, float]],
    figure: Callable[[Sequence[dict[str, float]]], float],
) -> Group:
    inside = [case for case, one in zip(cases, values, strict=True) if one == value]
    rest = [case for case, one in zip(cases, values, strict=True) if one != value]
    minus_rest = resampled_groups(inside, rest, lambda inside, rest: figure(inside) - figure(rest))
    return Group(column=column, value=value, figure=resampled(inside, figure), minus_rest=minus_rest)


def _value(study: LabelledStudy, column: str) -> object:
    """What the manifest says, or else what the reference series' file says."""
    if column in study.targets:
        return study.targets[column]
    reference = study.prepared.study.reference
    if column == "contrast":
        return reference.contrast
    return getattr(reference.acquisition, column) if column in ACQUIRED else None


def group_names(values: Sequence[object]) -> list[str | None]:
    """Each case's group: its value as text, or its band of an equal number of cases where there are many different numbers.

    What is unknown, or no single value, is in no group.
    """
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(set(numbers)) <= MOST_VALUES:
        return [str(value) if isinstance(value, int | float | str) else None for value in values]
    edges = np.unique(np.quantile(np.asarray(numbers, dtype=float), np.linspace(0, 1, NUM_BANDS + 1)))

    def band(value: object) -> str | None:
        if not isinstance(value, int | float):
            return None
        place = int(np.clip(np.searchsorted(edges, value, side="right") - 1, 0, len(edges) - 2))
        return f"{edges[place]:.4g} to {edges[place + 1]:.4g}"

    return [band(value) for value in values]


def _natural(name: str) -> tuple[float, str]:
    """Bands and numbers by size, everything else by name."""
    try:
        return float(name.split(" to ")[0]), name
    except ValueError:
        return float("inf"), name
