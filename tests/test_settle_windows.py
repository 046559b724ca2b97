"""Convolutions that stay float behind int8 values, with windows that lie in the padding: oneDNN would crash on the layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.debug import compute_sqnr
from tests.flow import ENGINES, randn

CRASHED: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {  # sizes, settings
    "one column": ((4, 1), {"kernel_size": 1, "stride": (1, 3), "padding": (0, 2), "dilation": (1, 2)}),
    "in both": ((3, 1), {"kernel_size": 1, "stride": (2, 3), "padding": 2, "dilation": 2}),
    "a wide window": ((2, 1), {"kernel_size": (1, 2), "stride": (3, 2), "padding": (2, 3), "dilation": (1, 2)}),
    "one pixel": ((1, 1), {"kernel_size": (3, 1), "stride": (1, 2), "padding": (2, 3), "dilation": (1, 2)}),
    "a sequence": ((5,), {"kernel_size": 1, "stride": 2, "padding": 2, "dilation": 2}),
}
PLAIN: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "no dilation": ((4, 4), {"kernel_size": 1, "padding": 2}),
    "within the window": ((5, 5), {"kernel_size": 3, "padding": 2, "dilation": 2}),
    "named": ((5, 5), {"kernel_size": 3, "padding": "same", "dilation": 2}),
}


class Net(nn.Module):
    def __init__(self, dims: int, settings: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        cls: Any = (nn.Conv1d, nn.Conv2d)[dims - 1]
        self.first, self.last = cls(3, 8, 1), cls(8, 8, **settings)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.first(x))
        return result


ONE_CHANNEL: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "one column": ((4, 5), {"kernel_size": 5, "stride": (1, 2), "padding": (2, 0)}),
    "in three dimensions": ((3, 2, 3), {"kernel_size": (5, 3, 2), "stride": (1, 1, 2), "padding": (2, 1, 0)}),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ONE_CHANNEL)
def test_a_channel_of_which_one_column_is_made(name: str, engine: str) -> None:
    """oneDNN reads memory beside an image of one channel that lies channels_last."""
    sizes, settings = ONE_CHANNEL[name]
    torch.manual_seed(0)
    convolution: Any = (nn.Conv2d, nn.Conv3d)[len(sizes) - 2]
    model, x = nn.Sequential(convolution(3, 1, 1), convolution(1, 4, **settings)).eval(), randn(2, 3, *sizes)
    mapping = qcompiler.get_default_qconfig_mapping(engine).set_module_name("1", None)
    prepared = qcompiler.prepare_fx(model, mapping, (x,), engine=engine)
    qcompiler.calibrate(prepared, [x])
    module = qcompiler.convert_fx(prepared)
    assert "clone(memory_format=torch.contiguous_format)" in module.code
    for _ in range(3):
        _ = [torch.full((size,), 1e30) for size in (16, 64, 256) for _ in range(20)]  # what free memory holds
        assert float(compute_sqnr(model(x), module(x))) > 25


def compiled(sizes: tuple[int, ...], settings: dict[str, Any], engine: str) -> tuple[nn.Module, Tensor, Any]:
    model, x = Net(len(sizes), settings).eval(), randn(2, 3, *sizes)
    mapping = qcompiler.get_default_qconfig_mapping(engine).set_module_name("last", None)
    prepared = qcompiler.prepare_fx(model, mapping, (x,), engine=engine)
    qcompiler.calibrate(prepared, [x])
    return model, x, qcompiler.convert_fx(prepared)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CRASHED)
def test_such_a_convolution_takes_a_contiguous_copy(name: str, engine: str) -> None:
    model, x, module = compiled(*CRASHED[name], engine)
    assert "clone(memory_format=torch.contiguous_format)" in module.code
    for call in (x, torch.cat([x, x])[1:]):
        assert float(compute_sqnr(model(call), module(call))) > 25
    assert torch.equal(torch.jit.script(module)(x), module(x))


@pytest.mark.parametrize("name", PLAIN)
def test_others_take_the_value_as_it_is(name: str) -> None:
    _, _, module = compiled(*PLAIN[name], "x86")
    assert "clone(" not in module.code
