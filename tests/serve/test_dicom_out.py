"""DICOM objects that go back to the archive: masks at the right place on the right slices, numbers as in the reading."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from nibabel.affines import apply_affine

from foundation.findings import Evidence, Finding, Measurement, ModelUsed, Reading, SeriesSummary, Structure
from foundation.reading.dicom.study import study_from_dicom
from heads.report.templates import draft
from serve.dicom_out import dicom_objects, planes_of_mask
from serve.pipeline import Mask, StudyReading, save_reading
from tests.foundation.reading.dicom_making import Made, oblique, write_enhanced, write_series

LPS = (-1.0, -1.0, 1.0)
STACKS = {
    "oblique": oblique(27.0, (0.9, 1.1, 4.0)),
    "reversed": oblique(-12.0) @ np.diag([1.0, 1.0, -1.0, 1.0]),
    "sagittal": np.array([[0, 0, 3.0, -20], [1.1, 0, 0, -9], [0, -0.8, 0, 30], [0, 0, 0, 1]]),
}
STRUCTURES = (
    Structure(value=2, name="hippocampus", paired=False),
    Structure(value=5, name="odd thing", paired=False, abnormal=True),
    Structure(value=7, name="thalamus", paired=False),
)


def reading_of(folder: Path, made: Made, places: dict[int, tuple[int, int, int]]) -> StudyReading:
    """A reading whose mask has one voxel of each value at (column, row, plane) as the file's own axes count them."""
    study = study_from_dicom(folder)
    series = study.reference
    labels = np.zeros(series.shape, np.int16)
    for value, place in places.items():
        voxel = np.rint(apply_affine(np.linalg.inv(series.affine) @ made.affine, place)).astype(int)
        labels[tuple(voxel)] = value
    findings = [
        Finding(
            id=f"m.{n}",
            name=structure.name,
            anatomy="brain",
            side="right" if structure.value == 2 else "midline",
            presence="present" if structure.value in places else "absent",
            probability=0.75 if structure.value == 2 else None,
            abnormal=structure.abnormal,
            measurements=(Measurement(name="volume", value=1.5, unit="ml", method="count"),),
            evidence=Evidence(series=series.name, mask="masks/m.nii.gz"),
            source="m",
        )
        for n, structure in enumerate(STRUCTURES)
    ]
    reading = Reading(
        subject=study.subject,
        series=(SeriesSummary.of(series),),
        findings=tuple(findings),
        models=(ModelUsed(name="m", weights_sha256="0" * 64),),
    )
    return StudyReading(study, reading, draft(reading), {"masks/m.nii.gz": Mask(labels, STRUCTURES)})


def places_in(segmentation: pydicom.Dataset, number: int) -> list[np.ndarray]:
    """Patient RAS+ mm of every pixel that is set in a segment, from the object's own headers alone."""
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    spacing = [float(n) for n in shared.PixelMeasuresSequence[0].PixelSpacing]
    toward = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    pixels = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    found = []
    for frame, group in zip(pixels, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber != number:
            continue
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(frame):
            found.append((origin + toward[0] * spacing[1] * column + toward[1] * spacing[0] * row) * LPS)
    return found


@pytest.mark.parametrize("name", STACKS)
def test_segments_lie_where_they_were_drawn_and_cite_the_right_slices(tmp_path: Path, name: str) -> None:
    made = write_series(tmp_path / "in", affine=STACKS[name])
    places = {2: (3, 5, 4), 5: (9, 0, 1)}
    result = reading_of(tmp_path / "in", made, places)
    save_reading(result, tmp_path / "out")
    segmentation = highdicom.seg.segread(tmp_path / "out" / "dicom" / "seg-m.dcm")
    assert [one.SegmentLabel for one in segmentation.SegmentSequence] == ["hippocampus", "odd thing"]
    assert segmentation.PatientID == "P-1" and segmentation.StudyInstanceUID == "1.2.3.1"
    uids = {}
    for file in made.files:
        header = pydicom.dcmread(file)
        position = np.array(header.ImagePositionPatient, float) * LPS
        uids[int(np.argmin([np.linalg.norm(position - apply_affine(made.affine, (0, 0, k))) for k in range(6)]))] = (
            header.SOPInstanceUID
        )
    for number, place in enumerate(places.values(), start=1):
        [found] = places_in(segmentation, number)
        np.testing.assert_allclose(found, apply_affine(made.affine, place), atol=0.01)
        [cited] = [
            group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            for group in segmentation.PerFrameFunctionalGroupsSequence
            if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number
        ]
        assert cited == uids[place[2]]


def test_a_multi_frame_source(tmp_path: Path) -> None:
    [made] = write_enhanced(tmp_path / "in")
    result = reading_of(tmp_path / "in", made, {2: (3, 5, 4), 7: (1, 2, 0)})
    segmentation = dicom_objects(result)["dicom/seg-m.dcm"]
    for number, place in ((1, (3, 5, 4)), (2, (1, 2, 0))):
        [found] = places_in(segmentation, number)
        np.testing.assert_allclose(found, apply_affine(made.affine, place), atol=0.01)


def test_the_measurements_read_back_as_they_were(tmp_path: Path) -> None:
    made = write_series(tmp_path / "in")
    save_reading(reading_of(tmp_path / "in", made, {2: (3, 5, 4)}), tmp_path / "out")
    report = highdicom.sr.srread(tmp_path / "out" / "dicom" / "measurements.dcm")
    assert (report.CompletionFlag, report.VerificationFlag) == ("PARTIAL", "UNVERIFIED")
    [group] = report.content.get_volumetric_roi_measurement_groups()
    assert group.tracking_identifier == "m.0" and group.finding_type.value == "5366008"
    values = {one.name.meaning: (one.value, one.unit.value) for one in group.get_measurements()}
    assert values == {"Volume": (1.5, "mL"), "score, not calibrated": (0.75, "1")}
    assert group.finding_sites[0].laterality.meaning == "Right"
    segmentation = pydicom.dcmread(tmp_path / "out" / "dicom" / "seg-m.dcm")
    assert group.referenced_segment[0].referenced_sop_instance_uid == segmentation.SOPInstanceUID
    others = report.content.get_image_measurement_groups()
    assert [one.tracking_identifier for one in others] == ["m.1", "m.2"]


def test_masks_go_plane_by_plane_and_nothing_is_made_of_nifti(tmp_path: Path, make_series) -> None:
    made = write_series(tmp_path / "in", affine=STACKS["oblique"])
    result = reading_of(tmp_path / "in", made, {})
    labels = result.study.reference.voxels.astype(np.int32)
    np.testing.assert_array_equal(planes_of_mask(labels, result.study.reference), made.voxels.transpose(2, 1, 0))
    empty = dicom_objects(result)
    assert list(empty) == ["dicom/measurements.dcm"], "a mask of nothing is no segmentation"
    nifti = make_series()
    reading = Reading(subject="a", series=(SeriesSummary.of(nifti),))
    from foundation.study import Study

    assert dicom_objects(StudyReading(Study("a", (nifti,)), reading, draft(reading), {})) == {}
