"""convert_fx(keep_float=...) is preparing with a qconfig of None for what it names, calibrating and converting: the same program, the
same bits. Over kinds of modules, random networks, pickles, call forms; and names that mean nothing are refused together."""

from __future__ import annotations

import copy
import io
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from qcompiler import (
    CalibrationError,
    ConfigError,
    QConfigMapping,
    calibrate,
    convert_fx,
    convert_to_reference_fx,
    explain,
    prepare_fx,
    prepare_qat_fx,
    remarks,
)
from qcompiler.backends.torch.description import get_onednn_backend_config
from qcompiler.backends.torch.program.once import quantized_engine
from qcompiler.config.custom_config import ConvertCustomConfig, PrepareCustomConfig
from qcompiler.config.qconfig import QConfig, default_dynamic_qconfig, default_qconfig
from qcompiler.config.qconfig_mapping import get_default_qconfig_mapping
from qcompiler.debug import compute_sqnr
from qcompiler.observers import HistogramObserver, MinMaxObserver
from qcompiler.prepared.module import state_of
from tests import planted, zoo
from tests.flow import randn, randomized
from tests.graph_grammar import network

X = [randn(2, 4, 8, 8, seed=i) for i in range(2)]
SEQUENCES = [randn(2, 5, 8, seed=i) for i in range(2)]


class Gate(nn.Module):
    """A fixed range between, as in squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze, self.fc, self.gate = nn.Conv2d(4, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid()
        self.pool, self.last = nn.MaxPool2d(2), nn.Linear(72, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        x = x * self.gate(self.fc(self.squeeze(x)))
        result: Tensor = self.last(self.pool(x).flatten(1))
        return result


class Joined(nn.Module):
    """Sums, cats, parts of one convolution, activations with and without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.act = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardswish()
        self.left, self.right, self.up = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.prelu, self.norm, self.out = nn.PReLU(), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.act(self.bn(self.stem(x)))
        a, b = x.chunk(2, 1)
        y = torch.cat([self.left(a), self.prelu(self.right(b * 4))], 1) + x
        return self.out(self.norm(y)), F.avg_pool2d(torch.tanh(self.up(y)), 2)


