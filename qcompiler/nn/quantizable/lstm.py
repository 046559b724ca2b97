"""LSTM and LSTMCell of linears, activations and FloatFunctionals, so that each value in them can be observed and quantized."""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

from typing import Any, ClassVar, Optional

import torch
from torch import Tensor, nn
from torch._jit_internal import is_scripting

from qcompiler.errors import ConfigError, InputError
from qcompiler.nn.float_classes import FloatClasses
from qcompiler.nn.place import place_of
from qcompiler.nn.quantizable.observe import observe_, qconfig_of
from qcompiler.nn.quantized.functional_modules import FloatFunctional

GATES = ("input", "forget", "cell", "output")


class LSTMCell(nn.Module):
    """nn.LSTMCell taken apart: igates and hgates are linears with 4 * hidden_dim results, `gates` adds them.

    `split_gates`: one linear per gate instead, each with qparams of its own (more accurate, slower).
    """

    _FLOAT_MODULE: ClassVar[FloatClasses] = nn.LSTMCell
    __constants__ = ["split_gates"]

    def __init__(self, input_dim: int, hidden_dim: int, bias: bool = True, device: Any = None, dtype: Any = None, *,
                 split_gates: bool = False) -> None:  # fmt: skip
        super().__init__()
        made = {"bias": bias, "device": device, "dtype": dtype}
        self.input_size, self.hidden_size, self.bias, self.split_gates = input_dim, hidden_dim, bias, split_gates
        if split_gates:
            self.igates: nn.Module = nn.ModuleDict({g: nn.Linear(input_dim, hidden_dim, **made) for g in GATES})
            self.hgates: nn.Module = nn.ModuleDict({g: nn.Linear(hidden_dim, hidden_dim, **made) for g in GATES})
            self.gates: nn.Module = nn.ModuleDict({g: FloatFunctional() for g in GATES})
        else:
            self.igates = nn.Linear(input_dim, 4 * hidden_dim, **made)
            self.hgates = nn.Linear(hidden_dim, 4 * hidden_dim, **made)
            self.gates = FloatFunctional()
        self.input_gate, self.forget_gate, self.output_gate = nn.Sigmoid(), nn.Sigmoid(), nn.Sigmoid()
        self.cell_gate, self.cell_tanh = nn.Tanh(), nn.Tanh()
        self.fgate_cx, self.igate_cgate = FloatFunctional(), FloatFunctional()
        self.fgate_cx_igate_cgate, self.ogate_cy = FloatFunctional(), FloatFunctional()

    def forward(self, x: Tensor, hidden: Optional[tuple[Tensor, Tensor]] = None) -> tuple[Tensor, Tensor]:  # noqa: UP045
        """x (N, input) or (input), hidden (h, c) of (N, hidden), zeros by default -> the next (h, c)."""
        rows = x.unsqueeze(0) if x.dim() == 1 else x
        if hidden is None:
            h, c = self.initial_state(rows, rows.size(0))
        elif x.dim() == 1:
            h, c = self.own_state(hidden[0].unsqueeze(0), hidden[1].unsqueeze(0))
        else:
            h, c = self.own_state(hidden[0], hidden[1])
        h, c = self.step(self.project(rows), h, c)
        return (h.squeeze(0), c.squeeze(0)) if x.dim() == 1 else (h, c)

    def project(self, x: Tensor) -> list[Tensor]:
        """The input's share of the gates, for any leading dimensions of x: one tensor, or one per gate."""
        if self.split_gates:
            parts: list[Tensor] = []
            for gate in self.igates.values():  # type: ignore[operator]
                parts.append(gate(x))
            return parts
        return [self.igates(x)]

    def step(self, projected: list[Tensor], h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The next (h, c) from the input's share of the gates, (N, ...)."""
        parts: list[Tensor] = []
        if self.split_gates:
            for at, (hidden, gate) in enumerate(zip(self.hgates.values(), self.gates.values())):  # type: ignore[operator]
                parts.append(gate.add(projected[at], hidden(h)))
        else:
            parts = list(self.gates.add(projected[0], self.hgates(h)).chunk(4, 1))  # type: ignore[operator]
        kept = self.fgate_cx.mul(self.forget_gate(parts[1]), c)
        new = self.igate_cgate.mul(self.input_gate(parts[0]), self.cell_gate(parts[2]))
        c = self.fgate_cx_igate_cgate.add(kept, new)
        return self.ogate_cy.mul(self.output_gate(parts[3]), self.cell_tanh(c)), c

    def initial_state(self, x: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """(h, c) of zeros, (batch, hidden), of the type of x."""
        zeros = torch.zeros([batch, self.hidden_size], dtype=x.dtype, device=x.device)
        return zeros, zeros

    def own_state(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """A given (h, c) as `step` takes it: observed with the states that come out, whose qparams it gets."""
        return self.ogate_cy.activation_post_process(h), self.fgate_cx_igate_cgate.activation_post_process(c)

    def _get_name(self) -> str:
        return f"Quantizable{type(self).__name__}"

    def load_params(self, wi: Tensor, wh: Tensor, bi: Tensor | None, bh: Tensor | None) -> None:
        """Takes copies of torch's weights (4 * hidden, in) and biases (4 * hidden): gates input, forget, cell, output."""
        for weight, bias, linear in ((wi, bi, self.igates), (wh, bh, self.hgates)):
            linears: Any = list(linear.values()) if isinstance(linear, nn.ModuleDict) else [linear]
            count = len(linears)
            biases = (None,) * count if bias is None else bias.detach().chunk(count)
            for part, w, b in zip(linears, weight.detach().chunk(count), biases):
                part.weight = nn.Parameter(w.clone())
                part.bias = None if b is None else nn.Parameter(b.clone())

    @classmethod
    def from_params(cls, wi: Tensor, wh: Tensor, bi: Tensor | None = None, bh: Tensor | None = None, split_gates: bool = False) -> Any:
        """A cell with these weights and biases, unobserved."""
        cell = cls(wi.shape[1], wh.shape[1], bi is not None, wi.device, wi.dtype, split_gates=split_gates)
        cell.load_params(wi, wh, bi, bh)
        return cell

    @classmethod
    def from_float(cls, other: nn.LSTMCell, use_precomputed_fake_quant: bool = False, split_gates: bool = False) -> Any:
        """The observed cell with copies of the weights of an nn.LSTMCell that has a qconfig.

        Calibrate it, then nn.quantized.LSTMCell.from_observed.
        """
        qconfig = qconfig_of(other)
        made = cls.from_params(other.weight_ih, other.weight_hh, other.bias_ih, other.bias_hh, split_gates)
        made.train(other.training)
        observe_(made, qconfig, getattr(other, "_qc_path", ""))
        return made


class LSTMDirection(nn.Module):
    """One layer in one direction: a cell over the steps of a sequence."""

    def __init__(self, cell: LSTMCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, hidden: Optional[tuple[Tensor, Tensor]] = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # noqa: UP045
        """x (T, N, input) -> ((T, N, hidden), (h, c)). The input's share of the gates is one product for all steps."""
        if hidden is None:
            h, c = self.cell.initial_state(x, x.size(1))
        else:
            h, c = self.cell.own_state(hidden[0], hidden[1])
        projected = self.cell.project(x)
        results: list[Tensor] = []
        for t in range(x.size(0)):
            h, c = self.cell.step([part[t] for part in projected], h, c)
            results.append(h)
        return torch.stack(results, 0), (h, c)


class LSTMLayer(nn.Module):
    """One layer: forwards, and where `bidirectional` backwards as well; `join` puts their results side by side."""

    __constants__ = ["bidirectional"]

    def __init__(self, forwards: LSTMDirection, backwards: Optional[LSTMDirection] = None) -> None:  # noqa: UP045
        super().__init__()
        self.bidirectional = backwards is not None
        self.layer_fw = forwards
        if backwards is not None:
            self.layer_bw = backwards
            self.join = FloatFunctional()

    def forward(self, x: Tensor, hidden: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """x (T, N, input), `hidden` one (h, c) per direction or nothing -> result (T, N, directions * hidden), last states."""
        result, state = self.layer_fw(x, hidden[0] if len(hidden) > 0 else None)
        states = [state]
        if self.bidirectional:
            back, state = self.layer_bw(x.flip(0), hidden[1] if len(hidden) > 0 else None)
            states.append(state)
            result = self.join.cat([result, back.flip(0)], 2)
        return result, states


class LSTM(nn.Module):
    """nn.LSTM in parts that can be observed; the same values. Arguments as there; `split_gates` as in LSTMCell.

    The weights are under `layers[i].layer_fw.cell.igates.weight` and so on.
    """

    _FLOAT_MODULE: ClassVar[FloatClasses] = nn.LSTM

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
                 dropout: float = 0.0, bidirectional: bool = False, device: object = None, dtype: object = None, *,
                 split_gates: bool = False) -> None:  # fmt: skip
        """Raises ConfigError for a dropout that is no probability."""
        super().__init__()
        if isinstance(dropout, bool) or not 0 <= dropout <= 1:
            raise ConfigError(f"dropout is a probability, not {dropout!r}", code="dropout")
        self.input_size, self.hidden_size, self.num_layers, self.bias = input_size, hidden_size, num_layers, bias
        self.batch_first, self.dropout, self.bidirectional = batch_first, float(dropout), bidirectional
        width = 2 * hidden_size if bidirectional else hidden_size

        def direction(layer: int) -> LSTMDirection:
            taken = width if layer else input_size
            return LSTMDirection(LSTMCell(taken, hidden_size, bias, device, dtype, split_gates=split_gates))

        self.layers = nn.ModuleList(LSTMLayer(direction(i), direction(i) if bidirectional else None) for i in range(num_layers))
        self.join_h, self.join_c = FloatFunctional(), FloatFunctional()

    def forward(self, x: Tensor, hidden: Optional[tuple[Tensor, Tensor]] = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # noqa: UP045
        """x (T, N, input), (N, T, input) with batch_first, or (T, input); hidden (h, c) of (layers * directions, N, hidden).

        Returns the result in the layout of x, and the last (h, c).
        """
        if not is_scripting():
            self._check_input(x)
        batched = x.dim() == 3
        x = x.unsqueeze(1) if not batched else x.transpose(0, 1) if self.batch_first else x
        directions = 2 if self.bidirectional else 1
        hs: list[Tensor] = []
        cs: list[Tensor] = []
        for at, layer in enumerate(self.layers):
            given: list[tuple[Tensor, Tensor]] = []
            if hidden is not None:
                for d in range(directions):
                    h, c = hidden[0][at * directions + d], hidden[1][at * directions + d]
                    given.append((h, c) if batched else (h.unsqueeze(0), c.unsqueeze(0)))
            x, states = layer(x, given)
            if self.training and at + 1 < self.num_layers:
                x = nn.functional.dropout(x, self.dropout, True)
            hs += [state[0].unsqueeze(0) for state in states]
            cs += [state[1].unsqueeze(0) for state in states]
        h, c = self.join_h.cat(hs, 0), self.join_c.cat(cs, 0)
        if not batched:
            return x.squeeze(1), (h.squeeze(1), c.squeeze(1))
        return x.transpose(0, 1) if self.batch_first else x, (h, c)

    @torch.jit.unused
    def _check_input(self, x: object) -> None:
        where = place_of(self)
        if not isinstance(x, Tensor):
            raise InputError(f"{self._get_name()} takes a tensor, not a {type(x).__name__}", code="input-type", where=where,
                             hint="packed sequences are for nn.quantized.dynamic.LSTM")  # fmt: skip
        if x.dim() not in (2, 3) or x.size(-1) != self.input_size:
            raise InputError(f"{self._get_name()} takes (T, N, {self.input_size}) or (T, {self.input_size}), got {tuple(x.shape)}",
                             code="input-shape", where=where)  # fmt: skip

    def _get_name(self) -> str:
        return f"Quantizable{type(self).__name__}"

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, batch_first={self.batch_first}, " \
               f"bidirectional={self.bidirectional}"  # fmt: skip

    @classmethod
    def from_float(cls, other: nn.LSTM, qconfig: object = None, split_gates: bool = False) -> Any:
        """The observed LSTM with copies of an nn.LSTM's weights: calibrate it, then nn.quantized.LSTM.from_observed.

        `qconfig`: where `other` has none. Raises ConfigError for what is no nn.LSTM, and for projections.
        """
        where = place_of(other)
        if not isinstance(other, nn.LSTM) or other.proj_size:
            kind = "an LSTM with proj_size" if isinstance(other, nn.LSTM) else type(other).__name__
            raise ConfigError(f"quantizable.LSTM stands for nn.LSTM without projection, not for {kind}", code="from-float", where=where)
        qconfig = qconfig_of(other, qconfig)
        made = cls(other.input_size, other.hidden_size, other.num_layers, other.bias, other.batch_first, other.dropout,
                   other.bidirectional, split_gates=split_gates)  # fmt: skip
        for at, layer in enumerate(made.layers):
            for suffix, direction in (("", "layer_fw"), ("_reverse", "layer_bw"))[: 2 if other.bidirectional else 1]:
                names = (f"{kind}_l{at}{suffix}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
                getattr(layer, direction).cell.load_params(*(getattr(other, name, None) for name in names))
        made.train(other.training)
        observe_(made, qconfig, where.module_path or "")
        return made
