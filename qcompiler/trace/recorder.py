"""Records calls on proxies as graph nodes, running each on the example's values to learn what comes out."""

from __future__ import annotations

import copy
import dataclasses
import functools
import keyword
import operator
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from qcompiler.errors import InputError, QCompilerError, UnsupportedOpError, Where
from qcompiler.inputs.input_text import first_sentence, how_to_mend
from qcompiler.ir.types import SOURCE, VALUE, Source, Value
from qcompiler.ops import trees
from qcompiler.trace import places
from qcompiler.trace.data_numbers import NUMBERS, depends_on_data
from qcompiler.trace.guards import TraceRemark
from qcompiler.trace.holding import BOUNDARY, Holding
from qcompiler.trace.mode import Training
from qcompiler.trace.opaque import Opaque
from qcompiler.trace.proxy import Proxy, Sizes

# Results that are numbers or flags but do not depend on a tensor's data.
METADATA = frozenset({
    "dim", "ndimension", "is_floating_point", "is_complex", "is_signed", "is_contiguous", "element_size", "get_device",
    "is_pinned", "is_inference", "is_conj", "is_neg", "is_shared", "is_tensor", "is_storage", "result_type",
    "can_cast", "dense_dim", "sparse_dim", "is_same_size", "is_grad_enabled",
})  # fmt: skip
SIZES = frozenset(("numel", "nelement", "stride", "storage_offset", "broadcast_shapes"))
# What torch.fx and codegen write into source.
LITERALS = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size)
# What a number in a result is: from sizes, from data where the graph cannot have it, from outside the trace.
Kind = Literal["size", "data", "boundary"]


def storage(tensor: torch.Tensor) -> int:
    """Identity of a tensor's memory (0 where it has none)."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0


def map_nested(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to what stands in tuples, lists, dicts, slices and dataclass instances."""
    kind = type(value)
    if kind is tuple or kind is Sizes:
        return tuple(map_nested(function, item) for item in tuple.__iter__(value))
    if kind is list:
        return [map_nested(function, item) for item in value]
    if kind is dict:
        return {key: map_nested(function, item) for key, item in value.items()}
    if kind is slice:
        return slice(*(map_nested(function, item) for item in (value.start, value.stop, value.step)))
    if isinstance(value, tuple) and kind is not Proxy and kind is not torch.Size:
        items = [map_nested(function, item) for item in value]
        return kind(*items) if hasattr(kind, "_fields") else kind(items)
    if issubclass(kind, dict):
        changed = copy.copy(value)
        for key, item in value.items():
            changed[key] = map_nested(function, item)
        return changed
    if dataclasses.is_dataclass(kind):
        changed = copy.copy(value)
        for field in dataclasses.fields(kind):
            object.__setattr__(changed, field.name, map_nested(function, getattr(value, field.name)))
        return changed
    return function(value)


