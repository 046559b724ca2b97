"""A value of the wrong kind at every argument of every public function: an error of this package's, or it works."""

from __future__ import annotations

import copy
import importlib
import inspect
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler import quantization
from qcompiler.choices import Options
from qcompiler.errors import ConfigError, QCompilerError

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None, "a number": lambda: 3, "a text": lambda: "x", "an object": object, "a list": list, "a dict": dict,
    "numbers": lambda: [1, 2], "a tensor": lambda: torch.ones(2), "a class": lambda: int, "an iterator": lambda: iter(range(2)),
    "a path": lambda: Path("/no/such/place"), "bytes": lambda: b"\0", "a module": nn.ReLU, "a fraction": lambda: 0.5, "True": lambda: True,
}  # fmt: skip
CALLABLES = ("metric", "tell", "run_fn", "fuser_func", "logger_cls", "run_args")
CALLED = {"a class", "a module"}  # in the place of a function of the user's: what they raise is theirs


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


class Eager(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.net, self.dequant = quantization.QuantStub(), net(), quantization.DeQuantStub()
        self.qconfig = quantization.default_qconfig

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.dequant(self.net(self.quant(x)))
        return result


@dataclass
class Given:
    """What the calls begin with."""

    fresh: Any
    prepared: Any
    converted: Any
    trained: Any
    eager: Any
    watched: Any
    quantized: Any


@cache
def given() -> Given:
    fresh = qcompiler.prepare_fx(net(), None, (X,))
    prepared = copy.deepcopy(fresh)
    qcompiler.calibrate(prepared, [X])
    watched = quantization.prepare(Eager().eval())
    watched(X)
    trained = qcompiler.prepare_qat_fx(net().train(), None, (X,))
    return Given(fresh, prepared, qcompiler.convert_fx(prepared), trained, Eager().eval(), watched, quantization.convert(watched))


@cache
def native() -> Any:
    return qcompiler.quantize(net(), [X], progress=False, backend="native")


def trains() -> nn.Module:
    return Eager().train()


Q, N = "quantization.", "quantization.numeric_suite."
CALLS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "autotune": lambda p: {"model": net(), "data": [X, X], "seconds": 0.01, "progress": False},
    "bench": lambda p: {"model": net(), "data": [X], "rounds": 1, "warmup": 0, "backends": ["torch"], "scripted": False},
    "calibrate": lambda p: {"prepared": copy.deepcopy(given().fresh), "data": [X]},
    "convert_fx": lambda p: {"prepared": given().prepared},
    "convert_to_reference_fx": lambda p: {"prepared": given().prepared},
    "explain": lambda p: {"model": given().converted},
    "export_c": lambda p: {"module": native(), "folder": p / "c"},
    "export_onnx": lambda p: {"module": given().prepared, "path": p / "m.onnx"},
    "export_program": lambda p: {"module": given().prepared},
    "export_source": lambda p: {"module": given().converted, "directory": p / "source"},
    "fuse_fx": lambda p: {"model": net(), "example_inputs": (X,)},
    "get_default_qconfig": lambda p: {},
    "get_default_qat_qconfig": lambda p: {},
    "get_default_qconfig_mapping": lambda p: {},
    "get_default_qat_qconfig_mapping": lambda p: {},
    "load": lambda p: {"path": saved(p)},
    "native_plan": lambda p: {"module": native()},
    "native_times": lambda p: {"module": native(), "*": X, "repeat": 1},
    "prepare_fx": lambda p: {"model": net(), "example_inputs": (X,)},
    "prepare_qat_fx": lambda p: {"model": net().train(), "example_inputs": (X,)},
    "quantize": lambda p: {"model": net(), "calibration_data": [X], "progress": False},
    "remarks": lambda p: {"model": given().converted},
    "save": lambda p: {"module": given().converted, "path": p / "n.qc"},
    "scales": lambda p: {"model": given().converted},
    "debug.bisect": lambda p: {"model": net(), "inputs": [X]},
    "debug.compare": lambda p: {"float_model": net(), "quantized": given().converted, "data": [X]},
    "debug.compute_cosine_similarity": lambda p: {"reference": X, "value": X},
    "debug.compute_normalized_l2_error": lambda p: {"reference": X, "value": X},
    "debug.compute_sqnr": lambda p: {"reference": X, "value": X},
    "debug.document_of": lambda p: {"source": given().converted},
    "debug.gated": lambda p: {"gate": None},
    "debug.parity": lambda p: {"prepared": given().trained, "converted": given().converted, "data": [X]},
    "tune.correct_bias": lambda p: {"prepared": given().prepared, "batches": [X]},
    "tune.equalize": lambda p: {"prepared": given().prepared, "batches": [X]},
    "tune.scale_inputs": lambda p: {"prepared": given().prepared, "batches": [X]},
    "tune.fit_ranges": lambda p: {"prepared": given().prepared, "batches": [X]},
    "tune.reconstruct": lambda p: {"prepared": given().prepared, "batches": [X]},
    "tune.sharing": lambda p: {"group": None},
    "viz.print": lambda p: {"model": given().converted},
    "viz.save": lambda p: {"source": given().converted, "path": p / "graph.html"},
    "viz.show": lambda p: {"model": given().converted},
    "backends.backend_of": lambda p: {"name": "torch"},
    f"{Q}add_observer_": lambda p: {"module": Eager().eval()},
    f"{Q}add_quant_dequant": lambda p: {"module": Eager().eval()},
    f"{Q}convert": lambda p: {"module": given().watched},
    f"{Q}default_eval_fn": lambda p: {"model": net(), "calib_data": [(X, X)]},
    f"{Q}disable_fake_quant": lambda p: {"module": given().trained},
    f"{Q}disable_observer": lambda p: {"module": given().trained},
    f"{Q}enable_fake_quant": lambda p: {"module": given().trained},
    f"{Q}enable_observer": lambda p: {"module": given().trained},
    f"{Q}fuse_modules": lambda p: {"model": net(), "modules_to_fuse": [["0", "1"]]},
    f"{Q}fuse_modules_qat": lambda p: {"model": net().train(), "modules_to_fuse": [["0", "1"]]},
    f"{Q}get_observer_dict": lambda p: {"mod": given().watched, "target_dict": {}},
    f"{Q}get_observer_state_dict": lambda p: {"model": given().watched},
    f"{Q}load_observer_state_dict": lambda p: {
        "model": copy.deepcopy(given().watched), "state": quantization.get_observer_state_dict(given().watched)},
    f"{Q}prepare": lambda p: {"model": given().eager},
    f"{Q}prepare_qat": lambda p: {"model": trains()},
    f"{Q}propagate_qconfig_": lambda p: {"module": Eager().eval()},
    f"{Q}qconfig_equals": lambda p: {"first": quantization.default_qconfig, "second": None},
    f"{Q}quantize": lambda p: {"model": given().eager, "run_fn": quantization.default_eval_fn, "run_args": [[(X, X)]]},
    f"{Q}quantize_dynamic": lambda p: {"model": net()},
    f"{Q}quantize_qat": lambda p: {"model": trains(), "run_fn": quantization.default_eval_fn, "run_args": [[(X, X)]]},
    f"{Q}swap_module": lambda p: {"mod": nn.ReLU(), "mapping": {}},
    f"{N}compare_model_outputs": lambda p: {"float_model": Eager().eval(), "q_model": copy.deepcopy(given().quantized), "*": X},
    f"{N}compare_weights": lambda p: {"float_dict": given().eager.state_dict(), "quantized_dict": given().quantized.state_dict()},
    f"{N}get_logger_dict": lambda p: {"mod": given().eager},
    f"{N}get_matching_activations": lambda p: {"float_module": Eager().eval(), "q_module": copy.deepcopy(given().quantized)},
    f"{N}prepare_model_outputs": lambda p: {"float_module": Eager().eval(), "q_module": copy.deepcopy(given().quantized)},
}  # fmt: skip


