"""Each fusion rule: where it fires, and the near misses, each with its remark. Float values stay to 1e-5 in all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qcompiler.compile.journal import Remark
from qcompiler.ops.functional import clip
from qcompiler.passes import FUSE
from tests.flow import max_difference, passed, randn, randomized, targets

IMAGE = (2, 4, 6, 6)


def fused(model: nn.Module, *example: Tensor) -> tuple[fx.GraphModule, list[str], list[Remark]]:
    """The fused module, the names of its calls, its remarks; with values checked."""
    torch.manual_seed(0)
    randomized(model)
    with torch.no_grad():
        wanted = model(*example)
        gm, context = passed(model, example, FUSE)
        assert max_difference(gm(*example), wanted) <= 1e-5
    return gm, targets(gm.graph), context.journal.remarks


def bounds_of(gm: fx.GraphModule) -> list[Any]:
    return [n.kwargs["bounds"] for n in gm.graph.nodes if n.kwargs.get("bounds") is not None]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_conv_bn(transposed: bool, dims: int, bias: bool, groups: int) -> None:
    kind = getattr(nn, f"{'ConvTranspose' if transposed else 'Conv'}{dims}d")
    norm = getattr(nn, f"BatchNorm{dims}d")
    conv = kind(4, 6, 3, bias=bias, groups=groups)
    gm, names, remarks = fused(nn.Sequential(conv, norm(6, eps=1e-3), nn.ReLU()), randn(2, 4, *[5] * dims))
    assert len(names) == 1 and bounds_of(gm) == [(0.0, None)] and not remarks
    assert {name for name, _ in gm.named_parameters()} == {"0.weight", "0.bias"}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 5)])
def test_linear_or_conv1d_bn(shape: tuple[int, ...], affine: bool) -> None:
    first: nn.Module = nn.Linear(4, 6) if len(shape) == 2 else nn.Conv1d(4, 6, 1)
    _, names, _ = fused(nn.Sequential(first, nn.BatchNorm1d(6, affine=affine)), randn(*shape))
    assert names == ["linear" if len(shape) == 2 else "conv1d"]


@pytest.mark.parametrize(("width", "code"), [(6, "other-channels"), (4, "other-dimension")])
def test_a_batch_norm_over_the_rows_of_a_linear_stays(width: int, code: str) -> None:
    _, names, remarks = fused(nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(4)), randn(3, 4, 5))
    assert names == ["linear", "batch_norm"] and [r.code for r in remarks] == [code]


def test_functional_bn() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.scale = nn.Parameter(torch.randn(3, 4, 1, 1)), nn.Parameter(torch.rand(3))
            self.register_buffer("running_mean", torch.randn(3))
            self.register_buffer("running_var", torch.rand(3) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(F.conv2d(x, self.weight), self.running_mean, self.running_var, self.scale, None, False, 0.1, 1e-3)  # type: ignore[arg-type]

    assert fused(Functional(), randn(*IMAGE))[1] == ["conv2d"]


ACTIVATIONS: list[tuple[Any, Any]] = [
    (nn.ReLU(), (0.0, None)),
    (nn.ReLU(inplace=True), (0.0, None)),
    (nn.ReLU6(), (0.0, 6.0)),
    (nn.Hardtanh(-0.5, 0.25), (-0.5, 0.25)),
    (torch.relu, (0.0, None)),
    (lambda x: x.clamp(min=-1), (-1.0, None)),
    (lambda x: torch.clamp(x, max=1), (None, 1.0)),
    (lambda x: F.relu6(x).clamp(1, 8), (1.0, 6.0)),
    (lambda x: F.relu(F.relu(x)), (0.0, None)),
]


class Then(nn.Module):
    """A producer and what follows."""

    def __init__(self, kind: str, activation: Any) -> None:
        super().__init__()
        self.kind, self.conv, self.other, self.activation = kind, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), activation
        self.linear, self.bn = nn.Linear(6, 6), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        producers = {
            "conv2d": lambda: self.conv(x),
            "linear": lambda: self.linear(x),
            "add": lambda: x + x,
            "sub": lambda: x - 1,
            "mul": lambda: x * 2,
            "div": lambda: x / 2,
            "matmul": lambda: x @ x.transpose(2, 3),
            "batch_norm": lambda: self.bn(x),
        }
        result: Tensor = self.activation(producers[self.kind]())
        return result


@pytest.mark.parametrize(("activation", "bounds"), ACTIVATIONS)
@pytest.mark.parametrize("kind", ["conv2d", "linear", "add", "sub", "mul", "div", "matmul", "batch_norm"])
def test_absorb(kind: str, activation: Any, bounds: Any) -> None:
    gm, names, _ = fused(Then(kind, activation), randn(*IMAGE))
    assert [n for n in names if n != "transpose"] == [kind] and bounds_of(gm) == [bounds]


class NearMiss(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.other = kind, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.free = nn.BatchNorm2d(4, track_running_stats=False)
        self.register_buffer("low", torch.tensor(-0.5))

    def forward(self, x: Tensor) -> Any:
        return getattr(self, f"_{self.kind}")(x)

    def _conv_used_twice(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y  # type: ignore[no-any-return]

    def _same_op_twice(self, x: Tensor) -> Tensor:
        y = x * 2
        return F.relu(y) + y

    def _two_bns(self, x: Tensor) -> Tensor:
        return self.second(self.bn(self.conv(x)))  # type: ignore[no-any-return]

    def _bn_first(self, x: Tensor) -> Tensor:
        return self.conv(self.bn(x))  # type: ignore[no-any-return]

    def _no_statistics(self, x: Tensor) -> Tensor:
        return self.free(self.conv(x))  # type: ignore[no-any-return]

    def _shared_bn(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + self.bn(self.other(x))  # type: ignore[no-any-return]

    def _shared_conv(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.bn(self.conv(x))))  # type: ignore[no-any-return]

    def _shared_conv_one_bn(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + self.conv(x)  # type: ignore[no-any-return]

    def _tensor_bounds(self, x: Tensor) -> Tensor:
        return torch.clamp(self.conv(x), min=self.low)

    def _computed_bounds(self, x: Tensor) -> Tensor:
        return torch.clamp(self.conv(x), min=x.min(), max=x.max())

    def _relu_and_other(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.relu(y) + torch.sigmoid(y)

    def _relu_then_bn(self, x: Tensor) -> Tensor:
        return self.bn(F.relu(self.conv(x)))  # type: ignore[no-any-return]

    def _empty_range(self, x: Tensor) -> Tensor:
        return self.conv(x).clamp(min=2).clamp(max=1)

    def _computed_weight(self, x: Tensor) -> Tensor:
        return self.bn(F.conv2d(x, self.conv.weight * x.mean()))  # type: ignore[no-any-return]

    def _integers(self, x: Tensor) -> Tensor:
        index = ((x[:, 0, 0] > 0).long() + 1).clamp(min=0, max=1)
        return self.conv(x).flatten(1)[torch.arange(x.shape[0]), index[:, 0]]

    def _integer_relu(self, x: Tensor) -> Tensor:
        return F.relu((x > 0).long() - 1) + self.conv(x)


NEAR: list[tuple[str, dict[str, int], str | None]] = [
    ("conv_used_twice", {"conv2d": 1, "batch_norm": 1, "add": 1}, "several-users"),
    ("same_op_twice", {"mul": 1, "relu": 1, "add": 1}, "several-users"),
    ("two_bns", {"conv2d": 1}, None),
    ("bn_first", {"batch_norm": 1, "conv2d": 1}, "no-partner"),
    ("no_statistics", {"conv2d": 1, "free": 1}, "module-kept"),
    ("shared_bn", {"conv2d": 2, "add": 1}, None),
    ("shared_conv", {"conv2d": 2}, None),
    ("shared_conv_one_bn", {"conv2d": 2, "add": 1}, None),
    ("tensor_bounds", {"conv2d": 1, "clamp": 1}, "tensor-bounds"),
    ("computed_bounds", {"conv2d": 1, "clamp": 1, "min": 1, "max": 1}, "tensor-bounds"),
    ("relu_and_other", {"conv2d": 1, "relu": 1, "sigmoid": 1, "add": 1}, "several-users"),
    ("relu_then_bn", {"conv2d": 1, "batch_norm": 1}, "clamp-between"),
    ("empty_range", {"conv2d": 1, "clamp": 1}, "empty-range"),
    ("computed_weight", {"conv2d": 1, "batch_norm": 1}, "not-constant"),
    ("integers", {"conv2d": 1, "clamp": 1}, "not-float"),
    ("integer_relu", {"conv2d": 1, "relu": 1}, "not-float"),
]


@pytest.mark.parametrize(("kind", "calls", "code"), NEAR)
def test_near_miss(kind: str, calls: dict[str, int], code: str | None) -> None:
    _, names, remarks = fused(NearMiss(kind), randn(*IMAGE))
    assert {name: names.count(name) for name in calls} == calls, names
    assert all(name in calls for name in names if name in ("conv2d", "batch_norm", "relu", "clamp"))
    if code is None:
        assert not remarks
    else:
        assert [r.code for r in remarks].count(code) >= 1
        remark = next(r for r in remarks if r.code == code)
        assert remark.where.node and remark.where.source and "test_rules.py" in remark.where.source


PADDED: dict[str, tuple[Any, int, tuple[int, ...]]] = {
    "a module": (nn.ZeroPad2d(1), 2, (1, 1)),
    "a function": (lambda x: F.pad(x, (2, 2, 1, 1)), 2, (1, 2)),
    "zeros by value": (nn.ConstantPad2d((1, 1, 0, 0), 0.0), 2, (0, 1)),
    "one dimension": (nn.ZeroPad1d(2), 1, (2,)),
    "three": (nn.ZeroPad3d((0, 0, 1, 1, 2, 2)), 3, (2, 1, 0)),
}


@pytest.mark.parametrize("own", [0, 1])
@pytest.mark.parametrize("name", PADDED)
def test_zeros_in_front_of_a_convolution_become_its_padding(name: str, own: int) -> None:
    pad, dims, sides = PADDED[name]
    conv = getattr(nn, f"Conv{dims}d")(4, 4, 3, padding=own)
    gm, names, remarks = fused(Padded(pad, conv), randn(2, 4, *[5] * dims))
    assert names == [f"conv{dims}d"] and not remarks
    assert next(n for n in gm.graph.nodes if n.op == "call_function").kwargs["padding"] == tuple(side + own for side in sides)


class Padded(nn.Module):
    """Padding in front of a module; `twice`: what is padded is a result, too."""

    def __init__(self, pad: Any, then: nn.Module, twice: bool = False) -> None:
        super().__init__()
        self.pad, self.then, self.twice = pad, then, twice

    def forward(self, x: Tensor) -> Any:
        y = self.pad(x)
        return self.then(y) + y.mean() if self.twice else self.then(y)


UNFIT: dict[str, tuple[Any, nn.Module, bool, str | None]] = {
    "sides that differ": (nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 3), False, "uneven"),
    "reflected": (nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3), False, "not-zeros"),
    "ones": (nn.ConstantPad2d(1, 1.0), nn.Conv2d(4, 4, 3), False, "not-zeros"),
    "channels": (lambda x: F.pad(x, (1, 1, 1, 1, 1, 1)), nn.Conv2d(6, 4, 3), False, "pads-channels"),
    "a crop": (lambda x: F.pad(x, (1, 1, -1, -1)), nn.Conv2d(4, 4, 3), False, "not-constant"),
    "used twice": (nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3), True, "several-users"),
    "in front of a transposed one": (nn.ZeroPad2d(1), nn.ConvTranspose2d(4, 4, 3), False, None),
    "in front of a pool": (nn.ZeroPad2d(1), nn.MaxPool2d(3), False, None),
}


@pytest.mark.parametrize("name", UNFIT)
def test_other_padding_stays(name: str) -> None:
    pad, then, twice, code = UNFIT[name]
    _, names, remarks = fused(Padded(pad, then, twice), randn(*IMAGE))
    assert "pad" in names
    assert [(r.code, r.node) for r in remarks] == ([(code, "pad")] if code else [])


def test_the_values_of_a_clamp_are_its_own() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0])
    assert clip(x, (None, 1.0)).tolist() == [-2.0, 0.0, 1.0] and clip(x, None) is x
