"""QConfig and QConfigMapping: precedence as in torch.ao, files, errors."""

from __future__ import annotations

import json

import pytest
import torch
import torch.ao.quantization as ao
from torch import nn
from torch.nn import functional as F

from qcompiler import explain
from qcompiler import observers as ob
from qcompiler.config import qconfig as qc
from qcompiler.config.qconfig_mapping import (
    QConfigMapping,
    as_mapping,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
)
from qcompiler.errors import ConfigError
from qcompiler.fake_quantize import FakeQuantize
from tests.flow import flow

A, B, C, D, E = (qc.QConfig(ob.MinMaxObserver.with_args(quant_min=0, quant_max=top), ob.MinMaxObserver) for top in (10, 20, 30, 40, 50))
DEFAULTS = [name for name in vars(qc) if "_qconfig" in name and name[0] != "_" and isinstance(getattr(qc, name), qc.QConfig)]
BEYOND_TORCH = ("default_lsq_qconfig", "default_per_channel_lsq_qconfig")


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_survive_a_file_and_make_modules(name):
    config = getattr(qc, name)
    again = qc.QConfig.from_plain(json.loads(json.dumps(config.to_plain())))
    assert qc.qconfig_equals(config, again) and repr(config) == repr(again)
    assert isinstance(config.activation(), nn.Module) and isinstance(config.weight(), nn.Module)
    assert hasattr(ao.qconfig, name) != (name in BEYOND_TORCH)


def test_qconfig_refuses():
    for bad in (
        lambda: qc.QConfig(ob.MinMaxObserver(), ob.MinMaxObserver),
        lambda: qc.QConfig(ob.PerChannelMinMaxObserver, ob.MinMaxObserver),
        lambda: qc.QConfig(ob.MinMaxObserver.with_args(quant_min=5, quant_max=5), ob.MinMaxObserver),
        lambda: qc.QConfig(ob.MinMaxObserver.with_args(nonsense=1), ob.MinMaxObserver),
        lambda: qc.QConfig(lambda: 3, ob.MinMaxObserver),
        lambda: qc.get_default_qconfig("gpu"),
        lambda: qc.QConfig.from_plain({"activation": {"observer": "os.system"}, "weight": None}),
        lambda: qc.QConfig(lambda: ob.MinMaxObserver(), ob.MinMaxObserver).to_plain(),
    ):
        with pytest.raises(ConfigError):
            bad()


def mapping():
    return (
        QConfigMapping()
        .set_global(A)
        .set_object_type(nn.Conv2d, B)
        .set_object_type(F.relu, B)
        .set_module_name_regex(r"block\d+\.", C)
        .set_module_name("block1.conv", D)
        .set_module_name("block2", None)
        .set_module_name_object_type_order("block1", F.relu, 1, E)
    )


def test_precedence():
    m = mapping()
    assert m.resolve("head", nn.Linear, F.linear) == A
    assert m.resolve("head", nn.Conv2d, F.conv2d) == B
    assert m.resolve("", None, F.relu) == B
    assert m.resolve("block1.x", nn.Conv2d, F.conv2d) == C
    assert m.resolve("block1.conv", nn.Conv2d, F.conv2d) == D
    assert m.resolve("block2.deep.conv", nn.Conv2d, F.conv2d) is None
    assert m.resolve("block1", None, [torch.relu, F.relu, "relu"], 1) == E
    assert m.resolve("block1", None, F.relu, 0) == B
    assert m.resolve("head", "torch.nn.modules.conv.Conv2d") == B
    both = QConfigMapping().set_object_type(F.relu, A).set_object_type(nn.Conv2d, B)
    assert both.resolve("a", nn.Conv2d, F.relu) == B  # the module's type goes before the call's


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner = nn.Conv2d(3, 3, 1), nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.conv(x))


def _resolved(model: nn.Module, mapping: QConfigMapping) -> list[qc.QConfig | None]:
    found = mapping.with_attributes(model)
    return [found.resolve(path, type(model.get_submodule(path))) for path in ("0", "1.conv", "1.inner.0")]


def test_attributes_of_modules_are_rules_for_their_names():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Block())
    mapping = QConfigMapping().set_global(A)
    assert mapping.with_attributes(model) is mapping
    model[1].qconfig = None
    assert _resolved(model, mapping) == [A, None, None]
    model[1].inner.qconfig = B
    assert _resolved(model, mapping) == [A, None, B]
    assert _resolved(model, QConfigMapping().set_global(A).set_object_type(nn.Conv2d, C)) == [C, None, B]
    assert _resolved(model, QConfigMapping().set_global(A).set_module_name("1", A).set_module_name("1.inner.0", C)) == [A, None, C]
    model.qconfig = ao.default_qconfig  # torch.ao's are translated
    assert _resolved(model, mapping) == [qc.as_qconfig(ao.default_qconfig), None, B]
    assert mapping.rules() == QConfigMapping().set_global(A).rules(), "the mapping given is not changed"


