"""A region as steps for those who compare: its run, behind it each value of codes that its C computed, and what it hands out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx

from qcompiler.backends.native.plan.codes import Codes
from qcompiler.backends.native.plan.edges import Dequantize
from qcompiler.backends.native.region import NativeRegion
from qcompiler.backends.native.runtime import native_region, run_region
from qcompiler.executable.steps import Env, Grid, Step, Steps, steps_of_graph
from qcompiler.ir.attributes import attribute
from qcompiler.ops.functional import getitem
from qcompiler.ops.reference import dequantize

LAYER = "native."  # before what a step of a value inside of a region is called
Inputs = Callable[[Env], list[Tensor]]  # the tensors that a region is called on


@dataclass
class WatchedRegion:
    """`given`: the names of the values that the region takes, in order. What was fused away has no step.

    `names`: what the steps of its values are called, where a step outside has the name of the value.
    """

    region: NativeRegion
    given: Sequence[str]
    names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layers = {layer.out: layer for layer in self.region.network.layers}

    def steps(self, step: Step, inputs: Inputs) -> list[Step]:
        """`step` is the run of the region, and `inputs` its arguments. Its values depend on each other, and not on the run as a whole."""

        kept = f"{step.name} values"  # no name of a step: what this run kept, beside what it hands out

        def run(env: Env) -> Any:
            env[kept] = self.region.watch(*inputs(env))
            return self.region(*inputs(env))

        values = [self._value(name, kept) for name in self.watched()]
        return [replace(step, run=run, origin=(), inputs=self._sizes_alone(), takes=tuple(self.given)), *values]

    def watched(self) -> list[str]:
        """The values that have a step."""
        return [name for name in self.region.places if name in self.layers]

    def _sizes_alone(self) -> tuple[str, ...]:
        """What the region takes for its sizes: no value inside is computed from it, and the run still needs it."""
        read = {name for layer in self.region.network.layers for name in layer.reads}
        names = (name for name, _ in self.region.network.inputs)
        return tuple(given for name, given in zip(names, self.given, strict=True) if name not in read)

    def handed_out(self, step: Step, index: int) -> Step:
        """The step that takes a result of the region, as one that depends on the values behind it. Floats of codes are on their grid."""
        out = self.region.network.outputs[index]
        layer = self.layers.get(out)
        grid = _grid(layer.codes) if isinstance(layer, Dequantize) else None
        return replace(step, inputs=(*step.inputs, *self._inputs(out)), grid=grid)

    def _value(self, name: str, kept: str) -> Step:
        place, codes = self.region.places[name], self.region.network.codes[name]
        op = f"{LAYER}{self.layers[name].text().split(' ')[0]}"

        def run(env: Env) -> Tensor:
            return dequantize(env[kept][name], codes.scale, codes.zero)

        return Step(
            self.names.get(name, name), "call", op, self._inputs(name), place.origin, run, place.path, place.line, grid=_grid(codes),
            is_past=True,
        )  # fmt: skip

    def _inputs(self, name: str) -> tuple[str, ...]:
        """The values with a step of their own that a value is computed from, through those without one."""
        outside = dict(zip((name for name, _ in self.region.network.inputs), self.given, strict=True))
        found: dict[str, None] = {}
        waiting = list(self.layers[name].reads) if name in self.layers else []
        while waiting:
            one = waiting.pop(0)
            if one in outside or one in self.region.places:
                found[outside.get(one, self.names.get(one, one))] = None
            elif one in self.layers:
                waiting += self.layers[one].reads
        return tuple(found)


def _grid(codes: Codes) -> Grid:
    return codes.scale, codes.zero, codes.low, codes.high


@dataclass(frozen=True)
class WatchedRegions:
    """The regions among the steps of a program or graph, by the name of the step that runs them. `taken`: the names of its steps, and of
    those of the regions so far: what one region hands out may be rounded again outside, or in another one."""

    taken: set[str]
    regions: dict[str, WatchedRegion] = field(default_factory=dict)

    def steps(self, step: Step, region: WatchedRegion, inputs: Inputs) -> list[Step]:
        """The run of a region, and behind it the values inside."""
        named = replace(region, names={name: self._free(name) for name in region.watched()})
        self.regions[step.name] = named
        return named.steps(step, inputs)

    def _free(self, name: str) -> str:
        """The name, or one like it that no step has yet."""
        candidates = (name, *(f"{name}_{number}" for number in range(1, len(self.taken) + 2)))
        found = next(candidate for candidate in candidates if candidate not in self.taken)
        self.taken.add(found)
        return found

    def handed_out(self, step: Step, index: int) -> Step:
        """A step that takes an item: of a region's results, as one that depends on the values behind it."""
        region = self.regions.get(step.inputs[0]) if step.inputs else None
        return region.handed_out(step, index) if region is not None else step


def steps_of_lowered(gm: fx.GraphModule) -> Steps:
    """The steps of a graph whose native regions are calls, with the values that the C of each region computed."""
    whole, nodes = steps_of_graph(gm), {node.name: node for node in gm.graph.nodes}
    watched = WatchedRegions(set(nodes))

    def steps(step: Step) -> list[Step]:
        node = nodes[step.name]
        if node.target is getitem:
            index: Any = node.kwargs.get("index")
            return [watched.handed_out(step, index)]
        if node.target is native_region:
            return []  # made once, with the step that runs it
        if node.target is not run_region:
            return [step]
        pack, given = _region_nodes(node)
        region = WatchedRegion(_made(gm, pack), [one.name for one in given])
        run = replace(step, inputs=tuple(one.name for one in given))
        return watched.steps(run, region, lambda env: [env[one.name] for one in given])

    return replace(whole, steps=tuple(one for step in whole.steps for one in steps(step)))


def _region_nodes(run: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """The node that makes a region, and those of the tensors that it is run on."""
    pack, given = run.args
    assert isinstance(pack, fx.Node) and isinstance(given, (list, tuple))
    return pack, [one for one in given if isinstance(one, fx.Node)]


def _made(gm: fx.GraphModule, pack: fx.Node) -> NativeRegion:
    args: Any = fx.node.map_arg(pack.args, lambda node: attribute(gm, str(node.target)))
    return native_region(*args)
