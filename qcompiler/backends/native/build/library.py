"""The libraries of this process: the kernels of an instruction set with what runs a network, and the functions of each network.

Kernels are compiled for the instruction set that runs here, and for no other: all those of x86 take five times as long. What is written
for others (export_c) holds them all and chooses when it is loaded.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import threading
from collections.abc import Callable
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

from qcompiler.backends.native import isa
from qcompiler.backends.native.build import cache as kept
from qcompiler.backends.native.build.compiler import Unit, find_if_there
from qcompiler.errors import ConfigError

RUN = Path(__file__).parent.parent / "run"
BARE = "-g0"  # zig would put three times as much about the code into a library as there is of it
NETWORK_FLAGS = ("-std=c11", "-O1", "-ffp-contract=off", "-fPIC", BARE)
ISA = "QCOMPILER_ISA"
_lock = threading.Lock()


class Tensor(Structure):
    """qc_tensor."""

    _fields_ = [("p", c_void_p), *((name, c_int32) for name in "ndhwc"), *((name, c_int64) for name in ("sn", "sd", "sh", "sw"))]


class Copy(Structure):
    """qc_copy."""

    _fields_ = [("x", c_void_p), ("y", c_void_p), ("length", c_int64 * 6), ("xs", c_int64 * 6), ("ys", c_int64 * 6), ("size", c_int32)]


class Values(Structure):
    """qc_values."""

    _fields_ = [("data", c_void_p), ("integers", POINTER(c_int32)), ("reals", POINTER(c_float)), ("doubles", POINTER(c_double))]


class SizesStruct(Structure):
    """qc_sizes."""

    _fields_ = [("pixels", POINTER(Tensor)), ("moved", POINTER(Copy)), ("strides", c_void_p), ("spread", POINTER(c_int32)),
                ("cost", POINTER(c_int64)), ("maps", c_void_p), ("arena", c_int64),
                ("parts", c_int64), ("tensors", c_int64), ("step", POINTER(c_int64)), ("last", POINTER(c_int64))]  # fmt: skip


def runtime_units(name: str) -> list[Unit]:
    """What the library of kernels of an instruction set is made of."""
    units = [Unit(unit, source, (*flags, BARE)) for unit, (source, flags) in isa.units(isa.architecture(), name).items()]
    return units + [Unit(unit, RUN / f"{unit}.c", (*isa.COMMON_FLAGS, BARE), (isa.KERNELS,)) for unit in ("run", "workers")]


def headers() -> list[Path]:
    return sorted([*isa.KERNELS.glob("*.h"), *RUN.glob("*.h")], key=lambda header: header.name)  # not by the folders where they lie


@cache
def _fastest() -> Callable[[bytes | None], bytes | None]:
    """The fastest instruction set that runs here, none above the one named; None where that is no such name."""
    unit = Unit("machine", *isa.units(isa.architecture())["machine"])
    made = ctypes.CDLL(str(kept.library(find_if_there(), "qcompiler-machine", [unit], headers()))).qc_fastest
    made.restype, made.argtypes = c_char_p, [c_char_p]
    return made


def here() -> tuple[str, ...]:
    """The instruction sets that this machine runs, slowest first."""
    return tuple(name for name in isa.isas(isa.architecture()) if _fastest()(name.encode()) == name.encode())


def chosen() -> str:
    """The fastest that QCOMPILER_ISA allows. Raises ConfigError where that is no name of one."""
    asked = os.environ.get(ISA, "")
    found = _fastest()(asked.encode() or None)
    if found is None:
        names = ", ".join(isa.isas(isa.architecture()))
        raise ConfigError(f"{ISA}={asked!r:.40} is no instruction set", code="isa", hint=f"one of {names}")
    return found.decode()


@cache
def runtime(name: str) -> ctypes.CDLL:
    """The kernels of an instruction set that runs here, and qc_open, qc_run, qc_close."""
    with _lock:
        path = kept.library(find_if_there(), f"qcompiler-kernels-{name}", runtime_units(name), headers())
    made = ctypes.CDLL(str(path))
    made.qc_open.restype, made.qc_open.argtypes = c_void_p, [c_void_p, POINTER(Values), c_char_p]
    made.qc_close.restype, made.qc_close.argtypes = None, [c_void_p]
    made.qc_isa.restype, made.qc_isa.argtypes = c_char_p, [c_void_p]
    made.qc_run.restype, made.qc_run.argtypes = c_int, [c_void_p, POINTER(SizesStruct), POINTER(c_void_p), c_int]
    made.qc_watch.restype, made.qc_watch.argtypes = None, [c_void_p, POINTER(SizesStruct), POINTER(c_void_p), c_void_p]
    made.qc_time.restype, made.qc_time.argtypes = c_int, [c_void_p, POINTER(SizesStruct), POINTER(c_void_p), c_int, POINTER(c_int64)]
    return made


@cache
def network(source: str) -> int:
    """The address of the qc_network that C source of ours defines."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.c"
        path.write_text(source)
        unit = Unit("network", path, NETWORK_FLAGS, (isa.KERNELS, RUN))
        library = ctypes.CDLL(str(kept.library(find_if_there(), "network", [unit], headers())))
    return ctypes.addressof(ctypes.c_char.in_dll(library, "qc_this_network"))


def open_model(isa_name: str, source: str, values: Values) -> int:
    """A qc_model of the network on an instruction set that runs here. Raises MemoryError where there is no memory for it."""
    model = runtime(isa_name).qc_open(network(source), ctypes.byref(values), isa_name.encode())
    if not model:
        raise MemoryError("no memory for a native network")
    return int(model)
