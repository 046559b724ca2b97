"""QConfig: which observers one part of a model gets, and the ready-made ones."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qcompiler import fake_quantize as fq
from qcompiler import observers as ob
from qcompiler.ambient import in_plain_torch
from qcompiler.errors import ConfigError
from qcompiler.inputs.door import door
from qcompiler.ir.types import Mode
from qcompiler.observers.factory import Factory, as_factory, from_plain, registered, to_plain

BACKENDS = ("x86", "fbgemm", "onednn", "qnnpack")


@dataclass(frozen=True)
class QConfig:
    """Makers of the observers (or fake-quantize modules) of activations and weights; nn.Identity: leave that side alone.

    A maker is a class, `Class.with_args(...)`, or any callable. Each is tried once: ConfigError for settings that cannot work.
    """

    activation: Any
    weight: Any

    @in_plain_torch
    def __post_init__(self) -> None:
        for role in ("activation", "weight"):
            maker = as_factory(_translated(getattr(self, role)))
            object.__setattr__(self, role, maker)
            if maker is None:
                continue
            if isinstance(maker, nn.Module):
                raise ConfigError(
                    f"the {role} of a QConfig is an observer, not a way to make one",
                    code="qconfig-instance",
                    hint="pass the class, or Class.with_args(...)",
                )
            _try(role, maker)

    def to_plain(self) -> dict[str, object]:
        """JSON values; ConfigError for makers that have no registered name."""
        return {role: _maker_to_plain(getattr(self, role)) for role in ("activation", "weight")}

    @staticmethod
    def from_plain(data: object) -> QConfig:
        """What `to_plain` wrote. ConfigError for anything else; imports nothing."""
        if not isinstance(data, Mapping) or set(data) != {"activation", "weight"}:
            raise ConfigError(f"expected {{'activation': ..., 'weight': ...}}, got {data!r:.200}", code="config-format")
        return QConfig(_maker_from_plain(data["activation"]), _maker_from_plain(data["weight"]))


def _try(role: str, maker: Any) -> None:
    try:
        made = maker()
    except (TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"the {role} observer cannot be made: {error}", code="qconfig-maker") from error
    if not isinstance(made, nn.Module):
        raise ConfigError(f"the {role} of a QConfig makes {type(made).__name__}, not a module", code="qconfig-maker")
    if not isinstance(made, (ob.ObserverBase, nn.Identity)):
        raise ConfigError(f"the {role} of a QConfig makes {type(made).__name__}, which is no observer of qcompiler", code="qconfig-maker",
                          hint="derive it from ObserverBase or FakeQuantizeBase: forward(x) and calculate_qparams() are yours")  # fmt: skip
    if role == "activation" and getattr(made, "is_per_channel", False):
        raise ConfigError("activations cannot be quantized per channel", code="qconfig-per-channel")
    if role == "activation" and getattr(made, "dtype", None) is torch.int32:
        raise ConfigError("activations cannot be int32: no kernel takes it", code="qconfig-dtype", hint="torch.uint8 or torch.int8")


def _maker_to_plain(maker: object) -> object:
    if maker is None or maker == Factory(nn.Identity):
        return None if maker is None else "identity"
    return to_plain(maker)


def _maker_from_plain(data: object) -> object:
    if data is None or data == "identity":
        return None if data is None else nn.Identity
    return from_plain(data)


def QConfigDynamic(activation: object = nn.Identity, weight: object = nn.Identity) -> QConfig:
    """The old spelling of a QConfig for dynamic quantization."""
    return QConfig(activation, weight)


def qconfig_equals(first: QConfig | None, second: QConfig | None) -> bool:
    """Whether two qconfigs make the same observers."""
    return first == second


def as_qconfig(value: object) -> QConfig | None:
    """A QConfig from a QConfig, None, what `to_plain` wrote, or torch.ao's (by class name, without importing torch.ao)."""
    if value is None or isinstance(value, QConfig):
        return value
    if isinstance(value, Mapping):
        return QConfig.from_plain(value)
    if hasattr(value, "activation") and hasattr(value, "weight"):
        return QConfig(_translated(value.activation), _translated(value.weight))
    raise ConfigError(f"expected a QConfig or None, got {type(value).__name__}", code="qconfig-type")


