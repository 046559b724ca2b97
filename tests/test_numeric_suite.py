"""The numeric suite on both flows; torch.ao's own suite is the oracle for its shapes and figures on eager models."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as ao
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.ns import _numeric_suite as oracle
from torch.ao.ns.fx import utils as oracle_metrics

import qcompiler
from qcompiler import quantization
from qcompiler.errors import ConfigError, InputError
from qcompiler.nn import quantized as nnq
from qcompiler.quantization import numeric_suite as ns
from tests.flow import randn, randomized


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


OURS = (quantization, nnq.FloatFunctional)
TORCHS = (ao, FloatFunctional)


class Block(nn.Module):
    """With the stubs of the eager flow, ours or torch.ao's, or without, as the graph flow has it."""

    def __init__(self, kit: Any) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.skip = kit[1]() if kit else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.conv(x)))
        return y + x if self.skip is None else self.skip.add(y, x)


class Net(nn.Module):
    def __init__(self, kit: Any = None) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3), nn.Sequential(Block(kit), Block(kit))
        self.shared, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 5)
        self.quant, self.dequant = (kit[0].QuantStub(), kit[0].DeQuantStub()) if kit else (nn.Identity(), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.stem(self.quant(x)))
        return self.dequant(self.fc(self.shared(self.shared(y)).mean([2, 3])))


X = randn(2, 3, 8, 8)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return randomized(Net())


@pytest.fixture(scope="module")
def compiled(net: nn.Module) -> nn.Module:
    return qcompiler.quantize(net, [X], progress=False)


