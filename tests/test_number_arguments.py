"""Numbers that a model is called with: values of the graph where they are operands, held fixed with a clear error elsewhere."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler import calibrate, convert_fx, load, prepare_fx, prepare_qat_fx, remarks, save
from qcompiler.errors import InputError
from tests.flow import ENGINES, randn

X = randn(6, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l, self.m = nn.Linear(8, 8), nn.Linear(8, 8)
        self.p = nn.Parameter(torch.randn(8))
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.heads = nn.ModuleDict({"t1": nn.Linear(8, 4), "t2": nn.Linear(8, 4)})


def net(forward: Callable[..., Any]) -> nn.Module:
    return type("Net", (Net,), {"forward": forward})().eval()


def sqnr(expected: Tensor, found: Tensor) -> float:
    expected, found = expected.detach(), found.detach()
    return float(10 * torch.log10(expected.square().sum() / (expected - found).square().sum().clamp(min=1e-30)))


def in_place(s: Any, x: Tensor, a: Any) -> Tensor:
    y = s.l(x)
    y *= a
    y += a
    return s.m(y)  # type: ignore[no-any-return]


FREE: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "scale between layers": (lambda s, x, a: s.m(s.l(x) * a), [0.5, 1.0, 0.75]),
    "scale before a layer": (lambda s, x, a: s.m(a * x), [0.5, 0.75]),
    "offset": (lambda s, x, a=1.0: s.m(s.l(x) + a), [0.5, 1.0, 0.0]),
    "from the left": (lambda s, x, a: s.m(a - s.l(x)), [0.5, 0.1]),
    "temperature": (lambda s, x, a: torch.softmax(s.l(x) / a, -1), [2.0, 1.0, 4.0]),
    "mixing": (lambda s, x, a: s.l(x) * (1 - a) + x * a, [0.3, 0.5, 0.9]),
    "lerp": (lambda s, x, a: torch.lerp(s.l(x), x, a), [0.3, 0.5]),
    "in place": (in_place, [0.5, 0.7]),
    "method": (lambda s, x, a: s.l(x).mul(a).add(a).sub(a).div(a + 1), [0.5, 0.7]),
    "a parameter": (lambda s, x, a: s.l(x) + s.p * a, [0.5, 2.0]),
    "a threshold": (lambda s, x, a: torch.where(x > a, s.l(x), x * a), [0.1, 0.5]),
    "alpha of add": (lambda s, x, a: s.l(x) + torch.mul(x, a), [0.5, 1.0]),
    "an int that multiplies": (lambda s, x, n: s.l(x) * n, [2, 3, 1]),
    "an int that cuts": (lambda s, x, n: s.l(x)[:, :n] * n, [4, 3, 1]),
    "an int that is a size": (lambda s, x, n: s.l(x).view(n, -1), [3, 2, 6]),
    "max": (lambda s, x, a: s.l(x) * max(a, 0.2), [0.5, 0.1]),
    "a unary minus": (lambda s, x, a: s.l(x) * -a + abs(a), [0.5, -0.5]),
}


@pytest.mark.parametrize("case", FREE)
@pytest.mark.parametrize("engine", ENGINES[::3])
def test_a_number_that_is_an_operand_is_an_input(case: str, engine: str, tmp_path: Path) -> None:
    forward, values = FREE[case]
    model = net(forward)
    prepared = prepare_fx(model, None, (X, values[0]), engine=engine)
    calibrate(prepared, [(X, value) for value in values])
    module = convert_fx(prepared)
    script = torch.jit.script(module)
    save(module, tmp_path / "m.qc")
    loaded = load(tmp_path / "m.qc")
    for value in values:
        expected = model(X, value)
        assert torch.allclose(prepared(X, value), expected, atol=1e-5)
        found = module(X, value)
        # 8-bit products of eight terms: 30 dB and more in each case here; 22 leaves room for the widest range of a case
        assert found.shape == expected.shape and sqnr(expected, found) > 22
        for other in (script, loaded, copy.deepcopy(module)):
            assert torch.equal(other(X, value), found)
    assert not [r for r in remarks(module) if r.code == "guard"]


HELD: dict[str, tuple[Callable[..., Any], Any, Any]] = {
    "branch": (lambda s, x, a: s.l(x) * a if a > 0 else s.l(x), 0.5, -1.0),
    "default": (lambda s, x, a=1.0: s.l(x) * (a or 2.0), 0.5, 0.0),
    "range": (lambda s, x, n: sum(s.layers[i](x) for i in range(n)), 2, 3),
    "index of a module": (lambda s, x, n: s.layers[n](x), 1, 2),
    "name of a module": (lambda s, x, n: s.heads[f"t{n}"](x), 1, 2),
    "name by str": (lambda s, x, n: s.heads["t" + str(n)](x), 1, 2),
    "name by format": (lambda s, x, n: s.heads["t{}".format(n)](x), 1, 2),  # noqa: UP032
    "key": (lambda s, x, n: {1: s.l, 2: s.m}[n](x), 1, 2),
    "math": (lambda s, x, a: s.l(x) * math.sqrt(a), 4.0, 9.0),
    "numpy": (lambda s, x, a: s.l(x) * float(np.exp(float(a))), 0.5, 0.6),
    "setting": (lambda s, x, a: F.leaky_relu(s.l(x), a), 0.1, 0.2),
    "bound": (lambda s, x, a: s.l(x).clamp(min=a), 0.1, 0.2),
    "share of dropout": (lambda s, x, a: F.dropout(s.l(x), a, s.training), 0.1, 0.2),
    "dim": (lambda s, x, n: s.l(x).sum(n), 1, 0),
    "repeats of a list": (lambda s, x, n: torch.cat([s.l(x)] * n, 1), 2, 3),
    "repeats of a tuple": (lambda s, x, n: torch.stack(n * (s.l(x),)), 2, 3),
    "power": (lambda s, x, a: s.l(x) ** a, 2.0, 3.0),
    "tensor": (lambda s, x, a: s.l(x) * torch.tensor([a, a]).sum(), 0.5, 0.7),
    "an array": (lambda s, x, a: s.l(x) * float(np.array([a, 1.0]).sum()), 0.5, 0.7),
    "a method of it": (lambda s, x, a: s.l(x) if a.is_integer() else x, 1.0, 1.5),
    "a field of it": (lambda s, x, a: s.l(x) * a.real, 0.5, 0.7),
}


@pytest.mark.parametrize("case", HELD)
def test_a_number_that_decides_is_held_fixed(case: str) -> None:
    forward, first, other = HELD[case]
    prepared = prepare_fx(net(forward), None, (X, first))
    calibrate(prepared, [(X, first)])
    module = convert_fx(prepared)
    script = torch.jit.script(module)
    assert torch.equal(script(X, first), module(X, first))
    for held in (prepared, module):
        with pytest.raises(InputError, match=r"holds the argument '[an]' fixed at `"):
            held(X, other)
    with pytest.raises(Exception, match="holds the argument"):
        script(X, other)


@pytest.mark.parametrize("kind", [int, float])
def test_a_branch_on_the_type_of_a_number_holds_it_fixed(kind: type) -> None:
    def forward(s: Any, x: Tensor, n: Any) -> Tensor:
        return s.l(x) * n if type(n) is kind else x * n

    model, first = net(forward), kind(2)
    prepared = prepare_fx(model, None, (X, first))
    calibrate(prepared, [(X, first)])
    module = convert_fx(prepared)
    assert torch.allclose(prepared(X, first), model(X, first), atol=1e-5) and sqnr(model(X, first), module(X, first)) > 22
    with pytest.raises(InputError, match="holds the argument 'n' fixed"):
        module(X, kind(3))


@pytest.mark.parametrize("given", [0.25, 1, np.float32(0.25), np.float64(0.25), np.int64(1), torch.tensor(0.25), torch.tensor(1)])
def test_any_number_will_do(given: Any) -> None:
    prepared = prepare_fx(net(FREE["scale between layers"][0]), None, (X, 0.5))
    calibrate(prepared, [(X, given), (X, 0.5)])
    module = convert_fx(prepared)
    assert torch.equal(prepared(X, given), prepared(X, float(given))) and torch.equal(module(X, given), module(X, float(given)))


@pytest.mark.parametrize("given", [None, True, "a", X, 1j, [0.5]])
def test_what_is_no_number_is_refused(given: Any) -> None:
    prepared = prepare_fx(net(FREE["scale between layers"][0]), None, (X, 0.5))
    calibrate(prepared, [(X, 0.5)])
    for module in (prepared, convert_fx(prepared)):
        with pytest.raises(InputError, match="input"):
            module(X, given)


@pytest.mark.parametrize("first", [np.float32(0.5), np.float64(0.5)])
def test_a_numpy_number_as_the_example(first: Any) -> None:
    model = net(FREE["scale between layers"][0])
    prepared = prepare_fx(model, None, (X, first))
    calibrate(prepared, [(X, 0.25), (X, 0.5)])
    assert sqnr(model(X, 0.25), convert_fx(prepared)(X, 0.25)) > 22


def test_an_int_is_no_float() -> None:
    prepared = prepare_fx(net(lambda s, x, n: s.l(x) * n), None, (X, 2))
    calibrate(prepared, [(X, 2)])
    with pytest.raises(InputError, match="must be a number"):
        convert_fx(prepared)(X, 2.5)


def test_numbers_inside_containers_and_defaults() -> None:
    model = net(lambda s, x, d, scale=1.0: s.l(x) * d["w"] * scale)
    prepared = prepare_fx(model, None, (X, {"w": 0.5}), example_kwargs={"scale": 2.0})
    calibrate(prepared, [((X, {"w": 0.5})), ((X, {"w": 0.25}))])
    module = convert_fx(prepared)
    for args, kwargs in (((X, {"w": 0.25}), {}), ((X, {"w": 0.5}), {"scale": 0.5})):
        assert sqnr(model(*args, **kwargs), module(*args, **kwargs)) > 22
    left_out = prepare_fx(model, None, (X, {"w": 0.5}))  # what the examples leave at its default is compiled as it is
    with pytest.raises(InputError, match="holds the argument 'scale' fixed"):
        left_out(X, {"w": 0.5}, scale=2.0)


def test_training_with_a_number() -> None:
    model = net(FREE["scale between layers"][0]).train()
    prepared = prepare_qat_fx(model, None, (X, 0.5))
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    for value in (0.5, 0.25, 1.0):
        optimizer.zero_grad()
        prepared(X, value).square().mean().backward()
        optimizer.step()
    prepared.eval()
    module = convert_fx(prepared)
    for value in (0.5, 1.0):
        assert sqnr(prepared(X, value), module(X, value)) > 30  # the same rounding on both sides but for ties


def test_float_settings_of_a_qconfig_free_model_are_exact() -> None:
    from qcompiler import QConfigMapping

    model = net(FREE["mixing"][0])
    prepared = prepare_fx(model, QConfigMapping().set_global(None), (X, 0.3))
    module = convert_fx(prepared)
    for value in (0.3, 0.9):
        assert torch.equal(module(X, value), model(X, value))


class Unfollowed(torch.autograd.Function):
    """A function that no trace follows: the module that calls it is a float leaf."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()


