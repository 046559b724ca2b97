"""Bad inputs: the right class and code, the place, a hint; and the user's model stays as it was."""

from __future__ import annotations

import copy
import operator
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import qcompiler
from qcompiler import (
    CalibrationError,
    ConfigError,
    InputError,
    NumericsError,
    QCompilerError,
    QConfig,
    QConfigMapping,
    TraceError,
    UnsupportedOpError,
    calibrate,
    convert_fx,
    convert_to_reference_fx,
    explain,
    fuse_fx,
    get_default_qconfig,
    get_default_qconfig_mapping,
    prepare_fx,
    prepare_qat_fx,
    remarks,
)
from qcompiler.artifact import MissingModulesWarning, load, save
from qcompiler.backends.torch.program.export import export_source
from qcompiler.debug import compute_sqnr, document_of
from qcompiler.ir.types import Stage
from qcompiler.observers import MinMaxObserver, PerChannelMinMaxObserver, default_per_channel_weight_observer, default_weight_observer
from qcompiler.ops.obstacles import CODES
from qcompiler.stages.verify import verify
from tests.cpu import BIT
from tests.flow import ENGINES, fingerprint, flow, randn, randomized

X = randn(2, 3, 8, 8)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()


@contextmanager
def raises(model: nn.Module | None, kind: type[QCompilerError], code: str, *texts: str, hint: bool = True) -> Iterator[None]:
    """The error has the code, its text holds `texts` and (with `hint`) a hint; the model did not change."""
    before = fingerprint(model) if model is not None else ""
    with pytest.raises(kind) as caught:
        yield
    error: Any = caught.value
    assert type(error) is kind and error.code == code, (type(error), error.code, str(error))
    for text in texts:
        assert text in str(error), str(error)
    assert error.hint or not hint, str(error)
    assert model is None or fingerprint(model) == before


def line_of(function: Callable[..., Any], text: str) -> str:
    """file:line of the line of a function that holds `text`."""
    import inspect

    lines, start = inspect.getsourcelines(function)
    return f"test_bad_input.py:{start + next(i for i, line in enumerate(lines) if text in line)}"


