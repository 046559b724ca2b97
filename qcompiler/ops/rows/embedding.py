"""Embedding tables: 8 or 4 bits a value, one scale and zero point a row, read as floats."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from qcompiler.ops import functional as Q
from qcompiler.ops.example import Example
from qcompiler.ops.spec import Family, ModuleForm, Op, Output, Param, Role, Spelling

INDICES, WEIGHT = Param("indices", Role.INDICES), Param("weight", Role.WEIGHT)
BAG = (INDICES, WEIGHT, Param("offsets", Role.INDICES), Param("per_sample_weights", Role.BIAS))


def _renormalizes(module: Any) -> str | None:
    return "max_norm is set: it changes its weight at every call" if module.max_norm is not None else None


EXAMPLE = Example((), {"weight": (10, 8)}, {"indices": torch.tensor([[0, 3, 9], [5, 5, 1]])})

ROWS = (
    Op(
        name="embedding", fn=Q.embedding, signature="indices weight", params=(INDICES, WEIGHT), output=Output.FLOAT,
        family=Family.EMBEDDING, example=EXAMPLE,
        spellings=(Spelling(F.embedding, "input:indices weight _padding_idx=None !max_norm=None _norm_type=2.0 _scale_grad_by_freq=False"
                            " _sparse=False"),),
        modules=(ModuleForm(nn.Embedding, {"weight": "weight"}, signature="input:indices", refuse=_renormalizes,
                            make=lambda cls: cls(10, 8)),),
    ),
    Op(
        name="embedding_bag", fn=Q.embedding_bag,
        signature="indices weight offsets=None per_sample_weights=None mode='mean' include_last_offset=False padding_idx=None",
        params=BAG, output=Output.FLOAT, family=Family.EMBEDDING, example=EXAMPLE,
        spellings=(Spelling(F.embedding_bag, "input:indices weight offsets=None !max_norm=None _norm_type=2 _scale_grad_by_freq=False"
                            " mode='mean' _sparse=False per_sample_weights=None include_last_offset=False padding_idx=None"),),
        modules=(ModuleForm(
            nn.EmbeddingBag, {"weight": "weight"}, signature="input:indices offsets=None per_sample_weights=None", refuse=_renormalizes,
            attributes=lambda m: {"mode": m.mode, "include_last_offset": m.include_last_offset, "padding_idx": m.padding_idx},
            make=lambda cls: cls(10, 8)),),
    ),
)  # fmt: skip
