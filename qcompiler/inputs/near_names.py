"""Names of modules like one that the model does not have."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from qcompiler.errors import ConfigError


def near_names(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The names that were probably meant, the likeliest first: in other letters, with the same end, or misspelled."""
    names = [known_name for known_name in dict.fromkeys(known) if known_name]
    plain = {candidate: _plain(candidate) for candidate in names}
    wanted = _plain(name)
    ends = wanted.rpartition(".")[2]
    same = [c for c in names if plain[c] == wanted]
    parts = [c for c in names if plain[c].endswith(f".{wanted}") or wanted.endswith(f".{plain[c]}")]
    like = difflib.get_close_matches(wanted, list(plain.values()), n=most)
    misspelled = [c for close in like for c in names if plain[c] == close]
    last = [c for c in names if difflib.SequenceMatcher(None, ends, plain[c].rpartition(".")[2]).ratio() > 0.8] if len(ends) > 1 else []
    return list(dict.fromkeys([*same, *parts, *misspelled, *last]))[:most]


def _plain(name: str) -> str:
    """`Encoder[0]/conv_1.weight` -> `encoder.0.conv1`: what people write in place of a dotted path."""
    dotted = re.sub(r"[\[/]", ".", name.lower()).replace("]", "").replace("_", "").replace(" ", "").strip(".")
    return dotted.removesuffix(".weight").removesuffix(".bias")


def no_module(name: str, known: Iterable[str], code: str, where: str = "") -> ConfigError:
    """The error for a name that is no module's; `where` says what named it."""
    names = [known_name for known_name in known if known_name]
    close = near_names(name, names)
    top = list(dict.fromkeys(known_name.partition(".")[0] for known_name in names))
    listed = f"the model has {', '.join(top[:8])}{', ...' if len(top) > 8 else ''}; see model.named_modules()"
    hint = f"did you mean {', '.join(close)}?" if close else listed
    return ConfigError(f"the model has no module {name!r}{f' ({where})' if where else ''}", code=code, hint=hint)
