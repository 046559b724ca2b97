"""A statement runs as it stands for the callers for which it cannot be followed; for others it is followed, and what reads it as well."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qcompiler as qc


def decode(codes: Tensor, number: int) -> Tensor:
    if number > 0:  # a size for one caller, a number of data for the other
        codes = codes.reshape(number, -1)
    return codes * 2


def decode_each(codes: Tensor, numbers: list[int]) -> Tensor:
    return torch.cat([decode(codes, number) for number in numbers])


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.l(x[x[:, 0] > 0])
        return decode(kept, kept.shape[0])


class Detector(nn.Module):
    """Decodes with a number that sizes tell, goes over the pieces, and decodes with one that data tells."""

    def __init__(self, order: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.order = nn.Linear(8, 8), order
        self.head, self.other = Head(), Head()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.first(x)
        if self.order == "data first":
            found = self.head(y)
            pieces = decode(y, x.shape[0])
        elif self.order == "in a comprehension":
            pieces = decode_each(y, [x.shape[0]])
            found = self.head(y)
        else:
            pieces = decode(y, x.shape[0])
            found = self.head(y)
        total = torch.zeros(8)
        for piece in pieces:  # which is refused where their number depends on data
            total = total + piece
        return (total, found, self.other(y)) if self.order == "two heads" else (total, found)


@pytest.mark.parametrize("order", ["sizes first", "data first", "in a comprehension", "two heads"])
def test_other_callers_are_followed(order: str) -> None:
    model, x = Detector(order).eval(), torch.randn(6, 8)
    module = qc.quantize(model, [x], progress=False)
    noted = [remark for remark in qc.remarks(module) if remark.code == "float-statement" and remark.pass_name == "trace"]
    assert {remark.where.module_path for remark in noted} <= {"head", "other"} and noted
    assert not [remark for remark in qc.remarks(module) if remark.code == "leaf"]
    assert qc.explain(module).int8_mac_share == 1
    with torch.no_grad():
        total = model(x)[0]
    assert float(qc.debug.compute_sqnr(total, module(x)[0])) > 25
    for given in (x, x.flip(0), -x):  # other numbers of hits
        results = module(given)
        kept = model.first(given)[:, 0] > 0
        assert abs(len(results[1]) - int(kept.sum())) <= 1
    with pytest.raises(qc.InputError):  # the number of pieces is a size, and held
        module(torch.randn(4, 8))
