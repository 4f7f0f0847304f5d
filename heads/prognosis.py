"""Prognosis: when something will happen to the patient, as a hazard in each of a few bins of time (`foundation/hazard.py`).

The bins are those of the training rows, so is the hazard of an average patient; what the network says moves it. Several members,
each with its own pooling and its own reading of the record, are trained together: their mean is the answer, how far they
disagree its band, which knows nothing of what all of them lack. Beyond the follow-up of the training rows nothing is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
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
from heads._study import StudyHead, number_of, refused
from heads.base import HeadReading, StudyBatch, Target

NOT_ADVICE = "a statistic of patients like this one, not for decisions about treatment"
STIFFNESS = (
    0.3  # standard deviation that the shift and the logarithm of the slope are expected to have, before any is seen
)


class Config(KindConfig):
    """`time` and `observed` are keys of a row's targets: days to the `event` or to the last sight of the patient, and 1 if it was
    the event. `entry` names the day from which the patient could have been seen to have it, `after` that of the last visit
    without it, where it was found at a visit. Rows without a time are not learnt from.

    "proportional" learns one number per patient, by which all hazards rise together; "free" one for every bin, which takes
    more patients. A risk is said for each of `horizons_days` that lies within the follow-up.
    """

    kind: Literal["prognosis"] = "prognosis"
    event: str = "death"
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


class _Member(StudyHead):
    """One of the others: its own pooling, record and last layer."""


class Head(StudyHead):
    """Logits of the hazards, `(batch, members, bins)`."""

    def __init__(self, encoder: EncoderConfig, config: Config):
        num = 1 if config.hazards == "proportional" else config.num_bins
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
        self.register_buffer("baseline", torch.zeros(config.num_bins))
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("slope", torch.ones(()))
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
        edges = hazard.quantile_edges(seen, self.config.num_bins)
        self.edges.copy_(torch.from_numpy(edges))
        self.baseline.copy_(torch.from_numpy(hazard.baseline_logits(seen, edges)))
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
        )
        return seen, rows

    # -------------------------------------------------------------------------------- what is said

    def forward(self, features: Features, batch: StudyBatch) -> Float[Tensor, "batch members bins"]:
        said = [StudyHead.forward(self, features, batch), *(self.finish(one(features, batch)) for one in self.others)]
        return torch.cat(said, dim=1)

    def finish(self, answer: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch 1 bins"]:
        return (self.baseline + self.shift + self.slope * answer)[:, None]

    def loss(self, output: Tensor, batch: StudyBatch) -> dict[str, Tensor]:
        """Minus the log likelihood of each member over the rows that know; 0 where a batch knows none."""
        seen, rows = self.follow_up(batch.targets)
        output = output.float()
        if not rows:
            return {"loss": 0 * output.sum()}
        return {"loss": self.unlikelihood(output[rows], Interval.of(seen, self.edges))}

    def unlikelihood(self, logits: Float[Tensor, "patients members bins"], known: Interval) -> Float[Tensor, ""]:
        """Minus the mean log likelihood over patients and members, each of which learns by itself."""
        each = [hazard.log_likelihood(logits[:, member], self.edges, known) for member in range(logits.shape[1])]
        return -torch.stack(each).mean()

    def survival(
        self, output: Float[Tensor, "batch members bins"], times_days: Sequence[float] | np.ndarray
    ) -> Float[Tensor, "batch members times"]:
        """The chance of being free of the event at each time, by each member."""
        edges = self.edges.cpu()
        return hazard.survival(
            output.detach().to(edges).cpu(), edges, torch.as_tensor(np.asarray(times_days)).to(edges)
        )

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

    def calibrate(self, said: Float[Tensor, "patients members bins"], known: Interval) -> None:
        """The same from outputs of all patients; they must be from before any calibration."""
        baseline, edges = self.baseline.cpu(), self.edges.cpu()
        score = said.mean(dim=1) - baseline

        def penalised(values: np.ndarray) -> float:
            shift, slope = float(values[0]), float(np.exp(values[1]))
            likely = hazard.log_likelihood(baseline + shift + slope * score, edges, known).sum()
            return float(-likely + (values**2).sum() / (2 * STIFFNESS**2))

        shift, log_slope = minimize(penalised, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-3}).x
        self.shift.fill_(float(shift))
        self.slope.fill_(float(np.exp(log_slope)))

    # -------------------------------------------------------------------------------- reading

    def refuse(self, *, source: str, why: str) -> list[Finding]:
        found = refused([self.config.event], "patient", source=source, why=why, abnormal=False)
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
        return HeadReading([finding])

    def _times(self, output: Tensor) -> tuple[float, float | None]:
        """Restricted mean, and the median of the members' mean curve or None where that stays above one half; in days."""
        edges = self.edges.cpu()
        mean = float(hazard.restricted_mean(output[0].detach().float().cpu(), edges).mean())
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
        seen, rows = self.follow_up([targets])
        nothing = float("nan")
        known = (float(seen.time[0]), float(seen.is_observed[0]), float(seen.entry[0])) if rows else (nothing,) * 3
        return scores | dict(zip(("time", "is_observed", "entry"), known, strict=True))

    def summarise(self, cases: Sequence[dict[str, float]]) -> dict[str, float]:
        """Harrell's concordance, and the Brier score at each horizon; not a number where it cannot be estimated."""
        cases = [case for case in cases if np.isfinite(case["time"])]
        horizons = self.config.horizons_days
        figures = {"concordance": float("nan")} | {f"brier {days:g} d": float("nan") for days in horizons}
        if not cases:
            return figures
        time, observed, entry, risk = (
            np.array([case[name] for case in cases]) for name in ("time", "is_observed", "entry", "risk")
        )
        seen = FollowUp.of(time, observed > 0, entry=entry)
        figures["concordance"] = float(harrell(risk, seen).of(np.ones((1, len(seen))))[0])
        for days in horizons:
            if days <= self.horizon_days and not not_estimable(seen, days):
                free = np.array([[case[f"free {days:g}"]] for case in cases])
                figures[f"brier {days:g} d"] = float(brier_scores(free, seen, np.array([days])).mean())
        return figures
