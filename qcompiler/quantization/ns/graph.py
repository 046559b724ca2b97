"""The numeric suite on models of the graph flow: their values are steps of a program, found by the names of the user's modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

import torch
from torch import fx, nn

from qcompiler.compile.settings import Settings
from qcompiler.debug.compare import float_steps, is_graph, quantized_steps
from qcompiler.debug.match import Matching, Site, match
from qcompiler.debug.metrics import tensors
from qcompiler.debug.walk import Seen, Walk
from qcompiler.errors import ConfigError
from qcompiler.executable import Executable
from qcompiler.executable.steps import Step, Steps, steps_of_graph

Wanted = Callable[[Step], bool]


def is_compiled(model: object) -> TypeGuard[Executable | fx.GraphModule]:
    """Whether it came from the graph flow, so that its layers are no modules of their own."""
    return isinstance(model, Executable) or is_graph(model)


def key_of(step: Step) -> str:
    """The user's name of a value: the path of the module that makes it; of a function, the module that calls it and the node."""
    path, node = step.module_path, _node(step)
    if path and _plain(path) in (_plain(node), _plain(re.sub(r"_\d+$", "", node))):  # torch.fx numbers the calls of one module
        return path
    return f"{path}.{node}" if path else node


def _plain(name: str) -> str:
    """What torch.fx leaves of a module's path in the name of a node: letters, in snake case, and digits."""
    return re.sub(r"[\W_]", "", name).lower()


def _node(step: Step) -> str:
    """The first traced node that a step computes."""
    return (*step.origin, step.name)[0]


def computed(floats: Steps, matching: Matching) -> list[Site]:
    """The sites of results: not those of the inputs, which are no more than quantized."""
    inputs = {name for step in floats.steps if step.kind == "input" for name in (step.name, *step.origin)}
    return [site for site in matching.sites.values() if not inputs.issuperset(site.step.origin)]


def walked(
    float_model: nn.Module, quantized: nn.Module, data: tuple[object, ...], visit: Callable[[Seen], None], wanted: Wanted | None, own: bool
) -> None:
    """Runs one batch through both, side by side, and hands each pair of computed values to `visit`."""
    steps = quantized_steps(quantized)
    floats = float_steps(float_model, (data, {}), Settings())
    matching = match(floats, steps, wanted)
    names = {site.step.name for site in computed(floats, matching)}

    def chosen(seen: Seen) -> None:
        if seen.site.step.name in names and any(True for _ in tensors(seen.reference)):  # no sizes, no flags
            visit(seen)

    with torch.no_grad(), floats.kept(), steps.kept():
        Walk(floats, steps, matching, own=own).run(data, {}, chosen)


def log_outputs(
    float_model: nn.Module,
    quantized: nn.Module,
    data: tuple[object, ...],
    logger_cls: Callable[[], object],
    allow_list: Iterable[type] | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loggers of the float and of the quantized values by key, after one batch; `allow_list`: float module types, None for all."""
    floats: dict[str, Any] = {}
    quantizeds: dict[str, Any] = {}
    paths = None if allow_list is None else _paths(float_model, allow_list)

    def visit(seen: Seen) -> None:
        key = key_of(seen.site.step)
        if paths is None or key in paths:
            for loggers, value in ((floats, seen.reference), (quantizeds, seen.value)):
                loggers.setdefault(key, logger_cls())(value)

    walked(float_model, quantized, data, visit, None, own=False)
    return floats, quantizeds


def log_shadows(
    float_model: nn.Module, quantized: nn.Module, data: tuple[object, ...], logger_cls: Callable[[], object], types: Iterable[type]
) -> dict[str, Any]:
    """Loggers by module path: the outputs of the float modules of these types and of what stands for them, on the same inputs."""
    paths = _paths(float_model, types)
    if not paths:
        raise ConfigError(f"the float model has no module of the types {_names(types)}", code="nothing-to-compare",
                          hint="give the model itself, not a graph of it, and types of its modules")  # fmt: skip
    part = _Parts(quantized_steps(quantized), paths)
    loggers: dict[str, Any] = {}

    def visit(seen: Seen) -> None:
        inside = part.of(seen.site.step)
        if inside is not None:
            loggers.setdefault(inside[0], logger_cls())(seen.own_value, seen.own_reference)

    walked(float_model, quantized, data, visit, part.crosses, own=True)
    return loggers


def _paths(model: nn.Module, types: Iterable[type]) -> set[str]:
    chosen = tuple(types)
    return {path for path, module in model.named_modules(remove_duplicate=False) if path and type(module) in chosen}


def _names(types: Iterable[type]) -> str:
    return ", ".join(sorted(getattr(t, "__name__", str(t)) for t in types))


class _Parts:
    """The steps of each module of some paths: which are inside, and whose values enter or leave it."""

    def __init__(self, steps: Steps, paths: set[str]) -> None:
        self.paths = paths
        self.users: dict[str, list[Step]] = {}
        for step in steps.steps:
            for name in step.inputs:
                self.users.setdefault(name, []).append(step)
        self.results = steps.results()

    def of(self, step: Step) -> tuple[str, str] | None:
        """The outermost of the modules that a step belongs to, and which call of it where it is one step."""
        parts = step.module_path.split(".")
        path = next((p for p in (".".join(parts[:n]) for n in range(1, len(parts) + 1)) if p in self.paths), None)
        if path is None:
            return None
        return path, _node(step) if key_of(step) == path else ""

    def crosses(self, step: Step) -> bool:
        """Whether its value enters or leaves one of the modules."""
        own = self.of(step)
        users = [self.of(user) for user in self.users.get(step.name, ())]
        return any(user != own for user in users) or (own is not None and step.name in self.results)


def match_graphs(model_a: nn.Module, model_b: nn.Module) -> tuple[Steps, Steps, Matching]:
    """Steps and sites of a float graph and a quantized model, without data."""
    if not is_graph(model_a):
        raise ConfigError(f"model_a must be a graph, got a {type(model_a).__name__}", code="not-a-graph",
                          hint="give what prepare_fx or fuse_fx returned; compare_model_outputs takes any float model")  # fmt: skip
    floats, quantized = steps_of_graph(model_a), quantized_steps(model_b)
    return floats, quantized, match(floats, quantized)
