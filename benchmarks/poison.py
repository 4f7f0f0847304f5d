"""Poison the future of records and see that no feature moves; look at them earlier and see that events only go.

    python -m benchmarks.poison SOURCE --per-patient 100

A poisoned source is the untouched one and a file of facts that nobody could know at the index: thousands that are stamped
after it, and adversarial ones that are dated before it but came from the study, were written down later, or say nothing that
can be trusted. Everything is read again from files, and both views of every patient are compared as bytes. Prints what was
done; the exit code is 0 when nothing differed. The index of a patient is the first imaging study, or two thirds into the record.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.random import Generator, default_rng

from ehr.features import sequence_of, tabulate
from ehr.index import Admitted, Index, IndexRule, admit
from ehr.record import Record, Records, read_records
from ehr.times import DAY_S
from ehr.vocabulary import Vocabulary
from foundation.progress import progress

Json = dict[str, Any]
EARLIER_DAYS = (0.0, 1e-5, 0.01, 0.3, 1.0, 2.0, 7.0, 30.0, 100.0, 365.0, 1500.0, 6000.0, 20_000.0)
RULES = (IndexRule(), IndexRule(availability="lenient", embargo="none"))
SYSTEMS = {
    "LOINC": "http://loinc.org",
    "SNOMED": "http://snomed.info/sct",
    "ICD10CM": "http://hl7.org/fhir/sid/icd-10-cm",
}
STATUS = {
    "Procedure": "completed", "MedicationRequest": "active", "Encounter": "finished", "ImagingStudy": "available",
    "ServiceRequest": "active", "MedicationStatement": "active", "FamilyMemberHistory": "completed",
}  # fmt: skip


class Poison:
    """Facts about one patient that nobody could know at the index; `name` sets their ids apart from other patients'."""

    def __init__(self, record: Record, index: Index, rng: Generator, name: str):
        self.rng, self.index, self.label, self.count = rng, index, name, 0
        self.who = {"reference": record.subject}
        before = [event for event in record.events if event.happened and event.happened.hi < index.time]
        codes = {code.partition("=")[0] for event in before for code in event.codes}
        self.codes = sorted(code for code in codes if code.partition("|")[0] in SYSTEMS) or ["LOINC|2345-7"]
        self.earlier = [event.source for event in before]
        uid = next((key for key in sorted(index.study) if key.startswith("uid:")), None)
        named = {"system": "urn:dicom:uid", "value": f"urn:oid:{(uid or '').removeprefix('uid:')}"}
        self.study = {"identifier": named} if uid else None

    def facts(self, number: int) -> list[Json]:
        """That many draws, each of one or several facts."""
        kinds = [self.later, self.later, self.later, self.known_later, self.today, self.undated, self.death, self.visit]
        kinds += [self.of_the_study] * 2 if self.study else []
        return [fact for _ in range(number) for fact in kinds[int(self.rng.integers(len(kinds)))]()]

    def later(self) -> Iterator[Json]:
        """What happened at or after the index, of every kind."""
        at, drug = self._after(), self._concept()
        shapes: list[tuple[str, Json]] = [
            ("Observation", {"effectiveDateTime": at}),
            ("Observation", {"effectiveDateTime": at, "issued": self._before()}),  # a clerk's mistake
            ("Condition", {"onsetDateTime": at, "recordedDate": at}),
            ("MedicationRequest", {"authoredOn": at, "medicationCodeableConcept": drug}),
            ("MedicationStatement", {"effectiveDateTime": at, "dateAsserted": at, "medication": {"concept": drug}}),
            ("Procedure", {"performedPeriod": {"start": self._before(), "end": at}}),
            ("Procedure", {"occurrenceDateTime": at}),
            ("AllergyIntolerance", {"recordedDate": at}),
            ("FamilyMemberHistory", {"date": at, "condition": [{"code": self._concept()}]}),
            ("ServiceRequest", {"authoredOn": at, "reasonCode": [self._concept()]}),
            ("ImagingStudy", {"started": at, "modality": [{"code": "MR"}]}),
            ("DiagnosticReport", {"effectiveDateTime": at, "issued": at, "conclusionCode": [self._concept()]}),
        ]
        kind, fields = shapes[int(self.rng.integers(len(shapes)))]
        yield self._resource(kind, **fields)

    def known_later(self) -> Iterator[Json]:
        """What had happened before and was written down after."""
        before, after = self._before(), self._after()
        yield self._resource("Condition", onsetDateTime=before, recordedDate=after)
        yield self._resource("Observation", effectiveDateTime=before, issued=after)
        yield self._resource("DiagnosticReport", effectiveDateTime=before, issued=after)
        yield self._resource("Procedure", performedDateTime=before, recorded=after)
        drug = {"medicationCodeableConcept": self._concept()}
        yield self._resource("MedicationStatement", effectiveDateTime=before, dateAsserted=after, **drug)
        yield self._resource("Encounter", period={"start": after}, reasonCode=[self._concept()])
        if self.earlier:  # a corrected version of a fact that was there
            kind, _, name = self.earlier[int(self.rng.integers(len(self.earlier)))].partition("/")
            if kind == "Observation" and "#" not in name:
                yield self._resource(kind, id=name, effectiveDateTime=before, issued=after, status="corrected")

    def today(self) -> Iterator[Json]:
        """Stamps without a zone, or less than a day, that may be the index day or later somewhere on earth."""
        day = datetime.fromtimestamp(self.index.time + float(self.rng.uniform(-0.4, 14)) * DAY_S, tz=UTC)
        for shape in ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m", "%Y"):
            yield self._resource("Observation", effectiveDateTime=day.strftime(shape))
            yield self._resource("Condition", recordedDate=day.strftime(shape))

    def undated(self) -> Iterator[Json]:
        """Nothing that says when, or that it was so."""
        before = self._before()
        yield self._resource("Observation")
        yield self._resource("Observation", effectiveDateTime=before, issued="in the past, surely")
        yield self._resource("Condition", recordedDate="0000-00-00")
        yield self._resource("Observation", effectiveDateTime=before, status="entered-in-error")
        refuted = {"coding": [{"code": "refuted"}]}
        yield self._resource("Condition", recordedDate=before, verificationStatus=refuted)

    def death(self) -> Iterator[Json]:
        """A later version of the patient, and what is written when somebody dies."""
        after = self._after()
        if self.who["reference"].startswith("Patient/"):
            patient = {"resourceType": "Patient", "id": self.who["reference"].removeprefix("Patient/")}
            yield patient | {"active": False, "deceasedDateTime": after, "gender": "unknown"}
            yield patient | {"deceasedBoolean": True, "maritalStatus": {"text": "widowed"}}
        yield self._resource("Observation", effectiveDateTime=after, valueCodeableConcept=self._concept())
        died = {"dischargeDisposition": {"coding": [{"code": "exp"}]}}
        yield self._resource("Encounter", period={"start": after, "end": after}, hospitalization=died)

    def visit(self) -> Iterator[Json]:
        """An encounter after the index, and lists, that name everything there was."""
        after = self._after()
        named = [{"reference": source} for source in self.earlier[:50]]
        yield self._resource("Encounter", period={"start": after}, diagnosis=[{"condition": one} for one in named])
        yield self._resource("ServiceRequest", authoredOn=after, supportingInfo=named, reasonReference=named)
        yield self._resource("DiagnosticReport", effectiveDateTime=after, issued=after, supportingInfo=named)
        yield self._resource("Observation", effectiveDateTime=after, derivedFrom=named, focus=named)
        yield self._resource("Composition", section=[{"entry": named}])
        yield self._resource("List", entry=[{"item": one} for one in named])

    def of_the_study(self) -> Iterator[Json]:
        """The index report, its results, and what was made of them, all dated as if they had been there before."""
        before = self._before()
        report, result, child = (f"{self.label}-{self.count}-{part}" for part in ("report", "result", "child"))
        to_report, to_result, to_child = (
            [{"reference": f"{kind}/{name}"}]
            for kind, name in (("DiagnosticReport", report), ("Observation", result), ("Observation", child))
        )
        inside = {"resourceType": "Observation", "id": "i", "status": "final", "effectiveDateTime": before}
        yield self._resource(
            "DiagnosticReport", id=report, effectiveDateTime=before, issued=before, conclusionCode=[self._concept()],
            contained=[inside | {"code": self._concept()}], result=[*to_result, {"reference": "#i"}],
            **{("imagingStudy", "study")[int(self.rng.integers(2))]: [self.study]},
        )  # fmt: skip
        yield self._resource("Observation", id=result, effectiveDateTime=before)
        yield self._resource("Observation", id=child, effectiveDateTime=before, derivedFrom=to_result)
        yield self._resource("Condition", recordedDate=before, evidence=[{"detail": to_report}])
        yield self._resource("Observation", effectiveDateTime=before, partOf=[self.study])
        yield self._resource("Procedure", performedDateTime=before, report=to_report)
        drug = {"medicationCodeableConcept": self._concept()}
        yield self._resource("MedicationRequest", authoredOn=before, reasonReference=to_child, **drug)

    def _resource(self, kind: str, **fields: Any) -> Json:
        self.count += 1
        value = {"valueQuantity": {"value": float(self.rng.uniform(1, 200)), "unit": "mg/dL"}}
        return {
            "resourceType": kind,
            "id": f"{self.label}-{self.count}",
            "status": STATUS.get(kind, "final"),
            "intent": "order",
            "class": {"code": "EMER"},
            "code": self._concept(),
            "subject": self.who,
            "patient": self.who,
            **(value if kind == "Observation" else {}),
            **fields,
        }

    def _concept(self) -> Json:
        system, _, code = self.codes[int(self.rng.integers(len(self.codes)))].partition("|")
        return {"coding": [{"system": SYSTEMS[system], "code": code}]}

    def _after(self) -> str:
        return self._stamp(0.0, float(self.rng.choice([1, 60, 3600, DAY_S, 1000 * DAY_S])))

    def _before(self) -> str:
        return self._stamp(-900 * DAY_S, -DAY_S)

    def _stamp(self, low_s: float, high_s: float) -> str:
        """An instant, in some zone of the earth, so many seconds from the index; rounded up, so that it is not before."""
        at = datetime.fromtimestamp(self.index.time + float(self.rng.uniform(low_s, high_s)), tz=UTC)
        at = (at + timedelta(seconds=1)).replace(microsecond=0) if high_s > 0 else at
        return at.astimezone(timezone(timedelta(hours=int(self.rng.integers(-12, 15))))).isoformat()


