"""What has no ONNX form: found one by one, told in one error."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from qcompiler.errors import UnsupportedOpError
from qcompiler.ir.types import source_of


class NoForm(Exception):
    """Why a call has no ONNX form."""


def refuse_all(lost: Sequence[tuple[fx.Node, str]]) -> None:
    """Raises UnsupportedOpError that lists every node without a form, with its module and the user's line; none: nothing happens."""
    if not lost:
        return
    lines = [f"  %{node.name}: {reason}{_place(node)}" for node, reason in lost]
    count = "1 call has" if len(lost) == 1 else f"{len(lost)} calls have"
    raise UnsupportedOpError(f"{count} no ONNX form:\n" + "\n".join(lines), code="onnx-form",
                             hint="write these in other ops of torch, or leave them out of the module that is exported")  # fmt: skip


def _place(node: fx.Node) -> str:
    source = source_of(node)
    parts = (("module", source.module_path), ("at", source.location))
    return "".join(f", {label} {text}" for label, text in parts if text)