class Attends(nn.Module):
    """Attention written out, normalizations, a recurrent layer behind an int8 value."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.softmax, self.norm, self.up, self.gelu, self.down = (
            nn.Softmax(-1),
            nn.LayerNorm(8),
            nn.Linear(8, 16),
            nn.GELU(),
            nn.Linear(16, 8),
        )
        self.scan = nn.GRU(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.softmax(self.q(x) @ self.k(x).transpose(1, 2) / 3.0)
        x = self.norm(x + self.out(scores @ self.v(x)))
        x = x + self.down(self.gelu(self.up(x)))
        result: Tensor = self.scan(self.down(self.up(x)).unflatten(1, (5, 1)).flatten(1, 2))[0]
        return result


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv, self.bag = nn.Embedding(20, 8), nn.Conv1d(8, 8, 3), nn.EmbeddingBag(20, 8)
        self.bilstm, self.fc = nn.LSTM(8, 4, bidirectional=True, batch_first=True), nn.Linear(8, 3)

    def forward(self, words: Tensor) -> Tensor:
        x = torch.relu(self.conv(self.embed(words).transpose(1, 2))).transpose(1, 2)
        result: Tensor = self.fc(self.bilstm(x)[0].mean(1) + self.bag(words))
        return result


MODELS: dict[str, tuple[type[nn.Module], list[Tensor]]] = {
    "gate": (Gate, X),
    "joined": (Joined, X),
    "attends": (Attends, SEQUENCES),
    "words": (Words, [torch.randint(0, 20, (2, 7), generator=torch.Generator().manual_seed(i)) for i in range(2)]),
}


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomized(MODELS[name][0]())


def ready(model: nn.Module, data: list[Any], mapping: QConfigMapping | None = None, **options: Any) -> Any:
    prepared = prepare_fx(model, mapping, data[0] if isinstance(data[0], tuple) else (data[0],), **options)
    calibrate(prepared, data)
    return prepared


def without(names: list[str], engine: str = "x86", base: Any = get_default_qconfig_mapping) -> QConfigMapping:
    mapping = base(engine)
    for name in names:
        mapping.set_module_name(name, None)
    return mapping


def check_equal(one: Any, other: Any, x: Any) -> None:
    """The same program with the same constants, and the same bits from it."""
    assert one.code == other.code
    a, b = one.state_dict(), other.state_dict()
    assert list(a) == list(b)
    for key in a:
        assert not isinstance(a[key], Tensor) or torch.equal(a[key], b[key]), key
    found, expected = (list(_flat(module(*x if isinstance(x, tuple) else (x,)))) for module in (one, other))
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
    assert [row.int8 for row in explain(one).rows] == [row.int8 for row in explain(other).rows]


def _flat(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def leaves(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if name and not any(module.children())]


@pytest.mark.parametrize("name", MODELS)
def test_each_module_of_each_kind(name: str) -> None:
    model, data = model_of(name), MODELS[name][1]
    prepared = ready(model, data)
    for module in leaves(model):
        check_equal(convert_fx(prepared, keep_float=[module]), convert_fx(ready(model, data, without([module]))), data[0])


@pytest.mark.parametrize("engine", ["fbgemm", "onednn", "qnnpack"])
@pytest.mark.parametrize("name", MODELS)
def test_random_choices_on_each_engine(name: str, engine: str) -> None:
    model, data = model_of(name), MODELS[name][1]
    prepared = ready(model, data, without([], engine), engine=engine)
    draw = random.Random(f"{name} {engine}")
    for count in (2, 3, 5):
        chosen = draw.sample(leaves(model), min(count, len(leaves(model))))
        made = convert_fx(prepared, keep_float=chosen)
        check_equal(made, convert_fx(ready(model, data, without(chosen, engine), engine=engine)), data[0])


def decided_so(model: nn.Module, data: list[Any], nodes: list[str]) -> Any:
    """Prepared, calibrated and converted with these nodes float from the start, by the setting that convert hands to annotate."""
    from qcompiler.workflow import prepare

    def settings_with(*args: Any, **choices: Any) -> Any:
        return settings_for(*args, **choices).with_(keep_float=frozenset(nodes))

    settings_for = prepare.settings_for
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "settings_for", settings_with)
        prepared = ready(model, data)
    prepared.meta["qcompiler"].settings = settings_for(model)
    return convert_fx(prepared)


@pytest.mark.parametrize("name", MODELS)
def test_each_node(name: str) -> None:
    model, data = model_of(name), MODELS[name][1]
    prepared = ready(model, data)
    for node in [row.node for row in explain(prepared).rows if row.int8]:
        check_equal(convert_fx(prepared, keep_float=[f"%{node}"]), decided_so(model, data, [node]), data[0])


@pytest.mark.parametrize("seed", range(12))
def test_random_networks(seed: int) -> None:
    model, inputs = network(seed)[:2]
    data = [tuple(inputs)]
    prepared = ready(model.eval(), data)
    nodes = [row.node for row in explain(prepared).rows if row.int8]
    draw = random.Random(seed)
    for count in (1, 3):
        chosen = draw.sample(nodes, min(count, len(nodes)))
        check_equal(convert_fx(prepared, keep_float=chosen), decided_so(model, data, chosen), data[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0", "googlenet", "swin_t"])
def test_random_choices_in_the_zoo(name: str) -> None:
    model, data = zoo.few(name), zoo.inputs(2, 64, 2)
    prepared, draw = ready(model, data), random.Random(name)
    for count in (1, 4):
        chosen = draw.sample(leaves(model), count)
        check_equal(convert_fx(prepared, keep_float=chosen), convert_fx(ready(model, data, without(chosen))), data[0])


def test_the_reference_decides_alike() -> None:
    model = model_of("gate")
    made = convert_to_reference_fx(ready(model, X), keep_float=["gate"])
    expected = convert_to_reference_fx(ready(model, X, without(["gate"])))
    assert torch.equal(made(X[0]), expected(X[0])) and [n.name for n in made.graph.nodes] == [n.name for n in expected.graph.nodes]


def test_the_prepared_module_is_not_changed() -> None:
    model = model_of("joined")
    prepared = ready(model, X)
    whole, state = convert_fx(prepared), {k: v.clone() for k, v in prepared.state_dict().items()}
    for _ in range(2):
        convert_fx(prepared, keep_float=["stem", "norm"])
    assert all(torch.equal(v, state[k]) for k, v in prepared.state_dict().items())
    check_equal(convert_fx(prepared), whole, X[0])


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
def test_copies_and_files_of_a_prepared_module(how: str) -> None:
    model = model_of("gate")
    prepared = ready(model, X)
    if how == "state_dict":
        other = prepare_fx(model_of("gate"), None, (X[0],))
        other.load_state_dict(prepared.state_dict())
    elif how == "pickle":
        file = io.BytesIO()
        torch.save(prepared, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = copy.deepcopy(prepared)
    for names in (["gate"], ["conv"], ["pool", "fc"]):
        check_equal(convert_fx(other, keep_float=names), convert_fx(ready(model, X, without(names))), X[0])


def test_a_state_without_spares_loads_and_what_needs_one_says_so() -> None:
    """As written before there were any: it converts, and a choice that needs what was not observed is refused."""
    model = model_of("gate")
    held = ready(model, X).state_dict()
    other = prepare_fx(model, None, (X[0],))
    other.load_state_dict({key: value for key, value in held.items() if "_spare" not in key})
    check_equal(convert_fx(other), convert_fx(ready(model, X)), X[0])
    check_equal(convert_fx(other, keep_float=["last"]), convert_fx(ready(model, X, without(["last"]))), X[0])
    with pytest.raises(CalibrationError, match="saw no data"):
        convert_fx(other, keep_float=["gate"])


def test_qconfigs_that_differ_by_module() -> None:
    """A value is observed as its taker's qconfig says once its own op is float."""
    model = model_of("gate")
    own = (
        QConfigMapping()
        .set_global(default_qconfig)
        .set_module_name("last", QConfig(HistogramObserver.with_args(bins=64), default_qconfig.weight))
    )
    own.set_module_name("fc", QConfig(MinMaxObserver.with_args(quant_min=0, quant_max=127), default_qconfig.weight))
    prepared = ready(model, X, own)
    for name in leaves(model):
        check_equal(
            convert_fx(prepared, keep_float=[name]), convert_fx(ready(model, X, copy.deepcopy(own).set_module_name(name, None))), X[0]
        )


