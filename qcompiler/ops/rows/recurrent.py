"""LSTM, GRU and the recurrent cells. Their kernels take floats and quantize at run time: there is no other int8 form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from qcompiler.ops import macs, recurrent
from qcompiler.ops.spec import ModuleForm, Op, Output, Param, Role

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


def _layer_attributes(module: Any) -> Mapping[str, Any]:
    return {"batch_first": module.batch_first, "bidirectional": module.bidirectional}


def _refusal(module: Any) -> str | None:
    if getattr(module, "proj_size", 0):
        return "proj_size is set: torch's dynamic kernels have no projection of the hidden state"
    return "it is in training mode, where it drops values" if module.training and module.dropout else None


def _row(name: str, fn: Callable[..., Any], form: ModuleForm | None, states: tuple[str, ...], attributes: str = "",
         inputs: tuple[Param, ...] = (Param("x"),)) -> Op:  # fmt: skip
    params = (*inputs, *(STATES[s] for s in states), *FLAT)
    words = (*(p.name for p in inputs), *(f"{s}=None" for s in states), "weights=()", "biases=()", attributes, "activation_range=None")
    return Op(name=name, fn=fn, signature=" ".join(filter(None, words)), params=params, output=Output.FLOAT,
              modules=(form,) if form is not None else (), macs=macs.recurrent, rounds_inside=True)  # fmt: skip


PACKED = (Param("x"), *(Param(name, Role.INDICES) for name in ("batch_sizes", "sorted_indices", "unsorted_indices")))
LAYER = "batch_first=False bidirectional=False"
BOTH, HIDDEN = "input:x hx:hidden,cell=None", "input:x hx:hidden=None"

LAYERS: dict[str, Any] = {"attributes": _layer_attributes, "refuse": _refusal, "lists": _layer_lists}
CELLS: dict[str, Any] = {"lists": _cell_lists}

ROWS = (
    _row("lstm", recurrent.lstm, ModuleForm(nn.LSTM, signature=BOTH, packed="lstm_packed", **LAYERS), ("hidden", "cell"), LAYER),
    _row("gru", recurrent.gru, ModuleForm(nn.GRU, signature=HIDDEN, packed="gru_packed", **LAYERS), ("hidden",), LAYER),
    _row("lstm_packed", recurrent.lstm_packed, None, ("hidden", "cell"), "bidirectional=False", PACKED),
    _row("gru_packed", recurrent.gru_packed, None, ("hidden",), "bidirectional=False", PACKED),
    _row("lstm_cell", recurrent.lstm_cell, ModuleForm(nn.LSTMCell, signature=BOTH, **CELLS), ("hidden", "cell")),
    _row("gru_cell", recurrent.gru_cell, ModuleForm(nn.GRUCell, signature=HIDDEN, **CELLS), ("hidden",)),
    _row("rnn_cell", recurrent.rnn_cell, ModuleForm(nn.RNNCell, signature=HIDDEN, attributes=lambda m: {"nonlinearity": m.nonlinearity},
                                                    **CELLS), ("hidden",), "nonlinearity='tanh'"),
)  # fmt: skip
