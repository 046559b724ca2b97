"""Crash reproducers: repro.py, repro.json and repro.safetensors, which show a failed pass again without the model.

The graph is the one that the compile began with, and the pipeline all passes up to the one that failed. Weights are random of
the same shapes and example inputs are made up, unless QCOMPILER_REPRO_WEIGHTS=1; the ranges that observers saw are kept, as in every dump.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_map_only

from qcompiler.backends import backend_of, names
from qcompiler.compile.pass_manager import Context, Pass
from qcompiler.compile.settings import Settings
from qcompiler.debug.definitions import globals_of
from qcompiler.debug.dump_record import versions
from qcompiler.debug.plain_data import Writer
from qcompiler.files.safetensors import safetensors
from qcompiler.files.values import canonical
from qcompiler.ir.types import QUANT, SOURCE, VALUE, Stage
from qcompiler.observers.watch import Watch
from qcompiler.ops.float_statements import Statement
from qcompiler.qat.sites import HOLDER

SCRIPT, GRAPH, TENSORS = "repro.py", "repro.json", "repro.safetensors"
SCRIPTS = ("__main__", "reproduced_script")  # the user's script, as what runs, and as what a repro.py has run
META = (VALUE, SOURCE, QUANT)
SCHEMA = 3
OURS = ("observers.", f"{HOLDER}.")  # modules that the compiler put in: what they hold is kept, and the user's classes among them

TEMPLATE = '''"""Reproduces: {title}

    python repro.py             runs the pipeline below and raises the same exception
    python repro.py --reduce    writes the folder reduced/: the shortest pipeline and the fewest nodes that still fail so

Written by {versions}. {weights}
{lost}"""

import sys
import textwrap

sys.path[:0] = {paths}  # where the modules below were imported from
{imports}
from qcompiler.debug import reproduce as qcompiler_reproduce

PIPELINE = {pipeline}

# Passes, rules, ops, module classes and statements that repro.json refers to. It names nothing else, and loading it imports nothing.
NAMES = {{
{names}}}

if __name__ == "__main__":
    qcompiler_reproduce.main(__file__, PIPELINE, NAMES)
'''


class Failure:
    """What a compile keeps for the case that a pass fails: its first graph, its settings, and the passes so far."""

    def __init__(self, gm: fx.GraphModule, context: Context, stage: Stage, step: Pass) -> None:
        self.graph = fx.Graph()
        output = self.graph.graph_copy(gm.graph, {}, return_output_node=True)
        assert isinstance(output, tuple)
        self.graph.output(output[0])
        copied = zip(gm.graph.nodes, self.graph.nodes, strict=True)
        self.nodes = [(old.name, new, dict(old.meta)) for old, new in copied]
        made: dict[int, nn.Module] = {}
        values = {t: _attribute(gm, t) for t in _targets(gm.graph, "get_attr")}
        self.values = {t: _snapshot(v, made) if isinstance(v, nn.Module) else v for t, v in values.items()}
        self.modules = {t: _snapshot(gm.get_submodule(t), made) for t in _targets(gm.graph, "call_module")}
        self.settings, self.example, self.stage, self.steps = context.settings.named(), context.example, stage, [step]


def _targets(graph: fx.Graph, op: str) -> list[str]:
    return list(dict.fromkeys(str(node.target) for node in graph.nodes if node.op == op))


def _snapshot(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    """The module as it is now: passes put other tensors into the original. The tensors are shared; `done`: snapshots by module."""
    if id(module) in done:
        return done[id(module)]
    made = done[id(module)] = object.__new__(type(module))
    made.__dict__.update(module.__dict__)
    made.__dict__.update(_parameters=dict(module._parameters), _buffers=dict(module._buffers))
    made.__dict__["_modules"] = {name: None if child is None else _snapshot(child, done) for name, child in module._modules.items()}
    if isinstance(made, Watch):
        made.before = ()  # what a batch that is taken back needs
    return made


def _attribute(gm: fx.GraphModule, path: str) -> Any:
    value: Any = gm
    for part in path.split("."):
        value = getattr(value, part)
    return value


@dataclass(frozen=True)
class Contents:
    """repro.json, the tensors, the names that repro.json refers to, of these the statements, and what could not be written."""

    data: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    names: set[str]
    statements: Mapping[str, Statement]
    lost: Sequence[str] = ()


def contents_of(failure: Failure, weights: bool) -> Contents:
    """What shows a failure again."""
    writer = Writer()
    nodes = _nodes(failure, writer)
    users = {path: value for path, value in failure.values.items() if not isinstance(value, nn.Module)}
    attributes = {path: _kept(writer, path, value) for path, value in users.items()}
    stubbed = _Stubs(failure.settings)
    writer.stubs = stubbed
    held = {path: m for path, m in {**failure.values, **failure.modules}.items() if path not in users}  # statements take modules as values
    watched = {path: m for path, m in held.items() if path.startswith(OURS)}
    modules = {path: _module(writer, path, m) for path, m in held.items() if path not in watched}
    random = set() if weights else set(writer.tensors)
    example = failure.example if weights else tree_map_only(torch.Tensor, _blank, failure.example)
    called = None if stubbed.used else _module(writer, "example", example)  # a stub cannot be called
    writer.stubs = lambda cls: False
    modules |= {path: _module(writer, path, m) for path, m in watched.items()}
    data = {
        "nodes": nodes,
        "attributes": attributes,
        "modules": modules,
        "module_types": writer.write(failure.settings.module_types),
        "settings": writer.write(failure.settings.with_(module_types={})),
        "example": called,
        "stage": failure.stage.value,
        "passes": {step.name: None if _built_in(step) else writer.write(step) for step in failure.steps},
        "taught": [writer.write(thing) for thing in _taught(failure.settings)],
        "shared": writer.shared,
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {name: _random(name, t, generator) if name in random else t for name, t in sorted(writer.tensors.items())}
    return Contents(data, tensors, writer.names, writer.statements, writer.lost)


def _taught(settings: Settings) -> Sequence[object]:
    """What the user registered with the back end of the compile; one that this process does not know has no such place."""
    return backend_of(settings.target.backend).taught() if settings.target.backend in names() else ()


class _Stubs:
    """Which module classes are written by name alone: the user's, but for those that passes ask for more than their name."""

    def __init__(self, settings: Settings) -> None:
        custom = settings.custom.observed_classes
        self.table, self.called = settings.table, {*custom, *custom.values(), *settings.quantized_classes.values()}
        self.used = False

    def __call__(self, cls: type) -> bool:
        known = cls.__module__.startswith(("torch.nn.", "qcompiler.")) or self.table.has_form(cls) or cls in self.called
        self.used |= not known
        return not known


