"""Lesions are called by their kind: what is bright here and dark there is told apart, whole lesions vote, and all of it is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from foundation.encoder import EncoderConfig
from foundation.findings import Structure, measure_structures
from foundation.preprocess import PreparedStudy, prepare_study
from foundation.study import Series, Study
from heads import parse_head
from heads.detection import Head

SHAPE = (40, 40, 32)
KINDS = [
    {"value": 20, "name": "core", "paired": False, "min_ml": 0.0},
    {"value": 21, "also": [20], "name": "mass", "paired": False, "min_ml": 0.0},
    {"value": 24, "name": "plaque", "paired": False, "min_ml": 0.0},
    {"value": 26, "name": "infarct", "paired": False, "min_ml": 0.0},
]
HEAD = {
    "kind": "detection",
    "structures": [{"value": 1, "also": [20, 21, 24, 26], "name": "lesion", "paired": False, "min_ml": 0.0}],
    "channels": [2, 2, 2], "bottleneck": 4, "kinds": KINDS, "together": [20, 21],
}  # fmt: skip
# How much brighter than the head each is on the two series; plaques and infarcts differ on the second alone.
LOOKS = {20: (-60.0, 60.0), 21: (60.0, 20.0), 24: (60.0, 0.0), 26: (60.0, 60.0)}


def patient(seed: int, contrasts: tuple[str, ...] = ("FLAIR", "DWI")) -> tuple[PreparedStudy, np.ndarray]:
    """A ball with a mass around its core, a plaque and an infarct, at places that differ."""
    rng = np.random.default_rng(seed)
    index = np.moveaxis(np.indices(SHAPE), 0, -1)
    labels = np.zeros(SHAPE, np.int16)
    corners = rng.permutation([(11, 13, 16), (28, 13, 16), (20, 29, 16)])
    for centre, parts in zip(corners, ([(21, 5), (20, 3)], [(24, 3)], [(26, 3)]), strict=True):
        for value, radius in parts:
            labels[np.linalg.norm(index - centre - rng.uniform(-1, 1, 3), axis=-1) < radius] = value
    head = np.linalg.norm(index - [19.5, 19.5, 15.5], axis=-1) < 18
    series = []
    for number, contrast in enumerate(("FLAIR", "DWI")):
        voxels = 100.0 * head + 4 * rng.standard_normal(SHAPE) * head
        for value, looks in LOOKS.items():
            voxels += looks[number] * (labels == value)
        if contrast in contrasts:
            series.append(Series(voxels.astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0]), contrast, name=contrast))
    return prepare_study(Study("s", tuple(series)), (4.0, 4.0, 4.0)), labels


def make_head() -> Head:
    torch.manual_seed(0)
    return Head(EncoderConfig(width=64, depth=1), parse_head(HEAD))  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def head() -> Head:
    made = make_head()
    look_back(made, [patient(seed) for seed in range(8)])
    return made


def look_back(head: Head, studies: list[tuple[PreparedStudy, np.ndarray]], *, larger_by: int = 0) -> None:
    """With a network that outlines every lesion, so many voxels beyond its edge."""
    truth = {id(prepared): labels for prepared, labels in studies}

    def ask(prepared: PreparedStudy) -> torch.Tensor:
        mask = truth[id(prepared)] > 0
        return outlined(ndimage.binary_dilation(mask, iterations=larger_by) if larger_by else mask)

    head.look_back(studies, ask)


def outlined(labels: np.ndarray) -> torch.Tensor:
    """The output of a network that outlines every lesion as one."""
    return 20 * torch.nn.functional.one_hot(torch.from_numpy(labels > 0).long(), 2).movedim(-1, 0)[None].float()


def test_each_lesion_is_called_by_its_kind_and_a_tumours_parts_voxel_by_voxel(head: Head) -> None:
    for seed in (100, 101, 102):
        prepared, labels = patient(seed)
        reading = head.read(outlined(labels), prepared, source="m", mask_path="masks/m.nii.gz")
        assert reading.labels is not None and ((reading.labels > 0) == (labels > 0)).all()
        for value in (24, 26):
            assert (reading.labels[labels == value] == value).all(), value
        assert (reading.labels == labels).mean() > 0.99
        volumes = {one.name: one.measured("volume") for one in reading.findings}
        assert volumes["mass"] == pytest.approx(np.isin(labels, (20, 21)).sum() * 0.064)  # with its core
        assert {one.name: one.measured("number") for one in reading.findings}["plaque"] == 1
        scores = head.score_case(outlined(labels), prepared, labels, {})
        assert scores["dice lesion"] == scores["dice plaque"] == 1.0 and scores["dice core"] > 0.9


def test_without_the_telling_series_it_still_names_and_no_kind_is_new(head: Head) -> None:
    prepared, labels = patient(103, contrasts=("FLAIR",))
    drawn = head.drawn_from((labels > 0).astype(np.int16), prepared)
    assert set(np.unique(drawn)) <= {0, 20, 21, 24, 26} and ((drawn > 0) == (labels > 0)).all()


def test_a_kind_that_was_never_seen_is_never_said() -> None:
    head = make_head()
    look_back(head, [(one, np.where(labels == 26, 0, labels)) for one, labels in map(patient, range(4))])
    prepared, labels = patient(104)
    assert 26 not in head.drawn_from((labels > 0).astype(np.int16), prepared)


def test_the_rule_knows_how_the_networks_outlines_look() -> None:
    """Lesions are outlined two voxels too far: who has seen that calls more of them by their kind than who knows only true ones."""
    studies, right = [patient(seed) for seed in range(8)], []
    for larger_by in (0, 2):
        head = make_head()
        look_back(head, studies, larger_by=larger_by)
        known = 0
        for prepared, labels in map(patient, range(100, 110)):
            said = head.drawn_from(ndimage.binary_dilation(labels > 0, iterations=2).astype(np.int16), prepared)
            known += sum((said[labels == value] == value).mean() > 0.5 for value in (24, 26))
        right.append(known)
    assert right[1] >= 19 and right[1] > right[0], right


def test_what_was_learnt_is_part_of_the_weights(head: Head) -> None:
    other = make_head()
    other.load_state_dict(head.state_dict())
    prepared, labels = patient(105)
    ours, theirs = (one.drawn_from((labels > 0).astype(np.int16), prepared) for one in (head, other))
    assert np.array_equal(ours, theirs)


def test_nothing_outlined_is_nothing_named(head: Head) -> None:
    prepared, labels = patient(106)
    reading = head.read(outlined(0 * labels), prepared, source="m", mask_path=None)
    assert reading.labels is not None and not reading.labels.any()
    assert {one.presence for one in reading.findings} == {"absent"}


def test_kinds_are_values_of_the_one_structure() -> None:
    for wrong in ({"structures": [HEAD["structures"][0] | {"also": [20]}]}, {"together": [27]}, {"kinds": KINDS[:1]}):
        with pytest.raises(ValueError, match="kinds"):
            parse_head(HEAD | wrong)


def test_a_structure_has_its_parts(make_series) -> None:
    """Parts are measured twice: by themselves and in the whole."""
    labels = np.zeros((10, 10, 10), np.int16)
    labels[2:4], labels[4:5] = 1, 2
    whole = Structure(value=1, also=(2,), name="mass", paired=False)
    part = Structure(value=2, name="core", paired=False)
    series = make_series((10, 10, 10), spacing_mm=(1.0,) * 3)
    found = measure_structures(labels, series, (whole, part), body=None, mask_path=None, source="m", count_pieces=True)
    assert [one.measured("volume") for one in found] == pytest.approx([0.3, 0.1])
    assert [one.measured("number") for one in found] == [1, 1]
