"""The PDF says what the draft says, whatever text a file held, and is the same for the same reading."""

from __future__ import annotations

import re
import zlib
from base64 import a85decode

import numpy as np

from foundation.figures import png_bytes
from foundation.findings import Finding, Measurement, Reading
from heads.report.templates import NOT_A_DEVICE, draft
from serve.pdf import pdf_bytes
from serve.render import BANNER, Picture

EVIL = "<b>bold</b> <img src='http://example.org/x.png'/> & Ωµ½"


def reading(count: int = 2) -> Reading:
    findings = tuple(
        Finding(
            id=f"m.{number}", name=f"thing {number} {EVIL}", anatomy="brain", side="left", presence="present", source="m",
            measurements=(Measurement(name="volume", value=1.5, unit="ml", method="count"),),
        )
        for number in range(count)
    )  # fmt: skip
    return Reading(subject="x" * 90, series=(), findings=findings, warnings=(EVIL,))


def shown(pdf: bytes) -> str:
    """The text that a PDF draws, by its text operators, a space for each."""
    text = ""
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        try:
            content = zlib.decompress(
                a85decode(stream.strip(), adobe=False) if b"~>" not in stream else _ascii85(stream)
            )
        except (ValueError, zlib.error):
            continue
        for piece in re.findall(rb"\((.*?)(?<!\\)\) ?Tj", content, re.DOTALL):
            text += re.sub(r"\\([()\\])", r"\1", _octal(piece)) + " "
    return text


def _ascii85(stream: bytes) -> bytes:
    return a85decode(b"<~" + stream.strip(), adobe=True)


def _octal(piece: bytes) -> str:
    return re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), piece).decode("latin-1")


def test_it_says_what_the_draft_says() -> None:
    one = reading()
    picture = Picture("a.png", "planes of a head", png_bytes(np.zeros((40, 90, 3), np.uint8)))
    pdf = pdf_bytes(one, draft(one), [picture])
    text = " ".join(shown(pdf).split())
    assert pdf.startswith(b"%PDF") and b"/Subtype /Image" in pdf
    for part in (BANNER, NOT_A_DEVICE, "Impression", "planes of a head", "Table of findings", "1.50 ml"):
        assert part in text, part
    assert "<b>bold</b><img" in text.replace(" ", "") and b"/URI" not in pdf
    assert b"/FontFile2" in pdf, "a viewer's own font may be wider, and has no Greek"


def test_long_readings_take_more_pages_and_the_same_reading_gives_the_same_bytes() -> None:
    one = reading(60)
    pdf = pdf_bytes(one, draft(one), [])
    assert pdf == pdf_bytes(one, draft(one), [])
    pages = len(re.findall(rb"/Type /Page\b", pdf))
    assert pages > 3 and shown(pdf).count(BANNER) == pages
