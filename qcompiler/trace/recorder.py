"""Records calls on proxies as graph nodes, running each on the example's values to learn what comes out."""

from __future__ import annotations

import keyword
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from qcompiler.ir.types import SOURCE, VALUE, Source, Value
from qcompiler.trace import places
from qcompiler.trace.attributes import Attributes
from qcompiler.trace.data_numbers import NUMBERS, depends_on_data
from qcompiler.trace.holding import BOUNDARY, Holding
from qcompiler.trace.memory import Memory
from qcompiler.trace.nested import has_tensor
from qcompiler.trace.operands import Operands
from qcompiler.trace.proxy import Proxy, Sizes
from qcompiler.trace.results import Kind, Results
from qcompiler.trace.running import Running

# Results that are numbers or flags but do not depend on a tensor's data.
METADATA = frozenset({
    "dim", "ndimension", "is_floating_point", "is_complex", "is_signed", "is_contiguous", "element_size", "get_device",
    "is_pinned", "is_inference", "is_conj", "is_neg", "is_shared", "is_tensor", "is_storage", "result_type",
    "can_cast", "dense_dim", "sparse_dim", "is_same_size", "is_grad_enabled",
})  # fmt: skip
SIZES = frozenset(("numel", "nelement", "stride", "storage_offset", "broadcast_shapes"))
MAKERS = frozenset(("zeros", "ones", "empty", "full", "linspace", "logspace", "arange", "eye", "rand", "randn", "tensor", "scalar_tensor"))


def _is_float32(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype is torch.float32


class Recorder(Holding):
    """The graph under construction. Everything that a rolled-back attempt must undo is in `undo`, `remarks`, `graph`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.model = model
        self.undo: list[tuple[Proxy, fx.Node, Any, str | None, Any]] = []  # a variable as it was before a change
        self.found_state: Callable[[torch.Tensor], object] = lambda tensor: None  # hears of a plain tensor that is changed in place
        self.promoted: dict[int, tuple[torch.Tensor, Proxy]] = {}  # plain tensors that were changed by traced values
        self.free_numbers = True  # else each is held fixed
        self.containers: list[tuple[str, object, list[object]]] = []  # what arguments were opened into, and what each held then
        self.held: dict[str, torch.Tensor] = {}  # states that are carried between calls, by dotted name: an example of each
        self.attributes = Attributes(model, self.graph, self.source)
        self.operands, self.running, self.results, self.memory = Operands(self), Running(self), Results(self), Memory()
        self._scalars: dict[object, Proxy] = {}

    # ---- nodes

    def add_node(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], example: Any) -> fx.Node:
        """Append a node for a call whose result on the examples is known."""
        self.at_event()
        if not all(name.isidentifier() and not keyword.iskeyword(name) for name in kwargs):
            raise self.error("a keyword argument that is no identifier")  # it would be written into code
        node = self.graph.create_node(op, target, self.create_arg(args), self.create_arg(kwargs))
        node.meta[VALUE] = Value.of(example)
        node.meta[SOURCE] = self.source()
        if depends_on_data(node, args, kwargs, example, self._from_data, self.fixed_sizes):
            self._from_data.add(node)
        if type(example) in (bool, int, float) and (given := [self.numbers[i] for i in node.all_input_nodes if i in self.numbers]):
            self.numbers[node] = given[0]
        return node

    def source(self) -> Source:
        file, line = places.user_line(sys._getframe(1), BOUNDARY)
        path, kind = self.scopes[-1] if self.scopes else ("", "")
        return Source(file, line, path, kind)

    def create_arg(self, a: Any) -> Any:
        """A value as argument of a node."""
        return self.operands.of(a)

    def attribute_node(self, tensor: torch.Tensor) -> fx.Node:
        """The node that stands for a plain tensor."""
        held = self.promoted.get(id(tensor))
        if held is not None and not held[1].node._erased:
            return self.create_arg(held[1])  # type: ignore[no-any-return]
        return self.attributes.node_of_tensor(tensor)

    # ---- calls

    def record(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call on the examples, append its node, return what stands for the result."""
        self.at_event()
        scalars = not kwargs and all(type(a) in (int, float, bool) or (type(a) is Proxy and not a.is_tensor) for a in args)
        key = (target, *((type(a), a.node if type(a) is Proxy else a) for a in args)) if scalars else None
        if key is not None and (known := self._scalars.get(key)) is not None and not known.node._erased:
            return known
        example = self.running.execute(op, target, args, kwargs)
        if op == "call_function" and getattr(target, "__name__", "") in MAKERS and "dtype" not in kwargs and _is_float32(example):
            kwargs = {**kwargs, "dtype": torch.float32}  # else that of the process at each call
        kind: Kind = "data" if has_tensor((args, kwargs)) else "size"
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        if kind == "data" and self._is_plain(name, args, example):
            return example
        kind = "size" if name in SIZES or name in NUMBERS else kind
        result = self.results.wrap(lambda: self.add_node(op, target, args, kwargs, example), example, kind)
        if key is not None and type(result) is Proxy:
            self._scalars[key] = result
        return result

    @staticmethod
    def _is_plain(name: str, args: tuple[object, ...], example: object) -> bool:
        """Whether a result is about the kind of a tensor, not its sizes or data."""
        if name in METADATA or isinstance(example, (torch.dtype, torch.device, torch.layout)):
            return True
        return isinstance(example, bool) and name in ("eq", "ne") and any(a is None or isinstance(a, str) for a in args)

    def bind(self, node: fx.Node, example: object) -> Proxy:
        """A new variable that holds a node's value."""
        proxy = Proxy(node, self, example)
        if proxy.is_tensor:
            self.memory.remember(proxy)
        return proxy

    def sizes(self, proxy: Proxy) -> Sizes:
        """The shape of a traced tensor, one `size(dim)` node each."""
        self.at_event()
        if proxy.stale:
            raise self.error(proxy.stale)
        return Sizes(self._size(proxy, dim) for dim in range(proxy.example.dim()))

    def _size(self, proxy: Proxy, dim: int) -> Proxy:
        key = ("size", proxy.node, dim)
        known = self._scalars.get(key)
        if known is None or known.node._erased:
            value = proxy.example.shape[dim]
            known = self._scalars[key] = self.bind(self.add_node("call_method", "size", (proxy, dim), {}, value), value)
        return known

    # ---- attempts

    def mark(self) -> tuple[fx.Node, int, int]:
        """A point to which `rollback` can return."""
        return next(iter(reversed(self.graph.nodes)), self.graph._root), len(self.undo), len(self.remarks)

    def rollback(self, mark: tuple[fx.Node, int, int]) -> None:
        """Forget all that was recorded since a mark."""
        last, undo, remarks = mark
        while (node := self.graph._root._prev) is not last:
            self.graph.erase_node(node)
        for proxy, node, example, stale, view in reversed(self.undo[undo:]):
            proxy.node, proxy.example, proxy.stale, proxy.view_of = node, example, stale, view
            if proxy.is_tensor:
                self.memory.remember(proxy)
        del self.undo[undo:]
        del self.remarks[remarks:]
        self._indexed, self._owed = (None, -1, []), None
