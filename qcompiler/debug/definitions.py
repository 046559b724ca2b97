"""What a script defines, without running it: the statements that some of its names need, and no others.

A script that compiles where it stands, with no `if __name__ == "__main__"`, would compile (and fail) once more when it is imported. So of
its top-level statements those are kept that bind a name which is needed, and what these need in turn; calls of methods and assignments to
attributes or items of what is needed (`TABLE.add(ROW)`, `OPTIONS["a"] = 1`); imports of all names. The lines stay where they were, so
that tracebacks and inspect.getsource are right.
"""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterable, Iterator


def definitions(source: str, names: Iterable[str]) -> tuple[ast.Module, set[str]]:
    """The statements behind the names, and the names that nothing at the top level binds. Raises SyntaxError."""
    module = ast.parse(source)
    needed = set(names)
    asked, statements = set(needed), [(statement, set(_binds(statement))) for statement in module.body]
    imported = {name for statement, bound in statements if isinstance(statement, (ast.Import, ast.ImportFrom)) for name in bound}
    kept: set[int] = set()
    while found := [i for i, (s, bound) in enumerate(statements) if i not in kept and _is_needed(s, bound, needed, imported)]:
        kept.update(found)
        for i in found:
            needed |= globals_of(ast.unparse(statements[i][0]))
    bound_names = {name for _, bound in statements for name in bound}
    module.body = [module.body[i] for i in sorted(kept)]
    return module, (set() if "*" in bound_names else asked - bound_names)


def globals_of(source: str) -> set[str]:
    """The global names that a piece of code reads, inside functions and classes too."""
    return set(_globals(symtable.symtable(source, "<script>", "exec")))


def _globals(table: symtable.SymbolTable) -> Iterator[str]:
    for symbol in table.get_symbols():
        if symbol.is_referenced() if table.get_type() == "module" else symbol.is_global():
            yield symbol.get_name()
    for child in table.get_children():
        yield from _globals(child)


def _binds(statement: ast.AST) -> Iterator[str]:
    """Names of the module that the statement binds; functions and classes keep theirs to themselves."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name
        return
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in statement.names)
    if isinstance(statement, ast.Name) and isinstance(statement.ctx, ast.Store):
        yield statement.id
    for child in ast.iter_child_nodes(statement):
        if not isinstance(child, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            yield from _binds(child)


def _is_needed(statement: ast.stmt, bound: set[str], needed: set[str], imported: set[str]) -> bool:
    if bound & needed or "*" in bound:
        return True
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        return _root(statement.value.func) in needed - imported
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target] if isinstance(statement, ast.AugAssign) else []
    return any(_root(target) in needed for target in targets)


def _root(value: ast.AST) -> str | None:
    """`a` of `a.b[c].d`; None for what is no part of a name's value."""
    inner = value
    while isinstance(inner, (ast.Attribute, ast.Subscript)):
        inner = inner.value
    return inner.id if isinstance(inner, ast.Name) and inner is not value else None
