"""Signatures of rows and spellings: what spec.Spelling describes, and how a call is bound to one."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import fx

NO_DEFAULT = object()


@cache
def parse_signature(text: str) -> tuple[tuple[str, str, str, Any], ...]:
    """Each argument of a signature as (kind, the user's names with | between them, canonical name, default); kind is "", "*", "_", "!" or
    "?"."""
    entries = []
    for word in _words(text):
        name, _, default = word.partition("=")
        kind = name[0] if name[0] in "*_!?" else ""
        user, _, canonical = name[len(kind) :].partition(":")
        entries.append((kind, user, canonical or user, ast.literal_eval(default) if default else NO_DEFAULT))
    return tuple(entries)


def _words(text: str) -> list[str]:
    return text.split()


def bind(signature: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Canonical arguments of one call by its spelling's signature; None where the call is not of that form."""
    bound: dict[str, Any] = {}
    left, named = list(args), dict(kwargs)
    for kind, user, canonical, default in parse_signature(signature):
        if kind == "*":
            value = left[0] if len(left) == 1 and isinstance(left[0], (tuple, list)) else tuple(left)
            left = []
            value = named.pop(user, value)
        elif left:
            value = left.pop(0)
        elif (name := next((n for n in (*user.split("|"), canonical) if n in named), None)) is not None:
            value = named.pop(name)
        elif default is NO_DEFAULT:
            return None
        else:
            value = default
        if kind == "!" and value != default:
            return None
        if kind == "?" and value != default and not isinstance(value, fx.Node):
            return None
        if kind in ("", "*", "?"):
            bound[canonical] = value
    return None if left or named else bound
