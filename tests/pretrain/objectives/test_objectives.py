"""One contract for every objective, and masked autoencoding against a slow second way of writing it."""

from pathlib import Path

import pytest
import torch

from foundation.config import load_config, parse_config
from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError
from foundation.reading.collection import read_manifest
from foundation.training import Draw
from pretrain.__main__ import pretrain
from pretrain.config import CropConfig, PretrainConfig
from pretrain.masking import MaskedBatch
from pretrain.objectives import objective_kinds, objective_module, parse_objective
from pretrain.objectives.masked_autoencoding import FLAT_VARIANCE
from pretrain.samples import FiledStudies, MaskedStudies

CROP = CropConfig(voxels=24, spacing_mm=(4.0, 4.5), max_tokens=64, max_targets=16)


@pytest.fixture
def batch(make_collection) -> MaskedBatch:
    collection = read_manifest(make_collection(4))
    studies = MaskedStudies(FiledStudies(collection, collection.rows), CROP)
    return studies.collate([studies[Draw(index, index)] for index in range(4)])


def make(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return objective_module(kind).Objective(Encoder(EncoderConfig(width=64, depth=2)), parse_objective({"kind": kind}))


def test_there_are_objectives() -> None:
    assert "masked_autoencoding" in objective_kinds()


@pytest.mark.parametrize("kind", objective_kinds())
def test_every_objective_gives_a_finite_loss_and_every_weight_a_gradient(kind: str, batch: MaskedBatch) -> None:
    objective = make(kind)
    for tokens in (
        batch.visible,
        batch.targets,
    ):  # phantoms say nothing of how they were acquired; weights for it must learn too
        tokens.acquisition.fill_(1.0)
    losses = objective(batch)
    assert all(torch.isfinite(value) and value.ndim == 0 for value in losses.values())
    losses["loss"].backward()
    without = [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("kind", objective_kinds())
def test_every_objective_learns_a_batch(kind: str, batch: MaskedBatch) -> None:
    objective = make(kind)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    values = []
    for _ in range(25):
        loss = objective(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.item())
    assert values[-1] < 0.8 * values[0]


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
