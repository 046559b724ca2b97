"""What every quantized module does besides computing: save, load, copy, script, trace, explain itself."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler.nn.intrinsic as nni
import qcompiler.nn.intrinsic.quantized as nniq
import qcompiler.nn.quantized as nnq
from qcompiler.backends.torch.program.once import quantized_engine
from qcompiler.errors import CalibrationError, ConfigError, InputError
from qcompiler.fake_quantize import default_fused_per_channel_wt_fake_quant, default_weight_fake_quant
from qcompiler.nn.quantized.base import QuantizedModule
from qcompiler.observers import MinMaxObserver
from tests.int8_modules import ENGINES, PER_CHANNEL, PER_TENSOR, calibrated, codes, error, same, through_file, truth

IMAGE = (2, 4, 7, 6)
# class: (constructor arguments, input shapes)
MADE: dict[Any, tuple[tuple[Any, ...], tuple[tuple[int, ...], ...]]] = {
    nnq.Conv1d: ((4, 8, 3), ((2, 4, 9),)),
    nnq.Conv2d: ((4, 8, 3, 1, 1, 1, 1, True, "reflect"), (IMAGE,)),
    nnq.Conv3d: ((4, 8, 3), ((2, 4, 5, 4, 4),)),
    nnq.ConvTranspose1d: ((4, 8, 3), ((2, 4, 9),)),
    nnq.ConvTranspose2d: ((8, 4, 3, 2), ((2, 8, 7, 6),)),
    nnq.ConvTranspose3d: ((4, 4, 2), ((2, 4, 5, 4, 4),)),
    nnq.Linear: ((6, 5), (IMAGE,)),
    nnq.BatchNorm2d: ((4,), (IMAGE,)),
    nnq.BatchNorm3d: ((4,), ((2, 4, 5, 4, 4),)),
    nniq.ConvReLU1d: ((4, 8, 3), ((2, 4, 9),)),
    nniq.ConvReLU2d: ((4, 8, 3), (IMAGE,)),
    nniq.ConvReLU3d: ((4, 8, 3), ((2, 4, 5, 4, 4),)),
    nniq.BNReLU2d: ((4,), (IMAGE,)),
    nniq.BNReLU3d: ((4,), ((2, 4, 5, 4, 4),)),
    nniq.LinearReLU: ((6, 5), (IMAGE,)),
    nniq.LinearLeakyReLU: ((6, 5, 0.1), (IMAGE,)),
    nniq.LinearTanh: ((6, 5), (IMAGE,)),
    nniq.ConvAdd2d: ((4, 8, 1), (IMAGE, (2, 8, 7, 6))),
    nniq.ConvAddReLU2d: ((4, 8, 1), (IMAGE, (2, 8, 7, 6))),
}
EACH = pytest.mark.parametrize("kind", MADE, ids=lambda kind: kind.__name__)


def made(kind: Any, per_channel: bool = False) -> tuple[Any, tuple[Tensor, ...]]:
    """A module with random weights, and its inputs."""
    arguments, shapes = MADE[kind]
    torch.manual_seed(0)
    q = kind(*arguments)
    if isinstance(q, (nnq.BatchNorm2d, nnq.BatchNorm3d)):
        q.load_state_dict({k: torch.rand_like(v) + 0.2 if v.is_floating_point() else v for k, v in q.state_dict().items()})
    else:
        held = q.weight()
        scales = torch.rand(held.shape[q._row().weight_axis]).double() * 0.01 + 0.002
        real = torch.randn(held.shape) * 0.4
        weight = (torch.quantize_per_channel(real, scales, torch.zeros(len(scales)).long(), q._row().weight_axis, torch.qint8)
                  if per_channel else torch.quantize_per_tensor(real, 0.004, 0, torch.qint8))  # fmt: skip
        q.set_weight_bias(weight, torch.randn(q.bias().shape))
    q.scale, q.zero_point = 0.031, 77
    return q, tuple(codes(*shape, seed=i) for i, shape in enumerate(shapes))


class User(nn.Module):
    """A user's model: the same class twice with other qparams, behind a float border."""

    def __init__(self, q: Any, again: Any) -> None:
        super().__init__()
        self.first, self.again = q, again

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x).dequantize() + self.again(x).dequantize()


class UserOfTwo(User):
    def forward(self, x: Tensor, extra: Tensor) -> Tensor:  # type: ignore[override]
        return self.first(x, extra).dequantize() + self.again(x, extra).dequantize()


