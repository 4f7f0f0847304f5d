"""A reading and its draft as a PDF for printing and for the FHIR report: the same words, pictures and table as the HTML page.

    pdf_bytes(reading, draft, pictures)

Text is escaped before reportlab sees it, which would take it for markup. Every page says at its head whether this is a draft, or
who signed it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from reportlab.lib import colors
from reportlab.lib.enums import TA_LEFT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.platypus import Image, KeepTogether, Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

from ehr.output import DRAFT, Standing
from foundation.findings import Reading
from foundation.text import one_line
from heads.report import SECTIONS, Draft
from serve.render import COLUMNS, Picture, cells, colophon, notice, study_name

MARGIN = 18 * mm
WIDTH = A4[0] - 2 * MARGIN
INK, QUIET, LINE, WARN, WARN_BACK = (
    colors.HexColor(c) for c in ("#1d2530", "#5c6875", "#dce1e7", "#7a4100", "#fff4e0")
)
COLUMN_WIDTHS = (0.04, 0.19, 0.09, 0.11, 0.11, 0.15, 0.18, 0.13)  # of the page, the number in front included
PADDING = 6  # points that reportlab leaves around a page's text
FONT, BOLD = "DejaVuSans", "DejaVuSans-Bold"


def pdf_bytes(reading: Reading, draft: Draft, pictures: Sequence[Picture], standing: Standing = DRAFT) -> bytes:
    """The report as PDF, the same bytes for the same reading."""
    _embed_fonts()
    file = BytesIO()
    document = SimpleDocTemplate(
        file,
        pagesize=A4,
        leftMargin=MARGIN - PADDING,
        rightMargin=MARGIN - PADDING,
        topMargin=26 * mm,
        bottomMargin=16 * mm,
        title=f"{'Report' if standing.is_verified else 'Draft report'} on {study_name(reading)}",
        author=reading.software,
        invariant=True,
    )
    frame = partial(_frame, standing=standing)
    document.build(list(_story(reading, draft, pictures)), onFirstPage=frame, onLaterPages=frame)
    return file.getvalue()


def _embed_fonts() -> None:
    """DejaVu Sans, which comes with matplotlib: PDF's own Helvetica has no Greek, and viewers put wider fonts in its place."""
    for name in (FONT, BOLD):
        if name not in pdfmetrics.getRegisteredFontNames():
            pdfmetrics.registerFont(TTFont(name, Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"))


def _story(reading: Reading, draft: Draft, pictures: Sequence[Picture]) -> Iterator[Any]:
    numbers = {finding.id: number for number, finding in enumerate(reading.findings, start=1)}
    yield _text(f"Report on {study_name(reading)}", size=15.0, bold=True)
    yield _text(colophon(reading), size=8.0, colour=QUIET)
    for section in SECTIONS:
        sentences = draft.section(section)
        if sentences:
            body = [
                _sentence(one.text, [numbers[id] for id in one.finding_ids], bold=section == "Impression")
                for one in sentences
            ]
            yield KeepTogether([_heading(section), body[0]])
            yield from body[1:]
    for picture in pictures:
        yield KeepTogether([Spacer(0, 4 * mm), _picture(picture), _text(picture.caption, size=8.0, colour=QUIET)])
    if reading.findings:
        yield _heading("Table of findings")
        yield _table(reading, numbers)
    if reading.models:
        yield _heading("Models")
        for model in reading.models:
            yield _text(f"{model.name}: weights sha256 {model.weights_sha256}", size=7.5, colour=QUIET)


def _table(reading: Reading, numbers: dict[str, int]) -> Table:
    head = [_text(title, size=7.5, colour=QUIET) for title in ("#", *COLUMNS)]
    rows = []
    for finding in reading.findings:
        bold = finding.is_abnormal and finding.presence == "present"
        rows.append([_text(cell, size=7.5, bold=bold) for cell in (str(numbers[finding.id]), *cells(finding))])
    table = Table([head, *rows], colWidths=[WIDTH * share for share in COLUMN_WIDTHS], repeatRows=1)
    table.setStyle(
        TableStyle(
            [
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("LINEBELOW", (0, 0), (-1, -1), 0.5, LINE),
                ("LEFTPADDING", (0, 0), (-1, -1), 0),
                ("RIGHTPADDING", (0, 0), (-1, -1), 3),
                ("TOPPADDING", (0, 0), (-1, -1), 2),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
            ]
        )
    )
    return table


def _frame(canvas: Any, document: Any, *, standing: Standing) -> None:
    """What is on every page: whether it is a draft, and its number."""
    banner, words = notice(standing)
    width, height = A4
    canvas.saveState()
    canvas.setFillColor(WARN_BACK)
    canvas.rect(0, height - 20 * mm, width, 20 * mm, stroke=0, fill=1)
    canvas.setFillColor(WARN)
    canvas.setFont(BOLD, 11)
    canvas.drawString(MARGIN, height - 10 * mm, banner)
    canvas.setFont(FONT, 7.5)
    canvas.drawString(MARGIN, height - 15 * mm, words)
    canvas.setFillColor(QUIET)
    canvas.drawRightString(width - MARGIN, 9 * mm, f"Page {document.page}")
    canvas.restoreState()


def _picture(picture: Picture) -> Image:
    columns, rows = ImageReader(BytesIO(picture.png)).getSize()
    return Image(BytesIO(picture.png), width=WIDTH, height=WIDTH * rows / columns)


def _heading(text: str) -> Paragraph:
    return _text(text, size=10.5, bold=True, before=8.0)


def _sentence(text: str, cited: Sequence[int], *, bold: bool) -> Paragraph:
    marks = ", ".join(map(str, cited))
    return _text(
        text,
        size=9.0,
        bold=bold,
        tail=f" <super size='7'><font color='#0072b2'>{marks}</font></super>" if marks else "",
    )


def _text(
    text: str,
    *,
    size: float,
    bold: bool = False,
    colour: colors.Color = INK,
    before: float = 0.0,
    tail: str = "",
) -> Paragraph:
    text = one_line(text)
    style = ParagraphStyle(
        "own",
        fontName=BOLD if bold else FONT,
        fontSize=size,
        leading=1.3 * size,
        textColor=colour,
        spaceBefore=before,
        spaceAfter=2,
        alignment=TA_LEFT,
        wordWrap="CJK" if max(map(len, text.split()), default=0) > 40 else None,  # breaks names that have no space
    )
    return Paragraph(escape(text) + tail, style)
