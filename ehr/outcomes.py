"""What became of a patient after the index: the only place that may look at a death, and never a source of features.

outcome = outcome_after(record, index)
outcome.time_days, outcome.is_observed
"""

from __future__ import annotations

from dataclasses import dataclass

from ehr.index import Index
from ehr.record import Record
from ehr.times import DAY_S


@dataclass(frozen=True)
class Outcome:
    """Days from the index to death if `is_observed`, otherwise to the last day on which the patient is known to have lived."""

    time_days: float
    is_observed: bool


def outcome_after(record: Record, index: Index) -> Outcome | None:
    """The outcome of a patient who was alive at the index; None for who was not, or of whom nothing is known afterwards.

    A death without a date says that follow-up cannot be trusted: None too. Partial dates count by their middle. Under a declared
    landmark the patient has to have lived until then, and time counts from there.
    """
    person = record.person
    if person and person.is_dead:
        if person.death is None or person.death.hi <= index.time:
            return None
        return Outcome(max(person.death.middle - index.time, 0.0) / DAY_S, True)
    seen = [span.middle for event in record.events if event.is_valid and (span := event.known or event.happened)]
    last = max(seen, default=index.time)
    return Outcome((last - index.time) / DAY_S, False) if last > index.time else None