class Branches(nn.Module):
    """The second branch runs on request; the trace fixes which one, so the other case of `untouched` data is a lookup of parts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(y)


# ---- 1-6: calibration


def test_01_no_calibration() -> None:
    model = small()
    prepared = prepare_fx(model, None, (X,))
    with raises(model, CalibrationError, "not-calibrated", "0 of 3 observers saw data"):
        convert_fx(prepared)
    calibrate(prepared, [X])  # it can still be used
    convert_fx(prepared)


def test_02_one_branch_without_data() -> None:
    torch.manual_seed(0)
    model = Branches().eval()
    x = randn(3, 4)
    prepared = prepare_fx(model, None, (x, x))
    prepared(x, torch.empty(0, 4))  # an empty batch is no data
    with raises(model, CalibrationError, "partly-calibrated", "observers saw no data: y", "node"):
        convert_fx(prepared)
    module = convert_fx(prepared, allow_uncalibrated="float")
    with torch.no_grad():
        wanted, result = model(x, x), module(x, x)
    assert torch.equal(result[1], wanted[1]) and compute_sqnr(wanted[0], result[0]) >= 30
    assert {r.module_path: r.int8 for r in explain(module).rows} == {"a": True, "b": False}


def test_03_calibrated_the_original() -> None:
    model = small()
    prepared = prepare_fx(model, None, (X,))
    model(X)
    with raises(model, CalibrationError, "not-calibrated", "not the original model"):
        convert_fx(prepared)
    with raises(model, ConfigError, "not-prepared"):
        calibrate(model, [X])


@pytest.mark.parametrize("data", [[], iter(()), torch.utils.data.DataLoader([])])  # type: ignore[arg-type]
def test_04_no_batches(data: Any) -> None:
    model = small()
    with raises(model, CalibrationError, "no-batches", "0 batches"):
        calibrate(prepare_fx(model, None, (X,)), data)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_05_06_bad_batch(bad: float) -> None:
    model, code = small(), "nan" if bad != bad else "inf"
    prepared = prepare_fx(model, None, (X,))
    broken = X.clone()
    broken[0, 0, 0, 0] = bad
    with raises(model, CalibrationError, code, "batch 1", "node"):
        calibrate(prepared, [X, broken])
    again = prepare_fx(model, None, (X,))
    assert calibrate(again, [X, broken, X], skip_nonfinite=True) == 2
    clean = prepare_fx(model, None, (X,))
    calibrate(clean, [X, X])
    assert torch.equal(convert_fx(again)(X), convert_fx(clean)(X))


def test_06_overflow_inside() -> None:
    class Overflow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x) * 1e38  # here
            result: Tensor = self.last(y)
            return result

    model = Overflow().eval()
    prepared = prepare_fx(model, None, (X,))
    with raises(model, CalibrationError, "inf", "batch 0", line_of(Overflow.forward, "# here")):
        calibrate(prepared, [X * 100])


# ---- 7, 8, 11: numbers


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "3.bias", "1.running_mean"])
def test_07_bad_parameter(name: str, bad: float) -> None:
    model = small()
    model.state_dict()[name].view(-1)[1] = bad
    with raises(model, NumericsError, "bad-weight", name):
        prepare_fx(model, None, (X,))


def test_07_a_mask_of_inf_is_no_weight() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            y = self.b(torch.softmax(y @ y.transpose(-1, -2) + self.mask, -1))
            return y

    torch.manual_seed(0)
    model, x = Masked().eval(), randn(4, 4)
    result = flow(model, (x,))
    with torch.no_grad():
        assert compute_sqnr(model(x), result.module(x)) >= 30
    assert any("holds inf" in r.text for r in remarks(result.prepared))
    model.mask[0, 0] = torch.nan  # type: ignore[index, operator]
    with raises(model, NumericsError, "bad-weight", "mask"):
        prepare_fx(model, None, (x,))


@pytest.mark.parametrize("value", [0.0, 2.5, -3.0])
def test_08_constant_activation(value: float) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1, bias=False)
            nn.init.dirac_(self.last.weight)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x) * 0 + value
            result: Tensor = self.last(y)
            return result

    model = Constant().eval()
    result = flow(model, (X,))
    with torch.no_grad():
        assert (model(X) - result.module(X)).abs().max() <= abs(value) / 100
    noted = remarked(result.prepared, "constant")
    assert line_of(Constant.forward, "value") in "".join(str(r.where) for r in noted)


@pytest.mark.parametrize("engine", ENGINES)
def test_08_all_zero_input(engine: str) -> None:
    result = flow(small(), (torch.zeros_like(X),), engine=engine)
    assert torch.isfinite(result.module(X)).all()
    assert any("input" in str(r.where) for r in remarked(result.prepared, "constant"))
    assert not remarked(flow(small(), (X,)).prepared, "constant", "zero-channel", "tiny-range")


@pytest.mark.parametrize("gain", [1e-6, 1e-7])
def test_08_ranges_below_eps(gain: float) -> None:
    """The smallest scale is torch.ao's, float32's epsilon: said where it costs resolution, and a smaller one keeps it."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)).eval()
    coarse = flow(model, (X * gain,))
    assert any("smaller eps" in r.text for r in remarked(coarse.prepared, "tiny-range"))
    fine = flow(model, (X * gain,), mapping=QConfig(MinMaxObserver.with_args(eps=1e-30), default_per_channel_weight_observer))
    assert not remarked(fine.prepared, "tiny-range")
    with torch.no_grad():
        assert compute_sqnr(model(X * gain), fine.module(X * gain)) >= 30


@pytest.mark.parametrize("engine", ENGINES)
def test_09_zero_weight_channels(engine: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        model[0].weight[1], model[1].weight[0], model[1].weight[3] = 0, 0, 0  # type: ignore[index]
        model[1].bias[0] = 0  # type: ignore[index]
    result = flow(model, (X,), engine=engine)
    output = result.module(X)
    assert (output[..., 0] == 0).all() and output[..., 3].unique().numel() == 1  # 0 * x + bias
    with torch.no_grad():
        assert compute_sqnr(model(X), output) >= 30
    noted = remarked(result.prepared, "zero-channel")
    if engine != "qnnpack":  # its weights have one scale
        assert [("channel 1" in r.text, "channel 0, 3" in r.text) for r in noted] == [(True, False), (False, True)]
        assert [r.where.module_path for r in noted] == ["0", "1"]


@pytest.mark.parametrize("value", [1e-40, 1e-30, 1e30, 3e38])
def test_10_denormal_and_huge_ranges(value: float) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Flatten()).eval()
    torch.nn.init.eye_(model[0].weight.data.view(3, 3))  # type: ignore[union-attr, operator]
    x = X.clamp(-1, 1) * value
    try:
        result = flow(model, (x,))
    except QCompilerError as error:
        assert error.code in ("inf", "range") and value > 1e30, error
        return
    assert torch.isfinite(result.module(x)).all()
    if value != 1e30:
        assert remarked(result.prepared, "tiny-range" if value < 1 else "huge-range")
    else:
        with torch.no_grad():
            assert compute_sqnr(model(x) / value, result.module(x) / value) >= 30


