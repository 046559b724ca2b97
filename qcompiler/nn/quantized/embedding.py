"""nn.quantized.Embedding and EmbeddingBag: tables of 8 or 4 bits a value, one scale and zero point a row."""

from __future__ import annotations

from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from qcompiler.backends.torch.runtime import tables
from qcompiler.config.qconfig import as_qconfig, float_qparams_weight_only_qconfig
from qcompiler.config.qconfig_of_op import weight_observer
from qcompiler.errors import ConfigError, InputError, Where
from qcompiler.inputs.input_text import first_sentence
from qcompiler.nn.place import place_of
from qcompiler.nn.quantized.float_module import FloatModule
from qcompiler.observers.weights import take_axis
from qcompiler.ops.quantized_tensors import quantized_table
from qcompiler.ops.reference import pack_4bit, quantize_weight, unpack_4bit
from qcompiler.ops.table import OPS

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
BITS = {torch.quint8: 8, torch.uint8: 8, torch.quint4x2: 4}


class Embedding(FloatModule):
    """Rows of a quantized table, as floats. Buffers: `weight` (uint8; 4 bits: two values in a byte), `weight_scale`,
    `weight_zero_point` (a vector along the rows; the zero point lies between codes).
    """

    _FLOAT_MODULE: ClassVar[type[nn.Module]] = nn.Embedding
    _ROW: ClassVar[str] = "embedding"

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, max_norm: float | None = None,
        norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False, _weight: Tensor | None = None,
        dtype: torch.dtype = torch.quint8,
    ) -> None:  # fmt: skip
        """A table of zeros, or `_weight`, a quint8 or quint4x2 tensor that is quantized by row with float zero points."""
        super().__init__()
        del norm_type, scale_grad_by_freq, sparse  # of training
        if dtype not in BITS:
            raise ConfigError(f"a table has torch.quint8 or torch.quint4x2 values, not {dtype}", code="weight-dtype")
        if max_norm is not None:
            raise ConfigError("max_norm changes the table at every call, which a quantized one cannot do", code="max-norm")
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.dtype = torch.quint4x2 if BITS[dtype] == 4 else torch.quint8
        self._hold(torch.zeros(num_embeddings, embedding_dim, dtype=torch.uint8), torch.ones(num_embeddings), torch.zeros(num_embeddings))
        self.rebuild()
        if _weight is not None:
            self.set_weight(_weight)

    @property
    def bits(self) -> int:
        """8 or 4."""
        return BITS[self.dtype]

    def _hold(self, codes: Tensor, scale: Tensor, zero_point: Tensor) -> None:
        rows = codes.shape[0]
        self._buffers["weight"] = pack_4bit(codes) if self.bits == 4 else codes
        self._buffers["weight_scale"] = scale.detach().double().reshape(-1).expand(rows).clone()
        self._buffers["weight_zero_point"] = zero_point.detach().double().reshape(-1).expand(rows).clone()

    def _stored(self) -> tuple[Tensor, Tensor, Tensor]:
        values, scale, zero_point = (self._buffers[n] for n in ("weight", "weight_scale", "weight_zero_point"))
        assert values is not None and scale is not None and zero_point is not None
        return values, scale, zero_point

    def rebuild(self) -> None:
        """Lays the table out for the kernels, anew from the module's tensors."""
        make = tables.rows_4bit if self.bits == 4 else tables.rows_8bit
        self._computes(self._ROW, {"_rows": make(*self._stored()), "_bits": self.bits})

    def _codes(self) -> Tensor:
        values = self._stored()[0]
        return unpack_4bit(values, self.embedding_dim) if self.bits == 4 else values

    def weight(self) -> Tensor:
        """The table as a quint8 or quint4x2 tensor with one scale and float zero point a row."""
        return quantized_table(self._codes(), *self._stored()[1:], self.bits)

    def set_weight(self, w: Tensor) -> None:
        """Takes a quint8 or quint4x2 tensor that is quantized by row. ConfigError for another dtype, shape or axis."""
        wanted = (self.num_embeddings, self.embedding_dim)
        by_row = w.is_quantized and w.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams)
        if not by_row or w.q_per_channel_axis() != 0 or w.dtype not in BITS or tuple(w.shape) != wanted:
            raise ConfigError(f"the table is a quint8 or quint4x2 tensor of shape {wanted}, quantized by row, not {w.dtype} of "
                              f"{tuple(w.shape)}", code="weight-shape", where=self._where())  # fmt: skip
        self.dtype = torch.quint4x2 if BITS[w.dtype] == 4 else torch.quint8
        scale, zero_point = w.q_per_channel_scales().double(), w.q_per_channel_zero_points().double()
        self._hold(quantize_weight(w.dequantize(), scale, zero_point, 0, 0, 2**self.bits - 1, torch.uint8), scale, zero_point)
        self.rebuild()

    def _check_indices(self, indices: object) -> None:
        if not isinstance(indices, Tensor) or indices.dtype not in INTEGERS:
            got = f"a {indices.dtype} tensor" if isinstance(indices, Tensor) else type(indices).__name__
            raise InputError(f"{self._get_name()}: indices must be integers, not {got}", code="input-type", where=self._where())

    def _looked_up(self, *inputs: Tensor | None) -> Tensor:
        """What TorchScript compiles, run; its errors name this module."""
        try:
            return self._run(*inputs)  # type: ignore[no-any-return]
        except RuntimeError as error:
            text = f"{self._get_name()}({self.num_embeddings} rows): {first_sentence(error):.300}"
            if self._within(inputs[0]):
                raise InputError(text, code="input-shape", where=self._where()) from error
            hint = f"indices must be in 0..{self.num_embeddings - 1}"
            raise InputError(text, code="input-range", where=self._where(), hint=hint) from error

    def _within(self, indices: Tensor | None) -> bool:
        """Whether all indices name rows."""
        if indices is None or not indices.numel():
            return True
        return int(indices.min()) >= 0 and int(indices.max()) < self.num_embeddings

    def _infer(self, indices: Tensor) -> Tensor:
        self._check_indices(indices)
        return self._looked_up(indices)

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Self:
        """The quantized table of a float one, or of one that was trained with fake quantization, as its `.qconfig` says.

        Qconfigs with one scale for the whole weight are not taken at their word: tables have one a row.
        """
        del use_precomputed_fake_quant
        where = place_of(mod)
        if not isinstance(mod, cls._FLOAT_MODULE):
            raise ConfigError(f"{cls.__name__}.from_float takes an nn.{cls._FLOAT_MODULE.__name__}, not {type(mod).__name__}",
                              code="from-float", where=where)  # fmt: skip
        observer = cls._observer(mod, where)
        made = cls._like(mod, torch.quint4x2 if observer.quant_max - observer.quant_min < 16 else torch.quint8)
        made._qc_path = where.module_path or ""
        scale, zero_point = (t.reshape(-1).double() for t in observer.calculate_qparams())
        low = observer.quant_min
        codes = quantize_weight(
            cast(Tensor, mod.weight).detach(), scale, zero_point, 0, low, observer.quant_max, torch.uint8 if low >= 0 else torch.int8
        )
        shift = 128 if low < 0 else 0  # symmetric int8 rows: the same values, as unsigned codes
        made._hold((codes.to(torch.int16) + shift).to(torch.uint8), scale, zero_point + shift)
        made.train(mod.training)
        made.rebuild()
        return made

    @classmethod
    def _observer(cls, mod: Any, where: Where) -> Any:
        trained = getattr(mod, "weight_fake_quant", None)
        qconfig = as_qconfig(getattr(mod, "qconfig", None)) or float_qparams_weight_only_qconfig
        observer: Any = trained if trained is not None else weight_observer(OPS.rows[cls._ROW], qconfig)
        if observer.dtype.is_floating_point:
            raise ConfigError(f"a table has 8 or 4 bits a value, its qconfig says {observer.dtype}", code="weight-dtype", where=where,
                              hint="float_qparams_weight_only_qconfig, or the graph flow, which has float16 tables")  # fmt: skip
        if trained is None:
            take_axis(observer, 0, mod.weight, where)
            observer(mod.weight.detach().float())
        return observer

    @classmethod
    def _like(cls, mod: Any, dtype: torch.dtype) -> Self:
        return cls(mod.num_embeddings, mod.embedding_dim, mod.padding_idx, mod.max_norm, dtype=dtype)

    def extra_repr(self) -> str:
        scale = self._stored()[1]
        scales = f"scales={float(scale.min()):.6g}..{float(scale.max()):.6g}" if scale.numel() else "scales=[]"
        return f"num_embeddings={self.num_embeddings}, embedding_dim={self.embedding_dim}, dtype={self.dtype}, {scales}"


