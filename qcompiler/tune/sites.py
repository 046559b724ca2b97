"""Where a weight of integers is multiplied: what can be rounded anew, and what its rows of products are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, fx

from qcompiler.ir.attributes import attribute
from qcompiler.ir.types import Mode, quant_of
from qcompiler.ops.reference import dequantize, quantize
from qcompiler.ops.spec import CONVOLUTIONS, Family, Op
from qcompiler.stages.arguments import Bounds, Weight, bounds_of
from qcompiler.stages.quantized import Call, call_of
from qcompiler.target import WeightLimit
from qcompiler.workflow.twins import Twin

Ints: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Site:
    """An int8 or dynamic op with one weight of integers, and its twin in float.

    `path`: of the weight in the quantized graph, `name` in the user's model. `shared`: other ops read the weight as well. `limit`: what the
    kernel's partial sums ask of the weight.
    """

    call: Call
    twin: fx.Node
    path: str
    weight: Weight
    bounds: Bounds
    shared: bool
    limit: WeightLimit | None

    @property
    def node(self) -> fx.Node:
        return self.call.node

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def row(self) -> Op:
        return self.call.op.settled

    @property
    def is_conv(self) -> bool:
        return self.row.family in CONVOLUTIONS

    @property
    def groups(self) -> int:
        groups = self.call.attributes.get("groups", 1) if self.is_conv else 1
        assert isinstance(groups, int)
        return groups

    def kept(self, x: Tensor) -> Tensor:
        """Float numbers of the input brought, in place, within the range that it is rounded on, if that is known before the call."""
        given = self.node.args[0]
        source = given.args[0] if isinstance(given, fx.Node) and given.target is dequantize else None
        if not isinstance(source, fx.Node) or source.target is not quantize:
            return x
        scale, zero_point, low, high = source.args[1:5]
        if not (isinstance(scale, float) and isinstance(zero_point, int) and isinstance(low, int) and isinstance(high, int)):
            return x
        return x.clamp_((low - zero_point) * scale, (high - zero_point) * scale)

    def setting(self, name: str) -> Ints:
        """A setting of a convolution, one number for each dimension."""
        given = self.call.attributes.get(name, 0 if "padding" in name else 1)
        return tuple(given) if isinstance(given, (tuple, list)) else (int(given),) * (self.row.dims or 0)  # type: ignore[call-overload]


def sites(twin: Twin) -> Iterator[Site]:
    """Convolutions, transposed ones and linears with 8-bit codes, in the order in which they run."""
    floats = {node.name: node for node in twin.floats.graph.nodes}
    for node in twin.quantized.graph.nodes:
        row = twin.settings.table.of(node)
        if row is None or row.settled.family not in (*CONVOLUTIONS, Family.LINEAR) or quant_of(node).mode not in (None, Mode.DYNAMIC):
            continue
        call = call_of(twin.quantized, node, twin.settings.table)
        weight = call.weight if call is not None else None
        if call is not None and isinstance(weight, Weight) and weight.bits == 8 and weight.codes.dtype is torch.int8:
            yield _site(twin, call, weight, floats[node.name])


def _site(twin: Twin, call: Call, weight: Weight, floats: fx.Node) -> Site:
    given = call.node.args[call.op.weight or 0]
    assert isinstance(given, fx.Node) and isinstance(given.args[0], fx.Node)
    limit = twin.settings.target.weight_limit(call.op, call.node)
    path = str(given.args[0].target)
    readers = [user for node in twin.quantized.graph.nodes if node.op == "get_attr" and node.target == path for user in node.users]
    shared = len(given.users) > 1 or len(readers) > 1
    return Site(call, floats, path, weight, bounds_of(call.node.kwargs), shared, limit)


def as_rows(site: Site, weight: Tensor) -> Tensor:
    """(groups, channels, products): the weight as matrices; of a transposed convolution the plain one on an input with zeros between."""
    groups = site.groups
    if site.row.family is Family.TRANSPOSED:
        spatial = weight.dim() - 2
        weight = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]).transpose(1, 2)
        return weight.flip([-1 - i for i in range(spatial)]).reshape(groups, weight.shape[1], -1)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def from_rows(site: Site, rows: Tensor) -> Tensor:
    """The inverse of `as_rows`; of a plain op the channels may be more or fewer."""
    shape = site.weight.shape
    if site.row.family is not Family.TRANSPOSED:
        return rows.reshape(-1, *shape[1:])
    groups, spatial = site.groups, len(shape) - 2
    made = rows.reshape(groups, shape[1], shape[0] // groups, *shape[2:]).flip([-1 - i for i in range(spatial)])
    return made.transpose(1, 2).reshape(shape)


def per_channel(site: Site, values: Tensor) -> Tensor:
    """(groups, channels, 1) of scales, zero points or biases, one for each channel of the result or one for all."""
    groups, axis = site.groups, site.weight.axis
    if values.numel() == 1 or axis is None:
        return values.reshape(1, 1, -1)[..., :1].expand(groups, -1, 1)
    if site.row.family is Family.TRANSPOSED and values.numel() == site.weight.shape[1]:
        return values.reshape(1, -1, 1).expand(groups, -1, 1)  # all groups have the same scales
    return values.reshape(groups, -1, 1)


def float_weight(twin: Twin, site: Site) -> Tensor:
    """The float values of the weight."""
    given = site.twin.args[site.call.op.weight or 0]
    assert isinstance(given, fx.Node)
    return attribute(twin.floats, str(given.target)).detach()


def float_bias(twin: Twin, site: Site) -> Tensor | None:
    """The bias of the float op."""
    at = [param.name for param in site.call.op.params].index("bias")
    given = site.twin.args[at] if at < len(site.twin.args) else None
    return attribute(twin.floats, str(given.target)).detach() if isinstance(given, fx.Node) else None