@EACH
@pytest.mark.parametrize("engine", ENGINES)
def test_a_fresh_module_takes_the_state_dict(kind: Any, engine: str) -> None:
    with quantized_engine(engine):
        q, inputs = made(kind, per_channel=not kind.__name__.startswith(("ConvTranspose",)))
        state = q.state_dict()
        assert all(type(v) is Tensor and not v.is_quantized for v in state.values())
        fresh = kind(*MADE[kind][0])
        assert not same(fresh(*inputs), q(*inputs))
        fresh.load_state_dict(through_file(state, load=lambda f: torch.load(f, weights_only=True)))
        assert same(fresh(*inputs), q(*inputs)) and repr(fresh) == repr(q)
        assigned = kind(*MADE[kind][0])
        assigned.load_state_dict(state, assign=True)
        assert same(assigned(*inputs), q(*inputs))


@EACH
@pytest.mark.parametrize("engine", ENGINES)
def test_copies_agree_bit_for_bit(kind: Any, engine: str) -> None:
    with quantized_engine(engine):
        q, inputs = made(kind)
        expected = q(*inputs)
    with quantized_engine("onednn" if engine == "onednn" else "fbgemm"):  # packed for its own engine, also in a copy
        for other in (copy.deepcopy(q), copy.copy(q), through_file(q), through_file(nn.Sequential(q))[0]):
            assert other.engine == engine and type(other) is kind and same(other(*inputs), expected)
    for changed in (copy.deepcopy(q), copy.copy(q)):
        changed.scale = 0.5
        with quantized_engine(engine):
            assert q.scale == 0.031 and same(q(*inputs), expected) and not same(changed(*inputs), expected)


@EACH
@pytest.mark.parametrize("engine", ENGINES)
def test_script_and_trace_agree_bit_for_bit(kind: Any, engine: str) -> None:
    with quantized_engine(engine):
        q, inputs = made(kind)
        expected = q(*inputs)
        for compiled in (torch.jit.script(q), torch.jit.trace(q, inputs)):
            assert same(compiled(*inputs), expected)
            if engine == "qnnpack" and kind in (nnq.Conv3d, nniq.ConvReLU3d):
                continue  # "QNNPACK only supports conv2d_unpack right now": TorchScript cannot write the pack
            assert same(through_file(compiled, torch.jit.save, torch.jit.load)(*inputs), expected)


@EACH
def test_script_and_trace_inside_a_model_leave_it_alone(kind: Any) -> None:
    with quantized_engine("onednn" if "onednn" in ENGINES else "x86"):
        q, inputs = made(kind)
        again = copy.deepcopy(q)
        again.scale, again.zero_point = 0.05, 100
        user = (User if len(inputs) == 1 else UserOfTwo)(q, again).eval()
        expected, text, state = user(*inputs), repr(user), list(user.state_dict())
        for compiled in (torch.jit.script(user), torch.jit.trace(user, inputs)):
            assert torch.equal(compiled(*inputs), expected)
            assert torch.equal(through_file(compiled, torch.jit.save, torch.jit.load)(*inputs), expected)
        assert user.first is q and repr(user) == text and list(user.state_dict()) == state and torch.equal(user(*inputs), expected)


@EACH
def test_repr_has_qparams(kind: Any) -> None:
    q, _ = made(kind)
    assert repr(q).startswith(f"Quantized{kind.__name__}(") and "scale=0.031, zero_point=77" in repr(q)


@EACH
def test_a_float_input_names_the_module_and_the_missing_step(kind: Any) -> None:
    q, inputs = made(kind)
    q._qc_path = "features.3"
    with pytest.raises(InputError) as caught:
        q(*(x.dequantize() for x in inputs))
    assert f"Quantized{kind.__name__}" in str(caught.value) and "module features.3" in str(caught.value)
    assert "QuantStub" in str(caught.value) and caught.value.code == "not-quantized"


def test_other_inputs_are_named() -> None:
    q = nnq.Conv2d(3, 4, 1)
    with pytest.raises(InputError, match=r"torch.qint32 tensor; kernels take torch.quint8"):
        q(torch.quantize_per_tensor(torch.randn(1, 3, 4, 4), 0.1, 0, torch.qint32))
    with pytest.raises(InputError, match="is no tensor but a list"):
        q([1.0])


@pytest.mark.parametrize("kind", [nnq.Conv2d, nnq.Linear, nnq.BatchNorm2d])
def test_torch_state_dicts_load(kind: Any) -> None:
    """Checkpoints of models that torch quantized."""
    arguments, shapes = MADE[kind]
    arguments = arguments[:3]
    theirs = getattr(torch.ao.nn.quantized, kind.__name__)(*arguments)
    if kind is not nnq.BatchNorm2d:
        shape = theirs.weight().shape
        weight = torch.quantize_per_channel(torch.randn(shape), torch.full(shape[:1], 0.01), torch.zeros(shape[0]).long(), 0, torch.qint8)
        theirs.set_weight_bias(weight, torch.randn(shape[0]))
    theirs.scale, theirs.zero_point = (0.0625, 40) if kind is not nnq.BatchNorm2d else (torch.tensor(0.0625), torch.tensor(40))
    q = kind(*arguments)
    q.load_state_dict(theirs.state_dict())
    x = codes(*shapes[0])
    assert same(q(x), theirs(x))
    outer = nn.Sequential(kind(*arguments))
    outer.load_state_dict(nn.Sequential(theirs).state_dict())
    assert same(outer(x), theirs(x))


