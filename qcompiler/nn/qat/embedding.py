"""Embeddings with fake-quantized tables: one scale and one float zero point a row."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.errors import ConfigError
from qcompiler.nn.qat.base import QATModule


class EmbeddingQAT(QATModule):
    """Base of the embeddings. ConfigError where the qconfig's weights are not per_channel_affine_float_qparams, or for sparse
    gradients, which rounding has not."""

    embedding_dim: int
    max_norm: float | None
    norm_type: float

    def _start(self, qconfig: object, device: object, sparse: bool) -> None:
        self._fake_quantize_weight(qconfig, device)
        if getattr(self.weight_fake_quant, "qscheme", None) is not torch.per_channel_affine_float_qparams:
            raise ConfigError(f"qat.{type(self).__name__} needs weights of torch.per_channel_affine_float_qparams", code="observer-qscheme",
                              hint="default_embedding_qat_qconfig")  # fmt: skip
        if sparse:
            raise ConfigError(f"qat.{type(self).__name__} has no sparse gradients: rounding touches the whole table", code="sparse",
                              hint="train with sparse=False")  # fmt: skip

    def _table(self, indices: Tensor) -> Tensor:
        """The rounded table; rows that are longer than `max_norm` are shortened in the weight first, as nn.Embedding does."""
        if self.max_norm is not None:
            with torch.no_grad():
                torch.embedding_renorm_(self.weight.detach(), indices.contiguous().reshape(-1), self.max_norm, self.norm_type)
        return self.weight_fake_quant(self.weight)  # type: ignore[no-any-return]


class Embedding(EmbeddingQAT, nn.Embedding):
    """nn.Embedding with a fake-quantized table."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.Embedding
    _ARGUMENTS = ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        device: object = None,
        dtype: object = None,
        qconfig: object = None,
    ) -> None:
        nn.Embedding.__init__(self, num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, _weight,
                              device=device, dtype=dtype)  # fmt: skip
        self._start(qconfig, device, sparse)

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self._table(input), self.padding_idx, None, self.norm_type, self.scale_grad_by_freq, False)


class EmbeddingBag(EmbeddingQAT, nn.EmbeddingBag):
    """nn.EmbeddingBag with a fake-quantized table."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.EmbeddingBag
    _ARGUMENTS = (
        "num_embeddings", "embedding_dim", "max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse", "include_last_offset",
        "padding_idx",
    )  # fmt: skip

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        qconfig: object = None,
        device: object = None,
        dtype: object = None,
    ) -> None:
        nn.EmbeddingBag.__init__(self, num_embeddings, embedding_dim, max_norm, norm_type, scale_grad_by_freq, mode, sparse, _weight,
                                 include_last_offset, padding_idx, device=device, dtype=dtype)  # fmt: skip
        self._start(qconfig, device, sparse)

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        return F.embedding_bag(input, self._table(input), offsets, None, self.norm_type, self.scale_grad_by_freq, self.mode, False,
                               per_sample_weights, self.include_last_offset, self.padding_idx)  # fmt: skip
