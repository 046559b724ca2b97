"""What a traced graph reads by name: parameters, buffers, tensors that depend on no input, modules, flags. Each has one node."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from qcompiler.ir.types import SOURCE, VALUE, Source, Value
from qcompiler.trace.memory import storage


class Attributes:
    """The `get_attr` nodes of a graph. `constants`: by name, the tensors that the model itself has under no name."""

    def __init__(self, model: nn.Module, graph: fx.Graph, source: Callable[[], Source]) -> None:
        self._graph, self._source = graph, source
        named = [*model.named_parameters(), *model.named_buffers()]
        self._names = {id(tensor): name for name, tensor in reversed(named)}
        self._buffers = {id(tensor) for tensor in model.buffers()}
        self._nodes: dict[str, fx.Node] = {}
        self.memory = {storage(tensor) for _, tensor in named} - {0}  # what the model's own tensors use
        self.constants: dict[str, torch.Tensor] = {}
        self._constants: dict[tuple[int, int], str] = {}
        self._kept: list[torch.Tensor] = []
        self._made: dict[int, weakref.ref[torch.Tensor]] = {}  # tensors that forward computed of constants
        self.outside: list[torch.Tensor] = []  # tensors that it read, and neither made nor has under a name

    def is_buffer(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._buffers

    def is_parameter(self, tensor: torch.Tensor) -> bool:
        """Whether it is one of the model, which training moves. One that is frozen now may be trained later."""
        return isinstance(tensor, nn.Parameter) and id(tensor) in self._names

    def node(self, name: str, value: Value) -> fx.Node:
        """The node that reads what the model has under a name."""
        node = self._nodes.get(name)
        if node is None or node._erased:
            node = self._nodes[name] = self._graph.create_node("get_attr", name)
            node.meta[VALUE], node.meta[SOURCE] = value, self._source()
        return node

    def node_of_tensor(self, tensor: torch.Tensor) -> fx.Node:
        """The node of a parameter, a buffer or a tensor that depends on neither inputs nor randomness."""
        return self.node(self._names.get(id(tensor)) or self._constant(tensor), Value.of(tensor))

    def read(self, name: str) -> fx.Node | None:
        """The node that reads a name, where the graph has it."""
        node = self._nodes.get(name)
        return None if node is None or node._erased else node

    def note_constant(self, arguments: object, result: object) -> None:
        """A call that depends on no input: what it read, and what it made."""
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        for leaf in tree_leaves(arguments) if made else ():  # a question about a shape or dtype reads no values
            if isinstance(leaf, torch.Tensor):
                self._note_read(leaf)
        for leaf in made:
            self._made[id(leaf)] = weakref.ref(leaf)

    def _note_read(self, tensor: torch.Tensor) -> None:
        made = self._made.get(id(tensor))
        if id(tensor) not in self._names and (made is None or made() is not tensor):
            self.outside.append(tensor)

    def _constant(self, tensor: torch.Tensor) -> str:
        """The name under which a tensor's present value is kept as a constant."""
        key = (id(tensor), 0 if tensor.is_inference() else tensor._version)
        if key not in self._constants:
            self._constants[key] = name = f"_constant{len(self._constants)}"
            self.constants[name] = tensor.detach().clone()
            self._kept.append(tensor)  # so that its id stays its own
            self._note_read(tensor)
        return self._constants[key]