def test_propagated_attributes_are_few_rules():
    """One for each difference below the model's own children: the rules are looked through for every call."""
    model = nn.Sequential(nn.Sequential(*(Block() for _ in range(20))))
    for module in model.modules():
        module.qconfig = A
    model[0][3].qconfig = None
    mapping = QConfigMapping().with_attributes(model)
    assert [rule.key[0] for rule in mapping.rules() if rule.kind == "module_name"] == ["0.3.inner", "0.3.conv", "0.3", "0"]
    assert mapping.unmatched([]) == []


def test_an_attribute_leaves_a_part_float_exactly():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Block()).eval()
    model[1].qconfig = None
    x = torch.randn(2, 3, 5, 5)
    converted = flow(model, (x,)).module
    assert {row.module_path: row.int8 for row in explain(converted).rows} == {"0": True, "1.conv": False, "1.inner.0": False}
    assert torch.equal(converted(x), model[1](flow(model[0], (x,)).module(x)))


def test_unmatched_rules_and_unknown_names():
    m = mapping()
    used = [*m.matches("block1.conv", nn.Conv2d), *m.matches("block2", nn.Sequential)]
    assert [str(rule) for rule in m.unmatched(used)] == [
        "module_name_object_type_order block1, torch.nn.functional.relu, 1",
        "object_type torch.nn.functional.relu",
    ]
    m.check_names(["block1", "block1.conv", "block2"])
    with pytest.raises(ConfigError, match=r"block1\.conv") as error:
        m.check_names(["block1", "block1.convs", "block2"])
    assert "block1.convs" in error.value.hint
    assert get_default_qconfig_mapping().unmatched([]) == []


def test_json_and_dict_round_trip():
    for m in (mapping(), get_default_qconfig_mapping("qnnpack"), get_default_qconfig_mapping(), get_default_qat_qconfig_mapping()):
        again = QConfigMapping.from_json(m.to_json())
        assert again == m and again.to_json() == m.to_json()
        assert QConfigMapping.from_dict(m.to_dict()) == m
    again = QConfigMapping.from_json(mapping().to_json())
    assert again.resolve("block1", None, F.relu, 1) == E
    wrong_value = '{"module_name": [["a", {"activation": 1, "weight": 2}]]}'
    for bad in ("[]", "{", '{"object_type": [[["x"], null]]}', '{"rubbish": 1}', wrong_value):
        with pytest.raises(ConfigError):
            QConfigMapping.from_json(bad)
    with pytest.raises(ConfigError):
        QConfigMapping().set_module_name_regex("(", A)
    with pytest.raises(ConfigError):
        QConfigMapping().set_global(3)


def test_as_mapping_translates_torch():
    assert as_mapping(A).resolve("x") == A and as_mapping(None).resolve("x") is None
    assert as_mapping({"": A, "object_type": [(nn.Linear, None)]}).resolve("x", nn.Linear) is None
    ours = as_mapping(ao.get_default_qconfig_mapping("x86"))
    assert ours.global_qconfig == qc.QConfig(ob.HistogramObserver.with_args(reduce_range=True), ob.default_per_channel_weight_observer)
    assert ours.resolve("x", nn.Sigmoid).activation().qparams().scale == 1 / 256
    qat = as_mapping(ao.get_default_qat_qconfig_mapping("fbgemm"))
    assert type(qat.global_qconfig.activation()).__module__.startswith("qcompiler.fake_quantize.")
    assert as_mapping(ao.default_qconfig).global_qconfig.activation().quant_max == 127
    assert as_mapping(ao.default_dynamic_qconfig).global_qconfig == qc.default_dynamic_qconfig
    for name in set(DEFAULTS) - set(BEYOND_TORCH):
        made = qc.as_qconfig(getattr(ao.qconfig, name))
        assert type(made.weight()) is type(getattr(qc, name).weight())


def test_default_activations_leave_the_range_to_the_compiler():
    for backend in qc.BACKENDS:
        activation = qc.get_default_qconfig(backend).activation()
        assert activation.reduce_range is None and activation.quant_max == 255 and activation.dtype is torch.uint8
        weight = qc.get_default_qconfig(backend).weight()
        assert weight.dtype is torch.int8 and weight.is_per_channel == (backend != "qnnpack")
        assert qc.get_default_qat_qconfig(backend).activation().quant_max == 255


def test_versions_are_torchs():
    for backend in qc.BACKENDS:
        assert qc.get_default_qconfig(backend, version=0) == qc.get_default_qconfig(backend)
        assert qc.get_default_qat_qconfig(backend, 1) == qc.get_default_qat_qconfig(backend)
        plain = qc.get_default_qat_qconfig(backend, 0)
        assert type(plain.activation()) is type(plain.weight()) is FakeQuantize
        assert plain.weight().is_per_channel == (backend != "qnnpack")
    assert get_default_qat_qconfig_mapping("x86", version=0) != get_default_qat_qconfig_mapping("x86")
    for call in (qc.get_default_qconfig, get_default_qat_qconfig_mapping):
        with pytest.raises(ConfigError, match="version 7"):
            call("x86", version=7)
