"""Spare observers: what convert_fx(keep_float=...) needs to know of values, should ops become float that are int8 now.

An int8 op rounds what it takes. Mostly the value was observed where it was computed, by an op that is int8 too. If that op becomes float,
the value is observed where the int8 op takes it, with the observer of that op's qconfig: behind a pool or a flatten that then copies
floats, behind a sigmoid whose fixed range no longer holds. Making ops float never makes another one int8 (stays_float), so these are all
the observers that any choice can ask for beside those that are there. Their results go nowhere. Nothing is observed twice in one way.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qcompiler.compile.pass_manager import Context
from qcompiler.ir.names import add_named
from qcompiler.ir.types import SOURCE, VALUE, Stage, quant_of, source_of
from qcompiler.ir.verify import where
from qcompiler.observers.watch import Watch, WatchKey
from qcompiler.ops.affine import source_of_folded
from qcompiler.ops.arguments import activations
from qcompiler.ops.spec import Output
from qcompiler.ops.stays_float import reads_sums


@dataclass(frozen=True)
class WatchSpares:
    name: str = "watch_spares"
    stage: Stage = Stage.OBSERVED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        watches = {node: module.key for node in gm.graph.nodes if (module := _watch(gm, node)) is not None}
        known, found = set(watches.values()), False
        for user in list(gm.graph.nodes):
            row = context.table.of(user)
            if not quant_of(user).int8 or (row is not None and row.output is Output.SAME):
                continue  # a copy of a float value is float itself
            for value in [source_of_folded(user)] if quant_of(user).folded else activations(context.table, user):
                while value in watches:
                    value = value.args[0]  # type: ignore[assignment]
                rounds = value if reads_sums(user, context.table) else user  # if `user` becomes float, the op before it rounds its result
                key = WatchKey(value.name, source_of(value).origin, quant_of(rounds).qconfig.activation)
                if key not in known:
                    known.add(key)
                    _add(gm, value, key)
                    found = True
        return found


@dataclass(frozen=True)
class DropSpares:
    """Takes them out again: what is float has been decided."""

    name: str = "drop_spares"
    stage: Stage = Stage.OBSERVED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        spares = [node for node in gm.graph.nodes if (module := _watch(gm, node)) is not None and module.is_spare]
        for node in spares:
            gm.graph.erase_node(node)
            delattr(gm.get_submodule("observers"), str(node.target).removeprefix("observers."))
        return bool(spares)


def _watch(gm: fx.GraphModule, node: fx.Node) -> Watch | None:
    module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, Watch) else None


def _add(gm: fx.GraphModule, value: fx.Node, key: WatchKey) -> None:
    path = add_named(gm, "observers", f"{value.name}_spare", Watch(key.maker(), where(value), key, is_spare=True))
    with gm.graph.inserting_after(value):
        watch = gm.graph.create_node("call_module", path, (value,), name=f"{value.name}_spare")
    watch.meta[VALUE], watch.meta[SOURCE] = value.meta.get(VALUE), source_of(value)
