"""Environment variables that debugging reads: an empty one is as good as none, one that means nothing is a ConfigError that names it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from qcompiler.errors import ConfigError


def setting(name: str, read: Callable[[str], object], wanted: str) -> Any:
    """The value of an environment variable, None where it is not set. ConfigError where `read` raises ValueError."""
    text = os.environ.get(name)
    if not text:
        return None
    try:
        return read(text)
    except ValueError as error:
        reason = f" ({error})" if str(error) else ""
        message, hint = f"{name}={text!r:.200} is not {wanted}{reason}", f"unset {name}, or give {wanted}"
        raise ConfigError(message, code="environment", hint=hint) from None


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError
    return text == "1"


def real_weights() -> bool:
    """Whether a crash reproducer may hold the model's own weights: QCOMPILER_REPRO_WEIGHTS."""
    return bool(setting("QCOMPILER_REPRO_WEIGHTS", _switch, "0 or 1"))
