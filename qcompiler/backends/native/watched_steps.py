"""A region as steps for those who compare: its run, behind it each value of codes that its C computed, and what it hands out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from qcompiler.backends.native.region import NativeRegion
from qcompiler.executable.steps import Env, Step
from qcompiler.ops.reference import dequantize


@dataclass
class WatchedRegion:
    """`given`: the names of the values that the region takes, in order. What was fused away has no step."""

    region: NativeRegion
    given: Sequence[str]
    values: dict[str, Tensor] = field(default_factory=dict)  # of the last run

    def __post_init__(self) -> None:
        self.layers = {layer.out: layer for layer in self.region.network.layers}

    def steps(self, step: Step, inputs: Callable[[Env], list[Tensor]]) -> list[Step]:
        """`step` is the run of the region, and `inputs` its arguments. Its values depend on each other, and not on the run as a whole."""

        def run(env: Env) -> Any:
            self.values.clear()
            self.values.update(self.region.watch(*inputs(env)).values)
            return self.region(*inputs(env))

        kept = [name for name in self.region.places if name in self.layers]
        return [replace(step, run=run, origin=(), inputs=()), *map(self._value, kept)]

    def handed_out(self, step: Step, index: int) -> Step:
        """The step that takes a result of the region, as one that depends on the values behind it."""
        return replace(step, inputs=(*step.inputs, *self._inputs(self.region.network.outputs[index])))

    def _value(self, name: str) -> Step:
        place, codes = self.region.places[name], self.region.network.codes[name]
        op = f"native.{self.layers[name].text().split(' ')[0]}"

        def run(env: Env) -> Tensor:
            return dequantize(self.values[name], codes.scale, codes.zero)

        return Step(name, "call", op, self._inputs(name), place.origin, run, place.path, place.line)

    def _inputs(self, name: str) -> tuple[str, ...]:
        """The values with a step of their own that a value is computed from, through those without one."""
        outside = dict(zip((name for name, _ in self.region.network.inputs), self.given, strict=True))
        found: dict[str, None] = {}
        waiting = list(self.layers[name].reads) if name in self.layers else []
        while waiting:
            one = waiting.pop(0)
            if one in outside or one in self.region.places:
                found[outside.get(one, one)] = None
            elif one in self.layers:
                waiting += self.layers[one].reads
        return tuple(found)
