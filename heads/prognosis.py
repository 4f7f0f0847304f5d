"""Prognosis: when something will happen to the patient, as a hazard in each of a few bins of time (`foundation/hazard.py`).

The bins are those of the training rows, so is the hazard of an average patient; what the network says moves it. Several members,
each with its own pooling and its own reading of the record, are trained together: their mean is the answer, how far they
disagree its band, which knows nothing of what all of them lack. Beyond the follow-up of the training rows nothing is said.

Of events that exclude each other (`causes`) each has hazards of its own in the same bins, and a risk of its own: the chance that it
comes first. One cause is the same model without the word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from scipy.optimize import minimize
from torch import Tensor, nn

from foundation import hazard
from foundation.encoder import EncoderConfig, Features
from foundation.errors import InputError
from foundation.findings import Finding, Measurement, finding_id
from foundation.hazard import Interval
from foundation.preprocess import PreparedStudy
from foundation.registry import KindConfig
from foundation.survival import FollowUp, brier_scores, harrell, not_estimable
from heads._record import RecordConfig
from heads._study import StudyHead, class_of, number_of, refused
from heads.base import HeadReading, StudyBatch, Target

NOT_ADVICE = "a statistic of patients like this one, not for decisions about treatment"
KNOWN = ("time", "is_observed", "entry", "cause")  # of a patient, as a scored case holds it
STIFFNESS = (
    0.3  # standard deviation that the shift and the logarithm of the slope are expected to have, before any is seen
)


class Config(KindConfig):
    """`time` and `observed` are keys of a row's targets: days to the `event` or to the last sight of the patient, and 1 if it was
    the event. `entry` names the day from which the patient could have been seen to have it, `after` that of the last visit
    without it, where it was found at a visit. Rows without a time are not learnt from.

    "proportional" learns one number per patient, by which all hazards rise together; "free" one for every bin, which takes
    more patients. A risk is said for each of `horizons_days` that lies within the follow-up. Where `causes` are named, `cause` is
    the target that says which of them an observed event was, by name or index, and `event` is the word for any.
    """

    kind: Literal["prognosis"] = "prognosis"
    event: str = "death"
    causes: tuple[str, ...] = ()
    cause: str = "cause"
    time: str = "time_days"
    observed: str = "is_observed"
    entry: str | None = None
    after: str | None = None
    horizons_days: Annotated[tuple[float, ...], Field(min_length=1)] = (365.0, 730.0, 1095.0)
    num_bins: Annotated[int, Field(ge=2)] = 12
    hazards: Literal["proportional", "free"] = "proportional"
    members: Annotated[int, Field(ge=1)] = 3
    dropout: float = 0.1
    record: RecordConfig | None = None

    @field_validator("causes")
    @classmethod
    def _differ(cls, causes: tuple[str, ...]) -> tuple[str, ...]:
        if len(causes) == 1 or len(set(causes)) < len(causes):
            raise ValueError("causes are two or more, each named once; with one there is nothing to tell apart")
        return causes

    @property
    def num_causes(self) -> int:
        return max(1, len(self.causes))


class _Member(StudyHead):
    """One of the others: its own pooling, record and last layer."""


class Head(StudyHead):
    """Logits of the hazards, `(batch, members, logits)`: one for every bin, or for every bin one of each cause after another."""

    def __init__(self, encoder: EncoderConfig, config: Config):
        causes, num_logits = config.num_causes, config.num_bins * config.num_causes
        num = causes if config.hazards == "proportional" else num_logits
        super().__init__(encoder, config, num_outputs=num, dropout=config.dropout)
        self.config = config
        self.others = nn.ModuleList(
            _Member(encoder, config, num_outputs=num, dropout=config.dropout) for _ in range(config.members - 1)
        )
        self.edges: Tensor
        self.baseline: Tensor
        self.shift: Tensor
        self.slope: Tensor
        self.num_patients: Tensor
        self.register_buffer("edges", torch.arange(config.num_bins + 1.0))
        self.register_buffer("baseline", torch.zeros(num_logits))
        of_causes = (causes,) if config.causes else ()
        self.register_buffer("shift", torch.zeros(of_causes))
        self.register_buffer("slope", torch.ones(of_causes))
        self.register_buffer("num_patients", torch.zeros((), dtype=torch.long))

    def meet(self, targets: Sequence[dict[str, Target]]) -> None:
        """The bins, and the hazard of each over all rows."""
        seen, _ = self.follow_up(targets)
        if not seen.is_observed.any():
            raise InputError(
                "a prognosis is learnt from events",
                got=f"none in {len(seen)} rows with targets.{self.config.time}",
                remedy="Name other targets, or follow the patients for longer.",
            )
        self.learn_bins(seen)

    def learn_bins(self, seen: FollowUp) -> None:
        edges = hazard.quantile_edges(seen, self.config.num_bins)
        self.edges.copy_(torch.from_numpy(edges))
        self.baseline.copy_(torch.from_numpy(hazard.baselines(seen, edges, self.config.num_causes).ravel()))
        self.num_patients.fill_(len(seen))

    def follow_up(self, targets: Sequence[dict[str, Target]]) -> tuple[FollowUp, list[int]]:
        """What is known of the rows that know, and which these are."""
        config = self.config
        rows = [row for row, one in enumerate(targets) if number_of(one, config.time) is not None]

        def column(name: str) -> np.ndarray:
            return np.array([number_of(targets[row], name) or 0.0 for row in rows], float)

        seen = FollowUp.of(
            column(config.time),
            column(config.observed) > 0,
            entry=None if config.entry is None else column(config.entry),
            after=None if config.after is None else column(config.after),
            cause=np.array([self._cause_of(targets[row], row) for row in rows], int) if config.causes else None,
        )
        return seen, rows

    def _cause_of(self, targets: dict[str, Target], row: int) -> int:
        """Of an event that was seen; nobody asks it of others."""
        config = self.config
        found = class_of(targets, config.cause, config.causes)
        if found is None and (number_of(targets, config.observed) or 0) > 0:
            remedy = f"Name one of {', '.join(config.causes)}, or leave the row's {config.time} out."
            raise InputError(f"an observed event has targets.{config.cause}", got=f"none in row {row}", remedy=remedy)
        return found or 0

    # -------------------------------------------------------------------------------- what is said

    def forward(self, features: Features, batch: StudyBatch) -> Float[Tensor, "batch members logits"]:
        said = [StudyHead.forward(self, features, batch), *(self.finish(one(features, batch)) for one in self.others)]
        return torch.cat(said, dim=1)

    def finish(self, answer: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch 1 logits"]:
        return self.logits_of(answer)[:, None]

    def logits_of(self, answer: Float[Tensor, "*batch outputs"]) -> Float[Tensor, "*batch logits"]:
        """From what the network says: a number for each cause that moves all its bins, or one for every logit."""
        if self.config.causes:
            bins = self.config.num_bins
            moved = self.shift.repeat(bins) + self.slope.repeat(bins) * self._over_bins(answer)
            return self.baseline + moved
        return self.baseline + self.shift + self.slope * answer

    def _over_bins(self, answer: Float[Tensor, "*batch outputs"]) -> Float[Tensor, "*batch logits"]:
        proportional = self.config.hazards == "proportional"
        return answer.repeat(*[1] * (answer.ndim - 1), self.config.num_bins) if proportional else answer

    def by_cause(self, logits: Float[Tensor, "*batch logits"]) -> Float[Tensor, "*batch bins causes"]:
        return logits.unflatten(-1, (self.config.num_bins, self.config.num_causes))

    def of_any(self, logits: Float[Tensor, "*batch logits"]) -> Float[Tensor, "*batch bins"]:
        return hazard.all_causes(self.by_cause(logits))

    def loss(self, output: Tensor, batch: StudyBatch) -> dict[str, Tensor]:
        """Minus the log likelihood of each member over the rows that know; 0 where a batch knows none."""
        seen, rows = self.follow_up(batch.targets)
        output = output.float()
        if not rows:
            return {"loss": 0 * output.sum()}
        return {"loss": self.unlikelihood(output[rows], Interval.of(seen, self.edges))}

    def unlikelihood(self, logits: Float[Tensor, "patients members logits"], known: Interval) -> Float[Tensor, ""]:
        """Minus the mean log likelihood over patients and members, each of which learns by itself."""
        return -torch.stack([self.log_likelihood(one, known) for one in logits.unbind(dim=1)]).mean()

    def log_likelihood(self, logits: Float[Tensor, "patients logits"], known: Interval) -> Float[Tensor, " patients"]:
        edges = self.edges.to(logits)
        if not self.config.causes:
            return hazard.log_likelihood(logits, edges, known)
        return hazard.log_likelihood_of_causes(self.by_cause(logits), edges, known)

    def survival(
        self, output: Float[Tensor, "batch members logits"], times_days: Sequence[float] | np.ndarray
    ) -> Float[Tensor, "batch members times"]:
        """The chance of being free of the event, of whatever cause, at each time, by each member."""
        logits, times = self._ready(output, times_days)
        return hazard.survival(self.of_any(logits), self.edges.cpu(), times)

    def incidence(
        self, output: Float[Tensor, "batch members logits"], times_days: Sequence[float] | np.ndarray
    ) -> Float[Tensor, "batch members causes times"]:
        """The chance that each cause came first by each time, by each member."""
        logits, times = self._ready(output, times_days)
        return hazard.incidence(self.by_cause(logits), self.edges.cpu(), times)

    def _ready(self, output: Tensor, times_days: Sequence[float] | np.ndarray) -> tuple[Tensor, Tensor]:
        edges = self.edges.cpu()
        return output.detach().to(edges).cpu(), torch.as_tensor(np.asarray(times_days)).to(edges)

    @property
    def horizon_days(self) -> float:
        """How far the training rows were followed; nothing is said beyond."""
        return float(self.edges[-1])

    def settle(self, outputs: Sequence[Tensor], targets: Sequence[dict[str, Target]]) -> None:
        """Shift and slope of the network's part, fitted on studies that were not learnt from: with few of them, hardly moved.

        Penalised likelihood: both are taken to be about 0 and 1, give or take `STIFFNESS`.
        """
        seen, rows = self.follow_up(targets)
        if not rows or not seen.is_observed.any():
            return
        said = torch.cat([outputs[row].float().cpu() for row in rows])
        self.calibrate(said, Interval.of(seen, self.edges.cpu()))

    def calibrate(self, said: Float[Tensor, "patients members logits"], known: Interval) -> None:
        """The same from outputs of all patients; they must be from before any calibration. Causes each have their own."""
        baseline = self.baseline.cpu().double()
        score = said.double().mean(dim=1) - baseline
        num, bins = self.config.num_causes, self.config.num_bins

        def penalised(values: np.ndarray) -> float:
            shift, slope = (torch.from_numpy(one).repeat(bins) for one in (values[:num], np.exp(values[num:])))
            likely = self.log_likelihood(baseline + shift + slope * score, known).sum()
            return float(-likely + (values**2).sum() / (2 * STIFFNESS**2))

        # Around 0 the default simplex is so small that it is lost in what single precision leaves of a sum over patients.
        corners = np.vstack([np.zeros(2 * num), STIFFNESS * np.eye(2 * num)])
        options = {"xatol": 1e-3, "initial_simplex": corners}
        best = minimize(penalised, np.zeros(2 * num), method="Nelder-Mead", options=options).x
        for buffer, values in ((self.shift, best[:num]), (self.slope, np.exp(best[num:]))):
            buffer.copy_(torch.from_numpy(values).reshape(buffer.shape))

    # -------------------------------------------------------------------------------- reading

    def refuse(self, *, source: str, why: str) -> list[Finding]:
        found = refused([self.config.event, *self.config.causes], "patient", source=source, why=why, abnormal=False)
        return [one.model_copy(update={"origin": "outlook"}) for one in found]

    def read(self, output: Tensor, prepared: PreparedStudy, *, source: str, mask_path: str | None) -> HeadReading:
        """Risks within the horizons that the follow-up reaches, with the members' range; mean and median time without the event."""
        within = [days for days in self.config.horizons_days if days <= self.horizon_days]
        beyond = [f"{days:g}" for days in self.config.horizons_days if days > self.horizon_days]
        method = f"discrete-time hazards by {source}, fitted on {int(self.num_patients)} patients; {NOT_ADVICE}"
        measured = []
        for days, members in zip(within, 1 - self.survival(output, within)[0].T, strict=True):
            values = {"": members.mean(), ", lowest": members.min(), ", highest": members.max()}
            for which, value in values.items():
                if not which or self.config.members > 1:
                    name = f"risk within {days:g} days{which}"
                    measured.append(Measurement(name=name, value=float(value), unit="1", method=method))
        mean, median = self._times(output)
        name = f"mean time without it within {self.horizon_days:.0f} days"
        measured.append(Measurement(name=name, value=mean, unit="d", method=method))
        notes = (
            [f"nothing is said beyond {self.horizon_days:.0f} days of follow-up ({', '.join(beyond)})"]
            if beyond
            else []
        )
        if median is None:
            notes.append(f"median time not reached within {self.horizon_days:.0f} days")
        else:
            measured.append(Measurement(name="median time without it", value=median, unit="d", method=method))
        finding = Finding(
            id=finding_id(source, self.config.event, "not_assessed"),
            name=self.config.event,
            anatomy="patient",
            side="not_assessed",
            presence="uncertain" if within else "not_assessed",
            abnormal=False,
            origin="outlook",
            measurements=tuple(measured),
            source=source,
            note="; ".join(notes) or None,
        )
        return HeadReading([finding, *self._read_causes(output, within, finding, method)])

    def _read_causes(self, output: Tensor, within: Sequence[float], of_any: Finding, method: str) -> Iterator[Finding]:
        """Each cause's own risks, which add up to that of any."""
        risks = self.incidence(output, within)[0]  # members, causes, times
        for place, cause in enumerate(self.config.causes):
            measured = []
            for days, members in zip(within, risks[:, place].T, strict=True):
                values = {"": members.mean(), ", lowest": members.min(), ", highest": members.max()}
                for which, value in values.items():
                    if not which or self.config.members > 1:
                        name = f"risk within {days:g} days{which}"
                        measured.append(Measurement(name=name, value=float(value), unit="1", method=method))
            others = ", ".join(other for other in self.config.causes if other != cause)
            yield of_any.model_copy(
                update={
                    "id": finding_id(of_any.source, cause, "not_assessed"),
                    "name": cause,
                    "measurements": tuple(measured),
                    "note": f"the chance that it comes before {others}",
                }
            )

    def _times(self, output: Tensor) -> tuple[float, float | None]:
        """Restricted mean, and the median of the members' mean curve or None where that stays above one half; in days."""
        edges = self.edges.cpu()
        mean = float(hazard.restricted_mean(self.of_any(output[0].detach().float().cpu()), edges).mean())
        times = np.linspace(0, self.horizon_days, 2001)
        curve = self.survival(output, times)[0].mean(dim=0).numpy()
        return mean, float(np.interp(0.5, curve[::-1], times[::-1])) if curve[-1] <= 0.5 else None

    # -------------------------------------------------------------------------------- scoring

    def score_case(
        self, output: Tensor, prepared: PreparedStudy, labels: np.ndarray | None, targets: dict[str, Target]
    ) -> dict[str, float]:
        """`risk` orders patients: the share of the follow-up's time that is lost. `free D` is the chance of no event by day D."""
        horizons = self.config.horizons_days
        chances = self.survival(output, horizons)[0].mean(dim=0)
        scores = {f"free {days:g}": float(chance) for days, chance in zip(horizons, chances, strict=True)}
        scores["risk"] = 1 - self._times(output)[0] / self.horizon_days
        if self.config.causes:
            times = np.linspace(0, self.horizon_days, 201)
            curves = self.incidence(output, times)[0].mean(dim=0).numpy()
            lost = np.trapezoid(curves, times, axis=-1) / self.horizon_days
            scores |= {f"risk of {name}": float(one) for name, one in zip(self.config.causes, lost, strict=True)}
        seen, rows = self.follow_up([targets])
        nothing = float("nan")
        known = tuple(float(getattr(seen, name)[0]) if rows else nothing for name in KNOWN)
        return scores | dict(zip(KNOWN, known, strict=True))

    def summarise(self, cases: Sequence[dict[str, float]]) -> dict[str, float]:
        """Harrell's concordance, of each cause too, and the Brier score at each horizon; not a number where it cannot be
        estimated."""
        cases = [case for case in cases if np.isfinite(case["time"])]
        horizons = self.config.horizons_days
        of_cause = [f"concordance of {name}" for name in self.config.causes]
        names = ["concordance", *of_cause, *(f"brier {days:g} d" for days in horizons)]
        figures = dict.fromkeys(names, float("nan"))
        if not cases:
            return figures
        time, observed, entry, cause, risk = (np.array([case[name] for case in cases]) for name in (*KNOWN, "risk"))
        seen = FollowUp.of(time, observed > 0, entry=entry, cause=cause.astype(int))
        everybody = np.ones((1, len(seen)))
        figures["concordance"] = float(harrell(risk, seen).of(everybody)[0])
        for place, (figure, name) in enumerate(zip(of_cause, self.config.causes, strict=True)):
            risk = np.array([case[f"risk of {name}"] for case in cases])
            figures[figure] = float(harrell(risk, seen, cause=place).of(everybody)[0])
        for days in horizons:
            if days <= self.horizon_days and not not_estimable(seen, days):
                free = np.array([[case[f"free {days:g}"]] for case in cases])
                figures[f"brier {days:g} d"] = float(brier_scores(free, seen, np.array([days])).mean())
        return figures
