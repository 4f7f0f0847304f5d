"""The `larmor cohort` command: synthetic patients with images, records and reports. Each of the three is made by the package that
knows it, and none of those may know all three."""

from __future__ import annotations

from pathlib import Path

from ehr.command import cohort_command as write_patients


def cohort_command(out: Path, *, record: str = "mixed", report: str = "any", **settings: object) -> None:
    """The cohort with its records, then a report for every patient unless `report` is "none"."""
    write_patients(out, record=record, **settings)
    if report != "none":
        from heads.report.cohort import write_reports

        seed = settings.get("seed")
        write_reports(out, seed=seed if isinstance(seed, int) else 0)
        print("wrote their reports: report.txt")
