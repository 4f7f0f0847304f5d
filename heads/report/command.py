"""The `larmor report-train` command: a small decoder from nothing, or an adapter for a language model of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foundation.config import load_config


def train_command(out: Path, *, start: Path | None = None, overrides: Sequence[str] = ()) -> None:
    if start is None:
        from heads.report.learning import LearnConfig, train_decoder

        train_decoder(load_config(LearnConfig, None, overrides), out)
    else:
        from heads.report.folder import FolderConfig, train_folder

        train_folder(start, load_config(FolderConfig, None, overrides), out)
    print(f"wrote {out / 'model'}")
