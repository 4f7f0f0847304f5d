"""What stands beside the images: report, findings, series, outlook and worklist, as markup that a template escapes.

    report_panel(case_view)      each sentence leads to its finding, and can be edited
    panel(html)                  the component that shows one of them; its events are `decide`, `open` and `reword`

Pure functions of what is known; `serve/app.py` says when they are shown. Pictures are inside the page and never files.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from foundation.figures import COLOURS, png_bytes
from foundation.findings import Finding, Reading, SeriesSummary
from heads.report.slots import format_number
from serve.render import PRESENCE_WORDS, colophon

HERE = Path(__file__).parent
DAYS_PER_YEAR = 365.0
URGENCY_WORDS = {"urgent": "urgent", "actionable": "to be acted on", "minor": "minor", "none": "nothing urgent"}
ACQUIRED = {
    "field_strength_t": "{:.3g} T", "repetition_time_ms": "TR {:.4g} ms", "echo_time_ms": "TE {:.3g} ms",
    "inversion_time_ms": "TI {:.4g} ms", "flip_angle_deg": "{:.3g}°", "vendor": "{}",
}  # fmt: skip

Go = Mapping[str, Any]  # where the viewer is sent: at_mm, mask

_TEMPLATES = Environment(
    loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


def panel(html: str = "", **options: Any) -> gr.HTML:
    """Markup whose buttons do something; `serve/static/panel.js` says what."""
    script = (HERE / "static" / "panel.js").read_text(encoding="utf-8")
    return gr.HTML(html, js_on_load=script, **options)


def _rendered(template: str, **values: Any) -> str:
    return _TEMPLATES.get_template(template).render(**values)


# ------------------------------------------------------------------------------------------------ report and findings


def report_panel(
    sentences: Sequence[Any],
    findings: Sequence[Finding],
    places: Mapping[str, Go],
    decisions: Mapping[str, str],
    objections: Mapping[int, Sequence[str]],
    *,
    locked: bool,
) -> str:
    """`places` says where each finding is, `objections` what the verifier has against a sentence, by its index."""
    numbers = {finding.id: number for number, finding in enumerate(findings, start=1)}
    sections: dict[str, list[dict[str, Any]]] = {}
    for index, one in enumerate(sentences):
        cited = [id for id in one.finding_ids if id in numbers]
        place = next((places[id] for id in cited if id in places), None)
        sections.setdefault(one.section, []).append(
            {
                "index": index,
                "text": one.text,
                "numbers": [numbers[id] for id in cited],
                "go": None if place is None else json.dumps(place),
                "edited": one.edited,
                "rejected": bool(cited) and all(decisions.get(id) == "rejected" for id in cited),
                "objections": objections.get(index, ()),
            }
        )
    return _rendered("report_panel.html", sections=sections.items(), locked=locked)


def findings_panel(
    reading: Reading,
    places: Mapping[str, Go],
    whys: Mapping[str, Go],
    decisions: Mapping[str, str],
    *,
    locked: bool,
) -> str:
    """`whys` are where a finding's relevance map is, for those that passed their tests."""
    rows = [
        _row(number, finding, places.get(finding.id), whys.get(finding.id), decisions.get(finding.id, "open"))
        for number, finding in enumerate(reading.findings, start=1)
        if finding.origin != "outlook"
    ]
    return _rendered(
        "findings_panel.html",
        rows=rows,
        locked=locked,
        models=reading.models,
        uncalibrated=any(row["probability"] is not None and not row["calibrated"] for row in rows),
    )


def _row(number: int, finding: Finding, place: Go | None, why: Go | None, decision: str) -> dict[str, Any]:
    side = finding.side.replace("_", " ") if finding.side not in ("not_assessed", "not_applicable") else ""
    volume, probability = finding.measured("volume"), finding.probability
    there = finding.presence in ("present", "uncertain")
    return {
        "number": number,
        "name": finding.name,
        "side": side,
        "title": f"{finding.name} {side}".strip(),
        "change": finding.change,
        "note": finding.note,
        "presence": PRESENCE_WORDS[finding.presence],
        "alarm": finding.is_abnormal and there,
        "urgency": finding.urgency if finding.is_abnormal and there else "none",
        "probability": None if probability is None else f"{probability:.2f}",
        "percent": 0 if probability is None else round(100 * probability),
        "calibrated": finding.is_calibrated,
        "volume": "" if volume is None else f"{format_number(volume)} ml",
        "others": "; ".join(_others(finding)),
        "go": None if place is None else json.dumps(place),
        "why": None if why is None else json.dumps(why),
        "accept": _decision(finding, "open" if decision == "accepted" else "accepted"),
        "reject": _decision(finding, "open" if decision == "rejected" else "rejected"),
        "decision": decision,
    }


def _decision(finding: Finding, decision: str) -> str:
    """What a button asks for; pressed again it takes the decision back."""
    return json.dumps({"finding": finding.id, "decision": decision})


def _others(finding: Finding) -> list[str]:
    """Every measurement but the volume, with the range where the model gave one."""
    said = []
    for one in finding.measurements:
        if one.name == "volume" or one.name.endswith((", lowest", ", highest")):
            continue
        unit = "" if one.unit == "1" else f" {one.unit}"
        low, high = (finding.measured(f"{one.name}, {end}") for end in ("lowest", "highest"))
        between = "" if low is None or high is None else f" ({format_number(low)} to {format_number(high)})"
        said.append(f"{one.name} {format_number(one.value)}{unit}{between}")
    return said


