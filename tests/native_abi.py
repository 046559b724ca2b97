"""The kernels' structs and functions for ctypes, a library for every instruction set of this machine, and values in guarded memory."""

from __future__ import annotations

import ctypes as C
import itertools
import shutil
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompiler.backends.native.build.compiler import Compiler, link
from qcompiler.backends.native.build.library import here, runtime
from qcompiler.backends.native.plan.codes import whole_factors
from tests import native_without_silicon
from tests.native_oracle import Ends

I3, L5, L6 = C.c_int32 * 3, C.c_int64 * 5, C.c_int64 * 6


def fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class QTensor(C.Structure):
    _fields_ = [("p", C.c_void_p), *fields(C.c_int32, "n d h w c"), *fields(C.c_int64, "sn sd sh sw")]


class QWindow(C.Structure):
    _fields_ = fields(I3, "kernel stride dilation pad")


class QSum(C.Structure):
    _fields_ = [*fields(C.c_float, "ka kb kc"), *fields(C.c_int32, "zero lo hi whole whole_a whole_b whole_c")]


class QEpilogue(C.Structure):
    _fields_ = [
        *fields(C.c_void_p, "m b gain slope offset table curve"),
        ("sum", QSum),
        ("top", C.c_float),
        *fields(C.c_int32, "zero lo hi wide knee half"),
    ]


CONV = [*fields(QTensor, "x y r"), ("k", QWindow), ("e", QEpilogue), *fields(C.c_void_p, "w wsum")]
OPERAND: list[tuple[str, type]] = [("t", QTensor), ("step", C.c_int64), ("scale", C.c_float), *fields(C.c_int32, "zero codes")]
RESULT: list[tuple[str, type]] = [("t", QTensor), ("inverse", C.c_float), *fields(C.c_int32, "zero lo hi codes")]


class QOperand(C.Structure):
    _fields_ = OPERAND


class QResult(C.Structure):
    _fields_ = RESULT


L3 = C.c_int64 * 3
POOL = [*fields(QTensor, "x y"), ("k", QWindow)]
FAMILIES: dict[str, list[tuple[str, type]]] = {
    "conv": [*CONV[:3], ("room", C.c_void_p), *CONV[3:], *fields(C.c_int32, "groups fold floats small")],
    "depthwise": [*CONV[:2], *CONV[3:]],
    "add": [*fields(QTensor, "a b y"), ("sum", QSum), ("step", C.c_int32)],
    "mul": [*fields(QTensor, "a b y"), ("k", C.c_float), *fields(C.c_int32, "za zb zero lo hi step")],
    "map": [*fields(QTensor, "x y"), ("table", C.c_void_p), ("each", C.c_int32)],
    "quantize": [("x", C.c_void_p), ("xs", L5), ("y", QTensor), ("inverse", C.c_float), *fields(C.c_int32, "zero lo hi")],
    "dequantize": [("x", QTensor), ("y", C.c_void_p), ("ys", L5), ("scale", C.c_float), ("zero", C.c_int32)],
    "max_pool": [*POOL, ("adaptive", C.c_int32)],
    "avg_pool": [*POOL, ("ratio", C.c_double), ("b", C.c_float), *fields(C.c_int32, "adaptive include_pad divisor x_zero zero lo hi")],
    "halo": [("t", QTensor), ("before", I3), ("after", I3), ("value", C.c_int32)],
    "copy": [*fields(C.c_void_p, "x y"), *fields(L6, "length xs ys"), ("size", C.c_int32)],
    "resize": [
        *fields(QTensor, "x y"),
        ("scale", C.c_float * 3),
        *fields(C.c_float, "m b"),
        *fields(C.c_int32, "mode zero lo hi x_floats y_floats"),
    ],
    "pick": [("x", C.c_void_p), ("y", QTensor), ("at", C.c_void_p * 5), ("fill", C.c_uint8 * 4), ("size", C.c_int32)],
    "float_map": [("x", QOperand), ("y", QResult), ("table", C.c_void_p), ("p", C.c_float * 2), ("function", C.c_int32)],
    "float_pair": [*fields(QOperand, "a b"), ("y", QResult), *fields(C.c_float, "times lo hi"), ("op", C.c_int32)],
    "float_pool": [("x", QOperand), ("y", QResult), ("k", QWindow), *fields(C.c_int32, "op adaptive include_pad divisor")],
    "norm": [
        ("x", QOperand),
        ("y", QResult),
        *fields(C.c_void_p, "w b"),
        *fields(C.c_int64, "cycle each"),
        ("eps", C.c_float),
        ("rms", C.c_int32),
    ],
    "softmax": [("x", QOperand), ("y", QResult), ("log", C.c_int32)],
    "cumsum": [("x", QOperand), ("y", QResult)],
    "reduce": [("x", QOperand), ("y", QResult), ("factor", C.c_float), ("op", C.c_int32)],
    "range": [("x", QOperand), ("y", C.c_void_p)],
    "encode": [("x", QOperand), ("ends", C.c_void_p), ("y", QTensor)],
    "factors": [*fields(C.c_void_p, "ends scale bias wsum m"), *fields(C.c_int32, "channels padded")],
    "gates": [*fields(C.c_void_p, "ih hh hidden cell out"), *fields(C.c_int64, "rows width out_row"), ("kind", C.c_int32)],
    "where": [*fields(QOperand, "condition a b"), ("y", QResult)],
    "embed": [("x", QOperand), ("y", QResult), *fields(C.c_void_p, "table codes scale zero"), ("rows", C.c_int64)],
    "pack": [("x", QOperand), ("y", C.c_void_p)],
    "matmul": [("a", QTensor), ("b", C.c_void_p), ("b_of", L3), ("y", QResult)],
    "attention": [
        ("q", QTensor),
        *fields(C.c_void_p, "k v"),
        *fields(L3, "k_of v_of"),
        ("mask", QOperand),
        ("y", QResult),
        ("scale", C.c_float),
        *fields(C.c_int32, "keys causal"),
    ],
    "order": [("x", QOperand), ("y", QTensor), ("work", C.c_void_p), ("op", C.c_int32)],
    "elements": [*fields(QOperand, "x at"), ("y", QTensor), ("from_end", C.c_int32)],
    "int64": [("x", QOperand), ("y", QTensor)],
    "warp": [*fields(QOperand, "x places"), ("y", QResult), *fields(C.c_int32, "padding nearest aligned")],
}
STRUCTS = {name: type(f"Q{name}", (C.Structure,), {"_fields_": members}) for name, members in FAMILIES.items()}


