"""Readings for tests of the report: imagined patients, with doubt and an earlier study at times."""

from __future__ import annotations

from numpy.random import default_rng

from foundation.cohort.claims import claims_of_truth, doubt, imagine_truth, with_prior
from foundation.findings import Reading
from heads.report.plan import Style


def imagined(seed: int, *, prior: bool | None = None) -> Reading:
    rng = default_rng(seed)
    reading = claims_of_truth(imagine_truth(rng), subject=f"imagined-{seed}")
    if seed % 3:
        reading = doubt(reading, rng)
    return with_prior(reading, rng) if (seed % 2 if prior is None else prior) else reading


def style_of(seed: int) -> Style:
    return Style(terse=bool(seed % 2), normals=seed % 4 != 3)