def test_custom_modules() -> None:
    torch.manual_seed(0)
    model, data = randomized(planted.WithGain()), [randn(2, 3, 8, 8)]
    config = PrepareCustomConfig().set_float_to_observed_mapping(planted.Gain, planted.ObservedGain)
    options = {
        "convert_custom_config": ConvertCustomConfig().set_observed_to_quantized_mapping(planted.ObservedGain, planted.QuantizedGain)
    }
    prepared = ready(model, data, prepare_custom_config=config)
    for name in ("gain", "fc", "second"):
        expected = convert_fx(ready(model, data, without([name]), prepare_custom_config=config), **options)  # type: ignore[arg-type]
        check_equal(convert_fx(prepared, keep_float=[name], **options), expected, data[0])  # type: ignore[arg-type]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        y = torch.relu(self.b(x) + x)
        result: Tensor = self.d(self.c(y) + y)
        return result


def test_sums_inside_convolutions() -> None:
    """A convolution that adds: float, alone with its own range; without it the sum has one."""
    torch.manual_seed(0)
    model, options = Residual().eval(), {"engine": "onednn", "backend_config": get_onednn_backend_config()}
    prepared = ready(model, X, without([], "onednn"), **options)
    with quantized_engine("onednn"):
        for name in ("a", "b", "c", "d"):
            expected = convert_fx(ready(model, X, without([name], "onednn"), **options))
            check_equal(convert_fx(prepared, keep_float=[name]), expected, X[0])
        for node in ("%add", "%add_1"):
            made = convert_fx(prepared, keep_float=[node])
            assert sum(call.op == "runtime.conv2d_add_onednn" for call in made.program.calls) == 1  # type: ignore[attr-defined]
            assert compute_sqnr(model(X[0]), made(X[0])) > 25


