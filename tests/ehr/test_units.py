"""The analytes' table against chemistry and itself, and units as people write them; nothing is guessed."""

from __future__ import annotations

import math

import pytest

from ehr.analytes import BY_LOINC, BY_NAME, TABLE, Analyte
from ehr.codes import codes_of, parents_of, system_of
from ehr.units import SPELLINGS, State, _plain, measure, ucum_of

# Molar masses in g/mol, from atomic weights: C 12.011, H 1.008, N 14.007, O 15.999, Ca 40.078, Mg 24.305, P 30.974.
GRAMS_PER_MOLE = {
    "glucose": 6 * 12.011 + 12 * 1.008 + 6 * 15.999,
    "CSF glucose": 6 * 12.011 + 12 * 1.008 + 6 * 15.999,
    "creatinine": 4 * 12.011 + 7 * 1.008 + 3 * 14.007 + 15.999,
    "calcium": 40.078,
    "magnesium": 24.305,
    "phosphate": 30.974,  # reported as phosphorus
    "urea nitrogen": 2 * 14.007,
    "bilirubin, total": 33 * 12.011 + 36 * 1.008 + 4 * 14.007 + 6 * 15.999,
    "bilirubin, direct": 33 * 12.011 + 36 * 1.008 + 4 * 14.007 + 6 * 15.999,
    "cholesterol": 27 * 12.011 + 46 * 1.008 + 15.999,
    "HDL cholesterol": 27 * 12.011 + 46 * 1.008 + 15.999,
    "LDL cholesterol": 27 * 12.011 + 46 * 1.008 + 15.999,
    "triglycerides": 885.4,  # triolein, by convention
    "thyroxine, free": 776.87,
    "folate": 19 * 12.011 + 19 * 1.008 + 7 * 14.007 + 6 * 15.999,
    "vitamin B12": 1355.37,
    "haemoglobin": 16_114.0,  # of one chain, as laboratories count it
}
MOLES = {"mmol/L": 1e-3, "umol/L": 1e-6, "nmol/L": 1e-9, "pmol/L": 1e-12}
GRAMS = {"mg/dL": 1e-2, "g/dL": 10.0, "ng/dL": 1e-8, "ng/mL": 1e-6, "pg/mL": 1e-9}


def luhn(number: str) -> int:
    digits = [int(one) for one in reversed(number)]
    doubled = [sum(divmod(2 * one, 10)) if place % 2 == 0 else one for place, one in enumerate(digits)]
    return -sum(doubled) % 10


def test_every_loinc_code_has_its_check_digit_and_one_row():
    codes = [code for analyte in TABLE for code in analyte.loinc]
    assert len(codes) == len(set(codes)) == len(BY_LOINC) > 100
    assert len(BY_NAME) == len(TABLE) > 60
    assert [code for code in codes if luhn(code.split("-")[0]) != int(code.split("-")[1])] == []


@pytest.mark.parametrize("analyte", TABLE, ids=lambda analyte: analyte.name)
def test_a_row_is_in_order(analyte: Analyte):
    low, high = analyte.plausible
    assert low <= analyte.usual[0] < analyte.usual[1] <= high
    assert analyte.units[analyte.unit] == (1.0, 0.0)
    assert set(analyte.units) <= set(SPELLINGS)


@pytest.mark.parametrize("name", GRAMS_PER_MOLE)
def test_factors_between_amount_and_mass_are_molar_masses(name: str):
    analyte = BY_NAME[name]
    factors = {unit: factor for unit, (factor, _) in analyte.units.items() if unit in MOLES}
    assert factors
    for unit, factor in factors.items():
        assert factor == pytest.approx(MOLES[unit] * GRAMS_PER_MOLE[name] / GRAMS[analyte.unit], rel=2e-3)


def test_a_spelling_means_one_unit():
    meanings: dict[str, set[str]] = {}
    for ucum, others in SPELLINGS.items():
        for spelling in (ucum, *others):
            meanings.setdefault(_plain(spelling), set()).add(ucum)
    assert {spelling: units for spelling, units in meanings.items() if len(units) > 1} == {}


