"""Long work shows how far it is and when it will end. Imports next to nothing: whoever needs only this need not wait."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress(*, total: int | None, label: str, unit: str, initial: int = 0, enabled: bool = True) -> tqdm:
    """A progress bar with an ETA; in a log file it prints a line now and then instead of a thousand."""
    quiet = not sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=label,
        unit=unit,
        disable=not enabled,
        dynamic_ncols=True,
        mininterval=20 if quiet else 0.3,
    )
