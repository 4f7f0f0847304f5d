"""The head that says which contrast a series has looks at voxels only, and says so where a name is wrong."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from foundation.encoder import Encoder, EncoderConfig
from foundation.preprocess import PreparedStudy, prepare_study
from foundation.study import Contrast, Study
from heads import parse_head
from heads.base import StudyBatch, StudySample, TaskModel
from heads.contrast import NAME

LOOKS: tuple[Contrast, ...] = ("T1w", "T2w")


@pytest.fixture
def studies(make_series) -> list[PreparedStudy]:
    """Two series each, one smooth and one rough, so that voxels tell which is which."""
    found = []
    for seed in range(4):
        rough = make_series((24, 24, 24), seed=seed, name="rough", contrast="T2w")
        ramp = np.indices((24, 24, 24)).sum(axis=0).astype(np.float32) + 5 * seed
        smooth = replace(rough, voxels=ramp, name="smooth", contrast="T1w")
        found.append(prepare_study(Study(f"s{seed}", (smooth, rough)), (1.0, 1.0, 1.0)))
    return found


def renamed(prepared: PreparedStudy, *contrasts: Contrast) -> PreparedStudy:
    series = tuple(replace(one, contrast=name) for one, name in zip(prepared.study.series, contrasts, strict=True))
    return replace(prepared, study=replace(prepared.study, series=series))


@pytest.fixture
def model(studies: list[PreparedStudy]) -> TaskModel:
    torch.manual_seed(0)
    model = TaskModel.build(Encoder(EncoderConfig(width=64, depth=1)), parse_head({"kind": "contrast", "dropout": 0.0}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = StudyBatch.of([StudySample.of(one) for one in studies], dense=False)
    for _ in range(30):
        model(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def said(model: TaskModel, prepared: PreparedStudy) -> Any:
    return model.head.read(model.output_of(prepared), prepared, source="test", mask_path=None)


def test_names_are_not_seen(model: TaskModel, studies: list[PreparedStudy]) -> None:
    plain = model.output_of(studies[0])
    for names in (("T2w", "T1w"), ("unknown", "unknown")):
        assert torch.equal(model.output_of(renamed(studies[0], *names)), plain)


def test_what_was_learnt_is_recognised_and_nothing_is_remarked(model: TaskModel, studies: list[PreparedStudy]) -> None:
    cases = [model.head.score_case(model.output_of(one), one, None, {}) for one in studies]
    assert model.head.summarise(cases) == {"accuracy": 1.0, "false alarms": 0.0}
    reading = said(model, studies[0])
    assert [(one.name, one.presence) for one in reading.findings] == [(NAME, "absent")] and reading.remarks == ()


def test_a_wrong_name_is_contradicted_and_a_missing_one_given(model: TaskModel, studies: list[PreparedStudy]) -> None:
    reading = said(model, renamed(studies[0], "T2w", "T2w"))
    assert reading.findings[0].presence == "present" and reading.findings[0].probability > 0.9
    (remark,) = reading.remarks
    assert remark.startswith("smooth is named T2w and looks like T1w")
    (remark,) = said(model, renamed(studies[0], "unknown", "T2w")).remarks
    assert remark.startswith("smooth looks like T1w") and "not known otherwise" in remark