def converted(kit: Any) -> tuple[nn.Module, nn.Module]:
    """A fused float model and the eager conversion of it."""
    flow = kit[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        fused = flow.fuse_modules(randomized(Net(kit)), [[f"body.{i}.{n}" for n in ("conv", "bn", "relu")] for i in (0, 1)])
        prepared = copy.deepcopy(fused)
        prepared.qconfig = flow.get_default_qconfig("x86")
        flow.prepare(prepared, inplace=True)
        prepared(X)
        return fused, flow.convert(prepared)


@pytest.fixture(scope="module")
def eager() -> tuple[nn.Module, nn.Module]:
    return converted(TORCHS)


@pytest.fixture(scope="module")
def ours() -> tuple[nn.Module, nn.Module]:
    return converted(OURS)


def states(model: nn.Module) -> tuple[list[str], list[int]]:
    """What comparing must leave alone: the modules and their hooks."""
    modules = dict(model.named_modules())
    return [f"{n} {type(m).__name__}" for n, m in modules.items()], [len(m._forward_hooks) for m in modules.values()]


# Metrics


def test_metrics() -> None:
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    assert ns.compute_sqnr(a, b) == pytest.approx(20.0)
    assert ns.compute_normalized_l2_error(a, b) == pytest.approx(0.1)
    assert ns.compute_cosine_similarity(a, b) == pytest.approx(27 / 5 / math.hypot(3, 4.5))
    assert ns.compute_sqnr(a, a) == math.inf and ns.compute_normalized_l2_error(a, a) == 0
    assert ns.compute_sqnr(a * 0, b) == -math.inf and ns.compute_normalized_l2_error(a * 0, b) == math.inf


@pytest.mark.parametrize("name", ["compute_sqnr", "compute_normalized_l2_error", "compute_cosine_similarity"])
def test_metrics_agree_with_torchs(name: str) -> None:
    a, b = randn(3, 4), randn(3, 4, seed=1)
    quantized = torch.quantize_per_tensor(b, 0.1, 0, torch.qint8)
    expected = getattr(oracle_metrics, name)
    assert getattr(ns, name)(a, b) == pytest.approx(float(expected(a, b)), rel=1e-5)
    assert getattr(ns, name)(a, quantized) == pytest.approx(float(expected(a, quantized)), rel=1e-5)
    assert getattr(ns, name)([a, {"b": b}], [b, {"b": a}]) == pytest.approx(getattr(ns, name)(torch.cat([a, b]), torch.cat([b, a])))


@pytest.mark.parametrize("name", ["compute_sqnr", "compute_normalized_l2_error", "compute_cosine_similarity"])
def test_values_of_other_shapes_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        getattr(ns, name)(randn(3, 4), randn(4))
    with pytest.raises(InputError):
        getattr(ns, name)([randn(3)], [randn(3), randn(3)])


# Weights


def test_weights_of_the_graph_flow(net: nn.Module, compiled: nn.Module) -> None:
    floats = qcompiler.fuse_fx(net, (X,)).state_dict()
    pairs = ns.compare_weights(floats, compiled.state_dict())
    assert set(pairs) == {f"{path}.weight" for path in ("stem", "body.0.conv", "body.1.conv", "shared", "fc")}
    for pair in pairs.values():
        assert pair["quantized"].dtype is torch.qint8 and pair["quantized"].q_per_channel_axis() == 0
        assert ns.compute_sqnr(pair["float"], pair["quantized"].dequantize()) > 35


def test_weights_of_an_eager_model_are_torchs(eager: tuple[nn.Module, nn.Module]) -> None:
    states = [model.state_dict() for model in eager]
    expected, pairs = oracle.compare_weights(*states), ns.compare_weights(*states)
    assert set(pairs) == {key for key, pair in expected.items() if pair["quantized"].is_quantized}
    for key, pair in pairs.items():
        assert torch.equal(pair["float"], expected[key]["float"]) and torch.equal(pair["quantized"], expected[key]["quantized"])


def test_weights_of_our_eager_flow(ours: tuple[nn.Module, nn.Module]) -> None:
    floats, quantized = ours
    pairs = ns.compare_weights(floats.state_dict(), quantized.state_dict())
    assert set(pairs) == {f"{path}.weight" for path in ("stem", "body.0.conv", "body.1.conv", "shared", "fc")}
    for key, pair in pairs.items():
        module = quantized.get_submodule(key.removesuffix(".weight"))
        assert torch.equal(pair["quantized"], module.weight()) and ns.compute_sqnr(pair["float"], pair["quantized"]) > 35


RECURRENT = {"LSTM": (nn.LSTM(8, 4, 2, bidirectional=True), 8), "GRUCell": (nn.GRUCell(8, 4), 2), "Linear": (nn.Linear(8, 4), 1)}


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("qconfig, least", [(quantization.default_dynamic_qconfig, 40), (quantization.float16_dynamic_qconfig, 65)])
def test_weights_of_dynamic_modules(name: str, qconfig: Any, least: float) -> None:
    module, weights = copy.deepcopy(RECURRENT[name][0]).eval(), RECURRENT[name][1]
    module.qconfig = qconfig
    quantized = getattr(nnq.dynamic, name).from_float(module)
    pairs = ns.compare_weights(module.state_dict(), quantized.state_dict())
    assert len(pairs) == weights and all(ns.compute_sqnr(*pair.values()) > least for pair in pairs.values())


@pytest.mark.parametrize("width, bits, least", [(8, "", 40), (7, "", 40), (8, "_4bit", 18)])
def test_weights_of_embeddings(width: int, bits: str, least: float) -> None:
    module = nn.Embedding(10, width)
    module.qconfig = getattr(quantization, f"float_qparams_weight_only_qconfig{bits}")
    pairs = ns.compare_weights(module.state_dict(), nnq.Embedding.from_float(module).state_dict())
    assert set(pairs) == {"weight"} and ns.compute_sqnr(*pairs["weight"].values()) > least


def test_the_channel_axis_is_found_by_size_and_else_by_value() -> None:
    weight, scales = randn(4, 4, 1, 1) * torch.tensor([1.0, 20, 0.1, 5]).view(1, 4, 1, 1), torch.tensor([0.02, 0.4, 0.002, 0.1])
    int8 = (weight / scales.view(1, 4, 1, 1)).round().to(torch.int8)
    state = {"up.weight": int8, "up.weight_scale": scales.double(), "up.weight_zero_point": torch.zeros(4, dtype=torch.int64)}
    pair = ns.compare_weights({"up.weight": weight}, state)["up.weight"]
    assert pair["quantized"].q_per_channel_axis() == 1 and ns.compute_sqnr(*pair.values()) > 30


def test_only_quantized_weights_are_paired() -> None:
    floats = {"a.weight": randn(2, 2), "b.weight": randn(2, 2), "b.bias": randn(2)}
    state = {**floats, "a.weight": floats["a.weight"].half(), "c.weight": randn(2).half()}
    assert set(ns.compare_weights(floats, state)) == {"a.weight"}


# Values


def test_outputs_of_the_graph_flow(net: nn.Module, compiled: nn.Module) -> None:
    before = states(net)
    pairs = ns.compare_model_outputs(net, compiled, X)
    layers = ("stem", "body.0.conv", "body.0.add", "body.1.conv", "body.1.add_1", "shared", "mean", "fc")
    assert set(pairs) == {f"{layer}.stats" for layer in layers}
    assert len(pairs["shared.stats"]["float"]) == len(pairs["shared.stats"]["quantized"]) == 2
    assert torch.equal(pairs["fc.stats"]["float"][0], net(X)) and torch.equal(pairs["fc.stats"]["quantized"][0], compiled(X))
    with torch.no_grad():
        block = net.body[0]
        assert torch.allclose(pairs["body.0.conv.stats"]["float"][0], block.relu(block.bn(block.conv(net.stem(X)))))
    assert states(net) == before


def test_outputs_of_an_eager_model_are_torchs(eager: tuple[nn.Module, nn.Module]) -> None:
    before = [states(model) for model in eager]
    pairs = ns.compare_model_outputs(*eager, X)
    assert [states(model) for model in eager] == before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = oracle.compare_model_outputs(*copy.deepcopy(eager), X)
    assert set(pairs) >= set(expected) and "body.0.skip.stats" in pairs
    for key, pair in expected.items():
        assert len(pairs[key]["float"]) == (2 if key == "shared.stats" else 1)
        assert all(torch.equal(pair[side][0], pairs[key][side][0]) for side in pair), key  # torch's logs a fused module twice


LAYERS = ("stem", "body.0.conv", "body.0.skip", "body.1.conv", "body.1.skip", "shared", "fc", "quant", "dequant")


def test_outputs_of_our_eager_flow(ours: tuple[nn.Module, nn.Module]) -> None:
    floats, quantized = ours
    before = [states(model) for model in ours]
    pairs = ns.compare_model_outputs(floats, quantized, X)
    assert [states(model) for model in ours] == before
    assert set(pairs) == {f"{layer}.stats" for layer in LAYERS} and len(pairs["shared.stats"]["quantized"]) == 2
    assert all(ns.compute_sqnr(*pair.values()) > 25 for pair in pairs.values())
    assert pairs["body.0.skip.stats"]["quantized"][0].q_scale() == quantized.body[0].skip.scale
    assert torch.equal(pairs["dequant.stats"]["quantized"][0], quantized(X)) and torch.equal(pairs["dequant.stats"]["float"][0], floats(X))


def test_a_float_model_that_was_not_fused_is_refused(ours: tuple[nn.Module, nn.Module]) -> None:
    """Its convolution is not what the quantized one with batch norm and ReLU is to be compared with."""
    plain = randomized(Net(OURS))
    with pytest.raises(ConfigError, match=r"body.0.conv is a ConvReLU2d, fused from several modules"):
        ns.compare_model_outputs(plain, ours[1], X)
    with pytest.raises(ConfigError, match=r"body\.0\.conv is a ConvReLU2d, fused"):
        ns.compare_model_stub(plain, ours[1], [nn.Conv2d], X)


def test_prepared_models_keep_their_loggers(eager: tuple[nn.Module, nn.Module]) -> None:
    floats, quantized = copy.deepcopy(eager)
    ns.prepare_model_outputs(floats, quantized, allow_list={nn.Linear, type(quantized.fc)})
    for _ in range(3):
        floats(X), quantized(X)
    assert set(ns.get_logger_dict(quantized, "net")) == {"net.fc.stats"}
    pairs = ns.get_matching_activations(floats, quantized)
    assert set(pairs) == {"fc.stats"} and len(pairs["fc.stats"]["quantized"]) == 3


def test_a_value_is_kept_before_it_is_changed_in_place() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)).eval()
    pairs = ns.compare_model_outputs(model, copy.deepcopy(model), randn(8, 3))
    assert float(pairs["0.stats"]["float"][0].min()) < 0


