"""A result that is read in parts of unlike range has a scale for each part: cut by any op, on any engine, at no cost in codes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler import fuse_fx
from qcompiler.config.qconfig import default_qconfig
from qcompiler.debug import compare, compute_sqnr
from qcompiler.ops.functional import mul
from qcompiler.ops.parts import parts_of
from qcompiler.ops.table import OPS
from qcompiler.passes import DECIDE
from qcompiler.passes.annotate import Annotate
from tests.cpu import SEVEN_BITS
from tests.flow import ENGINES

RATIO = 100.0
DUE = 28.0  # dB of a sum of 16 products with 8-bit inputs, weights and results; without scales of their own 2 to 12

# Two halves of the last dimension, the second the smaller by RATIO.
CUTS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "chunk": lambda y: y.chunk(2, -1),
    "torch.chunk": lambda y: torch.chunk(y, chunks=2, dim=-1),
    "split": lambda y: y.split(8, -1),
    "split with sizes": lambda y: torch.split(y, [8, 8], dim=-1),
    "tensor_split": lambda y: torch.tensor_split(y, 2, -1),
    "hsplit": lambda y: y.hsplit(2),
    "hsplit by place": lambda y: torch.hsplit(y, indices=(8,)),
    "vsplit": lambda y: tuple(t.mT for t in y.mT.vsplit(2)),
    "dsplit": lambda y: tuple(t[0] for t in torch.dsplit(y[None], sections=2)),
    "atleast_2d": lambda y: torch.atleast_2d(y).chunk(2, -1),
    "slices": lambda y: (y[..., :8], y[..., 8:]),
    "negative slices": lambda y: (y[:, :-8], y[:, -8:]),
    "narrow": lambda y: (y.narrow(-1, 0, 8), y.narrow(-1, 8, 8)),
    "index_select": lambda y: (y.index_select(-1, torch.arange(8)), y.index_select(-1, torch.arange(8, 16))),
    "reshape then select": lambda y: (y.reshape(-1, 2, 8)[:, 0], y.reshape(-1, 2, 8)[:, 1]),
    "view then unbind": lambda y: y.view(y.size(0), 2, 8).unbind(1),
    "unflatten, permute, unbind": lambda y: y.unflatten(-1, (2, 8)).permute(1, 0, 2).unbind(0),
    "select of a permuted": lambda y: (y.reshape(-1, 2, 8).transpose(0, 1)[0], y.reshape(-1, 2, 8).transpose(0, 1)[1]),
    "unpacked with a star": lambda y: (lambda a, *rest: (a, rest[0]))(*y.chunk(2, -1)),
    "twice": lambda y: (torch.cat([p.relu() for p in y[..., :8].chunk(2, -1)], -1), y[..., 8:]),
}


class Cut(nn.Module):
    def __init__(self, cut: Callable[[Tensor], tuple[Tensor, Tensor]], producer: nn.Module | None = None) -> None:
        super().__init__()
        self.produce = producer or nn.Linear(16, 16)
        self.cut, self.one, self.other = cut, nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.cut(self.produce(x))
        return self.one(a), self.other(b)


def unlike(module: nn.Module, small: slice = slice(8, None)) -> nn.Module:
    """Makes some output channels smaller by RATIO."""
    with torch.no_grad():
        for tensor in (module.weight, module.bias):
            if tensor is not None:
                tensor[small] /= RATIO  # type: ignore[index]
    return module


def built(cut: str = "chunk") -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Cut(CUTS[cut])
    unlike(model.produce)
    nn.init.zeros_(model.other.bias)  # else it hides what the small part is
    return model.eval(), torch.randn(64, 16)


def sqnrs(model: nn.Module, module: Any, x: Tensor) -> list[float]:
    with torch.no_grad():
        return [float(compute_sqnr(a, b)) for a, b in zip(model(x), module(x), strict=True)]


def codes(module: Any) -> list[str]:
    return [remark.code for remark in qcompiler.remarks(module)]


@pytest.mark.parametrize("cut", CUTS)
def test_each_part_keeps_its_range(cut: str) -> None:
    model, x = built(cut)
    module = qcompiler.quantize(model, [x], progress=False)
    assert min(sqnrs(model, module, x)) > DUE, sqnrs(model, module, x)
    assert "parts" in codes(module)
    assert torch.equal(module(x[:3])[1], module(x)[1][:3])  # another batch
    assert set(model.state_dict()) <= set(module.state_dict())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("qscheme", ["per channel", "per tensor"])
def test_on_each_engine_with_each_kind_of_weight_scales(engine: str, qscheme: str, tmp_path: Path) -> None:
    model, x = built()
    mapping = None
    if qscheme == "per tensor":
        mapping = qcompiler.QConfigMapping().set_global(default_qconfig)
    prepared = qcompiler.prepare_fx(model, mapping, (x,), engine=engine)
    before = copy.deepcopy(prepared.state_dict())
    qcompiler.calibrate(prepared, [x])
    module = qcompiler.convert_fx(prepared)
    due = DUE if qscheme == "per channel" else DUE - 8  # one scale for the weights of two ranges of outputs that are now alike
    assert min(sqnrs(model, module, x)) > due, sqnrs(model, module, x)
    assert all(torch.equal(before[name], value) for name, value in prepared.state_dict().items() if "observer" not in name)
    reference = qcompiler.convert_to_reference_fx(prepared)
    for a, b in zip(reference(x), module(x), strict=True):
        assert float(compute_sqnr(a, b)) > 35  # one step of 255 here and there
    qcompiler.save(module, tmp_path / "m.qc")
    for other in (qcompiler.load(tmp_path / "m.qc"), copy.deepcopy(module), torch.jit.script(module)):
        assert all(torch.equal(a, b) for a, b in zip(other(x), module(x), strict=True))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 4])
def test_channels_of_convolutions(rank: int, bias: bool, groups: int) -> None:
    torch.manual_seed(0)
    cls: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.a, self.b = cls(8, 12, 3, groups=groups, bias=bias), cls(4, 4, 1), cls(8, 8, 1, bias=False)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = torch.relu(self.c(x))
            return self.a(y[:, :4]), self.b(y[:, 4:])

    model = Net().eval()
    unlike(model.c, slice(4, None))
    x = torch.randn(4, 8, *[7, 6, 5][:rank])
    module = qcompiler.quantize(model, [x], progress=False)
    assert min(sqnrs(model, module, x)) > 25, sqnrs(model, module, x)
    wider = torch.randn(2, 8, *[9, 5, 7][:rank]) / 2  # within the ranges that calibration saw; sizes of the plane decide nothing
    assert min(sqnrs(model, module, wider)) > 20, sqnrs(model, module, wider)


def test_queries_keys_and_values_of_one_linear() -> None:
    torch.manual_seed(0)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> tuple[Tensor]:
            b, n, c = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
            mixed = (q @ k.transpose(-2, -1) / RATIO).softmax(-1) @ v
            return (self.proj(mixed.transpose(1, 2).reshape(b, n, c)),)

    model = Attention().eval()
    with torch.no_grad():
        model.qkv.weight[:16] *= RATIO
    x = torch.randn(4, 10, 16)
    module = qcompiler.quantize(model, [x], progress=False)
    assert min(sqnrs(model, module, x)) > DUE
    assert min(sqnrs(model, module, torch.randn(2, 13, 16) / 2)) > 20


def test_the_codes_of_the_weight_are_those_without_parts() -> None:
    """Its scales alone change: the factor of a part costs nothing."""
    model, x = built()
    module = qcompiler.quantize(model, [x], progress=False)
    whole = copy.deepcopy(model)
    whole.cut = lambda y: (lambda z: (z[..., :8], z[..., 8:]))(y.abs())  # no copy: it reads the result whole
    other = qcompiler.quantize(whole, [x], progress=False)
    a, b = (m.state_dict()["produce.weight"].int() for m in (module, other))
    assert int((a - b).abs().max()) <= 1 and int((a != b).sum()) <= 2  # halves of a step may fall to either side
    ratio = module.state_dict()["produce.weight_scale"] / other.state_dict()["produce.weight_scale"]
    assert torch.allclose(ratio[:8], torch.ones(8).double()) and bool((ratio[8:] > RATIO / 2).all())
    assert any("quantized::mul_scalar" in call.op for call in module.program.calls)


def test_parts_of_like_range_share_one_scale() -> None:
    torch.manual_seed(0)
    model, x = Cut(CUTS["chunk"]).eval(), torch.randn(64, 16)
    module = qcompiler.quantize(model, [x], progress=False)
    assert "parts" not in codes(module) and not any("mul" in call.op for call in module.program.calls)
    assert min(sqnrs(model, module, x)) > DUE


@pytest.mark.parametrize("cut", [name for name in CUTS if name != "twice"])  # whose cat joins its inputs' ranges to its own
@pytest.mark.parametrize("shift", [-1.0, 0.0, 0.3])
def test_parts_of_like_range_have_the_scale_that_was_observed(cut: str, shift: float) -> None:
    """Zero points of parts are rounded each to its own code: ranges made of them would be wider than the values are."""
    torch.manual_seed(0)
    model, x = Cut(CUTS[cut]).eval(), torch.randn(64, 16)
    with torch.no_grad():
        model.produce.bias[8:] += shift
    prepared = qcompiler.prepare_fx(model, None, (x,))
    qcompiler.calibrate(prepared, [x])
    observer = prepared.observers.produce.observer
    observer.set_reduce_range(SEVEN_BITS)
    scale, zero_point = (float(value) for value in observer.calculate_qparams())
    steps = [n.args[1:3] for n in qcompiler.convert_to_reference_fx(prepared).graph.nodes if n.name.startswith("produce_q")]
    assert steps == [(scale, zero_point)]


def test_compare_finds_no_culprit() -> None:
    model, x = built()
    module = qcompiler.quantize(model, [x], progress=False)
    report = compare(model, module, [x])
    assert "do not compute what the float model does" not in str(report)
    assert all(row.own > 25 for row in report if math.isfinite(row.own)), str(report)


NEAR_MISSES: dict[str, Callable[[Tensor], Any]] = {
    "read whole": lambda y: (y[..., :8], y[..., 8:] + y.mean(-1, keepdim=True)),
    "handed out whole": lambda y: (y[..., :8] * 2, y),
    "overlapping": lambda y: (y[..., :12], y[..., 4:]),
    "one part": lambda y: (y[..., :8], y[..., :8]),
    "a mean of channels": lambda y: (y.mean(-1, keepdim=True), y[..., 8:]),
    "a maximum of channels": lambda y: (y.amax(-1, keepdim=True), y[..., 8:]),
    "cut by the batch": lambda y: (y[:1], y[1:]),
    "cut through the plane": lambda y: (y.flatten()[:8], y.flatten()[8:]),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses_have_no_parts(case: str) -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Any:
            return tuple(torch.sigmoid(part) for part in NEAR_MISSES[case](self.l(x)))

    model, x = Net().eval(), torch.randn(4, 16)
    unlike(model.l)
    module = qcompiler.quantize(model, [x], progress=False)
    assert "parts" not in codes(module)


def test_weights_that_others_use_and_other_bounds_are_left_alone() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l, self.c = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Any:
            a, b = self.l(x).chunk(2, -1)
            c, d = torch.clamp(self.c(self.l(x.neg())), -0.5, 0.5).chunk(2, -1)
            return tuple(map(torch.sigmoid, (a, b, c, d)))

    model, x = Net().eval(), torch.randn(4, 16)
    unlike(model.l), unlike(model.c)
    module = qcompiler.quantize(model, [x], progress=False)
    assert "parts" not in codes(module)


def test_a_part_that_a_cat_takes_is_right() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l, self.o = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a, b = self.l(x).chunk(2, -1)
            return self.o(torch.cat([b, b.neg()], -1)), torch.sigmoid(a)

    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(64, 16)
    unlike(model.l)
    nn.init.zeros_(model.o.bias)
    module = qcompiler.quantize(model, [x], progress=False)
    assert min(sqnrs(model, module, x)) > 25


def test_the_rewrite_keeps_float_values() -> None:
    """The product with 1 / k undoes the factor k to float32's rounding."""
    from qcompiler.passes.scale_parts import ScaleParts

    model, x = built()
    prepared = qcompiler.prepare_fx(model, None, (x,))
    qcompiler.calibrate(prepared, [x])
    reference = qcompiler.convert_to_reference_fx(prepared)
    products = [n for n in reference.graph.nodes if n.target is mul and n.name.endswith("_part")]
    assert len(products) == 1 and ScaleParts().name == "scale_parts"
    factor = 1 / products[0].args[1]
    assert RATIO / 3 < factor < RATIO * 3


