"""One contract for every objective, and masked autoencoding against a slow second way of writing it."""

from dataclasses import is_dataclass
from pathlib import Path

import pytest
import torch

from foundation.config import load_config, parse_config
from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError
from foundation.reading.collection import read_manifest
from foundation.tokens import Tokens
from foundation.training import Draw
from pretrain.__main__ import pretrain
from pretrain.config import CropConfig, PretrainConfig
from pretrain.masking import MaskedBatch
from pretrain.objectives import objective_kinds, objective_module, parse_objective
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


def test_pretraining_has_exactly_one_source() -> None:
    for values in ({}, {"manifest": "a.jsonl", "cohort": {}}):
        with pytest.raises(InputError, match="one source"):
            parse_config(PretrainConfig, values)
