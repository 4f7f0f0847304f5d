"""A measured value in the one unit that Larmor counts in, or the reason why it cannot be used. Nothing is ever guessed.

    measure("2345-7", 5.2, ("mmol/L",))    Measurement("glucose", 93.7 mg/dL, state USABLE)
    measure("2345-7", 5.2, ())             state NO_UNIT: present, and of no use

Units are compared as people spell them (`SPELLINGS`), and only with those that the analyte's row in `ehr/analytes.py` lists. So
"K/uL" is thousands of cells per microlitre where cells are counted, and nothing elsewhere; it is never kelvin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from ehr.analytes import BY_LOINC, BY_NAME, Analyte

# UCUM unit: other ways to write it. Compared without case and blanks, micro written u, and a leading x (times) dropped.
SPELLINGS = {
    "1": ("", "{ratio}", "ratio"),
    "%": ("percent", "pct", "%{hb}", "%{total}"),
    "{score}": ("score", "(score)", "{points}", "points", "{count}", "{}"),
    "{INR}": ("inr", "(inr)"),
    "[pH]": ("ph", "phunits"),
    "mg/dL": ("mg%", "mg/100ml"),
    "g/dL": ("g%", "g/100ml", "gm/dl", "gr/dl"),
    "g/L": ("mg/ml", "gm/l"),
    "mg/L": (),
    "ug/dL": (),
    "ug/L": (),
    "ug/mL": ("ug/ml{feu}", "ug/mlfeu"),
    "ng/mL": ("ng/ml{feu}", "ng/mlfeu"),
    "ng/dL": (),
    "ng/L": (),
    "pg/mL": (),
    "mmol/L": ("mm/l", "millimole/liter", "millimoles/liter", "mmol/litre"),
    "umol/L": (),
    "nmol/L": (),
    "pmol/L": (),
    "mmol/mol": ("mmol/mol{hb}", "mmol/molhb"),
    "meq/L": ("milliequivalent/l", "milliequivalents/liter"),
    "mosm/kg": ("mosmol/kg", "mosm/kgh2o", "mosmol/kgh2o"),
    "U/L": ("iu/l", "[iu]/l", "units/l", "unit/l", "u/liter", "iu/liter"),
    "ukat/L": (),
    "m[IU]/L": ("miu/l", "mu/l", "m[iu]/l"),
    "u[IU]/mL": ("uiu/ml", "uu/ml", "u[iu]/ml"),
    "10*3/uL": ("10^3/ul", "10e3/ul", "10^3/mm3", "10*3/mm3", "k/ul", "k/mm3", "thou/ul", "thousand/ul", "1000/ul"),
    "10*9/L": ("10^9/l", "10e9/l"),
    "10*6/uL": ("10^6/ul", "10e6/ul", "10^6/mm3", "m/ul", "mil/ul", "million/ul"),
    "10*12/L": ("10^12/l", "10e12/l"),
    "10*6/L": ("10^6/l", "10e6/l"),
    "/uL": ("cells/ul", "{cells}/ul", "/mm3", "cells/mm3"),
    "L/L": ("l/l",),
    "fL": (),
    "pg": (),
    "s": ("sec", "secs", "second", "seconds"),
    "mm/h": ("mm/hr", "mm/1h", "mm/hour"),
    "mm[Hg]": ("mmhg", "mm/hg", "mm[hg]"),
    "kPa": (),
    "/min": ("bpm", "beats/min", "beats/minute", "{beats}/min", "breaths/min", "breaths/minute", "{breaths}/min", "1/min"),
    "Cel": ("c", "degc", "°c", "[degc]", "celsius", "degreescelsius"),
    "[degF]": ("f", "degf", "°f", "fahrenheit", "degreesfahrenheit"),
    "cm": (),
    "m": ("meter", "metre"),
    "[in_i]": ("in", "inch", "inches", "[in_us]"),
    "kg": (),
    "g": (),
    "[lb_av]": ("lb", "lbs", "pound", "pounds"),
    "kg/m2": ("kg/m^2", "kg/m*2", "kg/m²"),
    "mL/min/{1.73_m2}": ("ml/min/1.73m2", "ml/min/1.73m^2", "ml/min/1.73m²", "ml/min/1.73", "ml/min/{1.73m2}", "ml/min/1.73sqm"),
    "mL/min": (),
}  # fmt: skip
MOST_CHARACTERS = 40  # a longer unit is a sentence
_PLAIN = str.maketrans({"µ": "u", "μ": "u", "×": "x", "\u200b": "", "_": ""})


class State(IntEnum):
    """What can be done with a value; the numbers are what a model sees."""

    NONE = 0  # nothing was measured: a diagnosis, a drug, a coded or worded answer
    USABLE = 1
    NO_UNIT = 2
    UNKNOWN_UNIT = 3
    CONTRADICTORY_UNITS = 4  # the code and the printed unit are not the same
    IMPLAUSIBLE = 5
    NO_ANALYTE = 6  # the code is not in the table
    RELATIVE = 7  # nor is it, but the file has a range in the same unit: a position, and no more
    NOT_A_NUMBER = 8


@dataclass(frozen=True, slots=True)
class Measurement:
    """A value in its canonical unit; `value` is None unless `state` is USABLE."""

    analyte: Analyte | None
    value: float | None
    state: State


def measure(loinc: str, value: float, units: tuple[str, ...]) -> Measurement:
    """A value under a LOINC code; `units` are the quantity's code and its printed unit, those of them that it has."""
    analyte = BY_LOINC.get(loinc)
    if not math.isfinite(value):
        return Measurement(analyte, None, State.NOT_A_NUMBER)
    if analyte is None:
        return Measurement(None, None, State.NO_ANALYTE)
    factor = factor_of(analyte, units)
    if isinstance(factor, State):
        return Measurement(analyte, None, factor)
    canonical = value * factor[0] + factor[1]
    low, high = analyte.plausible
    if not low <= canonical <= high:
        return Measurement(analyte, None, State.IMPLAUSIBLE)
    return Measurement(analyte, canonical, State.USABLE)


def factor_of(analyte: Analyte, units: tuple[str, ...]) -> tuple[float, float] | State:
    """(factor, offset) to the canonical unit, or why there is none."""
    return _factor_of(analyte.name, units)


@lru_cache(4096)  # a laboratory has few spellings, and repeats them for every result
def _factor_of(name: str, units: tuple[str, ...]) -> tuple[float, float] | State:
    known = (ucum_of(unit) for unit in units or ("",))
    factors = BY_NAME[name].units
    found = {factors[unit] for unit in known if unit is not None and unit in factors}
    if len(found) == 1:
        return found.pop()
    if found:
        return State.CONTRADICTORY_UNITS
    return State.UNKNOWN_UNIT if any(unit.strip() for unit in units) else State.NO_UNIT


def ucum_of(unit: str) -> str | None:
    """The UCUM spelling of a unit as somebody wrote it; None where it is not one that we know."""
    if unit in SPELLINGS:  # as it should be, which is what most files have
        return unit
    return _BY_SPELLING.get(_plain(unit)) if len(unit) <= MOST_CHARACTERS else None


def _plain(unit: str) -> str:
    plain = "".join(unit.translate(_PLAIN).split()).casefold()
    plain = plain.removeprefix("x") if plain.startswith("x10") else plain
    return plain.replace("mcg", "ug").replace("mcl", "ul").replace("mcmol", "umol")


_BY_SPELLING = {_plain(spelling): ucum for ucum, others in SPELLINGS.items() for spelling in (ucum, *others)}
