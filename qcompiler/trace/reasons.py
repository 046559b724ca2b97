"""What stopped a trace, and where."""

from __future__ import annotations

from qcompiler.errors import QCompilerError
from qcompiler.trace import places


def origin(error: BaseException) -> str | None:
    """The user's line that an exception is about."""
    if isinstance(error, QCompilerError) and error.where.source:
        return error.where.source
    return places.spell(*places.raised_at(error.__traceback__))


def reason(error: BaseException) -> str:
    """One sentence: what stopped the trace."""
    if isinstance(error, QCompilerError):
        return error.message
    text = places.text_of(*places.raised_at(error.__traceback__))
    return f"{type(error).__name__}: {error}" + (f" in `{text}`" if text else "")
