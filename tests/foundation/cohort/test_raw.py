"""Raw data: the noise is what was asked for, the mask keeps what it says, and the coils combine to the head."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine
from scipy import ndimage

from foundation.cohort.patient import CohortConfig, make_anatomy
from foundation.cohort.raw import SPOT_RADII_MM, simulate_raw, spotted, write_raw
from foundation.physics.kspace import root_sum_of_squares, to_image
from foundation.raw import RawData
from foundation.reading.raw import read_raw


def simulate(noise: float) -> RawData:
    anatomy, tissues = make_anatomy(CohortConfig(spacing_mm=4.0), 0)
    return simulate_raw(anatomy, tissues, "T2w", np.random.default_rng(0), num_slices=3, noise=noise)


@pytest.fixture(scope="module")
def raw() -> RawData:
    return simulate(0.02)


def test_the_acquired_grid_is_coarser_than_the_head(raw: RawData) -> None:
    slices, coils, height, width = raw.kspace.shape
    assert (slices, coils) == (3, 8)
    assert raw.target is not None and raw.target.shape == (3, height, width)
    assert raw.planned is not None and raw.planned.shape == (1, 1, 1, width) and raw.is_complete
    assert raw.facts["voxel_mm"] == [5.0, 5.0]


def test_noise_has_the_sigma_that_is_told(raw: RawData) -> None:
    """The same draws without noise, taken away, leave noise of that deviation in each part of every sample."""
    assert raw.sigma is not None
    noise = torch.view_as_real(raw.kspace - simulate(0.0).kspace)
    assert float(noise.std()) == pytest.approx(raw.sigma, rel=0.01)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02 * raw.sigma)


def test_all_of_k_space_gives_the_target_and_a_quarter_of_it_does_not(raw: RawData) -> None:
    def error(kspace: torch.Tensor) -> float:
        image = root_sum_of_squares(to_image(kspace), axis=1)
        return float((image - raw.target).norm() / raw.target.norm())

    assert raw.planned is not None
    kept = raw.keep(raw.planned)
    assert error(raw.kspace) < 0.1 < 0.15 < error(kept.kspace)
    assert kept.acceleration == pytest.approx(raw.facts["acceleration"], rel=0.2)
    assert kept.kspace[..., ~raw.planned.flatten()].abs().max() == 0


def test_a_slice_lies_where_the_head_has_it() -> None:
    """The brightest place of the target is as bright in the head itself, at the same millimetres."""
    anatomy, tissues = make_anatomy(CohortConfig(spacing_mm=4.0), 0)
    raw = simulate_raw(anatomy, tissues, "T2w", np.random.default_rng(0), num_slices=3, noise=0.0)
    assert raw.affine is not None and raw.target is not None
    first = raw.facts["slices"][0]
    middle = [raw.shape[0] // 2, raw.shape[1] // 2, 0]
    head_middle = [anatomy.shape[0] // 2, anatomy.shape[1] // 2, first]
    np.testing.assert_allclose(apply_affine(raw.affine, middle), apply_affine(anatomy.affine, head_middle), atol=1e-4)
    far = [0, 0, 2]
    step = raw.facts["slices"][1] - first
    scale = np.array([anatomy.shape[0] / raw.shape[0], anatomy.shape[1] / raw.shape[1], step])
    there = np.array(head_middle) + scale * (np.array(far) - middle)
    np.testing.assert_allclose(apply_affine(raw.affine, far), apply_affine(anatomy.affine, there), atol=1e-4)


def test_spots_are_small_and_of_either_sign() -> None:
    """Where there are none the image is untouched, and an image of ten has ten at most."""
    rng = np.random.default_rng(0)
    image = torch.zeros(80, 90)
    image[10:70, 10:80] = 1.0
    assert bool((spotted(image, 2.0, 0, rng) == 1).all())
    factor = spotted(image, 2.0, 10, rng)
    changed = (factor != 1).numpy()
    assert 5 <= ndimage.label(changed)[1] <= 10  # pyright: ignore[reportIndexIssue]
    assert changed.sum() * 4.0 < 10 * np.pi * (SPOT_RADII_MM[1] + 2) ** 2
    assert float(factor.min()) < 0.85 and float(factor.max()) > 1.15


def test_spots_are_in_target_and_samples_alike() -> None:
    anatomy, tissues = make_anatomy(CohortConfig(spacing_mm=4.0), 0)
    raw = simulate_raw(anatomy, tissues, "T2w", np.random.default_rng(0), num_slices=1, noise=0.0, spots=20)
    assert raw.target is not None
    torch.testing.assert_close(root_sum_of_squares(to_image(raw.kspace), axis=1), raw.target, atol=1e-4, rtol=1e-4)
    plain = simulate_raw(anatomy, tissues, "T2w", np.random.default_rng(0), num_slices=1, noise=0.0)
    assert plain.target is not None
    assert float((raw.target - plain.target).abs().max()) > 0.05 * float(plain.target.max())


def test_a_whole_head_is_every_other_slice_where_it_lies() -> None:
    anatomy, tissues = make_anatomy(CohortConfig(spacing_mm=4.0), 0)
    raw = simulate_raw(anatomy, tissues, "T2w", np.random.default_rng(0), num_slices=None, noise=0.0)
    assert raw.facts["slices"] == list(range(0, anatomy.shape[2], 2)) and raw.affine is not None
    np.testing.assert_allclose(raw.affine[:3, 2], 2 * anatomy.affine[:3, 2])


def test_wider_pixels_show_the_same_place() -> None:
    anatomy, tissues = make_anatomy(CohortConfig(spacing_mm=4.0), 0)
    narrow, wide = (
        simulate_raw(anatomy, tissues, "T2w", np.random.default_rng(0), num_slices=1, noise=0.0, finer=finer)
        for finer in (1.25, 2.5)
    )
    assert (
        narrow.affine is not None and wide.affine is not None and narrow.target is not None and wide.target is not None
    )
    np.testing.assert_allclose(np.linalg.norm(wide.affine[:3, :2], axis=0), 10.0, rtol=0.1)
    middles = []
    for raw, target in ((narrow, narrow.target), (wide, wide.target)):
        places = np.argwhere(target[0].numpy() > 0.3 * float(target.max()))
        middles.append(apply_affine(raw.affine, [*places.mean(axis=0), 0.0]))
    np.testing.assert_allclose(middles[0], middles[1], atol=1.5)


def test_files_are_in_fastmri_s_layout_and_the_same_each_time(raw: RawData, tmp_path: Path) -> None:
    for name in ("one.h5", "two.h5"):
        write_raw(tmp_path / name, raw, subject="sub-00000")
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    with h5py.File(tmp_path / "one.h5") as file:
        assert set(file) == {"kspace", "mask", "reconstruction_rss"}
        assert file.attrs["patient_id"] == "sub-00000"
        assert raw.target is not None
        assert file.attrs["max"] == pytest.approx(float(raw.target.max()))


def test_what_is_written_is_read_back(raw: RawData, tmp_path: Path) -> None:
    write_raw(tmp_path / "raw.h5", raw, subject="sub-00000")
    back = read_raw(tmp_path / "raw.h5")
    for name in ("kspace", "mask", "planned", "target", "noise"):
        assert torch.equal(getattr(back, name), getattr(raw, name)), name
    assert back.affine is not None and raw.affine is not None and back.side_is_known
    np.testing.assert_array_equal(back.affine, raw.affine)
