"""Compiled for CPUs that add products in 16 bits, every activation that a convolution or linear takes has 7 bits, whoever made it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler.config.qconfig as ready
from qcompiler import calibrate, convert_fx, convert_to_reference_fx, prepare_fx, prepare_qat_fx, remarks
from qcompiler.backends.torch.program.once import quantized_engine
from qcompiler.backends.torch.program.other_cpu import OtherCPUWarning
from qcompiler.backends.torch.site import INSTRUCTION_SETS, host_isa
from qcompiler.errors import PassError
from qcompiler.fake_quantize import default_fake_quant, default_weight_fake_quant
from qcompiler.ir.types import QParams, quant_of
from qcompiler.nn import quantized as nnq
from qcompiler.nn.quantized import lowering
from qcompiler.nn.quantized.wide_codes import CALLS
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


@pytest.mark.parametrize(("isa", "told"), [("avx2", True), ("avx512_vnni", False)])
def test_training_in_8_bits_that_the_user_wants_is_told_of(isa: str, told: bool) -> None:
    """Where sums are cut off, int8 is not what training simulated: an error that names the setting."""
    model, x = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 4)), torch.ones(2, 64)
    with torch.no_grad():
        model[0].weight.fill_(1.0)  # products of 255 * 127
    made = default_fake_quant.with_args(reduce_range=False)
    prepared = prepare_qat_fx(model, QConfig(made, default_weight_fake_quant), (x,), engine="x86", isa=isa)
    prepared(x)
    assert bool([r for r in remarks(prepared) if r.code == "wide-range"]) is told
    if told and SEVEN_BITS:
        with pytest.raises(PassError, match="training simulated") as caught:
            convert_fx(prepared.eval())
        assert "leave its reduce_range open" in str(caught.value.hint)
    elif not SEVEN_BITS:
        convert_fx(prepared.eval())


@pytest.mark.parametrize("qconfig", [qconfig for name, qconfig in vars(ready).items() if name.endswith("qnnpack_qconfig")])
def test_ready_made_qconfigs_of_qnnpack_have_the_bits_of_the_engine(qconfig: Any) -> None:
    """Their names say what they were made for, and not that a kernel of another engine may overflow."""
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)).eval(), torch.randn(4, 8)
    for engine, isa, most in (("x86", "avx2", 127), ("qnnpack", "avx2", 255), ("x86", "avx512_vnni", 255)):
        made = prepare_fx(model, qconfig, (x,), engine=engine, isa=isa)
        calibrate(made, [x])
        assert max(largest(convert_to_reference_fx(made)).values()) == most


def by_hand(isa: str, monkeypatch: pytest.MonkeyPatch, engine: str) -> tuple[nnq.Linear, nnq.Conv2d]:
    """Two modules as they are made on a CPU of this instruction set."""
    monkeypatch.setattr(lowering, "host_isa", lambda: isa)
    with quantized_engine(engine):
        return nnq.Linear(8, 4), nnq.Conv2d(8, 16, 3, padding=1, groups=8)


def codes(*shape: int, largest: int) -> Tensor:
    return torch._make_per_tensor_quantized_tensor(torch.full(shape, largest, dtype=torch.uint8), 0.1, 0)


@pytest.mark.parametrize(("isa", "engine", "largest", "told"), [
    ("avx2", "x86", 128, True), ("avx2", "fbgemm", 255, True), ("avx512", "onednn", 200, True), ("default", "x86", 255, True),
    ("avx2", "x86", 127, False), ("avx512_vnni", "onednn", 255, False), ("avx2", "qnnpack", 255, False),
])  # fmt: skip
def test_8_bits_handed_to_a_module_made_by_hand(isa: str, engine: str, largest: int, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning a module, also behind a call with small codes; scripts and copies compute as the module does."""
    for module, shape in zip(by_hand(isa, monkeypatch, engine), ((2, 8), (2, 8, 4, 4)), strict=True):
        script = torch.jit.script(module)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            module(codes(*shape, largest=0))
            results = [module(codes(*shape, largest=largest)) for _ in range(3)]
        mine = [w for w in found if issubclass(w.category, OtherCPUWarning)]
        assert len(mine) == told and all("lacks VNNI" in str(w.message) and w.filename == __file__ for w in mine)
        assert all(torch.equal(script(codes(*shape, largest=largest)).int_repr(), r.int_repr()) for r in results)


def test_a_module_is_looked_at_for_its_first_calls_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = by_hand("avx2", monkeypatch, "x86")
    for _ in range(CALLS):
        module(codes(2, 8, largest=3))
    assert module.forward.__func__ is module.__dict__["_compiled"].forward
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(codes(2, 8, largest=255))


@pytest.mark.parametrize(
    ("variable", "limit", "isa"),
    [("ONEDNN_MAX_CPU_ISA", "AVX2", "avx2"), ("ONEDNN_MAX_CPU_ISA", "avx512_core", "avx512"), ("DNNL_MAX_CPU_ISA", "AVX2_VNNI", "avx2"),
     ("FBGEMM_ENABLE_INSTRUCTIONS", "AVX2", "avx2"), ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX", host_isa()),
     ("DNNL_MAX_CPU_ISA", "ALL", host_isa())],
)  # fmt: skip
def test_what_the_environment_limits_kernels_to_is_the_instruction_set(
    monkeypatch: pytest.MonkeyPatch, variable: str, limit: str, isa: str
) -> None:
    """oneDNN limited to AVX2 adds in 16 bits on a CPU with VNNI, too."""
    here = host_isa()
    monkeypatch.setenv(variable, limit)
    assert host_isa() == (min(isa, here, key=INSTRUCTION_SETS.index) if here in INSTRUCTION_SETS else here)
