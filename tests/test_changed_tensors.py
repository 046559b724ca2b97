"""A converted module computes with the tensors that it has: what is assigned, or changed in place, takes effect at the next call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.errors import ConfigError
from qcompiler.executable.tensors import find, find_submodule
from qcompiler.inputs.input_text import described
from tests.flow import randn, randomized
from tests.test_native_export import build, computed

BACKENDS = ("torch", "native")
X = randn(2, 3, 8, 8)


class Net(nn.Module):
    """Tensors of all kinds: weights of int8 ops, of float ones, values beside them, a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(3, 1, 1))
        self.register_buffer("mask", torch.rand(6, 6) > 0.5)
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.LayerNorm(6), nn.Conv2d(8, 4, 1)
        self.own = nn.Parameter(torch.randn(8, 6, 6))
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.where(self.mask, self.conv(x - self.mean) + self.own, 0.0)
        return self.head(self.norm(y))  # type: ignore[no-any-return]


def compiled(backend: str, model: nn.Module | None = None) -> Any:
    torch.manual_seed(0)
    return qcompiler.quantize(randomized(Net()) if model is None else model, [(X,)], backend=backend, progress=False)


def changed(module: nn.Module, path: str) -> Tensor:
    held = find(module, path).detach()
    return ~held if held.dtype is torch.bool else -held if held.dtype is torch.int8 else held * 0.5


def assign(module: nn.Module, path: str, value: Tensor) -> None:
    scope, _, name = path.rpartition(".")
    setattr(find_submodule(module, scope), name, value)


def assign_parameter(module: nn.Module, path: str, value: Tensor) -> None:
    assign(module, path, nn.Parameter(value, requires_grad=False))


def in_place(module: nn.Module, path: str, value: Tensor) -> None:
    with torch.no_grad():
        find(module, path).copy_(value)


def loaded(module: nn.Module, path: str, value: Tensor) -> None:
    module.load_state_dict(module.state_dict() | {path: value})


PATHS = ("mean", "mask", "own", "conv.weight", "norm.weight", "norm.bias", "head.bias", "head.weight_scale")


@pytest.mark.parametrize("how", [assign, assign_parameter, in_place], ids=lambda how: how.__name__)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_next_call_computes_with_it(backend: str, path: str, how: Callable[[nn.Module, str, Tensor], None]) -> None:
    module = compiled(backend)
    other, value, before = copy.deepcopy(module), changed(module, path), module(X)
    how(module, path, value)
    expected = copy.deepcopy(other)
    loaded(expected, path, value)
    assert not torch.equal(module(X), before) and torch.equal(module(X), expected(X))
    assert torch.equal(other(X), before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_built_anew_while_nothing_changes(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = compiled(backend)
    built: list[object] = []
    monkeypatch.setattr(type(module), "rebuild", lambda self: built.append(self))
    module.tag, module.mine = "a text", torch.ones(2)  # the user's own: the program reads neither
    for n in (1, 2, 5):
        module(randn(n, 3, 8, 8))
    assert not built
    in_place(module, "own", changed(module, "own"))
    module(X)
    assert built == [module]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [torch.zeros(8, 6, 7), torch.zeros(8, 6, 6).int(), torch.zeros(8, 6, 6).double()], ids=described)
def test_what_does_not_fit_is_an_error(backend: str, value: Tensor) -> None:
    module = compiled(backend)
    before, held = module(X), module.own
    module.own = value
    with pytest.raises(ConfigError, match="own, which was assigned"):
        module(X)
    module.own = held
    assert torch.equal(module(X), before)


def test_exported_c_has_the_tensors_of_now(tmp_path: Path) -> None:
    module = compiled("native")
    in_place(module, "own", changed(module, "own"))
    folder = qcompiler.export_c(module, tmp_path / "c", name="net")
    _, results = computed(build(folder, "net"), "net", [X])
    assert np.array_equal(results, module(X).numpy().reshape(-1))


class Masked(Net):
    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        y = self.conv(x - self.mean) + self.own
        return self.head(self.norm(y if scale is None else y * scale))  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", ["own", "norm.weight", "conv.weight"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_all_forms_of_a_call_follow(backend: str, path: str) -> None:
    torch.manual_seed(0)
    forms: list[Any] = [{}, {"scale": torch.ones(6)}]
    data = [(X,), (X, torch.ones(6))]
    module: Any = qcompiler.quantize(randomized(Masked()), data, example_kwargs=forms, backend=backend, progress=False)
    other = copy.deepcopy(module)
    value = changed(module.call_forms[0], path)
    assign(module, path, value) if path == "own" else assign(module.call_forms[0], path, value)
    loaded(other, path, value)
    for kwargs in forms:
        assert torch.equal(module(X, **kwargs), other(X, **kwargs))
    assert torch.equal(module.state_dict()[path], value)


class Counter(nn.Module):
    """What forward itself changes is no reason to build anew."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x) + self.calls  # type: ignore[no-any-return]


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_are_left_to_forward(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = compiled(backend, Counter().eval())
    monkeypatch.setattr(type(module), "rebuild", lambda self: pytest.fail("built anew"))
    first = module(X)
    module.calls = torch.zeros(1)
    assert torch.equal(module(X), first) and float(module.calls) == 1.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_of_inference_mode_are_taken(backend: str) -> None:
    """torch counts no changes of them, so that one that is changed in place takes rebuild()."""
    with torch.inference_mode():
        module = copy.deepcopy(compiled(backend))
        before = module(X)
        assign(module, "own", changed(module, "own"))
        assert not torch.equal(module(X), before)
