"""Layers that keep float weights between int8 ones, and attention behind a mask of bools: they stay in the region."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import qcompiler
from qcompiler.debug import compute_sqnr
from tests.native_nets import Through, check_bits, check_equal_bits, conv, converted, example, region_of, shaken

IMAGE, ROWS = (2, 3, 9, 8), (2, 9, 6)
Net = tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...]]  # the model, the shape of its input, which modules stay float


def chain(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(layer() for layer in layers))


def sloped(m: Any, x: Tensor) -> Tensor:
    return m[2](m[1](F.layer_norm(m[0](x), (8,))))  # type: ignore[no-any-return]


def sloped_channels(m: Any, x: Tensor) -> Tensor:
    y = m[0](x)
    return m[2](m[1](F.layer_norm(y, y.shape[-1:])))  # type: ignore[no-any-return]


def first() -> nn.Module:
    return conv(3, 8)


NETS: dict[str, Net] = {
    "linear": (chain(lambda: nn.Linear(6, 20), nn.ReLU, lambda: nn.Linear(20, 33), lambda: nn.Linear(33, 3)), ROWS, ("2",)),
    "linear, no bias, clamped": (
        chain(lambda: nn.Linear(6, 8), lambda: nn.Linear(8, 17, bias=False), nn.ReLU6, lambda: nn.Linear(17, 3)), ROWS, ("1",)),
    "linear, first": (chain(lambda: nn.Linear(6, 1), lambda: nn.Linear(1, 4)), ROWS, ("0",)),
    "linear, last": (chain(lambda: nn.Linear(6, 8), lambda: nn.Linear(8, 40)), ROWS, ("1",)),
    "conv": (chain(first, lambda: nn.Conv2d(8, 17, 3, 2, 1), nn.ReLU, lambda: nn.Conv2d(17, 3, 1)), IMAGE, ("1",)),
    "conv, pointwise": (chain(first, lambda: nn.Conv2d(8, 5, 1), lambda: nn.Conv2d(5, 3, 1)), IMAGE, ("1",)),
    "conv, first, uneven": (chain(lambda: nn.Conv2d(3, 8, (3, 2), (1, 2), (1, 0), (1, 2)), lambda: nn.Conv2d(8, 4, 1)), IMAGE, ("0",)),
    "conv, last": (chain(first, lambda: nn.Conv2d(8, 1, 3)), IMAGE, ("1",)),
    "conv, same": (chain(first, lambda: nn.Conv2d(8, 8, 3, padding="same", bias=False), lambda: nn.Conv2d(8, 4, 1)), IMAGE, ("1",)),
    "conv, mirrored": (chain(first, lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")), IMAGE, ("1",)),
    "conv of a sequence": (chain(lambda: nn.Conv1d(9, 8, 1), lambda: nn.Conv1d(8, 6, 3, 2, 2, 2), lambda: nn.Conv1d(6, 3, 1)),
                           ROWS, ("1",)),
    "slopes": (lambda: Through(sloped, nn.Linear(6, 8), nn.PReLU(), nn.Linear(8, 3)), ROWS, ("layers.1",)),
    "slopes of channels": (lambda: Through(sloped_channels, conv(3, 8), nn.PReLU(8), nn.Conv2d(8, 3, 1)), IMAGE, ("layers.1",)),
    "slopes, last": (chain(first, lambda: nn.PReLU(8)), IMAGE, ("1",)),
    "logarithms of a softmax": (chain(first, lambda: nn.LogSoftmax(1)), IMAGE, ()),
    "logarithms of a softmax, read": (chain(first, lambda: nn.LogSoftmax(-1), lambda: nn.Conv2d(8, 3, 1)), IMAGE, ()),
}  # fmt: skip


def mixed(name: str) -> tuple[Any, fx.GraphModule, Tensor]:
    """As native_nets.converted, with some modules in float."""
    torch.manual_seed(2)
    make, shape, kept = NETS[name]
    mapping = qcompiler.get_default_qconfig_mapping()
    for module in kept:
        mapping.set_module_name(module, None)
    prepared = qcompiler.prepare_fx(shaken(make()), mapping, (x := example(shape),), backend="native")
    qcompiler.calibrate(prepared, [x, example(shape, 6)])
    return qcompiler.convert_fx(prepared), qcompiler.convert_to_reference_fx(prepared), x


@pytest.mark.parametrize("name", NETS)
def test_float_layers_stay_in_the_region(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, graph, x = mixed(name)
    region_of(module)
    assert not [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    check_bits(module, graph, x, monkeypatch)


def test_other_weights_of_a_float_layer_are_taken() -> None:
    module, _, x = mixed("linear")
    state = {key: value.clone() for key, value in module.state_dict().items()}
    state["2.weight"], state["2.bias"] = torch.zeros_like(state["2.weight"]), torch.zeros_like(state["2.bias"])
    before = module(x)
    module.load_state_dict(state)
    assert not torch.equal(module(x), before) and bool((module(x) == module(x)[0, 0]).all())


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=8)])
def test_float_weights_of_groups_say_that_they_stay(layer: nn.Module) -> None:
    mapping = qcompiler.get_default_qconfig_mapping().set_module_name("1", None)
    model, x = nn.Sequential(conv(3, 8), layer).eval(), example(IMAGE)
    prepared = qcompiler.prepare_fx(model, mapping, (x,), backend="native")
    qcompiler.calibrate(prepared, [x])
    module = qcompiler.convert_fx(prepared)
    assert any("in groups" in remark.text for remark in qcompiler.remarks(module) if remark.code == "native-torch")
    assert compute_sqnr(model(x), module(x)) > 30


class Computed(nn.Module):
    """A layer whose weight, and bias, data computes: of each sample for a convolution, by groups, or of the batch."""

    def __init__(self, forward: Callable[[Any, Tensor, Tensor], Tensor], first: nn.Module, last: nn.Module, numbers: int) -> None:
        super().__init__()
        self.first, self.last, self.numbers, self.function = first, last, nn.Linear(8, numbers), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self, self.first(x), x))  # type: ignore[no-any-return]


def by_sample(stride: int = 1, bias: bool = False, rounded: bool = False) -> Callable[[Any, Tensor, Tensor], Tensor]:
    def forward(m: Any, y: Tensor, x: Tensor) -> Tensor:
        n, c, h, w = y.shape
        made = m.numbers(y.mean((2, 3)))
        made = torch.sigmoid(made) - 0.5 if rounded else made
        weight, added = made[:, 16:].reshape(n * 16, c, 3, 3), made[:, :16].reshape(n * 16) if bias else None
        y = F.conv2d(y.reshape(1, n * c, h, w), weight, added, stride, 1, groups=n)
        return y.reshape(n, 16, *y.shape[2:])

    return forward


def template(m: Any, y: Tensor, x: Tensor) -> Tensor:
    """The window is as large as half of the image: another one at another size."""
    return F.conv2d(y, m.first(x[:1, :, : x.shape[2] // 2, : x.shape[3] // 2]))


def in_groups(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return F.conv1d(y, m.numbers(y.mean((0, 2))).view(32, 4, 3), groups=2, padding=2, dilation=2)


def rows_times(m: Any, y: Tensor, x: Tensor) -> Tensor:
    made = m.numbers(y.mean((0, 1)))
    return F.linear(y, made[:40].view(8, 5).t(), made[40:])


COMPUTED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "by sample": (lambda: Computed(by_sample(), first(), nn.Conv2d(16, 4, 1), 1168), IMAGE, (5, 3, 12, 30)),
    "by sample, strided, bias": (lambda: Computed(by_sample(2, True), first(), nn.Conv2d(16, 4, 1), 1168), IMAGE, (1, 3, 30, 12)),
    "of codes": (lambda: Computed(by_sample(1, True, True), first(), nn.Conv2d(16, 4, 1), 1168), IMAGE, (3, 3, 11, 10)),
    "last": (lambda: Computed(by_sample(), first(), nn.Identity(), 1168), IMAGE, (1, 3, 11, 10)),
    "a template": (lambda: Computed(template, first(), nn.Conv2d(1, 4, 1), 1), (2, 3, 16, 12), (3, 3, 20, 14)),
    "a sequence in groups": (lambda: Computed(in_groups, nn.Conv1d(6, 8, 3), nn.Conv1d(32, 4, 1), 384), (2, 6, 9), (4, 6, 30)),
    "rows": (lambda: Computed(rows_times, nn.Linear(6, 8), nn.Linear(5, 3), 45), (2, 7, 6), (5, 3, 6)),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_weights_that_data_computes_stay_in_the_region(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    make, *shapes = COMPUTED[name]
    module, graph = converted(make().eval(), example(shapes[0]))
    region_of(module)
    assert not [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    for shape in shapes:
        with torch.no_grad():
            expected = [module(x := example(shape, 7))]
            assert compute_sqnr(graph(x), expected[0]) > 35
        check_equal_bits(module, x, expected, monkeypatch)


def lower(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


def of_sizes(q: Tensor) -> Tensor:
    return lower(q.shape[-2])


def of_data(q: Tensor) -> Tensor:
    return (q.sum(-1) > 0)[..., None, :] | torch.eye(q.shape[-2], dtype=torch.bool)


def nothing_seen(q: Tensor) -> Tensor:
    """The first query sees no key."""
    return torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).tril(-1)


def added(q: Tensor) -> Tensor:
    return torch.zeros(q.shape[-2], q.shape[-2]).masked_fill(~lower(q.shape[-2]), float("-inf"))


class Attends(nn.Module):
    """Attention of two heads behind a mask; `kept`: a buffer of bools that is cut to size."""

    def __init__(self, mask: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.qkv, self.out, self.mask = nn.Linear(6, 36), nn.Linear(12, 3), mask
        self.register_buffer("kept", lower(40))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 6)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mask = self.kept[: x.shape[1], : x.shape[1]] if self.mask is None else self.mask(q)
        made = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(made.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


@pytest.mark.parametrize("mask", [None, of_sizes, of_data, nothing_seen, added])
def test_attention_behind_a_mask(mask: Callable[[Tensor], Tensor] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    module, graph = converted(model := Attends(mask).eval(), x := example(ROWS))
    region_of(module)
    check_bits(module, graph, x, monkeypatch)
    for length in (1, 30):
        with torch.no_grad():
            assert compute_sqnr(model(given := example((1, length, 6))), module(given)) > 25


class Given(Attends):
    """Behind a mask of the caller's."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 6)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        made = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(made.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def test_a_mask_of_bools_that_the_caller_gives() -> None:
    x, mask = example(ROWS), lower(9)[None, None].expand(2, 1, 9, 9)
    prepared = qcompiler.prepare_fx(model := Given(None).eval(), None, (x, mask), backend="native")
    qcompiler.calibrate(prepared, [(x, mask)])
    module = qcompiler.convert_fx(prepared)
    region_of(module)
    with torch.no_grad():
        for given in (mask, ~mask, torch.ones_like(mask)):
            assert compute_sqnr(model(x, given), module(x, given)) > 25
