"""A reading as DICOM objects that go back to the archive: one segmentation (SEG) per mask, one measurement report (SR, TID 1500).

    dicom_objects(result)      {"dicom/seg-structures.dcm": Dataset, "dicom/measurements.dcm": Dataset}

They are made only where the images were DICOM, and carry the patient and the study of these, or the archive could not file them.
Every plane of a mask is put on its source image by its place in the patient, not by its number in a file: the volume that models
saw may have its axes reversed or exchanged. The objects say of themselves that a machine made them and nobody verified them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import highdicom
import numpy as np
from highdicom import sr
from pydicom.sr.codedict import codes

from ehr.output import DRAFT, Standing
from foundation.errors import InputError
from foundation.findings import Finding, Structure, is_abnormal_name
from foundation.reading.dicom.headers import slices_of
from foundation.reading.dicom.volumes import affine_of_plane
from foundation.study import DicomSource, Series
from foundation.terms import PRESENCE, SIDES, Code, snomed_of, ucum

if TYPE_CHECKING:
    from serve.pipeline import StudyReading

SEG_SERIES, SR_SERIES = 9001, 9101  # numbers that no scanner gives
OURS = "99LARMOR"  # the coding scheme of what no standard names
OFF_GRID_VOXELS = 0.05  # how far a pixel's centre may lie from a voxel's
MAKER = "Larmor"


def dicom_objects(result: StudyReading, standing: Standing = DRAFT) -> dict[str, Any]:
    """Datasets by path relative to the reading's folder; none where the images were not DICOM slices."""
    source = result.study.reference.source
    if source is None:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # highdicom's, about headers that are not ours
        headers = [_completed(header) for header in source.headers]
        segmentations = _segmentations(result, headers, source, standing)
        objects = {f"dicom/seg-{name}.dcm": segmentation for name, (segmentation, _) in segmentations.items()}
        if result.reading.findings:  # a report of nothing is not allowed
            objects["dicom/measurements.dcm"] = _report(result, headers, segmentations, standing)
    return objects


def planes_of_mask(labels: np.ndarray, series: Series) -> np.ndarray:
    """A mask on a series' voxels as pictures on its source's planes, `(planes, rows, columns)`, in the order of the source.

    Read off at the place of every pixel; a volume that was resampled is refused.
    """
    source = series.source
    assert source is not None and labels.shape == series.shape, labels.shape
    planes = {file: slices_of(header, file) for file, header in enumerate(source.headers)}
    to_voxel = np.linalg.inv(series.affine)
    pictures = []
    for file, frame in source.slices:
        plane = planes[file][frame]
        across = to_voxel @ affine_of_plane(plane)
        columns, rows = np.meshgrid(np.arange(plane.columns), np.arange(plane.rows))
        points = np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)])
        exact = np.einsum("ij,jrc->irc", across, points)[:3]
        voxel = np.rint(exact).astype(int)
        limits = np.array(labels.shape)[:, None, None]
        if np.abs(exact - voxel).max() > OFF_GRID_VOXELS or (voxel < 0).any() or (voxel >= limits).any():
            remedy = "Read the study again, and change nothing in its folder meanwhile."
            raise InputError("a mask lies on its source images' pixels", got="another grid", remedy=remedy)
        pictures.append(labels[voxel[0], voxel[1], voxel[2]])
    return np.stack(pictures)


# ------------------------------------------------------------------------------------------------ segmentations


def _segmentations(
    result: StudyReading, headers: Sequence[Any], source: DicomSource, standing: Standing
) -> dict[str, tuple[Any, Any]]:
    """By model: the segmentation and the numbers of its segments by structure; masks that outline nothing have none."""
    made: dict[str, tuple[Any, Any]] = {}
    for number, (path, mask) in enumerate(result.masks.items()):
        name = path.removeprefix("masks/").removesuffix(".nii.gz")
        kept = [one for one in mask.structures if (mask.labels == one.value).any()]
        if not kept or "FrameOfReferenceUID" not in headers[0]:
            continue
        pictures = planes_of_mask(mask.labels, result.study.reference)
        values = np.zeros(int(mask.labels.max()) + 1, np.uint8)
        for segment, structure in enumerate(kept, start=1):
            values[structure.value] = segment
        used = next(one for one in result.reading.models if one.name == name)
        segmentation = highdicom.seg.Segmentation(
            source_images=headers,
            pixel_array=_on_frames(values[np.clip(pictures, 0, None)], headers, source),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,  # what viewers show; label maps they do not
            segment_descriptions=[_segment(n, one, name, used.weights_sha256) for n, one in enumerate(kept, start=1)],
            series_instance_uid=highdicom.UID(),
            series_number=SEG_SERIES + number,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer_model_name=name,
            software_versions=result.reading.software,
            series_description=_described(name, standing),
            content_label=_label(standing),
            manufacturer=MAKER,
            device_serial_number="none",
        )
        made[name] = segmentation, {one.name: segment for segment, one in enumerate(kept, start=1)}
    return made


def _on_frames(pictures: np.ndarray, headers: Sequence[Any], source: DicomSource) -> np.ndarray:
    """For each image in the order in which highdicom takes them: files as they come, or all frames of one file."""
    if len(headers) > 1:
        order = np.argsort([file for file, _ in source.slices])
        return pictures[order]
    frames = np.zeros((int(headers[0].get("NumberOfFrames", 1)), *pictures.shape[1:]), pictures.dtype)
    frames[[frame for _, frame in source.slices]] = pictures
    return frames


