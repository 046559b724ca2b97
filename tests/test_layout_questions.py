"""What a forward asks of a tensor's layout in memory: the answer is the example's, and a call where another one would count is refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.errors import InputError, TraceError
from qcompiler.trace import TraceOptions, trace

LAST = torch.channels_last
Use = Callable[[Tensor, Tensor], Tensor]  # of what a convolution gave, and its input
ASK: dict[str, Callable[[Tensor], Any]] = {  # what is asked of a tensor: a truth value, or a number
    "contiguous": lambda t: t.is_contiguous(),
    "channels_last": lambda t: t.is_contiguous(memory_format=LAST),
    "stride": lambda t: t.stride(1) == 1,
    "strides": lambda t: t.stride()[-1] == 1,
    "of sizes": lambda t: t.stride(1) == t.size(2) * t.size(3),
    "value": lambda t: t.stride(-3),
    "offset": lambda t: t[:, 1:].storage_offset() > 0,
    "order": lambda t: t.dim_order() == (0, 1, 2, 3),
    "torch's own code": lambda t: torch._prims_common.suggest_memory_format(t) is LAST,
    "keyword": lambda t: t.stride(dim=1) > 1,
}
PLACE: dict[str, Use] = {
    "input": lambda h, x: x, "computed": lambda h, x: h, "permuted": lambda h, x: h.permute(0, 2, 3, 1).unsqueeze(1)[:, 0],
    "sliced": lambda h, x: h[:, :, :6], "rows": lambda h, x: h[:1], "every other": lambda h, x: h[..., ::2],
    "sum": lambda h, x: torch.relu(h + 1), "pooled": lambda h, x: nn.functional.avg_pool2d(h, 1),
    "changed": lambda h, x: h[:, 1:].mul_(2), "copy": lambda h, x: h.transpose(2, 3).contiguous(),
}  # fmt: skip


def _view_or_reshape(h: Tensor, x: Tensor) -> Tensor:
    flat = h.view(h.size(0), -1) if h.is_contiguous() else h.reshape(h.size(0), -1)
    return flat.view(h.shape)


def _statement(h: Tensor, x: Tensor) -> Tensor:
    if not x.is_contiguous():
        x = x.contiguous()
    if h.stride(-1) != 1:
        h = h.contiguous()
    if not h.is_contiguous(memory_format=LAST):
        h = h.to(memory_format=LAST)
    return h


def _warning(h: Tensor, x: Tensor) -> Tensor:
    if not h.is_contiguous():
        warnings.warn("slow", stacklevel=1)
    return h


HARMLESS: dict[str, Use] = {
    "expression": lambda h, x: h if h.is_contiguous() else h.contiguous(), "statement": _statement,
    "warning": _warning, "not used": lambda h, x: (h.stride(), h.is_contiguous(), h)[2],
    "transposed": lambda h, x: (h.mT if h.mT.is_contiguous() else h.mT.contiguous()).mT,
    "empty": lambda h, x: h.clone(memory_format=LAST) if x.is_contiguous(memory_format=LAST) else h,
}  # fmt: skip


class Net(nn.Module):
    def __init__(self, use: Use) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.use, self.last = nn.Conv2d(4, 8, 3, padding=1), use, nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.use(self.first(x), x))


def asking(question: str, place: str) -> Use:
    def use(h: Tensor, x: Tensor) -> Tensor:
        answer = ASK[question](PLACE[place](h, x))
        return h * (answer / 4) if question == "value" else h + 1 if answer else h * -1

    return use


def is_leaf(module: nn.Module, path: str) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def calls() -> Iterator[Tensor]:
    for size in ((2, 4, 6, 6), (1, 4, 6, 6), (3, 4, 8, 6), (2, 4, 1, 1), (1, 4, 1, 9)):
        x = torch.randn(size)
        yield from (x, x.to(memory_format=LAST), torch.randn(*size[:2], size[3], size[2]).mT, torch.randn(*size[:3], 2 * size[3])[..., ::2])
        yield torch.randn(size[::-1]).permute(3, 2, 1, 0)
        yield torch.randn(size[0], *size[2:], 4)[:1].squeeze(0).permute(2, 0, 1)[None]  # an image from a file as a batch


def refused(model: nn.Module, graph: nn.Module) -> list[bool]:
    """Which calls are refused; all others give what the model gives."""
    found = []
    for x in calls():
        with torch.no_grad():
            expected = model(x.clone(memory_format=torch.preserve_format) if x.is_contiguous() else x)
            try:
                assert torch.allclose(graph(x), expected, atol=1e-5)
                found.append(False)
            except InputError as error:
                assert "test_layout_questions.py" in error.message
                found.append(True)
    return found


def traced(model: nn.Module, x: Tensor) -> nn.Module:
    return trace(model.eval(), (x,), options=TraceOptions(is_leaf)).graph_module


EACH = [(question, list(PLACE)[(i + j) % len(PLACE)]) for i, question in enumerate(ASK) for j in (0, 3)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
@pytest.mark.parametrize(("question", "place"), EACH)
def test_an_answer_counts_or_a_call_is_refused(question: str, place: str, layout: torch.memory_format) -> None:
    model, x = Net(asking(question, place)), torch.randn(2, 4, 6, 6).contiguous(memory_format=layout)
    graph = traced(model, x)
    assert torch.allclose(graph(x), model(x), atol=1e-5)
    refused(model, graph)


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
def test_what_leads_nowhere_else_is_not_held(name: str, layout: torch.memory_format) -> None:
    model = Net(HARMLESS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not any(refused(model, traced(model, torch.randn(2, 4, 6, 6).contiguous(memory_format=layout))))


REFUSED: dict[str, Callable[[Tensor], object]] = {
    "address": lambda t: t.data_ptr() % 16, "storage": lambda t: t.untyped_storage().nbytes(), "base": lambda t: t._base is None,
    "is a view": lambda t: t._is_view(), "one place": lambda t: t.is_set_to(t[:]),
    "as_strided": lambda t: t.as_strided((2, 2), (1, 1)).sum(),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_asks_for_an_address_is_refused(name: str) -> None:
    model = Net(lambda h, x: h * 2 if REFUSED[name](h) else h)
    with pytest.raises(TraceError, match=r"lies in memory|is a view of|by its address"):
        traced(model, torch.randn(2, 4, 6, 6))


def test_what_is_changed_in_place_stays_where_it_is() -> None:
    def use(h: Tensor, x: Tensor) -> Tensor:
        part = h[..., ::2]
        part.mul_(2)
        x = x[:, :, :, ::2].add_(1)
        return h * (2 if part.is_contiguous() else 3) * (2 if x.is_contiguous() else 5) + part.stride(-1) + x.stride(-1)

    model, x = Net(use), torch.randn(2, 4, 6, 6)
    expected = model.eval()(x.clone())
    assert torch.allclose(traced(model, x.clone())(x), expected, atol=1e-5)


class Asks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.is_contiguous():
            return x * 2
        return x * -1


class Loops(Asks):
    """A module that cannot be followed, by its statement on its own neither."""

    def forward(self, x: Tensor) -> Tensor:
        y = x
        while y.abs().max() > 1 and y.is_contiguous():
            y = y / 2
        return y + 1


LEAVES: dict[str, Callable[[], nn.Module]] = {
    "scripted": lambda: torch.jit.script(Asks()), "in a scripted one": lambda: torch.jit.script(nn.Sequential(nn.Identity(), Asks())),
    "loop": Loops,
}  # fmt: skip
FLOWS: dict[str, dict[str, Any]] = {
    **{engine: {"engine": engine} for engine in ("x86", "onednn", "qnnpack")}, "native": {"backend": "native"},
}  # fmt: skip


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize(("leaf", "layout"), [("scripted", LAST), ("in a scripted one", torch.contiguous_format), ("loop", LAST)])
def test_code_that_nobody_follows_gets_the_layout_of_the_example(leaf: str, layout: torch.memory_format, flow: str) -> None:
    model = nn.Sequential(Net(lambda h, x: h + 1), LEAVES[leaf](), nn.Conv2d(4, 4, 1)).eval()
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=layout)
    small = qcompiler.quantize(model, [x], progress=False, **FLOWS[flow])
    assert qcompiler.debug.compare(model, small, [x]).output > 25
    with pytest.raises(InputError, match="asks for a tensor's layout"):
        small(x.contiguous(memory_format=torch.contiguous_format if layout is LAST else LAST))


@pytest.mark.parametrize("flow", FLOWS)
def test_compiled_modules_answer_as_the_float_model_does(flow: str, tmp_path: Path) -> None:
    """Whatever the layout of int8 values is."""
    model, x = Net(asking("of sizes", "sum")).eval(), torch.randn(2, 4, 6, 6)
    small = qcompiler.quantize(model, [x, torch.randn(2, 4, 6, 6)], progress=False, **FLOWS[flow])
    assert any("asks for a tensor's layout" in remark.text for remark in qcompiler.remarks(small))
    qcompiler.save(small, tmp_path / "m.qc")
    for module in (
        small,
        copy.deepcopy(small),
        qcompiler.load(tmp_path / "m.qc"),
        *([torch.jit.script(small)] if flow != "native" else []),
    ):
        assert module(torch.randn(3, 4, 8, 6)).shape == (3, 4, 8, 6)
        with pytest.raises((InputError, torch.jit.Error), match="asks for a tensor's layout"):
            module(x.to(memory_format=LAST))
    assert qcompiler.debug.compare(model, small, [x]).output > 25


def test_images_of_all_layouts_go_on_working() -> None:
    """Where the question leads nowhere else, and where there is none; a `view` of what is contiguous is a `reshape`."""
    for use in (_view_or_reshape, HARMLESS["expression"], lambda h, x: h):
        model, x = Net(use).eval(), torch.randn(2, 4, 6, 6)
        small = qcompiler.quantize(model, [x], progress=False)
        for given in (x, x.to(memory_format=LAST), x.mT.contiguous().mT):
            assert torch.equal(small(given), small(x))
        assert not any("layout" in remark.text for remark in qcompiler.remarks(small))


def test_training_holds_it_as_well() -> None:
    prepared = qcompiler.prepare_qat_fx(Net(asking("contiguous", "sum")).train(), None, (torch.randn(2, 4, 6, 6),))
    prepared(torch.randn(3, 4, 8, 8)).sum().backward()
    with pytest.raises(InputError, match="the layout of 'x' in memory fixed"):
        prepared(torch.randn(2, 4, 6, 6).to(memory_format=LAST))


@pytest.mark.parametrize("counts", [False, True])
def test_images_of_one_channel(counts: bool) -> None:
    """Strides that mean nothing decide how a convolution lays out its result: they are held where the answer counts."""
    model = Net(asking("contiguous", "computed") if counts else HARMLESS["expression"])
    model.first = nn.Conv2d(1, 8, 3, padding=1)
    x = torch.randn(2, 1, 6, 6)
    graph, last = traced(model, x), torch.randn(2, 6, 6, 1).permute(0, 3, 1, 2)
    for given in (x, torch.randn(3, 1, 8, 8), x.clone(memory_format=LAST), last):
        if counts and not model.first(given).is_contiguous():
            with pytest.raises(InputError, match="the layout of 'x' in memory fixed"):
                graph(given)
        else:
            assert torch.allclose(graph(given), model(given), atol=1e-5)


def test_a_layout_that_data_chooses_is_refused() -> None:
    def use(h: Tensor, x: Tensor) -> Tensor:
        z = h.mT + 1 if x.sum() > 0 else h
        return z * 2 if z.is_contiguous() else z

    def alike(h: Tensor, x: Tensor) -> Tensor:
        z = h + 1 if x.sum() > 0 else h
        return z * 2 if z.is_contiguous() else z

    x = torch.randn(2, 4, 6, 6)
    with pytest.raises(TraceError, match="whose answer at other calls nobody knows, by `return z"):
        traced(Net(use), x)
    model = Net(alike)
    graph = traced(model, x)
    for given in (x, -x):
        assert torch.allclose(graph(given), model(given), atol=1e-5)