class Oddly(nn.Module):
    """Paths that torch.fx respells."""

    def __init__(self) -> None:
        super().__init__()
        self.inConv, self.seq = nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.seq(self.inConv(x))
        return y.reshape(y.size(0), -1) if y.shape[1] == 4 else y  # a size is no value to compare


def test_keys_are_the_users_paths() -> None:
    model = nn.Sequential(Oddly()).eval()
    pairs = ns.compare_model_outputs(model, qcompiler.quantize(model, [X], progress=False), X)
    assert set(pairs) == {f"{path}.stats" for path in ("0.inConv", "0.seq.0", "0.seq.1.0", "0.reshape")}


# Shadows


def test_stubs_of_an_eager_model_are_torchs(eager: tuple[nn.Module, nn.Module]) -> None:
    types = [nn.Linear, nn.Conv2d, FloatFunctional]
    before = states(eager[1])
    pairs = ns.compare_model_stub(*eager, types, X)
    assert states(eager[1]) == before

    class Whole(oracle.ShadowLogger):  # torch's own keeps the first item of a batch alone
        def forward(self, x: Any, y: Any) -> None:
            super().forward(x[None], y[None])

    expected = oracle.compare_model_stub(*copy.deepcopy(eager), types, X, logger_cls=Whole)
    assert set(pairs) == set(expected) == {f"{p}.stats" for p in ("stem", "shared", "fc", "body.0.skip", "body.1.skip")}
    for key, pair in expected.items():
        assert all(torch.equal(a[0], b) for side in pair for a, b in zip(pair[side], pairs[key][side], strict=True)), key


