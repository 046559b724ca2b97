"""What a random network is, and the state of its drawing."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

MAX_VALUES = 60_000  # of one tensor: a graph is to be compiled in a second or two

Made = tuple["nn.Module | None", Callable[..., Tensor]]  # a module of the network's own, and what is computed with it and the inputs
Rule = Callable[["Draw", Tensor], "Made | None"]
RULES: list[tuple[str, Rule, int]] = []  # name, rule, weight
BRANCHES: set[str] = set()  # rules whose steps look at data
OPTIONS = ("mask", "scale")  # arguments that a call may leave out


@dataclass(frozen=True)
class Step:
    """`option`: the optional argument that it takes behind its inputs."""

    name: str
    module: str | None
    function: Callable[..., Tensor]
    inputs: tuple[int, ...]
    option: str | None = None


class Network(nn.Module):
    """The steps in order; the result is the last value, or several in a container.

    `forms`: the keyword arguments of each of its call forms, empty where it has one form.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.parts = nn.ModuleDict()
        self.results: tuple[str, tuple[int, ...]] = ("one", (-1,))
        self.forms: list[dict[str, Any]] = []

    def forward(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None, scale: float = 1.0) -> Any:
        values = [x] if y is None else [x, y]
        for step in self.steps:
            part = () if step.module is None else (self.parts[step.module],)
            options = () if step.option is None else (mask if step.option == "mask" else scale,)
            values.append(step.function(*part, *[values[i] for i in step.inputs], *options))
        form, which = self.results
        found = [values[i] for i in which]
        if form == "dict":
            return {f"v{i}": value for i, value in enumerate(found)}
        if form == "nested":
            return {"all": found, "last": (found[-1], len(found))}
        return tuple(found) if form == "tuple" else found if form == "list" else found[0]

    @property
    def branches(self) -> bool:
        """Whether what it computes depends on conditions on data: another batch may take another way than its QUANTIZED graph."""
        return any(step.name in BRANCHES for step in self.steps)

    def resized(self, form: Mapping[str, Any], batch: int) -> dict[str, Any]:
        """Keyword arguments for another batch: the mask has a row for each of its rows."""
        return {key: v[:1].expand(batch).contiguous() if isinstance(v, Tensor) else v for key, v in form.items()}

    def __repr__(self) -> str:
        lines = [f"{i}: {s.name} {s.inputs} {s.option or ''} {self.parts[s.module] if s.module else ''}" for i, s in enumerate(self.steps)]
        return "\n".join([*lines, f"results {self.results}", f"forms {self.forms}"])


@dataclass
class Draw:
    """The state of a drawing: the source of chance, the values so far, the network."""

    rng: random.Random
    net: Network = field(default_factory=Network)
    values: list[Tensor] = field(default_factory=list)
    index: int = 0  # of the value that a rule is asked about
    given: int = 1  # how many of the values are the caller's

    def pick(self, *items: Any) -> Any:
        return self.rng.choice(items)

    def like(self, x: Tensor, test: Callable[[Tensor], bool]) -> int | None:
        """Some float value for which `test` holds."""
        found = [i for i, v in enumerate(self.values) if v.is_floating_point() and test(v)]
        return self.rng.choice(found) if found else None


def rule(weight: int = 2, branches: bool = False) -> Callable[[Rule], Rule]:
    """Adds a function to RULES. `branches`: the steps that it makes look at data."""

    def add(function: Rule) -> Rule:
        RULES.append((function.__name__, function, weight))
        BRANCHES.update({function.__name__} if branches else ())
        return function

    return add


def apply(module: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = module(x)
    return result


def spatial(x: Tensor) -> int:
    """How many sizes stand behind the channels."""
    return x.dim() - 2 if 3 <= x.dim() <= 5 else 0
