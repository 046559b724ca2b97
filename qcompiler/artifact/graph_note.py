"""The QUANTIZED graph of a converted module as plain data on the module: what exporters write such a module from, a loaded one too.

It goes into copies, pickles and files as the compiler's other notes do. Weights stand in the module alone: the note has their names. Scales
of values are numbers in the note, so it holds while the module's own do: `rest` is a digest of all tensors that the graph does not read.

| key | holds |
|---|---|
| `version` | 1 |
| `title` | what the graph is called |
| `trains` | whether its ranges come from training, so that values are cut where they end |
| `names` | names of the user's that cannot stand in code, as pairs of these and the ones in their place |
| `sources` | module path, its class, file, line, origin: where nodes come from, each once |
| `reasons` | why ops stay float, in words and by code: each once |
| `shapes` | shapes and dtypes, of arguments also what they are made of: each once |
| `nodes` | a list each: kind, name, target, positional and keyword arguments, places in `sources` and `shapes`, decisions |
| `values` | attributes that are no tensors, by name |
| `parameters` | the names of those tensors that are parameters |
| `tensors` | tensors that the graph reads and the module has not: dtype, shape, bytes in base64 |
| `rest` | the digest |
| `missing` | in place of all of it: why there is none |

In arguments a text that begins with "%" is a node, and "%%" stands for "%". Targets are `row:` and an op of the table, `call:` and an
operation of the registry, `function:` and a canonical function, `own:` or `tree:` and a function or class of the user's by its name in the
module; of other nodes, a path or a method.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, fx, nn

from qcompiler.backends.torch.program import registry
from qcompiler.errors import QCompilerError
from qcompiler.executable import JSON, Executable
from qcompiler.executable.form_data import form_to_data
from qcompiler.files.dtypes import DTYPE_NAMES
from qcompiler.files.values import to_json
from qcompiler.ir.attributes import attribute
from qcompiler.ir.names import NAMES, user_path
from qcompiler.ir.types import QParams, quant_of, source_of, value_of
from qcompiler.ops import functional
from qcompiler.ops.table import OPS, Table
from qcompiler.ops.trees import PutTogether
from qcompiler.raw import raw_bits

GRAPH = "_qcompiler_quantized"  # on a converted module
VERSION = 1
NODE = "%"  # before the name of a node among arguments
KINDS = {
    "placeholder": "in", "get_attr": "held", "call_function": "call", "call_module": "module", "call_method": "method", "output": "out",
}  # fmt: skip
MOST_BYTES = 1 << 20  # of tensors that the note itself holds


class NoNote(Exception):
    """Why a graph has no note, in one clause."""


class Draft:
    """A QUANTIZED graph before a back end lowers it. `note(module)` is what is kept on the module that was built of it."""

    def __init__(self, gm: fx.GraphModule, table: Table, trains: bool = False) -> None:
        self.rows = {row.fn: row.name for row in table.rows.values()}
        self.title, self.trains = type(gm).__name__, trains
        self.names: Mapping[str, str] = dict(gm.meta.get(NAMES, {}))
        self.sources: dict[tuple[JSON, ...], int] = {}
        self.reasons: dict[tuple[str | None, str | None], int] = {}
        self.shapes: dict[str, tuple[int, list[JSON]]] = {}
        self.held: dict[str, object] = {path: attribute(gm, path) for path in _paths(gm.graph, "get_attr")}
        self.called = [user_path(gm, path) for path in _paths(gm.graph, "call_module")]
        self.users = {path: user_path(gm, path) for path in self.held}
        self.nodes: list[tuple[list[JSON], object]] = []  # entries without their targets, and these
        self.missing = ""
        try:
            self.nodes = [(self._entry(node), node.target) for node in gm.graph.nodes]
        except (NoNote, QCompilerError) as error:
            self.missing = str(error)

    def note(self, module: Executable) -> dict[str, JSON]:
        """Plain data, by the module's names."""
        try:
            return self._note(module)
        except NoNote as error:
            return {"version": VERSION, "missing": str(error)}

    def _note(self, module: Executable) -> dict[str, JSON]:
        if self.missing:
            raise NoNote(self.missing)
        own = {id(thing): name for name, thing in module._outside().items()}
        nodes = [[*entry[:2], _target(entry, target, self.rows, own), *entry[2:]] for entry, target in self.nodes]
        state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
        read = {path: value for path, value in self.held.items() if isinstance(value, Tensor)}
        lacking = {path: _bytes_of(value) for path, value in read.items() if not _same(state.get(self.users[path]), value)}
        if sum(len(entry[2]) for entry in lacking.values()) > MOST_BYTES:
            raise NoNote(f"its back end keeps no copy of {', '.join(sorted(lacking))[:400]}")
        parameters = [path for path, value in read.items() if isinstance(value, nn.Parameter)]
        values = {path: value for path, value in self.held.items() if not isinstance(value, (Tensor, nn.Module))}
        sources, shapes = [[*source[:4], list(source[4])] for source in self.sources], [shape for _, shape in self.shapes.values()]
        rest = rest_of(state, [self.users[path] for path in read], self._modules())
        return {"version": VERSION, "title": self.title, "trains": self.trains, "names": [list(p) for p in self.names.items()],
                "sources": sources, "reasons": list(map(list, self.reasons)),
                "shapes": shapes, "nodes": nodes, "values": values, "tensors": lacking, "parameters": parameters, "rest": rest}  # fmt: skip

    def _modules(self) -> list[str]:
        return [*self.called, *(self.users[path] for path, value in self.held.items() if isinstance(value, nn.Module))]

    def _entry(self, node: fx.Node) -> list[JSON]:
        args, kwargs = _plain(node.args), _plain(dict(node.kwargs))
        to_json([args, kwargs])  # raises where a file could not hold it
        source, value = source_of(node), value_of(node)
        key = (source.module_path, source.module_type, source.file, source.line, tuple(source.origin))
        dtype = None if value.dtype is None else DTYPE_NAMES[value.dtype]
        shape: list[JSON] = [None if value.shape is None else list(map(int, value.shape)), dtype]
        shape += [] if value.form is None else [form_to_data(value.form)]
        places = self.sources.setdefault(key, len(self.sources)), self.shapes.setdefault(repr(shape), (len(self.shapes), shape))[0]
        decided = self._decided(node)
        return [KINDS[node.op], node.name, list(args), kwargs or None, *places, *([] if decided is None else [decided])]

    def _decided(self, node: fx.Node) -> list[JSON] | None:
        """int8, mode, whether floats are handed out, qparams, place in `reasons`; None where nothing was decided."""
        quant = quant_of(node)
        qparams = quant.qparams if isinstance(quant.qparams, QParams) and not isinstance(quant.qparams.scale, tuple) else None
        why = self.reasons.setdefault((quant.reason, quant.code), len(self.reasons)) if quant.reason or quant.code else None
        if not (quant.int8 or quant.mode or quant.float_output or qparams or why is not None):
            return None
        p = (
            None
            if qparams is None
            else [qparams.scale, qparams.zero_point, qparams.quant_min, qparams.quant_max, DTYPE_NAMES[qparams.dtype]]
        )
        return [quant.int8, quant.mode.name if quant.mode else None, quant.float_output, p, *([] if why is None else [why])]