def test_dynamic_qconfigs() -> None:
    model, data = model_of("words"), MODELS["words"][1]
    mapping = QConfigMapping().set_global(default_dynamic_qconfig)
    prepared = ready(model, data, mapping)
    for name in ("bilstm", "fc", "embed"):
        expected = convert_fx(ready(model, data, copy.deepcopy(mapping).set_module_name(name, None)))
        check_equal(convert_fx(prepared, keep_float=[name]), expected, data[0])


def test_call_forms() -> None:
    torch.manual_seed(0)
    model, x, mask = randomized(planted.Masked()), randn(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    forms = {"example_kwargs": [{}, {"mask": mask}]}
    prepared, expected = prepare_fx(model, None, (x,), **forms), prepare_fx(model, without(["second"]), (x,), **forms)  # type: ignore[arg-type]
    for one in (prepared, expected):
        calibrate(one, [x, {"x": x, "mask": mask}])
    made, wanted = convert_fx(prepared, keep_float=["second"]), convert_fx(expected)
    assert torch.equal(made(x), wanted(x)) and torch.equal(made(x, mask), wanted(x, mask))
    convert_fx(prepared, keep_float=["%mul"])  # a node of one form
    with pytest.raises(ConfigError, match="'secnd'"):
        convert_fx(prepared, keep_float=["secnd"])


def kept(prepared: Any, *names: str) -> set[str]:
    return {row.module_path for row in explain(convert_fx(prepared, keep_float=names)).rows if row.code == "keep-float"}


def test_what_names_mean() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer1, self.layer10 = (nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.layer10(self.layer1(x))
            return result

    prepared = ready(Nested().eval(), X)
    assert kept(prepared, "layer1") == {"layer1.0", "layer1.1"}  # a path is no prefix of another
    assert kept(prepared, "*.0") == {"layer1.0", "layer10.0"}
    assert kept(prepared, r"layer\d+\.1") == {"layer1.1", "layer10.1"}
    assert kept(prepared, "layer1.*", "layer10.1") == {"layer1.0", "layer1.1", "layer10.0", "layer10.1"}  # as a regular expression as well
    assert kept(prepared, "%layer10_0") == {"layer10.0"} and kept(prepared) == set()
    assert kept(prepared, "") == {"layer1.0", "layer1.1", "layer10.0", "layer10.1"}


def test_names_that_mean_nothing_are_one_error() -> None:
    prepared = ready(model_of("gate"), X)
    with pytest.raises(ConfigError) as caught:
        convert_fx(prepared, keep_float=["cnov", "last", "%nothing", "lst*"])
    text = str(caught.value)
    assert "'cnov' (did you mean conv" in text and "'%nothing'" in text and "'lst*'" in text and "'last'" not in text
    with pytest.raises(ConfigError, match="'gat'"):
        convert_fx(prepared, keep_float="gat")


def test_what_was_fused_away_has_a_remark() -> None:
    model = model_of("joined")
    made = convert_fx(ready(model, X), keep_float=["bn"])
    assert [r.text for r in remarks(made) if r.code == "keep-float-unused"] == [
        "keep_float 'bn' names no op: what it names was fused into others"
    ]


def test_a_trained_model_is_refused() -> None:
    prepared = prepare_qat_fx(model_of("gate").train(), None, (X[0],))
    prepared(X[0])
    with pytest.raises(ConfigError, match="trained with its values rounded"):
        convert_fx(prepared, keep_float=["gate"])


def test_calibration_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("joined")
    prepared, calls = ready(model, X), []
    monkeypatch.setattr(MinMaxObserver, "forward", lambda self, x: calls.append(x))
    monkeypatch.setattr("qcompiler.frontend.trace", lambda *args, **options: calls.append(args))
    convert_fx(prepared, keep_float=["stem"], check_parity=False)
    assert not [c for c in calls if not isinstance(c, Tensor) or c.dim() != 4 or c.shape[-1] > 3]  # weights alone are looked at
    assert state_of(prepared) is not None
