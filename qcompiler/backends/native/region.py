"""A native region at run time: its compiled network, its constants, and a table for each set of input sizes it has met."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.native.build.library import Values, chosen, open_model, runtime
from qcompiler.backends.native.emit.constants import LINE
from qcompiler.backends.native.emit.source import Source, source_of, tensor_outputs
from qcompiler.backends.native.live_regions import LiveRegions, described, versions
from qcompiler.backends.native.plan.by_number import ByNumber, numbers_given
from qcompiler.backends.native.plan.computes import computes
from qcompiler.backends.native.plan.fuse import fuse
from qcompiler.backends.native.plan.network import Network
from qcompiler.backends.native.plan.place import Place
from qcompiler.backends.native.plan.planner import Planner
from qcompiler.backends.native.plan.rows import Row, plan_rows
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.plan.table import Table, table_in_parts, table_of
from qcompiler.backends.native.plan.text import plan_text
from qcompiler.backends.native.steps import Region
from qcompiler.errors import InputError

Standing = Callable[[], list[Tensor] | None]  # the constants where a module has them at the moment, None where it is gone
KEPT = 16  # sizes; a call with sizes beyond these makes its table anew
_float32, _strided = torch.float32, torch.strided
# Whatever default dtype and device are set around a call.
_NEW_EMPTY = {dtype: torch.empty(0, dtype=dtype, device="cpu").new_empty for dtype in (torch.float32, torch.int64)}


def planned(region: Region, tensors: Sequence[Tensor], qparams: Sequence[tuple[float, int]]) -> Network:
    """The fused layers of a region."""
    planner = Planner(region, [t.detach() for t in tensors], qparams)
    return fuse(planner.network(), planner.example)


class NativeRegion:
    """Callable on the float tensors that the region takes; any number of threads may call it at once."""

    def __init__(self, region: Region, tensors: Sequence[Tensor], qparams: Sequence[tuple[float, int]]) -> None:
        self.places, self.description = region.places, described(region)
        self.network = planned(region, tensors, qparams)
        self.computes = computes(region.steps, self.network.layers)
        self.source: Source = source_of(self.network)
        self.values, self._arrays = _values(self.source)
        isa = chosen()
        self._kernels = runtime(isa)
        self._run = self._kernels.qc_run
        self._numbered = numbers_given(self.network.layers)
        self._model = open_model(isa, self.source.text, self.values)
        weakref.finalize(self, self._kernels.qc_close, self._model)
        self._calls: dict[Any, _Call] = {}
        self.tensors = tensor_outputs(self.network)
        self.constants = [*tensors, *_qparams(qparams)]  # what the operator of torch takes: operator.py
        self.versions = versions(self.constants)
        self.standing: Standing | None = None

    @property
    def isa(self) -> str:
        """The instruction set that it runs on."""
        return str(self._kernels.qc_isa(self._model).decode())

    def belongs(self, standing: Standing) -> None:
        """Tells it where its constants stand in the module that it belongs to."""
        self.standing, self.constants = standing, standing() or self.constants
        self.versions = versions(self.constants)
        REGIONS.add(self)

    def table(self, inputs: Sequence[Tensor]) -> Table:
        """The sizes of a call."""
        return self._call(inputs).table

    def _call(self, inputs: Sequence[Tensor]) -> _Call:
        """What is known of calls with such inputs: kept for the sizes met last."""
        key = tuple([(x.shape, x.stride()) for x in inputs])
        found = self._calls.get(key)
        if found is None:
            sizes = self._sizes(inputs)
            found = _Call.of(table_in_parts(sizes), sizes, self.network, self._numbered)
            for old in list(self._calls)[: len(self._calls) - KEPT + 1]:  # other threads may be at it, too
                self._calls.pop(old, None)
            self._calls[key] = found
        return found

    def _sizes(self, inputs: Sequence[Tensor]) -> Sizes:
        names = [name for name, _ in self.network.inputs]
        shapes = {name: tuple(x.shape) for name, x in zip(names, inputs, strict=True)}
        return Sizes(self.network, dict(shapes), strides={name: x.stride() for name, x in zip(names, inputs, strict=True)}).filled()

    def __call__(self, *inputs: Tensor) -> tuple[Any, ...]:
        """What the region hands out, in order: tensors, and numbers that follow from sizes."""
        return self._called(inputs, self._run, torch.get_num_threads())

    def _called(self, inputs: Sequence[Tensor], run: Callable[..., int], *settings: object) -> tuple[Any, ...]:
        given = self.readable(inputs)
        call = self._call(given)
        call.check(given)
        made = call.made()
        if run(self._model, call.sizes, call.pointers(given, made), *settings):
            raise MemoryError(f"no memory for the {call.table.struct.arena} bytes that this network's values take")
        return call.results(made)

    def readable(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The inputs as the C reads them. Raises InputError for tensors that are no float memory of the CPU."""
        for x in inputs:
            if not _is_plain(x):
                return [x if _is_plain(x) else _plain(x) for x in inputs]
        return inputs

    def plan(self, *inputs: Tensor) -> str:
        """The plan as text, at the sizes of the example, or at those of the inputs and with times."""
        table = table_in_parts(self._sizes(inputs or self._examples()))
        return plan_text(table, self.source.kernels, self.source.constants.size, self.times(*inputs)[0] if inputs else None)

    def rows(self) -> list[Row]:
        """The plan at the sizes of the example."""
        return plan_rows(table_in_parts(self._sizes(self._examples())), self.source.kernels)

    def _examples(self) -> list[Tensor]:
        return [torch.empty(shape, device="meta") for _, shape in self.network.inputs]

    def watch(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Every value of a run, on one thread: codes and floats by name, in torch's shapes."""
        inputs = tuple(self.readable(inputs))
        sizes = self._sizes(inputs)
        for buffer in sizes.buffers:
            buffer.first, buffer.last = 0, len(self.network.layers)
        table = table_of(sizes)
        arena = torch.zeros(table.struct.arena, dtype=torch.uint8)
        call = _Call.of(table, sizes, self.network, self._numbered)
        call.check(inputs)
        made = call.made()
        self._kernels.qc_watch(self._model, call.sizes, call.pointers(inputs, made), arena.data_ptr())
        own = {name: place for name, place in sizes.places.items() if isinstance(place, Place) and place.buffer >= 0}
        values = {name: _seen(arena, place, table.offsets) for name, place in own.items()}
        return values | dict(zip(self.tensors, made, strict=True))

    def times(self, *inputs: Tensor, threads: int = 1) -> tuple[dict[str, int], tuple[Any, ...]]:
        """Nanoseconds of each layer that computes in one call, by its result, and what the call gives."""
        nanoseconds = (ctypes.c_int64 * max(1, len(self.network.computing)))()
        results = self._called(inputs, lambda *run: self._kernels.qc_time(*run, threads, nanoseconds))
        return dict(zip((layer.out for layer in self.network.computing), nanoseconds, strict=False)), results


REGIONS: LiveRegions[NativeRegion] = LiveRegions()


def _qparams(qparams: Sequence[tuple[float, int]]) -> tuple[Tensor, Tensor]:
    scales, zero_points = [scale for scale, _ in qparams], [zero_point for _, zero_point in qparams]
    return torch.tensor(scales, dtype=torch.float64), torch.tensor(zero_points, dtype=torch.int64)


@dataclass(frozen=True)
class _Call:
    """A call with inputs of certain sizes, made ready. `sizes`: the table's struct as C takes it. `makers`: what makes each tensor, and the
    arguments for it. `order`: of each result which of these it is; or None, and a number that the sizes give. `limits`: of inputs that are
    numbers of rows or of elements, the least that one may be, how many there are, and of what.
    """

    table: Table
    sizes: Any
    makers: tuple[tuple[Callable[..., Tensor], tuple[Any, ...]], ...]
    order: tuple[tuple[int | None, Any], ...]
    array: Any
    limits: tuple[tuple[int, int, int, str], ...]

    @staticmethod
    def of(table: Table, sizes: Sizes, network: Network, numbered: Mapping[str, Sequence[ByNumber]]) -> _Call:
        """`sizes`: of the whole call, of which the table may have a part."""
        place = {name: index for index, name in enumerate(network.tensor_outputs)}
        order = tuple((place.get(name), None if name in place else sizes.shapes[name]) for name in network.outputs)
        # Sizes are given one by one: that takes half the time of a tuple.
        makers = tuple((_NEW_EMPTY[dtype], tuple(sizes.shape(name)) or ((),)) for name, dtype in network.dtypes.items())
        names = [name for name, _ in network.inputs]
        limits = tuple((names.index(name), *_limits(layers, sizes)) for name, layers in numbered.items() if name in names)
        return _Call(table, ctypes.byref(table.struct), makers, order, ctypes.c_void_p * (len(names) + len(makers)), limits)

    def check(self, given: Sequence[Tensor]) -> None:
        """Raises InputError for numbers that nothing has."""
        for index, least, reach, what in self.limits:
            numbers = given[index]
            if numbers.numel() and not (int(numbers.min()) >= least and int(numbers.max()) < reach):
                raise InputError(f"an index lies outside of {what}", code="input-value", hint="does the float model take it?")

    def made(self) -> list[Tensor]:
        """New tensors for what is handed out."""
        return [new_empty(*shape) for new_empty, shape in self.makers]

    def pointers(self, given: Sequence[Tensor], made: Sequence[Tensor]) -> Any:
        addresses = [x.data_ptr() for x in given]
        if 0 in addresses and any(x.numel() and not address for x, address in zip(given, addresses, strict=True)):
            raise InputError("a native region takes tensors that hold their numbers in memory; this one stands for others",
                             code="input-type", hint="give real tensors")  # fmt: skip
        return self.array(*addresses, *[x.data_ptr() for x in made])

    def results(self, made: Sequence[Tensor]) -> tuple[Any, ...]:
        return tuple([number if index is None else made[index] for index, number in self.order])


def _limits(layers: Sequence[ByNumber], sizes: Sizes) -> tuple[int, int, str]:
    """From where to where numbers may reach that all of these layers take, and of what."""
    reach, what = min((reach := layer.reach(sizes), layer.of_what(reach)) for layer in layers)
    return -reach if all(layer.from_end for layer in layers) else 0, reach, what


def _is_plain(x: Tensor) -> bool:
    """Whether its memory holds what it says: the C reads it by address."""
    return x.dtype is _float32 and x.is_cpu and x.layout is _strided and not x.is_neg() and (x.dim() < 6 or x.is_contiguous())


def _plain(x: Tensor) -> Tensor:
    """The same numbers as float32 in memory of their own. Raises InputError for a tensor whose numbers lie elsewhere, or nowhere."""
    if x.device.type != "cpu" or x.layout is not torch.strided:
        raise InputError(f"a native region takes dense tensors on the CPU, not {x.layout} on {x.device}", code="input-type", hint="x.cpu()")
    if x.is_complex() or x.is_quantized:
        raise InputError(f"a native region takes plain numbers, not {x.dtype}", code="input-type", hint="x.real, x.dequantize()")
    return x.resolve_neg().to(torch.float32).contiguous()


def _seen(arena: Tensor, place: Place, offsets: Sequence[int]) -> Tensor:
    start = offsets[place.buffer] + place.offset
    memory = arena if place.size == 1 else arena.view(torch.float32)
    strides = [stride // place.size for stride in place.strides]
    return memory.as_strided(place.shape, strides, memory.storage_offset() + start // place.size).clone()


def _values(source: Source) -> tuple[Values, tuple[Any, ...]]:
    """The constants as the C reads them; weights begin at a cache line."""
    constants = source.constants
    data = torch.empty(constants.size + LINE, dtype=torch.uint8)
    start = -data.data_ptr() % LINE
    constants.write(data.numpy()[start : start + constants.size])
    integers = (ctypes.c_int32 * max(1, len(constants.integers)))(*constants.integers)
    reals = (ctypes.c_float * max(1, len(constants.reals)))(*constants.reals)
    doubles = (ctypes.c_double * max(1, len(constants.doubles)))(*constants.doubles)
    return Values(data.data_ptr() + start, integers, reals, doubles), (data, integers, reals, doubles)
