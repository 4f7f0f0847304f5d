"""Discrete hazards against a bin-by-bin product, cases worked by hand, and what they were drawn from."""

import math

import numpy as np
import pytest
import torch

from foundation import hazard
from foundation.errors import InputError
from foundation.hazard import Interval
from foundation.survival import FollowUp, aalen_johansen, kaplan_meier

EDGES = torch.tensor([0.0, 10.0, 30.0, 60.0], dtype=torch.double)


def known(time: float, observed: bool, entry: float = 0.0, after: float | None = None) -> Interval:
    seen = FollowUp.of(
        np.array([float(time)]),
        np.array([observed]),
        entry=np.array([entry]),
        after=None if after is None else np.array([after]),
    )
    return Interval.of(seen, EDGES)


def naive(hazards: list[float], time: float, observed: bool) -> float:
    """The chance of it as a product over bins, which is what a discrete-time hazard is."""
    bounds, chance = EDGES.tolist(), 1.0
    for low, high, h in zip(bounds[:-1], bounds[1:], hazards, strict=True):
        if observed and low < time <= high:
            return chance * h
        if time < high:
            return chance * (1 - h) ** max(0.0, (time - low) / (high - low)) if time > low else chance
        chance *= 1 - h
    return chance


@pytest.mark.parametrize(
    ("time", "observed"),
    [
        (5, True),
        (10, True),
        (12, True),
        (60, True),
        (80, True),
        (0, False),
        (5, False),
        (10, False),
        (45, False),
        (90, False),
    ],
)
def test_likelihood_is_the_product_over_bins(time: float, observed: bool) -> None:
    hazards = [0.2, 0.5, 0.1]
    logits = torch.logit(torch.tensor([hazards], dtype=torch.double))
    # An event beyond the horizon is only known not to have happened before it.
    expected = naive(hazards, min(time, 60), observed and time <= 60)
    assert hazard.log_likelihood(logits, EDGES, known(time, observed)).exp().item() == pytest.approx(expected)


def test_intervals_and_late_comers_by_hand() -> None:
    """Hazards 0.2, 0.5, 0.1: S(10) = 0.8, S(30) = 0.4, S(20) = 0.8 * sqrt(0.5)."""
    logits = torch.logit(torch.tensor([[0.2, 0.5, 0.1]], dtype=torch.double))
    at_20 = 0.8 * math.sqrt(0.5)

    def chance(**how: float) -> float:
        return hazard.log_likelihood(logits, EDGES, known(observed=True, **how)).exp().item()  # type: ignore[arg-type]

    assert chance(time=30.0, after=10.0) == pytest.approx(0.8 - 0.4)
    assert chance(time=30.0, after=0.0) == pytest.approx(1 - 0.4)
    assert chance(time=20.0, after=10.0) == pytest.approx(0.8 - at_20)
    assert chance(time=30.0, after=10.0, entry=10.0) == pytest.approx((0.8 - 0.4) / 0.8)
    # Came at 20, had it at 25: only from 20 on could it have been seen in that bin.
    assert chance(time=25.0, entry=20.0) == pytest.approx((at_20 - 0.4) / at_20)
    free = hazard.log_likelihood(logits, EDGES, known(30.0, False, entry=20.0)).exp().item()
    assert free == pytest.approx(0.4 / at_20)


def test_curve_area_and_median_agree_with_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator, dtype=torch.double)
    times = torch.linspace(0, 60, 20001, dtype=torch.double)
    curve = hazard.survival(logits, EDGES, times)
    assert (curve[:, 0] == 1).all() and (curve.diff(dim=1) <= 0).all()
    hazards = torch.sigmoid(logits)
    assert torch.allclose(curve[:, -1], (1 - hazards).prod(dim=1))
    assert torch.allclose(hazard.restricted_mean(logits, EDGES), torch.trapezoid(curve, times, dim=1), rtol=1e-4)
    median = hazard.median_time(logits, EDGES)
    for one, when in zip(curve, median, strict=True):
        if one[-1] > 0.5:
            assert torch.isinf(when)
        else:
            assert float(np.interp(float(when), times.numpy(), one.numpy())) == pytest.approx(0.5, abs=1e-4)
    assert torch.isinf(hazard.median_time(torch.full((3,), -9.0, dtype=torch.double), EDGES))


