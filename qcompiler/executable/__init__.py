"""What every back end's `build` returns: a module that runs, and that saving, debugging and drawing ask about itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from qcompiler.errors import ConfigError
from qcompiler.executable.arguments import Argument
from qcompiler.executable.integers import Scales
from qcompiler.executable.steps import Steps

JSON = Any  # numbers, text, None, lists and dicts with text as keys


@dataclass(frozen=True)
class Payload:
    """What a back end writes into a file beside the tensors of the state_dict, for its own `load` to read.

    `data`: plain JSON data, which no reader runs as code. `needs`: float submodules and functions of the user's that a file cannot
    hold, under the names by which `load(modules=...)` takes them. `takes`: what `modules` may give besides, such as classes of results.
    `sources`: the text of those functions that the compiler made of the user's statements, for messages.
    """

    data: Mapping[str, JSON]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """`text`: for people. `nodes`: the program in which what the plan settles stands in detail, as data for drawings: a node's `plan` has
    the kernels and the place in memory."""

    text: str
    nodes: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class LayerTimes:
    """`milliseconds`: by value; `instead_of`: the steps that stand for the same work."""

    milliseconds: Mapping[str, float]
    instead_of: frozenset[str]


class Executable(nn.Module):
    """A converted model. A back end derives its module from it, and gives it `forward`, a state_dict of plain tensors under the user's
    names that `load_state_dict` takes, and the methods below. Their names begin with an underscore, since all others are the user's:
    a submodule may be called `steps`.
    """

    _backend = ""  # the back end's name in the registry

    def _arguments(self) -> tuple[Argument, ...]:
        """The arguments of forward, by which a call is told to have this form."""
        raise NotImplementedError

    def _steps(self) -> Steps:
        """The program as steps that run one by one: what compare, parity and the numeric suite walk."""
        raise NotImplementedError

    def _nodes(self) -> list[dict[str, Any]]:
        """The program as plain data, as docs/visualization.md has it: what is drawn where no graph is at hand."""
        raise ConfigError(f"the back end {self._backend} has no drawing of what was loaded or copied", code="no-graph")

    def _plan(self, nodes: Sequence[dict[str, Any]]) -> Plan | None:
        """How the back end runs it, where it has a plan of its own. `nodes`: the program as `_nodes` or a drawing of `_graph` has it."""
        return None

    def _layer_times(self, *args: Any, **kwargs: Any) -> LayerTimes | None:
        """The times of what a call computes in one piece, where it has such pieces and can look into them."""
        return None

    def _scales(self) -> Scales:
        """How its values and weights are held in integers."""
        raise ConfigError(f"the back end {self._backend} does not tell its scales", code="no-scales")

    def _payload(self) -> Payload:
        """What a file holds of it beside its tensors and the notes that the compiler keeps on it."""
        raise ConfigError(f"the back end {self._backend} writes no files", code="save")

    def _outside(self) -> Mapping[str, object]:
        """The functions and classes of the user's that it calls, by the names that it has for them."""
        return {}

    def _title(self) -> str:
        """What the user's model is called."""
        return type(self).__name__

    def _graph(self) -> fx.GraphModule | None:
        """The graph that it was built from, where this process built it."""
        return None

    def _own_attributes(self) -> frozenset[str]:
        """Names in the module's __dict__ that are not the user's: nn.Module's, and those of the back end."""
        return frozenset(nn.Module().__dict__)

    def _attributes_changed(self) -> None:
        """Called when the compiler's notes and the user's attributes have been put on a module that was loaded."""

    def _follow(self) -> None:
        """Called before what it was built into is looked at: a tensor of it may have been changed or assigned since."""

    def _tensors_changed(self) -> None:
        """Called when tensors of the module were replaced by equal ones: packs and the like have to be made anew."""

    def _share(self, first: Executable) -> None:
        """Called when it is one of several forms of a call, the first of them included, and tensors of it may be the first form's: packs
        and the like have to be made anew, and may be the same objects."""
        self._tensors_changed()


__all__ = ["JSON", "Executable", "LayerTimes", "Payload", "Plan"]
