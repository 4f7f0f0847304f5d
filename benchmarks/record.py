"""Reading 10,000 observations to events: the fast way, the strict way, and what fhir.resources takes for the bundle alone.

Processor seconds, not seconds: a neighbour who takes half of the machine would double the latter.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from fhir.resources.R4B.bundle import Bundle

from benchmarks._measure import PAIRS, Quartiles, Row, Work
from ehr.analytes import TABLE
from ehr.record import read_records

NUM_OBSERVATIONS = 10_000
TARGETS_S = {"fast": 1.5, "strict": 3.0}


def rows() -> Iterator[Row]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bundle.json"
        content = json.dumps(_bundle())
        path.write_text(content)
        for name, target in TARGETS_S.items():

            def read(strict: bool = name == "strict") -> None:
                (record,) = read_records(path, strict=strict).values()
                assert len(record.events) == NUM_OBSERVATIONS and record.events[0].canonical is not None

            read()  # imports the models
            yield Row(f"10,000 observations to events, {name}", _processor_s(read), None, None, target, _facts(content))
        yield Row(
            "the same bundle, fhir.resources alone",
            _processor_s(lambda: Bundle.model_validate_json(content), times=3),
            None,
            None,
            None,
            _facts(content),
        )


def _processor_s(work: Work, times: int = PAIRS) -> Quartiles:
    seconds = []
    for _ in range(times):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return Quartiles.of(seconds)


def _facts(content: str) -> dict[str, float | str]:
    return {"megabytes": len(content) / 1e6, "clock": "processor"}


def _bundle() -> dict[str, object]:
    """One patient's results as laboratories send them: code with text, category, quantity with code and unit, range, encounter."""
    entries: list[dict[str, object]] = [{"resource": {"resourceType": "Patient", "id": "p", "birthDate": "1950-01-01"}}]
    for number in range(NUM_OBSERVATIONS):
        analyte = TABLE[number % len(TABLE)]
        low, high = analyte.usual
        stamp = f"20{10 + number % 10}-{1 + number % 12:02d}-{1 + number % 28:02d}T10:{number % 60:02d}:00+01:00"
        ends = {name: {"value": end, "unit": analyte.unit} for name, end in (("low", low), ("high", high))}
        resource = {
            "resourceType": "Observation",
            "id": f"o{number}",
            "status": "final",
            "category": [
                {
                    "coding": [
                        {"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "laboratory"}
                    ]
                }
            ],
            "code": {
                "coding": [{"system": "http://loinc.org", "code": analyte.loinc[0], "display": analyte.name}],
                "text": analyte.name,
            },
            "subject": {"reference": "Patient/p"},
            "encounter": {"reference": f"Encounter/e{number // 20}"},
            "effectiveDateTime": stamp,
            "issued": stamp,
            "valueQuantity": {
                "value": (low + high) / 2,
                "unit": analyte.unit,
                "system": "http://unitsofmeasure.org",
                "code": analyte.unit,
            },
            "referenceRange": [ends],
        }
        entries.append({"fullUrl": f"urn:uuid:{number:032x}", "resource": resource})
    return {"resourceType": "Bundle", "type": "collection", "entry": entries}
