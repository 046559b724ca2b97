"""A QUANTIZED graph in steps: what a back end or an exporter reads, so that nobody takes the graph apart by hand.

`steps(gm)` gives what has to be computed, in order; `call_of(gm, node)` reads one op. docs/quantized.md states the contract.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, fx

from qcompiler.errors import ConfigError
from qcompiler.ir.types import Mode, QParams, quant_of, value_of
from qcompiler.ir.verify import where
from qcompiler.ops.arguments import asks_size
from qcompiler.ops.reference import dequantize, dequantize_weight, dynamic_quantize_dequantize, quantize, unpack_4bit, widen
from qcompiler.ops.spec import Op
from qcompiler.ops.table import NO_DEFAULT, OPS, Table, parse_signature
from qcompiler.stages.arguments import (
    Argument,
    Bounds,
    Constant,
    HalfWeight,
    Integers,
    Weight,
    argument,
    bounds_of,
    held,
    integers,
    is_tensor,
)

PARTS = (dequantize_weight, dynamic_quantize_dequantize, unpack_4bit, widen)  # read as arguments of the ops that they stand before


@dataclass(frozen=True)
class Call:
    """An op whose activations or weights are quantized.

    `mode` None: it takes integers and gives integers, or floats where `output` is None and `result` too. With a mode it takes and
    gives floats, with a weight that is quantized. `inputs`: one entry for each of the row's params, None where it is left out.
    `attributes`: all others by name, with the defaults of the row's signature. `bounds`: the result is clamped to them before it is
    rounded. `result`: the node that holds the resulting integers, None for floats. `rounding`: quant_min and quant_max to which a
    recurrent op rounds its activations at every step.
    """

    node: fx.Node
    op: Op
    mode: Mode | None
    inputs: tuple[Argument, ...]
    attributes: Mapping[str, object]
    bounds: Bounds
    output: QParams | None
    result: fx.Node | None
    rounding: tuple[int, int] | None = None

    @property
    def activations(self) -> tuple[Integers, ...]:
        """The integers that it takes, in order; of a cat all of them."""
        flat = (part for given in self.inputs for part in (given if isinstance(given, tuple) else (given,)))
        return tuple(part for part in flat if isinstance(part, Integers))

    @property
    def weight(self) -> Weight | HalfWeight | None:
        """Its one weight; None where it has none, or lists of them."""
        given = self.inputs[self.op.weight] if self.op.weight is not None and self.op.weight < len(self.inputs) else None
        return given if isinstance(given, (Weight, HalfWeight)) else None

    @property
    def bias(self) -> Tensor | None:
        """The float bias of an op with a weight: a convolution, a linear."""
        names = [param.name for param in self.op.params]
        given = self.inputs[names.index("bias")] if "bias" in names else None
        return given.values if isinstance(given, Constant) else None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the result with the example inputs; None for a tuple."""
        return value_of(self.node).shape


@dataclass(frozen=True)
class Quantize:
    """Floats to integers: an input of the model, or what a float op computed."""

    node: fx.Node
    value: fx.Node
    qparams: QParams


@dataclass(frozen=True)
class Dequantize:
    """Integers to floats, where a float op or the caller reads them."""

    node: fx.Node
    codes: Integers


@dataclass(frozen=True)
class Float:
    """An op that runs in float as it stands: `node.target` on the values of `node.args` and `node.kwargs`."""

    node: fx.Node


@dataclass(frozen=True)
class Load:
    """A parameter or buffer that a float op reads, or that is quantized as an operand; `node` stands for it."""

    node: fx.Node
    constant: Constant


@dataclass(frozen=True)
class Input:
    """An argument of the forward."""

    node: fx.Node


@dataclass(frozen=True)
class Result:
    """What the forward returns: `value` as fx holds it, nodes in nested containers."""

    node: fx.Node
    value: object


Step: TypeAlias = Call | Quantize | Dequantize | Float | Load | Input | Result


def steps(gm: fx.GraphModule, table: Table = OPS) -> Iterator[Step]:
    """What a QUANTIZED graph computes, in order; each step reads what earlier ones made.

    What a call reads as an argument is no step: the weight and the bias, the dequantize before it and the quantize behind it. A
    constant or a dequantize that something else reads is one. Nor is a module that a statement calls as it stands.
    """
    for node in gm.graph.nodes:
        step = _step(gm, node, table)
        if step is not None:
            yield step


def _step(gm: fx.GraphModule, node: fx.Node, table: Table) -> Step | None:
    if node.op == "placeholder":
        return Input(node)
    if node.op == "output":
        return Result(node, node.args[0])
    if node.target is quantize:
        return _quantize(node, table)
    if node.target is dequantize:
        return Dequantize(node, integers(node.args[0])) if _is_read(node, table) else None
    if node.op == "get_attr":
        return Load(node, Constant(*held(gm, node))) if _is_read(node, table) and is_tensor(gm, node) else None
    if node.target in PARTS:
        return Float(node) if _is_read(node, table) else None
    call = call_of(gm, node, table)
    return Float(node) if call is None else call


def _quantize(node: fx.Node, table: Table) -> Quantize | None:
    """None behind an int8 op, which rounds its own result."""
    made = integers(node)
    own = _is_quantized(made.value, table) and quant_of(made.value).qparams == made.qparams
    return None if own else Quantize(node, made.value, made.qparams)


def _is_quantized(node: fx.Node, table: Table) -> bool:
    quant = quant_of(node)
    return table.of(node) is not None and (quant.int8 or quant.mode is not None)


def _is_read(node: fx.Node, table: Table) -> bool:
    """Whether a float op, a quantize or the caller reads the value, beyond its size."""
    return any(not _is_quantized(u, table) and u.target not in PARTS and not asks_size(u) for u in node.users)


def call_of(gm: fx.GraphModule, node: fx.Node, table: Table = OPS) -> Call | None:
    """The quantized op that a node is; None for a float one and for the nodes between ops."""
    row, quant = table.of(node), quant_of(node)
    if row is None or not _is_quantized(node, table):
        return None
    given = [argument(gm, arg) for arg in node.args[: len(row.params)]]
    inputs = (*given, *(None,) * (len(row.params) - len(given)))
    attributes = {**defaults_of(row), **node.kwargs}
    rounding = attributes.pop("activation_range", None)
    bounds = bounds_of(attributes)
    attributes.pop("bounds", None)
    return Call(node, row, quant.mode, inputs, attributes, bounds, quant.qparams, _result(node), rounding)  # type: ignore[arg-type]


def defaults_of(row: Op) -> dict[str, object]:
    params = {param.name for param in row.params}
    entries = parse_signature(row.signature)
    return {name: default for _, _, name, default in entries if name not in params and default is not NO_DEFAULT}


def _result(node: fx.Node) -> fx.Node | None:
    """The node that holds the integers of an int8 op: its quantize, or itself where the result is a tuple."""
    if quant_of(node).qparams is None:
        return None
    if value_of(node).shape is None:
        return node
    found = next((user for user in node.users if user.target is quantize), None)
    if found is None:
        raise ConfigError(f"nothing quantizes the result of %{node.name}", code="invalid-ir", where=where(node))
    return found
