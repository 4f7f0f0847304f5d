"""Raw data: the noise is what was asked for, the mask keeps what it says, and the coils combine to the head."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from foundation.cohort.patient import CohortConfig, make_anatomy
from foundation.cohort.raw import RawData, simulate_raw, write_raw
from foundation.physics.kspace import root_sum_of_squares, to_image


def simulate(noise: float) -> RawData:
    anatomy, tissues = make_anatomy(CohortConfig(spacing_mm=4.0), 0)
    return simulate_raw(anatomy, tissues, "T2w", np.random.default_rng(0), num_slices=3, noise=noise)


@pytest.fixture(scope="module")
def raw() -> RawData:
    return simulate(0.02)


def test_the_acquired_grid_is_coarser_than_the_head(raw: RawData) -> None:
    slices, coils, height, width = raw.kspace.shape
    assert (slices, coils) == (3, 8)
    assert raw.target.shape == (3, height, width) and raw.mask.shape == (width,)
    assert raw.facts["voxel_mm"] == [5.0, 5.0]


def test_noise_has_the_sigma_that_is_told(raw: RawData) -> None:
    """The same draws without noise, taken away, leave noise of that deviation in each part of every sample."""
    noise = torch.view_as_real(raw.kspace - simulate(0.0).kspace)
    assert float(noise.std()) == pytest.approx(raw.sigma, rel=0.01)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02 * raw.sigma)


def test_all_of_k_space_gives_the_target_and_a_quarter_of_it_does_not(raw: RawData) -> None:
    def error(kspace: torch.Tensor) -> float:
        image = root_sum_of_squares(to_image(kspace), axis=1)
        return float((image - raw.target).norm() / raw.target.norm())

    assert error(raw.kspace) < 0.1 < 0.15 < error(raw.undersampled)
    kept = float(raw.mask.float().mean())
    assert kept == pytest.approx(1 / raw.facts["acceleration"], abs=0.05)
    assert raw.undersampled[..., ~raw.mask].abs().max() == 0


def test_files_are_in_fastmri_s_layout_and_the_same_each_time(raw: RawData, tmp_path: Path) -> None:
    for name in ("one.h5", "two.h5"):
        write_raw(tmp_path / name, raw, subject="sub-00000")
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    with h5py.File(tmp_path / "one.h5") as file:
        assert set(file) == {"kspace", "mask", "reconstruction_rss"}
        np.testing.assert_array_equal(file["kspace"][()], raw.kspace.numpy())  # pyright: ignore[reportIndexIssue]
        assert file.attrs["patient_id"] == "sub-00000"
        assert file.attrs["max"] == pytest.approx(float(raw.target.max()))