def rest_of(state: Mapping[str, Tensor], read: Iterable[str], modules: Iterable[str]) -> str:
    """A digest of the tensors that a graph does not read, and that are of no module that it calls."""
    known, inside = set(read), tuple(f"{path}." for path in modules)
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if name not in known and not name.startswith(inside):
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode(errors="surrogatepass"))
            digest.update(_raw(value))
    return digest.hexdigest()


def _target(entry: list[JSON], target: JSON, rows: Mapping[JSON, str], own: Mapping[int, str]) -> str:
    """How the note names what a node calls or reads. Raises NoNote for what it cannot name."""
    if entry[0] != KINDS["call_function"]:
        return str(target)
    row = rows.get(target)
    if row is not None:
        if row not in OPS.rows or OPS.rows[row].fn is not target:
            raise NoNote(f"{row} is an op that this process was taught")
        return f"row:{row}"
    if getattr(target, "__module__", None) == functional.__name__:
        return f"function:{target.__name__}"
    known = registry.name_of(target)
    if known is not None:
        return f"call:{known}"
    kind, thing = ("tree", target.kind) if isinstance(target, PutTogether) else ("own", target)
    if id(thing) not in own:
        raise NoNote(f"%{entry[1]} calls {getattr(thing, '__name__', thing)!s:.80}, which its program has not as a function of yours")
    return f"{kind}:{own[id(thing)]}"


def _paths(graph: fx.Graph, op: str) -> list[str]:
    return list(dict.fromkeys(str(node.target) for node in graph.nodes if node.op == op))


def _plain(value: object) -> JSON:
    """Containers of torch.fx as Python's own, and nodes as their names."""
    if isinstance(value, fx.Node):
        return f"{NODE}{value.name}"
    if isinstance(value, str) and value.startswith(NODE):
        return f"{NODE}{value}"
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return slice(_plain(value.start), _plain(value.stop), _plain(value.step)) if isinstance(value, slice) else value


def _same(held: Tensor | None, value: Tensor) -> bool:
    return held is not None and held.dtype is value.dtype and held.shape == value.shape and torch.equal(raw_bits(held), raw_bits(value))


def _raw(value: Tensor) -> bytes:
    return bytes(raw_bits(value).numpy().tobytes())


def _bytes_of(value: Tensor) -> list[JSON]:
    return [DTYPE_NAMES[value.dtype], list(value.shape), base64.b64encode(_raw(value)).decode("ascii")]


__all__ = ["GRAPH", "KINDS", "NODE", "VERSION", "Draft", "rest_of"]
