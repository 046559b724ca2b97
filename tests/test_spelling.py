"""Calls that torch takes and that are easily lost: numpy's names of arguments, methods in Python, whole numbers for floats."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from qcompiler.debug import compute_sqnr
from qcompiler.trace.spelling import under_torch_names
from tests.flow import randn

Step = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """A step between two layers, whose result has a row of 8 for each of the batch."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.step = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), step

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.step(self.first(x)))
        return result


def compiled(step: Step) -> tuple[nn.Module, Tensor, nn.Module]:
    model, x = Between(step).eval(), randn(2, 3, 7, 7)
    return model, x, qcompiler.quantize(model, [x], progress=False)


NUMPY: dict[str, tuple[Step, Step]] = {
    "mean": (lambda v: v.mean(axis=(2, 3)), lambda v: v.mean((2, 3))),  # type: ignore[call-overload]
    "keepdims": (lambda v: v.amax(axis=(2, 3), keepdims=True).flatten(1), lambda v: v.amax((2, 3), True).flatten(1)),  # type: ignore[call-arg]
    "cat": (lambda v: torch.cat([v, v], axis=2).mean((2, 3)), lambda v: torch.cat([v, v], 2).mean((2, 3))),
    "stack": (lambda v: torch.stack([v, v], axis=0).mean((0, 3, 4)), lambda v: torch.stack([v, v]).mean((0, 3, 4))),
    "squeeze": (lambda v: v.mean((2, 3), True).squeeze(axis=3).squeeze(axis=2), lambda v: v.mean((2, 3), True).squeeze(3).squeeze(2)),
    "softmax": (lambda v: torch.softmax(v, axis=1).mean((2, 3)), lambda v: torch.softmax(v, 1).mean((2, 3))),
    "pieces": (lambda v: sum(v.unbind(axis=3)).mean(2), lambda v: sum(v.unbind(3)).mean(2)),
    "input": (lambda v: torch.relu(input=v).mean((2, 3)), lambda v: torch.relu(v).mean((2, 3))),
    "operands": (lambda v: torch.add(x1=v, x2=v).mean((2, 3)), lambda v: torch.add(v, v).mean((2, 3))),
    "pair": (lambda v: v.max(axis=3, keepdims=False)[0].mean(axis=2), lambda v: v.max(3)[0].mean(2)),
}


@pytest.mark.parametrize("name", NUMPY)
def test_numpys_names_of_arguments_are_torchs(name: str) -> None:
    """The same program, to the bit, as that of the call in torch's own words."""
    (model, x, module), (_, _, plain) = map(compiled, NUMPY[name])
    assert torch.equal(module(x), plain(x)) and float(compute_sqnr(model(x), module(x))) > 20
    ops = [[(row.op, row.int8) for row in qcompiler.explain(m).rows] for m in (module, plain)]
    assert ops[0] == ops[1] and all(int8 for _, int8 in ops[0])
    assert torch.equal(torch.jit.script(module)(x), module(x))


def test_names_that_are_torchs_own_stay() -> None:
    x, y = torch.arange(3.0), torch.ones(3)
    assert under_torch_names(torch.trapezoid, (y,), {"x": x}) == ((y,), {"x": x})
    assert under_torch_names(torch.trapezoid, (), {"y": y, "x": x, "axis": 0}) == ((), {"y": y, "x": x, "dim": 0})
    given = {"input": x, "scales": y, "zero_points": y, "axis": 0, "dtype": torch.qint8}
    assert under_torch_names(torch.quantize_per_channel, (), given)[1]["axis"] == 0
    assert under_torch_names(F.normalize, (x,), {"axis": 0}) == ((x,), {"axis": 0})  # Python refuses it, with its own words


SCRIPTED: dict[str, Step] = {
    "norm": lambda v: v.norm(dim=(2, 3)),
    "norm of p": lambda v: v.norm(1, 3, True).mean((2, 3)),
    "norm of all": lambda v: (v / v.norm()).mean((2, 3)),
    "unique": lambda v: v.mean((2, 3)) * v.round().unique().sum(),
    "bfloat16": lambda v: v.bfloat16().float().mean((2, 3)),
    "normalize": lambda v: F.normalize(v, 2, 1).mean((2, 3)),
    "normalize by name": lambda v: F.normalize(v, p=1, dim=-1).mean((2, 3)),
    "leaky_relu": lambda v: F.leaky_relu(v.nan_to_num(1), 1).mean((2, 3)),
    "local_response_norm": lambda v: F.local_response_norm(v, 3, 1, 1, 2).mean((2, 3)),
    "quantile": lambda v: v.flatten(2).quantile(1, 2),
    "logit": lambda v: torch.sigmoid(v).logit(eps=0).mean((2, 3)),
    "dropout": lambda v: F.dropout(v, 1, training=False).mean((2, 3)),
}


@pytest.mark.parametrize("name", SCRIPTED)
def test_a_script_spells_what_torchscript_takes(name: str) -> None:
    _, x, module = compiled(SCRIPTED[name])
    assert torch.equal(torch.jit.script(module)(x), module(x))
