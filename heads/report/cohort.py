"""Report texts for a cohort on disk: every patient's truth in the words of some synthetic reader.

    write_reports(Path("cohort"), seed=0)

    cohort/sub-00007/report.txt            the report
    cohort/sub-00007/report-truth.json     the reader's style and seed, the claims, and which sentence makes which of them

Without a record a report tells no history. A patient's reader depends on the seed and the patient's name alone: the same command
writes the same texts again.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from numpy.random import default_rng

from foundation.cohort.claims import claims_of_truth
from foundation.files import write_aside
from foundation.progress import progress
from foundation.reading.collection import read_manifest
from heads.report.phrasing import cohort_report
from heads.report.plan import Style


def write_reports(folder: Path, *, seed: int = 0) -> None:
    """A report beside every patient of a cohort. Repeatable."""
    rows = read_manifest(folder / "manifest.jsonl").rows
    with progress(total=len(rows), label="reports", unit="report") as bar:
        for row in rows:
            own = folder / row.subject
            truth = json.loads((own / "truth.json").read_text())
            drawn = [seed, zlib.crc32(row.subject.encode())]
            rng = default_rng(drawn)
            style = Style(terse=bool(rng.integers(2)), listed=bool(rng.integers(2)), normals=bool(rng.random() < 0.8))
            reading = claims_of_truth(truth, subject=row.subject, with_record=row.ehr is not None)
            draft = cohort_report(reading, style, rng)
            about = {
                "note": "A synthetic report.",
                "seed": drawn,
                "style": {"terse": style.terse, "listed": style.listed, "normals": style.normals},
                "sentences": [
                    {"section": one.section, "text": one.text, "findings": list(one.finding_ids)} for one in draft.sentences
                ],
                "reading": reading.model_dump(mode="json", exclude={"created"}),
            }  # fmt: skip
            with write_aside(own / "report.txt") as aside:
                aside.write_text(draft.text(listed=style.listed), encoding="utf-8")
            with write_aside(own / "report-truth.json") as aside:
                aside.write_text(json.dumps(about, indent=1) + "\n")
            bar.update()
