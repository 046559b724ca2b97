"""A prepared module as a graph that passes may change."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from qcompiler.errors import ConfigError
from qcompiler.inputs.checks import MARK
from qcompiler.inputs.fingerprint import fingerprints
from qcompiler.ir.attributes import attribute
from qcompiler.ir.types import Stage
from qcompiler.observers.watch import Watch
from qcompiler.ops.state_nodes import held_names
from qcompiler.prepared.module import KEPT, STATE, State, required_state
from qcompiler.stages.verify import verify


def observed_copy(prepared: Any, allow_uncalibrated: str, shares: bool = False) -> tuple[fx.GraphModule, State]:
    """A copy of a prepared module for convert to work on. `shares`: the weights of its ops are the module's own tensors, for a graph that
    goes before they may change."""
    state = required_state(prepared)
    if allow_uncalibrated not in ("error", "float"):
        raise ConfigError(f'allow_uncalibrated is "error" or "float", not {allow_uncalibrated!r:.80}', code="allow-uncalibrated")
    verify(prepared, Stage.OBSERVED, table=state.settings.table)
    common: dict[int, object] = {id(module): module for module in prepared.modules() if isinstance(module, Watch)}
    if shares:
        common |= {id(tensor): tensor for tensor in _weights(prepared)}
    try:
        gm = copy.deepcopy(prepared, {} if state.settings.trains else common)  # observers are read, and dropped from the copy
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


def _weights(gm: fx.GraphModule) -> Iterator[Tensor]:
    """The tensors that nodes of a graph read and no call changes: what is kept between calls is no such, and nothing of the modules that
    are called as a whole."""
    read: dict[str, object] = {str(node.target): attribute(gm, str(node.target)) for node in gm.graph.nodes if node.op == "get_attr"}
    whole: list[nn.Module] = [gm.get_submodule(str(node.target)) for node in gm.graph.nodes if node.op == "call_module"]
    whole += [value for value in read.values() if isinstance(value, nn.Module)]
    others = {id(tensor) for module in whole if not isinstance(module, Watch) for tensor in (*module.parameters(), *module.buffers())}
    others |= {id(attribute(gm, name)) for name in held_names(gm)}
    yield from (value for value in read.values() if isinstance(value, Tensor) and id(value) not in others)
