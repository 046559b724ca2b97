"""Embeddings: rows of a table of integers, made floats after they were picked."""

from __future__ import annotations

import onnx_ir as ir
import torch

from qcompiler.export.onnx_qdq.refusals import NoForm
from qcompiler.export.onnx_qdq.site import Form, Site
from qcompiler.stages.arguments import Weight


def _rows(site: Site) -> ir.Value:
    """The rows that the indices name. Of integers codes, scale and zero point are picked: real = (code - zero) * scale."""
    indices, table = site.operand(site.get("indices"), torch.int64), site.get("weight")
    if not isinstance(table, Weight):
        return site.call("Gather", site.tensor("weight").value, indices, axis=0)
    codes = site.call("Gather", site.graph.parameter(table.name, table.codes), indices, axis=0)
    values = site.graph.cast(codes, torch.float32)
    parts = []
    for what, tensor in (("scale", table.scale), ("zero_point", table.zero_point)):
        columns = tensor.float().reshape(-1, 1) if table.axis == 0 else tensor.float().reshape(1, 1)
        held = site.graph.parameter(f"{table.name}_{what}", columns)
        parts.append(site.call("Gather", held, indices, axis=0) if table.axis == 0 else held)
    return site.call("Mul", site.call("Sub", values, parts[1]), parts[0])


def embedding_bag(site: Site) -> ir.Value:
    indices = site.tensor("indices")
    if indices.rank != 2 or site.get("offsets") is not None or site.get("padding_idx") is not None:
        raise NoForm("bags of different lengths have no op")
    rows, weights, mode = _rows(site), site.optional("per_sample_weights"), site.text("mode")
    if weights is not None:
        rows = site.call("Mul", rows, site.call("Unsqueeze", weights.value, site.ints(2)))
    return site.call({"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax"}[mode], rows, site.ints(1), keepdims=0)


FORMS: dict[str, Form] = {"embedding": _rows, "embedding_bag": embedding_bag}
