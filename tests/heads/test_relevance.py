"""Relevance: what the answer rests on is found in a model that is known to look at one place, and doubted in one that does not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from foundation.encoder import Encoder, EncoderConfig
from foundation.preprocess import PreparedStudy, prepare_study
from foundation.study import Study
from heads import parse_head
from heads._relevance import BANDS, check_relevance, explain, relevance, relevance_map, where_it_rests
from heads.base import Explanation, StudyBatch, StudySample, TaskModel


@pytest.fixture
def prepared(make_series) -> PreparedStudy:
    """A bright ball in one corner of a noisy head."""
    series = make_series((48, 40, 32), spacing_mm=(4.0, 4.0, 4.0))
    voxels = np.random.default_rng(0).normal(100, 5, series.shape).astype(np.float32)
    voxels[:2], voxels[8:16, 8:16, 8:16] = 0, 400
    return prepare_study(Study("s", (series.with_voxels(voxels),)), (4.0, 4.0, 4.0))


def linear_model(direction: torch.Tensor) -> TaskModel:
    """An encoder without blocks whose answer is linear in the embedding, so that its relevance is known exactly."""
    torch.manual_seed(0)
    model = TaskModel.build(
        Encoder(EncoderConfig(width=64, depth=0)),
        parse_head({"kind": "regression", "target": "t", "name": "t", "unit": "1", "dropout": 0.0}),
    )
    model.encoder.norm = torch.nn.Identity()  # type: ignore[assignment]
    model.head.forward = lambda features, batch: (features.tokens @ direction).sum(dim=1)  # type: ignore[method-assign]
    return model


def test_of_a_linear_answer_the_relevance_is_each_tokens_part(prepared: PreparedStudy) -> None:
    direction = torch.randn(64, generator=torch.Generator().manual_seed(1))
    model = linear_model(direction)
    batch = StudyBatch.of([StudySample.of(prepared)], dense=False)
    found = relevance(model, prepared, 0)
    assert isinstance(model.encoder, Encoder)
    parts = (model.encoder.embed(batch.tokens) @ direction)[0]
    assert torch.allclose(found, parts, atol=1e-4)
    assert found.sum().item() == pytest.approx(model.output_of(prepared).item(), rel=1e-3)
    laid = relevance_map(model, prepared, 0)
    assert laid.shape == prepared.grid.shape
    cell = batch.tokens.cell[0, 5].tolist()
    assert laid[tuple(8 * n + 3 for n in cell)] == pytest.approx(found[5].item(), rel=1e-5)


def test_a_map_of_what_the_answer_rests_on_passes(prepared: PreparedStudy) -> None:
    direction = torch.randn(64, generator=torch.Generator().manual_seed(1))
    trust = check_relevance(linear_model(direction), [prepared], 0)
    assert trust.fall > trust.random_fall and trust.num_studies == 1
    assert trust.passes == (abs(trust.likeness) < 0.5)


@pytest.mark.parametrize(
    ("explanation", "passes"),
    [
        (Explanation(likeness=0.1, fall=2.0, random_fall=1.0, num_studies=4), True),
        (
            Explanation(likeness=0.7, fall=2.0, random_fall=1.0, num_studies=4),
            False,
        ),  # the map is the image's, not the model's
        (Explanation(likeness=-0.7, fall=2.0, random_fall=1.0, num_studies=4), False),
        (Explanation(likeness=0.1, fall=1.0, random_fall=2.0, num_studies=4), False),  # random tokens matter more
        (
            Explanation(likeness=0.1, fall=-1.0, random_fall=-2.0, num_studies=4),
            True,
        ),
    ],
)
def test_both_tests_must_be_passed(explanation: Explanation, passes: bool) -> None:
    assert explanation.passes is passes
    assert str(explanation).startswith("passes" if passes else "fails")


def test_the_bands_hold_the_most_relevant_tokens(prepared: PreparedStudy) -> None:
    encoder = linear_model(torch.zeros(64)).encoder
    assert isinstance(encoder, Encoder)
    embedded = encoder.embed(StudyBatch.of([StudySample.of(prepared)], dense=False).tokens)[0].detach()
    model = linear_model(embedded[5] - embedded.mean(dim=0))  # some tokens speak for it, some against
    bands, values = where_it_rests(model, prepared, 0), relevance_map(model, prepared, 0)
    assert bands.shape == prepared.study.reference.shape and set(np.unique(bands)) == {0, 1, 2}
    # The study's grid is its own here, so the two can be compared voxel by voxel.
    assert values[bands == 1].min() >= values[bands == 2].max() > 0
    shares = [(bands[prepared.body[0]] == value).mean() for value in (1, 2)]
    assert shares[0] == pytest.approx(BANDS[0][0], abs=0.05) and 0 < shares[1] < 0.25


def test_each_answer_that_is_a_number_of_the_output_is_explained(prepared: PreparedStudy) -> None:
    torch.manual_seed(0)
    encoder = EncoderConfig(width=64, depth=1)
    two = parse_head({"kind": "classification", "target": "t", "classes": ["normal", "glioma", "infarct"]})
    model = TaskModel.build(Encoder(encoder), two)
    assert model.head.answers == {"glioma": 1, "infarct": 2}
    found = explain(model, [prepared] * 9)
    assert found.keys() == {"glioma", "infarct"} and found["glioma"].num_studies == 4
    assert found["infarct"] == check_relevance(model, [prepared] * 4, 2)
    ball = {"kind": "segmentation", "structures": [{"value": 1, "name": "ball", "paired": False}]}
    assert explain(TaskModel.build(Encoder(encoder), parse_head(ball)), [prepared]) == {}


def test_looking_changes_no_weight_and_leaves_no_gradient(prepared: PreparedStudy, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TaskModel.build(
        Encoder(EncoderConfig(width=64, depth=2)), parse_head({"kind": "classification", "classes": ["a", "b"]})
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = check_relevance(model, [prepared], 1, seed=3)
    assert check_relevance(model, [prepared], 1, seed=3) == first
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
