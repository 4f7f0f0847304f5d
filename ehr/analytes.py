"""What is measured in people, by LOINC code: the unit that Larmor counts in, the units it accepts, and what is believable.

    name, LOINC codes, canonical unit (UCUM), plausible range, usual range of adults, other units (factor, or factor and offset)

`ehr/units.py` reads this table. Codes of one analyte differ in specimen or method, not in what the number means. A factor
takes a value in that unit to the canonical one; those between amounts and masses are molar masses (tests check them).
Outside the plausible range a value has the wrong unit or is a mistake. The usual range only scales values for a model where a
file has no range of its own: it is no basis for judging a patient.

This material contains content from LOINC (http://loinc.org). LOINC is copyright Regenstrief Institute, Inc. and the Logical
Observation Identifiers Names and Codes (LOINC) Committee and is available at no cost under the licence at
http://loinc.org/license.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Number = int | float
Pair = tuple[Number, Number]


@dataclass(frozen=True)
class Analyte:
    """A row of the table. `units` maps every accepted UCUM unit to (factor, offset)."""

    name: str
    loinc: tuple[str, ...]
    unit: str
    plausible: tuple[float, float]
    usual: tuple[float, float]
    units: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def _row(
    name: str, loinc: str, unit: str, plausible: Pair, usual: Pair, others: Mapping[str, Number | Pair] | None = None
) -> Analyte:
    units = {unit: (1.0, 0.0)}
    units |= {other: _floats(one if isinstance(one, tuple) else (one, 0.0)) for other, one in (others or {}).items()}
    return Analyte(name, tuple(loinc.split()), unit, _floats(plausible), _floats(usual), units)


def _floats(pair: Pair) -> tuple[float, float]:
    return (float(pair[0]), float(pair[1]))


_CELLS = {"10*9/L": 1.0, "/uL": 0.001}  # of 10*3/uL
_GRAM = {"g/L": 0.1, "mg/dL": 0.001}  # of g/dL
_ENZYME = {"ukat/L": 60.0}  # of U/L
_PRESSURE = {"kPa": 7.50062}  # of mm[Hg]
_EQUIVALENT = {"meq/L": 1.0}  # of mmol/L, for ions with one charge
_TROPONIN = {"pg/mL": 1.0, "ng/mL": 1000.0, "ug/L": 1000.0}  # of ng/L
_PURE = {"{score}": 1.0}  # of 1, which no unit at all is too: nothing else can be meant

TABLE = (
    # Chemistry
    _row("glucose", "2345-7 2339-0 1558-6 41653-7 14749-6 15074-8", "mg/dL", (10, 2000), (70, 99), {"mmol/L": 18.016}),
    _row("haemoglobin A1c", "4548-4 17856-6 59261-8", "%", (2.5, 25), (4.0, 5.6), {"mmol/mol": (0.09148, 2.152)}),
    _row("sodium", "2951-2 2947-0", "mmol/L", (90, 200), (135, 145), _EQUIVALENT),
    _row("potassium", "2823-3 6298-4", "mmol/L", (1, 12), (3.5, 5.1), _EQUIVALENT),
    _row("chloride", "2075-0 2069-3", "mmol/L", (50, 160), (98, 107), _EQUIVALENT),
    _row("bicarbonate", "2028-9 20565-8 1963-8", "mmol/L", (2, 60), (22, 29), _EQUIVALENT),
    _row("calcium", "17861-6 49765-1 2000-8", "mg/dL", (3, 20), (8.6, 10.2), {"mmol/L": 4.008}),
    _row("magnesium", "19123-9 2601-3", "mg/dL", (0.3, 12), (1.7, 2.3), {"mmol/L": 2.4305, "meq/L": 1.21525}),
    _row("phosphate", "2777-1 14879-1", "mg/dL", (0.3, 20), (2.5, 4.5), {"mmol/L": 3.0974}),
    _row("urea nitrogen", "3094-0 6299-2 14937-7", "mg/dL", (1, 300), (7, 20), {"mmol/L": 2.8014}),
    _row("creatinine", "2160-0 38483-4 14682-9", "mg/dL", (0.05, 40), (0.6, 1.2), {"umol/L": 0.011312, "mmol/L": 11.312}),
    _row("glomerular filtration", "33914-3 62238-1 98979-8 48642-3", "mL/min/{1.73_m2}", (0.5, 250), (90, 120), {"mL/min": 1.0}),
    _row("protein", "2885-2", "g/dL", (1, 15), (6.0, 8.3), _GRAM),
    _row("albumin", "1751-7 2862-1", "g/dL", (0.5, 8), (3.5, 5.0), _GRAM),
    _row("globulin", "10834-0", "g/dL", (0.3, 10), (2.0, 3.5), _GRAM),
    _row("bilirubin, total", "1975-2 14631-6", "mg/dL", (0.01, 60), (0.1, 1.2), {"umol/L": 0.05847}),
    _row("bilirubin, direct", "1968-7 14629-0", "mg/dL", (0, 40), (0.0, 0.3), {"umol/L": 0.05847}),
    _row("alanine aminotransferase", "1742-6 1743-4", "U/L", (1, 20_000), (7, 56), _ENZYME),
    _row("aspartate aminotransferase", "1920-8", "U/L", (1, 20_000), (8, 48), _ENZYME),
    _row("alkaline phosphatase", "6768-6", "U/L", (1, 5000), (40, 129), _ENZYME),
    _row("gamma-glutamyl transferase", "2324-2", "U/L", (1, 5000), (8, 61), _ENZYME),
    _row("lactate dehydrogenase", "2532-0 14804-9 14805-6", "U/L", (20, 20_000), (122, 222), _ENZYME),
    _row("creatine kinase", "2157-6", "U/L", (1, 300_000), (30, 200), _ENZYME),
    _row("amylase", "1798-8", "U/L", (1, 20_000), (30, 110), _ENZYME),
    _row("lipase", "3040-3", "U/L", (1, 50_000), (10, 60), _ENZYME),
    _row("lactate", "2524-7 32693-4 2518-9", "mmol/L", (0.1, 40), (0.5, 2.0), {"mg/dL": 0.111}),
    _row("ammonia", "16362-6 22763-7", "umol/L", (1, 3000), (15, 45), {"ug/dL": 0.5872}),
    _row("osmolality", "2692-2", "mosm/kg", (150, 500), (275, 295)),
    _row("cholesterol", "2093-3 14647-2", "mg/dL", (20, 1500), (125, 200), {"mmol/L": 38.665}),
    _row("HDL cholesterol", "2085-9 14646-4", "mg/dL", (2, 200), (40, 80), {"mmol/L": 38.665}),
    _row("LDL cholesterol", "18262-6 13457-7 2089-1 22748-8", "mg/dL", (1, 1000), (50, 130), {"mmol/L": 38.665}),
    _row("triglycerides", "2571-8 14927-8", "mg/dL", (5, 15_000), (40, 150), {"mmol/L": 88.54}),
    _row("thyrotropin", "3016-3 11580-8", "m[IU]/L", (0, 500), (0.4, 4.0), {"u[IU]/mL": 1.0}),
    _row("thyroxine, free", "3024-7 14920-3", "ng/dL", (0.05, 15), (0.8, 1.8), {"pmol/L": 0.077687}),
    _row("vitamin B12", "2132-9 14685-2", "pg/mL", (20, 20_000), (200, 900), {"pmol/L": 1.35537, "ng/L": 1.0}),
    _row("folate", "2284-8 14732-2", "ng/mL", (0.2, 100), (3, 20), {"nmol/L": 0.4414, "ug/L": 1.0}),
    _row("ferritin", "2276-4", "ng/mL", (0.5, 200_000), (15, 300), {"ug/L": 1.0}),
    _row("prostate-specific antigen", "2857-1", "ng/mL", (0, 20_000), (0, 4), {"ug/L": 1.0}),
    _row("NT-proBNP", "33762-6", "pg/mL", (0, 200_000), (0, 125), {"ng/L": 1.0, "pmol/L": 8.457}),
    _row("troponin T", "6598-7 67151-1", "ng/L", (0, 100_000), (0, 14), _TROPONIN),
    _row("troponin I", "10839-9 89579-7", "ng/L", (0, 500_000), (0, 26), _TROPONIN),
    # Inflammation
    _row("C-reactive protein", "1988-5 30522-7", "mg/L", (0, 700), (0, 5), {"mg/dL": 10.0, "ug/mL": 1.0}),
    _row("sedimentation rate", "4537-7 30341-2", "mm/h", (0, 200), (0, 20)),
    _row("procalcitonin", "33959-8", "ng/mL", (0, 1000), (0, 0.1), {"ug/L": 1.0}),
    # Blood count and coagulation
    _row("haemoglobin", "718-7 20509-6 59260-0", "g/dL", (1, 28), (12, 17.5), {"g/L": 0.1, "mmol/L": 1.6114}),
    _row("haematocrit", "4544-3 20570-8 71833-8", "%", (5, 80), (36, 50), {"L/L": 100.0}),
    _row("erythrocytes", "789-8 26453-1", "10*6/uL", (0.3, 12), (4.0, 5.9), {"10*12/L": 1.0}),
    _row("leukocytes", "6690-2 26464-8 804-5", "10*3/uL", (0, 1000), (4, 11), _CELLS),
    _row("platelets", "777-3 26515-7 49497-1", "10*3/uL", (0, 5000), (150, 400), _CELLS),
    _row("neutrophils", "751-8 26499-4 753-4", "10*3/uL", (0, 500), (1.8, 7.7), _CELLS),
    _row("lymphocytes", "731-0 26474-7", "10*3/uL", (0, 800), (1.0, 4.8), _CELLS),
    _row("mean corpuscular volume", "787-2 30428-7", "fL", (40, 160), (80, 100)),
    _row("mean corpuscular haemoglobin", "785-6", "pg", (10, 60), (27, 33)),
    _row("mean corpuscular haemoglobin concentration", "786-4", "g/dL", (20, 45), (32, 36), {"g/L": 0.1}),
    _row("red cell distribution width", "788-0", "%", (5, 50), (11.5, 14.5)),
    _row("red cell distribution width (volume)", "21000-5", "fL", (15, 200), (39, 46)),
    _row("platelet volume", "32623-1", "fL", (3, 30), (7.5, 11.5)),
    _row("INR", "6301-6 34714-6", "1", (0.3, 30), (0.8, 1.2), {"{INR}": 1.0}),
    _row("prothrombin time", "5902-2", "s", (5, 300), (11, 13.5)),
    _row("partial thromboplastin time", "3173-2 14979-9", "s", (10, 300), (25, 35)),
    _row("fibrinogen", "3255-7", "mg/dL", (10, 2000), (200, 400), {"g/L": 100.0}),
    _row("D-dimer", "48065-7", "ng/mL", (0, 200_000), (0, 500), {"ug/L": 1.0, "ug/mL": 1000.0, "mg/L": 1000.0}),
    # Blood gases
    _row("pH", "2744-1 11558-4", "1", (6.3, 8.0), (7.35, 7.45), {"[pH]": 1.0}),
    _row("carbon dioxide pressure", "2019-8 11557-6", "mm[Hg]", (5, 200), (35, 45), _PRESSURE),
    _row("oxygen pressure", "2703-7 11556-8", "mm[Hg]", (10, 700), (75, 100), _PRESSURE),
    _row("oxygen saturation", "2708-6 59408-5", "%", (20, 100), (95, 100)),
    # Cerebrospinal fluid
    _row("CSF protein", "2880-3", "mg/dL", (1, 5000), (15, 45), {"g/L": 100.0, "mg/L": 0.1}),
    _row("CSF glucose", "2342-4", "mg/dL", (1, 1000), (40, 70), {"mmol/L": 18.016}),
    _row("CSF leukocytes", "806-0", "/uL", (0, 100_000), (0, 5), {"10*6/L": 1.0}),
    # Vital signs
    _row("systolic pressure", "8480-6", "mm[Hg]", (30, 350), (90, 130), _PRESSURE),
    _row("diastolic pressure", "8462-4", "mm[Hg]", (10, 250), (60, 85), _PRESSURE),
    _row("mean pressure", "8478-0", "mm[Hg]", (20, 280), (70, 105), _PRESSURE),
    _row("heart rate", "8867-4", "/min", (10, 350), (60, 100)),
    _row("respiratory rate", "9279-1", "/min", (1, 120), (12, 20)),
    _row("temperature", "8310-5 8331-1 8328-7 8332-9 8333-7", "Cel", (20, 46), (36.1, 37.5), {"[degF]": (5 / 9, -160 / 9)}),
    _row("height", "8302-2 3137-7", "cm", (30, 250), (150, 190), {"m": 100.0, "[in_i]": 2.54}),
    _row("weight", "29463-7 3141-9", "kg", (0.3, 500), (50, 100), {"g": 0.001, "[lb_av]": 0.45359237}),
    _row("body mass index", "39156-5", "kg/m2", (5, 120), (18.5, 25)),
    # Scores
    _row("MMSE", "72106-8", "1", (0, 30), (24, 30), _PURE),
    _row("MoCA", "72172-0", "1", (0, 30), (26, 30), _PURE),
    _row("Glasgow coma scale", "9269-2", "1", (3, 15), (13, 15), _PURE),
    _row("NIH stroke scale", "72089-6", "1", (0, 42), (0, 4), _PURE),
    _row("modified Rankin scale", "75859-9", "1", (0, 6), (0, 2), _PURE),
    _row("Karnofsky performance", "89243-0", "1", (0, 100), (70, 100), {**_PURE, "%": 1.0}),
    _row("ECOG performance", "89247-1", "1", (0, 5), (0, 1), _PURE),
    _row("PHQ-9", "44261-6", "1", (0, 27), (0, 4), _PURE),
    _row("pain", "72514-3", "1", (0, 10), (0, 3), _PURE),
)  # fmt: skip

BY_LOINC = {code: analyte for analyte in TABLE for code in analyte.loinc}
BY_NAME = {analyte.name: analyte for analyte in TABLE}
