"""Which get_attr nodes read a parameter: an index by dotted name, kept right while a graph is edited."""

from __future__ import annotations

from types import TracebackType

from torch import fx

from qcompiler.errors import PassError
from qcompiler.ir.verify import where

READERS = "qc_readers"  # gm.meta key -> Readers, while one is open


def readers(gm: fx.GraphModule, path: str) -> list[fx.Node]:
    """The get_attr nodes of `path`: from the index where one is open, else by a look at every node."""
    index: Readers | None = gm.meta.get(READERS)
    return index.of(path) if index is not None else [n for n in gm.graph.nodes if n.op == "get_attr" and n.target == path]


class Readers:
    """The index, for the time of a `with` block; `readers` finds it there.

    It hears of nodes that come and go. It does not hear of a get_attr whose target is changed in place: `check` does, and a
    rule that would have had the parameter overwritten under such a node is refused.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.nodes: dict[str, dict[fx.Node, None]] = {}
        self.asked: set[str] = set()

    def __enter__(self) -> Readers:
        for node in self.gm.graph.nodes:
            self._add(node)
        self.gm._register_create_node_hook(self._add)
        self.gm._register_erase_node_hook(self._remove)
        self.gm.meta[READERS] = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.gm._unregister_create_node_hook(self._add)
        self.gm._unregister_erase_node_hook(self._remove)
        del self.gm.meta[READERS]
        if kind is None:
            self.check()

    def _add(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self.nodes.setdefault(str(node.target), {})[node] = None

    def _remove(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self.nodes.get(str(node.target), {}).pop(node, None)

    def of(self, path: str) -> list[fx.Node]:
        self.asked.add(path)
        return [node for node in self.nodes.get(path, ()) if node.target == path]

    def check(self) -> None:
        """Raises PassError where a get_attr reads a path that was asked for, and the answer left it out."""
        for node in self.gm.graph.nodes:
            if node.op == "get_attr" and node.target in self.asked and node not in self.nodes.get(str(node.target), ()):
                raise PassError(f"a rule turned %{node.name} to {node.target} in place", code="get-attr-retargeted", where=where(node),
                                hint="make a new get_attr node and replace the uses of the old one")  # fmt: skip
