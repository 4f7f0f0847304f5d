"""DICOM becomes volumes at the right place with the right voxels, or is refused with what is wrong and what to choose."""

from __future__ import annotations

import gzip
import shutil
import zipfile
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from nibabel.affines import apply_affine

from foundation.errors import InputError
from foundation.reading.collection import study_from_path
from foundation.reading.dicom.child import convert_study
from foundation.reading.dicom.study import is_dicom, list_dicom, study_from_dicom, table
from foundation.study import Series
from serve.__main__ import main
from tests.foundation.reading.dicom_making import CAPTURE, Made, header, oblique, save, write_enhanced, write_series

GRIDS = {
    "axial": oblique(),
    "oblique": oblique(27.0, (0.9, 1.1, 4.0)),
    "against the normal": oblique(-12.0) @ np.diag([1.0, 1.0, -1.0, 1.0]),
    "sagittal": np.array([[0, 0, 3.0, -20], [1.1, 0, 0, -9], [0, -0.8, 0, 30], [0, 0, 0, 1]]),
    "coronal": np.array([[1.0, 0, 0, -20], [0, 0, -2.5, 9], [0, -1.0, 0, 30], [0, 0, 0, 1]]),
}


def refusal(path: Path, *choose: str, visit: int | None = None) -> str:
    """What the child answers, asked in this process, which is quicker."""
    with TemporaryDirectory() as folder, chdir(folder), pytest.raises(InputError) as caught:
        convert_study(str(path), choose, visit)
    return str(caught.value)


def same_voxels(series: Series, made: Made) -> None:
    """Every voxel that was written is found at its patient position."""
    index = np.indices(made.voxels.shape).reshape(3, -1).T
    place = apply_affine(np.linalg.inv(series.affine) @ made.affine, index)
    np.testing.assert_allclose(place, place.round(), atol=2e-3)
    found = series.voxels[tuple(place.round().astype(int).T)]
    np.testing.assert_array_equal(found, made.voxels.reshape(-1).astype(np.float32))


# ------------------------------------------------------------------------------------------------ good studies


@pytest.mark.parametrize("name", GRIDS)
def test_every_voxel_of_a_classic_series_is_where_its_header_says(tmp_path: Path, name: str) -> None:
    made = write_series(tmp_path / "a" / "b", affine=GRIDS[name])
    (tmp_path / "a" / "notes.txt").write_text("junk")
    (tmp_path / "a" / "DICOMDIR.bak").write_bytes(bytes(200))
    series = study_from_dicom(tmp_path).reference
    same_voxels(series, made)
    assert series.contrast == "T1w" and series.acquisition.echo_time_ms == 4 and series.acquisition.vendor == "Siemens"


def test_the_source_lists_planes_in_order_along_the_stack(tmp_path: Path) -> None:
    made = write_series(tmp_path)
    source = study_from_dicom(tmp_path).reference.source
    assert source is not None and [frame for _, frame in source.slices] == [0] * 6
    for plane, (file, _) in enumerate(source.slices):
        position = np.array(source.headers[file].ImagePositionPatient, float) * (-1, -1, 1)
        np.testing.assert_allclose(position, apply_affine(made.affine, (0, 0, plane)), atol=1e-4)
    assert "PixelData" not in source.headers[0] and "Doe" not in repr(study_from_dicom(tmp_path).reference)


def test_a_zip_and_gzipped_files_are_read_as_the_folder_is(tmp_path: Path) -> None:
    made = write_series(tmp_path / "study" / "deep")
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in made.files:
            archive.write(file, f"../../{file.name}.dcm")
        archive.writestr("__MACOSX/._x", b"litter")
    packed = tmp_path / "packed"
    packed.mkdir()
    for file in made.files:
        (packed / f"{file.name}.dcm.gz").write_bytes(gzip.compress(file.read_bytes()))
    for path in (tmp_path / "study.zip", packed):
        same_voxels(study_from_path(path).reference, made)
    assert not list(tmp_path.parent.glob("series-*"))


