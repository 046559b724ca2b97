"""Every spelling of an op becomes its one canonical call: the row's function, tensors first, attributes as keywords."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.attributes import drop_unused_modules, get_attr, set_attribute
from qcompiler.ir.types import ONLY_CHILD, SOURCE, VALUE, Stage, quant_of, source_of, value_of
from qcompiler.ops.spec import ModuleForm, Op
from qcompiler.ops.table import NO_DEFAULT, Table, bind, parse_signature


@dataclass(frozen=True)
class Canonicalize:
    name: str = "canonicalize"
    stage: Stage = Stage.TRACED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        reader = _Attributes(gm)
        changed = _free_self(gm.graph)
        for node in list(gm.graph.nodes):
            if node._erased:
                continue
            call = _module_call(gm, node, context, reader) if node.op == "call_module" else _function_call(node, context.table)
            if call is not None:
                changed |= _rewrite(gm, node, *call)
        gm.graph.eliminate_dead_code()
        drop_unused_modules(gm)
        return changed


def _free_self(graph: fx.Graph) -> bool:
    """Gives a value named `self` (of a submodule with that name) another one: the code of every stage needs it."""
    taken = {node.name for node in graph.nodes}
    if "self" not in taken:
        return False
    node = next(node for node in graph.nodes if node.name == "self")
    node.name = next(name for name in ("self_", *(f"self_{i}" for i in range(len(taken) + 1))) if name not in taken)
    return True


def _keep_fields(node: fx.Node) -> None:
    """Users of a packed result take its new data; its other fields are those of the input."""
    fields: Any = node.args[0]
    for result in [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]:
        for field in [user for user in result.users if user.target is operator.getitem and isinstance(user.args[1], int)]:
            if field.args[1] == 0:
                result.meta[VALUE] = field.meta[VALUE]
            field.replace_all_uses_with(result if field.args[1] == 0 else fields.args[field.args[1]])
            field.graph.erase_node(field)


class _Attributes:
    """get_attr nodes, one for each parameter, placed before its first use."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.nodes: dict[str, fx.Node] = {}

    def read(self, path: str, user: fx.Node) -> fx.Node:
        if path not in self.nodes:
            with self.gm.graph.inserting_before(user):
                self.nodes[path] = get_attr(self.gm, path, source_of(user))
        return self.nodes[path]


def _module_call(gm: fx.GraphModule, node: fx.Node, context: Context, reader: _Attributes) -> tuple[Op, dict[str, object]] | None:
    path = str(node.target)
    module = gm.get_submodule(path)
    found = context.table.module_form(module)
    if found is None:
        return None
    row, form = found
    refusal = form.refuse(module) or ("it has hooks" if module._forward_hooks or module._forward_pre_hooks else None)
    if refusal is None and form.live and module.training and not context.trains:
        refusal = "it is in training mode"
    if refusal:
        context.remark("canonicalize", "module-kept", f"{type(module).__name__} stays as it is: {refusal}", node)
        return None
    if form.packed is not None and _is_packed(node):
        row = context.table.rows[form.packed]
        _keep_fields(node)
    inputs = _inputs(gm, node, row, form)
    if inputs is None:
        return None
    attributes = dict(form.attributes(module))
    if row.name == form.packed:
        attributes.pop("batch_first")  # the rows of a packed sequence have one order
    live = form.live if context.trains else {}
    return row, {**inputs, **attributes, **_tensors(gm, node, path, form, live, reader)}


def _is_packed(node: fx.Node) -> bool:
    """Whether the module is called with a packed sequence that the model made."""
    first = node.args[0] if node.args else None
    return isinstance(first, fx.Node) and first.target is PackedSequence and len(first.args) == 4


def _inputs(gm: fx.GraphModule, node: fx.Node, row: Op, form: ModuleForm) -> dict[str, Any] | None:
    """What the module is called with, by canonical name; None where that is not what its row takes."""
    values = list(node.args) + list(node.kwargs.values())
    if form.signature is None:
        return {row.params[0].name: values[0]} if len(values) == 1 else None
    bound = bind(form.signature, node.args, node.kwargs)
    first: Any = node.args[0] if node.args else None
    if bound is not None and row.name == form.packed:
        bound = {**bound, ",".join(p.name for p in row.params[:4]): first.args}
        del bound[row.params[0].name]
    elif bound is None or value_of(bound[row.params[0].name]).shape is None:
        return None
    return {name: value for names, given in bound.items() for name, value in _spread(gm, node, names.split(","), given)}


