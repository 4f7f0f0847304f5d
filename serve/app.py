"""The page for a clinician: drop a study, look at what was found, read the draft, take it away.

    larmor serve --model runs/demo/models/structures

Made for patient data. The page fetches nothing from anywhere, fonts included; the pictures on it are never files; what
is uploaded or written lies in a folder that only this user may read and that goes when the server stops. Text from
files is escaped wherever a browser would take it for markup.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it looks once

import gradio as gr
import numpy as np
from gradio.themes import Base

from foundation.errors import InputError
from foundation.figures import png_bytes, three_planes
from foundation.findings import Finding, Reading
from foundation.preprocess import Grid, sample_at
from foundation.reading.collection import study_from_path
from foundation.reading.nifti import is_nifti_name
from foundation.study import CONTRASTS, Series, Study
from heads.adapters.shared import FeatureCache
from heads.report import SECTIONS, Draft
from heads.report.templates import NOT_A_DEVICE
from serve.pipeline import LoadedModel, StudyReading, load_models, read_study, save_reading
from serve.render import BANNER, COLUMNS
from serve.render import cells as cells_of

CACHE_S = (600, 8 * 3600)  # every ten minutes, what is older than a working day goes
MAX_FILE_SIZE = "2gb"  # of one file, as it comes
MAX_WAITING = 16
AXES = ("Left – right (mm)", "Back – front (mm)", "Feet – head (mm)")
DOWNLOADS = {"report.html": "Report (HTML)", "reading.json": "Findings (JSON)", "reading.zip": "All with masks (ZIP)"}


@dataclass(frozen=True)
class OpenStudy:
    """A reading on somebody's page, and the folder it was saved to. Moving through it asks no model again."""

    result: StudyReading
    folder: Path
    _overlays: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, result: StudyReading) -> OpenStudy:
        folder = Path(mkdtemp(prefix="study-", dir=os.environ.get("GRADIO_TEMP_DIR")))
        save_reading(result, folder / "reading")
        shutil.make_archive(str(folder / "reading"), "zip", folder / "reading")
        return cls(result, folder)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def download(self, name: str) -> Path:
        return self.folder / name if name == "reading.zip" else self.folder / "reading" / name

    def planes(self, series: int, mask: str | None, at_mm: Sequence[float]) -> np.ndarray:
        """Three planes through a point of the patient, under a mask if one is named."""
        shown = self.result.study.series[series]
        if mask is None:
            return three_planes(shown, at_mm=at_mm)
        return three_planes(shown, self._overlay(series, mask), at_mm, self.result.masks[mask].structures)

    def _overlay(self, series: int, mask: str) -> np.ndarray:
        """The mask on the voxels of any series: series of one study share the patient's coordinates, not a grid."""
        if (series, mask) not in self._overlays:
            study, labels = self.result.study, self.result.masks[mask].labels
            if series > 0:
                labels = sample_at(labels, study.reference.affine, Grid.of(study.series[series]), nearest=True)
            self._overlays[series, mask] = labels
        return self._overlays[series, mask]

    def bounds_mm(self) -> tuple[list[float], list[float]]:
        """The corners of the box around every series."""
        corners = np.concatenate([_corners_mm(series) for series in self.result.study.series])
        return np.floor(corners.min(axis=0)).tolist(), np.ceil(corners.max(axis=0)).tolist()

    def step_mm(self) -> float:
        """How far to move so that some series shows its next plane."""
        return max(0.1, round(min(float(series.spacing_mm.min()) for series in self.result.study.series), 1))

    def place_of(self, finding: Finding) -> list[float] | None:
        """Where the three planes all show the finding, None if it is nowhere.

        The planes on which it is largest, because a centroid can lie outside a curved finding or between two lesions.
        """
        evidence = finding.evidence
        if evidence is None or evidence.slice_index is None:
            return None if evidence is None or evidence.centroid_mm is None else list(evidence.centroid_mm)
        series = next(one for one in self.result.study.series if one.name == evidence.series)
        return series.to_patient_mm(np.asarray(evidence.slice_index)).tolist()

    def start_mm(self) -> list[float]:
        """The first finding that is somewhere, otherwise the middle of the images."""
        places = (self.place_of(finding) for finding in self.result.reading.findings)
        middle = _corners_mm(self.result.study.reference).mean(axis=0).tolist()
        return next((place for place in places if place), middle)