def write_poison(folder: Path, records: Records, indices: Mapping[str, Index], *, per_patient: int, seed: int) -> int:
    """A file of poison for every patient, in `folder`; returns how many facts they hold."""
    rng = default_rng(seed)
    total = 0
    for number, (subject, index) in enumerate(indices.items()):
        facts = Poison(records[subject], index, rng, f"poison-{number}").facts(per_patient)
        (folder / f"zz-poison-{number}.ndjson").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
        total += len(facts)
    return total


def features(admitted: Mapping[str, Admitted], vocabulary: Vocabulary) -> dict[str, tuple[bytes, bytes]]:
    """Both views of every patient, to the last bit."""
    table = tabulate(list(admitted.values()), vocabulary).values
    return {
        subject: (sequence_of(one, vocabulary, max_events=4096).tobytes(), row.tobytes())
        for row, (subject, one) in zip(table, admitted.items(), strict=True)
    }


def moved_by_poison(before: Records, after: Records, indices: Mapping[str, Index]) -> list[str]:
    """The patients whose features the poison changed, or whom it did not reach."""
    clean, poisoned = (
        {subject: admit(records[subject], index) for subject, index in indices.items()} for records in (before, after)
    )
    vocabulary = Vocabulary.fit(clean.values(), min_patients=1)
    ours, theirs = features(clean, vocabulary), features(poisoned, vocabulary)
    return [
        subject
        for subject in indices
        if ours[subject] != theirs[subject] or len(after[subject].events) <= len(before[subject].events)
    ]


