"""bisect finds planted errors: each plant spoils one place in one pass, and the report names that pass, match and node."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from qcompiler.backends.torch.passes.lower import Lower
from qcompiler.compile.pass_manager import Context, Pass
from qcompiler.compile.rewrite import Link, Match, Rule
from qcompiler.debug import bisect, compute_sqnr
from qcompiler.errors import ConfigError, InputError
from qcompiler.ir.attributes import attribute, set_attribute
from qcompiler.ir.types import QUANT, Stage, quant_of, source_of
from qcompiler.ops.reference import dequantize_weight
from qcompiler.passes import FUSE, OBSERVE, QUANTIZE
from tests.cpu import SEVEN_BITS
from tests.flow import randn, randomized

BUILT_IN: dict[str, Pass] = {p.name: p for p in (*FUSE, *OBSERVE, *QUANTIZE, Lower())}


class Net(nn.Module):
    """One of everything that a plant spoils."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.a_bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.b_bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(16, 8, 1)
        self.act, self.fc = nn.Hardswish(), nn.Linear(8 * 36, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem_bn(self.stem(x)))
        y = torch.relu(self.a_bn(self.a(x)))
        y = torch.relu(self.b_bn(self.b(y)) - x)
        y = y.transpose(2, 3)
        y = self.act(self.head(torch.cat([y, x], 1)))
        fc: torch.Tensor = self.fc((y * 1.5).flatten(1))
        return fc


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return randomized(Net())


DATA = [randn(4, 3, 6, 6, seed=1)]


@dataclass(frozen=True)
class Then:
    """A pass, and what spoils its result."""

    inner: Pass
    spoil: Callable[[fx.GraphModule], None]

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def stage(self) -> Stage:
        return self.inner.stage

    @property
    def required(self) -> bool:
        return True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        self.inner.run(gm, context)
        self.spoil(gm)
        return True


@dataclass(frozen=True)
class Own:
    """A user's pass on the FUSED graph."""

    spoil: Callable[[fx.GraphModule], None]
    name: str = "own"
    stage: Stage = Stage.FUSED

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        self.spoil(gm)
        return True


def node(gm: fx.GraphModule, name: str) -> fx.Node:
    return next(n for n in gm.graph.nodes if n.name == name)


def made_from(gm: fx.GraphModule, name: str, target: Any) -> fx.Node:
    """The call of `target` that computes the traced node `name`."""
    return next(n for n in gm.graph.nodes if n.target is target and name in source_of(n).origin)


# FUSE


def bias_twice(gm: fx.GraphModule) -> None:
    path = str(node(gm, "b").args[2].target)  # type: ignore[union-attr]
    set_attribute(gm, path, attribute(gm, path).detach() * 2, parameter=True)


def channels_reversed(gm: fx.GraphModule) -> None:
    path = str(node(gm, "a").args[1].target)  # type: ignore[union-attr]
    set_attribute(gm, path, attribute(gm, path).detach().flip(0), parameter=True)


def weight_in_place(gm: fx.GraphModule) -> None:
    attribute(gm, str(node(gm, "head").args[1].target)).data.mul_(1.2)  # type: ignore[union-attr]


def pads_one_side(gm: fx.GraphModule) -> None:
    conv = node(gm, "a")
    with gm.graph.inserting_before(conv):
        pad = gm.graph.call_function(F.pad, (conv.args[0],), {"pad": (2, 0, 2, 0)})
    conv.args = (pad, *conv.args[1:])
    conv.kwargs = {k: v for k, v in conv.kwargs.items() if k != "padding"}


def axes_swapped(gm: fx.GraphModule) -> None:
    transpose = node(gm, "transpose")
    transpose.replace_all_uses_with(transpose.args[0])  # type: ignore[arg-type]
    gm.graph.erase_node(transpose)


def relu_is_an_identity(gm: fx.GraphModule) -> None:
    relu = node(gm, "relu_1")
    relu.replace_all_uses_with(relu.args[0])  # type: ignore[arg-type]
    gm.graph.erase_node(relu)


