"""Files of export_onnx in ONNX Runtime and OpenVINO, for the tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

import qcompiler
from qcompiler.stages.arguments import held
from qcompiler.stages.quantized import Call, Input, Quantize, Result, steps
from tests.interpreter import Interpreter

ir: Any = pytest.importorskip("onnx_ir")
ort: Any = pytest.importorskip("onnxruntime")


def tensors(value: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def prepared(model: nn.Module, *examples: tuple[Any, ...], **options: Any) -> fx.GraphModule:
    made = qcompiler.prepare_fx(model, None, examples[0], **{"backend": "onnx", **options})
    with torch.no_grad():
        for example in examples:
            made(*example)
    return made


def session(path: Path, optimized: bool = True, written: Path | None = None) -> Any:
    """`optimized` False: node by node as the file has them, which is the file's meaning. `written`: where the optimized graph goes."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if written is not None:
        options.optimized_model_filepath = str(written)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(opened: Any, args: object) -> list[Tensor]:
    feed = {given.name: tensor.numpy() for given, tensor in zip(opened.get_inputs(), tensors(args), strict=True)}
    return [torch.from_numpy(np.asarray(made)) for made in opened.run(None, feed)]


def run_in_openvino(path: Path, args: object) -> tuple[list[Tensor], Counter[str]]:
    """The results, and how many layers of each kind run at each precision."""
    openvino = pytest.importorskip("openvino")
    compiled = openvino.compile_model(str(path), "CPU", {"INFERENCE_NUM_THREADS": 1})
    made = compiled([tensor.numpy() for tensor in tensors(args)])
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = Counter(":".join(str(getattr(info[key], "value", info[key])) for key in ("layerType", "runtimePrecision")) for info in infos)
    return [torch.from_numpy(np.asarray(made[i])) for i in range(len(compiled.outputs))], kinds


def ops_of(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in ir.load(path).graph)


def optimized_ops(path: Path) -> Counter[str]:
    """What ONNX Runtime makes of a file."""
    written = path.with_suffix(".optimized.onnx")
    session(path, written=written)
    return ops_of(written)


def same_shapes(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return [(x.shape, x.dtype) for x in a] == [(x.shape, x.dtype) for x in b]


def steps_apart(graph: fx.GraphModule, path: Path, args: tuple[Any, ...], optimized: bool) -> dict[str, int]:
    """By int8 value, how many steps ONNX Runtime's codes are from those that the QUANTIZED graph makes of the same codes before it."""
    model, watched = ir.load(path), path.with_suffix(".watched.onnx")
    made = {value.name: value for node in model.graph for value in node.outputs}
    results = {step.node: result for step in steps(graph) if (result := _codes(step)) is not None and result.name in made}
    model.graph.outputs.extend(made[result.name] for result in results.values())
    for value in model.graph.outputs:
        value.type = value.type or ir.TensorType(ir.DataType.UINT8)
    ir.save(model, watched)
    opened = session(watched, optimized)
    names = [value.name for value in opened.get_outputs()]
    found = dict(zip(names, run(opened, args), strict=True))
    interpreter, given, apart = Interpreter(graph), iter(args), {}
    interpreter.values.update({node: held(graph, node)[1] for node in graph.graph.nodes if node.op == "get_attr"})
    with torch.no_grad():
        for step in steps(graph):
            if isinstance(step, Input):
                interpreter.values[step.node] = next(given, *step.node.args)
            elif not isinstance(step, Result):
                interpreter._compute(step)
            if (result := results.get(step.node)) is not None and isinstance(interpreter.values[result], Tensor):
                ours, theirs = interpreter.values[result], found[result.name]
                assert ours.shape == theirs.shape and ours.dtype is theirs.dtype, result.name
                apart[result.name] = int((ours.int() - theirs.int()).abs().max()) if ours.numel() else 0
                interpreter.values[result] = theirs
    return apart


def _codes(step: object) -> fx.Node | None:
    return step.node if isinstance(step, Quantize) else step.result if isinstance(step, Call) and step.output is not None else None
