"""Attribute names that may stand in code, and the way back to the user's.

A submodule or tensor may be called anything without a dot: a keyword, a quote, a newline, `graph`. torch.fx writes names into
its code as they are. So a graph module holds such a part of a path under a name of ours, `n0_class` for `class`; the table hangs
in the module's `meta`, its state_dict and what codegen makes of it use the user's names.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from typing import Any

from torch import fx, nn

NAMES = "qcompiler_names"  # gm.meta key -> {a part of the user's paths: the name that stands for it}
LONGEST = 100  # longer names are cut, for the sake of the people who read the code
PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+")
TAKEN = frozenset(dir(fx.GraphModule)) | frozenset(vars(fx.GraphModule(nn.Module(), fx.Graph()))) | {"observers", "weight_fake_quants"}


def is_plain(part: str) -> bool:
    """Whether a part of a path may stand in code as it is, beside what a GraphModule has of its own."""
    if not PLAIN.fullmatch(part) or keyword.iskeyword(part):
        return False
    return not part.startswith("__") and part not in TAKEN and len(part) <= LONGEST


def safe_parts(paths: Iterable[str]) -> dict[str, str]:
    """A name in place of every part of these paths that is not plain. No other part begins like one of them."""
    parts = dict.fromkeys(part for path in paths for part in path.split(".") if part)
    made: dict[str, str] = {}
    number = 0
    numbered = {part.partition("_")[0] for part in parts}
    for part in parts:
        if is_plain(part):
            continue
        while f"n{number}" in numbered:
            number += 1
        made[part] = f"n{number}_{re.sub(r'[^A-Za-z0-9]+', '_', part)[: LONGEST // 2]}".rstrip("_")
        number += 1
    return made


def safe_path(table: dict[str, str], path: str) -> str:
    """The path in a graph module for one of the user's."""
    return ".".join(table.get(part, part) for part in path.split(".")) if table else path


def user_path(module: nn.Module, path: str) -> str:
    """The user's path for one in a graph module; what a pass put behind a name (`_scale`) stays behind it."""
    table = getattr(module, "meta", {}).get(NAMES)
    return _restored(table, path) if table else path


def _restored(table: dict[str, str], path: str) -> str:
    back = {safe.partition("_")[0]: (user, safe) for user, safe in table.items()}

    def restore(part: str) -> str:
        user, safe = back.get(part.partition("_")[0], (part, part))
        return user + part[len(safe) :] if part == safe or part.startswith(f"{safe}_") else part

    return ".".join(map(restore, path.split(".")))


def keep_names(gm: fx.GraphModule, table: dict[str, str]) -> None:
    """Attaches the table; the state_dict of the module and of its copies has the user's names."""
    if table:
        gm.meta[NAMES] = table
        gm._register_state_dict_hook(_to_user)
        gm.register_load_state_dict_pre_hook(_to_safe)


def _rename(state: dict[str, object], prefix: str, change: Any) -> None:
    for key in list(state):
        value = state.pop(key)  # all of them: the order stays
        state[prefix + change(key[len(prefix) :]) if key.startswith(prefix) else key] = value


def _to_user(module: nn.Module, state: dict[str, object], prefix: str, metadata: object) -> None:
    _rename(state, prefix, lambda path: user_path(module, path))


def _to_safe(module: Any, state: dict[str, object], prefix: str, *rest: Any) -> None:
    back = {user_path(module, path): path for path, _ in (*module.named_parameters(), *module.named_buffers())}
    _rename(state, prefix, lambda path: back.get(path, path))


def add_named(gm: nn.Module, holder: str, name: str, module: nn.Module) -> str:
    """Puts a module into `holder` under its name, or a free one like it (`to`, `float`: a module has them already); returns its path."""
    while hasattr(gm.get_submodule(holder), name):
        name += "_"
    gm.get_submodule(holder).add_module(name, module)
    return f"{holder}.{name}"
