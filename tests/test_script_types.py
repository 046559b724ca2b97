"""Arguments and results that torch.jit.script has a type for, and one error for those that it has none for."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.errors import ConfigError
from tests.flow import randn
from tests.test_arguments import Counted, Pair, same

A, B = randn(4, 8), randn(4, 8, seed=1)
Untyped = collections.namedtuple("Untyped", "a b")


class Held(NamedTuple):
    a: list[Tensor]
    b: dict[str, Tensor] | None = None


class Anything(NamedTuple):
    a: Tensor
    b: Any


class Elsewhere(NamedTuple):
    a: Unknown  # type: ignore[name-defined]  # noqa: F821


class Two(NamedTuple):
    a: tuple[Tensor, Tensor]
    b: Pair


class Net(nn.Module):
    """A layer, an argument whose default is None, and a result that a test makes of both."""

    def __init__(self, result: Callable[[Tensor, Any], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l, self.result = nn.Linear(8, 8), result

    def forward(self, x: Tensor, y: Any = None, *, key: Any = None) -> Any:
        return self.result(self.l(x), y if key is None else key)


def compiled(result: Callable[[Tensor, Any], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    prepared = qcompiler.prepare_fx(Net(result).eval(), None, args, example_kwargs=kwargs)
    prepared(*args, **kwargs)
    return qcompiler.convert_fx(prepared)


@pytest.mark.parametrize("value", [True, False, "a", 3, 0.5], ids=str)
@pytest.mark.parametrize("by_key", [False, True])
def test_a_flag_in_the_place_of_none(value: object, by_key: bool) -> None:
    """The script takes what the example gave; a call without it is torch's error."""
    args, kwargs = ((A,), {"key": value}) if by_key else ((A, value), {})
    module = compiled(lambda x, y: x * 2 if y == value else x, args, kwargs)
    script = torch.jit.script(module)
    assert torch.equal(script(*args, **kwargs), module(*args, **kwargs))
    with pytest.raises(Exception, match=r"None|holds"):
        script(A)


GOOD: dict[str, Callable[[Tensor, Any], Any]] = {
    "containers as declared": lambda x, y: Held([x], {"a": x}),
    "None as declared": lambda x, y: Held([x, x]),
    "tuples as declared": lambda x, y: Two((x, x), Pair(x, x)),
    "number as declared": lambda x, y: Counted(x, 3),
    "no types": lambda x, y: Untyped(x, x),
    "keys": lambda x, y: ({0: x, 1: x}, {"a": x}),
    "list of named tuples": lambda x, y: [Pair(x, x), Pair(x, x)],
}


@pytest.mark.parametrize("case", GOOD)
def test_results_that_have_a_type(case: str) -> None:
    module = compiled(GOOD[case], (A,), {})
    assert same(torch.jit.script(module)(A), module(A))


@pytest.mark.parametrize(("result", "named"), [
    (lambda x, y: Pair(x, {"a": x}), "class Pair, which declares b as Tensor"),
    (lambda x, y: Pair(x, y), "class Pair, which declares b as Tensor"),
    (lambda x, y: Counted(x, 3.0), "class Counted, which declares n as int"),
    (lambda x, y: Counted(x, True), "class Counted, which declares n as int"),
    (lambda x, y: Held((x,), {"a": x}), "class Held, which declares a as list"),
    (lambda x, y: Held([[x]], {"a": x}), "class Held, which declares a as list"),
    (lambda x, y: Held([x], {1: x}), "class Held, which declares b as Optional"),
    (lambda x, y: Two((x, x, x), Pair(x, x)), "class Two, which declares a as tuple"),
    (lambda x, y: Two((x, x), (x, x)), "class Two, which declares b as Pair"),
    (lambda x, y: Untyped(x, 3), "class Untyped, which declares b as Tensor"),
    (lambda x, y: Anything(x, 3), "class Anything, which declares b as Any"),
    (lambda x, y: Anything(x, x), "class Anything, which declares b as Any"),
    (lambda x, y: Elsewhere(x), "class Elsewhere, whose types cannot be read: NameError"),
    (lambda x, y: {0: x, "a": x}, "a dict whose keys"),
    (lambda x, y: {(0, 1): x}, "a dict whose keys"),
    (lambda x, y: (x, slice(1)), "that is a slice"),
])  # fmt: skip
def test_what_torchscript_has_no_type_for_is_one_error(result: Callable[[Tensor, Any], Any], named: str) -> None:
    module = compiled(result, (A,), {})
    assert same(module(A), module(A))
    with pytest.raises(ConfigError, match=named) as caught:
        torch.jit.script(module)
    assert caught.value.hint


class OneChannel(nn.Module):
    """A convolution of one channel, which lies in memory with channels innermost or not, and a float op that reads that."""

    def __init__(self, dims: int, minus: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.minus = (nn.Conv2d, nn.Conv3d)[dims - 2](3, 1, 1), minus

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.minus(self.conv(x) * 0.5)
        return nn.functional.group_norm(y, 1), nn.functional.instance_norm(y), y


MINUS: dict[str, Callable[[Tensor], Tensor]] = {
    "number": lambda y: 2 - y, "float": lambda y: 1.5 - y, "torch.sub": lambda y: torch.sub(2, y),
    "alpha": lambda y: torch.sub(2, y, alpha=3), "rsub": lambda y: torch.rsub(y, 2), "clamped": lambda y: torch.relu(2 - y),
    "from the right": lambda y: y - 2, "neg": lambda y: -y,
}  # fmt: skip


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("minus", MINUS)
def test_a_number_less_a_value_lies_as_the_value_does(minus: str, dims: int) -> None:
    model, x = OneChannel(dims, MINUS[minus]).eval(), randn(2, 3, *(9,) * dims)
    module = qcompiler.quantize(model, [x], progress=False)
    script = torch.jit.script(module)
    for one, other in zip(module(x), script(x), strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()
