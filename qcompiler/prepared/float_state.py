"""What a prepared graph keeps between calls, as the float model had it: converting starts there, whatever calibration left."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from qcompiler.ir.attributes import attribute
from qcompiler.ir.names import user_path
from qcompiler.ops.state_nodes import held_names, set_held

OURS = ("observers.", "weight_fake_quants.")  # modules that prepare puts into a graph


@dataclass
class FloatState:
    """Copies of states, by their name in the graph, and of float leaf modules, by path. Leaves share their parameters with the graph's;
    with `trains` also their buffers, and states that are buffers of the user's are not held: training is what changes them."""

    states: dict[str, torch.Tensor] = field(default_factory=dict)
    leaves: dict[str, nn.Module] = field(default_factory=dict)
    trains: bool = False

    @staticmethod
    def of(gm: fx.GraphModule, buffers: Iterable[str] = (), trains: bool = False, observed: tuple[type, ...] = ()) -> FloatState:
        """What a graph holds now. `buffers`: the names of the user's own buffers; `observed`: classes of modules that calibration fills."""
        own = set(buffers) if trains else set()
        states = {name: attribute(gm, name).detach().clone() for name in held_names(gm) if user_path(gm, name) not in own}
        leaves = {path: _copy(leaf, trains) for path, leaf in _leaves(gm) if type(leaf) not in observed}
        return FloatState(states, leaves, trains)

    def again(self, gm: fx.GraphModule) -> FloatState:
        """The same for what was loaded into the graph since."""
        states = {name: attribute(gm, name).detach().clone() for name in self.states}
        return FloatState(states, {path: _copy(gm.get_submodule(path), self.trains) for path in self.leaves}, self.trains)

    def put_back(self, gm: fx.GraphModule) -> None:
        """Let a copy of the graph start as the float model did, with the parameters that it has now."""
        for name, value in self.states.items():
            set_held(attribute(gm, name), value)
        for path, leaf in self.leaves.items():
            now, made = gm.get_submodule(path), copy.deepcopy(leaf)
            for module, other in zip(now.modules(), made.modules(), strict=True):
                _take_over(module, other, self.trains)
            owner, _, last = path.rpartition(".")
            gm.get_submodule(owner)._modules[last] = made


def _take_over(now: nn.Module, made: nn.Module, trains: bool) -> None:
    """Gives a copy the parameters that training may have moved, and the buffers that it has filled."""
    if isinstance(now, torch.jit.ScriptModule):  # its tensors cannot be replaced, only filled
        for tensor, value in zip((*made.parameters(), *made.buffers()), (*now.parameters(), *now.buffers()), strict=True) if trains else ():
            tensor.data.copy_(value.data)
        return
    made._parameters.update(now._parameters)
    made.training = now.training
    if trains:
        made._buffers.update(now._buffers)


def _leaves(gm: fx.GraphModule) -> list[tuple[str, nn.Module]]:
    """The modules that are called as a whole, or by a statement that runs as it stands."""
    paths = dict.fromkeys(str(node.target) for node in gm.graph.nodes if node.op in ("call_module", "get_attr"))
    return [(path, gm.get_submodule(path)) for path in paths if not path.startswith(OURS) and isinstance(attribute(gm, path), nn.Module)]


def _copy(leaf: nn.Module, trains: bool) -> nn.Module:
    shared: list[Any] = [*leaf.parameters(), *(leaf.buffers() if trains else ())]
    return copy.deepcopy(leaf, {id(tensor): tensor for tensor in shared})
