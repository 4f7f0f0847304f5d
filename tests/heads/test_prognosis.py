"""The prognosis head, and what a record adds to any head for whole studies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ehr.features import DTYPES, RecordSequence, State
from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError
from foundation.findings import Reading, SeriesSummary
from foundation.preprocess import PreparedStudy, prepare_study
from foundation.reading.collection import read_manifest, read_study
from heads import parse_head
from heads.base import StudyBatch, StudySample, TaskModel
from heads.prognosis import Head
from heads.report.templates import draft

ENCODER = EncoderConfig(width=64, depth=1)
RECORD = {"codes": [str(place) for place in range(12)], "dropout": 0.0}
OF_KIND: dict[str, dict[str, Any]] = {
    "prognosis": {"members": 2, "num_bins": 4, "horizons_days": [50, 100, 400]},
    "classification": {"target": "large", "classes": ["small", "large"]},
    "regression": {"target": "size_ml", "name": "size", "unit": "ml"},
}


def make(kind: str = "prognosis", record: dict | None = RECORD, **changes: object) -> TaskModel:
    torch.manual_seed(0)
    head = {"kind": kind, "dropout": 0.0, "record": record} | OF_KIND[kind] | changes
    return TaskModel.build(Encoder(ENCODER), parse_head(head))


def record(code: int, length: int = 5) -> RecordSequence:
    """One thing again and again."""
    columns = {"code": [code] * length, "position": [0.8] * length, "state": [State.USABLE] * length}
    columns |= {"comparator": [0] * length, "log_days": [3.0] * length, "order": list(range(length, 0, -1))}
    return RecordSequence(**{name: np.array(columns[name], dtype) for name, dtype in DTYPES.items()})


def followed(num: int, seed: int = 0) -> list[dict[str, Any]]:
    """Targets of patients followed for up to about 150 days."""
    rng = np.random.default_rng(seed)
    event, lost = rng.exponential(100, num), rng.uniform(20, 200, num)
    return [{"time_days": float(min(e, c)), "is_observed": int(e <= c)} for e, c in zip(event, lost, strict=True)]


@pytest.fixture
def studies(make_collection) -> list[PreparedStudy]:
    collection = read_manifest(make_collection(4))
    return [prepare_study(read_study(row, collection.root), (4.0, 4.0, 4.0)) for row in collection.rows]


def batch(
    studies: list[PreparedStudy], records: list[RecordSequence | None], targets: list | None = None
) -> StudyBatch:
    targets = targets or [{"time_days": 40.0, "is_observed": 1, "large": 1, "size_ml": 2.0}] * len(studies)
    return StudyBatch.of(
        [StudySample.of(one, None, t, r) for one, t, r in zip(studies, targets, records, strict=True)], dense=False
    )


@pytest.mark.parametrize("kind", OF_KIND)
def test_every_weight_learns_and_both_sides_are_heard(kind: str, studies: list[PreparedStudy]) -> None:
    model = make(kind, RECORD | {"record_dropout": 0.0, "image_dropout": 0.0})
    mixed = batch(studies, [record(7), record(8), None, record(9, 2)])
    mixed.tokens.acquisition.fill_(1.0)
    mixed = replace(mixed, has_image=torch.tensor([True, False, True, True]))
    loss = model(mixed)["loss"]
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert torch.isfinite(loss) and without == []
    model.eval()
    with torch.no_grad():
        one, other, none = (model.output(batch(studies[:1], [r])) for r in (record(7), record(8), None))
        elsewhere = model.output(batch(studies[1:2], [record(7)]))
    assert not torch.allclose(one, other) and not torch.allclose(one, none) and not torch.allclose(one, elsewhere)


@torch.no_grad()
def test_without_images_only_the_record_speaks_and_without_a_record_only_images(studies: list[PreparedStudy]) -> None:
    model = make().eval()
    blind = [replace(batch([one], [record(7)]), has_image=torch.tensor([False])) for one in studies[:2]]
    assert torch.equal(model.output(blind[0]), model.output(blind[1]))
    empty = batch(studies[:1], [RecordSequence.empty()])
    assert torch.equal(model.output(empty), model.output(batch(studies[:1], [None])))
    assert torch.equal(model.output_of(studies[0], record(7)), model.output(batch(studies[:1], [record(7)])))


@pytest.mark.parametrize("kind", ["prognosis", "classification"])
def test_what_only_the_record_says_is_learnt(kind: str, studies: list[PreparedStudy]) -> None:
    """The same images twice, with two records and two answers."""
    model = make(kind, RECORD | {"record_dropout": 0.0, "image_dropout": 0.0})
    answers = [{"time_days": 10.0, "is_observed": 1, "large": 1}, {"time_days": 140.0, "is_observed": 0, "large": 0}]
    targets = answers * 2
    model.head.meet([*followed(40), *targets] if kind == "prognosis" else targets)
    both = batch([studies[0], studies[0], studies[1], studies[1]], [record(7), record(8)] * 2, targets)
    optimiser = torch.optim.AdamW(model.head.parameters(), lr=3e-3)
    with torch.no_grad():
        features = model.encoder(both.tokens)
    losses = []
    for _ in range(150):
        loss = model.head.loss(model.head(features, both), both)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_nobody_dies_before_coming_and_a_row_without_a_time_is_not_learnt_from() -> None:
    head = make(record=None, entry="came", after="seen_well").head
    assert isinstance(head, Head)
    rows = [{"time_days": 30.0, "is_observed": 1, "came": 5.0, "seen_well": 20.0}, {"large": 1}]
    seen, known = head.follow_up(rows)
    assert known == [0] and (seen.entry[0], seen.after[0], seen.time[0]) == (5.0, 20.0, 30.0)
    with pytest.raises(InputError, match="learnt from events"):
        make(record=None).head.meet([{"time_days": 3.0, "is_observed": 0}])
    with pytest.raises(InputError, match="is a number"):
        make(record=None).head.meet([{"time_days": "soon", "is_observed": 1}])


def test_settling_finds_who_is_twice_too_sure() -> None:
    """Events drawn from the law itself, scores doubled: the slope that is right is a half, and nothing has to be shifted."""
    head = make(record=None).head
    assert isinstance(head, Head)
    head.meet(followed(3000, seed=1))
    rng = np.random.default_rng(2)
    score = rng.normal(0, 0.8, 3000)
    targets = []
    edges = head.edges.numpy()
    for value in score:
        passed = np.append(0, torch.nn.functional.softplus(head.baseline + float(value)).cumsum(0).numpy())
        event, lost = np.interp(rng.exponential(), passed, edges, right=np.inf), rng.uniform(20, edges[-1])
        targets.append({"time_days": float(min(event, lost)), "is_observed": int(event <= lost)})
    outputs = [head.baseline.expand(1, 2, -1) + 2 * float(value) for value in score]
    head.settle(outputs, targets)
    assert float(head.slope) == pytest.approx(0.5, abs=0.06) and float(head.shift) == pytest.approx(0, abs=0.12)


def test_it_says_risks_within_the_follow_up_and_nothing_beyond(studies: list[PreparedStudy]) -> None:
    model = make(record=None)
    model.head.meet(followed(200))
    output = model.output_of(studies[0])
    (said,) = model.head.read(output, studies[0], source="test", mask_path=None).findings
    assert isinstance(model.head, Head)
    assert 100 < model.head.horizon_days < 400
    risks = [said.measured(f"risk within {day} days") for day in (50, 100)]
    assert risks[0] is not None and risks[1] is not None and 0 < risks[0] < risks[1] < 1
    assert risks[0] == pytest.approx(1 - float(model.head.survival(output, [50.0])[0].mean()))
    low, high = (said.measured(f"risk within 50 days, {which}") for which in ("lowest", "highest"))
    assert low is not None and high is not None and low <= risks[0] <= high
    assert said.measured("risk within 400 days") is None and "400" in (said.note or "")
    healthy = model.head.read(output - 6, studies[0], source="test", mask_path=None).findings[0]
    assert healthy.measured("median time without it") is None and "not reached" in (healthy.note or "")
    ill = model.head.read(output + 3, studies[0], source="test", mask_path=None).findings[0]
    median = ill.measured("median time without it")
    assert median is not None
    assert float(model.head.survival(output + 3, [median])[0].mean()) == pytest.approx(0.5, abs=1e-3)
    reading = Reading(subject="x", series=(SeriesSummary.of(studies[0].study.reference),), findings=(said,))
    words = draft(reading)
    assert not any(said.id in one.finding_ids for one in (*words.section("Findings"), *words.section("Impression")))
    (outlook,) = words.section("Outlook")
    assert "not for decisions about treatment" in outlook.text and "200 patients" in outlook.text


def test_its_summary_is_concordance_and_brier_of_its_cases(studies: list[PreparedStudy]) -> None:
    head = make(record=None).head
    assert isinstance(head, Head)
    head.meet(followed(200))
    rng = np.random.default_rng(0)
    cases = []
    for targets in followed(120, seed=4):
        output = head.baseline.expand(1, 2, -1) + (60 - targets["time_days"]) / 60 + rng.normal(0, 0.5)
        cases.append(head.score_case(output.float(), studies[0], None, targets))
    figures = head.summarise(cases)
    assert 0.7 < figures["concordance"] < 1 and 0 < figures["brier 50 d"] < 0.25
    assert np.isnan(figures["brier 400 d"])
    assert all(np.isnan(value) for value in head.summarise(cases[:1]).values())


CAUSES = {"causes": ["tumour", "stroke"], "horizons_days": [50, 100]}


def of_two_causes(num: int, seed: int = 0) -> list[dict[str, Any]]:
    rows = followed(num, seed)
    return [row | {"cause": ("tumour", 1)[place % 3 == 0]} for place, row in enumerate(rows)]


@pytest.mark.parametrize("hazards", ["proportional", "free"])
def test_each_cause_has_its_own_risk_and_together_they_are_that_of_any(
    hazards: str, studies: list[PreparedStudy]
) -> None:
    model = make(record=None, hazards=hazards, **CAUSES)
    head = model.head
    assert isinstance(head, Head)
    head.meet(of_two_causes(200))
    some = batch(studies[:2], [None, None], of_two_causes(2))
    loss = model(some)["loss"]
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is not None for p in head.parameters())
    output = model.output_of(studies[0])
    assert output.shape == (1, 2, 8)
    risks, free = head.incidence(output, [50.0, 100.0]), head.survival(output, [50.0, 100.0])
    assert torch.allclose(risks.sum(dim=2) + free, torch.ones_like(free))
    found = head.read(output, studies[0], source="test", mask_path=None).findings
    assert [one.name for one in found] == ["death", "tumour", "stroke"] and len({one.id for one in found}) == 3
    each = [one.measured("risk within 50 days") for one in found]
    assert each[0] == pytest.approx(float(each[1] or 0) + float(each[2] or 0), abs=1e-6)
    assert "before stroke" in (found[1].note or "") and "before tumour" in (found[2].note or "")
    reading = Reading(subject="x", series=(SeriesSummary.of(studies[0].study.reference),), findings=tuple(found))
    assert len(draft(reading).section("Outlook")) == 3
    assert [one.name for one in head.refuse(source="test", why="no brain")] == ["death", "tumour", "stroke"]


def test_a_summary_has_a_concordance_for_each_cause(studies: list[PreparedStudy]) -> None:
    """Only the first cause is told apart."""
    head = make(record=None, **CAUSES).head
    assert isinstance(head, Head)
    rows = of_two_causes(150, seed=4)
    head.meet(rows)
    cases = []
    for targets in rows:
        move = torch.zeros(4, 2)
        move[:, 0] = (60 - targets["time_days"]) / 60 if targets["cause"] == "tumour" else -1.0
        cases.append(head.score_case((head.baseline + move.flatten()).expand(1, 2, -1), studies[0], None, targets))
    figures = head.summarise(cases)
    assert figures["concordance of tumour"] > 0.8 > figures["concordance of stroke"]


def test_an_event_without_its_cause_is_refused() -> None:
    with pytest.raises(InputError, match=r"targets\.cause"):
        make(record=None, **CAUSES).head.meet([{"time_days": 3.0, "is_observed": 1}])
    with pytest.raises(InputError, match="two or more"):
        make(record=None, causes=["only"])


def test_settling_mends_each_cause_by_itself() -> None:
    """Events drawn from the law itself; what is said of the first cause is twice too sure, of the second it is right."""
    head = make(record=None, **CAUSES).head
    assert isinstance(head, Head)
    head.meet(of_two_causes(3000, seed=1))
    rng = np.random.default_rng(6)
    score, edges = rng.normal(0, 0.8, (3000, 2)), head.edges.numpy()
    baseline = head.by_cause(head.baseline).numpy()
    added = np.logaddexp(0, baseline[None] + score[:, None]).cumsum(axis=1)  # softplus: (patients, bins, causes)
    targets = []
    for one in added:
        event = [np.interp(rng.exponential(), np.append(0, one[:, k]), edges, right=np.inf) for k in range(2)]
        lost = rng.uniform(20, edges[-1])
        targets.append(
            {
                "time_days": float(min(*event, lost)),
                "is_observed": int(min(event) <= lost),
                "cause": int(np.argmin(event)),
            }
        )
    said = torch.from_numpy(score * [2.0, 1.0]).float()
    head.settle(list((head.baseline + said.repeat(1, 4))[:, None].expand(-1, 2, -1).split(1)), targets)
    assert head.slope.tolist() == pytest.approx([0.5, 1.0], abs=0.1)
    assert head.shift.tolist() == pytest.approx([0, 0], abs=0.15)