def test_edges_share_the_fall_of_the_curve_and_bins_get_their_events() -> None:
    rng = np.random.default_rng(0)
    event, lost = rng.exponential(300, 2000), rng.uniform(50, 900, 2000)
    seen = FollowUp.of(np.minimum(event, lost), event <= lost)
    edges = hazard.quantile_edges(seen, 8)
    assert edges[0] == 0 and edges[-1] == pytest.approx(np.quantile(seen.time, 0.9)) and (np.diff(edges) > 0).all()
    falls = -np.diff(kaplan_meier(seen).at(edges))
    assert falls == pytest.approx(falls.mean(), rel=0.05)
    # The bins' own hazards give the cohort's curve back.
    logits = torch.from_numpy(hazard.baseline_logits(seen, edges))
    fitted = hazard.survival(logits, torch.from_numpy(edges), torch.from_numpy(edges))
    assert fitted.numpy() == pytest.approx(kaplan_meier(seen).at(edges), abs=0.01)
    few = FollowUp.of(np.array([5.0, 7.0, 7.0, 9.0]), np.array([True, False, True, False]))
    assert (np.diff(hazard.quantile_edges(few, 12)) > 0).all()
    with pytest.raises(InputError, match="learnt from events"):
        hazard.quantile_edges(FollowUp.of(np.array([5.0, 7.0]), np.zeros(2, bool)), 4)


