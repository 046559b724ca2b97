"""Values of more dimensions than layers step through, in every order in which they may lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.native.regions import regions_of
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
