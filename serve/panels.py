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
from urllib.parse import quote

import gradio as gr
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from foundation.figures import COLOURS, png_bytes
from foundation.findings import Finding, Reading, SeriesSummary
from foundation.stopwatch import in_words
from foundation.terms import WEIGHTS, Urgency
from heads.report.slots import format_number
from serve.cases import Case, CaseLine, CaseSentence
from serve.longitudinal import Change
from serve.render import PRESENCE_WORDS, colophon, study_name
from serve.repairs import CAVEATS, LAYERS, Look

HERE = Path(__file__).parent
DAYS_PER_YEAR = 365.0
MOST_PIECES = 8  # lesions of one finding that have a button
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
    return gr.HTML(html, js_on_load=script, apply_default_css=False, **options)


def _rendered(template: str, **values: Any) -> str:
    return _TEMPLATES.get_template(template).render(**values)


# ------------------------------------------------------------------------------------------------ report and findings


def report_panel(
    sentences: Sequence[CaseSentence],
    findings: Sequence[Finding],
    places: Mapping[str, Go],
    decisions: Mapping[str, str],
    *,
    locked: bool,
) -> str:
    """`places` says where each finding is."""
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
            }
        )
    return _rendered("report_panel.html", sections=sections.items(), locked=locked)


def findings_panel(
    reading: Reading,
    places: Mapping[str, Go],
    whys: Mapping[str, Go],
    pieces: Mapping[str, Sequence[Go]],
    decisions: Mapping[str, str],
    *,
    locked: bool,
) -> str:
    """`whys` are where a finding's relevance map is, for those that passed their tests; `pieces` where its lesions are."""
    rows = [
        _row(number, finding, places.get(finding.id), whys.get(finding.id), decisions.get(finding.id, "open"))
        | {"pieces": _pieces(finding, pieces.get(finding.id, ()))}
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


def _pieces(finding: Finding, places: Sequence[Go]) -> list[dict[str, str]]:
    """A button for each of the largest lesions, where there are several."""
    if len(finding.pieces) < 2:
        return []
    return [
        {"number": str(piece.number), "volume": f"{format_number(piece.volume_ml)} ml", "go": json.dumps(place)}
        for piece, place in zip(finding.pieces[:MOST_PIECES], places)
    ]


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


def series_panel(reading: Reading, seconds: Mapping[str, float] | None = None) -> str:
    """`seconds` are what each step of the reading took."""
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
        models=reading.models,
        colophon=colophon(reading),
        took=in_words(sum((seconds or {}).values(), 0.0)),
        steps=[(step, in_words(one)) for step, one in (seconds or {}).items()],
    )


def _acquired(series: SeriesSummary) -> str:
    known = series.acquisition
    return ", ".join(words.format(known[name]) for name, words in ACQUIRED.items() if name in known)


def urgency_of(share: float) -> Urgency:
    """The word for an urgency between 0 and 1."""
    names: list[Urgency] = [name for name, weight in WEIGHTS.items() if weight and share >= weight / 2]
    return names[0] if names else "none"


def worklist_panel(lines: Sequence[CaseLine], open_case: str | None) -> str:
    shown = [
        {
            "detail": json.dumps({"case": line.id}),
            "open": line.id == open_case,
            "subject": line.subject or "without a name",
            "state": line.state,
            "urgency": urgency_of(line.urgency),
            "urgency_words": f"urgency {line.urgency:.2f} of 1",
            "most_urgent": line.finding or "nothing to act on",
            "when": f"{line.read_at:%d %b %H:%M}",
        }
        for line in lines
    ]
    return _rendered("worklist_panel.html", lines=shown)


def case_head(case: Case) -> str:
    return _rendered(
        "case_head.html",
        subject=study_name(case.reading),
        state=case.state,
        standing=_standing(case),
        objections=case.warnings,
        warnings=case.reading.warnings,
    )


def _standing(case: Case) -> str:
    if case.is_locked or case.state == "preliminary":
        return f"signed by {case.signed_by} on {case.signed_at:%Y-%m-%d %H:%M %Z}"
    reopened = f"reopened: {case.reason}; " if case.reason else ""
    return f"{reopened}nobody has signed this; kept until {case.goes_at:%Y-%m-%d %H:%M %Z}"


def progress_panel(share: float, words: str, draft: str = "") -> str:
    """`draft` is the report as far as it is written."""
    return _rendered("progress.html", share=f"{share:.2f}", words=words, draft=draft)