def _translated(maker: Any) -> object:
    """Our maker for a torch.ao class or `with_args` wrapper; others stay as they are."""
    kwargs: dict[str, Any] = {}
    while not isinstance(maker, type | Factory):
        if isinstance(maker, functools.partial):
            kwargs = {**maker.keywords, **kwargs}
            maker = maker.func
        elif hasattr(maker, "p") and hasattr(maker, "with_args"):
            maker = maker.p
        else:
            return functools.partial(maker, **kwargs) if kwargs else maker
    if isinstance(maker, type) and maker.__module__.startswith(("torch.ao.quantization.", "torch.quantization.")):
        known = registered(maker.__name__)
        if known is None:
            raise ConfigError(f"torch's {maker.__name__} has no counterpart here", code="observer-unknown")
        kwargs = {k: _translated(v) if callable(v) and k == "observer" else v for k, v in kwargs.items() if k != "factory_kwargs"}
        return Factory(known, kwargs)
    return Factory(maker, kwargs) if isinstance(maker, type) else maker.with_args(**kwargs)


default_qconfig = QConfig(ob.default_observer, ob.default_weight_observer)
default_debug_qconfig = QConfig(ob.default_debug_observer, ob.default_weight_observer)
default_per_channel_qconfig = QConfig(ob.default_observer, ob.default_per_channel_weight_observer)
default_dynamic_qconfig = QConfig(ob.default_dynamic_quant_observer, ob.default_weight_observer)
per_channel_dynamic_qconfig = QConfig(ob.default_dynamic_quant_observer, ob.default_per_channel_weight_observer)
float16_dynamic_qconfig = QConfig(
    ob.PlaceholderObserver.with_args(dtype=torch.float16, is_dynamic=True), ob.PlaceholderObserver.with_args(dtype=torch.float16)
)
float16_static_qconfig = QConfig(
    ob.PlaceholderObserver.with_args(dtype=torch.float16), ob.PlaceholderObserver.with_args(dtype=torch.float16)
)
float_qparams_weight_only_qconfig = QConfig(ob.default_placeholder_observer, ob.default_float_qparams_observer)
float_qparams_weight_only_qconfig_4bit = QConfig(ob.default_placeholder_observer, ob.default_float_qparams_observer_4bit)
default_quint8_weight_qconfig = QConfig(ob.HistogramObserver, ob.MinMaxObserver)
default_reuse_input_qconfig = QConfig(ob.default_reuse_input_observer, ob.NoopObserver)
default_qat_qconfig = QConfig(fq.default_fake_quant, fq.default_weight_fake_quant)
default_qat_qconfig_v2 = QConfig(fq.default_fused_act_fake_quant, fq.default_fused_wt_fake_quant)
default_lsq_qconfig = QConfig(fq.default_lsq_act_fake_quant, fq.default_lsq_wt_fake_quant)
default_per_channel_lsq_qconfig = QConfig(fq.default_lsq_act_fake_quant, fq.default_lsq_per_channel_wt_fake_quant)
default_dynamic_qat_qconfig = QConfig(fq.default_dynamic_fake_quant, fq.default_weight_fake_quant)
default_weight_only_qconfig = QConfig(nn.Identity, fq.default_weight_fake_quant)
default_activation_only_qconfig = QConfig(fq.default_fake_quant, nn.Identity)
default_embedding_qat_qconfig = QConfig(ob.NoopObserver.with_args(dtype=torch.float32), fq.default_embedding_fake_quant)
default_embedding_qat_qconfig_4bit = QConfig(ob.NoopObserver.with_args(dtype=torch.float32), fq.default_embedding_fake_quant_4bit)

