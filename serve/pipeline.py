"""From a study to a reading: the only path, for the command line and the page alike.

    larmor read scan.nii.gz out
    larmor read visit/ out --model runs/prognosis/model --ehr bundle.json

Every model runs on the study, or says why it does not; what they find becomes typed findings; templates
word the findings, or a writer where one is named, and then a verifier reads each sentence back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from ehr.features import RecordSequence, sequence_of
from ehr.history import history_of, indication_of, num_without_name
from ehr.index import Admitted, admit, index_of
from ehr.output import DRAFT, VERSIONS, Standing, checked, report_bundle
from ehr.record import read_records
from ehr.vocabulary import Vocabulary
from foundation.errors import InputError
from foundation.figures import png_bytes, three_planes
from foundation.files import write_folder_aside
from foundation.findings import ModelUsed, Reading, SeriesSummary, Structure
from foundation.preprocess import PreparedStudy
from foundation.reading.collection import study_from_path
from foundation.reading.nifti import write_labels
from foundation.stopwatch import Stopwatch, in_words
from foundation.study import Series, Study
from heads._reading import find, mask_path
from heads._relevance import BANDS, where_it_rests
from heads.adapters.folder import Backbones, LoadedModel, load_model
from heads.adapters.shared import FeatureCache
from heads.base import HeadReading, default_models
from heads.report import Draft, Sentence
from heads.report.writing import Writer, load_writers, write_report
from serve.pdf import pdf_bytes
from serve.person import differences
from serve.render import Picture, render_html, render_markdown
from serve.tables import write_bids, write_lesions, write_measurements


@dataclass(frozen=True)
class Mask:
    """A label map on the reference series' own voxels, and what its values mean."""

    labels: np.ndarray
    structures: tuple[Structure, ...]


@dataclass(frozen=True)
class StudyReading:
    """A reading with everything that is shown beside it. `masks` is keyed by path relative to the reading's folder, `rests_on`
    by the finding whose answer rests on what is marked, `seconds` by the step that took them."""

    study: Study
    reading: Reading
    draft: Draft
    masks: dict[str, Mask]
    rests_on: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)

    def after(self, seconds: Mapping[str, float]) -> StudyReading:
        """With steps that came before."""
        return replace(self, seconds={**seconds, **self.seconds})

    def pictures(self) -> list[Picture]:
        """Three planes of the reference series under each mask, or bare where no model made one."""
        reference = self.study.reference
        outlined = [
            _picture(
                reference,
                f"{Path(name).name.removesuffix('.nii.gz')}.png",
                f"{_title(reference)} with what the model outlined.",
                mask,
            )
            for name, mask in self.masks.items()
        ]
        if not outlined:
            outlined = [_picture(reference, "images.png", f"{_title(reference)}; no structure was outlined.")]
        bands = tuple(band for _, band in BANDS)
        return outlined + [
            _picture(
                reference,
                f"why-{name}.png",
                f"{_title(reference)} with the parts that “{finding.name}” rests on: an aid, and no outline of it.",
                Mask(self.rests_on[name], bands),
            )
            for finding in self.reading.findings
            if (name := finding.id) in self.rests_on
        ]


def load_models(folders: Sequence[Path], backbones: Sequence[Path] = ()) -> list[LoadedModel]:
    """The models of these folders, or the default ones when none is named; adapters of one backbone share its modules."""
    together = Backbones(backbones)
    models = [load_model(folder, together) for folder in folders or default_models()]
    names = [loaded.config.name for loaded in models]
    if len(set(names)) < len(names):
        raise InputError("each model has its own name", got=", ".join(names), remedy="Name each model once.")
    return models


