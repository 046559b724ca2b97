"""conv_bn trains as conv + BN does, and with frozen statistics is the folded convolution."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.ao.nn.intrinsic.qat as nniqat
import torch.ao.quantization as ao
import torch.nn.functional as F
from torch import nn

from qcompiler.errors import InputError
from qcompiler.fake_quantize import default_fused_per_channel_wt_fake_quant, default_weight_fake_quant
from qcompiler.ops.batch_norm import Layout, Norm, fold
from qcompiler.qat import conv_bn

BATCH_NORM = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
CASES = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (5, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2), (3, 4, 8, 7)),
    "conv2d-no-bias": (lambda: nn.Conv2d(4, 6, 3, bias=False), (3, 4, 8, 7)),
    "conv2d-groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (3, 4, 8, 7)),
    "conv2d-reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (3, 4, 8, 7)),
    "conv2d-same": (lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=2), (3, 4, 8, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), (2, 2, 4, 4, 4)),
    "linear": (lambda: nn.Linear(4, 6), (9, 4)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3), (5, 4, 9)),
    "transposed2d-groups": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1), (3, 4, 5, 6)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 4, 2, bias=False), (2, 2, 3, 3, 3)),
}
identity = nn.Identity()


def make(case: str, momentum: float | None = 0.1, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    build, shape = CASES[case]
    conv = build()
    channels = conv.out_features if isinstance(conv, nn.Linear) else conv.out_channels
    bn = BATCH_NORM[len(shape)](channels, momentum=momentum)
    with torch.no_grad():
        bn.weight.uniform_(-1.5, 1.5)
        bn.bias.uniform_(-1, 1)
        bn.running_mean.uniform_(-1, 1)
        bn.running_var.uniform_(0.2, 3)
    return conv.to(dtype), bn.to(dtype), torch.randn(shape, dtype=dtype)


def call_of(conv: nn.Module):
    if isinstance(conv, nn.Linear):
        return F.linear
    if not isinstance(conv, nn.modules.conv._ConvTransposeNd):
        return conv._conv_forward
    run = getattr(F, f"conv_transpose{conv.weight.dim() - 2}d")
    return lambda x, w, b: run(x, w, b, conv.stride, conv.padding, conv.output_padding, conv.groups, conv.dilation)


def parts(conv: nn.Module, bn: nn.Module) -> tuple[Norm, Layout]:
    layout = Layout(int(isinstance(conv, nn.modules.conv._ConvTransposeNd)), getattr(conv, "groups", 1))
    return Norm(bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.eps), layout


def ours(conv: nn.Module, bn: nn.Module, x: torch.Tensor, fake_quant=identity) -> torch.Tensor:
    return conv_bn(
        call_of(conv), x, conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.num_batches_tracked,
        fake_quant=fake_quant, training=bn.training, momentum=bn.momentum, eps=bn.eps, **parts(conv, bn)[1]._asdict(),
    )  # fmt: skip


def unfused(conv: nn.Module, bn: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return bn(conv(x))


def state_after(run, conv: nn.Module, bn: nn.Module, x: torch.Tensor, steps: int = 3) -> dict[str, torch.Tensor]:
    """Outputs of the last step, gradients summed over all steps, and BN's buffers, of three different batches."""
    conv, bn, x = deepcopy(conv), deepcopy(bn), x.clone().requires_grad_()
    for step in range(steps):
        out = run(conv, bn, x * (1 + step) + step)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        (out * weights).sum().backward()
    grads = {f"{k} gradient": p.grad for m in (conv, bn) for k, p in m.named_parameters(prefix=type(m).__name__)}
    return {"output": out.detach(), "input gradient": x.grad, **grads, **dict(bn.named_buffers())}


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], tolerance: float) -> None:
    assert got.keys() == want.keys()
    for name, expected in want.items():
        size = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(got[name].double(), expected.double(), rtol=0, atol=tolerance * size, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("frozen", [False, True], ids=["batch", "frozen"])
@pytest.mark.parametrize("case", CASES)
def test_without_fake_quantization_trains_as_conv_and_bn(case: str, frozen: bool) -> None:
    conv, bn, x = make(case, dtype=torch.float64)
    bn.train(not frozen)
    want = state_after(unfused, conv, bn, x)
    assert_same(state_after(ours, conv, bn, x), want, 1e-12)  # 2e-16 times the number of terms and of steps
    single = state_after(ours, conv.float(), bn.float(), x.float())
    assert_same(single, want, 1e-3)  # 6e-8 times the same; gradients that cancel to 0 have terms in the hundreds


@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0, None])
def test_running_statistics_follow_momentum(momentum: float | None) -> None:
    conv, bn, x = make("conv2d", momentum, torch.float64)
    assert_same(state_after(ours, conv, bn, x), state_after(unfused, conv, bn, x), 1e-12)


