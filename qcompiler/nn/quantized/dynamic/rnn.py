"""Recurrent layers and cells with int8 or float16 weights: LSTM, GRU, LSTMCell, GRUCell, RNNCell."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from qcompiler.backends.torch.runtime import packs, recurrent
from qcompiler.errors import ConfigError, InputError
from qcompiler.nn.place import place_of
from qcompiler.nn.quantized.dynamic.base import DynamicModule
from qcompiler.ops import recurrent_float
from qcompiler.ops.table import OPS


class RecurrentModule(DynamicModule):
    """Base of layers and cells: weights named as the float module's (weight_ih_l0, ...), biases likewise."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]]
    _GATES: ClassVar[int]

    def __init__(self, bias: bool, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.bias = bias

    def _sides(self) -> list[str]:
        """The ends of the names of weights and biases, two a cell: ih_l0, hh_l0, ..."""
        raise NotImplementedError

    def _fill(self, shapes: list[tuple[int, int]]) -> None:
        """Weights of zero."""
        for side, shape in zip(self._sides(), shapes, strict=True):
            self._hold_zeros(f"weight_{side}", shape)
            self._buffers[f"bias_{side}"] = torch.zeros(shape[0]) if self.bias else None

    def _cells(self) -> list[Any]:
        """One pack a cell."""
        sides, made = self._sides(), []
        for ih, hh in zip(sides[::2], sides[1::2], strict=True):
            biases = self._buffers[f"bias_{ih}"], self._buffers[f"bias_{hh}"]
            if self._is_half:
                made.append(recurrent.prepack_cell_half(self._part(f"weight_{ih}"), self._part(f"weight_{hh}"), *biases))
            else:
                per_channel = self._axis(f"weight_{ih}") >= 0
                weights = (*self._int8(f"weight_{ih}"), *self._int8(f"weight_{hh}"))
                made.append(recurrent.prepack_cell(*weights, *biases, per_channel, self._reduces()))
        return made

    def _flat(self) -> list[Tensor]:
        """Float weights and biases in the order of torch.lstm, for engines without float16 products."""
        sides, flat = self._sides(), []
        for k in range(0, len(sides), 2):
            flat += [self._float(f"weight_{side}") for side in sides[k : k + 2]]
            flat += [self._part(f"bias_{side}") for side in sides[k : k + 2]] if self.bias else []
        return flat

    @property
    def _in_float(self) -> bool:
        return self._is_half and not self._half_kernel

    def _packed(self) -> tuple[str, dict[str, object]]:
        if self._in_float:
            return f"float_{self._ROW}", {"_weights": self._flat()}
        cells = self._cells()
        attributes = {f"_pack_{k}": cell for k, cell in enumerate(cells)}  # torch.jit.trace looks for them
        return f"packed_{self._ROW}", {"_packs": cells, **attributes}

    def get_weight(self) -> dict[str, Tensor]:
        """The weights by name, as qint8 tensors (float16 ones as they are)."""
        return {f"weight_{side}": self._quantized(f"weight_{side}") for side in self._sides()}

    def get_bias(self) -> dict[str, Tensor | None]:
        """The float biases by name."""
        return {f"bias_{side}": self._buffers[f"bias_{side}"] for side in self._sides()}

    def set_weight_bias(self, weight_bias_dict: dict[str, Tensor | None]) -> None:
        """Takes weights (qint8 tensors, or float ones where weights are float16) and biases by name."""
        for side in self._sides():
            weight = weight_bias_dict[f"weight_{side}"]
            assert weight is not None
            self._hold_quantized(f"weight_{side}", weight)
            bias = weight_bias_dict.get(f"bias_{side}")
            self._buffers[f"bias_{side}"] = None if bias is None else bias.detach().float().clone()
        self.rebuild()

    def _take(self, mod: nn.Module, qconfig: Any) -> Self:
        for side in self._sides():
            self._hold(f"weight_{side}", getattr(mod, f"weight_{side}"), qconfig)
            self._buffers[f"bias_{side}"] = getattr(mod, f"bias_{side}").detach().float().clone() if self.bias else None
        return self._adopt(mod, qconfig)

    @classmethod
    def _refuse(cls, mod: nn.Module) -> None:
        reason = OPS.rows[cls._ROW].modules[0].refuse(mod)
        if reason and "proj_size" in reason:
            raise ConfigError(f"this {type(mod).__name__} has no dynamic form: {reason}", code="proj-size",
                              where=place_of(mod))  # fmt: skip

    def _state(self, name: str, value: object, shape: tuple[int, ...]) -> None:
        if value is not None and (not isinstance(value, Tensor) or tuple(value.shape) != shape):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"{self._get_name()}: {name} must be of shape {shape}, got {got}", code="input-shape", where=self._where())


