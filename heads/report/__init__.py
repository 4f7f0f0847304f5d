"""The drafted report: sentences that each name the findings they word, whoever wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Section = Literal["Technique", "Findings", "Impression", "Outlook", "Limits"]
SECTIONS: tuple[Section, ...] = get_args(Section)


@dataclass(frozen=True)
class Sentence:
    """One checkable statement, on one line. It cites the findings that it words; without any, it states none."""

    section: Section
    text: str
    finding_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draft:
    """A report that a clinician has yet to check, sentence by sentence."""

    sentences: tuple[Sentence, ...]

    def section(self, name: Section) -> tuple[Sentence, ...]:
        return tuple(sentence for sentence in self.sentences if sentence.section == name)
