"""Whoever writes: what reaches the page is what the findings say. Metamorphic tests, and the levels' fall."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from numpy.random import default_rng

from foundation.findings import Finding, Reading
from heads.report.decoder import Decoder
from heads.report.phrasing import cohort_report
from heads.report.plan import Style
from heads.report.templates import draft
from heads.report.verifier import verify
from heads.report.writing import Writer, load_writers, stream_report, write_report
from tests.heads.report.making import Reader, imagined

WRITERS: list[Sequence[Writer]] = [(), (Reader(),)]


def text_of(reading: Reading, writers: Sequence[Writer]) -> str:
    return write_report(reading, writers).text()


@pytest.mark.parametrize("writers", WRITERS, ids=["templates", "reader"])
def test_a_report_says_all_that_was_found_and_nothing_else(writers):
    for seed in range(8):
        reading = imagined(seed)
        report = write_report(reading, writers)
        assert verify(report.text(), reading) == []
        assert {id for one in report.sentences for id in one.finding_ids} == {one.id for one in reading.findings}


def test_a_sentence_that_fails_is_written_once_more_then_replaced_with_the_reason():
    reading = imagined(4)
    once = write_report(reading, [Reader("once")])
    assert {one.writer for one in once.sentences if one.section == "Findings"} == {"reader"}
    assert verify(once.text(), reading) == []
    never = Reader("always")
    report = write_report(reading, [never])
    worded = [one for one in report.sentences if one.section == "Findings"]
    assert {one.writer for one in worded} == {"templates"}
    assert all(one.note and "abscess" in one.note for one in worded) and report.remarks
    assert verify(report.text(), reading) == []


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda text: f"{text.rstrip('. ')} on the the .", "no end"),
        (lambda text: text.replace(" ", " the the ", 1), "'the' twice in a row"),
    ],
)
def test_a_sentence_that_lost_its_thread_is_turned_down(spoil: Callable[[str], str], why: str):
    """Its content may be right."""

    class Lost(Reader):
        def write(self, *arguments: Any, **options: Any) -> Iterator[tuple[int, str]]:
            return ((place, spoil(text)) for place, text in super().write(*arguments, **options))

    report = write_report(imagined(4), [Lost()])
    worded = [one for one in report.sentences if one.section == "Findings"]
    assert {one.writer for one in worded} == {"templates"} and all(why in (one.note or "").lower() for one in worded)


def test_levels_fall_one_by_one():
    report = write_report(imagined(4), [Reader("always"), Reader()])
    worded = [one for one in report.sentences if one.section == "Findings"]
    assert {one.writer for one in worded} == {"reader"} and all("turned down" in (one.note or "") for one in worded)


def test_an_untrained_decoder_ends_in_templates_and_in_a_true_report(tiny_decoder: Decoder):
    reading = imagined(2)
    report = write_report(reading, [tiny_decoder])
    assert verify(report.text(), reading) == []
    assert any(one.writer == "templates" and one.note for one in report.sentences)


def test_a_folder_that_cannot_write_is_a_reason_and_not_an_error(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    writers, reasons = load_writers([tmp_path / "empty", tmp_path / "broken"])
    assert writers == [] and len(reasons) == 2
    assert write_report(imagined(0), writers, reasons=reasons).remarks == tuple(reasons)


def test_a_stream_is_the_report_in_order():
    reading = imagined(6)
    streamed = stream_report(reading, [Reader()])
    first = next(streamed)
    assert first.section in ("Indication", "Technique")
    assert (first, *streamed) == write_report(reading, [Reader()]).sentences


# ------------------------------------------------------------------------------------------------ metamorphic


def changed(reading: Reading, change) -> Reading:
    return reading.model_copy(update={"findings": tuple(change(one) for one in reading.findings)})


def mirrored(one: Finding) -> Finding:
    other = {"right": "left", "left": "right"}
    if one.side not in other:
        return one
    return one.model_copy(update={"side": other[one.side]})


@pytest.mark.parametrize("writers", WRITERS, ids=["templates", "reader"])
def test_a_mirrored_patient_is_the_same_report_with_sides_exchanged(writers):
    for seed in (1, 8, 12, 20):
        reading = imagined(seed)
        swapped = text_of(reading, writers).replace("right", "\0").replace("left", "right").replace("\0", "left")
        swapped = swapped.replace("Right", "\0").replace("Left", "Right").replace("\0", "Left")
        assert text_of(changed(reading, mirrored), writers) == swapped


@pytest.mark.parametrize("writers", WRITERS, ids=["templates", "reader"])
def test_larger_voxels_are_larger_numbers(writers):
    def doubled(one: Finding) -> Finding:
        made = [m.model_copy(update={"value": 8 * m.value}) if m.unit == "ml" else m for m in one.measurements]
        return one.model_copy(update={"measurements": tuple(made)})

    reading = imagined(14)
    larger = changed(reading, doubled)
    one, other = text_of(reading, writers), text_of(larger, writers)
    assert one != other and verify(other, larger) == []
    assert any(problem.kind == "number" for problem in verify(one, larger))


@pytest.mark.parametrize("writers", WRITERS, ids=["templates", "reader"])
def test_without_a_record_there_is_no_history_and_without_a_prior_no_comparison(writers):
    reading = imagined(11, prior=True)
    assert "COMPARISON" in text_of(reading, writers)
    bare = reading.model_copy(
        update={
            "prior": None,
            "findings": tuple(
                one.model_copy(update={"change": None}) for one in reading.findings if one.origin == "image"
            ),
        }
    )
    text = text_of(bare, writers)
    assert "COMPARISON" not in text and "istory" not in text
    assert not any(word in text for word in ("since", "unchanged", "larger", "smaller", "stable", "prior"))


def test_style_can_be_asked_for():
    reading = imagined(16)
    terse, verbose = (cohort_report(reading, Style(terse=terse), default_rng(0)).text() for terse in (True, False))
    assert len(terse) < len(verbose)
    silent = cohort_report(reading, Style(normals=False), default_rng(0))
    assert not any("hippocamp" in one.text.lower() for one in silent.sentences)
    assert draft(reading).text(listed=True).count("\n- ") > 5
