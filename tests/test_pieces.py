"""The number of values that a result comes in, and other structure that Python code reads off sizes, is followed or held."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qcompiler as qc
from qcompiler.config.qconfig import default_dynamic_qconfig
from qcompiler.config.qconfig_mapping import QConfigMapping
from qcompiler.errors import InputError
from qcompiler.trace import TraceOptions, is_guard, trace

Forward = Callable[[Any, torch.Tensor], Any]


def net(forward: Forward) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(8, 8)
            self.wide = nn.Linear(8, 24)
            self.conv = nn.Conv1d(8, 8, 3, padding=1)

    Net.forward = forward  # type: ignore[method-assign]
    torch.manual_seed(0)
    return Net().eval()


def traced(forward: Forward) -> tuple[nn.Module, nn.Module, list[str]]:
    model = net(forward)
    result = trace(model, (torch.randn(2, 6, 8),), options=TraceOptions(lambda module, _: isinstance(module, (nn.Linear, nn.Conv1d))))
    return model, result.graph_module, [remark.kind for remark in result.remarks]


def follows_or_refuses(model: nn.Module, got: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether the call was refused; a result is the model's."""
    x = torch.randn(shape)
    try:
        result = got(x)
    except InputError as error:
        assert "holds" in str(error) and Path(__file__).name in str(error)
        return True
    assert torch.equal(result, model(x))
    return False


ALONG_1: dict[str, Forward] = {
    "unbind": lambda s, x: torch.stack([s.l(t) for t in x.unbind(1)], 1),
    "unbind function": lambda s, x: torch.stack([s.l(t) for t in torch.unbind(x, dim=1)], 1),
    "negative dim": lambda s, x: torch.stack([s.l(t) for t in x.unbind(dim=-2)], 1),
    "star": lambda s, x: s.l(sum([*x.unbind(1)])),
    "len": lambda s, x: s.l(x) / len(x.unbind(1)),
    "reversed": lambda s, x: torch.stack([s.l(t) for t in reversed(x.unbind(1))], 1),
    "enumerate, zip": lambda s, x: sum(s.l(t + u[:, 0]) * i for i, (t, u) in enumerate(zip(x.unbind(1), x.split(1, 1), strict=True))),
    "split": lambda s, x: s.l(sum(t.sum(1) for t in x.split(3, 1))),
    "split function": lambda s, x: s.l(sum(t.sum(1) for t in torch.functional.split(x, 3, dim=1))),
    "unsafe_split": lambda s, x: s.l(sum(t.sum(1) for t in torch.unsafe_split(x, 3, 1))),
    "split by a list": lambda s, x: s.l(sum(t.sum(1) for t in x.split([1] * x.shape[1], 1))),
    "iteration": lambda s, x: torch.stack([s.l(t) for t in x.transpose(0, 1)], 0),
    "iter": lambda s, x: s.l(next(iter(x.transpose(0, 1)))) * len(list(x.transpose(0, 1))),
    "a list of a size": lambda s, x: s.l(x) * len([0] * x.shape[1]),
    "range": lambda s, x: torch.stack([s.l(x[:, i]) for i in range(x.shape[1])], 1),
    "a text": lambda s, x: s.l(x) * {"6": 1.0}.get(f"{x.shape[1]}", 3.0),
    "str": lambda s, x: s.l(x) * {"6": 1.0}.get(str(x.shape[1]), 3.0),
    "percent": lambda s, x: s.l(x) * {"6": 1.0}.get("%s" % x.shape[1], 3.0),  # noqa: UP031
    "join": lambda s, x: s.l(x) * float("".join(map(str, x.shape[1:2]))),
    "a key": lambda s, x: s.l(x) * {6: 1.0}.get(x.shape[1], 3.0),
    "a number's method": lambda s, x: s.l(x) * (x.shape[1] % 7).bit_length(),
    "numpy": lambda s, x: s.l(x) * float(np.sqrt(x.shape[1])),
    "in": lambda s, x: s.l(x) * (1.0 if x.shape[1] in (6, 7) else 3.0),
    "is_same_size": lambda s, x: s.l(x) * (1.0 if x[0].is_same_size(torch.zeros(6, 8)) else 3.0),
    "nbytes": lambda s, x: s.l(x) * (1.0 if x[0].nbytes == 192 else 3.0),
    "a shape": lambda s, x: s.l(x) * (1.0 if x.shape[1:] == (6, 8) else 3.0),
    "a shape's text": lambda s, x: s.l(x) * (1.0 if "6" in str(x.shape[1:]) else 3.0),
    "stride": lambda s, x: s.l(x) * (1.0 if x.stride(0) == 48 else 3.0),
}


