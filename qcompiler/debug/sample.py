"""What multiply-accumulates are counted for: one sample of the example inputs, where these are a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import fx

from qcompiler.ir.form import Form
from qcompiler.ir.nested import walk
from qcompiler.ir.types import value_of


@dataclass(frozen=True)
class Sample:
    """`count`: the samples of the example inputs, 1 where they are no batch. `shape`: of one sample, such as `3x224x224`, of several
    inputs with commas between; empty where it is unknown, in files of older versions and in the eager flow.
    """

    count: int = 1
    shape: str = ""

    @property
    def unit(self) -> str:
        """`per sample`, or `per call` where the example is no batch, or nobody knows."""
        return "per sample" if self.batched else "per call"

    @property
    def batched(self) -> bool:
        return bool(self.shape) and not self.shape.startswith("(")

    def __str__(self) -> str:
        return f"{self.unit} {'of' if self.batched else 'with'} {self.shape.strip('()') or 'the example inputs'}"

    def to_data(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def from_data(data: Mapping[str, Any] | None) -> Sample:
        return Sample(**data) if data else UNKNOWN


UNKNOWN = Sample()


def sample_of(graph: fx.Graph) -> Sample:
    """A batch is what all inputs and all results of the graph share as their first dimension: of tensors with two dimensions at least."""
    given = list(_shapes(graph.find_nodes(op="placeholder")))
    results = list(_shapes(v for n in graph.find_nodes(op="output") for v in walk(n.args) if isinstance(v, fx.Node)))
    firsts = {shape[:1] for shape in (*given, *results) if len(shape) != 1}
    if not given:
        return UNKNOWN
    if len(firsts) == 1 and () not in firsts and min(firsts)[0] > 0:
        return Sample(min(firsts)[0], ", ".join(_spelled(shape[1:]) for shape in given))
    return Sample(1, f"({', '.join(map(_spelled, given))})")


def _shapes(nodes: Iterable[fx.Node]) -> Iterator[tuple[int, ...]]:
    """Of all tensors, those inside containers among them."""
    for value in map(value_of, nodes):
        if value.shape is not None:
            yield value.shape
        elif value.form is not None:
            yield from _inside(value.form)


def _inside(form: Form) -> Iterator[tuple[int, ...]]:
    if form.kind == "tensor":
        yield form.shape
    for part in form.parts:
        yield from _inside(part)


def _spelled(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "1"


def short_count(number: float) -> str:
    """`1.82 G`, `113 M`, `74.1 k`, `96`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"