def remarked(prepared: fx.GraphModule, *codes: str) -> list[Any]:
    """The remarks of these codes, those of converting included."""
    return [r for r in remarks_of(prepared, convert=True) if r.code in codes]


@pytest.mark.parametrize("value", [-1.0, -1e-3, -1e-6, float("nan")])
@pytest.mark.parametrize("behind", [True, False])
def test_11_bad_variance(value: float, behind: bool) -> None:
    """Also where the BatchNorm is not folded."""
    model = nn.Sequential(OrderedConv(), nn.BatchNorm2d(3)) if behind else nn.Sequential(nn.BatchNorm2d(3), OrderedConv())
    model.eval()
    bn = next(m for m in model if isinstance(m, nn.BatchNorm2d))
    bn.running_var[1] = value  # type: ignore[index]
    code = "bad-weight" if value != value else "bad-batch-norm"
    with raises(model, NumericsError, code, "module 1" if behind else "module 0"):
        prepare_fx(model, None, (X,))
    with raises(model, NumericsError, code):
        fuse_fx(model, (X,))


class OrderedConv(nn.Conv2d):
    """A convolution of three channels."""

    def __init__(self) -> None:
        super().__init__(3, 3, 1)

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight, self.bias)


def test_11_zero_variance_is_helped_by_eps() -> None:
    model = small()
    model[1].running_var.zero_()  # type: ignore[operator, union-attr]
    result = flow(model, (X,))
    with torch.no_grad():
        assert compute_sqnr(model(X), result.module(X)) >= 20


# ---- 12, 13: inputs


def test_12_wrong_shape(capsys: pytest.CaptureFixture[str]) -> None:
    model = small()
    prepared = prepare_fx(model, None, (X,))
    for bad, texts in ((X[0], ("float32[2, 3, 8, 8]", "[3, 8, 8]")), (X.double(), ("float64",)), (None, ()), ("x", ("str",))):
        with raises(model, InputError, "input-shape", *texts, hint=False):
            prepared(bad)
    place = ("node %_0: f32[2,4,6,6] = conv2d", "module 0", "[2, 3, 8, 8]")
    with raises(model, InputError, "input-shape", "batch 0: RuntimeError", *place):
        calibrate(prepared, [randn(2, 5, 8, 8)])
    with raises(model, InputError, "input-shape", "batch 1: input input does not fit", hint=False):
        calibrate(prepared, [X, X[0]])
    for called in (prepared, copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared)), prepare_qat_fx(small().train(), None, (X,))):
        with raises(None, InputError, "input-shape", "RuntimeError", *place[1:]):
            called(randn(2, 5, 8, 8))
    assert not capsys.readouterr().err  # torch.fx prints an excerpt of the generated code where it raises
    with pytest.raises(InputError):
        prepare_fx(model, None, (randn(2, 5, 8, 8),))


def test_13_wrong_arguments() -> None:
    model = small()
    prepared = prepare_fx(model, None, (X,))
    for args, kwargs in (((), {}), ((X, X), {}), ((X,), {"other": X})):
        with raises(model, InputError, "inputs", "input: torch.float32[2, 3, 8, 8]", hint=False):
            prepared(*args, **kwargs)
    for examples in ((), (X, X), {"x": X}, 3):
        with pytest.raises(InputError):
            prepare_fx(model, None, examples)
    with raises(model, ConfigError, "calibration-data", "NoneType"):
        calibrate(prepared, None)
    calibrate(prepared, [X])
    with raises(model, ConfigError, "allow-uncalibrated", "'never'", hint=False):
        convert_fx(prepared, allow_uncalibrated="never")
    module = convert_fx(prepared)
    with raises(None, InputError, "input-shape", "0 (Conv2d)"):
        module(randn(2, 5, 8, 8))
    for args, kwargs in (((), {}), ((X, X), {}), ((X,), {"other": X})):
        with pytest.raises(InputError):
            module(*args, **kwargs)


# ---- 14, 16: what cannot be followed, what has no int8 form


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        while x.sum() > 8:  # here
            x = x / 2
        result: Tensor = self.linear(x)
        return result


