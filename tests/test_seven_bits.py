"""Compiled for CPUs that add products in 16 bits, every activation that a convolution or linear takes has 7 bits, whoever made it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler import calibrate, convert_fx, convert_to_reference_fx, prepare_fx, prepare_qat_fx, remarks
from qcompiler.ir.types import QParams, quant_of
from qcompiler.nn import quantized as nnq
from qcompiler.observers import FixedQParamsObserver, MinMaxObserver, ObserverBase
from qcompiler.ops.arguments import activations
from qcompiler.ops.reference import dequantize
from qcompiler.ops.table import OPS
from qcompiler.quantization import QConfig, default_weight_observer
from tests.cpu import SEVEN_BITS

FIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "softmax": lambda y: y.softmax(1), "hardsigmoid": nn.functional.hardsigmoid,
}  # fmt: skip
BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda y: y, "flatten": lambda y: y.flatten(2), "mean": lambda y: y.mean((2,)),
    "max pool": lambda y: nn.functional.max_pool1d(y, 2),
    "slice": lambda y: y[:, :, 1:], "cat": lambda y: torch.cat([y, y], 2),
}  # fmt: skip


class Net(nn.Module):
    def __init__(self, fixed: str, between: str) -> None:
        super().__init__()
        self.first, self.how = nn.Conv1d(3, 8, 3), (FIXED[fixed], BETWEEN[between])
        self.last = nn.Linear({"itself": 6, "flatten": 6, "mean": 8, "max pool": 3, "slice": 5, "cat": 12}[between], 4)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.how[1](self.how[0](self.first(x))))


def largest(gm: Any) -> dict[str, int]:
    """The largest code of each int8 activation that an op with multiply-accumulates takes."""
    found = {}
    for node in gm.graph.nodes:
        row = OPS.of(node)
        if row is not None and row.macs is not None:
            found |= {value.name: value.args[0].args[4] for value in activations(OPS, node)
                      if value.target is dequantize and value.args[0].args[4:]}  # fmt: skip
            found |= {value.args[0].name: quant_of(value.args[0]).qparams.quant_max for value in activations(OPS, node)
                      if value.target is dequantize and quant_of(value.args[0]).qparams is not None}  # fmt: skip
    return found


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("fixed", FIXED)
def test_ranges_that_an_op_fixes(fixed: str, between: str, trains: bool) -> None:
    torch.manual_seed(0)
    model, x = Net(fixed, between), torch.randn(4, 3, 8)
    made = (prepare_qat_fx if trains else prepare_fx)(model.train(trains), None, (x,), engine="x86", isa="avx2")
    made(x) if trains else calibrate(made, [x])
    reference = convert_to_reference_fx(made.eval() if trains else made)
    codes = largest(reference)
    assert codes and max(codes.values()) <= 127, codes
    assert not [r for r in remarks(convert_fx(made)) if r.code == "wrong-kernel"]


def test_a_fixed_range_keeps_8_bits_where_no_kernel_overflows() -> None:
    x = torch.randn(4, 3, 8)
    made = prepare_fx(Net("sigmoid", "itself").eval(), None, (x,), engine="x86", isa="avx512_vnni")
    calibrate(made, [x])
    assert max(largest(convert_to_reference_fx(made)).values()) == 255


def test_a_fixed_range_in_half_as_many_steps_and_back() -> None:
    observer = FixedQParamsObserver(scale=2 / 256, zero_point=127)
    observer.set_reduce_range(True)
    assert observer.qparams() == QParams(2 / 128, 63, 0, 127, torch.uint8)
    observer.load_state_dict(FixedQParamsObserver(scale=2 / 256, zero_point=127).state_dict())  # of a CPU with 8 bits
    observer.set_reduce_range(True)
    assert observer.qparams() == QParams(2 / 128, 63, 0, 127, torch.uint8)
    observer.set_reduce_range(False)
    assert observer.qparams() == QParams(2 / 256, 127, 0, 255, torch.uint8)
    narrow = FixedQParamsObserver(scale=0.1, zero_point=0, quant_max=15)
    narrow.set_reduce_range(True)
    assert narrow.quant_max == 15


@pytest.mark.parametrize("reduce", [None, False])
def test_a_module_made_by_hand_has_the_bits_of_this_cpu(reduce: bool | None) -> None:
    """No `convert` decided; a reduce_range of False is the user's word, and warns where sums may be cut off."""
    linear = nn.Linear(8, 4)
    observer = MinMaxObserver(reduce_range=reduce)
    observer(torch.tensor([0.0, 1.0]))
    linear.activation_post_process, linear.qconfig = observer, QConfig(MinMaxObserver, default_weight_observer)
    if reduce is False and SEVEN_BITS:
        with pytest.warns(UserWarning, match="activations have 8 bits"):
            nnq.Linear.from_float(linear)
        return
    assert nnq.Linear.from_float(linear).scale == pytest.approx(1 / (127 if SEVEN_BITS else 255))


class Peak(ObserverBase):
    """An observer that knows 8 bits alone."""

    qscheme = torch.per_tensor_affine
    quant_min, quant_max = 0, 255

    def __init__(self) -> None:
        super().__init__(torch.quint8)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        return torch.tensor([0.1]), torch.tensor([128])


@pytest.mark.parametrize(("isa", "told"), [("avx2", True), ("avx512_vnni", False)])
def test_an_observer_that_gives_8_bits_all_the_same_is_told_of(isa: str, told: bool) -> None:
    x = torch.randn(4, 8)
    made = prepare_fx(nn.Linear(8, 4).eval(), QConfig(Peak, default_weight_observer), (x,), engine="x86", isa=isa)
    made(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # compiled for another CPU
        found = [r.node for r in remarks(convert_fx(made)) if r.code == "wide-range"]
    assert bool(found) is told
