"""The page as its user has it: in a browser, which must talk to this machine only."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from foundation.errors import InputError
from foundation.findings import Finding, Measurement
from foundation.study import Study
from serve.app import PRIVATE, build_app, page_error
from serve.cases import CaseStore
from serve.jobs import Jobs
from serve.pipeline import load_models, read_study
from tests.serve.browsing import CHROMIUM, CONTRAST, browsing, serving
from tests.serve.making import head_file, head_series, tiny_model
from tests.serve.test_panels import XSS

EVIL = "<img src=x onerror=alert(1)>"
TEXTS = [".quiet", ".said-text", ".pill", ".warning", ".banner", ".report h2", ".findings th", ".findings td", ".viewer-bar label",
         ".small:not(:disabled)", ".viewer-where", ".worklist .subject", ".mark", "#signing button", ".outputs a"]  # fmt: skip


def test_text_in_complaints_is_escaped_and_names_no_folder():
    error = page_error(InputError(EVIL, got=EVIL, remedy=EVIL, file=f"/secret/{EVIL}.nii"), EVIL)
    assert "onerror" in str(error.message) and EVIL not in str(error.message)
    assert "/secret" not in str(error.message)


@pytest.fixture
def store(tmp_path: Path) -> CaseStore:
    return CaseStore(tmp_path / "data")


@pytest.fixture
def page(store: CaseStore) -> Iterator[gr.Blocks]:
    jobs = Jobs()

    async def build() -> (
        gr.Blocks
    ):  # where an event loop runs: elsewhere gradio makes loops of its own and never closes them
        return build_app([], store, jobs)

    yield asyncio.run(build())
    jobs.close()


def test_the_page_is_closed_to_the_outside(page: gr.Blocks):
    assert all(event.api_visibility == "private" for event in page.fns.values())
    assert not page.analytics_enabled and not page.api_open
    assert PRIVATE["run_history"] is PRIVATE["enable_monitoring"] is PRIVATE["ssr_mode"] is False
    assert PRIVATE["theme"]._stylesheets == []
    texts = [block.value for block in page.blocks.values() if isinstance(block, gr.HTML) and block.value]
    assert any("nothing is assessed" in text for text in texts)


def test_what_happens_without_a_browser(page: gr.Blocks, store: CaseStore, tmp_path: Path):
    """Each handler as gradio calls it: a case with an outlook is opened, decided on, reworded, signed, and seen as planes."""
    risk = Measurement(name="risk within 365 days", value=0.2, unit="1", method="hazards")
    death = Finding(id="m.death.not-assessed", name="death", anatomy="patient", side="not_assessed", presence="uncertain",
                    origin="outlook", source="m", measurements=(risk,))  # fmt: skip
    result = read_study(Study("1", (head_series(),)), load_models([tiny_model(tmp_path / "all")]))
    reading = result.reading.model_copy(update={"findings": (*result.reading.findings, death)})
    case = store.add("anna", replace(result, reading=reading))
    first = case.reading.findings[0].id
    anna, bob = (gr.Request(username=name, session_hash="s") for name in ("anna", "bob"))
    does = {event.fn.__name__: event.fn for event in page.fns.values() if event.fn is not None}

    def said(answer: dict[Any, Any], elem_id: str) -> str:
        return next(str(value) for block, value in answer.items() if block.elem_id == elem_id)

    opened = does["open_case"](True, gr.EventData(None, {"case": case.id}), anna)
    assert "Risk of death" in said(opened, "outlook") and "data:image/png" in said(opened, "planes")
    assert case.id in said(opened, "viewer")
    with pytest.raises(gr.Error, match="no such case"):
        does["open_case"](False, gr.EventData(None, {"case": case.id}), bob)
    assert "appear here" in said(does["reopened"](case.id, False, bob), "worklist")

    scene = next(value for block, value in opened.items() if block.elem_id == "viewer")
    event = gr.EventData(None, {"finding": first, "decision": "accepted"})
    decided = does["decide"](case.id, scene, event, anna)
    moves = {value["go"]["count"] for value in decided.values() if isinstance(value, dict) and "go" in value}
    assert moves == {1} and 'aria-pressed="true"' in said(decided, "findings")

    event = gr.EventData(None, {"index": 0, "text": EVIL})
    assert "&lt;img" in said(does["reword"](case.id, event, anna), "report")
    fallen = does["fell_back"](case.id, gr.EventData(None, {"why": EVIL}), anna)
    assert "data:image/png" in said(fallen, "planes")
    seen = does["look"](case.id, 0, None, 30.0, 10.0, 20.0, anna)
    event = gr.EventData(None, {"at_mm": [30.0, 10.0, 20.0], "mask": None})
    assert said(does["moved"](case.id, 0, "masks/all.nii.gz", event, anna), "planes") == seen

    signed = does["sign"](case.id, scene, anna)  # the last button of that name: final
    assert 'class="pill final"' in said(signed, "head")
    assert "outputs.zip" in does["write_outputs"](case.id, anna)
    with pytest.raises(gr.Error, match="signed"):
        does["decide"](case.id, scene, gr.EventData(None, {"finding": first, "decision": "open"}), anna)
    assert 'class="pill amended"' in said(does["reopen"](case.id, scene, "a typo", anna), "head")
    with pytest.raises(gr.Error, match="logged in"):
        does["open_case"](False, gr.EventData(None, {"case": case.id}), gr.Request())


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
