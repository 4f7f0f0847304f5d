"""One contract for every objective, and masked autoencoding against a slow second way of writing it."""

from dataclasses import is_dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from foundation.cohort.materials import STRUCTURES
from foundation.config import load_config, parse_config
from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError
from foundation.reading.collection import read_manifest
from foundation.tokens import Tokens
from foundation.training import Draw, read_records
from heads.base import load_task
from pretrain.__main__ import pretrain
from pretrain.config import CropConfig, PretrainConfig
from pretrain.masking import MaskedBatch
from pretrain.objectives import objective_kinds, objective_module, parse_objective
from pretrain.objectives.agreement import Views
from pretrain.objectives.base import Objective
from pretrain.objectives.masked_autoencoding import FLAT_VARIANCE
from pretrain.samples import FiledStudies

CROP = CropConfig(voxels=24, spacing_mm=(4.0, 4.5), max_tokens=64, max_targets=16)


SMALL_COHORT = {"subjects": 2, "spacing_mm": 4.0, "contrasts": ["T1w", "FLAIR"], "missing_series": 0.0}
FREE_TRUTH = {
    "kind": "free_truth",
    "cohort": SMALL_COHORT,
    "voxels": 24,
    "spacing_mm": [4.0, 5.0],
    "channels": [4, 6, 8],
}
# What a kind needs to be small; every kind that exists is tested, with its defaults where it is not named here.
SETTINGS = {
    "free_truth": FREE_TRUTH,
    "mixture": {"kind": "mixture", "terms": [{"kind": "masked_autoencoding"}, {"kind": "agreement"}, FREE_TRUTH]},
}


@pytest.fixture
def studies(make_collection) -> FiledStudies:
    collection = read_manifest(make_collection(4))
    return FiledStudies(collection, collection.rows)


def make(kind: str) -> Objective:
    torch.manual_seed(0)
    config = parse_objective(SETTINGS.get(kind, {"kind": kind}))
    return objective_module(kind).Objective(Encoder(EncoderConfig(width=64, depth=2)), config)


def batch_of(objective: Objective, studies: FiledStudies, num: int = 4):
    samples = objective.make_samples(studies, CROP)
    return samples.collate([samples[Draw(index % len(samples), index)] for index in range(num)])


@pytest.fixture
def batch(studies: FiledStudies) -> MaskedBatch:
    return batch_of(make("masked_autoencoding"), studies)


def bags_in(batch) -> list[Tokens]:
    """Every bag of tokens in a batch, however deep."""
    if isinstance(batch, Tokens):
        return [batch]
    parts = batch if isinstance(batch, tuple) else vars(batch).values() if is_dataclass(batch) else ()
    return [bag for part in parts for bag in bags_in(part)]


def test_there_are_objectives() -> None:
    assert {"masked_autoencoding", "agreement", "free_truth", "mixture"} <= set(objective_kinds())


