"""A native region at run time: its compiled network, its constants, and a table for each set of input sizes it has met."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.native.build.library import Values, open_model, runtime
from qcompiler.backends.native.emit.source import Source, source_of, tensor_outputs
from qcompiler.backends.native.live_regions import REGIONS, described, versions
from qcompiler.backends.native.plan.fuse import fuse
from qcompiler.backends.native.plan.network import Network
from qcompiler.backends.native.plan.place import Place
from qcompiler.backends.native.plan.planner import Planner
from qcompiler.backends.native.plan.rows import Row, plan_rows
from qcompiler.backends.native.plan.sizes import Sizes
from qcompiler.backends.native.plan.table import Table, table_of
from qcompiler.backends.native.plan.text import plan_text
from qcompiler.backends.native.steps import Region
from qcompiler.errors import InputError

Standing = Callable[[], list[Tensor] | None]  # the constants where a module has them at the moment, None where it is gone
KEPT = 16  # tables of sizes; a call with sizes beyond these makes its table anew


def planned(region: Region, tensors: Sequence[Tensor], qparams: Sequence[tuple[float, int]]) -> Network:
    """The fused layers of a region."""
    planner = Planner(region, [t.detach() for t in tensors], qparams)
    return fuse(planner.network(), planner.example)


class NativeRegion:
    """Callable on the float tensors that the region takes; any number of threads may call it at once."""

    def __init__(self, region: Region, tensors: Sequence[Tensor], qparams: Sequence[tuple[float, int]]) -> None:
        self.places, self.description = region.places, described(region)
        self.network = planned(region, tensors, qparams)
        self.source: Source = source_of(self.network)
        self.values, self._arrays = _values(self.source)
        self._run = runtime().qc_run
        self._model = open_model(self.source.text, self.values)
        weakref.finalize(self, runtime().qc_close, self._model)
        self._tables: dict[Any, Table] = {}
        self.tensors = tensor_outputs(self.network)
        self.constants = [*tensors, *_qparams(qparams)]  # what the operator of torch takes: operator.py
        self.versions = versions(self.constants)
        self.standing: Standing | None = None

    @property
    def isa(self) -> str:
        """The instruction set that it runs on."""
        return str(runtime().qc_isa(self._model).decode())

    def belongs(self, standing: Standing) -> None:
        """Tells it where its constants stand in the module that it belongs to."""
        self.standing, self.constants = standing, standing() or self.constants
        self.versions = versions(self.constants)
        REGIONS.add(self)

    def table(self, inputs: Sequence[Tensor]) -> Table:
        """The sizes of a call: kept for the sizes met last."""
        key = tuple((x.shape, x.stride()) for x in inputs)
        found = self._tables.get(key)
        if found is None:
            found = table_of(self._sizes(inputs))
            for old in list(self._tables)[: len(self._tables) - KEPT + 1]:  # other threads may be at it, too
                self._tables.pop(old, None)
            self._tables[key] = found
        return found

    def _sizes(self, inputs: Sequence[Tensor]) -> Sizes:
        names = [name for name, _ in self.network.inputs]
        shapes = {name: tuple(x.shape) for name, x in zip(names, inputs, strict=True)}
        return Sizes(self.network, dict(shapes), strides={name: x.stride() for name, x in zip(names, inputs, strict=True)}).filled()

    def _given(self, inputs: Sequence[Tensor], table: Table) -> tuple[dict[str, Tensor], Any]:
        """New tensors for what is handed out, and the pointers to all tensors of a call."""
        made = {name: torch.empty(table.sizes.shape(name)) for name in self.tensors}
        pointers = [x.data_ptr() for x in (*inputs, *made.values())]
        return made, (ctypes.c_void_p * len(pointers))(*pointers)

    def __call__(self, *inputs: Tensor) -> tuple[Any, ...]:
        """What the region hands out, in order: tensors, and numbers that follow from sizes."""
        given = self.readable(inputs)
        table = self.table(given)
        made, pointers = self._given(given, table)
        if self._run(self._model, ctypes.byref(table.struct), pointers, torch.get_num_threads()):
            raise MemoryError(f"no memory for the {table.struct.arena} bytes that this network's values take")
        return tuple(made[name] if name in made else table.sizes.shapes[name] for name in self.network.outputs)

    def readable(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The inputs as the C reads them. Raises InputError for tensors that are no float memory of the CPU."""
        return [x if _is_plain(x) else _plain(x) for x in inputs]

    def plan(self, *inputs: Tensor) -> str:
        """The plan as text, at the sizes of the example, or at those of the inputs and with times."""
        table = table_of(self._sizes(inputs or self._examples()))
        return plan_text(table, self.source.kernels, self.source.constants.size, self.watch(*inputs).nanoseconds if inputs else None)

    def rows(self) -> list[Row]:
        """The plan at the sizes of the example."""
        return plan_rows(table_of(self._sizes(self._examples())), self.source.kernels)

    def _examples(self) -> list[Tensor]:
        return [torch.empty(shape, device="meta") for _, shape in self.network.inputs]

    def watch(self, *inputs: Tensor) -> Watched:
        """One run on one thread that keeps every value."""
        inputs = tuple(self.readable(inputs))
        sizes = self._sizes(inputs)
        for buffer in sizes.buffers:
            buffer.first, buffer.last = 0, len(self.network.layers)
        table = table_of(sizes)
        arena = torch.zeros(table.struct.arena, dtype=torch.uint8)
        nanoseconds = (ctypes.c_int64 * max(1, len(self.network.computing)))()
        made, pointers = self._given(inputs, table)
        runtime().qc_watch(self._model, ctypes.byref(table.struct), pointers, arena.data_ptr(), nanoseconds)
        own = {name: place for name, place in sizes.places.items() if isinstance(place, Place) and place.buffer >= 0}
        values = {name: _seen(arena, place, table.offsets) for name, place in own.items()}
        return Watched(values | made, dict(zip((layer.out for layer in self.network.computing), nanoseconds, strict=False)))


