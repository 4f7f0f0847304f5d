"""Synthetic heads: nothing folds, the truth can be counted in the files, positions survive every grid."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from foundation.cohort.anatomy import (
    LABELS,
    LEVELS,
    RANDOM,
    Subject,
    acquire,
    block_mean,
    deformation,
    head,
    jacobian_determinant,
    label_map,
    render,
    smooth_noise,
    targets,
    template,
    write_cohort,
)
from foundation.errors import InputError
from foundation.reading.collection import read_manifest, read_mask, read_study

SPACING_MM = 4.0  # the whole file in seconds


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("anatomy") / "cohort"
    return read_manifest(write_cohort(folder, 12, seed=0, spacing_mm=SPACING_MM, contrasts=("T1w", "T2w", RANDOM)))


def centroid_mm(labels: np.ndarray, affine: np.ndarray, name: str) -> np.ndarray:
    return nib.affines.apply_affine(affine, np.argwhere(labels == LABELS[name]).mean(0))


def test_the_template_has_its_structures_where_they_belong():
    mni = template(SPACING_MM)
    assert mni.fractions.min() > -1e-5 and mni.fractions.sum(0).max() < 1 + 1e-5
    ml = targets(mni.labels, SPACING_MM**3 / 1000)
    assert 15 < ml["ventricle_ml"] < 30 and 1700 < ml["intracranial_ml"] < 2100
    # The template is exactly symmetric: half a voxel of displacement would show in x.
    fractions = mni.fractions[:7].numpy()
    x_mm = mni.affine[0, 0] * np.arange(fractions.shape[1]) + mni.affine[0, 3]
    np.testing.assert_allclose(fractions.sum((2, 3)) @ x_mm / fractions.sum((1, 2, 3)), 0, atol=0.05)
    heights = {name: centroid_mm(mni.labels, mni.affine, name)[2] for name in LABELS}
    assert heights["hindbrain"] < -25 < 5 < heights["ventricle"]
    inside = {
        (7, 2, 18): "ventricle",
        (-12, -18, 8): "deep_grey",
        (28, 2, 2): "deep_grey",
        (26, -20, 30): "white_matter",
        (0, -28, -32): "hindbrain",
        (-30, -65, -40): "hindbrain",
    }
    for point_mm, name in inside.items():
        voxel = np.rint(nib.affines.apply_affine(np.linalg.inv(mni.affine), point_mm)).astype(int)
        assert mni.labels[tuple(voxel)] == LABELS[name], (point_mm, name)


@pytest.mark.parametrize("growth_mm", [-2.5, 6.5])
def test_no_subject_folds_even_at_the_ends_of_the_range(growth_mm):
    for index in range(8):
        subject = replace(Subject.draw(1, index), ventricle_growth_mm=growth_mm, asymmetry=0.4 * (-1) ** index)
        assert jacobian_determinant(deformation(subject)).min() > 0


def test_jacobian_of_a_linear_map_is_its_determinant():
    x, y, z = torch.meshgrid(*[4.0 * torch.arange(5)] * 3, indexing="ij")
    determinants = jacobian_determinant(torch.stack([0.5 * x, -0.2 * y + 0.3 * x, 0.1 * z]))
    torch.testing.assert_close(determinants, torch.full((5, 5, 5), 1.5 * 0.8 * 1.1))


def test_a_subject_depends_on_its_seed_and_index_alone():
    assert Subject.draw(3, 5) == Subject.draw(3, 5)
    assert len({replace(Subject.draw(seed, index), seed=0, index=0) for seed in range(3) for index in range(3)}) == 9
    first, second = (deformation(Subject.draw(3, index)) for index in (0, 1))
    assert torch.equal(first, deformation(Subject.draw(3, 0))) and not torch.equal(first, second)


def test_growth_widens_the_ventricles_and_asymmetry_one_of_them():
    subject = replace(Subject.draw(0, 0), rotation_deg=(0.0, 0.0, 0.0), shift_mm=(0.0, 0.0, 0.0))

    def sides_ml(growth_mm: float, asymmetry: float) -> tuple[float, float]:
        fractions, affine = head(replace(subject, ventricle_growth_mm=growth_mm, asymmetry=asymmetry), SPACING_MM)
        ventricle = fractions[2].numpy() * SPACING_MM**3 / 1000
        x_mm = affine[0, 0] * np.arange(ventricle.shape[0]) + affine[0, 3]
        return float(ventricle[x_mm < 0].sum()), float(ventricle[x_mm > 0].sum())

    small, large = sides_ml(-2.0, 0.0), sides_ml(5.0, 0.0)
    assert sum(large) > 1.8 * sum(small)
    assert small[0] != pytest.approx(small[1], rel=0.01)  # the random warp alone makes the sides differ
    left, right = sides_ml(5.0, 0.4)
    assert left < large[0] and right > large[1]


def test_a_structure_stays_where_it_is_in_the_patient_however_its_array_is_stored():
    subject = replace(Subject.draw(0, 1), is_oblique=True)
    fractions, affine = head(subject, SPACING_MM)
    labels = label_map(fractions)
    arrays = []
    for orientation in ("RAS", "LAS", "PSR"):
        series, stored = acquire(fractions, affine, "T1w", orientation, np.random.default_rng(0))
        assert series.orientation == orientation
        arrays.append(series.voxels)
        for name in LABELS:
            there = centroid_mm(labels, affine, name)
            np.testing.assert_allclose(centroid_mm(stored, series.affine, name), there, atol=1e-6)
    np.testing.assert_array_equal(arrays[1], arrays[0][::-1])


def test_thick_slices_are_a_coarser_grid_not_another_place():
    fractions, affine = head(replace(Subject.draw(0, 1), is_oblique=True), SPACING_MM)
    thick, thick_affine = block_mean(fractions, affine, 1, 1, 2)

    def centre_of_mass_mm(volume: torch.Tensor, affine: np.ndarray) -> np.ndarray:
        weights = volume.double().numpy().ravel()
        return weights @ nib.affines.apply_affine(affine, np.indices(volume.shape).reshape(3, -1).T) / weights.sum()

    for before, after in zip(fractions, thick):
        np.testing.assert_allclose(centre_of_mass_mm(after, thick_affine), centre_of_mass_mm(before, affine), atol=0.05)
    series, stored = acquire(fractions, affine, "T2w", "PSR", np.random.default_rng(0))
    np.testing.assert_allclose(series.spacing_mm, [SPACING_MM, 2 * SPACING_MM, SPACING_MM])
    np.testing.assert_allclose(
        centroid_mm(stored, series.affine, "hindbrain"), centroid_mm(label_map(thick), thick_affine, "hindbrain")
    )


def test_an_oblique_grid_shows_the_same_head_in_the_same_place():
    subject = replace(Subject.draw(0, 2), rotation_deg=(8.0, -5.0, 10.0))
    straight, straight_affine = head(replace(subject, is_oblique=False), SPACING_MM)
    oblique, oblique_affine = head(replace(subject, is_oblique=True), SPACING_MM)
    assert not np.allclose(straight_affine[:3, :3], oblique_affine[:3, :3])
    for name in ("ventricle", "deep_grey", "hindbrain"):
        there = centroid_mm(label_map(straight), straight_affine, name)
        np.testing.assert_allclose(centroid_mm(label_map(oblique), oblique_affine, name), there, atol=1.0)


@pytest.mark.parametrize("contrast", [*LEVELS, RANDOM])
def test_every_contrast_renders_finite_and_differs_between_tissues(contrast):
    fractions = template(SPACING_MM).fractions
    voxels = render(fractions, np.full(3, SPACING_MM), contrast, np.random.default_rng(0))
    assert voxels.dtype == np.float32 and np.isfinite(voxels).all() and (voxels >= 0).all()
    means = [voxels[template(SPACING_MM).labels == value].mean() for value in (1, 2, 3)]
    assert np.ptp(means) > 0.05 * max(means)


def test_smooth_noise_has_unit_variance_and_is_smooth():
    noise = smooth_noise(np.random.default_rng(0), (80, 80, 80), 2.0, 6.0)
    assert noise.std() == pytest.approx(1, abs=0.05) and noise.mean() == pytest.approx(0, abs=0.1)
    assert noise.diff(dim=0).abs().mean() < 0.5


def test_targets_count_the_voxels_of_the_mask_that_was_written(cohort):
    for row in cohort.rows:
        study = read_study(row, cohort.root)
        mask = read_mask(row, study, cohort.root)
        for name in ("ventricle", "cortex", "hindbrain"):
            ml = np.count_nonzero(mask == LABELS[name]) * np.prod(study.reference.spacing_mm) / 1000
            assert row.targets[f"{name}_ml"] == pytest.approx(ml, rel=1e-4), (row.subject, name)
        assert {series.contrast for series in study.series} <= {"T1w", "T2w", "unknown"}


def test_a_cohort_has_both_classes_every_split_and_several_orientations(cohort):
    assert {row.targets["enlarged_ventricles"] for row in cohort.rows} == {0, 1}
    assert [len(cohort.split(name)) for name in ("pretrain", "train", "test")] == pytest.approx([7.2, 2.4, 2.4], abs=1)
    assert len({read_study(row, cohort.root).reference.orientation for row in cohort.rows}) > 1


def test_the_same_seed_writes_the_same_bytes_however_many_subjects_there_are(cohort, tmp_path):
    again = write_cohort(tmp_path / "again", 3, seed=0, spacing_mm=SPACING_MM, contrasts=("T1w", "T2w", RANDOM))
    assert read_manifest(again).rows == cohort.rows[:3]
    for path in (path for row in cohort.rows[:3] for path in row.paths):
        assert (again.parent / path).read_bytes() == (cohort.root / path).read_bytes(), path


def test_series_can_be_missing_but_never_all_of_them(tmp_path):
    manifest = write_cohort(tmp_path / "sparse", 3, seed=0, spacing_mm=SPACING_MM, missing_series_probability=1.0)
    assert [len(row.series) for row in read_manifest(manifest).rows] == [1, 1, 1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"contrasts": ("T1",)},
        {"contrasts": ()},
        {"spacing_mm": 3.0},
        {"splits": {"train": 0.5}},
        {"splits": {"trian": 1.0}},
    ],
)
def test_a_wrong_request_is_an_input_error_and_leaves_nothing_behind(tmp_path, wrong):
    with pytest.raises(InputError):
        write_cohort(tmp_path / "cohort", 1, seed=0, **wrong)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_left_alone(tmp_path):
    with pytest.raises(InputError, match="new folder"):
        write_cohort(tmp_path, 1, seed=0)