def study_of(files: Sequence[Path], contrast: str = "unknown", subject: str = "") -> Study:
    """The study that uploaded files make: NIfTI files, or a zip of DICOM, or DICOM files; `contrast` is of those whose name does
    not say.

    They come each from a folder of its own and are brought together, because names tell whether two subjects got mixed.
    """
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
        study = study_from_path(folder / files[0].name if len(files) == 1 else folder)
    series = tuple(one if one.contrast != "unknown" else replace(one, contrast=contrast) for one in study.series)
    return replace(study, series=series, subject=subject.strip() or study.subject)


def findings_table(reading: Reading) -> list[list[str]]:
    """One row per finding; the number in front is what the report's sentences cite."""
    return [[str(number), *cells_of(finding)] for number, finding in enumerate(reading.findings, start=1)]


def report_html(reading: Reading, draft: Draft) -> str:
    """Each sentence a paragraph, followed by the numbers of the findings that it words."""
    numbers = {finding.id: number for number, finding in enumerate(reading.findings, start=1)}
    html = []
    for section in filter(draft.section, SECTIONS):
        html.append(f'<section class="{section.lower()}"><h2>{section}</h2>')
        for sentence in draft.section(section):
            cited = " ".join(str(numbers[id]) for id in sentence.finding_ids)
            html.append(f"<p>{escape(sentence.text)} <sup>{cited}</sup></p>")
        html.append("</section>")
    return f'<div class="report">{"".join(html)}</div>'


def warnings_html(reading: Reading) -> str:
    return "".join(f'<p class="warning">{escape(warning)}</p>' for warning in reading.warnings)


def planes_html(picture: np.ndarray, caption: str) -> str:
    """The picture inside the page: an image component would leave each one as a file on disk."""
    source = f"data:image/png;base64,{b64encode(png_bytes(picture)).decode('ascii')}"
    words = escape(caption)
    return f'<figure class="planes"><img src="{source}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def page_error(error: InputError) -> gr.Error:
    """The complaint without the folder that an upload happens to lie in; gradio shows messages as HTML."""
    what = "The study" if error.file is None else Path(error.file).name
    lines = (f"Needed: {error.rule}.", f"Found: {error.got}.", error.remedy)
    message = "<br>".join([f"<b>{escape(what)} was not read.</b>", *map(escape, lines)])
    return gr.Error(message, duration=None, print_exception=False)


# ------------------------------------------------------------------------------------------------ the page


