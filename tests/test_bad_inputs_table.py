"""The forty-two bad inputs that the project's list names, one case each: class, code, place and hint, or what works instead.

Each leaves the user's model as it was. More of each kind: test_bad_input.py, test_kinds.py, test_artifact.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import qcompiler as qc
from qcompiler.config.qconfig import QConfig
from qcompiler.debug import compute_sqnr
from qcompiler.errors import (
    ArtifactError,
    ArtifactVersionError,
    CalibrationError,
    ConfigError,
    InputError,
    NumericsError,
    QCompilerError,
    TraceError,
    UnsupportedOpError,
)
from qcompiler.observers import MinMaxObserver, PerChannelMinMaxObserver, default_weight_observer
from tests.flow import fingerprint

X, Y = torch.randn(2, 3, 8, 8), torch.randn(3, 4)
NAN, INF = float("nan"), float("inf")


class Net(nn.Module):
    """Two layers and what `between` does to the value of the first."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


class Outer(nn.Module):
    """A model around another one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x))


class Two(nn.Module):
    """Two branches, each with an input of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(y)


def convs() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()


def net(between: Callable[[Tensor], Tensor] = torch.relu) -> Net:
    return Net(between).eval()


def changed(model: Any, change: Callable[[Any], Any]) -> Any:
    with torch.no_grad():
        change(model)
    return model


def quantized(model: nn.Module, *data: Any, **options: Any) -> Any:
    return qc.quantize(model, list(data) or [Y], progress=False, **options)


def codes(module: Any) -> list[str]:
    return [remark.code for remark in qc.remarks(module)]


def shifted(tensor: Tensor, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[0] = value
    return tensor


# ---- errors


@dataclass
class Error:
    """What an act on a model raises. `place`: what the error's `where` has to hold."""

    make: Callable[[], Any]
    act: Callable[[Any], Any]
    kind: type[QCompilerError]
    code: str
    texts: tuple[str, ...] = ()
    place: dict[str, str] = field(default_factory=dict)
    hint: str = ""


def prepare(model: Any, *inputs: Any, **options: Any) -> Any:
    return qc.prepare_fx(model, options.pop("mapping", None), inputs or (Y,), **options)


def partly_calibrated(model: Any) -> Any:
    prepared = prepare(model, Y, Y)
    prepared(Y, torch.empty(0, 4))
    return qc.convert_fx(prepared)


def calibrated_elsewhere(model: Any) -> Any:
    prepared = prepare(model)
    model(Y)
    return qc.convert_fx(prepared)


def tied() -> nn.Module:
    model = Two().eval()
    model.b.weight = model.a.weight
    return model


def cyclic() -> fx.GraphModule:
    gm = fx.symbolic_trace(net())
    nodes = list(gm.graph.nodes)
    nodes[1].args = (nodes[2],)
    return gm


def trains() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())


def mapped(name: str, qconfig: Any = None) -> qc.QConfigMapping:
    return qc.get_default_qconfig_mapping().set_module_name(name, qconfig)


def until_small(x: Tensor) -> Tensor:
    """A number of rounds that depends on data."""
    while x.sum() > 1e3:
        x = x / 2
    return x


