"""Sums of products by letters as products of matrices: what is summed becomes one dimension, and what only one operand has another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from qcompiler.backends.native.plan.matmul import MatMul, float_rows, packed
from qcompiler.backends.native.plan.place import Axes
from qcompiler.backends.native.plan.planning import Facts, Planning
from qcompiler.backends.native.plan.shape import Reshape, View
from qcompiler.backends.native.steps import Step

MOST_SHARED = 3  # dimensions that both operands and the result have


@dataclass(frozen=True)
class Letters:
    """Of two operands and their result; `both`: in all three, `rows`, `columns`: in one operand and the result, `summed`: in the two."""

    a: str
    b: str
    out: str

    @staticmethod
    def of(equation: object) -> Letters | None:
        """None where it is no sum of products of two operands with each letter once in each."""
        text = str(equation).replace(" ", "")
        inputs, arrow, out = text.partition("->")
        parts = inputs.split(",")
        if not arrow or len(parts) != 2 or not all(part.isalpha() and len(set(part)) == len(part) for part in (*parts, out)):
            return None
        found = Letters(parts[0], parts[1], out)
        covered = set(out) <= set(found.a + found.b) and set(found.a) ^ set(found.b) <= set(out)
        return found if covered and found.summed and len(found.both) <= MOST_SHARED else None

    @property
    def both(self) -> str:
        return "".join(c for c in self.out if c in self.a and c in self.b)

    @property
    def rows(self) -> str:
        return "".join(c for c in self.out if c not in self.b)

    @property
    def columns(self) -> str:
        return "".join(c for c in self.out if c not in self.a)

    @property
    def summed(self) -> str:
        return "".join(c for c in self.a if c not in self.out)

    def result(self, y: Tensor, a: Axes, b: Axes) -> Tensor:
        """The product (*both, rows, columns) with the dimensions of the result; a, b: shapes of the operands."""
        sizes = dict(zip(self.a + self.b, (*a, *b), strict=True))
        order = self.both + self.rows + self.columns
        made: Tensor = y.unflatten(-1, [sizes[c] for c in self.columns] or [1]).unflatten(
            len(self.both), [sizes[c] for c in self.rows] or [1]
        )
        made = made if self.columns else made.squeeze(-1)
        made = made if self.rows else made.squeeze(len(self.both))
        made = made.permute([order.index(c) for c in self.out])
        return made


def refuse_einsum(step: Step, facts: Facts) -> str | None:
    if len(step.args) != 3 or Letters.of(step.args[0]) is None:
        return "its equation is no product of two matrices"
    if not all(facts.is_codes(a) or facts.is_floats(a) for a in step.args[1:]):
        return "one of its operands is not float32"
    return None


def plan_einsum(step: Step, planner: Planning) -> None:
    letters = Letters.of(step.args[0])
    assert letters is not None
    label, both = planner.label(step), letters.both
    a, b = (planner.operand(argument) for argument in step.args[1:])
    left = _matrix(f"{step.out}.left", a, (letters.a, both, letters.rows, letters.summed), planner)
    right = _matrix(f"{step.out}.right", b, (letters.b, both, letters.summed, letters.columns), planner)
    out, codes = planner.result(step)
    made = planner.add(MatMul(f"{step.out}.product", label, float_rows(f"%{left}", planner), packed(right, planner), right, codes))
    planner.add(View(out, label, made, "einsum", (f"%{a}", f"%{b}"), {}, letters.result), codes)


def _matrix(name: str, x: str, letters: tuple[str, str, str, str], planner: Planning) -> str:
    """An operand as (*both, first, second)."""
    own, both, first, second = letters
    codes, order = planner.codes.get(x), [own.index(c) for c in both + first + second]
    turned = planner.add(View(f"{name}.turned", name, x, "permute", (), {"dims": tuple(order)}), codes)
    return planner.add(Reshape(name, name, turned, "einsum", (), {}, _flat(len(both), len(first), len(second))), codes)


def _flat(both: int, first: int, second: int) -> Callable[[Tensor], Tensor]:
    """(*both, *first, *second) -> (*both, first, second); none of the one or the other is 1."""

    def flat(x: Tensor) -> Tensor:
        x = x.flatten(both + first) if second else x.unsqueeze(-1)
        return x.flatten(both, both + first - 1) if first else x.unsqueeze(both)

    return flat
