"""The `larmor report-train` command: a small decoder from nothing, or an adapter for a language model of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foundation.config import load_config
from foundation.errors import InputError


def train_command(
    out: Path,
    *,
    start: Path | None = None,
    images: Path | None = None,
    encoder: Path | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """With `images`, a cohort's folder, and an `encoder` the writer sees the images beside the claims."""
    if (images is None) != (encoder is None):
        remedy = "Give both --images COHORT and --encoder DIR, or neither."
        raise InputError("a writer sees images through an encoder", got="one of the two", remedy=remedy)
    if images is not None and encoder is not None:
        overrides = [f"images.cohort={images.resolve()}", f"images.encoder={encoder.resolve()}", *overrides]
    if start is None:
        from heads.report.learning import LearnConfig, train_decoder

        train_decoder(load_config(LearnConfig, None, overrides), out)
    else:
        from heads.report.folder import FolderConfig, train_folder

        train_folder(start, load_config(FolderConfig, None, overrides), out)
    print(f"wrote {out / 'model'}")
