"""build: a LOWERED graph -> its Program, tensors, float leaf modules and the user's functions."""

from __future__ import annotations

import builtins
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

import torch
from torch import fx, nn

from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.program import Program, verify
from qcompiler.backends.torch.program.quote import comment
from qcompiler.backends.torch.program.statements import Call, Input, is_argument, is_name
from qcompiler.backends.torch.program.values import Const, Scale, ZeroPoint, to_json
from qcompiler.errors import ConfigError, QCompilerError, Where
from qcompiler.executable.tensors import is_path
from qcompiler.files.dtypes import DTYPE_NAMES
from qcompiler.ir.names import user_path
from qcompiler.ir.nested import Ref, rewrite, walk
from qcompiler.ir.types import source_of, value_of
from qcompiler.ops import functional, records, trees

RESERVED = frozenset(dir(builtins)) | {"torch", "F", "math", "operator", "collections", "Tensor"}  # no variable may hide these
SCALE = re.compile(r"^(.*_)?scale(_i)?$")
HAVE_QPARAMS = ("quantized::", "onednn::", "runtime.", "ops.", "torch.quantize_per_tensor", "aten::quantize_per_tensor")


@dataclass
class Built:
    """A program and what it runs on. Tensors are copies; leaf modules and functions are the graph's own."""

    program: Program
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    scales: list[float] = field(default_factory=list)
    zero_points: list[int] = field(default_factory=list)
    leaves: dict[str, nn.Module] = field(default_factory=dict)
    externals: dict[str, Any] = field(default_factory=dict)


def build(gm: fx.GraphModule, name: str | None = None, isa: str = "") -> Built:
    """The program of a LOWERED graph, with the instruction set that it was lowered for.

    Raises QCompilerError naming the node that it cannot hold, ConfigError for a call that its function does not take.
    """
    builder = _Builder(gm)
    for node in gm.graph.nodes:
        try:
            builder.visit(node)
        except QCompilerError as error:
            raise _located(error, node) from None
        except Exception as error:  # a function that gets arguments it cannot take
            text = f"invalid IR: {node.name} cannot be called so: {type(error).__name__}: {error!s:.400}"
            raise _located(ConfigError(text, code="invalid-ir"), node) from error
    built = builder.built
    calls = tuple(_without_unread(builder.calls, builder.output))
    title = next(text for text in (name, type(gm).__name__, "Model") if text is not None and is_argument(text))
    built.program = Program(title, tuple(builder.inputs), tuple(builder.once), calls, builder.output, len(built.scales), isa)
    verify(built.program)
    return built


def _located(error: QCompilerError, node: fx.Node) -> QCompilerError:
    source = source_of(node)
    error.where = Where(node.name, source.module_path or None, source.location)
    return error


def _without_unread(calls: list[Call], output: object) -> list[Call]:
    """A result that nothing reads gets no name; the call stays, for what it checks or changes."""
    read = {v.name for v in walk(output) if isinstance(v, Ref)}
    read |= {v.name for c in calls for v in c.values() if isinstance(v, Ref)}
    return [c if c.out in read else replace(c, out=None) for c in calls]


