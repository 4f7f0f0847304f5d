"""The page as its user has it: in a browser, which must talk to this machine only."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import gradio as gr
import pytest

from foundation.errors import InputError
from serve.app import PRIVATE, build_app, page_error
from serve.cases import CaseStore
from serve.jobs import Jobs
from tests.serve.browsing import CHROMIUM, CONTRAST, browsing, serving
from tests.serve.making import head_file, tiny_model
from tests.serve.test_panels import XSS

EVIL = "<img src=x onerror=alert(1)>"
TEXTS = [".quiet", ".said-text", ".pill", ".warning", ".banner", ".report h2", ".findings th", ".findings td", ".viewer-bar label",
         ".small:not(:disabled)", ".viewer-where", ".worklist .subject", ".mark", "#signing button", ".outputs a"]  # fmt: skip


def test_text_in_complaints_is_escaped_and_names_no_folder():
    error = page_error(InputError(EVIL, got=EVIL, remedy=EVIL, file=f"/secret/{EVIL}.nii"), EVIL)
    assert "onerror" in str(error.message) and EVIL not in str(error.message)
    assert "/secret" not in str(error.message)


def test_the_page_is_closed_to_the_outside(tmp_path: Path):
    async def build() -> (
        gr.Blocks
    ):  # where an event loop runs: elsewhere gradio makes loops of its own and never closes them
        return build_app([], CaseStore(tmp_path), jobs)

    jobs = Jobs()
    try:
        page = asyncio.run(build())
    finally:
        jobs.close()
    assert all(event.api_visibility == "private" for event in page.fns.values())
    assert not page.analytics_enabled and not page.api_open
    assert PRIVATE["run_history"] is PRIVATE["enable_monitoring"] is PRIVATE["ssr_mode"] is False
    assert PRIVATE["theme"]._stylesheets == []
    texts = [block.value for block in page.blocks.values() if isinstance(block, gr.HTML) and block.value]
    assert any("nothing is assessed" in text for text in texts)


@pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed: apt-get install --no-install-recommends chromium"
)
@pytest.mark.timeout(600)
def test_an_example_is_read_corrected_signed_and_taken_away(tmp_path: Path):
    from playwright.sync_api import expect

    model = tiny_model(tmp_path / "all")
    with serving(tmp_path / "temporary", [model]) as server, browsing(height=700) as watched:
        page = watched.page
        page.goto(server.link)
        expect(page.get_by_text("Not a medical device.")).to_be_visible()
        page.get_by_role("button", name="A normal head").click()
        expect(page.locator("#progress [role=status]")).to_be_visible()
        viewer = page.locator("#viewer [data-state], [data-state]").first
        expect(viewer).to_have_attribute("data-state", "shown", timeout=300_000)
        expect(page.locator("#head .pill")).to_have_text("draft")
        expect(page.locator(".findings tbody tr")).to_have_count(2)

        page.mouse.move(500, 400)  # over the images, which nobody has clicked yet
        page.mouse.wheel(0, 300)
        page.wait_for_function("window.scrollY > 0 || document.querySelector('main, .gradio-container').scrollTop > 0")

        page.locator(".findings button.link").nth(1).click()
        expect(viewer).to_have_attribute("data-at", re.compile(r"^-"))  # the left half of the head
        expect(viewer).to_have_attribute("data-mask", "masks/all.nii.gz")
        sentence = page.locator("#report a.said-text", has_text=re.compile("right", re.IGNORECASE)).first
        sentence.focus()
        page.keyboard.press("Enter")
        expect(viewer).to_have_attribute("data-at", re.compile(r"^\d"))
        expect(page.locator(".viewer-where")).to_have_text(re.compile("^right"))

        words = "Corrected: " + " ".join(XSS)
        page.locator("#report .impression .pen, #report .findings .pen").first.click()
        page.get_by_label("The sentence in your words").fill(words)
        page.get_by_role("button", name="Save").click()
        expect(page.locator("#report .mark", has_text="edited")).to_have_count(1)
        expect(page.locator("#report")).to_contain_text("Corrected: <script>alert(1)</script>")
        assert page.locator("#report :is(script, img, svg, iframe, math, template)").count() == 0

        page.get_by_role("button", name="Accept tumour right").click()
        expect(page.get_by_role("button", name="Accept tumour right")).to_have_attribute("aria-pressed", "true")
        page.get_by_role("button", name="Reject tumour left").click()
        expect(page.locator(".findings tr.rejected")).to_have_count(1)

        for scheme in ("light", "dark"):
            page.evaluate(f"document.body.classList.toggle('dark', {str(scheme == 'dark').lower()})")
            found = page.evaluate(CONTRAST, TEXTS)
            assert len(found) > 8 and all(ratio >= 4.5 for ratio in found.values()), (scheme, found)

        page.get_by_role("button", name="Sign as final").click()
        expect(page.locator("#head .pill")).to_have_text("final")
        expect(page.locator("#report .pen")).to_have_count(0)
        page.reload()
        expect(page.locator("#head .pill")).to_have_text("final")
        expect(page.locator("#report")).to_contain_text("Corrected: <script>")
        expect(page.locator("#report .pen")).to_have_count(0)
        expect(page.get_by_role("button", name="Accept tumour right")).to_be_disabled()
        expect(page.locator(".worklist button")).to_have_count(1)

        page.get_by_role("tab", name="Take away").click()
        links = page.locator("#outputs a")
        expect(links.first).to_be_visible()
        names = links.evaluate_all("(all) => all.map((one) => one.download)")
        assert {"outputs.zip", "report.pdf", "report.html", "reading.json", "report-R5.json", "all.nii.gz"} <= set(
            names
        )
        for number, name in enumerate(names):
            with page.expect_download() as download:
                links.nth(number).click()
            content = download.value.path().read_bytes()
            assert content, name
            if name == "report.html":
                assert b"Corrected: &lt;script&gt;" in content and b"<script" not in content

        page.get_by_role("tab", name="Report").click()
        page.get_by_label("Why it is amended").fill("a typo")
        page.get_by_role("button", name="Amend").click()
        expect(page.locator("#head .pill")).to_have_text("amended")
        expect(page.locator("#report .pen").first).to_be_attached()

        page.set_viewport_size({"width": 390, "height": 844})
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert watched.asked and not watched.asked_elsewhere(server.address), watched.asked_elsewhere(server.address)
        assert not watched.complaints, watched.complaints
        assert server.left_behind()
        server.process.terminate()
        server.process.wait(30)
        assert not server.left_behind()


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.timeout(300)
def test_files_are_dropped_and_refused(tmp_path: Path):
    from playwright.sync_api import expect

    model = tiny_model(tmp_path / "all")
    good = head_file(tmp_path / "sub-1_desc-${1+1}<b>_T1w.nii.gz")
    earlier = head_file(tmp_path / "before_T1w.nii.gz", seed=1)
    broken = tmp_path / "broken_T1w.nii.gz"
    broken.write_bytes(good.read_bytes()[:-500])
    with serving(tmp_path / "temporary", [model]) as server, browsing() as watched:
        page = watched.page
        page.goto(server.link)
        page.set_input_files("#files input[type=file]", good)
        expect(page.locator("#files .file-preview")).to_be_visible()
        page.get_by_role("button", name="Record, earlier study, details").click()
        page.set_input_files("#earlier input[type=file]", earlier)
        expect(page.locator("#earlier .file-preview")).to_be_visible()
        page.get_by_label("Subject").fill(EVIL)
        page.get_by_role("button", name="Read the study").click()
        expect(page.locator("[data-state]").first).to_have_attribute("data-state", "shown", timeout=120_000)
        expect(page.locator("#head h2")).to_have_text(EVIL)
        page.get_by_role("tab", name="Since then").click()
        expect(page.locator("#change .pair img")).to_have_count(2)
        page.get_by_role("tab", name="Series").click()
        expect(page.locator("#series")).to_contain_text("its file name")

        page.get_by_label("Clear").first.click()
        page.set_input_files("#files input[type=file]", broken)
        expect(page.locator("#files .file-preview")).to_be_visible()
        page.get_by_role("button", name="Read the study").click()
        message = page.locator(".toast-body")
        expect(message).to_contain_text("was not taken")
        expect(message).not_to_contain_text(str(tmp_path))
        assert not watched.asked_elsewhere(server.address), watched.asked_elsewhere(server.address)
        assert not watched.complaints, watched.complaints
