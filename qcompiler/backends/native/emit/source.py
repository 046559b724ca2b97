"""The C file of a network: one small function a layer, and the list of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qcompiler.backends.native.emit.constants import Constants
from qcompiler.backends.native.emit.layer_code import Counters, LayerCode
from qcompiler.backends.native.plan.layer import Layer
from qcompiler.backends.native.plan.network import Network

HEAD = '#include "net.h"\n#include "recurrent.h"\n'


@dataclass(frozen=True)
class Source:
    """`text`: the C. `constants`: what it reads. `io`: the number of each tensor that the caller gives or gets, by name. `kernels`: the
    families that each function calls."""

    text: str
    constants: Constants
    io: Mapping[str, int]
    counters: Counters
    kernels: tuple[tuple[str, ...], ...]


def source_of(network: Network) -> Source:
    """The same network gives the same text; weights, scales and zero points do not stand in it."""
    constants, counters = Constants(), Counters()
    for tensor in network.constants.values():
        constants.data(tensor.numpy())
    functions, kernels = [], []
    for index, layer in enumerate(network.computing):
        code = LayerCode(network, constants, network.io, counters)
        layer.code(code)
        kernels.append(tuple(code.kernels))
        functions.append(_function(index, layer, code))
    names = ", ".join(f"layer_{index}" for index in range(len(functions)))
    table = f"static const qc_layer layers[] = {{{names}}};\n" if functions else "static const qc_layer layers[1];\n"
    last = f"const qc_network qc_this_network = {{{len(functions)}, layers}};\n"
    return Source("\n".join([HEAD, *functions, table, last]), constants, network.io, counters, tuple(kernels))


def tensor_outputs(network: Network) -> tuple[str, ...]:
    """What is handed out as tensors, once each: the rest are numbers."""
    return network.tensor_outputs


def _function(index: int, layer: Layer, code: LayerCode) -> str:
    lines = [f"/* {_comment(layer)} */", f"static int64_t layer_{index}(const qc_state *s, int64_t lo, int64_t hi) {{"]
    return "\n".join([*lines, *(f"  {line}" for line in code.body), "  return 0;", "}", ""])


def _comment(layer: Layer) -> str:
    """Names of the user's stand in comments alone, and cannot end one."""
    text = f"{layer.label}: {layer.text()}"
    return (
        "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
        .replace("*/", "* /")
        .replace("/*", "/ *")
        .replace("\\", "/")[:200]
    )