@pytest.mark.parametrize("forward", ALONG_1.values(), ids=ALONG_1)
def test_another_number_of_pieces_is_refused_and_another_batch_is_not(forward: Forward) -> None:
    model, got, remarks = traced(forward)
    assert "guard" in remarks
    assert not follows_or_refuses(model, got, (5, 6, 8))
    assert follows_or_refuses(model, got, (2, 9, 8))
    assert follows_or_refuses(model, got, (2, 3, 8))


FOLLOW: dict[str, Forward] = {
    "tensor_split": lambda s, x: s.l(sum(t.sum(1) for t in torch.tensor_split(x, 3, 1))),
    "tensor_split at": lambda s, x: s.l(sum(t.sum(1) * i for i, t in enumerate(x.tensor_split([1, 3], 1)))),
    "chunk of weights' size": lambda s, x: sum(t * i for i, t in enumerate(s.wide(x).chunk(3, -1))),
    "chunk of a sum": lambda s, x: sum(t * i for i, t in enumerate((F.relu(s.wide(x)) + s.wide.bias).chunk(3, dim=-1))),
    "a split of two": lambda s, x: sum(t * i for i, t in enumerate(s.wide(x).split([8, 16], -1)[:1])),
    "qkv": lambda s, x: torch.add(*(s.wide(x).reshape(x.shape[0], x.shape[1], 3, 8).permute(2, 0, 1, 3).unbind(0)[:2])),
    "qkv by iteration": lambda s, x: sum(t * i for i, t in enumerate(s.wide(x).unflatten(-1, (3, 8)).movedim(2, 0))),
    "a piece's pieces": lambda s, x: sum(u for t in s.wide(x).chunk(3, 2) for u in t.split(4, 2)),
    "channels": lambda s, x: sum(t * i for i, t in enumerate(s.conv(x.transpose(1, 2)).split(4, 1))),
    "functional": lambda s, x: sum(t * i for i, t in enumerate(F.linear(x, s.wide.weight).chunk(3, 2))),
    "hsplit": lambda s, x: s.l(sum(t.sum(1) for t in torch.hsplit(x.repeat(1, 3, 1), 3))),
    "meshgrid": lambda s, x: s.l(x) + torch.meshgrid(torch.arange(x.shape[1]), torch.arange(8), indexing="ij")[0],
    "nonzero": lambda s, x: s.l(x) * len(x.nonzero(as_tuple=True)),
    "max": lambda s, x: s.l(x).max(1)[0],
    "prod": lambda s, x: s.l(x) / math.prod(x.shape),
    "broadcast_shapes": lambda s, x: s.l(x) * torch.broadcast_shapes(x.shape, (1, 1, 8))[1],
    "a message": lambda s, x: (torch._assert(x.dim() == 3, f"not {x.shape}"), torch._assert(x.shape[2] == 8, f"{x.shape[1]}"), s.l(x))[2],
}


@pytest.mark.parametrize("forward", FOLLOW.values(), ids=FOLLOW)
def test_a_number_that_cannot_vary_is_not_held(forward: Forward) -> None:
    model, got, remarks = traced(forward)
    assert not remarks
    for shape in ((5, 6, 8), (2, 9, 8), (1, 3, 8)):
        assert not follows_or_refuses(model, got, shape)


def test_chunk_is_held_to_the_number_of_chunks_alone() -> None:
    model, got, remarks = traced(lambda s, x: s.l(sum(t.sum(1) * i for i, t in enumerate(x.chunk(4, 1)))))
    assert remarks == ["guard"]
    assert [follows_or_refuses(model, got, (2, n, 8)) for n in (3, 5, 6, 7, 9)] == [False, False, False, True, False]


def test_text_for_people_holds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def forward(s: Any, x: torch.Tensor) -> Any:
        print(x.shape, f"{x.shape[1]}", x)
        logging.getLogger("qcompiler-test").debug(f"{x.shape}")
        logging.getLogger("qcompiler-test").error("%s", x.shape)
        warnings.warn(f"{x.shape[1]} of {x.shape}", stacklevel=1)
        return s.l(x)

    with pytest.warns(UserWarning, match="6 of"):
        _, got, remarks = traced(forward)
    assert "torch.Size([2, 6, 8]) 6" in capsys.readouterr().out
    assert not remarks and not any(is_guard(node) for node in got.graph.nodes)  # type: ignore[union-attr]


