"""How a compiled program holds its values and weights: read from its statements, whether it was made here or loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import nn

from qcompiler.backends.native.steps import QUANTIZE, VALUE
from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.drawing import PLACE, floats_out
from qcompiler.backends.torch.program.drawing import QUANTIZE as QUANTIZES
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.statements import Call
from qcompiler.backends.torch.program.values import Scale, ZeroPoint
from qcompiler.backends.torch.program.weight_axes import weight_axes
from qcompiler.executable.integers import Scales, ValueScale, weight_scales
from qcompiler.ir.nested import Ref

Entry = tuple[str, str, str, int, int, int, int]  # name, layer, source, index of scale and of zero point, lowest and highest code


def scales_of(module: nn.Module, program: Program, most: Mapping[str, int], ops: Collection[str]) -> Scales:
    """`most`: the largest code of values whose range has fewer than 8 bits; `ops`: the names of the model's ops, as explain has them."""
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    scales, zeros = state[program.scales_name].tolist(), state[program.zero_points_name].tolist()
    values: dict[str, ValueScale] = {}
    held: dict[str, Entry] = {}  # by the names of statements
    for call in program.statements:
        found = _of_region(call) if call.op == registry.NATIVE_REGION else _of_call(call, most, ops, held)
        for name, layer, source, scale, zero, low, high in found:
            stored = f"{program.scales_name}[{scale}]"
            values[name] = ValueScale(name, layer, source, "uint8", scales[scale], zeros[zero], low, high, stored)
    return Scales(values, weight_scales(state, weight_axes(program)))


def _of_call(call: Call, most: Mapping[str, int], ops: Collection[str], held: dict[str, Entry]) -> Iterator[Entry]:
    """The last scale and zero point of a statement that hands out integers are those of its result; without any it hands on what it takes,
    as pools and copies do."""
    scales = [value.index for value in call.values() if isinstance(value, Scale)]
    zeros = [value.index for value in call.values() if isinstance(value, ZeroPoint)]
    taken = next((held[value.name] for value in call.values() if isinstance(value, Ref) and value.name in held), None)
    if floats_out(call.op) or not call.out or not ((scales and zeros) or taken):
        return
    layer, line = _place(call)
    if scales and zeros:
        made = (_name(call, ops), layer, line, scales[-1], zeros[-1], 0, most.get(call.out, 255))
    else:
        assert taken is not None
        made = (call.out, layer, line, *taken[3:])
    held[call.out] = made
    if made[0] in ops or (scales and zeros):
        yield made


def _place(call: Call) -> tuple[str, str]:
    """The module and the line of the user's that a statement names."""
    place = PLACE.match(call.comment)
    if place is None:
        return "", ""
    return place["path"] or "", f"{place['file']}:{place['line']}" if place["file"] else ""


def _name(call: Call, ops: Collection[str]) -> str:
    """Of the value: what is rounded has the name of its floats, and an inner call that of the op that it is a part of."""
    if call.op in QUANTIZES:
        return next((value.name for value in call.values() if isinstance(value, Ref)), str(call.out))
    return str(call.out) if call.out in ops else next((name for name in reversed(call.origin) if name in ops), str(call.out))


def _of_region(call: Call) -> Iterator[Entry]:
    region, _, scales, zeros = call.args[:4]
    for out, op, args, _ in region["steps"]:
        if op == QUANTIZE:
            layer, line, _ = region["places"].get(out, ("", "", ()))
            yield args[0].removeprefix(VALUE), layer, line, scales[args[1]].index, zeros[args[1]].index, args[2], args[3]
