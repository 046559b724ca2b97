"""nn.qat and nn.intrinsic.qat: from a float module and back, values, state_dicts of torch's modules, freezing."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.ao.nn.intrinsic as nni
import torch.ao.nn.intrinsic.qat as theirs_intrinsic
import torch.ao.nn.qat as theirs
import torch.ao.quantization as ao
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

import qcompiler.nn as qnn
from qcompiler import fake_quantize as fq
from qcompiler.config.qconfig import (
    QConfig,
    default_dynamic_qat_qconfig,
    default_embedding_qat_qconfig,
    default_per_channel_lsq_qconfig,
    default_qat_qconfig_v2,
    default_qconfig,
    get_default_qat_qconfig,
)
from qcompiler.errors import ConfigError
from qcompiler.nn.qat.base import QATModule
from qcompiler.quantization.quantization_mappings import get_default_static_quant_module_mappings

QCONFIG = get_default_qat_qconfig("x86")
qat, intrinsic, fused = qnn.qat, qnn.intrinsic.qat, qnn.intrinsic
IMAGES = {1: (3, 4, 9), 2: (3, 4, 8, 7), 3: (2, 4, 5, 4, 5)}


def conv(d: int, **kw: Any) -> nn.Module:
    return getattr(nn, f"Conv{d}d")(4, 6, 3, **{"stride": 2, "padding": 1, "padding_mode": "reflect" if d < 3 else "zeros", **kw})


def transposed(d: int) -> nn.Module:
    return getattr(nn, f"ConvTranspose{d}d")(4, 6, 3, stride=2, output_padding=1, groups=2)


def norm(d: int, channels: int = 6) -> nn.Module:
    bn = getattr(nn, f"BatchNorm{d}d")(channels, eps=1e-3, momentum=0.2)
    with torch.no_grad():
        bn.weight.uniform_(-1.5, 1.5)
        bn.bias.uniform_(-1, 1)
        bn.running_mean.uniform_(-1, 1)
        bn.running_var.uniform_(0.2, 3)
    return bn


CASES: dict[str, Any] = {
    "Linear": (qat.Linear, lambda: nn.Linear(4, 6), (5, 4)),
    "LinearNoBias": (qat.Linear, lambda: nn.Linear(4, 6, bias=False), (5, 2, 4)),
    "LinearReLU": (intrinsic.LinearReLU, lambda: fused.LinearReLU(nn.Linear(4, 6), nn.ReLU()), (5, 4)),
    "LinearBn1d": (intrinsic.LinearBn1d, lambda: fused.LinearBn1d(nn.Linear(4, 6), norm(1)), (5, 4)),
}
for d in (1, 2, 3):
    CASES |= {
        f"Conv{d}d": (getattr(qat, f"Conv{d}d"), lambda d=d: conv(d, groups=2), IMAGES[d]),
        f"ConvTranspose{d}d": (getattr(qat, f"ConvTranspose{d}d"), lambda d=d: transposed(d), IMAGES[d]),
        f"ConvTransposeBn{d}d": (
            getattr(intrinsic, f"ConvTransposeBn{d}d"),
            lambda d=d: getattr(fused, f"ConvTransposeBn{d}d")(transposed(d), norm(d)),
            IMAGES[d],
        ),
        f"ConvReLU{d}d": (getattr(intrinsic, f"ConvReLU{d}d"), lambda d=d: getattr(fused, f"ConvReLU{d}d")(conv(d), nn.ReLU()), IMAGES[d]),
        f"ConvBn{d}d": (
            getattr(intrinsic, f"ConvBn{d}d"),
            lambda d=d: getattr(fused, f"ConvBn{d}d")(conv(d, bias=False), norm(d)),
            IMAGES[d],
        ),
        f"ConvBnReLU{d}d": (
            getattr(intrinsic, f"ConvBnReLU{d}d"),
            lambda d=d: getattr(fused, f"ConvBnReLU{d}d")(conv(d), norm(d), nn.ReLU()),
            IMAGES[d],
        ),
    }


def made(case: str, qconfig: Any = QCONFIG) -> tuple[nn.Module, Any, torch.Tensor]:
    """The float module, its QAT module with parameters of its own, and an input."""
    torch.manual_seed(0)
    cls, build, shape = CASES[case]
    module = build()
    module.qconfig = qconfig
    return module, cls.from_float(deepcopy(module)), torch.randn(shape)


def backward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out = module(x)
    (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
    return out.detach()


@pytest.mark.parametrize("case", CASES)
def test_trains_as_the_float_module_without_fake_quantization(case: str) -> None:
    module, trained, x = made(case)
    trained.apply(fq.disable_fake_quant)
    for step in range(2):
        torch.testing.assert_close(backward(trained, x + step), backward(module, x + step), rtol=1e-4, atol=1e-5)
    ours = sorted((str(tuple(p.shape)), float(p.grad.norm())) for p in trained.parameters())
    want = sorted((str(tuple(p.shape)), float(p.grad.norm())) for p in module.parameters())
    assert [s for s, _ in ours] == [s for s, _ in want]
    assert [n for _, n in ours] == pytest.approx([n for _, n in want], rel=1e-3, abs=1e-4 * max(n for _, n in want))
    torch.testing.assert_close(trained.eval()(x), module.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_to_float_computes_what_evaluation_does(case: str) -> None:
    module, trained, x = made(case)
    trained(x)
    folded = trained.eval().to_float()
    assert not folded.training and not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())
    assert isinstance(folded, nn.Sequential) == ("ReLU" in case)
    trained.apply(fq.disable_fake_quant)
    torch.testing.assert_close(folded(x), trained(x), rtol=1e-5, atol=1e-6)
    trained.apply(fq.enable_fake_quant)
    base = folded[0] if isinstance(folded, nn.Sequential) else folded
    base.weight.data = trained.weight_fake_quant(base.weight.data)
    torch.testing.assert_close(folded(x), trained(x), rtol=1e-6, atol=1e-6)
    assert type(base) is type(module[0] if isinstance(module, nn.Sequential) else module)


@pytest.mark.parametrize("case", CASES)
def test_shares_parameters_and_keeps_class_mode_and_qconfig(case: str) -> None:
    _, build, _ = CASES[case]
    module = build().eval()
    module.qconfig = QCONFIG
    parameters = {id(p) for p in module.parameters()}
    trained = CASES[case][0].from_float(module)
    assert {id(p) for p in trained.parameters()} == parameters
    assert not trained.training and trained.qconfig == QCONFIG and isinstance(trained, QATModule)
    base = module[0] if isinstance(module, nn.Sequential) else module
    assert isinstance(trained, type(base)) and trained.weight is base.weight
    assert not any(t.is_meta for t in [*trained.parameters(), *trained.buffers()])


@pytest.mark.parametrize("case", [c for c in CASES if "Transpose" not in c])
def test_state_dict_of_torchs_module_loads_and_computes_the_same(case: str) -> None:
    _, ours, x = made(case, default_qat_qconfig_v2)
    base = getattr(theirs_intrinsic, type(ours).__name__, None) or getattr(theirs, type(ours).__name__)
    arguments = {name: getattr(ours, name) for name in ours._ARGUMENTS} | {"bias": ours.bias is not None}
    module = base(**arguments, qconfig=ao.default_qat_qconfig_v2)
    if hasattr(module, "bn"):
        module.bn.eps, module.bn.momentum = ours.bn.eps, ours.bn.momentum
    if module.bias is not None:
        nn.init.uniform_(module.bias, -0.5, 0.5)  # torch's LinearBn1d leaves it as the memory was
    module(x)
    assert set(module.state_dict()) == {k for k in ours.state_dict() if not k.endswith("eps")} | {
        k for k in module.state_dict() if k.endswith("eps")
    }
    ours.load_state_dict(module.state_dict())
    for m in (ours, module):
        m.apply(fq.disable_observer if m is ours else ao.disable_observer)
    torch.testing.assert_close(ours(x), module(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.eval()(x), module.eval()(x), rtol=1e-4, atol=1e-5)
    module.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("case", ["ConvBn2d", "ConvBnReLU1d", "LinearBn1d", "ConvTransposeBn2d"])
def test_frozen_statistics_survive_train(case: str) -> None:
    _, trained, x = made(case)
    trained.apply(intrinsic.freeze_bn_stats)
    before = deepcopy(dict(trained.bn.named_buffers()))
    trained.train()
    assert trained.training and not trained.bn.training
    backward(trained, x)
    assert all(torch.equal(before[k], v) for k, v in trained.bn.named_buffers())
    assert trained.bn.weight.grad.abs().sum() > 0 and trained.weight.grad.abs().sum() > 0
    trained.apply(intrinsic.update_bn_stats)
    trained(x)
    assert trained.bn.num_batches_tracked == before["num_batches_tracked"] + 1
    trained.eval().apply(intrinsic.update_bn_stats)
    assert not trained.bn.training


def test_a_batch_norm_that_the_user_froze_stays_frozen() -> None:
    module = fused.ConvBn2d(conv(2), norm(2))
    module.qconfig = QCONFIG
    module[1].eval()
    assert intrinsic.ConvBn2d.from_float(module).freeze_bn


@pytest.mark.parametrize(
    "module",
    [
        nni.ConvBnReLU2d(conv(2), norm(2), nn.ReLU()),
        nn.Sequential(conv(2), norm(2), nn.ReLU()),
        nn.Sequential(conv(2), nn.SyncBatchNorm(6), nn.ReLU()),
    ],
    ids=["torchs", "plain", "sync"],
)
def test_containers_go_by_their_parts(module: nn.Module) -> None:
    module[0].qconfig = QCONFIG  # as torch sets it on the parts
    trained = intrinsic.ConvBnReLU2d.from_float(module)
    assert trained.bn is module[1]
    if not isinstance(trained.bn, nn.SyncBatchNorm):  # which refuses the CPU
        assert trained(torch.randn(2, 4, 8, 8)).min() == 0


def test_parametrized_weights_stay_parametrized() -> None:
    linear = parametrizations.weight_norm(nn.Linear(4, 6))
    linear.qconfig = QCONFIG
    x = torch.randn(5, 4)
    want = linear(x)
    trained = qat.Linear.from_float(linear)
    trained.apply(fq.disable_fake_quant)
    torch.testing.assert_close(trained(x), want)
    backward(trained, x)
    assert all(p.grad is not None for p in trained.parameters()) and len(list(trained.parameters())) == 3
    assert torch.equal(trained.to_float().weight, trained.weight)


def test_unknown_modules_and_missing_qconfigs_are_named() -> None:
    class Mine(nn.Conv2d):
        pass

    mine = Mine(4, 6, 3)
    mine.qconfig = QCONFIG
    with pytest.raises(ConfigError, match=r"qat\.Conv2d\.from_float takes Conv2d, not Mine"):
        qat.Conv2d.from_float(mine)
    with pytest.raises(ConfigError, match="takes Conv2d, BatchNorm2d, ReLU, not Conv2d, ReLU"):
        intrinsic.ConvBnReLU2d.from_float(nn.Sequential(conv(2), nn.ReLU()))
    for qconfig in (None, default_qconfig):
        plain = conv(2)
        plain.qconfig = qconfig
        with pytest.raises(ConfigError, match=r"qat\.Conv2d"):
            qat.Conv2d.from_float(plain)
    module = fused.ConvBn2d(conv(2), nn.BatchNorm2d(6, track_running_stats=False))
    module.qconfig = QCONFIG
    with pytest.raises(ConfigError, match="running statistics"):
        intrinsic.ConvBn2d.from_float(module)
    with pytest.warns(FutureWarning):
        hooked = weight_norm(nn.Linear(4, 6))
    hooked.qconfig = QCONFIG
    with pytest.raises(ConfigError, match="hook"):
        qat.Linear.from_float(hooked)


def test_torchs_qconfig_is_taken() -> None:
    trained = qat.Conv2d(4, 6, 3, qconfig=ao.get_default_qat_qconfig("fbgemm"))
    assert type(trained.weight_fake_quant) is fq.FusedMovingAvgObsFakeQuantize and trained.weight_fake_quant.is_per_channel


def test_transposed_weights_have_one_scale_an_output_channel() -> None:
    trained = qat.ConvTranspose2d(4, 6, 3, qconfig=QCONFIG)
    trained(torch.randn(1, 4, 5, 5))
    assert trained.weight_fake_quant.scale.numel() == 6 and trained.weight_fake_quant.qparams().channel_axis == 1
    assert trained(torch.randn(1, 4, 5, 5), output_size=[7, 7]).shape[-1] == 7


@pytest.mark.parametrize("case", ["embedding", "bag", "padded", "norm"])
def test_embeddings(case: str) -> None:
    torch.manual_seed(0)
    kw = {"padded": {"padding_idx": 2}, "norm": {"max_norm": 1.0}}.get(case, {})
    module = nn.EmbeddingBag(10, 8, mode="sum") if case == "bag" else nn.Embedding(10, 8, **kw)
    module.qconfig = default_embedding_qat_qconfig
    cls = getattr(qat, type(module).__name__)
    trained = cls.from_float(deepcopy(module))
    indices = torch.tensor([[1, 2, 2], [4, 9, 0]])
    assert (trained(indices) - module(indices)).abs().max() < 3 * (3 + 3) / 255  # three rows of steps of 1/255 of the range
    trained.apply(fq.disable_fake_quant)
    torch.testing.assert_close(backward(trained, indices), backward(module, indices))
    torch.testing.assert_close(trained.weight.grad, module.weight.grad)
    assert torch.equal(trained.to_float().weight, trained.weight) and type(trained.to_float()) is type(module)
    assert trained.weight_fake_quant.scale.shape == (10,)
    with pytest.raises(ConfigError, match="float_qparams"):
        cls(10, 8, qconfig=QCONFIG)
    with pytest.raises(ConfigError, match="sparse"):
        cls(10, 8, sparse=True, qconfig=default_embedding_qat_qconfig)


def test_dynamic_linear_wants_observers_without_memory() -> None:
    assert isinstance(qat.dynamic.Linear(4, 6, qconfig=default_dynamic_qat_qconfig), qat.Linear)
    with pytest.raises(ConfigError, match="memory"):
        qat.dynamic.Linear(4, 6, qconfig=QCONFIG)


@pytest.mark.parametrize("case", ["Conv2d", "ConvBnReLU2d", "Linear", "LinearBn1d"])
def test_learned_scales_are_parameters_of_their_final_size(case: str) -> None:
    _, trained, x = made(case, default_per_channel_lsq_qconfig)
    names = dict(trained.named_parameters())
    assert names["weight_fake_quant.scale"].shape == (6,)
    backward(trained, x)
    assert names["weight_fake_quant.scale"].grad.abs().sum() > 0


def test_a_custom_fake_quantize_of_the_user() -> None:
    class Halves(fq.FakeQuantizeBase):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + (torch.round(x * 2) / 2 - x).detach()

    trained = qat.Linear(3, 2, qconfig=QConfig(fq.default_fake_quant, Halves))
    x = torch.eye(3)
    torch.testing.assert_close(trained(x) - trained.bias, (torch.round(trained.weight * 2) / 2).T)


CONVERTED = ("Conv2d", "ConvBn1d", "ConvBnReLU2d", "ConvReLU3d", "Linear", "LinearBn1d", "LinearReLU", "ConvTransposeBn2d")


@pytest.mark.usefixtures("eight_bits")
@pytest.mark.parametrize("case", CONVERTED)
@pytest.mark.parametrize("fake_quant", ["fused", "plain", "learned"])
def test_converts_to_the_weights_it_trained_with(case: str, fake_quant: str) -> None:
    plain = QConfig(fq.default_fake_quant, fq.default_per_channel_weight_fake_quant)
    qconfig = {"fused": QCONFIG, "plain": plain, "learned": default_per_channel_lsq_qconfig}[fake_quant]
    _, trained, x = made(case, qconfig)
    trained.activation_post_process = qconfig.activation()
    for step in range(3):
        backward(trained, x + step)
        trained.activation_post_process(trained(x + step))
    with torch.no_grad():
        for p in trained.parameters():
            p -= 0.01 * p.grad if p.grad is not None and p.grad.norm() < 1e3 else 0
    trained.eval()
    trained.activation_post_process(trained(x))
    mapping = get_default_static_quant_module_mappings()
    quantized = mapping[type(trained)].from_float(trained)
    trained.apply(fq.disable_observer)
    want = trained.weight_fake_quant(trained.deployed()[0])
    torch.testing.assert_close(quantized.weight().dequantize(), want, rtol=1e-6, atol=1e-7)
