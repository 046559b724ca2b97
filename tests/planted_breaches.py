"""Graphs with one breach each, by the stage whose rule it breaks: (name, the graph it is planted in, what plants it, the rule's code)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qcompiler import calibrate, convert_to_reference_fx, fuse_fx, prepare_fx
from qcompiler.backends.torch.passes.lower import Lower
from qcompiler.compile.pass_manager import Context, run_passes
from qcompiler.ir.types import QUANT, VALUE, QParams, Quant, Stage, Value, quant_of
from qcompiler.prepared.module import state_of
from tests.flow import passed, randn
from tests.quantized_zoo import quantized

X = randn(1, 3, 8, 8)


class Net(nn.Module):
    """Convolutions with and without a clamp, a copy, a tuple, a sum, a linear, a float op."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 3), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = F.relu6(self.first(x)).chunk(2, 1)
        y = self.second(a) + self.second(b)
        return self.fc(y.flatten(1)), torch.cumsum(y, 1)


@cache
def at(stage: Stage) -> fx.GraphModule:
    """The network's graph at a stage."""
    net = Net().eval()
    if stage is Stage.TRACED:
        return passed(net, (X,), ())[0]
    if stage is Stage.FUSED:
        return fuse_fx(net, (X,))
    if stage is Stage.OBSERVED:
        return prepare_fx(net, None, (X,))
    calibrate(at(Stage.OBSERVED), [X])
    if stage is Stage.QUANTIZED:
        return convert_to_reference_fx(at(Stage.OBSERVED))
    state = state_of(at(Stage.OBSERVED))
    assert state is not None
    return run_passes(copy.deepcopy(at(Stage.QUANTIZED)), (Lower(),), Stage.QUANTIZED, Context(state.settings))


@dataclass(frozen=True)
class Breach:
    """`plant` changes a copy of `graph()`, which then breaks the rule with this code at the stage; `text`: a part of the message."""

    name: str
    stage: Stage
    code: str
    text: str
    plant: Callable[[fx.GraphModule], None]
    graph: Callable[[], fx.GraphModule]

    def planted(self) -> fx.GraphModule:
        gm = copy.deepcopy(self.graph())
        self.plant(gm)
        return gm


BREACHES: list[Breach] = []
Plant = Callable[[fx.GraphModule], None]


def breach(*stages: Stage, code: str, text: str, model: str | None = None) -> Callable[[Plant], Plant]:
    """Lists a function that plants a breach. `model`: of the zoo, in QUANTIZED; None: the network above."""

    def listed(plant: Plant) -> Plant:
        for stage in stages:
            graph = (lambda stage=stage: at(stage)) if model is None else (lambda: quantized(model))
            BREACHES.append(Breach(f"{stage.value}: {plant.__name__}", stage, code, text, plant, graph))
        return plant

    return listed


def first(gm: fx.GraphModule, *targets: object) -> fx.Node:
    """The first node with one of these targets."""
    return next(n for n in gm.graph.nodes if n.target in targets)


def a_call(gm: fx.GraphModule) -> fx.Node:
    """A call with tensors in and out: the sum."""
    return next(n for n in gm.graph.nodes if n.op == "call_function" and "add" in n.name)


def note(node: fx.Node, **changes: Any) -> None:
    node.meta[QUANT] = quant_of(node).with_(**changes)


def behind(node: fx.Node, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """A new call behind a node, with the node's notes, which takes it first; the node's users take the new one."""
    with node.graph.inserting_after(node):
        made = node.graph.call_function(target, (node, *args), kwargs)
    made.meta.update({VALUE: node.meta.get(VALUE, Value(None, None)), QUANT: Quant(reason="a float op")})
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    return made


def swap(node: fx.Node, position: int, value: Any) -> None:
    """Another positional argument of a node."""
    node.args = (*node.args[:position], value, *node.args[position + 1 :])


P = QParams(0.5, 3, 0, 255, torch.uint8)