class _Builder:
    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.built = Built(Program("", (), (), (), None))
        self.inputs: list[Input] = []
        self.once: list[Call] = []
        self.calls: list[Call] = []
        self.output: Any = None
        self.env: dict[fx.Node, Any] = {}
        self.comment = ""
        self.origin: tuple[str, ...] = ()
        self.once_names: set[str] = set()
        # Inputs keep their names, so nothing else may take one.
        self.taken = {str(n.target) for n in gm.graph.nodes if n.op == "placeholder"}
        self._copies: dict[int, torch.Tensor] = {}

    def visit(self, node: fx.Node) -> None:
        self.comment, self.origin = _provenance(node), source_of(node).origin
        if node.op == "placeholder":
            self.env[node] = self.input(node)
        elif node.op == "get_attr":
            self.env[node] = self.attribute(str(node.target))
        elif node.op == "output":
            self.output = self.encode(node.args[0], node)
        else:
            args, kwargs = self.encode(tuple(node.args), node), self.encode(dict(node.kwargs), node)
            self.env[node] = self.call(node, args, kwargs)

    def input(self, node: fx.Node) -> Ref:
        name = str(node.target)
        if not is_argument(name):
            raise QCompilerError(f"input {name!r} cannot be an argument of the compiled forward", code="codegen-input")
        value = value_of(node)
        dtype = DTYPE_NAMES[value.dtype] if value.dtype is not None else None
        shape = tuple(map(int, value.shape)) if value.shape is not None else None
        rank = len(shape) if shape is not None else None
        default = self.encode(node.args[0], node) if node.args else None
        self.inputs.append(Input(name, dtype, rank, bool(node.args), default, shape, value.form if rank is None else None))
        return Ref(name)

    def attribute(self, path: str) -> Any:
        value: Any = self.gm
        for part in path.split("."):
            if not hasattr(value, part):
                raise QCompilerError(f"the graph reads {path!r}, which the model does not have", code="codegen-attribute")
            value = getattr(value, part)
        path = user_path(self.gm, path)
        if isinstance(value, nn.Module):
            self.built.leaves[path] = value
            return self.emit(path.replace(".", "_"), registry.SUBMODULE, (path,), {})
        if not isinstance(value, torch.Tensor):
            to_json(value)
            return value
        if value.is_quantized or value.layout is not torch.strided or not is_path(path):
            raise QCompilerError(f"{path!r} is not a plain tensor under a dotted name", code="codegen-attribute")
        if id(value) not in self._copies:  # one tensor under two names stays one
            self._copies[id(value)] = value.detach().clone(memory_format=torch.contiguous_format)  # as a file holds it
        self.built.tensors[path] = self._copies[id(value)]
        return Const(path)

    def call(self, node: fx.Node, args: tuple[object, ...], kwargs: dict[str, Any]) -> Any:
        if node.op == "call_module":
            path = user_path(self.gm, str(node.target))
            self.built.leaves[path] = self.gm.get_submodule(str(node.target))
            return self.emit(node.name, registry.LEAF, (path, *args), kwargs)
        if node.op == "call_method":
            if not registry.method_allowed(str(node.target)):
                raise QCompilerError(f"method {node.target!r} is not one that a program may call", code="unknown-op")
            return self.emit(node.name, f"{registry.METHOD}{node.target}", args, kwargs)
        return self.function(node.name, node.target, args, kwargs)

    def function(self, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if getattr(target, "__module__", None) == functional.__name__:
            return self.inline(name, target, args, kwargs)
        op = registry.name_of(target)
        if op is None and (made := self.record(target, args, kwargs)) is not None:
            return self.emit(name, *made)
        return self.emit(name, op or self.external(target), args, kwargs)

    def record(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, object]
    ) -> tuple[str, tuple[object, ...], dict[str, object]] | None:
        """The call that makes a result of a class of the user's; None for other calls."""
        if isinstance(target, trees.PutTogether):
            return self.known(registry.RECORD, target.kind), ("tree", (), tuple(args[0]), args[1]), {}
        form = records.form_of(target) if isinstance(target, type) else None
        if form is None:
            return None
        if form == "named":
            names, values = tuple(target._fields), args
        elif form == "tuple":
            names, values = (), tuple(args[0])
        else:
            fields = args[0] if form == "dict" else kwargs
            names, values = tuple(fields), tuple(fields.values())
        return self.known(registry.RECORD, target), (form, names, values), {}

    def external(self, target: Any) -> str:
        """Name of a function of the user's, or of a private one of torch's that the user calls, kept by the module."""
        custom = isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))  # of a library of the user's
        path = f"torch.ops.{target}" if custom else f"torch.{target.__name__}" if registry.is_private(target) else None
        if path is None and not isinstance(target, (types.FunctionType, type)):
            raise QCompilerError(f"no kernel or function is known for {target!r:.200}", code="unknown-op")
        return self.known(registry.EXTERNAL, target, path)

    def known(self, prefix: str, target: Any, path: str | None = None) -> str:
        """The operation that stands for a function or class of the user's, by its path."""
        path = (path or f"{target.__module__}.{target.__qualname__}").replace("<locals>", "local").replace("<lambda>", "function")
        base = name = ".".join(p if is_name(p) else "function" for p in path.split("."))
        number = 1
        while self.built.externals.get(name, target) is not target:
            number += 1
            name = f"{base}_{number}"
        self.built.externals[name] = target
        return f"{prefix}{name}"

    def inline(self, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """Spells a canonical function as the calls of torch that it is made of."""
        tracer = fx.Tracer()
        tracer.root, tracer.graph = nn.Module(), fx.Graph()
        env: dict[fx.Node, Any] = {}

        def proxy(value: Any) -> Any:
            if isinstance(value, (Ref, Const)):
                made = tracer.create_proxy("placeholder", "x", (), {})
                env[made.node] = value
                return made
            return value

        result = target(*rewrite(args, proxy), **rewrite(kwargs, proxy))
        result = rewrite(result, lambda v: v.node if isinstance(v, fx.Proxy) else v)
        for node in tracer.graph.nodes:
            if node.op == "placeholder":
                continue
            inner_args, inner_kwargs = _resolve(tuple(node.args), env), _resolve(dict(node.kwargs), env)
            label = name if node is result else f"{name}_{node.name}"
            env[node] = (
                self.emit(label, f"{registry.METHOD}{node.target}", inner_args, inner_kwargs)
                if node.op == "call_method"
                else self.function(label, node.target, inner_args, inner_kwargs)
            )
        return _resolve(result, env)

    def emit(self, name: str, op: str, args: tuple[object, ...], kwargs: dict[str, Any]) -> Ref:
        args, kwargs = self.mark_qparams(op, args, kwargs)
        once = registry.is_once(op)
        call = Call(self.free(name), op, args, kwargs, self.comment, self.origin)
        assert call.out is not None
        if once:
            if any(isinstance(v, Ref) and v.name not in self.once_names for v in call.values()):
                raise QCompilerError(f"{op} must depend on constants alone", code="codegen-once")
            self.once_names.add(call.out)
        (self.once if once else self.calls).append(call)
        return Ref(call.out)

    def free(self, name: str) -> str:
        """A fresh variable for a node's name: the same name wherever Python allows it, so that measures find their node."""
        base = re.sub(r"\W", "_", name, flags=re.ASCII) if name.strip("_") else "value"
        base = base if is_name(base) else f"v_{base}"
        made, number = base, 0
        while made in self.taken or made in RESERVED or not is_name(made):
            number += 1
            made = f"{base}_{number}"
        self.taken.add(made)
        return made

    def mark_qparams(self, op: str, args: tuple[object, ...], kwargs: dict[str, Any]) -> tuple[tuple[object, ...], dict[str, object]]:
        """Replaces each literal (scale, zero_point) pair by references, so that both live in the state_dict."""
        if not op.startswith(HAVE_QPARAMS):
            return args, kwargs
        names = registry.parameter_names(op)
        if "scales" in names:  # a native region has those of all its values
            return self._mark_lists(args), kwargs
        slots: dict[str, Any] = dict(zip(names, args)) | kwargs
        for key in [k for k in names if SCALE.match(k)]:
            partner = next((p for p in (key.replace("scale", "zero_point"), key.replace("scale", "zp")) if p in slots), None)
            if partner is None or type(slots.get(key)) not in (float, int) or type(slots[partner]) is not int:
                continue
            index = len(self.built.scales)
            self.built.scales.append(float(slots[key]))
            self.built.zero_points.append(int(slots[partner]))
            slots[key], slots[partner] = Scale(index), ZeroPoint(index)
        return tuple(slots[n] for n in names[: len(args)]) + args[len(names) :], {k: slots[k] for k in kwargs}

    def _mark_lists(self, args: tuple[Any, ...]) -> tuple[object, ...]:
        *rest, scales, zero_points = args
        first = len(self.built.scales)
        self.built.scales += [float(scale) for scale in scales]
        self.built.zero_points += [int(zero_point) for zero_point in zero_points]
        places = range(first, len(self.built.scales))
        return *rest, [Scale(i) for i in places], [ZeroPoint(i) for i in places]

    def encode(self, value: object, node: fx.Node) -> Any:
        """The argument with nodes replaced by references; a named tuple becomes a call of its class."""
        if isinstance(value, fx.Node):
            return self.env[value]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            items = tuple(self.encode(v, node) for v in value)
            return self.function(type(value).__name__.lower(), type(value), items, {})
        if isinstance(value, (tuple, list)):
            items = tuple(self.encode(v, node) for v in value)
            return items if isinstance(value, tuple) else list(items)
        if isinstance(value, dict):
            return {k: self.encode(v, node) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(*(self.encode(v, node) for v in (value.start, value.stop, value.step)))
        to_json(value)  # raises where a file could not hold it
        return value


def _resolve(value: object, env: Mapping[fx.Node, object]) -> Any:
    return rewrite(value, lambda v: env[v] if isinstance(v, fx.Node) else v)


def _provenance(node: fx.Node) -> str:
    """`layer1.0 (BasicBlock) net.py:12`, of what is known."""
    source = source_of(node)
    line = f"{PurePath(source.file).name}:{source.line}" if source.file else ""
    parts = (source.module_path, f"({source.module_type})" if source.module_type else "", line)
    return comment(" ".join(p for p in parts if p))
