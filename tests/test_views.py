"""Views of traced tensors: what is changed in place through one of them, every other one sees, as in eager mode."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.errors import TraceError
from qcompiler.trace import TraceOptions, trace

View = Callable[[Tensor], Tensor]
SAME = (nn.Identity(), nn.Dropout().eval(), nn.Dropout1d().eval(), nn.AlphaDropout().eval())  # modules that give what they were given
VIEWS: dict[str, View] = {  # of (N, 4, 6)
    "index": lambda x: x[:, 1],
    "steps": lambda x: x[:, ::2, 1:-1],
    "ellipsis": lambda x: x[..., -1],
    "select": lambda x: x.select(1, 0),
    "select by name": lambda x: torch.select(x, dim=-1, index=-2),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "narrow of a size": lambda x: x.narrow(2, x.size(2) - 2, 2),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: torch.split(x, 4, dim=-1)[0],
    "pieces": lambda x: x.split([1, x.size(1) - 1], 1)[1],
    "tensor_split": lambda x: x.tensor_split(3, 2)[2],
    "unbind": lambda x: x.unbind(1)[2],
    "transpose": lambda x: x.transpose(1, 2),
    "mT": lambda x: x.mT,
    "permute": lambda x: x.permute(2, 0, 1),
    "movedim": lambda x: x.movedim(2, 0),
    "flatten": lambda x: x.flatten(1),
    "view": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: x.reshape(x.size(0), 2, 2, -1),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "there and back": lambda x: x.unsqueeze(1).squeeze(1),
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "part of tokens": lambda x: x.transpose(1, 2)[:, 1:].select(1, 0),
    "detach": lambda x: x.detach(),
    "contiguous": lambda x: x.contiguous(),
    **{type(module).__name__: lambda x, module=module: module(x) for module in SAME},  # type: ignore[misc]
    "module of a view": lambda x: SAME[0](x[:, 1:3].transpose(1, 2)),
    "view of a module": lambda x: SAME[1](x)[:, 1],
    "dropout": lambda x: nn.functional.dropout(x[:, 1:], 0.5, False),
    "positive": lambda x: +x[:, 1:], "data": lambda x: x[:, :2].data, "copied": lambda x: copy.copy(x.mT),
}  # fmt: skip
CHANGES: dict[str, Callable[[Tensor], object]] = {
    "mul_": lambda y: y.mul_(0.5),
    "relu_": torch.relu_,
    "assignment": lambda y: y.__setitem__((slice(None), 0), 0.25),
}


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.function, self.last = nn.Conv1d(3, 4, 1), function, nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> object:
        y = self.first(x)
        return self.function(y), self.last(y)


def is_leaf(module: nn.Module, path: str) -> bool:
    return isinstance(module, nn.Conv1d)


def same(function: Callable[[Tensor], object]) -> None:
    model = Net(function).eval()
    x = torch.randn(2, 3, 6)
    graph = trace(model, (x,), options=TraceOptions(is_leaf)).graph_module
    for given in (x, torch.randn(3, 3, 6), torch.randn(2, 3, 8)):
        with torch.no_grad():  # autograd refuses to change one of several pieces
            expected, found = model(given), graph(given)
        for a, b in zip(torch.utils._pytree.tree_leaves(expected), torch.utils._pytree.tree_leaves(found), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("view", VIEWS)
def test_a_change_of_a_view_is_one_of_what_it_is_a_view_of(view: str, change: str) -> None:
    def function(y: Tensor) -> tuple[Tensor, Tensor]:
        v = VIEWS[view](y)
        CHANGES[change](v)
        return v * 2, y + 1

    same(function)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_sees_the_change_of_what_it_is_a_view_of(view: str, change: str) -> None:
    def function(y: Tensor) -> tuple[Tensor, Tensor]:
        v = VIEWS[view](y)
        CHANGES[change](y)
        return v * 2, y + 1

    same(function)


@pytest.mark.parametrize(
    ("one", "other"),
    list(product(["index", "tokens", "chunk", "there and back"], ["steps", "unbind", "permute", "part of tokens", "detach"])),
)
def test_two_views_of_one_tensor_see_the_changes_of_each_other(one: str, other: str) -> None:
    def function(y: Tensor) -> tuple[Tensor, ...]:
        a, b = VIEWS[one](y), VIEWS[other](y)
        a.mul_(0.5)
        c = b + 1
        b.add_(1)
        y.mul_(2)
        return a + 0, b + 0, c

    same(function)


def test_a_view_of_a_view_and_the_view_between_them() -> None:
    def function(y: Tensor) -> tuple[Tensor, ...]:
        tokens = y.transpose(1, 2)
        half = tokens[:, :3]
        head = half.unflatten(2, (2, 2)).select(2, 0)
        head.mul_(3)
        half.relu_()
        tokens[:, -1] = 1.0
        return head + 0, half + 0, tokens + 0

    same(function)


def test_changes_in_a_loop_over_pieces() -> None:
    def function(y: Tensor) -> tuple[Tensor, ...]:
        pieces = y.chunk(4, 1)
        for i, piece in enumerate(pieces):
            piece.mul_(i + 1)
        return (*(piece + 0 for piece in pieces),)

    same(function)


def test_a_change_under_a_condition_on_data() -> None:
    def function(y: Tensor) -> tuple[Tensor, ...]:
        tokens = y.flatten(2).transpose(1, 2)
        if y.sum() > 0:
            tokens.mul_(2)
        y.add_(1)
        return tokens + 0, y + 0

    same(function)


def test_what_was_reshaped_in_place_is_no_view_any_more() -> None:
    def function(y: Tensor) -> tuple[Tensor, ...]:
        v = y + 1
        w = v[:, 1]
        v.transpose_(1, 2)
        w.mul_(2)
        return w + 0, y + 0

    same(function)


def test_what_nobody_can_undo_is_refused() -> None:
    def function(y: Tensor) -> Tensor:
        y.diagonal(0, 1, 2).mul_(2)
        return y + 1

    with pytest.raises(TraceError, match="another view of its memory"):
        trace(Net(function).eval(), (torch.randn(2, 3, 6),), options=TraceOptions(is_leaf))


class Dropping(nn.Module):
    def __init__(self, p: float, use: Callable[[Dropping, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.drop, self.use, self.last = nn.Linear(8, 8), nn.Dropout(p), use, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.use(self, self.first(x)))


def _use(both: bool, dropped: Callable[[Dropping, Tensor], Tensor], of_result: bool = True) -> Callable[[Dropping, Tensor], Tensor]:
    def use(net: Dropping, y: Tensor) -> Tensor:
        d = dropped(net, y)
        (d if of_result else y).add_(1)
        return d + y if both else d * 2

    return use


DROPPED: dict[str, Callable[[Dropping, Tensor], Tensor]] = {
    "module": lambda net, y: net.drop(y), "function": lambda net, y: nn.functional.dropout(y, 0.5, net.training),
    "keyword": lambda net, y: nn.functional.alpha_dropout(y, training=net.training), "part": lambda net, y: net.drop(y[:, :4])[:, :1],
}  # fmt: skip


@pytest.mark.parametrize("of_result", [False, True])
@pytest.mark.parametrize("name", DROPPED)
def test_what_a_dropout_shares_in_one_mode_alone_is_refused(name: str, of_result: bool) -> None:
    """It gives its argument in evaluation, and a copy in training."""
    model = Dropping(0.5, _use(True, DROPPED[name], of_result)).train()
    with pytest.raises(TraceError, match=r"in evaluation mode alone .*in `return d \+ y"):
        qcompiler.prepare_qat_fx(model, None, (torch.randn(4, 8),))
    qcompiler.prepare_fx(model.eval(), None, (torch.randn(4, 8),))


@pytest.mark.parametrize("p", [0.5, 0.0])
def test_a_dropout_that_is_changed_in_place_trains(p: float) -> None:
    """Where nothing else reads the memory, or nothing is dropped."""
    model = Dropping(p, _use(p == 0, DROPPED["module"])).train()
    x = torch.randn(256, 8)
    prepared = qcompiler.prepare_qat_fx(model, None, (x,))
    for mode in (True, False):
        torch.manual_seed(1)
        expected = model.train(mode)(x)
        torch.manual_seed(1)
        assert (prepared.train(mode)(x) - expected).norm() < 0.05 * expected.norm()  # 26 dB


@pytest.mark.parametrize("view", ["select", "tokens", "chunk"])
def test_the_network_around_is_int8(view: str) -> None:
    def function(y: Tensor) -> Tensor:
        VIEWS[view](y).mul_(0.5)
        return y + 1

    model = Net(function).eval()
    x = torch.randn(2, 3, 6)
    small = qcompiler.quantize(model, [x], progress=False)
    assert [row.int8 for row in qcompiler.explain(small).rows if row.op == "conv1d"] == [True, True]
    assert qcompiler.debug.compare(model, small, [x]).output > 25
