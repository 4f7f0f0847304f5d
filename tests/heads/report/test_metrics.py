"""The three figures by hand, and what a report that looked at nobody is worth."""

from __future__ import annotations

import math

import pytest

from foundation.findings import Finding, Measurement, Reading
from heads.report.metrics import (
    Counts,
    correctness,
    distinct_ratio,
    faithfulness,
    normal_share,
    numbers_right,
    only,
    perception,
    rare_survival,
    urgent_omissions,
)


def finding(name: str, side: str = "right", presence: str = "present", volume_ml: float = 2.0) -> Finding:
    volume = Measurement(name="volume", value=volume_ml, unit="ml", method="test")
    return Finding(
        id=f"{name}.{side}".replace(" ", "-").replace("_", "-"), name=name, anatomy="brain", side=side,
        presence=presence, abnormal=True,
        measurements=(volume,) if presence == "present" else (), source="test",
    )  # fmt: skip


def reading(*findings: Finding) -> Reading:
    return Reading(subject="", series=(), findings=findings)


TRUTH = reading(finding("acute infarct"), finding("oedema", "left"), finding("haemorrhage", "not_applicable", "absent"))
TEXT = "FINDINGS\nThere is an acute infarct on the right, volume 2.00 ml. No haemorrhage.\n"


def test_correctness_and_perception_count_by_hand():
    assert correctness(TEXT, TRUTH) == Counts(1, 1, 2, 1)
    assert correctness(TEXT, TRUTH, weighted=True) == Counts(1.0, 1.0, 1.5, 1.0)
    wrong = reading(finding("acute infarct", "left"), finding("oedema", "left"))
    assert perception(wrong, TRUTH) == Counts(2, 1, 2, 1)
    assert Counts(2, 1, 2, 1).f1 == 0.5 and math.isnan(Counts().f1) and Counts(1, 0, 0, 0).f1 == 0


def test_faithfulness_counts_what_is_absent_too():
    assert faithfulness(TEXT, TRUTH) == Counts(2, 2, 3, 2)
    assert faithfulness(TEXT.replace("right", "left"), TRUTH) == Counts(2, 1, 3, 1)
    assert faithfulness(TEXT.replace("2.00", "3.00"), TRUTH).said_right == 1
    assert numbers_right(TEXT, TRUTH) == (1, 1)
    assert numbers_right(TEXT.replace("2.00", "3.00"), TRUTH) == (1, 0)


def test_an_urgent_finding_that_is_not_named_is_counted():
    assert urgent_omissions(TEXT, TRUTH) == (1, 0)
    assert urgent_omissions("FINDINGS\nOedema on the left.\n", TRUTH) == (1, 1)
    assert urgent_omissions("FINDINGS\nNo acute infarct.\n", TRUTH) == (1, 1)


def test_collapse_shows():
    texts = [TEXT, TEXT, "FINDINGS\nNo acute infarct.\n"]
    assert distinct_ratio(texts) == pytest.approx(2 / 3)
    assert normal_share(texts, ["acute infarct"]) == pytest.approx(1 / 3)
    truths = [reading(finding("tumour")), *[reading(finding("oedema", "left"))] * 9]
    said = ["FINDINGS\nA tumour on the right.\n", *["FINDINGS\nOedema on the left.\n"] * 9]
    assert rare_survival(said, truths) == (1, 1)
    assert rare_survival(["FINDINGS\nAll is well.\n"] * 10, truths) == (0, 1)


def test_both_sides_are_one_finding_however_they_were_claimed_and_unknown_names_are_none():
    """A head outlines the right and the left, where a truth may speak of both at once."""
    truth = reading(finding("plaque", "bilateral"))
    heads = reading(finding("plaque", "right"), finding("plaque", "left"), finding("blob", "left"))
    assert perception(heads, truth) == Counts(1, 1, 1, 1)
    assert perception(reading(finding("plaque", "right")), truth) == Counts(1, 0, 1, 0)
    assert correctness("FINDINGS\nA plaque on the right. A plaque on the left.\n", truth) == Counts(1, 1, 1, 1)
    asked = only(reading(finding("plaque", "bilateral"), finding("tumour")), {"plaque", "blob"})
    assert [one.name for one in asked.findings] == ["plaque"]


def test_a_denial_of_no_side_is_faithful_to_both_sides_and_to_no_lesion() -> None:
    nowhere = reading(finding("oedema", "right", "absent"), finding("oedema", "left", "absent"))
    assert faithfulness("FINDINGS\nNo oedema is seen.", nowhere) == Counts(1, 1, 2, 2)
    left = reading(finding("oedema", "right", "absent"), finding("oedema", "left"))
    assert faithfulness("FINDINGS\nNo oedema is seen.", left).said_right == 0
