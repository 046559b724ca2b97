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
from qcompiler.compile.pass_manager import Context
from qcompiler.compile.rewrite import Link, Match, Rule
from qcompiler.errors import NumericsError
from qcompiler.fake_quantize import FakeQuantize
from qcompiler.ir.types import QParams, Stage
from qcompiler.nn.quantized import Linear
from qcompiler.observers import MinMaxObserver
from qcompiler.ops.spec import Op, Output, Param


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


class BadFakeQuantize(FakeQuantize):
    """Trains, and cannot tell its qparams."""

    def qparams(self) -> QParams:
        raise OverflowError("no scale")


class BadWeight(MinMaxObserver):
    """Fails at the first weight."""

    def forward(self, x: Tensor) -> Tensor:
        raise FloatingPointError("no weight")


class Gain(nn.Module):
    """A module of the user's own, with forms that observe it and that compute it in int8."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x)
        return result


class ObservedGain(Gain):
    @classmethod
    def from_float(cls, module: Any) -> ObservedGain:
        made = cls()
        made.linear, made.qconfig = module.linear, module.qconfig
        made.linear.qconfig = module.qconfig
        made.linear.activation_post_process = module.qconfig.activation()
        return made

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        self.linear.activation_post_process(y)  # type: ignore[operator]
        return y


class UnobservedGain(ObservedGain):
    @classmethod
    def from_float(cls, module: Any) -> ObservedGain:
        raise EOFError("no observer")


class QuantizedGain(nn.Module):
    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    @classmethod
    def from_observed(cls, module: Any) -> QuantizedGain:
        return cls(Linear.from_float(module.linear))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x)
        return result


class UnquantizedGain(QuantizedGain):
    @classmethod
    def from_observed(cls, module: Any) -> QuantizedGain:
        raise BlockingIOError(f"{type(module).__name__} has no int8 form")


class WithGain(Net):
    """The net with a custom module at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = Gain()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.gain(super().forward(x).relu())
        return result


class Masked(Net):
    """Two forms of the call."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x if mask is None else x * mask)


class Stating(Net):
    """Two statements that look at data, one of them with a module, before the network."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        rounds = 0
        while rounds < 2 and x.abs().max() >= 0:
            x, rounds = torch.tanh(self.before(x)), rounds + 1
        found = [x]
        for i in range(int(x.abs().max() * 0) + 1):
            found.append(x * i)
        return super().forward(found[0] * rounds)
