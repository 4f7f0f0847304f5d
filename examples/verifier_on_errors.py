"""How many planted errors the verifier finds, by kind: python -m examples.verifier_on_errors [PATIENTS]

Each imagined patient's report by a synthetic reader, half of them with a prior, is right (an objection to it is a false alarm)
and is then made wrong once in every way that it can be (`heads/report/perturb.py`). Prints rates with Wilson's interval.
"""

from __future__ import annotations

import sys
from collections import Counter

from numpy.random import default_rng

from finetune.trust.intervals import wilson
from foundation.cohort.claims import claims_of_truth, doubt, imagine_truth, with_prior
from foundation.progress import progress
from heads.report.perturb import KINDS, perturb
from heads.report.phrasing import cohort_report
from heads.report.plan import Style
from heads.report.verifier import verify

FIRST = 500_000  # seeds far from those of any test


def main(num_patients: int) -> None:
    planted: Counter[str] = Counter()
    found: Counter[str] = Counter()
    false_alarms = 0
    with progress(total=num_patients, label="patients", unit="patient") as bar:
        for number in range(num_patients):
            rng = default_rng(FIRST + number)
            reading = claims_of_truth(imagine_truth(rng), subject="imagined")
            if rng.random() < 0.7:
                reading = doubt(reading, rng)
            if rng.random() < 0.5:
                reading = with_prior(reading, rng)
            style = Style(terse=bool(rng.integers(2)), normals=bool(rng.random() < 0.7))
            right = cohort_report(reading, style, rng)
            false_alarms += bool(verify(right.text(), reading, style))
            for kind in KINDS:
                wrong = perturb(kind, right, rng)
                if wrong is not None:
                    planted[kind] += 1
                    found[kind] += bool(verify(wrong.text(), reading, style))
            bar.update()
    print("| error | found | of | share |\n|---|---|---|---|")
    for kind in KINDS:
        print(f"| {kind} | {found[kind]} | {planted[kind]} | {wilson(found[kind], planted[kind])} |")
    print(f"| false alarms on right reports | {false_alarms} | {num_patients} | {wilson(false_alarms, num_patients)} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
