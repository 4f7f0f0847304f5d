"""From dropped files, or an example, to a case with what lies beside it."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from foundation.cohort.anatomy import DISEASES
from foundation.errors import InputError
from heads.adapters.shared import FeatureCache
from serve.cases import CaseStore
from serve.examples import EXAMPLES, make_example
from serve.intake import Dropped, change_of, read_case, study_of, without_record_of
from serve.pipeline import load_models
from tests.foundation.reading.dicom_making import write_series
from tests.heads.report.making import Reader
from tests.serve.making import head_file, tiny_model


def test_uploaded_files_are_one_study(tmp_path: Path):
    (tmp_path / "other").mkdir()
    files = [head_file(tmp_path / "other" / "ses_T1w.nii"), head_file(tmp_path / "x.nii.gz")]
    study = study_of(files, "FLAIR", " 017 ")
    assert [(one.name, one.contrast, one.contrast_from) for one in study.series] == [
        ("ses_T1w", "T1w", "its file name"),
        ("x", "FLAIR", "what was said of it"),
    ]
    assert study.subject == "017"
    assert study_of(files[1:]).subject == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "x.nii.gz"]


def test_dicom_comes_as_a_zip_or_as_files(tmp_path: Path):
    made = write_series(tmp_path / "visit" / "deep")
    packed = Path(shutil.make_archive(str(tmp_path / "visit"), "zip", tmp_path / "visit"))
    named = [file.rename(file.with_name(f"{file.name}.dcm")) for file in made.files]
    for files in ([packed], named):
        (series,) = study_of(files).series
        assert series.contrast == "T1w" and sorted(series.shape) == sorted(made.voxels.shape)
        assert series.contrast_from in ("description", "sequence", "description and sequence")
    with pytest.raises(InputError, match="files of one kind"):
        study_of([packed, head_file(tmp_path / "a.nii")])


@pytest.mark.parametrize(
    "names",
    [[], ["a.txt"], ["a/x.nii", "b/x.nii"], ["sub-1_T1w.nii", "sub-2_T1w.nii"], ["absent.nii"]],
    ids=["none", "no image", "one name twice", "two subjects", "gone"],
)
def test_what_is_no_study_is_an_input_error(names: list[str], tmp_path: Path):
    files = [tmp_path / name for name in names]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        if file.stem != "absent":
            head_file(file.with_suffix(".nii")).rename(file)
    with pytest.raises(InputError):
        study_of(files)


def test_an_earlier_study_is_compared(tmp_path: Path):
    store, models, steps = CaseStore(tmp_path / "data"), load_models([tiny_model(tmp_path / "all")]), []
    now, then = head_file(tmp_path / "sub-1_T1w.nii.gz"), head_file(tmp_path / "then_T1w.nii.gz", seed=1)
    dropped = Dropped(files=(now,), earlier=(then,))
    case = store.case(
        "anna", read_case(store, models, FeatureCache(), "anna", dropped, lambda *step: steps.append(step))
    )
    found = change_of(case)
    assert found is not None
    change, before, after = found
    assert change.subject == "sub-1" and change.volumes
    assert before.startswith(b"\x89PNG") and after.startswith(b"\x89PNG")
    assert without_record_of(case) is None
    shares = [share for share, *_ in steps]
    assert shares == sorted(shares) and shares[-1] == 1.0


@pytest.mark.parametrize("with_earlier", [False, True])
def test_the_report_is_worded_by_the_writer_and_told_sentence_by_sentence(tmp_path: Path, with_earlier: bool):
    store, models, drafts = CaseStore(tmp_path / "data"), load_models([tiny_model(tmp_path / "all")]), []
    earlier = (head_file(tmp_path / "then_T1w.nii.gz", seed=1),) if with_earlier else ()
    dropped = Dropped(files=(head_file(tmp_path / "sub-1_T1w.nii.gz"),), earlier=earlier)

    def tell(share: float, step: str, draft: str = "", /) -> None:
        drafts.extend([draft] if draft else [])

    case_id = read_case(store, models, FeatureCache(), "anna", dropped, tell, [Reader()])
    said = store.case("anna", case_id).sentences
    worded = {one.writer for one in said if one.section in ("Findings", "Impression")}
    assert Reader().name in worded
    assert len(drafts) == len(said) and drafts[-1].count("\n") > drafts[0].count("\n")
    assert all(len(one) < len(other) for one, other in itertools.pairwise(drafts))
    assert any(one.section == "Comparison" for one in said) == with_earlier


def test_a_record_that_is_none_is_an_input_error(tmp_path: Path):
    store, record = CaseStore(tmp_path / "data"), tmp_path / "record.json"
    record.write_text(json.dumps({"resourceType": "Bundle", "entry": []}))
    dropped = Dropped(files=(head_file(tmp_path / "a_T1w.nii"),), record=record)
    with pytest.raises(InputError):
        read_case(store, [], FeatureCache(), "anna", dropped, lambda *step: None)
    assert not store.worklist("anna")


def test_examples_are_what_they_say():
    for name, example in EXAMPLES.items():
        assert set(example.diagnoses) <= set(DISEASES), name
    made = make_example("tumour", spacing_mm=4.0)
    assert made.record is not None and made.record.events and made.earlier is None
    assert [one.contrast for one in made.study.series] == ["T1w", "T1w-contrast", "FLAIR", "T2w"]
    before = make_example("tumour-before", spacing_mm=4.0)
    assert before.record is None and before.earlier is not None
    assert np.array_equal(before.study.reference.voxels, made.study.reference.voxels)  # one patient, two examples
    assert before.earlier.subject == before.study.subject
