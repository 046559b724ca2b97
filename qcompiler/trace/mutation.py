"""In-place operations: recorded out of place, with every variable that shares the memory brought up to date."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from qcompiler.trace.memory import storage
from qcompiler.trace.proxy import Proxy
from qcompiler.trace.recorder import Recorder

_RESHAPES = frozenset(["squeeze_", "unsqueeze_", "t_", "transpose_", "swapaxes_", "swapdims_"])
_Call = tuple[str, Any, tuple[Any, ...], dict[str, Any]]


def _range(tensor: torch.Tensor) -> tuple[int, int]:
    """First and last position in its memory that a tensor covers."""
    first = int(tensor.storage_offset())
    return first, first + int(sum((n - 1) * s for n, s in zip(tensor.size(), tensor.stride(), strict=True)))


def overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have an element of memory in common."""
    if storage(a) != storage(b) or not a.numel() or not b.numel():
        return False
    if a.dtype != b.dtype:
        return True
    (first_a, last_a), (first_b, last_b) = _range(a), _range(b)
    if last_a < first_b or last_b < first_a:
        return False
    if last_a - first_a + 1 == a.numel() and first_a <= first_b:  # a has no holes
        return True
    covered = torch.zeros(max(last_a, last_b) + 1, dtype=torch.bool)
    covered.as_strided(a.size(), a.stride(), first_a).fill_(True)
    return bool(covered.as_strided(b.size(), b.stride(), first_b).any())


