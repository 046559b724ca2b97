"""nn.quantized.MaxPool2d."""

from __future__ import annotations

from typing import Any, Self

from qcompiler.errors import ConfigError
from qcompiler.nn.quantized.row import RowModule

Size = int | tuple[int, int]


class MaxPool2d(RowModule):
    """Largest values of windows of a quint8 tensor (N, C, H, W) or (C, H, W), exact, at the input's qparams."""

    # no _FLOAT_MODULE: nn.MaxPool2d itself runs on quint8 tensors as on float ones, so a conversion leaves it
    _OP = "max_pool2d"
    _RANKS, _BATCHED = (4, 3), True

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Size = 0, dilation: Size = 1,
                 return_indices: bool = False, ceil_mode: bool = False) -> None:  # fmt: skip
        """Raises ConfigError for `return_indices`."""
        if return_indices:
            raise ConfigError("a quantized MaxPool2d gives no indices", code="pool-indices", hint="leave this pool float")
        super().__init__(None)
        self.kernel_size, self.padding, self.dilation, self.ceil_mode = kernel_size, padding, dilation, ceil_mode
        self.stride = kernel_size if stride is None else stride
        self.return_indices = False
        self.rebuild()

    @classmethod
    def _like(cls, mod: Any, scale: float, zero_point: int) -> Self:
        return cls(mod.kernel_size, mod.stride, mod.padding, mod.dilation, mod.return_indices, mod.ceil_mode)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, " \
               f"ceil_mode={self.ceil_mode}"  # fmt: skip