class Recorder(Holding):
    """The graph under construction. Everything that a rolled-back attempt must undo is in `journal`, `remarks`, `graph`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.model = model
        self.journal: list[tuple[Proxy, fx.Node, Any, str | None, Any]] = []  # a variable as it was before a change
        self.found_state: Callable[[torch.Tensor], Any] = lambda tensor: None  # hears of a plain tensor that is changed in place
        self.kept: dict[str, str] = {}  # modules that have to stay leaves, with the reason
        self.leaves: list[str] = []  # paths of the leaves that run the user's code
        self.explicit_states = False  # recurrent layers that are given no state are given zeros
        self.restore_modules: Callable[[nn.Module], Any] = lambda root: None  # undo what a failed attempt left on modules
        self.constants: dict[str, torch.Tensor] = {}
        self.promoted: dict[int, tuple[torch.Tensor, Proxy]] = {}  # plain tensors that were changed by traced values
        self._constants: dict[tuple[int, int], str] = {}
        self._kept: list[torch.Tensor] = []
        self.free_numbers = True  # else each is held fixed
        self.containers: list[tuple[str, Any, list[Any]]] = []  # what arguments were opened into, and what each held then
        self._attributes: dict[str, fx.Node] = {}
        self._scalars: dict[Any, Proxy] = {}
        self._aliases: dict[int, list[weakref.ref[Proxy]]] = {}
        named = [*model.named_parameters(), *model.named_buffers()]
        self._names = {id(tensor): name for name, tensor in reversed(named)}
        self._buffers = {id(tensor) for tensor in model.buffers()}
        self.state = {storage(tensor) for _, tensor in named} - {0}
        self.held: dict[str, torch.Tensor] = {}  # states that are carried between calls, by dotted name: an example of each

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
        """A value as argument of a node: proxies and tensors become nodes, objects that carry them calls that build them."""
        kind = type(a)
        if kind is Proxy:
            if a.stale:
                raise self.error(a.stale)
            if a.tracer is not self:
                raise self.error("use of a value of an earlier call, which is kept where the trace does not find it")
            return a.node
        if issubclass(kind, torch.Tensor):
            return self.attribute_node(a)
        if kind is Training:
            return self._flag(a)
        if kind is Opaque:
            return a.node
        if kind in (tuple, list, Sizes):
            return (list if kind is list else tuple)(self.create_arg(item) for item in a)
        if kind is dict:
            return {self._literal(key): self.create_arg(item) for key, item in a.items()}
        if kind is slice:
            return slice(*map(self.create_arg, (a.start, a.stop, a.step)))
        if isinstance(a, tuple) and hasattr(kind, "_fields"):
            return self._built(kind, tuple(a), {}, a)
        if isinstance(a, tuple) and kind is not torch.Size:
            return self._built(kind, (tuple(a),), {}, a)
        if dataclasses.is_dataclass(kind):
            return self._built(kind, (), {f.name: getattr(a, f.name) for f in dataclasses.fields(kind) if f.init}, a)
        if issubclass(kind, dict):
            return self._built(kind, (dict(a),), {}, a)
        if trees.is_tree(a) and not isinstance(a, LITERALS):
            return self._built(trees.put_together(kind), (trees.children(a), trees.context(a)), {}, a)
        return self._literal(a)

    def _flag(self, flag: Training) -> fx.Node:
        """The get_attr node of a module's `training`."""
        node = self._attributes.get(flag.path)
        if node is None or node._erased:
            node = self._attributes[flag.path] = self.graph.create_node("get_attr", flag.path)
            node.meta[VALUE], node.meta[SOURCE] = Value(None, None), self.source()
        return node

    def _literal(self, value: Any) -> Any:
        """A plain value as it may stand in code; TraceError for other objects, whose repr is any text."""
        if type(value) in LITERALS or value is Ellipsis:
            return value
        if type(value) in (tuple, frozenset):
            return type(value)(map(self._literal, value))
        if isinstance(value, np.generic):
            return self._literal(value.item())
        if isinstance(value, str):
            return str.__str__(value)  # of a subclass, such as an enum's member: the text
        plain = next((base for base in (int, float, complex) if isinstance(value, base)), None)
        if plain is None:
            raise self.error(f"an argument of type {type(value).__name__}, which cannot be written into a program")
        return plain(value)

    def _built(self, kind: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> fx.Node:
        return self.add_node("call_function", kind, args, kwargs, value)

    def attribute_node(self, tensor: torch.Tensor) -> fx.Node:
        """The get_attr node of a parameter, a buffer or a tensor that depends on neither inputs nor randomness."""
        held = self.promoted.get(id(tensor))
        if held is not None and not held[1].node._erased:
            return self.create_arg(held[1])  # type: ignore[no-any-return]
        name = self._names.get(id(tensor)) or self._constant(tensor)
        node = self._attributes.get(name)
        if node is None or node._erased:
            node = self.graph.create_node("get_attr", name)
            node.meta[VALUE] = Value.of(tensor)
            node.meta[SOURCE] = self.source()
            self._attributes[name] = node
        return node

    def _constant(self, tensor: torch.Tensor) -> str:
        """The name under which a tensor's present value is kept as a constant."""
        key = (id(tensor), 0 if tensor.is_inference() else tensor._version)
        if key not in self._constants:
            self._constants[key] = name = f"_constant{len(self._constants)}"
            self.constants[name] = tensor.detach().clone()
            self._kept.append(tensor)  # so that its id stays its own
        return self._constants[key]

    # ---- running on examples

    def concrete(self, value: Any) -> Any:
        """Examples in place of proxies. Buffers are copied: no run on examples may change the model."""
        if type(value) is Proxy:
            return value.example
        if type(value) is Opaque:
            return value.example
        if type(value) is Training:
            return False  # examples run in eval mode: one image has no batch statistics
        if isinstance(value, torch.Tensor) and id(value) in self._buffers:
            return value.clone()
        return value

    def on_examples(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run plain torch on plain values; InputError where that fails."""
        if torch._C._is_any_autocast_enabled():  # the model's own: a trace begins without
            self._note_autocast()
            with torch._C._DisableAutocast():
                return self.on_examples(function, args, kwargs)
        self.paused += 1
        try:
            with torch.no_grad(), torch._C.DisableTorchFunction():
                return function(*args, **kwargs)
        except QCompilerError:
            raise
        except Exception as error:
            file, line = places.raised_at(error.__traceback__)
            if file is None:
                file, line = places.user_line(sys._getframe(1), BOUNDARY)
            path = self.scopes[-1][0] if self.scopes else None
            name = getattr(function, "__name__", type(function).__name__)
            name = type(function.args[0]).__name__ if type(function) is functools.partial else name  # a module
            text = f"{name} fails on the example inputs: {type(error).__name__}: {first_sentence(error)}"
            self.explain_failure(text)
            where, hint = Where(module_path=path, source=places.spell(file, line)), how_to_mend((args, kwargs), error)
            hint = hint or "call the model on these inputs to see the failure on its own"
            if any(isinstance(value, torch.Tensor) and value.is_complex() for value in tree_leaves((args, kwargs))):
                raise UnsupportedOpError(f"of complex values, {text}", code="complex", where=where, hint=hint) from error
            raise InputError(text, where=where, hint=hint) from error
        finally:
            self.paused -= 1

    def _note_autocast(self) -> None:
        path = self.scopes[-1][0] if self.scopes else None
        if not any(remark.kind == "autocast" and remark.where.module_path == path for remark in self.remarks):
            where = Where(module_path=path, source=places.spell(*places.user_line(sys._getframe(1), BOUNDARY)))
            text = "autocast inside forward is left out: what it would compute in half precision is int8, or float32"
            self.remarks.append(TraceRemark("autocast", where, text))

    def execute(self, op: str, target: Any, args: Any, kwargs: Any) -> Any:
        values, options = map_nested(self.concrete, tuple(args)), map_nested(self.concrete, kwargs)
        if op == "call_method":
            return self.on_examples(getattr(type(values[0]), target), values, options)
        return self.on_examples(target, values, options)

    def record(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call on the examples, append its node, return what stands for the result."""
        self.at_event()
        scalars = not kwargs and all(type(a) in (int, float, bool) or (type(a) is Proxy and not a.is_tensor) for a in args)
        key = (target, *((type(a), a.node if type(a) is Proxy else a) for a in args)) if scalars else None
        if key is not None and (known := self._scalars.get(key)) is not None and not known.node._erased:
            return known
        example = self.execute(op, target, args, kwargs)
        kind: Kind = "data" if self._has_tensor((args, kwargs)) else "size"
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        if kind == "data" and self._is_plain(name, args, example):
            return example
        kind = "size" if name in SIZES or name in NUMBERS else kind
        result = self.wrap(lambda: self.add_node(op, target, args, kwargs, example), example, kind)
        if key is not None and type(result) is Proxy:
            self._scalars[key] = result
        return result

    @staticmethod
    def _is_plain(name: str, args: tuple[Any, ...], example: Any) -> bool:
        """Whether a result is about the kind of a tensor, not its sizes or data."""
        if name in METADATA or isinstance(example, (torch.dtype, torch.device, torch.layout)):
            return True
        return isinstance(example, bool) and name in ("eq", "ne") and any(a is None or isinstance(a, str) for a in args)

    @staticmethod
    def _has_tensor(value: Any) -> bool:
        found = False

        def look(item: Any) -> Any:
            nonlocal found
            found = found or isinstance(item, torch.Tensor)

        map_nested(look, value)
        return found

    # ---- results

    def wrap(self, make: Callable[[], fx.Node], example: Any, kind: Kind) -> Any:
        """What the user's code gets for a result: proxies in the result's own containers."""
        if isinstance(example, (torch.Tensor, bool, int, float)):
            if not isinstance(example, torch.Tensor) and kind == "data":
                raise self.error(f"a Python {type(example).__name__} is made from a value that depends on data")
            if isinstance(example, torch.Tensor) and (example.is_sparse or example.is_nested):
                raise self.error("a sparse or nested tensor cannot be traced")
            proxy = self.bind(make(), example)
            return self.fix(proxy, "a number from outside the trace") if kind == "boundary" and not proxy.is_tensor else proxy
        if example is None or isinstance(example, (str, torch.dtype, torch.device)):
            make()
            return example
        node = make()
        self.hold_pieces(node, example)
        return self._children(node, example, kind)

    def _children(self, node: fx.Node, example: Any, kind: Kind) -> Any:
        def child(function: Callable[..., Any], key: Any, item: Any) -> Any:
            proxy = Proxy(node, self, example)
            return self.wrap(lambda: self.add_node("call_function", function, (proxy, key), {}, item), item, kind)

        def items(pairs: Iterable[tuple[Any, Any]]) -> list[Any]:
            return [child(operator.getitem, key, item) for key, item in pairs]

        kindred = type(example)
        if isinstance(example, torch.Size):
            return Sizes(items(enumerate(example)))
        if isinstance(example, (tuple, list)):
            values = items(enumerate(example))
            return kindred(*values) if hasattr(kindred, "_fields") else kindred(values)
        if trees.is_tree(example) and not isinstance(example, dict):
            whole, parts = Proxy(node, self, example), trees.children(example)
            listed = self.wrap(lambda: self.add_node("call_function", trees.children, (whole,), {}, parts), parts, kind)
            return trees.put_together(kindred)(listed, trees.context(example))
        if isinstance(example, dict) and not dataclasses.is_dataclass(example):
            changed = copy.copy(example)
            for key, item in example.items():
                changed[key] = child(operator.getitem, key, item)
            return changed
        if hasattr(example, "__dict__") and self._has_tensor(vars(example)):
            changed = copy.copy(example)
            for name, item in list(vars(example).items()):
                object.__setattr__(changed, name, child(getattr, name, item))
            return changed
        if kind == "data":
            raise self.error(f"a {kindred.__name__} is made from a value that depends on data")
        return example

    def bind(self, node: fx.Node, example: Any) -> Proxy:
        """A new variable that holds a node's value."""
        proxy = Proxy(node, self, example)
        if proxy.is_tensor:
            self.remember(proxy)
        return proxy

    def remember(self, proxy: Proxy) -> None:
        """Note which memory the example of a proxy uses, so that its aliases can be found."""
        refs = self._aliases.setdefault(storage(proxy.example), [])
        if len(refs) > 8:
            refs[:] = [ref for ref in refs if ref() is not None]
        refs.append(weakref.ref(proxy))

    def aliases(self, proxy: Proxy) -> list[Proxy]:
        """The other live variables that use the same memory."""
        return [p for p in self._of_memory(storage(proxy.example)) if p is not proxy]

    def _of_memory(self, key: int) -> list[Proxy]:
        live = [ref() for ref in self._aliases.get(key, ())] if key else []
        return [p for p in live if p is not None and not p.node._erased and storage(p.example) == key]

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
        return next(iter(reversed(self.graph.nodes)), self.graph._root), len(self.journal), len(self.remarks)

    def rollback(self, mark: tuple[fx.Node, int, int]) -> None:
        """Forget all that was recorded since a mark."""
        last, journal, remarks = mark
        while (node := self.graph._root._prev) is not last:
            self.graph.erase_node(node)
        for proxy, node, example, stale, view in reversed(self.journal[journal:]):
            proxy.node, proxy.example, proxy.stale, proxy.view_of = node, example, stale, view
            if proxy.is_tensor:
                self.remember(proxy)
        del self.journal[journal:]
        del self.remarks[remarks:]
        self._indexed, self._owed = (None, -1, []), None
