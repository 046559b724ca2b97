"""Kernels of ops that take and give floats while their weights are quantized, by mode and op, in the order of preference.

Mode None is plain float: the ops whose canonical function is no single call of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from qcompiler.backends.torch.kernels.conv import axis_of
from qcompiler.backends.torch.kernels.linear import like_input
from qcompiler.backends.torch.kernels.modes import HALF_ENGINES
from qcompiler.backends.torch.runtime import functions, packs, recurrent, tables
from qcompiler.backends.torch.site import ENGINES, Emit, Half, Kernel, Rounded, Site, Weight
from qcompiler.ir.types import Mode
from qcompiler.ops import recurrent_float
from qcompiler.ops.recurrent import interleaved
from qcompiler.ops.rows.recurrent import ROWS
from qcompiler.ops.spec import Role

OPS = torch.ops.quantized
RECURRENT = tuple(row.name for row in ROWS)
FLOAT: Mapping[str, Callable[..., Any]] = {name: getattr(recurrent_float, f"{name}_float") for name in RECURRENT}


def _argument(site: Site, position: int) -> Any:
    return site.args[position] if position < len(site.args) else None


def _clamped(site: Site, emit: Emit, result: fx.Node) -> fx.Node:
    low, high = site.get("bounds") or (None, None)
    return result if low is None and high is None else emit.call(torch.ops.aten.clamp.default, result, low, high)


def _linear(site: Site, emit: Emit, x: Any, pack: fx.Node, kernels: tuple[Any, Any], *more: Any) -> fx.Node:
    """(plain, with ReLU): rows of any number of leading dimensions; a vector gets one for the call."""
    vector = site.rank == 1
    rows = emit.call(torch.ops.aten.unsqueeze.default, x, 0) if vector else x
    relu = site.get("bounds") == (0.0, None)
    result = emit.call(kernels[relu], rows, pack, *more)
    result = like_input(site, emit, result, x)
    return result if relu else _clamped(site, emit, result)


def emit_linear_dynamic(site: Site, emit: Emit) -> fx.Node:
    x, weight = site.args[:2]
    pack = emit.call(packs.prepack_linear, weight.node, weight.scale, weight.zero_point, _argument(site, 2), axis_of(weight), "")
    rows = emit.call(functions.of_width, x.node, weight.shape[1]) if site.engine == "qnnpack" else x.node
    return _linear(site, emit, rows, pack, (OPS.linear_dynamic.default, OPS.linear_relu_dynamic.default), x.reduce_range)


def emit_linear_half(site: Site, emit: Emit) -> fx.Node:
    pack = emit.call(packs.prepack_linear_half, site.args[1].node, _argument(site, 2))
    return _linear(site, emit, site.args[0], pack, (OPS.linear_dynamic_fp16.default, OPS.linear_relu_dynamic_fp16.default))


def _weights_at(site: Site) -> int:
    """Position of the list of weights; that of biases follows."""
    return next(i for i, p in enumerate(site.op.params) if p.role is Role.WEIGHTS)


def _inputs(site: Site) -> tuple[Any, ...]:
    """The input, what a packed sequence has beside its data, and the states."""
    return site.args[: _weights_at(site)]


def _lists(site: Site) -> tuple[list[Any], list[Any]]:
    at = _weights_at(site)
    return list(site.args[at]), list(_argument(site, at + 1) or ())


def _layer(site: Site) -> tuple[bool, ...]:
    """What tells one layer's call from another's."""
    return tuple(bool(site.get(name)) for name in ("bidirectional", "batch_first") if site.op.takes(name))


def _cells(site: Site, emit: Emit, half: bool) -> list[fx.Node]:
    """One pack a cell."""
    weights, biases = _lists(site)
    low, high = site.get("activation_range") or (0, 255)
    made = []
    for k in range(0, len(weights), 2):
        ih, hh = weights[k], weights[k + 1]
        b = biases[k : k + 2] or [None, None]
        if half:
            made.append(emit.call(recurrent.prepack_cell_half, ih.node, hh.node, *b))
        else:
            parts = (ih.node, ih.scale, ih.zero_point, hh.node, hh.scale, hh.zero_point)
            made.append(emit.call(recurrent.prepack_cell, *parts, *b, ih.axis is not None, high - low == 127))
    return made


def _emit_recurrent(half: bool) -> Callable[[Site, Emit], fx.Node]:
    def emit_recurrent(site: Site, emit: Emit) -> fx.Node:
        weights = _lists(site)[0]
        if site.op.takes("nonlinearity"):
            return _rnn_cell(site, emit, half)
        more = (half,) if site.op.takes("cell") else ()
        given = (*_inputs(site), _cells(site, emit, half), weights[1].shape[1], *_layer(site), *more, weights[0].shape[1])
        return emit.call(getattr(recurrent, f"{site.op.name}_dynamic"), *given)

    return emit_recurrent


def _rnn_cell(site: Site, emit: Emit, half: bool) -> fx.Node:
    weights, biases = _lists(site)
    cells: list[fx.Node] = []
    for weight, bias in zip(weights, biases or [None, None], strict=True):
        if half:
            cells.append(emit.call(packs.prepack_linear_half, weight.node, bias))
        else:
            cells.append(emit.call(packs.prepack_linear, weight.node, weight.scale, weight.zero_point, bias, axis_of(weight), ""))
    low, high = site.get("activation_range") or (0, 255)
    relu = site.get("nonlinearity", "tanh") == "relu"
    return emit.call(recurrent.rnn_cell_dynamic, *_inputs(site), *cells, weights[1].shape[1], relu, high - low == 127, half,
                     weights[0].shape[1])  # fmt: skip


def _widened(weight: object, emit: Emit) -> Any:
    """The float32 weight, made once."""
    if isinstance(weight, Half):
        return emit.call(packs.widened, weight.node)
    if not isinstance(weight, Weight):
        return weight
    if weight.bits == 4:
        return emit.call(tables.unpacked_4bit, weight.node, weight.scale, weight.zero_point, weight.shape[-1])
    return emit.call(packs.float_weight, weight.node, weight.scale, weight.zero_point, axis_of(weight))


def emit_recurrent_float(site: Site, emit: Emit) -> fx.Node:
    weights, biases = _lists(site)
    flat = interleaved([_widened(w, emit) for w in weights], biases)
    if site.op.takes("bidirectional"):
        more: tuple[Any, ...] = (bool(biases), *_layer(site))
    else:
        more = (site.get("nonlinearity", "tanh"),) if site.op.takes("nonlinearity") else ()
    return emit.call(FLOAT[site.op.name], *_inputs(site), flat, *more)


def emit_float(site: Site, emit: Emit) -> fx.Node:
    """The canonical call itself, on weights that are made float once."""
    values = [a.node if isinstance(a, Rounded) else _widened(a, emit) for a in site.args]
    return emit.call(site.op.fn, *values, **site.attributes)


def _table(weight: Weight, emit: Emit) -> fx.Node:
    make = tables.rows_4bit if weight.bits == 4 else tables.rows_8bit
    return emit.call(make, weight.node, weight.scale, weight.zero_point)


def emit_embedding(site: Site, emit: Emit) -> fx.Node:
    weight = site.args[1]
    return emit.call(tables.embedding_rows, _table(weight, emit), site.args[0], weight.shape[1], weight.bits)


def emit_embedding_bag(site: Site, emit: Emit) -> fx.Node:
    weight, padding = site.args[1], site.get("padding_idx")
    padding = padding + weight.shape[0] if padding is not None and padding < 0 else padding
    settings = (weight.shape[1], weight.bits, site.get("mode", "mean"), bool(site.get("include_last_offset")), padding)
    return emit.call(tables.embedding_bag_rows, _table(weight, emit), site.args[0], _argument(site, 2), _argument(site, 3), *settings)


def refuse_columns(site: Site) -> str | None:
    """A table quantized along its columns (never by our own observers) has no rows to read."""
    return None if site.args[1].axis in (None, 0) else "its table is not quantized by row"


def _kernels() -> dict[Mode | None, dict[str, tuple[Kernel, ...]]]:
    plain = {name: Kernel(name, ENGINES, emit_recurrent_float, note="torch's float kernels") for name in RECURRENT}
    dynamic = {name: (Kernel(name, ENGINES, _emit_recurrent(half=False)),) for name in RECURRENT}
    half = {name: (Kernel(name, HALF_ENGINES, _emit_recurrent(half=True)), plain[name]) for name in RECURRENT}
    lookups = (("embedding", emit_embedding), ("embedding_bag", emit_embedding_bag))
    byte: dict[str, tuple[Kernel, ...]] = {name: (Kernel(name, ENGINES, emit, refuse_columns),) for name, emit in lookups}
    return {
        None: {name: (kernel,) for name, kernel in plain.items()},
        Mode.DYNAMIC: {"linear": (Kernel("linear", ENGINES, emit_linear_dynamic),), **dynamic},
        Mode.HALF: {"linear": (Kernel("linear", HALF_ENGINES, emit_linear_half),), **half},
        Mode.WEIGHT_ONLY: {**{name: (kernel,) for name, kernel in plain.items()}, **byte},
        Mode.FOUR_BIT: byte,
    }


TABLE = _kernels()


def select(site: Site, mode: Mode | None) -> Kernel | None:
    """The first entry that takes the site on its engine; any op with a mode can run in float. None: the op stays as it is."""
    for kernel in TABLE[mode].get(site.op.name, ()):
        if site.engine in kernel.engines and kernel.refuse(site) is None:
            return kernel
    return Kernel(site.op.name, ENGINES, emit_float, note="float arithmetic, quantized weights") if mode is not None else None
