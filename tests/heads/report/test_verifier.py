"""The verifier reads what readers write, finds every planted error, and does not object to what is right."""

from __future__ import annotations

from collections import Counter

import pytest
from numpy.random import default_rng

from foundation.findings import Finding, Measurement, Reading, SeriesSummary
from heads.report.perturb import KINDS, perturb
from heads.report.phrasing import cohort_report
from heads.report.plan import Statement
from heads.report.slots import fill
from heads.report.templates import draft
from heads.report.verifier import parse, sentences_of, verify, verify_sentence
from heads.report.writing import write_report
from tests.heads.report.making import Reader, imagined, style_of


@pytest.fixture
def tiny_reading() -> Reading:
    series = SeriesSummary(
        name="t1", contrast="T1w", shape=(1, 1, 1), spacing_mm=(1, 1, 1), orientation="RAS", side_is_known=True, acquisition={}
    )  # fmt: skip
    return Reading(subject="s", series=(series,))


def one(text: str):
    [mention] = parse(text).mentions
    return mention


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No acute infarct is seen.", "absent"),
        ("There is no evidence of acute infarction.", "absent"),
        ("An infarct is not identified.", "absent"),
        ("Possible acute infarct in the left frontal lobe.", "possible"),
        ("Acute infarct cannot be excluded.", "possible"),
        ("Findings are most consistent with acute infarct.", "likely"),
        ("Acute infarct is unlikely.", "unlikely"),
        ("Acute infarct could not be assessed.", "not_assessed"),
        ("No assessment of acute infarct was possible.", "not_assessed"),
        ("Acute infarct, not present on 2019-03-12.", "stated"),
        ("Acute infarct with no significant interval change.", "stated"),
    ],
)
def test_certainty(text: str, expected: str):
    assert one(text).hedge == expected


def test_a_negation_ends_where_something_else_begins():
    hedges = {m.finding: m.hedge for m in parse("No haemorrhage, oedema or mass, but an acute infarct.").mentions}
    assert hedges == {"haemorrhage": "absent", "oedema": "absent", "tumour": "absent", "acute infarct": "stated"}
    after = {m.finding: m.hedge for m in parse("No oedema.").mentions}
    assert after == {"oedema": "absent"}


def test_side_place_size_and_time():
    mention = one(
        "A 3.2 x 2.1 cm mass in the left fronto-parietal region, larger than on the prior study, bright on FLAIR."
    )
    assert mention.side == "left" and mention.numbers == (("3.2", "cm"), ("2.1", "cm"))
    assert {"frontal lobe", "parietal lobe"} >= mention.places and "parietal lobe" in mention.places
    assert mention.change == "grown" and mention.signals == (("FLAIR", "hyperintense"),)
    assert one("Two bilateral white matter lesions").count == 2
    assert one("Midline shift to the right of 5 mm").side == "right"
    assert parse("History of stroke.").mentions[0].is_record
    assert parse("“No stroke, left mass 3 cm”").mentions == ()  # somebody else's words


def test_a_pair_in_one_sentence_is_two_mentions():
    sides = [
        (m.side, m.numbers) for m in parse("The right hippocampus measures 3.42 ml and the left 3.10 ml.").mentions
    ]
    assert sides == [("right", (("3.42", "ml"),)), ("left", (("3.10", "ml"),))]


@pytest.mark.parametrize("larger", ["right", "left"])
def test_the_larger_of_two_sides_is_not_the_side_that_is_meant(larger: str):
    right, left = parse(f"Hippocampus: right 3.42 ml; left 3.10 ml; asymmetry 9.80 % ({larger} larger).").mentions
    assert (right.side, left.side) == ("right", "left")


def test_sentences_end_at_full_stops_and_not_in_numbers():
    assert sentences_of("A mass of 3.2 cm. No oedema.\n- Atrophy vs. age.") == [
        "A mass of 3.2 cm.",
        "No oedema.",
        "Atrophy vs. age.",
    ]


