"""Which contrast a DICOM series has: what its words say, what its physics say, and whether they agree.

A mislabelled sequence misleads a model more than any artefact, so that the two are asked apart. Where both answer and differ the
contrast stays unknown, with a note that a person can act on (`--series 5=T1w`); where one is silent the other holds. The rules of
the physics are strict: they answer only where a pulse sequence leaves no choice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from foundation.reading.dicom.headers import SeriesFacts
from foundation.study import Contrast

# In this order: 'T1 FLAIR' is a T1w, and a 'FLAIR t2' is no T2w.
WORDS: tuple[tuple[Contrast, str], ...] = (
    ("ADC", r"\badc\b|apparent diff"),
    ("DWI", r"\bdwi|diff|\bdti|\bhardi|\btracew?\b|\bb-?1000\b"),
    ("MRA", r"\btof\b|\bmra\b|angio|\bpca\b"),
    ("T2star", r"\bswi|swan|venobold|\bt2\*|t2 ?star|ha?emo|\bmedic\b|\bswp\b|\bgre.{0,6}t2\b"),
    ("T1w", r"\bt1.{0,6}flair"),
    ("FLAIR", r"flair|dark.?fluid|\btirm\b|t2.?da\.?fl"),
    ("T1w", r"t1|mp2?rage|spgr|bravo|vibe|\btfl"),
    ("PD", r"\bpd\b|\bpdw|proton"),
    ("T2w", r"t2"),
)
ENHANCED = re.compile(
    r"\+ ?c\b|\bpost\b|[^a-z]gd\b|gado|\bkm\b|\bce\b|contrast|t1post|t1 ?c\b|t1.?ce\b|t1gd|\+gd", re.IGNORECASE
)
BEFORE = re.compile(r"t1 ?pre|\bpre\b|w/?o\b|without|nativ|\bnon", re.IGNORECASE)
# Of enhanced images. 'T1' is not among them: Philips writes it into field maps.
ACQUISITION_CONTRASTS: dict[str, Contrast] = {
    "T2_STAR": "T2star", "FLUID_ATTENUATED": "FLAIR", "PROTON_DENSITY": "PD", "DIFFUSION": "DWI", "TOF": "MRA",
}  # fmt: skip
LOCALISER = re.compile(r"locali[sz]er|\bloc\b|scout|survey|smart ?brain|plan\b|3.?plane|tri.?plan", re.IGNORECASE)


@dataclass(frozen=True)
class Recognised:
    """The contrast, where it was read from, and the disagreement if there is one."""

    contrast: Contrast
    source: str
    conflict: str | None = None


def recognise(facts: SeriesFacts, b_value: float | None) -> Recognised:
    words, physics = by_words(facts), by_physics(facts, b_value)
    same = {words, physics} <= {"T1w", "T1w-contrast"} or words == physics
    # An ADC map is made of diffusion images, and carries their sequence.
    same = same or (words == "ADC" and physics == "DWI")
    if words and physics and not same:
        conflict = f"its description says {words}, its sequence parameters say {physics}"
        return Recognised("unknown", "conflict", conflict)
    found, source = (words, "description") if words else (physics, "sequence")
    if words and physics:
        source = "description and sequence"
    if found is None:
        return Recognised("unknown", "nothing known")
    return Recognised("T1w-contrast" if found == "T1w" and is_enhanced(facts) else found, source)


def by_words(facts: SeriesFacts) -> Contrast | None:
    if "ADC" in facts.image_type:
        return "ADC"
    text = facts.words.replace("_", " ").lower()
    return next((contrast for contrast, pattern in WORDS if re.search(pattern, text)), None)


def by_physics(facts: SeriesFacts, b_value: float | None) -> Contrast | None:
    """From scanning sequence and times in ms; None where several contrasts would have such values."""
    if b_value:
        return "DWI"
    return _by_times(facts) or ACQUISITION_CONTRASTS.get(facts.acquisition_contrast)


def _by_times(facts: SeriesFacts) -> Contrast | None:
    te, tr, ti = facts.echo_time_ms, facts.repetition_time_ms, facts.inversion_time_ms
    if te is None or tr is None:
        return None
    kinds = {one.upper() for one in facts.scanning}
    if kinds & {"EP"}:  # a b=0 image is no T2w of anybody's protocol
        return "T2star" if "GR" in kinds and te >= 15 else None
    if ti is not None and ti >= 1500 and te >= 60 and tr >= 4000:
        return "FLAIR"
    if "GR" in kinds or "GRADIENT" in kinds:
        if te >= 15:
            return "T2star"
        return "T1w" if te < 8 and ("MP" in kinds or ti is not None) else None
    if "SE" in kinds or "SPIN" in kinds:
        if te <= 30 and tr <= 1000:
            return "T1w"
        if te >= 60 and tr >= 2000 and ti is None:
            return "T2w"
        if te <= 40 and tr >= 1800 and ti is None:
            return "PD"
    return None


def is_enhanced(facts: SeriesFacts) -> bool:
    """The header's word for the agent counts most; the description's where it has none."""
    if facts.agent is not None:
        return facts.agent
    text = facts.words.replace("_", " ")
    return bool(ENHANCED.search(text)) and not BEFORE.search(text)
