"""Embedding look-ups in tables of 8- or 4-bit rows: what lowered graphs and nn.quantized call. Scriptable; what an exported
source holds of them are a function and those of its file, with an underscore, that it calls.

A row is what torch's kernels read: its codes (two in a byte for 4 bits, the even ones in the low bits), then scale and bias
(-zero_point * scale): as float32 for 8 bits, as float16 for 4. Those kernels sum the rows of a bag, whatever mode they are told;
mean, max and padding are done here.
"""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

import torch


def rows_8bit(weight: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """(R, C) int8 or uint8 codes with one scale and zero point, or one a row -> (R, C + 8) bytes."""
    shift = 128 if weight.dtype == torch.int8 else 0
    codes = (weight.to(torch.int16) + shift).to(torch.uint8)
    ends = torch.stack([scale.double(), -(zero_point.double() + shift) * scale.double()], 1).expand(weight.size(0), 2)
    return torch.cat([codes, ends.to(torch.float32).contiguous().view(torch.uint8)], 1)


rows_8bit.once = True  # type: ignore[attr-defined]


def rows_4bit(packed: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """(R, ceil(C / 2)) bytes of two codes each -> (R, ceil(C / 2) + 4) bytes."""
    ends = torch.stack([scale.double(), -zero_point.double() * scale.double()], 1).expand(packed.size(0), 2)
    return torch.cat([packed, ends.to(torch.float16).contiguous().view(torch.uint8)], 1)


rows_4bit.once = True  # type: ignore[attr-defined]


def unpacked_4bit(packed: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, columns: int) -> torch.Tensor:
    """The float32 values of a 4-bit weight."""
    codes = torch.stack([packed & 15, packed >> 4], dim=2).flatten(1)[:, :columns]
    return ((codes.double() - zero_point.double().view([-1, 1])) * scale.double().view([-1, 1])).float()


unpacked_4bit.once = True  # type: ignore[attr-defined]


def _flat(indices: torch.Tensor) -> torch.Tensor:
    """Indices as the kernels read them: memory in a row, of two types."""
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise RuntimeError("indices must be integers")
    flat = indices.reshape(-1).contiguous()
    return flat if flat.dtype == torch.int32 else flat.to(torch.int64)


def _summed(
    rows: torch.Tensor, flat: torch.Tensor, bounds: torch.Tensor, weights: torch.Tensor | None, bits: int, include_last_offset: bool
) -> torch.Tensor:
    """The sum of each bag, with what the rows are padded to."""
    if bits == 8:
        return torch.ops.quantized.embedding_bag_byte_rowwise_offsets(  # type: ignore[no-any-return]
            rows, flat, bounds, False, 0, False, weights, None, include_last_offset
        )
    return torch.ops.quantized.embedding_bag_4bit_rowwise_offsets(  # type: ignore[no-any-return]
        rows, flat, bounds, False, 0, False, weights, None, include_last_offset
    )


def embedding_rows(rows: torch.Tensor, indices: torch.Tensor, columns: int, bits: int) -> torch.Tensor:
    """The float32 rows at `indices`, integers of any type, shape and strides: (..., columns)."""
    flat = _flat(indices)
    starts = torch.arange(flat.numel(), dtype=flat.dtype)
    shape = list(indices.shape)
    shape.append(columns)
    return _summed(rows, flat, starts, None, bits, False)[:, :columns].reshape(shape)


def _check_bags(indices: torch.Tensor, offsets: torch.Tensor | None, per_sample_weights: torch.Tensor | None, mode: str) -> None:
    if indices.dim() != 1 and indices.dim() != 2:
        raise RuntimeError(f"indices must have one or two dimensions, not {indices.dim()}")
    if indices.dim() == 2 and offsets is not None:
        raise RuntimeError("2-d indices are bags already: offsets must be None")
    if indices.dim() == 1 and offsets is None:
        raise RuntimeError("flat indices need offsets")
    if per_sample_weights is not None and mode != "sum":
        raise RuntimeError("per_sample_weights are for mode='sum' alone")
    if per_sample_weights is not None and (per_sample_weights.shape != indices.shape or per_sample_weights.dtype != torch.float32):
        raise RuntimeError(f"per_sample_weights must be float32, and as many as the indices: of shape {list(indices.shape)}")


def _bounds(flat: torch.Tensor, offsets: torch.Tensor, mode: str, include_last_offset: bool) -> torch.Tensor:
    """Where the bags of flat indices begin, and where the last one ends."""
    if offsets.is_floating_point() or offsets.is_complex() or offsets.dtype == torch.bool or offsets.dim() != 1:
        raise RuntimeError("offsets must be integers in one dimension")
    bounds = torch.cat([offsets.to(flat.dtype), torch.full([1], flat.numel(), dtype=flat.dtype)])
    lengths = bounds.diff()  # with include_last_offset the last one is what no bag holds
    right = (lengths >= 0).all() & (bounds[0] == 0)
    if include_last_offset and mode != "sum":
        right = right & (lengths[-1] == 0)
    text = "offsets must begin with 0, not decrease, and end within the indices (mean and max with include_last_offset: at their end)"
    return torch._functional_assert_async(right, text, bounds)  # type: ignore[no-any-return]


def embedding_bag_rows(
    rows: torch.Tensor,
    indices: torch.Tensor,
    offsets: torch.Tensor | None,
    per_sample_weights: torch.Tensor | None,
    columns: int,
    bits: int,
    mode: str,
    include_last_offset: bool,
    padding_idx: int | None,
) -> torch.Tensor:
    """(bags, columns) float32: sum, mean or max of the rows of each bag, without those at padding_idx.

    `indices`: (B, L), or flat with `offsets`, where bags begin, and with include_last_offset where the last one ends. Integers of
    any type and strides. The kernels believe what they are told of memory, so all of it is checked here.
    """
    flat = _flat(indices)
    _check_bags(indices, offsets, per_sample_weights, mode)
    count = flat.numel()
    weights = None if per_sample_weights is None else per_sample_weights.reshape(-1).contiguous()
    if offsets is None:
        bags = indices.size(0)
        bounds = torch.arange(bags + 1, dtype=flat.dtype) * indices.size(1)
    else:
        bags = offsets.numel() - int(include_last_offset)
        bounds = _bounds(flat, offsets, mode, include_last_offset)
    if mode == "sum" and padding_idx is not None:
        kept = (flat != padding_idx).to(torch.float32)
        weights = kept if weights is None else weights * kept
    if mode == "sum" or (mode == "mean" and padding_idx is None):
        total = _summed(rows, flat, bounds, weights, bits, True)[:bags, :columns]
        return total / (bounds[1:] - bounds[:-1])[:bags].clamp(min=1).unsqueeze(1).to(torch.float32) if mode == "mean" else total
    one_each = torch.arange(count, dtype=flat.dtype)
    found = _summed(rows, flat, one_each, None, bits, False)[:, :columns]
    found = torch.cat([found, torch.zeros([1, columns], dtype=torch.float32)])  # the last row stands for padding
    where = one_each if padding_idx is None else torch.where(flat == padding_idx, count, one_each)
    which = 1 if mode == "mean" else 2
    return torch.embedding_bag(found, where, bounds, False, which, False, None, True, count)[0][:bags]
