"""A model is compiled, measured and called as in a fresh process, whatever the caller has set around the call."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler import debug, quantization
from qcompiler.ambient import PLAIN, plain_torch
from qcompiler.errors import ConfigError
from qcompiler.quantization import numeric_suite, numeric_suite_fx


class Net(nn.Module):
    """Int8 layers, a float layer in between, a tensor that forward makes, and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn(self.conv(x))).flatten(2).transpose(1, 2)
        y = y + torch.linspace(0, 1, y.shape[1])[:, None]
        y, _ = self.gru(torch.softmax(y @ y.transpose(1, 2), -1) @ y)
        return self.head(y) * torch.ones(4)


class Stubbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv, self.act, self.soft = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Softmax(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dequant(self.soft(self.act(self.conv(self.quant(x)))))


torch.manual_seed(0)
MODEL, STUBBED = Net().eval(), Stubbed().eval()
STUBBED.qconfig = quantization.get_default_qconfig("x86")
QAT = copy.deepcopy(STUBBED).train()
QAT.qconfig = quantization.get_default_qat_qconfig("x86")
X = torch.randn(2, 3, 4, 4)
PREPARED = qc.prepare_fx(MODEL, None, (X,))
qc.calibrate(PREPARED, [X])
INT8 = qc.convert_fx(PREPARED)
EAGER = quantization.prepare(STUBBED)
EAGER(X)
EAGER_INT8 = quantization.convert(EAGER)


def tensors(module: nn.Module) -> list[torch.Tensor]:
    """What a model holds and computes."""
    held = [value for value in module.state_dict().values() if isinstance(value, torch.Tensor)]
    with plain_torch():
        return [*held, module(X)]


def calibrated(prepared: Any) -> nn.Module:
    qc.calibrate(prepared, [X])
    return qc.convert_fx(prepared)


def observed(prepared: nn.Module) -> nn.Module:
    prepared(X)
    return quantization.convert(prepared)


def trained(prepared: nn.Module) -> nn.Module:
    return quantization.convert(prepared.eval())


def saved(folder: Path) -> nn.Module:
    qc.save(INT8, folder / "m.qc")
    return qc.load(folder / "m.qc")


def exported(folder: Path) -> nn.Module:
    qc.export_source(INT8, folder / "m")
    return INT8


def called_as_module(folder: Path) -> nn.Module:
    calibrating = quantization.quantize_fx(MODEL, calibration_module_names=["head"])
    calibrating(X)
    return calibrating.convert()  # type: ignore[no-any-return]


def train_mode(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).train()


def shadowed(folder: Path) -> Any:
    made = numeric_suite_fx.add_shadow_loggers("a", PREPARED, "b", INT8, numeric_suite_fx.OutputLogger)
    with torch.no_grad():
        return made(X)


DOORS: dict[str, Callable[[Path], Any]] = {
    "fuse_fx": lambda _: tensors(qc.fuse_fx(MODEL, (X,))),
    "prepare_fx": lambda _: tensors(qc.prepare_fx(MODEL, None, (X,))),
    "calibrate": lambda _: tensors(calibrated(copy.deepcopy(PREPARED))),
    "convert_fx": lambda _: tensors(qc.convert_fx(PREPARED)),
    "convert_to_reference_fx": lambda _: tensors(qc.convert_to_reference_fx(PREPARED)),
    "prepare_qat_fx": lambda _: tensors(calibrated(qc.prepare_qat_fx(train_mode(MODEL), None, (X,)))),
    "quantize": lambda _: tensors(qc.quantize(MODEL, [X], progress=False)),
    "load": lambda folder: tensors(saved(folder)),
    "export_source": lambda folder: tensors(exported(folder)),
    "quantize_fx": lambda folder: tensors(called_as_module(folder)),
    "eager prepare": lambda _: tensors(observed(quantization.prepare(STUBBED))),
    "eager convert": lambda _: tensors(quantization.convert(EAGER)),
    "eager prepare_qat": lambda _: tensors(observed(quantization.prepare_qat(QAT))),
    "eager quantize": lambda _: tensors(quantization.quantize(STUBBED, lambda m: m(X), ())),
    "eager quantize_qat": lambda _: tensors(quantization.quantize_qat(QAT, lambda m: m(X), ())),
    "quantize_dynamic": lambda _: tensors(quantization.quantize_dynamic(MODEL)),
    "quantize_dynamic half": lambda _: tensors(quantization.quantize_dynamic(MODEL, dtype=torch.float16)),
    "fuse_modules": lambda _: tensors(quantization.fuse_modules(MODEL, ["conv", "bn"])),
    "compare": lambda _: str(debug.compare(MODEL, INT8, [X])),
    "bisect": lambda _: str(debug.bisect(MODEL, [X])),
    "compare_weights": lambda _: quantization.compare_weights(MODEL.state_dict(), INT8.state_dict()),
    "compare_model_outputs": lambda _: quantization.compare_model_outputs(MODEL, INT8, X),
    "compare_model_stub": lambda _: quantization.compare_model_stub(MODEL, INT8, [nn.Linear], X),
    "shadow loggers": shadowed,
    "deepcopy": lambda _: tensors(copy.deepcopy(INT8)),
    "load_state_dict": lambda _: tensors(loaded(copy.deepcopy(INT8))),
    "call": lambda _: INT8(X),
    "call of an eager module": lambda _: EAGER_INT8(X),
    "call of a prepared module": lambda _: PREPARED(X),
}  # fmt: skip


def loaded(module: nn.Module) -> nn.Module:
    module.load_state_dict(INT8.state_dict())
    return module


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(True)


@contextlib.contextmanager
def anomaly() -> Iterator[None]:
    torch.autograd.set_detect_anomaly(True)
    try:
        yield
    finally:
        torch.autograd.set_detect_anomaly(False)


STATES: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device meta": lambda: default_device("meta"),
    "with device meta": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "deterministic": deterministic,
    "anomaly": anomaly,
    "without oneDNN": without_onednn,
    "medium precision": lambda: precision("medium"),
}


