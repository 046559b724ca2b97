"""The libraries of this process: the kernels with what runs a network, once, and the functions of each network."""

from __future__ import annotations

import ctypes
import os
import tempfile
import threading
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

from qcompiler.backends.native import isa
from qcompiler.backends.native.build import cache as kept
from qcompiler.backends.native.build.compiler import Unit, find
from qcompiler.errors import ConfigError

RUN = Path(__file__).parent.parent / "run"
NETWORK_FLAGS = ("-std=c11", "-O1", "-ffp-contract=off", "-fPIC")
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
                ("cost", POINTER(c_int64)), ("maps", c_void_p), ("arena", c_int64)]  # fmt: skip


def runtime_units(machine: str) -> list[Unit]:
    """What the shared library of kernels is made of."""
    include = (f"-I{isa.KERNELS}",)
    units = [Unit(name, source, (*flags, *include)) for name, (source, flags) in isa.units(machine).items()]
    return units + [Unit(name, RUN / f"{name}.c", (*isa.COMMON_FLAGS, *include)) for name in ("run", "workers")]


def headers() -> list[Path]:
    return sorted([*isa.KERNELS.glob("*.h"), *RUN.glob("*.h")])


@cache
def runtime() -> ctypes.CDLL:
    """The kernels of all instruction sets of this machine, and qc_open, qc_run, qc_close."""
    with _lock:
        path = kept.library(find(), "qcompiler-kernels", runtime_units(isa.architecture()), headers())
    made = ctypes.CDLL(str(path))
    made.qc_open.restype, made.qc_open.argtypes = c_void_p, [c_void_p, POINTER(Values), c_char_p]
    made.qc_close.restype, made.qc_close.argtypes = None, [c_void_p]
    made.qc_isa.restype, made.qc_isa.argtypes = c_char_p, [c_void_p]
    made.qc_run.restype, made.qc_run.argtypes = c_int, [c_void_p, POINTER(SizesStruct), POINTER(c_void_p), c_int]
    made.qc_watch.restype, made.qc_watch.argtypes = None, [c_void_p, POINTER(SizesStruct), POINTER(c_void_p), c_void_p, POINTER(c_int64)]
    return made


@cache
def network(source: str) -> int:
    """The address of the qc_network that C source of ours defines."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.c"
        path.write_text(source)
        unit = Unit("network", path, (*NETWORK_FLAGS, f"-I{isa.KERNELS}", f"-I{RUN}"))
        library = ctypes.CDLL(str(kept.library(find(), "network", [unit], headers())))
    return ctypes.addressof(ctypes.c_char.in_dll(library, "qc_this_network"))


def open_model(source: str, values: Values) -> int:
    """A qc_model of the network on the instruction set that QCOMPILER_ISA allows."""
    asked = os.environ.get(ISA, "")
    model = runtime().qc_open(network(source), ctypes.byref(values), asked.encode() or None)
    if not model:
        names = ", ".join(isa.isas(isa.architecture()))
        raise ConfigError(f"{ISA}={asked!r:.40} is no instruction set", code="isa", hint=f"one of {names}")
    return int(model)
