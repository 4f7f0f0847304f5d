"""Resampling against a slow, independent way; orientation by all 48 ways of storing one volume; bodies; intensities."""

from itertools import permutations, product

import nibabel as nib
import nibabel.processing
import numpy as np
import pytest
import torch
from scipy import ndimage

from foundation.errors import InputError
from foundation.preprocess import (
    Grid,
    Intensity,
    find_body,
    from_closest_ras,
    prepare_study,
    resample,
    resample_series,
    sample_at,
    to_closest_ras,
)
from foundation.study import Series, Study


def series(shape: tuple[int, int, int], affine: np.ndarray, seed: int = 0) -> Series:
    return Series(np.random.default_rng(seed).random(shape).astype(np.float32), affine)


def all_ways_of_storing() -> list[np.ndarray]:
    matrices = []
    for order, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = 0
        for axis, (row, sign) in enumerate(zip(order, signs, strict=True)):
            affine[row, axis] = sign * (1.0 + axis)
        affine[:3, 3] = (5.0, -7.0, 11.0)
        matrices.append(affine)
    return matrices


@pytest.mark.parametrize("affine", all_ways_of_storing(), ids=lambda a: "".join(nib.aff2axcodes(a)))
def test_reorienting_moves_no_voxel_and_comes_back(affine: np.ndarray) -> None:
    given = series((3, 4, 5), affine)
    ras = to_closest_ras(given)
    assert ras.orientation == "RAS"
    for voxel in np.ndindex(given.shape):
        there = np.linalg.inv(ras.affine) @ affine @ (*voxel, 1)
        assert given.voxels[voxel] == ras.voxels[tuple(np.round(there[:3]).astype(int))]
    assert np.array_equal(from_closest_ras(ras.voxels, given), given.voxels)


@pytest.mark.parametrize("spacing", [(0.5, 0.7, 0.9), (1.0, 1.0, 2.0), (1.3, 0.8, 1.0)])
def test_finer_spacing_equals_nibabel(spacing: tuple[float, float, float]) -> None:
    """Where no averaging is needed, resampling is trilinear interpolation, as nibabel does it on any affine."""
    given = series((9, 10, 11), np.diag([1.5, 1.0, 2.0, 1.0]))
    ours = resample_series(given, np.minimum(spacing, given.spacing_mm))
    image = nib.Nifti1Image(given.voxels, given.affine)
    theirs = nibabel.processing.resample_from_to(image, (ours.shape, ours.affine), order=1, mode="nearest")
    assert np.allclose(ours.voxels, theirs.get_fdata(), atol=1e-5)


def test_coarser_spacing_averages() -> None:
    """White noise must lose variance: picking single voxels would keep it, and alias."""
    given = series((40, 40, 40), np.eye(4))
    coarse = resample_series(given, (4.0, 4.0, 4.0))
    assert coarse.voxels.std() < 0.2 * given.voxels.std()
    assert coarse.voxels.mean() == pytest.approx(given.voxels.mean(), abs=0.01)


def test_a_linear_ramp_stays_where_it_is_in_the_patient() -> None:
    affine = np.array([[0, 0, 2.0, 5], [-1.5, 0, 0, 6], [0, 1.0, 0, 7], [0, 0, 0, 1]])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (12, 14, 10)), indexing="ij"), axis=-1)
    given = Series(nib.affines.apply_affine(affine, index)[..., 1].astype(np.float32), affine)
    for spacing in (0.8, 1.0, 1.6):  # where the ratio is no whole number the filter shifts by 2 % of a voxel
        other = resample_series(to_closest_ras(given), (spacing,) * 3)
        inner = (slice(3, -3),) * 3
        assert np.allclose(other.voxels[inner], Grid.of(other).points_mm()[inner][..., 1], atol=0.03)


def test_there_and_back_keeps_a_smooth_volume() -> None:
    x = np.linspace(0, np.pi, 32)
    voxels = (np.sin(x)[:, None, None] * np.sin(x)[None, :, None] * np.sin(x)).astype(np.float32)
    grid = Grid((32, 32, 32), np.eye(4))
    coarse = grid.with_spacing((2.0, 2.0, 2.0))
    back = resample(resample(torch.from_numpy(voxels), grid, coarse), coarse, grid)
    assert (back - torch.from_numpy(voxels)).abs().max() < 0.08


def test_sampling_at_its_own_grid_is_the_identity() -> None:
    given = series((6, 7, 8), nib.affines.from_matvec(np.diag([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])))
    assert np.allclose(sample_at(given.voxels, given.affine, Grid.of(given)), given.voxels)


