"""Code that nobody follows, and calls that do not say what they change: what they do to the memory of others is seen, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.errors import TraceError

LIBRARY = torch.library.Library("qcompiler_tests_borrowed", "DEF")  # as long as the tests run
LIBRARY.define("change(Tensor(a!) x) -> Tensor")
LIBRARY.impl("change", lambda x: x.add_(1).clone(), "CPU")


class Changes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x.add_(1)
        return x * 2


class Gives(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :4]


CHANGES, GIVES = torch.jit.script(Changes()), torch.jit.script(Gives())  # a global of a scripted module is no state of a model


@torch.fx.wrap
def changing(x: Tensor) -> Tensor:
    x.add_(1)
    return torch.from_numpy(x.numpy(force=True) * 2)


@torch.fx.wrap
def giving(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy(force=True))


class Net(nn.Module):
    def __init__(self, use: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.changes, self.gives, self.last, self.use = nn.Linear(8, 8), CHANGES, GIVES, nn.Linear(8, 8), use

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.use(self, self.first(x)))


def _behind(change: Callable[[Net, Tensor], object], read: str = "all") -> Callable[[Net, Tensor], Tensor]:
    """A change, and then a read of the tensor, or of a view of it."""

    def use(net: Net, y: Tensor) -> Tensor:
        view = y[:, :4]
        result = change(net, y)
        return y * 2 if read == "all" else torch.cat([view, view], 1) if read == "view" else (result + 0)  # type: ignore[operator]

    return use


def _pair(net: Net, y: Tensor) -> object:
    return torch._foreach_add_([y[:, :4], y[:, 4:]], 1.0)


REFUSED: dict[str, tuple[Callable[[Net, Tensor], object], str]] = {
    "module": (lambda net, y: net.changes(y), "changed in place by code that is not followed"),
    "wrapped": (lambda net, y: changing(y), "changed in place by code that is not followed"),
    "given by a module": (lambda net, y: net.gives(y).mul_(2), "may share its memory with one that was changed in place"),
    "given by a wrapped one": (lambda net, y: giving(y).mul_(2), "may share its memory with one that was changed in place"),
    "several": (_pair, "changes a tensor in place as its name does not say"),
    "custom": (lambda net, y: torch.ops.qcompiler_tests_borrowed.change(y), "changes a tensor in place as its name does not say"),
    "overload": (lambda net, y: torch.ops.aten.mul_.Tensor(y, y), "changes a tensor in place as its name does not say"),
}


@pytest.mark.parametrize("read", ["all", "view"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_change_that_the_graph_would_not_have_is_refused(name: str, read: str) -> None:
    change, message = REFUSED[name]
    with pytest.raises(TraceError, match=f"{message} .*`"):
        qcompiler.prepare_fx(Net(_behind(change, read)).eval(), None, (torch.randn(4, 8),))


@pytest.mark.parametrize("change", [lambda net, y: net.changes(y), lambda net, y: changing(y)], ids=["module", "wrapped"])
def test_the_result_alone_may_be_read(change: Callable[[Net, Tensor], Tensor]) -> None:
    """It runs on a copy: the values before it, and the caller's tensors, are not changed."""

    def use(net: Net, y: Tensor) -> Tensor:
        before = y * 2
        return before + change(net, y)

    model, x = Net(use).eval(), torch.randn(64, 8)
    with torch.no_grad():
        small = qcompiler.quantize(model, [x], progress=False)
        assert (small(x) - model(x)).norm() < 0.05 * model(x).norm()  # 26 dB
        before = x.clone()
        qcompiler.quantize(nn.Sequential(CHANGES, nn.Linear(8, 8)).eval(), [x], progress=False)(x)
        assert torch.equal(before, x)


def test_bits_are_read_in_floats() -> None:
    """`view(dtype)` is no `reshape`."""
    model, x = Net(lambda net, y: (y.view(torch.int32) & 0x7FFFFFFF).view(torch.float32)).eval(), torch.randn(64, 8)
    small = qcompiler.quantize(model, [x], progress=False)
    assert qcompiler.debug.compare(model, small, [x]).output > 25
    assert any("view(dtype)" in remark.text for remark in qcompiler.remarks(small))