def test_an_enhanced_file_of_one_volume_and_of_two_echoes(tmp_path: Path) -> None:
    [made] = write_enhanced(tmp_path / "one")
    same_voxels(study_from_dicom(tmp_path / "one").reference, made)
    first, second = write_enhanced(tmp_path / "two", echoes_ms=(10.0, 30.0))
    said = refusal(tmp_path / "two")
    assert "1.e1 (echo time 10 ms), 1.e2 (echo time 30 ms)" in said and "--series 1.e1" in said
    same_voxels(study_from_dicom(tmp_path / "two", ["1.e1"]).reference, first)
    same_voxels(study_from_dicom(tmp_path / "two", ["1.e2"]).reference, second)


def test_time_points_of_an_enhanced_file(tmp_path: Path) -> None:
    early, late = write_enhanced(tmp_path, echoes_ms=(10.0, 10.0))
    assert "1.t1 (time point 1), 1.t2 (time point 2)" in refusal(tmp_path)
    same_voxels(study_from_dicom(tmp_path, ["1.t1"]).reference, early)
    same_voxels(study_from_dicom(tmp_path, ["1.t2"]).reference, late)


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLSLossless"])
def test_compressed_pixels(tmp_path: Path, syntax: str) -> None:
    import pydicom

    made = write_series(tmp_path)
    for file in made.files:
        dataset = pydicom.dcmread(file)
        dataset.compress(getattr(pydicom.uid, syntax))
        dataset.save_as(file)
    same_voxels(study_from_dicom(tmp_path).reference, made)


def test_several_series_become_a_study_with_an_anatomical_reference(tmp_path: Path) -> None:
    write_series(tmp_path, "3", EchoTime="90", RepetitionTime="4000", SeriesDescription="t2 tse")
    write_series(tmp_path, "7", SeriesDescription="t1 se")
    write_series(tmp_path, "9", SeriesDescription="t1 se +c", ContrastBolusAgent="some")
    study = study_from_dicom(tmp_path)
    assert [(one.name, one.contrast) for one in study.series] == [
        ("mr-7", "T1w"), ("mr-9", "T1w-contrast"), ("mr-3", "T2w"),
    ]  # fmt: skip
    assert study.subject.startswith("patient-") and study.series[1].source is None
    chosen = study_from_dicom(tmp_path, ["3=PD", "7"])
    assert [one.contrast for one in chosen.series] == ["PD", "T1w"] and chosen.notes == (
        "Not chosen, so not read: series 9.",
    )


# ------------------------------------------------------------------------------------------------ what is asked for


def test_echoes_phases_and_time_points_are_asked_for(tmp_path: Path) -> None:
    one = write_series(tmp_path / "e", seed=1, EchoTime="5")
    two = write_series(tmp_path / "e", seed=2, EchoTime="15")
    assert "1.e1 (echo time 5 ms), 1.e2 (echo time 15 ms)" in refusal(tmp_path / "e")
    same_voxels(study_from_dicom(tmp_path / "e", ["1.e2"]).reference, two)
    same_voxels(study_from_dicom(tmp_path / "e", ["1.e1"]).reference, one)

    early = write_series(tmp_path / "t", seed=1, order=range(6))
    late = write_series(tmp_path / "t", seed=2, order=range(6), per_plane=lambda k: {"InstanceNumber": 0})
    for file in late.files:  # numbered on after the first time point, as scanners do
        _edit(file, InstanceNumber=100 + int(file.name.split("-")[2]))
    assert "1.t1 (time point 1), 1.t2 (time point 2)" in refusal(tmp_path / "t")
    same_voxels(study_from_dicom(tmp_path / "t", ["1.t2"]).reference, late)
    same_voxels(study_from_dicom(tmp_path / "t", ["1.t1"]).reference, early)

    write_series(tmp_path / "p", seed=1)
    write_series(tmp_path / "p", seed=2, ImageType=["ORIGINAL", "PRIMARY", "P", "ND"])
    study = study_from_dicom(tmp_path / "p")  # one magnitude leaves no choice
    assert [series.name for series in study.series] == ["mr-1.magnitude"]
    assert study.notes == ("Series 1.phase was set aside: it is a phase image.",)


