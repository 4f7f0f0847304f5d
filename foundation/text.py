"""Text from outside as one line that shows what it holds: no line breaks, no control characters, nothing that turns a line round.

one_line("head\\x00ache\\u202e")      "headache"
"""

from __future__ import annotations

import re

# Control characters, zero-width ones, those that set the direction of writing, tags, and halves of surrogate pairs. A page does not
# show them, and what a reader cannot see must not change what he reads (bidirectional text: CVE-2021-42574).
HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def one_line(text: str, *, most: int | None = None) -> str:
    """The text with single blanks and without what is hidden; of more than `most` characters the beginning, and an ellipsis."""
    line = " ".join(HIDDEN.sub("", re.sub(r"\s+", " ", text)).split())
    return line if most is None or len(line) <= most else f"{line[: most - 1].rstrip()}…"
