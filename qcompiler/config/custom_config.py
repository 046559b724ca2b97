"""PrepareCustomConfig, ConvertCustomConfig, FuseCustomConfig: settings of the graph flow beside the qconfig mapping, as torch has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import nn

from qcompiler.errors import ConfigError
from qcompiler.inputs.near_names import no_module

STANDALONE = (
    "standalone modules are not supported: the graph flow compiles through submodules. Give the submodule a rule of its own "
    "(QConfigMapping.set_module_name), or compile it alone and keep the call of it whole (set_non_traceable_module_names)"
)
Triple = dict[str, dict[type, type]]  # "static" -> from class -> to class
T = TypeVar("T", bound="_Config")


def _kind(quant_type: object) -> str:
    """The text "static" for torch's QuantType.STATIC, the same text, or None."""
    name = str(getattr(quant_type, "name", quant_type or "static")).lower()
    if name != "static":
        raise ConfigError(f"custom modules are for static quantization, not {name!r}", code="custom-config")
    return name


class _Config:
    """Settings by name. `KEYS` maps each attribute to its key in a dict."""

    KEYS: dict[str, str] = {}

    def to_dict(self) -> dict[str, object]:
        """The dict form of torch; what is empty is left out."""
        return {key: value for attribute, key in self.KEYS.items() if (value := getattr(self, attribute))}

    @classmethod
    def from_dict(cls: type[T], config_dict: Mapping[str, object]) -> T:
        """From torch's dict form; ConfigError for unknown keys."""
        unknown = sorted(set(config_dict) - set(cls.KEYS.values()))
        if unknown:
            hint = f"known keys: {', '.join(cls.KEYS.values()) or 'none'}"
            raise ConfigError(f"unknown key in a {cls.__name__}: {', '.join(unknown)}", code="custom-config", hint=hint)
        config = cls()
        for attribute, key in cls.KEYS.items():
            if key in config_dict:
                setattr(config, attribute, type(getattr(config, attribute))(config_dict[key]))
        return config

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.to_dict() == other.to_dict()  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_dict()})"


class PrepareCustomConfig(_Config):
    """For prepare_fx and prepare_qat_fx. Setters return the config."""

    KEYS = {
        "float_to_observed_mapping": "float_to_observed_custom_module_class",
        "non_traceable_module_names": "non_traceable_module_name",
        "non_traceable_module_classes": "non_traceable_module_class",
        "input_quantized_indexes": "input_quantized_idxs",
        "output_quantized_indexes": "output_quantized_idxs",
        "preserved_attributes": "preserved_attributes",
    }

    def __init__(self) -> None:
        self.float_to_observed_mapping: Triple = {}
        self.non_traceable_module_names: list[str] = []
        self.non_traceable_module_classes: list[type] = []
        self.input_quantized_indexes: list[int] = []
        self.output_quantized_indexes: list[int] = []
        self.preserved_attributes: list[str] = []

    def set_standalone_module_name(self, *args: object, **kwargs: object) -> PrepareCustomConfig:
        """Refused: raises ConfigError that says what to do instead."""
        raise ConfigError(STANDALONE, code="standalone-module")

    set_standalone_module_class = set_standalone_module_name

    def set_float_to_observed_mapping(self, float_class: type, observed_class: type, quant_type: object = None) -> PrepareCustomConfig:
        """Modules of `float_class` become `observed_class.from_float(module)`; `module.qconfig` is set before."""
        self.float_to_observed_mapping.setdefault(_kind(quant_type), {})[float_class] = observed_class
        return self

    def set_non_traceable_module_names(self, module_names: Iterable[str]) -> PrepareCustomConfig:
        """Modules that stay one call, in float."""
        self.non_traceable_module_names = list(module_names)
        return self

    def set_non_traceable_module_classes(self, module_classes: Iterable[type]) -> PrepareCustomConfig:
        """Classes whose modules stay one call, in float."""
        self.non_traceable_module_classes = list(module_classes)
        return self

    def set_input_quantized_indexes(self, indexes: Iterable[int]) -> PrepareCustomConfig:
        """The inputs, by position, that the converted module takes as quint8 tensors (calibration takes floats)."""
        self.input_quantized_indexes = list(indexes)
        return self

    def set_output_quantized_indexes(self, indexes: Iterable[int]) -> PrepareCustomConfig:
        """The outputs, by position, that the converted module returns as quint8 tensors."""
        self.output_quantized_indexes = list(indexes)
        return self

    def set_preserved_attributes(self, attributes: Iterable[str]) -> PrepareCustomConfig:
        """Attributes of the model that the prepared and converted modules have as well."""
        self.preserved_attributes = list(attributes)
        return self

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, object]) -> PrepareCustomConfig:  # type: ignore[override]
        """From torch's dict form; ConfigError for unknown keys and for standalone modules."""
        if config_dict.get("standalone_module_name") or config_dict.get("standalone_module_class"):
            raise ConfigError(STANDALONE, code="standalone-module")
        return super().from_dict({k: v for k, v in config_dict.items() if not k.startswith("standalone_module")})

    @property
    def observed_classes(self) -> dict[type, type]:
        return self.float_to_observed_mapping.get("static", {})

    def is_whole(self, module: nn.Module, path: str) -> bool:
        """Whether calls of a module are not followed."""
        classes = (*self.non_traceable_module_classes, *self.observed_classes)
        return path in self.non_traceable_module_names or type(module) in classes

    def check(self, model: nn.Module) -> None:
        """ConfigError for names and attributes that the model does not have."""
        known = [path for path, _ in model.named_modules()]
        for name in self.non_traceable_module_names:
            if name not in known:
                raise no_module(name, known, "custom-config", "non_traceable_module_names")
        check_attributes(model, self.preserved_attributes)