def test_parts_are_found_in_a_graph_that_is_only_annotated() -> None:
    model, x = built("view then unbind")
    gm = fuse_fx(model, (x,))
    assert all(parts_of(gm, node, OPS) == () for node in gm.graph.nodes)  # nothing is int8 yet
    assert isinstance(DECIDE[0], Annotate)


# ---- a cat that is read in parts


class Token(nn.Module):
    """A small parameter in front of large values, as a class token; read apart by layers behind the cat."""

    def __init__(self, size: float = 0.02, whole: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token, self.whole = nn.Parameter(torch.randn(1, 1, 8) * size), whole
        self.embed, self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        with torch.no_grad():
            self.embed.weight *= 10

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.cat([self.token.expand(x.size(0), -1, -1), self.embed(x)], 1)
        if self.whole:
            return self.one(y)[:, :1], self.other(y)
        return self.one(y[:, :1]), self.other(y[:, 1:])


def test_a_small_part_of_a_cat_comes_out_as_it_went_in() -> None:
    model, x = Token().eval(), torch.randn(4, 9, 8)
    module = qcompiler.quantize(model, [x], progress=False)
    assert min(sqnrs(model, module, x)) > DUE, sqnrs(model, module, x)
    assert "unlike-parts" in codes(module)
    assert min(sqnrs(model, module, torch.cat([x, x], 1))) > DUE  # another length


def test_parts_of_like_range_have_the_scale_of_the_cat() -> None:
    model, x = Token(size=3.0).eval(), torch.randn(4, 9, 8)
    module = qcompiler.quantize(model, [x], progress=False)
    assert min(sqnrs(model, module, x)) > DUE and "unlike-parts" not in codes(module)
    assert any(call.op.startswith(("aten::cat", "quantized::cat")) for call in module.program.calls)


def test_ops_with_weights_that_take_all_of_it_leave_a_remark() -> None:
    model, x = Token(whole=True).eval(), torch.randn(4, 9, 8)
    module = qcompiler.quantize(model, [x], progress=False)
    assert "unlike-parts" in codes(module)
    assert any(call.op.startswith(("aten::cat", "quantized::cat")) for call in module.program.calls)


SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * (b + 2),
    "gelu": lambda a, b: nn.functional.gelu(a + b),
}
CUT_SUMS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "slices": lambda y: (y[:, :1], y[:, 1:]),
    "select": lambda y: (y[:, 0], y[:, 1:]),
    "split": lambda y: y.split([1, 8], 1),
    "transposed": lambda y: (y.transpose(0, 1)[0], y.transpose(0, 1)[1:]),
    "index_select": lambda y: (y.index_select(1, torch.tensor([0])), y.index_select(1, torch.arange(1, 9))),
}


