"""The ready-made observers, fake-quantize modules and qconfigs: what torch.ao's of the same name are, but where we say otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.ao import quantization as oracle

from qcompiler import quantization as Q
from tests.flow import randn

OBSERVERS = (
    "default_observer", "default_placeholder_observer", "default_debug_observer", "default_weight_observer", "default_histogram_observer",
    "default_per_channel_weight_observer", "default_dynamic_quant_observer", "default_float_qparams_observer",
    "default_reuse_input_observer", "default_fixed_qparams_range_0to1_observer", "default_fixed_qparams_range_neg1to1_observer",
)  # fmt: skip
FAKE_QUANTS = (
    "default_fake_quant", "default_weight_fake_quant", "default_per_channel_weight_fake_quant", "default_histogram_fake_quant",
    "default_fused_act_fake_quant", "default_fused_wt_fake_quant", "default_fused_per_channel_wt_fake_quant",
    "default_embedding_fake_quant", "default_fixed_qparams_range_0to1_fake_quant", "default_fixed_qparams_range_neg1to1_fake_quant",
)  # fmt: skip
QCONFIGS = (
    "default_qconfig", "default_debug_qconfig", "default_per_channel_qconfig", "default_qat_qconfig", "default_dynamic_qconfig",
    "float16_dynamic_qconfig", "per_channel_dynamic_qconfig", "default_weight_only_qconfig", "default_activation_only_qconfig",
    "float_qparams_weight_only_qconfig", "float_qparams_weight_only_qconfig_4bit", "default_symmetric_qnnpack_qconfig",
)  # fmt: skip
PLAIN = {torch.quint8: torch.uint8, torch.qint8: torch.int8, torch.qint32: torch.int32, torch.quint4x2: torch.uint8}
SEVEN_BITS = ("default_observer", "default_fake_quant", "default_histogram_fake_quant")  # torch's; here that depends on the kernel
NO_SCALE = ("default_placeholder_observer", "default_debug_observer", "default_dynamic_quant_observer", "default_reuse_input_observer")
X = randn(6, 8)
pytestmark = pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max")  # of torch.ao, for its own defaults


def torchs(name: str) -> Any:
    return getattr(oracle, name, None) or getattr(oracle.observer, name, None) or getattr(oracle.fake_quantize, name)


def plain(dtype: Any) -> Any:
    return PLAIN.get(dtype, dtype)


def observed(made: Any, data: torch.Tensor = X) -> tuple[torch.Tensor, torch.Tensor]:
    """Qparams after one batch: of a fake-quantize module those that it computes with. (torch's fused one calculates others.)"""
    made(data)
    found = (made.scale, made.zero_point) if isinstance(made, oracle.FakeQuantizeBase) else made.calculate_qparams()
    return found[0].double().reshape(-1), found[1].double().reshape(-1)


def test_the_lists_are_complete() -> None:
    """A ready-made observer or fake-quantize module with a name of torch's is compared here."""
    named = {n for n in Q.__all__ if n.startswith("default_") and n.endswith(("_observer", "_fake_quant"))}
    assert named - {"default_dynamic_fake_quant"} == {*OBSERVERS, *FAKE_QUANTS}


@pytest.mark.parametrize("name", [*OBSERVERS, *FAKE_QUANTS])
def test_settings_are_torchs(name: str) -> None:
    ours, theirs = getattr(Q, name)(), torchs(name)()
    assert type(ours).__name__ == type(theirs).__name__
    if isinstance(theirs, (oracle.ReuseInputObserver, oracle.RecordingObserver)):
        return
    for attribute in ("dtype", "qscheme", "ch_axis", "is_dynamic"):
        if hasattr(theirs, attribute) and hasattr(ours, attribute):
            assert plain(getattr(ours, attribute)) == plain(getattr(theirs, attribute)), attribute


@pytest.mark.parametrize("name", [n for n in (*OBSERVERS, *FAKE_QUANTS) if n not in NO_SCALE and "histogram" not in n])
def test_scales_are_torchs(name: str) -> None:
    ours, theirs = getattr(Q, name), torchs(name)
    if name in SEVEN_BITS:
        theirs = theirs.with_args(reduce_range=False, quant_min=0, quant_max=255)
    for a, b in zip(observed(ours()), observed(theirs()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["default_histogram_observer", "default_histogram_fake_quant"])
def test_histograms_are_no_worse_than_torchs(name: str) -> None:
    """Bins differ on purpose: they do not depend on the batches. So does the search; its error is not larger."""
    data, error = randn(200, 200), []
    for factory in (getattr(Q, name), torchs(name).with_args(reduce_range=False, quant_min=0, quant_max=255)):
        scale, zero_point = observed(factory(), data)
        rounded = torch.fake_quantize_per_tensor_affine(data, float(scale), int(zero_point), 0, 255)
        error.append(float((rounded - data).pow(2).mean()))
    assert error[0] <= error[1] * 1.001


@pytest.mark.parametrize("name", NO_SCALE)
def test_what_only_watches_or_stands_for_something_changes_nothing(name: str) -> None:
    made = getattr(Q, name)()
    assert made(X) is X


@pytest.mark.parametrize("name", QCONFIGS)
def test_qconfigs_make_what_torchs_make(name: str) -> None:
    ours, theirs = getattr(Q, name), getattr(oracle.qconfig, name)
    for role in ("activation", "weight"):
        mine, other = getattr(ours, role)(), getattr(theirs, role)()
        assert type(mine).__name__ == type(other).__name__, role
        for attribute in ("dtype", "qscheme", "is_dynamic"):
            if hasattr(other, attribute) and hasattr(mine, attribute) and not isinstance(other, oracle.RecordingObserver):
                assert plain(getattr(mine, attribute)) == plain(getattr(other, attribute)), (role, attribute)


@pytest.mark.filterwarnings("ignore:Default qconfig of oneDNN backend")  # torch says so on CPUs without VNNI
@pytest.mark.parametrize("backend", ["x86", "fbgemm", "onednn", "qnnpack"])
@pytest.mark.parametrize("function", ["get_default_qconfig", "get_default_qat_qconfig"])
def test_defaults_of_the_back_ends_make_torchs_weights(function: str, backend: str) -> None:
    """Activations differ on purpose: min-max in place of a histogram, and bits by the kernel."""
    ours, theirs = getattr(Q, function)(backend).weight(), getattr(oracle, function)(backend).weight()
    assert (plain(ours.dtype), ours.qscheme) == (plain(theirs.dtype), theirs.qscheme)
    assert torch.equal(observed(ours)[0], observed(theirs)[0])


def test_the_old_spelling_of_dynamic_qconfigs() -> None:
    made = Q.QConfigDynamic(activation=Q.default_dynamic_quant_observer, weight=Q.default_weight_observer)
    assert Q.qconfig_equals(made, Q.default_dynamic_qconfig) and not Q.qconfig_equals(made, None)


def test_fixed_ranges_are_not_learned() -> None:
    made = Q.FixedQParamsFakeQuantize(observer=Q.default_fixed_qparams_range_0to1_observer)
    assert torch.equal(made(X * 100), made(X * 100).clamp(0, 255 / 256)) and made.scale.item() == 1 / 256
    assert isinstance(Q.default_fixed_qparams_range_0to1_fake_quant(), Q.FixedQParamsFakeQuantize)


def test_observer_is_the_old_name_of_the_base() -> None:
    assert Q.Observer is Q.ObserverBase and issubclass(Q.UniformQuantizationObserverBase, Q.ObserverBase)
    for cls in (Q.PlaceholderObserver, Q.RecordingObserver, Q.NoopObserver, Q.ReuseInputObserver, Q.FixedQParamsObserver):
        assert issubclass(cls, Q.ObserverBase)


@pytest.mark.parametrize("cls", [Q.FakeQuantize, Q.FusedMovingAvgObsFakeQuantize])
def test_switches_apply_to_a_whole_model(cls: Any) -> None:
    model = nn.Sequential(cls(), nn.Linear(8, 8), cls()).train()
    model(X)
    model.apply(Q.disable_observer)
    model.apply(Q.enable_fake_quant)
    scale = model[0].scale.clone()
    model(X * 100)
    assert torch.equal(model[0].scale, scale)
    model.apply(Q.enable_observer)
    model(X * 100)
    assert not torch.equal(model[0].scale, scale)
    model.apply(Q.disable_fake_quant)
    assert torch.equal(model[0](X), X)
