"""The one table of colours, for pictures and for the page: people with any colour vision tell them apart, and text stands beside each.

Kinds and categories are Okabe and Ito's; numbers are cividis, less its darkest end, which dark pages would swallow.
"""

from __future__ import annotations

import json

NONE = "#7f8790"
KINDS = {
    "int8": ("#0072b2", "int8"),
    "float": ("#e69f00", "float"),
    "quantize": ("#56b4e9", "quantize"),
    "dequantize": ("#009e73", "dequantize"),
    "observer": ("#cc79a7", "observer"),
    "pack": ("#b8a900", "pack"),
    "attr": (NONE, "attribute"),
    "input": (NONE, "input"),
    "output": (NONE, "output"),
    "box": (NONE, "module"),
    "other": (NONE, "other"),
}
CATEGORIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a900", NONE)
SCALE = ("#1f4b99", "#2a4d86", "#3f5078", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838")  # from low to high


def color_at(share: float) -> str:
    """The colour of a place on the scale, 0 to 1."""
    at = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    low = min(int(at), len(SCALE) - 2)
    channels = zip(_rgb(SCALE[low]), _rgb(SCALE[low + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (at - low)):02x}" for a, b in channels)


def _rgb(color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(color[1:]))


def color_of(kind: str) -> str:
    return KINDS.get(kind, KINDS["other"])[0]


def script() -> str:
    """The table as constants of the page's script."""
    kinds = {kind: color for kind, (color, _) in KINDS.items()}
    tables = {"KINDS": kinds, "CATEGORIES": CATEGORIES, "SCALE": SCALE, "NONE": NONE}
    return "".join(f"const {name} = {json.dumps(table)};\n" for name, table in tables.items())


def style() -> str:
    """The colours of the two kinds that the page's style sheet names."""
    return f":root {{ --int8: {color_of('int8')}; --float: {color_of('float')}; }}\n"
