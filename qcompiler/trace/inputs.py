"""Placeholders from a forward's signature and the example arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import fx, nn

from qcompiler.errors import ConfigError, InputError, Where
from qcompiler.ir.form import NUMBERS, Form
from qcompiler.ir.types import VALUE, Value
from qcompiler.trace.opened import PLAIN, hold, opened
from qcompiler.trace.proxy import Kwargs, Proxy
from qcompiler.trace.tracer import Tracer

_GATHER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def open_inputs(
    tracer: Tracer, model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object], concrete: Mapping[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Add one placeholder per argument of forward; return the arguments to call it with.

    What `*args` and `**kwargs` gather gets one placeholder each (`args_0`, ...; the keyword): the number of them is baked in.
    Arguments in `concrete` and those left at their defaults are baked in; they stay in the signature as defaults, and a
    guard refuses another value.
    """
    signature = inspect.signature(model.forward)
    _check_names(signature, kwargs, concrete)
    free = [p for name, p in signature.parameters.items() if name not in concrete]
    bound = _bind(signature.replace(parameters=free), args, kwargs)
    values = {p.name: _placeholder(tracer, p, bound[p.name]) for p in free if p.name in bound}
    for p in free:
        if p.name not in bound and p.kind not in _GATHER:
            _fixed(tracer, p.name, p.default)
    for name, value in concrete.items():
        values[name] = _fixed(tracer, name, value)
    _order(tracer, signature, concrete)
    return _arguments(signature, values, set(signature.replace(parameters=free).bind_partial(*args).arguments))


def _check_names(signature: inspect.Signature, kwargs: Mapping[str, object], concrete: Mapping[str, object]) -> None:
    for name in concrete:
        if name not in signature.parameters:
            raise ConfigError(f"concrete_args names {name!r}, which forward{signature} does not have", code="concrete-args")
        if name in kwargs:
            raise ConfigError(f"{name!r} is given both as concrete_args and as an example input", code="concrete-args")


def _bind(signature: inspect.Signature, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise InputError(f"the example inputs do not fit forward{signature}: {error}", where=Where(module_path=""),
                         hint="a tuple is the arguments of forward: of (inputs, labels) give the inputs alone") from None  # fmt: skip
    return {name: value for name, value in bound.items() if signature.parameters[name].kind not in _GATHER or value}


def _placeholder(tracer: Tracer, parameter: inspect.Parameter, example: Any) -> object:
    """What forward gets for one argument: proxies in the argument's own containers."""
    if parameter.kind is parameter.VAR_POSITIONAL:
        late = any(node.args for node in tracer.graph.nodes)  # behind an argument with a default another one needs a default too
        return tuple(_open_one(tracer, f"{parameter.name}_{i}", (None,) if late else (), item) for i, item in enumerate(example))
    if parameter.kind is parameter.VAR_KEYWORD:
        return {key: _open_one(tracer, key, (None,), item) for key, item in example.items()}
    optional = parameter.default is not parameter.empty or parameter.kind is parameter.KEYWORD_ONLY
    default = ((parameter.default if type(parameter.default) in PLAIN else None),) if optional else ()
    return _open_one(tracer, parameter.name, default, example)


def _open_one(tracer: Tracer, name: str, default: tuple[Any, ...], example: Any) -> object:
    node = tracer.graph.create_node("placeholder", name, default)
    node.meta[VALUE] = replace(Value.of(example), form=Form.of(example))
    return opened(tracer, Proxy(node, tracer, example), name)


def _fixed(tracer: Tracer, name: str, value: Any) -> object:
    """An argument that is baked in; it keeps its place in the signature where its value can be written there."""
    if type(value) in PLAIN:
        node = tracer.graph.create_node("placeholder", name, (value,))
        form = Form("number", value, "fixed") if type(value) in NUMBERS else Form("value", value)
        node.meta[VALUE] = replace(Value.of(value), form=form)
        hold(tracer, Proxy(node, tracer, value), name)
    return value


def _order(tracer: Tracer, signature: inspect.Signature, concrete: Mapping[str, object]) -> None:
    """Placeholders first, in the order of the signature, but `concrete` ones behind what can be given by position."""
    names = list(signature.parameters)

    def rank(node: fx.Node) -> tuple[int, int]:
        name = str(node.target)
        if name not in names:  # gathered by *args or **kwargs
            positional = [p.name for p in signature.parameters.values() if p.kind is p.VAR_POSITIONAL]
            return int(_GATHER[0] if positional and name.startswith(f"{positional[0]}_") else _GATHER[1]), 0
        kind = inspect.Parameter.KEYWORD_ONLY if name in concrete else signature.parameters[name].kind
        return int(kind), names.index(name)

    anchor = tracer.graph._root
    for node in sorted((node for node in tracer.graph.nodes if node.op == "placeholder"), key=rank):
        anchor.append(node)
        anchor = node


def _arguments(signature: inspect.Signature, values: Mapping[str, Any], given: set[str]) -> tuple[tuple[object, ...], dict[str, object]]:
    """Positional and keyword arguments of a call of forward, as the user would write it: what is left at its default is left out.

    A decorator around forward may take the signature over and count the positional arguments, or add keywords of its own.
    `given`: the names that the examples fill by position.
    """
    positional = [name for name, p in signature.parameters.items() if name in given or (p.kind is p.POSITIONAL_ONLY and name in values)]
    until = list(signature.parameters).index(positional[-1]) if positional else -1
    args: list[Any] = []
    kwargs: Kwargs = {}
    for i, (name, parameter) in enumerate(signature.parameters.items()):
        if parameter.kind is parameter.VAR_POSITIONAL:
            args.extend(values.get(name, ()))
        elif parameter.kind is parameter.VAR_KEYWORD:
            kwargs.update(values.get(name, {}))
        elif i <= until:
            args.append(values.get(name, parameter.default))
        elif name in values:
            kwargs[name] = values[name]
    return tuple(args), kwargs