def mass(**changes) -> Finding:
    values = {
        "id": "a", "name": "tumour", "anatomy": "frontal lobe", "side": "left", "presence": "present", "severity": None,
        "measurements": (Measurement(name="diameter", value=31.96, unit="mm", method="test"),), "source": "test", "abnormal": True,
    }  # fmt: skip
    return Finding(**(values | changes))


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("There is a mass in the left frontal lobe, measuring 32.0 mm.", set()),
        ("There is a 3.2 cm mass in the left frontal lobe.", set()),  # rounded as printed
        ("There is a mass in the right frontal lobe.", {"side", "omission"}),
        ("There is a mass in the frontal lobe.", {"side", "omission"}),
        ("There is a mass in the left parietal lobe.", {"anatomy", "omission"}),
        ("There is a mass in the left frontal lobe, measuring 32.1 mm.", {"number", "omission"}),
        ("There is a mass in the left frontal lobe, measuring 32.0 ml.", {"number", "omission"}),
        ("There is a severe mass in the left frontal lobe.", {"severity", "omission"}),
        ("There is a possible mass in the left frontal lobe.", {"hedge", "omission"}),
        ("There is no mass in the left frontal lobe.", {"negation", "omission"}),
        ("There is a stable mass in the left frontal lobe.", {"prior", "omission"}),
        ("There is a haematoma in the left frontal lobe.", {"unsupported", "omission"}),
        ("There is a mass in the left frontal lobe and oedema.", {"unsupported"}),
        ("All is well.", {"omission"}),
        ("There is a mass in the left frontal lobe with a history of stroke.", {"record"}),
    ],
)
def test_each_kind_of_error_is_named(text: str, kinds: set[str]):
    assert {problem.kind for problem in verify_sentence(text, [mass()], has_prior=False)} == kinds


def test_what_synthetic_readers_and_templates_write_is_right():
    for seed in range(24):
        reading, style = imagined(seed), style_of(seed)
        assert verify(cohort_report(reading, style, default_rng(seed)).text(), reading, style) == []
        assert verify(draft(reading).text(), reading) == [], draft(reading).text()


def test_planted_errors_are_found():
    """The measured rates are in docs/report.md; here enough of each kind that a hole would show."""
    planted: Counter[str] = Counter()
    for seed in range(40):
        reading, style, rng = imagined(1000 + seed), style_of(seed), default_rng(seed)
        right = cohort_report(reading, style, rng)
        for kind in KINDS:
            wrong = perturb(kind, right, rng)
            if wrong is not None:
                planted[kind] += 1
                assert wrong.text() != right.text()
                assert verify(wrong.text(), reading, style), (kind, set(wrong.sentences) ^ set(right.sentences))
    assert set(planted) == set(KINDS) and min(planted.values()) >= 20


def test_a_quoted_request_is_nobodys_history():
    """Its words neither say of the record what is not in it, nor stand for what is."""
    reading = imagined(3, prior=False)
    alone = tuple(one for one in reading.findings if one.origin == "image")
    quoting = reading.model_copy(update={"indication": "History of seizure and hypertension", "findings": alone})
    assert verify(draft(quoting).text(), quoting) == []
    (known,) = [one for one in imagined(11).findings if one.origin == "record"][:1]
    silent = quoting.model_copy(update={"indication": known.name, "findings": (*alone, known)})
    text = draft(quoting.model_copy(update={"indication": known.name})).text()
    assert [problem.kind for problem in verify(text, silent)] == ["omission"]


def test_a_finding_whose_side_nobody_knows_is_there_all_the_same():
    note = "the file does not say which side is right"
    found = Finding(
        id="m.tumour.not-assessed", name="tumour", anatomy="brain", side="not_assessed", presence="present", abnormal=True,
        measurements=(Measurement(name="volume", value=2.0, unit="ml", method="test"),), source="m", note=note,
    )  # fmt: skip
    reading = imagined(3, prior=False).model_copy(update={"findings": (found,)})
    text = draft(reading).text()
    assert "side not assessed" in text and verify(text, reading) == []
    missing = found.model_copy(update={"presence": "not_assessed", "measurements": ()})
    assert verify(text, reading.model_copy(update={"findings": (missing,)})) != []


