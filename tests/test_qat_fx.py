"""prepare_qat_fx: what it inserts, that it trains as the model does, and that convert gives what training simulated."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler import QConfig, QConfigMapping, calibrate, convert_fx, convert_to_reference_fx, explain, prepare_fx, prepare_qat_fx, remarks
from qcompiler.debug import parity
from qcompiler.errors import CalibrationError, ConfigError, PassError
from qcompiler.fake_quantize import FakeQuantize, default_fake_quant, default_weight_fake_quant, disable_fake_quant, disable_observer
from qcompiler.observers import MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver
from qcompiler.ops.table import OPS
from qcompiler.qat.sites import FakeQuantWatch
from tests.cpu import SEVEN_BITS, needs_vnni
from tests.flow import ENGINES, fingerprint, randn, targets


class Net(nn.Module):
    """Every kind of node: conv + BN (+ ReLU), depthwise, a sum, a pool that averages, dropouts of both spellings."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.point, self.bn3 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, momentum=None)
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        y = torch.relu(self.bn2(self.depthwise(x)))
        x = torch.relu(x + self.bn3(self.point(y)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.fc(self.drop(F.dropout(x, 0.1, training=self.training)))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().train()


def train(prepared: nn.Module, data: tuple[Any, ...], steps: int = 3, rate: float = 0.05) -> list[float]:
    """Steps of SGD towards zero outputs; returns the losses."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(prepared.parameters(), rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = prepared(*data)
        loss = (outputs - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def frozen(prepared: nn.Module) -> nn.Module:
    return prepared.eval().apply(disable_observer)


def without_quantization(prepared: nn.Module) -> nn.Module:
    return prepared.apply(disable_observer).apply(disable_fake_quant)


def check(model: nn.Module, data: tuple[Any, ...], mapping: Any = None, steps: int = 2, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Prepare, train, convert; parity on the data. Returns both modules."""
    prepared = prepare_qat_fx(model.train(), mapping, data, **options)
    train(prepared, data, steps)
    converted = convert_fx(prepared)
    found = parity(prepared, converted, [data])
    assert found.holds and not found.unmatched, found
    return prepared, converted


# ---- what is inserted


def test_the_graph() -> None:
    prepared = prepare_qat_fx(net(), None, (randn(2, 3, 8, 8),))
    calls = targets(prepared.graph)
    assert [c for c in calls if c.endswith("_bn")] == ["conv2d_bn"] * 3
    assert "batch_norm" not in calls and calls.count("dropout") == 2
    assert set(prepared.observers._modules) == {"x", "conv", "depthwise", "point", "add"}  # the logits are handed out as floats
    assert set(prepared.weight_fake_quants._modules) == {"conv", "depthwise", "point", "fc"}
    assert all(isinstance(m, FakeQuantWatch) for m in prepared.observers._modules.values())
    assert prepared.training and calls.count("round_like") == 1  # behind the pool that averages


def test_parameters_keep_their_names_and_the_model_stays_as_it_was() -> None:
    model = net()
    before = fingerprint(model)
    prepared = prepare_qat_fx(model, None, (randn(1, 3, 8, 8),))
    train(prepared, (randn(4, 3, 8, 8),))
    assert fingerprint(model) == before
    assert [name for name, _ in prepared.named_parameters()] == [name for name, _ in model.named_parameters()]
    own = {key for key in prepared.state_dict() if not key.startswith(("observers.", "weight_fake_quants."))}
    assert own == set(model.state_dict())
    assert prepared.load_state_dict(model.state_dict(), strict=False).unexpected_keys == []


def test_without_fake_quantization_it_is_the_model() -> None:
    """Outputs, gradients and running statistics, in train mode and in eval mode."""
    model, x = net(), randn(6, 3, 8, 8)
    prepared = without_quantization(prepare_qat_fx(model, None, (x[:1],)))
    for mode in (True, False):
        model.train(mode), prepared.train(mode)
        outputs = []
        for m in (model, prepared):
            torch.manual_seed(1)
            m.zero_grad()
            outputs.append(m(x))
            outputs[-1].square().sum().backward()
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
        theirs = dict(prepared.named_parameters())
        for name, parameter in model.named_parameters():
            if mode and name in ("depthwise.bias", "point.bias"):
                continue  # batch norm takes the mean off: their gradient is rounding error
            torch.testing.assert_close(theirs[name].grad, parameter.grad, rtol=1e-3, atol=1e-4, msg=name)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(prepared.get_buffer(name), buffer, rtol=1e-4, atol=1e-5, msg=name)


def test_it_trains() -> None:
    prepared = prepare_qat_fx(net(), None, (randn(1, 3, 8, 8),))
    losses = train(prepared, (randn(8, 3, 8, 8),), steps=20)
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in prepared.parameters())


# ---- modes


def test_modes_follow_train_and_eval_of_each_module() -> None:
    prepared, x = prepare_qat_fx(net(), None, (randn(1, 3, 8, 8),)), randn(4, 3, 8, 8)
    prepared(x)
    prepared.bn.eval()
    before = {name: prepared.get_buffer(f"{name}.running_mean").clone() for name in ("bn", "bn2")}
    prepared(x + 1)
    assert torch.equal(prepared.bn.running_mean, before["bn"]) and not torch.equal(prepared.bn2.running_mean, before["bn2"])
    prepared.apply(disable_observer)
    assert not torch.equal(prepared(x), prepared(x))  # dropout
    prepared.drop.eval()
    assert not torch.equal(prepared(x), prepared(x))  # F.dropout(x, training=self.training) of the root
    prepared.eval()
    assert torch.equal(prepared(x), prepared(x))
    assert isinstance(prepared.bn, nn.BatchNorm2d)  # found by code that freezes all BatchNorms


def test_a_frozen_batch_norm_stays_frozen_until_train() -> None:
    model = net()
    model.bn.eval()
    prepared = prepare_qat_fx(model, None, (randn(1, 3, 8, 8),))
    mean = prepared.bn.running_mean.clone()
    prepared(randn(4, 3, 8, 8))
    assert torch.equal(prepared.bn.running_mean, mean)
    prepared.train()
    prepared(randn(4, 3, 8, 8))
    assert not torch.equal(prepared.bn.running_mean, mean)


def test_a_changed_momentum_counts() -> None:
    prepared, x = prepare_qat_fx(net(), None, (randn(1, 3, 8, 8),)), randn(4, 3, 8, 8)
    prepared.bn.momentum = 0.0
    mean = prepared.bn.running_mean.clone()
    prepared(x)
    assert torch.equal(prepared.bn.running_mean, mean)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        if self.training:
            x = x * 2
        return x


def test_a_branch_on_training_is_remarked_with_its_line() -> None:
    prepared = prepare_qat_fx(Branches().train(), None, (randn(2, 4),))
    found = [r for r in remarks(prepared) if r.code == "training-branch"]
    assert len(found) == 1 and "test_qat_fx.py" in (found[0].where.source or "") and "in training" in found[0].text


@pytest.mark.parametrize("cls", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_each_dropout_drops_in_its_way(cls: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), cls(0.5), nn.Conv2d(4, 4, 1)).train()
    x = randn(4, 3, 4, 4)
    prepared = without_quantization(prepare_qat_fx(model, None, (x[:1],)))
    results = []
    for m in (model, prepared):
        torch.manual_seed(3)
        results.append(m(x))
    torch.testing.assert_close(*results)
    check(model, (x,))


# ---- convert


@pytest.mark.parametrize("engine", ENGINES)
def test_int8_is_what_training_simulated(engine: str) -> None:
    data = (randn(16, 3, 8, 8),)
    prepared, converted = check(net(), data, engine=engine, steps=4)
    with torch.no_grad():
        simulated, result = frozen(prepared)(*data), converted(*data)
        pooled = float(prepared.observers.add.observer.scale * prepared.fc.weight.abs().sum(1).max())
    assert explain(converted).int8_mac_share == 1.0
    logits = float(simulated.max() - simulated.min()) / 255
    assert float((result - simulated).abs().max()) <= pooled + logits  # a step before the linear and one behind it
    assert any(r.code == "parity" and "at most" in r.text for r in remarks(converted))


@pytest.mark.parametrize("isa", ["avx2", "avx512_vnni"])
@pytest.mark.parametrize("engine", ["x86", "fbgemm"])
def test_the_range_is_decided_before_training(engine: str, isa: str) -> None:
    prepared = prepare_qat_fx(net(), None, (randn(1, 3, 8, 8),), engine=engine, isa=isa)
    most = {name: watch.observer.quant_max for name, watch in prepared.observers._modules.items()}
    reduced = 127 if isa == "avx2" else 255
    assert {most[name] for name in ("x", "conv", "depthwise")} == {reduced}
    train(prepared, (randn(4, 3, 8, 8),))
    reference = convert_to_reference_fx(prepared)
    top = {n.name: n.args[4] for n in reference.graph.nodes if n.name.endswith("_q")}
    assert all(top[f"{name}_q"] == value for name, value in most.items())


NARROW = {"7 bits": ("avx2", None), "4 bits": ("avx512_vnni", default_fake_quant.with_args(quant_max=15))}


@pytest.mark.parametrize("bits", NARROW)
@pytest.mark.parametrize("engine", ENGINES)
def test_values_outside_the_trained_range_are_cut_as_in_training(engine: str, bits: str) -> None:
    """Kernels saturate at 255, whatever range was trained; training cut at the end of its own."""
    isa, activation = NARROW[bits]
    isa = "avx2" if SEVEN_BITS else isa
    mapping = None if activation is None else QConfigMapping().set_global(QConfig(activation, default_weight_fake_quant))
    x = randn(4, 3, 8, 8)
    prepared = prepare_qat_fx(net(), mapping, (x,), engine=engine, isa=isa)
    train(prepared, (x,))
    graph = frozen(prepared)
    converted = convert_fx(graph)
    assert parity(graph, converted, [(10 * x,)]).holds
    most = graph.observers.add.observer.quant_max
    assert most == {"4 bits": 15, "7 bits": 255 if engine == "qnnpack" else 127}[bits]
    with torch.no_grad():
        wanted, steps = graph(10 * x), graph.fc.weight.abs().sum(1).max() * graph.observers.add.observer.scale
    assert float((converted(10 * x) - wanted).abs().max()) <= 2 * float(steps)  # a step before the linear, one behind it


@needs_vnni
def test_depthwise_weights_are_trained_with_scales_that_are_safe() -> None:
    """fbgemm adds two taps in 16 bits: their int8 weights of one sign add up to 128 at most, in training as after it."""
    prepared = prepare_qat_fx(net(), None, (randn(1, 3, 8, 8),), engine="fbgemm", isa="avx512_vnni")
    assert prepared.weight_fake_quants.depthwise.least_scale is not None and prepared.weight_fake_quants.conv.least_scale is None
    with torch.no_grad():
        prepared.depthwise.weight.fill_(0.5)  # neighbouring taps of 127 each would overflow
    prepared.eval()(randn(4, 3, 8, 8))
    converted = convert_fx(prepared)
    pairs = converted.state_dict()["depthwise.weight"].to(torch.int32).flatten(1)[:, :8].reshape(-1, 4, 2).sum(2)
    assert int(pairs.max()) <= 128 and int(pairs.min()) >= 120
    assert not [r for r in remarks(converted) if r.code == "weight-scale"]


def test_weights_change_after_the_last_forward() -> None:
    """An optimizer step is the last thing that training does."""
    prepared, x = prepare_qat_fx(net(), None, (randn(1, 3, 8, 8),)), randn(4, 3, 8, 8)
    train(prepared, (x,))
    with torch.no_grad():
        prepared.conv.weight.mul_(3)
        prepared.fc.weight.mul_(0.1)
    assert parity(prepared, convert_fx(prepared), [(x,)]).holds


def test_convert_takes_either_mode_and_changes_nothing() -> None:
    prepared, x = prepare_qat_fx(net(), None, (randn(1, 3, 8, 8),)), randn(4, 3, 8, 8)
    train(prepared, (x,))
    before = copy.deepcopy(prepared.state_dict())
    first = convert_fx(prepared)
    assert prepared.training and all(m.training for m in prepared.modules())
    second = convert_fx(prepared.eval())
    assert torch.equal(first(x), second(x))
    for key, value in prepared.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_convert_without_data_names_what_is_missing() -> None:
    prepared = prepare_qat_fx(net(), None, (randn(1, 3, 8, 8),))
    with pytest.raises(CalibrationError, match="0 of 5 observers saw data"):
        convert_fx(prepared)
    prepared.observers.point.observer.disable_observer()
    prepared(randn(2, 3, 8, 8))
    with pytest.raises(CalibrationError, match="1 of 5 observers saw no data: point"):
        convert_fx(prepared)


def test_a_broken_conversion_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: a bias that convert forgets."""
    import qcompiler.passes.settle_training as settle

    prepared = prepare_qat_fx(net(), None, (randn(2, 3, 8, 8),))
    train(prepared, (randn(4, 3, 8, 8),))
    fold = settle.fold

    def broken(weight: Tensor, bias: Tensor | None, norm: Any, layout: Any) -> tuple[Tensor, Tensor]:
        weight, folded = fold(weight, bias, norm, layout)
        return weight, folded + 0.5 if layout.groups == 8 else folded

    monkeypatch.setattr(settle, "fold", broken)
    with pytest.raises(PassError, match=r"does not compute what training simulated: %depthwise .depthwise, ") as caught:
        convert_fx(prepared)
    assert caught.value.where.module_path == "depthwise"
    assert not parity(prepared, convert_fx(prepared, check_parity=False), [randn(2, 3, 8, 8)]).holds


@pytest.mark.parametrize("engine", ENGINES)
def test_a_broken_layer_that_hands_out_floats_is_named(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last linear: its floats are of int8 sums, where no step can be counted."""
    import qcompiler.passes.settle_training as settle

    quantized = settle._quantized

    def broken(node: Any, fake_quant: Any, weight: Tensor) -> tuple[Tensor, Any]:
        weight, qparams = quantized(node, fake_quant, weight)
        return (-weight if node.name.startswith("fc") else weight), qparams

    prepared = prepare_qat_fx(net(), None, (randn(2, 3, 8, 8),), engine=engine)
    train(prepared, (randn(4, 3, 8, 8),))
    monkeypatch.setattr(settle, "_quantized", broken)
    with pytest.raises(PassError, match=r"does not compute what training simulated: %\w+ .fc, ") as caught:
        convert_fx(prepared)
    assert caught.value.where.module_path == "fc"


def test_floats_that_cancel_out_are_no_difference() -> None:
    """Sums that the bias takes away again: what is left is the error of float32, of which no share is meant."""
    model, x = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 1)), randn(1, 64)
    prepared = prepare_qat_fx(model.train(), None, (x,))
    train(prepared, (x,))
    frozen(prepared)
    with torch.no_grad():
        getattr(prepared, "1").bias.sub_(prepared(x)[0])
        assert float(prepared(x).abs().max()) < 1e-5
    assert parity(prepared, convert_fx(prepared), [(x,)]).holds