def head(shape: tuple[int, int, int] = (48, 56, 52)) -> tuple[Series, np.ndarray]:
    """A bright shell (scalp), a dark one (skull), a grey inside with a black hole (fluid), in noisy air."""
    rng = np.random.default_rng(0)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    radius = np.linalg.norm((index - np.array(shape) / 2) / (np.array(shape) / 2 - 5), axis=-1)
    voxels = np.select([radius < 0.2, radius < 0.8, radius < 0.9, radius < 1], [3.0, 60.0, 5.0, 120.0], 0.0)
    voxels = np.abs(voxels + 3 * rng.standard_normal(shape)).astype(np.float32)
    return Series(voxels, np.diag([3.0, 3.0, 3.0, 1.0])), radius < 1


def test_the_body_holds_skull_and_fluid_and_leaves_air_out() -> None:
    given, truth = head()
    body = find_body(given)
    assert (body & truth).sum() > 0.995 * truth.sum()
    assert not (body & ~ndimage.binary_dilation(truth, iterations=3)).any(), "it ends within 9 mm of the skin"
    assert body[24, 28, 26], "fluid in the middle is body"
    assert not body[0, 0, 0]


def test_a_crop_inside_the_head_is_all_body() -> None:
    rng = np.random.default_rng(0)
    crop = Series((80 + 20 * rng.random((30, 40, 30))).astype(np.float32), np.eye(4))
    assert find_body(crop).mean() > 0.95


def test_a_constant_series_is_an_input_error() -> None:
    with pytest.raises(InputError, match="shows something"):
        find_body(Series(np.full((8, 8, 8), 7.0, dtype=np.float32), np.eye(4)))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_normalised_intensities_do_not_depend_on_the_scanner_scale(scale: float) -> None:
    """The hippocampus collection's files differ by four orders of magnitude."""
    given, _ = head()
    body = find_body(given)
    reference = Intensity.of(given.voxels, body).apply(given.voxels)
    scaled = (given.voxels * np.float32(scale)).astype(np.float32)
    assert np.allclose(Intensity.of(scaled, body).apply(scaled), reference, atol=1e-3)
    assert abs(reference[body].mean()) < 0.05
    assert reference[body].std() == pytest.approx(1, abs=0.05)


def test_series_of_one_study_meet_on_one_grid() -> None:
    """The same ball stored as RAS at 2 mm and as PSR with thick slices lands on the same voxels."""
    fine, _ = head((60, 60, 60))
    thick = resample_series(fine, (3.0, 3.0, 6.0))
    turned = thick.with_voxels(
        np.ascontiguousarray(thick.voxels.transpose(1, 2, 0)[::-1]),
        thick.affine @ np.array([[0, 0, 1, 0], [-1, 0, 0, thick.shape[1] - 1], [0, 1, 0, 0], [0, 0, 0, 1.0]]),
    )
    assert turned.orientation == "PSR"
    prepared = prepare_study(Study("two", (fine, turned)), (3.0, 3.0, 3.0))
    assert prepared.voxels.shape == (2, *prepared.grid.shape)
    inside = prepared.body.all(axis=0)
    assert np.corrcoef(prepared.voxels[0][inside], prepared.voxels[1][inside])[0, 1] > 0.85


def test_a_snapped_grid_forgets_how_its_origin_was_rounded() -> None:
    affine = np.diag([1.1, 0.7, 2.3, 1.0])
    affine[:3, 3] = (-90.123, 17.77, 3.2)
    grid = Grid((21, 34, 15), affine)
    snapped = grid.snapped()
    centre = np.array([10.0, 16.5, 7.0, 1.0])
    assert np.allclose((snapped.affine @ centre)[:3] * 64 - np.round((snapped.affine @ centre)[:3] * 64), 0, atol=1e-9)
    assert np.abs(snapped.affine - affine).max() <= 1 / 128 and np.array_equal(snapped.affine[:3, :3], affine[:3, :3])
    for nudge in ((4e-6, -3e-6, 5e-6), (-6e-6, 2e-6, 1e-6)):
        moved = affine.copy()
        moved[:3, 3] += nudge
        assert np.array_equal(Grid(grid.shape, moved).snapped().affine, snapped.affine)


@pytest.mark.parametrize("affine", [np.diag([1.0, 1.0, 1.0, 1.0]), np.diag([-1.2, 0.9, 1.1, 1.0])])
def test_labels_go_to_the_grid_and_back(affine: np.ndarray) -> None:
    given, _ = head()
    given = given.with_voxels(given.voxels, affine)
    labels = np.zeros(given.shape, dtype=np.int16)
    labels[10:30, 20:40, 15:35], labels[30:40, 20:40, 15:35] = 1, 2
    prepared = prepare_study(Study("labels", (given,)), (1.0, 1.0, 1.0))
    on_grid = prepared.labels_to_grid(labels)
    scores = torch.stack([torch.from_numpy((on_grid == value).astype(np.float32)) for value in range(3)])
    back = prepared.labels_from_grid(scores)
    assert back.shape == labels.shape
    for value in (1, 2):
        assert (
            2 * ((back == value) & (labels == value)).sum() / ((back == value).sum() + (labels == value).sum()) > 0.95
        )
