"""Dynamic kernels against a float64 reference of the same arithmetic, on every engine."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler import QConfigMapping, convert_fx, prepare_fx
from qcompiler.backends.torch.program.once import quantized_engine
from qcompiler.backends.torch.runtime import packs, recurrent
from qcompiler.backends.torch.site import ENGINES
from qcompiler.ops import recurrent as reference
from qcompiler.ops.reference import (
    SMALLEST_STEP,
    dequantize_weight,
    dynamic_quantize_dequantize,
    pack_4bit,
    quantize_weight,
    unpack_4bit,
)
from qcompiler.quantization import default_dynamic_qconfig, quantize_dynamic
from tests.cpu import steps

# float32 sums of values of order 1, and for recurrent layers their way through a few steps
EXACT = 1e-5


def int8(w: Tensor, per_channel: bool) -> tuple[Tensor, Tensor, Tensor, int | None]:
    axis = 0 if per_channel else None
    scale = (w.abs().amax(1) if per_channel else w.abs().max().reshape(1)).double() / 127
    zero_point = torch.zeros(len(scale), dtype=torch.int64)
    return quantize_weight(w, scale, zero_point, axis, -128, 127), scale, zero_point, axis


def double(stored: tuple[Tensor, Tensor, Tensor, int | None]) -> Tensor:
    values, scale, zero_point, axis = stored
    return ((values.double() - zero_point.double()[:, None]) * scale[:, None]) if axis == 0 else values.double() * scale


def rounded(x: Tensor, steps: int) -> Tensor:
    """The reference of the rounding, written apart from the one that is tested: nearest of the points scale * k."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / steps
    zero = round(-low / scale)
    return ((x.double() / scale).round().clamp(-zero, steps - zero)) * scale


