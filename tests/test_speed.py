"""The choice among correct kernels is read from a committed table of measurements."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.backends.torch.bench.cases import Case, activation, all_cases
from qcompiler.backends.torch.bench.measure import Bench
from qcompiler.backends.torch.bench.time_kernels import ENGINE, cases
from qcompiler.backends.torch.kernels import elementwise, speed
from qcompiler.backends.torch.kernels.speed import fastest, shape_class
from qcompiler.backends.torch.kernels.table import Kernel, entries, select
from tests.flow import flow, randn

PREFERRED = {  # int8 against float arithmetic, which needs 2 to 9 times as long at every shape that was tried
    "interpolate", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "conv2d_add", "linear_leaky_relu", "linear_tanh",
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d",
}  # fmt: skip
ROWS = {"max_pool1d", "avg_pool1d"}  # on contiguous rows, int8 is 1 to 10 times as fast; no site says which memory it gets


def bench(op: str, *shapes: tuple[int, ...], isa: str = "avx512_vnni") -> Bench:
    return Bench(Case(op, "", tuple(activation(shape, 255) for shape in shapes)), ENGINE, isa)


def chosen(op: str, *shapes: tuple[int, ...], isa: str = "avx512_vnni") -> str:
    found = select(bench(op, *shapes, isa=isa).site)
    assert isinstance(found, Kernel)
    return found.label


@pytest.mark.parametrize("isa", ["avx512_vnni", "avx2"])
def test_every_choice_was_measured(isa: str) -> None:
    """In each class of shapes, every kernel that competes has its figure."""
    measured = speed.table()[speed.width(isa)]
    for case in cases():
        site = Bench(case, ENGINE, isa).site
        taking = {k.label for k in entries(site) if ENGINE in k.engines and k.refuse(site) is None}
        if len(taking) > 1:
            assert set(measured[case.op][shape_class(site)]) == taking, (case.op, shape_class(site))


def test_every_op_whose_kernels_compete_is_timed() -> None:
    """An op for which some case of measure.py has two takers on one engine is in the table."""
    timed = set(speed.table()["avx512"])
    for engine in {"x86", "qnnpack"} & set(torch.backends.quantized.supported_engines):
        for case in all_cases(127, extreme=False):
            site = Bench(case, engine, "avx512_vnni").site
            taking = [k for k in entries(site) if engine in k.engines and k.refuse(site) is None]
            assert len(taking) < 2 or case.op in timed | PREFERRED | ROWS, (case.op, engine, [k.label for k in taking])


@pytest.mark.parametrize(("shapes", "expected"), [
    ([(1, 64, 8, 8)], "small"),
    ([(1, 64, 8, 9)], "medium"),
    ([(1, 64, 32, 32)], "medium"),
    ([(1, 64, 32, 33)], "large"),
    ([(1, 64, 56, 56), (1, 64, 1, 1)], "large, one spread"),
    ([(1, 64, 1, 1), (1, 64, 56, 56)], "large, one spread"),
    ([(1, 64, 56, 56), (1, 64, 56, 56)], "large"),
    ([(0, 4)], "small"),
])  # fmt: skip
def test_classes_of_shapes(shapes: list[tuple[int, ...]], expected: str) -> None:
    assert shape_class(bench("add" if len(shapes) == 2 else "silu", *shapes).site) == expected


def test_the_choice_depends_on_shapes_and_instruction_set() -> None:
    assert chosen("mul", (1, 32, 112, 112), (1, 32, 112, 112)) == "emit_native"
    assert chosen("mul", (1, 32, 112, 112), (1, 32, 1, 1)) == "emit_tensors (float arithmetic)"
    assert chosen("mul", (1, 32, 4, 4), (1, 32, 1, 1)) == "emit_native"
    assert chosen("mish", (1, 64, 56, 56)) == "emit_float_of_codes (table of 256)"
    assert chosen("mish", (1, 64, 4, 4)) == "emit_float (float arithmetic)"
    assert chosen("softplus", (1, 64, 56, 56), isa="avx2") != chosen("softplus", (1, 64, 56, 56), isa="avx512_vnni")


@pytest.mark.parametrize(("times", "isa", "index"), [
    ({"a": 100.0, "b": 80.0}, "avx2", 1),
    ({"a": 100.0, "b": 95.0}, "avx2", 0),  # about equal: the order of preference
    ({"a": 100.0, "b": 80.0, "c": 75.0}, "avx2", 1),
    ({"a": 100.0, "b": 80.0, "c": 60.0}, "avx2", 2),
    ({"a": 100.0}, "avx2", 0),
    ({"b": 1.0}, "avx2", 0),  # nothing to compare with
    ({"a": 100.0, "b": 80.0}, "avx512_amx", 1),  # not measured: as the narrower one
    ({"a": 100.0, "b": 80.0}, "default", 0),  # nothing narrower
    ({"a": 100.0, "b": 80.0}, "neon", 0),
])  # fmt: skip
def test_a_kernel_must_be_clearly_faster(times: dict[str, float], isa: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def emit(name: str) -> Kernel:
        def run(site: object, emit: object) -> object: ...

        run.__name__ = name
        return Kernel("silu", ("fbgemm",), run)  # type: ignore[arg-type]

    kernels = [emit(name) for name in "abc"]
    monkeypatch.setattr(speed, "table", lambda: {"avx2": {"silu": {"large": times}}})
    assert fastest(bench("silu", (1, 64, 56, 56), isa=isa).site, kernels) is kernels[index]


class Activated(nn.Module):
    """Every op whose kernels are chosen by size and that a model may call with one input."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.norm = nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.before(x)
        made = [getattr(F, name, getattr(torch, name, None))(x) for name in elementwise.FLOAT]
        return [*made, self.norm(x), x * x.mean((2, 3), True)]


def test_the_state_dict_does_not_depend_on_the_size_of_the_example() -> None:
    torch.manual_seed(0)
    model = Activated().eval()
    small, large = (flow(model, [randn(batch, 3, 16, 16)], isa="avx2").module for batch in (1, 64))
    assert small.code != large.code
    small.load_state_dict(large.state_dict())
    x = randn(2, 3, 16, 16)
    assert all((a - b).abs().max() <= a.abs().max() / 60 for a, b in zip(small(x), large(x), strict=True))  # two of 255 steps


def test_unknown_shapes_keep_the_order_of_preference() -> None:
    site = bench("mish", (1, 64, 56, 56)).site
    site.node.meta.clear()
    object.__setattr__(site.args[0], "node", torch.fx.Graph().placeholder("x"))
    assert shape_class(site) is None
    found = select(site)
    assert isinstance(found, Kernel) and found.label == "emit_float (float arithmetic)"


def test_the_file_says_how_it_was_measured() -> None:
    report = json.loads(speed.SPEED.read_text(encoding="utf-8"))
    assert report["threads"] == 1 and set(report["microseconds"]) >= {"avx2", "avx512"} and report["torch"]
