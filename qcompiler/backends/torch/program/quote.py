"""How text enters generated source: the only ways, so that no text of a file or a model can become code."""

from __future__ import annotations

import re

MAX_COMMENT = 160
TYPE_COMMENT = re.compile(r"#(?=\s*type)")


def comment(text: str) -> str:
    """One line of printable ASCII that cannot leave a comment."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:MAX_COMMENT]


def docstring(text: str) -> str:
    """A docstring in three quotes: printable ASCII and newlines, no quote or backslash that could end it."""
    plain = "".join(c if " " <= c <= "~" or c == "\n" else "?" for c in text)
    return '"""' + plain.replace("\\", "/").replace('"', "'") + '"""'


def literal(value: object) -> str:
    """A string, number or other plain value as Python writes it, in ASCII. What torch.jit would read as a type comment is escaped."""
    return TYPE_COMMENT.sub(r"\\x23", ascii(value))
