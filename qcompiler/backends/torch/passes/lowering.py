"""The walk over a QUANTIZED graph that makes the LOWERED one: kernels for int8 ops, floats where they are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from qcompiler.backends.torch.kernels.mode_kernels import TABLE as MODES
from qcompiler.backends.torch.kernels.mode_kernels import select as select_mode
from qcompiler.backends.torch.kernels.rows import emit_along, is_turned, note_rows, quantizer
from qcompiler.backends.torch.kernels.table import TO_FLOAT, Refused, entries, select
from qcompiler.backends.torch.passes.check_sites import Codes, Lowered, largest_code, rounded_by
from qcompiler.backends.torch.passes.sums import overflowing
from qcompiler.backends.torch.runtime.functions import as_quantized
from qcompiler.backends.torch.site import Emit, Half, Kernel, Operand, Rounded, Site, Weight, cut
from qcompiler.backends.torch.target import TorchTarget
from qcompiler.compile.pass_manager import Context
from qcompiler.errors import ConfigError
from qcompiler.ir.types import MACS, QUANT, SOURCE, VALUE, QParams, Quant, Value, quant_of, source_of, value_of
from qcompiler.ir.verify import where
from qcompiler.ops.arguments import activations
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.reference import dequantize, dequantize_weight, dynamic_quantize_dequantize, quantize, unpack_4bit, widen
from qcompiler.ops.spec import Op
from qcompiler.ops.stays_float import starved

FLOATS = QParams(1.0, 0, 0, 255, torch.uint8)  # stands for the output's qparams where a kernel hands out floats
ASKS_SIZES = ("size", "numel", "nelement", "dim", len)
LAZY = (dequantize_weight, dynamic_quantize_dequantize, unpack_4bit, widen)  # part of the kernels that read them


class Lowering:
    """One walk over the QUANTIZED graph. `plain`: old node -> new node with its float (or other) value; `int8`: old node -> quint8."""

    def __init__(self, gm: fx.GraphModule, context: Context, wrong: Mapping[str, Mapping[str, str]], sums_fit: bool) -> None:
        self.gm, self.context, self.wrong, self.sums_fit = gm, context, wrong, sums_fit
        self.target, self.sites = TorchTarget.of(context.target), list[Lowered]()
        self.rounded: list[tuple[fx.Node, bool, fx.Node]] = []  # values that kernels round at run time, if to 7 bits, and the old nodes
        self.new = fx.Graph()
        self.new.owning_module = gm
        self.plain: dict[fx.Node, fx.Node] = {}
        self.int8: dict[fx.Node, fx.Node] = {}

    def graph(self, old: fx.Graph) -> fx.Graph:
        inputs = {node: index for index, node in enumerate(n for n in old.nodes if n.op == "placeholder")}
        for node in old.nodes:
            if node.op == "placeholder" and self._from_outside(inputs[node], node):
                continue
            if node.op == "output":
                self.plain[node] = self._output(node)
            elif node.target is quantize:
                self._quantize(node)
            elif node.target is dequantize or node.target in LAZY:
                continue  # made where a float value is wanted
            elif (quant_of(node).int8 and self._lower(node)) or self._lower_mode(node):
                continue
            else:
                self.plain[node] = self._copy(node)
        return self.new

    def _from_outside(self, index: int, node: fx.Node) -> bool:
        """An input that the caller gives quantized (input_quantized_indexes): it is brought to the qparams of calibration."""
        if index not in self.context.settings.custom.input_quantized_indexes:
            return False
        user = next((u for u in node.users if u.target is quantize), None)
        if user is None:
            text = f"input {node.target} cannot be given quantized: no int8 op takes it"
            raise ConfigError(text, code="custom-config", where=where(node))
        given = self.new.node_copy(node, self.float_of)
        made = self.new.call_function(as_quantized, (given, *user.args[1:3]))
        self._annotated(given, node, dtype=torch.quint8)
        self.int8[node] = self.int8[user] = self._annotated(made, node, quant_of(user).qparams, torch.quint8)
        return True

    def _output(self, node: fx.Node) -> fx.Node:
        """The result; what output_quantized_indexes names is handed out as quint8."""
        indexes = self.context.settings.custom.output_quantized_indexes
        if not indexes:
            return self._copy(node)
        result = node.args[0]
        entries: list[Any] = list(result) if isinstance(result, (tuple, list)) else [result]
        for index in indexes:
            entry = entries[index] if index < len(entries) else None
            if not isinstance(entry, fx.Node) or entry.target is not dequantize:
                reason = (quant_of(entry).reason if isinstance(entry, fx.Node) else None) or "no int8 op computes it"
                raise ConfigError(f"output {index} cannot be quantized: {reason}", code="custom-config", where=where(node))
        made: list[Any] = []
        for index, entry in enumerate(entries):
            made.append(self.int8[entry.args[0]] if index in indexes else fx.node.map_arg(entry, self.float_of))
        return self._annotated(self.new.output(type(result)(made) if isinstance(result, (tuple, list)) else made[0]), node)

    def _lower_module(self, node: fx.Node) -> bool:
        """A custom module takes and gives quint8 tensors."""
        output = quant_of(node).qparams
        if output is None:
            return False

        def given(arg: fx.Node) -> fx.Node:
            return self.int8[arg.args[0]] if arg.target is dequantize else self.float_of(arg)  # type: ignore[index]

        called = self._annotated(self.new.node_copy(node, given), node, dtype=torch.quint8)
        made = self.new.call_function(as_quantized, (called, output.scale, output.zero_point))
        self.int8[node] = self._annotated(made, node, output, torch.quint8)
        return True

    def _annotated(self, new: fx.Node, old: fx.Node, qparams: QParams | None = None, dtype: torch.dtype | None = None) -> fx.Node:
        value, was = value_of(old), Quant() if qparams else quant_of(old)
        new.meta[VALUE] = Value(value.shape, dtype or value.dtype, value.form)
        new.meta[SOURCE] = source_of(old)
        new.meta[QUANT] = Quant(int8=qparams is not None, reason=was.reason, code=was.code, qparams=qparams)
        return new

    def _copy(self, node: fx.Node) -> fx.Node:
        given = self._any_of if node.target in ASKS_SIZES else self.float_of
        return self._annotated(self.new.node_copy(node, given), node)

    def _any_of(self, node: fx.Node) -> fx.Node:
        """The new node with a node's value, of integers where there are some: both have the same sizes."""
        source: Any = node.args[0] if node.target is dequantize else node
        return self.int8[source] if source in self.int8 else self.float_of(node)

    def _is_int8(self, value: fx.Node) -> bool:
        """Whether a kernel hands out the integers of an op's argument; those that training rounded are integers in any case."""
        return _computed(value) in self.int8 or (self.context.trains and value.target is dequantize)

    def float_of(self, node: fx.Node) -> fx.Node:
        """The new node with a node's plain value; dequantizes where only integers exist.

        Where an op had no kernel its floats are handed on as they are: its results are rounded for the int8 ops that take them.
        (After training all that take the value learned with it rounded.)
        """
        if node in self.plain:
            return self.plain[node]
        if node.target is dequantize and _computed(node) in self.plain and not self.context.trains:
            return self.plain[_computed(node)]
        if node.target in LAZY:
            made = self.new.node_copy(node, self.float_of)
        else:
            source = node.args[0] if node.target is dequantize else node
            made = self.new.call_method("dequantize", (self.int8[source],))  # type: ignore[index]
        self.plain[node] = self._annotated(made, node, dtype=torch.float32)
        return made

    def _quantize(self, node: fx.Node) -> None:
        value, scale, zero_point = node.args[:3]
        assert isinstance(value, fx.Node)
        if value in self.int8:
            self.int8[node] = self.int8[value]
            return
        turned = is_turned(value, self.context.table)
        target = quantizer(node, turned, self.context.table)
        dtype = (torch.quint8,) if target is torch.quantize_per_tensor else ()
        made = self.new.create_node("call_function", target, (self.float_of(value), scale, zero_point, *dtype), name=node.name)
        note_rows(made, turned and len(value_of(value).shape or ()) == 3)
        self.int8[node] = self._annotated(self._within(made, value, quant_of(node).qparams), value, quant_of(node).qparams, torch.quint8)

    def _ends(self, output: QParams | None) -> tuple[int, int]:
        """The codes that the kernels of a value may give: those that training saw, all of them after calibration (`bound_codes`)."""
        return (output.quant_min, output.quant_max) if output is not None and self.context.trains else (0, 255)

    def _within(self, made: fx.Node, old: fx.Node, qparams: QParams | None) -> fx.Node:
        """A quint8 value that no kernel of a site computed, cut to `_ends`."""
        low, high = self._ends(qparams)
        if qparams is None or (low <= 0 and high >= 255):
            return made
        self._annotated(made, old).meta[VALUE] = Value(None, None)
        return cut(self.target.engine, Emit(self.new, self.gm), made, qparams, max(low, 0), min(high, 255))

    def _argument(self, arg: object) -> Any:
        """A site's argument: Operand for what was dequantized, Weight for int8 parameters, new nodes and constants otherwise."""
        if isinstance(arg, (list, tuple)):
            return [self._argument(a) for a in arg]
        if not isinstance(arg, fx.Node):
            return arg
        if arg.target is dequantize:
            source = arg.args[0]
            qparams = quant_of(source).qparams  # type: ignore[arg-type]
            assert qparams is not None
            return Operand(self.int8[source], qparams)  # type: ignore[index]
        if arg.target is dequantize_weight:
            return self._weight(arg)
        if arg.target is widen:
            return Half(self.plain[arg.args[0]], value_of(arg).shape or ())  # type: ignore[index]
        if arg.target is dynamic_quantize_dequantize:
            x, low, high = arg.args
            return Rounded(self.float_of(x), high - low < 255)  # type: ignore[arg-type, operator]
        if arg in self.int8:  # a tuple of int8 tensors
            qparams = quant_of(arg).qparams
            assert qparams is not None
            return Operand(self.int8[arg], qparams)
        return self.float_of(arg)

    def _weight(self, node: fx.Node) -> Weight:
        codes, scale, zero_point, axis = node.args
        bits = 4 if codes.target is unpack_4bit else 8  # type: ignore[union-attr]
        parts = [self.plain[p] for p in (codes.args[0] if bits == 4 else codes, scale, zero_point)]  # type: ignore[union-attr, index]
        return Weight(parts[0], parts[1], parts[2], axis, value_of(node).shape or (), bits)  # type: ignore[arg-type]

    def _lower_mode(self, node: fx.Node) -> bool:
        """Emits a node that takes and gives floats; False where it is one call of torch as it stands."""
        row, mode = self.context.table.of(node), quant_of(node).mode
        if row is None or (mode is None and row.name not in MODES[None]):
            return False
        args = tuple(self._argument(a) if isinstance(a, fx.Node) and a.target in LAZY else self._float_argument(a) for a in node.args)
        attributes = fx.node.map_arg(node.kwargs, self.float_of)
        site = Site(row, node, args, attributes, FLOATS, self.target.engine, self.target.isa)
        kernel = select_mode(site, mode)
        if kernel is None:
            return False
        emit = Emit(self.new, self.gm)
        self.rounded += [(value, reduced, node) for value, reduced in rounded_by(node, row, args)]
        result = kernel.emit(site, emit)
        self._note_calls(node, row, result, emit.made)
        self.plain[node] = self._annotated(result, node)
        result.meta[QUANT] = Quant(mode=mode, reason=quant_of(node).reason, code=quant_of(node).code)
        return True

    def _float_argument(self, arg: object) -> object:
        if isinstance(arg, (list, tuple)):
            return [self._argument(a) if isinstance(a, fx.Node) and a.target in LAZY else self._float_argument(a) for a in arg]
        return self.float_of(arg) if isinstance(arg, fx.Node) else arg

    def _lower(self, node: fx.Node) -> bool:
        """Emits the node's kernel; False (and a remark) where it has none, so that it runs in float."""
        if node.op == "call_module":
            return self._lower_module(node)
        row, output = self.context.table.of(node), quant_of(node).qparams
        assert row is not None
        to_float = quant_of(node).float_output
        if output is None and not to_float:
            return False
        why = starved(row, list(activations(self.context.table, node)), self._is_int8)
        if why is not None:  # what computes its inputs had no kernel
            self.context.keep_float("lower", node, why)
            return False
        args = [self._argument(a) for a in node.args]
        attributes = fx.node.map_arg(node.kwargs, self.float_of)
        site = Site(row, node, tuple(args), attributes, output or FLOATS, self.target.engine, self.target.isa, self._ends(output))
        handing = TO_FLOAT.get(row.name) if to_float else None
        candidates, wrong = (handing,) if handing else entries(site), dict(self.wrong.get(node.name, {}))
        if not self.sums_fit:
            wrong |= overflowing(candidates, site)
        kernel: Kernel | Refused = handing or (Refused(("it hands out no floats",)) if to_float else select(site, wrong))
        if isinstance(kernel, Kernel) and kernel.label in wrong:
            kernel = Refused((wrong[kernel.label],))
        if isinstance(kernel, Refused):
            self._refused(node, str(kernel))
            return False
        emit = Emit(self.new, self.gm)
        result = emit_along(kernel, site, emit)
        self._note_calls(node, row, result, emit.made)
        self._note(site, kernel, result, emit.made[:1])
        if to_float:
            self.plain[node] = self._annotated(result, node)
            result.meta[QUANT] = Quant(int8=True, float_output=True)
        else:
            self.int8[node] = self._annotated(result, node, output, torch.quint8 if value_of(node).shape is not None else None)
        return True

    def _note_calls(self, node: fx.Node, row: Op, result: fx.Node, calls: list[fx.Node]) -> None:
        """Notes of the calls that stand for a node. The result carries its name, so that emitted code reads like the model."""
        for made in calls:
            self._annotated(made, node)
            made.meta[VALUE] = Value(None, None)
        if row.macs is not None:
            result.meta[MACS] = node.meta.get(MACS, row.macs(node))
        if result in calls:
            result._rename(node.name)

    def _note(self, site: Site, kernel: Kernel, result: fx.Node, made: list[fx.Node]) -> None:
        """Notes a site for its check on the example."""
        if self.context.example is None:
            return

        def held(arg: object) -> Any:
            if not isinstance(arg, fx.Node):
                return arg
            if arg.target is dequantize:
                return self.int8[arg.args[0]]  # type: ignore[index]
            if arg.target is dequantize_weight:
                weight = self._weight(arg)
                return Codes(weight.node, weight.scale, weight.zero_point, weight.axis)
            return self.int8[arg] if arg in self.int8 else self.float_of(arg)

        args, kwargs = fx.node.map_aggregate((site.node.args, dict(site.node.kwargs)), held)  # type: ignore[misc]
        output, most = None if site.output is FLOATS else site.output, largest_code(kernel, site)
        self.sites.append(Lowered(site.node, kernel.label, result, next(iter(made), None), args, kwargs, output, most))

    def _refused(self, node: fx.Node, reasons: str) -> None:
        self.context.keep_float("lower", node, Obstacle("no-kernel", f"no kernel on {self.target.engine}: {reasons}"))


def _computed(value: fx.Node) -> fx.Node:
    """The node that computes what stands behind quantize and dequantize; any other value is itself."""
    for target in (dequantize, quantize):
        value = value.args[0] if value.target is target else value  # type: ignore[assignment]
    return value