class RNNBase(RecurrentModule):
    """A recurrent layer; see nn.LSTM for inputs and results. Dropout between layers is not done: the layer only infers."""

    def __init__(
        self, mode: str, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False, dtype: torch.dtype = torch.qint8,
    ) -> None:  # fmt: skip
        super().__init__(bias, dtype)
        self.mode, self.input_size, self.hidden_size, self.num_layers = mode, input_size, hidden_size, num_layers
        self.batch_first, self.dropout, self.bidirectional = batch_first, float(dropout), bidirectional
        directions, wide = 2 if bidirectional else 1, self._GATES * hidden_size
        inputs = [input_size if layer == 0 else hidden_size * directions for layer in range(num_layers) for _ in range(directions)]
        self._fill([shape for size in inputs for shape in ((wide, size), (wide, hidden_size))])
        self.train(False)
        self.rebuild()

    def _sides(self) -> list[str]:
        ends = ("", "_reverse")[: 2 if self.bidirectional else 1]
        return [f"{side}_l{layer}{end}" for layer in range(self.num_layers) for end in ends for side in ("ih", "hh")]

    def _check_input(self, input: Any, states: tuple[Tensor | None, ...]) -> None:
        data = input.data if isinstance(input, PackedSequence) else input
        self._check("input", data)
        if torch.jit.is_tracing():  # type: ignore[attr-defined]  # sizes are tensors there
            return
        ranks = (2,) if isinstance(input, PackedSequence) else (2, 3)
        if data.dim() not in ranks or data.shape[-1] != self.input_size:
            raise InputError(f"{self._get_name()} takes (..., {self.input_size}) with {' or '.join(map(str, ranks))} dimensions, got "
                             f"{tuple(data.shape)}", code="input-shape", where=self._where())  # fmt: skip
        rows = len(self._sides()) // 2
        if isinstance(input, PackedSequence):
            shape: tuple[int, ...] = (rows, int(input.batch_sizes[0]), self.hidden_size)
        elif data.dim() == 2:
            shape = (rows, self.hidden_size)
        else:
            shape = (rows, data.shape[0 if self.batch_first else 1], self.hidden_size)
        for name, state in zip(("the hidden state", "the cell state"), states):
            self._state(name, state, shape)

    def _layer(self, input: object, hx: object, states: tuple[Tensor | None, ...]) -> Any:
        """(output, state or states)."""
        self._check_input(input, states)
        if not isinstance(input, PackedSequence):
            return self._run(input, hx)
        given, name = (*input, *states), f"{self._ROW}_packed"
        if self._in_float:
            output, end = getattr(recurrent_float, f"{name}_float")(*given, self._weights, self.bias, self.bidirectional)
        else:
            more = (self._is_half,) if self._ROW == "lstm" else ()
            output, end = getattr(recurrent, f"{name}_dynamic")(*given, self._packs, self.hidden_size, self.bidirectional, *more)
        return PackedSequence(output, *input[1:]), end

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Self:
        """The dynamic form of a float layer, as its `.qconfig` says (default_dynamic_qconfig if it has none)."""
        del use_precomputed_fake_quant
        cls._expect_type(mod, cls._FLOAT_MODULE)
        cls._refuse(mod)
        qconfig, dtype = cls._qconfig_of(mod)
        m: Any = mod
        settings = (m.input_size, m.hidden_size, m.num_layers, m.bias, m.batch_first, m.dropout, m.bidirectional)
        return cls(*settings, dtype)._take(mod, qconfig)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        names = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        more = "".join(f", {name}={getattr(self, name)}" for name, default in names.items() if getattr(self, name) != default)
        return f"{self.input_size}, {self.hidden_size}{more}, {self._weight_repr('weight_ih_l0')}"


class LSTM(RNNBase):
    """nn.LSTM on int8 or float16 weights: forward(input, (h_0, c_0)=None) -> (output, (h_n, c_n)); packed sequences too."""

    _FLOAT_MODULE, _ROW, _GATES = nn.LSTM, "lstm", 4

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As nn.LSTM without proj_size, plus `dtype`: torch.qint8 or torch.float16."""
        super().__init__("LSTM", *args, **kwargs)

    def _infer(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> tuple[object, tuple[Tensor, Tensor]]:
        hidden, cell = hx if hx is not None else (None, None)
        return self._layer(input, hx, (hidden, cell))  # type: ignore[no-any-return]


class GRU(RNNBase):
    """nn.GRU on int8 or float16 weights: forward(input, h_0=None) -> (output, h_n); packed sequences too."""

    _FLOAT_MODULE, _ROW, _GATES = nn.GRU, "gru", 3

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As nn.GRU, plus `dtype`: torch.qint8 or torch.float16."""
        super().__init__("GRU", *args, **kwargs)

    def _infer(self, input: Any, hx: Tensor | None = None) -> tuple[object, Tensor]:
        return self._layer(input, hx, (hx,))  # type: ignore[no-any-return]


