"""Uncertainty and quality against loops over voxels, and in the place where they belong."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from finetune.samples import LabelledStudy
from finetune.trust.uncertainty import (
    entropy,
    foreground_confidence,
    pairwise_dice,
    quality_scores,
    soft_dice,
    write_entropy,
)
from foundation.preprocess import prepare_study
from foundation.reading.collection import read_manifest, read_study
from heads.base import TaskModel

SPACING = (4.0, 4.0, 4.0)


@pytest.fixture
def probabilities() -> torch.Tensor:
    return (3 * torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0))).softmax(dim=0)


def test_scores_are_those_of_loops_over_voxels(probabilities: torch.Tensor) -> None:
    p = probabilities.numpy().astype(float)
    index = list(np.ndindex(p.shape[1:]))
    likeliest = {v: int(np.argmax(p[(slice(None), *v)])) for v in index}
    dice = []
    for value in (1, 2):
        shared = sum(p[(value, *v)] for v in index if likeliest[v] == value)
        dice.append(2 * shared / (p[value].sum() + sum(one == value for one in likeliest.values())))
    assert soft_dice(probabilities) == pytest.approx(np.mean(dice), abs=1e-5)
    inside = [p[(likeliest[v], *v)] for v in index if likeliest[v] > 0]
    assert foreground_confidence(probabilities) == pytest.approx(np.mean(inside), abs=1e-5)
    naive = [-sum(x * np.log(x) for x in p[(slice(None), *v)]) / np.log(3) for v in index]
    assert np.allclose(entropy(probabilities).numpy().ravel(), naive, atol=1e-5)


def test_the_ends_of_the_scales() -> None:
    sure = torch.nn.functional.one_hot(torch.tensor([[[0, 1]]]), 2).movedim(-1, 0).float()
    assert soft_dice(sure) == 1 and foreground_confidence(sure) == 1 and entropy(sure).max() < 1e-6
    even = torch.full((4, 1, 1, 2), 0.25)
    assert torch.allclose(entropy(even), torch.ones(1, 1, 2)) and soft_dice(even) == foreground_confidence(even) == 0


def test_agreement_is_the_dice_of_each_two() -> None:
    maps = [torch.randint(0, 3, (4, 4, 4), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    values = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        a, b = maps[i].numpy(), maps[j].numpy()
        values.append(np.mean([2 * ((a == v) & (b == v)).sum() / ((a == v).sum() + (b == v).sum()) for v in (1, 2)]))
    assert pairwise_dice(maps) == pytest.approx(np.mean(values))
    assert pairwise_dice([maps[0], maps[0]]) == 1
    assert pairwise_dice([torch.zeros(2, 2, 2).long()] * 2) == 1


def test_more_looks_are_averaged_and_drawn_by_the_seed(model: TaskModel, make_collection) -> None:
    collection = read_manifest(make_collection(1))
    prepared = prepare_study(read_study(collection.rows[0], collection.root), SPACING)
    output = model.output_of(prepared)
    alone, own = quality_scores(model, prepared, output, passes=0, mirror=False, seed=0)
    assert set(alone) == {"soft Dice", "confidence"}
    x, y, z = prepared.grid.shape
    assert torch.equal(own, output[0, :, :x, :y, :z].softmax(dim=0))
    looks = [quality_scores(model, prepared, output, passes=2, mirror=True, seed=seed) for seed in (0, 0, 1)]
    assert set(looks[0][0]) == {"agreement", "soft Dice", "confidence"}
    assert torch.equal(looks[0][1], looks[1][1]) and not torch.equal(looks[0][1], looks[2][1])
    assert torch.allclose(looks[0][1].sum(dim=0), torch.ones(x, y, z), atol=1e-5)
    # A head that is its own mirror image is looked at twice, and both looks are put back onto each other.
    both = prepared.voxels + prepared.voxels[:, ::-1]
    even = type(prepared)(prepared.study, prepared.grid, both, prepared.body | prepared.body[:, ::-1])
    _, mean = quality_scores(model, even, model.output_of(even), passes=0, mirror=True, seed=0)
    assert torch.allclose(mean, mean.flip(1), atol=1e-5)


def test_the_map_lies_on_the_files_own_voxels(model: TaskModel, make_collection, tmp_path: Path) -> None:
    """A voxel that is unsure on the grid is unsure at the same place of the patient in the file."""
    collection = read_manifest(make_collection(3))
    for row in collection.rows:
        study = read_study(row, collection.root)
        labelled = LabelledStudy(row, prepare_study(study, SPACING), None)
        unsure = torch.tensor([1.0, 0.0])[:, None, None, None].repeat(1, *labelled.prepared.grid.shape)
        place = np.array([5, 9, 12])
        unsure[:, 5, 9, 12] = 0.5
        write_entropy(tmp_path / f"{row.subject}.nii.gz", unsure, labelled)
        image = nib.loadsave.load(tmp_path / f"{row.subject}.nii.gz")
        brightest = np.unravel_index(np.argmax(image.get_fdata()), image.shape)
        found = nib.affines.apply_affine(image.affine, brightest)
        assert np.allclose(found, nib.affines.apply_affine(labelled.prepared.grid.affine, place), atol=0.02)
        assert np.allclose(image.affine, study.reference.affine)
