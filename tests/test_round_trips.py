"""Every workflow's int8 model gives the same bits after TorchScript, torch.save, deepcopy, and its state_dict in another conversion."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler import QConfigMapping, calibrate, convert_fx, get_default_qconfig, prepare_fx, prepare_qat_fx
from qcompiler import quantization as q
from tests.flow import ENGINES, randn

pytestmark = [
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),  # torch.load of quantized tensors warns of its own doing
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]
IMAGES, STEPS, WORDS = randn(2, 3, 8, 8), randn(3, 2, 8), torch.tensor([[1, 5, 9], [0, 2, 2]])


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def stubbed() -> nn.Module:
    return nn.Sequential(q.QuantStub(), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4), q.DeQuantStub())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])  # type: ignore[no-any-return]


def words() -> nn.Module:
    return nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 4))


def graph(make: Callable[[], nn.Module], x: Tensor, qconfig: Any) -> nn.Module:
    prepared = prepare_fx(make().eval(), QConfigMapping().set_global(qconfig), (x,))
    return convert_fx(prepared)


def graph_static() -> nn.Module:
    prepared = prepare_fx(net().eval(), None, (IMAGES,))
    calibrate(prepared, [IMAGES])
    return convert_fx(prepared)


def graph_qat() -> nn.Module:
    prepared = prepare_qat_fx(net().train(), None, (IMAGES,))
    prepared(IMAGES)  # the observers and the statistics of the BatchNorm move
    return convert_fx(prepared)


def eager(train: bool) -> nn.Module:
    model = stubbed().train(train)
    model.qconfig = q.get_default_qat_qconfig() if train else get_default_qconfig()  # type: ignore[assignment]
    prepared = q.prepare_qat(model) if train else q.prepare(model)
    prepared(IMAGES)
    return q.convert(prepared.eval())


WORKFLOWS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "graph static": (graph_static, IMAGES),
    "graph QAT": (graph_qat, IMAGES),
    "graph dynamic, LSTM and linear": (lambda: graph(Recurrent, STEPS, q.default_dynamic_qconfig), STEPS),
    "graph dynamic, float16": (lambda: graph(Recurrent, STEPS, q.float16_dynamic_qconfig), STEPS),
    "graph weight-only": (lambda: graph(net, IMAGES, q.default_weight_only_qconfig), IMAGES),
    "graph embedding": (lambda: graph(words, WORDS, q.float_qparams_weight_only_qconfig), WORDS),
    "graph embedding, 4 bits": (lambda: graph(words, WORDS, q.float_qparams_weight_only_qconfig_4bit), WORDS),
    "eager static": (lambda: eager(False), IMAGES),
    "eager QAT": (lambda: eager(True), IMAGES),
    "eager dynamic": (lambda: q.quantize_dynamic(Recurrent().eval()), STEPS),
    "eager dynamic, float16": (lambda: q.quantize_dynamic(Recurrent().eval(), dtype=torch.float16), STEPS),
    "eager embedding": (lambda: q.quantize_dynamic(words().eval(), {nn.Embedding: q.float_qparams_weight_only_qconfig}), WORDS),
}


def scripted(module: nn.Module, another: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def pickled(module: nn.Module, another: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def loaded(module: nn.Module, another: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    another.load_state_dict(torch.load(buffer, weights_only=False))
    return another


def copied(module: nn.Module, another: nn.Module) -> Any:
    return copy.deepcopy(module)


TRIPS = (scripted, pickled, loaded, copied)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_the_same_bits(workflow: str, engine: str) -> None:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        make, x = WORKFLOWS[workflow]
        torch.manual_seed(0)
        module = make()
        with torch.no_grad():
            wanted = module(x)
            for trip in TRIPS:
                torch.manual_seed(1)
                another = make()  # of other weights
                assert not torch.equal(another(x), wanted)
                assert torch.equal(trip(module, another)(x), wanted), trip.__name__
                assert torch.equal(module(x), wanted)
    finally:
        torch.backends.quantized.engine = before
