"""What the modules of quantization-aware training have in common: from a float module, with a fake-quantized weight, and back.

A QAT module is its float class with `weight_fake_quant`, so isinstance checks, state_dict keys and the float attributes stay. It
shares the float module's parameters, so an optimizer that was made before goes on.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, transfer_parametrizations_and_params, type_before_parametrizations

from qcompiler.config.qconfig import QConfig
from qcompiler.errors import ConfigError
from qcompiler.qat import qat_qconfig, weight_fake_quant


class QATModule(nn.Module):
    """Base of QAT modules. A subclass names what it replaces and the constructor arguments that are attributes too.

    `_FLOAT_MODULE`: the float class, or the fused container whose PARTS begin with it. `_FOLDED_MODULE`: the container that
    `to_float` gives, None for the bare float module.
    """

    _FLOAT_MODULE: ClassVar[type[nn.Module]]
    _FOLDED_MODULE: ClassVar[type[nn.Module] | None] = None
    _ARGUMENTS: ClassVar[tuple[str, ...]]
    _CHANNEL_AXIS: ClassVar[int] = 0  # of the weight's output channels
    weight: Tensor
    qconfig: QConfig
    weight_fake_quant: nn.Module

    def _fake_quantize_weight(self, qconfig: object, device: object) -> None:
        """For constructors: keeps the qconfig and makes `weight_fake_quant`. ConfigError without a qconfig for training."""
        self.qconfig = qat_qconfig(qconfig, f"qat.{type(self).__name__}")
        self.weight_fake_quant = weight_fake_quant(self.qconfig, self.weight, self._CHANNEL_AXIS, device)

    @classmethod
    def _parts(cls) -> tuple[type[nn.Module], ...]:
        parts: tuple[type[nn.Module], ...] = getattr(cls._FLOAT_MODULE, "PARTS", (cls._FLOAT_MODULE,))
        return parts

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Self:
        """The QAT module of a float module with a `.qconfig`: a `_FLOAT_MODULE`, or for a fused one any sequence of its parts.

        Parameters, buffers, device and mode are the float module's. ConfigError for another module, or without a qconfig.
        """
        del use_precomputed_fake_quant  # as torch.ao's signature
        parts = cls._taken_apart(mod)
        base: Any = parts[0]
        qconfig = getattr(mod, "qconfig", None) or getattr(base, "qconfig", None)
        made = cls(**cls._settings(base), **cls._extra(parts), qconfig=qconfig, device="meta")
        for name in ("weight", "bias"):
            if hasattr(base, name):
                _share(base, made, name)
        made.weight_fake_quant.to(base.weight.device)
        made._take(parts)
        made.train(mod.training)
        return made

    @classmethod
    def _taken_apart(cls, mod: nn.Module) -> tuple[nn.Module, ...]:
        wanted = cls._parts()
        found = tuple(mod.children()) if len(wanted) > 1 and isinstance(mod, nn.Sequential) else (mod,)
        if len(found) != len(wanted) or not all(map(_is, found, wanted)):
            names = [", ".join(c.__name__ for c in classes) for classes in (wanted, [type_before_parametrizations(m) for m in found])]
            raise ConfigError(f"qat.{cls.__name__}.from_float takes {names[0]}, not {names[1]}", code="from-float",
                              hint="a subclass may compute something else, so the classes must be these themselves")  # fmt: skip
        return found

    @classmethod
    def _settings(cls, module: object) -> dict[str, object]:
        """The constructor arguments that `module`, float or QAT, was made with."""
        settings = {name: getattr(module, name) for name in cls._ARGUMENTS}
        return {**settings, "bias": module.bias is not None} if hasattr(module, "bias") else settings

    @classmethod
    def _extra(cls, parts: tuple[nn.Module, ...]) -> dict[str, object]:
        """Constructor arguments from the parts behind the first."""
        return {}

    def _take(self, parts: tuple[nn.Module, ...]) -> None:
        """Take over what the parts behind the first hold."""

    def deployed(self) -> tuple[Tensor, Tensor | None]:
        """(weight, bias) of the float module that evaluation computes, before fake quantization: what `convert` quantizes."""
        return self.weight, getattr(self, "bias", None)

    def to_float(self) -> nn.Module:
        """The trained float module: BatchNorm folded in, without fake quantization. It shares unfolded weights."""
        weight, bias = (None if t is None else nn.Parameter(t.detach()) for t in self.deployed())
        settings = {**self._settings(self), "device": "meta"}
        made: Any = self._parts()[0](**(settings if "bias" not in settings else {**settings, "bias": bias is not None}))
        made.weight = weight
        if bias is not None:
            made.bias = bias
        result = made if self._FOLDED_MODULE is None else self._FOLDED_MODULE(made, nn.ReLU())
        return result.train(self.training)  # type: ignore[no-any-return]


def _is(module: nn.Module, wanted: type[nn.Module]) -> bool:
    """Exactly that class, parametrized or not. SyncBatchNorm stands for any BatchNorm."""
    cls = type_before_parametrizations(module)
    return cls is wanted or (cls is nn.SyncBatchNorm and issubclass(wanted, nn.modules.batchnorm._BatchNorm))


def _share(base: nn.Module, made: nn.Module, name: str) -> None:
    """Give `made` the parameter of `base`, with what computes it."""
    if is_parametrized(base, name):
        transfer_parametrizations_and_params(base, made, name)
        return
    value = getattr(base, name)
    if value is not None and not isinstance(value, nn.Parameter):
        raise ConfigError(f"the {name} of this {type(base).__name__} is no parameter: a hook computes it", code="from-float",
                          hint="torch.nn.utils.remove_weight_norm, or torch.nn.utils.parametrizations instead of the hook")  # fmt: skip
    setattr(made, name, value)
