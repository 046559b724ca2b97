"""convert: the int8 model's values, what it survives, and the errors of models that were prepared wrong."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import qcompiler
import qcompiler.nn.intrinsic.quantized as nniq
import qcompiler.nn.quantized as nnq
from qcompiler.errors import CalibrationError, ConfigError, InputError
from qcompiler.quantization import (
    DeQuantStub,
    QuantStub,
    QuantWrapper,
    convert,
    default_eval_fn,
    default_per_channel_qconfig,
    default_qconfig,
    fuse_modules,
    get_default_qconfig,
    get_default_static_quant_module_mappings,
    get_static_quant_module_class,
    prepare,
    quantize,
    swap_module,
)
from tests.cpu import BIT
from tests.hand_prepared import SmallMobileNetV2, SmallResNet, images, seeded, sqnr, theirs


def prepared(qconfig: Any = default_per_channel_qconfig, make: Any = SmallResNet) -> nn.Module:
    model = seeded(make())
    model.fuse_model() if make is SmallMobileNetV2 else fuse_modules(model, SmallResNet.chains(), inplace=True)
    model.qconfig = qconfig
    made = prepare(model)
    made(images(4))
    return made


def converted(make: Any = SmallResNet) -> nn.Module:
    return convert(prepared(make=make))


def test_modules_and_values() -> None:
    made, x = converted(), images()
    kinds = {"quant": nnq.Quantize, "conv1": nniq.ConvReLU2d, "bn1": nn.Identity, "layer1.0.conv2": nnq.Conv2d,
             "layer1.0.add_relu": nnq.QFunctional, "fc": nnq.Linear, "dequant": nnq.DeQuantize}  # fmt: skip
    assert {path: type(made.get_submodule(path)) for path in kinds} == kinds
    assert sqnr(seeded(SmallResNet())(x), made(x)) > 30
    assert not any(hasattr(m, "qconfig") or hasattr(m, "_qc_outputs") for m in made.modules())
    assert not any("observe" in repr(hook) or "note" in repr(hook) for m in made.modules() for hook in m._forward_hooks.values())
    keys = [key for key in made.state_dict() if "activation_post_process" in key]
    assert keys == []


@pytest.mark.parametrize("make", [SmallResNet, SmallMobileNetV2])
def test_as_good_as_torchs(make: Any) -> None:
    """The same model through torch.ao: both are near the float model, and near each other."""
    other, x = seeded(make(api=theirs())), images()
    expected = other(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its end
        q = theirs().q
        other.fuse_model() if make is SmallMobileNetV2 else q.fuse_modules(other, SmallResNet.chains(), inplace=True)
        other.qconfig = q.QConfig(q.MinMaxObserver, q.default_per_channel_weight_observer)
        other = q.prepare(other)
        other(images(4))
        other = q.convert(other)
    made = converted(make)
    assert sqnr(expected, made(x)) > sqnr(expected, other(x)) - 1.5
    assert sqnr(other(x), made(x)) > 25


@pytest.mark.parametrize("make", [SmallResNet, SmallMobileNetV2])
def test_every_copy_gives_the_same_bits(make: Any, tmp_path: Any) -> None:
    made, x = converted(make), images()
    expected = made(x)
    scripted, saved = torch.jit.script(copy.deepcopy(made)), io.BytesIO()
    torch.jit.save(scripted, str(tmp_path / "scripted.pt"))
    torch.save(made, saved)
    saved.seek(0)
    fresh = prepared(make=make)
    fresh(images(2, seed=9) * 3)
    fresh = convert(fresh)
    assert not torch.equal(fresh(x), expected)
    fresh.load_state_dict(made.state_dict())
    traced = torch.jit.trace(copy.deepcopy(made), x)
    copies = [copy.deepcopy(made), torch.load(saved, weights_only=False), scripted, torch.jit.load(str(tmp_path / "scripted.pt")), fresh,
              traced, copy.deepcopy(made).to("cpu")]  # fmt: skip
    for index, other in enumerate(copies):
        assert torch.equal(other(x), expected), index
        assert torch.equal(other(images(3, 40)), made(images(3, 40))), f"{index}: another batch and size"


def test_the_prepared_model_stays_usable() -> None:
    ready = prepared()
    first, x = convert(ready), images()
    assert torch.equal(convert(ready)(x), first(x)) and hasattr(ready.conv1, "activation_post_process")
    assert convert(ready, inplace=True) is ready and torch.equal(ready(x), first(x))


def test_without_calibration() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    model.qconfig = default_qconfig
    with pytest.warns(UserWarning, match="QuantStub"):
        bare = prepare(model)
    with pytest.raises(CalibrationError, match="0 of 1 observers saw data") as caught:
        convert(bare)
    assert "call the model that prepare returned with calibration data" in str(caught.value) and "no QuantStub" in str(caught.value)
    wrapped = QuantWrapper(model)
    with pytest.raises(CalibrationError) as caught:
        convert(prepare(wrapped))
    assert "no QuantStub" not in str(caught.value)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
        self.add = nnq.FloatFunctional()

    def forward(self, x: torch.Tensor, other: bool = False) -> Any:
        x = self.quant(x)
        if other:
            return self.dequant(self.add.add(self.unused(x), x))
        return self.dequant(self.used(x))


def test_a_branch_that_no_data_reached() -> None:
    model = Branches().eval()
    model.qconfig = default_qconfig
    ready, x = prepare(model), torch.randn(3, 4)
    ready(x)
    with pytest.raises(CalibrationError, match="1 of 4 observers saw no data: unused") as caught:
        convert(ready)
    assert caught.value.where.module_path == "unused" and "allow_uncalibrated" in str(caught.value)
    made = convert(ready, allow_uncalibrated="float")
    assert type(made.unused) is nn.Linear and type(made.used) is nnq.Linear
    assert [(r.code, r.where.module_path) for r in qcompiler.remarks(made)] == [("uncalibrated", "unused"), ("unused", "add")]
    assert [(row.node, row.int8) for row in qcompiler.explain(made).rows] == [("used", True), ("unused", False)]
    with pytest.raises(CalibrationError) as caught:
        made.add.add(*[torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)] * 2)
    assert caught.value.where.module_path == "add"


def test_floats_name_the_module_and_the_missing_stub() -> None:
    made = converted()
    with pytest.raises(InputError, match="QuantStub") as caught:
        made.layer1[1].conv1(torch.randn(1, 16, 8, 8))
    assert caught.value.where.module_path == "layer1.1.conv1"


@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8])
def test_another_dtype_names_the_stub(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match="Quantize takes a torch") as caught:
        converted()(images().to(dtype))
    assert caught.value.where.module_path == "quant"


def test_wrong_order() -> None:
    with pytest.raises(ConfigError, match="not prepared"):
        convert(seeded(SmallResNet()))
    made = converted()
    for again in (convert, prepare, lambda m: qcompiler.prepare_fx(m, None, (images(),))):
        with pytest.raises(ConfigError, match=r"already (converted|quantized)"):
            again(made)
    graph = qcompiler.prepare_fx(seeded(SmallResNet()), None, (images(),))
    with pytest.raises(ConfigError, match="convert_fx is its convert"):
        convert(graph)
    with pytest.raises(ConfigError, match=r"quantization\.prepare made this"):
        qcompiler.convert_fx(prepared())
    with pytest.raises(ConfigError, match="TorchScript"):
        qcompiler.save(made, "never-written.qc")
    with pytest.raises(ConfigError, match="allow_uncalibrated"):
        convert(prepared(), allow_uncalibrated="maybe")
    with pytest.raises(ConfigError, match="convert_to_reference_fx"):
        convert(prepared(), is_reference=True)


def test_a_qconfig_of_none_is_float_exactly() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(QuantStub(), nn.Linear(4, 4), DeQuantStub(), nn.Linear(4, 4)).eval()
    model.qconfig = default_qconfig
    model[3].qconfig = None
    ready, x = prepare(model), torch.randn(8, 4)
    ready(x)
    made: Any = convert(ready)
    assert type(made[3]) is nn.Linear and torch.equal(made(x), model[3](made[:3](x)))
    rows = {row.node: (row.int8, row.reason) for row in qcompiler.explain(made).rows}
    assert rows == {"1": (True, ""), "3": (False, "its qconfig is None")}


def test_what_has_no_int8_form_is_told() -> None:
    model = nn.Sequential(QuantStub(), nn.Linear(4, 4), DeQuantStub(), nn.RMSNorm(4)).eval()
    model.qconfig = default_qconfig
    ready = prepare(model)
    ready(torch.randn(8, 4))
    remarks = qcompiler.remarks(convert(ready))
    assert [(r.code, r.where.module_path) for r in remarks] == [("kept-float", "3")] and "RMSNorm has no int8 form" in remarks[0].text


def test_remove_qconfig_and_hooks() -> None:
    ready, calls = prepared(), []
    ready.conv1.register_forward_hook(lambda m, args, out: calls.append(out.dtype))
    ready.fc.register_forward_pre_hook(lambda m, args: calls.append(args[0].dtype))
    made = convert(ready, remove_qconfig=False)
    assert made.conv1.qconfig is not None
    made(images())
    assert calls == [torch.quint8, torch.quint8], "the user's hooks see the int8 values"


def test_a_shared_module_stays_one_module() -> None:
    torch.manual_seed(0)
    shared = nn.Conv2d(3, 3, 1)
    model: Any = nn.Sequential(QuantStub(), shared, nn.ReLU(), shared, DeQuantStub()).eval()
    model.qconfig = default_qconfig
    ready = prepare(model)
    x = images()
    ready(x)
    made: Any = convert(ready)
    assert made[1] is made[3] and type(made[1]) is nnq.Conv2d and sqnr(model(x), made(x)) > 25


def test_weight_norm_is_folded() -> None:
    model: Any = nn.Sequential(QuantStub(), nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), DeQuantStub()).eval()
    model.qconfig = default_per_channel_qconfig
    ready, x = prepare(model), images()
    ready(x)
    made: Any = convert(ready)
    assert type(made[1]) is nnq.Conv2d and sqnr(model(x), made(x)) > 30


def test_a_leaf_alone() -> None:
    leaf = nn.Linear(4, 4).eval()
    leaf.qconfig = default_qconfig
    with pytest.warns(UserWarning, match="QuantStub"):
        ready = prepare(leaf)
    x = torch.randn(2, 4)
    ready(x)
    made = convert(ready)
    assert type(made) is nnq.Linear
    q = torch.quantize_per_tensor(x, 0.1, 64, torch.quint8)  # codes that fit into 7 bits
    assert (made(q).dequantize() - leaf(q.dequantize())).abs().max() < 0.1


class Sequence(nn.Module):
    """nn.LSTM or nn.MultiheadAttention between stubs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.quant, self.dequant, self.layer, self.fc = QuantStub(), DeQuantStub(), layer, nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.quant(x)
        y = self.layer(x, x, x)[0] if hasattr(self.layer, "num_heads") else self.layer(x)[0]
        return self.dequant(self.fc(y))


