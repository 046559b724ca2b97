"""Convolutions, linear, batch norm and the other norms: the ops with parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from qcompiler.ops import functional as Q
from qcompiler.ops import macs, row_power
from qcompiler.ops.example import IMAGE, Example, Shape
from qcompiler.ops.spec import Family, ModuleForm, Op, Output, Param, Role, Spelling

X, W, B = Param("x"), Param("weight", Role.WEIGHT), Param("bias", Role.BIAS)
PARAMETERS = {"weight": "weight", "bias": "bias"}


def _conv_attributes(module: Any) -> Mapping[str, Any]:
    padding = module.padding
    mode = {} if module.padding_mode == "zeros" else {"padding_mode": module.padding_mode}
    return {"stride": module.stride, "padding": padding, "dilation": module.dilation, "groups": module.groups, **mode}


def _transpose_attributes(module: object) -> Mapping[str, Any]:
    names = ("stride", "padding", "output_padding", "groups", "dilation")
    return {name: getattr(module, name) for name in names}


def _example(dims: int, weight: tuple[int, ...], **more: int) -> Example:
    settings = {"stride": 2, "padding": 1, "groups": 1, "dilation": 1, **more}
    return Example(((2, 8, *[6] * dims),), {"weight": (*weight, *[3] * dims), "bias": (6,)}, settings)


def _conv(dims: int, fn: Callable[..., object], spellings: tuple[Callable[..., object], ...], cls: type[nn.Module]) -> Op:
    return Op(
        name=f"conv{dims}d", fn=fn, signature="x weight bias=None stride=1 padding=0 dilation=1 groups=1", params=(X, W, B),
        output=Output.OWN, takes_bounds=True, macs=macs.conv, family=Family.CONVOLUTION, dims=dims, example=_example(dims, (6, 8)),
        spellings=tuple(Spelling(f, "input:x weight bias=None stride=1 padding=0 dilation=1 groups=1") for f in spellings),
        modules=(ModuleForm(cls, PARAMETERS, _conv_attributes, make=lambda cls: cls(8, 6, 3, stride=2, padding=1, dilation=1)),),
    )  # fmt: skip


def _conv_transpose(dims: int, fn: Callable[..., object], spellings: tuple[Callable[..., object], ...], cls: type[nn.Module]) -> Op:
    signature = "input:x weight bias=None stride=1 padding=0 output_padding=0 groups=1 dilation=1"
    return Op(
        name=f"conv_transpose{dims}d", fn=fn, signature=signature, params=(X, W, B), output=Output.OWN, takes_bounds=True,
        macs=macs.conv_transpose, weight_axis=1, spellings=tuple(Spelling(f, signature) for f in spellings),
        family=Family.TRANSPOSED, dims=dims, example=_example(dims, (8, 6), output_padding=1),
        modules=(ModuleForm(cls, PARAMETERS, _transpose_attributes, make=lambda cls: cls(8, 6, 3, stride=2, padding=1, output_padding=1)),),
    )  # fmt: skip


def _norm_refusal(module: Any) -> str | None:
    if isinstance(module, nn.SyncBatchNorm) and module.training:
        return "it averages its statistics over processes"
    return "this BatchNorm keeps no running statistics, so it computes them from each batch" if module.running_mean is None else None


def _shape_and_eps(module: Any) -> Mapping[str, Any]:
    return {"normalized_shape": tuple(module.normalized_shape), "eps": module.eps}


BN_TENSORS = {"mean": "running_mean", "var": "running_var", "weight": "weight", "bias": "bias"}
BN_LIVE = {"count": "num_batches_tracked", "training": "training", "momentum": "momentum"}
BATCH_NORM = ModuleForm(nn.BatchNorm2d, BN_TENSORS, lambda m: {"eps": m.eps}, _norm_refusal, BN_LIVE, make=lambda cls: cls(8, eps=1e-3))
BN_PARAMS = (X, *(Param(name, Role.BIAS) for name in ("mean", "var", "weight", "bias", "count")))
AFFINE = (X, Param("weight", Role.BIAS), Param("bias", Role.BIAS))
ROWS_OF_8: Shape = (2, 5, 8)
VECTORS = {"weight": (8,), "bias": (8,)}

ROWS = (
    _conv(1, Q.conv1d, (F.conv1d,), nn.Conv1d),
    _conv(2, Q.conv2d, (F.conv2d,), nn.Conv2d),
    _conv(3, Q.conv3d, (F.conv3d,), nn.Conv3d),
    _conv_transpose(1, Q.conv_transpose1d, (F.conv_transpose1d,), nn.ConvTranspose1d),
    _conv_transpose(2, Q.conv_transpose2d, (F.conv_transpose2d,), nn.ConvTranspose2d),
    _conv_transpose(3, Q.conv_transpose3d, (F.conv_transpose3d,), nn.ConvTranspose3d),
    Op(
        name="linear", fn=Q.linear, signature="input:x weight bias=None", params=(X, W, B), output=Output.OWN, takes_bounds=True,
        macs=macs.linear, spellings=(F.linear,), family=Family.LINEAR, example=Example((ROWS_OF_8,), {"weight": (6, 8), "bias": (6,)}),
        modules=(
            ModuleForm(nn.Linear, PARAMETERS, make=lambda cls: cls(8, 6)),
            ModuleForm(nn.modules.linear.NonDynamicallyQuantizableLinear, PARAMETERS, make=lambda cls: cls(8, 6, bias=False)),
        ),
    ),
    Op(
        name="batch_norm", fn=Q.batch_norm, params=BN_PARAMS, output=Output.OWN, takes_bounds=True, family=Family.NORM,
        example=Example(tensors={"mean": (8,), "var": (8,), **VECTORS}, attributes={"eps": 1e-3}),
        signature="x mean var weight=None bias=None count=None training=False momentum=0.1 eps=1e-5",
        spellings=(
            Spelling(F.batch_norm, "input:x running_mean:mean running_var:var weight=None bias=None ?training=False"
                     " momentum=0.1 eps=1e-5"),
            Spelling(torch.batch_norm, "input:x weight bias running_mean:mean running_var:var ?training=False momentum=0.1"
                     " eps=1e-5 _cudnn_enabled=True"),
        ),
        modules=(
            BATCH_NORM,
            replace(BATCH_NORM, cls=nn.SyncBatchNorm),
            replace(BATCH_NORM, cls=nn.BatchNorm1d),
            replace(BATCH_NORM, cls=nn.BatchNorm3d),
            ModuleForm("torchvision.ops.misc.FrozenBatchNorm2d", BN_TENSORS, BATCH_NORM.attributes, make=lambda cls: cls(8)),
        ),
    ),
    Op(
        name="layer_norm", fn=Q.layer_norm, signature="x weight=None bias=None normalized_shape=None eps=1e-5", params=AFFINE,
        output=Output.OWN, row_power=row_power.layer_norm, float_inside=True, family=Family.NORM,
        example=Example((ROWS_OF_8,), VECTORS, {"normalized_shape": (8,), "eps": 1e-3}),
        spellings=(
            Spelling(F.layer_norm, "input:x normalized_shape weight=None bias=None eps=1e-5"),
            Spelling(torch.layer_norm, "input:x normalized_shape weight=None bias=None eps=1e-5 _cudnn_enable=True"),
        ),
        modules=(ModuleForm(nn.LayerNorm, PARAMETERS, _shape_and_eps, make=lambda cls: cls(8, eps=1e-3)),),
    ),
    Op(
        name="rms_norm", fn=Q.rms_norm, signature="x weight=None normalized_shape=None eps=None", params=AFFINE[:2],
        output=Output.OWN, row_power=row_power.rms_norm, float_inside=True, family=Family.NORM,
        example=Example((ROWS_OF_8,), {"weight": (8,)}, {"normalized_shape": (8,), "eps": 1e-3}),
        spellings=tuple(Spelling(f, "input:x normalized_shape weight=None eps=None") for f in (F.rms_norm, torch.rms_norm)),
        modules=(ModuleForm(nn.RMSNorm, {"weight": "weight"}, _shape_and_eps, make=lambda cls: cls(8, eps=1e-3)),),
    ),
    Op(
        name="group_norm", fn=Q.group_norm, signature="x weight=None bias=None num_groups=1 eps=1e-5", params=AFFINE,
        output=Output.OWN, row_power=row_power.group_norm, float_inside=True, family=Family.NORM,
        example=Example((IMAGE,), VECTORS, {"num_groups": 2, "eps": 1e-3}),
        spellings=(
            Spelling(F.group_norm, "input:x num_groups weight=None bias=None eps=1e-5"),
            Spelling(torch.group_norm, "input:x num_groups weight=None bias=None eps=1e-5 _cudnn_enabled=True"),
        ),
        modules=(ModuleForm(nn.GroupNorm, PARAMETERS, lambda m: {"num_groups": m.num_groups, "eps": m.eps},
                            make=lambda cls: cls(2, 8, eps=1e-3)),),
    ),
    Op(
        name="instance_norm", fn=Q.instance_norm, signature="x weight=None bias=None eps=1e-5", params=AFFINE,
        output=Output.OWN, row_power=row_power.instance_norm, float_inside=True, family=Family.NORM,
        example=Example((IMAGE,), VECTORS, {"eps": 1e-3}),
        spellings=(
            Spelling(F.instance_norm, "input:x !running_mean=None !running_var=None weight=None bias=None !use_input_stats=True"
                     " _momentum=0.1 eps=1e-5"),
            Spelling(torch.instance_norm, "input:x weight bias !running_mean=None !running_var=None !use_input_stats=True"
                     " _momentum=0.1 eps=1e-5 _cudnn_enabled=True"),
        ),
        modules=tuple(
            ModuleForm(cls, PARAMETERS, lambda m: {"eps": m.eps},
                       lambda m: "it tracks running statistics" if m.track_running_stats else None, make=lambda cls: cls(8, affine=True))
            for cls in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
        ),
    ),
)  # fmt: skip
