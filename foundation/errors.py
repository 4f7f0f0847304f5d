"""The one family of errors that a user can cause."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from traceback import walk_tb


class InputError(ValueError):
    """Something the user gave us breaks a rule: which rule, what we received, how to mend it, in which file.

    Our own mistakes are `assert` failures; everything a file, a command line or a form can get wrong is this.
    """

    where: str | None = None  # the place in our code, if the rule was broken in another process

    def __init__(self, rule: str, *, got: object, remedy: str, file: str | Path | None = None):
        self.rule = rule
        self.got = got
        self.remedy = remedy
        self.file = None if file is None else str(file)
        super().__init__(rule, got, remedy, file)

    def __reduce__(self):
        """Pickled as it was raised, so that an error in a worker process reaches the user as itself."""
        return partial(InputError, got=str(self.got), remedy=self.remedy, file=self.file), (self.rule,)

    def __str__(self) -> str:
        place = f"{self.file}: " if self.file else ""
        return f"{place}{self.rule} (got {self.got}). {self.remedy}"

    def in_file(self, file: str | Path) -> InputError:
        """The same complaint, with the file it was found in."""
        return InputError(self.rule, got=self.got, remedy=self.remedy, file=file)


def place_of(error: BaseException) -> str:
    """Where an error arose, as 'module.function': what may be kept of one whose message may name a patient.

    A complaint that was raised again with the name of its file is looked for where it was raised first.
    """
    while isinstance(error.__context__, InputError) and isinstance(error, InputError) and error.where is None:
        error = error.__context__
    if isinstance(error, InputError) and error.where is not None:
        return error.where
    frames = list(walk_tb(error.__traceback__))
    if not frames:
        return "nowhere"
    frame = frames[-1][0]
    return f"{frame.f_globals.get('__name__', 'unknown')}.{frame.f_code.co_name.strip('<>')}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A remedy for a misspelt name: the closest known one if any is close, otherwise all of them."""
    choices = sorted(known)
    close = get_close_matches(name, choices, n=1)
    return f"Did you mean '{close[0]}'?" if close else f"Use one of: {', '.join(choices)}."
