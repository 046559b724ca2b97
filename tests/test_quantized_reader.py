"""The typed readers of QUANTIZED: a program that sees a graph through them alone gives the same bits as the graph."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from qcompiler import ConfigError
from qcompiler.ir.types import Mode, quant_of
from qcompiler.ops.reference import dequantize_weight, quantize
from qcompiler.ops.table import OPS
from qcompiler.stages.arguments import Constant, HalfWeight, Rounded, Weight
from qcompiler.stages.quantized import Call, Dequantize, Float, Load, Quantize, call_of, steps
from tests.flow import QUANTIZED, flow
from tests.interpreter import Interpreter
from tests.planted import SINC
from tests.quantized_zoo import ENTRIES, SMALL, VISION, WIDE, quantized, trained


def leaves(result: Any) -> list[Any]:
    return [leaf for leaf in tree_leaves(result) if leaf is not None]


def assert_same(gm: fx.GraphModule, inputs: tuple[Any, ...]) -> None:
    with torch.no_grad():
        expected, got = leaves(gm(*inputs)), leaves(Interpreter(gm).run(*inputs))
    assert len(expected) == len(got) > 0
    for one, other in zip(expected, got, strict=True):
        if isinstance(one, torch.Tensor) and one.is_floating_point():  # sums of some CPUs' float kernels depend on where a tensor lies
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * float(one.abs().max()) if one.numel() else 0.0)
        else:
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("name", [*SMALL, *VISION, *(pytest.param(name, marks=pytest.mark.slow) for name in WIDE)])
def test_a_program_of_the_steps_gives_the_same_bits(name: str) -> None:
    assert_same(quantized(name), ENTRIES[name].inputs())


@pytest.mark.parametrize("name", ["parts", "resizes", "resnet18"])
def test_after_training(name: str) -> None:
    assert_same(trained(name), ENTRIES[name].inputs())


class Net(nn.Module):
    """A convolution with a ReLU6, whose module has a name that graphs cannot hold; a linear that hands out floats."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.add_module("class", nn.Conv2d(3, 4, 3, stride=2, padding=1))
        self.relu, self.fc = nn.ReLU6(), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(self.relu(getattr(self, "class")(x)).mean((2, 3)))


def calls(gm: fx.GraphModule) -> dict[str, Call]:
    return {step.op.name: step for step in steps(gm) if isinstance(step, Call)}


