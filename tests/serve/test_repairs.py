"""Series before and after a repair: made once, looked at by the case's owner, and gone with the case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from foundation.errors import InputError
from foundation.study import Series
from heads.reconstruction.network import Unrolled, UnrolledConfig
from heads.reconstruction.repair import repair
from serve import panels, repairs
from serve.repairs import LAYERS, RepairKey, Repairs
from tests.serve.making import head_series


def repair_model(folder: Path) -> Path:
    """A network that was never trained, but does something."""
    torch.manual_seed(0)
    network = Unrolled(UnrolledConfig(cascades=1, channels=4)).eval()
    torch.nn.init.normal_(network.refine[0].last.weight, std=0.1)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    network.save(folder, card="never trained", provenance={})
    return folder


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Repairs:
    return Repairs(repair_model(tmp_path_factory.mktemp("models") / "repair"))


def quiet(share: float) -> None:
    assert 0 <= share < 1


def key(user: str = "anna", case: str = "1", fault: str = "noise") -> RepairKey:
    return RepairKey(user, case, 0, fault)


def test_what_is_shown_is_what_the_command_writes(room: Repairs):
    series = head_series(8.0)
    told: list[float] = []
    room.make(key(), series, told.append)
    assert told and told == sorted(told)
    room.make(key(), series, lambda share: pytest.fail("made again"))
    look = room.look(key(), 0.4, 12)
    assert (look.number, look.num_slices, look.ratio) == (12, 24, 1.0)
    assert set(look.pictures) == {"before", *LAYERS}
    after = repair(series, room.network, "noise", 0.4).voxels[..., 11][::-1, ::-1].T
    brightest = np.percentile(series.voxels, 99.5)
    shades = np.clip(after / brightest, 0, 1) * 255
    assert np.abs(look.pictures["after"] - shades).max() <= 1.0
    assert room.look(key(), 0.4).number == 12 and room.look(key(), 0.4, 99).number == 24


def test_pixels_keep_their_shape(room: Repairs):
    """Of a series that was stored in sagittal slices, 2 by 6 mm in the slice."""
    affine = np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = 2.0, 6.0, 8.0, 1.0
    series = Series(np.random.default_rng(0).random((24, 16, 8)).astype(np.float32), affine, "T1w", name="sagittal")
    room.make(key(fault="ghost"), series, quiet)
    look = room.look(key(fault="ghost"), 1.0)
    assert look.pictures["before"].shape == (16, 24) and look.ratio == pytest.approx(24 * 2 / (16 * 6))


def test_it_is_nobody_elses_and_goes_with_the_case(room: Repairs):
    series = head_series(12.0)
    room.make(key("anna", "2"), series, quiet)
    for other in (key("bert", "2"), key("anna", "3"), key("anna", "2", "motion")):
        assert not room.has(other)
        with pytest.raises(InputError, match="no such image"):
            room.look(other, 1.0)
    room.forget(lambda user, case: True)
    assert room.has(key("anna", "2"))
    room.forget(lambda user, case: case != "2")
    assert not room.has(key("anna", "2"))
    for number in range(repairs.MOST + 1):
        room.make(key("anna", str(number)), series, quiet)
    assert not room.has(key("anna", "0")) and room.has(key("anna", "1"))


def test_what_cannot_be_repaired_is_said(room: Repairs):
    with pytest.raises(InputError, match="known faults"):
        room.make(key(fault="rust"), head_series(12.0), quiet)
    with pytest.raises(InputError, match="nothing to repair"):
        room.make(key("anna", "4", "thick slices"), head_series(12.0), quiet)

    def enough(share: float) -> None:
        raise RuntimeError("cancelled")

    with pytest.raises(RuntimeError):
        room.make(key("anna", "5"), head_series(12.0), enough)
    assert not room.has(key("anna", "5"))


def test_the_panel_says_that_nothing_was_measured(room: Repairs):
    room.make(key("anna", "6"), head_series(12.0), quiet)
    look = room.look(key("anna", "6"), 1.0)
    for layer, words in LAYERS.items():
        html = panels.repair_panel(look, layer)
        assert "may show what is not there" in html and "no finding, mask or output" in html and words in html
        assert html.count("data:image/png;base64,") == 2
