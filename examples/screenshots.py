"""The pictures of docs/clinicians.md: `python -m examples.screenshots docs --model DIR [--model DIR ...] [--repair DIR]`.

Opens the page as a clinician would, in Debian's chromium without a graphics processor, reads examples, and writes page-report.png,
page-draw.png and page-change.png, where a model looks ahead page-outlook.png, and with --repair page-repair.png, each below 300 kB.
What the models say on them is about the simulator.
"""

from __future__ import annotations

import argparse
import io
import math
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foundation.errors import InputError
from foundation.files import write_aside

FLAGS = ("--no-sandbox", "--headless=new", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
SIZE = (1440, 960)
MOST_BYTES = 300_000
WAIT_MS = 600_000.0  # a busy machine needs minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", dest="models", type=Path, action="append", default=[])
    parser.add_argument("--repair", type=Path)
    arguments = parser.parse_args()
    with served(arguments.models, arguments.repair) as link:
        for name, picture in pictures(link):
            with write_aside(arguments.out / name) as aside:
                aside.write_bytes(small(picture))
            print(f"wrote {arguments.out / name}")


@contextmanager
def served(models: Sequence[Path], repair: Path | None = None) -> Iterator[str]:
    """`larmor serve` on a free port: the link that it prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    named = [word for model in models for word in ("--model", str(model))]
    named += [] if repair is None else ["--repair", str(repair)]
    command = [sys.executable, "-m", "serve", "serve", *named, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def pictures(link: str) -> Iterator[tuple[str, bytes]]:
    """PNG by file name."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        remedy = "apt-get install --no-install-recommends chromium"
        raise InputError("chromium is installed", got="no such command", remedy=remedy)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
        page.set_default_timeout(WAIT_MS)
        page.goto(link)

        def read(example: str) -> None:
            page.evaluate("window.history.replaceState(null, '', window.location.pathname)")
            page.reload()
            page.get_by_role("button", name=example).click()
            page.locator("[data-state=shown]").wait_for()
            page.wait_for_timeout(1500)

        read("White matter disease")
        read("Tumour, then and now")
        sentence = page.locator("#report .findings a.said-text, #report .impression a.said-text")
        if sentence.count():
            sentence.first.click()
        page.wait_for_timeout(1500)
        yield "page-report.png", page.screenshot()
        draw = page.get_by_role("button", name="Draw", exact=True)
        if draw.is_visible():
            page.get_by_role("button", name="Axial", exact=True).click()
            draw.click()
            page.locator("[data-drawing=pen]").wait_for()
            page.get_by_role("button", name="Outline", exact=True).click()
            page.locator("[name=size]").select_option("1")
            _ring(page)
            page.wait_for_timeout(1500)
            yield "page-draw.png", page.screenshot()
            page.get_by_role("button", name="Throw away").click()
            page.get_by_role("button", name="Planes", exact=True).click()
            page.wait_for_timeout(1000)
        page.get_by_role("tab", name="Since then").click()
        lesion = page.locator("#change button.link")
        if lesion.count():
            lesion.first.click()
        page.wait_for_timeout(1000)
        yield "page-change.png", page.screenshot()
        repair = page.get_by_role("tab", name="Repair")
        if repair.is_visible():
            repair.click()
            page.get_by_role("button", name="Show it repaired").click()
            page.locator("#repaired .pair img").first.wait_for()
            page.get_by_role("radio", name="what was changed").check()
            page.locator("#repaired label", has_text="what was changed").wait_for()
            page.locator("#head").scroll_into_view_if_needed()
            page.wait_for_timeout(1000)
            yield "page-repair.png", page.screenshot()
        read("Tumour and record")
        outlook = page.get_by_role("tab", name="Outlook")
        if outlook.is_visible():
            outlook.click()
            page.wait_for_timeout(1000)
            page.emulate_media(color_scheme="dark")
            page.evaluate("document.body.classList.add('dark')")
            page.wait_for_timeout(1000)
            yield "page-outlook.png", page.screenshot()
        browser.close()


def _ring(page: Any) -> None:
    """Draw around a place beside the crosshair, as a hand would."""
    box = page.locator("#viewer canvas").bounding_box()
    assert box
    middle = box["x"] + 0.42 * box["width"], box["y"] + 0.62 * box["height"]
    places = [(middle[0] + 34 * math.cos(turn / 8), middle[1] + 26 * math.sin(turn / 8)) for turn in range(52)]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place)
    page.mouse.up()


def small(png: bytes) -> bytes:
    """The picture in as many colours as fit into `MOST_BYTES`."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for colours in (256, 128, 64, 32):
        buffer = io.BytesIO()
        # By coverage, not by how often: the few pixels of a legend keep their colours among a page of greys.
        picture.quantize(colours, method=Image.Quantize.MAXCOVERAGE, kmeans=1).save(buffer, "png", optimize=True)
        if buffer.tell() <= MOST_BYTES:
            return buffer.getvalue()
    remedy = "Take a smaller picture."
    raise InputError(f"a picture of the documentation has at most {MOST_BYTES} bytes", got=buffer.tell(), remedy=remedy)


if __name__ == "__main__":
    main()
