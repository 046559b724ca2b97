"""quantize_dynamic: modules swapped for forms with quantized weights, in one call and without data."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from qcompiler.ambient import in_plain_torch
from qcompiler.artifact.notes import REMARKS
from qcompiler.compile.journal import Remark
from qcompiler.config.qconfig import (
    QConfig,
    as_qconfig,
    default_dynamic_qconfig,
    float16_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    float_qparams_weight_only_qconfig_4bit,
)
from qcompiler.debug.explain import Explanation, Row
from qcompiler.errors import ConfigError, QCompilerWarning, Where
from qcompiler.executable.noted import ROWS
from qcompiler.inputs.checks import MARK
from qcompiler.inputs.door import door
from qcompiler.inputs.kinds import check_kinds, module_of
from qcompiler.inputs.near_names import no_module
from qcompiler.ir.check_state import guard_loading
from qcompiler.nn.quantized import Embedding, QuantizedModule
from qcompiler.nn.quantized.dynamic import DynamicModule
from qcompiler.ops.table import OPS
from qcompiler.quantization.observation import name_modules_
from qcompiler.quantization.quantization_mappings import get_default_dynamic_quant_module_mappings
from qcompiler.quantization.swap import swap_all, swap_module

__all__ = ["UnusedRequestWarning", "quantize_dynamic"]

Key = str | type[nn.Module]
LAYERS = (nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.RNNCell, nn.GRUCell)
TABLES = (nn.Embedding, nn.EmbeddingBag)
DEFAULTS: dict[torch.dtype, tuple[tuple[type[nn.Module], ...], QConfig]] = {
    torch.qint8: (LAYERS, default_dynamic_qconfig),
    torch.int8: (LAYERS, default_dynamic_qconfig),
    torch.float16: (LAYERS, float16_dynamic_qconfig),
    torch.quint8: (TABLES, float_qparams_weight_only_qconfig),
    torch.uint8: (TABLES, float_qparams_weight_only_qconfig),
    torch.quint4x2: (TABLES, float_qparams_weight_only_qconfig_4bit),
}


class UnusedRequestWarning(QCompilerWarning):
    """Types or names that quantize_dynamic was asked for and did nothing about. `names`: which."""

    def __init__(self, message: str, names: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.names = names


@in_plain_torch
@door
def quantize_dynamic(
    model: nn.Module,
    qconfig_spec: Mapping[object, object] | Collection[object] | None = None,
    dtype: torch.dtype = torch.qint8,
    mapping: Mapping[object, object] | None = None,
    inplace: bool = False,
) -> nn.Module:
    """The model with its Linear, LSTM, GRU and cell modules (or those asked for) on int8 or float16 weights. Needs no data.

    `qconfig_spec`: a set of classes and names of submodules, or a dict from these to qconfigs (None: stays float); a rule for a
    module holds for all inside it that has no rule of its own. A module's own `.qconfig` goes before a rule for its class. `dtype`:
    qint8, float16, quint8 or quint4x2 (the latter two for embeddings); unused where `qconfig_spec` is a dict. `mapping`: class ->
    class with `from_float`. A module under two names stays one module. The model's own `__class__` and hooks stay.
    Warns with UnusedRequestWarning of what was asked for and did nothing. Raises ConfigError for unknown names and dtypes.
    """
    model = module_of(model)
    check_kinds(model)
    if getattr(model, MARK, None) == "prepared":
        raise ConfigError("this model is prepared for calibration", code="already-prepared", hint="quantize_dynamic takes the float model")
    spec = _spec(qconfig_spec, dtype)
    _check_keys(model, spec)
    model = model if inplace else copy.deepcopy(model)
    name_modules_(model)
    table = get_default_dynamic_quant_module_mappings() if mapping is None else mapping
    work = _Work(spec, table, explicit=qconfig_spec is not None)
    work.visit(model, "", None)
    model = swap_all(model, work.swap, (nn.MultiheadAttention,))
    _leave_fast_paths(model)
    work.report(model)
    guard_loading(model)
    return model


def _spec(given: object, dtype: torch.dtype) -> dict[object, QConfig | None]:
    if isinstance(given, Mapping):
        return {key: as_qconfig(value) for key, value in given.items()}
    if dtype not in DEFAULTS:
        known = ", ".join(map(str, dict.fromkeys(d for d in DEFAULTS if "q" in str(d) or d is torch.float16)))
        raise ConfigError(f"no default qconfig for dtype={dtype}", code="weight-dtype", hint=f"one of {known}, or a dict of qconfigs")
    classes, qconfig = DEFAULTS[dtype]
    if given is not None and (isinstance(given, str | type) or not isinstance(given, Collection)):
        raise ConfigError(f"qconfig_spec is a set of classes and names, or a dict, not {given!r:.80}", code="qconfig-spec",
                          hint=f"{{{getattr(given, '__name__', repr(given))}}}")  # fmt: skip
    return dict.fromkeys(classes if given is None else given, qconfig)


def _check_keys(model: nn.Module, spec: Mapping[object, object]) -> None:
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for key in spec:
        if isinstance(key, str) and key not in names:
            raise no_module(key, names, "qconfig-module-name")
        if not isinstance(key, str) and not (isinstance(key, type) and issubclass(key, nn.Module)):
            raise ConfigError(f"qconfig_spec has {key!r:.80}, which is neither a name nor a module class", code="qconfig-spec")


@dataclass
class _Work:
    """One call: which rule each module has, what became of it."""

    spec: Mapping[Any, QConfig | None]
    table: Mapping[Any, Any]
    explicit: bool  # the user named what to quantize
    rules: dict[int, tuple[Key, QConfig | None]] = field(default_factory=dict)
    paths: dict[int, str] = field(default_factory=dict)
    used: set[Key] = field(default_factory=set)
    kept: dict[str, str] = field(default_factory=dict)  # path -> why it stays float
    rows: list[Row] = field(default_factory=list)

    def visit(self, module: nn.Module, path: str, outer: tuple[Key, QConfig | None] | None) -> None:
        """Finds the rule of a module and of those inside it; by the first of its names, where it has several."""
        cls = type_before_parametrizations(module)
        key = next((k for k in (path, cls) if k in self.spec), None)
        if "qconfig" in module.__dict__ and not isinstance(key, str):  # None: it stays float
            rule: tuple[Key, QConfig | None] | None = (cls, as_qconfig(module.qconfig))
        else:
            rule = (key, self.spec[key]) if key is not None else outer
        first = id(module) not in self.paths
        if rule is not None and (first or id(module) not in self.rules):
            self.rules[id(module)] = rule
        self.paths.setdefault(id(module), path)
        if first and not isinstance(module, nn.MultiheadAttention):
            for name, child in module._modules.items():
                if child is not None:
                    self.visit(child, f"{path}.{name}" if path else name, rule)
        elif isinstance(module, nn.MultiheadAttention) and rule is not None and rule[1] is not None:
            self.kept[path] = "nn.MultiheadAttention reads the weights of its projections itself; prepare_fx quantizes them"

    def swap(self, module: nn.Module) -> nn.Module:
        key, qconfig = self.rules.get(id(module), (None, None))
        cls = type_before_parametrizations(module)
        if qconfig is None:
            if key is not None:
                self.used.add(key)  # to keep a part float is something done
            return module
        if cls not in self.table:
            return module
        path = self.paths[id(module)]
        reason = _refusal(module)
        if reason is not None:
            self.kept[path] = reason
            return module
        held = {key: value for key, value in vars(module).items() if key == "qconfig"}
        module.qconfig = qconfig  # type: ignore[assignment]
        try:
            made = swap_module(module, self.table)
        finally:
            del module.qconfig
            vars(module).update(held)
        if made is not module and key is not None:
            self.used.add(key)
            self.rows.append(_row(path, module, made))
        return made

    def report(self, model: nn.Module) -> None:
        """explain() and remarks() of the result, and one warning for all requests without effect."""
        setattr(model, ROWS, Explanation(tuple(sorted(self.rows, key=lambda row: row.node))).to_data())
        notes = [Remark("quantize_dynamic", "kept-float", f"{path or 'the model'} stays float: {reason}", Where(module_path=path), None)
                 for path, reason in self.kept.items()]  # fmt: skip
        setattr(model, REMARKS, [note.to_data() for note in notes])
        unused = [key for key in self.spec if key not in self.used] if self.explicit else []
        if not self.explicit and not self.used:
            unused = list(self.spec)
        if unused or self.kept:
            names = tuple(_named(key) for key in unused) + tuple(self.kept)
            lines = [f"{_named(key)}: {self._why(key, model)}" for key in unused] + [f"{path}: {why}" for path, why in self.kept.items()]
            warnings.warn(UnusedRequestWarning("quantize_dynamic left as it was: " + "; ".join(lines), names), stacklevel=4)

    def _why(self, key: Key, model: nn.Module) -> str:
        if isinstance(key, str):
            inside = model.get_submodule(key)
            if any(isinstance(m, QuantizedModule) for m in inside.modules()):
                return "it is quantized already"
            return f"neither this {type(inside).__name__} nor anything in it has a dynamic form"
        if any(isinstance(m, QuantizedModule) and key in _replaced(m) for m in model.modules()):
            return "all of that class are quantized already"
        if key not in self.table:
            return "no dynamic form is known for that class"
        return "no module of that class is in the model" if not any(type(m) is key for m in model.modules()) else "all of them stay float"


def _replaced(module: nn.Module) -> tuple[object, ...]:
    found: Any = getattr(type(module), "_FLOAT_MODULE", None)
    return found if isinstance(found, tuple) else (found,)


def _refusal(module: nn.Module) -> str | None:
    """Why a module that was asked for has no dynamic form."""
    if getattr(module, "proj_size", 0) or getattr(module, "max_norm", None) is not None:
        form = OPS.module_form(module)
        return form[1].refuse(module) if form is not None else None
    return None


def _named(key: Key) -> str:
    return key or "(the model)" if isinstance(key, str) else key.__name__


def _row(path: str, old: nn.Module, new: nn.Module) -> Row:
    form = OPS.module_form(old)
    kind = form[0].name if form is not None else type(old).__name__
    return Row(path, kind, path, "", _is_int8(new), "", 0, False, _mode(new))


def _is_int8(module: nn.Module) -> bool:
    return isinstance(module, DynamicModule) and not module._is_half and not hasattr(module, "transposed")


def _mode(module: nn.Module) -> str:
    if isinstance(module, Embedding):
        return f"{module.bits}-bit weights"
    if not isinstance(module, DynamicModule):
        return "int8 dynamic"
    return "float16 weights" if module._is_half else "8-bit weights" if hasattr(module, "transposed") else "int8 dynamic"


def _leave_fast_paths(model: nn.Module) -> None:
    """nn.TransformerEncoderLayer has a fused path in eval mode that reads the weights of its linears: those with swapped ones leave it."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(isinstance(m, DynamicModule) for m in module.children()):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, DynamicModule) for m in module.modules()):
            module.use_nested_tensor = False
