"""Statements under a condition on data: they are computed in any case, and their results count where the condition holds.

`if mask.any(): out[mask] = expert(x[mask])` is what code of routed experts looks like. Its statements are recorded; behind them each
variable that they changed becomes `choose(condition, after, before)`, at each call. Nothing is held fixed.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

from qcompiler.errors import Where
from qcompiler.ops.reference import choose
from qcompiler.trace import places
from qcompiler.trace.guards import TraceRemark
from qcompiler.trace.mutation import Mutations
from qcompiler.trace.numbers import ask_for_stand_ins, user_frame
from qcompiler.trace.proxy import Proxy
from qcompiler.trace.statements import Branch, branch_at, within

UNKNOWN = "use of a value that only exists where a condition on data holds"


@dataclass
class Region:
    """Statements that are being recorded."""

    branch: Branch
    frame: FrameType
    condition: Proxy  # whether the statements count
    before: dict[str, tuple[Any, Any, Any]]  # variables: the object, and a proxy's node and example
    start: fx.Node
    journal: int
    depth: int


class Regions(Mutations):
    """The recorder's part for conditions on data."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.regions: list[Region] = []
        self.stand_ins: list[dict[str, Any]] = []  # globals of the user's code that get stand-ins for builtins

    def at_event(self, depth: int | None = None) -> None:
        """What is due before anything else is recorded."""
        super().at_event()
        if self.regions:
            self.leave_regions(depth)

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
        if branch is None or frame is None or proxy.stale:
            ask_for_stand_ins(frame, self.stand_ins)
            raise self.error(proxy.stale or f"bool() of a {'value' if proxy.is_tensor else 'size'} that depends on data")
        holds = self.record("call_function", bool, (proxy,), {})
        if branch.is_check:
            if holds.example is branch.answer:
                self._hold(holds, "a condition", f"bool() made {branch.answer} concrete")
            return bool(holds.example)
        condition = holds if branch.answer else self.record("call_function", operator.not_, (holds,), {})
        self._open(branch, frame, condition)
        return branch.answer

    def _open(self, branch: Branch, frame: FrameType, condition: Proxy) -> None:
        found = {n: frame.f_locals[n] for n in (*branch.names, *branch.targets) if n in frame.f_locals}
        if any(not isinstance(found.get(n), torch.Tensor) for n in branch.targets):
            raise self.error("bool() of a value that depends on data")
        before = {n: (v, v.node, v.example) if type(v) is Proxy else (v, v, v) for n, v in found.items()}
        self._copies.clear()  # what the statements assign into is copied
        last = next(iter(reversed(self.graph.nodes)))
        self.regions.append(Region(branch, frame, condition, before, last, len(self.journal), len(self.scopes)))
        file, line = places.user_line(frame, ())
        text = f"`{places.text_of(file, line)}` depends on data: what stands under it is always computed, and counts where it holds"
        remark = TraceRemark("data-branch", Where(None, self.scopes[-1][0], places.spell(file, line)), text)
        if remark not in self.remarks:  # a loop over experts
            self.remarks.append(remark)

    def leave_regions(self, depth: int | None = None) -> None:
        """Close the statements that the user's code has left; all that were opened in a module that ends (`depth`)."""
        while self.regions:
            region = self.regions[-1]
            left = region.frame.f_back is None or not within(region.frame, region.branch.first, region.branch.last)
            if not (left or (depth is not None and region.depth > depth)):
                break
            self.regions.pop()
            self._close(region)

    def _close(self, region: Region) -> None:
        changed: dict[int, tuple[Proxy, fx.Node, Any]] = {}
        for proxy, node, example, stale in self.journal[region.journal :]:
            if (node <= region.start or node.op == "get_attr") and stale is None:
                changed.setdefault(id(proxy), (proxy, node, example))
        mine = {key: proxy for key, (proxy, _, _) in changed.items()}
        for proxy, node, example in changed.values():
            if proxy.stale is None and proxy.node is not node:
                self._choose(region, proxy, node, example, same_shape=True)
        for name, (old, node, example) in region.before.items():
            new = region.frame.f_locals.get(name)
            if new is not old:
                self._variable(region, new, node, example, mine)
        self._copies.clear()

    def _variable(self, region: Region, new: Any, node: Any, example: Any, done: dict[int, Proxy]) -> None:
        """A variable that is another object behind the statements."""
        fresh = type(new) is Proxy and new.node > region.start
        if not fresh or id(new) in done:
            raise self.error("a variable that is no tensor of its own depends on data")
        done[id(new)] = new
        both = new.is_tensor and isinstance(example, torch.Tensor)
        if both and not any(other.node <= region.start for other in self.aliases(new)):
            self._choose(region, new, node, example, same_shape=False)
        else:
            self.poison(new, UNKNOWN)

    def _choose(self, region: Region, proxy: Proxy, node: Any, example: Any, same_shape: bool) -> None:
        before = Proxy(node, self, example) if isinstance(node, fx.Node) else node
        made = self.add_node("call_function", choose, (region.condition, Proxy(proxy.node, self, proxy.example), before), {}, proxy.example)
        if not same_shape or node in self._from_data:
            self._from_data.add(made)
        self.rebind(proxy, made, proxy.example)