def test_results_are_whole(tmp_path: Any) -> None:
    import qcompiler

    x = randn(2, 3, 8, 8)
    _, converted = check(net(), (x,))
    expected = converted(x)
    qcompiler.save(converted, tmp_path / "net.qc")
    assert torch.equal(qcompiler.load(tmp_path / "net.qc")(x), expected)
    assert torch.equal(torch.jit.script(converted)(x), expected)
    assert torch.equal(copy.deepcopy(converted)(x), expected)
    reference = convert_to_reference_fx(check(net(), (x,))[0])
    with torch.no_grad():
        assert float((reference(x) - expected).abs().max()) < 0.05


# ---- settings


def test_a_part_that_stays_float() -> None:
    weight = FakeQuantize.with_args(dtype=torch.int8, qscheme=torch.per_tensor_symmetric)
    mapping = QConfigMapping().set_global(QConfig(FakeQuantize, weight))
    mapping.set_module_name("depthwise", None)
    prepared, converted = check(net(), (randn(4, 3, 8, 8),), mapping)
    assert "depthwise" not in prepared.weight_fake_quants._modules
    rows = {row.node: row for row in explain(converted).rows}
    assert not rows["depthwise"].int8 and rows["depthwise"].reason == "its qconfig is None" and rows["point"].int8


