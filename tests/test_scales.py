"""scales: the integers of a module, exactly as its kernels compute with them."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import qcompiler
from qcompiler.cli import app
from qcompiler.debug import dump_directory
from tests.test_reports import BACKENDS, SMALL, made

SCHEMAS = Path(dump_directory.__file__).parent / "schema"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SMALL)
def test_a_file_has_the_scales_of_the_module(name: str, backend: str, tmp_path: Path) -> None:
    _, module, _ = made(name, backend)
    data = qcompiler.scales(module).to_data(codes=True)
    qcompiler.save(module, tmp_path / "net.qc")
    assert qcompiler.scales(qcompiler.load(tmp_path / "net.qc")).to_data(codes=True) == data
    for value in qcompiler.scales(module).values.values():
        buffer, _, index = value.stored.partition("[")
        assert float(module.state_dict()[buffer][int(index.rstrip("]"))]) == value.scale


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SMALL)
def test_codes_stand_for_the_weights(name: str, backend: str) -> None:
    """Within half a step of the float weights, along the right dimension: a transposed convolution's is the second."""
    model, module, _ = made(name, backend)
    parameters, found = dict(model.named_parameters()), qcompiler.scales(module).weights
    plain = {weight: one for weight, one in found.items() if weight in parameters and weight.partition(".")[0] not in ("first", "conv")}
    assert plain or name == "held float"
    for weight, one in plain.items():
        assert one.layer == weight.rpartition(".")[0] and one.codes.dtype is torch.int8
        error = (one.real - parameters[weight].detach().double()).abs().max()
        assert float(error) <= 0.5001 * float(one.scale.max()), weight


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_scales_are_those_that_the_program_computes_with(backend: str) -> None:
    """Every value that runs as a quantized tensor has the scale and zero point that are told of it."""
    _, module, x = made("pooled", backend)
    told = qcompiler.scales(module).values
    steps = module._steps()
    env = steps.bind((x,), {})
    seen = 0
    with torch.inference_mode():
        for step in steps.steps:
            value = env[step.name] = step.run(env)
            if isinstance(value, Tensor) and value.is_quantized and step.name in told:
                assert (value.q_scale(), value.q_zero_point()) == (told[step.name].scale, told[step.name].zero_point)
                seen += 1
    assert seen >= 4 or backend == "native"
    assert {"x", "conv", "pool", "mean", "flatten"} == set(told)
    low, high = told["conv"].range
    assert low == 0 and high > 0 and told["conv"].layer == "conv"


def test_one_layer() -> None:
    _, module, _ = made("block", "torch")
    found = qcompiler.scales(module).of_layer("mlp")
    assert list(found.values) == ["mlp_0", "mlp_1"] and list(found.weights) == ["mlp.0.weight", "mlp.2.weight"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_schemas(backend: str, tmp_path: Path) -> None:
    _, module, _ = made("pooled", backend)
    schema = json.loads((SCHEMAS / "scales.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(json.loads(qcompiler.scales(module).to_json(codes=True)), schema)
    qcompiler.save(module, tmp_path / "net.qc")
    shown = json.loads(CliRunner().invoke(app, ["inspect", str(tmp_path / "net.qc"), "--json", "--codes"]).output)
    jsonschema.validate(shown, json.loads((SCHEMAS / "inspect.schema.json").read_text(encoding="utf-8")))
    jsonschema.validate(shown["scales"][0], schema)


def test_what_has_no_scales_is_told() -> None:
    with pytest.raises(qcompiler.ConfigError, match="scales takes what convert_fx"):
        qcompiler.scales(nn.Linear(2, 2))
