"""What stands beside the images: escaped, numbered, and led to the right place."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from foundation.findings import Finding, Measurement, Piece, Reading
from foundation.study import Series, Study
from serve import panels
from serve.cases import Case, CaseLine, CaseSentence, CaseStore
from serve.longitudinal import Change, LesionChange, VolumeChange
from serve.pipeline import read_study

# What a hostile name, description or edit may hold. None of it may become markup, in an attribute neither.
XSS = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg onload=alert(1)>", "\"><script>alert(1)</script>",
    "' onmouseover='alert(1)", '" onfocus="alert(1)" autofocus="', "<iframe srcdoc='<script>alert(1)</script>'>",
    "</textarea><script>alert(1)</script>", "</style><script>alert(1)</script>", "javascript:alert(1)",
    "<a href=javascript:alert(1)>x</a>", "<body onload=alert(1)>", "${alert(1)}", "{{alert(1)}}", "`${alert(1)}`",
    "<math><mi xlink:href=javascript:alert(1)>x", "<details open ontoggle=alert(1)>", "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<!--<img src=--><img src=x onerror=alert(1)//>", "<template><script>alert(1)</script></template>",
)  # fmt: skip


def finding(id: str = "m.plaque.right", name: str = "plaque", **more: object) -> Finding:
    fields: dict[str, object] = {
        "anatomy": "brain",
        "side": "right",
        "presence": "present",
        "source": "m",
        "abnormal": True,
    }
    return Finding.model_validate({"id": id, "name": name, **fields, **more})


def reading(*findings: Finding, **more: object) -> Reading:
    return Reading.model_validate({"subject": "017", "series": (), "findings": findings, **more})


class Seen(HTMLParser):
    """What a browser would make of markup: its elements, their attributes, and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def is_inert(self) -> bool:
        """No element but ours, and no attribute that a browser would run."""
        strange = self.tags & {"script", "svg", "iframe", "body", "math", "mi", "template", "style", "textarea"}
        runs = [name for name, value in self.attributes if name.startswith("on") or name == "srcdoc"]
        links = [value for name, value in self.attributes if name in ("href", "src") and value]
        return not strange and not runs and all(one.startswith("data:image/png;base64,") for one in links)


@pytest.mark.parametrize("evil", XSS)
def test_text_from_outside_is_inert_everywhere(evil: str):
    found = finding(name=evil, note=evil, measurements=[Measurement(name=evil, value=1.0, unit=evil, method=evil)])
    sentence = CaseSentence(section="Findings", text=evil, finding_ids=(found.id,))
    place = {found.id: {"at_mm": [1.0, 2.0, 3.0], "mask": evil}}
    line = CaseLine("a" * 32, evil, "draft", evil, 0.5, datetime.now(UTC), datetime.now(UTC))
    series = Series(np.zeros((2, 2, 2), np.float32), np.eye(4), "T1w", name=evil, contrast_from=evil)
    pages = [
        panels.report_panel([sentence], [found], place, {}, locked=False),
        panels.findings_panel(reading(found), place, place, {}, {}, locked=False),
        panels.series_panel(read_study(Study(evil, (series,), notes=(evil,)), []).reading),
        panels.worklist_panel([line], None),
        panels.progress_panel(0.5, evil),
        panels.fallback_panel(evil),
        panels.outlook_panel(reading(finding(name=evil, origin="outlook", note=evil)), None),
    ]
    for page in pages:
        seen = Seen(page)
        assert seen.is_inert, page
        assert evil in seen.text, page


def test_a_sentence_leads_to_the_finding_that_it_words():
    found = [finding(), finding("m.plaque.left", side="left")]
    said = [
        CaseSentence(section="Technique", text="One series."),
        CaseSentence(section="Findings", text="A plaque.", finding_ids=("m.plaque.left",), edited=True),
    ]
    places = {"m.plaque.left": {"at_mm": [-30.0, 1.0, 2.0], "mask": "masks/m.nii.gz"}}
    html = panels.report_panel(said, found, places, {"m.plaque.left": "rejected"}, locked=False)
    (go,) = re.findall(r'data-go="([^"]*)"', html)
    assert json.loads(unescape(go)) == places["m.plaque.left"]
    assert "Finding 2" in html and "edited" in html and "its finding was rejected" in html
    assert html.count("data-edit") == 2 and 'data-index="1"' in html
    assert "data-edit" not in panels.report_panel(said, found, places, {}, locked=True)


