"""The verifier: each broken rule of a stage is found, and named with its node."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from qcompiler import ConfigError, calibrate, convert_to_reference_fx, prepare_fx
from qcompiler.errors import PassError
from qcompiler.ir.types import QUANT, VALUE, QParams, Stage, Value, quant_of
from qcompiler.ops.reference import dequantize, quantize
from qcompiler.stages.verify import verify
from tests.flow import randn

X = randn(1, 3, 8, 8)


def prepared() -> fx.GraphModule:
    torch.manual_seed(0)
    return prepare_fx(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval(), None, (X,))


def reference() -> fx.GraphModule:
    module = prepared()
    calibrate(module, [X])
    return convert_to_reference_fx(module)


def named(gm: fx.GraphModule, target: object) -> fx.Node:
    return next(n for n in gm.graph.nodes if n.target is target)


def observers(gm: fx.GraphModule) -> list[fx.Node]:
    return [n for n in gm.graph.nodes if n.op == "call_module"]


def same_name(gm: fx.GraphModule) -> None:
    first, second = observers(gm)[:2]
    second.name = first.name


def used_early(gm: fx.GraphModule) -> None:
    nodes = [n for n in gm.graph.nodes if n.op == "call_function"]
    nodes[0].args = (nodes[1], *nodes[0].args[1:])


def gone(gm: fx.GraphModule) -> None:
    next(n for n in gm.graph.nodes if n.op == "get_attr").target = "0.gone"


def orphan(gm: fx.GraphModule) -> None:
    watch = observers(gm)[0]
    watch.replace_all_uses_with(watch.args[0])  # type: ignore[arg-type]
    gm.graph.erase_node(watch)


def shared(gm: fx.GraphModule) -> None:
    first, second = observers(gm)[:2]
    second.target = first.target


def no_module(gm: fx.GraphModule) -> None:
    observers(gm)[0].target = f"{observers(gm)[0].target}.place"


OBSERVED = {
    same_name: "two nodes have the name",
    used_early: "used before it is computed",
    gone: "0.gone does not exist",
    orphan: "watches nothing",
    shared: "watches two values",
    no_module: "is not a module",
}


def other_scale(gm: fx.GraphModule) -> None:
    node = named(gm, dequantize)
    node.args = (node.args[0], 0.5, *node.args[2:])


def other_zero_point(gm: fx.GraphModule) -> None:
    node = named(gm, quantize)
    node.args = (*node.args[:2], 7, *node.args[3:])


def no_qparams(gm: fx.GraphModule) -> None:
    del named(gm, quantize).meta[QUANT]


def other_type(gm: fx.GraphModule) -> None:
    node = named(gm, quantize)
    node.meta[VALUE] = Value((1, 3, 8, 8), torch.int8)


def with_qparams(gm: fx.GraphModule, **changes: object) -> None:
    node = named(gm, quantize)
    old = quant_of(node).qparams
    assert old is not None
    fields = {"scale": old.scale, "zero_point": old.zero_point, "quant_min": 0, "quant_max": 255, "dtype": torch.uint8} | changes
    node.meta[QUANT] = quant_of(node).with_(qparams=QParams(**fields))  # type: ignore[arg-type]


QUANTIZED: dict[Callable[[fx.GraphModule], None], str] = {
    other_scale: "uses other qparams than",
    other_zero_point: "uses other qparams than",
    no_qparams: "integers without qparams",
    other_type: "is torch.int8, its qparams are torch.uint8",
    lambda gm: with_qparams(gm, scale=0.0): "finite and positive",
    lambda gm: with_qparams(gm, zero_point=300): "a zero point must lie in 0..255",
}


@pytest.mark.parametrize(("damage", "text"), OBSERVED.items())
def test_observed(damage: Callable[[fx.GraphModule], None], text: str) -> None:
    gm = prepared()
    verify(gm, Stage.OBSERVED)
    damage(gm)
    with pytest.raises(ConfigError, match=text):
        verify(gm, Stage.OBSERVED)
    with pytest.raises(PassError, match=f"after pass x: .*{text}"):
        verify(gm, Stage.OBSERVED, after="x")


@pytest.mark.parametrize(("damage", "text"), QUANTIZED.items())
def test_quantized(damage: Callable[[fx.GraphModule], None], text: str) -> None:
    gm = reference()
    verify(gm, Stage.QUANTIZED)
    damage(gm)
    with pytest.raises(PassError, match=text) as caught:
        verify(gm, Stage.QUANTIZED, after="x")
    assert caught.value.where.node is not None and "quantize" in caught.value.where.node