def test_stubs_of_our_eager_flow(ours: tuple[nn.Module, nn.Module]) -> None:
    fused = type(ours[0].body[0].conv)
    for types, layers in (([nn.Conv2d, nn.Linear, fused, nnq.FloatFunctional], set(LAYERS) - {"quant", "dequant"}),
                          ([Block], {"body.0", "body.1"})):  # fmt: skip
        pairs = ns.compare_model_stub(*ours, types, X)
        assert set(pairs) == {f"{layer}.stats" for layer in layers}
        assert all(ns.compute_sqnr(a, b) > 30 for pair in pairs.values() for a, b in zip(pair["float"], pair["quantized"], strict=True))


@pytest.mark.parametrize("types, paths", [([nn.Conv2d, nn.Linear], {"stem", "shared", "fc", "body.0.conv", "body.1.conv"}),
                                          ([Block], {"body.0", "body.1"})])  # fmt: skip
def test_stubs_of_the_graph_flow(net: nn.Module, compiled: nn.Module, types: list[Any], paths: set[str]) -> None:
    """The float side is the module itself on inputs that are rounded as the quantized graph rounds them."""
    pairs = ns.compare_model_stub(net, compiled, types, X)
    assert set(pairs) == {f"{path}.stats" for path in paths}
    outputs = ns.compare_model_outputs(net, compiled, X)
    for pair in pairs.values():
        assert all(ns.compute_sqnr(a, b) > 25 for a, b in zip(pair["float"], pair["quantized"], strict=True))
    if Block in types:
        given = outputs["stem.stats"]["float"][0]
        with torch.no_grad():
            assert ns.compute_sqnr(net.body[0](given), pairs["body.0.stats"]["float"][0]) > 35  # not equal: the input was rounded


def test_a_stub_shows_the_module_at_fault_alone(net: nn.Module, compiled: nn.Module) -> None:
    broken = copy.deepcopy(compiled)
    broken.get_buffer("body.0.conv.weight").mul_(-1)
    broken.rebuild()
    pairs = ns.compare_model_stub(net, broken, [Block], X)
    sqnr = {key: ns.compute_sqnr(pair["float"], pair["quantized"]) for key, pair in pairs.items()}
    assert sqnr["body.0.stats"] < 10 and sqnr["body.1.stats"] > 25
    totals = ns.compare_model_outputs(net, broken, X)
    assert ns.compute_sqnr(*totals["body.1.add_1.stats"].values()) < 15


def test_shadows_hand_on_what_the_quantized_module_returns(eager: tuple[nn.Module, nn.Module]) -> None:
    floats, quantized = copy.deepcopy(eager)
    ns.prepare_model_with_stubs(floats, quantized, [nn.Linear], ns.ShadowLogger)
    assert isinstance(quantized.fc, ns.Shadow) and torch.equal(quantized(X), eager[1](X))
    assert set(ns.get_logger_dict(quantized)) == {"fc.stats"}


def test_a_logger_of_ones_own(net: nn.Module, compiled: nn.Module, eager: tuple[nn.Module, nn.Module]) -> None:
    class Error(ns.Logger):
        def __init__(self) -> None:
            super().__init__()
            self.stats["sqnr"] = []

        def forward(self, x: Any, y: Any) -> None:
            self.stats["sqnr"].append(ns.compute_sqnr(y, x))

    for models in ((net, compiled), eager):
        found = ns.compare_model_stub(*models, [nn.Linear], X, logger_cls=Error)
        assert found["fc.stats"]["sqnr"][0] > 25


# What does not fit


def test_errors(net: nn.Module, compiled: nn.Module, eager: tuple[nn.Module, nn.Module]) -> None:
    with pytest.raises(ConfigError, match="no module of the types GRU"):
        ns.compare_model_stub(net, compiled, [nn.GRU], X)
    with pytest.raises(ConfigError, match="nothing to compare"):
        ns.compare_model_stub(*eager, [nn.GRU], X)
    with pytest.raises(ConfigError, match="nothing to compare"):
        ns.compare_model_outputs(*eager, X, allow_list=[nn.GRU])
    with pytest.raises(ConfigError, match="graph flow"):
        ns.prepare_model_outputs(net, compiled)
    with pytest.raises(ConfigError, match="graph flow"):
        ns.prepare_model_with_stubs(net, compiled, [nn.Conv2d])
    with pytest.raises(ConfigError, match="train mode"):
        ns.compare_model_outputs(copy.deepcopy(net).train(), eager[1], X)
