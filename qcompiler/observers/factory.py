"""Observers as settings: a class with bound arguments (`with_args`), and the names that may stand in a file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from qcompiler.errors import ConfigError

_REGISTRY: dict[str, type[nn.Module]] = {}

_PLAIN = {torch.quint8: torch.uint8, torch.qint8: torch.int8, torch.qint32: torch.int32, torch.quint4x2: torch.uint8}
_DTYPES = {
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int32": torch.int32,
    "quint4x2": torch.quint4x2,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
_QSCHEMES = {
    "per_tensor_affine": torch.per_tensor_affine,
    "per_tensor_symmetric": torch.per_tensor_symmetric,
    "per_channel_affine": torch.per_channel_affine,
    "per_channel_symmetric": torch.per_channel_symmetric,
    "per_channel_affine_float_qparams": torch.per_channel_affine_float_qparams,
}


def plain_dtype(dtype: torch.dtype) -> torch.dtype:
    """The storage type behind a quantized dtype: quint8 -> uint8; any other dtype as it is."""
    return _PLAIN.get(dtype, dtype)


class Factory:
    """A class and keyword arguments to call it with; compares by value.

    `factory(**more)` makes an instance, `factory.with_args(**more)` another factory; later arguments win.
    """

    def __init__(self, cls: type[nn.Module], kwargs: Mapping[str, object] | None = None) -> None:
        self.cls = cls
        self.kwargs = {k: as_factory(v) for k, v in sorted((kwargs or {}).items())}

    def __call__(self, **kwargs: object) -> nn.Module:
        return self.cls(**{**self.kwargs, **kwargs})

    def with_args(self, **kwargs: object) -> Factory:
        return Factory(self.cls, {**self.kwargs, **kwargs})

    def _key(self) -> tuple[object, ...]:
        return self.cls, tuple((k, _comparable(v)) for k, v in self.kwargs.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Factory) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((self.cls, tuple(self.kwargs)))

    def __repr__(self) -> str:
        args = ", ".join(f"{k}={v!r}" for k, v in self.kwargs.items())
        return f"{self.cls.__name__}({args})"


def _comparable(value: object) -> object:
    if isinstance(value, torch.dtype) and value is not torch.quint4x2:
        return plain_dtype(value)
    return value


def as_factory(maker: object) -> object:
    """A class becomes a Factory without arguments; a Factory or another callable stays."""
    return Factory(maker) if isinstance(maker, type) and issubclass(maker, nn.Module) else maker


def register_observer(cls: type[nn.Module]) -> type[nn.Module]:
    """Give an observer or fake-quantize class a name that saved configurations may use (class decorator).

    ConfigError when the name is taken by another class.
    """
    known = _REGISTRY.setdefault(cls.__name__, cls)
    if known is not cls:
        raise ConfigError(f"an observer named {cls.__name__!r} is already registered", code="observer-name")
    return cls


def registered(name: str) -> type[nn.Module] | None:
    """The class that was registered under this name."""
    return _REGISTRY.get(name)


def to_plain(maker: object) -> dict[str, object]:
    """A factory as JSON values: {"observer": name, "args": {...}}; ConfigError where it has no registered name."""
    factory = as_factory(maker)
    if not isinstance(factory, Factory) or _REGISTRY.get(factory.cls.__name__) is not factory.cls:
        raise ConfigError(
            f"{maker!r} cannot be written to a file",
            code="observer-unregistered",
            hint="decorate the class with qcompiler.observers.register_observer and bind arguments with with_args",
        )
    return {"observer": factory.cls.__name__, "args": {k: _plain_value(k, v) for k, v in sorted(factory.kwargs.items())}}


def from_plain(data: object) -> Factory:
    """The factory that `to_plain` wrote; only registered names, nothing is imported. ConfigError otherwise."""
    if not isinstance(data, Mapping) or set(data) - {"observer", "args"} or not isinstance(data.get("args", {}), Mapping):
        raise ConfigError(f"expected {{'observer': name, 'args': {{...}}}}, got {data!r:.200}", code="config-format")
    name = data.get("observer")
    cls = _REGISTRY.get(name) if isinstance(name, str) else None
    if cls is None:
        raise ConfigError(f"no observer is registered under {name!r:.100}", code="observer-unknown", hint=f"known: {sorted(_REGISTRY)}")
    return Factory(cls, {str(k): _value_from_plain(v) for k, v in data.get("args", {}).items()})


def _plain_value(key: str, value: object) -> object:
    if isinstance(value, torch.dtype):
        wanted = value if value is torch.quint4x2 else plain_dtype(value)
        return {"dtype": next(n for n, d in _DTYPES.items() if d is wanted)}
    if isinstance(value, torch.qscheme):
        return {"qscheme": next(n for n, s in _QSCHEMES.items() if s is value)}
    if isinstance(value, Factory | type):
        return to_plain(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"argument {key}={value!r} cannot be written to a file", code="config-format")


def _value_from_plain(value: object) -> object:
    if not isinstance(value, Mapping):
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise ConfigError(f"unexpected value {value!r:.100} in an observer's arguments", code="config-format")
    kind, name = next(iter(value.items()), ("", ""))
    tables: dict[str, Mapping[str, object]] = {"dtype": _DTYPES, "qscheme": _QSCHEMES}
    known = tables.get(kind)
    if known is None or len(value) != 1:
        return from_plain(value)
    found = known.get(name) if isinstance(name, str) else None
    if found is None:
        raise ConfigError(f"unknown {dict(value)!r:.100}", code="config-format")
    return found
