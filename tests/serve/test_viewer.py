"""The viewer in a browser: what it shows, how it is moved, and what it says where there is no WebGL2."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import nibabel as nib
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
            for _ in range(1800):
                try:
                    urlopen(address).close()
                    break
                except URLError:
                    time.sleep(0.1)
            yield address
        finally:
            process.kill()


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    other_way = np.diag([-4.0, 4.0, 4.0, 1.0])
    other_way[:3, 3] = 94, -94, -94
    mirrored = one.with_voxels(one.voxels, other_way)
    mm = np.moveaxis(mirrored.to_patient_mm(np.moveaxis(np.indices(one.shape), 0, -1)), -1, 0)
    ball = (mm**2).sum(axis=0) < 40**2
    write_volume(folder / "mirrored.nii.gz", (200 * head[::-1]).astype(np.uint8), mirrored)
    write_labels(folder / "halves.nii.gz", np.where(mm[1] > 0, 300, 7).astype(np.int16) * ball, mirrored)
    return folder


@pytest.fixture(scope="module")
def page_address(page_folder: Path) -> Iterator[str]:
    with served(page_folder) as address:
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
@pytest.mark.timeout(300)
def test_what_is_drawn_comes_back_on_the_masks_own_voxels(page_address: str, page_folder: Path):
    """On a series whose axes are mirrored, of labels that no pen can hold, while another series is looked at."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)
    old = nib.nifti1.load(page_folder / "halves.nii.gz")
    numbers = np.select([np.asarray(old.dataobj) == 300, np.asarray(old.dataobj) == 7], [1, 2])

    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(page_address)
        root, told = page.locator("[data-state]"), page.locator(".viewer-told")
        draw, keep = (
            page.get_by_role("button", name="Draw", exact=True),
            page.get_by_role("button", name="Keep the mask"),
        )

        def stroke(*shares: tuple[float, float]) -> None:
            box = page.locator("#viewer canvas").bounding_box()
            assert box
            left = box["x"] + (box["width"] - box["height"]) / 2  # of the slice, which is a square
            first, *others = [(left + x * box["height"], box["y"] + y * box["height"]) for x, y in shares]
            page.mouse.move(*first)
            page.mouse.down()
            for place in others:
                page.mouse.move(*place, steps=6)
            page.mouse.up()

        def kept() -> np.ndarray:
            keep.click()
            expect(told).to_have_text("Another time.")
            heard = page.locator("#heard textarea")
            expect(heard).to_have_value(re.compile(r"^masks/halves.nii.gz on halves 1: .*drawing.nii.gz$"))
            sent = nib.nifti1.load(heard.input_value().partition(": ")[2])
            assert np.allclose(sent.affine, old.affine) and sent.shape == old.shape
            return np.asarray(sent.dataobj).astype(int)

        page.get_by_role("button", name="show").click()
        expect(root).to_have_attribute("data-state", "shown")
        expect(draw).to_be_hidden()  # nobody would take what is drawn on this one
        page.get_by_role("button", name="halves").click()
        expect(page.locator(".viewer-legend li")).to_have_count(2)
        page.get_by_role("button", name="Axial").click()
        page.locator("[name=series]").select_option("1")
        draw.click()
        expect(root).to_have_attribute("data-drawing", "pen")
        expect(page.locator("[name=mask]")).to_be_disabled()
        expect(keep).to_be_disabled()

        page.get_by_label("Structure").select_option("1")  # the back half
        page.get_by_label("Size").select_option("3")
        stroke((0.5, 0.35), (0.5, 0.65))  # from front to back through the middle
        expect(root).to_have_attribute("data-strokes", "1")
        drawn = kept()
        changed = np.argwhere(drawn != numbers)
        assert len(changed) > 10 and (drawn[tuple(changed.T)] == 2).all()
        mm = nib.affines.apply_affine(old.affine, changed)
        assert np.ptp(mm[:, 2]) == 0 and np.ptp(mm[:, 0]) == 8 and (mm[:, 1] > 0).all(), mm

        page.get_by_role("button", name="Eraser").click()
        page.get_by_label("Structure").select_option("0")  # the front half
        page.get_by_label("Size").select_option("9")
        stroke((0.5, 0.35), (0.5, 0.65))
        expect(root).to_have_attribute("data-strokes", "2")
        rubbed = kept()
        assert ((rubbed == 2) == (drawn == 2)).all()  # the other structure is where it was
        assert (rubbed == 1).sum() < (drawn == 1).sum() and not rubbed[(rubbed != drawn)].any()

        page.locator("#viewer canvas").focus()
        page.keyboard.press("Control+z")
        expect(root).to_have_attribute("data-strokes", "1")
        page.get_by_role("button", name="Outline").click()
        stroke((0.7, 0.4))
        expect(root).to_have_attribute("data-strokes", "2")
        page.get_by_role("button", name="Undo").click()
        page.get_by_label("Size").select_option("1")
        stroke((0.3, 0.1), (0.7, 0.1), (0.7, 0.25), (0.3, 0.25), (0.3, 0.1))  # around a place that is of no structure
        expect(root).to_have_attribute("data-strokes", "2")
        filled = kept() != drawn
        assert filled.any() and len(np.argwhere(filled)) == np.prod(np.ptp(np.argwhere(filled), axis=0) + 1)
        page.get_by_role("button", name="Throw away").click()
        expect(root).to_have_attribute("data-drawing", "")
        expect(root).to_have_attribute("data-mask", "masks/halves.nii.gz")
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
