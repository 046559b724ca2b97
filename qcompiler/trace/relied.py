"""What a trace took from its example, and the graph is right for as long as that is so."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from typing import Protocol

from torch import fx

from qcompiler.errors import TraceError, Where
from qcompiler.ir.types import Source
from qcompiler.trace import places


class Relied(Protocol):
    """One such thing."""

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """The values that it is about."""

    @property
    def source(self) -> Source:
        """The line of the user's that it is about."""

    def differs(self, values: Mapping[fx.Node, object]) -> bool:
        """Whether it is otherwise where these are the values."""

    def found(self, values: Mapping[fx.Node, object]) -> Hashable:
        """How it is there: what else follows from that is the same wherever this is."""

    def why(self) -> str:
        """What a guard says of it: a clause, and what to do."""

    def unknown(self) -> TraceError:
        """What is raised where nobody can tell how it is at other calls."""


def line(source: Source) -> str:
    """A line of the user's in the words of a guard, which goes into generated code: without paths of this machine."""
    text = places.text_of(source.file, source.line)
    return f"`{text}` ({places.spell(os.path.basename(source.file or ''), source.line)})" if text else f"module {source.module_path!r}"


def where(source: Source) -> Where:
    return Where(module_path=source.module_path, source=places.spell(source.file, source.line))