@pytest.mark.parametrize("steps", [255, 127])
@pytest.mark.parametrize("shape", [(5, 64), (2, 3, 64), (1, 64)])
def test_rounding_at_run_time(steps: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(steps)
    x = torch.randn(shape)
    scale = float(x.max() - x.min()) / steps
    assert (dynamic_quantize_dequantize(x, 0, steps) - rounded(x, steps)).abs().max() <= 0.01 * scale
    assert (dynamic_quantize_dequantize(x, 0, steps) - x).abs().max() <= 1.01 * scale  # the zero point is rounded, too


def test_rounding_of_special_inputs() -> None:
    assert torch.equal(dynamic_quantize_dequantize(torch.zeros(3), 0, 255), torch.zeros(3))
    assert dynamic_quantize_dequantize(torch.empty(0, 4), 0, 255).shape == (0, 4)
    positive = dynamic_quantize_dequantize(torch.tensor([0.5, 255.0]), 0, 255)  # the range is widened to 0: steps of 1
    assert torch.equal(positive, torch.tensor([0.0, 255.0]))


@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_linear(engine: str, per_channel: bool, reduce_range: bool) -> None:
    if engine == "qnnpack" and reduce_range:
        pytest.skip("qnnpack ignores reduce_range, so it is never asked for")
    if not reduce_range and steps(engine) < 255:
        pytest.skip("without VNNI the kernel adds in 16 bits, so the range is always reduced")
    torch.manual_seed(0)
    w, b, x = torch.randn(19, 64), torch.randn(19), torch.randn(2, 5, 64)
    stored = int8(w, per_channel)
    with quantized_engine(engine):
        pack = packs.prepack_linear(*stored[:3], b, -1 if stored[3] is None else 0, "")
        got = torch.ops.quantized.linear_dynamic(x, pack, reduce_range)
    want = F.linear(dynamic_quantize_dequantize(x.double(), 0, 127 if reduce_range else 255), double(stored), b.double())
    one_step = float(x.max() - x.min()) / 127 * float(w.abs().max())  # a tie may fall on the other side
    assert (got - want).abs().max() <= one_step
    assert ((got - want).abs() <= EXACT * want.abs().max()).float().mean() > 0.9


@pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("sign", [(-0.9, 1), (0, 1), (-1, 0)])
@pytest.mark.parametrize("engine", ENGINES)
def test_kernels_take_no_steps_below_the_smallest(engine: str, sign: tuple[float, float], size: float) -> None:
    """torch's kernels choose no step below 6.1e-5, so that inputs within 0.0156 have fewer than 255: the reference says so, too."""
    torch.manual_seed(0)
    x = torch.randn(5, 16).clamp(*sign) * size
    with quantized_engine(engine):
        pack = packs.prepack_linear(torch.eye(16).to(torch.int8), torch.ones(1), torch.zeros(1).long(), None, -1, "")
        got = torch.ops.quantized.linear_dynamic(x, pack, False)
    off = (got - dynamic_quantize_dequantize(x, 0, 255)).abs() > SMALLEST_STEP / 100
    assert float(off.float().mean()) < 0.05  # ties


@pytest.mark.parametrize("shape", [(0, 8), (0, 2, 8), (3, 0, 8), (1, 2, 0, 8)])
@pytest.mark.parametrize("engine", ENGINES)
def test_empty_batches_keep_their_dimensions(engine: str, shape: tuple[int, ...]) -> None:
    model, x = nn.Sequential(nn.Linear(8, 4)).eval(), torch.empty(shape)
    mapping = QConfigMapping().set_global(default_dynamic_qconfig)
    graph = convert_fx(prepare_fx(model, mapping, (torch.randn(*shape[:-2], 2, 8),), engine=engine))
    with quantized_engine(engine):
        eager = quantize_dynamic(copy.deepcopy(model), {nn.Linear})
        found = [module(x).shape for module in (graph, eager, torch.jit.script(eager))]
    assert found == [model(x).shape] * 3


def saturating(engine: str, reduce_range: bool) -> float:
    w, x = torch.full((8, 64), 0.9), torch.ones(4, 64)
    stored = int8(w, per_channel=False)
    with quantized_engine(engine):
        pack = packs.prepack_linear(*stored[:3], None, -1, "")
        return float((torch.ops.quantized.linear_dynamic(x, pack, reduce_range) - 0.9 * 64).abs().max()) / (0.9 * 64)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_range_that_is_chosen_does_not_saturate(engine: str) -> None:
    from qcompiler.backends.torch.kernels.modes import activation_range
    from qcompiler.backends.torch.site import host_isa
    from qcompiler.config.qconfig import default_dynamic_qconfig

    _, high = activation_range(torch.fx.Graph().placeholder("x"), default_dynamic_qconfig, engine, host_isa())
    assert saturating(engine, high == 127) < 0.01


@pytest.mark.parametrize(("isa", "engine", "high"), [("avx512_vnni", "x86", 255), ("avx2", "x86", 127), ("avx2", "fbgemm", 127),
                                                     ("avx512", "onednn", 127), ("avx2", "qnnpack", 255)])  # fmt: skip
def test_seven_bits_where_sums_have_sixteen(isa: str, engine: str, high: int) -> None:
    from qcompiler.backends.torch.kernels.modes import activation_range
    from qcompiler.config.qconfig import default_dynamic_qconfig

    assert activation_range(torch.fx.Graph().placeholder("x"), default_dynamic_qconfig, engine, isa) == (0, high)


@pytest.mark.parametrize("engine", ["x86", "fbgemm"])
def test_linear_half(engine: str) -> None:
    torch.manual_seed(0)
    w, b, x = torch.randn(19, 64).half(), torch.randn(19), torch.randn(5, 64)
    with quantized_engine(engine):
        got = torch.ops.quantized.linear_dynamic_fp16(x, packs.prepack_linear_half(w, b))
    assert (got - F.linear(x.double(), w.double(), b.double())).abs().max() < 1e-5 * 64


def cells(module: Any, per_channel: bool, reduce_range: bool) -> tuple[list[Any], list[Tensor], list[Tensor]]:
    """Packs, float64 weights and biases of a float layer."""
    packs, weights, biases = [], [], []
    for layer in range(module.num_layers):
        for end in ("", "_reverse")[: 1 + module.bidirectional]:
            w_ih, w_hh = (int8(getattr(module, f"weight_{side}_l{layer}{end}").detach(), per_channel) for side in ("ih", "hh"))
            b = [getattr(module, f"bias_{side}_l{layer}{end}").detach() for side in ("ih", "hh")] if module.bias else [None, None]
            packs.append(recurrent.prepack_cell(*w_ih[:3], *w_hh[:3], *b, per_channel, reduce_range))
            weights += [double(w_ih), double(w_hh)]
            biases += [t.double() for t in b] if module.bias else []
    return packs, weights, biases


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_layers(kind: type[nn.Module], layers: int, bidirectional: bool, engine: str) -> None:
    torch.manual_seed(layers)
    bias, per_channel, batch_first = layers != 2, layers == 3, layers == 1
    module: Any = kind(9, 12, layers, bias=bias, bidirectional=bidirectional, batch_first=batch_first)
    x, directions = torch.randn(5, 3, 9), 2 if bidirectional else 1
    batch = 5 if batch_first else 3
    states = [torch.rand(layers * directions, batch, 12) - 0.5 for _ in range(2 if kind is nn.LSTM else 1)]
    with quantized_engine(engine):
        packs, weights, biases = cells(module, per_channel, steps(engine) < 255)
        run = recurrent.lstm_dynamic if kind is nn.LSTM else recurrent.gru_dynamic
        half = (False,) if kind is nn.LSTM else ()
        got: Any = run(x, *states, packs, 12, bidirectional, batch_first, *half)
    truth = reference.lstm if kind is nn.LSTM else reference.gru
    settings = {"batch_first": batch_first, "bidirectional": bidirectional, "activation_range": (0, steps(engine))}
    want: Any = truth(x.double(), *(s.double() for s in states), weights, biases, **settings)
    ends = list(zip(got[1], want[1], strict=True)) if kind is nn.LSTM else [(got[1], want[1])]
    for a, b in [(got[0], want[0]), *ends]:
        # float64 states and the kernel's float32 ones may round one value to the other step: 1/255 of a range of about 1
        assert a.shape == b.shape and (a - b).abs().max() < 2e-3 and (a - b).abs().median() < 1e-5


def test_4_bits_are_packed_in_pairs() -> None:
    for columns in (1, 6, 7):
        codes = torch.randint(0, 16, (5, columns), dtype=torch.uint8)
        packed = pack_4bit(codes)
        assert packed.shape == (5, (columns + 1) // 2) and torch.equal(unpack_4bit(packed, columns), codes)


def test_weights_with_a_zero_point_between_steps() -> None:
    w = torch.tensor([[-0.3, 0.0, 1.0]])
    scale, zero_point = torch.tensor([1.3 / 255], dtype=torch.float64), torch.tensor([0.3 / (1.3 / 255)], dtype=torch.float64)
    codes = quantize_weight(w, scale, zero_point, 0, 0, 255, torch.uint8)
    assert codes.tolist() == [[0, 59, 255]]
    assert (dequantize_weight(codes, scale, zero_point, 0) - w).abs().max() <= float(scale) / 2