def _segment(number: int, structure: Structure, model: str, weights: str) -> Any:
    is_disease = is_abnormal_name(structure.name) if structure.abnormal is None else structure.abnormal
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=structure.name[:64],
        segmented_property_category=(
            codes.SCT.MorphologicallyAbnormalStructure if is_disease else codes.SCT.AnatomicalStructure
        ),
        segmented_property_type=_coded(structure.name),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=model, family=codes.DCM.ArtificialIntelligence, version=weights[:16]
        ),
    )


def _coded(name: str) -> Any:
    """SNOMED's term where there is exactly this one, otherwise ours."""
    return _sct(snomed_of(name)) or _own(name)


def _sct(code: Code | None) -> Any:
    return None if code is None else sr.CodedConcept(code.code, "SCT", code.display)


# ------------------------------------------------------------------------------------------------ measurements


def _report(
    result: StudyReading, headers: Sequence[Any], segmentations: dict[str, tuple[Any, Any]], standing: Standing
) -> Any:
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=highdicom.UID(), name=result.reading.software[:64], manufacturer_name=MAKER
        ),
    )
    versions = {one.name: one.weights_sha256[:16] for one in result.reading.models}
    groups = [
        _group(finding, versions.get(finding.source, "unknown"), headers, segmentations)
        for finding in result.reading.findings
    ]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.LN.BrainMRI,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    return sr.Comprehensive3DSR(
        evidence=[*headers, *(segmentation for segmentation, _ in segmentations.values())],
        content=content,
        series_instance_uid=highdicom.UID(),
        series_number=SR_SERIES,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=MAKER,
        is_complete=standing.is_verified,
        is_final=standing.is_verified,
        is_verified=standing.is_verified,
        verifying_observer_name=f"{standing.signed_by}^" if standing.is_verified else None,
        verifying_organization="not said" if standing.is_verified else None,
        series_description=_described("measurements", standing),
        performed_procedure_codes=[codes.LN.BrainMRI],
    )


def _group(finding: Finding, version: str, headers: Sequence[Any], segmentations: dict[str, tuple[Any, Any]]) -> Any:
    """A finding with its numbers, whether it is there and how probable; on its segment where a mask shows it."""
    shared: dict[str, Any] = {
        "tracking_identifier": sr.TrackingIdentifier(uid=highdicom.UID(), identifier=finding.id),
        "finding_type": _coded(finding.name),
        "finding_sites": [_site(finding)],
        "measurements": _measurements(finding),
        "qualitative_evaluations": [sr.QualitativeEvaluation(name=_own("presence"), value=_presence(finding))],
        "algorithm_id": sr.AlgorithmIdentification(name=finding.source, version=version),
    }
    segmentation, numbers = segmentations.get(finding.source, (None, {}))
    if finding.presence == "present" and finding.name in numbers:
        referenced = sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=numbers[finding.name],
            source_series=sr.SourceSeriesForSegmentation.from_source_image(headers[0]),
        )
        return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=referenced, **shared)
    image = sr.SourceImageForMeasurementGroup.from_source_image(headers[0])
    category = codes.SCT.MorphologicallyAbnormalStructure if finding.is_abnormal else codes.SCT.AnatomicalStructure
    return sr.MeasurementsAndQualitativeEvaluations(source_images=[image], finding_category=category, **shared)


def _site(finding: Finding) -> Any:
    laterality = _sct(SIDES.get(finding.side))
    return sr.FindingSite(anatomic_location=_coded(finding.anatomy or "brain"), laterality=laterality)


def _measurements(finding: Finding) -> list[Any]:
    made = []
    for one in finding.measurements:
        name = codes.SCT.Volume if one.name == "volume" else _own(one.name)
        unit = sr.CodedConcept(ucum(one.unit), "UCUM", "no units" if one.unit == "1" else ucum(one.unit))
        made.append(sr.Measurement(name=name, value=one.value, unit=unit))
    if finding.probability is not None:
        name = _own("probability of being present" if finding.is_calibrated else "score, not calibrated")
        unit = sr.CodedConcept("1", "UCUM", "no units")
        made.append(sr.Measurement(name=name, value=finding.probability, unit=unit))
    return made


def _presence(finding: Finding) -> Any:
    return _sct(PRESENCE.get(finding.presence)) or _own(finding.presence.replace("_", " "))


def _label(standing: Standing) -> str:
    return standing.status.upper() if standing.signed_by else "DRAFT"


def _described(what: str, standing: Standing) -> str:
    """What a viewer lists the series under: nobody may take what no clinician has verified for anything else."""
    return f"{_label(standing)} {what}{'' if standing.is_verified else ', not verified'}"[:64]


def _own(words: str) -> Any:
    value = "".join(letter if letter.isalnum() else "-" for letter in words.lower())[:16]
    return sr.CodedConcept(value, OURS, words[:64])


def _completed(header: Any) -> Any:
    """A header with the empty values that the standard asks for where the sender left them out."""
    header = copy.copy(header)
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
                 "StudyTime", "ReferringPhysicianName", "PositionReferenceIndicator"):  # fmt: skip
        if name not in header:
            setattr(header, name, "")
    return header
