"""Writes the C function of a layer: it fills the struct of a kernel from constants and sizes, and runs some of its pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.native.emit.constants import Constants
from qcompiler.backends.native.plan.codes import Codes, whole_factors
from qcompiler.backends.native.plan.place import Axes
from qcompiler.backends.native.plan.window import Window

TYPES = {"w": "const int8_t *", "wsum": "const int32_t *"}
TYPES |= {f"e.{name}": "const float *" for name in ("m", "b", "gain", "slope", "offset")}
TYPES["e.curve"] = "const int16_t *"
BYTES = "const uint8_t *"


@dataclass
class Counters:
    """How many of each kind of size-dependent struct the layers so far read."""

    pixels: int = 0
    moved: int = 0
    maps: int = 0
    strides: int = 0
    spread: int = 0


class Call:
    """The struct of one kernel call: `a.field = value;` lines."""

    def __init__(self, code: LayerCode, family: str) -> None:
        self.code, self.family = code, family
        self.lines: list[str] = []

    def set(self, name: str, value: str) -> None:
        self.lines.append(f"a.{name} = {value};")

    def pixels(self, *names: str) -> None:
        for name in names:
            self.set(name, self.code.next_pixels())

    def floats(self, *names: str) -> None:
        """Floats of which the kernel knows how they lie."""
        for name in names:
            self.set(name, f"(float *)(void *){self.code.next_pixels()}.p")

    def doubles_at(self, name: str) -> None:
        """Doubles that were computed at run time."""
        self.set(name, f"(double *)(void *){self.code.next_pixels()}.p")

    def numbers_at(self, name: str) -> None:
        """Room for whole numbers of 64 bits."""
        self.set(name, f"(uint64_t *)(void *){self.code.next_pixels()}.p")

    def strides(self, name: str) -> None:
        self.lines.append(f"memcpy(a.{name}, s->strides[{self.code.next_strides()}], sizeof a.{name});")

    def maps(self, name: str, count: int) -> None:
        """Lists of places, one an axis."""
        first, self.code.counters.maps = self.code.counters.maps, self.code.counters.maps + count
        for axis in range(count):
            self.set(f"{name}[{axis}]", f"s->maps[{first + axis}]")

    def start(self, name: str) -> None:
        """Where a value begins; lists of places say the rest."""
        self.set(name, f"{self.code.next_pixels()}.p")

    def fill(self, name: str, value: float, is_float: bool) -> None:
        """Four bytes: of a float, or of one code."""
        if is_float:
            self.lines.append(f"memcpy(a.{name}, s->reals + {self.code.constants.real(value)}, sizeof a.{name});")
            return
        code = int(value)
        self.lines.append(f"memset(a.{name}, s->integers[{self.code.constants.integer(code)}], sizeof a.{name});")

    def window(self, name: str, window: Window) -> None:
        parts = [_three(values) for values in (window.kernel, window.stride, window.dilation, window.pad)]
        self.set(name, f"(qc_window){{{', '.join(parts)}}}")

    def plain(self, **values: int) -> None:
        """Numbers that the shape of the network settles."""
        for name, value in values.items():
            self.set(name, str(value))

    def numbers(self, **values: int) -> None:
        for name, value in values.items():
            self.set(name, f"s->integers[{self.code.constants.integer(value)}]")

    def reals(self, **values: float) -> None:
        for name, value in values.items():
            self.set(name, f"s->reals[{self.code.constants.real(value)}]")

    def sum(self, name: str, factors: tuple[float, float, float], zero: int, ends: tuple[int, int]) -> None:
        """A sum of two codes; `ends`: the smallest and largest code of the result."""
        whole = whole_factors(factors, zero)
        self.reals(**{f"{name}.{field}": value for field, value in zip(("ka", "kb", "kc"), factors, strict=True)})
        numbers = (zero, *ends, int(whole is not None), *(whole or (0, 0, 0)))
        names = ("zero", "lo", "hi", "whole", "whole_a", "whole_b", "whole_c")
        self.numbers(**{f"{name}.{field}": value for field, value in zip(names, numbers, strict=True)})

    def doubles(self, **values: float) -> None:
        for name, value in values.items():
            self.set(name, f"s->doubles[{self.code.constants.double(value)}]")

    def inverse(self, name: str, scale: float) -> None:
        """1 / scale, in float32, as quantize multiplies by it."""
        self.reals(**{name: float(np.float32(1.0 / scale))})

    def data(self, name: str, values: NDArray[Any], kind: str | None = None) -> None:
        """`kind`: what the C reads the block as, where the field's name does not say it."""
        self.set(name, f"({kind or TYPES.get(name, BYTES)})(s->data + {self.code.constants.data(values)})")

    def step(self, name: str) -> None:
        """A number that depends on the sizes, as how far apart an operand's elements lie; 0: one for all."""
        self.set(name, f"s->spread[{self.code.next_spread()}]")

    def input(self, name: str, value: str) -> None:
        self.set(name, f"(const float *)s->io[{self.code.io[value]}]")

    def output(self, name: str, value: str) -> None:
        self.set(name, f"(float *)s->io[{self.code.io[value]}]")


