"""Where things are in a case, and what is drawn for a browser without WebGL2."""

from __future__ import annotations

import numpy as np
import pytest

from foundation.figures import COLOURS
from foundation.study import Study
from serve.case_view import CaseView
from serve.cases import CaseStore
from serve.pipeline import load_models, read_study
from tests.serve.making import head_series, tiny_model

ORANGE = np.array([int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)])


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> CaseView:
    """A case of two series on different grids; the model outlines the head's right and left half."""
    folder = tmp_path_factory.mktemp("view")
    study = Study("1", (head_series(), head_series(6.0, name="other")))
    store = CaseStore(folder / "data")
    case = store.add("anna", read_study(study, load_models([tiny_model(folder / "all")])))
    return CaseView.of(store, "anna", case.id)


def test_each_finding_has_its_place_and_its_mask(view: CaseView):
    right, left = (view.places[one.id] for one in view.case.reading.findings)
    assert right["at_mm"][0] > 0 > left["at_mm"][0]
    assert right["mask"] == "masks/all.nii.gz"
    assert view.start_mm() == right["at_mm"]
    low, high = view.bounds_mm()
    assert all(a <= x <= b for a, x, b in zip(low, right["at_mm"], high, strict=True))
    assert view.step_mm() == 6


def test_the_next_open_finding_follows(view: CaseView):
    first, second = (one.id for one in view.case.reading.findings)
    assert view.next_open(first) == view.places[second]
    assert view.next_open(second) == view.places[first]


def test_a_scene_names_files_that_the_owner_may_fetch(view: CaseView):
    scene = view.scene("cases")
    assert [one["name"] for one in scene["series"]] == ["sub-1_T1w", "other"]
    assert [one["name"] for one in scene["masks"]] == ["masks/all.nii.gz"]
    for entry in (*scene["series"], *scene["masks"]):
        prefix = f"cases/{view.case.id}/files/"
        assert entry["url"].startswith(prefix)
        assert (view.case.folder / entry["url"].removeprefix(prefix)).is_file()
    assert scene["masks"][0]["labels"] == [{"value": 1, "name": "tumour", "colour": COLOURS[0].lower()}]
    assert scene["go"]["at_mm"] == view.start_mm()


def test_planes_follow_the_point_and_the_outlines_can_be_hidden(view: CaseView):
    (mask,) = view.case.masks
    bare, moved = view.planes(0, None, (0.0, 0.0, 0.0)), view.planes(0, None, (30.0, 10.0, 20.0))
    assert bare.shape == moved.shape and not np.array_equal(bare, moved)
    for series in (0, 1):  # the second lies on another grid
        assert is_orange(view.planes(series, mask, (0.0, 0.0, 0.0)))
        assert not is_orange(view.planes(series, None, (0.0, 0.0, 0.0)))


def is_orange(picture: np.ndarray) -> bool:
    """Whether the legend of the first colour is there."""
    return bool((picture == ORANGE).all(axis=-1).any())
