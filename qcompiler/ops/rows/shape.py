"""Ops that move, copy, pool or average values: their result lives on their input's scale."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from qcompiler.ops import functional as Q
from qcompiler.ops.example import IMAGE, Example, Shape
from qcompiler.ops.spec import Family, ModuleForm, Op, Output, Param, Role, Spelling, always

X = Param("x")


def on(*inputs: Shape, pick: int | None = None, **attributes: object) -> Example:
    """The example with these attributes, on an image unless shapes are given."""
    return Example(inputs or (IMAGE,), attributes=attributes, pick=pick)


def _same(name: str, fn: Any, signature: str, spellings: tuple[Any, ...] = (), *modules: ModuleForm, **more: Any) -> Op:
    more = {"family": Family.COPY, **more}
    return Op(name=name, fn=fn, signature=signature, params=(X,), output=Output.SAME, spellings=spellings, modules=modules, **more)


def _pooled(dims: int, **attributes: Any) -> dict[str, object]:
    """What all pools of so many dimensions have."""
    return {"family": Family.POOL, "homogeneous": always, "dims": dims, "example": on((2, 8, *[6] * dims), **attributes)}


def _attributes(*names: str) -> Callable[[Any], Mapping[str, Any]]:
    return lambda module: {name: getattr(module, name) for name in names}


def _indices(module: Any) -> str | None:
    return "it returns indices too" if module.return_indices else None


def _max_pool(dims: int, public: Any, plain: Any, cls: type[nn.Module]) -> Op:
    signature = "input:x kernel_size stride=None padding=0 dilation=1 ceil_mode=False !return_indices=False"
    attributes = _attributes("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    raw = "input:x kernel_size stride=None padding=0 dilation=1 ceil_mode=False"
    return _same(f"max_pool{dims}d", plain, "x kernel_size stride=None padding=0 dilation=1 ceil_mode=False",
                 (Spelling(public, signature), Spelling(plain, raw)),
                 ModuleForm(cls, {}, attributes, _indices, make=lambda cls: cls(3, 2, 1, ceil_mode=True)),
                 **_pooled(dims, kernel_size=3, stride=2, padding=1, dilation=1, ceil_mode=True))  # fmt: skip


def _avg_pool(dims: int, fn: Any, cls: type[nn.Module]) -> Op:
    signature = "input:x kernel_size stride=None padding=0 ceil_mode=False count_include_pad=True"
    names = ["kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"]
    if dims > 1:
        signature, names = signature + " divisor_override=None", [*names, "divisor_override"]
    form = ModuleForm(cls, {}, _attributes(*names), make=lambda cls: cls(3, 2, 1, count_include_pad=False))
    pooled = _pooled(dims, kernel_size=3, stride=2, padding=1, ceil_mode=False, count_include_pad=False)
    return _same(f"avg_pool{dims}d", fn, signature, (Spelling(fn, signature),), form, averages=lambda attributes: True,
                 adds_values=lambda attributes: _divides_by_less(attributes, dims), **pooled)  # fmt: skip


def _divides_by_less(attributes: Mapping[str, object], dims: int) -> bool:
    """Whether the sum of a window is divided by less than its elements, or by what is known at run time alone."""
    divisor, kernel = attributes.get("divisor_override"), attributes.get("kernel_size")
    if divisor is None:
        return False
    sizes = kernel if isinstance(kernel, (tuple, list)) else (kernel,) * dims
    if not isinstance(divisor, int) or not all(isinstance(n, int) for n in sizes):
        return True
    return divisor < math.prod(sizes if len(sizes) == dims else sizes * dims)


def _adaptive(kind: str, dims: int, public: Any, plain: Any, cls: type[nn.Module]) -> Op:
    signature = "input:x output_size" + (" !return_indices=False" if kind == "max" else "")
    form = ModuleForm(cls, {}, _attributes("output_size"), _indices if kind == "max" else lambda m: None, make=lambda cls: cls(3))
    return _same(f"adaptive_{kind}_pool{dims}d", plain, "x output_size", (Spelling(public, signature),), form,
                 averages=lambda attributes: kind == "avg", **_pooled(dims, output_size=3))  # fmt: skip


def _pads_with_value(attributes: Mapping[str, object]) -> bool:
    """-inf, which only a max pool behind it can mean, becomes the smallest value."""
    return attributes.get("mode", "constant") == "constant" and attributes.get("value") not in (None, 0, -math.inf)


def _no_training(attributes: Mapping[str, object]) -> bool:
    return not attributes.get("training", True) or attributes.get("p", 0.5) == 0


def _drops(attributes: Mapping[str, object]) -> bool:
    return not _no_training(attributes)


def _dropout(kind: str) -> Callable[[Any], Mapping[str, Any]]:
    return lambda module: {"p": module.p, "training": module.training, "kind": kind}


def _interpolates(attributes: Mapping[str, object]) -> bool:
    return attributes.get("mode", "nearest") not in ("nearest", "nearest-exact")


LIVE = {"training": "training"}
DROPOUTS: dict[type[nn.Module], str] = {nn.Dropout: "dropout", nn.Dropout1d: "dropout1d", nn.Dropout2d: "dropout2d",
            nn.Dropout3d: "dropout3d", nn.AlphaDropout: "alpha_dropout", nn.FeatureAlphaDropout: "feature_alpha_dropout"}  # fmt: skip

REDUCED: dict[str, Any] = {"family": Family.REDUCTION, "example": on(dim=(2, 3), keepdim=True)}

POOLS = (
    _max_pool(1, F.max_pool1d, torch.max_pool1d, nn.MaxPool1d),
    _max_pool(2, F.max_pool2d, torch.max_pool2d, nn.MaxPool2d),
    _max_pool(3, F.max_pool3d, torch.max_pool3d, nn.MaxPool3d),
    _avg_pool(1, F.avg_pool1d, nn.AvgPool1d),
    _avg_pool(2, F.avg_pool2d, nn.AvgPool2d),
    _avg_pool(3, F.avg_pool3d, nn.AvgPool3d),
    _adaptive("avg", 1, F.adaptive_avg_pool1d, F.adaptive_avg_pool1d, nn.AdaptiveAvgPool1d),
    _adaptive("avg", 2, F.adaptive_avg_pool2d, F.adaptive_avg_pool2d, nn.AdaptiveAvgPool2d),
    _adaptive("avg", 3, F.adaptive_avg_pool3d, F.adaptive_avg_pool3d, nn.AdaptiveAvgPool3d),
    _adaptive("max", 1, F.adaptive_max_pool1d, F.adaptive_max_pool1d, nn.AdaptiveMaxPool1d),
    _adaptive("max", 2, F.adaptive_max_pool2d, F.adaptive_max_pool2d, nn.AdaptiveMaxPool2d),
    _adaptive("max", 3, F.adaptive_max_pool3d, F.adaptive_max_pool3d, nn.AdaptiveMaxPool3d),
    _same("mean", Q.mean, "x dim=None keepdim=False", (
        Spelling(torch.mean, "input:x dim=None keepdim=False !dtype=None"),
        Spelling("mean", "input:x dim=None keepdim=False !dtype=None")), averages=lambda attributes: True, **REDUCED),
    Op(name="sum", fn=Q.sum, signature="x dim=None keepdim=False", params=(X,), output=Output.OWN, **REDUCED, spellings=(
        Spelling(torch.sum, "input:x dim=None keepdim=False !dtype=None"), Spelling("sum", "input:x dim=None keepdim=False !dtype=None"))),
    *(_same(name, fn, "x dim=() keepdim=False", tuple(Spelling(f, "input:x dim=() keepdim=False") for f in (fn, name)),
            **REDUCED) for name, fn in (("amax", torch.amax), ("amin", torch.amin))),
    _same("interpolate", Q.interpolate,
          "x size=None scale_factor=None mode='nearest' align_corners=None recompute_scale_factor=None antialias=False",
          (Spelling(F.interpolate, "input:x size=None scale_factor=None mode='nearest' align_corners=None recompute_scale_factor=None"
                    " antialias=False"),),
          *(ModuleForm(cls, {}, _attributes("size", "scale_factor", "mode", "align_corners"), make=lambda cls: cls(scale_factor=2))
            for cls in (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)), averages=_interpolates,
          family=Family.RESIZE, example=on(scale_factor=2, mode="nearest")),
)  # fmt: skip

ONE: Callable[[Any], nn.Module] = lambda cls: cls(1)  # noqa: E731  # type: ignore[no-any-return]
TWO: Callable[[Any], nn.Module] = lambda cls: cls(2)  # noqa: E731  # type: ignore[no-any-return]

COPIES = (
    _same("pad", Q.pad, "x pad mode='constant' value=None", (
        Spelling(F.pad, "input:x pad mode='constant' value=None"), Spelling(torch.constant_pad_nd, "input:x pad value=0")),
          *(ModuleForm(cls, {}, lambda m: {"pad": m.padding}, make=ONE) for cls in (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)),
          *(ModuleForm(cls, {}, lambda m: {"pad": m.padding, "value": m.value}, make=lambda cls: cls(1, 0.25))
            for cls in (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)),
          *(ModuleForm(cls, {}, lambda m: {"pad": m.padding, "mode": "reflect"}, make=ONE)
            for cls in (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)),
          *(ModuleForm(cls, {}, lambda m: {"pad": m.padding, "mode": "replicate"}, make=ONE)
            for cls in (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)),
          *(ModuleForm(cls, {}, lambda m: {"pad": m.padding, "mode": "circular"}, make=ONE)
            for cls in (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)), adds_values=_pads_with_value,
          example=on(pad=(1, 0, 2, 1), mode="constant", value=0.0)),
    _same("pixel_shuffle", F.pixel_shuffle, "x upscale_factor", (Spelling(F.pixel_shuffle, "input:x upscale_factor"),),
          ModuleForm(nn.PixelShuffle, {}, _attributes("upscale_factor"), make=TWO), example=on(upscale_factor=2)),
    _same("pixel_unshuffle", F.pixel_unshuffle, "x downscale_factor", (Spelling(F.pixel_unshuffle, "input:x downscale_factor"),),
          ModuleForm(nn.PixelUnshuffle, {}, _attributes("downscale_factor"), make=TWO), example=on(downscale_factor=2)),
    _same("channel_shuffle", F.channel_shuffle, "x groups", (Spelling(F.channel_shuffle, "input:x groups"),),
          ModuleForm(nn.ChannelShuffle, {}, _attributes("groups"), make=TWO), example=on(groups=2)),
    _same("flatten", torch.flatten, "x start_dim=0 end_dim=-1", (
        Spelling(torch.flatten, "input:x start_dim=0 end_dim=-1"), Spelling("flatten", "input:x start_dim=0 end_dim=-1"),
        Spelling(torch.ravel, "input:x"), Spelling("ravel", "input:x")),
        ModuleForm(nn.Flatten, {}, _attributes("start_dim", "end_dim")), example=on(start_dim=1, end_dim=-1)),
    _same("unflatten", torch.unflatten, "x dim sizes", (
        Spelling(torch.unflatten, "input:x dim sizes"), Spelling("unflatten", "input:x dim sizes")),
        ModuleForm(nn.Unflatten, {}, lambda m: {"dim": m.dim, "sizes": m.unflattened_size}, make=lambda cls: cls(1, (2, 4))),
        example=on(dim=1, sizes=(2, 4))),
    _same("reshape", Q.reshape, "x shape", (
        Spelling(torch.reshape, "input:x shape"), Spelling("reshape", "input:x *shape"), Spelling("view", "input:x *shape")),
          example=on(shape=(-1, 36))),
    _same("permute", Q.permute, "x dims", (
        Spelling(torch.permute, "input:x dims"), Spelling("permute", "input:x *dims")),
        ModuleForm("torchvision.ops.misc.Permute", {}, lambda m: {"dims": tuple(m.dims)}, make=lambda cls: cls([0, 2, 3, 1])),
        example=on(dims=(0, 2, 3, 1))),
    _same("transpose", torch.transpose, "x dim0 dim1", (
        Spelling(torch.transpose, "input:x dim0 dim1"), Spelling("transpose", "input:x dim0 dim1"),
        *(Spelling(f, "input:x axis0:dim0 axis1:dim1") for f in (torch.swapaxes, "swapaxes")),
        *(Spelling(f, "input:x dim0 dim1") for f in (torch.swapdims, "swapdims"))), example=on(dim0=1, dim1=2)),
    _same("squeeze", Q.squeeze, "x dim=None", (Spelling(torch.squeeze, "input:x dim=None"), Spelling("squeeze", "input:x dim=None")),
          example=on((2, 1, 6, 8), dim=1)),
    _same("unsqueeze", torch.unsqueeze, "x dim", (Spelling(torch.unsqueeze, "input:x dim"), Spelling("unsqueeze", "input:x dim")),
          example=on(dim=1)),
    _same("narrow", torch.narrow, "x dim start length", (
        Spelling(torch.narrow, "input:x dim start length"), Spelling("narrow", "input:x dim start length")),
          example=on(dim=1, start=2, length=3)),
    _same("select", torch.select, "x dim index", (Spelling(torch.select, "input:x dim index"), Spelling("select", "input:x dim index")),
          example=on(dim=1, index=3)),
    _same("chunk", torch.chunk, "x chunks dim=0", (
        Spelling(torch.chunk, "input:x chunks dim=0"), Spelling("chunk", "input:x chunks dim=0")), example=on(chunks=2, dim=1, pick=1)),
    _same("split", Q.split, "x split_size_or_sections dim=0", (
        Spelling(torch.split, "tensor:x split_size_or_sections dim=0"),
        Spelling("split", "input:x split_size:split_size_or_sections dim=0"),
        *(Spelling(f, "input:x split_sizes:split_size_or_sections dim=0") for f in (torch.split_with_sizes, "split_with_sizes"))),
          example=on(split_size_or_sections=4, dim=1, pick=1)),
    _same("tensor_split", Q.tensor_split, "x indices_or_sections dim=0", tuple(
        Spelling(f, "input:x indices|sections|tensor_indices_or_sections:indices_or_sections dim=0")
        for f in (torch.tensor_split, "tensor_split")), example=on(indices_or_sections=2, dim=1, pick=1)),
    _same("unbind", torch.unbind, "x dim=0", (Spelling(torch.unbind, "input:x dim=0"), Spelling("unbind", "input:x dim=0")),
          example=on(dim=1, pick=1)),
    _same("getitem", Q.getitem, "x index", (Spelling(operator.getitem, "input:x index"),), example=on(index=(slice(None), slice(1, 5)))),
    _same("repeat", Q.repeat, "x sizes", (Spelling("repeat", "input:x *sizes"),), example=on(sizes=(1, 2, 1, 1))),
    _same("expand", Q.expand, "x sizes", (Spelling("expand", "input:x *sizes"), Spelling(torch.broadcast_to, "input:x size:sizes"),
                                          Spelling("broadcast_to", "input:x *size:sizes")), example=on((2, 8, 1, 6), sizes=(2, 8, 3, 6))),
    _same("repeat_interleave", torch.repeat_interleave, "x repeats dim=None", tuple(
        Spelling(f, "input:x repeats dim=None !output_size=None") for f in (torch.repeat_interleave, "repeat_interleave")),
          example=on(repeats=2, dim=1)),
    _same("index_select", torch.index_select, "x dim index", (
        Spelling(torch.index_select, "input:x dim index"), Spelling("index_select", "input:x dim index")),
          example=on(dim=1, index=torch.tensor([5, 0, 2]))),
    _same("gather", torch.gather, "x dim index", (
        Spelling(torch.gather, "input:x dim index !sparse_grad=False"), Spelling("gather", "input:x dim index !sparse_grad=False")),
          example=on(dim=1, index=torch.zeros(2, 1, 6, 6, dtype=torch.int64))),
    _same("diagonal", torch.diagonal, "x offset=0 dim1=0 dim2=1", (
        Spelling(torch.diagonal, "input:x offset=0 dim1=0 dim2=1"), Spelling("diagonal", "input:x offset=0 dim1=0 dim2=1")),
          example=on(offset=1, dim1=2, dim2=3)),
    _same("unfold_dimension", Q.unfold_dimension, "x dimension size step", (Spelling("unfold", "input:x dimension size step"),),
          example=on(dimension=2, size=2, step=2)),
    *(_same(name, fn, "x diagonal=0", (Spelling(fn, "input:x diagonal=0"), Spelling(name, "input:x diagonal=0")),
            example=on(diagonal=1)) for name, fn in (("tril", torch.tril), ("triu", torch.triu))),
    _same("unfold", F.unfold, "x kernel_size dilation=1 padding=0 stride=1", (
        Spelling(F.unfold, "input:x kernel_size dilation=1 padding=0 stride=1"),),
          ModuleForm(nn.Unfold, {}, _attributes("kernel_size", "dilation", "padding", "stride"),
                     make=lambda cls: cls(2, padding=1, stride=2)), example=on(kernel_size=2, dilation=1, padding=1, stride=2)),
    _same("roll", torch.roll, "x shifts dims=()", (
        Spelling(torch.roll, "input:x shifts dims=()"), Spelling("roll", "input:x shifts dims=()")), example=on(shifts=1, dims=2)),
    _same("flip", torch.flip, "x dims", (Spelling(torch.flip, "input:x dims"), Spelling("flip", "input:x *dims")), example=on(dims=(2, 3))),
    _same("contiguous", Q.contiguous, "x", (Spelling("contiguous", "input:x _memory_format=None"),), example=on()),
    _same("detach", torch.detach, "x", (torch.detach, "detach"), example=on()),
    _same("identity", torch.clone, "x", (
        *(Spelling(f, "input:x") for f in (torch.positive, operator.pos, "positive")),
        Spelling(Q.to_format, "input:x _memory_format"),
        Spelling(torch.clone, "input:x _memory_format=None"), Spelling("clone", "input:x _memory_format=None")),
          ModuleForm(nn.Identity), identity=lambda attributes: True, example=on()),
    _same("dropout", Q.dropout, "x p=0.5 training=True kind='dropout'", (
        *(Spelling(f, "input:x p=0.5 training=True _inplace=False", {"kind": f.__name__})
          for f in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)),
        *(Spelling(f, "input:x p=0.5 training=False _inplace=False", {"kind": f.__name__})
          for f in (F.alpha_dropout, F.feature_alpha_dropout)),
        Spelling(torch.dropout, "input:x p train:training")),
        *(ModuleForm(cls, {}, _dropout(kind), live=LIVE) for cls, kind in DROPOUTS.items()), identity=_no_training, draws=_drops,
        example=on(p=0.5, training=False)),
    _same("stochastic_depth", Q.stochastic_depth, "x p mode training=True", (),
          ModuleForm("torchvision.ops.stochastic_depth.StochasticDepth", {}, _attributes("p", "mode", "training"), live=LIVE,
                     make=lambda cls: cls(0.5, "row")), identity=_no_training, draws=_drops, example=on(p=0.5, mode="row", training=False)),
)  # fmt: skip

JOINS = tuple(
    Op(name=name, fn=fn, signature="x dim=0", params=(Param("x", Role.ACTIVATIONS),), output=Output.JOIN, spellings=spellings,
       family=Family.JOIN, example=on(IMAGE, IMAGE, dim=1))
    for name, fn, spellings in (
        ("cat", torch.cat, (Spelling(torch.cat, "tensors:x dim=0"), Spelling(torch.concat, "tensors:x dim=0"),
                            Spelling(torch.concatenate, "tensors:x dim=0"))),
        ("stack", torch.stack, (Spelling(torch.stack, "tensors:x dim=0"),)),
    )
)  # fmt: skip

ROWS = (*POOLS, *COPIES, *JOINS)