def test_14_data_dependent_branch() -> None:
    x, line = randn(2, 4), line_of(Branching.forward, "# here")
    model = Branching().eval()
    with raises(model, TraceError, "trace", line, "leaf"):
        prepare_fx(model, None, (x,), strict=True)
    outer = nn.Sequential(nn.Linear(4, 4), Branching()).eval()
    prepared = prepare_fx(outer, None, (x,))
    noted = [r for r in remarks(prepared) if r.pass_name == "trace" and r.code == "float-statement"]
    assert len(noted) == 1 and noted[0].where.module_path == "1" and line.split(":")[1] in str(noted[0].where)
    calibrate(prepared, [x])
    with torch.no_grad():
        assert compute_sqnr(outer(x), convert_fx(prepared)(x)) >= 25
    with raises(outer, TraceError, "trace", line):
        prepare_fx(outer, None, (x,), strict=True)


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumprod(self.linear(x), 1) + torch.cumsum(x, 1)


def test_16_unsupported_op() -> None:
    model, x = Unknown().eval(), randn(2, 4)
    prepared = prepare_fx(model, None, (x,))
    notes = [r.text for r in remarks(prepared) if r.code in CODES]
    assert any("cumprod" in n for n in notes) and any("cumsum" in n for n in notes)
    with raises(model, UnsupportedOpError, "unsupported-op", "cumprod", "cumsum", "2 ops", "test_bad_input.py"):
        prepare_fx(model, None, (x,), strict=True)


# ---- 18-20, 25: model states


def test_18_quantized_or_prepared_already() -> None:
    prepared = prepare_fx(small(), None, (X,))
    with raises(None, ConfigError, "already-prepared"):
        prepare_fx(prepared, None, (X,))
    calibrate(prepared, [X])
    module = convert_fx(prepared)
    with raises(None, ConfigError, "already-converted"):
        prepare_fx(module, None, (X,))
    holder = nn.Module()
    holder.register_buffer("q", torch._make_per_tensor_quantized_tensor(torch.zeros(2, dtype=torch.uint8), 1.0, 0))
    with raises(None, ConfigError, "already-quantized", "q"):
        prepare_fx(holder.eval(), None, (X,))
    import torch.ao.quantization.quantize_fx as oracle
    from torch.ao.quantization import get_default_qconfig_mapping as their_mapping

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = oracle.prepare_fx(small(), their_mapping(), (X,))
        theirs(X)
        with raises(None, ConfigError, "already-prepared"):
            prepare_fx(theirs.eval(), None, (X,))
        with raises(None, ConfigError, "already-quantized"):
            prepare_fx(oracle.convert_fx(theirs).eval(), None, (X,))
    inside = nn.Sequential(nn.Identity(), prepared).eval()
    with raises(None, ConfigError, "already-prepared", "module 1"):
        prepare_fx(inside, None, (X,))


def test_19_convert_what_was_not_prepared() -> None:
    model = small()
    with raises(model, ConfigError, "not-prepared"):
        convert_fx(model)
    module = flow(model, (X,)).module
    with raises(model, ConfigError, "already-converted", hint=False):
        convert_fx(module)
    with raises(None, ConfigError, "not-prepared"):
        convert_fx(fx.symbolic_trace(model))
    with raises(None, ConfigError, "backend"):
        convert_fx(prepare_fx(model, None, (X,)), backend="tpu")


def test_20_train_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4)).train()
    with raises(model, ConfigError, "train-mode", "1 (Dropout)", "2 (BatchNorm1d)", "eval()"):
        prepare_fx(model, None, (randn(2, 4),))
    model.eval()[1].train()
    with raises(model, ConfigError, "train-mode", "1 (Dropout)"):
        fuse_fx(model, (randn(2, 4),))


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool])
def test_25_integer_parameters(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 3)).eval()
    model[0].weight = nn.Parameter(torch.ones(3, 3, dtype=dtype), requires_grad=False)
    with raises(model, ConfigError, "weight-dtype", "0.weight", str(dtype), hint=False):
        prepare_fx(model, None, (randn(2, 3),))
    model = nn.Sequential(nn.Linear(3, 3)).double().eval()
    with raises(model, ConfigError, "weight-dtype", "0.weight"):
        prepare_fx(model, None, (randn(2, 3).double(),))


@pytest.mark.parametrize("model", [3, None, torch.relu, nn.Linear])
def test_no_module(model: Any) -> None:
    with raises(None, ConfigError, "not-a-module", hint=False):
        prepare_fx(model, None, (X,))


# ---- 28-31: shapes and sharing


