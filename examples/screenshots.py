"""The pictures of docs/clinicians.md: `python -m examples.screenshots docs --model DIR [--model DIR ...]`.

Opens the page as a clinician would, in Debian's chromium without a graphics processor, reads two examples, and writes
page-report.png, page-change.png and page-outlook.png, each below 300 kB. What the models say on them is about the simulator.
"""

from __future__ import annotations

import argparse
import io
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

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
    arguments = parser.parse_args()
    with served(arguments.models) as link:
        for name, picture in pictures(link):
            with write_aside(arguments.out / name) as aside:
                aside.write_bytes(small(picture))
            print(f"wrote {arguments.out / name}")


@contextmanager
def served(models: Sequence[Path]) -> Iterator[str]:
    """`larmor serve` on a free port: the link that it prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    named = [word for model in models for word in ("--model", str(model))]
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
        page.get_by_role("tab", name="Since then").click()
        page.wait_for_timeout(1000)
        yield "page-change.png", page.screenshot()
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


def small(png: bytes) -> bytes:
    """The picture in as many colours as fit into `MOST_BYTES`."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for colours in (256, 128, 64, 32):
        buffer = io.BytesIO()
        picture.quantize(colours, method=Image.Quantize.MEDIANCUT).save(buffer, "png", optimize=True)
        if buffer.tell() <= MOST_BYTES:
            return buffer.getvalue()
    remedy = "Take a smaller picture."
    raise InputError(f"a picture of the documentation has at most {MOST_BYTES} bytes", got=buffer.tell(), remedy=remedy)


if __name__ == "__main__":
    main()
