"""Elements at places that are found at run time, and attention with grouped heads: one region, equal bits, near torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from qcompiler.debug import compute_sqnr
from qcompiler.errors import InputError
from tests.native_abi import Kernels
from tests.native_nets import Through, check_equal_bits, conv, converted, example, region_of, steps_apart
from tests.test_native_floats import Memory, floats, operand, tensor


def test_a_place_that_a_row_does_not_have_is_nan(kernels: Kernels) -> None:
    x, y = Memory(floats(2, 4)), Memory(np.zeros((2, 6), np.float32))
    at = Memory(np.array([[0, 3, 4, -1, 2**24, np.nan]] * 2, np.float32))
    kernels("elements", x=operand(x.array), at=operand(at.array), y=tensor(y.array))
    np.testing.assert_array_equal(y.array[:, :2], x.array[:, [0, 3]])
    assert np.isnan(y.array[:, 2:]).all() and y.untouched()


def test_negative_places_from_the_end(kernels: Kernels) -> None:
    x, y = Memory(floats(2, 4)), Memory(np.zeros((2, 5), np.float32))
    at = Memory(np.array([[0, -1, -4, -5, 4]] * 2, np.float32))
    kernels("elements", x=operand(x.array), at=operand(at.array), y=tensor(y.array), from_end=1)
    np.testing.assert_array_equal(y.array[:, :3], x.array[:, [0, 3, 0]])
    assert np.isnan(y.array[:, 3:]).all() and y.untouched()


def best(y: Tensor, count: int) -> Tensor:
    """(B, C, N) -> the places (B, count) of the largest means."""
    return y.mean(1).topk(count)[1]


def repeated(m: Any, x: Tensor) -> Tensor:
    y = m[0](x).flatten(2)
    at = best(y, 3).unsqueeze(1).repeat(1, y.shape[1], 1)
    return m[1](torch.gather(y, 2, at).transpose(1, 2))  # type: ignore[no-any-return]


def expanded(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m[0](x).flatten(2).transpose(1, 2)
    at = best(y.transpose(1, 2), 3)[:, :, None].expand(-1, -1, y.shape[-1])
    picked = y.gather(1, at)
    return m[1](picked), picked


def fewer_rows(m: Any, x: Tensor) -> Tensor:
    """Places of some of the rows alone, along each of them."""
    y = m[0](x).flatten(2)
    return m[1](y.gather(-1, y.argsort(dim=-1, stable=True)[:, 1:, :4].contiguous()).mean(-1)[:, :5])  # type: ignore[no-any-return]


def selected(m: Any, x: Tensor) -> Tensor:
    y = m[0](x)
    return m[1](torch.index_select(y, 1, y.mean((0, 2, 3)).argsort(descending=True)[:6]))  # type: ignore[no-any-return]


def of_each_row(m: Any, x: Tensor) -> Tensor:
    """One element of each row, as the pooled token of a text encoder, and several of each."""
    y = m[0](x).flatten(2).transpose(1, 2)
    rows, likeness = torch.arange(y.shape[0]), y.mean(-1)
    one, some = y[rows, likeness.argmax(-1)], y[rows[:, None], likeness.topk(3)[1]]
    return m[1](one[:, None] + some)  # type: ignore[no-any-return]


def of_all_rows(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Floats and codes by one list of places, samples and channels."""
    y = m[0](x)
    at = y.mean((0, 2, 3)).argsort(descending=True)[:6]
    return m[1](y[:, at]), y.softmax(-1)[y.mean((1, 2, 3)).argsort()]