def _nodes(failure: Failure, writer: Writer) -> list[Any]:
    for name, node, _ in failure.nodes:
        node.name = name  # a copy may have been renamed
    return [
        {
            "name": node.name,
            "op": node.op,
            "target": writer.callable(node.target) if node.op == "call_function" else str(node.target),
            "args": [writer.write(a) for a in node.args],
            "kwargs": {k: writer.write(v) for k, v in node.kwargs.items()},
            "meta": {key: writer.write(meta[key]) for key in META if key in meta},
        }
        for _, node, meta in failure.nodes
    ]


def _kept(writer: Writer, path: str, value: Any) -> list[object]:
    writer.scope = path
    kind = "parameter" if isinstance(value, nn.Parameter) else "buffer" if isinstance(value, torch.Tensor) else "plain"
    return [kind, writer.write(value)]


def _module(writer: Writer, path: str, value: object) -> Any:
    writer.scope = path
    return writer.write(value)


def _random(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Of the same shape and kind; variances are positive. Integers other than int8 weights are indices, and stay."""
    if tensor.dtype.is_floating_point:
        made = torch.randn(tensor.shape, generator=generator) * 0.1
        return (made.abs() + 0.5 if name.rpartition(".")[2].endswith("var") else made).to(tensor.dtype)
    if tensor.dtype is torch.int8:
        return torch.randint(-127, 128, tensor.shape, generator=generator, dtype=torch.int8)
    return tensor


def _blank(tensor: torch.Tensor) -> torch.Tensor:
    """In place of an input of the user's: a ramp for floats, zeros for integers, which may be indices."""
    return torch.zeros_like(tensor) if not tensor.is_floating_point() else torch.linspace(-1, 1, tensor.numel()).reshape(tensor.shape)


def _ours(thing: object) -> bool:
    return str(getattr(thing, "__module__", "")).startswith("qcompiler.")


def _built_in(step: Pass) -> bool:
    return _ours(type(step))


def write(folder: Path, failure: Failure, phase: str, model: str, error: BaseException, weights: bool) -> Path:
    """Writes the three files and returns the path of repro.py. Raises OSError where that cannot be done."""
    made = contents_of(failure, weights)
    cause = type(error.__cause__).__name__ if error.__cause__ is not None else None
    data = {
        **made.data,
        "schema_version": SCHEMA,
        "phase": phase,
        "model": model,
        "versions": versions(),
        "expected": {"type": type(error).__name__, "code": getattr(error, "code", ""), "cause": cause},
    }
    title = f"{type(error).__name__} in {failure.steps[-1].name} of {phase} {model}: {str(getattr(error, 'message', error))[:300]}"
    return write_files(folder, replace(made, data=data), [step.name for step in failure.steps], title, weights)


def write_files(folder: Path, case: Contents, pipeline: Sequence[str], title: str, weights: bool | None) -> Path:
    """The three files of one case. `weights`: whose they are, None where that is not known."""
    used = case.names
    needed = _of_script(case)
    text = TEMPLATE.format(
        title=_comment(title),
        versions=", ".join(f"{name} {version}" for name, version in sorted(case.data["versions"].items())),
        weights={True: "Holds the model's weights.", False: "The weights are random.", None: "The weights are those of the case."}[weights],
        lost=f"Could not be written, and is missing here: {_comment(', '.join(dict.fromkeys(case.lost)))}\n" if case.lost else "",
        paths=repr(_paths(used)),
        imports="".join(f"import {module}\n" for module in sorted({n.partition(":")[0] for n in used} - set(SCRIPTS))),
        pipeline=json.dumps(",".join(pipeline)),
        names="".join(f"    {name!r}: {_expression(name, case.statements.get(name), needed)},\n" for name in sorted(used)),
    )
    _write(folder / TENSORS, b"".join(safetensors(dict(case.tensors))))
    _write(folder / GRAPH, canonical(case.data).encode("ascii"))
    _write(folder / SCRIPT, text.encode("utf-8", "backslashreplace"))
    return folder / SCRIPT


def _comment(text: str) -> str:
    """One line that cannot leave a docstring."""
    plain = "".join(c if c.isprintable() and c not in '\\"' else "'" if c == '"' else " " for c in text)
    return " ".join(plain.split()).rstrip(".") + "."


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _of_script(case: Contents) -> list[str]:
    """What the user's script has to define."""
    named = {name.partition(":")[2].partition(".")[0] for name in case.names - set(case.statements) if name.partition(":")[0] in SCRIPTS}
    texts = [statement for name, statement in case.statements.items() if name.partition(":")[0] in SCRIPTS]
    known = vars(sys.modules["__main__"]) | vars(sys.modules.get(SCRIPTS[1], ModuleType("")))
    return sorted(named | {name for statement in texts for name in globals_of(textwrap.dedent(statement.source)) if name in known})


def _expression(name: str, statement: Statement | None, needed: Sequence[str]) -> str:
    module, _, path = name.partition(":")
    if module in SCRIPTS:
        file = os.path.abspath(str(sys.modules[module].__file__))
        module = f"qcompiler_reproduce.script({', '.join(map(repr, (file, *needed)))})"
    if statement is None:
        return f"{module}.{path}"
    text = "".join(f"\n        {line!r}" for line in statement.source.splitlines(keepends=True))
    rest = ", ".join(map(repr, (statement.name, statement.owner, statement.file, statement.line)))
    return f"qcompiler_reproduce.statement({module}, ({text}\n    ), {rest})"


def _paths(names: set[str]) -> list[str]:
    """Folders that the modules behind the names were imported from, but for installed packages."""
    found = []
    for top in sorted({name.partition(":")[0].partition(".")[0] for name in names} | {"qcompiler"}):
        file = getattr(sys.modules.get(top), "__file__", None)
        if file is None or top in SCRIPTS or "site-packages" in file or file.startswith(os.path.dirname(os.__file__)):
            continue
        folder = Path(file).resolve().parent
        found.append(str(folder.parent if Path(file).name == "__init__.py" else folder))
    return list(dict.fromkeys(found))