def build_app(models: Sequence[Path], backbones: Sequence[Path] = ()) -> gr.Blocks:
    """The page for these models, or the default ones; without any it shows images and assesses nothing."""
    loaded, cache = load_models(models, backbones), FeatureCache()
    with gr.Blocks(title="Larmor", analytics_enabled=False, delete_cache=CACHE_S, fill_width=True) as page:
        opened = gr.State(delete_callback=lambda study: study and study.close())
        gr.HTML(f'<header><h1>Larmor</h1><p class="banner"><b>{BANNER}</b> {NOT_A_DEVICE}</p></header>')
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                files = gr.File(
                    label="NIfTI files of one study, or a zip of DICOM",
                    file_count="multiple",
                    file_types=[".nii", ".gz", ".zip", ".dcm"],
                    height=160,
                )
                contrast = gr.Dropdown(
                    list(CONTRASTS), value="unknown", label="Contrast of files whose name does not say"
                )
                subject = gr.Textbox(label="Subject", placeholder="as the files are named", max_lines=1, max_length=64)
                button = gr.Button("Read the study", variant="primary")
                gr.HTML(_models_html(loaded))
                with gr.Column(visible=False) as takeaway:
                    buttons = [gr.DownloadButton(label, size="sm") for label in DOWNLOADS.values()]
            with gr.Column(scale=4, min_width=640):
                warnings = gr.HTML()
                planes = gr.HTML(EMPTY, elem_id="planes")
                with gr.Column(visible=False) as results:
                    with gr.Row():
                        at_mm = [gr.Slider(label=axis, buttons=[]) for axis in AXES]
                    with gr.Row():
                        series = gr.Dropdown(label="Series", type="value", min_width=200)
                        mask = gr.Dropdown(label="Outlines of", min_width=200)
                        overlay = gr.Checkbox(True, label="Show outlines", min_width=120)
                    table = gr.Dataframe(
                        headers=["#", *COLUMNS], label="Findings; click one to see it", interactive=False, wrap=True,
                        elem_id="findings", buttons=[],
                    )  # fmt: skip
                    report = gr.HTML()
        view = [opened, series, mask, overlay, *at_mm]

        def clear(study: OpenStudy | None) -> dict[Any, Any]:
            if study:
                study.close()
            hidden = {group: gr.update(visible=False) for group in (results, takeaway)}
            return {opened: None, planes: EMPTY, warnings: "", table: None, report: "", **hidden}

        def read(
            files: list[str] | None, contrast: str, subject: str, progress: gr.Progress = gr.Progress()  # noqa: B008
        ) -> dict[Any, Any]:  # fmt: skip
            progress(0.05, desc="Reading the files")
            try:
                study = study_of([Path(file) for file in files or ()], contrast, subject)
                progress(0.2, desc="Looking at the images")
                result = read_study(study, loaded, cache)
            except InputError as error:
                raise page_error(error) from None
            progress(0.9, desc="Writing the draft")
            return shown(OpenStudy.of(result))

        def shown(study: OpenStudy) -> dict[Any, Any]:
            """Everything that the page says of a study, at once."""
            masks = [(Path(name).name.removesuffix(".nii.gz"), name) for name in study.result.masks]
            names = [(f"{one.name} ({one.contrast})", index) for index, one in enumerate(study.result.study.series)]
            first, start = (masks[0][1] if masks else None), study.start_mm()
            step, rows = study.step_mm(), findings_table(study.result.reading)
            limits = zip(at_mm, *study.bounds_mm(), _rounded(start), strict=True)
            return {
                opened: study,
                warnings: warnings_html(study.result.reading),
                planes: look(study, 0, first, True, *start),
                series: gr.update(choices=names, value=0, visible=len(names) > 1),
                mask: gr.update(choices=masks, value=first, visible=bool(masks)),
                overlay: gr.update(value=True, visible=bool(masks)),
                **{
                    one: gr.update(minimum=low, maximum=high, value=value, step=step)
                    for one, low, high, value in limits
                },
                table: gr.update(value=rows, visible=bool(rows)),
                report: report_html(study.result.reading, study.result.draft),
                results: gr.update(visible=True),
                takeaway: gr.update(visible=True),
                **{one: str(study.download(name)) for one, name in zip(buttons, DOWNLOADS, strict=True)},
            }

        def look(
            study: OpenStudy | None, series: int, mask: str | None, overlay: bool, x: float, y: float, z: float
        ) -> str:
            if study is None:
                return EMPTY
            picture = study.planes(series, mask if overlay else None, (x, y, z))
            name = study.result.study.series[series].name
            return planes_html(picture, f"{name} at {_directions((x, y, z))}")

        def go(study: OpenStudy | None, series: int, mask_name: str | None, event: gr.SelectData) -> dict[Any, Any]:
            """To the finding of a row, which is known by its number because the table can be sorted."""
            if study is None:
                return gr.skip()
            finding = study.result.reading.findings[int(event.row_value[0]) - 1]
            place = study.place_of(finding)
            if place is None:
                gr.Info(f"{escape(finding.name)}: there is no place to show.")
                return gr.skip()
            mask_name = (finding.evidence and finding.evidence.mask) or mask_name
            return {
                planes: look(study, series, mask_name, True, *place),
                mask: mask_name,
                overlay: True,
                **dict(zip(at_mm, _rounded(place), strict=True)),
            }

        everything = [opened, warnings, planes, series, mask, overlay, *at_mm, table, report, results, takeaway]
        options = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 4}
        button.click(clear, opened, everything, api_visibility="private", show_progress="hidden").then(
            read, [files, contrast, subject], [*everything, *buttons],
            api_visibility="private", show_progress_on=planes, concurrency_limit=1,
        )  # fmt: skip
        for control in (series, mask, overlay, *at_mm):
            control.input(look, view, planes, trigger_mode="always_last", **options)
        table.select(go, [opened, series, mask], [planes, mask, overlay, *at_mm], trigger_mode="always_last", **options)
    return page.queue(max_size=MAX_WAITING, api_open=False)