def read_study(
    study: Study,
    models: Sequence[LoadedModel],
    cache: FeatureCache | None = None,
    writers: Sequence[Writer] = (),
    record: Admitted | None = None,
    said: Callable[[Sentence], None] | None = None,
) -> StudyReading:
    """What every model finds in the study (`heads/_reading.py`), as a reading in words.

    `record` is what may be known of the patient when the study begins; models that read records get it in their own codes, and the
    report its indication and history. Without `writers` templates word the findings; `said` hears each sentence when it is written.
    """
    found = find(models, study, cache, None if record is None else partial(_sequence, record=record))
    study, watch = found.study, Stopwatch()
    rests_on: dict[str, np.ndarray] = {}
    for loaded in models:
        if (prepared := found.prepared.get(loaded.config.name)) is not None:
            rests_on |= _what_rests_where(loaded, found.said[loaded.config.name], prepared)
    if rests_on:
        watch.lap("what answers rest on")
    masks = {
        mask_path(name): Mask(labels, loaded.config.head.drawn)  # pyright: ignore[reportAttributeAccessIssue]
        for loaded in models
        if (name := loaded.config.name) in found.said and (labels := found.said[name].labels) is not None
    }
    cautions = tuple(f"{one.config.name}: {one.config.caution}" for one in models if one.config.caution)
    reading = Reading(
        subject=study.subject,
        session=study.session,
        series=tuple(SeriesSummary.of(series) for series in study.series),
        findings=found.findings,
        models=tuple(_used(one) for one in models),
        warnings=found.remarks if found.is_blank else (*_warnings(study), *found.remarks, *cautions),
    )
    if record is not None:
        reading = _with_record(reading, record, differences(study, record))
    draft = write_report(reading, writers, study=study, said=said)
    watch.lap("writing the report")
    return StudyReading(study, reading, draft, masks, rests_on, {**found.seconds, **watch.seconds})


def _with_record(reading: Reading, record: Admitted, doubts: Sequence[str]) -> Reading:
    """The reading with what the record says of the patient; `doubts` are whether it is the same one."""
    unnamed = num_without_name(record)
    held = f"The record holds {unnamed} diagnoses that are not named here." if unnamed else None
    return reading.model_copy(
        update={
            "indication": indication_of(record),
            "findings": (*reading.findings, *history_of(record)),
            "warnings": (*doubts, *reading.warnings, *filter(None, [held])),
        }
    )


def _what_rests_where(loaded: LoadedModel, said: HeadReading, prepared: PreparedStudy) -> dict[str, np.ndarray]:
    """For findings that are present, and whose maps passed their tests when the model was made."""
    believed = {name for name, one in loaded.config.explanations.items() if one.passes}
    answers = loaded.model.head.answers
    return {
        finding.id: where_it_rests(loaded.model, prepared, answers[finding.name])
        for finding in said.findings
        if finding.presence == "present" and finding.name in believed
    }


def record_before(
    bundle: Path, *, study_uid: str | None = None, at: str | None = None, words: bool = False
) -> Admitted:
    """What a patient's record says that was known when the study began; the study is its only MR study unless it is named.

    With `words` its free text is kept, of which a report quotes the request's.
    """
    record = read_records(bundle, free_text=words).only()
    return admit(record, index_of(record, study_uid=study_uid, at=at))


def _sequence(loaded: LoadedModel, *, record: Admitted) -> RecordSequence | None:
    reading = loaded.model.head.reads_record
    if reading is None:
        return None
    return sequence_of(record, Vocabulary(codes=reading.codes), max_events=reading.max_events)


def read_to_folder(
    study: Path,
    out: Path,
    models: Sequence[Path],
    backbones: Sequence[Path] = (),
    choose: Sequence[str] = (),
    visit: int | None = None,
    writers: Sequence[Path] = (),
    ehr: Path | None = None,
    study_uid: str | None = None,
    at: str | None = None,
    record_words: bool = False,
    bids: bool = False,
    deidentify: bool = False,
) -> None:
    """The `larmor read` command: reading.json, times.json, the report (md, html, pdf), measurements.csv, fhir/, pictures/, masks/
    and, where there is reason, lesions.csv, dicom/ and bids/ appear in `out` together."""
    out = out.resolve()
    if out.exists() and not (out.is_dir() and ((out / "reading.json").is_file() or not any(out.iterdir()))):
        raise InputError(
            "OUT is a new folder or an earlier reading", got=out, remedy="Name another folder; nothing was written."
        )
    if ehr is None and (study_uid or at or record_words):
        raise InputError(
            "--study-uid, --at and --record-words are about a record", got="no --ehr", remedy="Add --ehr FILE."
        )
    watch = Stopwatch()
    record = None if ehr is None else record_before(ehr, study_uid=study_uid, at=at, words=record_words)
    if record is not None:
        watch.lap("reading the record")
    images = study_from_path(study, choose, visit, deidentify=deidentify)  # what is wrong with them is soon found
    watch.lap("reading the files")
    loaded = load_models(models, backbones)
    if not loaded:
        print("No model was named and $LARMOR_MODELS holds none: nothing in the images is assessed.")
    scribes, reasons = load_writers(writers, backbones)
    watch.lap("loading the models")
    result = read_study(images, loaded, writers=scribes, record=record).after(watch.seconds)
    for reason, times in Counter((*reasons, *result.draft.remarks)).items():
        print(reason if times == 1 else f"{reason} ({times} times)")
    if record is not None and all(one.model.head.reads_record is None for one in loaded):
        told = result.reading.indication or any(one.origin == "record" for one in result.reading.findings)
        print(
            "No model here reads a record: it gave the report its indication or history, and nothing else."
            if told
            else "No model here reads a record, and nothing in it gave the report an indication or a history."
        )
    watch = Stopwatch()
    save_reading(result, out, bids=bids)
    watch.lap("writing the outputs")
    for step, seconds in {**result.seconds, **watch.seconds}.items():
        print(f"{step}: {in_words(seconds)}")
    for path in sorted(file for file in out.rglob("*") if file.is_file()):
        print(f"wrote {path}")


