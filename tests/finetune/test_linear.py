"""Linear maps against scikit-learn on standardised features, and heads that begin with one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from finetune.config import AugmentConfig, FinetuneConfig
from finetune.linear import RIDGE, LinearMap, begin_at_a_glance
from finetune.samples import LabelledSamples, LabelledStudy, read_labelled
from foundation.config import parse_config
from foundation.encoder import Encoder, EncoderConfig
from foundation.reading.collection import read_manifest, write_manifest
from foundation.training import Draw
from heads.base import TaskModel

ENCODER = EncoderConfig(width=64, depth=1)
HEADS = {
    "one of several": {"kind": "classification", "target": "large", "classes": ["small", "large"]},
    "labels": {"kind": "classification", "classes": ["large", "other"]},
    "number": {"kind": "regression", "target": "size_ml", "name": "core volume", "unit": "ml"},
    "quality": {"kind": "quality"},
}
STILL = AugmentConfig(probability=0.0, drop_series=0.0, forget_contrast=0.0, noise=0.0, bias_field=0.0, smooth_mm=0.0)


def prepared(
    manifest: Path, head: dict, augment: AugmentConfig
) -> tuple[TaskModel, LabelledSamples, list[LabelledStudy]]:
    values = {"name": "x", "head": head, "data": {"manifest": str(manifest), "spacing_mm": [4.0, 4.0, 4.0]}}
    config = parse_config(FinetuneConfig, values).model_copy(update={"augment": augment})
    torch.manual_seed(0)
    model = TaskModel.build(Encoder(ENCODER), config.head)
    collection = read_manifest(manifest)
    studies = read_labelled(collection, collection.rows, model.head, (4.0, 4.0, 4.0), label="read")
    model.head.meet([study.targets for study in studies])
    return model, LabelledSamples(studies, model.head, config), studies


def test_a_map_is_scikit_learns_on_standardised_features() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(3, 5, (30, 4)) * [1, 10, 0.1, 0]
    number = features @ [1, -0.1, 2, 5] + rng.normal(size=30)
    label = (number > number.mean()).astype(float)
    number[:3] = np.nan
    found = LinearMap.fit(features, [(number, False), (label, True)])
    z = StandardScaler().fit_transform(features)
    ridge = Ridge(alpha=RIDGE).fit(z[3:], number[3:])
    logistic = LogisticRegression(C=1 / RIDGE, max_iter=1000).fit(z, label)
    said = np.stack([found(one) for one in features])
    assert np.allclose(said[:, 0], ridge.predict(z), atol=1e-6)
    assert np.allclose(said[:, 1], logistic.decision_function(z), atol=1e-2)


@pytest.mark.parametrize("name", ["one of several", "labels", "number"])
def test_a_head_begins_as_the_linear_map_on_the_encoders_features(make_collection, name: str) -> None:
    model, samples, studies = prepared(make_collection(6), HEADS[name], AugmentConfig(probability=1.0))
    assert begin_at_a_glance(model, samples, 0)
    batches = [samples.collate([samples.plain(Draw(index, 0))]) for index in range(len(samples))]
    with torch.no_grad():
        features = np.stack([model.head.glimpse(model.encoder(one.tokens), one)[0].numpy() for one in batches])  # type: ignore[operator]
    found = LinearMap.fit(features, model.head.columns([study.targets for study in studies]))  # type: ignore[operator]
    said = np.stack([model.output_of(study.prepared).reshape(-1).numpy() for study in studies])
    assert np.allclose(said, np.stack([found(one) for one in features]), atol=2e-2 * np.ptp(said))
    assert np.ptp(said) > 0, "and it says something"
    model.train()(samples.collate([samples[Draw(0, 0)], samples[Draw(1, 0)]]))["loss"].backward()
    assert model.head.answer.weight.grad.abs().sum() > 0, "the rest begins as nothing, and learns"  # type: ignore[union-attr]
    assert not model.head.glance.requires_grad


def test_artefacts_that_training_makes_are_glanced_at(make_collection) -> None:
    made = AugmentConfig(artefact=0.8, noise=0.0, smooth_mm=0.0)
    model, samples, _ = prepared(make_collection(4), HEADS["quality"], made)
    assert begin_at_a_glance(model, samples, 0)
    assert model.head.glance.abs().sum() > 0


def test_where_files_name_artefacts_too_the_glance_is_at_what_training_will_ask(make_collection) -> None:
    """Files that are all clean, and training that spoils nearly all: who begins as "clean" begins wrong."""
    manifest = make_collection(4)
    clean = {"artefact": "none", "artefact_severity": 0}
    rows = [row.model_copy(update={"targets": {**row.targets, **clean}}) for row in read_manifest(manifest).rows]
    write_manifest(manifest, rows)
    made = AugmentConfig(artefact=0.9, noise=0.0, smooth_mm=0.0)
    model, samples, _ = prepared(manifest, HEADS["quality"], made)
    assert begin_at_a_glance(model, samples, 0)
    batch = samples.collate([samples[Draw(number % 4, 1000 + number)] for number in range(32)])
    with torch.no_grad():
        says_clean = model.eval().output(batch)[:, 0].mean() - model.output(batch)[:, 1:8].mean()
    assert says_clean < 1.0, "clean is one kind of eight"


def test_what_has_no_plain_number_or_was_fitted_before_does_not_begin_again(make_collection) -> None:
    manifest = make_collection(3)
    unmade, samples, _ = prepared(manifest, HEADS["quality"], STILL)
    assert not begin_at_a_glance(unmade, samples, 0), "nothing names or makes an artefact"
    fitted, samples, _ = prepared(manifest, HEADS["labels"], STILL)
    fitted.warm = frozenset({"head.answer.weight"})
    assert not begin_at_a_glance(fitted, samples, 0)
    core = {"kind": "segmentation", "structures": [{"value": 1, "name": "core", "paired": False}]}
    assert not begin_at_a_glance(*prepared(manifest, core, STILL)[:2], 0)
