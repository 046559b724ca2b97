"""Calls of an op's own function with an argument that the op does not have: they stay float, and compute what the model says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler import calibrate, convert_fx, prepare_fx, remarks
from qcompiler.ops.spec import Spelling
from qcompiler.ops.table import OPS, parse_signature

REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: torch.softmax(x, 1, dtype=torch.float64).float(),
    "softmax by position": lambda x: torch.softmax(x, 1, torch.float64).float(),
    "softmax by keywords": lambda x: torch.softmax(input=x, dim=1, dtype=torch.float32),
    "repeat_interleave": lambda x: torch.repeat_interleave(x, 2, dim=2, output_size=12),
    "gather": lambda x: torch.gather(x, 1, torch.zeros(2, 8, 6, 6, dtype=torch.int64), sparse_grad=True),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True)[0],
}
RANDOM: dict[str, Callable[[Tensor], Tensor]] = {
    "rrelu": lambda x: F.rrelu(x, training=True),
    "rrelu by position": lambda x: F.rrelu(x, 0.1, 0.3, True),
    "torch.rrelu": lambda x: torch.rrelu(x, 0.1, 0.3, True),
    "dropout": lambda x: F.dropout(x),
    "dropout2d": lambda x: F.dropout2d(x, 0.25),
    "alpha_dropout": lambda x: F.alpha_dropout(x, training=True),
    "torch.dropout": lambda x: torch.dropout(x, 0.5, True),
}


class Between(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor], is_last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.function = nn.Conv2d(3, 8, 3), nn.Identity() if is_last else nn.Conv2d(8, 8, 1), function

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.function(self.a(x)))
        return y


def made(model: nn.Module, x: Tensor, backend: str) -> tuple[nn.Module, list[str]]:
    prepared = prepare_fx(model.eval(), None, (x,))
    calibrate(prepared, [x])
    return convert_fx(prepared, backend=backend), [remark.code for remark in remarks(prepared)]


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("name", REFUSED)
def test_it_computes_what_the_model_does(name: str, backend: str) -> None:
    x, model = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), Between(REFUSED[name])
    got, codes = made(model, x, backend)
    with torch.inference_mode():
        assert (got(x) - model(x)).abs().max() < 0.05 * model(x).abs().max()
    assert {"other-argument", "no-int8-form"} & set(codes)


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("name", RANDOM)
def test_what_draws_numbers_draws_them_at_each_call(name: str, backend: str, is_last: bool) -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    got, codes = made(Between(RANDOM[name], is_last), x, backend)
    assert not torch.equal(got(x), got(x)) and "train-mode" in codes


def test_every_function_that_has_an_argument_to_refuse_is_tried() -> None:
    spelled = [(row.name, one) for row in OPS.rows.values() for one in row.spellings if isinstance(one, Spelling) and one.target is row.fn]
    refusing = {name for name, one in spelled if any(kind == "!" for kind, *_ in parse_signature(one.signature or ""))}
    assert refusing <= {name.split()[0] for name in (*REFUSED, *RANDOM)} | {"adaptive_max_pool1d", "adaptive_max_pool3d"}
