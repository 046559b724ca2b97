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

SURFACES = {  # paper, lines and text of the page and of pictures: in the light and in the dark
    "bg": ("#f5f6f8", "#0e1116"),
    "panel": ("#ffffff", "#151920"),
    "raised": ("#ffffff", "#1b2028"),
    "line": ("#e2e5ea", "#272d37"),
    "line-2": ("#cbd1d9", "#3a424e"),
    "text": ("#1a1f26", "#e4e8ee"),
    "muted": ("#626d7a", "#939dab"),
    "accent": ("#2457d6", "#7ea6ff"),
    "accent-soft": ("#e8eefc", "#1d2a47"),
    "hover": ("#f0f2f5", "#1e242d"),
    "edge": ("#9aa5b3", "#59636f"),
    "edge-near": ("#2457d6", "#7ea6ff"),
    "level": ("#fafbfc", "#12161c"),
    "level-2": ("#f2f4f7", "#171b22"),
    "added": ("#1a7f37", "#4cc26a"),
    "added-soft": ("#e3f5e8", "#12301c"),
    "removed": ("#c4212c", "#ff7a72"),
    "removed-soft": ("#fdeaea", "#3a1a1c"),
    "replaced": ("#8f5b00", "#e0a63a"),
    "replaced-soft": ("#fdf1d8", "#35280f"),
}
ON = {"int8": "#ffffff", "float": "#1a1200"}  # text on the colour of a kind


def surface(name: str, dark: bool = False) -> str:
    return SURFACES[name][dark]


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
    paper = {"light": surface("panel"), "dark": surface("panel", dark=True)}
    tables = {"KINDS": kinds, "CATEGORIES": CATEGORIES, "SCALE": SCALE, "NONE": NONE, "PAPER": paper}
    return "".join(f"const {name} = {json.dumps(table)};\n" for name, table in tables.items())


def style() -> str:
    """The table as variables of the page's style sheet, which a button changes to the dark."""
    kinds = "".join(f" --{kind}: {color_of(kind)}; --on-{kind}: {on};" for kind, on in ON.items())
    return f':root {{{kinds}{_variables(0)} }}\n:root[data-theme="dark"] {{{_variables(1)} }}\n'


def style_of_system() -> str:
    """The surfaces as variables of a page without a button, which is dark where the reader's system is."""
    dark = f"@media (prefers-color-scheme: dark) {{ :root {{{_variables(1)} }} }}"
    return f":root {{ color-scheme: light dark;{_variables(0)} }}\n{dark}\n"


def _variables(theme: int) -> str:
    return "".join(f" --{name}: {pair[theme]};" for name, pair in SURFACES.items())
