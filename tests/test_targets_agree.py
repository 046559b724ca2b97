"""FUSED and QUANTIZED are the same for every target, but for the decisions that a target declares and the qparams that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from qcompiler import calibrate, convert_to_reference_fx, prepare_fx
from qcompiler.backends import Backend, register, unregister
from qcompiler.backends.torch.target import TorchTarget
from qcompiler.config.qconfig import QConfig
from qcompiler.config.qconfig_mapping import get_default_qconfig_mapping
from qcompiler.ir.attributes import attribute
from qcompiler.ir.types import quant_of
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.reference import dequantize, dequantize_weight, quantize
from qcompiler.ops.spec import Op
from qcompiler.ops.table import OPS
from qcompiler.target import Neutral, Target, WeightLimit
from tests.flow import ENGINES, randn, randomized

X = randn(2, 16, 12, 12)


class Block(nn.Module):
    """An inverted residual with squeeze and excitation, uneven padding, a cat, pools and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(32, 32, 3, groups=32, stride=2), nn.BatchNorm2d(32), nn.ReLU6())
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.project, self.skip = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 16, 1, stride=2)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(nn.functional.pad(self.expand(x), (0, 1, 0, 1)))
        y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        z = self.project(y) + self.skip(x)
        return self.head(torch.cat([z, nn.functional.max_pool2d(x, 2)], 1).mean((2, 3)))


class Tokens(nn.Module):
    """Attention, a normalization, a recurrent layer and a table of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.attention = nn.Embedding(20, 16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm, self.gru, self.out = nn.LayerNorm(16), nn.GRU(16, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.out(torch.nn.functional.gelu(self.gru(x)[0]))


class Signal(nn.Module):
    """Convolutions of one dimension, transposed and grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(4, 16, 5, padding=2), nn.Conv1d(16, 16, 3, groups=4, padding=1)
        self.up, self.out = nn.ConvTranspose1d(16, 8, 4, stride=2, padding=1), nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.out(nn.functional.leaky_relu(self.up(self.b(torch.relu(self.a(x)))), 0.1)))


def depthwise() -> nn.Module:
    return nn.Sequential(nn.Conv2d(16, 16, 3, groups=16, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 1))


MODELS: Mapping[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "block": (Block, X),
    "tokens": (Tokens, torch.arange(20).reshape(2, 10)),
    "signal": (Signal, randn(2, 4, 16)),
    "depthwise": (depthwise, X),
}
TARGETS: Mapping[str, dict[str, Any]] = {
    **{engine: {"engine": engine, "isa": "avx512_vnni"} for engine in ENGINES},
    "x86, avx2": {"engine": "x86", "isa": "avx2"},
    "reference": {"backend": "reference"},
}


@dataclass(frozen=True)
class Twin(Neutral):
    """Another back end that declares what a target of torch does. It has no engine and no instruction set to be asked for."""

    of: TorchTarget = field(default_factory=TorchTarget)

    @property
    def backend(self) -> str:
        return "twin"

    @property
    def adds_inside(self) -> bool:
        return self.of.adds_inside

    def refuses(self, row: Op, node: fx.Node) -> Obstacle | None:
        return self.of.refuses(row, node)

    def slower(self, row: Op, node: fx.Node) -> Obstacle | None:
        return self.of.slower(row, node)

    def gives_floats(self, row: Op, node: fx.Node) -> bool:
        return self.of.gives_floats(row, node)

    def activation_bits(self, row: Op, node: fx.Node) -> int:
        return self.of.activation_bits(row, node)

    def weight_limit(self, row: Op, node: fx.Node) -> WeightLimit | None:
        return self.of.weight_limit(row, node)

    def activation_range(self, row: Op, node: fx.Node, qconfig: QConfig) -> tuple[int, int]:
        return self.of.activation_range(row, node, qconfig)


def observed(name: str, target: str) -> fx.GraphModule:
    return observed_for(name, **TARGETS[target])


def observed_for(name: str, **options: Any) -> fx.GraphModule:
    torch.manual_seed(0)
    make, x = MODELS[name]
    made = prepare_fx(randomized(make()), get_default_qconfig_mapping("x86"), (x,), **options)
    calibrate(made, [x])
    return made


def target_of(gm: fx.GraphModule) -> Target:
    return gm.meta["qcompiler"].settings.target  # type: ignore[no-any-return]


