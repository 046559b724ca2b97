"""QUANTIZED -> LOWERED of the native back end: native regions become calls, the rest is lowered to torch's kernels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from torch import fx

from qcompiler.backends.native.float_copies import round_before_copies
from qcompiler.backends.native.known import reads, rounded
from qcompiler.backends.native.partition import Partition, unit_of
from qcompiler.backends.native.read import Reader, is_known
from qcompiler.backends.native.runtime import native_region, run_region
from qcompiler.backends.native.sizes_of_likes import ask_for_sizes
from qcompiler.backends.native.steps import DEQUANTIZE, VALUE, Place, Region, Step
from qcompiler.backends.torch.passes.lower import Lower
from qcompiler.compile.pass_manager import Context
from qcompiler.errors import ConfigError
from qcompiler.ir.types import MACS, SOURCE, Source, Stage, Value, quant_of, source_of, value_of
from qcompiler.ir.types import VALUE as VALUE_KEY
from qcompiler.ops.functional import getitem
from qcompiler.ops.reference import dequantize, dequantize_weight, dynamic_quantize_dequantize, quantize


@dataclass(frozen=True)
class LowerNative:
    name: str = "lower_native"
    stage: Stage = Stage.LOWERED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        custom = context.settings.custom
        if custom.input_quantized_indexes or custom.output_quantized_indexes:
            raise ConfigError("the native back end takes and hands out floats", code="custom-config",
                              hint='leave quantized inputs and outputs out, or take backend="torch"')  # fmt: skip
        context.journal.integers += round_before_copies(gm, context.table)
        ask_for_sizes(gm)
        partition = Partition.of(gm, context.table)
        for node, reason in partition.reasons.items():
            context.remark(self.name, "native-torch", f"runs in torch: {reason}", node)
        if partition.depth:
            gm.graph = _Rewriter(gm, partition, context).graph()
        return Lower(sums_fit=False).run(gm, context)  # activations have 8 bits, which the C is right for


@dataclass
class _Part:
    """One region to be: its units, and what it takes from outside."""

    units: list[fx.Node] = field(default_factory=list)
    inputs: dict[str, fx.Node] = field(default_factory=dict)  # name of the input -> node with its float value
    outputs: dict[fx.Node, None] = field(default_factory=dict)


class _Rewriter:
    """Puts the call of a region in the place of its nodes. An item of the new order is a node of torch's or the depth of a region."""

    def __init__(self, gm: fx.GraphModule, partition: Partition, context: Context) -> None:
        self.gm, self.partition, self.context = gm, partition, context
        self.parts: dict[int, _Part] = {}
        for node, depth in partition.depth.items():
            self.parts.setdefault(depth, _Part()).units.append(node)
        self.new = fx.Graph()
        self.new.owning_module = gm
        self.made: dict[fx.Node, fx.Node] = {}
        self.arguments = _places_of(node for node in gm.graph.nodes if node.op == "placeholder")
        self.results = _places_of(gm.graph.output_node().all_input_nodes)

    def item(self, node: fx.Node) -> Any:
        """What computes a value: a region for its units, and for their codes and floats."""
        return self.partition.depth.get(unit_of(node), node)

    def graph(self) -> fx.Graph:
        for depth, part in self.parts.items():  # what regions want from each other is known when all have been described once
            self._describe(part, depth)
        described = {depth: self._describe(part, depth) for depth, part in self.parts.items()}
        for item in self._order():
            if item in self.partition.gone:
                continue
            if isinstance(item, fx.Node):
                self.made[item] = self.new.node_copy(item, self._value)
            else:
                self._call(self.parts[item], *described[item])
        self.new.eliminate_dead_code()
        return self.new

    def _value(self, node: fx.Node) -> fx.Node:
        return self.made[node]

    def _order(self) -> list[Any]:
        """Nodes of torch's as they stood, each region as early as it can be."""
        import networkx as nx

        order, index = nx.DiGraph(), dict[Any, int]()
        for position, node in enumerate(self.gm.graph.nodes):
            item = self.item(node)
            index.setdefault(item, position)
            order.add_node(item)
            sources = node.all_input_nodes if item is node else self.partition.sources(node)
            order.add_edges_from((self.item(source), item) for source in sources if self.item(source) != item)
        return list(nx.lexicographical_topological_sort(order, key=index.__getitem__))

    def _describe(self, part: _Part, depth: int) -> tuple[Region, Reader]:
        """The steps of a region, in the order of the graph."""
        reader, steps, done = Reader(self.context.table, self.partition.known.calls), list[Step](), set[fx.Node]()
        for unit in part.units:
            for source in unit.all_input_nodes:
                steps += self._source(source, part, depth, (reader, done))
            steps.append(reader.step(unit))
            for user in unit.users:
                if user.target is quantize:
                    steps += [reader.step(user), *(reader.step(d) for d in user.users if d.target is dequantize)]
                    done.update(user.users)
            self._note_outputs(unit, part, depth)
        part.inputs = dict(sorted(part.inputs.items(), key=lambda item: self.arguments.get(item[1], len(self.arguments))))
        part.outputs = dict.fromkeys(sorted(part.outputs, key=lambda node: self.results.get(node, len(self.results))))
        inputs = tuple((name, tuple(value_of(node).shape or ())) for name, node in part.inputs.items())
        return Region(inputs, tuple(steps), tuple(node.name for node in part.outputs), _places(part.units)), reader

    def _source(self, source: fx.Node, part: _Part, depth: int, state: tuple[Reader, set[fx.Node]]) -> list[Step]:
        """The steps that bring an argument from outside into the region, once each."""
        reader, done = state
        if source in done or source.op == "get_attr" or self.partition.depth.get(unit_of(source)) == depth:
            return []
        if source in self.partition.known:
            return self._known(source, part, depth, state)
        done.add(source)
        if source.target is dynamic_quantize_dequantize:
            return [*self._source(source.args[0], part, depth, state), reader.step(source)]  # type: ignore[arg-type]
        if source.target is dequantize_weight:
            return [reader.step(source)]
        if is_known(source):  # each region that wants it computes it
            before = [step for inner in source.all_input_nodes for step in self._source(inner, part, depth, state)]
            return [*before, reader.step(source)]
        if source.target is not dequantize:  # a float tensor whose sizes are asked for
            part.inputs[source.name] = source
            self._want(source)
            return []
        codes: Any = source.args[0]
        settled, known = rounded(source), self.partition.known
        if settled in known or known.is_constant(settled):
            before = self._known(settled, part, depth, state) if settled in known else []  # type: ignore[arg-type]
            own = [] if codes in done else [reader.step(codes)]
            done.add(codes)
            return [*before, *own, reader.step(source)]
        floats = codes.args[0] if self.item(codes) is codes or unit_of(codes) not in self.partition.depth else source
        name = f"{codes.name}.floats" if floats is source else floats.name
        part.inputs[name] = floats
        self._want(floats)
        step = reader.step(codes)
        steps = [] if codes in done else [Step(step.out, step.op, (f"{VALUE}{name}", *step.args[1:]))]
        done.add(codes)
        return [*steps, Step(source.name, DEQUANTIZE, (f"{VALUE}{codes.name}",))]

    def _known(self, source: fx.Node, part: _Part, depth: int, state: tuple[Reader, set[fx.Node]]) -> list[Step]:
        """The steps of what torch computes from sizes; each region that wants it has them."""
        (reader, done), known, steps = state, self.partition.known, list[Step]()
        for node in known.closure(source):
            if node not in done:
                steps += [step for s in reads(known.calls[node]) if s not in known for step in self._source(s, part, depth, state)]
                steps.append(reader.step(node))
                done.add(node)
        return steps

    def _want(self, node: fx.Node) -> None:
        """A value that a region takes is handed out by the region that makes it."""
        depth = self.partition.depth.get(unit_of(node))
        if depth is not None:
            self.parts[depth].outputs[node] = None

    def _note_outputs(self, unit: fx.Node, part: _Part, depth: int) -> None:
        """What nodes outside read: floats of codes, floats, numbers."""
        for user in unit.users:
            floats = [d for d in user.users if d.target is dequantize] if user.target is quantize else []
            for made, readers in ((unit, [user]), *((d, list(d.users)) for d in floats)):
                if made is unit and user.target is quantize:
                    continue
                if any(self.partition.depth.get(reader) != depth and reader not in self.partition.gone for reader in readers):
                    part.outputs[made] = None

    def _call(self, part: _Part, region: Region, reader: Reader) -> None:
        first = part.units[0]
        tensors = [self._attribute(node) for node in reader.tensors]
        scales, zero_points = [p.scale for p in reader.qparams], [p.zero_point for p in reader.qparams]
        origin = tuple(dict.fromkeys(name for unit in part.units for name in source_of(unit).origin))
        source = Source(module_path="", origin=origin)
        pack = self.new.create_node(
            "call_function", native_region, (region.to_data(), tensors, scales, zero_points), name=f"region_{first.name}"
        )
        call = self.new.create_node("call_function", run_region, (pack, [self._value(node) for node in part.inputs.values()]),
                                    name=f"run_region_{first.name}")  # fmt: skip
        call.meta[MACS] = sum(
            row.macs(unit) for unit in part.units if (row := self.context.table.of(unit)) is not None and row.macs is not None
        )
        for node in (pack, call):
            node.meta[SOURCE], node.meta[VALUE_KEY] = source, Value(None, None)
        for index, output in enumerate(part.outputs):
            made = self.new.create_node("call_function", getitem, (call,), {"index": index}, name=output.name)
            made.meta = {key: value for key, value in output.meta.items() if key in (SOURCE, VALUE_KEY)}
            self.made[output] = self._on_codes(output, made)

    def _on_codes(self, output: fx.Node, made: fx.Node) -> fx.Node:
        """The floats that a region hands out; on their codes again, which is exact, where int8 ops of torch's read them."""
        readers = (user for user in output.users if user not in self.partition.depth)
        if output.target is not dequantize or not any(quant_of(user).int8 for user in readers):
            return made
        codes = output.args[0]
        assert isinstance(codes, fx.Node)
        rounded = self.new.node_copy(codes, lambda _: made)
        return self.new.node_copy(output, lambda _: rounded)

    def _attribute(self, node: fx.Node) -> fx.Node:
        made = self.new.create_node("get_attr", str(node.target))
        made.meta = dict(node.meta)
        return made


def _places_of(nodes: Iterable[fx.Node]) -> dict[fx.Node, int]:
    """The order of the user's arguments or results, which is that of a region's: who calls exported C knows no other."""
    return {node: place for place, node in enumerate(nodes)}


def _places(units: Sequence[fx.Node]) -> dict[str, Place]:
    """Of the codes that the units make."""
    found = {}
    for unit in units:
        source = source_of(unit)
        line = f"{PurePath(source.file).name}:{source.line}" if source.file else ""
        for made in [user for user in unit.users if user.target is quantize]:
            found[made.name] = Place(source.module_path, line, source.origin or (unit.name,))
    return found
