"""A QUANTIZED graph to a torch.export.ExportedProgram."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx.traceback import get_current_meta, preserve_node_meta, set_current_meta
from torch.utils._pytree import tree_leaves

from qcompiler.errors import ConfigError, QCompilerWarning, UnsupportedOpError, callers_level
from qcompiler.export.dims import DynamicShapes
from qcompiler.export.ranges import code_limits
from qcompiler.export.torch_export.arguments import Given, given_for
from qcompiler.export.torch_export.arithmetic import ATEN, Arithmetic, decomposed
from qcompiler.export.torch_export.xnnpack import xnnpack
from qcompiler.ir.attributes import container
from qcompiler.ir.types import quant_of, source_of
from qcompiler.ir.verify import where
from qcompiler.ops.reference import dequantize, quantize
from qcompiler.ops.table import Table
from qcompiler.stages.arguments import bounds_of
from qcompiler.stages.size_dims import Search
from qcompiler.stages.size_runs import Place, Runner

REGISTERS = "import torch.ao.quantization.fx._decomposed, or what brings it: executorch, torch._inductor"
GROWS = (
    "ExecuTorch 1.5.1 was seen to compute wrong results without a word where a size was larger than at its first call: hold all sizes, "
    "dynamic_shapes={}, or compare its results at every size that will come"
)
ARITHMETICS: Mapping[str, Callable[[fx.GraphModule], Arithmetic]] = {
    "aten": lambda gm: Arithmetic(ATEN, {}),
    "quantized_decomposed": decomposed,
    "xnnpack": xnnpack,
}
HINT = "leave this out of the module that is exported, or write it so that data decides on no shape and on no branch"


def program_of(gm: fx.GraphModule, table: Table, asked: DynamicShapes = None, ops: str = "aten") -> ExportedProgram:
    """The program of a QUANTIZED graph. Raises UnsupportedOpError for a call that torch.export cannot take, ConfigError for settings."""
    if ops not in ARITHMETICS:
        raise ConfigError(f"ops={ops!r:.40}: a program is made of {', '.join(ARITHMETICS)}", code="export-ops")
    if ops != "aten" and not hasattr(torch.ops.quantized_decomposed, "quantize_per_tensor"):
        raise ConfigError("nothing has registered the ops of quantized_decomposed in this process", code="export-ops", hint=REGISTERS)
    search = Search(Runner(gm, table))
    module, held = _Module(gm, table, ARITHMETICS[ops](gm)), set[Place]()
    while True:
        given = given_for(gm, search, asked, held)
        with _clear_errors():
            made = torch.export.export(module, given.args, dict(given.kwargs), dynamic_shapes=dict(given.shapes) if given.open else None)
        fixed = _fixed(made, given)
        foreign = _foreign(fixed, search) if asked is None else set()
        if asked is None and not foreign and given.open and not _takes(made, given_for(gm, search, {})):
            foreign = _first(given.open, search)
        if not foreign:
            break
        held |= foreign
    _tell_fixed([*held, *fixed], search, asked)
    if ops == "xnnpack" and given.open:
        warnings.warn(GROWS, QCompilerWarning, stacklevel=callers_level())
    return made


class NotExported(Exception):
    """A node that torch.export cannot take."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__(node.name)
        self.node = node


class _Module(nn.Module):
    """What torch.export sees: the tensors and float modules that a graph reads, under their names, and a forward that walks the graph."""

    def __init__(self, gm: fx.GraphModule, table: Table, arithmetic: Arithmetic) -> None:
        super().__init__()
        for op in ("call_module", "get_attr"):
            for path in (str(node.target) for node in gm.graph.nodes if node.op == op):
                _put(self, path, arithmetic.tensors.get(path, attrgetter(path)(gm)))
        signature = inspect.signature(gm.forward)

        def forward(*args: object, **kwargs: object) -> object:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            with preserve_node_meta():
                return _plain(_Walk(self, gm, table, arithmetic).run(*bound.arguments.values()))

        forward.__signature__ = signature  # type: ignore[attr-defined]
        self.forward = forward


def _put(root: nn.Module, path: str, value: object) -> None:
    owner, _, name = path.rpartition(".")
    module = container(root, owner)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(name, value)
    elif not hasattr(module, name):
        setattr(module, name, value)


@dataclass(frozen=True)
class _Reads:
    """Codes that each of their readers reads for itself."""

    read: Callable[[], object]


class _Walk(fx.Interpreter):
    """Runs a QUANTIZED graph as torch.export shall see it; what it makes carries the module and the user's line of its node."""

    def __init__(self, module: nn.Module, gm: fx.GraphModule, table: Table, arithmetic: Arithmetic) -> None:
        super().__init__(module, graph=gm.graph)
        self.table, self.arithmetic = table, arithmetic

    def run_node(self, n: fx.Node) -> Any:
        with set_current_meta(n):
            get_current_meta().update(_told(n))
            try:
                return self._value(n)
            except Exception as error:
                raise NotExported(n) from error

    def map_nodes_to_values(self, args: fx.node.Argument, n: fx.Node) -> fx.node.Argument:
        def value(source: fx.Node) -> object:
            held = self.env[source]
            return held.read() if isinstance(held, _Reads) else held

        return fx.node.map_arg(args, value)  # type: ignore[arg-type]

    def _value(self, n: fx.Node) -> Any:
        args, given = _plain(self.fetch_args_kwargs_from_env(n))
        spelled = self.arithmetic.spelled.get(n.target) if n.op == "call_function" else None  # type: ignore[arg-type]
        if spelled is not None and self.arithmetic.apart and n.target is dequantize:
            return _Reads(lambda: spelled(n, *args, **given))
        if spelled is not None:
            return spelled(n, *args, **given)
        row, kwargs = self.table.of(n), given
        if row is not None and row.rounds_inside:
            kwargs.pop("activation_range", None)  # each step would round by the values at hand, and torch.export has no loop over steps
        if kwargs.get("bounds") is not None and (_is_rounded(n) if self.arithmetic.cuts else _range_is_clamp(n)):
            del kwargs["bounds"]
        return getattr(self, n.op)(n.target, args, kwargs)


