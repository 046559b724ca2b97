"""`int(n)`, `float(n)`, `len(t)`, `min` and `max` of sizes and of values that depend on data.

Python wants a number of these at once. Where the user's code calls one on a traced value, the trace begins anew with stand-ins for them
in the globals of that code (`Again`); a stand-in gives a value of the graph for a traced value, and what Python gives for others.

A stand-in for a class is no class that torch takes (`dtype=float`). A size could be held instead, so for it only those names get stand-ins
that the file does nothing with but call them; what depends on data has no other way.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
from collections.abc import Iterator
from types import FrameType
from typing import Any

from qcompiler.trace import places
from qcompiler.trace.proxy import Proxy, Sizes, first_proxy
from qcompiler.trace.recording import Recording, StandIns
from qcompiler.trace.statements import place_of
from qcompiler.trace.syntax import span, tree_of

NAMES = ("int", "float", "bool", "len", "min", "max")


class Again(BaseException):
    """Code of the user's needs stand-ins. No Exception: the user's `except` must not see it."""

    def __init__(self, needed: StandIns) -> None:
        super().__init__()
        self.needed = needed


def ask_for_stand_ins(frame: FrameType | None, names: tuple[str, ...] = NAMES, is_size: bool = False) -> None:
    """Raise Again where the user's code is in a call of one of these builtins, which can have a stand-in there and has none yet."""
    if frame is None or not places.is_user_file(frame.f_code.co_filename):
        return
    tree = tree_of(frame.f_code.co_filename)
    if tree is None or (not is_size and _tells_types_apart(tree)):
        return
    able = _names_only_called(tree) if is_size else NAMES
    name = _names_called(tree).get(place_of(frame))
    if name in names and name in able and name not in frame.f_globals and name not in frame.f_locals:
        raise Again(StandIns(frame.f_globals, able))


@functools.lru_cache(maxsize=64)
def _names_called(tree: ast.Module) -> dict[object, str]:
    """The plain names of the functions that a file calls, by the place of the call."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {span(node): node.func.id for node in calls if isinstance(node.func, ast.Name)}


@functools.lru_cache(maxsize=64)
def _names_only_called(tree: ast.Module) -> tuple[str, ...]:
    """The builtins that the functions of a file do nothing with but call them, ask isinstance for them, and annotate."""
    harmless = {id(inner) for node in ast.walk(tree) for part in _harmless(node) for inner in ast.walk(part)}
    bodies = (node.body for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))
    running = (part for body in bodies for statement in (body if isinstance(body, list) else [body]) for part in ast.walk(statement))
    used = {part.id for part in running if isinstance(part, ast.Name) and id(part) not in harmless}
    return tuple(name for name in NAMES if name not in used)


def _harmless(node: ast.AST) -> list[ast.expr]:
    """The parts of a node in which the name of a builtin is no value that torch could be given."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return [node.func, *(node.args if node.func.id in ("isinstance", "issubclass") else node.args[:1] if node.func.id == "map" else [])]
    annotations = (getattr(node, name, None) for name in ("annotation", "returns", "slice"))  # `list[int]`
    return [part for part in annotations if isinstance(part, ast.expr)]


@functools.lru_cache(maxsize=64)
def _tells_types_apart(tree: ast.Module) -> bool:
    """Whether a file has `type(x) is int`, which a stand-in for int would not be."""
    compared = [n for n in ast.walk(tree) if isinstance(n, ast.Compare)]
    identities = (n for n in compared if any(isinstance(o, (ast.Is, ast.IsNot)) for o in n.ops))
    return any(isinstance(part, ast.Name) and part.id in ("int", "float", "bool") for n in identities for part in (n.left, *n.comparators))


class _Kind(type):
    """The class of stand-ins for classes: isinstance, issubclass, ==, and attributes are those of the class they stand for."""

    plain: type
    tracer: Recording

    def __call__(cls, *args: object, **kwargs: object) -> Any:
        if len(args) == 1 and not kwargs and type(args[0]) is Proxy and _is_traced(cls.tracer):
            return cls.tracer.record("call_function", cls.plain, args, {})
        return cls.plain(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.plain)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.plain)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.plain

    def __hash__(cls) -> int:
        return hash(cls.plain)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls.plain, name)


def _is_traced(tracer: Recording) -> bool:
    return not tracer.paused


def _kind(tracer: Recording, plain: type) -> object:
    return _Kind(plain.__name__, (), {"plain": plain, "tracer": tracer})


def _length(tracer: Recording) -> Any:
    def length(value: Any) -> object:
        if type(value) is Proxy and value.is_tensor and value.example.dim() and _is_traced(tracer):
            return tracer.sizes(value)[0]
        return len(value)

    return length


def _extreme(tracer: Recording, plain: Any) -> object:
    def extreme(*args: Any, **kwargs: Any) -> Any:
        values = list(args[0]) if len(args) == 1 and type(args[0]) in (list, tuple, Sizes) else list(args)
        numbers = len(values) > 1 and not kwargs and all((type(a) is Proxy and not a.is_tensor) or type(a) in (int, float) for a in values)
        if numbers and first_proxy(values) is not None and _is_traced(tracer):
            result = values[0]
            for other in values[1:]:
                result = tracer.record("call_function", plain, (result, other), {})
            return result
        return plain(*args, **kwargs)

    return extreme


@contextlib.contextmanager
def stand_ins(tracer: Recording) -> Iterator[None]:
    """Put the stand-ins into the globals of the code that asked for them."""
    made = {name: _kind(tracer, getattr(builtins, name)) for name in ("int", "float", "bool")}
    made |= {"len": _length(tracer), "min": _extreme(tracer, min), "max": _extreme(tracer, max)}
    with contextlib.ExitStack() as stack:  # as in `rewritten`: Ctrl-C meets none of our lines where it takes back
        for needed in tracer.stand_ins:
            for name in needed.names:
                if name not in needed.scope:
                    stack.callback(needed.scope.pop, name, None)
                    needed.scope[name] = made[name]
        yield
