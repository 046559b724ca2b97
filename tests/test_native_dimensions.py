"""Values of more dimensions than layers step through, in every order in which they may lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.native.regions import regions_of
from tests import native_layers
from tests.native_nets import Through, conv, converted, example, steps_apart


def turned(y: Tensor) -> Tensor:
    return y.permute(0, 3, 1, 2, 5, 4)


# What is made of a value (N, 2, 2, 2, H, H) of codes, and in how many regions: matrices that are spread over one another again and again
# are multiplied in torch.
FORMS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "sum": (lambda a: a + turned(a), 1),
    "product": (lambda a: a * turned(a), 1),
    "table": (lambda a: torch.sigmoid(turned(a)), 1),
    "table of parts": (lambda a: torch.sigmoid(turned(a)[:, :, :1, :, 1:, 1:]) + a[:, :, :, :, 1:, 1:], 1),
    "cat": (lambda a: torch.cat([a, turned(a)], 2)[:, :, :2], 1),
    "floats of parts": (lambda a: turned(a.softmax(2))[:, :, :1, :, 1:, 1:].tanh() * a[:, :, :, :, 1:, 1:], 1),
    "places": (lambda a: a * turned(a).argmax(3, keepdim=True).float(), 1),
    "product of matrices": (lambda a: a @ a, 1),
    "product of turned matrices": (lambda a: turned(a).softmax(-1) @ a.transpose(-1, -2), 1),
    "product with one matrix": (lambda a: a @ a[0, 0, 0, 0], 1),
    "products that share matrices": (lambda a: a[:, :, :1] @ a.softmax(-1), 1),
    "one by one": (lambda a: a.softmax(-1) @ a[:1, :1, :1, :1], 1),
    "products spread again and again": (lambda a: a[:1, :, :1] @ a[:, :1, :, :1], 2),
    "spread again and again": (lambda a: a + a[:, :, :1, :, :1] * a[:, :1, :, :1, :, :1], 1),
    "a difference so": (lambda a: turned(a) - a[:, :1, :, :1, :, :1], 1),
    "a choice so": (lambda a: torch.where(a[:, :, :1, :, :1] > 0.3, turned(a), a[:, :1, :, :1, :, :1].tanh()), 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_six_dimensions(form: str) -> None:
    function, regions = FORMS[form]

    def between(m: Any, x: Tensor) -> Tensor:
        return m[1](function(m[0](x).unflatten(1, (2, 2, 2))).flatten(1, 3))  # type: ignore[no-any-return]

    torch.manual_seed(1)
    module, graph = converted(Through(between, conv(3, 8), nn.Conv2d(8, 4, 1)), x := example((2, 3, 8, 8)))
    assert len(regions_of(module)) == regions
    assert bool([r for r in qcompiler.remarks(module) if "too many dimensions" in r.text]) == (regions > 1)
    for given in (x, x[:1], example((2, 3, 9, 9))):
        assert max(steps_apart(module, graph, given).values()) <= 1


SPREAD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda v, t: v + t,
    "difference": lambda v, t: t - v,
    "product": lambda v, t: v * t,
    "relu": lambda v, t: (v + t).relu(),
    "larger": lambda v, t: torch.maximum(v, t),
}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("form", SPREAD)
def test_a_value_without_batch_is_spread_over_images(form: str, dims: int) -> None:
    """Its first dimension are the channels, which lie apart in it, and the result has a rim, so that no two axes are one."""
    layer: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    torch.manual_seed(1)
    forward = lambda m, pair: m[1](SPREAD[form](m[0](pair[0]), pair[1]))  # noqa: E731
    model = Through(forward, layer(3, 4, 1), layer(4, 4, 3, padding=1, groups=4)).eval()
    size = (7, 9, 8)[:dims]
    pairs = [(example((n, 3, *size)), example((4, *size), seed=n)) for n in (3, 1, 2)]
    prepared = qcompiler.prepare_fx(model, None, (pairs[0],), backend="native")
    qcompiler.calibrate(prepared, [(pair,) for pair in pairs], progress=False)
    module, graph = qcompiler.convert_fx(prepared), qcompiler.convert_to_reference_fx(prepared)
    assert len(regions_of(module)) == 1
    for pair in pairs:
        assert max(native_layers.steps_apart(native_layers.watched(module, (pair,), {}).values, graph, (pair,), {}).values()) <= 1
