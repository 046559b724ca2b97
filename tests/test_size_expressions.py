"""Sizes as expressions: what they print is Python, and gives what they evaluate to."""

from __future__ import annotations

import itertools

import pytest

from qcompiler.stages.size_expressions import Name, Size, add, evaluate, floor, least, modulo, names_in, times

H, W = Name("height"), Name("width")
EXPRESSIONS: list[tuple[Size, str]] = [
    (add(H, 3, W, -3), "height + width"),
    (add(H, 2, -5), "height - 3"),
    (add(2, 3), "5"),
    (times(2, H, 3, W), "6 * height * width"),
    (times(H, 0), "0"),
    (times(add(H, 1), W), "(height + 1) * width"),
    (floor(add(H, 1), 2), "(height + 1) // 2"),
    (floor(add(H, -1), 2), "(height + 1) // 2 - 1"),
    (add(floor(add(H, -2), 2), 1), "height // 2"),
    (floor(add(H, 7), 3), "(height + 1) // 3 + 2"),
    (floor(times(4, H), 2), "2 * height"),
    (floor(H, 1), "height"),
    (floor(H, add(W, 1)), "height // (width + 1)"),
    (times(2, floor(H, 2)), "2 * (height // 2)"),
    (modulo(times(-1, H), 8), "(-1 * height) % 8"),
    (modulo(times(8, H), 8), "0"),
    (floor(modulo(H, 7), 2), "(height % 7) // 2"),
    (least(H, W, H), "min(height, width)"),
    (least(H, H), "height"),
    (add(times(-1, H), W), "-1 * height + width"),
    (add(W, times(-2, floor(H, 2))), "width + -2 * (height // 2)"),
    (floor(17, 5), "3"),
]


@pytest.mark.parametrize(("expression", "text"), EXPRESSIONS, ids=[text for _, text in EXPRESSIONS])
def test_an_expression_is_python(expression: Size, text: str) -> None:
    assert str(expression) == text
    for height, width in itertools.product((1, 4, 7, 30), (2, 9, 31)):
        values = {"height": height, "width": width}
        assert evaluate(expression, values) == eval(text, {}, values)
    assert set(names_in(expression)) == {name for name in ("height", "width") if name in text}
