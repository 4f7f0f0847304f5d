"""Distances against loops, the AUROC against scikit-learn's, and what is kept beside a model's weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from finetune.samples import LabelledStudy
from finetune.trust.ood import FILE, NEIGHBOUR, NO_ENCODER, Reference, auroc, measure_ood, pooled_features
from foundation.encoder import Encoder, EncoderConfig
from foundation.preprocess import prepare_study
from foundation.reading.collection import read_manifest, read_study
from heads import parse_head
from heads.base import Scope, TaskConfig, TaskModel, save_task

SPACING = (4.0, 4.0, 4.0)
HEAD = parse_head({"kind": "classification", "target": "large", "classes": ["small", "large"]})
ENCODER = EncoderConfig(width=64, depth=1)


@pytest.fixture
def model() -> TaskModel:
    torch.manual_seed(0)
    return TaskModel.build(Encoder(ENCODER), HEAD).eval()


@pytest.fixture
def studies(make_collection) -> list[LabelledStudy]:
    collection = read_manifest(make_collection(9, num_series=1))
    return [
        LabelledStudy(row, prepare_study(read_study(row, collection.root), SPACING), None) for row in collection.rows
    ]


def test_distances_are_those_of_loops() -> None:
    rng = np.random.default_rng(0)
    known, new = rng.normal(3, (1, 5, 20), (12, 3)), rng.normal(0, 10, (4, 3))
    reference = Reference(known)

    def apart(one: np.ndarray, others: np.ndarray) -> float:
        scaled = [np.sqrt((((one - other) / (known.std(axis=0) + 1e-6)) ** 2).sum()) for other in others]
        return sorted(scaled)[NEIGHBOUR - 1]

    assert reference.distances(new) == pytest.approx([apart(one, known) for one in new])
    own = [apart(known[i], np.delete(known, i, axis=0)) for i in range(12)]
    assert reference.own_distances() == pytest.approx(own)
    assert sum(distance > reference.threshold for distance in own) <= 0.05 * 12
    assert Reference(known[:3]).distances(new).shape == (4,), "fewer training studies than neighbours: the furthest"


def test_auroc_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    inside, outside = rng.integers(0, 6, 20) / 2, rng.integers(2, 9, 30) / 2
    assert auroc(inside, outside) == pytest.approx(
        roc_auc_score([0] * 20 + [1] * 30, np.concatenate([inside, outside]))
    )


def test_studies_of_another_kind_are_beyond(model: TaskModel, studies, make_series, make_collection, tmp_path) -> None:
    from foundation.reading.collection import Row, SeriesEntry, write_manifest
    from foundation.reading.nifti import write_volume

    rows = []
    for number in range(5):
        noise = make_series((30, 30, 30), seed=number, spacing_mm=(3.0, 3.0, 3.0))
        write_volume(tmp_path / f"noise-{number}.nii.gz", noise.voxels, noise)
        rows.append(
            Row(subject=f"noise-{number}", series=(SeriesEntry(path=f"noise-{number}.nii.gz", contrast="FLAIR"),))
        )
    write_manifest(tmp_path / "noise.jsonl", rows)
    reference = Reference.of(model, [study.prepared for study in studies[:6]])
    report = measure_ood(model, SPACING, reference, studies[6:], [tmp_path / "noise.jsonl"])
    assert not isinstance(report, str)
    training, evaluated, other = report.sets
    assert (len(training.distances), len(evaluated.distances), len(other.distances)) == (6, 3, 5)
    assert other.beyond.value == 1 and other.auroc is not None and other.auroc.value == 1
    assert training.auroc is None and len(report.lines()) == 4
    one = pooled_features(model, studies[6].prepared)
    assert evaluated.distances[0] == pytest.approx(reference.distances(one[None])[0])


def test_what_is_kept_belongs_to_its_weights(model: TaskModel, studies, tmp_path: Path) -> None:
    prepared = [study.prepared for study in studies]
    config = TaskConfig(
        name="test", caution=None, encoder=ENCODER, head=HEAD, spacing_mm=SPACING, scope=Scope.of(prepared)
    )
    folder = tmp_path / "model"
    save_task(folder, model, config, card="# test\n", provenance={})
    from foundation.checkpoint import read_about

    weights = read_about(folder)["provenance"]["weights_sha256"]
    assert "holds no features" in str(Reference.load(folder, weights))
    reference = Reference.of(model, prepared)
    reference.save(folder)
    again = Reference.load(folder, weights)
    assert isinstance(again, Reference) and np.array_equal(again.features, reference.features)
    assert "other weights" in str(Reference.load(folder, "0" * 64))
    (folder / FILE).write_bytes(b"broken")
    assert "cannot be read" in str(Reference.load(folder, weights))


def test_a_model_without_an_encoder_says_so(model: TaskModel, studies) -> None:
    bare = TaskModel(nn.Identity(), model.head)
    assert measure_ood(bare, SPACING, Reference(np.zeros((3, 2))), studies, []) == NO_ENCODER
    assert measure_ood(model, SPACING, "no features", studies, []) == "no features"
