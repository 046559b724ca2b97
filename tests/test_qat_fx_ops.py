"""prepare_qat_fx over ops: every convolution and linear with batch norm, what is refused, cats, spellings; parity on each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from qcompiler import (
    QConfig,
    QConfigMapping,
    calibrate,
    convert_fx,
    explain,
    get_default_qat_qconfig,
    prepare_qat_fx,
    remarks,
)
from qcompiler.debug import parity
from qcompiler.fake_quantize import (
    default_lsq_act_fake_quant,
    default_lsq_per_channel_wt_fake_quant,
    disable_fake_quant,
    disable_observer,
)
from tests.cpu import SEVEN_BITS
from tests.flow import ENGINES, randn, targets

Make = Callable[[], nn.Module]


def seq(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


LAYERS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "conv1d": (lambda: seq(nn.Conv1d(3, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU()), (4, 3, 9)),
    "conv2d": (lambda: seq(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU6()), (4, 3, 8, 8)),
    "conv2d-groups": (lambda: seq(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8)), (4, 4, 8, 8)),
    "conv2d-reflect": (lambda: seq(nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8)), (4, 4, 8, 8)),
    "conv2d-same": (lambda: seq(nn.Conv2d(4, 8, 3, padding="same", dilation=2), nn.BatchNorm2d(8)), (4, 4, 8, 8)),
    "conv3d": (lambda: seq(nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4), nn.ReLU()), (4, 3, 4, 4, 4)),
    "transposed1d": (lambda: seq(nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU()), (4, 4, 6)),
    "transposed2d": (lambda: seq(nn.ConvTranspose2d(6, 4, 3, stride=2), nn.BatchNorm2d(4)), (4, 6, 4, 4)),
    "transposed2d-groups": (lambda: seq(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 4, 4, 4)),
    "transposed3d": (lambda: seq(nn.ConvTranspose3d(2, 4, 2), nn.BatchNorm3d(4)), (4, 2, 3, 3, 3)),
    "linear": (lambda: seq(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)), (8, 5)),
    "no-affine": (lambda: seq(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6, affine=False)), (4, 3, 8, 8)),
    "momentum-none": (lambda: seq(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6, momentum=None)), (4, 3, 8, 8)),
    "depthwise": (lambda: seq(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU()), (4, 8, 8, 8)),
    "depthwise-plain": (lambda: seq(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU()), (4, 8, 8, 8)),
    "batch-norm": (lambda: seq(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU()), (4, 3, 8, 8)),
    "sigmoid": (lambda: seq(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 3, 1), nn.Tanh()), (4, 3, 8, 8)),
    "upsample": (lambda: seq(nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 3, 1)), (2, 3, 6, 6)),
    "norms": (lambda: seq(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Hardswish(), nn.Conv2d(4, 4, 1), nn.GELU()), (2, 3, 6, 6)),
    "uneven-pad": (lambda: seq(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, stride=2, groups=8), nn.BatchNorm2d(8)), (2, 8, 8, 8)),
}


def train(prepared: nn.Module, data: tuple[Any, ...], steps: int = 2) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        (prepared(*data) - 1).square().mean().backward()
        optimizer.step()


def check(model: nn.Module, data: tuple[Any, ...], mapping: Any = None, **options: Any) -> tuple[nn.Module, nn.Module]:
    prepared = prepare_qat_fx(model.train(), mapping, data, **options)
    train(prepared, data)
    converted = convert_fx(prepared)
    found = parity(prepared, converted, [data])
    assert found.holds and not found.unmatched, found
    return prepared, converted


def made(build: Make) -> nn.Module:
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) and module.affine:
                module.weight.uniform_(-1.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    return model.train()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", LAYERS)
def test_parity_of_each_layer(case: str, engine: str) -> None:
    build, shape = LAYERS[case]
    prepared, converted = check(made(build), (randn(*shape),), engine=engine)
    joined = case not in ("batch-norm", "sigmoid", "upsample", "norms", "depthwise-plain")
    assert joined == any(name.endswith("_bn") for name in targets(prepared.graph))
    assert explain(converted).int8_mac_share == 1.0


@pytest.mark.parametrize("case", [c for c in LAYERS if c != "momentum-none"])
def test_without_fake_quantization_each_trains_as_the_model(case: str) -> None:
    build, shape = LAYERS[case]
    model, x = made(build).double().float(), randn(*shape)
    prepared = prepare_qat_fx(model, None, (x,)).apply(disable_observer).apply(disable_fake_quant)
    results = [m(x) for m in (model, prepared)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    for result in results:
        result.square().sum().backward()
    held = dict(prepared.named_parameters())
    for name, parameter in model.named_parameters():
        scale = float(parameter.grad.abs().max()) + 1.0  # gradients before a batch norm are differences of large numbers
        torch.testing.assert_close(held[name].grad, parameter.grad, rtol=1e-3, atol=1e-4 * scale, msg=name)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(prepared.get_buffer(name), buffer, rtol=1e-4, atol=1e-5)


# ---- near misses: what stays apart


class TwoUsers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class Clamped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(torch.relu(self.conv(x)))


class Rows(nn.Module):
    """BatchNorm over dimension 1, which is not the linear's."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(5, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.fc(x))


