"""Discrete-time hazards: time in bins, one logit per bin, and what follows from them: likelihood, curve, risk, mean, median.

    edges = quantile_edges(seen, num_bins=12)                             # days; 0 first, the horizon last
    loss = -log_likelihood(logits, edges, Interval.of(seen, edges)).mean()
    survival(logits, edges, times)

The hazard of a bin, sigmoid(logit), is the chance of the event in it for who comes to it. Within a bin the rate is constant
(Kvamme & Borgan 2021), so curves are continuous; softplus(logit) is what a bin adds to the cumulative hazard H, and
S(t) = exp(-H(t)). What is known of any patient is an interval (a, b] that holds the event, b infinite where it was not seen, and
an entry u before which the patient could not have been seen to have it: its likelihood is (S(a) - S(b)) / S(u). Beyond the last
edge nothing is said.

Where events exclude each other (competing risks) every cause has a logit in every bin, `(..., bins, causes)`. What they add to the
cumulative hazard adds up, S is of none of them, and within a bin the causes share what S loses by what each adds; so their
cumulative incidences F and S are 1 together at all times, and the likelihood of cause k in (a, b] is (F_k(b) - F_k(a)) / S(u).
`all_causes` makes of them the logits of any event, for everything that asks about S.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from foundation.errors import InputError
from foundation.survival import FollowUp, kaplan_meier

WATCHED = 0.9  # the horizon: the time by which this share of patients is no longer followed
PRIOR = 0.5  # added to the events and to the non-events of a bin, so that none is impossible or certain


@dataclass(frozen=True)
class Interval:
    """What is known of each patient's event: in (after, until], until infinite where none was seen; who came at `entry`; of which
    `cause` it was."""

    after: Float[Tensor, " patients"]
    until: Float[Tensor, " patients"]
    entry: Float[Tensor, " patients"]
    cause: Int[Tensor, " patients"]

    @classmethod
    def of(cls, seen: FollowUp, edges: Float[Tensor, " edges"]) -> Interval:
        """An event whose day is known lies in its bin, as far as the patient was there; one found at a visit, since the one
        before."""
        bounds = edges.double().cpu().numpy()
        place = np.clip(np.searchsorted(bounds, seen.time, side="left") - 1, 0, len(bounds) - 2)
        is_exact = seen.is_observed & (seen.after == seen.time)
        after = np.where(is_exact, np.maximum(bounds[place], np.minimum(seen.entry, seen.time)), seen.after)
        after = np.where(seen.is_observed, np.minimum(after, bounds[place + 1]), seen.time)
        until = np.where(is_exact, bounds[place + 1], seen.time)
        beyond = seen.time > bounds[-1]  # seen to be free of it at the horizon, or not known to have had it by then
        after = np.where(beyond & is_exact, bounds[-1], after)
        until = np.where(seen.is_observed & ~beyond & (until > after), until, np.inf)
        start, end, entry = (torch.from_numpy(np.asarray(one, float)).to(edges) for one in (after, until, seen.entry))
        return cls(start, end, entry, torch.from_numpy(np.asarray(seen.cause, int)).to(edges.device))

    def take(self, rows: Tensor) -> Interval:
        return Interval(self.after[rows], self.until[rows], self.entry[rows], self.cause[rows])


def quantile_edges(seen: FollowUp, num_bins: int) -> Float[np.ndarray, " edges"]:
    """Edges between which Kaplan-Meier's curve, drawn with straight lines, falls by equal amounts, from 0 to the horizon.

    Equal falls give every bin about as many events to learn from (Kvamme & Borgan 2021).
    """
    horizon = float(np.quantile(seen.time, WATCHED))
    curve = kaplan_meier(seen.until(horizon))
    if not len(curve.times) or horizon <= 0:
        raise InputError(
            "hazards are learnt from events", got="none within the follow-up", remedy="Follow the patients for longer."
        )
    times, values = np.append(0.0, curve.times), np.append(1.0, curve.values)
    if times[-1] < horizon:
        times, values = np.append(times, horizon), np.append(values, values[-1] * (1 - 1e-6))
    # Falling strictly, so that the inverse is a function.
    values = values - 1e-9 * np.arange(len(values))
    inner = np.interp(np.linspace(values[0], values[-1], num_bins + 1)[1:-1], values[::-1], times[::-1])
    return np.concatenate([[0.0], inner, [horizon]])


def baselines(seen: FollowUp, edges: Float[np.ndarray, " edges"], num_causes: int) -> Float[np.ndarray, "bins causes"]:
    """`baseline_logits` of every cause, the others being losses."""
    return np.stack([baseline_logits(seen.lost_to_others(cause), edges) for cause in range(num_causes)], axis=1)


def baseline_logits(seen: FollowUp, edges: Float[np.ndarray, " edges"]) -> Float[np.ndarray, " bins"]:
    """The log odds of each bin's hazard over all patients: events against shares of the bin that were lived through."""
    time, entry = (shares(torch.from_numpy(one), torch.from_numpy(edges)).numpy() for one in (seen.time, seen.entry))
    place = np.clip(np.searchsorted(edges, seen.time, side="left") - 1, 0, len(edges) - 2)
    here = seen.is_observed & (seen.time <= edges[-1])
    events = np.bincount(place[here], minlength=len(edges) - 1)
    lived = time - entry
    lived[np.flatnonzero(here), place[here]] = 0.0  # the bin of the event was not lived through
    return np.log(events + PRIOR) - np.log(lived.sum(axis=0) + PRIOR)


