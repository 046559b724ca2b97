"""What a quantized op is given, as values of plain types: integers with qparams, integer weights, constants, float nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, fx

from qcompiler.errors import ConfigError
from qcompiler.ir.attributes import attribute
from qcompiler.ir.names import user_path
from qcompiler.ir.types import QParams, quant_of, value_of
from qcompiler.ir.verify import where
from qcompiler.ops.reference import dequantize, dequantize_weight, dynamic_quantize_dequantize, unpack_4bit, widen


@dataclass(frozen=True)
class Integers:
    """An activation in integers. `codes`: the node that holds them, a quantize or an int8 op whose result is a tuple.

    `shape` is that of the example inputs; None for a tuple.
    """

    codes: fx.Node
    qparams: QParams
    shape: tuple[int, ...] | None

    @property
    def value(self) -> fx.Node:
        """The node whose result the integers stand for: an int8 op, an input, or what computes floats."""
        source = self.codes.args[0] if getattr(self.codes.target, "converts", None) == "quantize" else self.codes
        assert isinstance(source, fx.Node)
        return source


@dataclass(frozen=True)
class Weight:
    """A weight in integers, real = (codes - zero_point) * scale in double precision, then rounded to float32.

    `name`: its dotted name in the user's model. `axis`: the dimension along which scale and zero_point lie; None: each has one element.
    `bits` 4: codes 0..15, already unpacked here. `scale` is float64; `zero_point` is int64, of 4-bit weights and
    rows of embeddings float64.
    """

    name: str
    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int | None
    bits: int = 8

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.codes.shape)


@dataclass(frozen=True)
class HalfWeight:
    """A float16 weight, which is widened to float32 before it is used."""

    name: str
    values: Tensor


@dataclass(frozen=True)
class Constant:
    """A parameter or buffer as it stands: a bias, a table of positions."""

    name: str
    values: Tensor


@dataclass(frozen=True)
class Rounded:
    """An activation that the op rounds at run time to `quant_max - quant_min` steps of its own range: floats, or integers made floats."""

    value: fx.Node | Integers
    quant_min: int
    quant_max: int


Argument: TypeAlias = (
    "Integers | Weight | HalfWeight | Constant | Rounded | fx.Node | tuple[Argument, ...] | int | float | bool | str | None"
)


def argument(gm: fx.GraphModule, arg: object) -> Argument:
    """One positional argument of a call in QUANTIZED. A float value that another node computes is that node."""
    if isinstance(arg, (list, tuple)):
        return tuple(argument(gm, part) for part in arg)
    if isinstance(arg, fx.Node):
        return _of_node(gm, arg)
    assert arg is None or isinstance(arg, (int, float, bool, str))
    return arg


def _of_node(gm: fx.GraphModule, node: fx.Node) -> Argument:
    if node.target is dequantize:
        return integers(node.args[0])
    if node.target is dequantize_weight:
        return _weight(gm, node)
    if node.target is widen:
        return HalfWeight(*held(gm, node.args[0]))
    if node.target is dynamic_quantize_dequantize:
        value, low, high = node.args
        assert isinstance(value, fx.Node) and isinstance(low, int) and isinstance(high, int)
        return Rounded(integers(value.args[0]) if value.target is dequantize else value, low, high)
    if node.op == "get_attr":
        return Constant(*held(gm, node))
    return integers(node) if quant_of(node).int8 and value_of(node).shape is None and quant_of(node).qparams else node


def integers(node: object) -> Integers:
    """The integers that a node holds."""
    assert isinstance(node, fx.Node)
    qparams = quant_of(node).qparams
    if qparams is None:
        raise ConfigError(f"%{node.name} holds no integers", code="invalid-ir", where=where(node))
    return Integers(node, qparams, value_of(node).shape)


def held(gm: fx.GraphModule, node: object) -> tuple[str, Tensor]:
    """The user's name of what a get_attr node reads, and the tensor."""
    assert isinstance(node, fx.Node) and node.op == "get_attr"
    return user_path(gm, str(node.target)), attribute(gm, str(node.target)).detach()


def is_tensor(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a get_attr node reads a tensor, and not a module."""
    return isinstance(attribute(gm, str(node.target)), Tensor)


def _weight(gm: fx.GraphModule, node: fx.Node) -> Weight:
    source, scale, zero_point = node.args[:3]
    axis = node.args[3] if len(node.args) > 3 else None
    assert isinstance(source, fx.Node) and (axis is None or isinstance(axis, int))
    packed = source.target is unpack_4bit
    name, codes = held(gm, source.args[0] if packed else source)
    if packed:
        codes = unpack_4bit(codes, int(source.args[1]))  # type: ignore[arg-type]
    return Weight(name, codes, held(gm, scale)[1], held(gm, zero_point)[1], axis, 4 if packed else 8)


Bounds: TypeAlias = tuple[float | None, float | None]


def bounds_of(attributes: Mapping[str, object]) -> Bounds:
    """The clamp inside an op: (low, high), None where a side is open."""
    given = attributes.get("bounds")
    if given is None:
        return None, None
    assert isinstance(given, (tuple, list)) and len(given) == 2
    low, high = (None if side is None else float(side) for side in given)
    return low, high
