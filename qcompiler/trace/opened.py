"""What forward gets for one argument: proxies for tensors and numbers, in the argument's own containers, all else behind guards.

What the graph does not read from the argument at each call is checked there: fixed values, lengths of lists, keys of dicts.
"""

from __future__ import annotations

import builtins
import copy
import enum
import operator
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree

from qcompiler.errors import TraceError, Where
from qcompiler.ops import trees
from qcompiler.trace.given_numbers import number
from qcompiler.trace.guards import TraceRemark, guard, guard_keys, guard_length, guard_member, guard_tree
from qcompiler.trace.operands import LITERALS
from qcompiler.trace.proxy import Proxy
from qcompiler.trace.tracer import Tracer

PLAIN = (bool, int, float, str, type(None))
DEPTH = 16  # containers and objects inside each other


def opened(tracer: Tracer, proxy: Proxy, path: str) -> Any:
    """What stands for one argument, or for a part of it. `path`: how the user would write it, for messages."""
    example = proxy.example
    if isinstance(example, np.generic):
        example = proxy.example = example.item()
    if isinstance(example, torch.Tensor):
        example = proxy.example = tracer.instead.get(path, example)
        tracer.given[proxy.node] = path, example
        return tracer.results.wrap(lambda: proxy.node, example, "boundary")
    if type(example) in (int, float) and tracer.free_numbers:
        proxy.example = tracer.seen(proxy.node, example)
        return number(tracer, proxy, path)
    if type(example) in LITERALS:
        return hold(tracer, proxy, path)
    if isinstance(example, dict) and not is_dataclass(example):
        return _opened_dict(tracer, proxy, path)
    if isinstance(example, (list, tuple)):
        return _opened_items(tracer, proxy, path)
    if trees.is_tree(example):
        return _opened_tree(tracer, proxy, path)
    return _opened_object(tracer, proxy, path)


def hold(tracer: Tracer, proxy: Proxy, path: str) -> object:
    """The value of an argument that is the same at each call, behind a guard."""
    value = proxy.example
    node = tracer.add_node("call_function", guard, (proxy, value, f"the traced model holds the argument {path!r} fixed"), {}, None)
    tracer.remarks.append(TraceRemark("guard", Where(node.name), f"the argument {path!r} is fixed at {value!r}"))
    return value


def _check(tracer: Tracer, function: Callable[..., None], proxy: Proxy, expected: Any, what: str) -> None:
    tracer.add_node("call_function", function, (proxy, expected, f"the traced model holds {what} fixed"), {}, None)


def _child(tracer: Tracer, owner: Proxy, function: Callable[..., Any], key: Any, item: Any, path: str) -> Any:
    node = tracer.add_node("call_function", function, (owner, key), {}, item)
    return opened(tracer, Proxy(node, tracer, item), path)


def _opened_dict(tracer: Tracer, proxy: Proxy, path: str) -> object:
    example = proxy.example
    if not all(type(key) in (str, int) for key in example):
        if not holds_tensors(example):
            return _kept(tracer, proxy, path)
        text = f"the argument {path!r} is a dict with keys that are neither text nor integers"
        raise TraceError(text, where=Where(module_path=""), hint="give a dict with text as keys, or a tuple")
    _check(tracer, guard_keys, proxy, list(example), f"the keys of the argument {path!r}")
    changed = {} if type(example) is dict else copy.copy(example)
    for key, item in example.items():
        changed[key] = _child(tracer, proxy, operator.getitem, key, item, f"{path}[{key!r}]")
    return _noted(tracer, path, changed)


def _opened_items(tracer: Tracer, proxy: Proxy, path: str) -> object:
    example, kind = proxy.example, type(proxy.example)
    _check(tracer, guard_length, proxy, len(example), f"the number of values in {path!r}")
    fields = getattr(kind, "_fields", None)
    steps = [f".{field}" for field in fields] if fields else [f"[{i}]" for i in range(len(example))]
    items = [_child(tracer, proxy, operator.getitem, i, item, path + steps[i]) for i, item in enumerate(example)]
    return kind(*items) if fields else _noted(tracer, path, kind(items))


def _opened_tree(tracer: Tracer, proxy: Proxy, path: str) -> object:
    """An object of a class that torch knows how to take apart, such as a cache of keys and values."""
    example = proxy.example
    _check(tracer, guard_tree, proxy, trees.described_tree(example), f"the form of the argument {path!r}")
    parts = trees.children(example)
    listed = Proxy(tracer.add_node("call_function", trees.children, (proxy,), {}, parts), tracer, parts)
    items = [_child(tracer, listed, operator.getitem, i, item, f"{path}[{i}]") for i, item in enumerate(parts)]
    return _noted(tracer, path, trees.put_together(type(example))(items, trees.context(example)))


def _opened_object(tracer: Tracer, proxy: Proxy, path: str) -> object:
    """Any other object: its fields. One without fields, or with tensors nobody can reach, is no input."""
    example = proxy.example
    deep = path.count(".") + path.count("[") > DEPTH
    if isinstance(example, enum.Enum):
        _check(tracer, guard_member, proxy, f"{type(example).__name__}.{example.name}", f"the argument {path!r}")
        return example
    if deep or not hasattr(example, "__dict__") or callable(example) or isinstance(example, torch.nn.Module):
        if not holds_tensors(example):
            return _kept(tracer, proxy, path)
        text = f"the argument {path[:200]!r} is a {type(example).__name__}, of which nobody knows how to take it apart"
        raise TraceError(text, code="argument-class", where=Where(module_path=""),
                         hint="register its class: torch.utils._pytree.register_pytree_node")  # fmt: skip
    changed = copy.copy(example)
    for name, item in list(vars(example).items()):
        if holds_tensors(item) or not name.startswith("_"):
            object.__setattr__(changed, name, _child(tracer, proxy, builtins.getattr, name, item, f"{path}.{name}"))
    return _noted(tracer, path, changed)


def _kept(tracer: Tracer, proxy: Proxy, path: str) -> object:
    """An object that no graph can hold or compare."""
    text = f"the argument {path!r}, of type {type(proxy.example).__name__}, is held as it was: another one is not noticed"
    tracer.remarks.append(TraceRemark("guard", Where(proxy.node.name), text))
    return proxy.example


def _noted(tracer: Tracer, path: str, container: Any) -> object:
    tracer.containers.append((path, container, _held(container)))
    return container


def _held(container: object) -> list[Any]:
    """What a container holds, as far as forward may change it."""
    if isinstance(container, dict):
        return [*container, *container.values()]
    if isinstance(container, (list, tuple)):
        return list(container)
    return pytree.tree_leaves(trees.children(container)) if trees.is_tree(container) else list(vars(container).values())


def note_changes(tracer: Tracer) -> None:
    """Remarks for arguments that forward changes: a compiled model leaves the caller's objects as they are."""
    for path, container, before in tracer.containers:
        now = _held(container)
        if len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True)):
            text = f"forward changes the argument {path!r}; the compiled model leaves the caller's as it is, and gives what forward returns"
            tracer.remarks.append(TraceRemark("argument-changed", Where(module_path=""), text))


def holds_tensors(value: Any, depth: int = DEPTH) -> bool:
    """Whether a tensor can be reached from a value, through containers and fields."""
    if isinstance(value, torch.Tensor):
        return True
    if depth == 0 or isinstance(value, (type, torch.nn.Module)) or callable(value):
        return False
    items = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, (list, tuple, set)) else []
    return any(holds_tensors(item, depth - 1) for item in (*items, *getattr(value, "__dict__", {}).values()))