def declared(made: fx.GraphModule) -> tuple[dict[str, str], bool]:
    """What a target declares of each op in words of the protocol, by node; and whether activations have fewer bits."""
    target, words, narrow = target_of(made), {}, False
    for node in made.graph.nodes:
        row = OPS.of(node)
        if row is None:
            continue
        answers = {"gives floats": target.gives_floats(row, node), "limit": target.weight_limit(row, node) is not None}
        narrow = narrow or (row.weight is not None and target.activation_bits(row, node) < 8)
        words[node.name] = ", ".join(word for word, answer in answers.items() if answer)
    return words, narrow


def spelled(gm: fx.GraphModule, numbers: bool, floats: set[str], limits: set[str]) -> list[str]:
    """The graph's calls. Left out: scales and zero points without `numbers`, those of weights in `limits`, and what stands behind results
    that some target hands out as floats."""
    lines = []
    for node in gm.graph.nodes:
        x = node.args[0] if node.target in (quantize, dequantize) else None
        computed = x.args[0] if isinstance(x, fx.Node) and x.target is quantize else x
        if isinstance(computed, fx.Node) and computed.name in floats:
            node.replace_all_uses_with(computed)
            continue
        qparams = node.target in (quantize, dequantize)
        args = [str(a) for a in node.args if numbers or not qparams or isinstance(a, fx.Node)]
        lines.append(f"{node.name} {node.op} {getattr(node.target, '__name__', node.target)} {args} {dict(node.kwargs)}")
        if numbers and node.target is dequantize_weight and not {user.name for user in node.users} & limits:
            lines += [str(attribute(gm, str(a.target)).tolist()) for a in node.args[:3]]
    return lines


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "onednn"])
@pytest.mark.parametrize("name", [m for m in MODELS if m != "tokens"])  # there floats spread from what is handed out: see the twin
def test_quantized_is_equal_but_for_what_is_declared(name: str, target: str) -> None:
    one, two = observed(name, target), observed(name, "onednn")
    (words, narrow), (others, _) = declared(one), declared(two)
    differ = {node: set(words[node].split(", ")) ^ set(others[node].split(", ")) for node in words}
    floats = {node for node, what in differ.items() if "gives floats" in what}
    limits = {node for node, what in differ.items() if "limit" in what}
    handed = {n.name for gm in (one, two) for n in gm.graph.nodes if quant_of(n).float_output and n.name in floats}
    texts = [spelled(convert_to_reference_fx(gm), not narrow, handed, limits) for gm in (one, two)]
    assert texts[0] == texts[1]
    assert not handed or target in ("x86", "fbgemm", "x86, avx2", "reference")


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "reference"])
@pytest.mark.parametrize("name", MODELS)
def test_a_target_that_declares_the_same_gets_the_same(name: str, target: str) -> None:
    twin = Twin(TorchTarget(**TARGETS[target]))
    register("twin", Backend("twin", lambda engine, isa: twin))
    try:
        graphs = [observed(name, target), observed_for(name, backend="twin")]
    finally:
        unregister("twin")
    texts = [spelled(convert_to_reference_fx(gm), True, set(), set()) for gm in graphs]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", MODELS)
def test_fused_asks_no_target(name: str) -> None:
    """Nodes up to FUSED, by the names that OBSERVED has of them: observers aside, the graphs are one."""
    texts = set()
    for target in TARGETS:
        nodes = [n for n in observed(name, target).graph.nodes if not str(n.target).startswith("observers.")]
        texts.add("\n".join(f"{n.name} {n.op} {getattr(n.target, '__name__', n.target)} {dict(n.kwargs)}" for n in nodes))
    assert len(texts) == 1


def test_what_differs_is_not_nothing() -> None:
    """The targets do declare different things, so that the equality above says something."""
    found = {target: declared(observed("depthwise", target)) for target in TARGETS}
    assert "limit" in "".join(found["fbgemm"][0].values()) and "limit" not in "".join(found["onednn"][0].values())
    assert found["x86, avx2"][1] and not found["x86"][1]
    tokens = {target: "gives floats" in declared(observed("tokens", target))[0]["out"] for target in ("x86", "onednn", "reference")}
    assert tokens == {"x86": True, "onednn": False, "reference": True}
    assert isinstance(Neutral(), Target) and isinstance(TorchTarget(), Target)
