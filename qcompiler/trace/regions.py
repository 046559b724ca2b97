"""Statements under a condition on data: they are computed in any case, and their results count where the condition holds.

`if mask.any(): out[mask] = expert(x[mask])` is what code of routed experts looks like. Its statements are recorded; behind them each
variable that they changed becomes `choose(condition, after, before)`, at each call. Nothing is held fixed.
"""

from __future__ import annotations

import contextlib
import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import fx, nn

from qcompiler.errors import TraceError, Where
from qcompiler.ops.reference import choose
from qcompiler.trace import places
from qcompiler.trace.guards import TraceRemark
from qcompiler.trace.in_frame import run
from qcompiler.trace.mutation import Mutations
from qcompiler.trace.proxy import Args, Proxy
from qcompiler.trace.recording import Recording
from qcompiler.trace.statements import Branch, within
from qcompiler.trace.untouched import Untouched

T = TypeVar("T")
CHOOSING = frozenset((
    "max", "min", "amax", "amin", "argmax", "argmin", "aminmax", "median", "nanmedian", "mode", "quantile", "nanquantile", "kthvalue",
    "topk", "multinomial", "logsumexp", "select",
))  # fmt: skip


@dataclass
class Region:
    """Statements that are being recorded. `before`: what variables hold where the condition does not (object, node, example);
    `changed`: the same of tensors that the other way changes in place; `poisoned`: what it leaves without a value."""

    branch: Branch
    frame: FrameType
    place: tuple[str | None, int | None]
    condition: Proxy  # whether the statements count
    before: dict[str, tuple[Any, Any, Any]]
    changed: dict[int, tuple[Proxy, fx.Node, Any]]
    poisoned: list[Proxy]
    start: fx.Node
    undo: int
    depth: int
    ends: str = "statements"  # else "return", "choice": what alone may close it
    other: Any = None  # there: the value that counts where the condition does not hold
    kept: Untouched | None = None  # there: what must not change


def _is_running(frame: FrameType) -> bool:
    current: FrameType | None = sys._getframe(1)
    while current is not None and current is not frame:
        current = current.f_back
    return current is frame


def _chosen_dims(name: str, args: Args, kwargs: dict[str, object]) -> list[int]:
    """The dimensions in which a call needs a value."""
    if name == "getitem":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        plain = all(type(i) is int or type(i) is slice for i in index)
        return [dim for dim, i in enumerate(index) if type(i) is int] if plain else []
    if name not in CHOOSING:
        return []
    given = kwargs.get("dim", args[1] if len(args) > 1 and name != "topk" else args[2] if len(args) > 2 else None)
    dims = [given] if type(given) is int else list(given) if isinstance(given, (tuple, list)) else range(args[0].example.dim())
    return [dim % max(args[0].example.dim(), 1) for dim in dims]


