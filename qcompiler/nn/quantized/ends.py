"""The codes between which training cut results, beside a state_dict's tensors: in its metadata, since the names of keys are torch.ao's."""
# no `from __future__ import annotations`: torch.jit reads the annotations of the modules that import this

from collections.abc import Mapping

from qcompiler.errors import ConfigError, Where

ENDS = "codes"  # the key in the metadata that torch keeps for each module of a state_dict


def note_ends(state_dict: object, prefix: str, ends: tuple[int, int]) -> None:
    """Write the ends of the module with this prefix into the metadata of the state_dict that it is saved to, if that has any."""
    metadata = getattr(state_dict, "_metadata", {}).get(prefix[:-1])
    if metadata is not None:
        metadata[ENDS] = list(ends)


def noted_ends(metadata: Mapping[str, object], own: tuple[int, int], prefix: str) -> tuple[int, int]:
    """The ends that were saved with a module's tensors; `own` where none were: the module's own stay. ConfigError for what are no codes."""
    given = metadata.get(ENDS, list(own))
    if not isinstance(given, (list, tuple)) or len(given) != 2 or not all(type(code) is int for code in given):
        raise _fault(given, prefix)
    least, most = given
    if not 0 <= least < most <= 255:
        raise _fault(given, prefix)
    return least, most


def _fault(given: object, prefix: str) -> ConfigError:
    text, hint = f"{prefix}: {given!r} are no two codes of 0 to 255", "the state_dict's metadata is not what this package wrote"
    return ConfigError(text, code="state-codes", where=Where(module_path=prefix[:-1] or None), hint=hint)