class EmbeddingBag(Embedding):
    """Sums, means or maxima of rows of a quantized table; see nn.EmbeddingBag for inputs."""

    _FLOAT_MODULE = nn.EmbeddingBag
    _ROW = "embedding_bag"

    def __init__(
        self, num_embeddings: int, embedding_dim: int, max_norm: float | None = None, norm_type: float = 2.0,
        scale_grad_by_freq: bool = False, mode: str = "sum", sparse: bool = False, _weight: Tensor | None = None,
        include_last_offset: bool = False, dtype: torch.dtype = torch.quint8, padding_idx: int | None = None,
    ) -> None:  # fmt: skip
        """A table of zeros, or `_weight`. `mode`: sum, mean or max (torch.ao's class sums whatever it is)."""
        if mode not in ("sum", "mean", "max"):
            raise ConfigError(f'mode is "sum", "mean" or "max", not {mode!r:.40}', code="bag-mode")
        super().__init__(num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, _weight, dtype)
        self.mode, self.include_last_offset, self.pruned_weights = mode, include_last_offset, False

    def _infer(self, indices: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None,
               compressed_indices_mapping: Tensor | None = None) -> Tensor:  # fmt: skip
        if compressed_indices_mapping is not None:
            raise InputError(f"{self._get_name()}: pruned tables are not supported", code="input-arguments", where=self._where())
        self._check_indices(indices)
        return self._looked_up(indices, offsets, per_sample_weights)

    @classmethod
    def _like(cls, mod: Any, dtype: torch.dtype) -> Self:
        return cls(mod.num_embeddings, mod.embedding_dim, mod.max_norm, mode=mod.mode, include_last_offset=mod.include_last_offset,
                   dtype=dtype, padding_idx=mod.padding_idx)  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode!r}"