class Regions:
    """The statements under conditions on data that are being recorded. `open`: the innermost last."""

    def __init__(self, recorder: Recording, mutations: Mutations) -> None:
        self._recorder, self._mutations = recorder, mutations
        self.open: list[Region] = []
        self.closing = False
        self.left_open: dict[str, Region] = {}  # by what is said of a value that one way alone has

    def enter(self, branch: Branch, frame: FrameType, condition: Proxy) -> None:
        place = places.user_line(frame, ())
        found = {n: frame.f_locals[n] for n in (*branch.names, *branch.targets) if n in frame.f_locals}
        if any(not isinstance(found.get(n), torch.Tensor) for n in branch.targets):
            raise self._recorder.error("bool() of a value that depends on data")
        variables, changed, poisoned = self.aside(lambda: run(frame, branch.other)) if branch.other else ({}, {}, [])
        other = {n: variables[n] for n in branch.names if n in variables}
        before = {n: (v, v.node, v.example) if type(v) is Proxy else (v, v, v) for n, v in (found | other).items()}
        self._mutations.forget_copies()  # what the statements assign into is copied
        self.open.append(Region(branch, frame, place, condition, before, changed, poisoned, *self.now()))
        self.note_branch(place, "what stands under it is always computed, and counts where it holds")

    def opposite(self, holds: Proxy) -> Any:
        return self._recorder.record("call_function", operator.not_, (holds,), {})

    def now(self) -> tuple[fx.Node, int, int]:
        """The last node, and how long the undo list and the stack of modules are."""
        return next(iter(reversed(self._recorder.graph.nodes))), len(self._recorder.undo), len(self._recorder.scopes)

    def note_branch(self, place: tuple[str | None, int | None], what: str) -> None:
        text = f"`{places.text_of(*place)}` depends on data: {what}"
        remark = TraceRemark("data-branch", Where(None, self._recorder.scopes[-1][0], places.spell(*place)), text)
        if remark not in self._recorder.remarks:  # a loop over experts
            self._recorder.remarks.append(remark)

    def aside(self, action: Callable[[], T]) -> tuple[T, dict[int, tuple[Proxy, fx.Node, Any]], list[Proxy]]:
        """Record what the code does where the condition does not hold, then go back: what that gives, changed and poisoned tensors."""
        start, opened = len(self._recorder.undo), len(self.open)
        last = next(iter(reversed(self._recorder.graph.nodes)))
        self._mutations.forget_copies()
        result = action()
        self.leave(opened)
        first = self.first_entries(start, last)
        changed = {key: (p, p.node, p.example) for key, (p, node, _, _) in first.items() if p.node is not node and p.stale is None}
        poisoned = [p for p, _, _, _ in first.values() if p.stale is not None]
        for proxy, node, example, view in first.values():
            self._mutations.rebind(proxy, node, example)
            proxy.view_of = view
        return result, changed, poisoned

    def first_entries(self, position: int, last: fx.Node) -> dict[int, tuple[Proxy, fx.Node, Any, Any]]:
        """The values that older variables had at a position of the undo list, of those that are valid."""
        first: dict[int, tuple[Proxy, fx.Node, Any, Any]] = {}
        for proxy, node, example, stale, view in self._recorder.undo[position:]:
            if (node <= last or node.op == "get_attr") and stale is None:
                first.setdefault(id(proxy), (proxy, node, example, view))
        return first

    def close_ended(self, depth: int | None = None) -> None:
        """Close what has ended before anything else is recorded; `depth`: a module ends, and with it what was opened in it."""
        while self.open and not self.closing:
            region = self.open[-1]
            branch = region.branch
            if _is_running(region.frame) and within(region.frame, branch.first, branch.last) and (depth is None or region.depth <= depth):
                break
            self.leave(len(self.open) - 1)

    def check(self, op: str, target: object, args: Args, kwargs: dict[str, object]) -> None:
        """Refuse a call that fails where the condition does not hold."""
        if self.open and not self.closing and self._may_lack_values(op, target, args, kwargs):
            raise self._recorder.error("what stands under a condition on data may have no value to choose from where it does not hold")

    def _may_lack_values(self, op: str, target: object, args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
        """Whether a call chooses among values whose number depends on data: where there are none, it fails."""
        if not args or type(args[0]) is not Proxy or not args[0].is_tensor or args[0].node not in self._recorder.from_data:
            return False
        name = str(target) if op == "call_method" else getattr(target, "__name__", "")
        return any(not self._recorder.fixed_sizes.holds(args[0].node, dim) for dim in _chosen_dims(name, args, kwargs))

    def explain_failure(self, text: str) -> None:
        if self.open:
            where = self.open[-1].place
            raise self._recorder.error(f"what stands under a condition on data cannot be computed where it does not hold: {text}", where)

    @contextlib.contextmanager
    def without_state(self, module: nn.Module) -> Iterator[None]:
        """A module that is called under a condition on data must keep nothing: it would keep it where the condition does not hold, too."""
        before = Untouched([module]) if self.open else None
        yield
        if before is not None and self.open and before.changed():
            raise self._recorder.error("a module keeps state under a condition on data", self.open[-1].place)

    def leave(self, count: int) -> None:
        """Close the innermost regions until as many are left."""
        before, self.closing = self.closing, True
        try:
            while len(self.open) > count:
                region = self.open.pop()
                try:
                    self._close(region)
                except TraceError as error:
                    error.region = region  # type: ignore[attr-defined]
                    raise
        finally:
            self.closing = before

    def _close(self, region: Region) -> None:
        if region.ends != "statements":
            raise self._recorder.error("a condition on data ends a function in a way that cannot be followed", region.place)
        entries = self.first_entries(region.undo, region.start)
        changed = {key: (p, node, example) for key, (p, node, example, _) in entries.items() if p.node is not node}
        for proxy, node, example in (changed | region.changed).values():
            if proxy.stale is None:
                self._choose(region, proxy, node, example, same_shape=True)
        done = {key: proxy for key, (proxy, _, _) in changed.items()}
        for name, (old, node, example) in region.before.items():
            new = region.frame.f_locals.get(name)
            if new is not old:
                self._variable(region, new, node, example, done)
        for proxy in region.poisoned:
            self._forget(proxy, region)
        self._mutations.forget_copies()

    def _variable(self, region: Region, new: Any, node: Any, example: Any, done: dict[int, Proxy]) -> None:
        """A variable that is another object behind the statements."""
        if type(new) is not Proxy or not new.node > region.start or id(new) in done:
            raise self._recorder.error("a variable that is no tensor of its own depends on data", region.place)
        done[id(new)] = new
        if not new.is_tensor or not isinstance(example, torch.Tensor):
            return self._forget(new, region)
        older = (other for other in self._recorder.memory.aliases(new) if other.node <= region.start)
        if any(older):  # what changes it later would have to change the other
            raise self._recorder.error("a variable that is a view of another one depends on data", region.place)
        self._choose(region, new, node, example, same_shape=False)

    def _forget(self, proxy: Proxy, region: Region) -> None:
        text = f"use of a value that is known only where `{places.text_of(*region.place)}` holds"
        self.left_open[text] = region
        self._mutations.poison(proxy, text)

    def _choose(self, region: Region, proxy: Proxy, node: object, example: object, same_shape: bool) -> None:
        """Let a variable be what it is behind the statements where the condition holds, and `node` elsewhere."""
        before = Proxy(node, self._recorder, example) if isinstance(node, fx.Node) else node
        after = Proxy(proxy.node, self._recorder, proxy.example)
        made = self._recorder.add_node("call_function", choose, (region.condition, after, before), {}, proxy.example)
        if not same_shape:
            self._recorder.from_data.add(made)
        view = proxy.view_of
        self._mutations.rebind(proxy, made, self._recorder.seen(made, proxy.example))
        proxy.view_of = view  # what it is a view of was chosen as well, where it changed
