"""The record's encoder: every weight learns, order of rows and padding say nothing, and no record is a state of its own."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ehr.features import DTYPES, RecordSequence, State
from heads._record import RecordBatch, RecordEncoder, RecordEncoderConfig

CONFIG = RecordEncoderConfig(vocabulary_size=40, width=64, depth=2, num_tokens=8)


def sequence(length: int, seed: int = 0) -> RecordSequence:
    rng = np.random.default_rng(seed)
    columns = {
        "code": rng.integers(1, 40, length),
        "position": 3 * rng.standard_normal(length),
        "state": rng.choice([State.NONE, State.USABLE, State.NO_UNIT, State.RELATIVE], length),
        "comparator": rng.integers(-1, 2, length),
        "log_days": rng.uniform(0, 8, length),
        "order": np.arange(length)[::-1] // 2 + 1,
    }
    return RecordSequence(**{name: columns[name].astype(dtype) for name, dtype in DTYPES.items()})


def made(config: RecordEncoderConfig = CONFIG) -> RecordEncoder:
    torch.manual_seed(0)
    return RecordEncoder(config)


@pytest.mark.parametrize("num_tokens", [8, 16])
def test_any_records_become_a_few_tokens(num_tokens: int):
    encoder = made(CONFIG.model_copy(update={"num_tokens": num_tokens})).eval()
    tokens = encoder(RecordBatch.of([sequence(30), sequence(1), None, RecordSequence.empty()]))
    assert tokens.shape == (4, num_tokens, 64)
    assert tokens.isfinite().all()
    assert torch.equal(tokens[2], tokens[3])
    assert len({tuple(row.tolist()) for row in tokens[0]}) == num_tokens  # no two queries are the same


@pytest.mark.parametrize("lengths", [(20, 30, 0), (0, 0), (5,)])
def test_every_weight_gets_a_finite_gradient(lengths: tuple[int, ...]):
    """In every batch, also where all records are empty: distributed training waits for each weight's."""
    encoder = made().train()
    tokens = encoder(RecordBatch.of([sequence(length, seed) for seed, length in enumerate(lengths)]))
    (tokens * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []


def test_no_weight_is_idle():
    encoder = made(CONFIG.model_copy(update={"dropout": 0.0, "record_dropout": 0.0}))
    tokens = encoder(RecordBatch.of([sequence(300), None]))
    (tokens * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    idle = [
        name
        for name, parameter in encoder.named_parameters()
        if not (parameter.grad is not None and parameter.grad.any())
    ]
    assert idle == []
    assert encoder.embed.code.weight.grad is not None
    assert encoder.embed.code.weight.grad[1:].any(dim=1).all()  # every code that occurs


@torch.no_grad()
def test_the_order_of_rows_says_nothing():
    """When things happened is in `order` and `log_days` alone."""
    encoder, one = made().eval(), sequence(25)
    shuffle = np.random.default_rng(3).permutation(25)
    other = RecordSequence(**{entry.name: getattr(one, entry.name)[shuffle] for entry in fields(one)})
    first, second = encoder(RecordBatch.of([one, other]))
    assert torch.allclose(first, second, atol=1e-5)
    reversed_times = replace(one, order=one.order[::-1].copy(), log_days=one.log_days[::-1].copy())
    assert not torch.allclose(first, encoder(RecordBatch.of([reversed_times]))[0], atol=1e-3)


@torch.no_grad()
def test_padding_and_company_say_nothing():
    encoder = made().eval()
    sequences = [sequence(length, seed) for seed, length in enumerate((3, 40, 1, 17))]
    together = encoder(RecordBatch.of([*sequences, None]))
    for one, tokens in zip([*sequences, None], together, strict=True):
        assert torch.allclose(encoder(RecordBatch.of([one]))[0], tokens, atol=1e-5)
    batch = RecordBatch.of(sequences[:2])
    junk = replace(
        batch,
        position=batch.position.where(batch.is_real, torch.tensor(1e6)),
        code=batch.code.where(batch.is_real, torch.tensor(7)),
    )
    assert torch.allclose(encoder(junk), encoder(batch), atol=1e-5)


PLAIN = {"code": 5, "position": 0.4, "state": int(State.USABLE), "comparator": 0, "log_days": 1.0, "order": 3}
OTHER = {"code": 9, "position": 2.0, "state": int(State.NO_UNIT), "comparator": 1, "log_days": 9.0, "order": 40}


@pytest.mark.parametrize("name", PLAIN)
@torch.no_grad()
def test_everything_that_an_event_says_is_heard(name: str):
    encoder, one = made().eval(), sequence(6)
    for entry, value in PLAIN.items():
        getattr(one, entry)[2] = value
    before = encoder(RecordBatch.of([one]))
    getattr(one, name)[2] = OTHER[name]
    assert not torch.allclose(before, encoder(RecordBatch.of([one])), atol=1e-6)


@torch.no_grad()
def test_the_same_value_means_another_thing_of_another_analyte():
    """Code and value are fused: what a value adds depends on whose it is, which a sum of two embeddings cannot say."""
    embed = made().embed

    def embedded(code: int, position: float) -> torch.Tensor:
        one = sequence(1)
        one.code[:], one.position[:], one.state[:] = code, position, int(State.USABLE)
        return embed(RecordBatch.of([one]))[0, 0]

    effects = [embedded(code, 3.0) - embedded(code, 0.5) for code in (3, 4)]
    assert not torch.allclose(effects[0], effects[1], rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_a_value_that_cannot_be_used_is_not_read():
    encoder, one = made().eval(), sequence(5)
    one.state[:] = int(State.UNKNOWN_UNIT)
    before = encoder(RecordBatch.of([one]))
    one.position[:] = 17.0
    assert torch.equal(before, encoder(RecordBatch.of([one])))


@torch.no_grad()
def test_in_training_records_are_left_out_as_often_as_said_and_repeatably():
    encoder = made(CONFIG.model_copy(update={"dropout": 0.0, "record_dropout": 0.3})).train()
    batch = RecordBatch.of([sequence(4)] * 400)
    first, again, other = (encoder(batch, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    left_out = (first == encoder.no_record).all(dim=(1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert 0.2 < left_out.float().mean() < 0.4
    assert not (encoder.eval()(batch) == encoder.no_record).all(dim=(1, 2)).any()


@pytest.mark.parametrize("what", ["position", "code", "log_days"])
def test_it_learns_what_one_event_says(what: str):
    """Records that are the same but for one entry of one event, told apart in a few steps."""
    encoder = made(CONFIG.model_copy(update={"dropout": 0.0, "record_dropout": 0.0}))
    sequences, truth = [], torch.tensor([0.0, 1.0])
    for number in range(2):
        one = sequence(8)
        for entry, value in (PLAIN, PLAIN | {what: OTHER[what]})[number].items():
            getattr(one, entry)[3] = value
        sequences.append(one)
    head = torch.nn.Linear(64, 1)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-3)
    losses = []
    for _ in range(30):
        logits = head(encoder(RecordBatch.of(sequences)).mean(dim=1))[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_width_that_does_not_divide_is_refused():
    with pytest.raises(ValidationError):
        RecordEncoderConfig(vocabulary_size=40, width=100)