FX = "convert_fx needs the module that prepare_fx returned"
ERRORS: dict[str, Error] = {
    "1 no calibration": Error(net, lambda m: qc.convert_fx(prepare(m)), CalibrationError, "not-calibrated", ("0 of ", "observers saw data"),
                              hint="prepare_fx"),
    "2 a branch without data": Error(lambda: Two().eval(), partly_calibrated, CalibrationError, "partly-calibrated", ("y",),
                                     {"node": "y"}, "allow_uncalibrated"),
    "3 calibrated the original": Error(net, calibrated_elsewhere, CalibrationError, "not-calibrated", hint="not the original model"),
    "4 an empty loader": Error(net, lambda m: qc.calibrate(prepare(m), []), CalibrationError, "no-batches", ("0 batches",), hint="loader"),
    "5 NaN in a batch": Error(net, lambda m: qc.calibrate(prepare(m), [Y, shifted(Y, NAN)]), CalibrationError, "nan", ("batch 1", "1 "),
                              {"node": "x"}, "batch"),
    "6 inf in a batch": Error(net, lambda m: qc.calibrate(prepare(m), [shifted(Y, INF)]), CalibrationError, "inf", ("batch 0",),
                              {"node": "x"}, "batch"),
    "6 overflow inside": Error(lambda: net(lambda x: x * 1e38 * 1e38), lambda m: qc.calibrate(prepare(m), [Y]), CalibrationError, "inf",
                               ("batch 0",), {"node": "mul"}, "layers before"),
    "7 NaN in a weight": Error(lambda: changed(net(), lambda m: m.second.weight[0].fill_(NAN)), prepare, NumericsError, "bad-weight",
                               ("NaN",), {"module_path": "second.weight"}, "checkpoint"),
    "11 a negative variance": Error(lambda: changed(convs(), lambda m: m[1].running_var.fill_(-1.0)), lambda m: prepare(m, X),
                                    NumericsError, "bad-batch-norm", ("variance",), {"module_path": "1"}, "checkpoint"),
    "12 a wrong shape": Error(convs, lambda m: qc.calibrate(prepare(m, X), [X[0]]), InputError, "input-shape",
                              ("expected", "[2, 3, 8, 8]", "[3, 8, 8]")),
    "13 a wrong number of inputs": Error(net, lambda m: quantized(m)(Y, Y), InputError, "input-arguments", ("x",), hint="float model"),
    "13 in calibration": Error(net, lambda m: prepare(m)(Y, other=Y), InputError, "inputs", ("x: torch.float32[3, 4]",)),
    "14 a loop on data, strict": Error(lambda: net(until_small), lambda m: prepare(m, strict=True), TraceError, "trace",
                                       ("while x.sum() > 1e3",), {"source": "test_bad_inputs_table.py"}, "leaf"),
    "14 strict": Error(lambda: Outer(net(until_small)).eval(), lambda m: prepare(m, strict=True), TraceError,
                       "trace", place={"source": "test_bad_inputs_table.py"}, hint="leaf"),
    "15 a range of data, strict": Error(lambda: net(lambda x: sum(x for _ in range(int(x.abs().max()) + 1))),
                             lambda m: prepare(m, strict=True), TraceError, "trace",
                                ("range(int(",), {"source": "test_bad_inputs_table.py"}, "leaf"),
    "15 a NumPy call, strict": Error(lambda: net(lambda x: x + torch.from_numpy(x.numpy())),
                                     lambda m: prepare(m, strict=True), TraceError, "trace",
                                     ("numpy()",), {"source": "test_bad_inputs_table.py"}, "leaf"),
    "16 an op without int8 form, strict": Error(lambda: net(lambda x: torch.fft.fft(x).real), lambda m: prepare(m, strict=True),
                                                UnsupportedOpError, "unsupported-op", ("fft",), {"node": "fft"}, "strict=True"),
    "18 prepared twice": Error(net, lambda m: prepare(prepare(m)), ConfigError, "already-prepared", ("already prepared",), hint="float"),
    "18 quantized already": Error(net, lambda m: prepare(quantized(m)), ConfigError, "already-converted", hint="float"),
    "19 convert of a plain model": Error(net, qc.convert_fx, ConfigError, "not-prepared", (FX,), hint="prepare_fx"),
    "19 convert of a converted one": Error(net, lambda m: qc.convert_fx(quantized(m)), ConfigError, "already-converted"),
    "20 train mode": Error(trains, prepare, ConfigError, "train-mode", ("1 (BatchNorm1d)", "2 (Dropout)"), hint=".eval()"),
    "23 meta tensors": Error(lambda: nn.Sequential(nn.Linear(4, 4, device="meta")).eval(), prepare, ConfigError, "meta-tensor",
                             ("not materialized",), {"module_path": "0.weight"}, "real"),
    "24 half weights": Error(lambda: net().half(), lambda m: prepare(m, Y.half()), ConfigError, "weight-dtype", ("torch.float16",),
                             {"module_path": "first.weight"}, ".float()"),
    "24 double weights": Error(lambda: net().double(), lambda m: prepare(m, Y.double()), ConfigError, "weight-dtype",
                               place={"module_path": "first.weight"}, hint=".float()"),
    "25 integer weights": Error(lambda: changed(net(), lambda m: setattr(m.second, "weight", nn.Parameter(torch.ones(4, 4).int(), False))),
                                prepare, ConfigError, "weight-dtype", place={"module_path": "second.weight"}),
    "26 complex weights": Error(lambda: changed(net(), lambda m: setattr(m.second, "weight", nn.Parameter(torch.ones(4, 4) * 1j, False))),
                                prepare, InputError, "input", place={"module_path": "second"}),
    "26 double complex weights": Error(
        lambda: changed(net(), lambda m: m.register_buffer("phase", torch.ones(4, dtype=torch.complex128))), prepare, ConfigError,
        "weight-dtype", place={"module_path": "phase"}, hint="complex64"),
    "26 complex inputs": Error(net, lambda m: prepare(m, Y * 1j), UnsupportedOpError, "complex", place={"module_path": "first"}),
    "27 a sparse input": Error(net, lambda m: prepare(m, Y.to_sparse()), UnsupportedOpError, "tensor-layout", hint="to_dense"),
    "27 an oneDNN buffer": Error(lambda: changed(net(), lambda m: m.register_buffer("extra", Y.to_mkldnn())), prepare, UnsupportedOpError,
                                 "tensor-layout", place={"module_path": "extra"}),
    "32 tied weights": Error(tied, lambda m: prepare(m, Y, Y, mapping=mapped("b", QConfig(MinMaxObserver, default_weight_observer))),
                             ConfigError, "tied-weight", ("a and b",), hint="clone"),
    "35 an unknown module": Error(net, lambda m: prepare(m, mapping=mapped("frist")), ConfigError, "qconfig-module-name", ("'frist'",),
                                  hint="did you mean first"),
    "35 a type that is not there, strict": Error(
        net, lambda m: prepare(m, mapping=qc.get_default_qconfig_mapping().set_object_type(nn.LSTM, None), strict=True), ConfigError,
        "rule-unused", ("LSTM",)),
    "36 a range of no steps": Error(net, lambda m: QConfig(MinMaxObserver.with_args(quant_min=5, quant_max=1), default_weight_observer),
                                    ConfigError, ""),
    "36 activations by channel": Error(net, lambda m: QConfig(PerChannelMinMaxObserver, default_weight_observer), ConfigError, ""),
    "36 an axis out of range": Error(
        net, lambda m: prepare(m, mapping=QConfig(MinMaxObserver, PerChannelMinMaxObserver.with_args(
            ch_axis=7, dtype=torch.qint8, qscheme=torch.per_channel_symmetric))), ConfigError, "channel-axis", ("ch_axis=7",),
        {"module_path": "first"}),
    "39 a cyclic graph": Error(cyclic, prepare, ConfigError, "invalid-ir", ("before it is computed",), {"node": ""}),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_an_error(name: str) -> None:
    case = ERRORS[name]
    model = case.make()
    before = fingerprint(model) if all(t.layout is torch.strided and not t.is_meta for t in (*model.parameters(), *model.buffers())) else ""
    with pytest.raises(case.kind) as raised:
        case.act(model)
    error = raised.value
    assert type(error) is case.kind or case.kind is QCompilerError, str(error)
    assert error.code == case.code or not case.code, error.code
    for text in case.texts:
        assert text in str(error), str(error)
    for part, value in case.place.items():
        found = getattr(error.where, part)
        assert found is not None and value in found, (part, found, str(error))
    assert case.hint in str(error.hint or ""), str(error)
    assert not before or fingerprint(model) == before
    assert fx._symbolic_trace._is_fx_tracing_flag is False and torch.is_grad_enabled()


# ---- what works, with a stated result


def constant_activation() -> None:
    model = net(lambda x: x * 0 + 3)
    module = quantized(model)
    assert torch.allclose(module(Y), model(Y), atol=0.05)


def empty_channel() -> None:
    model = changed(net(), lambda m: m.second.weight[1].zero_())
    module = quantized(model)
    assert "zero-channel" in codes(module) and torch.equal(module.get_buffer("second.weight")[1], torch.zeros(4, dtype=torch.int8))


def denormal_range() -> None:
    module = quantized(net(lambda x: x * 1e-40))
    assert torch.isfinite(module(Y)).all()


def huge_range() -> None:
    model = net(lambda x: x * 1e37)
    assert compute_sqnr(model(Y).double(), quantized(model)(Y).double()) > 20


def zero_variance() -> None:
    model = changed(convs(), lambda m: m[1].running_var.zero_())
    assert torch.isfinite(quantized(model, X)(X)).all()


def branch_in_a_child() -> None:
    module = quantized(Outer(net(lambda x: x if x.sum() > 0 else -x)).eval())
    branch = next(r for r in qc.remarks(module) if r.code == "data-branch")
    assert branch.where.module_path == "inner" and "test_bad_inputs_table.py" in str(branch.where.source) and "x.sum() > 0" in branch.text
    assert all(row.int8 for row in qc.explain(module).rows if row.op == "linear")


def loop_on_data() -> None:
    module = quantized(net(until_small))
    remark = next(r for r in qc.remarks(module) if r.code == "float-statement")
    assert "test_bad_inputs_table.py" in str(remark.where.source) and "while x.sum() > 1e3" in remark.text
    assert torch.isfinite(module(Y * 1e4)).all()


def numbers_of_data() -> None:
    for between in (lambda x: sum(x for _ in range(int(x.abs().max()) + 1)), lambda x: x + torch.from_numpy(x.detach().numpy())):
        model = net(between)
        module = quantized(model)
        remark = next(r for r in qc.remarks(module) if r.code == "float-statement")
        assert "test_bad_inputs_table.py" in str(remark.where.source)
        assert all(compute_sqnr(model(x), module(x)) > 20 for x in (Y, Y / 2))


def len_of_a_shape() -> None:
    model = net(lambda x: x * int(x.shape[1]) + len(x.shape))
    assert compute_sqnr(model(Y), quantized(model)(Y)) > 20


def unsupported_op() -> None:
    module = quantized(net(lambda x: torch.fft.fft(x).real))
    assert any(code in ("no-int8-form", "no-row") for code in codes(module)) and [r.int8 for r in qc.explain(module).rows].count(True) == 2


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


APPLY = Twice.apply  # taken from its class before the trace begins


def custom_function() -> None:
    for function in (APPLY, lambda x: Twice.apply(x)):
        model = Outer(net(function)).eval()
        module = quantized(model)
        found = [r.code for r in qc.remarks(module) if "custom autograd.Function 'Twice'" in r.text]
        assert found == ["leaf" if function is APPLY else "float-statement"]  # its line alone, where that needs no whole `self`
        assert compute_sqnr(model(Y), module(Y)) > 20
    with pytest.raises(TraceError, match=r"custom autograd\.Function 'Twice'"):
        prepare(net(APPLY))


LIBRARY = torch.library.Library("bad_inputs_table", "DEF")
LIBRARY.define("twice(Tensor x) -> Tensor")
LIBRARY.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")


def custom_op() -> None:
    for op in (torch.ops.bad_inputs_table.twice, torch.ops.bad_inputs_table.twice.default):
        model = net(op)
        module = quantized(model)
        assert any("twice" in r.text for r in qc.remarks(module)) and compute_sqnr(model(Y), module(Y)) > 20


def scalars() -> None:
    model = net(lambda x: x * 2 + torch.tensor(0.5))
    assert compute_sqnr(model(Y), quantized(model)(Y)) > 20


def batch_of_none() -> None:
    module = quantized(net(), Y, Y[:0])
    assert module(Y[:0]).shape == (0, 4)


def other_sizes() -> None:
    module = quantized(convs(), X)
    assert module(torch.randn(5, 3, 12, 9)).shape == (5, 4, 8, 5)
    fixed = quantized(net(lambda x: x[: int(x.shape[0])] if x.shape[0] == 3 else x))
    with pytest.raises(QCompilerError, match="fixed"):
        fixed(Y[:2])


def shared_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model.append(model[0])
    module = quantized(model.eval())
    assert sum("weight_scale" in key for key in module.state_dict()) == 1
    assert len([row for row in qc.explain(module).rows if row.op == "linear"]) == 2


def in_place() -> None:
    def change(x: Tensor) -> Tensor:
        x[:, 0] = 1.0
        return x.mul_(2).relu_()

    model, x = net(change), Y.clone()
    module = quantized(model, x)
    assert compute_sqnr(model(Y), module(x)) > 20 and torch.equal(x, Y)


def hostile_names() -> None:
    model = nn.Sequential()
    for name in ("a_b", "class", "__import__('os')", "ünï", "new\nline"):
        model.add_module(name, nn.Linear(4, 4))
    module = quantized(model.eval())
    assert "__import__('os')" not in module.code.replace("# ", "") or "\nnew" not in module.code
    assert {key.rpartition(".")[0] for key in module.state_dict() if key.endswith("weight")} == set(dict(model.named_children()))


def unused_rule() -> None:
    mapping = qc.get_default_qconfig_mapping().set_object_type(nn.LSTM, None)
    assert "rule-unused" in codes(prepare(net(), mapping=mapping))


def other_ranges() -> None:
    model = net(lambda x: torch.cat([torch.sigmoid(x)[:, :2], x[:, 2:] * 50], 1))
    assert compute_sqnr(model(Y), quantized(model)(Y)) > 15


def batch_norms_in_a_row() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()).eval()
    assert compute_sqnr(model(X), quantized(model, X)(X)) > 25


