"""The flow of hand-prepared models: prepare -> calibrate -> convert, or prepare_qat -> train -> convert. Modules are swapped one by one.

The model says itself where it is quantized (QuantStub, DeQuantStub), what is fused (`fuse_modules`) and which operations have
qparams (FloatFunctional). `qcompiler.prepare_fx` needs none of that.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn

from qcompiler.ambient import in_plain_torch
from qcompiler.errors import CalibrationError, ConfigError, InputError, Where
from qcompiler.inputs.batches import check_data
from qcompiler.inputs.checks import MARK
from qcompiler.inputs.door import door
from qcompiler.inputs.kinds import check_kinds, module_of
from qcompiler.ir.check_state import guard_loading
from qcompiler.nn.intrinsic import FusedModule
from qcompiler.nn.place import PATH
from qcompiler.nn.quantized import FloatFunctional
from qcompiler.quantization.call_errors import explain_calls_
from qcompiler.quantization.check_model import (
    HOW_TO_STUB,
    check_convert,
    check_no_training,
    check_qconfigs,
    check_stage,
    check_weights,
    has_stub,
)
from qcompiler.quantization.foreign import adopt_
from qcompiler.quantization.fused_into import FusedInto, name_places_, relink, unlink_
from qcompiler.quantization.fuser_method_mappings import without_batch_norm
from qcompiler.quantization.observation import add_observer_, get_observer_dict, name_modules_, observers_of, remove_observers_
from qcompiler.quantization.propagation import add_quant_dequant, check_keys, propagate_qconfig_
from qcompiler.quantization.quantization_mappings import (
    get_default_custom_config_dict,
    get_default_qat_module_mappings,
    get_default_static_quant_module_mappings,
)
from qcompiler.quantization.quantize_dynamic import quantize_dynamic
from qcompiler.quantization.ranges import check_trained, hold_batches, keep_depthwise_safe, reduce_where_needed
from qcompiler.quantization.report import Report, leaves_of
from qcompiler.quantization.swap import swap_all, swap_module

__all__ = [
    "add_observer_", "add_quant_dequant", "convert", "default_eval_fn", "get_default_custom_config_dict", "get_observer_dict", "prepare",
    "prepare_qat", "propagate_qconfig_", "quantize", "quantize_dynamic", "quantize_qat", "swap_module",
]  # fmt: skip


@in_plain_torch
@door
def prepare(
    model: nn.Module,
    inplace: bool = False,
    allow_list: Collection[type] | None = None,
    observer_non_leaf_module_list: Collection[type] | None = None,
    prepare_custom_config_dict: Mapping[str, object] | None = None,
) -> nn.Module:
    """The model with observers on the results of what has a qconfig; call it with calibration data, then `convert` it.

    `inplace`: change `model` itself, else a copy. `allow_list`: the classes to quantize (default: all that have an int8 form).
    `observer_non_leaf_module_list`: containers whose result is observed as well. `prepare_custom_config_dict`:
    {"float_to_observed_custom_module_class": {Mine: ObservedMine}}, where ObservedMine has `from_float(mine)`; also
    "non_traceable_module_name", "non_traceable_module_class": parts to leave alone.
    NaN and inf in calibration data raise CalibrationError naming the module. Raises ConfigError for a model that is prepared or
    converted already, that has no qconfig anywhere, or that has BatchNorm or Dropout in train mode.
    """
    model = module_of(model)
    check_stage(model)
    check_no_training(model)
    model = model if inplace else copy.deepcopy(model)
    model = _prepare(model, allow_list, observer_non_leaf_module_list, prepare_custom_config_dict)
    explain_calls_(model)
    return model


@in_plain_torch
@door
def prepare_qat(model: nn.Module, mapping: Mapping[Any, Any] | None = None, inplace: bool = False, *, isa: str | None = None) -> nn.Module:
    """The model with fake quantization of weights and activations, to be trained, then `convert(model.eval())`.

    `mapping`: float class -> class to train in its place (default: those of qcompiler.nn.qat). `isa`: the instruction set that
    the result will run on (default: this machine's); it decides on 7 or 8 bits where the qconfig leaves that open, and on the smallest
    scales of depthwise weights.
    Raises ConfigError in eval mode, and as `prepare` does.
    """
    model = module_of(model)
    check_stage(model)
    if not model.training:
        raise ConfigError("prepare_qat needs a model in train mode", code="eval-mode", hint="call model.train() first")
    model = model if inplace else copy.deepcopy(model)
    table = get_default_qat_module_mappings() if mapping is None else mapping
    adopt_(model)
    name_modules_(model)
    propagate_qconfig_(model)
    model = swap_all(model, lambda module: swap_module(module, table))
    model = _prepare(model, None, set(table.values()), None)
    reduce_where_needed(model, isa)
    hold_batches(model)
    keep_depthwise_safe(model, isa)
    return model


def _prepare(
    model: nn.Module, allow_list: Collection[type] | None, whole: Collection[type] | None, custom: Mapping[str, Any] | None
) -> nn.Module:
    adopt_(model)
    if not model.training:
        model = swap_all(model, _folded)
    name_modules_(model)
    name_places_(model)
    propagate_qconfig_(model, prepare_custom_config_dict=custom)
    check_qconfigs(model)
    check_weights(model)
    classes = (custom or get_default_custom_config_dict()).get("float_to_observed_custom_module_class", {})
    add_observer_(model, allow_list, whole, custom_module_class_mapping=classes)
    name_modules_(model)
    guard_loading(model)
    setattr(model, MARK, "prepared")
    return model


def _folded(module: nn.Module) -> nn.Module:
    """Containers that were fused for training, in a model that does not train."""
    made = without_batch_norm(module)
    if made is not module:
        relink(module, made)
        for after in module._forward_hooks.values():
            made.register_forward_hook(after)
        if hasattr(module, "qconfig"):
            made.qconfig = module.qconfig
    return made


@in_plain_torch
@door
def convert(
    module: nn.Module,
    mapping: Mapping[Any, Any] | None = None,
    inplace: bool = False,
    remove_qconfig: bool = True,
    is_reference: bool = False,
    convert_custom_config_dict: Mapping[str, Any] | None = None,
    use_precomputed_fake_quant: bool = False,
    *,
    allow_uncalibrated: str = "error",
    isa: str | None = None,
) -> nn.Module:
    """The int8 form of a prepared and calibrated (or trained) model, packed for torch.backends.quantized.engine.

    `mapping`: class -> quantized class (default: those of qcompiler.nn.quantized). `convert_custom_config_dict`:
    {"observed_to_quantized_custom_module_class": {ObservedMine: QuantizedMine}}, with `QuantizedMine.from_observed(observed)`.
    `remove_qconfig`: take `.qconfig` off again. `allow_uncalibrated="float"` keeps modules float that no data reached. `isa`: the
    instruction set to run on (default: this machine's). `qcompiler.remarks` and `explain` tell of the result what stayed float and why.
    Raises CalibrationError naming the modules whose observers saw no data, ConfigError for a model that was not prepared.
    """
    module = module_of(module)
    check_convert(module, is_reference, allow_uncalibrated, mapping)
    model = module if inplace else copy.deepcopy(module)
    table = get_default_static_quant_module_mappings() if mapping is None else mapping
    check_keys(convert_custom_config_dict or {})
    custom = (convert_custom_config_dict or get_default_custom_config_dict()).get("observed_to_quantized_custom_module_class", {})
    name_modules_(model)
    empty = _uncalibrated(model, table, allow_uncalibrated)
    check_trained(model, isa)
    reduce_where_needed(model, isa)
    model = _swapped(model, table, custom, empty, use_precomputed_fake_quant)
    _clean(model, remove_qconfig)
    explain_calls_(model)
    guard_loading(model)
    setattr(model, MARK, "converted")
    return model


def _uncalibrated(model: nn.Module, table: Mapping[Any, Any], allow: str) -> set[int]:
    """The ids of the modules to be kept float for want of data. Raises CalibrationError where that is not allowed.

    A FloatFunctional that nothing calls is no error: its int8 form says so if it is ever called.
    """
    watched = [(path, module, observer) for path, module, observer in observers_of(model) if getattr(observer, "measures", False)]
    empty = [(path, module) for path, module, observer in watched if not observer.observed]
    if empty and len(empty) == len(watched):
        stub = "" if has_stub(model) else f"; the model has no QuantStub either. {HOW_TO_STUB}"
        raise CalibrationError(f"0 of {len(watched)} observers saw data", code="not-calibrated",
                               hint=f"call the model that prepare returned with calibration data before convert{stub}")  # fmt: skip
    missing = [(path, module) for path, module in empty if not isinstance(module, FloatFunctional)]
    if missing and allow != "float":
        names = ", ".join(path for path, _ in missing[:20])
        raise CalibrationError(f"{len(missing)} of {len(watched)} observers saw no data: {names}", code="partly-calibrated",
                               where=Where(module_path=missing[0][0]),
                               hint='calibrate with data that reaches these modules, set their qconfig to None, or pass '
                                    'allow_uncalibrated="float" to keep them float')  # fmt: skip
    return {id(module) for _, module in missing}


def _swapped(model: nn.Module, table: Mapping[Any, Any], custom: Mapping[Any, Any], empty: set[int], precomputed: bool) -> nn.Module:
    """All modules swapped; the report hangs on the result."""
    whole = tuple(custom)
    leaves, observers = leaves_of(model, (FusedModule, *whole, *table)), list(observers_of(model))
    made: dict[int, nn.Module] = {}

    def swap(module: nn.Module) -> nn.Module:
        if isinstance(module, FusedInto):
            return nn.Identity().train(module.training)
        if id(module) in empty:
            return module
        made[id(module)] = swap_module(module, table, custom, precomputed)
        return made[id(module)]

    result = swap_all(model, swap, whole)
    report = Report()
    for path, leaf in leaves:
        report.note(path, leaf, made.get(id(leaf), leaf), id(leaf) in empty)
    report.note_cuts(observers)
    report.attach(result)
    return result


def _clean(model: nn.Module, remove_qconfig: bool) -> None:
    remove_observers_(model)
    for module in model.modules():
        unlink_(module)
        if module.__dict__.get(PATH) is not None and not _keeps_path(module):
            delattr(module, PATH)
        if remove_qconfig and "qconfig" in module.__dict__:
            del module.qconfig
        if getattr(module, MARK, None) == "prepared":
            delattr(module, MARK)


def _keeps_path(module: nn.Module) -> bool:
    return type(module).__module__.startswith("qcompiler.nn.")


def _check_run(run_fn: Callable[..., object], run_args: Sequence[object]) -> None:
    """Raises ConfigError where `run_fn(model, *run_args)` cannot be called, before anything is changed."""
    try:
        inspect.signature(run_fn).bind(None, *run_args)
    except ValueError:  # a builtin, whose signature Python does not know
        return
    except TypeError as error:
        name = getattr(run_fn, "__name__", type(run_fn).__name__)
        raise ConfigError(f"{name} cannot be called with the model and the {len(run_args)} run_args: {error}", code="argument",
                          hint="run_args holds what stands behind the model in the call of run_fn, such as [data]") from error  # fmt: skip


@in_plain_torch
@door
def quantize(
    model: nn.Module,
    run_fn: Callable[..., object],
    run_args: Sequence[object],
    mapping: Mapping[object, object] | None = None,
    inplace: bool = False,
) -> nn.Module:
    """prepare, `run_fn(prepared, *run_args)` to calibrate, convert. The model is put into eval mode; see `prepare` and `convert`."""
    check_kinds(module_of(model))
    _check_run(run_fn, run_args)
    model = (module_of(model) if inplace else copy.deepcopy(module_of(model))).eval()
    prepared = prepare(model, inplace=True)
    run_fn(prepared, *run_args)
    return convert(prepared, mapping, inplace=True)


@door
def quantize_qat(model: nn.Module, run_fn: Callable[..., object], run_args: Sequence[object], inplace: bool = False) -> nn.Module:
    """prepare_qat, `run_fn(prepared, *run_args)` to train, convert; the result is in eval mode."""
    check_kinds(module_of(model))
    _check_run(run_fn, run_args)
    model = (module_of(model) if inplace else copy.deepcopy(module_of(model))).train()
    prepared = prepare_qat(model, inplace=True)
    run_fn(prepared, *run_args)
    return convert(prepared.eval(), inplace=True)


@in_plain_torch
@door
def default_eval_fn(model: nn.Module, calib_data: Any) -> None:
    """Runs the model on the inputs of (input, target) pairs: a `run_fn` for `quantize`."""
    if not callable(model):
        module_of(model)  # raises
    check_data(calib_data)
    for pair in calib_data:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InputError(f"calib_data has pairs of input and target, got a {type(pair).__name__}", code="calibration-data")
        model(pair[0])
