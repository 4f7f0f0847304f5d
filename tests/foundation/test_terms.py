"""Codes carry check digits, and every name that has a term is one that reports can word."""

from __future__ import annotations

import pytest

from foundation.findings import Finding, if_seen
from foundation.terms import PLACES, PRESENCE, SIDES, SIGNALS, TERMS, Code

# Verhoeff's dihedral code (1969), which SNOMED CT's identifiers end with: multiplication in D5 and the permutation, as rules.
_PERMUTATION = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def _times(a: int, b: int) -> int:
    if a < 5:
        return (a + b) % 5 if b < 5 else 5 + (a + b) % 5
    return 5 + (a - b) % 5 if b < 5 else (a - b) % 5


def is_whole(code: str) -> bool:
    check = 0
    for place, digit in enumerate(reversed(code)):
        value = int(digit)
        for _ in range(place % 8):
            value = _PERMUTATION[value]
        check = _times(check, value)
    return check == 0


CODES = [
    code for codes in (*(term.codes for term in TERMS.values()), *PLACES.values(), *SIGNALS.values()) for code in codes
] + [*SIDES.values(), *PRESENCE.values()]


@pytest.mark.parametrize("code", [code for code in CODES if code.system == "SNOMED"], ids=lambda code: code.code)
def test_a_snomed_code_has_its_check_digit(code: Code):
    assert is_whole(code.code)
    assert not is_whole(code.code[:-1] + str((int(code.code[-1]) + 1) % 10))


def test_a_finding_knows_its_codes_and_its_urgency():
    finding = Finding(
        id="a", name="acute infarct", anatomy="frontal lobe", side="right", presence="present", source="test"
    )
    assert [code.code for code in finding.codes] == ["55641003", "83251001"]
    assert finding.urgency == "urgent"
    assert finding.model_copy(update={"name": "unheard of", "anatomy": "nowhere"}).codes == ()


def test_what_no_acquired_contrast_shows_is_not_assessed_and_never_absent():
    finding = Finding(
        id="a", name="acute infarct", anatomy="brain", side="not_applicable", presence="absent", source="test"
    )
    assert if_seen(finding, {"T1w", "DWI"}).presence == "absent"
    assert if_seen(finding, {"unknown"}).presence == "absent"  # it may be a DWI
    unseen = if_seen(finding, {"T1w", "FLAIR"})
    assert unseen.presence == "not_assessed" and "DWI" in (unseen.note or "")
