"""prepare: observers where values have a range of their own, qconfigs by attribute, and what cannot be prepared is named."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import qcompiler
from qcompiler.errors import CalibrationError, ConfigError, InputError, QCompilerWarning
from qcompiler.fake_quantize import FakeQuantizeBase
from qcompiler.nn.quantized import FloatFunctional
from qcompiler.observers import HistogramObserver, MinMaxObserver
from qcompiler.quantization import (
    DeQuantStub,
    QConfig,
    QuantStub,
    QuantWrapper,
    add_observer_,
    add_quant_dequant,
    default_dynamic_qconfig,
    default_per_channel_qconfig,
    default_qat_qconfig,
    default_qconfig,
    fuse_modules,
    get_observer_dict,
    get_observer_state_dict,
    prepare,
    prepare_qat,
    propagate_qconfig_,
)
from tests.cpu import SEVEN_BITS
from tests.hand_prepared import SmallMobileNetV2, SmallResNet, images, seeded, theirs


def network() -> nn.Module:
    model = fuse_modules(seeded(SmallResNet()), SmallResNet.chains())
    model.qconfig = default_qconfig
    return model


def observed(model: nn.Module) -> list[str]:
    found: dict[str, Any] = {}
    get_observer_dict(model, found)
    return [name.removesuffix(".activation_post_process") for name in found]


def test_what_is_observed() -> None:
    """What has a range of its own: not DeQuantStub, ReLU, pools or dropout."""
    names = ["conv1", *(f"layer1.{i}.{part}" for i in (0, 1) for part in ("conv1", "conv2", "add_relu")), "fc", "quant"]
    prepared = prepare(network())
    assert sorted(observed(prepared)) == sorted(names)
    assert all(isinstance(m.activation_post_process, MinMaxObserver) for m in (prepared.conv1, prepared.quant, prepared.layer1[0].add_relu))


@pytest.mark.parametrize("make", [SmallResNet, SmallMobileNetV2])
def test_observers_are_where_torchs_are_and_see_the_same(make: Any) -> None:
    """torch.ao as the oracle: the same ranges under the same names (and a few more that nothing uses)."""
    mine, other = seeded(make()), seeded(make(api=theirs()))
    for model, q in ((mine, qcompiler.quantization), (other, theirs().q)):
        model.fuse_model() if make is SmallMobileNetV2 else q.fuse_modules(model, SmallResNet.chains(), inplace=True)
        model.qconfig = q.default_qconfig
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its end, and warns of reduce_range
        other = theirs().q.prepare(other)
    mine = prepare(mine)
    x = images()
    assert torch.equal(mine(x), mine(x))
    torch.testing.assert_close(mine(x), other(x), rtol=1e-4, atol=1e-5)
    for name in observed(mine):
        ours, known = mine.get_submodule(name).activation_post_process, other.get_submodule(name).activation_post_process
        torch.testing.assert_close(ours.min_val, known.min_val, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.max_val, known.max_val, rtol=1e-4, atol=1e-5)


def test_inplace_or_a_copy() -> None:
    model = network()
    assert prepare(model) is not model and not observed(model)
    assert prepare(model, inplace=True) is model and observed(model)


def test_values_pass_unchanged_and_each_result_is_observed_once() -> None:
    model = network()
    prepared, x = prepare(model), images()
    calls: list[int] = []
    prepared.conv1.activation_post_process.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(prepared(x), model(x)) and calls == [1]


def test_a_qconfig_of_none_leaves_a_part_alone() -> None:
    model = network()
    model.layer1[0].qconfig = None
    model.fc.qconfig = None
    names = observed(prepare(model))
    assert "fc" not in names and not any(n.startswith("layer1.0") for n in names) and "layer1.1.conv1" in names


def test_a_module_keeps_its_own_qconfig() -> None:
    model = network()
    model.fc.qconfig = QConfig(HistogramObserver, default_qconfig.weight)
    model.quant = QuantStub(QConfig(HistogramObserver, default_qconfig.weight))
    prepared = prepare(model)
    assert type(prepared.fc.activation_post_process) is type(prepared.quant.activation_post_process) is HistogramObserver
    assert type(prepared.conv1.activation_post_process) is MinMaxObserver


def test_propagate_by_name_and_class() -> None:
    model = fuse_modules(seeded(SmallResNet()), SmallResNet.chains())
    propagate_qconfig_(model, {nn.Linear: default_dynamic_qconfig, "layer1": default_per_channel_qconfig, "layer1.0.conv2": None})
    assert model.fc.qconfig == default_dynamic_qconfig and model.conv1.qconfig is None
    assert model.layer1[1].conv1.qconfig == model.layer1[0].conv1.qconfig == default_per_channel_qconfig
    assert model.layer1[0].conv2.qconfig is None
    with pytest.raises(ConfigError, match=r"no module 'layer2'") as caught:
        propagate_qconfig_(model, {"layer2": None})
    assert "layer1" in str(caught.value)
    with pytest.raises(ConfigError, match="expected a QConfig"):
        propagate_qconfig_(model, {"fc": 8})


def test_propagate_leaves_out_what_is_not_traceable() -> None:
    model = network()
    propagate_qconfig_(model, None, {"non_traceable_module_name": ["layer1"], "non_traceable_module_class": [nn.Linear]})
    assert not hasattr(model.layer1[0].conv1, "qconfig") and not hasattr(model.fc, "qconfig") and model.conv1.qconfig is not None


def test_torchs_qconfigs_and_stubs_are_taken() -> None:
    model = seeded(SmallMobileNetV2(api=theirs()))
    model.fuse_model()
    model.qconfig = theirs().q.get_default_qconfig("fbgemm")
    prepared = prepare(model)
    assert type(prepared.quant) is QuantStub and type(prepared.features[1].skip_add) is FloatFunctional
    observer = prepared.features[0][0].activation_post_process
    assert type(observer) is HistogramObserver and observer.quant_max == 127, "torch's fbgemm qconfig asks for 7 bits"
    assert type(model.quant) is theirs().q.QuantStub, "the user's model keeps its classes"


def test_one_module_with_two_qconfigs_is_an_error() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(QuantStub(), nn.Sequential(shared), nn.Sequential(shared), DeQuantStub()).eval()
    model[1].qconfig = default_qconfig
    with pytest.raises(ConfigError, match=r"1\.0 and 2\.0 are one module"):
        prepare(model)
    shared.qconfig = default_qconfig
    prepared = prepare(model)
    assert prepared[1][0] is prepared[2][0] and observed(prepared) == ["1.0"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_name_the_module(value: float) -> None:
    prepared = prepare(network())
    with torch.no_grad():
        prepared.layer1[1].conv1[0].weight[0, 0, 0, 0] = value
    with pytest.raises(CalibrationError) as caught:
        prepared(images())
    assert caught.value.where.module_path == "layer1.1.conv1"


def test_nan_in_a_sum_names_the_float_functional() -> None:
    prepared = prepare(network())
    prepared.layer1[0].conv2.activation_post_process.forward = lambda x: x * float("nan")
    with pytest.raises(CalibrationError) as caught:
        prepared(images())
    assert caught.value.where.module_path == "layer1.0.add_relu" and "NaN" in str(caught.value)


def test_calibrate_counts_a_batch_as_a_whole() -> None:
    prepared = prepare(network())
    assert qcompiler.calibrate(prepared, [images(), images(seed=2)]) == 2
    before = {k: v.clone() for k, v in get_observer_state_dict(prepared).items()}
    bad = images(seed=3) * 9
    bad[0, 0, 0, 0] = float("nan")
    with pytest.raises(CalibrationError, match="batch 1"):
        qcompiler.calibrate(prepared, [images(), bad])
    hook = prepared.layer1[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(InputError, match="batch 0: RuntimeError: stop"):
        qcompiler.calibrate(prepared, [images(seed=4) * 100])
    hook.remove()
    after = get_observer_state_dict(prepared)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    with pytest.raises(CalibrationError, match="0 batches"):
        qcompiler.calibrate(prepared, [])


def test_what_cannot_be_prepared() -> None:
    with pytest.raises(ConfigError, match="no module has a qconfig"):
        prepare(seeded(SmallResNet()))
    with pytest.raises(ConfigError, match=r"train mode: bn1 \(BatchNorm2d\)") as caught:
        prepare(SmallResNet().train())
    assert "model.eval()" in str(caught.value)
    prepared = prepare(network())
    for again in (prepare, lambda m: qcompiler.prepare_fx(m, None, (images(),)), lambda m: prepare(nn.Sequential(m))):
        with pytest.raises(ConfigError, match="already prepared"):
            again(prepared)
    with pytest.raises(ConfigError, match="train mode"):
        prepare_qat(network())


def test_a_model_without_stubs_is_warned_of() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    model.qconfig = default_qconfig
    with pytest.warns(QCompilerWarning, match=r"has no QuantStub.*QuantWrapper"):
        prepare(model)
    prepare(QuantWrapper(model))


def test_lists_of_classes() -> None:
    model = network()
    assert observed(prepare(model, allow_list={QuantStub, nn.Conv2d, nn.Linear})) == [
        "quant", "conv1", *(f"layer1.{i}.{part}" for i in (0, 1) for part in ("conv1", "conv2", "add_relu")), "fc"]  # fmt: skip
    assert "layer1.0" in observed(prepare(model, observer_non_leaf_module_list={type(model.layer1[0])}))


def test_containers_fused_for_training_are_folded_when_they_do_not_train() -> None:
    model = seeded(SmallResNet())
    fused = fuse_modules(copy.deepcopy(model).train(), SmallResNet.chains()).eval()
    fused.qconfig = default_qconfig
    prepared, x = prepare(fused), images()
    torch.testing.assert_close(prepared(x), model(x), rtol=1e-4, atol=1e-5)
    assert type(prepared.conv1).__name__ == "ConvReLU2d" and "layer1.0.conv2" in observed(prepared)


def test_add_observer_and_add_quant_dequant() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    model[1][0].qconfig = default_qconfig
    add_observer_(model)
    assert observed(model) == ["1.0"]
    other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval()
    other[1].qconfig = default_qconfig
    wrapped = add_quant_dequant(other)
    assert wrapped is other and type(other[1]) is QuantWrapper and type(other[0]) is nn.Linear
    leaf = nn.Linear(2, 2)
    leaf.qconfig = default_qconfig
    assert type(add_quant_dequant(leaf)) is QuantWrapper


def test_fixed_ranges_in_training() -> None:
    model = nn.Sequential(QuantStub(), nn.Sigmoid(), nn.Tanh(), DeQuantStub()).train()
    model.qconfig = default_qat_qconfig
    prepared = prepare_qat(model)
    assert all(isinstance(m.activation_post_process, FakeQuantizeBase) for m in prepared[:3])
    wider = 2 if SEVEN_BITS else 1
    assert [float(prepared[i].activation_post_process.scale) for i in (1, 2)] == [wider / 256, 2 * wider / 256]


@pytest.mark.parametrize("custom, near", [({"non_traceable_module_name": ["layer_1"]}, "layer1"),
                                          ({"non_traceable_modul_name": ["layer1"]}, "non_traceable_module_name")])  # fmt: skip
def test_names_and_keys_that_are_not_there_are_refused_with_near_ones(custom: dict[str, list[str]], near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        propagate_qconfig_(network(), None, custom)
    assert near in str(caught.value.hint)
