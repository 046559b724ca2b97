"""Text of models made safe to draw: names are the user's, and may hold anything."""

from __future__ import annotations

import unicodedata
from typing import Any

UNSAFE = ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp")  # control, direction and format marks, surrogates, unassigned, line ends


def plain(text: Any, limit: int | None = None) -> str:
    """One line of printable text: control characters, escapes and direction marks are spelled out; at most `limit` characters."""
    made = str(text)
    if not made.isprintable():
        made = "".join(_spelled(c) if unicodedata.category(c) in UNSAFE else c for c in made)
    return made if limit is None or len(made) <= limit else made[: max(limit - 1, 0)] + "…"


def _spelled(character: str) -> str:
    code = ord(character)
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def short_op(op: str) -> str:
    """An op without the library and the overload: `quantized.conv2d.new` is conv2d."""
    parts = op.split(".")
    return parts[1] if len(parts) == 3 and parts[0] in ("quantized", "onednn", "aten") else op


def shape_text(node: dict[str, Any]) -> str:
    """`uint8 1×3×224×224`, of what is known."""
    shape = node.get("shape")
    return " ".join(filter(None, (str(node.get("dtype", "")), "×".join(map(str, shape)) if shape else "")))


def count_text(value: float) -> str:
    """A large count in three digits: 300 M, 1.28 M, 864."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"