def dead_nodes() -> None:
    gm = fx.symbolic_trace(net())
    gm.graph.call_function(torch.relu, (next(iter(gm.graph.nodes)),))
    assert compute_sqnr(net()(Y), quantized(gm)(Y)) > 20


WORKS = {
    "8 a constant activation": constant_activation,
    "9 an empty channel": empty_channel,
    "10 denormal values": denormal_range,
    "10 huge values": huge_range,
    "11 a variance of zero": zero_variance,
    "14 a branch in a child": branch_in_a_child,
    "14 a loop on data": loop_on_data,
    "15 numbers of data": numbers_of_data,
    "15 len and int of a shape": len_of_a_shape,
    "16 an unsupported op": unsupported_op,
    "17 a custom autograd.Function": custom_function,
    "17 a custom op": custom_op,
    "28 scalars": scalars,
    "29 no batch": batch_of_none,
    "30 other sizes": other_sizes,
    "31 a shared module": shared_module,
    "33 in place": in_place,
    "34 hostile names": hostile_names,
    "35 a type that is not there": unused_rule,
    "37 other ranges": other_ranges,
    "38 two BatchNorms": batch_norms_in_a_row,
    "39 dead nodes": dead_nodes,
}


@pytest.mark.parametrize("name", WORKS)
def test_it_works(name: str) -> None:
    torch.manual_seed(0)
    WORKS[name]()


