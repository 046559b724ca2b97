"""BackendConfig: what a back end can run, as torch describes one: patterns, their dtypes with constraints, how they are observed.

`get_native_backend_config` (backends/torch/description.py) makes ours from the op rows and the kernel table. A config given to
prepare_fx restricts: an op that it does not name, or whose qconfig its dtypes do not allow, stays float with that reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch

from qcompiler.errors import ConfigError
from qcompiler.inputs.near_names import near_names
from qcompiler.ops.obstacles import Obstacle
from qcompiler.ops.spec import Op, Spelling

STORAGE = {torch.quint8: torch.uint8, torch.qint8: torch.int8, torch.qint32: torch.int32}


class ObservationType(Enum):
    """How an op's result is observed."""

    OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT = 0
    OUTPUT_SHARE_OBSERVER_WITH_INPUT = 1
    INPUT_OUTPUT_NOT_OBSERVED = 2


@dataclass
class DTypeWithConstraints:
    """A dtype, with bounds of the integer range and of the scale, or exact qparams."""

    dtype: torch.dtype | None = None
    quant_min_lower_bound: int | float | None = None
    quant_max_upper_bound: int | float | None = None
    scale_min_lower_bound: int | float | None = None
    scale_max_upper_bound: int | float | None = None
    scale_exact_match: float | None = None
    zero_point_exact_match: int | None = None

    def refuses(self, observer: object, what: str) -> str | None:
        """Why an observer's settings do not fit, or None. Scales are checked by the observer's `eps`, their lower bound."""
        dtype = getattr(observer, "dtype", None)
        if self.dtype is None or dtype is None:
            return None
        if STORAGE.get(dtype, dtype) != STORAGE.get(self.dtype, self.dtype):
            return f"{what} dtype {dtype} is not {self.dtype}"
        low, high = getattr(observer, "quant_min", None), getattr(observer, "quant_max", None)
        if self.quant_min_lower_bound is not None and low is not None and low < self.quant_min_lower_bound:
            return f"{what} quant_min {low} is below {self.quant_min_lower_bound}"
        if self.quant_max_upper_bound is not None and high is not None and high > self.quant_max_upper_bound:
            return f"{what} quant_max {high} is above {self.quant_max_upper_bound}"
        eps = getattr(observer, "eps", None)
        if self.scale_min_lower_bound is not None and eps is not None and float(eps) < self.scale_min_lower_bound:
            return f"{what} scales may fall below {self.scale_min_lower_bound}: the observer's eps is {float(eps):.3g}"
        return None

    def refuses_fixed(self, qparams: Any) -> str | None:
        """Why the qparams that an op fixes do not fit."""
        wanted = (self.scale_exact_match, self.zero_point_exact_match)
        given = (qparams.scale, qparams.zero_point)
        fits = all(w is None or abs(w - g) <= 1e-9 for w, g in zip(wanted, given, strict=True))
        return None if fits else f"its scale and zero point {given} are not {wanted}"


def _constrained(value: torch.dtype | DTypeWithConstraints | Mapping[str, Any] | None) -> DTypeWithConstraints:
    if isinstance(value, DTypeWithConstraints):
        return value
    if value is None or isinstance(value, torch.dtype):
        return DTypeWithConstraints(value)
    names = [f.name for f in dataclasses.fields(DTypeWithConstraints)]
    found = dict(value) if isinstance(value, Mapping) else {name: getattr(value, name) for name in names if hasattr(value, name)}
    if not found or not set(found) <= set(names):
        raise ConfigError(f"expected a dtype or DTypeWithConstraints, got {value!r:.80}", code="backend-config")
    return DTypeWithConstraints(**found)


OF_TORCH = ("pattern_complex_format", "root_node_getter", "extra_inputs_getter", "num_tensor_args_to_observation_type",
            "input_type_to_index")  # fmt: skip  # keys of a pattern of torch.ao's


def _check_keys(given: Mapping[str, object], known: Iterable[str], what: str) -> None:
    """A key that nothing reads would be passed over."""
    for key in given:
        if key not in (known := tuple(known)):
            close = ", ".join(near_names(str(key), known)) or ", ".join(known)
            raise ConfigError(f"{what} has no key {key!r:.60}", code="backend-config", hint=f"did you mean {close}?")


