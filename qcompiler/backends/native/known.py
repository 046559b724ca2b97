"""What constants and the sizes of the inputs alone settle: masks of windows, positions, tables of them.

No kernel computes it: torch does, once for each set of sizes, where the sizes of all values are found. A region reads what came out as it
reads its constants.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from qcompiler.backends.native.read import Call, is_known
from qcompiler.backends.native.steps import leaves
from qcompiler.ir.nested import rewrite
from qcompiler.ir.types import quant_of, value_of
from qcompiler.ops.arguments import changes
from qcompiler.ops.reference import dequantize, quantize
from qcompiler.ops.spec import Family
from qcompiler.ops.table import OPS, Table

DTYPES: Mapping[str, torch.dtype] = {str(d): d for d in (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

_METHODS = ("masked_fill", "to", "float", "int", "long", "bool", "clone", "logical_not", "logical_and", "logical_or", "eq", "ne", "lt",
            "le", "gt", "ge", "cumsum", "expand_as", "type_as", "index_fill", "new_zeros", "new_ones", "new_full", "outer", "all",
            "any")  # fmt: skip
_TORCH = ("arange", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "eye", "linspace", "clone", "where", "logical_and",
          "logical_or", "logical_not", "logical_xor", "eq", "ne", "lt", "le", "gt", "ge", "cumsum", "outer", "masked_fill", "bitwise_and",
          "bitwise_or", "bitwise_not", "floor_divide", "remainder", "fmod", "all", "any", "meshgrid", "bucketize",
          "searchsorted")  # fmt: skip
UNASKED = ("device", "layout", "memory_format", "requires_grad", "pin_memory")  # what changes nothing here
SEVERAL = (torch.meshgrid,)  # of these calls each gives several values, which are taken out one by one
_OPERATORS = ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "xor", "invert", "floordiv", "mod", "pow", "setitem")


def tensor(data: object, dtype: torch.dtype | None = None) -> Tensor:
    """torch.tensor of numbers; of symbols, which have no values yet, a tensor without data."""
    if isinstance(data, Tensor):
        return data.to(dtype or data.dtype, copy=True)
    if not any(isinstance(leaf, (torch.SymInt, torch.SymFloat)) for leaf in leaves(data)):
        return torch.tensor(data, dtype=dtype)
    shape, inner = list[int](), data
    while isinstance(inner, (tuple, list)):
        shape.append(len(inner))
        inner = inner[0]
    of_floats = any(isinstance(leaf, (float, torch.SymFloat)) for leaf in leaves(data))
    return torch.empty(shape, dtype=dtype or (torch.float32 if of_floats else torch.int64), device="meta")


def as_tensor(data: object, dtype: torch.dtype | None = None) -> Tensor:
    """torch.as_tensor, which gives a tensor as it is."""
    return data.to(dtype or data.dtype) if isinstance(data, Tensor) else tensor(data, dtype)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch.tensor": tensor,
    "torch.as_tensor": as_tensor,
    "F.one_hot": F.one_hot,
    **{f"torch.{name}": getattr(torch, name) for name in _TORCH},
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATORS},
    **{f"tensor.{name}": getattr(Tensor, name) for name in _METHODS},
}
_CALLED: dict[Any, str] = {function: name for name, function in _FUNCTIONS.items()}
_CALLED |= {getattr(torch, name): f"torch.{name}" for name in ("tensor", "as_tensor")}
NEW = {"new_zeros": "torch.zeros", "new_ones": "torch.ones", "new_full": "torch.full"}  # what they are called on gives its dtype alone
WEIGHTED = (Family.CONVOLUTION, Family.TRANSPOSED, Family.LINEAR, Family.RECURRENT, Family.EMBEDDING, Family.EPILOGUE)


def function_of(name: str) -> Callable[..., Any]:
    """What the step known.`name` calls. Raises KeyError for a name that stands for nothing."""
    return _FUNCTIONS[name] if name in _FUNCTIONS else OPS.rows[name].fn


def call_of(node: fx.Node, table: Table) -> Call | None:
    """Name, arguments and settings of what torch can compute from sizes, without devices; None for any other node."""
    name = _name_of(node, table)
    if name is None:
        return None
    args, kwargs = node.args, {key: value for key, value in node.kwargs.items() if key not in UNASKED}
    if node.op == "call_method" and node.target in NEW:
        kwargs.setdefault("dtype", value_of(node).dtype)
        args, name = args[1:], NEW[str(node.target)]
    if node.target in ("to", "type_as"):
        args, name, kwargs = (args[0], value_of(node).dtype), "tensor.to", {}
    return name, tuple(rewrite(args, _plain)), rewrite(kwargs, _plain)


def _name_of(node: fx.Node, table: Table) -> str | None:
    if node.op == "call_method":
        return f"tensor.{node.target}" if node.target in _METHODS else None
    row = table.of(node)
    if node.target is F.one_hot and len(node.args) < 2 and "num_classes" not in node.kwargs:
        return None  # how many columns it has is no matter of sizes
    if row is None:
        return _CALLED.get(node.target) if callable(node.target) and _is_hashable(node.target) else None
    own = OPS.rows.get(row.name) is row and row.family not in WEIGHTED and not row.draws(node.kwargs)
    return row.name if own else None


def _is_hashable(target: object) -> bool:
    return getattr(type(target), "__hash__", None) is not None


def _plain(leaf: object) -> object:
    if isinstance(leaf, torch.dtype):
        return NAMES.get(leaf, leaf)
    if isinstance(leaf, fx.Node) and leaf.target is getattr and leaf.args[1:] == ("dtype",):
        dtype = value_of(leaf.args[0]).dtype  # type: ignore[arg-type]
        return NAMES.get(dtype, dtype) if dtype is not None else leaf
    return leaf


def reads(call: Call) -> list[fx.Node]:
    """The nodes among the arguments of a call, in order."""
    found: dict[fx.Node, None] = {}
    rewrite((call[1], call[2]), lambda leaf: found.setdefault(leaf) if isinstance(leaf, fx.Node) else leaf)
    return list(found)


def rounded(floats: fx.Node) -> fx.Node | None:
    """What was rounded to the codes that a dequantize reads; None for any other node."""
    codes = floats.args[0] if floats.target is dequantize else None
    source = codes.args[0] if isinstance(codes, fx.Node) and codes.target is quantize else None
    return source if isinstance(source, fx.Node) else None


class Known:
    """The nodes of a graph whose values sizes settle; `writes`: the assignments to them, by the node that made the memory. `asked`: numbers
    that are made of the sizes of such values; who reads one computes it, as it computes the values.
    """

    def __init__(self, gm: fx.GraphModule, table: Table) -> None:
        self.table = table
        self.calls: dict[fx.Node, Call] = {}
        self.roots: dict[fx.Node, fx.Node] = {}
        self.writes: dict[fx.Node, list[fx.Node]] = {}
        self.states = {str(n.target) for n in gm.graph.nodes if n.op == "get_attr" and any(changes(user, n) for user in n.users)}
        self.position = {node: index for index, node in enumerate(gm.graph.nodes)}
        spoiled: set[fx.Node] = set()
        while self._found(gm.graph, spoiled):
            pass
        self.asked: set[fx.Node] = set()
        for node in gm.graph.nodes:
            if is_known(node) and any(source in self.calls or source in self.asked for source in node.all_input_nodes):
                self.asked.add(node)

    def __contains__(self, node: object) -> bool:
        return node in self.calls

    def _found(self, graph: fx.Graph, spoiled: set[fx.Node]) -> bool:
        """One walk; True where memory turned out to be written by what is not known, so that another walk is due."""
        for found in (self.calls, self.roots, self.writes):
            found.clear()
        for node in graph.nodes:
            call = call_of(node, self.table) if node.op.startswith("call") else None
            if call is not None and self._settles(node, call) and (root := self._root(node, call)) not in spoiled:
                self.calls[node], self.roots[node] = call, root
                if node.target is operator.setitem:
                    self.writes.setdefault(root, []).append(node)
        before = len(spoiled)
        spoiled.update(self.roots[node] for node in self.calls if any(changes(u, node) and u not in self.calls for u in node.users))
        spoiled.update(root for root, writes in self.writes.items() if self._read_before(root, writes[-1]))
        return len(spoiled) > before

    def _settles(self, node: fx.Node, call: Call) -> bool:
        sources = reads(call)
        written = node.target is operator.setitem
        value = value_of(node).shape is not None and value_of(node).dtype in NAMES and not quant_of(node).int8
        value = value or node.target in SEVERAL
        if written:
            return bool(sources) and sources[0] in self.calls and all(map(self._is_settled, sources))
        return value and all(map(self._is_settled, sources))

    def _is_settled(self, node: fx.Node) -> bool:
        return node in self.calls or is_known(node) or self.is_constant(node)

    def is_constant(self, node: fx.Node | None) -> bool:
        """Whether it is a tensor of the module's that no call changes."""
        return node is not None and node.op == "get_attr" and str(node.target) not in self.states

    def _root(self, node: fx.Node, call: Call) -> fx.Node:
        """What made the memory that it may share with its first argument."""
        first = call[1][0] if call[1] else None
        return self.roots.get(first, node) if isinstance(first, fx.Node) else node

    def _read_before(self, root: fx.Node, last: fx.Node) -> bool:
        """Whether something that is not known reads memory that is written later."""
        sharing = (node for node, found in self.roots.items() if found is root)
        return any(u not in self.calls and self.position[u] < self.position[last] for node in sharing for u in node.users)

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """What a node takes, with the sizes behind what is known in its place."""
        found: dict[fx.Node, None] = {}
        open_, seen = list(reversed(node.all_input_nodes)), set[fx.Node]()
        while open_:
            source = open_.pop()
            if source in seen:
                continue
            seen.add(source)
            known = source if source in self.calls else rounded(source)
            behind = self._behind(known) if known in self.calls else source.all_input_nodes if source in self.asked else None
            if behind is None:
                found.setdefault(source)
            else:
                open_ += reversed(list(behind))
        return list(found)

    def _behind(self, node: fx.Node) -> Iterable[fx.Node]:
        return [source for part in self.closure(node) for source in reads(self.calls[part]) if source not in self.calls]

    def closure(self, node: fx.Node) -> list[fx.Node]:
        """What has to be computed for a known node, in order, itself included."""
        found, open_ = set[fx.Node](), [node]
        while open_:
            one = open_.pop()
            if one not in found:
                found.add(one)
                open_ += [source for source in reads(self.calls[one]) if source in self.calls]
                open_ += [w for w in self.writes.get(self.roots[one], []) if self.position[w] < self.position[node]]
        return sorted(found, key=self.position.__getitem__)

    def unread(self, native: Callable[[fx.Node], bool]) -> set[fx.Node]:
        """Known nodes that only native ones read, directly, rounded, or through others, with the nodes that round them and the numbers that
        ask for their sizes. An assignment stays where its memory does, and so does what it assigns."""
        held: set[fx.Node] = set()
        while True:
            gone = self._unread(native, held)
            kept = {self.roots[node] for node in self.calls if node not in gone and node.target is not operator.setitem}
            wanted = {node for node in gone if node.target is operator.setitem and self.roots[node] in kept}
            if not wanted:
                return gone
            held |= wanted

    def _unread(self, native: Callable[[fx.Node], bool], held: set[fx.Node]) -> set[fx.Node]:
        gone: set[fx.Node] = set()
        for node in (n for n in sorted({*self.calls, *self.asked}, key=self.position.__getitem__, reverse=True) if n not in held):
            codes = [user for user in node.users if user.target is quantize]
            floats = [user for code in codes for user in code.users]
            others = [user for user in node.users if user.target is not quantize]
            if all(user.target is dequantize and all(map(native, user.users)) for user in floats) and all(
                user in gone or (user not in self.calls and native(user)) for user in others
            ):
                gone.update((node, *codes, *floats))
        return gone
