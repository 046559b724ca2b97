"""Functions of torch's C++ code that have no public name: float ops of a module, which no file may name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler import QConfigMapping, convert_fx, load, prepare_fx, save
from qcompiler.artifact.write import MissingModulesWarning
from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.program import Program
from qcompiler.errors import ConfigError, QCompilerError
from tests.flow import randn

CALLS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "_softmax": lambda m, x: torch._softmax(x, 1, False),  # type: ignore[attr-defined]
    "_shape_as_tensor": lambda m, x: x * torch._shape_as_tensor(x)[0],  # type: ignore[attr-defined]
    "_foreach_mul": lambda m, x: torch._foreach_mul([x, x], 2.0)[1],
    "grouped_mm": lambda m, x: F.grouped_mm(x, m.experts, offs=torch.tensor([2, 4], dtype=torch.int32)),
}


class Model(nn.Module):
    def __init__(self, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l, self.experts, self.call = nn.Linear(8, 8), nn.Parameter(torch.randn(2, 8, 8)), call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, self.l(x))


@pytest.mark.parametrize("name", CALLS)
@torch.no_grad()
def test_private_functions_are_called(name: str, tmp_path: Path) -> None:
    model, x = Model(CALLS[name]).eval(), randn(4, 8)
    module = convert_fx(prepare_fx(model, QConfigMapping().set_global(None), (x,)))
    torch.testing.assert_close(module(x), model(x))
    if name == "grouped_mm":
        save(module, tmp_path / "m.qc")
        assert torch.equal(load(tmp_path / "m.qc")(x), module(x))
        return
    with pytest.warns(MissingModulesWarning, match=rf"torch\.{name}"):
        save(module, tmp_path / "m.qc")
    with pytest.raises(ConfigError, match=rf"modules= for torch\.{name}"):
        load(tmp_path / "m.qc")
    assert torch.equal(load(tmp_path / "m.qc", modules={f"torch.{name}": getattr(torch, name)})(x), module(x))
    forged = module.program.to_json().replace(f"external.torch.{name}", f"torch.{name}")
    with pytest.raises(QCompilerError):
        registry.resolve(next(c.op for c in Program.from_json(forged).calls if c.op.endswith(name)))
