"""What is handed in at the doors: modules and tensors of every kind work, or end in one error that says what to give."""

from __future__ import annotations

import collections
import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode

import qcompiler as qc
from qcompiler import quantization, tune
from qcompiler.config.qconfig import QConfig, default_dynamic_qconfig, default_qat_qconfig, float_qparams_weight_only_qconfig
from qcompiler.debug import bisect, compare
from qcompiler.errors import ConfigError, InputError, QCompilerError, UnsupportedOpError
from qcompiler.inputs.near_names import near_names
from qcompiler.observers import MinMaxObserver, PerChannelMinMaxObserver, default_per_channel_weight_observer, default_weight_observer
from tests.flow import fingerprint

X = torch.randn(2, 3, 8, 8)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def with_qconfig(model: Any) -> Any:
    if isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule):
        for module in model.modules():
            module.qconfig = quantization.get_default_qconfig("x86")
    return model


DOORS: dict[str, Callable[[Any], Any]] = {
    "fuse_fx": lambda m: qc.fuse_fx(m, (X,)),
    "prepare_fx": lambda m: qc.prepare_fx(m, None, (X,)),
    "prepare_qat_fx": lambda m: qc.prepare_qat_fx(m, None, (X,)),
    "quantize": lambda m: qc.quantize(m, [X], progress=False),
    "compare": lambda m: compare(m, qc.quantize(small(), [X], progress=False), [X]),
    "bisect": lambda m: bisect(m, [X]),
    "quantize_dynamic": quantization.quantize_dynamic,
    "eager prepare": lambda m: quantization.prepare(with_qconfig(m)),
    "eager prepare_qat": lambda m: quantization.prepare_qat(with_qconfig(m)),
    "eager quantize": lambda m: quantization.quantize(with_qconfig(m), lambda p: p(X), ()),
    "eager convert": quantization.convert,
    "fuse_modules": lambda m: quantization.fuse_modules(m, ["0", "1"]),
}  # fmt: skip
EXPORTED = torch.export.export(small(), (X,))
NO_MODULES: dict[str, tuple[Callable[[], Any], str]] = {
    "a script": (lambda: torch.jit.script(small()), "scripted-module"),
    "a traced module": (lambda: torch.jit.trace(small(), X), "scripted-module"),
    "a frozen script": (lambda: torch.jit.freeze(torch.jit.script(small())), "scripted-module"),
    "an exported program": (lambda: EXPORTED, "exported-program"),
    "an exported program's module": (lambda: EXPORTED.module(), "exported-program"),
    "a function": (lambda: torch.relu, "not-a-module"),
    "a class": (lambda: nn.Linear, "not-a-module"),
    "None": (lambda: None, "not-a-module"),
    "a state_dict": (lambda: small().state_dict(), "not-a-module"),
}


@pytest.mark.parametrize("name", NO_MODULES)
@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_module_with_layers(door: str, name: str) -> None:
    make, code = NO_MODULES[name]
    with pytest.raises(ConfigError) as raised:
        DOORS[door](make())
    assert raised.value.code == code and (raised.value.hint or code == "not-a-module")


@pytest.mark.filterwarnings("ignore:quantize_dynamic left", "ignore:this Sequential has no QuantStub")
@pytest.mark.parametrize("door", [d for d in DOORS if "qat" not in d and d != "eager convert"])
def test_a_compiled_module_is_its_original(door: str) -> None:
    model = torch.compile(small())
    assert DOORS[door](model) is not None


def test_compiled_and_scripted_children() -> None:
    class Outer(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.head = inner, nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(x).mean([2, 3]))

    plain = qc.quantize(Outer(small()).eval(), [X], progress=False)
    compiled = qc.quantize(Outer(torch.compile(small())).eval().requires_grad_(True), [X], progress=False)
    assert compiled(X).shape == plain(X).shape and [r.int8 for r in qc.explain(compiled).rows] == [r.int8 for r in qc.explain(plain).rows]
    in_place = small()
    in_place.compile()
    assert [r.int8 for r in qc.explain(qc.quantize(Outer(in_place).eval(), [X], progress=False)).rows] == [True] * 3
    scripted = qc.quantize(Outer(torch.jit.script(small())).eval(), [X], progress=False)
    assert any(r.code == "leaf" and r.where.module_path == "inner" for r in qc.remarks(scripted))


