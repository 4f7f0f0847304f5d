"""From a study to a reading: the only path, for the command line and the page alike.

    larmor read scan.nii.gz out --model runs/demo/models/structures

Every model runs on the study, or says why it does not; what they find becomes typed findings; templates
word the findings, or a writer where one is named, and then a verifier reads each sentence back.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foundation.errors import InputError
from foundation.figures import png_bytes, three_planes
from foundation.files import write_folder_aside
from foundation.findings import ModelUsed, Reading, SeriesSummary, Structure, each_once, if_seen
from foundation.preprocess import PreparedStudy, prepare_study
from foundation.reading.collection import study_from_path
from foundation.reading.nifti import write_labels
from foundation.study import Series, Study
from heads.adapters.folder import Backbones, LoadedModel, load_model
from heads.adapters.shared import FeatureCache, outputs_of
from heads.base import HeadReading, default_models
from heads.report import Draft
from heads.report.writing import Writer, load_writers, write_report
from serve.render import Picture, render_html, render_markdown


@dataclass(frozen=True)
class Mask:
    """A label map on the reference series' own voxels, and what its values mean."""

    labels: np.ndarray
    structures: tuple[Structure, ...]


@dataclass(frozen=True)
class StudyReading:
    """A reading with everything that is shown beside it. `masks` is keyed by path relative to the reading's folder."""

    study: Study
    reading: Reading
    draft: Draft
    masks: dict[str, Mask]

    def pictures(self) -> list[Picture]:
        """Three planes of the reference series under each mask, or bare where no model made one."""
        reference = self.study.reference
        if not self.masks:
            return [_picture(reference, "images.png", f"{_title(reference)}; no structure was outlined.")]
        return [
            _picture(
                reference,
                f"{Path(name).name.removesuffix('.nii.gz')}.png",
                f"{_title(reference)} with what the model outlined.",
                mask,
            )
            for name, mask in self.masks.items()
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
) -> StudyReading:
    """Let every model look at the study. A model that was not made for such a study is not asked: its findings say so.

    Models that look at the same series on the same grid are asked together, and what their encoders share runs once. What no
    acquired contrast can show is not assessed, whatever a model says of it. Without `writers` templates word the findings.
    """
    if blank := _blank(study):
        return _non_diagnostic(study, models, blank)
    said: dict[str, HeadReading] = {}
    unseen: list[str] = []
    views: dict[tuple[object, ...], tuple[PreparedStudy, list[LoadedModel]]] = {}
    for loaded in models:
        name = loaded.config.name
        seen = loaded.config.scope.known_part(study)
        unseen += [
            f"{name} did not look at {one.name} ({one.contrast})."
            for one in study.series
            if all(one is not other for other in seen.series)
        ]
        view = (loaded.config.spacing_mm, *map(id, seen.series))
        if view not in views:
            views[view] = prepare_study(seen, loaded.config.spacing_mm), []
        prepared, asked = views[view]
        objection = loaded.config.scope.objection(prepared)
        if objection:
            said[name] = HeadReading(loaded.model.head.refuse(source=name, why=objection))
        else:
            asked.append(loaded)
    for prepared, asked in views.values():
        for index, output in outputs_of([loaded.model for loaded in asked], prepared, cache):
            head, name = asked[index].model.head, asked[index].config.name
            said[name] = head.read(output, prepared, source=name, mask_path=_mask_path(name) if head.draws else None)
    masks = {
        _mask_path(name): Mask(labels, loaded.config.head.structures)  # pyright: ignore[reportAttributeAccessIssue]
        for loaded in models
        if (labels := said[name := loaded.config.name].labels) is not None
    }
    acquired = {series.contrast for series in study.series}
    reading = Reading(
        subject=study.subject,
        session=study.session,
        series=tuple(SeriesSummary.of(series) for series in study.series),
        findings=each_once(if_seen(finding, acquired) for one in models for finding in said[one.config.name].findings),
        models=tuple(_used(one) for one in models),
        warnings=(
            *_warnings(study),
            *unseen,
            *(f"{one.config.name}: {one.config.caution}" for one in models if one.config.caution),
        ),
    )
    return StudyReading(study, reading, write_report(reading, writers), masks)


