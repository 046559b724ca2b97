"""In-place operations: recorded out of place, with every variable that shares the memory brought up to date."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.node import Target

from qcompiler.trace.memory import overlap, storage
from qcompiler.trace.proxy import Args, Kwargs, Proxy, View
from qcompiler.trace.recording import Recording
from qcompiler.trace.running import Running
from qcompiler.trace.sharing import before, relied_on
from qcompiler.trace.views import again, ancestors, are_one, index_of, is_same_index, parent_of

_RESHAPES = frozenset(["squeeze_", "unsqueeze_", "t_", "transpose_", "swapaxes_", "swapdims_"])
_BY_MODE = (
    "use of a tensor that shares its memory with one that was changed in place in evaluation mode alone (a dropout copies in training)"
)
_Call = tuple[str, Any, tuple[Any, ...], dict[str, Any]]


def same_place(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same view of the same memory."""
    return a.dtype == b.dtype and (a.size(), a.stride(), a.storage_offset()) == (b.size(), b.stride(), b.storage_offset())


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that lies as this one does, of no memory."""
    return torch.empty_strided((1,), (1,), dtype=tensor.dtype, device="meta").as_strided(
        tensor.size(), tensor.stride(), tensor.storage_offset()
    )


def _is_among(group: Sequence[Proxy], chain: Sequence[Proxy]) -> bool:
    return any(one is other for one in group for other in chain)


class Mutations:
    """The variables of a trace whose values change."""

    def __init__(self, recorder: Recording, running: Running) -> None:
        self._recorder, self._running = recorder, running
        self._copies: dict[fx.Node, int] = {}  # clones that assignments go into, and how many do
        self._sharing: dict[int, dict[int, torch.Tensor]] = {}  # by memory: examples that may use the same one
        self._depth = 0  # changes that are being carried over to what a view is one of

    def out_of_place(self, op: str, target: Target, args: Args, kwargs: dict[str, object]) -> _Call | None:
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

    def is_in_place(self, op: str, target: Target, args: Args, kwargs: dict[str, object]) -> bool:
        """Whether a call changes its first argument."""
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        if name == "requires_grad_" or not args or not isinstance(args[0], torch.Tensor):
            return False
        if op == "call_function" and getattr(target, "__module__", "") not in (None, "torch", "torch.nn.functional", "torch._C._nn"):
            return False
        return (name.endswith("_") and not name.startswith("_")) or kwargs.get("inplace") is True

    def update(self, op: str, target: Target, args: Args, kwargs: Kwargs) -> Any:
        """Carry out an out-of-place call and let its first argument refer to the result."""
        owner = self.variable(args[0])
        if isinstance(target, str) and target.rstrip("_") + "_" in _RESHAPES:
            result = self._recorder.record(op, target, (owner, *args[1:]), kwargs)
            self.rebind(owner, result.node, result.example)
            return owner
        result = self._recorder.record(op, target, (owner, *args[1:]), kwargs)
        if result.example.dtype != owner.example.dtype:
            result = self._recorder.record("call_method", "to", (result, owner.example.dtype), {})
        self.mutate(owner, result.node, result.example)
        return owner

    def update_clone(self, target: str, args: Args, kwargs: dict[str, object]) -> object:
        """Carry out an in-place method without out-of-place form on a copy."""
        owner = self.variable(args[0])
        copied = self._recorder.record("call_method", "clone", (owner,), {})
        node = self._recorder.add_node("call_method", target, (copied, *args[1:]), kwargs, copied.example)
        example = self._running.execute("call_method", target, (copied.example, *args[1:]), kwargs)
        self.mutate(owner, node, example)
        return owner

    def mutate_to(self, owner: Proxy, value: object) -> None:
        """`x.data = value`."""
        value = self.variable(value)
        self.rebind(owner, value.node, value.example)

    def variable(self, value: Any) -> Proxy:
        """The proxy for a tensor that is about to change; plain tensors become traced, parameters and buffers are refused."""
        if type(value) is not Proxy:
            held = self._recorder.promoted.get(id(value))
            if held is not None and not held[1].node._erased:
                return held[1]
            self.check_state(value)
            if value._is_view():
                raise self._recorder.error("a view of a tensor that does not depend on the inputs is changed in place")
            proxy = self._recorder.bind(self._recorder.attribute_node(value), value.detach().clone())
            self._recorder.promoted[id(value)] = (value, proxy)
            return proxy
        self.check_state(value.example)
        return value

    def check_state(self, tensor: torch.Tensor) -> None:
        """Refuse to change a parameter or buffer of the model, and start anew where the tensor is one that can be carried as state."""
        self._recorder.found_state(tensor)
        if storage(tensor) in self._recorder.attributes.memory:
            raise self._recorder.error("forward changes a parameter or buffer in place")

    def may_share(self, proxies: Sequence[Proxy]) -> None:
        """Note that these tensors may use one memory: where one is changed in place, nobody knows what the others are."""
        for proxy in proxies:
            self._sharing.setdefault(storage(proxy.example), {}).update({storage(p.example): p.example for p in proxies if p is not proxy})

    def touches(self, one: Any, other: Any) -> bool:
        """Whether a change of a tensor in place may be one of another one, which may be something else."""
        if not isinstance(other, torch.Tensor):
            return False
        a, b = (tensor.example if type(tensor) is Proxy else tensor for tensor in (one, other))
        linked = type(one) is Proxy and any(p is other for p in self._recorder.memory.kin(one)) and storage(a) != storage(b)
        return overlap(a, b) or linked or storage(b) in self._sharing.get(storage(a), ())

    def _poison_sharing(self, owner: Proxy) -> None:
        for memory in self._sharing.get(storage(owner.example), ()):
            for other in self._recorder.memory.users(memory):
                if other is not owner:
                    self.poison(other, "use of a tensor that may share its memory with one that was changed in place")

    def mutate(self, owner: Proxy, node: fx.Node, example: torch.Tensor) -> None:
        """Let a variable and all variables that share its memory refer to its new value."""
        others = [other for other in self._recorder.memory.kin(owner) if other.stale is None]
        kin = [] if self._depth else [before(owner, other) for other in others]
        laid = [(one, one.laid or (one.node, _without_data(one.example))) for one in (owner, *others)]
        self._depth += 1
        try:
            self._change(owner, node, example)
        finally:
            self._depth -= 1
        for variable, place in laid:  # what is changed in place stays where it is
            variable.laid = place
        last = next(iter(reversed(self._recorder.graph.nodes)))
        for one in kin:
            if one.by_mode:
                self.poison(one.variable, _BY_MODE)
            else:
                self._recorder.shared.extend(relied_on(one, last))

    def _change(self, owner: Proxy, node: fx.Node, example: torch.Tensor) -> None:
        old, aliases = owner.example, self._recorder.memory.aliases(owner)
        self._poison_sharing(owner)
        if storage(example) == storage(old):  # the operation did nothing, e.g. dropout in eval mode
            self.rebind(owner, node, example)
            return
        same = [owner, *(other for other in aliases if same_place(other.example, old) and are_one(owner, other))]
        known = [other for other in aliases if not _is_among(same, (other,)) and other.stale is None and overlap(other.example, old)]
        chains = {id(other): ancestors(other) for other in (*same, *known)}
        views = {id(other): other.view_of for other in (*same, *known)}
        below = [other for other in known if _is_among(same, chains[id(other)])]  # views of what changes
        source = next((other for other in same if chains[id(other)] and not _is_among(same, chains[id(other)])), None)
        for other in (*same, *below):
            self.rebind(other, node, example)
        if source is None or not self._write_back(source, same, views[id(source)]):
            for other in known:
                if not _is_among(below, (other,)):
                    self.poison(other)
        for other in same:
            other.view_of = views[id(other)]
        for other in sorted(below, key=lambda other: len(chains[id(other)])):
            self._renew(other, views[id(other)])

    def _write_back(self, source: Proxy, same: Sequence[Proxy], view: View | None) -> bool:
        """Store a changed view in the tensor it is a view of, and make it, and those that are the same, a view of the new one."""
        assert view is not None
        if (index := index_of(view)) is not None:
            self.set_item(view.parent, index, source)
        elif (value := parent_of(view, source, self._recorder)) is not None:
            self.mutate(view.parent, value.node, value.example)
        else:
            return False
        made = again(view, self._recorder)
        for other in same:
            self.rebind(other, made.node, made.example)
        return True

    def _renew(self, other: Proxy, view: View | None) -> None:
        assert view is not None
        made = again(view, self._recorder)
        self.rebind(other, made.node, made.example)
        other.view_of = view

    def set_item(self, target: Target, index: Any, value: Any) -> None:
        """`target[index] = value`: an assignment to a copy, which the variable then refers to."""
        owner = self.variable(target)
        if type(value) is Proxy and value.is_tensor and self._is_view_itself(owner, index, value):
            return  # the last step of `x[index] += y`: the view is written back already
        own = self._is_own_copy(owner)
        node = owner.node if own else self._recorder.add_node("call_method", "clone", (owner,), {}, owner.example)
        changed = owner.example.clone()
        self._running.execute("call_function", operator.setitem, (changed, index, value), {})
        done = self._recorder.add_node("call_function", operator.setitem, (Proxy(node, self._recorder, changed), index, value), {}, None)
        self._copies[node] = self._copies.get(node, 0) + 1
        if node in done.args[1:]:
            del self._copies[node]
        self.mutate(owner, node, changed)

    def _is_view_itself(self, owner: Proxy, index: Any, value: Proxy) -> bool:
        view = value.view_of
        if owner.stale or view is None or view.parent is not owner or storage(owner.example) != storage(value.example):
            return False
        return index_of(view) is not None and is_same_index(index_of(view), index)

    def _is_own_copy(self, owner: Proxy) -> bool:
        """Whether a variable's value is a copy that nothing else has read yet."""
        node = owner.node
        if node._erased or owner.stale or self._copies.get(node) != len(node.users):
            return False
        return not any(overlap(other.example, owner.example) for other in self._recorder.memory.aliases(owner) if other.node is not node)

    def forget_copies(self) -> None:
        """From here on assignments go into new copies."""
        self._copies.clear()

    def rebind(self, owner: Proxy, node: fx.Node, example: Any) -> None:
        """Let a variable refer to another value."""
        self._recorder.undo.append((owner, owner.node, owner.example, owner.stale, owner.view_of))
        owner.node, owner.example, owner.stale, owner.view_of, owner.laid = node, example, None, None, None
        self._recorder.memory.remember(owner)

    def poison(self, other: Proxy, why: str = "use of a tensor after another view of its memory was changed in place") -> None:
        """Mark a variable whose value is not known any more."""
        self._recorder.undo.append((other, other.node, other.example, other.stale, other.view_of))
        other.stale = why
