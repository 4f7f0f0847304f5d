"""Every row that a prognosis has to stand beside, on the same patients, in cross-validation: fitted, measured, compared.

Each fold is fitted under a seed of its own, on the others, down to vocabulary, bins and calibration; every patient is read once per
repetition by models that had not seen them. Concordance and AUC compare patients of one fold, because risks of two folds come from
two models (pooled, a model that knows nothing would score less than one half). Intervals are bootstraps over patients.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int

from finetune.evaluate import RESAMPLES, Interval
from finetune.prognosis import fit as fitting
from finetune.prognosis import linear
from finetune.prognosis.fit import Sees, fit, parts_of
from finetune.prognosis.patients import Patients, View
from foundation import hazard, survival
from foundation.cohort.outcome import FRAILTY, SCALE_DAYS, SHAPE
from foundation.errors import InputError
from foundation.files import write_aside
from foundation.progress import progress
from foundation.survival import Figure, FollowUp, NotEstimable
from foundation.training import fold as fold_seed
from heads import _record, prognosis
from heads.prognosis import Config as PrognosisHeadConfig


@dataclass(frozen=True)
class Row:
    """What a row is called and what is different about it. `withheld` is kept from it when it reads, not when it learns."""

    title: str
    sees: Sees
    is_deep: bool = False
    shuffled: bool = False
    permuted: bool = False
    withheld: str = ""
    reads_as: str | None = None  # of which fitted row this is another reading


ROWS = (
    Row("Kaplan-Meier only", "nothing"),
    Row("age and sex", "person"),
    Row("record only, linear", "record"),
    Row("record only, deep", "record", is_deep=True),
    Row("image only, linear", "image"),
    Row("image only, deep", "image", is_deep=True),
    Row("both, linear", "both"),
    Row("both, deep", "both", is_deep=True),
    Row("both, linear, records shuffled", "both", shuffled=True),
    Row("both, deep, records shuffled", "both", is_deep=True, shuffled=True),
    Row("both, linear, labels permuted", "both", permuted=True),
    Row("both, deep, labels permuted", "both", is_deep=True, permuted=True),
    Row("both, deep, read without the record", "both", is_deep=True, withheld="record", reads_as="both, deep"),
    Row("both, deep, read without the images", "both", is_deep=True, withheld="image", reads_as="both, deep"),
    Row("the law's own columns, fitted", "law"),
)
COMPARED = (
    ("both, linear", "image only, linear"),
    ("both, linear", "record only, linear"),
    ("both, linear", "both, linear, records shuffled"),
    ("both, linear, records shuffled", "image only, linear"),
    ("both, deep", "image only, deep"),
    ("both, deep", "record only, deep"),
    ("both, deep", "both, deep, records shuffled"),
    ("both, deep, records shuffled", "image only, deep"),
    ("both, deep", "both, linear"),
    ("both, linear", "oracle: image and record"),
    ("both, deep", "oracle: image and record"),
    ("both, linear", "the law's own columns, fitted"),
    ("the law's own columns, fitted", "oracle: image and record"),
)


@dataclass
class Said:
    """What a row said of every patient in one repetition: survival at `times` (mean over members, and each member's), and a risk
    that orders them: the share of the follow-up's time that is lost. `incidence` is each cause's, where there are several."""

    times: Float[np.ndarray, " times"]
    survival: Float[np.ndarray, "patients times"]
    lowest: Float[np.ndarray, "patients times"]
    highest: Float[np.ndarray, "patients times"]
    incidence: Float[np.ndarray, "causes patients times"]

    @classmethod
    def nothing(cls, num: int, times: np.ndarray, num_causes: int) -> Said:
        survival, lowest, highest = (np.full((num, len(times)), np.nan) for _ in range(3))
        return cls(times, survival, lowest, highest, np.full((num_causes, num, len(times)), np.nan))

    @classmethod
    def true(cls, times: np.ndarray, curve: np.ndarray) -> Said:
        """An oracle, which knows of no causes."""
        return cls(times, curve, curve, curve, np.zeros((0, *curve.shape)))

    def of_cause(self, cause: int) -> Said:
        """What is said of one cause alone: "survival" is the chance of not having it, whatever else."""
        free = 1 - self.incidence[cause]
        return Said(self.times, free, free, free, self.incidence[:0])

    @property
    def risk(self) -> Float[np.ndarray, " patients"]:
        lost = 1 - np.trapezoid(self.survival, self.times, axis=1) / (self.times[-1] - self.times[0])
        return np.round(lost, 9)  # what is the same for all must not differ in the last bit

    def at(self, day: float) -> Float[np.ndarray, " patients"]:
        """The chance of the event by then."""
        return 1 - self.along(np.array([day]))[:, 0]

    def along(self, days: Float[np.ndarray, " days"]) -> Float[np.ndarray, "patients days"]:
        return np.stack([np.interp(days, self.times, one) for one in self.survival])

    def at_own(self, days: Float[np.ndarray, " patients"]) -> Float[np.ndarray, " patients"]:
        return np.array([np.interp(day, self.times, one) for day, one in zip(days, self.survival, strict=True)])


@dataclass(frozen=True)
class Scored:
    """A row's figures with their intervals; `why` says of those that could not be estimated why not."""

    title: str
    figures: dict[str, Interval]
    d_calibration_p: float
    by_fold: tuple[float, ...]
    why: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """The whole of it. `said` holds every row's first repetition, for pictures; `differences` are of concordance, paired by
    patient."""

    num_patients: int
    num_events: int
    horizon_days: float
    horizons_days: tuple[float, ...]
    folds: int
    repeats: int
    seed: int
    causes: tuple[str, ...]
    rows: tuple[Scored, ...]
    differences: dict[str, Interval]
    said: dict[str, Said]
    seen: FollowUp
    notes: tuple[str, ...]


def run_trial(
    patients: Patients,
    config: PrognosisHeadConfig,
    *,
    rows: Sequence[Row] = ROWS,
    folds: int = 5,
    repeats: int = 1,
    seed: int = 0,
    kept: Path | None = None,
) -> Trial:
    """Fit and measure every row; under `kept` what each said of each fold is written down, and is not fitted again."""
    seen = patients.seen
    rows = [row for row in rows if row.sees != "law" or patients.law is not None]
    num_events = int(seen.is_observed.sum())
    if num_events < 2 * folds:
        got = f"{num_events} in {len(seen)} patients for {folds} folds"
        raise InputError("every fold has events", got=got, remedy="Use fewer folds, or more patients.")
    horizon = float(np.quantile(seen.time, 0.9))
    times = np.linspace(0, horizon, 201)
    cells = None if kept is None else kept / _digest(patients, config, folds, seed)
    said: dict[str, list[Said]] = {}
    groups: list[Int[np.ndarray, " patients"]] = []
    with progress(total=repeats * folds * len(rows), label="fit", unit="row") as bar:
        for repeat in range(repeats):
            parts = parts_of(seen.is_observed, folds, np.random.default_rng(fold_seed(seed, 91, repeat)))
            groups.append(parts)
            for row in rows:
                said.setdefault(row.title, []).append(Said.nothing(len(seen), times, len(config.causes)))
            for part in range(folds):
                train, test = np.flatnonzero(parts != part), np.flatnonzero(parts == part)
                view = cache(partial(patients.view, train, config))
                for row in rows:
                    if row.reads_as is not None:
                        continue
                    readings = [row, *(one for one in rows if one.reads_as == row.title)]
                    into = [said[one.title][-1] for one in readings]
                    cell = None if cells is None else cells / f"{_stem(readings)}-{repeat}-{part}.npz"
                    if cell is None or not cell.is_file():
                        one = fold_seed(seed, 92, repeat, part)
                        _read(readings, view(), train, test, seen, config, one, into)
                        if cell is not None:
                            _write(cell, into, test)
                    else:
                        _recall(cell, into, test)
                    bar.update(len(readings))
    if patients.oracle is not None:
        for title, hazards in _oracles(patients.oracle).items():
            curve = _true_survival(hazards, times)
            said[title] = [Said.true(times, curve)] * repeats
    return _measured(patients, said, groups, config, horizon, folds, repeats, seed)


def _read(
    readings: Sequence[Row],
    view: View,
    train: np.ndarray,
    test: np.ndarray,
    seen: FollowUp,
    config: PrognosisHeadConfig,
    seed: int,
    into: Sequence[Said],
) -> None:
    """Fit the first row on the training patients, and put down what it and the others that read as it say of the others."""
    row, generator = readings[0], np.random.default_rng(fold_seed(seed, 93))
    if row.shuffled:  # among the training and among the other patients, so that no record changes sides
        order = np.arange(len(seen))
        order[train], order[test] = generator.permutation(train), generator.permutation(test)
        view = view.with_records_of(order)
    known = seen.take(generator.permutation(train) if row.permuted else train)
    found, say = fit(row.sees, row.is_deep, view, train, known, config, seed=seed)
    for one, place in zip(readings, into, strict=True):
        logits = say(view.take(test), one.withheld) if one.withheld else found.logits[torch.from_numpy(test)]
        members = found.law.survival(logits, place.times).numpy()
        place.survival[test] = members.mean(axis=1)
        place.lowest[test], place.highest[test] = members.min(axis=1), members.max(axis=1)
        if config.causes:
            by_cause = found.law.incidence(logits, place.times).mean(dim=1).numpy()
            place.incidence[:, test] = by_cause.transpose(1, 0, 2)


# ------------------------------------------------------------------------------------------------ what was said, kept

CURVES = ("survival", "lowest", "highest")


def _digest(patients: Patients, config: PrognosisHeadConfig, folds: int, seed: int) -> str:
    """Of all that a cell depends on: the patients, the head, the cut, and the code that fits."""
    everybody = patients.view(np.arange(len(patients)), config)
    digest = hashlib.sha256(json.dumps([config.model_dump(), folds, seed, everybody.image_kinds], default=str).encode())
    seen = patients.seen
    for array in (seen.time, seen.is_observed, seen.entry, seen.after, seen.cause):
        digest.update(np.ascontiguousarray(array).tobytes())
    for array in (everybody.person, everybody.record, everybody.image):
        digest.update(np.ascontiguousarray(array).tobytes())
    for sequence in everybody.sequences or ():
        digest.update(b"" if sequence is None else sequence.tobytes())
    for module in (fitting, linear, hazard, _record, prognosis):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:24]


