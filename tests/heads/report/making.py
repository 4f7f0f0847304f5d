"""For tests of the report: imagined patients, with doubt and an earlier study at times, and a synthetic reader as a writer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from numpy.random import default_rng

from foundation.cohort.claims import claims_of_truth, doubt, imagine_truth, with_prior
from foundation.findings import Reading
from foundation.study import Study
from heads.report.phrasing import phrase
from heads.report.plan import Statement, Style


def imagined(seed: int, *, prior: bool | None = None) -> Reading:
    rng = default_rng(seed)
    reading = claims_of_truth(imagine_truth(rng), subject=f"imagined-{seed}")
    if seed % 3:
        reading = doubt(reading, rng)
    return with_prior(reading, rng) if (seed % 2 if prior is None else prior) else reading


def style_of(seed: int) -> Style:
    return Style(terse=bool(seed % 2), normals=seed % 4 != 3)


class Reader:
    """A synthetic reader as a writer: words are right. With `mistakes` the first try of every sentence is spoilt."""

    name = "reader"

    def __init__(self, mistakes: str = ""):
        self.mistakes, self.asked = mistakes, 0

    def look(self, study: Study) -> None:
        return None

    def write(
        self,
        statements: Sequence[Statement],
        style: Style,
        *,
        seed: int = 0,
        temperature: float = 0.0,
        images: Any = None,
    ) -> Iterator[tuple[int, str]]:
        self.asked += len(statements)
        spoilt = self.mistakes and (temperature == 0 or self.mistakes == "always")
        for place, one in reversed(list(enumerate(statements))):
            text = phrase(one, style, default_rng(7))
            yield place, f"no abscess , {text}" if spoilt else text