class DTypeConfig:
    """Dtypes of inputs, outputs, weights and bias of one pattern; each a dtype, DTypeWithConstraints or None (anything)."""

    def __init__(self, input_dtype: Any = None, output_dtype: Any = None, weight_dtype: Any = None,
                 bias_dtype: torch.dtype | None = None, is_dynamic: bool | None = None) -> None:  # fmt: skip
        self.input_dtype_with_constraints = _constrained(input_dtype)
        self.output_dtype_with_constraints = _constrained(output_dtype)
        self.weight_dtype_with_constraints = _constrained(weight_dtype)
        self.bias_dtype = bias_dtype
        self.is_dynamic = is_dynamic

    @property
    def input_dtype(self) -> torch.dtype | None:
        return self.input_dtype_with_constraints.dtype

    @property
    def output_dtype(self) -> torch.dtype | None:
        return self.output_dtype_with_constraints.dtype

    @property
    def weight_dtype(self) -> torch.dtype | None:
        return self.weight_dtype_with_constraints.dtype

    def to_dict(self) -> dict[str, object]:
        """torch's dict form."""
        names = ("input_dtype", "output_dtype", "weight_dtype")
        found = {name: getattr(self, f"{name}_with_constraints") for name in names if getattr(self, name) is not None}
        rest = {"bias_dtype": self.bias_dtype, "is_dynamic": self.is_dynamic}
        return found | {name: value for name, value in rest.items() if value is not None}

    @classmethod
    def from_dict(cls, dtype_config_dict: Mapping[str, Any]) -> DTypeConfig:
        """What `to_dict` wrote."""
        _check_keys(dtype_config_dict, ("input_dtype", "output_dtype", "weight_dtype", "bias_dtype", "is_dynamic"), "a dtype config")
        return cls(**dtype_config_dict)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DTypeConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"DTypeConfig({', '.join(f'{k}={v}' for k, v in self.to_dict().items())})"

    def refuses(self, row: Op, qconfig: Any) -> str | None:
        """Why an op's qconfig does not fit, or None."""
        activation, weight = qconfig.activation(), qconfig.weight()
        if bool(self.is_dynamic) != bool(getattr(activation, "is_dynamic", False)):
            return "it is dynamic" if self.is_dynamic else "it is not dynamic"
        if row.fixed is not None:
            return self.output_dtype_with_constraints.refuses_fixed(row.fixed)
        found = [self.input_dtype_with_constraints.refuses(activation, "input")]
        found.append(self.output_dtype_with_constraints.refuses(activation, "output"))
        if row.weight is not None:
            found.append(self.weight_dtype_with_constraints.refuses(weight, "weight"))
        return next((reason for reason in found if reason is not None), None)


class BackendPatternConfig:
    """One pattern: a module class, a function, a method name, or a tuple of these in a row. Setters return the config."""

    FIELDS = ("pattern", "observation_type", "dtype_configs", "root_module", "qat_module", "reference_quantized_module_for_root",
              "fused_module", "fuser_method")  # fmt: skip

    def __init__(self, pattern: object = None) -> None:
        self.pattern = pattern
        self.observation_type = ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT
        self.dtype_configs: list[DTypeConfig] = []
        self.root_module: type | None = None
        self.qat_module: type | None = None
        self.reference_quantized_module_for_root: type | None = None
        self.fused_module: type | None = None
        self.fuser_method: Callable[..., object] | None = None

    def _set(self, name: str, value: object) -> BackendPatternConfig:
        setattr(self, name, value)
        return self

    def set_pattern(self, pattern: object) -> BackendPatternConfig:
        """What is matched."""
        return self._set("pattern", pattern)

    def set_observation_type(self, observation_type: Any) -> BackendPatternConfig:
        """How its result is observed; torch.ao's enum is taken by its name."""
        return self._set("observation_type", ObservationType[observation_type.name])

    def add_dtype_config(self, dtype_config: DTypeConfig) -> BackendPatternConfig:
        """One more combination of dtypes that it runs with."""
        self.dtype_configs.append(dtype_config)
        return self

    def set_dtype_configs(self, dtype_configs: Iterable[DTypeConfig]) -> BackendPatternConfig:
        """All combinations of dtypes that it runs with."""
        return self._set("dtype_configs", list(dtype_configs))

    def set_root_module(self, root_module: type) -> BackendPatternConfig:
        """The float module that the pattern's quantized form is made from."""
        return self._set("root_module", root_module)

    def set_qat_module(self, qat_module: type) -> BackendPatternConfig:
        """The module for quantization-aware training."""
        return self._set("qat_module", qat_module)

    def set_reference_quantized_module(self, reference_quantized_module: type) -> BackendPatternConfig:
        """The reference module of the root."""
        return self._set("reference_quantized_module_for_root", reference_quantized_module)

    def set_fused_module(self, fused_module: type) -> BackendPatternConfig:
        """The module that a fused pattern becomes."""
        return self._set("fused_module", fused_module)

    def set_fuser_method(self, fuser_method: Callable[..., object]) -> BackendPatternConfig:
        """The function that fuses the pattern."""
        return self._set("fuser_method", fuser_method)

    def to_dict(self) -> dict[str, object]:
        """torch's dict form."""
        found = {name: getattr(self, name) for name in self.FIELDS if getattr(self, name) is not None}
        return found | {"dtype_configs": [config.to_dict() for config in self.dtype_configs]}

    @classmethod
    def from_dict(cls, backend_pattern_config_dict: Mapping[str, Any]) -> BackendPatternConfig:
        """What `to_dict` of this class or of torch.ao's wrote."""
        config = cls()
        _check_keys(backend_pattern_config_dict, (*cls.FIELDS, *OF_TORCH), "a pattern of a backend config")
        for name, value in backend_pattern_config_dict.items():
            if name == "observation_type":
                config.set_observation_type(value)
            elif name == "dtype_configs":
                config.set_dtype_configs(DTypeConfig.from_dict(d if isinstance(d, Mapping) else d.to_dict()) for d in value)
            elif name in cls.FIELDS:
                setattr(config, name, value)
            elif name == "pattern_complex_format":
                config.pattern = value
        return config


