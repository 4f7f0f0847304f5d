"""The one scale by which a probability becomes a word. Readers place "suggestive of" anywhere, so few words are used, each for a
fixed band of the calibrated probability of presence, and the scale is printed in docs/report.md.

    0.95 to 1       stated, no hedge
    0.75 to 0.95    likely, probable
    0.40 to 0.75    possible
    0.10 to 0.40    unlikely
    below 0.10      not there
"""

from __future__ import annotations

from typing import Literal

from foundation.findings import Finding

Hedge = Literal["stated", "likely", "possible", "unlikely", "absent", "not_assessed"]
FROM: tuple[tuple[float, Hedge], ...] = ((0.95, "stated"), (0.75, "likely"), (0.40, "possible"), (0.10, "unlikely"))


def hedge_of(finding: Finding) -> Hedge:
    """How sure the words may sound. A head's decision stands: what it calls absent is never worded as possible, nor what it
    calls present as absent; without a probability, "uncertain" is possible."""
    if finding.presence == "not_assessed":
        return "not_assessed"
    chance = finding.probability
    if finding.presence == "absent":
        return "unlikely" if chance is not None and chance >= FROM[-1][0] else "absent"
    if chance is None:
        return "possible" if finding.presence == "uncertain" else "stated"
    band: Hedge = "unlikely"
    for least, word in reversed(FROM):
        if chance >= least:
            band = word
    return "possible" if finding.presence == "uncertain" and band != "unlikely" else band
