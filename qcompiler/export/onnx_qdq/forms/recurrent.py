"""LSTM, GRU and the recurrent cells in floats, on weights that are integers in the file.

Gates: torch has i f g o of an LSTM and r z n of a GRU; ONNX i o f c and z r h.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import torch
from torch import Tensor

from qcompiler.export.onnx_qdq.forms.weighted import weight_sizes, weight_value
from qcompiler.export.onnx_qdq.refusals import NoForm
from qcompiler.export.onnx_qdq.site import Form, Made, Operand, Site
from qcompiler.stages.arguments import Weight

ORDERS = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


def _ordered(tensor: Tensor, op: str) -> Tensor:
    parts = tensor.chunk(len(ORDERS[op]), 0)
    return torch.cat([parts[i] for i in ORDERS[op]])


def _weight(site: Site, given: Operand | Weight, op: str) -> ir.Value:
    """A weight of one direction, its gates in ONNX's order, with a dimension for the direction in front."""
    if isinstance(given, Operand):
        return site.call("Unsqueeze", site.constant(_ordered(_held(given), op)), site.ints(0))
    moved = replace(given, codes=_ordered(given.codes, op))
    if given.axis == 0:
        moved = replace(moved, scale=_ordered(given.scale, op), zero_point=_ordered(given.zero_point, op))
    return site.call("Unsqueeze", weight_value(site.graph, _plain(moved)), site.ints(0))


def _plain(weight: Weight) -> Weight:
    return replace(weight, zero_point=weight.zero_point.round().long())


def _held(given: Operand) -> Tensor:
    if given.value.const_value is None:
        raise NoForm("one of its weights is computed")
    return torch.from_numpy(given.value.const_value.numpy())


def _weights(site: Site) -> list[Operand | Weight]:
    found = site.get("weights")
    return [part for part in found if isinstance(part, (Operand, Weight))] if isinstance(found, list) else []


def _biases(site: Site) -> list[Operand]:
    found = site.get("biases")
    return [part for part in found if isinstance(part, Operand)] if isinstance(found, list) else []


def _width(site: Site) -> int:
    """Of the hidden state."""
    return weight_sizes(_weights(site)[1])[1]


def _cells(site: Site, op: str, directions: int, first: int) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """W, R and B of the cells of one layer."""
    weights, biases = _weights(site), _biases(site)
    cells = range(first, first + directions)
    w, r = ([_weight(site, weights[2 * k + side], op) for k in cells] for side in (0, 1))
    both = [torch.cat([_ordered(_held(biases[2 * k + side]), op) for side in (0, 1)]) for k in cells] if biases else []
    joined = [part[0] if directions == 1 else site.call("Concat", *part, axis=0) for part in (w, r)]
    return joined[0], joined[1], site.constant(torch.stack(both)) if both else None


def _states(site: Site, names: tuple[str, ...], layer: int, directions: int) -> list[ir.Value | None]:
    found: list[ir.Value | None] = []
    for name in names:
        given = site.optional(name)
        cut = (site.ints(layer * directions), site.ints((layer + 1) * directions), site.ints(0))
        found.append(None if given is None else site.call("Slice", given.value, *cut))
    return found


def layers(op: str) -> Form:
    names = ("hidden", "cell") if op == "LSTM" else ("hidden",)

    def form(site: Site) -> Made:
        x, directions = site.x, 2 if site.flag("bidirectional") else 1
        if x.rank != 3:
            raise NoForm("its input has no batch dimension")
        hidden = _width(site)
        value = site.call("Transpose", x.value, perm=[1, 0, 2]) if site.flag("batch_first") else x.value
        ends: list[list[ir.Value]] = []
        for layer in range(len(_weights(site)) // 2 // directions):
            w, r, b = _cells(site, op, directions, layer * directions)
            settings = {"linear_before_reset": 1} if op == "GRU" else {}
            made = site.graph.add(op, value, w, r, b, None, *_states(site, names, layer, directions), outputs=1 + len(names),
                                  hidden_size=hidden, direction="bidirectional" if directions == 2 else "forward", **settings)  # fmt: skip
            value = site.call("Reshape", site.call("Transpose", made[0], perm=[0, 2, 1, 3]), site.ints(0, 0, directions * hidden))
            ends.append(made[1:])
        output = site.call("Transpose", value, perm=[1, 0, 2]) if site.flag("batch_first") else value
        last = [parts[0] if len(parts) == 1 else site.call("Concat", *parts, axis=0) for parts in zip(*ends)]
        return [output, list(last) if op == "LSTM" else last[0]]

    return form


def cells(op: str) -> Form:
    """One step: a sequence of one."""
    names = ("hidden", "cell") if op == "LSTM" else ("hidden",)

    def form(site: Site) -> Made:
        if site.x.rank != 2:
            raise NoForm("its input has no batch dimension")
        zero = site.ints(0)
        given = [site.optional(name) for name in names]
        states = [None if state is None else site.call("Unsqueeze", state.value, zero) for state in given]
        w, r, b = _cells(site, op, 1, 0)
        settings: dict[str, int | list[str]] = {"linear_before_reset": 1} if op == "GRU" else {}
        if op == "RNN":
            settings = {"activations": [{"tanh": "Tanh", "relu": "Relu"}[site.text("nonlinearity")]]}
        made = site.graph.add(op, site.call("Unsqueeze", site.x.value, zero), w, r, b, None, *states, outputs=1 + len(names),
                              hidden_size=_width(site), **settings)  # fmt: skip
        found = [site.call("Squeeze", state, zero) for state in made[1:]]
        return list(found) if op == "LSTM" else found[0]

    return form


FORMS: dict[str, Form] = {
    "lstm": layers("LSTM"), "gru": layers("GRU"), "lstm_cell": cells("LSTM"), "gru_cell": cells("GRU"), "rnn_cell": cells("RNN"),
}  # fmt: skip
