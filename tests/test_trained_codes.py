"""The codes between which training cut results go with a state_dict: a module that loads another's gives what that one gives."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qcompiler import QConfig
from qcompiler.errors import ConfigError
from qcompiler.fake_quantize import FakeQuantize
from qcompiler.nn.quantized import FloatFunctional
from qcompiler.quantization import DeQuantStub, QuantStub, convert, default_weight_fake_quant, prepare_qat


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quant, self.linear, self.bn, self.add = (
            QuantStub(),
            nn.Linear(4, 4),
            nn.Sequential(nn.Linear(4, 4), nn.ELU()),
            FloatFunctional(),
        )
        self.dequant = DeQuantStub()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(self.quant(x))
        return self.dequant(self.add.add(self.bn(y), y))  # type: ignore[no-any-return]


def trained(most: int) -> Any:
    model = Net().train()
    model.qconfig = QConfig(FakeQuantize.with_args(quant_min=0, quant_max=most), default_weight_fake_quant)  # type: ignore[assignment]
    prepared = prepare_qat(model)
    torch.manual_seed(1)
    prepared(torch.randn(64, 4))
    return convert(prepared.eval())


X = 4 * torch.randn(64, 4, generator=torch.Generator().manual_seed(2))  # beyond what training saw


@pytest.mark.parametrize(("own", "loaded"), [(63, 127), (127, 63)])
def test_a_state_dict_brings_its_codes(own: int, loaded: int, tmp_path: Path) -> None:
    one, other = trained(own), trained(loaded)
    assert not torch.equal(one(X), other(X))
    torch.save(other.state_dict(), tmp_path / "state.pt")
    one.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for module in (one, copy.deepcopy(one), pickle.loads(pickle.dumps(one)), torch.jit.script(one)):
        assert torch.equal(module(X), other(X))


def test_tensors_alone_leave_a_modules_codes() -> None:
    one, before = trained(63), trained(63)(X)
    one.load_state_dict(dict(trained(63).state_dict()))
    assert torch.equal(one(X), before)


@pytest.mark.parametrize("codes", ["0..63", [0], [0, 256], [63, 0], [0.0, 63.0], 63])
@pytest.mark.parametrize("path", ["quant", "linear", "add"])
def test_what_are_no_codes_is_refused(path: str, codes: object) -> None:
    one = trained(63)
    state = one.state_dict()
    state._metadata[path]["codes"] = codes
    with pytest.raises(ConfigError, match=f"{path}.*no two codes of 0 to 255"):
        one.load_state_dict(state)