def _spread(gm: fx.GraphModule, node: fx.Node, names: list[str], value: object) -> list[tuple[str, Any]]:
    """One argument that is a tuple, as several."""
    if len(names) == 1:
        return [(names[0], value)]
    if isinstance(value, fx.Node):
        with gm.graph.inserting_before(node):
            parts: Any = [gm.graph.call_function(operator.getitem, (value, i)) for i in range(len(names))]
        for part in parts:
            part.meta[SOURCE] = source_of(node)
    else:
        parts = value or [None] * len(names)
    return list(zip(names, parts, strict=True))


def _tensors(
    gm: fx.GraphModule, node: fx.Node, path: str, form: ModuleForm, live: Mapping[str, str], reader: _Attributes
) -> dict[str, Any]:
    module = gm.get_submodule(path)
    if path == gm.meta.get(ONLY_CHILD):
        path = ""
        own = (*form.tensors.values(), *(name for names in form.lists(module).values() for name in names), *live.values())
        for name in own:
            _to_root(gm, name, getattr(module, name))
    names = {**form.tensors, **live}
    found: dict[str, Any] = {arg: None for arg, name in names.items() if getattr(module, name, None) is None}
    found |= {arg: reader.read(f"{path}.{name}".lstrip("."), node) for arg, name in names.items() if arg not in found}
    for arg, listed in form.lists(module).items():
        found[arg] = tuple(reader.read(f"{path}.{name}".lstrip("."), node) for name in listed)
    return found


def _to_root(gm: fx.GraphModule, name: str, value: object) -> None:
    """Gives the graph module what its only layer holds; the graph module has a `training` of its own."""
    if isinstance(value, Tensor):
        set_attribute(gm, name, value, parameter=isinstance(value, nn.Parameter))
    elif name != "training":
        setattr(gm, name, value)


def _function_call(node: fx.Node, table: Table) -> tuple[Op, dict[str, object]] | None:
    if node.op not in ("call_function", "call_method"):
        return None
    found = table.spelled(node.target)
    if found is None:
        return None
    row, spelling = found
    bound = bind(spelling.signature or row.signature, node.args, node.kwargs)
    if bound is None or not _is_tensor_op(row, node, bound):
        return None
    return row, {**bound, **spelling.extra}


def _is_tensor_op(row: Op, node: fx.Node, bound: Mapping[str, object]) -> bool:
    """Arithmetic and indexing also run on sizes and containers: those are not this op (a container of tensors is)."""
    tensors = [bound.get(p.name) for p in row.params]
    flat = [t for entry in tensors for t in (entry if isinstance(entry, (list, tuple)) else [entry])]
    return any(isinstance(t, fx.Node) and (value_of(t).shape is not None or value_of(node).shape is not None) for t in flat)


def _rewrite(gm: fx.GraphModule, node: fx.Node, row: Op, bound: dict[str, Any]) -> bool:
    tensors = [bound.pop(p.name, None) for p in row.params]
    while tensors and tensors[-1] is None:
        tensors.pop()
    defaults = {canonical: default for _, _, canonical, default in parse_signature(row.signature)}
    kwargs = {k: v for k, v in bound.items() if defaults.get(k, NO_DEFAULT) is NO_DEFAULT or not _equal(v, defaults[k])}
    args = tuple(tensors)
    if node.op == "call_function" and node.target is row.fn and node.args == args and node.kwargs == kwargs:
        return False
    with gm.graph.inserting_before(node):
        new = gm.graph.create_node("call_function", row.fn, args, kwargs, name=node.name)
    new.meta.update({key: node.meta[key] for key in (VALUE, SOURCE) if key in node.meta})
    name = node.name
    node.replace_all_uses_with(new)
    gm.graph.erase_node(node)
    new.name = name
    assert quant_of(new).qparams is None
    return True


def _equal(value: object, default: object) -> bool:
    return isinstance(value, (int, float, str, bool, tuple, type(None))) and not isinstance(value, fx.Node) and bool(value == default)