class Around(Protocol):
    """What the code of a layer depends on of the network around it, as `Network` says it."""

    @property
    def rims(self) -> Mapping[str, str]: ...
    @property
    def halos(self) -> Mapping[str, Axes]: ...
    @property
    def codes(self) -> Mapping[str, Codes]: ...
    @property
    def whole(self) -> frozenset[str]: ...


@dataclass
class LayerCode:
    """`io`: the number of each tensor that the caller gives or gets."""

    network: Around
    constants: Constants
    io: Mapping[str, int]
    counters: Counters = field(default_factory=Counters)
    body: list[str] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)  # the families that it calls

    @contextmanager
    def call(self, family: str) -> Iterator[Call]:
        made = Call(self, family)
        yield made
        self.kernels.append(family)
        shared = family == "conv"
        self.body += [
            f"qc_{family} a = {{0}};",
            *made.lines,
            *(["a.room = s->room;"] if shared else []),
            f"if (hi < 0) return lo == QC_PIECES ? s->k->{family}_units(&a) : {'qc_of_conv(s->k, &a, lo)' if shared else 0};",
            f"s->k->{family}(&a, lo, hi);",
        ]

    @contextmanager
    def loop(self) -> Iterator[Call]:
        """A qc_recurrent, which calls kernels itself, in one piece."""
        made = Call(self, "recurrent")
        yield made
        self.kernels += ["range", "encode", "factors", "conv", "gates"]
        self.body += [
            "qc_recurrent a = {0};",
            *made.lines,
            "if (hi < 0) return lo == QC_PIECES;",
            "if (lo == 0) qc_run_recurrent(s->k, &a);",
        ]

    def copy(self) -> None:
        """A qc_copy, which may have nothing to do at some sizes."""
        index, self.counters.moved = self.counters.moved, self.counters.moved + 1
        self.kernels.append("copy")
        self.body += [
            f"qc_copy a = qc_moved(s, {index});",
            "if (hi < 0) return lo == QC_PIECES && a.length[5] ? s->k->copy_units(&a) : 0;",
            "s->k->copy(&a, lo, hi);",
        ]

    def halo(self, name: str) -> None:
        """Zero points around a result, or around what it is the first part of, written with its first piece."""
        whole = self.network.rims.get(name)
        if whole is None:
            return
        pads = self.network.halos[whole]
        self.kernels.append("halo")
        around = _three((0,) * (3 - len(pads)) + tuple(pads))
        zero = self.constants.integer(self.network.codes[name].zero)
        self.body += ["if (lo == 0) {", f"  qc_halo h = {{{self.next_pixels()}, {around}, {around}, s->integers[{zero}]}};",
                      "  s->k->halo(&h, 0, s->k->halo_units(&h));", "}"]  # fmt: skip

    def next_pixels(self) -> str:
        index, self.counters.pixels = self.counters.pixels, self.counters.pixels + 1
        return f"qc_pixels(s, {index})"

    def next_strides(self) -> int:
        index, self.counters.strides = self.counters.strides, self.counters.strides + 1
        return index

    def next_spread(self) -> int:
        index, self.counters.spread = self.counters.spread, self.counters.spread + 1
        return index

    def is_whole(self, name: str) -> bool:
        """Whether nothing lies between the pixels of a value: no layer makes it in a part of another, or sees a part of another."""
        return name in self.network.whole


def _three(values: Any) -> str:
    return "{" + ", ".join(map(str, values)) + "}"