def test_28_scalars() -> None:
    class Scalars(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.gain = nn.Linear(4, 4), nn.Parameter(torch.tensor(1.5))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            y: Tensor = 1 - self.linear(x) * self.gain + t
            return (2 + y) * 0.5 - 3 / (y.abs() + 1)

    torch.manual_seed(0)
    model, args = Scalars().eval(), (randn(3, 4), torch.tensor(0.5))
    result = flow(model, args)
    with torch.no_grad():
        assert compute_sqnr(model(*args), result.module(*args)) >= 25


def test_29_batch_zero() -> None:
    model, empty = small(), torch.empty(0, 3, 8, 8)
    prepared = prepare_fx(model, None, (X,))
    calibrate(prepared, [empty, X, empty])
    module = convert_fx(prepared)
    assert module(empty).shape == (0, 4, 4, 4)
    assert torch.equal(module(X), flow(model, (X,)).module(X))
    with raises(model, CalibrationError, "not-calibrated"):
        again = prepare_fx(model, None, (X,))
        calibrate(again, [empty])
        convert_fx(again)


def test_30_a_size_that_was_fixed() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] > 2:  # here
                x = x + 1
            result: Tensor = self.linear(x)
            return result

    model = Fixed().eval()
    module = flow(model, (randn(2, 4),)).module
    assert module(randn(1, 4)).shape == (1, 4)
    with pytest.raises(QCompilerError) as caught:
        module(randn(5, 4))
    assert line_of(Fixed.forward, "# here").split(":")[1] in str(caught.value)


def test_31_shared_module() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.conv(self.conv(x) * 100)
            return result

    torch.manual_seed(0)
    model = Shared().eval()
    result = flow(model, (X,))
    assert sum(k.endswith("weight") for k in result.module.state_dict()) == 1
    with torch.no_grad():
        assert compute_sqnr(model(X), result.module(X)) >= 28
        assert compute_sqnr(result.reference(X), result.module(X)) >= 40


# ---- 33, 34: mutation, names


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.conv(x))
        y += 1
        y.clamp_(0, 3)
        y[:, 0] = 0.5
        y.mul_(2)
        return y