def flat(value: Any) -> list[Any]:
    """Everything in a result, tensors as bytes."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return [str(value.dtype), value.dequantize().tolist() if value.is_quantized else value.tolist()]
    if isinstance(value, dict):
        return [part for key in value for part in (key, *flat(value[key]))]
    return [part for item in value for part in flat(item)] if isinstance(value, (list, tuple)) else [value]


EXPECTED: dict[str, list[Any]] = {}
# Calls inside settings of the whole process that change what float layers compute, as they do for any float model.
FLOAT_DIFFERS = {(door, state) for door in ("call", "call of a prepared module", "eager prepare", "eager prepare_qat", "eager quantize_qat",
                 "quantize_fx", "shadow loggers") for state in ("without oneDNN", "medium precision")}  # fmt: skip
# The user's own calls of an eager model that is prepared, in the user's own autocast.
FLOAT_DIFFERS |= {(door, "autocast") for door in ("eager prepare", "eager prepare_qat", "eager quantize_qat")}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("door", DOORS)
def test_the_result_is_that_of_a_fresh_process(door: str, state: str, tmp_path: Path) -> None:
    if door not in EXPECTED:
        EXPECTED[door] = flat(DOORS[door](tmp_path))
    with STATES[state]():
        result = DOORS[door](tmp_path)
    if (door, state) not in FLOAT_DIFFERS:
        assert flat(result) == EXPECTED[door]


# Public functions that take a model and only read or arrange it, or run the user's own training.
ONLY_READ = {"explain", "remarks", "scales", "save", "export_c", "native_plan", "export_source",
             "document_of", "quantize_qat", "add_observer_", "get_observer_dict",
             "propagate_qconfig_", "swap_module", "add_quant_dequant", "get_observer_state_dict", "load_observer_state_dict",
             "get_logger_dict", "get_matching_activations", "extract_logger_info", "extract_shadow_logger_info", "fuse_conv_bn",
             "fuse_conv_bn_relu", "fuse_linear_bn", "fuse_convtranspose_bn", "disable_fake_quant", "enable_fake_quant", "disable_observer",
             "enable_observer"}  # fmt: skip
TAKES_A_MODEL = {"model", "module", "mod", "prepared", "float_model", "float_module", "model_a", "q_model", "converted", "mod_list"}


def test_every_public_function_that_takes_a_model_is_shielded() -> None:
    homes = (qc, quantization, debug, numeric_suite, numeric_suite_fx)
    public = {name: vars(home).get(name) for home in homes for name in getattr(home, "__all__", ())}
    functions = {name: value for name, value in public.items() if inspect.isfunction(value)}
    takes = {name for name, function in functions.items() if TAKES_A_MODEL & set(inspect.signature(function).parameters)} | {"load"}
    assert len(takes) > 20
    assert sorted(name for name in takes if not hasattr(functions[name], PLAIN)) == sorted(ONLY_READ & takes)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_an_int8_module_takes_what_float_layers_around_hand_out(half: torch.dtype) -> None:
    inner = qc.quantize(nn.Sequential(nn.Linear(4, 4)).eval(), [torch.randn(3, 4)], progress=False)
    outer = nn.Sequential(nn.Linear(4, 4), inner)
    x = torch.randn(3, 4)
    with torch.autocast("cpu", dtype=half):
        between = outer[0](x)
        found = outer(x)
    assert between.dtype is half
    assert torch.equal(found, inner(between.float()))


DYNAMIC: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], torch.dtype]] = {
    "linear": (lambda: nn.Linear(4, 4), (3, 4), torch.qint8),
    "linear in half precision": (lambda: nn.Linear(4, 4), (3, 4), torch.float16),
    "lstm": (lambda: nn.LSTM(4, 4), (2, 3, 4), torch.qint8),
    "gru": (lambda: nn.GRU(4, 4), (2, 3, 4), torch.qint8),
    "cell": (lambda: nn.GRUCell(4, 4), (3, 4), torch.qint8),
}


@pytest.mark.parametrize("state", ["autocast", "float64", "bfloat16", "with device meta", "deterministic", "inference mode"])
@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_modules_called_inside(name: str, state: str) -> None:
    make, shape, dtype = DYNAMIC[name]
    module = quantization.quantize_dynamic(nn.Sequential(make()).eval(), dtype=dtype)
    x = torch.randn(shape)
    expected = flat(module(x))
    with STATES[state]():
        assert flat(module(x)) == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert flat(module(x.bfloat16())) == flat(module(x.bfloat16().float()))


def test_autocast_inside_forward_is_left_out_with_a_remark() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = self.second(self.first(x))
            return y

    x = torch.randn(3, 4)
    module = qc.quantize(Mixed().eval(), [x], progress=False)
    assert [row.int8 for row in qc.explain(module).rows] == [True, True] and module(x).dtype is torch.float32
    assert [r.where.module_path for r in qc.remarks(module) if r.code == "autocast"] == ["first", "second"]


def test_training_may_run_under_autocast() -> None:
    prepared = qc.prepare_qat_fx(train_mode(MODEL), None, (X,))
    optimizer = torch.optim.SGD(prepared.parameters(), 1e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = prepared(X).float().square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    qc.convert_fx(prepared)  # with parity


def test_settings_of_the_process_come_back_after_errors_and_overlapping_threads() -> None:
    with default_dtype(torch.float64), deterministic(), without_onednn(), precision("medium"):
        for _ in range(2):
            with pytest.raises(ConfigError):
                qc.prepare_fx(42, None, (X,))  # type: ignore[arg-type]
        first, second = plain_torch(), plain_torch()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_default_dtype() is torch.float32  # the second is still inside
        second.__exit__(None, None, None)
        assert torch.get_default_dtype() is torch.float64
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch._C._get_mkldnn_enabled()
        assert torch.get_float32_matmul_precision() == "medium"
    torch.set_grad_enabled(True)  # gradients belong to a thread: here one thread left two blocks in the order of two


def in_vmap(action: Callable[[], Any]) -> None:
    torch.func.vmap(lambda x: (action(), x)[1])(torch.zeros(2, 2))


def in_grad(action: Callable[[], Any]) -> None:
    torch.func.grad(lambda x: (action(), x.sum())[1])(torch.zeros(2))


def in_fake_mode(action: Callable[[], Any]) -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        action()


def in_make_fx(action: Callable[[], Any]) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    make_fx(lambda x: (action(), x + 1)[1])(torch.zeros(2))


def in_jit_trace(action: Callable[[], Any]) -> None:
    torch.jit.trace(lambda x: (action(), x + 1)[1], torch.zeros(2))


@pytest.mark.parametrize("door", ["prepare_fx", "quantize", "convert_fx", "eager prepare", "quantize_dynamic", "compare"])
@pytest.mark.parametrize("inside", [in_vmap, in_grad, in_fake_mode, in_make_fx, in_jit_trace])
def test_where_tensors_hold_no_values_one_error_says_so(inside: Any, door: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be compiled inside") as raised:
        inside(lambda: DOORS[door](tmp_path))
    assert raised.value.code == "inside-mode"


def test_a_mode_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        result = DOORS["quantize"](tmp_path)
    assert flat(result) == flat(DOORS["quantize"](tmp_path))
    assert counter.get_total_flops() > 0


def source_of(module: nn.Module, folder: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("exported", qc.export_source(module, folder))
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made.load()  # type: ignore[no-any-return]


@pytest.mark.parametrize("state", ["autocast", "float64", "bfloat16", "with device meta", "default device meta"])
def test_scripts_and_sources_with_float_parts_compute_the_same_or_refuse(state: str, tmp_path: Path) -> None:
    source, script = source_of(INT8, tmp_path), torch.jit.script(INT8)
    frozen = torch.jit.freeze(torch.jit.script(copy.deepcopy(INT8)).eval())
    expected = flat(INT8(X))
    for _ in range(3):  # torch.jit compiles anew in the first calls
        assert flat(source(X)) == flat(script(X)) == flat(frozen(X)) == expected
    with STATES[state]():
        for form in (script, frozen):
            if state == "autocast":
                for _ in range(3):
                    with pytest.raises(torch.jit.Error, match=r"call it outside torch\.autocast"):
                        form(X)
            else:  # what makes tensors says of which dtype; torch.jit knows no default device
                assert flat(form(X)) == expected
        if state == "autocast":
            assert flat(source(X)) == expected
            assert flat(source(X.bfloat16())) == flat(INT8(X.bfloat16().float()))
        else:
            with pytest.raises(RuntimeError, match="default dtype float32 and default device cpu"):
                source(X)
    assert flat(source(X)) == flat(script(X)) == flat(frozen(X)) == expected


def test_scripts_and_sources_in_int8_alone_ask_nothing(tmp_path: Path) -> None:
    int8 = qc.quantize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)).eval(), [X], progress=False)
    assert "autocast" not in qc.export_source(int8, tmp_path / "m").read_text()
    expected = flat(int8(X))
    script = torch.jit.script(int8)
    with STATES["autocast"]():
        assert flat(script(X)) == flat(source_of(int8, tmp_path / "n")(X)) == expected