@pytest.mark.parametrize("door", ["fuse_fx", "prepare_fx", "quantize", "bisect"])
def test_graphs_of_torch_fx_in_eval_mode(door: str) -> None:
    nested = nn.Sequential(small(), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout())).eval()
    assert DOORS[door](fx.symbolic_trace(nested)) is not None
    left = fx.symbolic_trace(nested)
    left.get_submodule("1.1").train()
    with pytest.raises(ConfigError, match=r"1\.1") as raised:
        DOORS[door](left)
    assert raised.value.code == "train-mode"


def without_output(gm: fx.GraphModule) -> None:
    gm.graph.erase_node(next(n for n in gm.graph.nodes if n.op == "output"))


def with_a_cycle(gm: fx.GraphModule) -> None:
    nodes = list(gm.graph.nodes)
    nodes[1].args = (nodes[3],)


def with_a_target_that_is_not_there(gm: fx.GraphModule) -> None:
    list(gm.graph.nodes)[1].target = "nowhere"


def with_a_parameter_as_module(gm: fx.GraphModule) -> None:
    list(gm.graph.nodes)[1].target = "0.weight"


@pytest.mark.parametrize("damage", [without_output, with_a_cycle, with_a_target_that_is_not_there, with_a_parameter_as_module])
@pytest.mark.parametrize("door", ["fuse_fx", "prepare_fx", "quantize"])
def test_graphs_that_were_edited_by_hand(door: str, damage: Callable[[fx.GraphModule], None]) -> None:
    gm = fx.symbolic_trace(small())
    damage(gm)
    with pytest.raises(ConfigError, match="invalid IR in the graph given") as raised:
        DOORS[door](gm)
    assert raised.value.code == "invalid-ir"


class Sub(Tensor):
    """A subclass."""


FAKES = FakeTensorMode()


def fake() -> Tensor:
    with FAKES:
        return torch.randn(2, 4)


TENSORS: dict[str, tuple[Callable[[], Tensor], type[QCompilerError], str]] = {
    "sparse": (lambda: torch.eye(4).to_sparse(), UnsupportedOpError, "tensor-layout"),
    "csr": (lambda: torch.eye(4).to_sparse_csr(), UnsupportedOpError, "tensor-layout"),
    "oneDNN": (lambda: torch.randn(4, 4).to_mkldnn(), UnsupportedOpError, "tensor-layout"),
    "nested": (lambda: torch.nested.nested_tensor([torch.randn(2), torch.randn(3)]), UnsupportedOpError, "tensor-layout"),
    "jagged": (lambda: torch.nested.nested_tensor([torch.randn(2), torch.randn(3)], layout=torch.jagged), UnsupportedOpError,
               "tensor-layout"),
    "subclass": (lambda: torch.randn(2, 4).as_subclass(Sub), UnsupportedOpError, "tensor-subclass"),
    "fake": (fake, ConfigError, "meta-tensor"),
    "meta": (lambda: torch.randn(2, 4, device="meta"), ConfigError, "meta-tensor"),
}  # fmt: skip
# torch announces changes of these; the warnings are about making them
IGNORE = pytest.mark.filterwarnings("ignore:Sparse", "ignore:The PyTorch API of nested", "ignore:Accessing the data pointer")


class Holder(nn.Module):
    def __init__(self, held: Tensor, kind: str) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        if kind == "parameter":
            self.held = nn.Parameter(held, requires_grad=False)
        else:
            self.register_buffer("held", held)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


@IGNORE
@pytest.mark.parametrize("kind", ["parameter", "buffer"])
@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("door", ["prepare_fx", "fuse_fx", "prepare_qat_fx", "quantize_dynamic", "eager prepare", "fuse_modules"])
def test_tensors_that_a_model_holds(door: str, name: str, kind: str) -> None:
    make, error, code = TENSORS[name]
    model = Holder(make(), kind).train(door == "prepare_qat_fx")
    with pytest.raises(error) as raised:
        DOORS[door](model)
    assert raised.value.code == code and raised.value.where.module_path == "held" and raised.value.hint


