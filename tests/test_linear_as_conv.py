"""Linear layers of few rows as convolutions of oneDNN without vectors of 512 bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qcompiler.debug import compute_sqnr
from qcompiler.errors import InputError
from tests.flow import Flow, flow

pytestmark = [
    pytest.mark.skipif("onednn" not in torch.backends.quantized.supported_engines, reason="oneDNN's kernels"),
    pytest.mark.filterwarnings("ignore:this module was compiled for CPUs"),
]
AS_CONV = "as_pixels"


def rows(*sizes: int) -> Tensor:
    return torch.rand(*sizes, generator=torch.Generator().manual_seed(0)) - 0.4


def compiled(x: Tensor, engine: str = "onednn", isa: str = "avx2", features: int = 300) -> Flow:
    torch.manual_seed(0)
    layers = (nn.Linear(x.shape[-1], features), nn.ReLU(), nn.Linear(features, 260, bias=False), nn.Hardtanh(-0.1, 0.1))
    data = [(rows(*x.shape[:-2], 40, x.shape[-1]) if x.dim() > 1 else x,)]  # beyond its range, sums of 16 bits saturate
    return flow(nn.Sequential(*layers).eval(), (x,), data, engine=engine, isa=isa)


@pytest.mark.parametrize("lead", [(), (1,), (4,), (2, 3), (1, 2, 2)], ids=str)
def test_rows_of_any_number_and_dimensions(lead: tuple[int, ...]) -> None:
    result = compiled(rows(*lead, 300))
    assert result.module.code.count(f"{AS_CONV}_(") == 2
    for sizes in {lead, lead and (*lead[:-1], 0), lead and (*lead[:-1], 40)}:
        x = rows(*sizes, 300)
        with torch.no_grad():
            expected, y = result.reference(x), result.module(x)
        assert y.shape == expected.shape and y.is_contiguous()
        assert not y.numel() or compute_sqnr(expected, y) > 40  # one step of rounding at most


def test_scripts_and_files_give_the_same() -> None:
    x = rows(4, 300)
    module = compiled(x).module
    with torch.no_grad():
        assert torch.equal(torch.jit.script(module)(x), module(x))


def test_other_features_are_an_error() -> None:
    with torch.no_grad(), pytest.raises(InputError, match="do not fit"):
        compiled(rows(4, 300)).module(rows(4, 299))


@pytest.mark.parametrize(("x", "engine", "isa", "features"), [
    (rows(17, 300), "onednn", "avx2", 300),  # the product is as fast
    (rows(4, 64), "onednn", "avx2", 64),  # calls are most of its time
    (rows(4, 300), "onednn", "avx512_vnni", 300),
    (rows(4, 300), "x86", "avx2", 300),
])  # fmt: skip
def test_near_misses(x: Tensor, engine: str, isa: str, features: int) -> None:
    assert AS_CONV not in compiled(x, engine, isa, features).module.code