def _range_is_clamp(node: fx.Node) -> bool:
    """Whether all that reads the result rounds it into a range that ends where the clamp does, or before."""
    qparams = [quant_of(user).qparams for user in node.users if user.target is quantize]
    return len(qparams) == len(node.users) and all(p is not None and code_limits(p, bounds_of(node.kwargs)) is None for p in qparams)


def _is_rounded(node: fx.Node) -> bool:
    """Whether all that reads the result rounds it."""
    return all(user.target is quantize for user in node.users)


def _told(node: fx.Node) -> dict[str, object]:
    """Where a node comes from, as torch.export notes it."""
    source, stack = source_of(node), {"": ("", "Model")}
    if source.module_path:
        stack[source.module_path] = (source.module_path, source.module_type)
    line = f'  File "{source.file}", line {source.line}, in forward\n' if source.file else ""
    return {"nn_module_stack": stack, "stack_trace": line}


def _plain(value: Any) -> Any:
    """Containers of torch.fx as Python's own, which programs are written with."""
    if type(value) is tuple:
        return tuple(map(_plain, value))
    if isinstance(value, list) and type(value) in (list, fx.immutable_collections.immutable_list):
        return list(map(_plain, value))
    if type(value) in (dict, fx.immutable_collections.immutable_dict):
        return {key: _plain(part) for key, part in value.items()}
    return value


@contextmanager
def _clear_errors() -> Iterator[None]:
    """What torch.export says, as an error that names the node, its module and the user's line."""
    try:
        yield
    except Exception as error:
        found = _not_exported(error)
        node = None if found is None else found.node
        reason = str(error if found is None else found.__cause__).strip().partition("\n")[0]
        what = "the model" if node is None else f"%{node.name}"
        raise UnsupportedOpError(f"torch.export cannot take {what}: {reason:.300}", code="export-program",
                                 where=None if node is None else where(node), hint=HINT) from error  # fmt: skip


def _not_exported(error: BaseException | None) -> NotExported | None:
    while error is not None and not isinstance(error, NotExported):
        error = error.__cause__ or error.__context__
    return error


def _takes(made: ExportedProgram, example: Given) -> bool:
    """Whether the guards of a program let the example pass: some say what holds at the sizes that it was exported with alone."""
    guards = getattr(made.module(), "_guards_fn", None)
    try:
        if guards is not None:
            guards(*tree_leaves((example.args, dict(example.kwargs))))
    except AssertionError:
        return False
    return True


def _first(places: Collection[Place], search: Search) -> set[Place]:
    """One of the dimensions that are open, with those that change together with it."""
    place = min(places, key=lambda place: (place[1], place[0]))
    dim = search.dim(place)
    return {place} if dim is None else set(dim.places)


def _foreign(fixed: Mapping[Place, int], search: Search) -> set[Place]:
    """Dimensions that a program holds at a size that is not the example's, as a recurrent layer holds the steps that it was exported with.
    Those that change together go together."""
    examples = {place: size for place, size, *_ in search.runner.places()}
    found = {place for place, size in fixed.items() if size != examples[place]}
    return found | {place for other in found if (dim := search.dim(other)) is not None for place in dim.places}


def _tell_fixed(places: Iterable[Place], search: Search, asked: DynamicShapes) -> None:
    """What torch.export held fixed of what was to stay open: an error where the caller asked for it, a warning where the model lets it."""
    fixed = {place: search.dim(place) for place in places}
    for (source, axis), dim in fixed.items() if asked is not None else ():
        why = search.fixed[source, axis] if dim is None else "torch.export holds it fixed"
        raise ConfigError(f"dimension {axis} of {source!r:.60} cannot change: {why}", code="dynamic-shapes",
                          hint="leave it out of dynamic_shapes")  # fmt: skip
    text = ", ".join(f"dimension {axis} of {source!r}" for (source, axis), dim in fixed.items() if dim is not None)
    if text:
        warnings.warn(f"torch.export holds {text} fixed, though the model takes other sizes", stacklevel=callers_level())


def _fixed(made: ExportedProgram, given: Given) -> dict[Place, int]:
    """Of the dimensions that were to stay open those that are numbers in the program."""
    found: dict[Place, int] = {}
    values = {node.name: node.meta["val"] for node in made.graph.nodes if node.op == "placeholder"}
    for source, name in zip(given.paths, made.graph_signature.user_inputs, strict=True):
        for axis, size in enumerate(getattr(values.get(str(name)), "shape", ())):
            number = size if isinstance(size, int) else size.node.maybe_as_int()
            if (source, axis) in given.open and number is not None:
                found[source, axis] = number
    return found


__all__ = ["program_of"]
