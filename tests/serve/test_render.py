"""The pages show whatever text a file held, and never obey it."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pytest

from foundation.figures import png_bytes
from foundation.findings import Evidence, Finding, Measurement, ModelUsed, Reading, SeriesSummary
from heads.report.templates import NOT_A_DEVICE, draft
from serve.render import BANNER, Picture, markdown_escaped, render_html, render_markdown

EVIL = "<script>alert(1)</script> [x](javascript:1) ![y](http://example.org/z.png) *b* | # \"'><img src=x onerror=1>"
PICTURE = Picture("pictures/t1 %.png", EVIL, png_bytes(np.zeros((4, 5, 3), np.uint8)))


def reading(text: str = "plain") -> Reading:
    found = [
        Finding(
            id=f"seg.lesion.{side}", name=f"lesion {text}", anatomy="brain", side=side, presence="present",
            measurements=(Measurement(name="volume", value=volume, unit="ml", method="test"),),
            evidence=Evidence(series=text), source=text, note=text,
        )
        for side, volume in (("right", 1.25), ("left", 0.5))
    ]  # fmt: skip
    series = SeriesSummary(
        name=text, contrast="T1w", shape=(2, 3, 4), spacing_mm=(1, 1, 1), orientation="RAS", side_is_known=True,
        acquisition={"vendor": text},
    )  # fmt: skip
    return Reading(
        subject=text, session=text, series=(series,), findings=tuple(found), warnings=(text,), software=text,
        models=(ModelUsed(name=text, weights_sha256=text),), created=datetime(2026, 1, 2, tzinfo=UTC),
    )  # fmt: skip


class Page(HTMLParser):
    """Tags with their attributes, the text, and what each sentence and row says."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def evil_page() -> Page:
    evil = reading(EVIL)
    return Page(render_html(evil, draft(evil), [PICTURE]))


def test_text_from_files_is_shown_and_not_obeyed(evil_page):
    assert not evil_page.all("script")
    assert EVIL in evil_page.text
    assert all("onerror" not in attributes for _, attributes in evil_page.tags)
    assert len(evil_page.all("img")) == 1  # ours


def test_the_page_asks_for_nothing(evil_page):
    for _, attributes in evil_page.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert not evil_page.all("link")
    policies = [meta["content"] for meta in evil_page.all("meta") if meta.get("http-equiv")]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    source = evil_page.all("img")[0]["src"]
    assert source and base64.b64decode(source.partition(",")[2]) == PICTURE.png


def test_every_sentence_leads_to_its_findings():
    one = reading()
    report = draft(one)
    page = Page(render_html(one, report, []))
    rows = {attributes["id"] for attributes in page.all("tr") if "id" in attributes}
    assert rows == {finding.id for finding in one.findings}
    cited = [attributes["data-finding"] for attributes in page.all("p") if "data-finding" in attributes]
    assert cited == [" ".join(sentence.finding_ids) for sentence in report.sentences]
    links = {(attributes["href"] or "").removeprefix("#") for attributes in page.all("a")}
    assert links == rows
    for text in (BANNER, NOT_A_DEVICE, "1.25", "0.50", *(sentence.text for sentence in report.sentences)):
        assert text in page.text


def test_a_reading_without_findings_is_a_page():
    empty = Reading(subject="", series=())
    page = Page(render_html(empty, draft(empty), []))
    assert "No structures were assessed" in page.text and not page.all("table")
    assert "No structures were assessed" in render_markdown(empty, draft(empty), [])


def test_markdown_shows_text_and_never_obeys_it():
    evil = reading(EVIL)
    text = render_markdown(evil, draft(evil), [PICTURE])
    assert "<" not in text
    assert re.findall(r"(?<!\\)!\[", text) == ["!["]  # ours
    assert "](pictures/t1%20%25.png)" in text
    assert BANNER in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(evil.findings)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert len(headings) == 6


@pytest.mark.parametrize("text", ["a\n# b", "`code`", "a_b_c", "~~x~~", "back\\slash", "&lt;"])
def test_a_line_of_markdown_is_escaped(text):
    escaped = markdown_escaped(text)
    assert "\n" not in escaped
    assert not re.search(r"(?<!\\)[`_~#]", escaped)
    assert "&lt;" not in text or escaped == "&amp;lt;"