def four_bits() -> QConfigMapping:
    weight = FakeQuantize.with_args(observer=MovingAveragePerChannelMinMaxObserver, quant_min=-8, quant_max=7, dtype=torch.int8,
                                    qscheme=torch.per_channel_symmetric, averaging_constant=1.0)  # fmt: skip
    return QConfigMapping().set_global(QConfig(FakeQuantize.with_args(observer=MovingAverageMinMaxObserver), weight))


def test_weights_of_four_bits() -> None:
    _, converted = check(net(), (randn(4, 3, 8, 8),), four_bits())
    weights = [v for k, v in converted.state_dict().items() if v.dtype is torch.int8]
    assert len(weights) == 4 and all(int(w.min()) >= -8 and int(w.max()) <= 7 and int(w.abs().max()) >= 7 for w in weights)


def test_wrong_input() -> None:
    x = randn(1, 3, 8, 8)
    with pytest.raises(ConfigError, match="in eval mode"):
        prepare_qat_fx(net().eval(), None, (x,))
    from qcompiler import get_default_qconfig_mapping

    with pytest.raises(ConfigError, match="MinMaxObserver, which does not fake-quantize"):
        prepare_qat_fx(net(), get_default_qconfig_mapping(), (x,))
    with pytest.raises(ConfigError, match="train mode"):
        prepare_fx(net(), None, (x,))
    prepared = prepare_qat_fx(net(), None, (x,))
    with pytest.raises(ConfigError, match="already prepared"):
        prepare_qat_fx(prepared, None, (x,))
    with pytest.raises(ConfigError, match="prepare_qat_fx returned"):
        parity(net(), convert_fx(_trained(prepared)), [x])