# ---- files


def truncated(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def flipped(raw: bytes) -> bytes:
    return raw[:-100] + bytes([raw[-100] ^ 1]) + raw[-99:]


def other_magic(raw: bytes) -> bytes:
    return b"PK\x03\x04" + bytes(60) + raw


def absurd_length(raw: bytes) -> bytes:
    return (2**60).to_bytes(8, "little") + raw[8:]


def newer(raw: bytes) -> bytes:
    return raw.replace(b'"qcompiler.format":"2.0"', b'"qcompiler.format":"3.0"')


FILES: dict[str, tuple[Callable[[bytes], bytes], type[QCompilerError], str]] = {
    "40 truncated": (truncated, ArtifactError, "corrupt"),
    "40 a flipped bit": (flipped, ArtifactError, "corrupt"),
    "40 another magic": (other_magic, ArtifactError, "magic"),
    "40 an absurd length": (absurd_length, ArtifactError, "header"),
    "41 a zip file with a pickle": (lambda raw: b"PK\x03\x04" + b"\x80\x04cos\nsystem\n" + raw, ArtifactError, "another ZIP archive"),
    "42 a newer format": (newer, ArtifactVersionError, "reads up to"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file(name: str, tmp_path: Path) -> None:
    damage, kind, text = FILES[name]
    path = tmp_path / "m.qc"
    qc.save(quantized(net()), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(kind, match=text) as raised:
        qc.load(path)
    assert kind is not ArtifactVersionError or "upgrade" in str(raised.value.hint)


@pytest.mark.parametrize("moved", [("first", "second"), ("second",)])  # 21: on the GPU, 22: on two devices
def test_a_model_on_a_gpu(moved: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    there = {id(tensor) for name, tensor in model.named_parameters() if name.startswith(moved)}
    place = torch.Tensor.device.__get__
    where = property(lambda tensor: torch.device("cuda", 0) if id(tensor) in there else place(tensor))
    monkeypatch.setattr(torch.Tensor, "device", where, raising=False)
    with pytest.raises(ConfigError, match=r"cuda:0 \((first|second)\.weight\)") as raised:
        prepare(model)
    assert raised.value.code == "device" and ".cpu()" in str(raised.value.hint)
    assert ("cpu (first.weight)" in str(raised.value)) == (moved == ("second",))


def test_every_number_has_a_case() -> None:
    named = {"21", "22"} | {number for name in (*ERRORS, *WORKS, *FILES) for number in name.split() if number.isdigit()}
    assert sorted(map(int, named)) == list(range(1, 43))
