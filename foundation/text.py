"""Text from outside as one line that shows what it holds: no line breaks, no control characters, nothing that turns a line round.

one_line("head\\x00ache\\u202e")      "headache"
"""

from __future__ import annotations

import re
from ast import literal_eval

# Control characters, zero-width ones, those that set the direction of writing, tags, and halves of surrogate pairs. A page does not
# show them, and what a reader cannot see must not change what he reads (bidirectional text: CVE-2021-42574).
HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


BYTES = re.compile(r"b(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")")


def shown(content: bytes) -> str:
    """Bytes for who never met Python: as they read, if all of them can be read, otherwise by their numbers."""
    text = content.decode("latin-1")
    if not content:
        return "none"
    return f"'{text}'" if text.isascii() and text.isprintable() else f"the bytes {content.hex(' ')}"


def without_bytes(message: object) -> str:
    """A library's message with what it says of bytes as a reader would write it."""
    return BYTES.sub(lambda match: shown(literal_eval(match[0])), str(message))


def one_line(text: str, *, most: int | None = None) -> str:
    """The text with single blanks and without what is hidden; of more than `most` characters the beginning, and an ellipsis."""
    line = " ".join(HIDDEN.sub("", re.sub(r"\s+", " ", text)).split())
    return line if most is None or len(line) <= most else f"{line[: most - 1].rstrip()}…"
