"""Float modules that belong together, held in one container: what a single int8 kernel takes the place of.

Each is an nn.Sequential of its parts, so it computes what the unfused chain computes and the tracer goes through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from qcompiler.errors import ConfigError


class FusedModule(nn.Sequential):
    """Base of the fused float modules. `PARTS`: the exact classes of the parts, in order. ConfigError for others."""

    PARTS: tuple[type[nn.Module], ...] = ()

    def __init__(self, *parts: nn.Module) -> None:
        given = tuple(type_before_parametrizations(part) for part in parts)
        if given != self.PARTS:
            raise ConfigError(f"{type(self).__name__} takes {_names(self.PARTS)}, not {_names(given)}", code="fused-parts",
                              hint="a subclass may compute something else, so the classes must be these themselves")  # fmt: skip
        super().__init__(*parts)

    def __iter__(self) -> Iterator[nn.Module]:
        """The parts, without the observer that `prepare` adds to the module: a hook calls that, once."""
        return iter([part for name, part in self._modules.items() if name != "activation_post_process" and part is not None])


def _names(classes: Sequence[type]) -> str:
    return ", ".join(cls.__name__ for cls in classes)


class ConvReLU1d(FusedModule):
    """Conv1d, then ReLU."""

    PARTS = (nn.Conv1d, nn.ReLU)

    def __init__(self, conv: nn.Module, relu: nn.Module) -> None:
        super().__init__(conv, relu)


class ConvReLU2d(FusedModule):
    """Conv2d, then ReLU."""

    PARTS = (nn.Conv2d, nn.ReLU)

    def __init__(self, conv: nn.Module, relu: nn.Module) -> None:
        super().__init__(conv, relu)


class ConvReLU3d(FusedModule):
    """Conv3d, then ReLU."""

    PARTS = (nn.Conv3d, nn.ReLU)

    def __init__(self, conv: nn.Module, relu: nn.Module) -> None:
        super().__init__(conv, relu)


class ConvBn1d(FusedModule):
    """Conv1d, then BatchNorm1d: what quantization-aware training trains as one."""

    PARTS = (nn.Conv1d, nn.BatchNorm1d)

    def __init__(self, conv: nn.Module, bn: nn.Module) -> None:
        super().__init__(conv, bn)


class ConvBn2d(FusedModule):
    """Conv2d, then BatchNorm2d: what quantization-aware training trains as one."""

    PARTS = (nn.Conv2d, nn.BatchNorm2d)

    def __init__(self, conv: nn.Module, bn: nn.Module) -> None:
        super().__init__(conv, bn)


class ConvBn3d(FusedModule):
    """Conv3d, then BatchNorm3d: what quantization-aware training trains as one."""

    PARTS = (nn.Conv3d, nn.BatchNorm3d)

    def __init__(self, conv: nn.Module, bn: nn.Module) -> None:
        super().__init__(conv, bn)


class ConvBnReLU1d(FusedModule):
    """Conv1d, BatchNorm1d, ReLU: what quantization-aware training trains as one."""

    PARTS = (nn.Conv1d, nn.BatchNorm1d, nn.ReLU)

    def __init__(self, conv: nn.Module, bn: nn.Module, relu: nn.Module) -> None:
        super().__init__(conv, bn, relu)


class ConvBnReLU2d(FusedModule):
    """Conv2d, BatchNorm2d, ReLU: what quantization-aware training trains as one."""

    PARTS = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU)

    def __init__(self, conv: nn.Module, bn: nn.Module, relu: nn.Module) -> None:
        super().__init__(conv, bn, relu)


class ConvBnReLU3d(FusedModule):
    """Conv3d, BatchNorm3d, ReLU: what quantization-aware training trains as one."""

    PARTS = (nn.Conv3d, nn.BatchNorm3d, nn.ReLU)

    def __init__(self, conv: nn.Module, bn: nn.Module, relu: nn.Module) -> None:
        super().__init__(conv, bn, relu)


class ConvTransposeBn1d(FusedModule):
    """ConvTranspose1d, then BatchNorm1d: what quantization-aware training trains as one."""

    PARTS = (nn.ConvTranspose1d, nn.BatchNorm1d)

    def __init__(self, conv: nn.Module, bn: nn.Module) -> None:
        super().__init__(conv, bn)


class ConvTransposeBn2d(FusedModule):
    """ConvTranspose2d, then BatchNorm2d: what quantization-aware training trains as one."""

    PARTS = (nn.ConvTranspose2d, nn.BatchNorm2d)

    def __init__(self, conv: nn.Module, bn: nn.Module) -> None:
        super().__init__(conv, bn)


class ConvTransposeBn3d(FusedModule):
    """ConvTranspose3d, then BatchNorm3d: what quantization-aware training trains as one."""

    PARTS = (nn.ConvTranspose3d, nn.BatchNorm3d)

    def __init__(self, conv: nn.Module, bn: nn.Module) -> None:
        super().__init__(conv, bn)


class BNReLU2d(FusedModule):
    """BatchNorm2d, then ReLU."""

    PARTS = (nn.BatchNorm2d, nn.ReLU)

    def __init__(self, batch_norm: nn.Module, relu: nn.Module) -> None:
        super().__init__(batch_norm, relu)


class BNReLU3d(FusedModule):
    """BatchNorm3d, then ReLU."""

    PARTS = (nn.BatchNorm3d, nn.ReLU)

    def __init__(self, batch_norm: nn.Module, relu: nn.Module) -> None:
        super().__init__(batch_norm, relu)


class LinearReLU(FusedModule):
    """Linear, then ReLU."""

    PARTS = (nn.Linear, nn.ReLU)

    def __init__(self, linear: nn.Module, relu: nn.Module) -> None:
        super().__init__(linear, relu)


class LinearBn1d(FusedModule):
    """Linear, then BatchNorm1d: what quantization-aware training trains as one."""

    PARTS = (nn.Linear, nn.BatchNorm1d)

    def __init__(self, linear: nn.Module, bn: nn.Module) -> None:
        super().__init__(linear, bn)


class LinearLeakyReLU(FusedModule):
    """Linear, then LeakyReLU."""

    PARTS = (nn.Linear, nn.LeakyReLU)

    def __init__(self, linear: nn.Module, leaky_relu: nn.Module) -> None:
        super().__init__(linear, leaky_relu)


class LinearTanh(FusedModule):
    """Linear, then Tanh."""

    PARTS = (nn.Linear, nn.Tanh)

    def __init__(self, linear: nn.Module, tanh: nn.Module) -> None:
        super().__init__(linear, tanh)


class ConvAdd2d(FusedModule):
    """`m(x1, x2)` = add(conv(x1), x2). `add`: torch.add, operator.add, or a module that is called with both."""

    PARTS = (nn.Conv2d,)

    def __init__(self, conv: nn.Module, add: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__(conv)
        self.add = add

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:  # type: ignore[override]
        return self.add(self[0](x1), x2)  # type: ignore[no-any-return]


class ConvAddReLU2d(FusedModule):
    """`m(x1, x2)` = relu(add(conv(x1), x2)); `add` as in ConvAdd2d."""

    PARTS = (nn.Conv2d,)

    def __init__(self, conv: nn.Module, add: Callable[[Tensor, Tensor], Any], relu: Callable[[Tensor], Tensor]) -> None:
        super().__init__(conv)
        self.add = add
        self.relu = relu

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:  # type: ignore[override]
        return self.relu(self.add(self[0](x1), x2))
