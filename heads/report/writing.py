"""From findings to a draft, whoever words it: three levels behind one interface, each falling to the one below with a reason.

    writers, reasons = load_writers([folder])          a small decoder, a folder of any causal model, or none
    draft = write_report(reading, writers)
    for sentence in stream_report(reading, writers): ...         the same sentences, while they are being written

Every sentence is filled from the findings and read back by the verifier. One that fails is written once more, then by the next
writer, then replaced by its plain template; the sentence says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from foundation.checkpoint import read_about
from foundation.errors import InputError
from foundation.findings import Reading
from foundation.study import Study
from heads.base import default_folders
from heads.report import SECTIONS, Draft, Sentence
from heads.report.plan import Statement, Style, plan
from heads.report.slots import UnfilledSlot, fill
from heads.report.templates import closing, draft, opening, statement_text, unworded
from heads.report.verifier import verify_sentence

SECOND_TRY = 0.7  # the temperature at which a sentence is written once more
# A small decoder that has lost its thread; the verifier reads content and not grammar.
UNFINISHED = re.compile(r"\b(a|an|the|on|of|to|in|at|by|with|and|or)\.$", re.IGNORECASE)
TWICE = re.compile(r"\b([a-z]+) \1\b", re.IGNORECASE)


@runtime_checkable
class Writer(Protocol):
    """Words statements as sentences with slots. `name` is what a sentence says of who wrote it.

    `look` gives what it wants to know of a study's images, None if that is nothing; `write` takes that back as `images`, and gives
    each sentence with its statement's place as soon as it is written, in any order.
    """

    name: str

    def look(self, study: Study) -> Tensor | None: ...

    def write(
        self,
        statements: Sequence[Statement],
        style: Style,
        *,
        seed: int = 0,
        temperature: float = 0.0,
        images: Tensor | None = None,
    ) -> Iterator[tuple[int, str]]: ...


def load_writers(folders: Sequence[Path], backbones: Sequence[Path] = ()) -> tuple[list[Writer], list[str]]:
    """The writers in these folders, best first, or the default one; and why any cannot be used. Without one, templates remain.

    `backbones` are where encoders may be that writers see images through, if not where they were.
    """
    writers: list[Writer] = []
    reasons: list[str] = []
    for folder in folders or default_writers():
        try:
            writers.append(load_writer(folder, backbones))
        except InputError as error:
            reasons.append(f"{folder} does not write: {error}")
    return writers, reasons


def default_writers() -> list[Path]:
    """The small decoders among the models that are used when none is named."""
    return default_folders("report")


def load_writer(folder: Path, backbones: Sequence[Path] = ()) -> Writer:
    """A small decoder made by `larmor report-train`, or any causal model that transformers can load, with or without LoRA."""
    if (folder / "adapter_config.json").is_file() or _is_of_transformers(folder):
        from heads.report.folder import FolderWriter

        return FolderWriter.load(folder, backbones)
    from heads.report.decoder import Decoder

    return Decoder.load(folder, backbones)


def _is_of_transformers(folder: Path) -> bool:
    try:
        read_about(folder)
    except InputError:
        return (folder / "config.json").is_file() and '"model_type"' in (folder / "config.json").read_text(
            errors="replace"
        )
    return False


def write_report(
    reading: Reading,
    writers: Sequence[Writer] = (),
    style: Style | None = None,
    *,
    seed: int = 0,
    reasons: Sequence[str] = (),
    study: Study | None = None,
    said: Callable[[Sentence], None] | None = None,
) -> Draft:
    """The whole draft; without a writer it is the plain templates. `reasons` say why better writers were not used; `study` is for
    writers that look at images; `said` hears each sentence when it is written."""
    sentences: list[Sentence] = []
    for sentence in stream_report(reading, writers, style, seed=seed, study=study):
        sentences.append(sentence)
        if said is not None:
            said(sentence)
    notes = [one.note for one in sentences if one.note]
    return Draft(tuple(sentences), (*reasons, *notes))


def stream_report(
    reading: Reading,
    writers: Sequence[Writer] = (),
    style: Style | None = None,
    *,
    seed: int = 0,
    study: Study | None = None,
) -> Iterator[Sentence]:
    """The sentences of `write_report` in the order of the page, each as soon as it is verified and those before it are there."""
    if not writers:
        yield from draft(reading).sentences
        return
    style = style or Style()
    statements = plan(reading, style)
    seen = [None if study is None else one.look(study) for one in writers]
    fixed = [
        *(one for one in opening(reading) if one.section != "Indication" or not one.finding_ids),
        *unworded(reading, statements),
        *closing(reading),
    ]
    for section in SECTIONS:
        yield from (one for one in fixed if one.section == section)
        own = [one for one in statements if one.section == section]
        yield from _worded(own, list(zip(writers, seen)), style, seed=seed)


def _worded(
    statements: Sequence[Statement], writers: Sequence[tuple[Writer, Tensor | None]], style: Style, *, seed: int
) -> Iterator[Sentence]:
    done: dict[int, Sentence] = {}
    why: dict[int, str] = {}
    given = 0
    for writer, images in writers:
        for attempt in range(2):
            left = [at for at in range(len(statements)) if at not in done]
            if not left:
                break
            for place, text in writer.write(
                [statements[at] for at in left], style, seed=seed + attempt, temperature=SECOND_TRY * attempt, images=images
            ):  # fmt: skip
                at = left[place]
                sentence, problem = checked(text, statements[at], writer.name)
                if sentence is not None:
                    done[at] = replace(sentence, note=why.get(at))
                else:
                    why[at] = f"{writer.name} was turned down: {problem}"
                while given in done:
                    yield done[given]
                    given += 1
    for at in range(given, len(statements)):
        statement = statements[at]
        plain = Sentence(statement.section, statement_text(statement), statement.finding_ids, note=why.get(at))
        yield done.get(at, plain)


def checked(text: str, statement: Statement, writer: str) -> tuple[Sentence | None, str]:
    """The sentence with its slots filled if it says what its findings say and nothing else; otherwise what is wrong."""
    try:
        filled = fill(text, statement)
    except UnfilledSlot as error:
        return None, f"slot {error}"
    if not filled.endswith(".") or UNFINISHED.search(filled):
        return None, "no end"
    if twice := TWICE.search(filled):
        return None, f"'{twice[1]}' twice in a row"
    problems = verify_sentence(filled, statement.findings, has_prior=statement.prior is not None)
    if problems:
        return None, f"{problems[0].kind}, {problems[0].text}"
    return Sentence(statement.section, filled, statement.finding_ids, writer), ""