def _trained(prepared: nn.Module) -> nn.Module:
    train(prepared, (randn(2, 3, 8, 8),))
    return prepared


def test_nan_in_training_names_the_node() -> None:
    prepared = prepare_qat_fx(net(), None, (randn(1, 3, 8, 8),))
    with torch.no_grad():
        prepared.depthwise.bias.fill_(float("nan"))
    with pytest.raises(CalibrationError, match="NaN") as caught:
        prepared(randn(2, 3, 8, 8))
    assert caught.value.where.module_path == "depthwise"


# ---- what a module must be able to do


def test_copies_pickles_and_state_dicts_go_on() -> None:
    model, x = net(), randn(4, 3, 8, 8)
    prepared = prepare_qat_fx(model, None, (x,))
    train(prepared, (x,))
    prepared.bn.eval()
    buffer = io.BytesIO()
    torch.save(prepared, buffer)
    buffer.seek(0)
    resumed = prepare_qat_fx(model, None, (x,))
    resumed.load_state_dict(prepared.state_dict())
    resumed.bn.eval()
    found = [copy.deepcopy(prepared), torch.load(buffer, weights_only=False), resumed]
    found.append(copy.deepcopy(found[1]))
    losses = [train(m, (x,), 2) for m in (prepared, *found)]
    assert all(loss == losses[0] for loss in losses)
    expected = convert_fx(prepared)(x)
    for other in found:
        assert type(other.bn) is nn.BatchNorm2d and not other.bn.training and other.bn2.training
        assert torch.equal(convert_fx(other)(x), expected)
        with pytest.raises(Exception, match="expected"):
            other(randn(2, 8))


