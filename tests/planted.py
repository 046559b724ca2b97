"""Faults on purpose, for the tests of crash reproducers; importable, so that a reproducer can name them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qcompiler.backends.torch.kernels.table import Kernel
from qcompiler.errors import NumericsError
from qcompiler.ir.types import Stage
from qcompiler.observers import MinMaxObserver
from qcompiler.ops.spec import Op, Output, Param
from qcompiler.pass_manager import Context
from qcompiler.rewrite import Link, Match, Rule


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.second, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = F.hardswish(self.second(x))
        x = torch.sinc(x) + x
        result: Tensor = self.fc(x.mean((2, 3)))
        return result


@dataclass(frozen=True)
class Raises:
    """Fails at the first hardswish."""

    name: str = "raises"
    stage: Stage = Stage.FUSED
    required: bool = False

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        for node in gm.graph.nodes:
            if node.target is F.hardswish:
                raise KeyError(node.name)
        return False


@dataclass(frozen=True)
class Reverses:
    """Leaves a use before its definition."""

    name: str = "reverses"
    stage: Stage = Stage.FUSED
    required: bool = False

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        calls = [node for node in gm.graph.nodes if node.op == "call_function"]
        calls[0].args = (calls[-1], *calls[0].args[1:])
        return True


@dataclass(frozen=True)
class Dangles:
    """Leaves a parameter that does not exist."""

    path: str = "no.such.weight"
    name: str = "dangles"
    stage: Stage = Stage.FUSED
    required: bool = False

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        next(node for node in gm.graph.nodes if node.op == "get_attr").target = self.path
        return True


@dataclass(frozen=True)
class Refuses:
    """Raises one of our own errors."""

    limit: float = 0.0
    name: str = "refuses"
    stage: Stage = Stage.FUSED
    required: bool = False

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        raise NumericsError(f"above {self.limit}", code="planted")


def _divide(match: Match, conv: fx.Node, op: fx.Node) -> None:
    raise ZeroDivisionError(conv.name)


def _again(match: Match, op: fx.Node) -> None:
    with match.gm.graph.inserting_after(op):
        made = match.gm.graph.call_function(F.hardswish, (op.args[0],))
    op.replace_all_uses_with(made)


DIVIDES = Rule("divides", (Link("conv", ("conv2d",)), Link("op", ("hardswish",))), _divide)
ENDLESS = Rule("endless", (Link("op", ("hardswish",)),), _again)


class BadObserver(MinMaxObserver):
    """Cannot tell its scale."""

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        raise OverflowError("no scale")


def _fails(attributes: Mapping[str, Any]) -> bool:
    raise LookupError("which?")


BAD_ROW = Op(name="sinc", fn=torch.sinc, signature="x", params=(Param("x"),), output=Output.OWN, spellings=(torch.sinc,), identity=_fails)
SINC = Op(name="sinc", fn=torch.sinc, signature="x", params=(Param("x"),), output=Output.OWN, spellings=(torch.sinc,))


def _emit(site: Any, emit: Any) -> Any:
    return operator.getitem([], 1)


BAD_KERNEL = Kernel("sinc", ("x86", "fbgemm", "onednn", "qnnpack"), _emit, lambda site: None)
