"""Which class takes the place of which: the tables that prepare_qat, convert and quantize_dynamic swap modules by.

The tables are read off the classes: `_FLOAT_MODULE` (a class or several) names what a quantized or trained module replaces,
`_QAT_MODULE` the trained form of it, `_OBSERVED_MODULE` a form that holds its own observers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import nn

from qcompiler.errors import ConfigError
from qcompiler.fake_quantize import default_fixed_qparams_range_0to1_fake_quant
from qcompiler.inputs.door import door
from qcompiler.nn import intrinsic, qat, quantizable, quantized
from qcompiler.nn.quantizable.observe import FIXED
from qcompiler.quantization.stubs import DeQuantStub, QuantStub

__all__ = [
    "get_default_custom_config_dict", "get_default_dynamic_quant_module_mappings", "get_default_qat_module_mappings",
    "get_default_qconfig_propagation_list", "get_default_static_quant_module_mappings", "get_dynamic_quant_module_class",
    "get_embedding_qat_module_mappings", "get_static_quant_module_class", "no_observer_set",
]  # fmt: skip

Mappings = dict[type[nn.Module], type[nn.Module]]
EMBEDDINGS: tuple[type[nn.Module], ...] = (nn.Embedding, nn.EmbeddingBag)


def _read(attribute: str, *packages: ModuleType) -> Mappings:
    """{replaced class: class} of what the packages list."""
    table: Mappings = {}
    for package in packages:
        for name in package.__all__:
            cls = getattr(package, name)
            replaced = vars(cls).get(attribute) if isinstance(cls, type) else None
            for each in replaced if isinstance(replaced, tuple) else (replaced,):
                if each is not None:
                    table[each] = cls
    return table


_STUBS: Mappings = {QuantStub: quantized.Quantize, DeQuantStub: quantized.DeQuantize}
_INT8 = quantized, intrinsic.quantized
_FROM_FLOAT: Mappings = {**_STUBS, **_read("_FLOAT_MODULE", *_INT8)}
_STATIC: Mappings = {**_FROM_FLOAT, **_read("_QAT_MODULE", *_INT8)}
_QAT: Mappings = _read("_FLOAT_MODULE", qat, intrinsic.qat)
_DYNAMIC: Mappings = {
    **_read("_FLOAT_MODULE", quantized.dynamic, intrinsic.quantized.dynamic),
    **{cls: _FROM_FLOAT[cls] for cls in EMBEDDINGS if cls in _FROM_FLOAT},
}
_OBSERVED: Mappings = _read("_FLOAT_MODULE", quantizable)
_FROM_OBSERVED: Mappings = _read("_OBSERVED_MODULE", quantized)
FIXED_IN_TRAINING: dict[type[nn.Module], object] = {
    **FIXED, nn.Hardsigmoid: default_fixed_qparams_range_0to1_fake_quant, nn.Softmax: default_fixed_qparams_range_0to1_fake_quant,
}  # fmt: skip


def get_default_static_quant_module_mappings() -> Mappings:
    """Float, fused and trained classes -> int8 classes: what `convert` swaps."""
    return dict(_STATIC)


def get_default_qat_module_mappings() -> Mappings:
    """Float and fused classes -> classes of quantization-aware training: what `prepare_qat` swaps."""
    return {float_class: cls for float_class, cls in _QAT.items() if float_class not in EMBEDDINGS}


def get_embedding_qat_module_mappings() -> Mappings:
    """The same, with embeddings."""
    return dict(_QAT)


def get_default_dynamic_quant_module_mappings() -> Mappings:
    """Float classes -> classes that quantize activations as they come: what `quantize_dynamic` swaps."""
    return dict(_DYNAMIC)


def get_default_qconfig_propagation_list() -> set[type[nn.Module]]:
    """The classes that any of the tables replaces."""
    return {*_STATIC, *_QAT, *_DYNAMIC, nn.Sequential}


def get_default_custom_config_dict() -> dict[str, Mappings]:
    """The classes that are rebuilt for observation (they hold several int8 layers), and their int8 forms."""
    return {"float_to_observed_custom_module_class": dict(_OBSERVED), "observed_to_quantized_custom_module_class": dict(_FROM_OBSERVED)}


def no_observer_set() -> set[type[nn.Module]]:
    """The observed classes whose parts are observed, not their result."""
    return set(_OBSERVED.values())


@door
def get_static_quant_module_class(
    float_module_class: type[nn.Module], additional_static_quant_mapping: Mapping[Any, Any] | None = None, is_reference: bool = False
) -> type[nn.Module]:
    """The int8 class of a float class. ConfigError where there is none."""
    if is_reference:
        raise ConfigError("there are no reference modules", code="reference", hint="convert_to_reference_fx gives a reference graph")
    return _found(float_module_class, {**_STATIC, **(additional_static_quant_mapping or {})}, "int8")


@door
def get_dynamic_quant_module_class(
    float_module_class: type[nn.Module], additional_dynamic_quant_mapping: Mapping[Any, Any] | None = None
) -> type[nn.Module]:
    """The dynamically quantized class of a float class. ConfigError where there is none."""
    table = {**get_default_dynamic_quant_module_mappings(), **(additional_dynamic_quant_mapping or {})}
    return _found(float_module_class, table, "dynamic int8")


def _found(cls: type[nn.Module], table: Mapping[Any, Any], what: str) -> type[nn.Module]:
    if cls not in table:
        raise ConfigError(f"{cls.__name__} has no {what} form", code="no-quantized-class")
    found: type[nn.Module] = table[cls]
    return found