REBUILT = nn.LSTM(16, 16, batch_first=True), nn.MultiheadAttention(16, 2, batch_first=True)


@pytest.mark.parametrize("layer", REBUILT, ids=["lstm", "attention"])
def test_layers_that_are_rebuilt_for_observation(layer: nn.Module) -> None:
    torch.manual_seed(0)
    model: Any = Sequence(layer).eval()
    model.qconfig = default_qconfig
    ready, x = prepare(model), torch.randn(2, 5, 16)
    torch.testing.assert_close(ready(x), model(x))
    made: Any = convert(ready)
    assert type(made.layer) is getattr(nnq, type(layer).__name__) and sqnr(model(x), made(x)) > 25


class Scale(nn.Module):
    """A user's own module, of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * 2


class ObservedScale(nn.Module):
    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * 2

    @classmethod
    def from_float(cls, mod: Any) -> Any:
        assert hasattr(mod, "qconfig")
        return cls(mod.linear)


class QuantizedScale(nn.Module):
    def __init__(self, linear: nn.Module, scale: float, zero_point: int) -> None:
        super().__init__()
        self.linear, self.scale, self.zero_point = linear, scale, zero_point

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.quantize_per_tensor(self.linear(x.dequantize()) * 2, self.scale, self.zero_point, torch.quint8)

    @classmethod
    def from_observed(cls, mod: Any) -> Any:
        scale, zero_point = mod.activation_post_process.calculate_qparams()
        return cls(mod.linear, float(scale), int(zero_point))


def test_own_module_triple() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(QuantStub(), Scale(), nn.Linear(4, 3), DeQuantStub()).eval()
    model.qconfig = default_qconfig
    ready = prepare(model, prepare_custom_config_dict={"float_to_observed_custom_module_class": {Scale: ObservedScale}})
    x = torch.randn(8, 4)
    assert type(ready[1]) is ObservedScale and torch.equal(ready(x), model(x))
    made: Any = convert(ready, convert_custom_config_dict={"observed_to_quantized_custom_module_class": {ObservedScale: QuantizedScale}})
    assert type(made[1]) is QuantizedScale and type(made[2]) is nnq.Linear and sqnr(model(x), made(x)) > 25


LAYERS: tuple[nn.Module, ...] = (
    nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.ConvTranspose2d(4, 4, 3), nn.Dropout(0.5), nn.ELU(),
    nn.GELU(), nn.GroupNorm(2, 4), nn.Hardsigmoid(), nn.Hardswish(), nn.Hardtanh(), nn.InstanceNorm2d(4), nn.LayerNorm(8),
    nn.LeakyReLU(0.2), nn.PReLU(4), nn.ReLU(), nn.ReLU6(), nn.Sigmoid(), nn.SiLU(), nn.Softmax(1), nn.Softplus(), nn.Tanh(),
    nn.Flatten(2), nn.Identity(), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Upsample(scale_factor=2),
    nn.BatchNorm3d(4), nn.Conv1d(4, 4, 3), nn.Conv3d(4, 4, 3), nn.InstanceNorm1d(4), nn.Linear(8, 3),
)  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS, ids=lambda m: type(m).__name__)
def test_each_layer_between_stubs(layer: nn.Module) -> None:
    """Everything that has an int8 form, or runs on int8 tensors as it is, converts and stays near the float layer."""
    torch.manual_seed(0)
    shape = {"1d": (2, 4, 8), "3d": (2, 4, 4, 8, 8)}.get(type(layer).__name__[-2:], (2, 4, 8, 8))
    model = nn.Sequential(QuantStub(), copy.deepcopy(layer), DeQuantStub()).eval()
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        model[1].running_mean.uniform_(-1, 1)  # type: ignore[operator,union-attr]
    model.qconfig = default_qconfig
    ready, x = prepare(model), torch.randn(shape)
    ready(x)
    made = convert(ready)
    assert not qcompiler.remarks(made), qcompiler.remarks(made)
    assert sqnr(model(x), made(x)) > 25 - BIT
    assert torch.equal(torch.jit.script(copy.deepcopy(made))(x), made(x))


def test_own_mapping_and_swap_module() -> None:
    class Mine(nnq.Linear):
        pass

    ready = prepared()
    mapping = get_default_static_quant_module_mappings() | {nn.Linear: Mine}
    assert type(convert(ready, mapping).fc) is Mine
    assert type(swap_module(ready.fc, mapping)) is Mine and swap_module(ready.maxpool, mapping) is ready.maxpool
    assert get_static_quant_module_class(nn.Linear) is nnq.Linear
    with pytest.raises(ConfigError, match="RMSNorm has no int8 form"):
        get_static_quant_module_class(nn.RMSNorm)


def test_quantize_in_one_call() -> None:
    model = fuse_modules(seeded(SmallResNet()), SmallResNet.chains())
    model.qconfig = default_per_channel_qconfig
    data = [(images(4), torch.zeros(4))]
    made, x = quantize(model, default_eval_fn, [data]), images()
    assert torch.equal(made(x), converted()(x)) and type(model.conv1).__name__ == "ConvReLU2d"
    with pytest.raises(CalibrationError, match="0 of"):
        quantize(model, lambda m: None, [])


def test_seven_bits_where_kernels_add_in_16() -> None:
    """Without VNNI, activations get 7 bits, unless the user said how many; on qnnpack never."""
    ready = prepared()
    assert sqnr(convert(ready, isa="avx512_vnni")(images()), convert(ready, isa="avx2")(images())) < 60
    wide, narrow = (convert(ready, isa=isa).conv1 for isa in ("avx512_vnni", "avx2"))
    assert narrow.scale == pytest.approx(wide.scale * 255 / 127, rel=1e-3)


@pytest.mark.parametrize("engine", [e for e in ("x86", "fbgemm", "onednn", "qnnpack") if e in torch.backends.quantized.supported_engines])
def test_engines(engine: str) -> None:
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = engine
        made, x = convert(prepared(get_default_qconfig(engine))), images()
        assert made.conv1.engine == engine
        assert sqnr(seeded(SmallResNet())(x), made(x)) > 20
    finally:
        torch.backends.quantized.engine = before