@pytest.mark.parametrize(
    ("loinc", "value", "unit", "expected"),
    [
        ("2345-7", 5.0, "mmol/L", 90.08),
        ("2345-7", 90.0, "MG/DL", 90.0),
        ("6690-2", 7.0, "K/uL", 7.0),
        ("6690-2", 7.0, "x10^3/uL", 7.0),
        ("6690-2", 7.0, "10^3/µL", 7.0),
        ("6690-2", 7000.0, "/uL", 7.0),
        ("8480-6", 120.0, "mmHg", 120.0),
        ("8480-6", 16.0, "kPa", 120.01),
        ("29463-7", 150.0, "lbs", 68.04),
        ("1742-6", 30.0, "IU/L", 30.0),
        ("8310-5", 98.6, "[degF]", 37.0),
        ("8310-5", 37.0, "°C", 37.0),
        ("4548-4", 53.0, "mmol/mol", 7.0),
        ("2744-1", 7.4, "[pH]", 7.4),
        ("33914-3", 80.0, "mL/min/{1.73_m2}", 80.0),
        ("72106-8", 28.0, "(score)", 28.0),
        ("2284-8", 12.0, "mcg/L", 12.0),
    ],
)
def test_a_unit_as_people_write_it(loinc: str, value: float, unit: str, expected: float):
    measured = measure(loinc, value, (unit,))
    assert measured.state is State.USABLE
    assert measured.value == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("loinc", "value", "units", "state"),
    [
        ("2345-7", 90.0, (), State.NO_UNIT),
        ("2345-7", 90.0, ("",), State.NO_UNIT),
        ("2345-7", 90.0, ("K/uL",), State.UNKNOWN_UNIT),  # a unit of other analytes
        ("2345-7", 90.0, ("K",), State.UNKNOWN_UNIT),
        ("2345-7", 90.0, ("bananas",), State.UNKNOWN_UNIT),
        ("2345-7", 90.0, ("x" * 1000,), State.UNKNOWN_UNIT),
        ("2345-7", 90.0, ("mg/dL", "mmol/L"), State.CONTRADICTORY_UNITS),
        ("2345-7", 5.0, ("mg/dL",), State.IMPLAUSIBLE),  # mmol/L under the wrong name: seen, and not mended
        ("2160-0", 88.0, ("mg/dL",), State.IMPLAUSIBLE),
        ("2345-7", math.inf, ("mg/dL",), State.NOT_A_NUMBER),
        ("2345-7", math.nan, ("mg/dL",), State.NOT_A_NUMBER),
        ("99999-9", 1.0, ("mg/dL",), State.NO_ANALYTE),
        ("", 1.0, (), State.NO_ANALYTE),
    ],
)
def test_what_is_not_certain_is_not_used(loinc: str, value: float, units: tuple[str, ...], state: State):
    measured = measure(loinc, value, units)
    assert (measured.state, measured.value) == (state, None)


def test_one_of_two_names_that_is_known_is_enough():
    assert measure("2345-7", 90.0, ("mg/dL", "milligrams per decilitre")).state is State.USABLE
    assert measure("6301-6", 1.1, ()).state is State.USABLE  # a ratio has no unit to miss


@pytest.mark.parametrize("unit", ["K", "k", "kelvin", "M/L"])
def test_kelvin_is_nothing_that_is_measured_in_people(unit: str):
    assert ucum_of(unit) is None


# ------------------------------------------------------------------------------------------------ codes


def test_a_system_has_one_name_however_it_is_written():
    names = ["http://loinc.org", "https://loinc.org/", " http://LOINC.org", "urn:oid:2.16.840.1.113883.6.1"]
    assert {system_of(name) for name in names} == {"LOINC"}
    assert system_of("http://acme.example/codes/") == "acme.example/codes"
    assert system_of(None) == system_of("") == system_of(["http://loinc.org"]) == "?"


def test_codings_in_order_each_once():
    loinc = {"system": "http://loinc.org", "code": " 2345-7 "}
    local = {"system": "http://acme.example", "code": "GLU"}
    assert codes_of({"coding": [local, loinc, loinc, {"display": "no code"}, None]}) == (
        "acme.example|GLU",
        "LOINC|2345-7",
    )
    assert codes_of(loinc) == ("LOINC|2345-7",)
    assert codes_of({"text": "glucose"}) == codes_of(None) == codes_of("x") == codes_of({"coding": "x"}) == ()


def test_parents():
    assert parents_of("ICD10CM|I63.9") == ("ICD10|I63",)
    assert parents_of("ICD10|I63") == ()
    assert parents_of("family:ICD10GM|i63.9") == ("family:ICD10|I63",)
    assert parents_of("ATC|B01AA03") == ("ATC|B01AA", "ATC|B01A", "ATC|B01", "ATC|B")
    assert parents_of("ATC|B") == parents_of("LOINC|2345-7") == parents_of("urn:oid:1.2|I63.9") == ()