def shares(times: Float[Tensor, "*batch"], edges: Float[Tensor, " edges"]) -> Float[Tensor, "*batch bins"]:
    """How much of each bin lies before a time, 0 to 1."""
    return ((times[..., None] - edges[:-1]) / (edges[1:] - edges[:-1])).clamp(0, 1)


def cumulative_hazard(
    logits: Float[Tensor, "*batch bins"], edges: Float[Tensor, " edges"], times: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """H at one time each."""
    return (softplus(logits) * shares(times, edges)).sum(dim=-1)


def log_likelihood(
    logits: Float[Tensor, "patients bins"], edges: Float[Tensor, " edges"], known: Interval
) -> Float[Tensor, " patients"]:
    """log((S(after) - S(until)) / S(entry)) of each patient."""
    before, entry = (cumulative_hazard(logits, edges, time) for time in (known.after, known.entry))
    is_seen = torch.isfinite(known.until)
    # Where none was seen the end is put after the start, because the gradient of log(0) reaches through a `where`.
    end = torch.where(is_seen, known.until, known.after + (edges[-1] - edges[0]))
    within = cumulative_hazard(logits, edges, end) - before
    within = torch.where(is_seen, within, torch.ones_like(within)).clamp(min=1e-12)
    return entry - before + torch.where(is_seen, torch.log(-torch.expm1(-within)), torch.zeros_like(within))


def all_causes(logits: Float[Tensor, "*batch bins causes"]) -> Float[Tensor, "*batch bins"]:
    """The logits of any event: of the hazard whose cumulative is the causes' together."""
    add = softplus(logits).sum(dim=-1)
    return logits[..., 0] if logits.shape[-1] == 1 else add + torch.log(-torch.expm1(-add))


def log_likelihood_of_causes(
    logits: Float[Tensor, "patients bins causes"], edges: Float[Tensor, " edges"], known: Interval
) -> Float[Tensor, " patients"]:
    """log((F_k(until) - F_k(after)) / S(entry)) of the cause k that was seen, log(S(after) / S(entry)) where none was."""
    any_event = all_causes(logits)
    add, entry = softplus(any_event), cumulative_hazard(any_event, edges, known.entry)
    is_seen = torch.isfinite(known.until)
    begun = shares(known.after, edges)
    lived = (shares(torch.where(is_seen, known.until, edges[-1]), edges) - begun).clamp(min=0)
    # Of every bin that the interval reaches: nothing before it, something within it, and that it was this cause.
    before = add.cumsum(dim=-1) - add + add * begun
    within = torch.log(-torch.expm1(-(add * lived).clamp(min=1e-12)))
    own = softplus(logits).gather(-1, known.cause[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]
    chance = torch.where(lived > 0, within - before + own.log() - add.log(), -torch.inf)
    # A patient who was not seen to have any has no such bin; the gradient of an empty sum would reach through the `where`.
    chance = torch.where(is_seen[:, None], chance, torch.zeros_like(chance))
    free = -cumulative_hazard(any_event, edges, known.after)
    return entry + torch.where(is_seen, torch.logsumexp(chance, dim=-1), free)


def incidence(
    logits: Float[Tensor, "*batch bins causes"], edges: Float[Tensor, " edges"], times: Float[Tensor, " times"]
) -> Float[Tensor, "*batch causes times"]:
    """The chance of each cause by each of several times, the others being what they are."""
    add = softplus(logits)
    total = add.sum(dim=-1)
    start = torch.exp(-(total.cumsum(dim=-1) - total))
    passed = shares(times, edges).to(logits)  # (times, bins)
    lost = start[..., None, :] * -torch.expm1(-total[..., None, :] * passed)  # (*batch, times, bins)
    return ((add / total[..., None]).transpose(-1, -2)) @ lost.transpose(-1, -2)


def survival(
    logits: Float[Tensor, "*batch bins"], edges: Float[Tensor, " edges"], times: Float[Tensor, " times"]
) -> Float[Tensor, "*batch times"]:
    """S at each of several times; beyond the last edge it is the value there, and means nothing."""
    return torch.exp(-softplus(logits) @ shares(times, edges).to(logits).T)


def restricted_mean(logits: Float[Tensor, "*batch bins"], edges: Float[Tensor, " edges"]) -> Float[Tensor, "*batch"]:
    """The mean time without the event within the horizon: the area under the curve, exact for constant rates."""
    add = softplus(logits)
    start = torch.exp(-(add.cumsum(dim=-1) - add))
    # The mean of exp(-a x) over x from 0 to 1.
    mean = torch.where(add > 1e-6, -torch.expm1(-add) / add.clamp(min=1e-12), 1 - add / 2)
    return (start * mean * (edges[1:] - edges[:-1]).to(logits)).sum(dim=-1)


def median_time(logits: Float[Tensor, "*batch bins"], edges: Float[Tensor, " edges"]) -> Float[Tensor, "*batch"]:
    """When S falls to one half; infinite where it does not within the horizon: not reached."""
    add = softplus(logits)
    passed = add.cumsum(dim=-1)
    wanted = torch.log(torch.tensor(2.0, dtype=add.dtype, device=add.device))
    is_reached = passed[..., -1] >= wanted
    place = (passed < wanted).sum(dim=-1).clamp(max=add.shape[-1] - 1)
    pick = place[..., None]
    missing = wanted - (passed.gather(-1, pick) - add.gather(-1, pick)).squeeze(-1)
    part = (missing / add.gather(-1, pick).squeeze(-1)).clamp(0, 1)
    edges = edges.to(add)
    time = edges[place] + part * (edges[place + 1] - edges[place])
    return torch.where(is_reached, time, torch.full_like(time, torch.inf))
