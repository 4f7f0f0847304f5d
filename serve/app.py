"""The reading room: a worklist, the images, and beside them the report that a clinician checks, corrects and signs.

    larmor serve --model runs/demo/models/structures

This file is what happens when somebody does something on the page. What is shown stands in `serve/panels.py`, where things are in
`serve/case_view.py`, the images in `serve/viewer.py`, what becomes of files in `serve/intake.py`; who may see what is decided by
`serve/server.py`. The page fetches nothing from elsewhere, fonts included, and leaves no picture of a patient in a file that
another user could ask for. Text from files is escaped wherever a browser would take it for markup.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, Literal

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it looks once

import gradio as gr
from gradio.themes import Base

from foundation.errors import InputError
from foundation.study import CONTRASTS
from heads.adapters.folder import LoadedModel
from heads.adapters.shared import FeatureCache
from heads.report.templates import NOT_A_DEVICE
from heads.report.writing import Writer
from serve import panels
from serve.case_view import CaseView
from serve.cases import Case, CaseStore
from serve.examples import EXAMPLES
from serve.intake import Dropped, change_of, read_case, read_example, without_record_of
from serve.jobs import Job, Jobs, Tell
from serve.render import BANNER
from serve.repairs import KNOWN, LAYERS, RepairKey, Repairs
from serve.viewer import Scene, gone, image_viewer, refused

CACHE_S = (600, 8 * 3600)  # every ten minutes, what is older than a working day goes
MAX_FILE_SIZE = "2gb"  # of one file, as it comes
MAX_WAITING = 16
CASES = "cases"  # where the server gives the files of cases to their owners, relative to the page
IMAGES = [".nii", ".gz", ".zip", ".dcm"]
AXES = ("Left – right (mm)", "Back – front (mm)", "Feet – head (mm)")
TELL_S = 0.4  # how often the page hears how far its job is
PRIVATE_EVENT: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 4}
CSS = (Path(__file__).parent / "static" / "page.css").read_text(encoding="utf-8")
SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
PRIVATE: dict[str, Any] = {
    "run_history": False,  # else the browser keeps what went in and came out
    "enable_monitoring": False,
    "ssr_mode": False,
    "mcp_server": False,
    "pwa": False,
    "footer_links": [],
    "max_file_size": MAX_FILE_SIZE,
    "app_kwargs": {"openapi_url": None},
    "theme": Base(primary_hue="sky", neutral_hue="slate", font=SYSTEM_FONTS, font_mono=SYSTEM_FONTS),
    "css": CSS,
}
# The case that is open stands in the page's address, so that reloading does not lose it.
FROM_ADDRESS = "() => [window.location.hash.slice(1), null]"
TO_ADDRESS = "(id) => { window.history.replaceState(null, '', id ? '#' + id : window.location.pathname); }"
# On a narrow screen the list makes room for what was chosen in it.
MAKE_ROOM = (
    "(id) => { if (id !== '' && innerWidth <= 768) document.querySelector('.sidebar.open .toggle-button')?.click(); }"
)


def build_app(
    models: Sequence[LoadedModel],
    store: CaseStore,
    jobs: Jobs,
    writers: Sequence[Writer] = (),
    repairs: Repairs | None = None,
) -> gr.Blocks:
    """The page for these models; without any it shows images and assesses nothing. Without `writers` templates word the reports,
    without `repairs` no series is shown repaired."""
    cache = FeatureCache()
    running: dict[str, Job] = {}  # by the session that waits for it
    with gr.Blocks(title="Larmor", analytics_enabled=False, delete_cache=CACHE_S, fill_width=True) as page:
        # -------------------------------------------------------------------------------- what there is
        opened, shown = gr.State(), gr.State()  # the case's id, and the scene that the viewer has
        address = gr.Textbox(visible="hidden")
        gr.HTML(
            f'<header class="page-head"><h1>Larmor</h1><p class="banner"><b>{BANNER}</b> {NOT_A_DEVICE}</p></header>'
        )
        with gr.Sidebar(width=330, label="Worklist"):
            worklist = panels.panel(elem_id="worklist")
            files = gr.File(
                label="Open a study: NIfTI files, or a zip of DICOM",
                file_count="multiple",
                file_types=IMAGES,
                height=130,
                elem_id="files",
            )
            with gr.Accordion("Record, earlier study, details", open=False):
                record = gr.File(
                    label="FHIR record", file_types=[".json", ".ndjson", ".gz"], height=90, elem_id="record"
                )
                begun = gr.Textbox(
                    label="When the study began, if the record does not say",
                    placeholder="2024-05-02T10:30:00Z",
                    max_lines=1,
                    max_length=40,
                )
                earlier = gr.File(
                    label="An earlier study of the patient",
                    file_count="multiple",
                    file_types=IMAGES,
                    height=90,
                    elem_id="earlier",
                )
                contrast = gr.Dropdown(
                    list(CONTRASTS), value="unknown", label="Contrast of files whose name does not say"
                )
                subject = gr.Textbox(label="Subject", placeholder="as the files are named", max_lines=1, max_length=64)
            read_button = gr.Button("Read the study", variant="primary")
            home = gr.Button("Examples", size="sm")
            gr.HTML(_models_html(models))
        progress = gr.HTML(elem_id="progress", apply_default_css=False)
        cancel = gr.Button("Cancel", size="sm", visible=False, elem_id="cancel")
        with gr.Column(elem_id="welcome") as welcome:
            gr.HTML(WELCOME)
            example_buttons: dict[str, gr.Button] = {}
            with gr.Row():
                for name, one in EXAMPLES.items():
                    with gr.Column(min_width=200):
                        example_buttons[name] = gr.Button(one.title)
                        gr.HTML(f'<p class="quiet">{escape(one.words)}</p>')
        with gr.Column(visible=False, elem_id="desk") as desk:
            head = gr.HTML(elem_id="head", apply_default_css=False)
            with gr.Row():
                with gr.Column(scale=7, min_width=480):
                    viewer = image_viewer()
                    with gr.Column(visible=False) as fallback:
                        why = gr.HTML()
                        planes = gr.HTML(elem_id="planes", apply_default_css=False)
                        with gr.Row():
                            at_mm = [gr.Slider(label=axis, buttons=[], minimum=-200, maximum=200) for axis in AXES]
                        with gr.Row():
                            series = gr.Dropdown(label="Series", type="value", min_width=200)
                            mask = gr.Dropdown(label="Outlines of", min_width=200)
                    findings = panels.panel(elem_id="findings")
                with gr.Column(scale=5, min_width=380), gr.Tabs():
                    with gr.Tab("Report"):
                        report = panels.panel(elem_id="report")
                        with gr.Row(elem_id="signing"):
                            preliminary = gr.Button("Sign as preliminary", size="sm")
                            final = gr.Button("Sign as final", size="sm", variant="primary")
                        with gr.Row(visible=False) as amending:
                            reason = gr.Textbox(label="Why it is amended", max_lines=2, max_length=2000, scale=3)
                            amend = gr.Button("Amend", size="sm", scale=1)
                    with gr.Tab("Outlook", visible=False) as outlook_tab:
                        outlook = gr.HTML(elem_id="outlook", apply_default_css=False)
                    with gr.Tab("Since then", visible=False) as change_tab:
                        change = panels.panel(elem_id="change")
                    with gr.Tab("Repair", visible=repairs is not None):
                        with gr.Row():
                            worn = gr.Dropdown(label="Series", type="value", min_width=120)
                            fault = gr.Dropdown(list(KNOWN), label="What is wrong with it", min_width=120)
                        repair_button = gr.Button("Show it repaired", size="sm")
                        repaired = panels.panel(elem_id="repaired")
                        with gr.Column(visible=False) as repair_controls:
                            layer = gr.Radio(
                                [(words, one) for one, words in LAYERS.items()], value="after", label="Shown"
                            )
                            strength = gr.Slider(label="Strength", buttons=[], minimum=0, maximum=1, value=1, step=0.05)
                            slice_number = gr.Slider(
                                label="Slice", buttons=[], minimum=0, maximum=1000, value=0, step=1
                            )
                    with gr.Tab("Series"):
                        series_list = gr.HTML(elem_id="series", apply_default_css=False)
                    with gr.Tab("Take away") as outputs_tab:
                        outputs = gr.HTML(elem_id="outputs", apply_default_css=False)
        is_plain = gr.State(False)  # this browser has no WebGL2

        # -------------------------------------------------------------------------------- what is shown of a case

        def text_of(view: CaseView) -> dict[Any, Any]:
            """What changes when the case does: everything but the images."""
            case = view.case
            told = {"places": view.places, "decisions": case.decisions, "locked": case.is_locked}
            return {
                head: panels.case_head(case),
                report: panels.report_panel(case.sentences, case.reading.findings, **told),
                findings: panels.findings_panel(case.reading, whys=view.whys, pieces=view.pieces, **told),
                preliminary: gr.update(visible=not case.is_locked and case.state != "amended"),
                final: gr.update(visible=not case.is_locked),
                amending: gr.update(visible=case.is_locked),
                worklist: worklist_of(case.owner, case.id),
                outputs: "",
            }

        def worklist_of(user: str, open_case: str | None) -> str:
            return panels.worklist_panel(store.worklist(user), open_case)

        def show(view: CaseView, plain: bool) -> dict[Any, Any]:
            """A case that is opened."""
            case, scene = view.case, view.scene(CASES)
            changed, without = change_of(case), without_record_of(case)
            looks_ahead = any(one.origin == "outlook" for one in case.reading.findings)
            return text_of(view) | planes_of(view, plain) | {
                opened: case.id,
                address: case.id,
                shown: scene,
                viewer: scene,
                series_list: panels.series_panel(case.reading, case.seconds),
                outlook_tab: gr.update(visible=looks_ahead),
                outlook: panels.outlook_panel(case.reading, without) if looks_ahead else "",
                change_tab: gr.update(visible=changed is not None),
                change: "" if changed is None else panels.change_panel(*changed, redrawn=_redrawn(case)),
                welcome: gr.update(visible=False),
                desk: gr.update(visible=True),
                worn: gr.update(choices=[(one.name, n) for n, one in enumerate(case.reading.series)], value=0),
                repaired: "",
                repair_controls: gr.update(visible=False),
                slice_number: gr.update(minimum=0, maximum=1000, value=0),  # 0 is the middle one
                progress: "",
                cancel: gr.update(visible=False),
            }  # fmt: skip

        def planes_of(view: CaseView, plain: bool) -> dict[Any, Any]:
            """The controls of a browser without WebGL2, at the place where the viewer would begin."""
            if not plain:
                return {}
            start, names = view.start_mm(), [one.name for one in view.case.reading.series]
            masks = [(one["title"], one["name"]) for one in view.scene(CASES)["masks"]]
            first = masks[0][1] if masks else None
            limits = zip(at_mm, *view.bounds_mm(), _rounded(start), strict=True)
            return {
                series: gr.update(choices=list(zip(names, range(len(names)))), value=0, visible=len(names) > 1),
                mask: gr.update(choices=[*masks, ("none", None)], value=first, visible=bool(masks)),
                planes: panels.planes_panel(view.planes(0, first, start), names[0], start),
                **{
                    one: gr.update(minimum=low, maximum=high, value=value, step=view.step_mm())
                    for one, low, high, value in limits
                },
            }

        SHOWN = [
            opened, address, shown, viewer, head, report, findings, preliminary, final, amending, worklist, outputs, series_list,
            outlook_tab, outlook, change_tab, change, welcome, desk, progress, cancel, series, mask, planes, *at_mm, worn, repaired,
            repair_controls, slice_number,
        ]  # fmt: skip
        TEXT = [head, report, findings, preliminary, final, amending, worklist, outputs]

        # -------------------------------------------------------------------------------- what happens

        def began(request: gr.Request) -> dict[Any, Any]:
            return {worklist: worklist_of(_user(request), None)}

        def reopened(case_id: str, plain: bool, request: gr.Request) -> dict[Any, Any]:
            """The case that the page's address names, if it is still there and this user's."""
            try:
                return show(CaseView.of(store, _user(request), case_id), plain) if case_id else began(request)
            except InputError:
                return began(request) | {address: ""}

        def left(request: gr.Request) -> dict[Any, Any]:
            """Back to where the examples are."""
            closed = {welcome: gr.update(visible=True), desk: gr.update(visible=False), viewer: None}
            return closed | {opened: None, shown: None, address: "", worklist: worklist_of(_user(request), None)}

        def open_case(plain: bool, event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
            with _complaints("The case"):
                return show(CaseView.of(store, _user(request), event.case), plain)

        def read(
            files: list[str] | None, record: str | None, begun: str | None, earlier: list[str] | None, contrast: str | None,
            subject: str | None, plain: bool, request: gr.Request,
        ) -> Iterator[dict[Any, Any]]:  # fmt: skip
            dropped = Dropped(
                files=tuple(map(Path, files or ())),
                contrast=contrast or "unknown",
                subject=subject or "",
                record=None if record is None else Path(record),
                begun=(begun or "").strip() or None,
                earlier=tuple(map(Path, earlier or ())),
            )
            work = partial(read_case, store, models, cache, _user(request), dropped, writers=writers)
            yield from followed(work, plain, request)

        def reading_example(name: str) -> Callable[[bool, gr.Request], Iterator[dict[Any, Any]]]:
            def read(plain: bool, request: gr.Request) -> Iterator[dict[Any, Any]]:
                work = partial(read_example, store, models, cache, _user(request), name, writers=writers)
                yield from followed(work, plain, request)

            return read

        def followed(work: Any, plain: bool, request: gr.Request) -> Iterator[dict[Any, Any]]:
            """Progress until the job is done, then its case."""
            user, session = _user(request), str(request.session_hash)
            with _complaints("The study"):
                job = running[session] = jobs.submit(user, work)
                while job.state in ("waiting", "running"):
                    words = f"Waiting; {job.ahead} before this one" if job.state == "waiting" else job.step
                    yield {
                        progress: panels.progress_panel(job.share, words, job.draft),
                        cancel: gr.update(visible=True),
                    }
                    job.wait(TELL_S)
                running.pop(session, None)
                if job.state == "done" and job.case_id:
                    yield show(CaseView.of(store, user, job.case_id), plain)
                    return
                yield {progress: "", cancel: gr.update(visible=False)}
                if job.error is not None:
                    raise job.error
                gr.Info("Cancelled; nothing was kept.")

        def repair(case_id: str, number: int, fault: str, request: gr.Request) -> Iterator[dict[Any, Any]]:
            """Progress until it is made. It is shown by another event, which knows what is open by then."""
            user, session = _user(request), str(request.session_hash)
            with _complaints("The series"):
                found = store.result(user, case_id).study.series[number]

                def work(tell: Tell) -> str:
                    key = RepairKey(user, case_id, number, fault)
                    assert repairs is not None
                    repairs.make(key, found, lambda share: tell(share, f"Repairing {found.name}"))
                    return case_id

                job = running[session] = jobs.submit(user, work)
                while job.state in ("waiting", "running"):
                    yield {progress: panels.progress_panel(job.share, job.step), cancel: gr.update(visible=True)}
                    job.wait(TELL_S)
                running.pop(session, None)
                yield {progress: "", cancel: gr.update(visible=False)}
                if job.error is not None:
                    raise job.error
                if job.state == "cancelled":
                    gr.Info("Cancelled; nothing was kept.")

        def look_repaired(
            case_id: str | None, number: int, fault: str, layer: str, strength: float, at_slice: float, request: gr.Request
        ) -> dict[Any, Any]:  # fmt: skip
            """What was made of the series that is chosen, in the case that is open; nothing where nothing was."""
            if case_id is None or repairs is None:
                return {repaired: "", repair_controls: gr.update(visible=False)}
            key = RepairKey(_user(request), case_id, number, fault)
            with _complaints("The series"):
                store.case(key.user, case_id)
                if not repairs.has(key):
                    return {repaired: "", repair_controls: gr.update(visible=False)}
                look = repairs.look(key, strength, int(at_slice) or None)
                return {
                    repaired: panels.repair_panel(look, layer),
                    repair_controls: gr.update(visible=True),
                    slice_number: gr.update(minimum=1, maximum=look.num_slices, value=look.number),
                }

        def stop(request: gr.Request) -> None:
            if job := running.get(str(request.session_hash)):
                job.cancel()

        def decide(case_id: str, scene: Scene, event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
            """And on to the next finding that nobody has decided on."""
            with _complaints("The decision"):
                store.decide(_user(request), case_id, event.finding, event.decision)
                view = CaseView.of(store, _user(request), case_id)
                following = view.next_open(event.finding)
                if event.decision == "open" or following is None:
                    return text_of(view)
                scene = gone(scene, **following)
                return text_of(view) | {shown: scene, viewer: scene}

        def reword(case_id: str, event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
            with _complaints("The sentence"):
                store.reword(_user(request), case_id, int(event.index), str(event.text))
                return text_of(CaseView.of(store, _user(request), case_id))

        def redraw(case_id: str, scene: Scene, event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
            """What somebody drew, as the case's mask; where it is not taken, the viewer still has it."""
            drawing, of = _uploaded(str(event.path)), str(event.case)
            try:
                store.redraw_from(_user(request), of, str(event.mask), drawing, str(event.drawn_on))
            except InputError as error:
                scene = refused(scene, f"It was not kept. Needed: {error.rule}. Found: {error.got}. {error.remedy}")
                return {shown: scene, viewer: scene}
            finally:
                shutil.rmtree(drawing.parent, ignore_errors=True)
            if of != case_id:  # another one was opened meanwhile
                gr.Info("The mask was kept.")
                return {}
            view = CaseView.of(store, _user(request), case_id)
            scene = view.scene(CASES)
            changed = change_of(view.case)
            since = {} if changed is None else {change: panels.change_panel(*changed, redrawn=_redrawn(view.case))}
            return text_of(view) | since | {shown: scene, viewer: scene}

        def signing(state: Literal["preliminary", "final"]) -> Callable[[str, Scene, gr.Request], dict[Any, Any]]:
            def sign(case_id: str, scene: Scene, request: gr.Request) -> dict[Any, Any]:
                with _complaints("The report"):
                    case = store.sign(_user(request), case_id, state)
                    scene = {**scene, "locked": case.is_locked}
                    return text_of(CaseView.of(store, _user(request), case_id)) | {shown: scene, viewer: scene}

            return sign

        def reopen(case_id: str, scene: Scene, reason: str, request: gr.Request) -> dict[Any, Any]:
            with _complaints("The report"):
                store.amend(_user(request), case_id, reason)
                scene = {**scene, "locked": False}
                return text_of(CaseView.of(store, _user(request), case_id)) | {shown: scene, viewer: scene}

        def write_outputs(case_id: str | None, request: gr.Request) -> str:
            if case_id is None:
                return ""
            with _complaints("The report"):
                folder = store.outputs(_user(request), case_id)
                return panels.outputs_panel(store.case(_user(request), case_id), folder, CASES)

        def fell_back(case_id: str | None, event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
            told = {is_plain: True, fallback: gr.update(visible=True), why: panels.fallback_panel(str(event.why))}
            return told if case_id is None else told | planes_of(CaseView.of(store, _user(request), case_id), True)

        def look(
            case_id: str | None, series: int, mask: str | None, x: float, y: float, z: float, request: gr.Request
        ) -> str:
            if case_id is None:
                return ""
            view = CaseView.of(store, _user(request), case_id)
            return panels.planes_panel(
                view.planes(series, mask, (x, y, z)), view.case.reading.series[series].name, (x, y, z)
            )

        def moved(
            case_id: str | None, series: int, old_mask: str | None, event: gr.EventData, request: gr.Request
        ) -> dict[Any, Any]:
            if case_id is None:
                return {}
            view = CaseView.of(store, _user(request), case_id)
            place, seen = event._data.get("at_mm") or view.start_mm(), event._data.get("mask", old_mask)
            picture = panels.planes_panel(
                view.planes(series, seen, place), view.case.reading.series[series].name, place
            )
            return {planes: picture, mask: seen, **dict(zip(at_mm, _rounded(place), strict=True))}

        page.load(reopened, [address, is_plain], SHOWN, js=FROM_ADDRESS, **PRIVATE_EVENT)
        address.change(None, address, None, js=TO_ADDRESS)
        address.change(None, address, None, js=MAKE_ROOM)
        what = [files, record, begun, earlier, contrast, subject, is_plain]
        read_button.click(read, what, SHOWN, **PRIVATE_EVENT)
        for name, button in example_buttons.items():
            button.click(reading_example(name), is_plain, SHOWN, **PRIVATE_EVENT)
        home.click(left, None, SHOWN, **PRIVATE_EVENT)
        home.click(None, None, None, js=MAKE_ROOM)
        cancel.click(stop, None, None, **PRIVATE_EVENT)  # out of the queue it would go to a route that is closed here
        worklist.open(open_case, is_plain, SHOWN, **PRIVATE_EVENT)
        report.reword(reword, opened, TEXT, **PRIVATE_EVENT)
        findings.decide(decide, [opened, shown], [*TEXT, shown, viewer], **PRIVATE_EVENT)
        viewer.redrawn(redraw, [opened, shown], [*TEXT, shown, viewer, change], **PRIVATE_EVENT)
        preliminary.click(signing("preliminary"), [opened, shown], [*TEXT, shown, viewer], **PRIVATE_EVENT)
        final.click(signing("final"), [opened, shown], [*TEXT, shown, viewer], **PRIVATE_EVENT)
        amend.click(reopen, [opened, shown, reason], [*TEXT, shown, viewer], **PRIVATE_EVENT)
        outputs_tab.select(write_outputs, opened, outputs, **PRIVATE_EVENT)
        told = [opened, worn, fault, layer, strength, slice_number]
        repair_button.click(repair, [opened, worn, fault], [progress, cancel], **PRIVATE_EVENT).success(
            look_repaired, told, [repaired, repair_controls, slice_number], **PRIVATE_EVENT
        )
        for control in (worn, fault, layer, strength, slice_number):
            control.input(
                look_repaired,
                told,
                [repaired, repair_controls, slice_number],
                trigger_mode="always_last",
                **PRIVATE_EVENT,
            )
        viewer.fallback(fell_back, opened, [is_plain, fallback, why, series, mask, planes, *at_mm], **PRIVATE_EVENT)
        viewer.moved(moved, [opened, series, mask], [planes, mask, *at_mm], **PRIVATE_EVENT)
        for control in (series, mask, *at_mm):
            control.input(look, [opened, series, mask, *at_mm], planes, trigger_mode="always_last", **PRIVATE_EVENT)
    return page.queue(max_size=MAX_WAITING, api_open=False)


WELCOME = """<div class="welcome"><h2>Open a study</h2>
<p>Drop its images on the left, or take an example: a synthetic patient, made now in a few seconds.</p>
<p>Then click a sentence to see where it is, correct what is wrong, decide on each finding, and sign.</p></div>"""


def page_error(error: InputError, what: str) -> gr.Error:
    """The complaint without the folder that an upload happens to lie in; gradio shows messages as HTML."""
    subject = what if error.file is None else Path(error.file).name
    lines = (f"Needed: {error.rule}.", f"Found: {error.got}.", error.remedy)
    message = "<br>".join([f"<b>{escape(subject)} was not taken.</b>", *map(escape, lines)])
    return gr.Error(message, duration=None, print_exception=False)


@contextmanager
def _complaints(what: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise page_error(error, what) from None


def _user(request: gr.Request) -> str:
    """Whoever the server let in; without a server that asks, nobody."""
    if not request.username:
        raise gr.Error("Nobody is logged in.", print_exception=False)
    return request.username


def _uploaded(path: str) -> Path:
    """A file that the page sent; whose it is, `serve/doors.py` has seen to. Nothing else on this machine is read."""
    place = Path(path).resolve()
    folder = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()).resolve()
    if not place.is_file() or place.parent.parent != folder:
        raise gr.Error("The drawing did not arrive.", print_exception=False)
    return place


def _redrawn(case: Case) -> list[str]:
    """The names of masks that somebody redrew."""
    return [Path(name).name.removesuffix(".nii.gz") for name, one in case.masks.items() if one.redrawn]


def _models_html(models: Sequence[LoadedModel]) -> str:
    if not models:
        return '<p class="quiet">No model is loaded: images are shown and nothing is assessed.</p>'
    return f'<p class="quiet">Models: {escape(", ".join(loaded.config.name for loaded in models))}.</p>'


def _rounded(at_mm: Sequence[float]) -> list[float]:
    """What a slider's number box can hold."""
    return [round(value, 1) for value in at_mm]
