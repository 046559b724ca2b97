"""compare against ground truth that is built in: a planted noise is the own error of its node and inherited by those behind it."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import qcompiler
from qcompiler import convert_fx, prepare_fx
from qcompiler.backends.torch.program.module import CompiledModule
from qcompiler.backends.torch.program.program import Program
from qcompiler.config.qconfig_mapping import get_default_qconfig_mapping
from qcompiler.debug import Comparison, Recorder, compare, compute_sqnr
from qcompiler.debug.match import match
from qcompiler.debug.tally import BINS, Counter, Tally
from qcompiler.errors import ConfigError, InputError
from qcompiler.executable.steps import steps_of_graph
from qcompiler.ir.types import source_of
from tests.cpu import BIT, SEVEN_BITS, needs_vnni
from tests.flow import flow, randn, randomized


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.bn, self.relu = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()
        self.shared = nn.Conv2d(16, 16, 3, padding=1)
        self.drop, self.norm = nn.Dropout(), nn.LayerNorm(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.relu(self.bn(self.one(x)))
        z = self.shared(self.shared(y)) + y
        z = torch.cat([z, y], 1)[:, :16].mean([2, 3])
        return {"scores": self.fc(self.drop(self.norm(z))), "chances": torch.softmax(self.fc(z * 2), -1)}


DATA = [randn(2, 3, 8, 8, seed=s) for s in range(4)]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return randomized(Net())


@pytest.fixture(scope="module")
def made(net: nn.Module) -> Any:
    return flow(net, (DATA[0],), [(x,) for x in DATA])


def by_origin(found: Comparison) -> dict[str, Any]:
    return {row.origin[-1]: row for row in found}


# What is compared with what

NODES = {"x", "relu", "shared", "shared_1", "add", "cat", "getitem", "mean", "norm", "fc", "mul", "fc_1", "softmax"}


@pytest.mark.parametrize("form", ["module", "reference", "copied", "unpickled", "loaded", "to the fused graph"])
def test_every_form_gives_the_same_nodes_and_output(net: nn.Module, made: Any, form: str, tmp_path: Path) -> None:
    quantized, model = made.module, net
    if form == "reference":
        quantized = made.reference
    elif form == "copied":
        quantized = copy.deepcopy(made.module)
    elif form == "unpickled":
        quantized = pickle.loads(pickle.dumps(made.module))
    elif form == "loaded":
        qcompiler.save(made.module, tmp_path / "net.qc")
        quantized = qcompiler.load(tmp_path / "net.qc")
    else:
        model = qcompiler.fuse_fx(net, (DATA[0],)) if form == "to the fused graph" else net
    found = compare(model, quantized, DATA)
    assert set(by_origin(found)) == NODES and not found.unmatched and not found.note
    expected = compute_sqnr([net(x) for x in DATA], [quantized(x) for x in DATA])
    assert found.output == pytest.approx(expected, abs=1e-3) and found.batches == len(DATA)
    worst = [min(row.own, row.own_channel) for row in found]
    assert worst == sorted(worst)


def test_rows_say_what_they_stand_for(net: nn.Module, made: Any) -> None:
    found = compare(net, made.module, DATA)
    row = found["one"]
    assert row.origin == ("one", "bn", "relu") and row.computes == "Conv2d, BatchNorm2d, ReLU" and row.module_path == "one"
    assert row.location.startswith("test_compare.py:") and row.op == "quantized::conv2d.new"
    assert found["relu"] is row and found[row.name] is row
    with pytest.raises(KeyError):
        found["nothing"]


def test_the_floats_of_an_int8_value_are_no_row_of_their_own() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(x)
            result: Tensor = self.two(y) + self.norm(y)  # y is read as integers and as floats
            return result

    net = Split().eval()
    module = flow(net, (DATA[0],), [(x,) for x in DATA]).module
    assert any(node.target == "dequantize" for node in module.lowered.graph.nodes)
    assert [row.op for row in compare(net, module, DATA) if row.module_path == "one"] == ["quantized::conv2d.new"]


def test_both_calls_of_a_shared_module_have_their_rows(net: nn.Module, made: Any) -> None:
    rows = by_origin(compare(net, made.module, DATA))
    assert rows["shared"].module_path == rows["shared_1"].module_path == "shared"
    assert rows["shared"].activation != rows["shared_1"].activation and rows["shared"].weight == rows["shared_1"].weight


def test_names_are_those_of_the_graph(net: nn.Module, made: Any) -> None:
    lowered = {n.name for n in made.module.lowered.graph.nodes}
    assert {row.name for row in compare(net, made.module, DATA)} <= lowered
    reference = {n.name for n in made.reference.graph.nodes}
    assert {row.name for row in compare(net, made.reference, DATA)} <= reference


# Own and inherited errors


def with_noise(gm: fx.GraphModule, name: str, decibels: float) -> fx.GraphModule:
    """A copy whose node `name` has noise of a known ratio added to its result."""
    gm = copy.deepcopy(gm)
    node = next(n for n in gm.graph.nodes if n.name == name)

    def noisy(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(x.numel()))
        return x + noise * (x.pow(2).sum() / noise.pow(2).sum()).sqrt() * 10 ** (-decibels / 20)

    with gm.graph.inserting_after(node):
        added = gm.graph.call_function(noisy, (node,))
    added.meta = dict(node.meta)
    node.replace_all_uses_with(added, delete_user_cb=lambda user: user is not added)
    gm.recompile()
    return gm


@pytest.fixture(scope="module")
def plain(net: nn.Module) -> fx.GraphModule:
    """A reference graph in which everything is float, so that nothing but the planted noise is measured."""
    return flow(net, (DATA[0],), mapping=get_default_qconfig_mapping("x86").set_global(None)).reference


@pytest.mark.parametrize("decibels", [10.0, 30.0])
@pytest.mark.parametrize("name", ["one", "shared", "add", "norm"])
def test_a_planted_noise_is_own_there_and_inherited_behind(net: nn.Module, plain: fx.GraphModule, name: str, decibels: float) -> None:
    found = compare(net, with_noise(plain, name, decibels), DATA)
    rows = by_origin(found)
    order = ["relu", "shared", "shared_1", "add", "cat", "getitem", "mean", "norm", "fc"]
    place = "relu" if name == "one" else name
    assert found.worst.origin[-1] == place
    assert rows[place].own == pytest.approx(decibels, abs=0.1) and rows[place].sqnr == pytest.approx(decibels, abs=0.1)
    assert rows[place].inherited > 100
    for before in order[: order.index(place)]:
        assert rows[before].sqnr > 100
    for behind in order[order.index(place) + 1 :]:
        assert rows[behind].own > 100 and rows[behind].inherited == pytest.approx(rows[behind].sqnr, abs=0.01) and rows[behind].sqnr < 60


def test_two_noises_are_told_apart(net: nn.Module, plain: fx.GraphModule) -> None:
    rows = by_origin(compare(net, with_noise(with_noise(plain, "one", 30.0), "fc", 20.0), DATA))
    assert rows["relu"].own == pytest.approx(30.0, abs=0.1) and rows["fc"].own == pytest.approx(20.0, abs=0.1)
    assert rows["shared"].own > 100 and rows["fc"].inherited < 100 and rows["fc"].sqnr < 20.1


def test_without_errors_every_row_is_exact(net: nn.Module, plain: fx.GraphModule) -> None:
    found = compare(net, plain, DATA)
    assert all(row.own > 100 and row.sqnr > 100 for row in found) and found.output > 100


@pytest.mark.parametrize("form", ["module", "reference"])
def test_a_coarse_range_is_the_fault_of_the_node_that_has_it(net: nn.Module, form: str) -> None:
    """An outlier in calibration widens the range of x alone: what reads x gets the same rounded values on both sides."""
    outlier = DATA[0].clone()
    outlier[0, 0, 0, 0] = 400.0
    prepared = qcompiler.prepare_fx(net, None, (DATA[0],))
    qcompiler.calibrate(prepared, DATA)
    prepared.observers.x.observer(outlier)
    quantized = qcompiler.convert_fx(prepared) if form == "module" else qcompiler.convert_to_reference_fx(prepared)
    found = compare(net, quantized, DATA)
    rows = by_origin(found)
    assert found.worst.origin == ("x",) and rows["x"].own < 10 and rows["x"].unused > 0.9
    assert rows["relu"].inherited < 15 and rows["relu"].own > 30


def test_a_large_channel_does_not_hide_the_others() -> None:
    """Per tensor the first layer is fine, as its error is small beside the one large channel; the other three are lost."""
    model = small(torch.diag(torch.tensor([1 / 500, 1.0, 1.0, 1.0])))
    model[0].weight.data.copy_(torch.diag(torch.tensor([500.0, 1.0, 1.0, 1.0])))
    x = torch.rand(64, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = compare(model, flow(model, (x,)).module, [x])
    row = by_origin(found)["_0"]
    assert (found.worst is row or SEVEN_BITS) and row.own > 40 - BIT and row.own_channel < 10


def test_own_and_inherited_errors_make_the_total(net: nn.Module, made: Any) -> None:
    """As amplitudes, |own - inherited| <= total <= own + inherited."""
    for row in compare(net, made.module, DATA):
        own, inherited, total = (10 ** (-v / 20) for v in (row.own, row.inherited, row.sqnr))
        assert abs(own - inherited) * 0.999 - 1e-9 <= total <= (own + inherited) * 1.001 + 1e-9


# What else is counted


def small(weight: Tensor) -> nn.Sequential:
    linear = nn.Linear(4, 4, bias=False)
    linear.weight.data.copy_(weight)
    return nn.Sequential(nn.Linear(4, 4, bias=False), linear, nn.Linear(4, 4)).eval()


@needs_vnni  # a range of 7 bits is not cut at its end: kernels hold twice as much
def test_saturation_is_the_share_of_float_values_that_the_range_cuts() -> None:
    model = small(torch.eye(4))
    calm, wild = torch.rand(64, 4) * 2 - 1, torch.cat([torch.full((16, 4), 3.0), torch.rand(48, 4) * 2 - 1])
    quantized = flow(model, (calm,), [(torch.tensor([[1.0] * 4, [-1.0] * 4]),)]).module
    rows = by_origin(compare(model, quantized, [calm, wild]))
    assert not compare(model, quantized, [calm]).unmatched
    assert rows["input_1"].saturation == pytest.approx(64 / 512)
    assert by_origin(compare(model, quantized, [calm]))["input_1"].saturation == 0.0


def test_a_relu_at_the_lower_end_is_no_saturation(net: nn.Module, made: Any) -> None:
    assert by_origin(compare(net, made.module, DATA))["relu"].saturation < 0.01


def test_dead_channels_and_unused_range() -> None:
    model = small(torch.diag(torch.tensor([100.0, 1.0, 1e-4, 0.0])))
    model[0].weight.data.copy_(torch.eye(4))
    x = torch.linspace(-1, 1, 32).reshape(-1, 1).expand(32, 4).contiguous()
    rows = by_origin(compare(model, flow(model, (x,)).module, [x]))
    assert (rows["_1"].dead_channels, rows["_1"].dead_in_float) == (2, 1)
    assert rows["_1"].unused < 0.02
    assert by_origin(compare(model, flow(model, (x,)).module, [x / 4]))["_1"].unused == pytest.approx(0.75, abs=0.02)


def test_of_a_range_of_7_bits_half_is_not_unused() -> None:
    """A CPU without VNNI: activations that a linear reads have codes up to 127."""
    model = small(torch.eye(4))
    x = torch.linspace(-1, 1, 32).reshape(-1, 1).expand(32, 4).contiguous()
    prepared = prepare_fx(model, None, (x,), engine="x86", isa="avx2")
    prepared(x)
    rows = by_origin(compare(model, convert_fx(prepared), [x, x]))
    assert rows["input_1"].unused < 0.02
    rows = by_origin(compare(model, convert_fx(prepared), [x / 4]))
    assert rows["input_1"].unused == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("batches", [(1,), (7, 1, 92), (50, 50)])
def test_a_histogram_does_not_depend_on_the_batches(batches: tuple[int, ...]) -> None:
    values = randn(100, seed=3) * 5 + 2
    whole, parts = Counter(), Counter()
    whole.add(values)
    for part in values.split([*batches, 100 - sum(batches)]):
        parts.add(part)
    a, b = whole.histogram(), parts.histogram()
    assert a == b and a is not None and sum(a.counts) == 100 and len(a.counts) == BINS
    assert a.low <= float(values.min()) and float(values.max()) <= a.high
    assert sum(1 for c in a.counts if c) > 10 and (a.high - a.low) <= 4 * float(values.max() - values.min())


@pytest.mark.parametrize("value", [0.0, -3.0, 1e30, 1e-30])
def test_a_histogram_of_one_value(value: float) -> None:
    counter = Counter()
    counter.add(torch.full((5,), value))
    found = counter.histogram((0.5, 10, 0, 255))
    assert found is not None and sum(found.counts) == 5 and found.clip == (-5.0, 122.5) and found.step == 0.5
    assert found.low <= float(torch.tensor(value)) <= found.high


def test_infinities_of_a_mask_are_no_signal_and_nan_is_no_signal_left() -> None:
    tally, mask = Tally(), torch.tensor([1.0, -math.inf])
    tally.add(mask, mask.clone(), (mask, mask), None)
    assert tally.decibels(tally.noise) == math.inf
    tally.add(torch.ones(2), torch.tensor([1.0, math.nan]), (torch.zeros(2), torch.zeros(2)), None)
    assert tally.decibels(tally.noise) == -math.inf


def test_times_only_where_asked_for(net: nn.Module, made: Any) -> None:
    assert all(row.ms is None for row in compare(net, made.module, DATA[:1]))
    assert all(row.ms is not None and row.ms > 0 for row in compare(net, made.module, DATA[:1], profile=True))


# Its forms


def test_the_page_gets_its_numerics(net: nn.Module, made: Any) -> None:
    numerics = compare(net, made.module, DATA).to_numerics()
    lowered = {n.name: n for n in made.module.lowered.graph.nodes}
    for name, entry in numerics.items():
        assert name in lowered and {"sqnr", "own", "inherited", "max_abs", "saturation", "dead_channels"} <= set(entry)
        for histogram in (entry[key] for key in ("act", "weight") if key in entry):
            assert len(histogram["counts"]) == 64 and histogram["low"] < histogram["high"]
    conv = next(e for n, e in numerics.items() if "one" in source_of(lowered[n]).origin)
    assert {"clip", "step"} <= set(conv["act"]) & set(conv["weight"])
    json.dumps(numerics, allow_nan=False)


def test_json_and_text_are_the_same_each_time(net: nn.Module, made: Any) -> None:
    first, second = (compare(net, made.module, DATA) for _ in range(2))
    assert first.to_json() == second.to_json() and str(first) == str(second)
    data = json.loads(first.to_json())
    assert data["format"] == "qcompiler-comparison" and len(data["nodes"]) == len(NODES) and data["output"] is not None
    assert (first.worst.module_path or first.worst.name) in str(first).splitlines()[3]


# What is refused


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


def test_a_model_of_another_structure(made: Any) -> None:
    with pytest.raises(ConfigError, match="does not fit the quantized one"):
        compare(Other().eval(), made.module, DATA)


@pytest.mark.parametrize("form", ["module", "reference", "copied", "unpickled", "loaded"])
def test_a_model_with_other_weights_is_noted(net: nn.Module, made: Any, form: str, tmp_path: Path) -> None:
    quantized = made.reference if form == "reference" else made.module
    if form == "loaded":
        qcompiler.save(quantized, tmp_path / "net.qc")
        quantized = qcompiler.load(tmp_path / "net.qc")
    elif form != "module":
        quantized = pickle.loads(pickle.dumps(quantized)) if form == "unpickled" else copy.deepcopy(quantized)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.get_parameter("shared.bias")[3] += 1e-3  # far too little to be seen in the figures
        other.get_buffer("bn.running_mean").mul_(2)
    found = compare(other, quantized, DATA)
    if form == "reference":
        assert not found.note  # torch.fx's copies of a graph go without
        found = compare(other, made.reference, DATA)
    assert "2 of 12 tensors differ (bn.running_mean, shared.bias)" in found.note
    assert str(found).startswith("WARNING: not the model that was quantized")
    assert json.loads(found.to_json())["note"] == found.note


def test_unknown_weights_that_compute_something_else_are_noted(made: Any) -> None:
    quantized = copy.deepcopy(made.module)
    quantized.load_state_dict(made.module.state_dict())  # they may come from anywhere
    found = compare(randomized(Net(), seed=7), quantized, DATA)
    assert "with the same weights" in found.note and found.note in str(found)


def test_weights_that_a_prepared_model_was_given(net: nn.Module) -> None:
    other = randomized(Net(), seed=7)
    first, second = (qcompiler.prepare_fx(model, None, (DATA[0],)) for model in (net, other))
    qcompiler.calibrate(second, DATA)
    first.load_state_dict(second.state_dict())
    for prepared in (first, copy.deepcopy(first)):
        assert not compare(other, qcompiler.convert_fx(prepared), DATA).note


def test_training_moves_the_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    prepared = qcompiler.prepare_qat_fx(model.train(), None, (DATA[0],))
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
    for x in DATA:
        prepared(x).square().mean().backward()
        optimizer.step()
    small = qcompiler.convert_fx(prepared)
    assert "tensors differ (0.weight, " in compare(model.eval(), small, DATA).note
    model.load_state_dict({name: prepared.state_dict()[name] for name in model.state_dict()})
    assert not compare(model, small, DATA).note


@pytest.mark.parametrize("width", [70, 120])
def test_tables_fit_the_terminal(net: nn.Module, made: Any, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    deep = nn.Sequential()
    deep.add_module("encoder_of_the_first_modality", nn.Sequential())
    deep.get_submodule("encoder_of_the_first_modality").add_module("a_layer_with_a_very_long_name_0123456789", net)
    path = "encoder_of_the_first_modality.a_layer_with_a_very_long_name_0123456789"
    for model, module in ((net, made.module), (deep, qcompiler.quantize(deep, DATA, progress=False))):
        found = compare(model, module, DATA)
        for text in (str(found), str(qcompiler.explain(module))):
            lines = text.splitlines()
            assert max(map(len, lines)) <= width and all("  " in line for line in lines[3:4])
            if model is net:
                assert "…" not in text and "norm" in text  # no name is cut where all fit
            elif width == 120:
                assert f"{path}.one"[-24:] in text
        rows = str(found).splitlines()[3 : 3 + len(found.nodes)]
        assert all(line.count(" dB") >= 2 or "exact" in line or "no signal" in line for line in rows)  # a row is a line
    head, *_, caption = str(compare(net, made.module, DATA)).splitlines()[1:]
    assert ("max abs" in head) == (width == 120) and ("max abs" in caption) == (width == 70)


def test_no_data(net: nn.Module, made: Any) -> None:
    with pytest.raises(InputError, match="0 batches"):
        compare(net, made.module, iter([]))
    with pytest.raises(ConfigError, match="iterable of batches, got int"):
        compare(net, made.module, 5)


def test_train_mode(made: Any) -> None:
    with pytest.raises(ConfigError, match="train mode"):
        compare(Net().train(), made.module, DATA)


def test_what_is_not_quantized(net: nn.Module, made: Any) -> None:
    for wrong, text in ((net, "a Net"), (made.prepared, "a prepared model"), (torch.ones(1), "a Tensor")):
        with pytest.raises(ConfigError, match=f"needs a quantized model, got {text}"):
            compare(net, wrong, DATA)
    with pytest.raises(ConfigError, match=r"expected a torch\.nn.Module, got str"):
        compare("net", made.module, DATA)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="already converted"):
        compare(made.module, made.module, DATA)


@pytest.mark.parametrize(("batch", "text"), [(randn(2, 4, 8, 8), "batch 1"), ((DATA[0], DATA[0]), "batch 1"), ({"y": DATA[0]}, "batch 1")])
def test_a_batch_that_does_not_fit_is_named(net: nn.Module, made: Any, batch: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        compare(net, made.module, [DATA[0], batch])


def test_a_program_without_origins(net: nn.Module, made: Any) -> None:
    data = made.module.program.to_data()
    for call in (*data["calls"], *data["once"]):
        call.pop("origin", None)
    old = copy.deepcopy(made.module)
    old.__dict__["_program"] = Program.from_data(data)
    with pytest.raises(ConfigError, match="convert the model again"):
        compare(net, old, DATA)


def test_nothing_is_changed(net: nn.Module, made: Any) -> None:
    before = {k: v.clone() for k, v in [*net.state_dict().items(), *made.module.state_dict().items()]}
    compare(net, made.module, DATA, profile=True)
    after = dict([*net.state_dict().items(), *made.module.state_dict().items()])
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert isinstance(made.module, CompiledModule)


def test_measures_find_their_nodes_in_a_recording_of_the_compile() -> None:
    """Whatever the user calls his modules: program, lowered graph and measures use one name for a value."""

    class Private(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._conv, self.__conv, self.last_ = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, _x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.last_(torch.relu(self.__conv(self._conv(_x))))
            return y

    torch.manual_seed(0)
    model, x, recorder = Private().eval(), torch.randn(1, 3, 8, 8), Recorder()
    small = qcompiler.quantize(model, x, debug=recorder)
    numerics = compare(model, small, [x]).to_numerics()
    document = recorder.document().with_numerics(numerics)
    assert set(numerics) <= {node["name"] for node in document.nodes_at(-1)} and len(numerics) >= 4


def test_recurrent_cells_have_rows_without_a_weight_histogram() -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = nn.LSTMCell(6, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
            result: Tensor = self.out(self.cell(x, (h, c))[0])
            return result

    torch.manual_seed(0)
    model, data = Cell().eval(), (randn(4, 6), randn(4, 5), randn(4, 5))
    found = compare(model, flow(model, data).module, [data])
    assert any(node.computes == "LSTMCell" and node.weight is None and node.sqnr > 25 for node in found.nodes)


def test_results_beside_the_tensors() -> None:
    """A size, a flag or None among what forward returns has nothing to compare, and is no other structure."""

    class Sized(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return {"y": super().forward(x), "n": x.shape[0], "rest": (None, "name", True)}

    torch.manual_seed(0)
    model, x = Sized(8, 4).eval(), randn(3, 8)
    assert len(compare(model, qcompiler.quantize(model, [x], progress=False), [x]).nodes) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_results_that_are_no_numbers_are_told(value: float) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    data = torch.randn(16, 8)
    int8 = qcompiler.quantize(model, [data], progress=False)
    spoiled = data.clone()
    spoiled[0, 0] = value
    assert compare(model, int8, [data]).note == ""
    found = compare(model, int8, [data, spoiled])
    assert "4 values of the float results are NaN or inf" in found.note and "WARNING" in str(found)


class Reshaped(nn.Module):
    """Behind many layers a value in a shape that is computed from theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(50))
        self.last = nn.Conv1d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x)) + x
        b, c, h, w = (x.size(dim) for dim in range(4))
        return self.last(x.reshape(b * 2, c // 2, h * w))  # type: ignore[no-any-return]


def test_sizes_are_no_way_that_errors_take() -> None:
    """Each value is computed again from what is right before it, not from all that had a say in its shape."""
    graph = fx.symbolic_trace(Reshaped())
    steps = steps_of_graph(graph)
    sites = match(steps, steps).sites
    assert all(site.region is not None and len(site.region) == 1 for site in sites.values() if site.step.kind == "call")
    assert sites["reshape"].bounds == ("add_49",)