@IGNORE
@pytest.mark.parametrize("name", TENSORS)
def test_tensors_as_inputs(name: str) -> None:
    make, error, code = TENSORS[name]
    x = torch.randn(2, 4)
    model = Holder(torch.zeros(1), "buffer").eval()
    prepared, module = qc.prepare_fx(model, None, (x,)), qc.quantize(model, [x], progress=False)
    for door in (lambda t: qc.prepare_fx(model, None, (t,)), lambda t: qc.calibrate(prepared, [x, (t,)]),
                 lambda t: qc.calibrate(prepared, [{"x": t}]), lambda t: qc.quantize(model, [x, t], progress=False),
                 lambda t: compare(model, module, [t]), lambda t: bisect(model, [t]), prepared):  # fmt: skip
        with pytest.raises(error) as raised:
            door(make())
        assert raised.value.code == code and raised.value.hint
    if name not in ("subclass", "fake"):  # which compute what a plain tensor does, or its shape
        with pytest.raises(error):
            module(make())


@pytest.mark.parametrize("door", [d for d in DOORS if "qat" not in d and d not in ("eager convert", "compare")])
def test_lazy_modules(door: str) -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5)).eval()
    with pytest.raises(ConfigError, match="lazy module") as raised:
        DOORS[door](model)
    assert raised.value.code == "lazy-module" and raised.value.where.module_path == "0.weight"
    model(X)
    if door != "fuse_modules" and not door.startswith("eager"):
        DOORS[door](model)


# ---- what qconfigs say of weights


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 10, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.table(ids)))


IDS = torch.tensor([[1, 2, 3]])


@pytest.mark.parametrize("trains", [False, True])
def test_a_tied_weight_under_two_qconfigs(trains: bool) -> None:
    model = Tied().train(trains)
    before = fingerprint(model)
    default = qc.get_default_qat_qconfig_mapping if trains else qc.get_default_qconfig_mapping
    other = QConfig(default_qat_qconfig.activation, default_qat_qconfig.weight) if trains else float_qparams_weight_only_qconfig
    prepare = qc.prepare_qat_fx if trains else qc.prepare_fx
    with pytest.raises(ConfigError, match="table and head") as raised:
        prepare(model, default().set_module_name("table", other), (IDS,))
    assert raised.value.code == "tied-weight" and raised.value.hint and fingerprint(model) == before
    prepare(model, None, (IDS,))  # under one
    kept = prepare(model, default().set_module_name("head", None), (IDS,))
    assert [r.where.module_path for r in qc.remarks(kept) if r.code == "tied-weight"] == ["head"]


def test_a_tied_weight_under_two_qconfigs_in_the_eager_flow() -> None:
    model = quantization.QuantWrapper(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()).eval()
    one, two = model.module[0], model.module[1]
    two.weight = one.weight
    one.qconfig = QConfig(MinMaxObserver, default_weight_observer)
    two.qconfig = QConfig(MinMaxObserver, default_per_channel_weight_observer)
    with pytest.raises(ConfigError, match=r"module\.0 and module\.1"):
        quantization.prepare(model)
    two.qconfig = one.qconfig
    quantization.prepare(model)


@pytest.mark.parametrize("axis", [-9, -5, 4, 9])
def test_a_channel_axis_that_a_weight_does_not_have(axis: int) -> None:
    weight = PerChannelMinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_channel_symmetric, ch_axis=axis)
    qconfig = QConfig(MinMaxObserver, weight)
    model = small()
    before = fingerprint(model)
    with pytest.raises(ConfigError, match=f"ch_axis={axis}") as raised:
        qc.prepare_fx(model, qconfig, (X,))
    assert raised.value.code == "channel-axis" and raised.value.where.module_path == "0" and fingerprint(model) == before
    eager = quantization.QuantWrapper(nn.Conv2d(3, 4, 3)).eval()
    eager.qconfig = qconfig
    with pytest.raises(ConfigError, match=f"ch_axis={axis}"):
        quantization.prepare(eager)
    with pytest.raises(ConfigError, match=f"ch_axis={axis}"):
        quantization.quantize_dynamic(nn.Sequential(nn.Linear(9, 4)), {nn.Linear: QConfig(default_dynamic_qconfig.activation, weight)})