def test_a_state_dict_of_another_shape_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="weight: size mismatch"):
        nnq.Conv2d(3, 4, 1).load_state_dict(nnq.Conv2d(3, 5, 1).state_dict())
    q = nnq.Conv2d(3, 4, 1)
    wrong = q.state_dict() | {"weight_scale": torch.ones(3, dtype=torch.float64)}
    with pytest.raises(ConfigError, match="weight_scale: size mismatch"):
        q.load_state_dict(wrong)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "bias"'):
        nnq.Conv2d(3, 4, 1, bias=False).load_state_dict(q.state_dict())


def test_setters_and_in_place_changes() -> None:
    q, (x,) = made(nnq.Conv2d)
    before = q(x)
    q.scale = 0.062
    assert q(x).q_scale() == 0.062 and not same(q(x), before)
    q.scale = 0.031
    assert same(q(x), before)
    q._buffers["weight"].zero_()
    assert same(q(x), before)
    q.rebuild()
    assert not same(q(x), before)
    for name, bad in (("scale", 0.0), ("scale", float("nan")), ("zero_point", 256), ("zero_point", -1)):
        with pytest.raises(ConfigError, match="no quint8 tensor has"):
            setattr(q, name, bad)


def test_to_and_casts() -> None:
    q, (x,) = made(nnq.Conv2d)
    expected = q(x)
    assert same(q.to("cpu").float().share_memory()(x), expected)
    with pytest.raises(ConfigError, match=r"QuantizedConv2d keeps its dtypes; it cannot be cast to torch.float64"):
        q.double()
    with pytest.raises(ConfigError, match="runs on the CPU, not on meta"):
        q.to("meta")
    assert same(q(x), expected)


def test_hooks_run_and_a_dropped_module_is_freed_at_once() -> None:
    q, (x,) = made(nnq.Conv2d)
    seen: list[Any] = []
    q.register_forward_pre_hook(lambda module, args: seen.append(module))
    q.register_forward_hook(lambda module, args, result: seen.append(result.q_scale()))
    q(x)
    assert seen == [q, 0.031]
    seen.clear()
    dropped = weakref.ref(q)
    gc.disable()
    try:
        del q
        assert dropped() is None, "a cycle keeps the weights until the next collection"
    finally:
        gc.enable()


def test_both_ranks_share_one_pack() -> None:
    q, (x,) = made(nnq.Conv2d)
    assert same(q(x[0]), q(x)[0])
    usual, other = q.__dict__["_compiled"], q.__dict__["_by_rank"][3]
    assert usual.packs["prepack_conv2d"] is other.packs["prepack_conv2d"]


@EACH
@pytest.mark.parametrize("engine", ENGINES)
def test_another_number_of_channels_is_refused(kind: Any, engine: str) -> None:
    """By name, whatever the kernel says of it; and none computes something."""
    with quantized_engine(engine):
        q, inputs = made(kind)
        dim, size = q._channels()
        wider = torch.cat([inputs[0], inputs[0].narrow(dim, 0, 1)], dim)
        for wrong in (inputs[0].narrow(dim, 0, size - 1), wider):
            with pytest.raises(InputError, match=rf"Quantized{kind.__name__} takes {size} channels, got shape \("):
                q(wrong, *inputs[1:])


def test_not_ready_to_convert() -> None:
    conv, x = nn.Conv2d(3, 4, 1), codes(1, 3, 4, 4)
    conv._qc_path = "stem.conv"
    with pytest.raises(CalibrationError, match="nothing observed its result") as caught:
        nnq.Conv2d.from_float(conv)
    assert "module stem.conv" in str(caught.value)
    conv.activation_post_process = nn.Identity()
    with pytest.raises(CalibrationError, match="nothing observed its result"):
        nnq.Conv2d.from_float(conv)
    conv.activation_post_process = MinMaxObserver()
    with pytest.raises(CalibrationError, match="saw no data"):
        nnq.Conv2d.from_float(conv)
    conv.activation_post_process(conv(x.dequantize()).detach())
    with pytest.raises(ConfigError, match="has no qconfig"):
        nnq.Conv2d.from_float(conv)
    wide = calibrated(nn.Conv2d(3, 4, 1), x)
    wide.activation_post_process = MinMaxObserver(dtype=torch.int32)
    wide.activation_post_process(torch.randn(9))
    with pytest.raises(ConfigError, match=r"observed as torch.int32; the kernels give torch.uint8"):
        nnq.Conv2d.from_float(wide)
    with pytest.raises(ConfigError, match=r"stands for \[Conv2d\], not for Linear \[Linear\]"):
        nnq.Conv2d.from_float(calibrated(nn.Linear(3, 4), codes(1, 3)))
    with pytest.raises(ConfigError, match=r"not for ConvReLU2d \[Conv2d, ReLU\]"):
        nnq.Conv2d.from_float(calibrated(nni.ConvReLU2d(nn.Conv2d(3, 4, 1), nn.ReLU()), x))
    with pytest.raises(ConfigError, match=r"stands for \[Conv2d, ReLU\], not for Conv2d \[Conv2d\]"):
        nniq.ConvReLU2d.from_float(calibrated(nn.Conv2d(3, 4, 1), x))


