"""The page: what its functions say of a study, and all of it in a browser, which must talk to this machine only."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch

from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError
from foundation.figures import COLOURS
from foundation.findings import Structure
from foundation.reading.nifti import write_volume
from foundation.study import Series
from heads import parse_head
from heads.base import Scope, TaskConfig, TaskModel, save_task
from heads.report.templates import draft
from serve.app import (
    PRIVATE,
    OpenStudy,
    build_app,
    findings_table,
    launch,
    page_error,
    planes_html,
    report_html,
    study_of,
    warnings_html,
)
from serve.pipeline import load_models, read_study
from tests.foundation.reading.dicom_making import write_series

EVIL = "<img src=x onerror=alert(1)>"
ORANGE = np.array([int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)])


def phantom(path: Path, spacing_mm: float = 4.0, at_mm: float = -94.0) -> Path:
    """A head of 150 x 180 x 160 mm with something bright in its right half, as a file."""
    length = round(192 / spacing_mm)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = at_mm
    series = Series(np.zeros((length,) * 3, np.float32), affine)
    mm = np.moveaxis(series.to_patient_mm(np.moveaxis(np.indices(series.shape), 0, -1)), -1, 0)
    head = sum((x / radius) ** 2 for x, radius in zip(mm, (75, 90, 80), strict=True)) < 1
    ball = sum((x - centre) ** 2 for x, centre in zip(mm, (30, 10, 20), strict=True)) < 15**2
    noise = np.random.default_rng(0).random(series.shape)
    write_volume(path, 100 * head + 100 * ball + noise, series)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that outlines everything, of a structure that occurs on both sides."""
    structure = Structure(value=1, name="tissue", paired=True)
    head = parse_head({"kind": "segmentation", "structures": [structure.model_dump()]})
    encoder = EncoderConfig(depth=1)
    task = TaskModel.build(Encoder(encoder), head)
    with torch.no_grad():
        task.head.classify.weight.zero_()
        task.head.classify.bias.copy_(torch.tensor([0.0, 1.0]))
    scope = Scope(contrasts=("T1w",), smallest_extent_mm=(100.0,) * 3, largest_extent_mm=(250.0,) * 3)
    config = TaskConfig(name="all", caution=None, encoder=encoder, head=head, spacing_mm=(8.0,) * 3, scope=scope)
    folder = tmp_path_factory.mktemp("models") / "all"
    save_task(folder, task, config, card="outlines everything", provenance={})
    return folder


