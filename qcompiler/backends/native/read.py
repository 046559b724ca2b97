"""Nodes of the QUANTIZED graph as steps of a native region, and why one is none."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from qcompiler.backends.native.float_ops import bound
from qcompiler.backends.native.steps import DEQUANTIZE, DYNAMIC, KNOWN, QUANTIZE, TENSOR, VALUE, WEIGHT, Step
from qcompiler.ir.nested import rewrite
from qcompiler.ir.types import QParams, quant_of, value_of
from qcompiler.ops import functional as Q
from qcompiler.ops.reference import dequantize, dequantize_weight, dynamic_quantize_dequantize, quantize
from qcompiler.ops.table import Table
from qcompiler.trace.guards import GUARDS

MOST_POWER = 64  # of an exponent in a file: what it gives has to end


def power(base: float, exponent: float) -> float:
    """base ** exponent. Raises ValueError for an exponent beyond MOST_POWER."""
    if abs(exponent) > MOST_POWER:
        raise ValueError(f"{exponent} is too large an exponent")
    made: float = base**exponent
    return made


OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "neg", "abs", "getitem", "eq", "ne", "lt", "le", "gt", "ge")
NUMBERS: dict[str, Callable[..., Any]] = {f"operator.{name}": getattr(operator, name) for name in OPERATORS}
NUMBERS.update({"len": len, "int": int, "float": float, "max": max, "min": min, "builtins.abs": abs, "builtins.round": round})
NUMBERS.update({f"math.{name}": getattr(math, name) for name in ("sqrt", "ceil", "floor", "trunc")})
NUMBERS.update({f"guard.{guard.__name__}": guard for guard in GUARDS})
_NUMBER_NAMES: dict[Any, str] = {function: name for name, function in NUMBERS.items()} | {operator.pow: "operator.pow"}
NUMBERS["operator.pow"] = power
PARTS = (torch.chunk, Q.split, Q.tensor_split, torch.unbind)  # give several values
Call = tuple[str, tuple[Any, ...], dict[str, Any]]  # name, arguments, settings
PLAIN = (bool, int, float, str, type(None))


class NotNative(Exception):
    """Why a node has no form as a step."""


def is_number(node: fx.Node) -> bool:
    """Whether a node computes integers from sizes, or checks one."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    if node.target is getattr:
        return node.args[1:] == ("shape",)
    if node.target is operator.getitem and not (isinstance(node.args[0], fx.Node) and is_number(node.args[0])):
        return False  # one of several tensors
    return node.op == "call_function" and node.target in _NUMBER_NAMES and value_of(node).shape is None


def is_known(node: fx.Node, of_parts: bool = False) -> bool:
    """Whether a node is a number that the sizes of tensors give, and nothing that torch computes from values.

    `of_parts`: how many parts a value was cut into counts as well; that is known where the parts are made.
    """
    return is_number(node) and all(
        (_asks_sizes(node) and value_of(s).shape is not None) or is_known(s, of_parts) or (of_parts and s.target in PARTS)
        for s in node.all_input_nodes
    )


def _asks_sizes(node: fx.Node) -> bool:
    """Whether a node asks a tensor for its sizes; another that takes a tensor takes its value."""
    return node.op == "call_method" or node.target in (getattr, len)


class Reader:
    """Makes the steps of one region; `tensors` and `qparams` grow with what its steps refer to. `known`: the calls of known.py, by node."""

    def __init__(self, table: Table, known: Mapping[fx.Node, Call]) -> None:
        self.table, self.known = table, known
        self.tensors: list[fx.Node] = []
        self._index: dict[str, int] = {}
        self.qparams: list[QParams] = []

    def step(self, node: fx.Node) -> Step:
        """Raises NotNative, with the reason."""
        if node.target is quantize:
            return self._quantize(node)
        if node.target is dequantize:
            return Step(node.name, DEQUANTIZE, (self.encoded(node.args[0]),))
        if node.target is dynamic_quantize_dequantize:
            return Step(node.name, DYNAMIC, self.encoded(node.args))
        if node.target is dequantize_weight:
            return Step(node.name, WEIGHT, tuple(self.encoded(a) for a in node.args))
        if is_number(node):
            args = tuple(node.args)[:1] if node.target is getattr else tuple(node.args)
            return Step(node.name, _number_name(node), self.encoded(args), self.encoded(dict(node.kwargs)))
        if node in self.known:
            name, args, kwargs = self.known[node]
            return Step(node.name, f"{KNOWN}{name}", self.encoded(args), self.encoded(kwargs))
        name, args, kwargs = self.call(node)
        return Step(node.name, name, self.encoded(args), self.encoded(kwargs))

    def call(self, node: fx.Node) -> Call:
        """Name, arguments and settings of an op, as its row has them, or as float_ops.py has them. Raises NotNative."""
        row = self.table.of(node)
        if row is not None:
            return row.name, tuple(node.args), dict(node.kwargs)
        found = bound(node)
        if found is None:
            raise NotNative("it is no op of the table")
        return found

    def _quantize(self, node: fx.Node) -> Step:
        qparams = quant_of(node).qparams
        if qparams is None or qparams.dtype is not torch.uint8 or not isinstance(qparams.scale, float):
            raise NotNative("its codes are not uint8 with one scale")
        self.qparams.append(qparams)
        return Step(node.name, QUANTIZE, (self.encoded(node.args[0]), len(self.qparams) - 1, qparams.quant_min, qparams.quant_max))

    def encoded(self, value: Any) -> Any:
        return rewrite(value, self._leaf)

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self._tensor(value) if value.op == "get_attr" else f"{VALUE}{value.name}"
        if not isinstance(value, PLAIN) and value is not Ellipsis:
            raise NotNative(f"its argument {value!r:.60} is no number or text")
        return value

    def _tensor(self, node: fx.Node) -> str:
        """The tensor of a get_attr node; one that several steps read is one."""
        index = self._index.setdefault(str(node.target), len(self.tensors))
        if index == len(self.tensors):
            self.tensors.append(node)
        return f"{TENSOR}{index}"


def _number_name(node: fx.Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    return "size" if node.target is getattr else _NUMBER_NAMES[node.target]
