"""Connected pieces against a flood fill, and matching lesions by overlap."""

from itertools import product

import numpy as np
import pytest

from foundation.findings import Structure, measure_structures
from foundation.lesions import match, pieces_of

AFFINE = np.diag([2.0, 1.0, 3.0, 1.0])
AFFINE[:3, 3] = (-10.0, 5.0, 7.0)


def flood(mask: np.ndarray) -> list[set[tuple[int, int, int]]]:
    """Pieces by walking from voxel to voxel."""
    left = {tuple(int(n) for n in voxel) for voxel in np.argwhere(mask)}
    pieces = []
    while left:
        piece, front = set(), [left.pop()]
        while front:
            voxel = front.pop()
            piece.add(voxel)
            near = {tuple(a + b for a, b in zip(voxel, step, strict=True)) for step in product((-1, 0, 1), repeat=3)}
            front += near & left
            left -= near
        pieces.append(piece)
    return sorted(pieces, key=len, reverse=True)


@pytest.mark.parametrize("seed", range(4))
def test_pieces_are_those_of_a_flood_fill(seed: int) -> None:
    mask = np.random.default_rng(seed).random((9, 8, 7)) < 0.06
    found, naive = pieces_of(mask, AFFINE), flood(mask)
    assert list(found.volumes_ml) == pytest.approx([0.006 * len(piece) for piece in naive])
    ours = [{tuple(v) for v in np.argwhere(found.numbers == n + 1).tolist()} for n in range(len(found))]
    assert {frozenset(piece) for piece in ours} == {frozenset(piece) for piece in naive}
    for piece, centre in zip(ours, found.centroids_mm, strict=True):
        assert centre == pytest.approx(AFFINE[:3, :3] @ np.mean(sorted(piece), axis=0) + AFFINE[:3, 3])


def test_small_pieces_are_left_out() -> None:
    mask = np.zeros((8, 8, 8), bool)
    mask[0, 0, 0], mask[4:6, 4:6, 4:6] = True, True
    assert pieces_of(mask, AFFINE, least_ml=0.02).volumes_ml == pytest.approx((0.048,))
    assert len(pieces_of(mask & False, AFFINE)) == 0


def test_one_voxel_of_overlap_is_a_match() -> None:
    truth, said = np.zeros((2, 12, 4, 4), bool)
    truth[0:3], truth[6:8] = True, True
    said[2:4], said[10:] = True, True
    matches = match(pieces_of(said, AFFINE), pieces_of(truth, AFFINE))
    assert matches.found.tolist() == [True, False]  # by falling volume: 3 planes, then 2
    assert sorted(matches.true.tolist()) == [False, True]


def test_a_lesion_across_the_midline_is_one_with_all_of_its_volume_on_one_side(make_series) -> None:
    series = make_series((60, 40, 40), spacing_mm=(3.0, 4.0, 4.0))
    labels = np.zeros(series.shape, np.int16)
    labels[25:37, 10:14, 10:14] = 1  # of twelve columns seven lie on the far side of the middle, at 29.5
    labels[5, 30, 30], labels[50:53, 20:22, 20:22] = (
        1,
        1,
    )  # a speck that is too small to count, and one on the other side
    lesion = Structure(value=1, name="plaque", paired=True, min_ml=0.1)
    body = np.ones(series.shape, bool)
    sides = {
        count: measure_structures(labels, series, [lesion], body=body, mask_path=None, source="m", count_pieces=count)
        for count in (True, False)
    }
    volumes = {count: {one.side: one.measured("volume") for one in found} for count, found in sides.items()}
    assert sum(volumes[True].values()) == pytest.approx(sum(volumes[False].values())), "nothing is lost"
    whole, _ = sorted(sides[True], key=lambda one: -one.measured("volume"))
    across = 12 * 16 * 0.048
    assert max(piece.volume_ml for one in sides[True] for piece in one.pieces) == pytest.approx(across)
    for one in sides[True]:
        specks = one.measured("volume") - sum(piece.volume_ml for piece in one.pieces)
        assert -1e-9 < specks < 0.1, "number and volume speak of the same lesions"
    assert volumes[False][whole.side] < across < volumes[True][whole.side] + 1e-9


def test_a_finding_lists_its_pieces_on_the_side_of_their_centre(make_series) -> None:
    series = make_series((60, 40, 40), spacing_mm=(3.0, 4.0, 4.0))
    labels = np.zeros(series.shape, np.int16)
    labels[10:12, 10:12, 10:12], labels[14, 30, 30], labels[50:53, 20:22, 20:22] = 1, 1, 1
    lesion = Structure(value=1, name="plaque", paired=True)
    right, left = measure_structures(
        labels, series, [lesion], body=np.ones(series.shape, bool), mask_path=None, source="m", count_pieces=True
    )
    assert (right.side, left.side) == ("right", "left")
    assert [piece.volume_ml for piece in right.pieces] == pytest.approx([12 * 0.048])
    assert [piece.number for piece in left.pieces] == [2, 3] and left.measured("number") == 2
    assert left.measured("largest") == pytest.approx(8 * 0.048)
    for finding in (right, left):
        for piece in finding.pieces:
            assert labels[piece.slice_index] == 1
