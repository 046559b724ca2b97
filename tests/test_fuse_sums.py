"""Residual sums inside onednn's convolution: which are taken in, what they compute, and when they may overwrite their operand."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.torch.program.once import quantized_engine
from qcompiler.debug import compare
from qcompiler.errors import ConfigError
from qcompiler.quantization.backend_config import get_onednn_backend_config
from tests.cpu import SEVEN_BITS, needs_vnni

pytestmark = pytest.mark.skipif("onednn" not in torch.backends.quantized.supported_engines, reason="no onednn")


class Net(nn.Module):
    """Three convolutions, `how` says what is done with them."""

    def __init__(self, how: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.last = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1, bias=False)
        nn.init.dirac_(self.last.weight)
        self.how = how

    def forward(self, x: Tensor) -> Any:
        """An int8 convolution that copies reads each image of `how`: a sum that is a result itself is computed from floats."""
        results = self.how(self, self.a(x).relu())
        if not isinstance(results, tuple):
            return self.last(results)
        return tuple(self.last(y) if y.dim() == 4 else y for y in results)


X = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))


def prepared(
    how: Callable[[Net, Tensor], Any], engine: str = "onednn", mapping: Any = None, config: Any = None
) -> tuple[nn.Module, nn.Module]:
    model = Net(how).eval()
    config = get_onednn_backend_config() if config is None else config
    made = qcompiler.prepare_fx(model, mapping, (X,), engine=engine, backend_config=config or None)
    qcompiler.calibrate(made, [X])
    return model, made


def sums(module: nn.Module) -> list[bool]:
    """For each fused sum of a converted module, whether it overwrites its operand."""
    return [len(call.args) == 11 for call in module.program.calls if call.op == "runtime.conv2d_add_onednn"]  # type: ignore[union-attr]


FUSED: dict[str, tuple[Callable[[Net, Tensor], Any], list[bool]]] = {
    "residual": (lambda m, x: torch.relu(m.c(m.b(x).relu()) + x), [True]),
    "residual first": (lambda m, x: torch.relu(x + m.c(m.b(x).relu())), [True]),
    "no relu": (lambda m, x: x + m.c(m.b(x)), [True]),
    "in place": (lambda m, x: m.c(m.b(x)).add_(x).relu_(), [True]),
    "relu6": (lambda m, x: nn.functional.relu6(x + m.c(m.b(x))), [True]),
    "two convolutions": (lambda m, x: m.b(x) + m.c(x), [True]),
    "chain": (lambda m, x: m.c(m.b(y := torch.relu(m.c(m.b(x)) + x))) + y, [True, True]),
    "reads what it adds": (lambda m, x: torch.relu(m.c(x) + x), [False]),
    "itself": (lambda m, x: m.b(x) + m.b(x), [True]),
    "a twin of it lives": (lambda m, x: (m.b(x) + m.c(x), m.b(x)), [False]),  # TorchScript makes one call of the two b
    "used later": (lambda m, x: (torch.relu(m.c(m.b(x)) + x), m.b(x.relu())), [False]),
    "handed out": (lambda m, x: (m.c(m.b(x)) + x, x), [False]),
    "a view of it lives": (lambda m, x: (x.flatten(1), m.c(m.b(x)) + x), [False]),
    "pooled operand": (lambda m, x: m.c(m.b(x)) + nn.functional.max_pool2d(x, 3, 1, 1), [False]),
}


@pytest.mark.parametrize("name", FUSED)
def test_the_sum_is_part_of_the_convolution(name: str) -> None:
    if name == "a twin of it lives" and SEVEN_BITS:
        pytest.skip("in 7 bits for the sum and 8 for the result, the twins differ")
    how, into = FUSED[name]
    model, made = prepared(how)
    small = qcompiler.convert_fx(made)
    reference = qcompiler.convert_to_reference_fx(made)
    assert sums(small) == into and "quantized::add" not in small.code  # type: ignore[operator]
    with quantized_engine("onednn"):
        for x in (X, X[:1], torch.cat([X, X[:1]])[..., 2:7, :5]):  # within the range that calibration saw
            for got, wanted, real in zip(*(_flat(m(x)) for m in (small, reference, model)), strict=True):
                assert got.shape == real.shape
                assert (got - wanted).abs().max() <= 3.1 * _step(wanted)  # a step for the sum, one for what follows, one for the last
        assert all(torch.equal(a, b) for a, b in zip(_flat(small(X)), _flat(small(X)), strict=True))
        scripted = torch.jit.freeze(torch.jit.script(small))
        file = io.BytesIO()
        torch.jit.save(scripted, file)
        file.seek(0)
        for other in (scripted, torch.jit.load(file)):
            assert all(torch.equal(a, b) for a, b in zip(_flat(small(X)), _flat(other(X)), strict=True))


def _pooled_sum(x: Tensor) -> Tensor:
    return nn.functional.max_pool2d(x, 3, 1, 1) + x


@needs_vnni  # in 7 bits for a convolution and 8 for a result, the twins differ
def test_a_twin_whose_inputs_are_twins_as_well_lives() -> None:
    """TorchScript makes one of the two pools, and so one of the two sums: the first may not be written over."""
    _, made = prepared(lambda m, x: (m.c(m.b(x)) + _pooled_sum(x), _pooled_sum(x)))
    small = qcompiler.convert_fx(made)
    with quantized_engine("onednn"):
        wanted, scripted = small(X), torch.jit.script(small)
        for _ in range(3):
            got = scripted(X)
        assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
    assert sums(small) == [False]


def _flat(found: Any) -> list[Tensor]:
    return list(found) if isinstance(found, tuple) else [found]


def _step(values: Tensor) -> float:
    """The distance of the quantized values."""
    return float(values.unique().diff().min())


REFUSED: dict[str, tuple[Callable[[Net, Tensor], Any], str | None]] = {
    "no convolution": (lambda m, x: x.sigmoid() + m.b(x).sigmoid(), None),  # no near miss
    "a relu between": (lambda m, x: m.b(x).relu() + x, "clamp-between"),
    "used twice": (lambda m, x: (y := m.b(x)) + x + y.relu(), "several-users"),
    "alpha": (lambda m, x: torch.add(m.b(x), x, alpha=2), "alpha"),
    "one value twice": (lambda m, x: (y := m.b(x)) + y, "itself"),
    "broadcast": (lambda m, x: m.b(x) + x.mean((2, 3), keepdim=True), "broadcast"),
    "a number": (lambda m, x: m.b(x) + 1.5, None),  # part of the bias
    "feeds a normalization": (lambda m, x: m.norm(m.b(x) + x), "float"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_near_misses_keep_their_own_sum(name: str) -> None:
    how, code = REFUSED[name]
    model, made = prepared(how)
    small = qcompiler.convert_fx(made)
    assert not sums(small)
    codes = {r.code for r in qcompiler.api.remarks(small) if r.pass_name == "fuse_sums"}
    assert codes == set() if code is None else code in codes
    with quantized_engine("onednn"):
        assert all(a.shape == b.shape for a, b in zip(_flat(small(X)), _flat(model(X)), strict=True))


def test_a_qconfig_of_its_own_keeps_them_apart() -> None:
    mapping = qcompiler.get_default_qconfig_mapping("onednn").set_module_name("b", qcompiler.get_default_qconfig("qnnpack"))
    small = qcompiler.convert_fx(prepared(lambda m, x: m.b(x) + x, mapping=mapping)[1])
    assert not sums(small)


@pytest.mark.parametrize(("engine", "config"), [("x86", None), ("onednn", False)])
def test_only_where_it_is_asked_for_and_the_engine_can(engine: str, config: Any) -> None:
    small = qcompiler.convert_fx(prepared(lambda m, x: m.b(x) + x, engine, config=config)[1])
    assert not sums(small) and "quantized::add" in small.code  # type: ignore[operator]


def test_another_current_engine_is_an_error() -> None:
    small = qcompiler.convert_fx(prepared(lambda m, x: m.b(x) + x)[1])
    with quantized_engine("fbgemm"), pytest.raises(ConfigError, match=r"only where torch.backends.quantized.engine is onednn"):
        small(X)


def test_compare_sees_operands_as_they_were() -> None:
    """The kernel overwrites its operand; the tool that runs step by step must not."""
    model, made = prepared(FUSED["chain"][0])
    small = qcompiler.convert_fx(made)
    with quantized_engine("onednn"):
        rows = compare(model, small, [X]).nodes
    assert len(rows) >= 4 and all(row.own > 35 for row in rows)
