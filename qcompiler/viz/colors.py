"""Colours of kinds of nodes, told apart by people with any colour vision (Okabe and Ito), and as text beside it."""

from __future__ import annotations

KINDS = {
    "int8": ("#0072b2", "int8"),
    "float": ("#e69f00", "float"),
    "quantize": ("#009e73", "quantize"),
    "dequantize": ("#cc79a7", "dequantize"),
    "observer": ("#56b4e9", "observer"),
    "input": ("#5f6b7a", "input"),
    "output": ("#5f6b7a", "output"),
    "box": ("#8a94a3", "module"),
    "other": ("#a0a8b3", "other"),
}


SCALE = ((253, 231, 37), (33, 145, 140), (68, 1, 84))  # viridis, from low to high


def color_at(share: float) -> str:
    """The colour of a place on the scale, 0 to 1."""
    at = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    low = SCALE[min(int(at), len(SCALE) - 2)]
    high = SCALE[min(int(at), len(SCALE) - 2) + 1]
    return "#" + "".join(f"{round(a + (b - a) * (at - min(int(at), len(SCALE) - 2))):02x}" for a, b in zip(low, high, strict=True))


def color_of(kind: str) -> str:
    return KINDS.get(kind, KINDS["other"])[0]
