"""A reading and its draft as pages for people: markdown, and one HTML file that needs nothing else.

Subjects, series and notes come from files and may hold anything: both renderers show such text and never obey it.
"""

from __future__ import annotations

import html
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ehr.output import DRAFT, Standing
from foundation.findings import Finding, Reading
from foundation.text import one_line
from heads.report import SECTIONS, Draft
from heads.report.slots import format_number
from heads.report.templates import NOT_A_DEVICE

DEVICE = "Not a medical device."
BANNER = f"{DRAFT.words} {DEVICE}"
PRESENCE_WORDS = {"present": "present", "absent": "not found", "uncertain": "uncertain", "not_assessed": "not assessed"}


@dataclass(frozen=True)
class Picture:
    """A PNG for the report; `file` is its path relative to the reading's folder, which markdown links."""

    file: str
    caption: str
    png: bytes

    @property
    def data_uri(self) -> str:
        return f"data:image/png;base64,{b64encode(self.png).decode('ascii')}"


def notice(standing: Standing) -> tuple[str, str]:
    """What stands at the head of every report and page: how far it has come, and what it was made with."""
    if standing.is_verified:
        return standing.words, "The images were read with software that is not a medical device."
    return f"{standing.words} {DEVICE}", NOT_A_DEVICE


def render_markdown(reading: Reading, draft: Draft, pictures: Sequence[Picture], standing: Standing = DRAFT) -> str:
    """The report for a `report.md` beside the reading and its pictures."""
    banner, words = notice(standing)
    lines = [
        f"# Report on {markdown_escaped(study_name(reading))}",
        f"> **{markdown_escaped(banner)}** {words}",
    ]
    for section in SECTIONS:
        found = draft.section(section)
        if found:
            lines += [f"## {section}", "\n".join(f"- {markdown_escaped(sentence.text)}" for sentence in found)]
    if reading.findings:
        rows = [" | ".join(markdown_escaped(cell) for cell in cells(finding)) for finding in reading.findings]
        header = " | ".join(COLUMNS)
        rule = " | ".join("---" for _ in COLUMNS)
        lines += ["## Table of findings", "\n".join(f"| {row} |" for row in [header, rule, *rows])]
    for picture in pictures:
        caption = markdown_escaped(picture.caption)
        lines += [f"![{caption}]({quote(picture.file)})", caption]
    lines.append(markdown_escaped(colophon(reading)))
    return "\n\n".join(lines) + "\n"


def render_html(reading: Reading, draft: Draft, pictures: Sequence[Picture], standing: Standing = DRAFT) -> str:
    """The report as one file: pictures inside, no script, nothing fetched."""
    banner, words = notice(standing)
    return _template().render(
        banner=banner,
        not_a_device=words,
        study=study_name(reading),
        sections=[(name, draft.section(name)) for name in SECTIONS],
        numbers={finding.id: number for number, finding in enumerate(reading.findings, start=1)},
        columns=COLUMNS,
        rows=[(finding, cells(finding)) for finding in reading.findings],
        pictures=pictures,
        models=reading.models,
        colophon=colophon(reading),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: one_line(value) if isinstance(value, str) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


COLUMNS = ("Finding", "Side", "Presence", "Volume (ml)", "Probability", "Other measurements", "Source")


def cells(finding: Finding) -> tuple[str, ...]:
    volume = finding.measured("volume")
    probability = finding.probability
    others = (
        f"{one.name} {one.value:.0f}"
        if one.name == "number"  # a count
        else f"{one.name} {format_number(one.value)}{'' if one.unit == '1' else ' ' + one.unit}"
        for one in finding.measurements
        if one.name != "volume"
    )
    return (
        finding.name,
        finding.side.replace("_", " "),
        PRESENCE_WORDS[finding.presence],
        "" if volume is None else format_number(volume),
        "" if probability is None else f"{probability:.2f}{'' if finding.is_calibrated else ' (not calibrated)'}",
        "; ".join(others),
        finding.source,
    )


def study_name(reading: Reading) -> str:
    return one_line(", ".join(filter(None, (reading.subject, reading.session)))) or "a study without a name"


def colophon(reading: Reading) -> str:
    return f"Written by {reading.software} on {reading.created:%Y-%m-%d %H:%M %Z}."


def markdown_escaped(text: str) -> str:
    """Text that shows as itself wherever a line of markdown, a table cell or a link's name takes it."""
    line = html.escape(one_line(text), quote=False)
    return re.sub(r"([\\`*_\[\]#|~!])", r"\\\1", line)