@pytest.mark.parametrize("kind", objective_kinds())
def test_every_objective_gives_a_finite_loss_and_every_weight_a_gradient(kind: str, studies: FiledStudies) -> None:
    objective = make(kind)
    batch = batch_of(objective, studies)
    for tokens in bags_in(batch):
        tokens.acquisition.fill_(1.0)  # phantoms say nothing of how they were acquired; weights for it must learn too
    losses = objective(batch)
    assert all(torch.isfinite(value) and value.ndim == 0 for value in losses.values())
    losses["loss"].backward()
    without = [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("kind", objective_kinds())
def test_every_objective_learns_a_batch(kind: str, studies: FiledStudies) -> None:
    objective = make(kind)
    batch = batch_of(objective, studies)
    optimizer = torch.optim.AdamW(
        objective.parameters(), lr=1e-2 if kind == "free_truth" else 3e-3
    )  # convolutions are slower
    values = []
    for _ in range(25):
        loss = objective(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.item())
    assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize("kind", objective_kinds())
def test_a_sample_is_a_pure_function_of_its_draw(kind: str, studies: FiledStudies) -> None:
    """Not of what was drawn before: a resumed run, and one on more processes, must see the same."""
    first, second = (make(kind).make_samples(studies, CROP) for _ in range(2))
    second[Draw(1, 99)]
    one, other = (samples.collate([samples[Draw(0, 7)], samples[Draw(1, 8)]]) for samples in (first, second))
    assert bags_in(one), kind
    for here, there in zip(bags_in(one), bags_in(other), strict=True):
        assert torch.equal(here.patches, there.patches) and torch.equal(here.centre_mm, there.centre_mm)
    again = second.collate([second[Draw(0, 9)], second[Draw(1, 10)]])
    assert not torch.equal(bags_in(one)[0].centre_mm.sum(), bags_in(again)[0].centre_mm.sum())


def test_the_loss_equals_a_naive_one(batch: MaskedBatch) -> None:
    """Study by study, patch by patch, with the mean and spread of each patch taken by hand."""
    objective = make("masked_autoencoding").eval()
    with torch.no_grad():
        ours = objective(batch)["loss"].item()
        total, number = 0.0, 0
        for study in range(len(batch.targets.patches)):
            one = torch.tensor([study])
            visible, targets = (_only(tokens, one) for tokens in (batch.visible, batch.targets))
            predicted = objective.reconstruct(visible, targets)[0]
            for patch, guess in zip(targets.patches[0].double(), predicted.double(), strict=True):
                mean = patch.sum() / 512
                variance = ((patch - mean) ** 2).sum() / 512
                total += float(((guess - (patch - mean) / (variance + FLAT_VARIANCE) ** 0.5) ** 2).sum())
                number += 512
    assert ours == pytest.approx(total / number, rel=1e-4)


def test_the_targets_voxels_are_not_looked_at(batch: MaskedBatch) -> None:
    objective = make("masked_autoencoding").eval()
    with torch.no_grad():
        before = objective.reconstruct(batch.visible, batch.targets)
        batch.targets.patches.zero_()
        assert torch.equal(before, objective.reconstruct(batch.visible, batch.targets))


def _only(tokens, study):
    from dataclasses import replace

    from foundation.tokens import TENSOR_FIELDS

    return replace(tokens, **{name: getattr(tokens, name)[study] for name in TENSOR_FIELDS})


def test_pretraining_from_config_to_model_folder(make_collection, tmp_path: Path) -> None:
    from pretrain.__main__ import main

    manifest, folder = make_collection(4), tmp_path / "run"
    config = tmp_path / "config.yaml"
    config.write_text(f"manifest: {manifest}\nfolder: {folder}\nsplits: null\n")
    small = [
        "crop.voxels=24",
        "crop.spacing_mm=[4.0,4.5]",
        "training.steps=3",
        "training.batch_size=2",
        "training.warmup_steps=1",
    ]
    assert main([str(config), *small]) == 0
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "loss.png",
        "reconstruction.png",
        "model/card.md",
        "model/config.json",
    ):
        assert (folder / name).stat().st_size > 0, name
    Encoder.load(folder / "model")
    assert load_config(PretrainConfig, folder / "config.yaml").training.steps == 3


def test_no_studies_and_a_typo_are_one_line_and_exit_2(make_collection, tmp_path: Path, capsys) -> None:
    from pretrain.__main__ import main

    config = tmp_path / "config.yaml"
    config.write_text(f"manifest: {make_collection(4)}\nfolder: {tmp_path / 'run'}\n")
    assert main([str(config)]) == 2
    assert "has studies" in capsys.readouterr().err
    assert main([str(config), "trainig.steps=3"]) == 2
    assert "Did you mean 'training'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists(), "nothing is written"


def test_pretraining_draws_patients_without_files(tmp_path: Path) -> None:
    """From the cohort's stream, to a model folder that says where its data came from."""
    values = {
        "folder": str(tmp_path),
        "cohort": {"subjects": 2, "spacing_mm": 4.0, "contrasts": ["T1w"]},
        "crop": CROP.model_dump(),
        "training": {"steps": 2, "batch_size": 2, "warmup_steps": 1},
    }
    folder = pretrain(parse_config(PretrainConfig, values))
    assert "synthetic cohort" in (folder / "card.md").read_text()
    assert Encoder.load(folder).config.width == 192