@pytest.mark.parametrize("missing", ["weight", "bias"])
def test_batch_norm_without_gamma_or_beta(missing: str) -> None:
    conv, bn, x = make("conv2d", dtype=torch.float64)
    setattr(bn, missing, None)
    for module in (bn.train(), deepcopy(bn).eval()):
        assert_same(state_after(ours, conv, module, x), state_after(unfused, conv, module, x), 1e-12)


@pytest.mark.parametrize("tiny", [0.0, 1e-30, -1e-42], ids=str)
@pytest.mark.parametrize("case", ["conv2d", "transposed2d-groups", "linear"])
def test_zero_gamma_trains_as_conv_and_bn(case: str, tiny: float) -> None:
    conv, bn, x = make(case)
    bn.weight.data[::2] = tiny
    want = state_after(unfused, deepcopy(conv).double(), deepcopy(bn).double(), x.double())
    assert_same(state_after(ours, conv, bn, x), want, 1e-4)
    assert bool(want["BatchNorm2d.weight gradient" if x.dim() == 4 else "BatchNorm1d.weight gradient"][::2].abs().min() > 0)


def test_a_zero_gamma_does_not_widen_the_range_of_the_others() -> None:
    conv, bn, x = make("conv2d")
    bn.weight.data[:] = 0.01
    bn.weight.data[0] = 0
    fake = default_weight_fake_quant()
    ours(conv, bn.train(), x, fake)
    var = make("conv2d")[1].running_var  # as it was before the step
    widest = (conv.weight * (bn.weight / (var + bn.eps).sqrt()).reshape(-1, 1, 1, 1)).abs().max()
    assert float(fake.scale) == pytest.approx(widest.item() / 127.5, rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_evaluation_is_the_folded_convolution(case: str) -> None:
    conv, bn, x = make(case)
    bn.eval()
    fake = default_weight_fake_quant()
    got = ours(conv, bn, x, fake)
    weight, bias = fold(conv.weight, conv.bias, *parts(conv, bn))
    quantized = torch.fake_quantize_per_tensor_affine(weight, float(fake.scale), 0, fake.quant_min, fake.quant_max)
    want = call_of(conv)(x, quantized, bias)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert (want - bn(conv(x))).abs().max().item() > 1e-4  # the rounding of weights does show


@pytest.mark.parametrize("frozen", [False, True], ids=["batch", "frozen"])
def test_equals_torchs_module_with_fake_quantization(frozen: bool) -> None:
    torch.manual_seed(1)
    theirs = nniqat.ConvBn2d(4, 6, 3, bias=True, padding=1, qconfig=ao.get_default_qat_qconfig("fbgemm"))
    theirs.apply(nniqat.freeze_bn_stats if frozen else nniqat.update_bn_stats)
    conv, bn, x = make("conv2d")
    conv.stride = (1, 1)
    conv.load_state_dict({"weight": theirs.weight, "bias": theirs.bias})
    bn.load_state_dict(theirs.bn.state_dict())
    bn.train(not frozen)
    fake = default_fused_per_channel_wt_fake_quant(averaging_constant=0.01)  # as theirs
    for step in range(3):
        a, b = theirs(x + step), ours(conv, bn, x + step, fake)
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
        a.square().sum().backward()
        b.square().sum().backward()
    torch.testing.assert_close(conv.weight.grad, theirs.weight.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(bn.weight.grad, theirs.bn.weight.grad, rtol=1e-3, atol=1e-3)
    for name, buffer in theirs.bn.named_buffers():
        torch.testing.assert_close(bn.get_buffer(name), buffer, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("case", "shape"), [("conv2d", (4, 8, 7)), ("linear", (2, 3, 4)), ("linear", (4,))])
def test_an_input_that_batch_norm_does_not_take(case: str, shape: tuple[int, ...]) -> None:
    conv, bn, _ = make(case)
    with pytest.raises(InputError, match="dimensions"):
        ours(conv, bn, torch.randn(shape))


def test_a_single_value_per_channel_is_refused_as_by_batch_norm() -> None:
    conv, bn, _ = make("linear")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ours(conv, bn, torch.randn(1, 4))
    assert ours(conv, bn.eval(), torch.randn(1, 4)).shape == (1, 6)
