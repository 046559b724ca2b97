"""A prepared module as a graph that passes may change."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import fx

from qcompiler.errors import ConfigError
from qcompiler.inputs.checks import MARK
from qcompiler.inputs.fingerprint import fingerprints
from qcompiler.ir.types import Stage
from qcompiler.observers.watch import Watch
from qcompiler.prepared.module import KEPT, STATE, State, required_state
from qcompiler.stages.verify import verify


def observed_copy(prepared: Any, allow_uncalibrated: str) -> tuple[fx.GraphModule, State]:
    """A copy of a prepared module for convert to work on."""
    state = required_state(prepared)
    if allow_uncalibrated not in ("error", "float"):
        raise ConfigError(f'allow_uncalibrated is "error" or "float", not {allow_uncalibrated!r:.80}', code="allow-uncalibrated")
    verify(prepared, Stage.OBSERVED, table=state.settings.table)
    observers: dict[int, object] = {id(module): module for module in prepared.modules() if isinstance(module, Watch)}
    try:
        gm = copy.deepcopy(prepared, {} if state.settings.trains else observers)  # observers are read, and dropped from the copy
    except Exception as error:  # torch.fx writes the code of the copy anew
        raise ConfigError(f"invalid IR in the graph given: {type(error).__name__}: {error!s:.400}", code="invalid-ir") from error
    for key in (STATE, KEPT):
        gm.meta.pop(key, None)
    setattr(gm, MARK, "reference")
    if state.settings.trains:
        gm.cpu()  # int8 kernels run there
    state.before.put_back(gm)
    gm._forward_pre_hooks.clear()
    gm._forward_pre_hooks_with_kwargs.clear()
    gm._load_state_dict_post_hooks.clear()
    settings = state.settings.with_(allow_uncalibrated=allow_uncalibrated)
    weights = fingerprints(prepared) if settings.trains else state.weights
    return gm, replace(state, settings=settings, journal=state.journal.continued(), weights=weights)