@pytest.mark.parametrize("fake_quant", [default_weight_fake_quant, default_fused_per_channel_wt_fake_quant], ids=["tensor", "channel"])
def test_a_trained_module_keeps_its_qparams(fake_quant: Any) -> None:
    torch.manual_seed(0)
    x = codes(2, 3, 7, 7)
    conv = calibrated(nn.Conv2d(3, 4, 3), x)
    conv.weight_fake_quant = fake_quant()
    conv.weight_fake_quant(conv.weight.detach() * 1.5)  # qparams that the weight alone would not give
    del conv.qconfig
    q = nnq.Conv2d.from_float(conv)
    assert torch.equal(q.state_dict()["weight_scale"].reshape(-1), conv.weight_fake_quant.scale.double())
    assert error(q, truth(conv, q, x), x) <= 1


def test_trained_depthwise_weights_that_overflow_are_reported() -> None:
    if "fbgemm" not in ENGINES or not torch.cpu._is_vnni_supported():
        pytest.skip("elsewhere activations have 7 bits")
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1, groups=16)
    conv.weight.data = torch.rand_like(conv.weight) + 0.5
    conv = calibrated(conv, codes(2, 16, 9, 9))
    conv.weight_fake_quant = default_fused_per_channel_wt_fake_quant()
    conv.weight_fake_quant(conv.weight)
    conv._qc_path = "dw"
    with quantized_engine("fbgemm"), pytest.warns(UserWarning, match="dw: 16 of 16 trained weight scales were enlarged"):
        nnq.Conv2d.from_float(conv)


def test_observers_and_containers_of_torch() -> None:
    """A model that torch.ao prepared: its classes are recognised by what they hold."""
    import torch.ao.quantization as tq

    torch.manual_seed(0)
    model = nn.Sequential(tq.QuantStub(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tq.fuse_modules(model, [["1.0", "1.1", "1.2"]], inplace=True)
        model.qconfig = tq.get_default_qconfig("fbgemm")
        tq.prepare(model, inplace=True)
        x = codes(2, 3, 7, 7)
        model(x.dequantize())
        with quantized_engine("fbgemm"):
            fused = model[1][0]
            q = nniq.ConvReLU2d.from_float(fused)
            theirs = torch.ao.nn.intrinsic.quantized.ConvReLU2d.from_float(fused)
    assert (q.scale, q.zero_point) == (theirs.scale, theirs.zero_point)
    assert torch.equal(q.weight().int_repr(), theirs.weight().int_repr()) and same(q(x), theirs(x))


def test_a_network_written_by_hand() -> None:
    torch.manual_seed(0)
    x = codes(2, 3, 8, 8)
    first = nniq.ConvReLU2d.from_float(calibrated(nni.ConvReLU2d(nn.Conv2d(3, 8, 3), nn.ReLU()), x))
    last = nnq.Linear.from_float(calibrated(nn.Linear(8 * 36, 5), first(x).flatten(1), qconfig=PER_TENSOR))
    net = nn.Sequential(first, nn.Flatten(), last)
    assert net(x).shape == (2, 5) and net(x).dtype is torch.quint8
    assert torch.jit.script(net)(x).q_scale() == last.scale


def test_qconfig_may_stand_on_the_part() -> None:
    x = codes(1, 3, 4, 4)
    fused = calibrated(nni.ConvReLU2d(nn.Conv2d(3, 4, 1), nn.ReLU()), x)
    del fused.qconfig
    fused[0].qconfig = PER_CHANNEL
    assert nniq.ConvReLU2d.from_float(fused).weight().qscheme() is torch.per_channel_affine


def test_a_module_that_says_nothing_is_an_error() -> None:
    with pytest.raises(NotImplementedError, match="does not say what it computes"):
        QuantizedModule().rebuild()
    with pytest.raises(AttributeError, match="scale"):
        QuantizedModule(scale=None).scale  # noqa: B018