def test_the_likeliest_hazards_are_the_counted_ones_and_gradients_are_finite() -> None:
    """The maximum of the likelihood over constant logits is events against shares lived through."""
    rng = np.random.default_rng(1)
    event, lost = rng.exponential(40, 300), rng.uniform(5, 90, 300)
    seen = FollowUp.of(np.minimum(event, lost), event <= lost)
    logits = torch.zeros(3, dtype=torch.double, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = -hazard.log_likelihood(logits.expand(300, 3), EDGES, Interval.of(seen, EDGES)).mean()
        value.backward()
        return value

    optimiser.step(loss)
    assert logits.detach().numpy() == pytest.approx(hazard.baseline_logits(seen, EDGES.numpy()), abs=0.03)
    extreme = torch.tensor([[40.0, -40.0, 0.0]] * 300, dtype=torch.double, requires_grad=True)
    hazard.log_likelihood(extreme, EDGES, Interval.of(seen, EDGES)).sum().backward()
    assert extreme.grad is not None and torch.isfinite(extreme.grad).all()


# ------------------------------------------------------------------------------------------------ competing risks


def of_causes(hazards: list[list[float]]) -> torch.Tensor:
    """Logits, `(1, bins, causes)`, of each cause's own hazard."""
    return torch.logit(torch.tensor([hazards], dtype=torch.double))


def test_competing_risks_by_hand() -> None:
    """Two bins. In the first both causes have a hazard of 1/2: S falls to 1/4 and each takes half of 3/4. In the second 0.36 and
    0.2: S falls to 1/4 * 0.64 * 0.8, and the causes share the loss by ln 0.64 : ln 0.8, which is 2 : 1."""
    edges = torch.tensor([0.0, 10.0, 30.0], dtype=torch.double)
    logits = of_causes([[0.5, 0.5], [0.36, 0.2]])
    found = hazard.incidence(logits, edges, torch.tensor([0.0, 5.0, 10.0, 30.0], dtype=torch.double))[0]
    lost = 0.25 * (1 - 0.512)
    assert found[0].tolist() == pytest.approx([0, (1 - 0.5) / 2, 0.375, 0.375 + lost * 2 / 3])
    assert found[1].tolist() == pytest.approx([0, (1 - 0.5) / 2, 0.375, 0.375 + lost / 3])

    def chance(cause: int, time: float, observed: bool = True, **how: float) -> float:
        extra = {name: np.array([value]) for name, value in how.items()}
        seen = FollowUp.of(np.array([time]), np.array([observed]), cause=np.array([cause]), **extra)
        return hazard.log_likelihood_of_causes(logits, edges, Interval.of(seen, edges)).exp().item()

    assert chance(0, 4.0) == pytest.approx(0.375)
    assert chance(1, 12.0) == pytest.approx(lost / 3)
    assert chance(0, 30.0, after=0.0) == pytest.approx(0.375 + lost * 2 / 3)  # over both bins
    assert chance(0, 30.0, after=5.0, entry=5.0) == pytest.approx((0.375 - 0.25 + lost * 2 / 3) / 0.5)
    assert chance(1, 20.0, observed=False) == pytest.approx(0.25 * 0.512**0.5)


def test_incidences_and_survival_are_one_together_and_those_of_the_any_event() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(5, 3, 4, generator=generator, dtype=torch.double)
    times = torch.linspace(0, 60, 301, dtype=torch.double)
    curves, together = hazard.incidence(logits, EDGES, times), hazard.all_causes(logits)
    assert torch.allclose(curves.sum(dim=1) + hazard.survival(together, EDGES, times), torch.ones(()).double())
    assert (curves.diff(dim=-1) >= 0).all()
    # Naively: what is alive at each moment times each cause's own rate, added up in small steps.
    fine = torch.linspace(0, 60, 60001, dtype=torch.double)
    alive = hazard.survival(together, EDGES, fine)
    place = torch.bucketize(fine, EDGES, right=True).clamp(max=3) - 1
    rate = (torch.nn.functional.softplus(logits) / EDGES.diff()[:, None])[:, place]
    naive = (alive[..., None] * rate).cumsum(dim=1) * 0.001
    assert torch.allclose(naive[:, ::200].transpose(1, 2), curves, atol=3e-3)


@pytest.mark.parametrize(
    ("time", "observed", "how"),
    [(5, True, {}), (45, False, {}), (80, True, {}), (45, True, {"after": 5.0}), (45, True, {"entry": 12.0})],
)
def test_one_cause_is_the_model_without_causes(time: float, observed: bool, how: dict[str, float]) -> None:
    logits = torch.tensor([[0.3, -1.0, 0.7]], dtype=torch.double, requires_grad=True)
    one = hazard.log_likelihood(logits, EDGES, known(time, observed, **how))
    same = hazard.log_likelihood_of_causes(logits[..., None], EDGES, known(time, observed, **how))
    assert same.item() == pytest.approx(one.item(), abs=1e-12)
    first, second = (torch.autograd.grad(value.sum(), logits)[0] for value in (one, same))
    assert torch.allclose(first, second)
    free = 1 - hazard.incidence(logits[..., None], EDGES, EDGES)[:, 0]
    assert torch.allclose(free, hazard.survival(logits, EDGES, EDGES))


def test_baselines_of_causes_are_aalen_johansen_at_the_edges() -> None:
    rng = np.random.default_rng(4)
    first, second, lost = rng.exponential(400, 3000), rng.exponential(250, 3000), rng.uniform(50, 900, 3000)
    time = np.minimum(np.minimum(first, second), lost)
    seen = FollowUp.of(time, time < lost, cause=(second < first).astype(int))
    edges = hazard.quantile_edges(seen, 10)
    logits = torch.from_numpy(hazard.baselines(seen, edges, 2))
    found = hazard.incidence(logits, torch.from_numpy(edges), torch.from_numpy(edges)).numpy()
    for cause in range(2):
        assert found[cause] == pytest.approx(1 - aalen_johansen(seen, cause).at(edges), abs=0.012)
    # 1 - Kaplan-Meier with the other cause as a loss is another thing, and too much.
    alone = 1 - kaplan_meier(seen.lost_to_others(0)).at(edges)
    assert alone[-1] > found[0, -1] + 0.1
