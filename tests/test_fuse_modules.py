"""fuse_modules: values stay, what does not fuse is named, and what was fused away is missed when it is called again."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

import qcompiler
from qcompiler.errors import ConfigError, NumericsError
from qcompiler.nn import intrinsic as nni
from qcompiler.quantization import fuse_modules, fuse_modules_qat, fuser_method_mappings
from qcompiler.quantization.fused_into import FusedInto
from tests.hand_prepared import SmallMobileNetV2, SmallResNet, images, seeded

CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def norm(dims: int, channels: int, **settings: Any) -> nn.Module:
    made = NORMS[dims](channels, **settings)
    made.running_mean.uniform_(-1, 1)
    made.running_var.uniform_(0.5, 2)
    if made.affine:
        made.weight.data.uniform_(-1, 2)
        made.bias.data.uniform_(-1, 1)
    return made


def cases() -> dict[str, tuple[list[nn.Module], tuple[int, ...], type]]:
    """Chain, input shape, class in eval mode."""
    torch.manual_seed(0)
    found: dict[str, tuple[list[nn.Module], tuple[int, ...], type]] = {}
    for d in (1, 2, 3):
        shape, relu = (2, 4, *[5] * d), getattr(nni, f"ConvReLU{d}d")
        found[f"conv{d}d bn"] = [CONVS[d](4, 6, 3, bias=False), norm(d, 6)], shape, CONVS[d]
        found[f"conv{d}d groups bn relu"] = [CONVS[d](4, 6, 3, groups=2), norm(d, 6, affine=False), nn.ReLU()], shape, relu
        found[f"conv{d}d relu"] = [CONVS[d](4, 6, 3, padding="same"), nn.ReLU()], shape, relu
        found[f"conv_transpose{d}d groups bn"] = [TRANSPOSED[d](4, 6, 3, groups=2, bias=d != 2), norm(d, 6)], shape, TRANSPOSED[d]
    for d in (2, 3):
        found[f"bn{d}d relu"] = [norm(d, 4), nn.ReLU()], (2, 4, *[5] * d), getattr(nni, f"BNReLU{d}d")
    found["weight_norm bn"] = [nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), norm(2, 6)], (2, 4, 5, 5), nn.Conv2d
    found["linear bn"] = [nn.Linear(4, 6), norm(1, 6)], (3, 4), nn.Linear
    found["linear bn relu"] = [nn.Linear(4, 6, bias=False), norm(1, 6), nn.ReLU()], (3, 4), nni.LinearReLU
    found["linear relu"] = [nn.Linear(4, 6), nn.ReLU()], (3, 4), nni.LinearReLU
    found["linear leaky_relu"] = [nn.Linear(4, 6), nn.LeakyReLU(0.2)], (3, 4), nni.LinearLeakyReLU
    found["linear tanh"] = [nn.Linear(4, 6), nn.Tanh()], (3, 4), nni.LinearTanh
    return found


@pytest.mark.parametrize("name", sorted(cases()))
def test_values_stay(name: str) -> None:
    chain, shape, expected = cases()[name]
    model = nn.Sequential(*chain).eval()
    names, x = [str(i) for i in range(len(chain))], torch.randn(shape)
    fused = fuse_modules(model, names)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)
    assert type(fused[0]) is expected and all(isinstance(m, nn.Identity) for m in list(fused)[1:])
    assert [type(m) for m in model] == [type(m) for m in chain], "without inplace the model itself stays as it was"
    assert not any(m.training for m in fused.modules())


@pytest.mark.parametrize("make", [SmallMobileNetV2, SmallResNet])
def test_networks_by_indices_and_dotted_names(make: Any) -> None:
    model = seeded(make())
    x, fused = images(), copy.deepcopy(model)
    fused.fuse_model() if make is SmallMobileNetV2 else fuse_modules(fused, SmallResNet.chains(), inplace=True)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())


@pytest.mark.parametrize("fuse", [fuse_modules, fuse_modules_qat])
def test_in_train_mode_batch_norm_stays(fuse: Any) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), norm(2, 6), nn.ReLU(), nn.Linear(3, 6), norm(1, 6)).train()
    fused = fuse(model, [["0", "1", "2"], ["3", "4"]])
    assert type(fused[0]) is nni.ConvBnReLU2d and type(fused[3]) is nni.LinearBn1d and fused[0].training
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(fused[:3](x), model[:3](x))
    assert torch.equal(fused[0][1].running_mean, model[1].running_mean)


def two() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval()


@pytest.mark.parametrize(("names", "words"), [
    (["0", "2", "1"], ["0 (Conv2d), 2 (ReLU), 1 (BatchNorm2d)", "BatchNorm2d does not fuse behind Conv2d, ReLU",
                       "in this order: Conv2d, BatchNorm2d, ReLU"]),
    (["1", "0"], ["Conv2d does not fuse behind BatchNorm2d"]),
    (["2", "0"], ["ReLU does not begin"]),
    (["0", "3"], ["Conv2d does not fuse behind Conv2d"]),
    (["0", "1", "bn9"], ["no module 'bn9'"]),
    (["0"], ["nothing to fuse 0 with"]),
    ("0", ["a list of names"]),
    ([["0", "1"], ["3", "1"]], ["1 is to be fused into both 0 and 3", "a module of its own"]),
    ([["0", "1", "2"], ["3", "2"]], ["2 is to be fused into both"]),
])  # fmt: skip
def test_what_does_not_fuse_is_named_and_nothing_changes(names: Any, words: list[str]) -> None:
    model = two()
    before = repr(model)
    with pytest.raises(ConfigError) as caught:
        fuse_modules(model, names, inplace=True)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert repr(model) == before


def test_batch_norms_that_cannot_be_folded() -> None:
    for bn, text in ((nn.BatchNorm2d(5).eval(), "4 output channels, 5"), (nn.BatchNorm2d(4).train(), "different modes"),
                     (nn.BatchNorm2d(4, track_running_stats=False).eval(), "running statistics")):  # fmt: skip
        with pytest.raises(ConfigError, match=text):
            fuse_modules(nn.Sequential(nn.Conv2d(3, 4, 3).eval(), bn), ["0", "1"])
    bad = two()
    bad[1].running_var.fill_(-1)
    with pytest.raises(NumericsError, match=r"cannot fuse 0 \(Conv2d\), 1 \(BatchNorm2d\)"):
        fuse_modules(bad, ["0", "1"])


class CalledTwice(nn.Module):
    """As torchvision's ResNet: one ReLU for both of its places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.relu(self.bn(self.conv(x))) - x)