# ------------------------------------------------------------------------------------------------ the rest


def series_panel(reading: Reading) -> str:
    series = [
        {
            **one.model_dump(include={"name", "contrast", "contrast_from", "shape", "side_is_known"}),
            "spacing": " × ".join(f"{step:.3g}" for step in one.spacing_mm),
            "acquired": _acquired(one),
        }
        for one in reading.series
    ]
    return _rendered(
        "series_panel.html",
        series=series,
        warnings=reading.warnings,
        models=reading.models,
        colophon=colophon(reading),
    )


def _acquired(series: SeriesSummary) -> str:
    known = series.acquisition
    return ", ".join(words.format(known[name]) for name, words in ACQUIRED.items() if name in known)


def worklist_panel(lines: Sequence[Any], open_case: str | None) -> str:
    shown = [
        {
            "detail": json.dumps({"case": line.id}),
            "open": line.id == open_case,
            "subject": line.subject or "without a name",
            "state": line.state,
            "urgency": line.urgency,
            "urgency_words": URGENCY_WORDS[line.urgency],
            "most_urgent": line.most_urgent or "nothing found",
            "when": f"{line.read_at:%d %b %H:%M}",
        }
        for line in lines
    ]
    return _rendered("worklist_panel.html", lines=shown)


# ------------------------------------------------------------------------------------------------ the outlook


def outlook_panel(reading: Reading, without_record: Reading | None, record_words: str) -> str:
    """Every outlook with its curve; beside it what the same model says without the record, where one was given."""
    others = {} if without_record is None else {one.id: one for one in without_record.findings}
    outlooks = [
        _outlook(finding, others.get(finding.id)) for finding in reading.findings if finding.origin == "outlook"
    ]
    return _rendered("outlook_panel.html", outlooks=outlooks, record_words=record_words)


def _outlook(finding: Finding, without: Finding | None) -> dict[str, Any]:
    risks, bare = risks_of(finding), {} if without is None else {days: risk for days, risk, *_ in risks_of(without)}
    words = "; ".join(f"{risk:.0%} within {_span(days)}" for days, risk, *_ in risks)
    return {
        "title": f"Risk of {finding.name}",
        "event": finding.name,
        "words": f"Curve of staying free of {finding.name}: risk {words}",
        "picture": None if not risks else picture_in_page(survival_curve(risks, bare)),
        "risks": [
            {
                "within": _span(days),
                "value": f"{risk:.0%}",
                "range": "" if low is None or high is None else f"{low:.0%} to {high:.0%}",
                "without": f"{bare[days]:.0%}" if days in bare else "",
            }
            for days, risk, low, high in risks
        ],
        "has_without": bool(bare),
        "note": finding.note,
        "method": finding.measurements[0].method if finding.measurements else "It was not assessed",
    }


def risks_of(finding: Finding) -> list[tuple[float, float, float | None, float | None]]:
    """Days, risk within them, and the lowest and highest that a member of the model says."""
    found = []
    for one in finding.measurements:
        if match := re.fullmatch(r"risk within ([\d.]+) days", one.name):
            low, high = (finding.measured(f"{one.name}, {end}") for end in ("lowest", "highest"))
            found.append((float(match[1]), one.value, low, high))
    return sorted(found)


def _span(days: float) -> str:
    years = days / DAYS_PER_YEAR
    if days < DAYS_PER_YEAR or abs(years - round(years, 1)) > 0.01:
        return f"{days:.0f} days"
    return f"{years:g} year{'' if years == 1 else 's'}"


def survival_curve(
    risks: Sequence[tuple[float, float, float | None, float | None]], without: Mapping[float, float]
) -> Figure:
    """The chance of staying free of the event, at the times that the model speaks of, with its members' range.

    On no background and in a grey that is readable on white and on black, because the page may be either.
    """
    grey = "#76808c"
    days = np.array([0.0, *(one[0] for one in risks)]) / DAYS_PER_YEAR
    free = 1 - np.array([0.0, *(one[1] for one in risks)])
    figure = Figure(figsize=(5, 2.6), layout="constrained", facecolor="none")
    axes = figure.subplots()
    axes.set_facecolor("none")
    if all(low is not None and high is not None for _, _, low, high in risks):
        low, high = (1 - np.array([0.0, *(one[place] for one in risks)], float) for place in (3, 2))
        axes.fill_between(days, low, high, color=COLOURS[1], alpha=0.3, linewidth=0, label="range of its members")
    axes.plot(days, free, color=COLOURS[4], marker="o", markersize=4, label="with the record" if without else None)
    if without:
        bare = 1 - np.array([0.0, *(without.get(one[0], np.nan) for one in risks)])
        axes.plot(days, bare, color=COLOURS[5], linestyle="--", marker="s", markersize=4, label="from the images alone")
    axes.set(xlim=(0, None), ylim=(0, 1.02), xlabel="years", ylabel="free of it")
    axes.tick_params(colors=grey)
    axes.xaxis.label.set_color(grey)
    axes.yaxis.label.set_color(grey)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(grey)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8, labelcolor=grey, loc="lower left")
    return figure


def picture_in_page(picture: Figure | np.ndarray) -> str:
    """A data address: an image component would leave a file on disk that any user could ask for."""
    if isinstance(picture, Figure):
        buffer = BytesIO()
        picture.savefig(buffer, format="png", dpi=160, transparent=True)
        content = buffer.getvalue()
    else:
        content = png_bytes(picture)
    return f"data:image/png;base64,{b64encode(content).decode('ascii')}"