def test_two_visits_are_asked_for_and_two_patients_refused(tmp_path: Path) -> None:
    write_series(tmp_path, "1", study="5", StudyDate="20210101")
    made = write_series(tmp_path, "2", study="6", StudyDate="20190101")
    said = refusal(tmp_path)
    assert "2 studies of one patient: visit 1 with 1 series, visit 2 with 1 series" in said and "--visit" in said
    same_voxels(study_from_dicom(tmp_path, visit=1).reference, made)
    assert "from 1 to 2 (got 3)" in refusal(tmp_path, visit=3)
    write_series(tmp_path, "3", study="6", PatientID="P-2")
    with pytest.raises(InputError, match="several patients' names"):
        study_from_dicom(tmp_path, visit=1)


def test_what_is_no_volume_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    write_series(tmp_path, "1")
    write_series(tmp_path, "2", SeriesDescription="AAHead_Scout")
    write_series(tmp_path, "3", ImageType=["DERIVED", "SECONDARY", "MPR"])
    write_series(tmp_path, "4", shape=(10, 8, 1))
    write_series(tmp_path, "5", sop_class=CAPTURE, Modality="OT")
    save(header("6", sop_class="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR"), tmp_path / "report")
    write_series(tmp_path, "7", Modality="CT")
    study = study_from_dicom(tmp_path)
    assert len(study.series) == 1 and len(study.notes) == 6
    reasons = ("it is a localiser", "it was derived from", "it has 1 slice in", "its modality is OT", "its modality is SR",
               "its modality is CT")  # fmt: skip
    for number, reason in enumerate(reasons, start=2):
        reason = f"{number} was set aside: {reason}"
        assert any(reason in note for note in study.notes), reason
    assert study_from_dicom(tmp_path, ["3"]).reference.name == "mr-3"
    assert "series 4 is a volume" in refusal(tmp_path, "4")
    assert "There are: 1, 2, 3" in refusal(tmp_path, "12")
    lines = table(list_dicom(tmp_path))
    assert len(lines) == 8 and "set aside: it is a localiser" in lines[2] and "Scout" not in "".join(lines)
    assert "AAHead_Scout" in "".join(table(list_dicom(tmp_path), names=True))


def test_the_command_lists_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_series(tmp_path, "3")
    before = sorted(tmp_path.iterdir())
    assert main(["dicom", str(tmp_path)]) == 0
    title, line = capsys.readouterr().out.splitlines()
    assert title.startswith("series") and line.split()[:2] == ["3", "T1w"] and sorted(tmp_path.iterdir()) == before
    assert main(["dicom", str(tmp_path), "--visit", "2"]) == 2


# ------------------------------------------------------------------------------------------------ what is refused


def test_missing_slices_are_refused_by_their_places(tmp_path: Path) -> None:
    write_series(tmp_path / "a", affine=oblique(), shape=(10, 8, 12), keep=lambda plane: plane not in (4, 5, 9))
    said = refusal(tmp_path / "a")
    assert "3 slices are missing between 9 that are there: at -18.1, -15.1, -3.1 mm" in said, said
    assert "expected every 3 mm" in said
    write_series(tmp_path / "b", seed=1, keep=lambda plane: plane != 2, order=range(6))
    write_series(tmp_path / "b", seed=2, order=range(6))
    assert "of 2 images at each place some are missing at" in refusal(tmp_path / "b", "1.t1")


def test_a_slice_lost_at_an_end_leaves_a_hole_in_the_numbers(tmp_path: Path) -> None:
    write_series(tmp_path, order=[1, 2, 0, 3, 4, 5], keep=lambda plane: plane != 0)
    notes = study_from_dicom(tmp_path).notes
    assert notes == ("Series 1 may lack slices at an end: 1 of its instance numbers are missing.",)