def test_what_a_convolution_is_given() -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    net = Net().eval()
    conv = calls(flow(net, (x,)).reference)["conv2d"]
    entry = conv.activations[0]
    assert (entry.value.op, entry.shape, entry.qparams.dtype) == ("placeholder", (2, 3, 8, 8), torch.uint8)
    weight, module = conv.weight, net.get_submodule("class")
    assert isinstance(weight, Weight) and weight.name == "class.weight" and weight.axis == 0 and weight.codes.dtype is torch.int8
    back = dequantize_weight(weight.codes, weight.scale, weight.zero_point, weight.axis)
    assert float((back - module.weight.detach()).abs().max()) <= float(weight.scale.max()) / 2 * (1 + 1e-6)  # half a step, and float32
    assert torch.equal(conv.bias, module.bias)  # type: ignore[arg-type]
    assert conv.bounds == (0.0, 6.0) and "bounds" not in conv.attributes
    assert conv.attributes == {"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    assert conv.result is not None and conv.result.target is quantize and quant_of(conv.result).qparams == conv.output
    assert conv.shape == (2, 4, 4, 4) and conv.mode is None and conv.rounding is None


def test_floats_that_an_int8_op_hands_out() -> None:
    linear = calls(flow(Net().eval(), (torch.ones(2, 3, 8, 8),), engine="x86").reference)["linear"]
    assert linear.output is None and linear.result is None and isinstance(linear.weight, Weight)


def test_defaults_of_attributes_and_inputs_that_are_left_out() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 3, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.max_pool2d(F.conv2d(x, self.weight), 2)

    found = calls(flow(Plain().eval(), (torch.randn(1, 3, 4, 4),), prepare_custom_config=QUANTIZED).reference)
    assert found["conv2d"].attributes == {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    assert found["conv2d"].inputs[2] is None and found["conv2d"].bias is None
    assert found["max_pool2d"].attributes == {"kernel_size": 2, "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}


def test_a_tuple_of_integers() -> None:
    gm = quantized("parts")
    chunk = calls(gm)["chunk"]
    assert chunk.shape is None and chunk.result is chunk.node and chunk.output is not None
    parts = [step for step in steps(gm) if isinstance(step, Call) and step.op.name == "getitem" and step.activations[0].codes is chunk.node]
    assert len(parts) == 2 and all(part.output == chunk.output for part in parts)


def test_an_operand_that_is_a_parameter_is_loaded_and_quantized() -> None:
    found = list(steps(quantized("parts")))
    load = next(step for step in found if isinstance(step, Load))
    assert load.constant.name == "table" and load.constant.values.shape == (1, 8, 1, 1)
    assert next(step for step in found if isinstance(step, Quantize) and step.value is load.node).qparams.dtype is torch.uint8


def test_sizes_alone_want_no_floats() -> None:
    wanted = [step.node for step in steps(quantized("parts")) if isinstance(step, Dequantize)]
    assert [{user.target for user in node.users} & {torch.cumsum} for node in wanted] == [{torch.cumsum}]


@pytest.mark.parametrize(
    ("name", "mode"), [("sequence dynamic", Mode.DYNAMIC), ("sequence float16", Mode.HALF), ("sequence 4 bits", Mode.FOUR_BIT)]
)
def test_modes(name: str, mode: Mode) -> None:
    linear = calls(quantized(name))["linear"]
    assert linear.mode is mode and linear.output is None and linear.result is None
    if mode is Mode.HALF:
        assert isinstance(linear.weight, HalfWeight) and linear.weight.values.dtype is torch.float16
        return
    assert isinstance(linear.weight, Weight) and linear.weight.bits == (4 if mode is Mode.FOUR_BIT else 8)
    assert isinstance(linear.inputs[0], Rounded) == (mode is Mode.DYNAMIC)
    if mode is Mode.FOUR_BIT:
        assert linear.weight.shape == (32, 16) and int(linear.weight.codes.max()) <= 15


def test_a_recurrent_layer_rounds_at_every_step() -> None:
    gru = calls(quantized("sequence"))["gru"]
    assert gru.mode is Mode.DYNAMIC and gru.rounding in ((0, 255), (0, 127)) and gru.weight is None
    weights, biases = gru.inputs[-2:]
    assert isinstance(weights, tuple) and [w.name for w in weights if isinstance(w, Weight)] == ["gru.weight_ih_l0", "gru.weight_hh_l0"]
    assert isinstance(biases, tuple) and all(isinstance(b, Constant) for b in biases)


def test_ops_of_ones_own_table() -> None:
    table = OPS.copy()
    table.add(SINC)

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.sinc(self.fc(x)))

    gm = flow(Own().eval(), (torch.randn(2, 4),), table=table, backend_config=None).reference
    node = next(n for n in gm.graph.nodes if n.target is torch.sinc)
    assert call_of(gm, node) is None
    assert any(isinstance(step, Float) and step.node is node for step in steps(gm))


def test_a_result_that_nothing_quantizes_is_an_error() -> None:
    gm = copy.deepcopy(quantized("resizes"))
    node = next(n for n in gm.graph.nodes if quant_of(n).int8 and quant_of(n).qparams)
    for user in list(node.users):
        user.replace_all_uses_with(node)
        gm.graph.erase_node(user)
    with pytest.raises(ConfigError, match=f"nothing quantizes the result of %{node.name}"):
        call_of(gm, node)
