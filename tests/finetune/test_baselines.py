"""Each baseline is what it is called: against a computation done by hand, and in the same harness as the heads."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.baselines import FITTED, NETWORKS, Baseline, _by_contrast, baseline, network
from finetune.samples import LabelledStudy, read_labelled
from foundation.cohort.patient import CohortConfig
from foundation.cohort.writing import write_cohort
from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError
from foundation.preprocess import prepare_study
from foundation.reading.collection import read_manifest, read_study
from foundation.study import CONTRASTS, Study, contrast_index
from heads import HeadConfig, parse_head
from heads.base import StudyBatch, StudySample

CORE = {"kind": "segmentation", "structures": [{"value": 1, "name": "core", "paired": False}]}
LARGE = {"kind": "classification", "target": "large", "classes": ["small", "large"]}
SIZE = {"kind": "regression", "target": "size_ml", "name": "core volume", "unit": "ml"}


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(width=64, depth=1))


def fitted(
    recipe: str, head: dict, manifest: Path, encoder: Encoder | None = None
) -> tuple[Baseline, list[LabelledStudy]]:
    config: HeadConfig = parse_head(head)
    model = baseline(recipe, config, encoder)
    collection = read_manifest(manifest)
    studies = read_labelled(collection, collection.rows, model.head, (4.0, 4.0, 4.0), label="read")
    model.head.meet([study.targets for study in studies])
    model.fit(studies)
    return model, studies


def scores(model: Baseline, studies: list[LabelledStudy]) -> dict[str, float]:
    cases = [
        model.head.score_case(model.output_of(one.prepared), one.prepared, one.labels, one.targets) for one in studies
    ]
    return model.head.summarise(cases)


def test_the_majority_says_what_the_training_rows_say_on_average(make_collection) -> None:
    model, studies = fitted("majority", SIZE, make_collection(5))
    sizes = [float(study.targets["size_ml"]) for study in studies]  # type: ignore[arg-type]
    for study in studies:
        assert model.output_of(study.prepared).item() == pytest.approx(np.mean(sizes), rel=1e-5)
    model, studies = fitted("majority", LARGE, make_collection(5))
    said = model.output_of(studies[0].prepared)[0].softmax(0)
    assert said.tolist() == pytest.approx([4 / 7, 3 / 7])  # three small, two large, one more of each


def test_the_majority_of_a_quality_head_says_how_often_each_artefact_is_and_the_median_severity(
    make_collection, encoder: Encoder
) -> None:
    collection = read_manifest(make_collection(5))
    truth = [("none", 0), ("ghost", 2), ("ghost", 4), (None, None), ("none", 0)]
    rows = [
        row.model_copy(update={"targets": {"artefact": kind, "artefact_severity": severity}})
        for row, (kind, severity) in zip(collection.rows, truth, strict=True)
    ]
    config = parse_head({"kind": "quality"})
    for recipe in ("majority", "linear"):
        model = baseline(recipe, config, encoder)
        studies = read_labelled(collection, rows, model.head, (4.0, 4.0, 4.0), label="read")
        model.fit(studies)
        found = scores(model, studies)
        if recipe == "majority":
            said = model.head.score_case(model.output_of(studies[0].prepared), studies[0].prepared, None, {})
            assert said["said"] == pytest.approx(1.0)  # of 0, 2, 4, 0
            assert said["p none"] == pytest.approx(said["p ghost"]) and said["p none"] > 2 * said["p motion"]
            assert found["severity error"] == pytest.approx(np.mean([1, 1, 3, 1]))
        else:  # four rows in many dimensions are learnt by heart
            assert found["severity error"] < 0.5 and found["auroc"] == 1.0


def test_the_threshold_finds_the_bright_core(make_collection) -> None:
    """In T2w the core is brighter than all else; where it is dark, in T1w, so is the edge of the body."""
    model, studies = fitted("threshold", CORE, make_collection(3))
    assert scores(model, studies)["dice"] > 0.85
    assert (model.contrast, model.sign) in {("T2w", 1), ("T1w", -1)}  # type: ignore[attr-defined]


def test_the_threshold_is_the_best_of_all(make_collection) -> None:
    model, studies = fitted("threshold", CORE, make_collection(2, num_series=1))
    study = studies[0]
    truth = study.prepared.labels_to_grid(study.labels) > 0  # type: ignore[arg-type]
    voxels, body = model.sign * study.prepared.voxels[0], study.prepared.body[0]  # type: ignore[attr-defined]
    from finetune.baselines import THRESHOLDS, _dice_by_threshold

    quick = _dice_by_threshold(voxels, body, truth)
    for index in range(0, len(THRESHOLDS), 17):
        said = (voxels >= THRESHOLDS[index]) & body
        assert quick[index] == pytest.approx(2 * (said & truth).sum() / (said.sum() + truth.sum()))


def test_the_atlas_of_one_study_is_its_own_label_map(make_collection) -> None:
    """Laid over the study that it was made from it gives back its labels, but for what two resamplings blur."""
    manifest = make_collection(3)
    model, studies = fitted("atlas", CORE, manifest)
    alone = baseline("atlas", parse_head(CORE), None)
    alone.fit(studies[1:2])
    assert scores(alone, studies[1:2])["dice"] > 0.85
    assert 0.1 < scores(model, studies)["dice"] < 1
    probabilities = model.output_of(studies[0].prepared)[0].exp().sum(dim=0)
    assert torch.allclose(probabilities, torch.ones_like(probabilities), atol=1e-4)


@pytest.mark.parametrize("head", [LARGE, SIZE, {"kind": "classification", "classes": ["large", "other"]}])
def test_the_linear_map_learns_its_rows(make_collection, encoder: Encoder, head: dict) -> None:
    model, studies = fitted("linear", head, make_collection(6), encoder)
    summary = scores(model, studies)
    assert summary.get("auroc", 1.0) == 1.0 and summary.get("correlation", 1.0) > 0.8
    before = [p.clone() for p in encoder.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))


def test_what_the_shipped_models_measure_is_what_there_is(tmp_path: Path) -> None:
    """Brains of known volumes, and a map that is learnt on them."""
    cohort = CohortConfig(spacing_mm=2.0, contrasts=("T1w", "FLAIR"), missing_series=0.0, splits={"train": 1.0})
    collection = read_manifest(write_cohort(tmp_path, cohort, 3))
    model = baseline(
        "measured", parse_head({"kind": "regression", "target": "cerebellum_ml", "name": "x", "unit": "mL"}), None
    )
    studies = read_labelled(collection, collection.rows, model.head, (4.0, 4.0, 4.0), label="read")
    model.head.meet([study.targets for study in studies])
    model.fit(studies)
    for study in studies:
        size, *shares = np.exp(model._features(study.prepared))  # type: ignore[attr-defined]
        named = dict(zip((name for _, name in model.names), shares, strict=True))  # type: ignore[attr-defined]
        truth = float(study.targets["cerebellum_ml"]) / float(study.targets["brain_ml"])
        assert 700 < size < 2000
        assert named["cerebellum"] == pytest.approx(truth, rel=0.35)
    said = [float(model.output_of(study.prepared)) for study in studies]
    assert np.corrcoef(said, [study.targets["cerebellum_ml"] for study in studies])[0, 1] > 0.9


@pytest.mark.parametrize(
    ("recipe", "head"), [("dynunet", {**CORE, "kind": "detection"}), ("densenet", LARGE), ("densenet", SIZE)]
)
def test_a_network_is_scored_by_the_tasks_own_head_and_learns_every_weight(
    make_collection, recipe: str, head: dict
) -> None:
    torch.manual_seed(0)
    config = parse_head(head)
    model = network(recipe, config)
    collection = read_manifest(make_collection(2))
    studies = read_labelled(collection, collection.rows, model.head, (4.0, 4.0, 4.0), label="read")
    model.head.meet([study.targets for study in studies])
    samples = [
        StudySample.of(
            one.prepared,
            None if one.labels is None else one.prepared.labels_to_grid(model.head.classes_of(one.labels)),
            one.targets,
        )
        for one in studies
    ]
    model(StudyBatch.of(samples, dense=model.head.sees_voxels))["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    cases = [
        model.head.score_case(model.output_of(one.prepared), one.prepared, one.labels, one.targets) for one in studies
    ]
    own = baseline("atlas" if recipe == "dynunet" else "majority", config, None).head
    assert set(model.head.summarise(cases)) == set(own.summarise(cases))


def test_a_baseline_that_cannot_do_the_task_says_what_it_does(encoder: Encoder) -> None:
    for recipe, head in (
        ("atlas", LARGE),
        ("majority", CORE),
        ("linear", CORE),
        ("measured", CORE),
        ("threshold", LARGE),
    ):
        with pytest.raises(InputError, match="does the task's kind"):
            baseline(recipe, parse_head(head), encoder)
    for recipe, head in (("dynunet", LARGE), ("densenet", CORE), ("densenet", {"kind": "anomaly"})):
        with pytest.raises(InputError, match="does the task's kind"):
            network(recipe, parse_head(head))
    with pytest.raises(InputError, match="encoder"):
        baseline("linear", parse_head(LARGE), None)
    assert set(FITTED).isdisjoint(NETWORKS)


def test_networks_see_each_contrast_in_its_own_channel(make_collection) -> None:
    collection = read_manifest(make_collection(1))
    series = read_study(collection.rows[0], collection.root).series[0]
    study = Study("x", tuple(replace(series, contrast=contrast) for contrast in ("T2w", "T1w", "T2w")))
    batch = StudyBatch.of([StudySample.of(prepare_study(study, (4.0, 4.0, 4.0)))], dense=True)
    batch.voxels.copy_(torch.tensor([1.0, 2.0, 3.0])[None, :, None, None, None])
    seen = _by_contrast(batch)[0, :, 0, 0, 0]
    expected = torch.zeros(len(CONTRASTS))
    expected[contrast_index("T2w")], expected[contrast_index("T1w")] = 2.0, 2.0
    assert torch.equal(seen, expected)
