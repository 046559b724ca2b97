"""What is a view at some sizes or layouts and a copy at others: a change in place is seen where eager mode sees it, or a call refused."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import qcompiler
from qcompiler.errors import InputError, TraceError
from qcompiler.trace import TraceOptions, trace

View = Callable[[Tensor], Tensor]
MODULES = {"flat": nn.Flatten(), "all": nn.Flatten(0), "rows": nn.Flatten(0, 1)}
ALWAYS: dict[str, View] = {  # of (N, 4, T) that a convolution gave: a view at all sizes, or a copy at all
    "flatten": lambda x: x.flatten(1), "module": lambda x: MODULES["flat"](x), "function": lambda x: torch.flatten(x, 1),
    "split": lambda x: x.reshape(x.size(0), 2, 2, -1), "the same": lambda x: x.contiguous(), "of rows": lambda x: x[:1].contiguous(),
    "squeezed": lambda x: x.unsqueeze(1).squeeze(1), "no permutation": lambda x: x.permute(0, 1, 2).reshape(-1),
    "two of four": lambda x: x[0].transpose(0, 1)[:2].unsqueeze(0).contiguous()[:, :, :2].narrow(1, 0, 2),
    "module of rows": lambda x: MODULES["rows"](x),
    "keyword": lambda x: torch.reshape(input=x, shape=(x.size(0), -1)),
    "channels_last": lambda x: x.unsqueeze(1).to(memory_format=torch.preserve_format),
}  # fmt: skip
SOMETIMES: dict[str, View] = {  # a copy where no dimension is 1
    "reshape": lambda x: x.transpose(0, 1).reshape(4, -1), "flatten": lambda x: x.transpose(0, 1).flatten(),
    "contiguous": lambda x: x.transpose(0, 1).contiguous(), "ravel": lambda x: x.transpose(0, 1).ravel(),
    "function": lambda x: torch.reshape(x.transpose(0, 1), (-1,)),
    "keywords": lambda x: torch.reshape(input=x.transpose(0, 1), shape=(4, -1)),
    "module": lambda x: MODULES["all"](x.transpose(0, 1)), "reshape_as": lambda x: x.transpose(0, 1).reshape_as(x),
    "mT": lambda x: x.mT.reshape(-1, 4), "T": lambda x: x.permute(2, 1, 0).reshape(x.size(2), -1),
    "rows": lambda x: x.permute(0, 2, 1).reshape(-1, 4),
    "a part": lambda x: x[:, :2].reshape(-1), "every other": lambda x: x[..., ::2].reshape(-1), "one": lambda x: x[..., 0].flatten(),
    "unflatten": lambda x: x.transpose(0, 1).flatten().unflatten(0, (4, -1)),
    "twice": lambda x: x.mT.contiguous().transpose(0, 1).reshape(-1),
    "view of a copy": lambda x: x.transpose(0, 1).contiguous()[:, :1], "expanded": lambda x: x[:, :1].transpose(0, 1).contiguous(),
    "whole of it": lambda x: x[:, :, :6].contiguous(), "narrow": lambda x: x.narrow(2, 0, x.size(2) - 5).contiguous(),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(1, (2, 2)).movedim(2, 3).contiguous())),
    "format": lambda x: x.unsqueeze(2).to(memory_format=torch.channels_last),
    "half": lambda x: x.unsqueeze(3).contiguous(memory_format=torch.channels_last),
    "summed to its size": lambda x: x.sum_to_size(1, x.size(1), x.size(2)),
    "meshed": lambda x: torch.meshgrid(x.transpose(0, 1).reshape(-1), indexing="ij")[0],
}  # fmt: skip
SHORT = {name: SOMETIMES[name] for name in ("reshape", "contiguous", "whole of it", "one", "half")} | {
    "the first": lambda x: x[..., :4][..., :1].contiguous(),
    "halved": lambda x: torch.nn.functional.avg_pool1d(x, 2, ceil_mode=True)[..., :3].contiguous(),
}  # fmt: skip
CAREFUL = ("whole of it", "narrow", "every other", "twice", "format", "half", "reshape_as")  # sizes are held that would not have to be


class Net(nn.Module):
    def __init__(self, view: View, parent: bool, channels: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.view, self.parent, self.last = nn.Conv1d(3, 4, 1), view, parent, nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        v = self.view(y)
        (y if self.parent else v).mul_(2)
        return v + 0, self.last(y)


def is_leaf(module: nn.Module, path: str) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def shares(model: Net, x: Tensor) -> bool:
    with torch.no_grad():
        y = model.first(x)
        return model.view(y).untyped_storage()._cdata == y.untyped_storage()._cdata


def calls() -> Iterator[Tensor]:
    for n, t in ((1, 6), (2, 6), (3, 9), (1, 8), (2, 8), (2, 1)):
        yield torch.randn(n, 3, t)
        yield torch.randn(n, t, 3).transpose(1, 2)
    yield torch.randn(2, 3, 16)[..., ::2]


def same(model: nn.Module, graph: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        for a, b in zip(tree_leaves(model(x)), tree_leaves(graph(x)), strict=True):
            assert torch.equal(a, b)


def _takes(model: nn.Module, x: Tensor) -> bool:
    """Whether the float model runs at this size: some of the calls of the table are too small for some."""
    try:
        copy.deepcopy(model)(x.clone(memory_format=torch.preserve_format))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("parent", [False, True])
@pytest.mark.parametrize("example", [(2, 3, 6), (1, 3, 8)])
@pytest.mark.parametrize("name", SOMETIMES)
def test_a_call_is_right_or_refused(name: str, example: tuple[int, ...], parent: bool) -> None:
    model = Net(SOMETIMES[name], parent).eval()
    given = torch.randn(example)
    graph = trace(model, (given,), options=TraceOptions(is_leaf)).graph_module
    same(model, graph, given)
    for x in filter(lambda x: _takes(model, x), calls()):
        try:
            same(model, graph, x)
        except InputError as error:
            assert "since `" in error.message and "test_views_at_sizes.py" in error.message
            assert name in CAREFUL or not x.is_contiguous() or x.size(2) == 1 or shares(model, x) is not shares(model, given)


@pytest.mark.parametrize("name", SHORT)
def test_an_example_of_length_1(name: str) -> None:
    """Where a slice takes all of it, which it does not of longer ones."""
    model, given = Net(SHORT[name], False).eval(), torch.randn(2, 3, 1)
    graph = trace(model, (given,), options=TraceOptions(is_leaf)).graph_module
    same(model, graph, given)
    for x in calls():
        with contextlib.suppress(InputError):
            same(model, graph, x)


class Spread(nn.Module):
    """Where one pixel has the strides of channels_last, what it is spread to has that layout, and `contiguous` copies it."""

    def __init__(self, first: nn.Module, format: torch.memory_format) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.up, self.format = first, nn.Conv2d(4, 4, 1, padding=1), format

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.up(self.first(x))
        v = y.contiguous(memory_format=self.format)
        v.mul_(2)
        return v + 0, y + 1


def shared(model: Spread, x: Tensor) -> bool:
    with torch.no_grad():
        y = model.up(model.first(x))
        return y.untyped_storage()._cdata == y.contiguous(memory_format=model.format).untyped_storage()._cdata


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("first", [nn.Identity(), nn.ReLU(), nn.AdaptiveAvgPool2d(1)])
def test_strides_of_one_pixel_mean_nothing(first: nn.Module, format: torch.memory_format) -> None:
    """What the strides of a caller or of a kernel decide is refused with the line."""
    model, pixels = Spread(first, format).eval(), [torch.randn(2, 4, 1, 1), torch.randn(2, 1, 1, 4).permute(0, 3, 1, 2)]
    assert shared(model, pixels[0]) is not shared(model, pixels[1]) or type(first) is not nn.Identity
    with pytest.raises(TraceError, match=r"changed in place, by `v = y.contiguous\(memory_format"):
        trace(model, (pixels[0],), options=TraceOptions(is_leaf))
    if type(first) is nn.AdaptiveAvgPool2d:
        return
    given = torch.randn(2, 4, 3, 3)
    graph = trace(model, (given,), options=TraceOptions(is_leaf)).graph_module
    same(model, graph, given)
    for x in pixels:
        with pytest.raises(InputError, match="since `v = y"):
            graph(x)


@pytest.mark.parametrize("parent", [False, True])
@pytest.mark.parametrize("example", [(2, 3, 6), (1, 3, 8)])
@pytest.mark.parametrize("name", ALWAYS)
def test_what_is_one_at_all_sizes_is_not_held(name: str, example: tuple[int, ...], parent: bool) -> None:
    model = Net(ALWAYS[name], parent).eval()
    graph = trace(model, (torch.randn(example),), options=TraceOptions(is_leaf)).graph_module
    for x in calls():
        if x.is_contiguous() and _takes(model, x):
            same(model, graph, x)


class Plus(nn.Module):
    """Its sum lies in memory as its input does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Conv1d(3, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + 1
        v = y.flatten(1)
        v.mul_(2)
        return v + 0, self.last(y)


FLOWS: dict[str, dict[str, Any]] = {"torch": {}, "native": {"backend": "native"}}
REFUSED = {
    "sizes": (lambda: Net(SOMETIMES["reshape"], False), torch.randn(1, 3, 6), "copies in the example and shares memory here"),
    "layout": (Plus, torch.randn(3, 6, 3).transpose(1, 2), "shares memory in the example and copies here"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("flow", FLOWS)
def test_compiled_modules_refuse_in_every_form(case: str, flow: str, tmp_path: Path) -> None:
    make, wrong, text = REFUSED[case]
    model, x = make().eval(), torch.randn(2, 3, 6)
    small = qcompiler.quantize(model, [x], progress=False, **FLOWS[flow])
    assert any(text in remark.text for remark in qcompiler.remarks(small))
    qcompiler.save(small, tmp_path / "m.qc")
    forms = [small, copy.deepcopy(small), qcompiler.load(tmp_path / "m.qc"), *([torch.jit.script(small)] if flow == "torch" else [])]
    for module in forms:
        assert module(torch.randn(3, 3, 9))[1].shape == (3, 4, 9)
        with pytest.raises((InputError, torch.jit.Error), match=text):
            module(wrong)
    assert qcompiler.debug.compare(model, small, [x]).output > 25


def test_training_refuses_as_well() -> None:
    model = Net(SOMETIMES["contiguous"], True)
    prepared = qcompiler.prepare_qat_fx(model.train(), None, (torch.randn(2, 3, 6),))
    sum(part.sum() for part in prepared(torch.randn(3, 3, 8))).backward()
    with pytest.raises(InputError, match="dimension 0 of 'x' other than 1"):
        prepared(torch.randn(1, 3, 6))