def test_a_fused_module_that_is_called_again_is_an_error() -> None:
    fused = fuse_modules(nn.Sequential(CalledTwice()).eval(), ["0.conv", "0.bn", "0.relu"])
    with pytest.raises(ConfigError) as caught:
        fused(torch.randn(1, 3, 4, 4))
    text = str(caught.value)
    assert "0.relu was fused into 0.conv but is called again on another value" in text and "a module of its own" in text
    with pytest.raises(ConfigError, match="called again on another value"):
        qcompiler.prepare_fx(fused, None, (torch.randn(1, 3, 4, 4),))
    with pytest.raises(ConfigError, match=r"was fused into 0\.conv before"):
        fuse_modules(fused, ["0.conv", "0.relu"])


class CalledInAChainTwice(nn.Module):
    """The whole chain runs twice: nothing is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 1), norm(2, 3), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            x = self.relu(self.bn(self.conv(x)))
        return x


def test_what_fused_modules_survive() -> None:
    model = CalledInAChainTwice().eval()
    x, expected = torch.randn(1, 3, 4, 4), None
    fused: Any = fuse_modules(model, ["conv", "bn", "relu"])
    expected = fused(x)
    torch.testing.assert_close(expected, model(x), rtol=1e-5, atol=1e-5)
    saved = io.BytesIO()
    torch.save(fused, saved)
    saved.seek(0)
    copies = [copy.deepcopy(fused), torch.load(saved, weights_only=False), torch.jit.script(fused), torch.compile(fused, backend="eager")]
    for other in copies:
        assert torch.equal(other(x), expected)
    fused.load_state_dict(copies[0].state_dict())
    assert isinstance(copies[0].bn, FusedInto) and copies[0].bn._qc_fusion is copies[0].conv._qc_fusion is not fused.conv._qc_fusion


def test_a_chain_can_grow() -> None:
    model = two()
    x = torch.randn(1, 3, 8, 8)
    fused = fuse_modules(fuse_modules(model, ["0", "1"]), ["0", "2"])
    assert type(fused[0]) is nni.ConvReLU2d
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)


def test_hooks_move_to_the_fused_module() -> None:
    model, calls = two(), []
    model[0].register_forward_pre_hook(lambda m, args: calls.append("before"))
    model[2].register_forward_hook(lambda m, args, out: calls.append(out.min().item()))
    fuse_modules(model, ["0", "1", "2"])(torch.randn(1, 3, 8, 8))
    assert calls[0] == "before" and calls[1] >= 0 and len(calls) == 2


def test_a_shared_module_stays_shared() -> None:
    conv, bn = nn.Conv2d(3, 3, 1), norm(2, 3)
    model = nn.Sequential(conv, bn, conv, bn).eval()
    x = torch.randn(1, 3, 4, 4)
    fused = fuse_modules(model, ["0", "1"])
    assert fused[0] is fused[2]
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)


def test_own_methods_and_functions() -> None:
    class Mine(nn.Conv2d):
        pass

    model = nn.Sequential(Mine(3, 4, 1), nn.ReLU()).eval()
    with pytest.raises(ConfigError, match="Mine does not begin"):
        fuse_modules(model, ["0", "1"])
    custom = {"additional_fuser_method_mapping": {(Mine, nn.ReLU): lambda is_qat, conv, relu: nn.Sequential(conv, relu)}}
    x = torch.randn(1, 3, 4, 4)
    assert torch.equal(fuse_modules(model, ["0", "1"], fuse_custom_config_dict=custom)(x), model(x))
    pair = fuse_modules(model, ["0", "1"], fuser_func=lambda mods, is_qat, mapping: [nn.Sequential(*mods), nn.Identity()])
    assert torch.equal(pair(x), model(x))


def test_folding_is_torchs() -> None:
    conv, bn = nn.Conv2d(4, 6, 3, bias=False).eval(), norm(2, 6).eval()
    ours, theirs = fuser_method_mappings.fuse_conv_bn(False, conv, bn), nn.utils.fusion.fuse_conv_bn_eval(conv, bn)
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)
    assert ours is not conv and conv.bias is None