def launch(models: Sequence[Path], host: str, port: int, backbones: Sequence[Path] = ()) -> None:
    """The `larmor serve` command: the page until it is interrupted, and nothing of anybody's images after that."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        got = f"{host}:{port}, {error.strerror}"
        raise InputError("the address is free", got=got, remedy="Name another with --port or --host.") from None
    with TemporaryDirectory(prefix="larmor-", ignore_cleanup_errors=True) as folder:  # readable by this user only
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build_app(models, backbones)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager's stop cleans up as Ctrl-C does
        _, address, _ = page.launch(server_name=host, server_port=port, prevent_thread_lock=True, **PRIVATE)
        print(f"Larmor is at {address}", flush=True)
        if host not in ("127.0.0.1", "localhost"):
            print("Whoever reaches this address can use the page: there is no password.", flush=True)
        page.block_thread()


EMPTY = '<figure class="planes empty"><figcaption>No study is open.</figcaption></figure>'
SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
CSS = """
header { display: flex; align-items: baseline; gap: 1.5rem; flex-wrap: wrap; }
header h1 { margin: 0; font-size: 1.25rem; font-weight: 650; letter-spacing: .01em; }
.banner { margin: 0; padding: .3rem .8rem; font-size: .85rem; color: #7a4100; background: #fff4e0;
          border-left: 3px solid #e69f00; }
.banner b { color: inherit; }
.html-container { padding: 0 !important; }
.file-preview td { padding-inline: .3rem !important; }
.quiet { margin: 0; font-size: .85rem; color: var(--body-text-color-subdued); }
.warning { margin: 0 0 .3rem; padding-left: .6rem; font-size: .9rem; border-left: 3px solid #e69f00; }
.planes { margin: 0; padding: 1rem; background: #000; border-radius: 6px; text-align: center; }
.planes img { width: 100%; max-width: 1400px; margin: 0 auto; }
.planes figcaption { margin-top: .6rem; font-size: .8rem; color: #9aa4b0; font-variant-numeric: tabular-nums; }
.planes.empty { display: grid; place-items: center; min-height: 24rem; }
.report h2 { margin: 1.2rem 0 .3rem; font-size: 1rem; font-weight: 650;
             border-bottom: 1px solid var(--border-color-primary); }
.report p { margin: .25rem 0; max-width: 52rem; line-height: 1.5; overflow-wrap: anywhere; }
.report .impression p { font-weight: 600; }
.report sup { color: var(--body-text-color-subdued); font-weight: 400; }
"""
PRIVATE: dict[str, Any] = {
    "share": False,
    "quiet": True,
    "inbrowser": False,
    "run_history": False,  # else the browser keeps what went in and came out
    "enable_monitoring": False,
    "ssr_mode": False,
    "mcp_server": False,
    "pwa": False,
    "footer_links": [],
    "max_file_size": MAX_FILE_SIZE,
    "app_kwargs": {"openapi_url": None},
    "theme": Base(neutral_hue="slate", font=SYSTEM_FONTS, font_mono=SYSTEM_FONTS),
    "css": CSS,
}


def _models_html(models: Sequence[LoadedModel]) -> str:
    if not models:
        return '<p class="quiet">No model is loaded: images are shown and nothing is assessed.</p>'
    return f'<p class="quiet">Models: {escape(", ".join(loaded.config.name for loaded in models))}.</p>'


def _directions(at_mm: Sequence[float]) -> str:
    """'right 12 mm, back 4 mm, up 31 mm' of the scanner's centre."""
    words = (("right", "left"), ("front", "back"), ("up", "down"))
    return ", ".join(f"{pair[value < 0]} {abs(value):.0f} mm" for value, pair in zip(at_mm, words, strict=True))


def _rounded(at_mm: Sequence[float]) -> list[float]:
    """What a slider's number box can hold."""
    return [round(value, 1) for value in at_mm]


def _corners_mm(series: Series) -> np.ndarray:
    ends = [(0, length - 1) for length in series.shape]
    return series.to_patient_mm(np.array(list(product(*ends))))