def test_a_text_before_a_message_is_held() -> None:
    def forward(s: Any, x: torch.Tensor) -> Any:
        key = f"{x.shape[1]}"
        torch._assert(x.shape[2] == 8, f"{x.shape[0]}")
        print(x.shape)
        return s.l(x) * {"6": 1.0}.get(key, 3.0)

    model, got, remarks = traced(forward)
    assert remarks == ["guard"] and follows_or_refuses(model, got, (2, 9, 8)) and not follows_or_refuses(model, got, (3, 6, 8))


class Steps(nn.Module):
    """A layer that is applied to each step, however the steps are made."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.l = nn.Linear(8, 8)
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.way == "unbind":
            return torch.stack([self.l(t) for t in x.unbind(1)], 1)
        if self.way == "split":
            return torch.cat([self.l(t) for t in F.relu(self.l(x)).split(2, 1)], 1)
        if self.way == "chunk":
            return torch.cat([self.l(t) for t in self.l(x).chunk(5, dim=1)], 1)
        return torch.stack([self.l(t) for t in self.l(x).transpose(0, 1)], 1)


@pytest.mark.parametrize("flow", ["static", "qat", "dynamic"])
@pytest.mark.parametrize("way", ["unbind", "split", "chunk", "iteration"])
def test_compiled_modules_hold_it(way: str, flow: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, 8)
    if flow == "qat":
        prepared = qc.prepare_qat_fx(Steps(way).train(), None, (x,))
        prepared(x)
        got: Any = qc.convert_fx(prepared)
    else:
        mapping = QConfigMapping().set_global(default_dynamic_qconfig) if flow == "dynamic" else None
        prepared = qc.prepare_fx(Steps(way).eval(), mapping, (x,))
        prepared(x)
        got = qc.convert_fx(prepared)
    qc.save(got, tmp_path / "m")
    forms = [got, qc.load(tmp_path / "m"), torch.jit.script(got)]
    other, expected = torch.randn(3, 6, 8), None
    for form in forms:
        expected = form(other) if expected is None else expected
        assert torch.equal(form(other), expected)
        with pytest.raises((InputError, torch.jit.Error), match="the number of pieces fixed"):
            form(torch.randn(4, 9, 8))


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(8, 8)

    def forward(self, xs: Any) -> Any:
        return sum(self.l(x) for x in xs)


@pytest.mark.parametrize("kind", [list, tuple])
def test_the_number_of_tensors_in_an_argument_is_held(kind: type) -> None:
    torch.manual_seed(0)
    many = [torch.randn(2, 8) for _ in range(3)]
    prepared = qc.prepare_fx(Many().eval(), None, (kind(many[:2]),))
    prepared(kind(many[:2]))
    for module in (prepared, qc.convert_fx(prepared)):
        for wrong in (many, many[:1]):
            with pytest.raises(InputError, match="the number of values in 'xs' fixed"):
                module(kind(wrong))


def test_a_long_way_to_a_weight_is_not_looked_through() -> None:
    def forward(s: Any, x: torch.Tensor) -> Any:
        y = s.wide(x)
        for _ in range(300):
            y = y.relu()
        return sum(y.chunk(3, -1))

    model, got, remarks = traced(forward)
    assert remarks == ["guard"] and not follows_or_refuses(model, got, (1, 9, 8))


CUT_ALONG: dict[str, Forward] = {
    "one dimension": lambda s, x: torch.cat(s.l(x).flatten().hsplit(2)[::-1]),
    "at places": lambda s, x: torch.cat(s.l(x).hsplit((2, 5))[::-1], 1),
    "rows": lambda s, x: torch.cat(torch.vsplit(s.l(x), 2)[::-1]),
    "the third": lambda s, x: torch.cat(torch.dsplit(s.l(x), (3,))[::-1], 2),
    "at least one": lambda s, x: torch.atleast_1d(s.l(x).mean()),
    "at least two of one": lambda s, x: torch.atleast_2d(s.l(x)[0, 0]),
    "at least two of none": lambda s, x: torch.atleast_2d(s.l(x).mean()),
    "at least two of many": lambda s, x: torch.atleast_2d(s.l(x), x.mean())[1],
    "at least three of one": lambda s, x: torch.atleast_3d(s.l(x)[0, 0]),
    "at least three of two": lambda s, x: torch.atleast_3d(s.l(x)[0]),
    "at least three of three": lambda s, x: torch.atleast_3d(s.l(x)).mul_(2),
}


@pytest.mark.parametrize("name", CUT_ALONG)
def test_cuts_along_a_dimension_that_the_name_says(name: str) -> None:
    model, graph, _ = traced(CUT_ALONG[name])
    for shape in ((2, 6, 8), (4, 6, 8), (2, 8, 8)):
        x = torch.randn(shape)
        assert torch.equal(graph(x), model(x))
