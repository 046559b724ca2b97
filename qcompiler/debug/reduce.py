"""Makes a crash reproducer smaller: first the pipeline, then the graph, as long as it fails in the same way.

The graph shrinks by halves (delta debugging): what is left out becomes an input of the same shape where it is still used, and
what nobody uses any more becomes a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from qcompiler.compile.pass_manager import run_passes
from qcompiler.debug.case import Case
from qcompiler.debug.plain_data import look_up
from qcompiler.debug.reproducer import META, Contents, Failure, contents_of, write_files
from qcompiler.errors import ConfigError
from qcompiler.ops.float_statements import statement_of

Signature = tuple[str, str, str | None]


def signature(case: Case) -> Signature | None:
    """How the case fails: type, code and cause; None where it does not."""
    try:
        case.run()
    except Exception as error:
        cause = type(error.__cause__).__name__ if error.__cause__ is not None else None
        return type(error).__name__, str(getattr(error, "code", "")), cause
    return None


def reduce_into(folder: Path, case: Case) -> str:
    """Writes the smallest case found into `folder`, and says how small. ConfigError where the case does not fail."""
    wanted = signature(case)
    if wanted is None:
        raise ConfigError("this case does not fail here, so it cannot be reduced", code="reproducer")

    def fails(candidate: Case) -> bool:
        return signature(candidate) == wanted

    shorter = shortest_pipeline(case, fails)
    small = fewest_nodes(shorter, fails)
    folder.mkdir(exist_ok=True)
    title = f"{wanted[0]} ({wanted[1]}) in {small.pipeline[-1]} of {case.data['phase']} {case.data['model']}, reduced"
    used = set(names_in(small.data))
    statements = {name: found for name in used if (found := statement_of(small.names.get(name))) is not None}
    path = write_files(folder, Contents(small.data, small.tensors, used, statements), small.pipeline, title, None)
    return f"{path}: passes {len(case.pipeline)} -> {len(small.pipeline)}, nodes {_count(case)} -> {_count(small)}"


def _count(case: Case) -> int:
    return len(case.data["nodes"])


def shortest_pipeline(case: Case, fails: Callable[[Case], bool]) -> Case:
    """The case with the first passes run beforehand, and those left out that make no difference."""
    for done in range(len(case.pipeline) - 1, 0, -1):
        later = advanced(case, done)
        if later is not None and fails(later):
            case = later
            break
    for index in range(len(case.pipeline) - 2, -1, -1):
        shorter = case.with_(pipeline=case.pipeline[:index] + case.pipeline[index + 1 :])
        if fails(shorter):
            case = shorter
    return case


def advanced(case: Case, done: int) -> Case | None:
    """The case after its first `done` passes; None where they fail."""
    gm, steps, stage, context = case.start()
    try:
        with torch.inference_mode(False), torch.no_grad():
            run_passes(gm, steps[:done], stage, context)
    except Exception:
        return None
    failure = Failure(gm, context, steps[done - 1].stage, steps[done])
    failure.steps = list(steps[done:])
    made = contents_of(failure, weights=True)
    kept = {key: case.data[key] for key in ("schema_version", "phase", "model", "versions", "expected")}
    statements = {found: function for function in case.names.values() if (found := statement_of(function)) is not None}
    known = {name: look_up(name) for name in made.names} | dict(case.names)
    known |= {name: statements[statement] for name, statement in made.statements.items()}
    return case.with_(data={**made.data, **kept}, tensors=made.tensors, names=known, pipeline=case.pipeline[done:])


def fewest_nodes(case: Case, fails: Callable[[Case], bool]) -> Case:
    """Delta debugging over the calls: pieces of half the graph are left out first, single nodes last."""
    kept = [n["name"] for n in case.data["nodes"] if n["op"].startswith("call_")]
    size = max(1, len(kept) // 2)
    best = case
    while kept:
        start, shrunk = 0, False
        while start < len(kept):
            candidate = kept[:start] + kept[start + size :]
            smaller = part_of(case, set(candidate))
            if fails(smaller):
                kept, best, shrunk = candidate, smaller, True
            else:
                start += size
        if size == 1 and not shrunk:
            break
        size = max(1, size // 2)
    return best


def part_of(case: Case, kept: set[str]) -> Case:
    """The case with only these calls, their parameters, and inputs for the other values they use."""
    entries = {n["name"]: n for n in case.data["nodes"]}
    used = {name for n in kept for name in nodes_in([entries[n]["args"], entries[n]["kwargs"]])}
    nodes = [_entry(n, kept) for n in case.data["nodes"] if n["name"] in kept | used]
    results = [n for n in case.data["nodes"] if n["name"] in kept and n["name"] not in used]
    output = next(n for n in case.data["nodes"] if n["op"] == "output")
    nodes.append({**output, "args": [{"tuple": [{"node": n["name"]} for n in results]}]})
    return case.with_(**_pruned(case, nodes))


def _entry(node: dict[str, Any], kept: set[str]) -> dict[str, Any]:
    if node["name"] in kept or node["op"] in ("get_attr", "placeholder"):
        return node
    meta = {key: node["meta"][key] for key in META if key in node["meta"]}
    return {"name": node["name"], "op": "placeholder", "target": node["name"], "args": [], "kwargs": {}, "meta": meta}


def _pruned(case: Case, nodes: list[dict[str, Any]]) -> dict[str, object]:
    """Without the tensors, modules and objects that no node needs any more."""
    targets = {(n["op"], n["target"]) for n in nodes if n["op"] in ("get_attr", "call_module")}
    data = {
        **case.data,
        "nodes": nodes,
        "attributes": {k: v for k, v in case.data["attributes"].items() if ("get_attr", k) in targets},
        "modules": {k: v for k, v in case.data["modules"].items() if ("call_module", k) in targets or ("get_attr", k) in targets},
    }
    data["shared"] = _needed(data)
    paths = {d["module_path"] for d in tagged([nodes, data["shared"]], "module_path")}
    data["module_types"] = {"dict": [entry for entry in data["module_types"]["dict"] if entry[0] in paths]}
    tensors = {d["tensor"] for d in tagged([v for k, v in data.items() if k != "shared"] + data["shared"], "tensor")}
    return {"data": data, "tensors": {k: v for k, v in case.tensors.items() if k in tensors}}


def _needed(data: dict[str, Any]) -> list[object]:
    """The shared objects, with null for those that nothing refers to: their numbers stay."""
    shared, found = data["shared"], set[int]()
    left = [d["shared"] for d in tagged([v for k, v in data.items() if k != "shared"], "shared")]
    while left:
        index = left.pop()
        if index not in found:
            found.add(index)
            left += [d["shared"] for d in tagged(shared[index], "shared")]
    return [entry if index in found else None for index, entry in enumerate(shared)]


def tagged(data: object, tag: str) -> Iterator[dict[str, Any]]:
    """Every tagged value of that kind in nested data."""
    if isinstance(data, dict):
        if tag in data:
            yield data
        for value in data.values():
            yield from tagged(value, tag)
    elif isinstance(data, list):
        for value in data:
            yield from tagged(value, tag)


def nodes_in(data: Sequence[object]) -> list[str]:
    return [d["node"] for d in tagged(list(data), "node")]


def names_in(data: object) -> Iterator[str]:
    """The names that reading the data will look up."""
    for tag in ("name", "object", "module", "enum", "namedtuple"):
        for found in tagged(data, tag):
            name = found[tag]
            if isinstance(name, str) and ":" in name and (tag != "name" or len(found) == 1):
                yield name