OUTPUTS = {
    "outputs.zip": "Everything", "report.pdf": "Report", "report.html": "Report", "report.md": "Report",
    "reading.json": "Findings", "measurements.csv": "Measurements", "lesions.csv": "Lesions one by one",
    "report-R4B.json": "FHIR R4", "report-R5.json": "FHIR R5", "times.json": "Time of each step",
}  # fmt: skip


def outputs_panel(case: Case, folder: Path, address: str) -> str:
    """Links to what lies in `folder`, the outputs of the case as it stands, with masks and DICOM objects by their names."""
    files = [folder.parent / "outputs.zip", *sorted(file for file in folder.rglob("*") if file.is_file())]
    known = list(OUTPUTS)
    files.sort(key=lambda file: known.index(file.name) if file.name in known else len(known))
    outputs = [
        {
            "address": f"{address}/{case.id}/files/{quote(str(file.relative_to(folder.parent)))}",
            "name": file.name,
            "words": OUTPUTS.get(file.name) or KINDS.get(file.parent.name, "Other"),
            "size": _size(file.stat().st_size),
        }
        for file in files
        if file.parent.name != "pictures"
    ]
    return _rendered("outputs_panel.html", outputs=outputs, standing=f"As {case.state}: {_standing(case)}.")


KINDS = {"masks": "Mask", "dicom": "DICOM"}


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 100_000 else f"{max(1, round(num_bytes / 1000))} kB"


def change_panel(change: Change, before: bytes, now: bytes, redrawn: Sequence[str] = ()) -> str:
    """`before` and `now` are PNG of the same planes; `redrawn` are masks that are not any more what was compared."""
    fates = [one.fate for one in change.lesions]
    return _rendered(
        "change_panel.html",
        before=data_address(before),
        now=data_address(now),
        counts=", ".join(f"{fates.count(fate)} {fate}" for fate in dict.fromkeys(fates)),
        lesions=[
            {
                "name": one.name,
                "fate": one.fate,
                "prior": format_number(one.prior_ml),
                "current": format_number(one.current_ml),
                "go": json.dumps({"at_mm": one.centroid_mm, "mask": f"masks/{one.source}.nii.gz"}),
            }
            for one in change.lesions
        ],
        volumes=[
            {
                "name": one.name,
                "side": one.side.replace("_", " "),
                "prior": format_number(one.prior_ml),
                "current": format_number(one.current_ml),
                "percent": "" if one.percent is None else f"{one.percent:+.1f} %",
            }
            for one in change.volumes
        ],
        not_compared=change.not_compared,
        redrawn=", ".join(redrawn),
    )


def repair_panel(look: Look, layer: str) -> str:
    """`layer` of a repaired slice, one of `serve.repairs.LAYERS`, wiped against the slice as it was measured."""
    return _rendered(
        "repair_panel.html",
        before=picture_in_page(_grey(look.pictures["before"])),
        beside=picture_in_page(_grey(look.pictures[layer])),
        words=LAYERS[layer],
        ratio=f"{look.ratio:.4f}",
        caveats=CAVEATS,
    )


# ------------------------------------------------------------------------------------------------ the outlook


def outlook_panel(reading: Reading, without_record: Reading | None) -> str:
    """Every outlook with its curve; beside it what the same model says without the record, where one was given."""
    others = {} if without_record is None else {one.id: one for one in without_record.findings}
    outlooks = [
        _outlook(finding, others.get(finding.id)) for finding in reading.findings if finding.origin == "outlook"
    ]
    return _rendered("outlook_panel.html", outlooks=outlooks)


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
    return data_address(content)


def planes_panel(picture: np.ndarray, name: str, at_mm: Sequence[float]) -> str:
    """Three planes as a picture, for browsers that cannot do better."""
    return _rendered("planes.html", picture=picture_in_page(picture), caption=f"{name} at {directions(at_mm)}")


def fallback_panel(why: str) -> str:
    return _rendered("fallback.html", why=why)


def directions(at_mm: Sequence[float]) -> str:
    """'right 12 mm, back 4 mm, up 31 mm' of the scanner's centre."""
    words = (("right", "left"), ("front", "back"), ("up", "down"))
    return ", ".join(f"{pair[value < 0]} {abs(value):.0f} mm" for value, pair in zip(at_mm, words, strict=True))


def _grey(picture: np.ndarray) -> np.ndarray:
    return np.repeat(picture[..., None], 3, axis=2)


def data_address(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode('ascii')}"
