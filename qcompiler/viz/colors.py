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


def color_of(kind: str) -> str:
    return KINDS.get(kind, KINDS["other"])[0]
