"""The FX form of the numeric suite: result shapes as torch.ao's, values those of the two models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.errors import ConfigError
from qcompiler.quantization import numeric_suite_fx as ns
from tests.flow import flow, randn, randomized

KEYS = {"type", "values", "prev_node_name", "ref_node_name", "prev_node_target_type", "ref_node_target_type", "index_within_arg",
        "index_of_arg", "fqn"}  # fmt: skip


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.conv(x)))
        return self.fc((y + y.flip(-1)).mean([2, 3]))


X = randn(2, 3, 8, 8)


@pytest.fixture(scope="module")
def made() -> Any:
    torch.manual_seed(0)
    return flow(randomized(Net()), (X,))


def only(results: Any, layer: str, kind: str, model: str) -> dict[str, Any]:
    (entry,) = results[layer][kind][model]
    assert entry.keys() >= KEYS
    return entry  # type: ignore[no-any-return]


def test_weights(made: Any) -> None:
    results = ns.extract_weights("a", made.prepared, "b", made.module)
    assert set(results) == {"conv", "fc"} and only(results, "conv", "weight", "a")["fqn"] == "conv"
    ns.extend_logger_results_with_comparison(results, "a", "b", ns.compute_sqnr, "sqnr")
    assert all(only(results, layer, "weight", "b")["sqnr"][0] > 35 for layer in results)


@pytest.mark.parametrize("form", ["prepared", "fused"])
def test_values(made: Any, form: str) -> None:
    torch.manual_seed(0)
    model = made.prepared if form == "prepared" else qcompiler.fuse_fx(randomized(Net()), (X,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    a, b = ns.add_loggers("a", model, "b", made.module, ns.OutputLogger)
    batches = [X, X * 9]
    outputs = [(a(x), b(x)) for x in batches]
    results = ns.extract_logger_info(a, b, ns.OutputLogger, "b")
    assert {"conv", "fc", "mean"} < set(results)
    for model_name, position in (("a", 0), ("b", 1)):
        values = only(results, "fc", "node_output", model_name)["values"]
        assert all(torch.equal(value, output[position]) for value, output in zip(values, outputs, strict=True))
    ns.extend_logger_results_with_comparison(results, "a", "b", ns.compute_sqnr, "sqnr")
    first, outside = only(results, "conv", "node_output", "b")["sqnr"]
    assert first > 25 and outside < 15  # nine times the calibrated range is clipped
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # no observer saw the data


def test_inputs(made: Any) -> None:
    a, b = ns.add_loggers("a", made.prepared, "b", made.module, ns.OutputLogger, should_log_inputs=True)
    a(X), b(X)
    results = ns.extract_logger_info(a, b, ns.OutputLogger, "a")
    (layer,) = [layer for layer in results if "add" in layer]
    first, second = results[layer]["node_input"]["a"]
    assert (first["index_of_arg"], second["index_of_arg"]) == (0, 1)
    assert torch.equal(first["values"][0].flip(-1), second["values"][0])


def test_shadows(made: Any) -> None:
    both = ns.add_shadow_loggers("a", made.prepared, "b", made.module, ns.OutputLogger)
    assert torch.equal(both(X), made.module(X))
    results = ns.extract_shadow_logger_info(both, ns.OutputLogger, "b")
    ns.extend_logger_results_with_comparison(results, "a", "b", ns.compute_cosine_similarity, "cosine")
    assert all(only(results, layer, "node_output", "b")["cosine"][0] > 0.99 for layer in results)


def test_loggers_can_be_switched_off(made: Any) -> None:
    a, b = ns.add_loggers("a", made.prepared, "b", made.module, ns.OutputLogger)
    for logger in b.loggers:
        logger.enabled = False
    a(X), b(X)
    assert not any(logger.stats for logger in b.loggers) and all(logger.stats for logger in a.loggers)


def test_errors(made: Any) -> None:
    with pytest.raises(ConfigError, match="must be a graph"):
        ns.add_loggers("a", Net().eval(), "b", made.module, ns.OutputLogger)
    with pytest.raises(ConfigError, match="not quantized yet"):
        ns.add_loggers("a", made.prepared, "b", made.prepared, ns.OutputLogger)
    a, b = ns.add_loggers("a", made.prepared, "b", made.module, ns.OutputLogger)
    with pytest.raises(ConfigError, match="no logger is of a model named 'c'"):
        ns.extract_logger_info(a, b, ns.OutputLogger, "c")
    with pytest.raises(ConfigError, match="no values of 'c'"):
        ns.extend_logger_results_with_comparison(ns.extract_logger_info(a, b, ns.OutputLogger, "a"), "a", "c", ns.compute_sqnr, "sqnr")