class ConvertCustomConfig(_Config):
    """For convert_fx. Setters return the config."""

    KEYS = {"observed_to_quantized_mapping": "observed_to_quantized_custom_module_class", "preserved_attributes": "preserved_attributes"}

    def __init__(self) -> None:
        self.observed_to_quantized_mapping: Triple = {}
        self.preserved_attributes: list[str] = []

    def set_observed_to_quantized_mapping(
        self, observed_class: type, quantized_class: type, quant_type: object = None
    ) -> ConvertCustomConfig:
        """Modules of `observed_class` become `quantized_class.from_observed(module)`, which takes and gives quint8 tensors."""
        self.observed_to_quantized_mapping.setdefault(_kind(quant_type), {})[observed_class] = quantized_class
        return self

    def set_preserved_attributes(self, attributes: Iterable[str]) -> ConvertCustomConfig:
        """Attributes of the prepared module that the converted one has as well."""
        self.preserved_attributes = list(attributes)
        return self


class FuseCustomConfig(_Config):
    """For fuse_fx. Setters return the config."""

    KEYS = {"preserved_attributes": "preserved_attributes"}

    def __init__(self) -> None:
        self.preserved_attributes: list[str] = []

    def set_preserved_attributes(self, attributes: Iterable[str]) -> FuseCustomConfig:
        """Attributes of the model that the fused module has as well."""
        self.preserved_attributes = list(attributes)
        return self


def as_config(value: object, kind: type[T]) -> T:
    """A config from None, a dict, our class, or torch.ao's by its to_dict."""
    if isinstance(value, kind):
        return value
    if value is None or isinstance(value, Mapping):
        return kind.from_dict(value or {})
    if type(value).__name__ == kind.__name__ and hasattr(value, "to_dict"):
        return kind.from_dict(value.to_dict())
    raise ConfigError(f"expected a {kind.__name__} or a dict, got {type(value).__name__}", code="custom-config")


def check_attributes(model: nn.Module, names: Iterable[str]) -> None:
    """ConfigError for a name to preserve that the model does not have."""
    missing = [name for name in names if not hasattr(model, name)]
    if missing:
        raise ConfigError(f"preserved_attributes: the model has no {', '.join(missing)}", code="custom-config")
