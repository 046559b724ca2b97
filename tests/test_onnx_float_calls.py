"""Calls that have no row of the op table and an ONNX form: its values are torch's, at the example's sizes and at others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from tests.onnx_runs import run, session, tensors

CALLS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "meshgrid": lambda x, i: torch.meshgrid(torch.arange(x.shape[0]).float(), x[0], indexing="ij"),
    "meshgrid xy": lambda x, i: torch.meshgrid(x[:, 0], x[0], x.new_ones(2), indexing="xy"),
    "meshgrid of one": lambda x, i: torch.meshgrid([x[:, 1]], indexing="ij"),
    "var": lambda x, i: x.var(),
    "var of all": lambda x, i: x.var(False),
    "var along": lambda x, i: torch.var(x, 1, unbiased=False, keepdim=True),
    "var of rows": lambda x, i: x.var(0),
    "std": lambda x, i: x.std((0, 1), correction=2),
    "std along": lambda x, i: torch.std(x, dim=-1, correction=0),
    "var_mean": lambda x, i: torch.var_mean(x, -1, keepdim=True),
    "std_mean": lambda x, i: torch.std_mean(x, 0),
    "outer": lambda x, i: torch.outer(x[0], torch.arange(3)) + x[1].outer(x[0])[:, :3],
    "scatter": lambda x, i: torch.zeros_like(x).scatter(1, i, x),
    "scatter of a part": lambda x, i: torch.scatter(x, 1, i[:, :2], x + 1),
    "scatter of a number": lambda x, i: torch.scatter(x, 1, i[:, :2], 2.5),
    "scatter in place": lambda x, i: torch.zeros(x.shape[0], 7).scatter_(1, i[:, :1], 1.0) + x.sum(),
    "scatter with a reduction": lambda x, i: x.scatter(1, i[:, :3], 0.5, reduce="multiply"),
    "scatter_add": lambda x, i: torch.zeros_like(x).scatter_add(0, i.clamp(max=x.shape[0] - 1), x),
    "index_add": lambda x, i: x.index_add(1, i[0], x, alpha=0.5),
    "index_add in place": lambda x, i: torch.zeros(8, x.shape[1]).index_add_(0, torch.arange(x.shape[0]), x),
    "index_copy": lambda x, i: torch.index_copy(x, 1, i[0], x + 1),
    "two tensors as an index": lambda x, i: x[i[:, 0].clamp(max=x.shape[0] - 1), i[:, 1]],
    "two of which one is negative": lambda x, i: x.unsqueeze(0).expand(2, -1, -1)[:, i[0, :2] * 0 - 1, -1 - i[0, :2]],
    "triu of a size": lambda x, i: x.triu(x.shape[0] - 2) + x.tril(-x.shape[0] + 3),
}  # fmt: skip


class Through(nn.Module):
    def __init__(self, call: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor, i: Tensor) -> Any:
        return self.call(x * 1.5, i)


def given(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 5, generator=generator)
    return x, torch.stack([torch.randperm(5, generator=generator) for _ in range(rows)])


@pytest.mark.parametrize("name", CALLS)
def test_its_values_are_torchs(name: str, tmp_path: Path) -> None:
    model, example = Through(CALLS[name]).eval(), given(4)
    made = qcompiler.prepare_fx(model, qcompiler.QConfigMapping().set_global(None), example, backend="onnx")
    qcompiler.calibrate(made, [example], progress=False)
    opened = session(qcompiler.export_onnx(made, tmp_path / "net.onnx"))
    open_rows = opened.get_inputs()[0].shape[0] != 4
    for args in (example, given(3), given(6)) if open_rows else (example,):
        for found, expected in zip(run(opened, args), tensors(model(*args)), strict=True):
            torch.testing.assert_close(found, expected)
