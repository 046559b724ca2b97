"""The op table: every op the compiler knows, one row each. `OPS` is the default table; users add rows to a copy or to it.

Look-ups: by canonical function (`row_of`), by the user's spelling (`Table.spelled`), by module (`Table.module_form`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import fx, nn

from qcompiler.errors import ConfigError
from qcompiler.ops.check_row import check_row, try_row
from qcompiler.ops.rows import elementwise, embedding, epilogue, recurrent, shape, unary, weighted
from qcompiler.ops.signature import NO_DEFAULT, bind, parse_signature
from qcompiler.ops.spec import ModuleForm, Op, Spelling

__all__ = ["NO_DEFAULT", "OPS", "Table", "bind", "parse_signature"]


class Table:
    """Rows and the look-ups on them. Claiming a spelling twice raises ConfigError."""

    def __init__(self, rows: Iterable[Op] = ()) -> None:
        self.rows: dict[str, Op] = {}
        self._by_fn: dict[object, Op] = {}
        self._refused: dict[object, frozenset[str]] = {}  # by fn that users call as well: names of arguments that no canonical call has
        self._spellings: dict[object, tuple[Op, Spelling]] = {}
        self._modules: dict[Any, tuple[Op, ModuleForm]] = {}
        for row in rows:
            self.enter(row)

    def add(self, row: Op) -> None:
        """Registers a row, once it is checked and its example was tried; its spellings must not be taken. Raises ConfigError."""
        check_row(row)
        try_row(row)
        self.enter(row)

    def enter(self, row: Op) -> None:
        """Registers a row that was checked before."""
        spellings = [s if isinstance(s, Spelling) else Spelling(s, row.signature) for s in row.spellings]
        if row.fn not in [s.target for s in spellings]:
            spellings.append(Spelling(row.fn, row.signature))
        taken = [s.target for s in spellings if s.target in self._spellings] + [f.cls for f in row.modules if f.cls in self._modules]
        if row.name in self.rows or taken:
            raise ConfigError(f"op {row.name!r} claims what the table already has: {taken or row.name}", code="op-claimed-twice")
        self.rows[row.name] = row
        self._by_fn[row.fn] = row
        own = parse_signature(next(s.signature or row.signature for s in spellings if s.target is row.fn))
        if any(kind == "!" for kind, _, _, _ in own):
            self._refused[row.fn] = frozenset(name for kind, user, canonical, _ in own if kind in "!_?" or user != canonical
                                              for name in user.split("|") if kind or name != canonical)  # fmt: skip
        self._spellings.update((s.target, (row, s)) for s in spellings)
        self._modules.update((f.cls, (row, f)) for f in row.modules)

    def remove(self, name: str) -> None:
        """Takes a row back out (for tests and for replacing a built-in row)."""
        row = self.rows.pop(name)
        self._by_fn = {k: v for k, v in self._by_fn.items() if v is not row}
        self._spellings = {k: v for k, v in self._spellings.items() if v[0] is not row}
        self._modules = {k: v for k, v in self._modules.items() if v[0] is not row}

    def copy(self) -> Table:
        return Table(self.rows.values())

    def spelled(self, target: Callable[..., object] | str) -> tuple[Op, Spelling] | None:
        """The row and spelling of a called function, or of a method name."""
        try:
            return self._spellings.get(target)
        except TypeError:  # an unhashable callable is no spelling
            return None

    def module_form(self, module: nn.Module) -> tuple[Op, ModuleForm] | None:
        """The row and form of a module, by its exact class (a subclass may compute something else)."""
        cls = type(module)
        return self._modules.get(cls) or self._modules.get(f"{cls.__module__}.{cls.__qualname__}")

    def has_form(self, kind: type | str) -> bool:
        """Whether modules of this class are an op's."""
        return kind in self._modules

    def of(self, node: fx.Node) -> Op | None:
        """The row of a canonical node; None for a call of the row's function with an argument that the row does not describe."""
        row = self._by_fn.get(node.target) if node.op == "call_function" else None
        refused = None if row is None else self._refused.get(node.target)
        if row is None or refused is None:
            return row
        return None if len(node.args) > len(row.params) or not refused.isdisjoint(node.kwargs) else row


_ROWS = (*weighted.ROWS, *recurrent.ROWS, *embedding.ROWS, *epilogue.ROWS, *elementwise.ROWS, *unary.ROWS, *shape.ROWS)
for _row in _ROWS:
    check_row(_row)  # a test tries their examples
OPS = Table(_ROWS)
"""The rows of the op table, by family; each file ends with ROWS."""
