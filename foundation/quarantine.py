"""Bad files: each is set aside by name and reason, the work goes on without it, and too many of them end it.

One damaged file in a thousand is what large collections are like, and stopping there would cost days. One in ten means that
something is wrong with all of them (a converter, a disk, a path), and going on would hide it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from foundation.errors import InputError
from foundation.files import write_aside

# A share of a small collection is less than one file. Two or three bad ones are bad luck and printed where nobody
# overlooks them.
ALWAYS_ALLOWED = 3
SHARE = 0.01
SHOWN = 20


@dataclass(frozen=True)
class BadFile:
    """A file that was left out, and the complaint about it."""

    file: str
    reason: str

    @classmethod
    def of(cls, file: str, error: InputError) -> BadFile:
        return cls(file, f"{error.rule} (got {error.got})")


def allowed(budget: float, total: int) -> int:
    """How many of `total` files may be bad; a budget of 0 allows none at all."""
    return max(ALWAYS_ALLOWED, int(budget * total)) if budget > 0 else 0


def check_budget(bad: Sequence[BadFile], total: int, budget: float, *, listed: Path) -> None:
    """Stop once more than the budget is bad."""
    if len(bad) > allowed(budget, total):
        raise InputError(
            f"at most {allowed(budget, total)} of {total} files are bad (a budget of {budget:g})",
            got=f"{len(bad)}; the last, {bad[-1].file}: {bad[-1].reason}",
            remedy="Mend what they have in common, or raise the budget; the same command then continues.",
            file=listed,
        )


def write_bad_files(path: Path, bad: Iterable[BadFile]) -> None:
    with write_aside(path) as aside:
        aside.write_text("".join(json.dumps(asdict(one)) + "\n" for one in bad))


def read_bad_files(path: Path) -> list[BadFile]:
    """The files that were set aside, each once, in the order they were met; none where there is no list."""
    if not path.is_file():
        return []
    found: dict[str, BadFile] = {}
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
            found.setdefault(entry["file"], BadFile(entry["file"], entry["reason"]))
        except (
            ValueError,
            KeyError,
            TypeError,
        ):  # a line cut short by a crash; who meets the file again lists it again
            continue
    return list(found.values())


def append_bad_file(path: Path, bad: BadFile) -> None:
    """One line, by one write at the end of the file: several processes of a machine may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps(asdict(bad)) + "\n").encode())


def describe(bad: Sequence[BadFile]) -> str:
    """For the end of a run: how many, and the first of them by name."""
    lines = [f"{len(bad)} bad {'file was' if len(bad) == 1 else 'files were'} left out:"]
    lines += [f"  {one.file}: {one.reason}" for one in bad[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"  and {len(bad) - SHOWN} more")
    return "\n".join(lines)