class Carried(nn.Module):
    """Two tensors whose first step is small, combined; the first step and the others are read by a layer each."""

    def __init__(self, combine: Callable[[Tensor, Tensor], Tensor], cut: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.combine, self.cut = combine, cut
        self.branch, self.one, self.other = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        with torch.no_grad():
            self.branch.weight *= 0.01

    def forward(self, stream: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        one, other = self.cut(self.combine(stream, self.branch(x)))
        return self.one(one), self.other(other)


def carried(small: float) -> tuple[Tensor, Tensor]:
    stream = torch.randn(4, 9, 8)
    stream[:, 0] *= small
    return stream, torch.randn(4, 9, 8)


@pytest.mark.parametrize("cut", CUT_SUMS)
@pytest.mark.parametrize("combine", SUMS)
def test_a_small_part_of_a_sum_is_not_lost(combine: str, cut: str) -> None:
    model = Carried(SUMS[combine], CUT_SUMS[cut]).eval()
    inputs = carried(0.01)
    module = qcompiler.quantize(model, [inputs], progress=False)
    found = [float(compute_sqnr(a, b)) for a, b in zip(model(*inputs), module(*inputs), strict=True)]
    assert min(found) > 25 and "unlike-parts" in codes(module), found  # on the steps of the whole 2 to 8
    assert all(row.int8 for row in qcompiler.explain(module).rows if row.op == "linear")


@pytest.mark.parametrize("cut", CUT_SUMS)
def test_parts_of_a_sum_of_like_range_have_its_scale(cut: str) -> None:
    model, inputs = Carried(SUMS["add"], CUT_SUMS[cut]).eval(), carried(1.0)
    module = qcompiler.quantize(model, [inputs], progress=False)
    found = [float(compute_sqnr(a, b)) for a, b in zip(model(*inputs), module(*inputs), strict=True)]
    assert min(found) > 25 and "unlike-parts" not in codes(module), found
    assert any(row.int8 for row in qcompiler.explain(module).rows if row.op == "add")
    other = tuple(torch.cat([t, t[:1]]) for t in inputs)
    assert [r.shape for r in module(*other)] == [r.shape for r in model(*other)]


def test_sums_before_a_float_one_are_float_where_nobody_wants_them_in_int8() -> None:
    """A residual stream of two sums: the second loses its first step, and so would the first."""

    class Twice(Carried):
        def forward(self, stream: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            before = stream + self.branch(x)
            one, other = self.cut(before + self.branch(torch.relu(self.branch(x))))
            return self.one(one), self.other(other)

    model, inputs = Twice(SUMS["add"], CUT_SUMS["slices"]).eval(), carried(0.01)
    module = qcompiler.quantize(model, [inputs], progress=False)
    found = [float(compute_sqnr(a, b)) for a, b in zip(model(*inputs), module(*inputs), strict=True)]
    assert min(found) > 25, found
    assert [row.code for row in qcompiler.explain(module).rows if row.op == "add"] == ["float-readers", "unlike-parts"]


@pytest.mark.parametrize("engine", ENGINES)
def test_held_back_parts_are_right_all_the_same(engine: str) -> None:
    """What a gate holds back costs accuracy alone: the parts get a common scale."""
    from qcompiler.compile.gate import Gate, gated

    for model, x in (built(), (Token(size=3.0).eval(), torch.randn(4, 9, 8))):
        with gated(Gate(limit=0)):
            prepared = qcompiler.prepare_fx(model, None, (x,), engine=engine)
            qcompiler.calibrate(prepared, [x])
            reference, module = qcompiler.convert_to_reference_fx(prepared), qcompiler.convert_fx(prepared)
        for a, b in zip(reference(x), module(x), strict=True):
            # a step of the common scale here and there: 0.02 for values of 5, times weights of at most 0.36
            assert float((a - b).abs().max()) <= max(float(a.abs().max()) / 100, 0.02)


@pytest.mark.parametrize("way", ["chunk", "split", "slices", "whole"])
def test_training_says_which_parts_share_a_scale(way: str) -> None:
    class Gates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gates, self.one, self.two = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.gates(x)
            if way == "whole":
                return self.one(y[:, :8] + y[:, 8:] * 0) + self.two(y.relu()[:, 8:])
            a, b = y.chunk(2, 1) if way == "chunk" else y.split([8, 8], 1) if way == "split" else (y[:, :8], y[:, 8:])
            return self.one(a) + self.two(b)

    prepared = qcompiler.prepare_qat_fx(Gates().train(), None, (torch.randn(4, 8),))
    found = [remark for remark in qcompiler.remarks(prepared) if remark.code == "parts-share"]
    assert [remark.where.module_path for remark in found] == ([] if way == "whole" else ["gates"])