@pytest.mark.parametrize("axis", [-4, -1, 0, 1, 3])
def test_a_channel_axis_that_exists_is_the_ops_own(axis: int) -> None:
    weight = PerChannelMinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_channel_symmetric, ch_axis=axis)
    module = qc.quantize(small(), [X], QConfig(MinMaxObserver, weight), progress=False)
    assert module.get_buffer("0.weight_scale").shape == (4,)


# ---- models with nothing to train


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(3), (4, 3)),
    "BatchNorm1d of rank 3": (lambda: nn.BatchNorm1d(3), (4, 3, 5)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3), (4, 3, 5, 5)),
    "BatchNorm2d without affine": (lambda: nn.BatchNorm2d(3, affine=False), (4, 3, 5, 5)),
    "BatchNorm2d with cumulative averages": (lambda: nn.BatchNorm2d(3, momentum=None), (4, 3, 5, 5)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(3), (2, 3, 4, 4, 4)),
    "LayerNorm": (lambda: nn.LayerNorm(5), (2, 5)),
    "Dropout": (lambda: nn.Dropout(0.5), (2, 5)),
    "ReLU": (lambda: nn.ReLU(), (2, 5)),
    "GRU": (lambda: nn.GRU(5, 4, batch_first=True), (2, 3, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_training_of_a_model_in_which_nothing_is_fake_quantized(name: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    model, x = make().train(), torch.randn(shape)
    prepared = qc.prepare_qat_fx(model, None, (x,))
    torch.manual_seed(1)
    found = prepared(x)
    torch.manual_seed(1)
    wanted = model(x)
    found, wanted = (y if isinstance(y, Tensor) else y[0] for y in (found, wanted))
    assert torch.allclose(found, wanted, atol=1e-5)
    assert all(torch.allclose(value, prepared.state_dict()[key]) for key, value in model.state_dict().items())
    module = qc.convert_fx(prepared)
    assert any(r.code == "not-simulated" for r in qc.remarks(module))
    float_result, result = model.eval()(x), module(x)
    if name != "GRU":  # whose weights are int8
        assert torch.allclose(float_result, result, atol=1e-5)


def test_training_under_a_dynamic_qconfig_converts_and_says_so() -> None:
    prepared = qc.prepare_qat_fx(nn.Sequential(nn.Linear(4, 4)).train(), default_dynamic_qconfig, (torch.randn(2, 4),))
    assert any(r.code == "not-simulated" for r in qc.remarks(qc.convert_fx(prepared)))


# ---- results that torch.jit cannot make


@dataclass
class Result:
    y: Tensor
    hidden: Tensor = None  # type: ignore[assignment]


class ModelOutput(collections.OrderedDict):  # type: ignore[type-arg]
    """As transformers has them."""


@pytest.mark.parametrize("cls", [Result, ModelOutput])
def test_a_script_of_a_result_that_is_a_class(cls: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            return cls(y=self.linear(x))

    module = qc.quantize(Net().eval(), [torch.randn(2, 4)], progress=False)
    with pytest.raises(ConfigError, match=cls.__name__) as raised:
        torch.jit.script(module)
    assert raised.value.code == "script-result" and raised.value.hint


# ---- names


KNOWN = ["", "encoder", "encoder.0", "encoder.0.conv1", "encoder.0.conv2", "encoder.1", "encoder.1.conv1", "decoder", "head"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("encodr", "encoder"), ("Encoder", "encoder"), ("encoder[0]", "encoder.0"), ("encoder/1/conv1", "encoder.1.conv1"),
     ("conv2", "encoder.0.conv2"), ("model.decoder", "decoder"), ("encoder.0.conv_1", "encoder.0.conv1"), ("haed", "head"),
     ("decoder.weight", "decoder"), ("backbone.encoder.0.conv2", "encoder.0.conv2"), ("head.", "head")],
)  # fmt: skip
def test_the_name_that_was_meant(name: str, meant: str) -> None:
    assert near_names(name, KNOWN)[0] == meant


def test_of_a_name_like_none_the_parts_of_the_model_are_listed() -> None:
    with pytest.raises(ConfigError) as raised:
        qc.prepare_fx(small(), qc.get_default_qconfig_mapping().set_module_name("zzzzzz", None), (X,))
    assert "the model has 0, 1, 2" in str(raised.value.hint)


def test_complex_inputs_of_a_model_that_takes_floats() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4)).eval(), torch.randn(2, 4)
    prepared = qc.prepare_fx(model, None, (x,))
    for door in (lambda t: qc.prepare_fx(model, None, (t,)), prepared, lambda t: qc.calibrate(prepared, [t])):
        with pytest.raises((UnsupportedOpError, InputError)) as raised:
            door(x.to(torch.complex64))
        assert raised.value.code == "complex"
    assert copy.deepcopy(prepared)(x).shape == (2, 4)


# ---- doors beside the compile

PREPARED = qc.prepare_fx(small(), None, (X,))
qc.calibrate(PREPARED, [X])
MORE_DOORS: dict[str, Callable[[Any], Any]] = {
    "add_quant_dequant": quantization.add_quant_dequant,
    "propagate_qconfig_": quantization.propagate_qconfig_,
    "add_observer_": quantization.add_observer_,
    "get_observer_dict": lambda m: quantization.get_observer_dict(m, {}),
    "get_observer_state_dict": quantization.get_observer_state_dict,
    "get_logger_dict": quantization.get_logger_dict,
    "prepare_model_outputs": lambda m: quantization.prepare_model_outputs(m, m),
    "compare_weights": lambda m: quantization.compare_weights(m, m),
    "load_state_dict": qc.quantize(small(), [X], progress=False).load_state_dict,
    "export_c": lambda m: qc.export_c(m, "nowhere"),
    "export_source": lambda m: qc.export_source(m, "nowhere"),
    "export_onnx": lambda m: qc.export_onnx(m, "nowhere.onnx"),
    "export_program": qc.export_program,
    "save": lambda m: qc.save(m, "nowhere.qc"),
    "native_plan": qc.native_plan,
    "native_times": lambda m: qc.native_times(m, X),
    "explain": qc.explain,
    "scales": qc.scales,
    "calibrate": lambda m: qc.calibrate(m, [X]),
    "autotune": lambda m: qc.autotune(m, [X, X], progress=False),
    "bench": lambda m: qc.bench(m, [X], rounds=1),
    "equalize": lambda m: tune.equalize(m, [X]),
    "correct_bias": lambda m: tune.correct_bias(m, [X]),
    "reconstruct": lambda m: tune.reconstruct(m, [X]),
}


@pytest.mark.parametrize(
    "thing", [None, 3, "model.qc", [small()], torch.relu, nn.Linear, X, EXPORTED], ids=lambda thing: type(thing).__name__
)
@pytest.mark.parametrize("door", MORE_DOORS)
def test_what_is_no_module_at_any_door(door: str, thing: Any) -> None:
    with pytest.raises(ConfigError):
        MORE_DOORS[door](thing)


WALKS = {"correct_bias": tune.correct_bias, "reconstruct": tune.reconstruct, "equalize": tune.equalize}
BATCHES: dict[str, Any] = {
    "text": "abc", "None": [None], "a number": [3], "doubles": [X.double()], "halves": [X.half()],
    "integers": [X.int()], "complex": [X * 1j],
    "two dimensions": [torch.randn(3, 8)], "no dimensions": [torch.tensor(1.0)], "too many": [(X, X)], "labels": [(X, torch.zeros(2))],
    "other names": [{"zzz": X}], "NaN": [X, X * float("nan")], "inf": [X / 0], "fake": [FAKES.from_tensor(X)], "sparse": [X.to_sparse()],
    "nothing": [], "no rows": [X[:0]],
}  # fmt: skip
SIZES = {
    "other channels": [torch.randn(2, 5, 8, 8)],
    "a second batch of other channels": [X, torch.randn(2, 5, 8, 8)],
    "too small": [X[..., :1, :1]],
}


@IGNORE
@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("name", [*BATCHES, *SIZES])
def test_data_that_corrections_cannot_read(walk: str, name: str) -> None:
    if walk == "equalize" and name in SIZES:
        return  # it reads no more of this model than its input
    with pytest.raises(QCompilerError):
        WALKS[walk](PREPARED, (BATCHES | SIZES)[name])


@pytest.mark.parametrize("name", ["example_kwargs", "concrete_args"])
@pytest.mark.parametrize("value", [3, iter([]), X.numpy(), [X.numpy()], {3: X}, torch.relu, nn.Linear(2, 2)])
def test_arguments_by_name_that_are_no_dict(name: str, value: Any) -> None:
    with pytest.raises(ConfigError):
        qc.prepare_fx(small(), None, (X,), **{name: value})
    if name == "example_kwargs" and not isinstance(value, list):
        with pytest.raises(ConfigError):
            qc.fuse_fx(small(), None, example_kwargs=value)


@IGNORE
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_tensors_without_memory_do_not_reach_c() -> None:
    """Their address is 0: reading there ended the process."""
    module = qc.quantize(small(), [X], progress=False, backend="native")
    for x in (FAKES.from_tensor(X), X.to("meta"), X.to_sparse(), torch.quantize_per_tensor(X, 0.1, 0, torch.quint8)):
        for call in (module, lambda x: qc.native_times(module, x), lambda x: qc.native_plan(module, x)):
            with pytest.raises(QCompilerError):
                call(x)
    with pytest.raises(InputError):
        module(torch._efficientzerotensor(X.shape))
    for wrong in (None, 3, "x", X.numpy(), [X], X * 1j):
        with pytest.raises(QCompilerError):
            qc.native_plan(module, wrong)
    forms = qc.quantize(Optional().eval(), [{"x": X}, {"x": X, "mask": X}], progress=False, example_kwargs=[{"x": X}, {"x": X, "mask": X}])
    with pytest.raises(UnsupportedOpError):
        forms(torch.nested.nested_tensor([torch.randn(3, 8, 8)]))


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        y: Tensor = self.conv(x)
        return y if mask is None else y * mask


@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.LazyLinear(2)), lambda: small().to("meta"), lambda: with_fakes()])
def test_more_modules_of_bench_are_checked(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ConfigError):
        qc.bench(qc.quantize(small(), [X], progress=False), [X], modules={"other": make()}, rounds=1, scripted=False)