def test_structures_in_a_list_of_what_was_not_assessed_are_findings_and_no_places():
    parsed = parse("Lateral ventricle, lesion, thalamus and brainstem were not assessed (no T1w series).")
    assert [one.finding for one in parsed.mentions] == ["lateral ventricle", "lesion", "thalamus", "brainstem"]
    assert {one.hedge for one in parsed.mentions} == {"not_assessed"}
    (seen,) = parse("There is a lesion in the right thalamus.").mentions
    assert seen.finding == "lesion" and seen.places == {"deep grey matter"}


def test_several_of_a_kind_that_nobody_knows_are_named_in_the_plural():
    method = "counted"
    many = Finding(
        id="m.spot.right", name="odd spot", anatomy="brain", side="right", presence="present", abnormal=True, probability=0.99,
        measurements=(Measurement(name="number", value=3, unit="1", method=method),), source="m",
    )  # fmt: skip
    statement = Statement("Findings", "present", (many,))
    text = fill("there are <c1.number> <c1.name> on the <c1.side> .", statement)
    assert text == "There are 3 odd spots on the right."
    assert verify_sentence(text, [many], has_prior=False) == []
    one = many.model_copy(update={"measurements": ()})
    assert fill("<c1.name> on the <c1.side> .", Statement("Findings", "present", (one,))) == "Odd spot on the right."


@pytest.mark.parametrize("there", ["right", "left"])
def test_a_side_that_was_not_found_says_nothing_of_the_other(there: str):
    text = "Lesion: right 3.20 ml; left not found." if there == "right" else "Lesion: right not found; left 3.20 ml."
    assert {one.side: one.hedge for one in parse(text).mentions} == {
        "right": "stated" if there == "right" else "absent", "left": "stated" if there == "left" else "absent"
    }  # fmt: skip


def absent(side: str, name: str = "oedema", presence: str = "absent") -> Finding:
    return Finding(
        id=f"m.{name}.{side}".replace("_", "-"),
        name=name,
        anatomy="brain",
        side=side,
        presence=presence,
        abnormal=True,
        source="m",
    )  # pyright: ignore[reportArgumentType]


def test_what_is_on_no_side_is_denied_once_and_for_both(tiny_reading: Reading):
    pair = (absent("right"), absent("left"), absent("right", "plaque"), absent("left", "plaque"))
    reading = tiny_reading.model_copy(update={"findings": pair})
    said = [one for one in write_report(reading, [Reader()]).sentences if one.section == "Findings"]
    assert len(said) == 1 and set(said[0].finding_ids) == {one.id for one in pair}
    assert verify("FINDINGS\nNo oedema or plaque is seen.", reading) == []
    # On one side it is there: a denial of no side is then none of the other.
    mixed = tiny_reading.model_copy(update={"findings": (absent("right"), absent("left", presence="present"))})
    assert {one.kind for one in verify("FINDINGS\nNo oedema is seen.", mixed)} >= {"side", "omission"}
    ids = [one.finding_ids for one in write_report(mixed, [Reader()]).sentences if one.section == "Findings"]
    assert sorted(ids) == [("m.oedema.left",), ("m.oedema.right",)]


def test_a_finding_is_denied_once_in_a_sentence():
    findings = [absent("not_applicable", "tumour"), absent("not_applicable", "oedema")]
    assert verify_sentence("No mass or oedema is seen.", findings, has_prior=False) == []
    [problem] = verify_sentence("No mass, intra-axial mass or oedema is seen.", findings, has_prior=False)
    assert (problem.kind, problem.text) == ("unsupported", "tumour, denied twice")


def test_what_is_too_small_to_count_is_no_number_of_a_finding(tiny_reading: Reading):
    volume = Measurement(name="volume", value=0.056, unit="ml", method="counted")
    small = absent("right").model_copy(update={"measurements": (volume,), "note": "less than 0.3 ml counts as absent"})
    there = absent("left", presence="present").model_copy(
        update={"measurements": (volume.model_copy(update={"value": 2.0}),)}
    )
    for pair in ((small, absent("left")), (small, there)):
        reading = tiny_reading.model_copy(update={"findings": pair})
        assert verify(draft(reading).text(), reading) == []
        assert verify(write_report(reading, [Reader()]).text(), reading) == []