_signed = ob.HistogramObserver.with_args(dtype=torch.int8, eps=2.0**-12)
default_symmetric_qnnpack_qconfig = QConfig(_signed, ob.weight_observer_range_neg_127_to_127)
default_per_channel_symmetric_qnnpack_qconfig = QConfig(_signed, ob.per_channel_weight_observer_range_neg_127_to_127)

_signed_qat = fq.default_fused_act_fake_quant.with_args(dtype=torch.int8, quant_min=-128, quant_max=127, eps=2.0**-12)
default_symmetric_qnnpack_qat_qconfig = QConfig(_signed_qat, fq.fused_wt_fake_quant_range_neg_127_to_127)
default_per_channel_symmetric_qnnpack_qat_qconfig = QConfig(_signed_qat, fq.fused_per_channel_wt_fake_quant_range_neg_127_to_127)


def mode_of(qconfig: QConfig) -> Mode | None:
    """How an op with weights runs under this qconfig; None: on int8 values whose ranges calibration finds."""
    activation, weight = (maker() if maker is not None else None for maker in (qconfig.activation, qconfig.weight))
    if torch.float16 in (getattr(weight, "dtype", None), getattr(activation, "dtype", None)):
        return Mode.HALF
    if getattr(activation, "is_dynamic", False):
        return Mode.DYNAMIC
    if not leaves_activations(qconfig) or leaves_weights(qconfig):
        return None
    low, high = getattr(weight, "quant_min", None), getattr(weight, "quant_max", None)
    return Mode.FOUR_BIT if low is not None and high is not None and high - low < 16 else Mode.WEIGHT_ONLY


def leaves_activations(qconfig: QConfig) -> bool:
    """Whether activations stay float32 under it."""
    activation = qconfig.activation() if qconfig.activation is not None else None
    return not isinstance(activation, ob.ObserverBase) or (activation.dtype is torch.float32 and not activation.is_dynamic)


def leaves_weights(qconfig: QConfig) -> bool:
    """Whether weights stay float32 under it."""
    weight = qconfig.weight() if qconfig.weight is not None else None
    return not isinstance(weight, ob.ObserverBase) or weight.dtype is torch.float32


def check_backend(backend: str) -> str:
    """The name again; ConfigError where it is none of BACKENDS."""
    if backend not in BACKENDS:
        raise ConfigError(f"backend {backend!r} is not known", code="backend", hint=f"one of {', '.join(BACKENDS)}")
    return backend


def _check_version(version: int, *known: int) -> None:
    if version not in known:
        raise ConfigError(f"version {version!r:.20} is not known", code="qconfig-version", hint=f"one of {', '.join(map(str, known))}")


@door
def get_default_qconfig(backend: str = "x86", version: int = 0) -> QConfig:
    """Min-max for activations, symmetric int8 weights: per channel, on qnnpack per tensor.

    Min-max: on EfficientNet-Lite0 the histogram search is no better (19.4 dB and about 97 % top-1 agreement, both), and min-max
    costs a fraction of it to calibrate.
    The activation range is not fixed here: 8 bits, or 7 where the chosen kernel needs it. `version`: 0 is what there is.
    """
    _check_version(version, 0)
    per_tensor = check_backend(backend) == "qnnpack"
    return QConfig(ob.MinMaxObserver, ob.default_weight_observer if per_tensor else ob.default_per_channel_weight_observer)


@door
def get_default_qat_qconfig(backend: str = "x86", version: int = 1) -> QConfig:
    """Moving averages for activations, symmetric int8 weights: per channel, on qnnpack per tensor. `version` 0: not fused."""
    _check_version(version, 0, 1)
    per_tensor = check_backend(backend) == "qnnpack"
    if version == 0:
        return QConfig(fq.default_fake_quant, fq.default_weight_fake_quant if per_tensor else fq.default_per_channel_weight_fake_quant)
    weight = fq.default_fused_wt_fake_quant if per_tensor else fq.default_fused_per_channel_wt_fake_quant
    return QConfig(fq.default_fused_act_fake_quant, weight)