def test_33_in_place() -> None:
    torch.manual_seed(0)
    model, x = InPlace().eval(), X.clone()
    result = flow(model, (x,))
    with torch.no_grad():
        wanted = model(x)
        assert torch.allclose(fuse_fx(model, (x,))(x), wanted, atol=1e-5)
        assert compute_sqnr(wanted, result.module(x)) >= 28
    assert torch.equal(x, X)

    class OnInput(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            x[:, 0] = 1
            return F.relu_(x)

    assert torch.equal(flow(OnInput().eval(), (x,)).module(x), OnInput()(x))
    assert torch.equal(x, X)


HOSTILE = [
    "class", "None", "__import__", "__x", "os\nimport os", 'x"', "'", "x\\", "\0", "#", "{x}", " ", "1", "1a", "größe", "\ufb01",
    "\u202e", "x" * 5000, '");exec("import sys\\nsys" + chr(46) + "pwned = 1");("', "x; import os", "a_b", "a-b", "self", "torch",
    "n0_class", "_constant0", "graph", "code", "meta", "lowered", "program", "engine", "observers", "forward_", "weight_scale",
    "activation_scales", "tensors", "recompile",
]  # fmt: skip


class Whole(Branching):
    """A float leaf: its statement needs the module as a whole."""

    def forward(self, x: Tensor) -> Tensor:
        while x.sum() > 8:
            x = self.halved(x)
        result: Tensor = self.linear(x)
        return result

    def halved(self, x: Tensor) -> Tensor:
        return x / 2


class Hostile(nn.Module):
    """A linear, a parameter, a buffer and a float leaf under a name of the table, beside a.b and a plain linear."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.a = nn.Module()
        self.a.b, self.plain = nn.Linear(4, 4), nn.Sequential()
        self.add_module(name, nn.Linear(4, 4))
        self.plain.add_module(name, Whole())
        self.a.register_parameter(name, nn.Parameter(torch.randn(4, 4)))
        self.plain.register_buffer(f"{name}_", torch.randn(4))
        self._name = name

    def forward(self, x: Tensor) -> Tensor:
        x = self._modules[self._name](self.a.b(x))  # type: ignore[misc]
        x = F.linear(x, self.a._parameters[self._name], self.plain._buffers[f"{self._name}_"])  # type: ignore[arg-type]
        return self.plain._modules[self._name](x)  # type: ignore[no-any-return, misc]


def without_comments(code: str) -> str:
    return "\n".join(line.partition("#")[0] if '"' not in line and "'" not in line else "" for line in code.splitlines())


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_34_hostile_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every form of the model keeps the user's names and runs; no text of a name is executed, no code holds one as it is."""
    monkeypatch.setenv("QCOMPILER_DEBUG", str(tmp_path / "dump"))
    torch.manual_seed(0)
    model, x = Hostile(name).eval(), randn(3, 4)
    before = fingerprint(model)
    prepared = prepare_fx(model, None, (x,))
    calibrate(copy.deepcopy(prepared), [x])
    calibrate(prepared, [x])
    module, reference = convert_fx(prepared), convert_to_reference_fx(prepared)
    assert fingerprint(model) == before
    with torch.no_grad():
        wanted = module(x)
        assert compute_sqnr(model(x), wanted) >= 20 and compute_sqnr(reference(x), wanted) >= 30
    leaf = f"plain.{name}"
    expected = {f"{name}.weight", f"{name}.weight_scale", f"a.{name}", f"{leaf}_", f"{leaf}.linear.weight", "a.b.weight"}
    assert expected <= set(module.state_dict()) and module.program.leaves == (leaf,)
    assert {f"{name}.weight", f"a.{name}"} <= set(prepared.state_dict())
    prepared.load_state_dict(prepared.state_dict())
    module.load_state_dict(module.state_dict())
    others = [copy.deepcopy(module), torch.jit.script(module)]
    with pytest.warns(MissingModulesWarning):
        save(module, tmp_path / "model.qc")
    leaves = {leaf: model.get_submodule("plain")._modules[name]}
    others.append(load(tmp_path / "model.qc", leaves))
    path = export_source(module, tmp_path)
    namespace: dict[str, Any] = {"__file__": str(path), "__name__": "exported"}
    exec(compile(path.read_text("utf-8"), str(path), "exec"), namespace)
    others.append(namespace["load"](modules=leaves))
    with torch.no_grad():
        assert all(torch.equal(other(x), wanted) for other in others)
    assert not hasattr(sys, "pwned")
    for gm in (prepared, reference):
        assert "import os" not in gm.code and "größe" not in gm.code
    assert "import os" not in without_comments(module.code) and module.code.isascii()
    assert str(explain(module)) and all(map(str, remarks(prepared)))


class OwnScale(nn.Module):
    """A weight whose scale and zero point, as the model calls two parameters of its own, are applied to the result."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.last = nn.Parameter(torch.randn(8, 4) * 0.3), nn.Linear(8, 3)
        self.weight_scale, self.weight_zero_point = nn.Parameter(torch.linspace(0.5, 2, 8)), nn.Parameter(torch.linspace(-1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(F.linear(x, self.weight).relu() * self.weight_scale + self.weight_zero_point)
        return result


@pytest.mark.parametrize("backend", ["torch", "native", "reference"])
def test_a_name_that_a_scale_would_have_stays_the_users(backend: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = OwnScale().eval(), randn(16, 4)
    prepared = prepare_fx(model, None, (x,), backend=backend)
    calibrate(prepared, [x])
    made = convert_to_reference_fx(prepared) if backend == "reference" else convert_fx(prepared)
    state = made.state_dict()
    assert compute_sqnr(model(x), made(x)) > 30
    assert all(torch.equal(state[f"weight_{part}"], getattr(model, f"weight_{part}")) for part in ("scale", "zero_point"))
    assert state["weight"].dtype is torch.int8 and state["weight_scale_"].dtype is torch.float64
    if backend != "reference":
        (weight,) = (node for node in document_of(made).nodes_at(0) if node.get("params") == 32)
        assert len(weight["q"]["scale"]) == 8
        save(made, tmp_path / "own.qc")
        assert torch.equal(load(tmp_path / "own.qc")(x), made(x))


def test_34_all_hostile_names_at_once() -> None:
    """Names that differ only in what code cannot hold stay apart."""
    model = nn.Sequential()
    names = [*HOSTILE, 'x""', "x'", "n0", "n1_", "class_", "n0_class_"]
    for name in names:
        model.add_module(name, nn.Linear(4, 4))
    torch.manual_seed(0)
    asked = get_default_qconfig_mapping("x86").set_object_type(nn.Linear, get_default_qconfig("x86"))  # so small, they would be float
    module = flow(model.eval(), (randn(3, 4),), mapping=asked).module
    state = module.state_dict()
    for name in names:
        assert state[f"{name}.weight"].dtype is torch.int8, name
        assert torch.equal(state[f"{name}.bias"], model._modules[name].bias), name  # type: ignore[union-attr]


def test_34_unicode_arguments(tmp_path: Path) -> None:
    class Arguments(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, größe: Tensor, *, naïve: Tensor) -> Tensor:
            y: Tensor = self.linear(größe) + naïve
            return y

    model, x = Arguments().eval(), randn(3, 4)
    prepared = prepare_fx(model, None, (x,), example_kwargs={"naïve": x})
    calibrate(prepared, [{"größe": x, "naïve": x}])
    module = convert_fx(prepared)
    wanted = module(x, naïve=x)
    save(module, tmp_path / "model.qc")
    assert torch.equal(load(tmp_path / "model.qc")(größe=x, naïve=x), wanted)
    path = export_source(module, tmp_path)
    namespace: dict[str, Any] = {"__file__": str(path), "__name__": "exported"}
    exec(compile(path.read_bytes(), str(path), "exec"), namespace)
    assert torch.equal(namespace["load"]()(größe=x, naïve=x), wanted)


class Options:
    """Its repr is what an attacker would write."""

    def __repr__(self) -> str:
        return "exec('import sys; sys.pwned = 1')"


class Unspeakable(nn.Module):
    """Calls a float leaf with what cannot be written into code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.linear, self.inner, self.args, self.kwargs = nn.Linear(4, 4), Taker(), args, kwargs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(self.linear(x), *self.args, **self.kwargs)
        return y


class Taker(nn.Module):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.same(x) if x.sum() > 1e9 else x + 1

    def same(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    "model", [Unspeakable(Options()), Unspeakable({Options(): 1}), Unspeakable(**{"a=1);exec('import sys; sys.pwned = 1');(b": 1})]
)
def test_34_arguments_that_are_no_literals(model: nn.Module) -> None:
    """The branch on data behind them is computed both ways, or stays float with what it needs; their text never becomes code."""
    x = randn(3, 4)
    outer = nn.Sequential(nn.Linear(4, 4), model).eval()
    result = flow(outer, (x,))
    with torch.no_grad():
        assert compute_sqnr(outer(x), result.module(x)) >= 25
    kept = [r.where.module_path for r in remarks(result.prepared) if r.code in ("leaf", "float-statement", "data-branch")]
    assert kept and all(path.startswith("1") for path in kept)
    assert not hasattr(sys, "pwned")


# ---- 35, 36: settings


def test_35_qconfig_for_nothing() -> None:
    model = small()
    mapping = get_default_qconfig_mapping().set_module_name("00", None)
    with raises(model, ConfigError, "qconfig-module-name", "'00'", "did you mean 0"):
        prepare_fx(model, mapping, (X,))
    mapping = get_default_qconfig_mapping().set_object_type(nn.LSTM, None).set_module_name_regex("nothing.*", None)
    notes = [r.text for r in remarks(prepare_fx(model, mapping, (X,))) if r.code == "rule-unused"]
    assert len(notes) == 2 and "LSTM" in notes[1] + notes[0] and "nothing.*" in notes[0] + notes[1]
    with raises(model, ConfigError, "rule-unused", "LSTM", "nothing.*"):
        prepare_fx(model, mapping, (X,), strict=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MinMaxObserver(quant_min=0, quant_max=0),
        lambda: MinMaxObserver(quant_min=5, quant_max=1),
        lambda: MinMaxObserver(quant_min=0, quant_max=2**33),
        lambda: MinMaxObserver(dtype=torch.float16),
        lambda: MinMaxObserver(qscheme=torch.per_channel_affine),
        lambda: QConfig(PerChannelMinMaxObserver, default_weight_observer),
        lambda: QConfig(MinMaxObserver.with_args(dtype=torch.int32), default_weight_observer),
        lambda: QConfig(3, 4),
        lambda: QConfigMapping().set_global("int8"),
        lambda: QConfigMapping().set_module_name_regex("(", None),
        lambda: QConfigMapping.from_dict({"modules": []}),
        lambda: get_default_qconfig("tpu"),
    ],
)
def test_36_impossible_qconfig(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError):
        made = make()
        prepare_fx(small(), made, (X,))


