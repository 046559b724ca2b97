"""The statements of a compiled program as node data: for modules that were loaded, where no graph is at hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.program import KERNELS, Program
from qcompiler.backends.torch.program.statements import Call
from qcompiler.backends.torch.program.values import Const, Scale, ZeroPoint
from qcompiler.backends.torch.program.weight_axes import weight_axes
from qcompiler.executable.node_data import clipped, compact, rounded
from qcompiler.executable.tensors import find
from qcompiler.ir.nested import Ref, walk
from qcompiler.ir.text import format_arg

PLACE = re.compile(r"^(?:(?P<path>[^ ()]+) ?)?(?:\((?P<cls>[^()]*)\) ?)?(?:(?P<file>[^:]+):(?P<line>\d+))?$")  # build._provenance
QUANTIZE = (
    "torch.quantize_per_tensor",
    "aten::quantize_per_tensor.default",
    "runtime.quantize_along",
    "runtime.quantize_as_images",
    "ops.quantize",
)
DEQUANTIZE = ("method.dequantize", "aten::dequantize.self", "ops.dequantize", "ops.dequantize_weight")

Node = dict[str, Any]


def program_nodes(module: nn.Module, program: Program) -> list[Node]:
    """Inputs, constants before their first use, statements and the output, in order."""
    reader = _Reader(module, program)
    for i in program.inputs:
        text = f"%{i.name} = input {i.name}"
        reader.add(i.name, [], op="placeholder", kind="input", attrs=i.name, dtype=i.dtype, cls=program.name, text=text)
    for call in program.statements:
        reader.call(call)
    wires = reader.wires([program.output])
    reader.add(reader.free("output"), wires, op="output", kind="output", cls=program.name, text=f"return {reader.spell(program.output)}")
    return reader.nodes


class _Reader:
    def __init__(self, module: nn.Module, program: Program) -> None:
        self.module = module
        buffers = module.state_dict()
        self.scales, self.zeros = buffers[program.scales_name].tolist(), buffers[program.zero_points_name].tolist()
        self.axes = weight_axes(program)
        self.nodes: list[Node] = []
        self.names = {i.name for i in program.inputs} | {c.out for c in program.statements if c.out}
        self.constants: dict[str, str] = {}

    def free(self, name: str) -> str:
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name

    def add(self, name: str, wires: Sequence[str], **fields: Any) -> None:
        after = self.nodes[-1]["name"] if self.nodes else None
        self.nodes.append({"name": name, "after": after, "in": list(wires), **compact({"origin": [name], **fields})})

    def call(self, call: Call) -> None:
        place = PLACE.match(call.comment)
        fields: dict[str, Any] = dict(place.groupdict()) if place else {}
        fields["line"] = int(fields["line"]) if fields.get("line") else None
        wires = self.wires([call.args, call.kwargs], fields)
        name = call.out or self.free(re.sub(r"\W+", "_", call.op.rpartition(".")[2]) or "call")
        arguments = [self.spell(a) for a in call.args] + [f"{k}={self.spell(v)}" for k, v in sorted(call.kwargs.items())]
        fields["origin"] = list(getattr(call, "origin", ())) or [name]
        self.add(name, wires, op=call.op.removeprefix("method."), kind=_kind(call), attrs=self.attributes(call), q=self.qparams(call),
                 text=f"%{name} = {call.op}({', '.join(arguments)})", **fields)  # fmt: skip

    def wires(self, values: list[object], place: Mapping[str, object] | None = None) -> list[str]:
        """Names of what a statement reads; a constant gets its node here."""
        found: list[str] = []
        for value in walk(values):
            if isinstance(value, Ref):
                found.append(value.name)
            elif isinstance(value, Const):
                found.append(self.constant(value.name, place or {}))
        return list(dict.fromkeys(found))

    def constant(self, path: str, place: Mapping[str, object]) -> str:
        if path not in self.constants:
            tensor, name = find(self.module, path), self.free(re.sub(r"\W", "_", path))
            self.constants[path] = name
            params = None if path.endswith(("_scale", "_zero_point")) else tensor.numel()
            dtype = str(tensor.dtype).removeprefix("torch.")
            self.add(name, [], op="get_attr", kind="attr", attrs=path, shape=list(tensor.shape), dtype=dtype,
                     params=params, text=f"%{name} = attribute {path}", q=self.weight_qparams(path), **place)  # fmt: skip
        return self.constants[path]

    def weight_qparams(self, path: str) -> dict[str, object] | None:
        held = self.module.state_dict()
        scale, zeros = held.get(f"{path}_scale"), held.get(f"{path}_zero_point")
        if scale is None or zeros is None:
            return None
        single = scale.numel() == 1
        return {"scale": rounded(scale.flatten().tolist()[0] if single else scale.tolist()),
                "zero_point": int(zeros.flatten()[0]) if len(set(zeros.flatten().tolist())) == 1 else zeros.tolist(),
                "min": -128, "max": 127, "dtype": "int8", "axis": None if single else self.axes.get(path, 0)}  # fmt: skip

    def qparams(self, call: Call) -> dict[str, Any] | None:
        """Of the result: the last (scale, zero point) pair of a statement that hands out integers."""
        scales = [v.index for v in call.values() if isinstance(v, Scale)]
        if not scales or floats_out(call.op):
            return None
        index = scales[-1]
        zero_point = int(self.zeros[index])
        return {"scale": rounded(self.scales[index]), "zero_point": zero_point, "min": 0, "max": 255, "dtype": "uint8", "axis": None}

    def attributes(self, call: Call) -> str:
        names = registry.parameter_names(call.op) if "::" in call.op or call.op.startswith(("runtime.", "ops.")) else ()
        parts = [(names[i] if i < len(names) else "", a) for i, a in enumerate(call.args)] + sorted(call.kwargs.items())
        constant = [(k, a) for k, a in parts if not any(isinstance(v, (Ref, Const)) for v in walk(a))]
        return clipped(", ".join(f"{k}={self.spell(v)}" if k else self.spell(v) for k, v in constant))

    def spell(self, value: object) -> str:
        return _spell(value, self)


def _spell(value: object, reader: _Reader) -> str:
    kinds: dict[type, Callable[[Any], str]] = {
        Ref: lambda v: f"%{v.name}",
        Const: lambda v: f"%{reader.constants.get(v.name, v.name)}",
        Scale: lambda v: format_arg(float(reader.scales[v.index])),
        ZeroPoint: lambda v: str(int(reader.zeros[v.index])),
        tuple: lambda v: "(" + ", ".join(_spell(i, reader) for i in v) + ("," if len(v) == 1 else "") + ")",
        list: lambda v: "[" + ", ".join(_spell(i, reader) for i in v) + "]",
        dict: lambda v: "{" + ", ".join(f"{k}: {_spell(i, reader)}" for k, i in v.items()) + "}",
    }
    return kinds.get(type(value), format_arg)(value)


def floats_out(op: str) -> bool:
    return op in DEQUANTIZE or "_fp32" in op


def _kind(call: Call) -> str:
    if call.op == "runtime.quantize_constant" or call.op in QUANTIZE:
        return "quantize"
    if registry.is_once(call.op):
        return "pack"
    if call.op in DEQUANTIZE:
        return "dequantize"
    if registry.is_fit(call.op):
        return "other"
    if call.op.startswith(KERNELS) or any(isinstance(v, Scale) for v in call.values()):
        return "int8"
    return "other" if call.op.startswith(("operator.", "builtins.", "guard.", "math.")) else "float"