def factor(gm: fx.GraphModule) -> None:
    mul = node(gm, "mul")
    mul.args = (mul.args[0], 1.6)


def other_activation(gm: fx.GraphModule) -> None:
    node(gm, "act").target = F.silu


# OBSERVE


def bounds_dropped(gm: fx.GraphModule) -> None:
    node(gm, "a").kwargs = {k: v for k, v in node(gm, "a").kwargs.items() if k != "bounds"}


def operands_swapped(gm: fx.GraphModule) -> None:
    sub = node(gm, "sub")
    sub.args = (sub.args[1], sub.args[0])


def order_of_cat(gm: fx.GraphModule) -> None:
    cat = node(gm, "cat")
    cat.args = (list(reversed(cat.args[0])),)  # type: ignore[arg-type]


def reads_another_value(gm: fx.GraphModule) -> None:
    sub = node(gm, "sub")
    sub.args = (sub.args[0], node(gm, "a_observer"))


# QUANTIZE


def frozen(name: str, **changes: Callable[[Any], Any]) -> Callable[[fx.GraphModule], None]:
    def spoil(gm: fx.GraphModule) -> None:
        group = quant_of(node(gm, name)).group
        for n in gm.graph.nodes:
            q = quant_of(n)
            if q.group == group and q.qparams is not None:
                n.meta[QUANT] = q.with_(qparams=replace(q.qparams, **{k: f(getattr(q.qparams, k)) for k, f in changes.items()}))

    return spoil


def parameter(name: str, position: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[fx.GraphModule], None]:
    """Of a weight the values (0), scales (1) or zero points (2)."""

    def spoil(gm: fx.GraphModule) -> None:
        path = str(made_from(gm, name, dequantize_weight).args[position].target)  # type: ignore[union-attr]
        set_attribute(gm, path, change(attribute(gm, path)))

    return spoil


def kernel_scale(gm: fx.GraphModule) -> None:
    call = made_from(gm, "head", torch.ops.quantized.conv2d.new)
    call.args = (*call.args[:2], float(call.args[2]) * 4, call.args[3])  # type: ignore[arg-type]


def read_off_by_one(x: torch.Tensor) -> torch.Tensor:
    return torch._make_per_tensor_quantized_tensor(x.int_repr(), x.q_scale(), x.q_zero_point() + 1)


def zero_point_off_by_one(gm: fx.GraphModule) -> None:
    call = made_from(gm, "head", torch.ops.quantized.conv2d.new)
    with gm.graph.inserting_after(call):
        shifted = gm.graph.call_function(read_off_by_one, (call,))
    shifted.meta = dict(call.meta)
    call.replace_all_uses_with(shifted, delete_user_cb=lambda user: user is not shifted)


def without_bias(gm: fx.GraphModule) -> None:
    pack = next(n for n in gm.graph.nodes if getattr(n.target, "__name__", "") == "prepack_conv2d" and str(n.args[0]).startswith("head"))
    pack.args = (*pack.args[:3], None, *pack.args[4:])


