"""Depthwise convolutions behind uneven padding: QUANTIZED keeps them as the model has them, torch's fbgemm gets them centred."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from qcompiler import calibrate, convert_fx, convert_to_reference_fx, explain, prepare_fx
from qcompiler.backends.torch.program.module import CompiledModule
from qcompiler.debug import Recorder, compare, compute_sqnr
from qcompiler.ops.functional import getitem
from tests.cpu import needs_vnni
from tests.flow import ENGINES, randn

X = randn(2, 16, 12, 12)


class Net(nn.Module):
    """A convolution, zeros around its result, and a depthwise convolution."""

    def __init__(self, pad: tuple[int, ...] = (0, 1, 0, 1), before: bool = True, mode: str = "constant", **settings: Any) -> None:
        super().__init__()
        self.before = nn.Conv2d(16, 16, 1) if before else nn.Identity()
        self.depthwise = nn.Conv2d(16, 16, **{"kernel_size": 3, "stride": 2, "groups": 16, **settings})
        self.after = nn.Conv2d(16, 4, 1)
        self.pad, self.mode = pad, mode

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(self.before(x), self.pad, mode=self.mode)
        return self.after(self.depthwise(padded).relu())


def prepared(model: nn.Module, engine: str) -> fx.GraphModule:
    made = prepare_fx(model.eval(), None, (X,), engine=engine, isa="avx512_vnni")
    calibrate(made, [X, -X])
    return made


def is_centred(module: Any) -> bool:
    assert isinstance(module, CompiledModule)
    return "::2, " in module.code


@needs_vnni
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("before", [True, False], ids=["int8 input", "model's input"])
def test_the_values_are_those_of_quantized(engine: str, before: bool) -> None:
    torch.manual_seed(0)
    observed = prepared(Net(before=before), engine)
    reference, module = convert_to_reference_fx(observed), convert_fx(observed)
    assert not any(node.target is getitem for node in reference.graph.nodes)
    assert is_centred(module) is (engine == "fbgemm")  # x86 packs 16 groups with oneDNN
    assert compute_sqnr(reference(X), module(X)) > 40
    assert module(X[:1]).shape == (1, 4, 6, 6) and torch.equal(module(X)[:1], module(X[:1]))


@needs_vnni
def test_x86_centres_where_it_packs_with_fbgemm() -> None:
    torch.manual_seed(0)

    class Wide(Net):
        def __init__(self) -> None:
            super().__init__(before=False)
            self.depthwise, self.after = nn.Conv2d(128, 128, 3, 2, groups=128), nn.Conv2d(128, 4, 1)

    x = randn(1, 128, 8, 8)
    recorder = Recorder()
    observed = prepare_fx(Wide().eval(), None, (x,), engine="x86", isa="avx512_vnni", debug=recorder)
    calibrate(observed, [x])
    module = convert_fx(observed, debug=recorder)
    assert is_centred(module) and compute_sqnr(convert_to_reference_fx(observed)(x), module(x)) > 40
    row = next(row for row in explain(module).rows if row.module_path == "depthwise")
    assert row.macs == 128 * 9 * 4 * 4, "the multiply-accumulates of the model, not of the kernel"
    assert sum(node.get("macs", 0) for node in recorder.document().nodes_at(-1)) == sum(row.macs for row in explain(module).rows)


@pytest.mark.parametrize("engine", ENGINES)
def test_fused_and_quantized_are_equal_on_all_engines(engine: str) -> None:
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model.depthwise.weight.mul_(0.3).clamp_(-0.05, 0.05)
        model.depthwise.weight[..., 0] = 0.1  # no two neighbouring taps that could overflow: the weight's scales are equal as well
        model.depthwise.weight[..., 1] = 0.0
    graphs = [convert_to_reference_fx(prepared(model, name)) for name in (engine, "onednn")]
    first, second = ([(n.name, n.op, str(n.target), str(n.args), str(n.kwargs)) for n in gm.graph.nodes] for gm in graphs)
    if engine == "qnnpack":  # one scale a tensor, by its default qconfig
        first, second = ([(name, op, target) for name, op, target, *_ in nodes] for nodes in (first, second))
    assert first == second


NEAR_MISSES = {
    "even sides": {"pad": (1, 1, 1, 1)},
    "more in front": {"pad": (2, 1, 2, 1)},
    "less behind": {"pad": (1, 0, 1, 0)},
    "reflected": {"mode": "reflect"},
    "own padding": {"padding": 1},
    "dilated": {"dilation": 2},
    "even window": {"kernel_size": 2},
    "groups of 2": {"groups": 8},
}


@needs_vnni
@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name: str) -> None:
    torch.manual_seed(0)
    observed = prepared(Net(**NEAR_MISSES[name]), "fbgemm")
    module = convert_fx(observed)
    assert not is_centred(module) and compute_sqnr(convert_to_reference_fx(observed)(X), module(X)) > 40


@needs_vnni
def test_two_convolutions_behind_one_pad() -> None:
    class Both(Net):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Conv2d(16, 4, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            padded = nn.functional.pad(self.before(x), self.pad)
            return self.after(self.depthwise(padded)) + self.dense(padded)

    torch.manual_seed(0)
    observed = prepared(Both(), "fbgemm")
    module = convert_fx(observed)
    assert is_centred(module) and compute_sqnr(convert_to_reference_fx(observed)(X), module(X)) > 35


@needs_vnni
@pytest.mark.parametrize("large", [4.0, 127.0])
def test_no_sum_of_two_taps_overflows(large: float) -> None:
    """Weights whose neighbouring taps would overflow 16 bits in fbgemm's kernel, which takes the convolution once it is centred."""
    torch.manual_seed(0)
    model = Net(before=False)
    with torch.no_grad():
        model.depthwise.weight.fill_(large)
        model.depthwise.weight[:, :, 2] = -large
    observed = prepared(model, "fbgemm")
    module = convert_fx(observed)
    assert is_centred(module)
    assert compute_sqnr(convert_to_reference_fx(observed)(X), module(X)) > 40


@needs_vnni
def test_compare_sees_one_value() -> None:
    """The values of the centred convolution are none of the model's: only those that are kept are compared."""
    torch.manual_seed(0)
    model = Net()
    module = convert_fx(prepared(model, "fbgemm"))
    found = compare(model, module, [X])
    assert is_centred(module) and not found.unmatched
    assert next(node for node in found if node.module_path == "depthwise").own > 25
