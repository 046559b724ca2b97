"""A converted model whose forward gives quantized tensors to float code: which module, which line, what is missing."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler import quantization as Q
from qcompiler.errors import InputError

Ending = Callable[["Block", Tensor, Tensor], Tensor]


class Block(nn.Module):
    def __init__(self, ending: Ending) -> None:
        super().__init__()
        self.conv, self.ending = nn.Conv2d(4, 4, 1), ending

    def forward(self, x: Tensor) -> Tensor:
        return self.ending(self, self.conv(x), x)


class Net(nn.Module):
    def __init__(self, ending: Ending = lambda block, y, x: y) -> None:
        super().__init__()
        self.quant, self.dequant = Q.QuantStub(), Q.DeQuantStub()
        self.blocks = nn.Sequential(nn.Conv2d(3, 4, 1), Block(ending))

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.blocks(self.quant(x)))


X = torch.linspace(-1, 1, 96).reshape(2, 3, 4, 4)


def converted(model: nn.Module, *no_qconfig: str) -> nn.Module:
    model.eval().qconfig = Q.get_default_qconfig("x86")
    for path in no_qconfig:
        model.get_submodule(path).qconfig = None
    prepared = Q.prepare(model)
    prepared(X)
    return Q.convert(prepared)


def in_place(block: Block, y: Tensor, x: Tensor) -> Tensor:
    y += x
    return y


OPERATORS: dict[str, tuple[Ending, str, str]] = {
    "add": (lambda b, y, x: y + x, "add", "FloatFunctional"),
    "add_": (in_place, "add", "FloatFunctional"),
    "torch.add": (lambda b, y, x: torch.add(y, x), "add", "FloatFunctional"),
    "with a number": (lambda b, y, x: y + 1.0, "y + 1.0", "FloatFunctional"),
    "with floats": (lambda b, y, x: y + torch.ones(()), "this", "FloatFunctional"),
    "mul": (lambda b, y, x: y * x, "mul", "FloatFunctional"),
    "matmul": (lambda b, y, x: y @ x.transpose(2, 3), "bmm", "FloatFunctional"),
    "softmax": (lambda b, y, x: y.softmax(1), "softmax", "DeQuantStub"),
    "times two": (lambda b, y, x: y * 2, "y * 2", "FloatFunctional"),
    "exp": (lambda b, y, x: y.exp(), "exp", "DeQuantStub"),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_on_quantized_tensors(name: str) -> None:
    ending, operation, missing = OPERATORS[name]
    with pytest.raises(InputError) as caught:
        converted(Net(ending))(X)
    error, (lines, first) = caught.value, inspect.getsourcelines(ending)
    assert error.code == "quantized-input" and operation in error.message and missing in str(error.hint)
    assert error.where.module_path == "blocks.1"
    file, _, line = str(error.where.source).rpartition(":")
    assert file == __file__ and first <= int(line) < first + len(lines)
    assert isinstance(error.__cause__, RuntimeError) and "Could not run" not in str(error)


@pytest.mark.parametrize("path", ["blocks.0", "blocks.1.conv"])
def test_a_float_module_is_given_a_quantized_tensor(path: str) -> None:
    with pytest.raises(InputError, match="this Conv2d is float, and was given a quantized tensor") as caught:
        converted(Net(), path)(X)
    assert caught.value.where.module_path == path and "DeQuantStub" in str(caught.value.hint)
    assert str(caught.value.where.source).startswith(__file__)


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.BatchNorm2d(4), nn.GRU(4, 4), nn.Softmax(-1), nn.CrossMapLRN2d(2)],
                         ids=lambda m: type(m).__name__)  # fmt: skip
def test_other_float_modules(layer: nn.Module) -> None:
    model = nn.Sequential(Q.QuantStub(), nn.Conv2d(3, 4, 1), nn.Flatten(0, 1), nn.Identity())
    model = nn.Sequential(model[:2], layer) if isinstance(layer, (nn.BatchNorm2d, nn.CrossMapLRN2d)) else nn.Sequential(model, layer)
    with pytest.raises(InputError) as caught:
        converted(model, "1")(X)
    assert caught.value.where.module_path == "1" and caught.value.code == "quantized-input"


def test_a_missing_quant_stub_has_the_line_too() -> None:
    class Unquantized(Net):
        def forward(self, x: Tensor) -> Tensor:
            if x.is_quantized or x.mean() > 100:
                return self.dequant(self.blocks(x))  # this line
            return self.dequant(self.blocks(self.quant(x)))

    with pytest.raises(InputError, match="not a quantized one") as caught:
        converted(Unquantized())(X + 200)
    assert caught.value.where.module_path == "blocks.0"
    line = int(str(caught.value.where.source).rpartition(":")[2])
    assert "# this line" in inspect.getsource(inspect.getmodule(Unquantized)).splitlines()[line - 1]  # type: ignore[arg-type]


def test_the_users_own_errors_stay_as_they_are() -> None:
    class Mine(Exception):
        pass

    def fail(block: Block, y: Tensor, x: Tensor) -> Tensor:
        if y.is_quantized:
            raise Mine("QuantizedCPU")
        return y

    def refuse(block: Block, y: Tensor, x: Tensor) -> Tensor:
        if y.is_quantized:
            raise ValueError("only square images")
        return y

    for ending, kind in ((fail, Mine), (refuse, ValueError)):
        with pytest.raises(kind) as caught:
            converted(Net(ending))(X)
        assert type(caught.value) is kind


class Stop(RuntimeError):
    """How a hook ends a forward early."""


@pytest.mark.parametrize("error", [Stop("enough"), RuntimeError("enough"), torch.OutOfMemoryError("CUDA out of memory")], ids=repr)
@pytest.mark.parametrize("make", [converted, Q.prepare])
def test_what_hooks_raise_stays_as_it_is(make: Callable[[nn.Module], nn.Module], error: Exception) -> None:
    def hook(module: nn.Module, *values: Any) -> None:
        raise error

    model = Net().eval()
    model.qconfig = Q.get_default_qconfig("x86")  # type: ignore[assignment]
    made = make(model)
    made.get_submodule("blocks.0").register_forward_hook(hook)
    with pytest.raises(RuntimeError) as caught:
        made(X)
    assert caught.value is error


def test_copies_files_and_scripts_work_as_before() -> None:
    model = converted(Plain())
    wanted = model(X)
    for made in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.jit.script(model), traced(model)):
        assert torch.equal(made(X), wanted)


def traced(model: nn.Module) -> Any:
    return torch.jit.trace(model, (X,))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.conv, self.dequant = Q.QuantStub(), nn.Conv2d(3, 4, 1), Q.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.conv(self.quant(x)))