def test_36_channel_axis_out_of_range() -> None:
    weight = PerChannelMinMaxObserver.with_args(ch_axis=9, dtype=torch.qint8, qscheme=torch.per_channel_symmetric)
    model = small()
    with raises(model, ConfigError, "channel-axis", "ch_axis=9", "node", "module 0"):
        prepare_fx(model, QConfig(MinMaxObserver, weight), (X,))


# ---- 37, 38: graphs that are hard to quantize


class Mixed(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), kind
        self.last = nn.Conv2d(8 if kind == "cat" else 4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        small, large = torch.sigmoid(self.a(x)), self.b(x) * 50
        result: Tensor = self.last(torch.cat([small, large], 1) if self.kind == "cat" else small + large)
        return result


@pytest.mark.parametrize("kind", ["cat", "add"])
@pytest.mark.parametrize("float_part", [None, "a", "b"])
def test_37_inputs_of_other_ranges(kind: str, float_part: str | None) -> None:
    torch.manual_seed(0)
    model = Mixed(kind).eval()
    mapping = get_default_qconfig_mapping()
    if float_part:
        mapping.set_module_name(float_part, None)
    result = flow(model, (X,), mapping=mapping)
    with torch.no_grad():
        wanted, lowered = model(X), result.module(X)
        assert compute_sqnr(wanted, lowered) >= 30 - BIT
        assert compute_sqnr(result.reference(X), lowered) >= 40 - BIT
    if kind == "cat":
        assert any(r.code == "not-joined" for r in remarks_of(result.prepared, convert=True))


def remarks_of(prepared: fx.GraphModule, convert: bool = False) -> list[Any]:
    return remarks(convert_fx(prepared) if convert else prepared)


class BatchNorms(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.other = kind, nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3)
        self.bn, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.free = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "two":
            return self.second(self.bn(self.conv(x)))  # type: ignore[no-any-return]
        if self.kind == "before":
            return self.conv(self.bn(x))  # type: ignore[no-any-return]
        if self.kind == "no-stats":
            return self.free(self.conv(x))  # type: ignore[no-any-return]
        return self.bn(self.other(x)) + self.bn(self.conv(x))[:, :, 1:-1, 1:-1]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "left"), [("two", 0), ("before", 1), ("no-stats", 0), ("shared", 0)])
