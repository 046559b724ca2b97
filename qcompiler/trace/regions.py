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
from qcompiler.trace.mutation import Mutations
from qcompiler.trace.numbers import ask_for_stand_ins, user_frame
from qcompiler.trace.proxy import Proxy
from qcompiler.trace.statements import Branch, branch_at, run, within
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


def _chosen_dims(name: str, args: tuple[Any, ...], kwargs: dict[str, object]) -> list[int]:
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


def kept_by(module: nn.Module) -> dict[str, list[Any]]:
    """What a module holds: each attribute, with what stands in it if it is a plain container."""
    found: dict[str, list[Any]] = {}
    for name, value in vars(module).items():
        items: Any = value.items() if isinstance(value, dict) else [(item,) for item in value] if isinstance(value, (list, set)) else ()
        found[name] = [value, *(part for item in items for part in item)]
    return found


def _same(before: list[object], after: list[object]) -> bool:
    return len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True))


class Regions(Mutations):
    """The recorder's part for conditions on data."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.regions: list[Region] = []
        self.closing = False
        self.left_open: dict[str, Region] = {}  # by what is said of a value that one way alone has
        self.stand_ins: list[dict[str, object]] = []  # globals of the user's code that get stand-ins for builtins

    def number(self, proxy: Proxy, how: str) -> Any:
        """The value of a number for a builtin that needs it; Again where a stand-in for the builtin can do without."""
        if proxy.is_tensor or proxy.node in self._from_data:
            ask_for_stand_ins(user_frame(), self.stand_ins)
        return self.fix(proxy, how)

    def truth(self, proxy: Proxy) -> bool:
        """Which way the user's code goes at a condition; TraceError where it depends on data and only one way can be recorded."""
        if not proxy.is_tensor and proxy.node not in self._from_data:
            return bool(self.fix(proxy, "bool()"))
        self.at_event()
        frame = user_frame()
        branch = branch_at(frame) if frame is not None and places.is_user_file(frame.f_code.co_filename) else None
        if branch is None and frame is not None and not proxy.stale and (answer := self.returns_early(frame, proxy)) is not None:
            return answer
        if branch is None or frame is None or proxy.stale:
            ask_for_stand_ins(frame, self.stand_ins)
            raise self.error(proxy.stale or f"bool() of a {'value' if proxy.is_tensor else 'size'} that depends on data")
        holds = self.record("call_function", bool, (proxy,), {})
        if branch.is_check:
            if holds.example is branch.answer:
                self._hold(holds, "a condition", f"bool() made {branch.answer} concrete")
            return bool(holds.example)
        condition = holds if branch.answer else self.opposite(holds)
        self._open(branch, frame, condition)
        return branch.answer

    def returns_early(self, frame: FrameType, proxy: Proxy) -> bool | None:
        """The truth value with which a function goes on that returns early else; None where it cannot be said."""
        return None

    def _open(self, branch: Branch, frame: FrameType, condition: Proxy) -> None:
        place = places.user_line(frame, ())
        found = {n: frame.f_locals[n] for n in (*branch.names, *branch.targets) if n in frame.f_locals}
        if any(not isinstance(found.get(n), torch.Tensor) for n in branch.targets):
            raise self.error("bool() of a value that depends on data")
        variables, changed, poisoned = self.aside(lambda: run(frame, branch.other)) if branch.other else ({}, {}, [])
        other = {n: variables[n] for n in branch.names if n in variables}
        before = {n: (v, v.node, v.example) if type(v) is Proxy else (v, v, v) for n, v in (found | other).items()}
        self._copies.clear()  # what the statements assign into is copied
        self.regions.append(Region(branch, frame, place, condition, before, changed, poisoned, *self.now()))
        self.note_branch(place, "what stands under it is always computed, and counts where it holds")

    def opposite(self, holds: Proxy) -> Any:
        return self.record("call_function", operator.not_, (holds,), {})

    def now(self) -> tuple[fx.Node, int, int]:
        """The last node, and how long the undo list and the stack of modules are."""
        return next(iter(reversed(self.graph.nodes))), len(self.undo), len(self.scopes)

    def note_branch(self, place: tuple[str | None, int | None], what: str) -> None:
        text = f"`{places.text_of(*place)}` depends on data: {what}"
        remark = TraceRemark("data-branch", Where(None, self.scopes[-1][0], places.spell(*place)), text)
        if remark not in self.remarks:  # a loop over experts
            self.remarks.append(remark)

    def aside(self, action: Callable[[], T]) -> tuple[T, dict[int, tuple[Proxy, fx.Node, Any]], list[Proxy]]:
        """Record what the code does where the condition does not hold, then go back: what that gives, changed and poisoned tensors."""
        start, opened = len(self.undo), len(self.regions)
        last = next(iter(reversed(self.graph.nodes)))
        self._copies.clear()
        result = action()
        self.leave(opened)
        first = self._first_entries(start, last)
        changed = {key: (p, p.node, p.example) for key, (p, node, _, _) in first.items() if p.node is not node and p.stale is None}
        poisoned = [p for p, _, _, _ in first.values() if p.stale is not None]
        for proxy, node, example, view in first.values():
            self.rebind(proxy, node, example)
            proxy.view_of = view
        return result, changed, poisoned

    def _first_entries(self, position: int, last: fx.Node) -> dict[int, tuple[Proxy, fx.Node, Any, Any]]:
        """The values that older variables had at a position of the undo list, of those that are valid."""
        first: dict[int, tuple[Proxy, fx.Node, Any, Any]] = {}
        for proxy, node, example, stale, view in self.undo[position:]:
            if (node <= last or node.op == "get_attr") and stale is None:
                first.setdefault(id(proxy), (proxy, node, example, view))
        return first

    def at_event(self, depth: int | None = None) -> None:
        """What is due before anything else is recorded; `depth`: a module ends, and with it what was opened in it."""
        super().at_event()
        while self.regions and not self.closing:
            region = self.regions[-1]
            branch = region.branch
            if _is_running(region.frame) and within(region.frame, branch.first, branch.last) and (depth is None or region.depth <= depth):
                break
            self.leave(len(self.regions) - 1)

    def add_node(self, op: str, target: object, args: tuple[object, ...], kwargs: dict[str, object], example: object) -> fx.Node:
        if self.regions and not self.closing and self._may_lack_values(op, target, args, kwargs):
            raise self.error("what stands under a condition on data may have no value to choose from where it does not hold")
        return super().add_node(op, target, args, kwargs, example)

    def _may_lack_values(self, op: str, target: object, args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
        """Whether a call chooses among values whose number depends on data: where there are none, it fails."""
        if not args or type(args[0]) is not Proxy or not args[0].is_tensor or args[0].node not in self._from_data:
            return False
        name = str(target) if op == "call_method" else getattr(target, "__name__", "")
        return any(not self.fixed_sizes.holds(args[0].node, dim) for dim in _chosen_dims(name, args, kwargs))

    def explain_failure(self, text: str) -> None:
        if self.regions:
            where = self.regions[-1].place
            raise self.error(f"what stands under a condition on data cannot be computed where it does not hold: {text}", where)

    @contextlib.contextmanager
    def without_state(self, module: nn.Module) -> Iterator[None]:
        """A module that is called under a condition on data must keep nothing: it would keep it where the condition does not hold, too."""
        before = kept_by(module) if self.regions else {}
        yield
        if before and self.regions:
            self.check_kept(module, before, self.regions[-1])

    def check_kept(self, module: nn.Module, before: dict[str, list[Any]], region: Region) -> None:
        after = kept_by(module)
        if list(after) != list(before) or not all(_same(before[name], after[name]) for name in before):
            raise self.error("a module keeps state under a condition on data", region.place)

    def leave(self, count: int) -> None:
        """Close the innermost regions until as many are left."""
        before, self.closing = self.closing, True
        try:
            while len(self.regions) > count:
                region = self.regions.pop()
                try:
                    self._close(region)
                except TraceError as error:
                    error.region = region  # type: ignore[attr-defined]
                    raise
        finally:
            self.closing = before

    def _close(self, region: Region) -> None:
        self.check_end(region)
        entries = self._first_entries(region.undo, region.start)
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
        self._copies.clear()

    def check_end(self, region: Region) -> None:
        """Whether a region may end here."""

    def _variable(self, region: Region, new: Any, node: Any, example: Any, done: dict[int, Proxy]) -> None:
        """A variable that is another object behind the statements."""
        if type(new) is not Proxy or not new.node > region.start or id(new) in done:
            raise self.error("a variable that is no tensor of its own depends on data", region.place)
        done[id(new)] = new
        if not new.is_tensor or not isinstance(example, torch.Tensor):
            return self._forget(new, region)
        if any(other.node <= region.start for other in self.memory.aliases(new)):  # what changes it later would have to change the other
            raise self.error("a variable that is a view of another one depends on data", region.place)
        self._choose(region, new, node, example, same_shape=False)

    def _forget(self, proxy: Proxy, region: Region) -> None:
        text = f"use of a value that is known only where `{places.text_of(*region.place)}` holds"
        self.left_open[text] = region
        self.poison(proxy, text)

    def _choose(self, region: Region, proxy: Proxy, node: object, example: object, same_shape: bool) -> None:
        """Let a variable be what it is behind the statements where the condition holds, and `node` elsewhere."""
        before = Proxy(node, self, example) if isinstance(node, fx.Node) else node
        after = Proxy(proxy.node, self, proxy.example)
        made = self.add_node("call_function", choose, (region.condition, after, before), {}, proxy.example)
        if not same_shape:
            self._from_data.add(made)
        self.rebind(proxy, made, proxy.example)