def _qparams(qparams: Sequence[tuple[float, int]]) -> tuple[Tensor, Tensor]:
    scales, zero_points = [scale for scale, _ in qparams], [zero_point for _, zero_point in qparams]
    return torch.tensor(scales, dtype=torch.float64), torch.tensor(zero_points, dtype=torch.int64)


def _is_plain(x: Tensor) -> bool:
    """Whether its memory holds what it says: the C reads it by address."""
    return (
        x.dtype is torch.float32
        and x.device.type == "cpu"
        and x.layout is torch.strided
        and not x.is_neg()
        and (x.dim() < 6 or x.is_contiguous())
    )


def _plain(x: Tensor) -> Tensor:
    """The same numbers as float32 in memory of their own. Raises InputError for a tensor whose numbers lie elsewhere, or nowhere."""
    if x.device.type != "cpu" or x.layout is not torch.strided:
        raise InputError(f"a native region takes dense tensors on the CPU, not {x.layout} on {x.device}", code="input-type", hint="x.cpu()")
    return x.resolve_neg().to(torch.float32).contiguous()


@dataclass(frozen=True)
class Watched:
    """`values`: codes and floats by name, in torch's shapes. `nanoseconds`: of each layer that computes, by its result."""

    values: dict[str, Tensor]
    nanoseconds: dict[str, int]


def _seen(arena: Tensor, place: Place, offsets: Sequence[int]) -> Tensor:
    start = offsets[place.buffer] + place.offset
    memory = arena if place.size == 1 else arena.view(torch.float32)
    strides = [stride // place.size for stride in place.strides]
    return memory.as_strided(place.shape, strides, memory.storage_offset() + start // place.size).clone()


def _values(source: Source) -> tuple[Values, tuple[Any, ...]]:
    """The constants as the C reads them; weights begin at a cache line."""
    constants = source.constants
    raw = constants.bytes()
    data = torch.empty(len(raw) + 64, dtype=torch.uint8)
    start = -data.data_ptr() % 64
    data[start : start + len(raw)] = torch.frombuffer(bytearray(raw or b"\0"), dtype=torch.uint8)[: len(raw)]
    integers = (ctypes.c_int32 * max(1, len(constants.integers)))(*constants.integers)
    reals = (ctypes.c_float * max(1, len(constants.reals)))(*constants.reals)
    doubles = (ctypes.c_double * max(1, len(constants.doubles)))(*constants.doubles)
    constants.blocks.clear()
    return Values(data.data_ptr() + start, integers, reals, doubles), (data, integers, reals, doubles)
