"""What a native region computes, as plain data: the calls of the QUANTIZED graph in order, and nothing of any kernel.

It is what a program and its file hold. Everything else (layouts, packed weights, C) is made from it where the region is built, so a file
of an older compiler runs on newer kernels, and no file can bring code with it.

In the arguments of a step "%name" is the value of an earlier step or input, "$3" the fourth tensor of the region; all else is a literal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from qcompiler.errors import QCompilerError

QUANTIZE, DEQUANTIZE, WEIGHT = "quantize", "dequantize", "weight"  # steps that are no op of the table
DYNAMIC = "dynamic"  # a value rounded on its own range
KNOWN = "known."  # before the name of what torch computes from sizes (known.py)
VALUE, TENSOR = "%", "$"


class RegionError(QCompilerError):
    """Data that describes no native region."""

    default_code = "bad-region"


@dataclass(frozen=True)
class Step:
    """`out = op(*args, **kwargs)`.

    op: the name of an op row; "quantize" (x, index of qparams, quant_min, quant_max), "dequantize" (q), "weight" (codes, scale,
    zero_point, axis); "dynamic" (x, quant_min, quant_max); the registry's name of a function of numbers, as operator.floordiv; or "known."
    and a name of known.py.
    """

    out: str
    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def with_arguments(self, args: tuple[Any, ...]) -> Step:
        return replace(self, args=args)

    def reads(self) -> Iterator[str]:
        """Names of the values among its arguments, in order."""
        for leaf in leaves((self.args, self.kwargs)):
            if isinstance(leaf, str) and leaf.startswith(VALUE):
                yield leaf[1:]


@dataclass(frozen=True)
class Place:
    """Where a value comes from in the user's model: the module's path, file and line, and the traced nodes that it computes."""

    path: str
    line: str
    origin: tuple[str, ...]


@dataclass(frozen=True)
class Region:
    """`inputs`: names of the float tensors that it takes, with the example's shapes. `outputs`: names of what it hands out, in order.

    `places`: of the codes that its ops make, for whoever compares or reads the plan.
    """

    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    places: Mapping[str, Place] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        """Literals alone, as a program's call may hold them."""
        steps = [(s.out, s.op, s.args, dict(s.kwargs)) for s in self.steps]
        places = {name: (place.path, place.line, place.origin) for name, place in self.places.items()}
        return {"inputs": list(self.inputs), "steps": steps, "outputs": list(self.outputs), "places": places}

    @staticmethod
    def from_data(data: Any) -> Region:
        """The region that `to_data` wrote. Raises RegionError unless each name is made once, before it is read."""
        try:
            inputs = tuple((_name(name), _shape(shape)) for name, shape in data["inputs"])
            steps = tuple(_step(*entry) for entry in data["steps"])
            places = {_name(name): _place(*entry) for name, entry in data["places"].items()}
            region = Region(inputs, steps, tuple(_name(name) for name in data["outputs"]), places)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RegionError(f"no native region: {error!r:.200}") from None
        _check(region)
        return region


def leaves(value: Any) -> Iterator[Any]:
    """Every leaf of a nested argument."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, Mapping):
        yield from leaves(list(value.values()))
    elif isinstance(value, slice):
        yield from leaves((value.start, value.stop, value.step))
    else:
        yield value


def is_value(argument: object) -> TypeGuard[str]:
    return isinstance(argument, str) and argument.startswith(VALUE)


def is_tensor(argument: object) -> TypeGuard[str]:
    return isinstance(argument, str) and argument.startswith(TENSOR)


def _name(value: Any) -> str:
    if type(value) is not str or not value:
        raise ValueError(f"{value!r:.40} is no name")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    if type(value) is not tuple or not all(type(n) is int and 0 <= n < 2**31 for n in value) or len(value) > 8:
        raise ValueError(f"{value!r:.40} is no shape")
    return value


def _place(path: Any, line: Any, origin: Any) -> Place:
    if not all(type(text) is str for text in (path, line, *origin)):
        raise ValueError(f"{path!r:.40} is no place")
    return Place(path, line, tuple(origin))


def _step(out: Any, op: Any, args: Any, kwargs: Any) -> Step:
    if not isinstance(args, tuple) or not isinstance(kwargs, Mapping) or not all(type(key) is str for key in kwargs):
        raise ValueError(f"bad arguments of {op!r:.40}")
    return Step(_name(out), _name(op), tuple(args), dict(kwargs))


def _check(region: Region) -> None:
    known = {name for name, _ in region.inputs}
    if len(known) != len(region.inputs):
        raise RegionError("a native region has two inputs of one name")
    for step in region.steps:
        unknown = next((name for name in step.reads() if name not in known), None)
        if unknown is not None or step.out in known:
            raise RegionError(f"step {step.out!r:.80} of a native region reads or makes a wrong name {unknown or step.out!r:.80}")
        known.add(step.out)
    if missing := next((name for name in region.outputs if name not in known), None):
        raise RegionError(f"a native region hands out {missing!r:.80}, which no step makes")
    codes = {step.out for step in region.steps if step.op == QUANTIZE}
    if wrong := next((name for name in region.outputs if name in codes), None):  # the tensor for it would be left as memory was
        raise RegionError(f"a native region hands out the codes {wrong!r:.80}; it hands out floats")
