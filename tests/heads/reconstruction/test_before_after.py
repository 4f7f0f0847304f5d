"""Before and after at any strength: what the network itself says at 0 and 1, in one window, without running it again."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from foundation.cohort.patient import CohortConfig, make_anatomy
from foundation.cohort.raw import simulate_raw
from foundation.errors import InputError
from foundation.raw import RawData
from foundation.reconstruction.command import Undersampling, plane
from foundation.study import Series
from heads.reconstruction.before_after import BeforeAfter, scan_before_after
from heads.reconstruction.command import learned
from heads.reconstruction.network import Unrolled, UnrolledConfig
from heads.reconstruction.repair import repair, repair_before_after


@pytest.fixture(scope="module")
def raw() -> RawData:
    anatomy, tissues = make_anatomy(CohortConfig(spacing_mm=4.0), 0)
    return simulate_raw(anatomy, tissues, "T2w", default_rng(0), num_slices=3, num_coils=4, noise=0.02)


@pytest.fixture(scope="module")
def network() -> Unrolled:
    torch.manual_seed(0)
    network = Unrolled(UnrolledConfig(cascades=1, channels=4)).eval()
    torch.nn.init.normal_(network.refine[0].last.weight, std=0.1)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    for name, parameter in network.named_parameters():  # it begins without listening to what it is told
        if name.endswith("tell.weight"):
            torch.nn.init.normal_(parameter, std=0.3)
    return network


@pytest.fixture(scope="module")
def shown(raw: RawData, network: Unrolled) -> BeforeAfter:
    return scan_before_after(raw, network, Undersampling(3, calibration=8))


def test_the_ends_are_the_networks_own_images(raw: RawData, network: Unrolled, shown: BeforeAfter) -> None:
    kept = raw.keep(Undersampling(3, calibration=8).draw(raw))
    ends = [kept.series(learned(network, kept, strength)).voxels for strength in (0.0, 1.0)]
    assert float(np.abs(ends[0] - ends[1]).max()) > 1e-3 * float(ends[0].max())
    for strength, end in zip((0.0, 1.0), ends):
        np.testing.assert_allclose(shown.at(strength).voxels, end, atol=1e-5 * float(end.max()))
    np.testing.assert_allclose(shown.at(0.25).voxels, 0.75 * ends[0] + 0.25 * ends[1], atol=1e-5 * float(ends[0].max()))
    assert raw.affine is not None
    np.testing.assert_allclose(shown.at(0.5).affine, raw.affine)


def test_pictures_are_what_they_say(raw: RawData, shown: BeforeAfter) -> None:
    pictures = shown.pictures(0.5, 1.0)
    assert set(pictures) == {"before", "after", "error", "doubt"}
    after = plane(shown.at(0.5), 1.0)
    assert {picture.shape for picture in pictures.values()} == {after.shape}
    assert raw.target is not None
    error = np.abs(after - plane(raw.series(raw.target), 1.0))
    expected = np.clip(255 * 5 * error / np.percentile(shown.before.voxels, 99.5), 0, 255)
    assert float(np.abs(pictures["error"] - expected).max()) < 1.01
    assert pictures["error"].std() > 5 and pictures["before"].std() > 20


def test_without_a_reference_they_show_what_was_changed(raw: RawData, network: Unrolled) -> None:
    assert set(scan_before_after(raw, network).pictures(0.5)) == {"before", "after", "change", "doubt"}


def test_a_slider_does_not_wait(shown: BeforeAfter) -> None:
    shown.pictures(0.0)
    began = time.process_time()
    for strength in np.linspace(0, 1, 20):
        shown.pictures(float(strength))
    assert (time.process_time() - began) / 20 < 0.05


def test_a_repair_is_a_share_of_its_change(network: Unrolled) -> None:
    voxels = default_rng(0).random((24, 20, 6)).astype(np.float32)
    series = Series(voxels, np.diag([2.0, 2.0, 5.0, 1.0]))
    found = repair_before_after(series, network, "noise")
    np.testing.assert_allclose(found.at(0.0).voxels, voxels, atol=1e-6)
    np.testing.assert_array_equal(found.at(1.0).voxels, repair(series, network, "noise").voxels)
    none, all_of_it = (found.pictures(strength) for strength in (0.0, 1.0))
    assert none["change"].max() == 0 and np.array_equal(none["before"], none["after"]) and none["doubt"].max() == 0
    assert all_of_it["change"].max() > 0 and all_of_it["doubt"].max() > 0


def test_thick_slices_are_shown_on_the_thin_grid(network: Unrolled) -> None:
    series = Series(default_rng(0).random((12, 10, 6)).astype(np.float32), np.diag([2.0, 2.0, 4.0, 1.0]))
    found = repair_before_after(series, network, "thick slices")
    assert found.before.shape == found.at(0.5).shape == (12, 10, 12)
    np.testing.assert_allclose(found.before.spacing_mm, 2.0)


@pytest.mark.parametrize(("strength", "place"), [(1.1, 0.5), (0.5, -0.1), (float("nan"), 0.5)])
def test_what_is_no_share_is_refused(shown: BeforeAfter, strength: float, place: float) -> None:
    with pytest.raises(InputError, match=r"between 0 and 1|share of the way"):
        shown.pictures(strength, place)