NEAR: dict[str, tuple[Make, tuple[int, ...], str, str]] = {
    "two-users": (TwoUsers, (4, 3, 5, 5), "several-users", "also used by"),
    "clamp": (Clamped, (4, 3, 5, 5), "clamp-between", "a clamp stands between"),
    "rows": (Rows, (3, 4, 5), "other-dimension", "dimension 1 of 3"),
}


@pytest.mark.parametrize("case", NEAR)
def test_what_is_not_one_op_stays_apart_and_trains(case: str) -> None:
    build, shape, code, text = NEAR[case]
    prepared, converted = check(made(build), (randn(*shape),))
    assert "batch_norm" in targets(prepared.graph) and not any(t.endswith("_bn") for t in targets(prepared.graph))
    assert any(r.code == code and text in r.text for r in remarks(converted))


def test_a_batch_norm_without_running_statistics_stays_a_module() -> None:
    model = made(lambda: seq(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Conv2d(4, 4, 1)))
    prepared, converted = check(model, (randn(4, 3, 5, 5),))
    assert any(r.code == "module-kept" and "keeps no running statistics" in r.text for r in remarks(prepared))
    assert [row.node for row in explain(converted).rows if not row.int8] == ["_1", "_2"]  # and the ReLU behind it


# ---- shared modules and other spellings


class Shared(nn.Module):
    """One convolution with one BatchNorm called twice, one plain convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.plain = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.plain(torch.relu(self.bn(self.conv(x))))
        return x


def test_shared_modules() -> None:
    x = randn(4, 4, 6, 6)
    prepared, converted = check(made(Shared), (x,))
    assert targets(prepared.graph).count("conv2d_bn") == 2
    assert len(prepared.weight_fake_quants._modules) == 3 and len(list(prepared.parameters())) == 6
    assert int(prepared.bn.num_batches_tracked) == 4  # two steps, two calls
    with torch.no_grad():
        simulated = prepared.eval().apply(disable_observer)(x)
    assert float((converted(x) - simulated).abs().max()) <= (2.01 + SEVEN_BITS) * float(prepared.observers.plain_1.observer.scale)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3, 3, 3) * 0.2), nn.Parameter(torch.zeros(4))
        self.gamma, self.beta = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, self.bias, padding=1)
        x = F.batch_norm(x, self.mean, self.var, self.gamma, self.beta, self.training, 0.2, 1e-4)
        return F.dropout2d(F.relu(x), 0.2, self.training)


def test_functional_forms_follow_the_mode() -> None:
    x = randn(4, 3, 6, 6)
    prepared, _ = check(made(Functional), (x,))
    assert "conv2d_bn" in targets(prepared.graph) and "dropout" in targets(prepared.graph)
    mean = prepared.mean.clone()
    prepared.eval().apply(disable_observer)
    assert torch.equal(prepared(x), prepared(x)) and torch.equal(prepared.mean, mean)
    prepared.train()(x)
    assert not torch.equal(prepared.mean, mean)


class Computed(nn.Module):
    """Parameters that the forward computes with before they meet the input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(6, 6), nn.Parameter(torch.rand(6))
        self.square = nn.Parameter(torch.randn(6, 6) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.scale.exp() + x @ self.square.T


def test_gradients_reach_parameters_that_are_computed_with() -> None:
    prepared, _ = check(made(Computed), (randn(4, 6),))
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in prepared.parameters())


@pytest.mark.parametrize("compute", [parametrizations.weight_norm, parametrizations.spectral_norm, torch.nn.utils.spectral_norm])
def test_parametrized_weights_are_trained_as_plain_ones(compute: Any) -> None:
    model = made(lambda: seq(compute(nn.Conv2d(3, 4, 3)), nn.ReLU()))
    prepared, converted = check(model, (randn(2, 3, 6, 6),))
    assert sorted(n.partition(".")[2] for n, p in prepared.named_parameters() if p.requires_grad) == ["bias", "weight"]
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in prepared.parameters())
    assert any(r.code == "parametrization" for r in remarks(converted)) and explain(converted).int8_mac_share == 1.0


def test_a_parameter_that_the_forward_leaves_out_is_remarked() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.other = nn.Linear(3, 3), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    found = remarks(prepare_qat_fx(Unused().train(), None, (randn(2, 3),)))
    assert [r.where.module_path for r in found if r.code == "parameter-unused"] == ["other.weight", "other.bias"]


# ---- cats


