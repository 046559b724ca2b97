"""Rows of another width than a layer's weights are an error, on every engine: some of torch's kernels read on in memory instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.config.qconfig import default_dynamic_qconfig
from qcompiler.errors import ArtifactError, InputError, QCompilerError
from qcompiler.quantization import quantize_dynamic
from tests.flow import ENGINES, randn
from tests.saved_files import changed

LAYERS: dict[str, Any] = {
    "LSTM": lambda: nn.LSTM(8, 6, num_layers=2, bidirectional=True), "GRU": lambda: nn.GRU(8, 6), "LSTMCell": lambda: nn.LSTMCell(8, 6),
    "GRUCell": lambda: nn.GRUCell(8, 6), "RNNCell": lambda: nn.RNNCell(8, 6), "Linear": lambda: nn.Linear(8, 6),
}  # fmt: skip


class Net(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = LAYERS[name]()

    def forward(self, x: Tensor) -> Tensor:
        result = self.layer(x)
        return result[0] if isinstance(result, tuple) else result  # type: ignore[no-any-return]


def example(name: str, width: int = 8) -> Tensor:
    return randn(2, width) if "Cell" in name or name == "Linear" else randn(5, 2, width)


def made(name: str, flow: str, engine: str) -> nn.Module:
    if flow == "eager":
        return quantize_dynamic(Net(name).eval())
    qconfig = default_dynamic_qconfig if flow == "dynamic" else None
    return qcompiler.quantize(Net(name).eval(), [example(name)], qconfig, progress=False, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("flow", ["dynamic", "static", "eager"])
@pytest.mark.parametrize("name", LAYERS)
def test_another_width_is_an_error(name: str, flow: str, engine: str) -> None:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        module = made(name, flow, engine)
        assert module(example(name)).shape[-1] in (6, 12)
        for width in (5, 7, 9, 64):
            with pytest.raises((QCompilerError, RuntimeError)):
                module(example(name, width))
    finally:
        torch.backends.quantized.engine = before


@pytest.mark.parametrize("number", [5, 7, 2**26])
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "Linear"])
def test_a_file_that_says_other_sizes_than_its_weights_is_refused(name: str, number: int, tmp_path: Path) -> None:
    file = tmp_path / "m.qc"
    qcompiler.save(made(name, "dynamic", "qnnpack"), file)  # type: ignore[arg-type]
    data, sizes = file.read_bytes(), 0

    def at(place: int) -> Any:
        def change(program: Any) -> None:
            nonlocal sizes
            for call in program["program"]["calls"]:
                found = [i for i, v in enumerate(call["args"]) if v in (6, 8) and not isinstance(v, bool)]
                if call["op"].endswith("_dynamic"):
                    sizes = len(found)
                    call["args"][found[place]] = number

        return change

    for place in range(2):
        file.write_bytes(changed(data, at(place)))
        with pytest.raises(ArtifactError, match="not those of its weights"):
            qcompiler.load(file)
    assert sizes == 2


class Kept(Net):
    """States are arguments."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        result = self.layer(x, (h, h) if isinstance(self.layer, (nn.LSTM, nn.LSTMCell)) else h)
        return result[0] if isinstance(result, tuple) else result  # type: ignore[no-any-return]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("flow", ["dynamic", "static"])
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "Linear"])
def test_a_state_of_another_size_is_an_error(name: str, flow: str, engine: str) -> None:
    layers = {"LSTM": (4,), "GRU": (1,)}.get(name, ())
    x, right = example(name), (*layers, 2, 6)
    qconfig = default_dynamic_qconfig if flow == "dynamic" else None
    module = qcompiler.quantize(Kept(name).eval(), [(x, randn(*right))], qconfig, progress=False, engine=engine)
    module(x, randn(*right))
    for wrong in ((*layers, 2, 5), (*layers, 2, 7), (*layers, 3, 6), (*layers, 6, 2), (*(5 for _ in layers), 2, 6)):
        if wrong != right:
            with pytest.raises(InputError):
                module(x, randn(*wrong))
