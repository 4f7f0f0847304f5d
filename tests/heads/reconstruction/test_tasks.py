"""What scans lack: each task leaves what it says, and names what the mask does not show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from foundation.cohort.patient import CohortConfig, make_anatomy
from foundation.cohort.raw import simulate_raw
from foundation.physics.kspace import to_image, to_kspace
from foundation.raw import RawData
from heads.reconstruction.scan import FAULTS, Scan
from heads.reconstruction.tasks import TASKS, draw_task, middle, thick_slices


@pytest.fixture(scope="module")
def raw() -> RawData:
    anatomy, tissues = make_anatomy(CohortConfig(spacing_mm=4.0), 0)
    return simulate_raw(anatomy, tissues, "T2w", default_rng(0), num_slices=2, num_coils=4, noise=0.01)


@pytest.mark.parametrize("task", ["acceleration", *TASKS])
def test_every_task_makes_a_scan_that_is_worse_than_the_whole(raw: RawData, task: str) -> None:
    spoilt = draw_task(raw, task, default_rng(3))
    scan = Scan.of(spoilt.raw, fault=spoilt.fault).aiming_at(spoilt.whole)
    assert scan.target is not None and scan.target.shape == scan.kspace.shape[:1] + scan.kspace.shape[2:]
    assert not (scan.kspace * ~scan.mask).any()
    assert (spoilt.fault is None) == (task not in FAULTS)

    def error(one: RawData) -> float:
        assert raw.target is not None
        seen = Scan.of(one)
        return float((seen.scale * seen.operator.adjoint(seen.kspace).abs() - raw.target).norm())

    before = raw if task == "noise" else spoilt.whole
    assert error(spoilt.raw) > 1.05 * error(before)


def test_a_task_is_a_function_of_its_draw(raw: RawData) -> None:
    for task in TASKS:
        one, same = (draw_task(raw, task, default_rng(5)).raw.kspace for _ in range(2))
        assert torch.equal(one, same)


def test_thick_slices_are_averages_of_columns_with_the_attenuation_taken_back() -> None:
    """Against averages written out: 24 columns in boxes of 4, each shown once."""
    n, num = 24, 6
    image = torch.from_numpy(default_rng(0).random((1, 1, 5, n))).to(torch.complex64)
    found, mask = thick_slices(to_kspace(image), num)
    assert mask.flatten().nonzero()[:, 0].tolist() == list(range(n // 2 - 3, n // 2 + 3))
    frequency = np.arange(n) - n // 2
    smooth = to_kspace(image).numpy() * np.sinc(frequency / num)  # a box of n / num columns, in the transform
    averaged = to_image(torch.from_numpy(smooth)).numpy()[
        ..., :: n // num
    ]  # one value of each box; n // 2 is one of them
    expected = to_kspace(torch.from_numpy(averaged)).numpy() * np.sqrt(n / num) / np.sinc(frequency[9:15] / num)
    np.testing.assert_allclose(found[..., 9:15].numpy(), expected, atol=1e-5)


def test_the_middle_is_in_the_middle() -> None:
    for num in (24, 25):
        lines = middle(num, 0.5).nonzero()[:, 0]
        assert lines.min() < num // 2 < lines.max() and abs(len(lines) - num / 2) <= 1.5
