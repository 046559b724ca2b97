"""Objects made anew of the data that a Writer wrote (plain_data.py)."""

from __future__ import annotations

import array
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from qcompiler.backends.torch.program import registry
from qcompiler.errors import ConfigError
from qcompiler.files.values import from_json
from qcompiler.ops.table import OPS, Table
from qcompiler.qat.ops import training_table

QSCHEMES = {str(s).removeprefix("torch."): s for s in vars(torch).values() if isinstance(s, torch.qscheme)}


class Lost:
    """Stands where something could not be written. A graph may call it, and passes look at its name; it computes nothing."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.__name__ = self.__qualname__ = "lost"

    def __call__(self, *args: object, **kwargs: object) -> Any:
        raise TypeError(f"{self.text} is not part of this reproducer")


class Reader:
    """Makes objects of data that a Writer wrote; `names` maps each name that the data uses to the thing behind it."""

    def __init__(self, shared: list[Any], tensors: Mapping[str, torch.Tensor], names: Mapping[str, object]) -> None:
        self.shared, self.tensors, self.names = shared, tensors, names
        self.nodes: dict[str, fx.Node] = {}
        self._made: dict[int, object] = {}
        self._tensors: dict[tuple[str, bool], torch.Tensor] = {}

    def read(self, data: object) -> Any:
        if isinstance(data, list):
            return [self.read(v) for v in data]
        if not isinstance(data, dict):
            return data
        for tag in data:
            maker = getattr(self, f"_{tag}", None)
            if maker is not None:
                return maker(data)
        return from_json(data)

    def _node(self, data: Any) -> fx.Node:
        return self.nodes[data["node"]]

    def _tuple(self, data: Any) -> Any:
        return tuple(self.read(data["tuple"]))

    def _namedtuple(self, data: Any) -> object:
        return self.thing(data["namedtuple"])(*self.read(data["items"]))

    def _dict(self, data: Any) -> object:
        return {self.read(k): self.read(v) for k, v in data["dict"]}

    def _set(self, data: Any) -> object:
        return set(self.read(data["set"]))

    def _slice(self, data: Any) -> object:
        return slice(*self.read(data["slice"]))

    def _array(self, data: Any) -> object:
        code, numbers = data["array"]
        return array.array(code, self.read(numbers))

    def _qscheme(self, data: Any) -> object:
        return QSCHEMES[data["qscheme"]]

    def _enum(self, data: Any) -> object:
        return self.thing(data["enum"])[data["value"]]

    def _partial(self, data: Any) -> object:
        function, args, keywords = self.read(data["partial"])
        return functools.partial(function, *args, **keywords)

    def _method(self, data: Any) -> object:
        return getattr(self.read(data["of"]), data["method"])

    def _call(self, data: Any) -> Any:
        return registry.resolve(data["call"])

    def _name(self, data: Any) -> object:
        return self.thing(data["name"])

    def _class(self, data: Any) -> object:
        return self.stub(data["class"])

    def _lost(self, data: Any) -> object:
        return Lost(data["lost"])

    def _shared(self, data: Any) -> object:
        index = data["shared"]
        if index not in self._made:
            self._made[index] = self.read(self.shared[index])
        return self._made[index]

    def _tensor(self, data: Any) -> torch.Tensor:
        return self.tensors[data["tensor"]]

    def _table(self, data: Any) -> Table:
        table = OPS.copy()
        for name in data["without"]:
            table.remove(name)
        for row in self.read(data["table"]):
            table.add(row)
        return training_table(table) if data["trains"] else table

    def _object(self, data: Any) -> Any:
        made = object.__new__(self.thing(data["object"]))
        made.__dict__.update({k: self.read(v) for k, v in data["state"].items()})
        return made

    def _module(self, data: Any) -> nn.Module:
        cls = self.stub(data["module"])
        module: nn.Module = cls.__new__(cls)
        nn.Module.__init__(module)
        module.__dict__.update({k: self.read(v) for k, v in data["state"].items()})
        for name, value in data["parameters"].items():
            tensor = self.read(value)
            module._parameters[name] = None if tensor is None else self.parameter(value["tensor"])
        module._buffers.update({k: self.read(v) for k, v in data["buffers"].items()})
        module._modules.update({k: self.read(v) for k, v in data["modules"].items()})
        return module.train(data["training"])

    def parameter(self, key: str) -> nn.Parameter:
        """The one parameter of a tensor: tied weights stay tied."""
        if (key, True) not in self._tensors:
            tensor = self.tensors[key]
            self._tensors[key, True] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        return self._tensors[key, True]  # type: ignore[return-value]

    def thing(self, name: str) -> Any:
        """What a name stands for. ConfigError where the table of names lacks it."""
        if name not in self.names:
            raise ConfigError(f"{name!r:.200} is not among the names that were handed in", code="unknown-name")
        return self.names[name]

    def stub(self, name: str) -> Any:
        """The class behind a name; for one that was written by name alone, an empty module class of that name."""
        if name in self.names:
            return self.names[name]
        module, _, qualname = name.partition(":")
        made = type(qualname.rpartition(".")[2], (nn.Module,), {"__module__": module, "__qualname__": qualname})
        self.names = {**self.names, name: made}
        return made
