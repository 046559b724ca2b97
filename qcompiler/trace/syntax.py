"""The syntax trees of the user's files, and where things stand in them."""

from __future__ import annotations

import ast
import functools
import linecache

Position = tuple[int, int]  # line, column in bytes, as in instructions


def span(node: ast.stmt | ast.expr) -> tuple[Position, Position]:
    return (node.lineno, node.col_offset), (node.end_lineno or node.lineno, node.end_col_offset or node.col_offset)


@functools.lru_cache(maxsize=64)
def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return None


def tree_of(file: str) -> ast.Module | None:
    lines = linecache.getlines(file)
    return _parsed("".join(lines)) if lines else None


@functools.lru_cache(maxsize=64)
def inside_functions(tree: ast.Module) -> tuple[tuple[ast.AST, ast.AST], ...]:
    """Every node, with the innermost function that it is or stands in. Kept, as each condition of a trace asks for it."""
    found: list[tuple[ast.AST, ast.AST]] = []
    stack: list[tuple[ast.AST, ast.AST]] = [(tree, tree)]
    while stack:
        outer, node = stack.pop()
        function = node if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) else outer
        found.append((function, node))
        stack.extend((function, child) for child in ast.iter_child_nodes(node))
    return tuple(found)


@functools.lru_cache(maxsize=64)
def lambdas_of(tree: ast.Module) -> dict[int, list[ast.Lambda]]:
    """The lambdas of a file by the line that they begin in."""
    found: dict[int, list[ast.Lambda]] = {}
    for function, node in inside_functions(tree):
        if node is function and isinstance(node, ast.Lambda):
            found.setdefault(node.lineno, []).append(node)
    return found