def _stem(readings: Sequence[Row]) -> str:
    return hashlib.sha256(repr(readings).encode()).hexdigest()[:12]


def _write(cell: Path, into: Sequence[Said], test: np.ndarray) -> None:
    arrays = {f"{place}-{name}": getattr(one, name)[test] for place, one in enumerate(into) for name in CURVES}
    arrays |= {f"{place}-incidence": one.incidence[:, test] for place, one in enumerate(into)}
    with write_aside(cell) as aside:
        np.savez(aside, **arrays)


def _recall(cell: Path, into: Sequence[Said], test: np.ndarray) -> None:
    with np.load(cell) as arrays:
        for place, one in enumerate(into):
            for name in CURVES:
                getattr(one, name)[test] = arrays[f"{place}-{name}"]
            one.incidence[:, test] = arrays[f"{place}-incidence"]


# ------------------------------------------------------------------------------------------------ oracles


def _oracles(parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "oracle: image": parts["image"] + parts["record"].mean(),
        "oracle: record": parts["record"] + parts["image"].mean(),
        "oracle: image and record": parts["image"] + parts["record"],
    }


def _true_survival(log_hazards: np.ndarray, times: np.ndarray) -> Float[np.ndarray, "patients times"]:
    """By the cohort's own law, averaged over the frailty that nobody sees."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(15)
    passed = (times / SCALE_DAYS) ** SHAPE
    rate = np.exp(log_hazards[:, None, None] + FRAILTY * nodes)
    return (np.exp(-passed[None, :, None] * rate) * weights).sum(axis=-1) / weights.sum()


# ------------------------------------------------------------------------------------------------ measuring


def _measured(
    patients: Patients,
    said: Mapping[str, Sequence[Said]],
    groups: Sequence[np.ndarray],
    config: PrognosisHeadConfig,
    horizon: float,
    folds: int,
    repeats: int,
    seed: int,
) -> Trial:
    seen = patients.seen.until(horizon)
    counts = np.concatenate(
        [np.ones((1, len(seen))), survival.resamples(len(seen), RESAMPLES, seed=fold_seed(seed, 94))]
    )
    horizons = tuple(day for day in config.horizons_days if day <= horizon)
    scored, compared = [], {}
    for title, repetitions in said.items():
        figures: dict[str, list[Figure]] = {}
        for repeat, (one, group) in enumerate(zip(repetitions, groups, strict=True)):
            null = said[ROWS[0].title][repeat]
            found = _figures(one, null, seen, group, horizons)
            for cause, name in enumerate(config.causes if len(one.incidence) else ()):
                of_cause = _figures(one.of_cause(cause), null.of_cause(cause), seen, group, horizons, cause)
                found |= {f"{figure} of {name}": value for figure, value in of_cause.items()}
            for name, figure in found.items():
                figures.setdefault(name, []).append(figure)
        values = {name: np.mean([one.of(counts) for one in each], axis=0) for name, each in figures.items()}
        compared[title] = {name: value for name, value in values.items() if name.startswith("concordance")}
        tested = [_d_calibration(one, seen) for one in repetitions]
        scored.append(
            Scored(
                title,
                {name: _interval(value) for name, value in values.items()},
                float(np.median(tested)),
                _by_fold(repetitions[0], seen, groups[0]),
                {name: each[0].why for name, each in figures.items() if isinstance(each[0], NotEstimable)},
            )
        )
    differences = {
        f"{one} - {other}{name.removeprefix('concordance')}": _interval(value - compared[other][name])
        for one, other in COMPARED
        if one in compared and other in compared
        for name, value in compared[one].items()
        if name in compared[other]
    }
    return Trial(
        len(seen), int(seen.is_observed.sum()), horizon, horizons, folds, repeats, seed, config.causes, tuple(scored),
        differences, {title: each[0] for title, each in said.items()}, patients.seen, patients.notes,
    )  # fmt: skip


def _figures(
    one: Said, null: Said, seen: FollowUp, group: np.ndarray, horizons: Sequence[float], cause: int | None = None
) -> dict[str, Figure]:
    """`null` is Kaplan-Meier's, or Aalen and Johansen's of a cause, fitted on the same training patients, which an error has to be
    smaller than."""
    grid = survival.brier_times(seen, float(one.times[-1]), cause=cause)
    error, reference = (survival.integrated_brier(each.along(grid), seen, grid, cause) for each in (one, null))
    skill: Figure = error
    if isinstance(error, survival.Mean) and isinstance(reference, survival.Mean):
        skill = survival.Skill(error, reference)
    figures: dict[str, Figure] = {"concordance": survival.harrell(one.risk, seen, group, cause)}
    if cause is None:
        figures["Uno's C"] = survival.uno(one.risk, seen, horizons[-1] if horizons else float(one.times[-1]), group)
    for day in horizons:
        figures[f"AUC at {day:g} d"] = survival.auc_at(one.at(day), seen, day, group, cause)
    return figures | {"integrated Brier": error, "Brier skill": skill}


def _d_calibration(one: Said, seen: FollowUp) -> float:
    return survival.d_calibration(one.at_own(seen.time), seen.is_observed)[1]


def _by_fold(one: Said, seen: FollowUp, group: np.ndarray) -> tuple[float, ...]:
    found = []
    for part in range(int(group.max()) + 1):
        rows = np.flatnonzero(group == part)
        found.append(float(survival.harrell(one.risk[rows], seen.take(rows)).of(np.ones((1, len(rows))))[0]))
    return tuple(found)


def _interval(values: Float[np.ndarray, " resamples"]) -> Interval:
    """The first value is that of the patients as they are."""
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
    return Interval(float(values[0]), float(low), float(high))
