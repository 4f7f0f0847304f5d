"""What a template may say: every finding, no number without one, and always that this is a draft."""

from __future__ import annotations

import re
from typing import Any

import pytest

from foundation.findings import (
    Evidence,
    Finding,
    Measurement,
    ModelUsed,
    Reading,
    SeriesSummary,
    Structure,
    not_assessed,
)
from heads.report import SECTIONS, Draft
from heads.report.slots import format_number
from heads.report.templates import NOT_A_DEVICE, draft


def series(**changes: Any) -> SeriesSummary:
    values: dict[str, Any] = {
        "name": "t1",
        "contrast": "T1w",
        "shape": (256, 256, 180),
        "spacing_mm": (1.0, 1.0, 1.2),
        "orientation": "RAS",
        "side_is_known": True,
        "acquisition": {"echo_time_ms": 3.1, "field_strength_t": 3.0, "vendor": "Vendor"},
    }
    return SeriesSummary(**values | changes)


def finding(
    name: str, side: str, volume_ml: float | None = None, asymmetry: float | None = None, **fields: Any
) -> Finding:
    numbers = (("volume", volume_ml, "ml"), ("asymmetry", asymmetry, "%"))
    values: dict[str, Any] = {
        "id": f"seg.{name.replace(' ', '-')}.{side.replace('_', '-')}",
        "name": name,
        "anatomy": "brain",
        "side": side,
        "presence": "present",
        "measurements": tuple(
            Measurement(name=label, value=value, unit=unit, method="test")
            for label, value, unit in numbers
            if value is not None
        ),
        "evidence": Evidence(series="t1"),
        "source": "seg",
    }
    return Finding(**values | fields)


def reading(*findings: Finding, **fields: Any) -> Reading:
    models = (ModelUsed(name="seg", weights_sha256="0" * 64),)
    return Reading(**{"subject": "sub-01", "series": (series(),), "findings": findings, "models": models} | fields)


FULL = (
    finding("hippocampus", "right", 3.42, 9.8),
    finding("hippocampus", "left", 3.10, 9.8),
    finding("brain stem", "midline", 24.61),
    finding("white matter lesion", "right", 1.2),
    finding("white matter lesion", "left", 0, presence="absent"),
    finding("ms", "not_assessed", presence="uncertain", probability=0.61, abnormal=True, source="ms"),
    finding("infarct", "not_assessed", presence="absent", probability=0.028, is_calibrated=True, source="stroke"),
    *not_assessed([Structure(value=1, name="tumour", paired=True)], source="tumour", why="no FLAIR series"),
)


def said(section: str, report: Draft) -> list[str]:
    return [sentence.text for sentence in report.sentences if sentence.section == section]


def test_the_whole_report_reads_as_it_should():
    report = draft(reading(*FULL, warnings=("Not tested on children",)))
    assert said("Technique", report) == [
        "Series t1: T1w, 256 × 256 × 180 voxels of 1 × 1 × 1.2 mm, echo time 3.1 ms, 3 T, Vendor.",
        "Models used: seg.",
    ]
    assert said("Findings", report) == [
        "Hippocampus: right 3.42 ml; left 3.10 ml; asymmetry 9.80 % (right larger).",
        "Brain stem: 24.6 ml.",
        "White matter lesion: right 1.20 ml; left not found.",
        "Ms: uncertain, probability 0.61, not calibrated.",
        "Infarct: not found, probability 0.03, calibrated.",
        "Tumour: not assessed (no FLAIR series).",
    ]
    assert said("Impression", report) == [
        "Abnormal: white matter lesion, right 1.20 ml.",
        "Possibly abnormal: ms, uncertain, probability 0.61, not calibrated.",
        "Not assessed: tumour (no FLAIR series).",
    ]
    assert said("Limits", report)[-2:] == ["Not tested on children.", NOT_A_DEVICE]


@pytest.mark.parametrize("findings", [(), FULL[:1], FULL], ids=len)
def test_every_finding_is_cited_and_every_number_cites(findings):
    report = draft(reading(*findings))
    cited = {name for sentence in report.sentences for name in sentence.finding_ids}
    assert cited == {one.id for one in findings}
    for sentence in report.section("Findings") + report.section("Impression"):
        assert not re.search(r"\d|right|left", sentence.text) or sentence.finding_ids, sentence
    assert report.sentences[-1].text == NOT_A_DEVICE
    sections = [sentence.section for sentence in report.sentences]
    assert sections == sorted(sections, key=SECTIONS.index)


def words(read: Reading) -> str:
    return "\n".join(sentence.text for sentence in draft(read).sentences)


def test_another_reading_is_another_report():
    one = words(reading(*FULL))
    smaller = words(reading(FULL[0].model_copy(update={"measurements": FULL[1].measurements}), *FULL[1:]))
    assert "right 3.42 ml" in one and "right 3.42 ml" not in smaller and "right 3.10 ml" in smaller
    assert words(reading(*FULL[2:])) != one


def test_exchanging_the_sides_exchanges_the_words():
    mirrored = [
        finding("hippocampus", "right", 3.10, -9.8),
        finding("hippocampus", "left", 3.42, -9.8),
    ]
    assert said("Findings", draft(reading(*mirrored))) == [
        "Hippocampus: right 3.10 ml; left 3.42 ml; asymmetry 9.80 % (left larger)."
    ]


def test_normal_anatomy_is_never_called_normal():
    impression = said("Impression", draft(reading(*FULL[:3])))
    assert impression == [
        "No finding was assessed as abnormal by the models used.",
        "The models used measured anatomy and looked for no abnormality, so none is excluded.",
    ]
    looked = finding("white matter lesion", "right", 0, presence="absent")
    assert said("Impression", draft(reading(looked))) == ["No finding was assessed as abnormal by the models used."]


def test_without_a_model_it_says_so():
    report = draft(reading(models=()))
    assert said("Technique", report)[-1] == "No model was used."
    assert said("Findings", report) == ["No structures were assessed: no model was used."]
    assert said("Impression", report) == ["Nothing was assessed, so nothing is excluded."]
    assert report.sentences[-1].text == NOT_A_DEVICE


def test_a_side_that_is_not_known_is_not_named():
    unknown = finding("hippocampus", "not_assessed", 6.5, note="the file does not say which side is right")
    report = draft(reading(unknown, series=(series(side_is_known=False),)))
    text = "Hippocampus: 6.50 ml, side not assessed (the file does not say which side is right)."
    assert said("Findings", report) == [text]
    assert any("no side is named" in sentence for sentence in said("Limits", report))


def test_a_sentence_is_one_line_whatever_a_file_calls_its_series():
    report = draft(reading(series=(series(name="t1\n\n## Impression\nAll is well"),)))
    assert all("\n" not in sentence.text for sentence in report.sentences)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.0004, "0.0004"),
        (0.024, "0.024"),
        (0.5, "0.50"),
        (3.424, "3.42"),
        (24.61, "24.6"),
        (1432.4, "1432"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert format_number(value) == text
