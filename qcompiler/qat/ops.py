"""Ops that only a model in training has: a convolution or linear with its batch norm, as one canonical call.

conv2d_bn(x, weight, bias, mean, var, gamma, beta, count, **the convolution's attributes, training=, momentum=, eps=, bounds=)
computes batch_norm(conv2d(x, weight, bias)). With `fake_quant` (a module, called with the folded weight) it computes what
conv_bn.py describes, and in eval mode what convert will make of it: the convolution with folded weight and bias.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from qcompiler.ops import functional as Q
from qcompiler.ops.batch_norm import Layout, Norm
from qcompiler.ops.functional import Bounds, clip
from qcompiler.ops.rows.weighted import ROWS
from qcompiler.ops.spec import Family, Op, Param, Role
from qcompiler.ops.table import Table
from qcompiler.qat.conv_bn import ConvBn, FakeQuant

SUFFIX = "_bn"
STATISTICS = ("mean", "var", "gamma", "beta", "count")


def _with_batch_norm(plain: Callable[..., Tensor], weight_axis: int) -> Callable[..., Tensor]:
    def call(x: Tensor, weight: Tensor, bias: Tensor | None, mean: Tensor, var: Tensor, gamma: Tensor | None = None,
             beta: Tensor | None = None, count: Tensor | None = None, *, fake_quant: FakeQuant | None = None, training: bool = False,
             momentum: float | None = 0.1, eps: float = 1e-5, bounds: Bounds = None, **options: object) -> Tensor:  # fmt: skip
        run = functools.partial(plain, **options)
        if fake_quant is None:
            y = Q.batch_norm(run(x, weight, bias), mean, var, gamma, beta, count, training=training, momentum=momentum, eps=eps)
            return clip(y, bounds)
        both = ConvBn(run, fake_quant, Norm(mean, var, gamma, beta, eps), Layout(weight_axis, options.get("groups", 1)))  # type: ignore[arg-type]
        return clip(both.trained(x, weight, bias, count, momentum) if training else both.folded(x, weight, bias), bounds)

    call.__name__ = call.__qualname__ = plain.__name__ + SUFFIX
    call.__doc__ = f"{plain.__name__} and batch norm; see the module."
    return call


conv1d_bn = _with_batch_norm(Q.conv1d, 0)
conv2d_bn = _with_batch_norm(Q.conv2d, 0)
conv3d_bn = _with_batch_norm(Q.conv3d, 0)
conv_transpose1d_bn = _with_batch_norm(Q.conv_transpose1d, 1)
conv_transpose2d_bn = _with_batch_norm(Q.conv_transpose2d, 1)
conv_transpose3d_bn = _with_batch_norm(Q.conv_transpose3d, 1)
linear_bn = _with_batch_norm(Q.linear, 0)

_FUNCTIONS = (conv1d_bn, conv2d_bn, conv3d_bn, conv_transpose1d_bn, conv_transpose2d_bn, conv_transpose3d_bn, linear_bn)
WITH_BATCH_NORM = {fn.__name__.removesuffix(SUFFIX): fn for fn in _FUNCTIONS}


def _row(plain: Op) -> Op:
    """The row of an op with weights, with batch norm: its attributes, weight and multiply-accumulates."""
    params = (*plain.params, *(Param(name, Role.BIAS) for name in STATISTICS))
    words, statistics = plain.signature.split(), (f"{name}=None" for name in STATISTICS)
    tensors, settings = words[: len(plain.params)], words[len(plain.params) :]
    signature = " ".join([*tensors, *statistics, *settings, "training=False momentum=0.1 eps=1e-5"])
    assert plain.example is not None
    channels = plain.example.tensors["bias"]
    inputs = ((6, 8),) if plain.family is Family.LINEAR else plain.example.inputs  # channels are dimension 1
    example = replace(plain.example, inputs=inputs, tensors={**plain.example.tensors, **dict.fromkeys(STATISTICS[:4], channels)})
    return replace(plain, name=plain.name + SUFFIX, fn=WITH_BATCH_NORM[plain.name], signature=signature, params=params, spellings=(),
                   modules=(), eval_form=plain, family=Family.EPILOGUE, example=example)  # fmt: skip


TRAINING = {plain.name: _row(plain) for plain in ROWS if plain.name in WITH_BATCH_NORM}  # made once: rows are told by identity


def is_for_training(row: Op) -> bool:
    """Whether the row is one that `training_table` adds."""
    return any(row is own for own in TRAINING.values())


def training_table(table: Table) -> Table:
    """A copy of a table with the ops of this file, for the weighted ops that it has as they are built in."""
    made = table.copy()
    for plain in ROWS:
        if plain.name in TRAINING and made.rows.get(plain.name) is plain and plain.name + SUFFIX not in made.rows:
            made.enter(TRAINING[plain.name])
    return made
