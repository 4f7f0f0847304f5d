"""One fit of one row: patients' columns in, logits of hazards out.

Everything is fitted by one likelihood (`foundation/hazard.py`) and in one way: the training patients are cut into parts, each
part is left out once, and what the models say of patients that they had not seen says when to stop, and calibrates. A deep row
has as many parts as the head has members: its models are an ensemble, whose disagreement is its band. A linear row (`linear`) is
fitted again on all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from finetune.prognosis.linear import Law, weights_of
from finetune.prognosis.patients import View
from foundation.encoder import EncoderConfig
from foundation.hazard import Interval
from foundation.survival import FollowUp
from foundation.training import fold, seeded
from heads._record import RecordBatch, RecordConfig, RecordEncoder
from heads.prognosis import Config as PrognosisHeadConfig
from heads.prognosis import Head

Sees = Literal["nothing", "person", "record", "image", "both", "law"]

PARTS = 5
LARGEST = 4.0  # standard deviations: beyond, a column says no more
COMMONEST = 0.98  # a column that has one value in this share of patients is left out
WIDTH = 64
EPOCHS, PATIENCE, BATCH, RATE, DECAY = 40, 6, 64, 2e-3, 0.1


@dataclass(frozen=True)
class Fit:
    """What the law makes of every patient given, and the law whose bins and causes these logits are of."""

    law: Head
    logits: Float[Tensor, "patients members logits"]


@dataclass(frozen=True)
class Columns:
    """How columns become numbers of like size: skewed ones as logarithms, NaN as the mean and, where it is common, a column of its
    own, in standard deviations of the training patients.
    """

    kept: Int[np.ndarray, " kept"]
    is_log: Bool[np.ndarray, " kept"]
    middle: Float[np.ndarray, " kept"]
    spread: Float[np.ndarray, " kept"]
    gaps: Int[np.ndarray, " gaps"]

    @classmethod
    def of(cls, values: Float[np.ndarray, "train columns"], *, as_they_are: bool = False) -> Columns:
        kept = [place for place in range(values.shape[1]) if _varies(values[:, place])]
        chosen = values[:, kept]
        is_log = np.array([not as_they_are and _is_skewed(one) for one in chosen.T], bool)
        chosen = np.where(is_log, np.log1p(np.maximum(chosen, 0)), chosen)
        middle = np.array([one[np.isfinite(one)].mean() for one in chosen.T])
        spread = np.array([one[np.isfinite(one)].std() for one in chosen.T])
        gaps = [place for place in kept if COMMONEST > np.isnan(values[:, place]).mean() > 1 - COMMONEST]
        return cls(np.array(kept, int), is_log, middle, np.where(spread > 0, spread, 1.0), np.array(gaps, int))

    def __call__(self, values: Float[np.ndarray, "patients columns"]) -> Float[np.ndarray, "patients numbers"]:
        chosen = values[:, self.kept]
        chosen = np.where(self.is_log, np.log1p(np.maximum(chosen, 0)), chosen)
        scaled = np.clip((chosen - self.middle) / self.spread, -LARGEST, LARGEST)
        return np.concatenate([np.nan_to_num(scaled), np.isnan(values[:, self.gaps]) - 0.5], axis=1)

    def kinds(self, names: Sequence[str]) -> list[str]:
        """What kind each number is of, given the columns'; what says that there is no value is a kind of its own."""
        return [names[int(place)] for place in self.kept] + [f"no {names[int(place)]}" for place in self.gaps]


def _varies(column: np.ndarray) -> bool:
    known = column[np.isfinite(column)]
    if len(known) < len(column) * (1 - COMMONEST) + 2:
        return False
    _, counts = np.unique(known, return_counts=True)
    return len(counts) > 1 and bool(counts.max() <= COMMONEST * len(known))


def _is_skewed(column: np.ndarray) -> bool:
    known = column[np.isfinite(column)]
    spread = known.std()
    return bool(known.min() >= 0 and spread > 0 and ((known - known.mean()) ** 3).mean() / spread**3 > 1)


