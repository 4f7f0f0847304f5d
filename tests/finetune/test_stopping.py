"""Training ends when nothing more is learnt, at the same step whether or not it was interrupted."""

import json
from pathlib import Path

import pytest
import torch

from finetune.config import FinetuneConfig, StoppingConfig
from finetune.run import finetune
from finetune.stopping import LOSS, ValidationLoss
from foundation.config import parse_config
from foundation.reading.collection import read_manifest, write_manifest


def config_of(manifest: Path, folder: Path, **stopping: object) -> FinetuneConfig:
    return parse_config(
        FinetuneConfig,
        {
            "name": "test",
            "folder": str(folder),
            "recipe": "scratch",
            "head": {"kind": "regression", "target": "size_ml", "name": "core volume", "unit": "ml"},
            "data": {"manifest": str(manifest), "spacing_mm": [6.0, 6.0, 6.0]},
            "stopping": {"every": 2, "patience": 2, **stopping},
            "training": {"steps": 40, "batch_size": 2, "warmup_steps": 1, "precision": "fp32", "checkpoint_every": 3},
        },
    )


@pytest.mark.parametrize(
    ("losses", "is_enough"),
    [
        ([], False),
        ([5.0, 4.0], False),  # no earlier one to be better than
        ([5.0, 4.0, 3.0], False),
        ([5.0, 4.0, 4.1], False),
        ([5.0, 4.0, 4.1, 3.999], True),  # not lower by a hundredth
        ([5.0, 4.0, 4.1, 3.9], False),
        ([1.0, 2.0, 3.0], True),
    ],
)
def test_the_rule(losses: list[float], is_enough: bool) -> None:
    gauge = object.__new__(ValidationLoss)
    gauge.rule = StoppingConfig(every=1, patience=2, least=0.01)
    assert gauge.enough([{"step": n, LOSS: loss} for n, loss in enumerate(losses)] + [{"step": 99}]) == is_enough


def test_a_run_that_ends_early_ends_where_it_would_have_uninterrupted(make_collection, tmp_path: Path) -> None:
    manifest = make_collection(6)
    whole = finetune(config_of(manifest, tmp_path / "whole", least=0.9))
    steps = [record["step"] for record in whole.training.records if LOSS in record]
    assert steps[-1] < 40 and steps[0] == 2
    cut = config_of(manifest, tmp_path / "cut", least=0.9)
    finetune(cut.model_copy(update={"training": cut.training.model_copy(update={"steps": 3})}))
    # The schedule looks at all steps, so the first three are not those of the whole run; the rule is the same.
    again = finetune(cut)
    ended = again.training.records[-1]["step"]
    assert ended < 40
    repeated = finetune(cut)
    assert repeated.training.records[-1]["step"] == ended, "what has ended is not continued"
    for one, other in zip(again.model.parameters(), repeated.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_validation_split_is_measured_where_there_is_one(make_collection, tmp_path: Path) -> None:
    manifest = make_collection(6)
    without = finetune(config_of(manifest, tmp_path / "without", patience=30)).training.records
    rows = [
        row.model_copy(update={"split": "validation"}) if row.split == "test" else row
        for row in read_manifest(manifest).rows
    ]
    write_manifest(manifest, rows)
    with_split = finetune(config_of(manifest, tmp_path / "with", patience=30)).training.records
    assert len(with_split) == len(without) == 20
    ours, theirs = ([record[LOSS] for record in records] for records in (without, with_split))
    assert ours != theirs
    assert json.loads((tmp_path / "with" / "metrics.jsonl").read_text().splitlines()[0])[LOSS] == theirs[0]