class RNNCellBase(RecurrentModule):
    """A recurrent cell: x (N, I) or (I,)."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, num_chunks: int = 4, dtype: torch.dtype = torch.qint8) -> None:
        super().__init__(bias, dtype)
        self.input_size, self.hidden_size = input_size, hidden_size
        self._fill([(num_chunks * hidden_size, input_size), (num_chunks * hidden_size, hidden_size)])
        self.rebuild()

    def _sides(self) -> list[str]:
        return ["ih", "hh"]

    def _check_cell(self, input: Any, *states: Tensor | None) -> None:
        self._check("input", input)
        if torch.jit.is_tracing():  # type: ignore[attr-defined]  # sizes are tensors there
            return
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            raise InputError(f"{self._get_name()} takes (N, {self.input_size}) or ({self.input_size},), got {tuple(input.shape)}",
                             code="input-shape", where=self._where())  # fmt: skip
        for name, state in zip(("the hidden state", "the cell state"), states):
            self._state(name, state, (*input.shape[:-1], self.hidden_size))

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Self:
        """The dynamic form of a float cell, as its `.qconfig` says (default_dynamic_qconfig if it has none)."""
        del use_precomputed_fake_quant
        cls._expect_type(mod, cls._FLOAT_MODULE)
        qconfig, dtype = cls._qconfig_of(mod)
        m: Any = mod
        more = {"nonlinearity": m.nonlinearity} if hasattr(m, "nonlinearity") else {}
        return cls(m.input_size, m.hidden_size, bias=m.bias, dtype=dtype, **more)._take(mod, qconfig)

    def extra_repr(self) -> str:
        bias = "" if self.bias else ", bias=False"
        return f"{self.input_size}, {self.hidden_size}{bias}, {self._weight_repr('weight_ih')}"


class LSTMCell(RNNCellBase):
    """nn.LSTMCell on int8 or float16 weights: forward(input, (h, c)=None) -> (h, c)."""

    _FLOAT_MODULE, _ROW, _GATES = nn.LSTMCell, "lstm_cell", 4

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, dtype: torch.dtype = torch.qint8) -> None:
        """As nn.LSTMCell, plus `dtype`."""
        super().__init__(input_size, hidden_size, bias, num_chunks=4, dtype=dtype)

    def _infer(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        hidden, cell = hx if hx is not None else (None, None)
        self._check_cell(input, hidden, cell)
        return self._run(input, hx)  # type: ignore[no-any-return]


class GRUCell(RNNCellBase):
    """nn.GRUCell on int8 or float16 weights: forward(input, h=None) -> h."""

    _FLOAT_MODULE, _ROW, _GATES = nn.GRUCell, "gru_cell", 3

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, dtype: torch.dtype = torch.qint8) -> None:
        """As nn.GRUCell, plus `dtype`."""
        super().__init__(input_size, hidden_size, bias, num_chunks=3, dtype=dtype)

    def _infer(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        self._check_cell(input, hx)
        return self._run(input, hx)  # type: ignore[no-any-return]


class RNNCell(RNNCellBase):
    """nn.RNNCell on int8 or float16 weights: forward(input, h=None) -> h."""

    _FLOAT_MODULE, _ROW, _GATES = nn.RNNCell, "rnn_cell", 1

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh", dtype: torch.dtype = torch.qint8
    ) -> None:
        """As nn.RNNCell, plus `dtype`. ConfigError for another nonlinearity than tanh and relu."""
        if nonlinearity not in ("tanh", "relu"):
            raise ConfigError(f'nonlinearity is "tanh" or "relu", not {nonlinearity!r:.40}', code="nonlinearity")
        self.__dict__["nonlinearity"] = nonlinearity
        super().__init__(input_size, hidden_size, bias, num_chunks=1, dtype=dtype)
        self.nonlinearity = nonlinearity

    def _packed(self) -> tuple[str, dict[str, object]]:
        name, made = super()._packed()
        return name, {**made, "_relu": self.nonlinearity == "relu", "_reduce": not self._is_half and self._reduces()}

    def _cells(self) -> list[Any]:
        if self._is_half:
            return [packs.prepack_linear_half(self._part(f"weight_{s}"), self._buffers[f"bias_{s}"]) for s in self._sides()]
        return [packs.prepack_linear(*self._int8(f"weight_{s}"), self._buffers[f"bias_{s}"], self._axis(f"weight_{s}"), "")
                for s in self._sides()]  # fmt: skip

    def _infer(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        self._check_cell(input, hx)
        return self._run(input, hx)  # type: ignore[no-any-return]