@pytest.fixture
def opened(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenStudy:
    """A study of two series on different grids, read."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    files = [phantom(tmp_path / "sub-1_T1w.nii.gz"), phantom(tmp_path / "sub-1_T2w.nii.gz", 6.0, -90.0)]
    return OpenStudy.of(read_study(study_of(files), load_models([model])))


def built(models: list[Path]) -> gr.Blocks:
    """The page, made where an event loop runs: elsewhere gradio makes loops of its own and never closes them."""

    async def build() -> gr.Blocks:
        return build_app(models)

    return asyncio.run(build())


# ------------------------------------------------------------------------------------------------ uploads


def test_uploaded_files_are_one_study(tmp_path: Path):
    (tmp_path / "other").mkdir()
    files = [phantom(tmp_path / "other" / "ses_T1w.nii"), phantom(tmp_path / "x.nii.gz")]
    study = study_of(files, "FLAIR", " 017 ")
    assert [(one.name, one.contrast) for one in study.series] == [("ses_T1w", "T1w"), ("x", "FLAIR")]
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
    with pytest.raises(InputError, match="files of one kind"):
        study_of([packed, phantom(tmp_path / "a.nii")])


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
            phantom(file.with_suffix(".nii")).rename(file)
    with pytest.raises(InputError):
        study_of(files)


# ------------------------------------------------------------------------------------------------ looking


def test_planes_follow_the_point_and_the_outlines_can_be_hidden(opened: OpenStudy):
    (mask,) = opened.result.masks
    bare, moved = opened.planes(0, None, (0.0, 0.0, 0.0)), opened.planes(0, None, (30.0, 10.0, 20.0))
    assert bare.shape == moved.shape and not np.array_equal(bare, moved)
    for series in (0, 1):  # the second lies on another grid
        outlined = opened.planes(series, mask, (0.0, 0.0, 0.0))
        assert is_orange(outlined) and not is_orange(opened.planes(series, None, (0.0, 0.0, 0.0)))


def is_orange(picture: np.ndarray) -> bool:
    """Whether the legend of the first colour is there."""
    return bool((picture == ORANGE).all(axis=-1).any())


def test_a_finding_leads_to_its_place(opened: OpenStudy):
    right, left = opened.result.reading.findings
    places = opened.place_of(right), opened.place_of(left)
    assert places[0] and places[1] and places[0][0] > 0 > places[1][0]
    assert opened.start_mm() == places[0]
    assert opened.step_mm() == 4
    low, high = opened.bounds_mm()
    assert all(a <= x <= b for a, x, b in zip(low, places[0], high, strict=True))
    assert opened.place_of(right.model_copy(update={"evidence": None})) is None


def test_without_models_there_are_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setenv("LARMOR_MODELS", str(tmp_path / "none"))
    study = OpenStudy.of(read_study(study_of([phantom(tmp_path / "a.nii")]), load_models([])))
    assert not study.result.masks and not findings_table(study.result.reading)
    assert np.allclose(study.start_mm(), 0, atol=4)
    assert study.planes(0, None, study.start_mm()).any()
    assert "No structures were assessed" in report_html(study.result.reading, study.result.draft)
    texts = [block.value for block in built([]).blocks.values() if isinstance(block, gr.HTML)]
    assert any("nothing is assessed" in text for text in texts)


def test_downloads_are_whole_and_go_with_the_study(opened: OpenStudy, tmp_path: Path):
    assert opened.download("report.html").read_text().startswith("<!doctype html>")
    assert opened.download("reading.json").stat().st_size
    shutil.unpack_archive(opened.download("reading.zip"), tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "masks" / "all.nii.gz").is_file()
    opened.close()
    assert not opened.folder.exists()


# ------------------------------------------------------------------------------------------------ privacy


def test_text_from_files_is_escaped(opened: OpenStudy):
    reading = opened.result.reading
    evil = reading.model_copy(update={"warnings": (EVIL,)})
    error = page_error(InputError(EVIL, got=EVIL, remedy=EVIL, file=f"/secret/{EVIL}.nii"))
    pages = [warnings_html(evil), report_html(evil, draft(evil)), planes_html(np.zeros((2, 2, 3), np.uint8), EVIL)]
    for html in [*pages, str(error.message)]:
        assert "onerror" in html and EVIL not in html
    assert "/secret" not in error.message


def test_the_page_is_closed_to_the_outside(model: Path):
    page = built([model])
    assert all(event.api_visibility == "private" for event in page.fns.values())
    assert not page.analytics_enabled and not page.api_open
    assert PRIVATE["share"] is PRIVATE["run_history"] is PRIVATE["enable_monitoring"] is PRIVATE["ssr_mode"] is False
    assert PRIVATE["theme"]._stylesheets == []


def test_an_address_in_use_is_an_input_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=str(port)):
            launch([], "127.0.0.1", port)


# ------------------------------------------------------------------------------------------------ in a browser


@dataclass(frozen=True)
class Server:
    address: str
    process: subprocess.Popen[str]
    temporary: Path

    def left_behind(self) -> list[Path]:
        return [path for path in self.temporary.rglob("*") if path.is_file()]


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[Server]:
    """`larmor serve` as a user starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "serve", "serve", "--model", str(model), "--port", str(port)],
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    with process:
        try:
            assert f"http://127.0.0.1:{port}" in process.stdout.readline()
            yield Server(f"http://127.0.0.1:{port}", process, temporary)
        finally:
            process.kill()


def test_a_study_is_read_looked_at_and_refused(server: Server, tmp_path: Path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: apt-get install --no-install-recommends chromium")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=20_000)
    good = phantom(tmp_path / "sub-1_desc-${1+1}<b>_T1w.nii.gz")
    broken = tmp_path / "broken_T1w.nii.gz"
    broken.write_bytes(good.read_bytes()[:-5000])
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=chromium, args=flags) as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        asked: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(server.address)
        expect(page.get_by_text("Not a medical device.")).to_be_visible()
        button, planes = page.get_by_role("button", name="Read the study"), page.locator("#planes img")

        page.set_input_files("input[type=file]", good)
        expect(page.locator(".file-preview")).to_be_visible()
        button.click()
        expect(planes).to_be_visible()
        findings = page.locator("#findings [data-row]")
        expect(findings.filter(has_text="tissue")).to_have_count(2)
        expect(page.locator(".report")).to_contain_text("Tissue: right")
        assert page.locator("#planes b").count() == 0

        for move in (
            lambda: page.get_by_role("slider").first.press("ArrowRight"),
            lambda: findings.filter(has_text="left").click(),
            lambda: page.get_by_label("Show outlines").click(),
        ):
            before = planes.get_attribute("src")
            assert before
            move()
            expect(planes).not_to_have_attribute("src", before)

        with page.expect_download() as download:
            page.get_by_text("Report (HTML)").click()
        assert "Report on sub-1" in download.value.path().read_text()

        page.get_by_label("Clear").first.click()
        page.set_input_files("input[type=file]", broken)
        expect(page.locator(".file-preview")).to_be_visible()
        button.click()
        message = page.locator(".toast-body")
        expect(message).to_contain_text("broken_T1w.nii.gz was not read")
        expect(message).to_contain_text("Copy or download it again.")
        expect(message).not_to_contain_text(str(tmp_path))
        expect(planes).to_have_count(0)
        expect(page.locator(".report")).not_to_be_visible()

        assert asked and all(url.startswith((server.address, "data:", "blob:")) for url in asked), asked
        assert not complaints, complaints
    assert server.left_behind()
    server.process.terminate()
    server.process.wait(20)
    assert not server.left_behind()
