"""LSTM, GRU and the recurrent cells. Their kernels take floats and quantize at run time: there is no other int8 form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.ops import macs, recurrent
from qcompiler.ops.example import Example
from qcompiler.ops.spec import Family, ModuleForm, Op, Output, Param, Role

STATES = {"hidden": Param("hidden"), "cell": Param("cell")}
FLAT = (Param("weights", Role.WEIGHTS), Param("biases", Role.BIAS))


def cells(module: Any) -> list[str]:
    """The suffixes of the names of parameters, cell by cell: l0, l0_reverse, l1, ..."""
    return [f"l{k}{end}" for k in range(module.num_layers) for end in ("", "_reverse")[: 1 + module.bidirectional]]


def _layer_lists(module: Any) -> Mapping[str, tuple[str, ...]]:
    names = [f"{side}_{cell}" for cell in cells(module) for side in ("ih", "hh")]
    return {"weights": tuple(f"weight_{n}" for n in names), "biases": tuple(f"bias_{n}" for n in names) if module.bias else ()}


def _cell_lists(module: Any) -> Mapping[str, tuple[str, ...]]:
    return {"weights": ("weight_ih", "weight_hh"), "biases": ("bias_ih", "bias_hh") if module.bias else ()}


def _layer_attributes(module: Any) -> Mapping[str, object]:
    return {"batch_first": module.batch_first, "bidirectional": module.bidirectional}


def _refusal(module: Any) -> str | None:
    if getattr(module, "proj_size", 0):
        return "proj_size is set: torch's dynamic kernels have no projection of the hidden state"
    return "it is in training mode, where it drops values" if module.training and module.dropout else None


@dataclass(frozen=True)
class Cell:
    """A kind of cell: how many gates its weights are stacked from, and its states."""

    gates: int
    states: tuple[str, ...]


LSTM, GRU, RNN = Cell(4, ("hidden", "cell")), Cell(3, ("hidden",)), Cell(1, ("hidden",))
PACKED = (Param("x"), *(Param(name, Role.INDICES) for name in ("batch_sizes", "sorted_indices", "unsorted_indices")))


@dataclass(frozen=True)
class Over:
    """What an op runs its cells over: inputs and attributes, and in the example 2 rows of 8 values, of 5 steps or of 5 and 3."""

    attributes: str
    shape: tuple[int, ...]
    inputs: tuple[Param, ...] = (Param("x"),)
    integers: Mapping[str, Tensor] = field(default_factory=dict)


STEPS, ONE_STEP = Over("batch_first=False bidirectional=False", (5, 2, 8)), Over("", (2, 8))
PACKED_STEPS = Over("bidirectional=False", (8, 8), PACKED, {"batch_sizes": torch.tensor([2, 2, 2, 1, 1])})


def _row(name: str, fn: Callable[..., object], form: ModuleForm | None, cell: Cell, over: Over, attributes: str = "") -> Op:
    params = (*over.inputs, *(STATES[s] for s in cell.states), *FLAT)
    states = (f"{s}=None" for s in cell.states)
    words = (*(p.name for p in over.inputs), *states, "weights=()", "biases=()", over.attributes, attributes, "activation_range=None")
    wide = 6 * cell.gates
    example = Example((over.shape,), {"weights": ((wide, 8), (wide, 6)), "biases": ((wide,), (wide,))}, over.integers)
    return Op(name=name, fn=fn, signature=" ".join(filter(None, words)), params=params, output=Output.FLOAT,
              modules=(form,) if form is not None else (), macs=macs.recurrent, rounds_inside=True,
              family=Family.RECURRENT, example=example)  # fmt: skip


BOTH, HIDDEN = "input:x hx:hidden,cell=None", "input:x hx:hidden=None"

LAYERS: dict[str, Any] = {"make": lambda cls: cls(8, 6), "attributes": _layer_attributes, "refuse": _refusal, "lists": _layer_lists}
CELLS: dict[str, Any] = {"make": lambda cls: cls(8, 6), "lists": _cell_lists}

ROWS = (
    _row("lstm", recurrent.lstm, ModuleForm(nn.LSTM, signature=BOTH, packed="lstm_packed", **LAYERS), LSTM, STEPS),
    _row("gru", recurrent.gru, ModuleForm(nn.GRU, signature=HIDDEN, packed="gru_packed", **LAYERS), GRU, STEPS),
    _row("lstm_packed", recurrent.lstm_packed, None, LSTM, PACKED_STEPS),
    _row("gru_packed", recurrent.gru_packed, None, GRU, PACKED_STEPS),
    _row("lstm_cell", recurrent.lstm_cell, ModuleForm(nn.LSTMCell, signature=BOTH, **CELLS), LSTM, ONE_STEP),
    _row("gru_cell", recurrent.gru_cell, ModuleForm(nn.GRUCell, signature=HIDDEN, **CELLS), GRU, ONE_STEP),
    _row("rnn_cell", recurrent.rnn_cell, ModuleForm(nn.RNNCell, signature=HIDDEN, attributes=lambda m: {"nonlinearity": m.nonlinearity},
                                                    **CELLS), RNN, ONE_STEP, "nonlinearity='tanh'"),
)  # fmt: skip
