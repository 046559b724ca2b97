"""The kernel table: for each op, by name, the entries in the order of preference.

Which entries are right was measured (measure.py, measured.json), and which of them is the fastest (time_kernels.py, speed.json);
nothing is timed at compile, so output is reproducible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qcompiler.backends.torch.kernels import arithmetic, conv, conv_transpose, elementwise, epilogue, linear, norm, pool, shape
from qcompiler.backends.torch.kernels.speed import fastest
from qcompiler.backends.torch.site import ENGINES, Emit, Kernel, Operand, Site, Weight, host_isa


@dataclass(frozen=True)
class Refused:
    """No kernel takes the site: why, entry by entry."""

    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(self.reasons)


def _by_op(*families: tuple[Kernel, ...]) -> dict[str, tuple[Kernel, ...]]:
    table: dict[str, tuple[Kernel, ...]] = {}
    for kernel in (k for family in families for k in family):
        table[kernel.op] = (*table.get(kernel.op, ()), kernel)
    return table


FAMILIES = (conv, conv_transpose, linear, epilogue, arithmetic, elementwise, norm, pool, shape)
BUILT_IN = MappingProxyType(_by_op(*(family.KERNELS for family in FAMILIES)))
TABLE = dict(BUILT_IN)
TO_FLOAT = {kernel.op: kernel for kernel in linear.TO_FLOAT}  # kernels that hand out floats


def register(kernel: Kernel) -> None:
    """Adds an entry behind those the op already has."""
    TABLE[kernel.op] = (*TABLE.get(kernel.op, ()), kernel)


def added() -> tuple[Kernel, ...]:
    """The entries that were registered beside the built-in ones."""
    return tuple(kernel for op, found in TABLE.items() for kernel in found if kernel not in BUILT_IN.get(op, ()))


def add_again(kernels: Iterable[Kernel]) -> None:
    """Registers entries that `added` gave, maybe in another process, but for those that are there."""
    for kernel in kernels:
        if kernel not in TABLE.get(kernel.op, ()):
            register(kernel)


def entries(site: Site) -> tuple[Kernel, ...]:
    """The table's entries for the op; elementwise ops without one run as a table of 256."""
    found = TABLE.get(site.op.name, ())
    return found if found or not site.op.elementwise else elementwise.table_kernels(site.op.name)


def select(site: Site, wrong: Mapping[str, str] = MappingProxyType({})) -> Kernel | Refused:
    """The fastest of the entries that take the site on its engine, else all reasons against.

    `wrong`: labels of entries that were found wrong for this very site, with the reason.
    """
    reasons: list[str] = []
    taking: list[Kernel] = []
    for kernel in entries(site):
        if site.engine not in kernel.engines:
            continue
        reason = wrong.get(kernel.label) or kernel.refuse(site)
        if reason is None:
            taking.append(kernel)
        elif reason not in reasons:
            reasons.append(reason)
    return fastest(site, taking) if taking else Refused(tuple(reasons) or (f"no int8 kernel for {site.op.name} on {site.engine}",))


__all__ = ["ENGINES", "TABLE", "Emit", "Kernel", "Operand", "Refused", "Site", "Weight", "entries", "host_isa", "register", "select"]