def parts_of(
    is_observed: Bool[np.ndarray, " patients"], num: int, generator: np.random.Generator
) -> Int[np.ndarray, " patients"]:
    """Which of `num` parts each patient is in, events and others spread evenly."""
    parts = np.zeros(len(is_observed), int)
    for kind in (True, False):
        rows = np.flatnonzero(is_observed == kind)
        parts[generator.permutation(rows)] = (np.arange(len(rows)) + (0 if kind else num // 2)) % num
    return parts


def fit(
    sees: Sees,
    is_deep: bool,
    view: View,
    train: Int[np.ndarray, " train"],
    seen: FollowUp,
    config: PrognosisHeadConfig,
    *,
    seed: int,
) -> tuple[Fit, Callable[[View, str], Float[Tensor, "patients members logits"]]]:
    """Fit to the `train` rows of the view (`seen` is theirs) and say what of all rows; and a function that says it of other views,
    with the "record" or the "image" withheld if so asked, which only a deep row of both has practised."""
    law = _law(config, seen)
    known = Interval.of(seen, law.edges.double())
    if sees == "nothing":
        say = lambda other, withheld: law.baseline.double().expand(len(other.person), 1, -1)  # noqa: E731
        return Fit(law, say(view, "")), say
    generator = np.random.default_rng(fold(seed, 81))
    parts = parts_of(seen.is_observed, max(2, config.members) if is_deep else PARTS, generator)
    if is_deep:
        members, outside = _deep(sees, view.take(train), known, parts, law, config, seed)
    else:
        members, outside = _linear(sees, view.take(train), seen, parts, law)
    law.calibrate(law.logits_of(outside)[:, None], known)

    def say(other: View, withheld: str) -> Tensor:
        return law.logits_of(torch.stack([one(other, withheld) for one in members], dim=1))

    return Fit(law, say(view, "")), say


def _law(config: PrognosisHeadConfig, seen: FollowUp) -> Head:
    """The bins and the hazards of an average training patient; of the head only these are used."""
    alone = config.model_copy(update={"record": None, "members": 1, "hazards": "proportional"})
    law = Head(EncoderConfig(width=WIDTH, depth=1), alone).double()
    law.learn_bins(seen)
    return law


Member = Callable[[View, str], Float[Tensor, "patients causes"]]


# ------------------------------------------------------------------------------------------------ linear


def _linear(
    sees: Sees, view: View, seen: FollowUp, parts: np.ndarray, law: Head
) -> tuple[list[Member], Float[Tensor, "train causes"]]:
    """A weighted sum of columns (`linear`) for every cause, the others being losses, fitted on all; and what it says of each part
    when fitted on the others."""
    blocks = _blocks(sees, view)
    scales = [Columns.of(values, as_they_are=sees == "law") for values, _ in blocks]

    def numbers(of: View) -> np.ndarray:
        given = zip(scales, _blocks(sees, of), strict=True)
        return np.concatenate([scale(values) for scale, (values, _) in given], axis=1)

    x = numbers(view)
    kinds = [kind for scale, (_, names) in zip(scales, blocks, strict=True) for kind in scale.kinds(names)]
    weights, outside = [], np.zeros((len(x), law.config.num_causes))
    for cause, baseline in enumerate(law.by_cause(law.baseline).unbind(dim=-1)):
        one, known = Law(baseline, law.edges), Interval.of(seen.lost_to_others(cause), law.edges)
        on_all, penalty = weights_of(x, kinds, known, one)
        weights.append(on_all)
        for part in range(parts.max() + 1):
            inside = parts != part
            without, _ = weights_of(x[inside], kinds, known.take(torch.from_numpy(inside)), one, start=penalty)
            outside[~inside, cause] = x[~inside] @ without[1:] + without[0]
    together = np.stack(weights, axis=1)
    return [lambda other, withheld: torch.from_numpy(numbers(other) @ together[1:] + together[0])], torch.from_numpy(
        outside
    )


def _blocks(sees: Sees, view: View) -> list[tuple[np.ndarray, Sequence[str]]]:
    """Columns, and what kind each is of."""
    person = (view.person, ["person"] * view.person.shape[1])
    record, image = (view.record, view.record_kinds), (view.image, view.image_kinds)
    law = (
        np.zeros((len(view.person), 0)) if view.law is None else view.law,
        ["law"] * (0 if view.law is None else view.law.shape[1]),
    )
    return {"person": [person], "record": [record], "image": [image], "both": [record, image], "law": [law]}[sees]


# ------------------------------------------------------------------------------------------------ deep


class Network(nn.Module):
    """Image and record each to a vector, side by side, and numbers of their own, one for each cause; what is missing has a learned
    vector."""

    def __init__(self, num_image: int, num_record: int, record: RecordConfig | None, num_codes: int, num_causes: int):
        super().__init__()
        self.dropouts = (0.3, 0.1) if record is None else (record.record_dropout, record.image_dropout)
        self.image = _perceptron(num_image) if num_image else None
        self.columns = _perceptron(num_record) if num_record else None
        self.events = None
        if record is not None and num_codes:
            self.events = RecordEncoder(record.model_copy(update={"record_dropout": 0.0}).encoder(num_codes))
        width = WIDTH if self.events is None else self.events.config.width
        self.norm = nn.LayerNorm(width)
        self.no_image = nn.Parameter(torch.zeros(WIDTH))
        self.no_record = nn.Parameter(torch.zeros(width))
        self.answer = nn.Linear(WIDTH + width, num_causes)
        nn.init.zeros_(self.answer.weight)

    def forward(
        self, image: Tensor | None, columns: Tensor | None, events: RecordBatch | None, num: int
    ) -> Float[Tensor, "patients causes"]:
        seen = self._left(num, self.dropouts[1], image is not None and self.image is not None)
        there = self._left(num, self.dropouts[0], columns is not None or events is not None)
        pooled, record = self.no_image.expand(num, -1), self.no_record.expand(num, -1)
        if self.image is not None and image is not None:
            pooled = torch.where(seen[:, None], self.image(image), self.no_image)
        if self.events is not None and events is not None:
            found = self.norm(self.events(events)).mean(dim=1)
            record = torch.where((there & events.is_real.any(dim=1))[:, None], found, self.no_record)
        elif self.columns is not None and columns is not None:
            record = torch.where(there[:, None], self.columns(columns), self.no_record)
        return self.answer(torch.cat([pooled, record], dim=1))

    def _left(self, num: int, rate: float, is_there: bool) -> Tensor:
        """Who is not left out this time; only what has something beside it is ever left out."""
        has_both = self.image is not None and not (self.events is None and self.columns is None)
        if self.training and is_there and has_both:
            return torch.rand(num) >= rate
        return torch.full((num,), is_there)


def _perceptron(num: int) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(0.3), nn.Linear(num, WIDTH), nn.GELU())


def _deep(
    sees: Sees, view: View, known: Interval, parts: np.ndarray, law: Head, config: PrognosisHeadConfig, seed: int
) -> tuple[list[Member], Float[Tensor, "train causes"]]:
    """One network per part, which tells it when to stop."""
    sees_image, sees_record = sees in ("image", "both"), sees in ("record", "both")
    image = Columns.of(view.image) if sees_image else None
    columns = Columns.of(view.record) if sees_record and view.sequences is None else None

    def inputs(of: View, withheld: str) -> _Inputs:
        return _Inputs(
            None if image is None or withheld == "image" else torch.from_numpy(image(of.image)).float(),
            None if columns is None or withheld == "record" else torch.from_numpy(columns(of.record)).float(),
            of.sequences if sees_record and withheld != "record" else None,
            len(of.person),
        )

    given, members = inputs(view, ""), []
    outside = torch.zeros(len(parts), config.num_causes, dtype=torch.double)
    for part in range(parts.max() + 1):
        inside, left_out = np.flatnonzero(parts != part), np.flatnonzero(parts == part)
        num_image, num_record = (0 if one is None else one.shape[1] for one in (given.image, given.columns))
        with torch.random.fork_rng():
            torch.manual_seed(fold(seed, 82, part))
            record = config.record if view.sequences is not None and sees_record else None
            network = Network(num_image, num_record, record, view.num_codes, config.num_causes)
            _train(network, given, known, law, inside, left_out, fold(seed, 83, part))
        outside[left_out] = given.said_by(network, left_out)
        members.append(lambda other, withheld, network=network: inputs(other, withheld).said_by(network))
    return members, outside


@dataclass(frozen=True)
class _Inputs:
    image: Tensor | None
    columns: Tensor | None
    events: Sequence[object] | None
    num: int

    def of(self, rows: np.ndarray) -> tuple[Tensor | None, Tensor | None, RecordBatch | None, int]:
        events = None if self.events is None else RecordBatch.of([self.events[row] for row in rows])  # pyright: ignore[reportArgumentType]
        image, columns = (None if one is None else one[torch.from_numpy(rows)] for one in (self.image, self.columns))
        return image, columns, events, len(rows)

    @torch.inference_mode()
    def said_by(self, network: Network, rows: np.ndarray | None = None) -> Tensor:
        rows = np.arange(self.num) if rows is None else rows
        network.eval()
        pieces = [network(*self.of(rows[start : start + 256])).double() for start in range(0, len(rows), 256)]
        return torch.cat(pieces).clone()


def _train(
    network: Network, given: _Inputs, known: Interval, law: Head, inside: np.ndarray, left_out: np.ndarray, seed: int
) -> None:
    """AdamW until the part left out has not become likelier for `PATIENCE` epochs; the best weights are kept."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    best, waited, state = -np.inf, 0, network.state_dict()
    outside = known.take(torch.from_numpy(left_out))
    for epoch in range(EPOCHS):
        network.train()
        order = inside[torch.randperm(len(inside), generator=seeded(seed, epoch)).numpy()]
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            likely = law.log_likelihood(
                law.logits_of(network(*given.of(rows)).double()), known.take(torch.from_numpy(rows))
            )
            optimiser.zero_grad()
            (-likely.mean()).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
        likely = law.log_likelihood(law.logits_of(given.said_by(network, left_out)), outside)
        value = float(likely.mean())
        if value > best:
            best, waited = value, 0
            state = {name: one.detach().clone() for name, one in network.state_dict().items()}
        else:
            waited += 1
            if waited >= PATIENCE:
                break
    network.load_state_dict(state)