def save_reading(result: StudyReading, out: Path, *, bids: bool = False, standing: Standing = DRAFT) -> None:
    """Write a reading's folder, whole or not at all; it says of itself how far it has come."""
    with write_folder_aside(out) as folder:
        pictures = result.pictures()
        result.reading.save(folder / "reading.json")
        if result.seconds:
            rounded = {step: round(seconds, 3) for step, seconds in result.seconds.items()}
            (folder / "times.json").write_text(json.dumps({"seconds": rounded}, indent=1) + "\n", encoding="utf-8")
        for picture in pictures:
            (folder / picture.file).parent.mkdir(exist_ok=True)
            (folder / picture.file).write_bytes(picture.png)
        for name, mask in result.masks.items():
            (folder / name).parent.mkdir(exist_ok=True)
            write_labels(folder / name, mask.labels, result.study.reference)
        write_measurements(result.reading, folder / "measurements.csv")
        write_lesions(result.reading, folder / "lesions.csv")
        if bids:
            write_bids(result, folder / "bids")
        pdf = pdf_bytes(result.reading, result.draft, pictures, standing)
        (folder / "report.pdf").write_bytes(pdf)
        _write_fhir(result, folder / "fhir", pdf, standing)
        if result.study.reference.source is not None:
            from serve.dicom_out import dicom_objects  # highdicom takes its time, and NIfTI needs none of it

            for name, dataset in dicom_objects(result, standing).items():
                (folder / name).parent.mkdir(exist_ok=True)
                dataset.save_as(folder / name)
        for name, render in (("report.md", render_markdown), ("report.html", render_html)):
            text = render(result.reading, result.draft, pictures, standing)
            (folder / name).write_text(text, encoding="utf-8")


def _write_fhir(result: StudyReading, folder: Path, pdf: bytes, standing: Standing) -> None:
    """The report in both versions that hospitals speak; R4B's is also R4 in everything that is used here."""
    source = result.study.reference.source
    uid = None if source is None else str(source.headers[0].StudyInstanceUID)
    folder.mkdir()
    for version in VERSIONS:
        bundle = report_bundle(
            result.reading, result.draft.sentences, version=version, pdf=pdf, study_uid=uid, standing=standing
        )
        text = json.dumps(checked(bundle, version), indent=1, ensure_ascii=False)
        (folder / f"report-{version}.json").write_text(f"{text}\n", encoding="utf-8")


def _used(model: LoadedModel) -> ModelUsed:
    return ModelUsed(
        name=model.config.name,
        weights_sha256=model.weights_sha256,
        backbone_sha256=model.backbone.weights_sha256 if model.backbone else None,
        card=str(model.folder / "card.md"),
    )


def _picture(series: Series, name: str, caption: str, mask: Mask | None = None) -> Picture:
    labels, structures = (None, None) if mask is None else (mask.labels, mask.structures)
    return Picture(f"pictures/{name}", caption, png_bytes(three_planes(series, labels, structures=structures)))


def _title(series: Series) -> str:
    return f"Axial, coronal and sagittal planes of {series.name or 'the first series'} ({series.contrast})"


def _warnings(study: Study) -> list[str]:
    """What a reader must know of the images themselves before believing anything said about them."""
    warnings = list(study.notes)
    for series in study.series:
        name = series.name or "a series"
        if series.contrast == "unknown":
            warnings.append(f"The contrast of {name} is not known.")
        if (thickest := series.spacing_mm.max()) > 3.5:
            warnings.append(f"{name} has voxels {thickest:.1f} mm thick: small things can be missed.")
    return warnings
