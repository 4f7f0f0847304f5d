"""Side, volume and place must not depend on how the file happened to store the array."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydantic import ValidationError

from foundation.errors import InputError
from foundation.findings import (
    Evidence,
    Finding,
    Measurement,
    ModelUsed,
    Reading,
    SeriesSummary,
    Structure,
    finding_id,
    is_abnormal_name,
    measure_structures,
    not_assessed,
)
from foundation.study import Acquisition, Series
from foundation.terms import TERMS

STRUCTURES = (
    Structure(value=1, name="hippocampus", paired=True),
    Structure(value=2, name="brain stem", paired=False),
    Structure(value=5, name="lesion", paired=True),
)
ORIENTATIONS = [
    np.column_stack([axes, flips]) for axes in permutations(range(3)) for flips in product((1, -1), repeat=3)
]


def head(affine: np.ndarray | None = None, half_width_mm: float = 70.0) -> tuple[Series, np.ndarray, np.ndarray]:
    """A head of 2 x 3 x 4 mm voxels centred at (0, 10, 20) mm: series, labels, body. Right +x holds more than left."""
    spacing = np.array([2.0, 3.0, 4.0])
    shape = (84, 64, 44)
    if affine is None:
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = np.array([0.7, 10.0, 20.0]) - spacing * (np.array(shape) - 1) / 2
    points = nib.affines.apply_affine(np.diag([*spacing, 1.0]), np.moveaxis(np.indices(shape), 0, -1))
    x, y, z = np.moveaxis(points - spacing * (np.array(shape) - 1) / 2, -1, 0)
    body = (x / half_width_mm) ** 2 + (y / 88) ** 2 + (z / 80) ** 2 < 1
    labels = np.zeros(shape, dtype=np.uint8)
    labels[(np.abs(x - 30) < 6) & (np.abs(y + 10) < 15) & (np.abs(z) < 10)] = 1
    labels[(np.abs(x + 30) < 5) & (np.abs(y + 10) < 15) & (np.abs(z) < 10)] = 1
    labels[(np.abs(x) < 9) & (np.abs(y) < 9) & (z < -20) & (z > -60)] = 2
    labels[(x - 40) ** 2 + (y - 30) ** 2 + (z - 20) ** 2 < 100] = 5
    return Series(voxels=body.astype(np.float32), affine=affine, name="t1"), labels, body


def measure(series: Series, labels: np.ndarray, body: np.ndarray | None) -> list[Finding]:
    return measure_structures(labels, series, STRUCTURES, body=body, mask_path="masks/t1.nii.gz", source="test")


def by_id(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.id: finding for finding in findings}


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda orientation: str(orientation.tolist()))
def test_the_array_may_lie_in_any_of_48_ways(orientation):
    series, labels, body = head()
    turned = Series(
        voxels=np.ascontiguousarray(nib.orientations.apply_orientation(series.voxels, orientation)),
        affine=series.affine @ nib.orientations.inv_ornt_aff(orientation, series.shape),
        name="t1",
    )
    found = measure(
        turned,
        nib.orientations.apply_orientation(labels, orientation),
        nib.orientations.apply_orientation(body, orientation),
    )
    expected = measure(series, labels, body)
    assert [finding.id for finding in found] == [finding.id for finding in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one.side, one.presence) == (other.side, other.presence)
        assert [m.value for m in one.measurements] == pytest.approx([m.value for m in other.measurements])
        assert one.evidence and other.evidence
        if other.evidence.centroid_mm is None:
            assert one.evidence.centroid_mm is None
            continue
        assert one.evidence.centroid_mm == pytest.approx(other.evidence.centroid_mm)
        # The planes are named in the array's own indices; in the patient they are the same place.
        places = [
            nib.affines.apply_affine(volume.affine, finding.evidence.slice_index)
            for volume, finding in ((turned, one), (series, other))
        ]
        assert np.abs(places[0] - places[1]).max() <= 4.001  # a tie between two middle planes may go either way


@pytest.mark.parametrize("angle_deg", [-25.0, 12.0, 40.0])
def test_an_oblique_affine_changes_no_side(angle_deg):
    """The grid is turned under a head that stays where it is."""
    turn = nib.affines.from_matvec(
        nib.quaternions.angle_axis2mat(np.deg2rad(angle_deg), [0.3, -1.0, 0.6]), np.array([3.0, -4.0, 5.0])
    )
    spacing = np.array([2.0, 2.5, 2.0])
    shape = (110, 96, 110)
    affine = turn @ nib.affines.from_matvec(np.diag(spacing), -spacing * (np.array(shape) - 1) / 2)
    x, y, z = np.moveaxis(nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)), -1, 0)
    body = (x / 70) ** 2 + (y / 88) ** 2 + (z / 80) ** 2 < 1
    labels = np.where((x - 6) ** 2 + (y - 20) ** 2 + (z - 30) ** 2 < 25, 5, 0)  # its edge is 1 mm right of the middle
    found = by_id(measure(Series(body.astype(np.float32), affine, name="t1"), labels, body))
    right, left = found["test.lesion.right"], found["test.lesion.left"]
    assert (right.presence, left.presence) == ("present", "absent")
    assert right.measured("volume") == pytest.approx((labels == 5).sum() * spacing.prod() / 1000)
    assert right.evidence and right.evidence.centroid_mm == pytest.approx((6, 20, 30), abs=0.5)


def test_a_tilted_head_is_split_along_its_own_middle():
    """Rolled by 8 degrees, the two halves of a bar along the middle stay alike; a plane of constant x fails this."""
    spacing, shape = 2.0, (110, 110, 110)
    affine = nib.affines.from_matvec(np.diag([spacing] * 3), -np.full(3, spacing * (shape[0] - 1) / 2))
    points = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    x, y, z = np.moveaxis(points @ nib.quaternions.angle_axis2mat(np.deg2rad(8.0), [0, 1, 0]), -1, 0)
    body = (np.abs(x) < 70) & (np.abs(y) < 88) & (np.abs(z) < 80)
    labels = np.where((np.abs(x) < 8) & (np.abs(y) < 30) & (z > 30) & (z < 60), 1, 0)
    right = by_id(measure(Series(body.astype(np.float32), affine), labels, body))["test.hippocampus.right"]
    asymmetry = right.measured("asymmetry")
    assert asymmetry is not None and abs(asymmetry) < 40  # 8 degrees at z = 45 mm are 6 mm, which would be 150 %


def test_volumes_centroids_and_planes_are_those_of_a_naive_count():
    series, labels, body = head()
    labels[3, 4, 5] = 9  # a value no structure names
    found = by_id(measure(series, labels, body))
    middle_mm = 0.7
    for name, value, side in (("hippocampus", 1, "right"), ("hippocampus", 1, "left"), ("lesion", 5, "right")):
        voxels = [
            index
            for index in zip(*np.nonzero(labels == value), strict=True)
            if (series.to_patient_mm(np.array(index))[0] > middle_mm) == (side == "right")
        ]
        finding = found[f"test.{name}.{side}"]
        assert finding.measured("volume") == pytest.approx(len(voxels) * 2 * 3 * 4 / 1000)
        assert finding.evidence and finding.evidence.slice_index and finding.evidence.centroid_mm
        assert finding.evidence.centroid_mm == pytest.approx(series.to_patient_mm(np.mean(voxels, axis=0)))
        for axis, plane in enumerate(finding.evidence.slice_index):
            counts = np.bincount([index[axis] for index in voxels])
            assert counts[plane] == counts.max()
    right, left = (found[f"test.hippocampus.{side}"].measured("volume") for side in ("right", "left"))
    assert right and left and right > left
    expected = 100 * (right - left) / ((right + left) / 2)
    assert found["test.hippocampus.left"].measured("asymmetry") == pytest.approx(expected)


def test_what_is_absent_is_said():
    series, labels, body = head()
    found = by_id(measure(series, labels, body))
    left = found["test.lesion.left"]
    assert (left.presence, left.measured("volume"), left.measured("asymmetry")) == ("absent", 0, None)
    empty = measure(series, np.zeros_like(labels), body)
    assert [finding.presence for finding in empty] == ["absent"] * 5
    assert {finding.measured("volume") for finding in empty} == {0}


def test_a_speck_is_absent_and_its_volume_is_kept():
    series, labels, body = head()
    labels[:] = 0
    labels[60, 30, 20] = 5
    structure = Structure(value=5, name="lesion", paired=True, min_ml=0.05)
    right, left = measure_structures(labels, series, [structure], body=body, mask_path=None, source="test")
    assert right.presence == left.presence == "absent"
    assert right.measured("volume") == pytest.approx(0.024)
    assert right.note == "less than 0.05 ml counts as absent"
    assert left.note is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("side unknown", "does not say which side is right"),
        ("crop", "96 mm"),
        ("no body", "outline"),
    ],
)
def test_no_side_is_named_where_none_can_be_told(change, reason):
    series, labels, body = head(half_width_mm=48.0 if change == "crop" else 70.0)
    expected_ml = (labels == 1).sum() * 0.024
    if change == "side unknown":
        series = Series(series.voxels, series.affine, name="t1", side_is_known=False)
    found = by_id(measure(series, labels, None if change == "no body" else body))
    assert set(found) == {"test.hippocampus.not-assessed", "test.brain-stem.midline", "test.lesion.not-assessed"}
    total = found["test.hippocampus.not-assessed"]
    assert (total.side, total.presence) == ("not_assessed", "present")
    assert total.measured("volume") == pytest.approx(expected_ml)
    assert total.note and reason in total.note


def test_voxel_probabilities_are_averaged_over_each_mask():
    series, labels, body = head()
    probabilities = np.where(labels == 5, 0.75, 0.5).astype(np.float32)
    findings = measure_structures(
        labels, series, STRUCTURES, body=body, mask_path=None, source="test", probabilities=probabilities
    )
    found = by_id(findings)
    assert found["test.lesion.right"].measured("mean voxel probability") == pytest.approx(0.75)
    assert found["test.hippocampus.left"].measured("mean voxel probability") == pytest.approx(0.5)
    assert found["test.lesion.left"].measured("mean voxel probability") is None
    assert found["test.lesion.right"].probability is None


def test_a_name_says_whether_it_is_abnormal_unless_its_author_does():
    def finding(name: str, abnormal: bool | None = None) -> Finding:
        return Finding(
            id="x", name=name, anatomy="brain", side="midline", presence="present", abnormal=abnormal, source="test"
        )

    assert all(finding(name).is_abnormal for name in ("white matter lesion", "Tumour core", "oedema", "microbleeds"))
    assert not any(finding(name).is_abnormal for name in ("hippocampus", "lateral ventricle", "brain stem"))
    assert finding("wide ventricle", abnormal=True).is_abnormal
    assert not finding("no lesion", abnormal=False).is_abnormal


def test_a_reading_comes_back_as_it_was_saved(tmp_path: Path):
    series, labels, body = head()
    acquisition = Acquisition(echo_time_ms=3.1, vendor="A <vendor>")
    series = Series(series.voxels, series.affine, "T1w", acquisition, "t1 µ")
    reading = Reading(
        subject="sub-01",
        session="b",
        series=(SeriesSummary.of(series),),
        findings=tuple(measure(series, labels, body) + not_assessed(STRUCTURES[:1], source="other", why="no FLAIR")),
        models=(ModelUsed(name="test", weights_sha256="0" * 64, card="card.md"),),
        warnings=("one",),
    )
    reading.save(tmp_path / "new" / "reading.json")
    assert Reading.load(tmp_path / "new" / "reading.json") == reading
    assert reading.created.tzinfo is not None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"subject": "a", "series": [], "colour": 1}'])
def test_a_damaged_reading_is_an_input_error_that_names_the_file(tmp_path: Path, content):
    path = tmp_path / "reading.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"reading\.json"):
        Reading.load(path)
    with pytest.raises(InputError, match="missing"):
        Reading.load(tmp_path / "missing")


@pytest.mark.parametrize("mask", ["/etc/passwd", "../other/mask.nii.gz", "a/../../b", "..\\b"])
def test_a_mask_lies_inside_its_reading(mask):
    with pytest.raises(ValidationError, match="relative to its reading"):
        Evidence(series="t1", mask=mask)


def test_ids_are_unique_and_numbers_finite():
    finding = not_assessed(STRUCTURES[:1], source="test", why="why")[0]
    with pytest.raises(ValidationError, match="its own id"):
        Reading(subject="a", series=(), findings=(finding, finding))
    with pytest.raises(ValidationError):
        Measurement(name="volume", value=float("nan"), unit="ml", method="none")
    assert (
        finding_id("Lesions v1!", "White matter/lesion", "not_assessed")
        == "lesions-v1.white-matter-lesion.not-assessed"
    )


def test_how_a_lesion_looks_is_measured_against_what_surrounds_it():
    series, labels, body = head()
    lesion = labels == 5
    for factor, signal in ((2.0, "hyperintense"), (0.5, "hypointense"), (1.05, "isointense")):
        shown = series.with_voxels(np.where(lesion, np.float32(factor), series.voxels).astype(np.float32))
        found = by_id(measure(shown, labels, body))
        [looks] = found["test.lesion.right"].signals
        assert looks.signal == signal and looks.ratio == pytest.approx(factor)
        assert found["test.lesion.left"].signals == () and found["test.hippocampus.right"].signals == ()


def test_a_known_term_is_abnormal_by_its_name_alone() -> None:
    assert all(is_abnormal_name(name) for name in TERMS)
    assert not any(is_abnormal_name(name) for name in ("hippocampus", "lateral ventricle", "cerebral white matter"))