def saved(folder: Path) -> Path:
    qcompiler.save(given().converted, folder / "m.qc")
    return folder / "m.qc"


def function_of(name: str) -> Callable[..., Any]:
    module, _, attribute = name.rpartition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(f"qcompiler.{module}".rstrip(".")), attribute)
    return found


def arguments_of(name: str) -> Iterator[str]:
    """The arguments by name, with those behind the `**options` of one function; none that go to the user's model."""
    for argument, parameter in inspect.signature(function_of(name)).parameters.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            yield argument
        elif parameter.kind is parameter.VAR_KEYWORD and name == "quantize":
            yield from (*Options.__annotations__, "passes", "backend", "example_kwargs")


def called(name: str, arguments: dict[str, Any]) -> None:
    """The call of a function; "*" is what stands behind its positional arguments."""
    function = function_of(name)
    names = list(inspect.signature(function).parameters)
    before = names[: names.index(next(n for n in names if n in ("data", "args")))] if "*" in arguments else ()
    function(*(arguments.pop(n) for n in before), *((arguments.pop("*"),) if before else ()), **arguments)


def raw(name: str, argument: str, folder: Path) -> Iterator[str]:
    """What a function raises that is no error of this package, with each wrong value of an argument."""
    for text, value in WRONG.items():
        if (argument in CALLABLES or name == f"{Q}default_eval_fn") and text in CALLED:
            continue
        try:
            called(name, CALLS[name](folder) | {argument: value()})
        except QCompilerError:
            continue
        except Exception as error:
            yield f"{name}({argument}={text}): {type(error).__name__}: {error!s:.100}"


@pytest.mark.parametrize("room", ["", "debug.", "tune.", "viz."])
def test_every_function_is_tried(room: str) -> None:
    module = importlib.import_module(f"qcompiler.{room}".rstrip("."))
    functions = {f"{room}{name}" for name in module.__all__ if inspect.isfunction(getattr(module, name))}
    assert functions <= set(CALLS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_wrong_kinds_are_errors_of_ours(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in ("export_c", "native_plan", "native_times") and shutil.which("cc") is None:
        pytest.skip("no C compiler")
    monkeypatch.chdir(tmp_path)
    found = [text for argument in arguments_of(name) for text in raw(name, argument, tmp_path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", ["quantize", "quantize_qat"])
@pytest.mark.parametrize("count", [0, 2])
def test_a_run_that_cannot_be_called_is_refused_before_anything_changes(name: str, count: int) -> None:
    model = Eager().train(name == "quantize_qat")
    before = str(model)
    with pytest.raises(ConfigError, match=f"default_eval_fn cannot be called with the model and the {count} run_args"):
        getattr(quantization, name)(model, quantization.default_eval_fn, [[(X, X)]] * count, inplace=True)
    assert str(model) == before and model.training == (name == "quantize_qat")
