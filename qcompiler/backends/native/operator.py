"""A native region as one operator of torch: what torch.compile, torch.export and torch.jit.trace see in its place.

    qcompiler::native_region(Tensor[] inputs, Tensor[] constants, str description) -> Tensor[]

`constants` are the tensors of the region (weights, biases, under the user's names in a state_dict), then the scales (float64) and the zero
points (int64) of its values. `description` says what is computed, as JSON (Region.to_data): data, which nobody runs as code. So a saved
program holds all that it needs, and no number that stands for an object of one process. What the operator makes of them is kept as long as
the constants live, and made anew where one of them was changed in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from qcompiler.ambient import call_is_plain, plain_call
from qcompiler.backends.native.live_regions import region_of_text
from qcompiler.backends.native.plan.network import Network
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.region import REGIONS, NativeRegion, planned
from qcompiler.backends.native.steps import RegionError
from qcompiler.errors import InputError

PLAIN = frozenset({Tensor, nn.Parameter})  # classes whose memory can be read


def stands_in(inputs: Sequence[object]) -> bool:
    """Whether a call is one that somebody records or rewrites, or whose tensors hold no values of their own."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or not PLAIN.issuperset(map(type, inputs))
    )


def through_torch(region: NativeRegion, inputs: Sequence[Tensor]) -> tuple[object, ...]:
    """What the region hands out, computed by the operator; numbers come from the sizes of the inputs. No gradients flow through it."""
    given = [x.detach() for x in inputs]
    constants = region.constants
    if not torch.compiler.is_dynamo_compiling() and region.standing is not None:  # torch.export puts stand-ins into the module
        constants = region.standing() or constants
    made = dict(zip(region.tensors, OPERATOR(given, constants, region.description), strict=True))
    if len(made) == len(region.network.outputs):
        return tuple(made[name] for name in region.network.outputs)
    shapes = _shapes(region.network, inputs)
    return tuple(made[name] if name in made else shapes[name] for name in region.network.outputs)


def region_of_constants(constants: Sequence[Tensor], description: str) -> NativeRegion:
    found = REGIONS.get(constants, description)
    if found is None:
        with REGIONS.lock:
            found = REGIONS.get(constants, description)
            if found is None:
                found = _made(constants, description)
                REGIONS.keep(found, constants)
    return found


def _made(constants: Sequence[Tensor], description: str) -> NativeRegion:
    if len(constants) < 2 or not all(t.dtype is d and t.dim() == 1 for t, d in zip(constants[-2:], (torch.float64, torch.int64))):
        raise RegionError("the last constants of a native region are its scales in float64 and its zero points in int64")
    *tensors, scales, zero_points = constants
    if len(scales) != len(zero_points):
        raise RegionError(f"{len(scales)} scales and {len(zero_points)} zero points")
    made = NativeRegion(region_of_text(description), tensors, list(zip(scales.tolist(), zero_points.tolist())))
    made.constants = []  # it lives as long as they do, and must not be what keeps them alive
    return made


def _run(inputs: list[Tensor], constants: list[Tensor], description: str) -> list[Tensor]:
    """Programs that others wrote call it under whatever is set around them, as the module itself never does."""
    if call_is_plain():
        return _computed(inputs, constants, description)
    with plain_call():
        return _computed(inputs, constants, description)


def _computed(inputs: Sequence[Tensor], constants: Sequence[Tensor], description: str) -> list[Tensor]:
    region = region_of_constants(constants, description)
    _check(region.network, inputs)
    made = dict(zip(region.network.outputs, region(*inputs), strict=True))
    return [made[name] for name in region.tensors]


@lru_cache(maxsize=64)
def _stand_in_network(description: str, kinds: tuple[tuple[torch.dtype, tuple[int, ...]], ...]) -> Network:
    """A network of the same shapes, on constants of zeros: no shape depends on a weight or a scale."""
    with _disable_current_modes(), torch.inference_mode(False):
        tensors = [torch.zeros(1, dtype=dtype).expand(shape) for dtype, shape in kinds]
        return planned(region_of_text(description), tensors[:-2], [(1.0, 0)] * len(tensors[-1]))


def _check(network: Network, inputs: Sequence[Tensor]) -> None:
    """Raises InputError for inputs of another number than the region takes."""
    if len(inputs) != len(network.inputs):
        raise InputError(f"this native region takes {len(network.inputs)} inputs, not {len(inputs)}", code="input-arguments")


def _shapes(network: Network, inputs: Sequence[Tensor]) -> dict[str, Any]:
    _check(network, inputs)
    names = [name for name, _ in network.inputs]
    return Sizes(network, {name: tuple(x.shape) for name, x in zip(names, inputs, strict=True)}).shaped().shapes


def _fake(inputs: list[Tensor], constants: list[Tensor], description: str) -> list[Tensor]:
    network = _stand_in_network(description, tuple((t.dtype, tuple(map(int, t.shape))) for t in constants))  # symbols become numbers
    shapes = _shapes(network, inputs)
    return [inputs[0].new_empty(shapes[name], dtype=dtype) for name, dtype in network.dtypes.items()]


_library = torch.library.Library("qcompiler", "DEF")
_library.define("native_region(Tensor[] inputs, Tensor[] constants, str description) -> Tensor[]", tags=(torch.Tag.pt2_compliant_tag,))
_library.impl("native_region", _run, "CompositeExplicitAutograd")
torch.library.register_fake("qcompiler::native_region", _fake, lib=_library)
OPERATOR = torch.ops.qcompiler.native_region.default
