"""Where a value of a graph comes from: from a state, or from the data of the inputs."""

from __future__ import annotations

import operator

from torch import fx

from qcompiler.ir.types import value_of
from qcompiler.ops.state_nodes import is_read

_SIZES = frozenset(("size", "numel", "nelement", "dim", "stride"))
_FORMED = frozenset(("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"))
_FORMS = frozenset(("to", "type_as", "expand_as", "view_as", "reshape_as"))  # what follows the first argument is no more than a form
_RANDOM = frozenset(("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "normal",
                     "multinomial"))  # fmt: skip


def held_by(read: fx.Node) -> str:
    """The dotted name of the state that a node reads or writes."""
    held = read.args[0]
    assert isinstance(held, fx.Node)
    return str(held.target)


def state_behind(node: fx.Node) -> str | None:
    """The state whose number a number follows from; None where it follows from sizes."""
    todo, seen = [node], {node}
    while todo:
        found = todo.pop()
        if is_read(found):
            return held_by(found) if value_of(found).shape is None else None
        todo += [source for source in found.all_input_nodes if value_of(source).shape is None and source not in seen]
        seen.update(todo)
    return None


def depends_on_data(node: fx.Node) -> bool:
    """Whether a value depends on the elements of an input, on a state or on chance, and not only on sizes."""
    todo, seen = [node], {node}
    while todo:
        found = todo.pop()
        name = found.target if isinstance(found.target, str) else getattr(found.target, "__name__", "")
        if found.op == "placeholder" or is_read(found) or name in _RANDOM:
            return True
        if name in _SIZES:
            continue
        stored = [source for user in found.users if user.target is operator.setitem for source in user.all_input_nodes]
        sources = found.all_input_nodes[:1] if name in _FORMS else found.all_input_nodes[name in _FORMED :]
        todo += [source for source in (*sources, *stored) if source not in seen]
        seen.update(todo)
    return False