def same_place(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same view of the same memory."""
    return a.dtype == b.dtype and (a.size(), a.stride(), a.storage_offset()) == (b.size(), b.stride(), b.storage_offset())


class Mutations(Recorder):
    """The recorder's part for values that change."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._copies: dict[fx.Node, int] = {}  # clones that assignments go into, and how many do
        self._sharing: dict[int, dict[int, torch.Tensor]] = {}  # by memory: examples that may use the same one

    def out_of_place(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, object]) -> _Call | None:
        """The call that computes what an in-place call leaves in its first argument; None if the call is not in place."""
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        if name.endswith("_") and not name.startswith("_") and args and isinstance(args[0], torch.Tensor):
            plain = name[:-1]
            if op == "call_method":
                if name == "zero_":
                    return "call_function", torch.zeros_like, args[:1], {}
                return ("call_method", plain, args, kwargs) if hasattr(torch.Tensor, plain) else None
            for namespace in (torch, F):
                if getattr(namespace, name, None) is target and hasattr(namespace, plain):
                    return op, getattr(namespace, plain), args, kwargs
            return None
        if kwargs.get("inplace"):
            return op, target, args, {**kwargs, "inplace": False}
        return None

    def is_in_place(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, object]) -> bool:
        """Whether a call changes its first argument."""
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        if name == "requires_grad_" or not args or not isinstance(args[0], torch.Tensor):
            return False
        if op == "call_function" and getattr(target, "__module__", "") not in (None, "torch", "torch.nn.functional", "torch._C._nn"):
            return False
        return (name.endswith("_") and not name.startswith("_")) or kwargs.get("inplace") is True

    def update(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Carry out an out-of-place call and let its first argument refer to the result."""
        owner = self.variable(args[0])
        if isinstance(target, str) and target.rstrip("_") + "_" in _RESHAPES:
            result = self.record(op, target, (owner, *args[1:]), kwargs)
            self.rebind(owner, result.node, result.example)
            return owner
        result = self.record(op, target, (owner, *args[1:]), kwargs)
        if result.example.dtype != owner.example.dtype:
            result = self.record("call_method", "to", (result, owner.example.dtype), {})
        self.mutate(owner, result.node, result.example)
        return owner

    def update_clone(self, target: str, args: tuple[Any, ...], kwargs: dict[str, object]) -> object:
        """Carry out an in-place method without out-of-place form on a copy."""
        owner = self.variable(args[0])
        copied = self.record("call_method", "clone", (owner,), {})
        node = self.add_node("call_method", target, (copied, *args[1:]), kwargs, copied.example)
        example = self.running.execute("call_method", target, (copied.example, *args[1:]), kwargs)
        self.mutate(owner, node, example)
        return owner

    def mutate_to(self, owner: Proxy, value: object) -> None:
        """`x.data = value`."""
        value = self.variable(value)
        self.rebind(owner, value.node, value.example)

    def variable(self, value: Any) -> Proxy:
        """The proxy for a tensor that is about to change; plain tensors become traced, parameters and buffers are refused."""
        if type(value) is not Proxy:
            held = self.promoted.get(id(value))
            if held is not None and not held[1].node._erased:
                return held[1]
            self.check_state(value)
            if value._is_view():
                raise self.error("a view of a tensor that does not depend on the inputs is changed in place")
            proxy = self.bind(self.attribute_node(value), value.detach().clone())
            self.promoted[id(value)] = (value, proxy)
            return proxy
        self.check_state(value.example)
        return value

    def check_state(self, tensor: torch.Tensor) -> None:
        """Refuse to change a parameter or buffer of the model, and start anew where the tensor is one that can be carried as state."""
        self.found_state(tensor)
        if storage(tensor) in self.attributes.memory:
            raise self.error("forward changes a parameter or buffer in place")

    def may_share(self, proxies: Sequence[Proxy]) -> None:
        """Note that these tensors may use one memory: where one is changed in place, nobody knows what the others are."""
        for proxy in proxies:
            self._sharing.setdefault(storage(proxy.example), {}).update({storage(p.example): p.example for p in proxies if p is not proxy})

    def _poison_sharing(self, owner: Proxy) -> None:
        for memory in self._sharing.get(storage(owner.example), ()):
            for other in self.memory.users(memory):
                if other is not owner:
                    self.poison(other, "use of a tensor that may share its memory with one that was changed in place")

    def mutate(self, owner: Proxy, node: fx.Node, example: torch.Tensor) -> None:
        """Let a variable and all variables that share its memory refer to its new value."""
        old, view = owner.example, owner.view_of
        aliases = self.memory.aliases(owner)
        self._poison_sharing(owner)
        if storage(example) == storage(old):  # the operation did nothing, e.g. dropout in eval mode
            self.rebind(owner, node, example)
            return
        parent = view[0]() if view else None
        self.rebind(owner, node, example)
        for other in aliases:
            if same_place(other.example, old):
                self.rebind(other, node, example)
            elif other is not parent and overlap(other.example, old):
                self.poison(other)
        if view is not None and parent is not None and overlap(parent.example, old):
            self.write_back(owner, parent, view[1])

    def write_back(self, owner: Proxy, parent: Proxy, index: Any) -> None:
        """Store a changed view in the tensor it is a view of, and make it a view of the new one."""
        self.set_item(parent, index, owner)
        again = self.record("call_function", operator.getitem, (parent, index), {})
        self.rebind(owner, again.node, again.example)
        owner.view_of = (weakref.ref(parent), index)

    def set_item(self, target: Any, index: Any, value: Any) -> None:
        """`target[index] = value`: an assignment to a copy, which the variable then refers to."""
        owner = self.variable(target)
        if type(value) is Proxy and value.is_tensor and self._is_view_itself(owner, index, value):
            return  # the last step of `x[index] += y`: the view is written back already
        own = self._is_own_copy(owner)
        node = owner.node if own else self.add_node("call_method", "clone", (owner,), {}, owner.example)
        changed = owner.example.clone()
        self.running.execute("call_function", operator.setitem, (changed, index, value), {})
        done = self.add_node("call_function", operator.setitem, (Proxy(node, self, changed), index, value), {}, None)
        self._copies[node] = self._copies.get(node, 0) + 1
        if node in done.args[1:]:
            del self._copies[node]
        self.mutate(owner, node, changed)

    def _is_view_itself(self, owner: Proxy, index: Any, value: Proxy) -> bool:
        if owner.stale or storage(owner.example) != storage(value.example):
            return False
        return same_place(self.running.execute("call_function", operator.getitem, (owner, index), {}), value.example)

    def _is_own_copy(self, owner: Proxy) -> bool:
        """Whether a variable's value is a copy that nothing else has read yet."""
        node = owner.node
        if node._erased or owner.stale or self._copies.get(node) != len(node.users):
            return False
        return not any(overlap(other.example, owner.example) for other in self.memory.aliases(owner) if other.node is not node)

    def rollback(self, mark: tuple[fx.Node, int, int]) -> None:
        super().rollback(mark)
        self._copies.clear()

    def rebind(self, owner: Proxy, node: fx.Node, example: Any) -> None:
        """Let a variable refer to another value."""
        self.undo.append((owner, owner.node, owner.example, owner.stale, owner.view_of))
        owner.node, owner.example, owner.stale, owner.view_of = node, example, None, None
        self.memory.remember(owner)

    def poison(self, other: Proxy, why: str = "use of a tensor after another view of its memory was changed in place") -> None:
        """Mark a variable whose value is not known any more."""
        self.undo.append((other, other.node, other.example, other.stale, other.view_of))
        other.stale = why