def handed_out(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = m[0](x)
    at = y.argmax(1)
    return at[:, None], at.flatten(1).flip(1), m[1](y)


def of_a_softmax(m: Any, x: Tensor) -> Tensor:
    """Of floats, with an embedding of moved places beside it."""
    y = m[0](x).mean((2, 3)).softmax(-1)
    at = y.argmax(-1).unsqueeze(-1)
    return m[2](y.gather(-1, at) * m[1](at).squeeze(1))  # type: ignore[no-any-return]


NETS: dict[str, tuple[Callable[..., Any], Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "repeated": (repeated, lambda: [conv(3, 8), nn.Linear(8, 5)], (2, 3, 6, 5)),
    "expanded": (expanded, lambda: [conv(3, 8), nn.Linear(8, 5)], (2, 3, 6, 5)),
    "fewer rows": (fewer_rows, lambda: [conv(3, 8), nn.Linear(5, 5)], (2, 3, 6, 5)),
    "selected": (selected, lambda: [conv(3, 8), nn.Conv2d(6, 5, 1)], (2, 3, 6, 5)),
    "of each row": (of_each_row, lambda: [conv(3, 8), nn.Linear(8, 5)], (2, 3, 6, 5)),
    "of all rows": (of_all_rows, lambda: [conv(3, 8), nn.Conv2d(6, 5, 1)], (2, 3, 6, 5)),
    "handed out": (handed_out, lambda: [conv(3, 8), nn.Conv2d(8, 5, 1)], (2, 3, 6, 5)),
    "of a softmax": (of_a_softmax, lambda: [conv(3, 8), nn.Embedding(8, 8), nn.Linear(8, 5)], (2, 3, 6, 5)),
}


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


@pytest.mark.parametrize("name", NETS)
def test_places_that_the_network_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, layers, shape = NETS[name]
    torch.manual_seed(1)
    x = example(shape)
    module, graph = converted(Through(forward, *layers()), x)
    region_of(module)
    assert not [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    for given in (x, x[:1], example((3, 3, 8, 6))):
        assert max(steps_apart(module, graph, given).values()) <= 1
        with torch.no_grad():
            results, expected = flat(module(given)), flat(graph(given))
        for a, b in zip(results, expected, strict=True):
            assert a.dtype is b.dtype and a.shape == b.shape and a.is_contiguous()
        check_equal_bits(module, given, results, monkeypatch)


class Asked(nn.Module):
    """Rows that the caller asks for: of each sample, or of all."""

    def __init__(self, way: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.way = nn.Linear(6, 8), nn.Linear(8, 4), way

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        return self.last(self.way(self.first(x), at))  # type: ignore[no-any-return]


WAYS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "gather": (lambda y, at: y.gather(1, at), torch.tensor([[[4, 0, 3, 1, 2, 2, 4, 0]], [[0, 1, 1, 1, 4, 3, 2, 0]]])),
    "index_select": (lambda y, at: torch.index_select(y, 1, at), torch.tensor([4, 1, 1])),
    "of 32 bits": (lambda y, at: y.index_select(-2, at), torch.tensor([0, 3], dtype=torch.int32)),
}


def asked(function: Callable[[Tensor, Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor, Any, Any]:
    """An input, the places, the native module, which is one region, and the QUANTIZED graph."""
    torch.manual_seed(1)
    model, x = Asked(function).eval(), example((2, 5, 6))
    prepared = qcompiler.prepare_fx(model, None, (x, at), backend="native")
    qcompiler.calibrate(prepared, [(x, at)])
    module, graph = qcompiler.convert_fx(prepared), qcompiler.convert_to_reference_fx(prepared)
    region_of(module)
    return x, at, module, graph


@pytest.mark.parametrize("way", WAYS)
def test_places_that_the_caller_gives(way: str, tmp_path: Path) -> None:
    x, at, module, graph = asked(*WAYS[way])
    assert compute_sqnr(graph(x, at), module(x, at)) > 35
    assert torch.equal(module(x, (4 - at).to(at.dtype)).argmax(), graph(x, (4 - at).to(at.dtype)).argmax())
    longer, beyond = example((2, 7, 6)), at.clone()
    beyond.view(-1)[-1] = 5
    assert compute_sqnr(graph(longer, beyond), module(longer, beyond)) > 35
    for wrong in (beyond, torch.full_like(at, -1)):
        with pytest.raises(InputError, match="an index lies outside of a row of 5 elements"):
            module(x, wrong)
    exported = torch.export.export(module, (x, at))
    assert torch.equal(exported.module()(x, at), module(x, at))
    text = (qcompiler.export_c(module, tmp_path / "c", name="asked") / "asked.h").read_text()
    assert "at, whole numbers as floats: places in rows of elements, any other gives NaN" in text


INDEXED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "of each row": (lambda y, at: y[torch.arange(y.shape[0]), at], torch.tensor([4, -1])),
    "several of each": (lambda y, at: y[torch.arange(y.shape[0])[:, None], at], torch.tensor([[4, -1, 0], [-5, 2, 2]])),
    "constant rows": (lambda y, at: y[torch.tensor([1, 0, 1]), at], torch.tensor([4, -1, 2])),
    "of all rows": (lambda y, at: y[:, at], torch.tensor([4, 1, -5])),
    "of samples": (lambda y, at: y.transpose(0, 1)[at], torch.tensor([-2, 3])),
}


@pytest.mark.parametrize("way", INDEXED)
def test_an_index_that_the_caller_gives(way: str, tmp_path: Path) -> None:
    """Negative numbers count from the end, as in torch."""
    x, at, module, graph = asked(*INDEXED[way])
    assert not [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    for given in (x, example((2, 7, 6), 4)):
        expected = graph(given, at)
        assert compute_sqnr(expected, module(given, at)) > 35 and module(given, at).shape == expected.shape
    for wrong in (5, -6):
        beyond = at.clone()
        beyond.view(-1)[-1] = wrong
        with pytest.raises(InputError, match="an index lies outside of a row of 5 elements"):
            module(x, beyond)
    exported = torch.export.export(module, (x, at))
    assert torch.equal(exported.module()(x, at), module(x, at))
    text = (qcompiler.export_c(module, tmp_path / "c", name="asked") / "asked.h").read_text()
    assert "places in rows of elements, negative ones from the end, any other gives NaN" in text


def test_an_index_that_stays_in_torch() -> None:
    """Masks, and an index of more tensors than one list of places: the reason names it, results are the graph's."""

    def picked(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m[0](x)
        at = y.mean(-1).argsort(-1)
        return m[1](y[:, at[0], at[1]]), m[1](y[at[:, 0], at[:, 1]])

    torch.manual_seed(1)
    module, graph = converted(Through(picked, nn.Linear(6, 5), nn.Linear(5, 5)), x := example((5, 5, 6)))
    said = [remark.text for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    assert any("its places are computed at run time" in text for text in said), said
    with torch.no_grad():
        for a, b in zip(module(x), graph(x), strict=True):
            assert compute_sqnr(b, a) > 35


def test_more_places_than_rows() -> None:
    """Along another dimension than the one that is picked from, torch refuses more places than there are rows."""
    function, at = WAYS["gather"]
    model, x = Asked(function).eval(), example((2, 5, 6))
    module, _ = qcompiler.quantize(model, [(x, at)], backend="native", progress=False), None
    with pytest.raises(InputError, match="places of shape"):
        module(x, at.repeat(2, 1, 1))


def test_places_among_more_elements_than_a_row_has() -> None:
    forward = lambda m, x: m[1](m[0](x)[:, :, :4].gather(-1, m[0](x).argmax(-1, keepdim=True)))  # noqa: E731
    torch.manual_seed(1)
    model, x = Through(forward, nn.Linear(6, 8), nn.Linear(1, 2)).eval(), example((2, 5, 6))
    with torch.no_grad():
        model.layers[0].bias[0] = 99.0  # type: ignore[index, union-attr]  # the largest stands first: torch takes it
    module, _ = converted(model, x)
    assert any("its places are those among 8 elements, and its rows have 4" in remark.text for remark in qcompiler.remarks(module))
    assert torch.isfinite(module(x)).all()


def grouped(queries: int, keys: int, **settings: Any) -> Callable[[Any, Tensor], Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = m[0](x).split([queries * 4, keys * 4, keys * 4], -1)
        q, k, v = (part.unflatten(-1, (-1, 4)).transpose(1, 2) for part in (q, k, v))
        made = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **{n: f(x) if callable(f) else f for n, f in settings.items()})
        return m[1](made.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    return forward


MASK = example((1, 1, 5, 5), 3)
GROUPED: dict[str, tuple[int, int, dict[str, Any]]] = {
    "two of each": (4, 2, {}),
    "one of keys": (4, 1, {"is_causal": True}),
    "as many": (2, 2, {}),
    "a mask for all": (6, 2, {"attn_mask": lambda x: MASK + x.mean()}),
    "a mask for each": (6, 2, {"attn_mask": lambda x: x.mean(-1)[:, None, None, :] * torch.arange(6.0)[:, None, None]}),
    "a mask of bools": (6, 3, {"attn_mask": lambda x: x.mean(-1)[:, None, None, :] < 0.3}),
}


@pytest.mark.parametrize("name", GROUPED)
def test_grouped_heads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys, settings = GROUPED[name]
    torch.manual_seed(1)
    x = example((2, 5, 12))
    layers = nn.Linear(12, 4 * (queries + 2 * keys)), nn.Linear(4 * queries, 3)
    module, graph = converted(Through(grouped(queries, keys, **settings), *layers), x)
    region_of(module)
    assert not [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    for given in (x, x[:1], torch.cat([x, x])):
        with torch.no_grad():
            expected = graph(given)
        assert compute_sqnr(expected, module(given)) > 35
        check_equal_bits(module, given, [module(given)], monkeypatch)


def test_heads_that_do_not_divide() -> None:
    """torch refuses them too; a step that says so is refused when it is planned."""
    from qcompiler.backends.native.plan.attention import refuse_attention
    from qcompiler.backends.native.steps import Step

    class Heads:
        def shape(self, argument: Any) -> tuple[int, ...]:
            return {"%q": (1, 3, 5, 4), "%k": (1, 2, 5, 4)}.get(argument, ())

        def rank(self, argument: Any) -> int:
            return len(self.shape(argument))

        def is_codes(self, argument: Any) -> bool:
            return argument is not None

    step = Step("y", "scaled_dot_product_attention", ("%q", "%k", "%k"), {"enable_gqa": True})
    assert refuse_attention(step, Heads()) == "3 heads of queries share 2 of keys and 2 of values"  # type: ignore[arg-type]
