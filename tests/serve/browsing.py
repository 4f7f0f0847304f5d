"""What the tests in a browser share: `larmor serve` as a user starts it, and a browser that watches what a page does."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--headless=new", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
         "--disable-background-networking", "--disable-component-update"]  # fmt: skip
WAIT_MS = 60_000  # a busy machine draws a volume in many seconds
# The contrast of text with what lies behind it, after WCAG 2.2, of the worst element of each selector.
CONTRAST = """(selectors) => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => { for (; one; one = one.parentElement) {
    const colour = channels(getComputedStyle(one).backgroundColor); if (colour.length < 4 || colour[3] > 0.99) return colour; }
    return [255, 255, 255]; };
  const ratio = (one) => { const [a, b] = [light(channels(getComputedStyle(one).color)), light(behind(one))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05); };
  const seen = (one) => one.offsetParent && one.textContent.trim();
  const worst = (name) => Math.min(...[...document.querySelectorAll(name)].filter(seen).map(ratio));
  return Object.fromEntries(selectors.map((name) => [name, worst(name)]).filter(([, value]) => Number.isFinite(value)));
}"""


@dataclass(frozen=True)
class Serving:
    """`link` lets in, `address` is what every request must begin with."""

    link: str
    address: str
    process: subprocess.Popen[str]
    temporary: Path

    def left_behind(self) -> list[Path]:
        return [path for path in self.temporary.rglob("*") if path.is_file()]


@contextmanager
def serving(temporary: Path, models: Sequence[Path], *more: str) -> Iterator[Serving]:
    """`larmor serve` on a free port, everything that it writes below `temporary`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary.mkdir(exist_ok=True)
    named = [word for model in models for word in ("--model", str(model))]
    process = subprocess.Popen(
        [sys.executable, "-m", "serve", "serve", *named, "--port", str(port), *more],
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONWARNINGS": "ignore"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    with process:
        try:
            said = process.stdout.readline()
            assert f"http://127.0.0.1:{port}" in said, said
            yield Serving(said.split()[-1], f"http://127.0.0.1:{port}", process, temporary)
        finally:
            process.kill()


@dataclass
class Watched:
    """A page, everything it asked for, everything it complained of."""

    page: Any
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def asked_elsewhere(self, address: str) -> list[str]:
        return [url for url in self.asked if not url.startswith((address, "data:", "blob:"))]


@contextmanager
def browsing(width: int = 1400, height: int = 900) -> Iterator[Watched]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(WAIT_MS)
        watched = Watched(page)
        page.on("request", lambda request: watched.asked.append(request.url))
        page.on("console", lambda message: message.type == "error" and watched.complaints.append(message.text))
        page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        page.on("dialog", lambda dialog: watched.complaints.append(f"a dialog: {dialog.message}") or dialog.dismiss())
        yield watched