@dataclass
class BackendConfig:
    """What a back end runs: its name and one BackendPatternConfig for each pattern. Setters return the config."""

    name: str = ""
    _configs: dict[object, BackendPatternConfig] = field(default_factory=dict, repr=False)

    def set_name(self, name: str) -> BackendConfig:
        """The name that reasons show."""
        self.name = name
        return self

    def set_backend_pattern_config(self, config: BackendPatternConfig) -> BackendConfig:
        """Adds a pattern; one that is there already is replaced."""
        self._configs[config.pattern] = config
        return self

    def set_backend_pattern_configs(self, configs: Iterable[BackendPatternConfig]) -> BackendConfig:
        """Adds patterns."""
        for config in configs:
            self.set_backend_pattern_config(config)
        return self

    @property
    def configs(self) -> list[BackendPatternConfig]:
        """The patterns in the order they were set."""
        return list(self._configs.values())

    def to_dict(self) -> dict[str, object]:
        """torch's dict form."""
        return {"name": self.name, "configs": [config.to_dict() for config in self.configs]}

    @classmethod
    def from_dict(cls, backend_config_dict: Mapping[str, Any]) -> BackendConfig:
        """What `to_dict` of this class or of torch.ao's wrote."""
        _check_keys(backend_config_dict, ("name", "configs"), "a backend config")
        config = cls(backend_config_dict.get("name", ""))
        for entry in backend_config_dict.get("configs", []):
            config.set_backend_pattern_config(BackendPatternConfig.from_dict(entry if isinstance(entry, Mapping) else entry.to_dict()))
        return config

    def has(self, pattern: object, fused: str) -> bool:
        """Whether it names the pattern, or one that becomes a module of the class `fused`, as torch.ao's configs have it."""
        return pattern in self._configs or any(getattr(c.fused_module, "__name__", None) == fused for c in self.configs)

    def refuses(self, row: Op, qconfig: object) -> Obstacle | None:
        """Why an op stays float by this config, or None."""
        spelled = [s.target if isinstance(s, Spelling) else s for s in row.spellings]
        found = [self._configs[p] for p in (*(form.cls for form in row.modules), *spelled, row.name) if p in self._configs]
        if not found:
            return Obstacle("backend-config", f"the backend config {self.name!r} has no pattern for {row.name}")
        dtypes = [dtype for config in found for dtype in config.dtype_configs]
        reasons = [dtype.refuses(row, qconfig) for dtype in dtypes]
        if None in reasons:
            return None
        why = "; ".join(dict.fromkeys(str(reason) for reason in reasons)) or "it lists none"
        return Obstacle("backend-config", f"the backend config {self.name!r} allows {row.name} with other dtypes: {why}")


def as_backend_config(value: object) -> BackendConfig | None:
    """A config from None, a dict, ours, or torch.ao's by its to_dict."""
    if value is None or isinstance(value, BackendConfig):
        return value
    if isinstance(value, Mapping):
        return BackendConfig.from_dict(value)
    if type(value).__name__ == "BackendConfig" and hasattr(value, "to_dict"):
        return BackendConfig.from_dict(value.to_dict())
    raise ConfigError(f"expected a BackendConfig or a dict, got {type(value).__name__}", code="backend-config")