def gained_by_looking_earlier(record: Record, index: Index) -> int:
    """How many events an earlier index has that a later one has not, over `EARLIER_DAYS` and both rules."""
    gained = 0
    for rule in RULES:
        held = None
        for days in EARLIER_DAYS:
            events = admit(record, index.earlier(days * DAY_S), rule).events
            counted = Counter((event.source, event.codes) for event in events)
            gained += 0 if held is None else (counted - held).total()
            held = counted
    return gained


def indices_of(records: Records) -> dict[str, Index]:
    """The first imaging study of each patient, or two thirds into the record; patients without a date have none."""
    found = {}
    for subject, record in records.items():
        stamps = sorted(event.happened.lo for event in record.events if event.happened)
        study = next((one for one in record.studies if one.started), None)
        if study and study.started:
            found[subject] = Index(study.started.lo, frozenset(study.keys))
        elif stamps:
            found[subject] = Index(stamps[2 * len(stamps) // 3] + 1.5, frozenset())
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.poison", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--per-patient", type=int, default=100, help="draws of poison each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as home:
        together = Path(home)
        (together / "source").symlink_to(options.source.resolve())
        records = read_records(options.source)
        indices = indices_of(records)
        total = write_poison(together, records, indices, per_patient=options.per_patient, seed=options.seed)
        poisoned = read_records(_linked(options.source, together / "all", together))
        moved = moved_by_poison(records, poisoned, indices)
        gained = 0
        with progress(total=len(indices), label="earlier", unit="patient") as bar:
            for subject, index in indices.items():
                gained += gained_by_looking_earlier(records[subject], index)
                bar.update()
    kept = sum(admit(records[subject], index).audit.num_kept for subject, index in indices.items())
    print(
        f"{len(indices)} patients, {kept} events before their index; {total} facts added: features of {len(moved)} differ"
    )
    print(f"{len(EARLIER_DAYS) - 1} earlier indices each, two rules: {gained} events appeared")
    return int(bool(moved or gained))


def _linked(source: Path, folder: Path, poison: Path) -> Path:
    """One folder with the source and the poison, by links."""
    folder.mkdir()
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    for number, path in enumerate(file for file in files if file.is_file()):
        (folder / f"{number:06d}-{path.name}").symlink_to(path.resolve())
    for path in poison.glob("zz-*"):
        (folder / path.name).symlink_to(path)
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
