"""The drafted report: sentences that each name the findings they word, whoever wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Section = Literal["Indication", "Technique", "Comparison", "Findings", "Impression", "Limits"]
SECTIONS: tuple[Section, ...] = get_args(Section)


@dataclass(frozen=True)
class Sentence:
    """One checkable statement, on one line. It cites the findings that it words; without any, it states none.

    `writer` says who worded it, `note` why it was not the writer that was asked.
    """

    section: Section
    text: str
    finding_ids: tuple[str, ...] = ()
    writer: str = "templates"
    note: str | None = None


@dataclass(frozen=True)
class Draft:
    """A report that a clinician has yet to check, sentence by sentence; `remarks` are for the log, not for the page."""

    sentences: tuple[Sentence, ...]
    remarks: tuple[str, ...] = ()

    def section(self, name: Section) -> tuple[Sentence, ...]:
        return tuple(sentence for sentence in self.sentences if sentence.section == name)

    def text(self, *, listed: bool = False) -> str:
        """Plain text: a heading and a paragraph per section, or a list."""
        parts = []
        for name in SECTIONS:
            if found := [sentence.text for sentence in self.section(name)]:
                parts.append(
                    f"{name.upper()}\n" + ("\n".join(f"- {one}" for one in found) if listed else " ".join(found))
                )
        return "\n\n".join(parts) + "\n"