def with_fakes() -> nn.Module:
    with FAKES:
        return nn.Conv2d(3, 4, 3)


# ---- settings

WRONG = [-1.5, "abc", float("nan"), [], {"x": 1}, object(), [1]]
SETTINGS: dict[str, Callable[[Any], Any]] = {
    "rounds": lambda v: qc.bench(small(), [X], rounds=v, scripted=False),
    "warmup": lambda v: qc.bench(small(), [X], rounds=1, warmup=v, scripted=False),
    "threads": lambda v: qc.bench(small(), [X], rounds=1, threads=v, scripted=False),
    "modules": lambda v: qc.bench(small(), [X], rounds=1, modules=v if v not in ([], {"x": 1}) else 1, scripted=False),
    "backends": lambda v: qc.bench(small(), [X], rounds=1, backends=v or "torch", scripted=False),
    "dynamic_shapes of ONNX": lambda v: qc.export_onnx(PREPARED, "nowhere.onnx", dynamic_shapes=v or 3),
    "dynamic_shapes": lambda v: qc.export_program(PREPARED, dynamic_shapes=v or 3),
    "alpha": lambda v: tune.equalize(PREPARED, [X], alpha=v),
    "rows": lambda v: tune.reconstruct(PREPARED, [X], rows=v),
    "seed": lambda v: tune.correct_bias(PREPARED, [X], seed=v),
    "keys of a backend config": lambda v: qc.prepare_fx(small(), None, (X,), backend_config={"configs": [], str(v)[:9]: 1}),
    "keys of its patterns": lambda v: qc.prepare_fx(small(), None, (X,), backend_config={"configs": [{"pattern": nn.ReLU, str(v)[:9]: 1}]}),
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_another_kind(name: str, wrong: Any) -> None:
    with pytest.raises(ConfigError):
        SETTINGS[name](wrong)