def test_uneven_and_sheared_stacks_are_refused(tmp_path: Path) -> None:
    made = write_series(tmp_path / "uneven", affine=oblique())
    _edit(made.files[0], ImagePositionPatient=[-20.5, 11.25, 11.0])
    assert "mm apart, not evenly" in refusal(tmp_path / "uneven")
    sheared = write_series(tmp_path / "sheared", affine=oblique())
    for file in sheared.files:
        _edit(file, shift=0.5)
    assert "shifted against each other" in refusal(tmp_path / "sheared")


def test_truncated_and_damaged_files_are_refused(tmp_path: Path) -> None:
    made = write_series(tmp_path)
    whole = made.files[0].read_bytes()
    made.files[0].write_bytes(whole[:-10])
    assert "1 of 6 that cannot: an image is complete: 150 of 160 bytes" in refusal(tmp_path)
    made.files[0].write_bytes(whole[:200])
    assert "1 of 6 that cannot" in refusal(tmp_path)


def test_headers_that_cannot_be_written_again_are_no_reason_to_refuse_the_images(tmp_path: Path) -> None:
    """What SEG and SR do not repeat may be as damaged as it likes: a kind of value that there is not, a sex that there is not."""
    made = write_series(tmp_path / "in", PatientComments="x" * 8, PatientSex="QX")
    for file in made.files:
        content = file.read_bytes()
        at = content.index(b"\x10\x00\x00\x40LT")
        file.write_bytes(content[: at + 4] + b"ZZ" + content[at + 6 :])
    source = study_from_dicom(tmp_path / "in").reference.source
    assert source is not None and len(source.headers) == len(made.files)
    header = source.headers[0]
    assert "PatientComments" not in header and header.PatientSex == "" and header.PatientName == "Doe^Jane"
    assert header.StudyInstanceUID == "1.2.3.1" and "SeriesDescription" not in header


def test_names_keep_their_letters_on_the_way_back(tmp_path: Path) -> None:
    write_series(tmp_path / "in", SpecificCharacterSet="ISO_IR 144", PatientName="Люкceмбypг")
    source = study_from_dicom(tmp_path / "in").reference.source
    assert source is not None and source.headers[0].PatientName == "Люкceмбypг"


def test_words_against_parameters_leave_the_contrast_unknown(tmp_path: Path) -> None:
    write_series(tmp_path, SeriesDescription="FLAIR axial")
    study = study_from_dicom(tmp_path)
    assert study.reference.contrast == "unknown"
    assert "its description says FLAIR, its sequence parameters say T1w" in study.notes[0]
    assert study_from_dicom(tmp_path, ["1=T1w"]).reference.contrast == "T1w"


def test_what_holds_no_dicom(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("nothing")
    assert "1 files, none of them DICOM" in refusal(tmp_path) and not is_dicom(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "nothing")
    assert "none of them DICOM" in refusal(tmp_path / "a.zip")


# ------------------------------------------------------------------------------------------------ real data


def test_real_series_match_their_references(shared_data: Path) -> None:
    """A part of what `python -m examples.dicom_table` prints: a mosaic, a classic and an enhanced series."""
    from examples.dicom_table import corner_mm, references_of

    for folder, label in (
        ("dicom_uih_umr770/In", "9.t17"),
        ("dicom_siemens_xa30/In", "5"),
        ("dicom_ge_siemens_nih/In/20180918GE", "4.t10"),
        ("dicom_philips_elition/In/enh", "2001.e2.phase"),
    ):
        series = study_from_dicom(shared_data / folder, [label]).reference
        error = corner_mm(series, references_of(shared_data / folder.split("/")[0]))
        assert error is not None and error < 0.01, (folder, error)


def _edit(file: Path, shift: float = 0.0, **fields: object) -> None:
    import pydicom

    dataset = pydicom.dcmread(file)
    for name, value in fields.items():
        setattr(dataset, name, value)
    if shift:  # along the columns, in proportion to the height
        x, y, z = (float(n) for n in dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x + shift * z, y, z]
    dataset.save_as(file)


def test_a_folder_within_can_be_copied_twice(tmp_path: Path) -> None:
    made = write_series(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy of a")
    same_voxels(study_from_dicom(tmp_path).reference, made)
