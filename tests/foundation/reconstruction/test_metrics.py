"""fastMRI's definitions, against a case worked by hand and against a second, slow implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.random import default_rng

from foundation.reconstruction.metrics import errors, nmse, psnr, ssim


def volumes(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = default_rng(seed)
    reference = rng.gamma(2.0, 1.0, (3, 12, 15))
    return reference, reference + 0.3 * rng.standard_normal(reference.shape)


def slow_ssim(reference: np.ndarray, image: np.ndarray) -> float:
    """Wang's formula, window by window, with numpy's own sample covariance."""
    span, means = reference.max(), []
    for x, y in zip(reference, image):
        values = []
        for row in range(x.shape[0] - 6):
            for column in range(x.shape[1] - 6):
                a, b = (one[row : row + 7, column : column + 7].ravel() for one in (x, y))
                (var_a, both), (_, var_b) = np.cov(a, b)
                c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
                light = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
                values.append(light * (2 * both + c2) / (var_a + var_b + c2))
        means.append(np.mean(values))
    return float(np.mean(means))


def test_ssim_is_the_mean_over_windows() -> None:
    reference, image = volumes()
    assert ssim(reference, image) == pytest.approx(slow_ssim(reference, image), abs=1e-12)
    assert ssim(reference, reference) == pytest.approx(1, abs=1e-12)


def test_a_case_worked_by_hand() -> None:
    """Seven by seven ones, half of them as far up as down in the image: one window, its mean right, its variance 4/48 ..."""
    reference = np.ones((1, 7, 7))
    image = np.ones((1, 7, 7))
    image[0, 0, 0], image[0, 0, 1] = 2.0, 0.0
    assert nmse(reference, image) == pytest.approx(2 / 49)
    assert psnr(reference, image) == pytest.approx(10 * math.log10(49 / 2))
    # Means are both 1, the reference has no variance and so no covariance; the image's is 2 / 48.
    assert ssim(reference, image) == pytest.approx(0.0009 / (2 / 48 + 0.0009))


def test_the_range_is_that_of_the_whole_volume() -> None:
    """A dark slice is judged on the bright slice's scale, as fastMRI does, so its errors count less."""
    reference, image = volumes()
    reference[0] *= 10
    image[0] *= 10
    assert ssim(reference[1:], image[1:]) < ssim(reference, image)
    assert psnr(reference, image) == pytest.approx(
        10 * np.log10(reference.max() ** 2 / np.mean((reference - image) ** 2))
    )


def test_scale_changes_nothing_and_bytes_are_no_integers() -> None:
    reference, image = volumes()
    for name, value in errors(reference, image).items():
        assert errors(1e-6 * reference, 1e-6 * image)[name] == pytest.approx(value)
        assert errors(reference.astype(np.float32), image.astype(np.float32))[name] == pytest.approx(value, rel=1e-5)


def test_a_perfect_image() -> None:
    reference, _ = volumes()
    assert errors(reference, reference) == {"nmse": 0.0, "psnr": math.inf, "ssim": pytest.approx(1)}