def _blank(study: Study) -> str | None:
    """Why nothing can be seen in the reference series, None where something may be."""
    voxels = study.reference.voxels
    if not np.isfinite(voxels).any() or float(np.ptp(voxels[np.isfinite(voxels)])) == 0:
        return "the images are blank, the study is non-diagnostic"
    return None


def _non_diagnostic(study: Study, models: Sequence[LoadedModel], why: str) -> StudyReading:
    """No model is asked about images that show nothing."""
    reading = Reading(
        subject=study.subject,
        session=study.session,
        series=tuple(SeriesSummary.of(series) for series in study.series),
        findings=tuple(f for one in models for f in one.model.head.refuse(source=one.config.name, why=why)),
        models=tuple(_used(one) for one in models),
        warnings=(f"Non-diagnostic: {why}.",),
    )
    return StudyReading(study, reading, write_report(reading), {})


def read_to_folder(
    study: Path, out: Path, models: Sequence[Path], backbones: Sequence[Path] = (), writers: Sequence[Path] = ()
) -> None:
    """The `larmor read` command: reading.json, report.md, report.html, pictures/, masks/ and, where lesions were counted,
    lesions.csv appear in `out` together."""
    out = out.resolve()
    if out.exists() and not (out.is_dir() and ((out / "reading.json").is_file() or not any(out.iterdir()))):
        raise InputError(
            "OUT is a new folder or an earlier reading", got=out, remedy="Name another folder; nothing was written."
        )
    loaded = load_models(models, backbones)
    if not loaded:
        print(
            "No model was named and none is in runs/demo/models: nothing in the images is assessed. `make demo` makes one."
        )
    scribes, reasons = load_writers(writers)
    result = read_study(study_from_path(study), loaded, writers=scribes)
    for reason in (*reasons, *result.draft.remarks):
        print(reason)
    save_reading(result, out)
    for path in sorted(file for file in out.rglob("*") if file.is_file()):
        print(f"wrote {path}")


def save_reading(result: StudyReading, out: Path) -> None:
    """Write a reading's folder, whole or not at all."""
    with write_folder_aside(out) as folder:
        pictures = result.pictures()
        result.reading.save(folder / "reading.json")
        for picture in pictures:
            (folder / picture.file).parent.mkdir(exist_ok=True)
            (folder / picture.file).write_bytes(picture.png)
        for name, mask in result.masks.items():
            (folder / name).parent.mkdir(exist_ok=True)
            write_labels(folder / name, mask.labels, result.study.reference)
        pieces = [(finding, piece) for finding in result.reading.findings for piece in finding.pieces]
        if pieces:
            with (folder / "lesions.csv").open("w", newline="", encoding="utf-8") as file:
                table = csv.writer(file)
                table.writerow(
                    ("finding", "side", "source", "number", "volume_ml", "right_mm", "anterior_mm", "superior_mm")
                )
                for finding, piece in pieces:
                    place = (round(n, 1) for n in piece.centroid_mm)
                    table.writerow(
                        (finding.name, finding.side, finding.source, piece.number, round(piece.volume_ml, 4), *place)
                    )
        (folder / "report.md").write_text(render_markdown(result.reading, result.draft, pictures), encoding="utf-8")
        (folder / "report.html").write_text(render_html(result.reading, result.draft, pictures), encoding="utf-8")


def _mask_path(name: str) -> str:
    return f"masks/{name}.nii.gz"


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
    warnings = []
    for series in study.series:
        name = series.name or "a series"
        if series.contrast == "unknown":
            warnings.append(f"The contrast of {name} is not known.")
        if (thickest := series.spacing_mm.max()) > 3.5:
            warnings.append(f"{name} has voxels {thickest:.1f} mm thick: small things can be missed.")
    return warnings
