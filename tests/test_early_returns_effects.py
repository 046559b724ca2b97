"""What a way of a condition on data changes besides tensors: containers and attributes are as eager leaves them, or the trace refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler import fuse_fx
from qcompiler.errors import TraceError


class Hold(nn.Module):
    last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        return x * 2


def dict_item(s: Any, x: Tensor) -> Tensor:
    d = {"a": x}
    if x.sum() > 0:
        d["a"] = x * 2
        return d["a"]
    return d["a"]


def list_grown(s: Any, x: Tensor) -> Tensor:
    out = [x]
    if x.sum() > 0:
        out += [x * 2]
        return torch.cat(out)
    out.append(x * 3)
    return torch.cat(out)


def taken(acc: list[Tensor], x: Tensor) -> Tensor:
    if x.sum() > 0:
        acc += [x]
        return x
    return x * 2


def callers_list(s: Any, x: Tensor) -> Tensor:
    acc = [x]
    y = taken(acc, x)
    return y + sum(acc)


def behind(acc: list[Tensor], x: Tensor) -> Tensor:
    if x.sum() > 0:
        return x
    acc += [x]
    return x * 2


def callers_list_behind(s: Any, x: Tensor) -> Tensor:
    acc = [x]
    y = behind(acc, x)
    return y + sum(acc)


def held(s: Any, x: Tensor) -> Tensor:
    if x.sum() > 0:
        return s.child(x)  # type: ignore[no-any-return]
    return x


def childs_attribute(s: Any, x: Tensor) -> Tensor:
    s.child.last = x * 7
    y = held(s, x)
    return y + s.child.last  # type: ignore[no-any-return]


def chosen_attribute(s: Any, x: Tensor) -> Tensor:
    s.child.last = x * 7
    y = s.child(x) if x.sum() > 0 else x
    return y + s.child.last  # type: ignore[no-any-return]


def early_exits(s: Any, x: Tensor) -> Tensor:
    outs: list[Tensor] = []
    for _ in range(3):
        x = s.lin(x)
        outs.append(x)
        if x.abs().max() < 0.1:
            return outs[-1]
    return outs[0] + outs[-1]


class Net(nn.Module):
    def __init__(self, how: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.how, self.lin, self.child = how, nn.Linear(4, 4), Hold()

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, self.lin(x))


@pytest.mark.parametrize("how", [dict_item, list_grown, callers_list, callers_list_behind, childs_attribute, chosen_attribute, early_exits])
def test_equal_to_eager_or_refused(how: Callable[[Any, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Net(how).eval()
    xs = [torch.randn(2, 4) * scale for scale in (1.0, 0.01) for _ in range(6)]
    try:
        graph = fuse_fx(model, (xs[0],))
    except TraceError as error:
        assert how in (callers_list, callers_list_behind, childs_attribute, chosen_attribute), error
        assert "test_early_returns_effects.py" in str(error)
        return
    with torch.no_grad():
        for x in xs:
            torch.testing.assert_close(graph(x), model(x), rtol=1e-5, atol=1e-6)
