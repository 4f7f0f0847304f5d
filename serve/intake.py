"""From what somebody dropped on the page to a case: images, and what may lie beside them.

    case_id = read_case(store, models, cache, "anna", Dropped(files=(Path("t1.nii.gz"),)), tell)

Beside the case's own files lies what the page shows of it and no output holds: `page/without-record.json`, the reading as it is
without the patient's record, and `page/change.json` with pictures, against an earlier study.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ehr.index import Admitted
from foundation.errors import InputError
from foundation.files import write_folder_aside
from foundation.findings import Reading
from foundation.reading.nifti import is_nifti_name
from foundation.reading.stranger import study_from_stranger
from foundation.stopwatch import Stopwatch
from foundation.study import Study
from heads.adapters.folder import LoadedModel
from heads.adapters.shared import FeatureCache
from heads.report import Draft, Sentence
from heads.report.writing import Writer
from serve.cases import Case, CaseStore
from serve.examples import EXAMPLES, make_example
from serve.jobs import Tell
from serve.longitudinal import Change, compare, pictures_of, with_prior
from serve.pipeline import read_study, record_before

BESIDE = "page"
WITHOUT_RECORD = f"{BESIDE}/without-record.json"
CHANGE = f"{BESIDE}/change.json"


@dataclass(frozen=True)
class Dropped:
    """Files as they were uploaded. `begun` is when the study began, where its record does not say; `contrast` is of files whose
    name does not say; `choose` and `visit` are of DICOM, as for `larmor read`."""

    files: tuple[Path, ...] = ()
    contrast: str = "unknown"
    subject: str = ""
    record: Path | None = None
    begun: str | None = None
    earlier: tuple[Path, ...] = ()
    choose: tuple[str, ...] = ()
    visit: int | None = None


def read_case(
    store: CaseStore,
    models: Sequence[LoadedModel],
    cache: FeatureCache,
    user: str,
    dropped: Dropped,
    tell: Tell,
    writers: Sequence[Writer] = (),
) -> str:
    """The id of the case that was made. Without `writers` templates word the report."""
    tell(0.05, "Reading the files")
    watch = Stopwatch()
    study = study_of(dropped.files, dropped.contrast, dropped.subject, dropped.choose, dropped.visit)
    watch.lap("reading the files")
    record = None
    if dropped.record is not None:
        tell(0.15, "Reading the record")
        record = record_before(dropped.record, at=dropped.begun or None)
        watch.lap("reading the record")
    earlier = None
    if dropped.earlier:
        tell(0.2, "Reading the earlier study")
        earlier = study_of(dropped.earlier, dropped.contrast, study.subject)
        watch.lap("reading the earlier study")
    return _read(store, models, cache, user, study, record, earlier, tell, watch.seconds, writers)


def read_example(
    store: CaseStore,
    models: Sequence[LoadedModel],
    cache: FeatureCache,
    user: str,
    name: str,
    tell: Tell,
    writers: Sequence[Writer] = (),
) -> str:
    """The same of a synthetic patient, who is made first."""
    if name not in EXAMPLES:
        raise InputError("an example is one of ours", got=repr(name), remedy=f"Use one of: {', '.join(EXAMPLES)}.")
    tell(0.05, "Making a synthetic patient")
    watch = Stopwatch()
    made = make_example(name)
    watch.lap("making a synthetic patient")
    return _read(store, models, cache, user, made.study, made.record, made.earlier, tell, watch.seconds, writers)


def _read(
    store: CaseStore,
    models: Sequence[LoadedModel],
    cache: FeatureCache,
    user: str,
    study: Study,
    record: Admitted | None,
    earlier: Study | None,
    tell: Tell,
    seconds: Mapping[str, float],
    writers: Sequence[Writer],
) -> str:
    tell(0.3, "Looking at the images")
    written: list[Sentence] = []

    def said(sentence: Sentence) -> None:
        written.append(sentence)
        tell(0.65 if earlier is None else 0.85, "Writing the report", Draft(tuple(written)).text())

    if earlier is None:
        result = read_study(study, models, cache, writers, record, said)
    else:  # its words wait for what has changed
        result = read_study(study, models, cache, record=record)
    result, watch = result.after(seconds), Stopwatch()
    readers = [one for one in models if one.model.head.reads_record is not None]
    without = None
    if record is not None and readers:
        tell(0.7, "Once more without the record")
        without = read_study(study, readers, cache).reading
        watch.lap("once more without the record")
    compared = None
    if earlier is not None:
        tell(0.75, "Looking at the earlier study")
        compared = compare(read_study(earlier, models, cache), result)
        watch.lap("the earlier study")
        result = with_prior(compared, writers, said)
        watch.lap("the report with what changed")
    tell(0.9, "Keeping the case")
    case = store.add(user, replace(result, seconds={**result.seconds, **watch.seconds}))
    if without is not None or compared is not None:
        with write_folder_aside(case.folder / BESIDE) as folder:
            if without is not None:
                without.save(folder / Path(WITHOUT_RECORD).name)
            if compared is not None:
                (folder / Path(CHANGE).name).write_text(compared.change.model_dump_json())
                for name, picture in pictures_of(compared).items():
                    (folder / name).write_bytes(picture)
    tell(1.0, "Done")
    return case.id


def without_record_of(case: Case) -> Reading | None:
    """What the same models say without the record, where there was one."""
    path = case.folder / WITHOUT_RECORD
    return Reading.load(path) if path.is_file() else None


def change_of(case: Case) -> tuple[Change, bytes, bytes] | None:
    """What changed since an earlier study, with planes of then and now as PNG, where there was one."""
    path = case.folder / CHANGE
    if not path.is_file():
        return None
    change = Change.model_validate_json(path.read_bytes())
    return change, (path.parent / "prior.png").read_bytes(), (path.parent / "current.png").read_bytes()


def study_of(
    files: Sequence[Path],
    contrast: str = "unknown",
    subject: str = "",
    choose: Sequence[str] = (),
    visit: int | None = None,
) -> Study:
    """The study that uploaded files make: NIfTI files, or a zip of DICOM, or DICOM files; `contrast` is of those whose name does
    not say.

    They come each from a folder of its own and are brought together, because names tell whether two subjects got mixed. A folder,
    as an archive hands it over, is DICOM or NIfTI as it is.
    """
    if len(files) == 1 and files[0].is_dir():
        return _as_said(study_from_stranger(files[0], choose, visit), contrast, subject)
    if not files:
        raise InputError(
            "a study has at least one series", got="no file", remedy="Drop NIfTI files, or a zip of DICOM files."
        )
    kinds = {"NIfTI" if is_nifti_name(file) else file.suffix.lower() for file in files}
    if not (kinds in ({"NIfTI"}, {".dcm"}) or (kinds == {".zip"} and len(files) == 1)):
        raise InputError(
            "a study is NIfTI files, or one zip of DICOM, or DICOM files",
            got=", ".join(sorted(file.name for file in files)),
            remedy="Drop files of one kind: .nii, .nii.gz, .dcm, or a single .zip.",
        )
    with TemporaryDirectory(dir=os.environ.get("GRADIO_TEMP_DIR")) as parent:
        folder = Path(parent) / "study"
        folder.mkdir()
        for file in files:
            place = folder / file.name
            if place.exists():
                raise InputError("each file is given once", got=file.name, remedy="Give each file its own name.")
            try:
                shutil.copyfile(file, place)
            except OSError as error:  # most likely it was dropped yesterday
                got = error.strerror or error
                raise InputError("an upload is still there", got=got, remedy="Drop it again.", file=file) from None
        study = study_from_stranger(folder / files[0].name if len(files) == 1 else folder, choose, visit)
    return _as_said(study, contrast, subject)


def _as_said(study: Study, contrast: str, subject: str) -> Study:
    """With what the user says of it where the files do not."""
    said = "" if contrast == "unknown" else "what was said of it"
    series = tuple(
        one if one.contrast != "unknown" else replace(one, contrast=contrast, contrast_from=said)
        for one in study.series
    )
    return replace(study, series=series, subject=subject.strip() or study.subject)