class Cat(nn.Module):
    """`a` goes into the cat alone, `b` has another user, `c` is a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        b = self.b(x)
        return self.last(torch.cat([self.a(x) * 3, b, F.avg_pool2d(self.c(x), 3, 1, 1)], 1)) + b


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cat_is_joined_before_training_where_that_is_a_copy(engine: str) -> None:
    x = randn(4, 3, 6, 6)
    prepared, _ = check(made(Cat), (x,), engine=engine)
    assert "mul" not in prepared.observers._modules and {"b", "c", "cat"} <= set(prepared.observers._modules)
    kept = [r.text for r in remarks(prepared) if r.code == "not-joined"]
    assert len(kept) == 2 and "%b keeps" in kept[0] and "%avg_pool2d_rounded" not in kept[1]


def test_cats_of_cats_are_one_group() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 2, 1) for _ in range(3))
            self.last = nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(F.max_pool2d(torch.cat([torch.cat([self.a(x), self.b(x)], 1), self.c(x)], 1), 2))
            return y

    prepared, converted = check(made(Nested), (randn(2, 3, 4, 4),))
    assert set(prepared.observers._modules) == {"x", "cat_1", "last"}
    assert converted.code.count("aten_cat(") == 2 and "quantized_cat" not in converted.code  # plain copies


# ---- whole models


class Trap(nn.Module):
    """A part that cannot be traced stays a module and trains as one."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().sum()) > 1e9:
            return x
        return self.drop(self.fc(x))


def test_an_untraceable_part_trains_and_follows_the_mode() -> None:
    x = randn(4, 4)
    prepared, converted = check(seq(nn.Linear(4, 4), Trap(), nn.Linear(4, 2)), (x,))
    assert all(p.grad is not None for p in prepared.parameters())
    with torch.no_grad():
        prepared.eval().apply(disable_observer)
        assert torch.equal(prepared(x), prepared(x)) and torch.equal(converted(x), converted(x))


def test_attention_with_dropout() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True).train()
    prepared, converted = check(model, (randn(2, 5, 8),))
    assert explain(converted).int8_mac_share > 0.7
    assert all(p.grad is not None for p in prepared.parameters())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "googlenet", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_two_steps_of_a_real_model(name: str) -> None:
    from tests.zoo import load

    model = load(name).train()
    if hasattr(model, "aux_logits"):
        model.aux_logits = False
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    prepared = prepare_qat_fx(model, None, (x,))
    optimizer = torch.optim.SGD(prepared.parameters(), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(prepared(x), torch.arange(4)).backward()
        optimizer.step()
    converted = convert_fx(prepared)
    found = parity(prepared, converted, [x])
    assert found.holds and found.worst <= 1 and not found.unmatched, found
    assert explain(converted).int8_mac_share == 1.0
    assert calibrate(prepared, [x]) == 1


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(20, 8), nn.Linear(8, 4)

    def forward(self, index: Tensor) -> Tensor:
        return self.fc(self.table(index).mean(1))


@pytest.mark.parametrize("per_row", [True, False])
def test_tables_are_trained_with_the_rounding_of_their_rows(per_row: bool) -> None:
    qconfig = get_default_qat_qconfig("x86" if per_row else "qnnpack")
    index = torch.arange(20).reshape(4, 5)
    prepared, converted = check(made(Words), (index,), QConfigMapping().set_global(qconfig))
    assert set(prepared.weight_fake_quants._modules) == {"table", "fc"}
    assert prepared.table.weight.grad is not None and converted.state_dict()["table.weight"].dtype in (torch.int8, torch.uint8)


@pytest.mark.parametrize("engine", ["x86", "fbgemm"])
def test_learned_scales(engine: str) -> None:
    mapping = QConfigMapping().set_global(QConfig(default_lsq_act_fake_quant, default_lsq_per_channel_wt_fake_quant))
    prepared, _ = check(made(LAYERS["depthwise"][0]), (randn(4, 8, 8, 8),), mapping, engine=engine)
    scales = [p for name, p in prepared.named_parameters() if name.endswith("scale")]
    assert len(scales) == 3 and all(p.grad is not None for p in scales)


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(2)])
def test_averages_behind_learned_scales(pool: nn.Module) -> None:
    """A scale that training drives below zero counts as the smallest one, a learned zero point as a whole number, averages included."""
    torch.manual_seed(0)
    activation = default_lsq_act_fake_quant.with_args(learn_zero_point=True)
    mapping = QConfigMapping().set_global(QConfig(activation, default_lsq_per_channel_wt_fake_quant))
    x = randn(4, 1, 6, 6)
    prepared = prepare_qat_fx(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), pool, nn.Flatten(1)).train(), mapping, (x,))
    prepared(x).sum().backward()
    watched: Any = prepared.observers._0.observer
    for scale, zero_point in ((0.03, 2.4), (-0.01, 2.4)):
        with torch.no_grad():
            watched.scale.fill_(scale), watched.zero_point.fill_(zero_point)
        found = parity(prepared, convert_fx(prepared, check_parity=False), [x])
        assert found.holds, found