def test_looking_at_the_example_changes_neither_model_nor_inputs() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: Tensor
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            return Unfollowed.apply(x) + 0 * self.seen  # type: ignore[no-any-return, no-untyped-call]

    class Model(Net):
        def __init__(self) -> None:
            super().__init__()
            self.counts = Counts()

        def forward(self, x: Tensor, a: float) -> Tensor:
            return self.l(self.counts(x)).mul_(a)

    model, x = Model().eval(), X.clone()
    prepared = prepare_fx(model, None, (x, 0.5))
    assert torch.equal(x, X) and float(model.counts.seen) == 0 and float(prepared.get_buffer("counts.seen")) == 0
    assert not [r for r in remarks(prepared) if r.code == "guard"]


def one_value(forward: Callable[..., Any], calls: list[Any], trains: bool = False) -> list[str]:
    model = net(forward)
    prepared: Any = (prepare_qat_fx if trains else prepare_fx)(model.train(trains), None, calls[0])
    for call in calls:
        prepared(*call)
    return [remark.text for remark in remarks(convert_fx(prepared)) if remark.code == "one-value"]


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("value", [2.0, 3, torch.tensor(2.0), torch.tensor([2.0])])
def test_a_number_that_calibration_saw_at_one_value_alone_is_noted(value: Any, trains: bool) -> None:
    """Larger ones leave the ranges behind it."""
    x = torch.randn(4, 8)

    def scaled(s: Any, x: Tensor, a: Any) -> Tensor:
        return s.m(s.l(x) * a)  # type: ignore[no-any-return]

    (text,) = one_value(scaled, [(x, value), (x + 1, value)], trains)
    assert text.startswith(f"calibration saw a at {float(value):g} alone")
    assert not one_value(scaled, [(x, value), (x, value * 4)], trains)


@pytest.mark.parametrize("forward", [lambda s, x, a: s.l(x) * a, lambda s, x, a: s.m(s.l(x)) + a, lambda s, x, a: (s.l(x), a)])
def test_a_number_that_no_range_depends_on_is_not(forward: Callable[..., Any]) -> None:
    assert not one_value(forward, [(torch.randn(4, 8), 2.0)])