def test_38_batch_norms(kind: str, left: int) -> None:
    torch.manual_seed(0)
    model = BatchNorms(kind)
    randomized(model)
    result = flow(model, (X,))
    fused = fuse_fx(model, (X,))
    with torch.no_grad():
        assert torch.allclose(fused(X), model(X), atol=1e-5)
        assert compute_sqnr(model(X), result.module(X)) >= 25
    names = [getattr(n.target, "__name__", n.target) for n in fused.graph.nodes]
    assert names.count("batch_norm") == left
    if kind == "no-stats":
        assert any("statistics" in r.text and r.where.module_path == "free" for r in remarks(result.prepared))


# ---- 39: graphs edited by hand


def test_39_invalid_graphs() -> None:
    gm = fx.GraphModule(nn.Module(), fx.Graph())
    with raises(None, ConfigError, "invalid-ir", "one output", hint=False):
        verify(gm, Stage.TRACED)
    graph = fx.Graph()
    x = graph.placeholder("x")
    a = graph.call_function(torch.relu, (x,))
    b = graph.call_function(operator.add, (a, x))
    graph.output(b)
    a.args = (b,)  # a cycle
    gm = fx.GraphModule(nn.Module(), graph)
    with raises(None, ConfigError, "invalid-ir", "used before it is computed", "node", hint=False):
        verify(gm, Stage.TRACED)
    graph = fx.Graph()
    graph.output(graph.call_function(torch.relu, (graph.placeholder("x"),)))
    with graph.inserting_before(next(iter(graph.nodes))):
        graph.create_node("get_attr", "missing.weight")
    with raises(None, ConfigError, "invalid-ir", "missing.weight does not exist", hint=False):
        verify(_bare(graph), Stage.TRACED)


def _bare(graph: fx.Graph) -> fx.GraphModule:
    gm = fx.GraphModule(nn.Module(), fx.Graph())
    gm.graph = graph
    return gm


def test_39_an_edited_prepared_graph() -> None:
    prepared = prepare_fx(small(), None, (X,))
    calibrate(prepared, [X])
    node = next(n for n in prepared.graph.nodes if n.op == "call_function")
    last = next(n for n in reversed(prepared.graph.nodes) if n.op == "call_function")
    node.args = (last, *node.args[1:])
    with raises(None, ConfigError, "invalid-ir", "before it is computed", hint=False):
        convert_fx(prepared)


def test_39_calls_that_cannot_be_made() -> None:
    prepared = prepare_fx(small(), None, (X,))
    calibrate(prepared, [X])
    broken = copy.deepcopy(prepared)
    node = next(n for n in broken.graph.nodes if n.op == "call_function")
    node.args = (None, *node.args[1:])
    with raises(None, ConfigError, "invalid-ir", "node _0", "module 0", "conv2d", hint=False):
        convert_fx(broken)
    node.target = "bogus"
    with raises(None, ConfigError, "invalid-ir", hint=False):
        convert_fx(broken)
    del prepared.observers
    with raises(None, ConfigError, "invalid-ir", "observers", hint=False):
        calibrate(prepared, [X])


def test_every_error_is_a_qcompiler_error() -> None:
    assert issubclass(TraceError, qcompiler.QCompilerError)
