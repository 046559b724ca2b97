"""Markers of where a hand-prepared model turns floats into int8 values and back."""

from __future__ import annotations

from torch import Tensor, nn

from qcompiler.config.qconfig import as_qconfig


class QuantStub(nn.Module):
    """Passes floats on; `prepare` observes them, `convert` makes it an `nn.quantized.Quantize`.

    `qconfig`: how to quantize this value; None: as the module around it.
    """

    def __init__(self, qconfig: object = None) -> None:
        super().__init__()
        if qconfig is not None:
            self.qconfig = as_qconfig(qconfig)

    def forward(self, x: Tensor) -> Tensor:
        return x


class DeQuantStub(nn.Module):
    """Passes values on; `convert` makes it an `nn.quantized.DeQuantize`."""

    def __init__(self, qconfig: object = None) -> None:
        super().__init__()
        if qconfig is not None:
            self.qconfig = as_qconfig(qconfig)

    def forward(self, x: Tensor) -> Tensor:
        return x


class QuantWrapper(nn.Module):
    """A module of one input and one output between a QuantStub and a DeQuantStub."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        qconfig = getattr(module, "qconfig", None)
        self.quant = QuantStub(qconfig)
        self.dequant = DeQuantStub(qconfig)
        self.module = module
        self.train(module.training)

    def forward(self, X: Tensor) -> Tensor:
        X = self.quant(X)
        X = self.module(X)
        return self.dequant(X)  # type: ignore[no-any-return]