def test_own_rows_cannot_be_pickled() -> None:
    table = OPS.copy()
    table.remove("gelu")
    prepared = prepare_qat_fx(net(), None, (randn(1, 3, 8, 8),), table=table)
    with pytest.raises(ConfigError, match="op rows of your own"):
        torch.save(prepared, io.BytesIO())


def test_calibrate_moves_ranges_and_not_statistics() -> None:
    prepared, x = prepare_qat_fx(net(), None, (randn(1, 3, 8, 8),)), randn(4, 3, 8, 8)
    prepared.bn2.eval()
    mean = prepared.bn.running_mean.clone()
    assert calibrate(prepared, [x, x]) == 2
    assert torch.equal(prepared.bn.running_mean, mean)
    assert prepared.bn.training and not prepared.bn2.training and prepared.observers.conv.observer.observed
    held = prepared.observers.x.observer.scale.clone()
    with pytest.raises(CalibrationError, match="batch 0"):
        calibrate(prepared, [torch.full_like(x, float("inf"))])
    assert torch.equal(prepared.observers.x.observer.scale, held)
    assert train(prepared, (x,))[-1] < 10


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it where it breaks a graph
def test_a_compiled_training_step() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train(), randn(4, 3, 8, 8)
    plain = prepare_qat_fx(model, None, (x,))
    other = copy.deepcopy(plain)
    compiled = torch.compile(other, backend="aot_eager")
    for m in (plain, compiled):
        m(x).square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), other.parameters(), strict=True):
        apart = float((a.grad - b.grad).norm() / (a.grad.norm() + 1e-6))
        assert apart < 0.1, (name, apart)  # of the largest value, at the end of the range, a last bit decides whether a gradient passes
    torch.testing.assert_close(plain.get_buffer("1.running_var"), other.get_buffer("1.running_var"))
    torch._dynamo.reset()


def test_the_dump_of_a_compile(tmp_path: Any) -> None:
    from qcompiler.viz import save

    x = randn(2, 3, 8, 8)
    prepared = prepare_qat_fx(net(), None, (x,), debug=tmp_path)
    train(prepared, (x,))
    converted = convert_fx(prepared, debug=tmp_path)
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix in (".ir", ".txt", ".json", ".jsonl")]
    text = "".join(p.read_text(encoding="utf-8") for p in files)
    assert "conv2d_bn" in text and "settle_training" in text and "weight_fake_quants.conv" in text
    for name, model in (("a.svg", prepared), ("b.html", prepared), ("c.svg", converted)):
        save(model, tmp_path / name)
    assert "conv2d_bn" in str(explain(prepared))