def test_a_mixture_stops_and_goes_on_and_leaves_a_start_for_segmentation(make_collection, tmp_path: Path) -> None:
    """The encoder that its terms share is saved once; the dense path opens as a task; the probe's figures are in the records."""
    manifest = make_collection(12)
    values = {
        "manifest": str(manifest),
        "splits": None,
        "folder": str(tmp_path / "run"),
        "objective": SETTINGS["mixture"],
        "crop": CROP.model_dump(),
        "probe": {"manifest": str(manifest), "spacing_mm": [4.0] * 3, "target": "large", "structures": [1], "every": 2},
        "training": {"steps": 2, "batch_size": 2, "warmup_steps": 1, "ema_decay": 0.9, "checkpoint_every": 2},
    }
    pretrain(parse_config(PretrainConfig, values))
    folder = pretrain(parse_config(PretrainConfig, values | {"training": values["training"] | {"steps": 4}}))
    model, task, _ = load_task(tmp_path / "run" / "dense")
    encoder = Encoder.load(folder)
    assert all(torch.equal(one, other) for one, other in zip(encoder.parameters(), model.encoder.parameters()))
    assert len(task.head.structures) == len(STRUCTURES)
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records if "probe/dice" in record] == [2, 4]
    assert {"masked_autoencoding/loss", "agreement/recognised", "free_truth/maps"} <= set(records[-1])
    for name in ("structures.png", "reconstruction.png", "probe.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"terms": [{"kind": "agreement"}, {"kind": "agreement"}]}, "different kinds"),
        ({"terms": []}, "different kinds"),
        ({"terms": [{"kind": "agreement"}], "weights": {"agrement": 1.0}}, "Did you mean 'agreement'"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(settings, words) -> None:
    with pytest.raises(InputError, match=words):
        parse_objective({"kind": "mixture", **settings})


def test_agreement_is_lost_when_the_views_are_of_others(studies: FiledStudies) -> None:
    """What was learnt is to tell studies apart: with the other views in another order it is worse than chance."""
    objective = make("agreement")
    batch = batch_of(objective, studies)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(25):
        objective(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        right = objective(batch)["loss"]
        others = Views(batch.one, _only(batch.other, torch.tensor([1, 2, 3, 0])), batch.study)
        assert objective(others)["loss"] > right + 1


def test_agreement_does_not_push_two_draws_of_one_study_apart(studies: FiledStudies) -> None:
    objective = make("agreement").eval()
    samples = objective.make_samples(studies, CROP)
    batch = samples.collate([samples[Draw(index, seed)] for seed, index in enumerate((0, 1, 0, 2))])
    one, other = (
        nn.functional.normalize(objective.project(objective.encoder(view).registers.mean(1)), dim=1)
        for view in (batch.one, batch.other)
    )
    likeness = one @ other.T / objective.config.temperature
    naive = []
    for way in (likeness, likeness.T):
        for row, study in enumerate((0, 1, 0, 2)):
            rivals = [column for column, theirs in enumerate((0, 1, 0, 2)) if theirs != study or column == row]
            naive.append(way[row, rivals].logsumexp(0) - way[row, row])
    assert objective(batch)["loss"].item() == pytest.approx(torch.stack(naive).mean().item(), rel=1e-4)
    with pytest.raises(InputError, match="compares a study with others"):
        objective(samples.collate([samples[Draw(0, 1)]]))


def test_free_truth_alone_draws_its_own_patients(tmp_path: Path) -> None:
    values = {"folder": str(tmp_path), "objective": FREE_TRUTH, "training": {"steps": 1, "batch_size": 1}}
    folder = pretrain(parse_config(PretrainConfig, values))
    assert "on 2 studies of a synthetic cohort" in (folder / "card.md").read_text()
    with pytest.raises(InputError, match="draws its own patients"):
        parse_config(PretrainConfig, values | {"manifest": "a.jsonl"})


def test_a_run_does_not_continue_as_another(make_collection, tmp_path: Path) -> None:
    """Neither with other data nor with other settings; a refused command leaves the run's own config where it is."""
    manifest, folder = make_collection(4), tmp_path / "run"
    values = {
        "manifest": str(manifest),
        "splits": None,
        "folder": str(folder),
        "crop": CROP.model_dump(),
        "training": {"steps": 2, "batch_size": 2, "warmup_steps": 1, "checkpoint_every": 1},
    }
    pretrain(parse_config(PretrainConfig, values))
    before = (folder / "config.yaml").read_text()
    changes = [
        {"splits": ["train"]},
        {"objective": {"kind": "masked_autoencoding", "noise": 0.5}},
        {"crop": CROP.model_dump() | {"visible_fraction": 0.5}},
        {"layer_decay": 0.5},
    ]
    for change in changes:
        with pytest.raises(InputError, match="a run continues with the"):
            pretrain(parse_config(PretrainConfig, values | change))
        assert (folder / "config.yaml").read_text() == before


def test_free_truth_is_where_the_head_is(studies: FiledStudies) -> None:
    """Labels, maps and voxels of a box lie on one another: fluid is dark in T1w and has the longest T1, air has none."""
    settings = FREE_TRUTH | {"voxels": 48, "spacing_mm": [4.0, 4.0], "cohort": SMALL_COHORT | {"contrasts": ["T1w"]}}
    config = parse_objective(settings)
    sample = objective_module("free_truth").TruthStudies(config, make("free_truth").head)[Draw(0, 3)]
    assert sample.study.labels is not None
    names = list(STRUCTURES)
    fluid, white, air = (
        sample.study.labels == (0 if n is None else 1 + names.index(n))
        for n in ("lateral ventricle", "cerebral white matter", None)
    )
    voxels = sample.study.voxels[0]
    assert voxels[fluid].mean() < voxels[white].mean() > voxels[air].mean()
    t1 = sample.maps[0].exp() * 1000
    assert 3000 < t1[fluid & sample.is_tissue].median() < 5500 and 500 < t1[white & sample.is_tissue].median() < 1200
    assert (sample.is_tissue[air]).float().mean() < 0.1 and sample.is_tissue[white].float().mean() > 0.95


def test_small_boxes_are_near_what_is_asked_for(studies: FiledStudies) -> None:
    settings = FREE_TRUTH | {"voxels": 16, "spacing_mm": [4.0, 4.0], "cohort": SMALL_COHORT | {"contrasts": ["T1w"]}}
    head = make("free_truth").head
    for near in (["cerebellum"], ["lateral ventricle", "thalamus"]):
        samples = objective_module("free_truth").TruthStudies(parse_objective(settings | {"near": near}), head)
        classes = [1 + list(STRUCTURES).index(name) for name in near]
        for seed in range(6):
            labels = samples[Draw(0, seed)].study.labels
            assert labels is not None and torch.isin(labels, torch.tensor(classes)).any()
    with pytest.raises(InputError, match="Did you mean 'hippocampus'"):
        parse_objective(settings | {"near": ["hipocampus"]})


def test_a_power_bends_contrast_and_nothing_else(studies: FiledStudies) -> None:
    settings = FREE_TRUTH | {"voxels": 48, "spacing_mm": [4.0, 4.0], "cohort": SMALL_COHORT | {"contrasts": ["T1w"]}}
    head = make("free_truth").head
    plain, bent = (
        objective_module("free_truth")
        .TruthStudies(parse_objective(settings | {"gamma": gamma}), head)[Draw(0, 5)]
        .study
        for gamma in (1.0, 3.0)
    )
    assert torch.equal(plain.labels, bent.labels) and torch.equal(plain.body, bent.body)
    one, other = plain.voxels.flatten(), bent.voxels.flatten()
    order = one.argsort()
    assert (other[order].diff() >= 0).all() and not torch.allclose(one, other, atol=0.1)
    inside = bent.voxels[bent.body]
    assert inside.mean().abs() < 1e-4 and abs(inside.std() - 1) < 1e-3


def test_structures_that_are_not_told_apart_are_background(studies: FiledStudies) -> None:
    settings = FREE_TRUTH | {"voxels": 48, "spacing_mm": [4.0, 4.0], "cohort": SMALL_COHORT | {"contrasts": ["T1w"]}}
    told_apart = ["cerebellum", "cerebral white matter"]

    def labels_with(**change: list[str]) -> torch.Tensor:
        config = parse_objective(settings | change)
        head = objective_module("free_truth").Objective(make("free_truth").encoder, config).head
        labels = objective_module("free_truth").TruthStudies(config, head)[Draw(0, 3)].study.labels
        assert labels is not None
        return labels

    every, some = labels_with(), labels_with(structures=told_apart)
    expected = torch.zeros_like(every)
    for index, name in enumerate(told_apart, start=1):
        expected[every == 1 + list(STRUCTURES).index(name)] = index
    assert torch.equal(some, expected) and set(some.unique().tolist()) == {0, 1, 2}


def test_pretraining_has_exactly_one_source() -> None:
    for values in ({}, {"manifest": "a.jsonl", "cohort": {}}):
        with pytest.raises(InputError, match="one source"):
            parse_config(PretrainConfig, values)