class QKernels(C.Structure):
    _fields_ = [
        ("isa", C.c_char_p),
        *fields(C.c_void_p, "end conv_first conv_room"),
        *((n, C.c_void_p) for f in FAMILIES for n in (f"{f}_units", f)),
    ]


UNITS, RUN = C.CFUNCTYPE(C.c_int64, C.c_void_p), C.CFUNCTYPE(None, C.c_void_p, C.c_int64, C.c_int64)


class Kernels:
    """The functions of one instruction set."""

    def __init__(self, table: QKernels) -> None:
        self.isa = table.isa.decode()
        self.units = {f: UNITS(getattr(table, f"{f}_units")) for f in FAMILIES}
        self.run = {f: RUN(getattr(table, f)) for f in FAMILIES}
        self.first, self.room = UNITS(table.conv_first), UNITS(table.conv_room)
        self.end = C.CFUNCTYPE(None)(table.end)

    def __call__(self, family: str, threads: int = 1, **members: object) -> None:
        """Runs all pieces: in one call, or in random parts of them on several threads, with room for what they share."""
        args = STRUCTS[family](**members)
        count = self.units[family](C.byref(args))
        first = self.first(C.byref(args)) if family == "conv" and threads > 1 else 0
        if first:
            size = self.room(C.byref(args))
            room = np.full(size + 128, 0xA5, np.uint8)
            start = -room.ctypes.data % 64
            args.room = room.ctypes.data + start
        self._parts(family, args, (0, first), threads)
        self._parts(family, args, (first, count), threads)
        assert not first or (room[start + size :] == 0xA5).all()

    def _parts(self, family: str, args: C.Structure, ends: tuple[int, int], threads: int) -> None:
        cuts = list(ends)
        if threads > 1:
            cuts = sorted({*cuts, *np.random.default_rng(ends[1]).integers(*ends, 2 * threads, endpoint=True).tolist()})

        def part(ends: tuple[int, int]) -> None:
            self.run[family](C.byref(args), *ends)
            self.end()

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, itertools.pairwise(cuts)))


def built(folder: Path, name: str, extra: Sequence[str]) -> Path:
    """The kernels of an instruction set alone, with flags of the compiler and the linker, as for sanitizers."""
    compiler, folder = Compiler((shutil.which("cc") or shutil.which("gcc") or "cc", *extra), ""), folder / name
    folder.mkdir()
    if name in native_without_silicon.emulated():
        compiler = native_without_silicon.rewriting(compiler)
    units = [replace(unit, flags=(*unit.flags, *extra)) for unit in native_without_silicon.kernels(name)]
    link(compiler, units, folder, folder / "kernels.so")
    return folder / "kernels.so"