SPOILED: dict[str, tuple[str, str, Callable[[fx.GraphModule], None]]] = {  # what: pass, float node, plant
    "the folded bias is twice what it should be": ("fuse", "b", bias_twice),
    "folding along the wrong channels": ("fuse", "a", channels_reversed),
    "padding on one side": ("resolve_padding", "a", pads_one_side),
    "axes are not swapped": ("canonicalize", "cat", axes_swapped),
    "a relu taken for an identity": ("remove_identities", "b", relu_is_an_identity),  # b gets what should have been clamped
    "another factor": ("separate_assignments", "mul", factor),
    "bounds dropped": ("annotate", "a", bounds_dropped),
    "operands swapped": ("keep_float", "sub", operands_swapped),
    "cat in another order": ("share_qparams", "cat", order_of_cat),
    "an op reads another value": ("insert_observers", "sub", reads_another_value),
    "a scale off by 4": ("freeze_qparams", "stem", frozen("stem", scale=lambda s: s / 4)),
    "a scale too large by 8": ("freeze_qparams", "stem", frozen("stem", scale=lambda s: s * 8)),
    "a zero point far off": ("freeze_qparams", "sub", frozen("sub", zero_point=lambda z: 100)),
    "weight scales of other channels": ("insert_quantize_dequantize", "b", parameter("b", 1, lambda s: s.flip(0))),
    "weight scales off by 2": ("insert_quantize_dequantize", "b", parameter("b", 1, lambda s: s * 2)),
    "weight zero points off by two": ("insert_quantize_dequantize", "head", parameter("head", 2, lambda z: z + 2)),
    "a weight of 4 bits": ("insert_quantize_dequantize", "b", parameter("b", 0, lambda w: w // 16 * 16)),
    "a weight with its axes swapped": ("insert_quantize_dequantize", "b", parameter("b", 0, lambda w: w.transpose(2, 3).contiguous())),
    "a zero point off by one": ("lower", "head", zero_point_off_by_one),
    "a kernel's scale off by 4": ("lower", "head", kernel_scale),
    "a pack without its bias": ("lower", "head", without_bias),
}  # fmt: skip
PASSES = {
    "a user's pass changes the activation": ("act", other_activation),
    "a user's pass changes a weight in place": ("head", weight_in_place),
}


def unbounded(match: Match, producer: fx.Node, clamp: fx.Node) -> None:
    match.replace(clamp, producer)


def wrong_bounds(match: Match, producer: fx.Node, clamp: fx.Node) -> None:
    producer.kwargs = {**producer.kwargs, "bounds": (0.0, 0.25)}
    match.replace(clamp, producer)


def without_mean(match: Match, conv: fx.Node, bn: fx.Node) -> None:
    gm = match.gm
    var, gamma = (attribute(gm, str(bn.args[i].target)) for i in (2, 3))  # type: ignore[union-attr]
    for position in (1, 2):
        path = str(conv.args[position].target)  # type: ignore[union-attr]
        value = attribute(gm, path).detach()
        scale = (gamma / (var + 1e-5).sqrt()).reshape(-1, *[1] * (value.dim() - 1))
        set_attribute(gm, path, value * scale, parameter=True)
    match.replace(bn, conv)


RULES = {
    "drop_relu": (Rule("drop_relu", (Link("producer", ("sub",)), Link("clamp", ("relu",))), unbounded), "sub"),
    "clamp_lower": (Rule("clamp_lower", (Link("producer", ("sub",)), Link("clamp", ("relu",))), wrong_bounds), "sub"),
    "fold_without_mean": (Rule("fold_without_mean", (Link("conv", ("conv2d",)), Link("bn", ("batch_norm",))), without_mean), "stem"),
}


@pytest.fixture(scope="module")
def tolerance(net: nn.Module) -> float:
    """1 dB below what the pipeline as it stands gives; both ends of a bisection of it are within."""
    found = bisect(net, DATA)
    assert not found and found.runs == 2 and "no pass is over tolerance" in str(found)
    return found.after - 1.0


def check_runs(found: Any, extra: int = 0) -> None:
    assert found.runs <= math.ceil(math.log2(found.passes)) + 2 + extra


@pytest.mark.parametrize("what", SPOILED)
def test_a_spoiled_pass(net: nn.Module, tolerance: float, what: str) -> None:
    if what == "a zero point far off" and SEVEN_BITS:
        pytest.skip("codes of 7 bits fit beside any zero point")
    name, place, spoil = SPOILED[what]
    found = bisect(net, DATA, tol_db=tolerance, replace={name: Then(BUILT_IN[name], spoil)})
    assert found.pass_name == name, str(found)
    assert found.after < found.before and not found.error
    check_runs(found, extra=math.ceil(math.log2(max(found.matches, 1))))
    if place != "cat":
        assert place in (found.node, found.module_path) or place in str(found.node), str(found)


@pytest.mark.parametrize("what", PASSES)
def test_a_spoiling_pass(net: nn.Module, tolerance: float, what: str) -> None:
    place, spoil = PASSES[what]
    found = bisect(net, DATA, tol_db=tolerance, passes=(Own(spoil),))
    assert (found.pass_name, found.module_path) == ("own", place) and found.match in (None, "own")
    check_runs(found, extra=math.ceil(math.log2(found.matches + 1)))


@pytest.mark.parametrize("name", RULES)
def test_a_spoiling_rule(net: nn.Module, tolerance: float, name: str) -> None:
    rule, place = RULES[name]
    found = bisect(net, DATA, tol_db=tolerance, rules=(rule,))
    assert found.pass_name == "fuse" and found.node == place
    assert found.match is not None and f"{name} at %" in found.match, str(found)
    check_runs(found, extra=math.ceil(math.log2(found.matches + 1)))


def test_the_match_among_many_of_one_rule(net: nn.Module, tolerance: float) -> None:
    def spoils_b(match: Match, producer: fx.Node, clamp: fx.Node) -> None:
        low = -1.0 if producer.name == "a" else 0.0
        producer.kwargs = {**producer.kwargs, "bounds": (low, None)}
        match.replace(clamp, producer)

    rule = Rule("bounds_but_for_a", (Link("producer", ("conv2d", "sub")), Link("clamp", ("relu",))), spoils_b)
    found = bisect(net, DATA, tol_db=tolerance, rules=(rule,))
    assert found.match is not None and "bounds_but_for_a at %" in found.match and found.matches >= 6
    assert {"%a", "%relu_1"} & set(found.match.split()) and found.node == "a"


def test_a_pass_whose_graph_does_not_run(net: nn.Module) -> None:
    def breaks(gm: fx.GraphModule) -> None:
        node(gm, "cat").kwargs = {"dim": 0}

    found = bisect(net, DATA, replace={"share_qparams": Then(BUILT_IN["share_qparams"], breaks)})
    assert found.pass_name == "share_qparams" and "RuntimeError" in found.error and found.after == -math.inf
    assert json.loads(found.to_json())["after"] == -300.0


def test_a_pass_that_raises(net: nn.Module) -> None:
    def raises(gm: fx.GraphModule) -> None:
        raise ZeroDivisionError("planted")

    found = bisect(net, DATA, replace={"hand_out_floats": Then(BUILT_IN["hand_out_floats"], raises)})
    assert found.pass_name == "hand_out_floats" and "planted" in found.error


def test_an_own_metric(net: nn.Module) -> None:
    def worst_item(expected: Any, got: Any) -> float:
        return min(compute_sqnr(a, b) for e, g in zip(expected, got) for a, b in zip(e, g))

    whole = bisect(net, DATA, float_tol_db=60, tol_db=60, passes=(Own(other_activation),))
    found = bisect(net, DATA, worst_item, tol_db=60, passes=(Own(other_activation),))
    assert found.pass_name == whole.pass_name == "own" and found.after < whole.after


def test_refusals(net: nn.Module) -> None:
    with pytest.raises(InputError, match="0 batches"):
        bisect(net, [])
    with pytest.raises(ConfigError, match="inputs must be a tensor or an iterable"):
        bisect(net, 5)
    with pytest.raises(InputError, match="fails on the example inputs"):
        bisect(net, [randn(1, 4, 6, 6)])
    with pytest.raises(ConfigError, match="train mode"):
        bisect(Net().train(), DATA)
    with pytest.raises(ConfigError, match="unknown metric"):
        bisect(net, DATA, "psnr")
    with pytest.raises(ConfigError, match="no pass 'fold'"):
        bisect(net, DATA, replace={"fold": Own(factor)})


def test_the_model_is_not_changed(net: nn.Module) -> None:
    before = {k: v.clone() for k, v in net.state_dict().items()}
    bisect(net, DATA, passes=(Own(weight_in_place),))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
