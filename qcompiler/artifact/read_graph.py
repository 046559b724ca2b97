"""The QUANTIZED graph of a converted module, made of the note on it (graph_note.py), which a file may hold: anybody may have written it.

torch.fx makes code of a graph, so every name in the note is checked to be a name, and every target to be one that a program may call.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx, nn

from qcompiler.artifact.graph_note import GRAPH, KINDS, NODE, VERSION, rest_of
from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.statements import is_argument, is_name
from qcompiler.errors import ArtifactError, ConfigError, QCompilerError
from qcompiler.executable import JSON, Executable
from qcompiler.executable.form_data import form_from_data
from qcompiler.executable.tensors import find_submodule
from qcompiler.files.dtypes import DTYPES
from qcompiler.files.faults import corrupt
from qcompiler.inputs.checks import MARK
from qcompiler.ir.attributes import attribute, container, set_attribute
from qcompiler.ir.graph_module import OwnGraphModule
from qcompiler.ir.names import NAMES, is_plain, keep_names, user_path
from qcompiler.ir.types import QUANT, SOURCE, VALUE, Mode, QParams, Quant, Source, Value
from qcompiler.ops import functional
from qcompiler.ops.table import OPS
from qcompiler.ops.trees import put_together

HINT = "give what prepare_fx returned, calibrated, or the graph of convert_to_reference_fx"
OPS_OF = {kind: op for op, kind in KINDS.items()}
LOWERED = ("runtime.", "quantized::", "onednn::")  # operations that no QUANTIZED graph has


def graph_of(module: Executable) -> fx.GraphModule:
    """The graph that a module computes; its tensors are the module's. Raises ConfigError where the module has none, or has other scales
    now; ArtifactError for a note that no compiler wrote."""
    note: JSON = module.__dict__.get(GRAPH)
    if note is None:
        raise _none("it was converted by an older version, or its back end keeps no graph")
    if not isinstance(note, dict) or note.get("version") != VERSION:
        raise _none("its graph was written by another version")
    if "missing" in note:
        raise _none(str(note["missing"]))
    try:
        return _Reader(module, note).graph()
    except ArtifactError:
        raise
    except ConfigError:
        raise
    except (QCompilerError, KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise corrupt("quantized graph", f"{error!s:.300}") from error


def _none(why: str) -> ConfigError:
    return ConfigError(f"this module cannot be exported: {why}", code="export-converted", hint=HINT)


class _Reader:
    def __init__(self, module: Executable, note: Mapping[str, JSON]) -> None:
        self.module, self.note = module, note
        self.state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
        self.names = {str(user): _plain_name(safe) for user, safe in note["names"]}
        self.nodes: dict[str, fx.Node] = {}
        self.root = nn.Module()
        self.root.meta = {NAMES: self.names}  # type: ignore[assignment]
        self.graph_ = fx.Graph()
        self.parameters = frozenset(note["parameters"])

    def graph(self) -> fx.GraphModule:
        for entry in self.note["nodes"]:
            self._node(*entry)
        read, modules = self._read()
        if rest_of(self.state, read, modules) != self.note["rest"]:
            raise ConfigError("the scales of this module's values are not those that it was converted with, so its graph is not this one",
                              code="export-converted", hint=HINT)  # fmt: skip
        title = self.note["title"]
        made = OwnGraphModule(self.root, self.graph_, class_name=title if is_argument(title) else "Model")
        keep_names(made, self.names)
        setattr(made, MARK, "reference")
        return made

    def _read(self) -> tuple[list[str], list[str]]:
        """The user's names of the tensors that the graph reads, and the paths of modules that it calls or reads."""
        paths = {str(n.target): n for n in self.nodes.values() if n.op in ("get_attr", "call_module")}
        held: dict[str, object] = {path: attribute(self.root, path) for path in paths}
        users = {path: user_path(self.root, path) for path in paths}
        tensors = [users[path] for path, value in held.items() if isinstance(value, Tensor)]
        return tensors, [users[path] for path, value in held.items() if isinstance(value, nn.Module)]

    def _node(self, kind: str, name: str, target: str, args: JSON, *rest: JSON) -> None:
        kwargs = {} if rest[0] is None else rest[0]
        if not is_name(name) or name in self.nodes or not isinstance(target, str):
            raise ValueError(f"{name!r:.80} cannot be a node")
        if not isinstance(args, list) or not isinstance(kwargs, dict) or not all(is_name(key) for key in kwargs):
            raise ValueError(f"bad arguments of {name!r:.80}")
        given = tuple(_rewritten(args, self.nodes)), _rewritten(kwargs, self.nodes)
        op = OPS_OF[kind]
        node = self.graph_.create_node(op, self._target(op, target, *given), *given, name=name)
        node.name = name
        self.nodes[name] = node
        self._notes(node, *rest[1:])

    def _target(self, op: str, target: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> JSON:
        if op in ("get_attr", "call_module"):
            return self._held(target)
        if op == "call_method" and registry.method_allowed(target):
            return target
        if (op == "placeholder" and is_argument(target.lstrip("*"))) or (op == "output" and target == "output"):
            return target
        if op != "call_function":
            raise ValueError(f"bad target {target!r:.80}")
        kind, _, name = target.partition(":")
        if kind == "row" and name in OPS.rows:
            return OPS.rows[name].fn
        if kind == "function" and is_name(name) and getattr(getattr(functional, name), "__module__", "") == functional.__name__:
            return getattr(functional, name)
        if kind == "call":
            return _operation(name, args, kwargs)
        own = self.module._outside()
        if kind in ("own", "tree") and name not in own:
            raise ConfigError(f"the graph needs {name}, a function or class of yours that this process has not", code="export-converted",
                              hint="load(path, modules={name: thing}) takes it")  # fmt: skip
        return {"own": lambda thing: thing, "tree": put_together}[kind](own[name])

    def _held(self, path: str) -> str:
        """Puts what stands under a path into the graph's module."""
        if not path or not all(is_plain(part) for part in path.split(".")):
            raise ValueError(f"bad path {path!r:.80}")
        name = user_path(self.root, path)
        if path in self.note["values"]:
            owner, _, last = path.rpartition(".")
            setattr(container(self.root, owner), last, self.note["values"][path])
        elif path in self.note["tensors"]:
            self._put(path, _tensor(*self.note["tensors"][path]))
        elif name in self.state:
            self._put(path, self.state[name])
        else:
            owner, _, last = path.rpartition(".")
            container(self.root, owner).add_module(last, find_submodule(self.module, name))
        return path

    def _put(self, path: str, value: Tensor) -> None:
        set_attribute(self.root, path, value, parameter=path in self.parameters)

    def _notes(self, node: fx.Node, source: int, shape: int, decided: JSON = None) -> None:
        sizes, dtype, *form = self.note["shapes"][shape]
        node.meta[VALUE] = Value(None if sizes is None else tuple(map(int, sizes)), None if dtype is None else DTYPES[dtype],
                                 form_from_data(form[0]) if form else None)  # fmt: skip
        path, kind, file, line, origin = self.note["sources"][source]
        node.meta[SOURCE] = Source(file, line, str(path), str(kind), tuple(map(str, origin)))
        if decided is not None:
            int8, mode, floats, p, *why = decided
            reason, code = self.note["reasons"][why[0]] if why else (None, None)
            qparams = None if p is None else QParams(float(p[0]), int(p[1]), int(p[2]), int(p[3]), DTYPES[p[4]])
            node.meta[QUANT] = Quant(int8 is True, None if mode is None else Mode[mode], reason, floats is True, qparams=qparams, code=code)


def _operation(name: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Callable[..., object]:
    """The function behind a name of the registry, as a program's own checks let it be called."""
    if name.startswith(LOWERED):
        raise ValueError(f"operation {name!r:.80} is none of a quantized graph")
    if name == "builtins.getattr" and (kwargs or len(args) not in (2, 3) or not registry.attribute_allowed(str(args[1]))):
        raise ValueError("bad attribute")
    if name.startswith(registry.STATE_WRITE) and not (args and isinstance(args[0], fx.Node) and args[0].op == "get_attr"):
        raise ValueError(f"{name!r:.80} writes what is no tensor of the module")
    return registry.resolve(name)


def _rewritten(value: JSON, nodes: Mapping[str, fx.Node]) -> JSON:
    """Arguments with nodes in the place of their names."""
    if isinstance(value, str) and value.startswith(NODE):
        name = value.removeprefix(NODE)
        return name if name.startswith(NODE) else nodes[name]
    if isinstance(value, dict):
        return {key: _rewritten(part, nodes) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_rewritten(part, nodes) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, slice):
        return slice(*(_rewritten(part, nodes) for part in (value.start, value.stop, value.step)))
    return value


def _tensor(dtype: str, shape: list[int], data: str) -> Tensor:
    raw = base64.b64decode(data, validate=True)
    made = torch.frombuffer(bytearray(raw or b"\0"), dtype=torch.uint8)[: len(raw)]
    return made.view(DTYPES[dtype]).reshape(shape)


def _plain_name(name: object) -> str:
    if not isinstance(name, str) or not is_plain(name):
        raise ValueError(f"{name!r:.80} is no name")
    return name


__all__ = ["graph_of"]