def test_findings_say_how_sure_and_take_a_decision():
    risk = [
        Measurement(name=name, value=value, unit="1", method="m")
        for name, value in (("load", 0.31), ("load, lowest", 0.2), ("load, highest", 0.4))
    ]
    pieces = [Piece(number=n, volume_ml=1 / n, centroid_mm=(0.0, 0.0, 0.0), slice_index=(0, 0, 0)) for n in (1, 2)]
    found = finding(probability=0.87, measurements=risk, pieces=pieces)
    going = [{"at_mm": [1.0, 0.0, 0.0]}, {"at_mm": [2.0, 0.0, 0.0]}]
    html = panels.findings_panel(reading(found), {}, {}, {found.id: going}, {found.id: "accepted"}, locked=False)
    assert "0.87" in html and "load 0.31 (0.20 to 0.40)" in html and "not calibrated" in html
    assert len(re.findall("data-go", html)) == 2
    asked = [json.loads(unescape(one)) for one in re.findall(r'data-detail="([^"]*)"', html)]
    assert [one["decision"] for one in asked] == ["open", "rejected"]  # pressed again, it is taken back
    assert html.count('aria-pressed="true"') == 1
    assert panels.findings_panel(reading(found), {}, {}, {}, {}, locked=True).count("disabled") == 2
    assert "no model was asked" in panels.findings_panel(reading(), {}, {}, {}, {}, locked=False)


def outlook(*risks: tuple[float, float]) -> Finding:
    measured = [
        Measurement(name=f"risk within {days:g} days{end}", value=value + shift, unit="1", method="hazards")
        for days, value in risks
        for end, shift in (("", 0), (", lowest", -0.05), (", highest", 0.05))
    ]
    return finding("m.death", "death", origin="outlook", presence="uncertain", measurements=measured)


def test_an_outlook_is_drawn_and_says_what_the_record_adds():
    with_record, without = outlook((365, 0.2), (730, 0.4)), outlook((365, 0.3), (730, 0.5))
    html = panels.outlook_panel(reading(with_record), reading(without))
    assert "1 year" in html and "2 years" in html and "20%" in html and "15% to 25%" in html and "30%" in html
    assert 'src="data:image/png;base64,' in html
    alone = panels.outlook_panel(reading(with_record), None)
    assert "from the images alone" not in alone
    assert panels.risks_of(with_record)[0] == (365.0, 0.2, pytest.approx(0.15), pytest.approx(0.25))


def test_change_is_counted_and_leads_to_the_lesion():
    lesion = LesionChange(
        name="plaque", source="m", fate="new", prior_ml=0.0, current_ml=0.5, centroid_mm=(1.0, 2.0, 3.0)
    )
    volume = VolumeChange(name="ventricle", side="right", source="m", prior_ml=10.0, current_ml=12.0)
    change = Change(subject="017", prior_session="", current_session="", volumes=(volume,), lesions=(lesion, lesion),
                    not_compared=("x",))  # fmt: skip
    html = panels.change_panel(change, b"then", b"now")
    assert "2 new." in html and "+20.0 %" in html
    assert json.loads(unescape(re.findall(r'data-go="([^"]*)"', html)[0]))["at_mm"] == [1.0, 2.0, 3.0]


def test_the_worklist_says_what_is_urgent():
    assert [panels.urgency_of(share) for share in (1.0, 0.5, 0.3, 0.2, 0.05, 0.0)] == [
        "urgent", "urgent", "actionable", "minor", "none", "none",
    ]  # fmt: skip
    line = CaseLine("f" * 32, "017", "final", "tumour", 1.0, datetime.now(UTC), datetime.now(UTC))
    html = panels.worklist_panel([line], "f" * 32)
    assert 'aria-current="true"' in html and "tumour" in html and 'class="dot urgent"' in html


@pytest.fixture
def case(tmp_path: Path) -> tuple[CaseStore, Case]:
    store = CaseStore(tmp_path)
    series = Series(np.random.default_rng(0).random((6, 6, 6)).astype(np.float32), np.eye(4), "T1w", name="t1")
    return store, store.add("anna", read_study(Study("017", (series,)), []))


def test_series_say_how_long_they_took_to_read():
    html = panels.series_panel(reading(), {"reading the files": 2.0, "model plaques": 70.5})
    assert "1 min 12 s" in html and "reading the files" in html and "1 min 10 s" in html
    assert "took" not in panels.series_panel(reading())


def test_a_comparison_says_what_was_redrawn_since():
    change = Change(subject="017", prior_session="", current_session="", volumes=(), lesions=(), not_compared=())
    assert "drawn since in lesions" in panels.change_panel(change, b"then", b"now", redrawn=["lesions"])
    assert "drawn since" not in panels.change_panel(change, b"then", b"now")


def test_outputs_are_links_to_the_server(case: tuple[CaseStore, Case]):
    store, made = case
    folder = store.outputs("anna", made.id)
    html = panels.outputs_panel(made, folder, "cases")
    for address in re.findall(r'href="([^"]*)"', html):
        prefix, path = address.split("/files/")
        assert prefix == f"cases/{made.id}"
        assert store.file("anna", made.id, path).stat().st_size
    for name in ("outputs.zip", "report.pdf", "report.html", "reading.json", "report-R5.json", "measurements.csv"):
        assert f'download="{name}"' in html
    assert html.index("outputs.zip") < html.index("report.pdf")


def test_the_head_says_who_signed(case: tuple[CaseStore, Case]):
    store, made = case
    assert "nobody has signed" in panels.case_head(made)
    signed = store.sign("anna", made.id, "final")
    assert "signed by anna" in panels.case_head(signed) and 'class="pill final"' in panels.case_head(signed)
    assert "reopened: a typo" in panels.case_head(store.amend("anna", made.id, "a typo"))
