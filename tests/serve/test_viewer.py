"""The viewer in a browser: what it shows, how it is moved, and what it says where there is no WebGL2."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest

from foundation.reading.nifti import write_labels, write_volume
from foundation.study import Series
from serve.viewer import BUNDLE, gone, scene
from tests.serve.browsing import CHROMIUM, FLAGS


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.serve.viewer_page", str(folder), str(port)], stdout=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    with process:
        try:
            for _ in range(300):
                try:
                    urlopen(address).close()
                    break
                except URLError:
                    time.sleep(0.1)
            yield address
        finally:
            process.kill()


@pytest.fixture(scope="module")
def page_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two series on grids of their own, oblique to each other, and a lesion where the crosshair will be sent."""
    folder = tmp_path_factory.mktemp("viewer")
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -94
    one = Series(np.zeros((48, 48, 48), np.float32), affine)
    mm = np.moveaxis(one.to_patient_mm(np.moveaxis(np.indices(one.shape), 0, -1)), -1, 0)
    head = sum((x / radius) ** 2 for x, radius in zip(mm, (75, 90, 80))) < 1
    lesion = sum((x - centre) ** 2 for x, centre in zip(mm, (30, 10, -20))) < 12**2
    write_volume(folder / "one.nii.gz", (120 * head + 100 * lesion).astype(np.uint8), one)
    flipped = one.with_voxels(
        one.voxels, affine @ np.diag([-1.0, 1, 1, 1]) + np.array([[0, 0, 0, -188]] + [[0] * 4] * 3)
    )
    write_volume(folder / "two.nii.gz", (200 * head).astype(np.uint8), flipped)
    write_labels(folder / "mask.nii.gz", 2 * lesion.astype(np.int16), one)
    with served(folder) as address:
        yield address


def test_a_scene_is_moved_and_never_changed():
    first = scene("a", [{"name": "T1w"}], [], (0.0, 0.0, 0.0))
    assert gone(first, at_mm=(1.0, 2.0, 3.0))["go"] == {"count": 1, "at_mm": [1.0, 2.0, 3.0]}
    assert gone(gone(first), mask="m")["go"] == {"count": 2, "mask": "m"}
    assert first["go"] == {"count": 0, "at_mm": [0.0, 0.0, 0.0]}
    assert BUNDLE.stat().st_size > 2_000_000


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_viewer_goes_where_it_is_sent(page_address: str):
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        asked: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(page_address)
        where, root = page.locator(".viewer-where"), page.locator("[data-state]")
        page.get_by_role("button", name="show").click()
        expect(root).to_have_attribute("data-state", "shown")
        expect(where).to_have_text("right 0 mm, front 0 mm, up 0 mm")
        expect(page.locator(".viewer-legend li")).to_have_text("plaque </li><b>")

        page.get_by_role("button", name="move").click()  # from Python
        expect(where).to_have_text("right 30 mm, front 10 mm, down 20 mm: plaque </li><b>")
        page.evaluate("document.dispatchEvent(new CustomEvent('larmor:go', {detail: {at_mm: [-30, 10, -20]}}))")
        expect(where).to_have_text("left 30 mm, front 10 mm, down 20 mm")

        page.get_by_label("Series").select_option("1")  # another grid, the same place
        expect(root).to_have_attribute("data-series", "<img src=x onerror=alert(1)>")
        expect(where).to_have_text("left 30 mm, front 10 mm, down 20 mm")
        page.get_by_label("Outlines").select_option("-1")
        expect(root).to_have_attribute("data-mask", "")
        expect(page.locator(".viewer-legend li")).to_have_count(0)

        canvas = page.locator("#viewer canvas")
        canvas.focus()
        page.keyboard.press("ArrowLeft")  # the screen's left is the patient's right
        expect(where).to_have_text("left 26 mm, front 10 mm, down 20 mm")
        page.get_by_label("right on the left").uncheck()
        canvas.focus()
        page.keyboard.press("Shift+ArrowLeft")
        expect(where).to_have_text("left 36 mm, front 10 mm, down 20 mm")
        page.keyboard.press("2")
        expect(page.get_by_role("button", name="Axial")).to_have_attribute("aria-pressed", "true")

        before = canvas.screenshot()
        page.get_by_label("White").fill("60")
        assert canvas.screenshot() != before
        page.get_by_role("button", name="close").click()
        expect(root).to_have_attribute("data-state", "empty")
        expect(where).to_have_text("")
        assert asked and all(url.startswith((page_address, "data:", "blob:")) for url in asked), asked
        assert not complaints, complaints


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_without_webgl2_the_page_is_told_why_and_where_to(page_address: str):
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)
    flags = ["--no-sandbox", "--headless=new", "--disable-3d-apis"]
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=flags) as browser:
        page = browser.new_page()
        page.goto(page_address)
        heard = page.locator("#heard textarea")
        expect(heard).to_have_value("fallback: this browser has no WebGL2")
        page.get_by_role("button", name="show").click()
        page.get_by_role("button", name="move").click()
        expect(heard).to_have_value("moved: [30, 10, -20]")