class Library:
    """The kernels of the instruction sets of this machine, compiled with the system's compiler, each when it is first asked for."""

    def __init__(self, folder: Path, extra: Sequence[str] = ()) -> None:
        """Without `extra` flags what users load, from the cache: up to 15 seconds of a processor to build."""
        self.folder, self.extra = folder, extra
        self.loaded: dict[str, C.CDLL] = {}

    def library(self, name: str) -> C.CDLL:
        """That of an instruction set of this machine."""
        if name not in self.loaded:
            made = C.CDLL(str(built(self.folder, name, self.extra))) if self.extra else runtime(name)
            made.qc_exactly.restype = C.POINTER(QKernels)
            self.loaded[name] = made
        return self.loaded[name]

    def kernels(self, name: str) -> Kernels | None:
        """None where this machine does not run them."""
        return Kernels(self.library(name).qc_exactly(name.encode()).contents) if name in here() else None


SLACK = 128


def sum_of(factors: tuple[float, float, float], ends: Ends) -> QSum:
    whole = whole_factors(factors, ends.zero)
    return QSum(*factors, ends.zero, ends.lo, ends.hi, whole is not None, *(whole or (0, 0, 0)))


_KNOWN: list[weakref.ref[NDArray[Any]]] = []  # what kernels may be given pointers into


def known(array: NDArray[Any]) -> NDArray[Any]:
    """Memory of a test: an emulator has to be given all of it."""
    _KNOWN[:] = [r for r in _KNOWN if r() is not None]
    _KNOWN.append(weakref.ref(array))
    return array


def live_arrays() -> list[NDArray[Any]]:
    return [array for r in _KNOWN if (array := r()) is not None]


class Guarded:
    """Codes (N, C, ...) in NHWC memory with a halo, gaps between pixels and slack; everything around them is watched.

    around: what the halo holds; everything else is random, so that a kernel that believes it gives wrong results.
    """

    def __init__(self, codes: Tensor, halo: Sequence[int] = (0, 0, 0), pitch: int = 0, around: int | None = None) -> None:
        self.shape = codes.shape
        spatial = (1,) * (5 - codes.dim()) + tuple(codes.shape[2:])
        self.sizes = (codes.shape[0], *spatial)
        self.halo, self.channels = tuple(halo), codes.shape[1]
        pitch = pitch or self.channels
        outer = [size + 2 * h for size, h in zip(spatial, halo)]
        rng = np.random.default_rng(0)
        self.memory = known(rng.integers(0, 256, codes.shape[0] * outer[0] * outer[1] * outer[2] * pitch + 2 * SLACK, dtype=np.uint8))
        view = self.memory[SLACK:-SLACK].reshape(codes.shape[0], *outer, pitch)
        if around is not None:
            view[..., : self.channels] = around
            if pitch == self.channels:
                view[...] = around
        self.inner = view[self._inside()]
        self.inner[...] = codes.reshape(codes.shape[0], codes.shape[1], *spatial).permute(0, 2, 3, 4, 1).numpy()
        self.before = self.memory.copy()
        strides = dict(zip(("sn", "sd", "sh", "sw"), view.strides))
        names = dict(zip("ndhwc", (*self.sizes, self.channels)))
        self.tensor = QTensor(p=self.inner.ctypes.data, **names, **strides)

    def _inside(self) -> tuple[slice, ...]:
        return (slice(None), *(slice(h, -h or None) for h in self.halo), slice(0, self.channels))

    def codes(self) -> Tensor:
        """What lies inside, in torch's layout."""
        return torch.from_numpy(self.inner.copy()).permute(0, 4, 1, 2, 3).reshape(self.shape)

    def untouched(self) -> bool:
        """Whether everything around the codes is as it was."""
        now, then = self.memory.copy(), self.before.copy()
        for memory in (now, then):
            inner = memory[SLACK:-SLACK].reshape(self.sizes[0], *[s + 2 * h for s, h in zip(self.sizes[1:], self.halo)], -1)
            inner[self._inside()] = 0
        return bool((now == then).all())


def aligned(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The bytes of an array at a multiple of 64, with slack behind them."""
    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    memory = known(np.zeros(raw.size + 64 + SLACK, np.uint8))
    start = -memory.ctypes.data % 64
    memory[start : start + raw.size] = raw
    return memory[start : start + raw.size]


def random_codes(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
